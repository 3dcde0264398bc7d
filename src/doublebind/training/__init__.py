"""Trains a model on token rows; knows no teacher, channel or study."""
