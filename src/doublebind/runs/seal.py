"""The file of hashes that closes a run, and the files that it covers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from doublebind.execution.store import write_atomic
from doublebind.runs.files import check_file, list_files, read_file, read_text
from doublebind.schema.errors import RunError
from doublebind.schema.strict_json import parse_json

SEAL = "seal.json"
LEDGER = "ledger.jsonl"
FOLLOWUP = "followup.json"
PAGE = "report.html"
_NAMES = (
    "manifest.json",
    LEDGER,
    "shapes.json",
    "scores.parquet",
    "evidence.json",
    "verdict.json",
    PAGE,
)
_OPTIONAL_NAMES = ("replacement.json", FOLLOWUP)
_FOLDERS = ("transcripts", "cells", "replacement")


def seal_run(run: Path) -> None:
    """Write the hashes of the files of a run that must not change any more.

    Raises:
        RunError: If a file is missing or cannot be read.
    """
    _write_seal(run, {name: hash_file(run, name) for name in list_sealed_files(run)})


def reseal_files(run: Path, names: Sequence[str]) -> None:
    """Renew the hashes of some files; those of the others stay as they were sealed.

    Raises:
        RunError: If the seal cannot be read.
    """
    _write_seal(run, read_seal(run) | {name: hash_file(run, name) for name in names})


def read_seal(run: Path) -> dict[str, str]:
    """Return name -> sha256 (hex) of the sealed files.

    Raises:
        RunError: If there is no seal, or it cannot be read.
    """
    try:
        hashes = parse_json(read_text(run, SEAL))
        if isinstance(hashes, dict):
            return {str(name): str(value) for name, value in hashes.items()}
        reason = f"a mapping is needed, not {type(hashes).__name__}"
    except RunError:
        raise
    except FileNotFoundError:
        reason = "missing"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise RunError(f"{run / SEAL}: cannot be read ({reason}); rerun the study")


def _write_seal(run: Path, hashes: Mapping[str, str]) -> None:
    write_atomic(run / SEAL, json.dumps(hashes, indent=1, sort_keys=True))


def hash_file(run: Path, name: str) -> str:
    """Return the sha256 (hex) of a file of a run.

    Raises:
        RunError: If it is missing or cannot be read.
    """
    try:
        return hashlib.sha256(read_file(run, name)).hexdigest()
    except FileNotFoundError:
        raise RunError(f"{run / name}: missing; rerun the study") from None


def list_sealed_files(run: Path) -> list[str]:
    """Return the names of the files that a seal has to cover."""
    optional = [name for name in _OPTIONAL_NAMES if check_file(run, name)]
    inner = [name for folder in _FOLDERS for name in list_files(run, folder)]
    return [*_NAMES, *optional, *inner]


def check_unaltered(run: Path, *, may_grow: Sequence[str], rewritten: Sequence[str]) -> None:
    """Check that the sealed files of a run are as they were sealed, before a seal is renewed.

    Args:
        run: A finished run.
        may_grow: Files of lines to which an interrupted command may have added some.
        rewritten: Files that are written again before the seal is renewed, and not checked.

    Raises:
        RunError: Naming the first file that was altered, or the seal if it cannot be read.
    """
    for name, sealed in read_seal(run).items():
        if name in rewritten:
            continue
        grown = name in may_grow and begins_as_sealed(run, name, sealed)
        if not grown and hash_file(run, name) != sealed:
            raise RunError(f"{run / name}: altered since the run ended; restore it")


def begins_as_sealed(run: Path, name: str, sealed: str) -> bool:
    """Return whether the first lines of a file, or all of them, have the hash `sealed`."""
    hasher = hashlib.sha256()
    if hasher.hexdigest() == sealed:
        return True
    for line in read_file(run, name).splitlines(keepends=True):
        hasher.update(line)
        if hasher.hexdigest() == sealed:
            return True
    return False
