"""Model servers that a run starts itself: presets of their command lines, and the process that holds them."""
