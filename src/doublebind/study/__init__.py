"""Turns a study into jobs with keys and a frozen protocol; runs nothing."""
