"""Engines: one interface, one file per backend, and the processes they live in."""
