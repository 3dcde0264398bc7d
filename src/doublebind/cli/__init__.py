"""Defines the commands, and how results look in a terminal."""
