"""Treatments of a teacher's answers before a student learns from them, one module each."""
