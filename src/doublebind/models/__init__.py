"""Finds, loads, samples and scores models, local or served."""
