"""Selects and screens distillation prompts."""

REV = 1
