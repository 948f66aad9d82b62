"""Engines on the nodes of a Ray cluster. `ray` is imported inside functions, and only where `--inferperf-ray` asks for it."""
