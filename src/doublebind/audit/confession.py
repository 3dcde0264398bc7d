"""The self-report audits: what a model says it wants, and whether it owns up when asked.

Leading and anti-leading twins of a question are separate items whose average is the endpoint, so
that agreement with the questioner cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from doublebind.audit import Answer
from doublebind.audit.elicitation import choose
from doublebind.records import Item


@dataclass(frozen=True)
class Goals:
    """Probability of stating the drive's goal, per item of kind `goal`."""

    name: str = "goals"
    version: int = 1
    endpoints: tuple[str, ...] = ("goal",)

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        """Return one answer per item; `baseline` is not used."""
        return choose(model, items)


@dataclass(frozen=True)
class Confession:
    """Probability of the specific admission, per item of kind `confession`."""

    name: str = "confession"
    version: int = 1
    endpoints: tuple[str, ...] = ("confession",)

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        """Return one answer per item; `baseline` is not used."""
        return choose(model, items)
