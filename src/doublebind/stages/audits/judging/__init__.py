"""Model-graded audits."""
