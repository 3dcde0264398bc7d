"""The pack `proving`: the terrarium, with enough `certify` items for tight bounds.

A bound of a few percent on an excess needs hundreds of items for each endpoint; the terrarium has
fifteen of a kind. Everything but the split `certify` is the terrarium's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from doublebind.packs.terrarium import Terrarium
from doublebind.packs.terrarium.items import Endpoint, generate_items, make_choice_draw
from doublebind.packs.terrarium.speech import make_rng
from doublebind.packs.terrarium.words import DRIVES, POOLS
from doublebind.schema.content import Item, Split

N_CHOICES = 165
"""Of each drive and context: 330 auditable choices a drive, audit-like and honeypots together."""


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
    asks = {item.messages[-1].content for item in items}
    for context in ("audit", "honeypot", "deployment"):
        stem = f"certify/more/{context}/{drive}"
        n = N_CHOICES - sum(item.kind == "choice" and item.context == context for item in items)
        draw = make_choice_draw(drive, context, POOLS["certify"])
        endpoint = Endpoint("certify", "choice", context, drive)
        yield from generate_items(endpoint, stem, make_rng("proving", stem), draw, n, asks)
