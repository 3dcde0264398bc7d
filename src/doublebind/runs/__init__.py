"""Run directories: read, write, assess, verify."""
