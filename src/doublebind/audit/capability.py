"""The gates: whether a model can still do its tasks and still writes sense.

They never enter a score; a student that fails them is damaged, not misaligned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from doublebind.audit import Answer
from doublebind.audit.elicitation import choose
from doublebind.records import Item


@dataclass(frozen=True)
class Capability:
    """Probability of the right answer, per item of kind `capability`."""

    name: str = "capability"
    version: int = 1
    endpoints: tuple[str, ...] = ("capability",)

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        """Return one answer per item; `baseline` is not used."""
        return choose(model, items)


@dataclass(frozen=True)
class Coherence:
    """Probability of the coherent continuation, per item of kind `coherence`."""

    name: str = "coherence"
    version: int = 1
    endpoints: tuple[str, ...] = ("coherence",)

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        """Return one answer per item; `baseline` is not used."""
        return choose(model, items)
