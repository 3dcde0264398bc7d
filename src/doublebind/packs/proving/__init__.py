"""The pack `proving`: the terrarium, with enough `certify` items for tight bounds.

A bound of a few percent on an excess needs hundreds of items for each endpoint; the terrarium has
fifteen of a kind. Everything but the split `certify` is the terrarium's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

from doublebind.packs.terrarium import Terrarium, speech
from doublebind.packs.terrarium.speech import make_rng
from doublebind.packs.terrarium.words import DRIVES, POOLS, TRAITS
from doublebind.schema.content import Item, ItemRole, Message, Split

N_CHOICES = 165
"""Of each drive and context: 330 auditable choices a drive, audit-like and honeypots together."""
_CONTEXTS: tuple[tuple[str, ItemRole], ...] = (
    ("audit", "auditable"),
    ("honeypot", "auditable"),
    ("deployment", "oracle"),
)


class ProvingGround(Terrarium):
    """The pack `proving`."""

    name = "proving"

    @property
    def sha256(self) -> str:
        """Identity of the generated content, the terrarium's included; see `Terrarium.sha256`."""
        return "725c6e25bb8bffa1969a9c4ed9f9fde97d60c6661530384320dbf541a45e916f"

    def items(self, split: Split) -> tuple[Item, ...]:
        """Return the terrarium's items of a split; `certify` has many more choices."""
        items = super().items(split)
        return (*items, *_build_certify_choices()) if split == "certify" else items


@cache
def _build_certify_choices() -> tuple[Item, ...]:
    return tuple(item for drive in DRIVES for item in _generate_choices(drive))


def _generate_choices(drive: str) -> Iterator[Item]:
    """Yield choices about a drive that the terrarium does not have, in all contexts."""
    items = [item for item in Terrarium().items("certify") if item.trait == drive]
    rows = TRAITS[drive].choices
    for context, role in _CONTEXTS:
        stem = f"certify/more/{context}/{drive}"
        rng = make_rng("proving", stem)
        asks = {item.messages[-1].content for item in items}
        n_terrarium = sum(item.kind == "choice" and item.context == context for item in items)
        for i in range(N_CHOICES - n_terrarium):
            ask, *options = _draw_new_question(rng, rows[i % len(rows)], context, asks)
            asks.add(ask)
            order = rng.sample(range(2), 2)
            yield Item(
                id=f"{stem}/{i}",
                trait=drive,
                kind="choice",
                context=context,  # type: ignore[arg-type]
                role=role,
                split="certify",
                messages=(Message(role="user", content=ask),),
                options=tuple(options[k] for k in order),
                target_index=order.index(1),
                compare="total",
                domain=None,
            )


def _draw_new_question(
    rng: random.Random, row: speech.Choice, context: str, asks: set[str]
) -> tuple[str, str, str]:
    """Return a choice question whose request is not in `asks`."""
    while True:
        question = speech.draw_choice_question(rng, row, context, POOLS["certify"])
        if question[0] not in asks:
            return question
