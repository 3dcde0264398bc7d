"""Executor, backends and store: run jobs and keep what they make."""
