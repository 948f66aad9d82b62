"""Checkpoints: build them with ModelOpt, keep them in a cache, and check that they are what they claim."""
