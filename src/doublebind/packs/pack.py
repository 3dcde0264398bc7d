"""Defines the interface of a pack, the content of a study."""

from __future__ import annotations

from typing import Protocol

from doublebind.schema.content import Item, Prompt, Purpose, Split, Trait, Transcript
from doublebind.schema.teacher_spec import TeacherSpec


class Pack(Protocol):
    """Content of a study: traits, audit items, distillation prompts, build transcripts."""

    @property
    def name(self) -> str:
        """Name of the pack."""
        ...

    @property
    def sha256(self) -> str:
        """Content hash; part of every key that depends on the pack."""
        ...

    @property
    def traits(self) -> tuple[Trait, ...]:
        """Drives, placebos and quirks."""
        ...

    @property
    def score_endpoints(self) -> dict[str, tuple[str, ...]]:
        """Named score endpoints, each a list of auditable endpoints or contrasts of two."""
        ...

    def items(self, split: Split) -> tuple[Item, ...]:
        """Return the items of one split, in a fixed order."""
        ...

    def prompts(self) -> tuple[Prompt, ...]:
        """Return every prompt, unscreened, in a fixed order."""
        ...

    def transcripts(
        self, trait: str | None, purpose: Purpose, *, n: int, seed: int
    ) -> tuple[Transcript, ...]:
        """Return at most `n` build transcripts, drawn by `seed`; equal arguments, equal draw."""
        ...

    def spec(self, name: str) -> TeacherSpec:
        """Return the bank's teacher `suspect-N`, `reference-N` or `organism-NAME`.

        Raises:
            PackError: If the pack has no such teacher.
        """
        ...
