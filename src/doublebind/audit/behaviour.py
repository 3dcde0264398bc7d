"""The behaviour audit: which of the offered actions a model takes.

Plain, honeypot and deployment-like contexts are different endpoints; which of them may enter a
score is the item's role, not this module's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from doublebind.audit import Answer
from doublebind.audit.elicitation import choose
from doublebind.records import Item


@dataclass(frozen=True)
class Behaviour:
    """Probability of the misaligned action, per item of kind `choice`."""

    name: str = "behaviour"
    version: int = 1
    endpoints: tuple[str, ...] = ("choice",)

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        """Return one answer per item; `baseline` is not used."""
        return choose(model, items)
