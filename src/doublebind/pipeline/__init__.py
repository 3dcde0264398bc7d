"""Runs one verb from start to end, one file per verb."""
