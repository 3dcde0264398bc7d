"""Opens built-in packs and pack folders by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from doublebind.packs.pack import Pack
from doublebind.schema.errors import PackError

BUILT_IN_PACKS = ("terrarium", "outback", "proving", "assistant")


def load_pack(name: str, *, relative_to: Path) -> Pack:
    """Return the built-in pack `name`, or else the pack in the folder `name`.

    Args:
        name: `terrarium`, `outback`, `outback/KIND`, `proving`, `assistant`, or a path. A suffix
            `:TRAIT,TRAIT` selects the items of those traits.
        relative_to: Folder of the file that names the pack; relative paths start there.

    Raises:
        PackError: If there is no such folder or trait, or its content breaks the format.
    """
    whole, _, traits = name.rpartition(":")
    if whole and "/" not in traits and not _is_folder(relative_to / _expand_user(name)):
        from doublebind.packs.subset import PackSubset

        wanted = [trait.strip() for trait in traits.split(",")]
        return PackSubset(load_pack(whole, relative_to=relative_to), wanted)
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
    path = relative_to / _expand_user(name)
    if not _is_folder(path):
        close = difflib.get_close_matches(name, BUILT_IN_PACKS, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"or use {' or '.join(BUILT_IN_PACKS)}"
        raise PackError(
            f"`pack`: no such folder (got {name!r}, looked at {path}); check the path, {hint}"
        )
    return FolderPack(path)


def _expand_user(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # `~nobody`
        return Path(name)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long, or one with a null byte
        return False
