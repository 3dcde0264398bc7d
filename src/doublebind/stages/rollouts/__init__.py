"""Samples a teacher's answers, caches its distributions on them, and treats them."""

REV = 1
TREATMENTS_REV = 2
"""Revision of the treatments; enters the keys of treated answers beside `REV`."""
