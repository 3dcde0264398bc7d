"""Lets these tests import the tiny models."""

import sys
from pathlib import Path

sys.path.insert(0, str(next(p for p in Path(__file__).parents if p.name == "tests")))
