"""Writes, reads, assesses, verifies and compares run directories."""
