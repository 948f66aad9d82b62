"""What many results say over time: steps in a series, and the runs between which they came."""
