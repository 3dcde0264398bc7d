"""Runs jobs on this machine or a cluster, and keeps their artefacts."""
