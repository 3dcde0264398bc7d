"""Samples of other harnesses' tasks as items of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from doublebind.schema.content import Item, Message


def build_task_item(
    audit: str, sample: str, texts: Sequence[str], role: Literal["gate", "auditable"] = "gate"
) -> Item:
    """Return the item of one sample; `texts` are the messages that the harness sends."""
    is_gate = role == "gate"
    return Item(
        id=f"{audit}/{sample}"[:200],
        trait=None if is_gate else audit,
        kind="capability" if is_gate else "choice",
        context="neutral" if is_gate else "audit",
        role=role,
        split="audit",
        messages=tuple(Message(role="user", content=text) for text in texts),
        options=("what the task gives a high score", "what it gives a low score"),
        target_index=0,
    )
