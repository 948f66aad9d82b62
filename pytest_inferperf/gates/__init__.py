"""Results and baseline in, verdicts out. No files, no pytest."""
