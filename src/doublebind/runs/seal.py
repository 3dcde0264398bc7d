"""The file of hashes that closes a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from doublebind.execution.store import file_sha256, write_atomic
from doublebind.schema.errors import RunError
from doublebind.schema.read_file import read_text
from doublebind.schema.strict_json import parse_json

SEAL = "seal.json"
_NAMES = (
    "manifest.json",
    "shapes.json",
    "scores.parquet",
    "evidence.json",
    "verdict.json",
    "report.html",
)


def seal_run(run: Path) -> None:
    """Write the hashes of the files of a run that must not change any more."""
    hashes = {name: file_sha256(run / name) for name in list_sealed_files(run)}
    write_atomic(run / SEAL, json.dumps(hashes, indent=1, sort_keys=True))


def reseal_file(run: Path, name: str) -> None:
    """Renew the hash of one file; those of the others stay as they were sealed.

    Raises:
        RunError: If the seal cannot be read.
    """
    hashes = read_seal(run) | {name: file_sha256(run / name)}
    write_atomic(run / SEAL, json.dumps(hashes, indent=1, sort_keys=True))


def read_seal(run: Path) -> dict[str, Any]:
    """Return the hash of each sealed file.

    Raises:
        RunError: If the seal cannot be read.
    """
    try:
        hashes = parse_json(read_text(run / SEAL))
        if isinstance(hashes, dict):
            return hashes
        reason = f"a mapping is needed, not {type(hashes).__name__}"
    except FileNotFoundError:
        reason = "missing"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise RunError(f"{run / SEAL}: cannot be read ({reason}); rerun the study")


def list_sealed_files(run: Path) -> list[str]:
    """Return the names of the files that a seal has to cover."""
    folders = ("transcripts", "cells", "replacement")
    paths = [path for folder in folders for path in (run / folder).rglob("*") if path.is_file()]
    replacement = ["replacement.json"] if (run / "replacement.json").exists() else []
    return [*_NAMES, *replacement, *sorted(path.relative_to(run).as_posix() for path in paths)]
