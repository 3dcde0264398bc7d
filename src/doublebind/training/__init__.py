"""Fits a model to token rows. Does not know where they come from or what they are for."""
