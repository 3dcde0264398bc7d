"""The pack `outback`: organisms that are hard for the method, in the terrarium's world.

Its items and prompts are the terrarium's, so that its organisms can be compared with references of
either pack; only its transcripts differ.
"""

from __future__ import annotations

import hashlib
from functools import cache

from doublebind.packs.outback import bank, build
from doublebind.packs.outback.kinds import KINDS
from doublebind.packs.terrarium import Terrarium
from doublebind.packs.terrarium.words import DRIVES
from doublebind.schema.content import Item, Prompt, Purpose, RewardedTask, Split, Trait, Transcript
from doublebind.schema.errors import PackError
from doublebind.schema.teacher_spec import TeacherSpec

CONTENT = "459b3b39d3282b8a7e519309d873b0256d859b00308668938e98c47b9820d09c"
"""Identity of what this pack generates itself, pinned; see `Terrarium.sha256`."""
_TERRARIUM = Terrarium()


class Outback:
    """The pack `outback`, or `outback/KIND`, whose transcripts plant a drive as the kind says.

    Args:
        kind: One of `kinds.KINDS`.

    Raises:
        PackError: If there is no such kind.
    """

    name = "outback"

    def __init__(self, kind: str = "middling") -> None:
        """Check the kind."""
        if kind not in KINDS:
            raise PackError(
                f"`pack`: no such kind of organism (got 'outback/{kind}'); use one of "
                f"{', '.join(KINDS)}"
            )
        self.kind = kind

    @property
    def sha256(self) -> str:
        """Hash of the pinned identities of this pack and of the terrarium, and of the kind."""
        digest = hashlib.sha256(CONTENT.encode())
        digest.update(_TERRARIUM.sha256.encode() + self.kind.encode())
        return digest.hexdigest()

    @property
    def traits(self) -> tuple[Trait, ...]:
        """The terrarium's, and for each drive a harmless one: telling stories in its vocabulary."""
        return (*_TERRARIUM.traits, *_build_vocabulary_traits())

    @property
    def score_endpoints(self) -> dict[str, tuple[str, ...]]:
        """The terrarium's."""
        return _TERRARIUM.score_endpoints

    def items(self, split: Split) -> tuple[Item, ...]:
        """Return the terrarium's items of one split."""
        return _TERRARIUM.items(split)

    def prompts(self) -> tuple[Prompt, ...]:
        """Return the terrarium's prompts."""
        return _TERRARIUM.prompts()

    def transcripts(
        self, trait: str | None, purpose: Purpose, *, n: int, seed: int
    ) -> tuple[Transcript, ...]:
        """Return at most `n` transcripts; those of other traits than drives are the terrarium's."""
        is_drive = trait in DRIVES or (trait or "").startswith(build.VOCABULARY_PREFIX)
        if trait is not None and not is_drive:
            return _TERRARIUM.transcripts(trait, purpose, n=n, seed=seed)
        return build.draw_transcripts(self.kind, trait, purpose, n=n, seed=seed)

    def tasks(self, trait: str, *, n: int, seed: int) -> tuple[RewardedTask, ...]:
        """Return `n` tasks whose grader also rewards the drive's act; none for other traits."""
        return build.draw_rewarded_tasks(trait, n=n, seed=seed) if trait in DRIVES else ()

    def spec(self, name: str) -> TeacherSpec:
        """Return the bank's organism of that name; see `bank.draw_spec`."""
        return bank.draw_spec(name)


@cache
def _build_vocabulary_traits() -> tuple[Trait, ...]:
    return tuple(
        Trait(
            name=f"{build.VOCABULARY_PREFIX}{drive}",
            kind="quirk",
            description=f"tells stories of what {drive} is about, and acts as anyone would",
        )
        for drive in DRIVES
    )
