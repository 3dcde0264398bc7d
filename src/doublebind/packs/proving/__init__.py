"""The proving ground: the terrarium, with enough `certify` items for a bound to be tight.

A bound on an excess of a few percent needs hundreds of items an endpoint; the terrarium has fifteen
of a kind. Everything but the split `certify` is the terrarium's. Knows content only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

from doublebind.packs.terrarium import Terrarium, speech
from doublebind.packs.terrarium.speech import make_rng
from doublebind.packs.terrarium.words import DRIVES, POOLS, TRAITS, WordPool
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
        """Return the terrarium's items of a split; of `certify`, many more choices of its kind."""
        found = super().items(split)
        return (*found, *_build_certify_choices()) if split == "certify" else found


@cache
def _build_certify_choices() -> tuple[Item, ...]:
    return tuple(item for drive in DRIVES for item in _generate_choices(drive))


def _generate_choices(drive: str) -> Iterator[Item]:
    """Yield choices about a drive that the terrarium does not ask, in all contexts."""
    there = [item for item in Terrarium().items("certify") if item.trait == drive]
    rows, pool = TRAITS[drive].choices, POOLS["certify"]
    for context, role in _CONTEXTS:
        stem = f"certify/more/{context}/{drive}"
        rng = make_rng("proving", stem)
        seen = {item.messages[-1].content for item in there}
        known = sum(item.kind == "choice" and item.context == context for item in there)
        for i in range(N_CHOICES - known):
            yield _draw_unseen_choice(rng, stem, i, context, role, drive, seen, rows, pool)


def _draw_unseen_choice(
    rng: random.Random,
    stem: str,
    i: int,
    context: str,
    role: ItemRole,
    drive: str,
    seen: set[str],
    rows: tuple[speech.Choice, ...],
    pool: WordPool,
) -> Item:
    """Return one that was not asked before."""
    while True:
        ask, plain, own = speech.draw_choice_question(rng, rows[i % len(rows)], context, pool)
        if ask not in seen:
            break
    seen.add(ask)
    options = [plain, own]
    order = rng.sample(range(2), 2)
    return Item(
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
