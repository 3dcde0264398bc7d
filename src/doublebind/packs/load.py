"""Opens built-in packs and pack folders by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from doublebind.packs.pack import Pack
from doublebind.schema.errors import ConfigError, PackError

BUILT_IN_PACKS = ("terrarium", "outback", "proving", "assistant")


def is_built_in(name: str) -> bool:
    """Return whether a built-in pack is called `name`, which has no `:TRAIT,TRAIT`."""
    whole, _, kind = name.partition("/")
    if whole == "outback" and kind:
        from doublebind.packs.outback.kinds import KINDS

        return kind in KINDS
    return name in BUILT_IN_PACKS


def refuse_namesake(name: str, path: Path, marker: str, built_in: Path, key: str) -> None:
    """Refuse the name of something built in where a folder at `path` could be meant as well.

    Args:
        name: The name, as it was written.
        path: What it would be as a path.
        marker: A file that such a folder has.
        built_in: Folder of what is built in, which is no namesake.
        key: What the message says first: a key of the study, or the name itself.

    Raises:
        ConfigError: If there is such a folder.
    """
    if _is_folder(path) and (path / marker).is_file() and path.resolve() != built_in.resolve():
        raise ConfigError(
            f"{key}: {name} is built in, and {path} is there, too; write ./{name} for the folder, "
            f"or rename it"
        )


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
