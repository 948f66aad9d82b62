"""Workloads, rounds and sessions: drives an engine through its interface and returns figures, never verdicts."""
