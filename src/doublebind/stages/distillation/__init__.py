"""Trains students: channels, first weights, steering."""

REV = 1
