"""Writes a commented study to start from, with the JSON schema for editors."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from doublebind.execution.store import write_atomic
from doublebind.packs.load import BUILT_IN_PACKS, is_built_in, load_pack
from doublebind.schema.errors import ConfigError
from doublebind.study.teachers import resolve_pack_name


def find_schema(name: str) -> Path:
    """Return the path of the JSON schema of a file that users write.

    Args:
        name: `study`, `panel`, `teacher`, `pack`, `item`, `prompt` or `transcript`.
    """
    return Path(str(files("doublebind.schema") / "json" / f"{name}.json"))


def write_study(out: Path, pack: str) -> None:
    """Write a commented study that uses `pack` to the file `out`.

    Its first line names the schema, for editors with a YAML language server.

    Raises:
        ConfigError: If `out` exists.
        PackError: If there is no such pack, or its content breaks the format.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists; name another file with --out")
    opened = load_pack(resolve_pack_name(pack, Path()), relative_to=Path())
    if pack not in BUILT_IN_PACKS:
        pack = Path(os.path.relpath(Path(pack).expanduser(), out.parent)).as_posix()
        pack = f"./{pack}" if is_built_in(pack) else pack
    drives = [trait.name for trait in opened.traits if trait.kind == "drive"]
    asks = f"It asks about {', '.join(drives)}." if drives else "It names no drive."
    name = "study_terrarium.yaml" if pack == "terrarium" else "study_template.yaml"
    template = (files("doublebind.packs") / name).read_text(encoding="utf-8")
    text = template.replace("{pack}", pack).replace("{asks}", asks)
    modeline = f"# yaml-language-server: $schema={find_schema('study').as_uri()}\n"
    write_atomic(out, modeline + text)
