"""Asks one model the items of a split, and scores its answers."""

REV = 1
