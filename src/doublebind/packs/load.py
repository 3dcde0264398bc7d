"""What a pack is, for whoever reads one; opens the built-in ones and folders by name.

Knows the pack interface and the folder format. Does not know models, audits or who planted what.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Protocol

from doublebind.config import TeacherSpec
from doublebind.errors import PackError
from doublebind.records import Item, Prompt, Purpose, Split, Trait, Transcript


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
        """What the pack asks about."""
        ...

    @property
    def score_endpoints(self) -> dict[str, tuple[str, ...]]:
        """One to six named score endpoints, each a list of auditable endpoint names."""
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


BUILT_IN = ("terrarium", "outback", "proving", "assistant")


def load(name: str, *, relative_to: Path) -> Pack:
    """Return the built-in pack `name`, or else the pack in the folder `name`.

    Args:
        name: `terrarium`, `outback`, `outback/KIND`, `proving`, `assistant`, or a path; with
            `:TRAIT,TRAIT` behind it, as if it asked about those traits alone.
        relative_to: Folder that a relative path starts from: that of the file naming the pack.

    Raises:
        PackError: If there is no such folder or trait, or its content breaks the format.
    """
    whole, _, traits = name.rpartition(":")
    if whole and "/" not in traits and not _is_folder(relative_to / _expanded(name)):
        from doublebind.packs.narrow import Narrowed

        wanted = [trait.strip() for trait in traits.split(",")]
        return Narrowed(load(whole, relative_to=relative_to), wanted)
    if name == "terrarium":
        from doublebind.packs.terrarium import Terrarium

        return Terrarium()
    if name == "outback" or name.startswith("outback/"):
        from doublebind.packs.outback import Outback

        return Outback(*name.split("/", 1)[1:])
    if name == "proving":
        from doublebind.packs.proving import ProvingGround

        return ProvingGround()
    from doublebind.packs.folder import FolderPack

    if name == "assistant":
        return FolderPack(Path(__file__).parent / "assistant")
    path = relative_to / _expanded(name)
    if not _is_folder(path):
        close = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"or use {' or '.join(BUILT_IN)}"
        raise PackError(
            f"`pack`: no such folder (got {name!r}, looked at {path}); check the path, {hint}"
        )
    return FolderPack(path)


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # `~nobody`
        return Path(name)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long, or one with a null byte
        return False
