"""Workloads that are read from files, instead of drawn: records of prompts and conversations."""
