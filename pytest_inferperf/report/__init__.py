"""Verdicts in; lines, JUnit properties and summaries out."""
