"""Defines what users write and what stages hand on."""
