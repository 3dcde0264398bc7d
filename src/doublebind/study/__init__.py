"""A study made concrete; runs nothing."""
