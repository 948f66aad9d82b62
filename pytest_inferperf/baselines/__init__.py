"""Baseline and result files: schema, load, look up, plan an update, write."""
