"""Builds teachers from their specs, and measures the shape of any teacher."""

REV = 1
