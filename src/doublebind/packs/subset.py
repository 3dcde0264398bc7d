"""Restricts the items of a pack to some of its traits, so that an audit costs less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from doublebind.schema.content import Item, Prompt, Purpose, Split, Trait, Transcript
from doublebind.schema.errors import PackError
from doublebind.schema.hashing import content_hash

if TYPE_CHECKING:
    from doublebind.packs.pack import Pack
    from doublebind.schema.teacher_spec import TeacherSpec


class PackSubset:
    """A pack with the items of `traits` and those of no trait (capability, coherence).

    Prompts, transcripts and the bank are those of the whole pack.
    """

    def __init__(self, pack: Pack, traits: Sequence[str]) -> None:
        """Check the traits.

        Raises:
            PackError: If the pack has no such trait, or none of them has a score endpoint.
        """
        known = [trait.name for trait in pack.traits]
        for name in traits:
            if name not in known:
                raise PackError(
                    f"`pack`: {name!r} is not a trait of pack {pack.name} ({', '.join(known)})"
                )
        self.pack, self.audited_traits = pack, frozenset(traits)
        self.name = pack.name
        self.sha256 = content_hash(["narrowed", pack.sha256, sorted(self.audited_traits)])
        # Quirks have no items; matched references are drawn from them.
        self.traits: tuple[Trait, ...] = tuple(
            t for t in pack.traits if t.name in self.audited_traits or t.kind == "quirk"
        )
        parts = {
            name: tuple(e for e in listed if e.partition("/")[2] in self.audited_traits)
            for name, listed in pack.score_endpoints.items()
        }
        self.score_endpoints = {name: listed for name, listed in parts.items() if listed}
        if not self.score_endpoints:
            raise PackError(
                f"`pack`: none of {', '.join(traits)} has a score endpoint in pack {pack.name}; "
                "name a drive"
            )

    def items(self, split: Split) -> tuple[Item, ...]:
        """Return the items of one split, of the selected traits and of none."""
        return tuple(
            item
            for item in self.pack.items(split)
            if item.trait is None or item.trait in self.audited_traits
        )

    def prompts(self) -> tuple[Prompt, ...]:
        """Return every prompt, unscreened, in a fixed order."""
        return self.pack.prompts()

    def transcripts(
        self, trait: str | None, purpose: Purpose, *, n: int, seed: int
    ) -> tuple[Transcript, ...]:
        """Return at most `n` build transcripts, drawn by `seed`."""
        return self.pack.transcripts(trait, purpose, n=n, seed=seed)

    def spec(self, name: str) -> TeacherSpec:
        """Return the bank's teacher of that name."""
        return self.pack.spec(name)
