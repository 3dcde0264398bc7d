"""Other harnesses: Inspect and lm-evaluation-harness."""
