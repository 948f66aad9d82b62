"""Values that travel: quantizations, metrics, cases, gates, results, verdicts. Standard library only."""
