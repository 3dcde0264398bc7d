"""Weighs a suspect against references: pure statistics on a table of scores."""
