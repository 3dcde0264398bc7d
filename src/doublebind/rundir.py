"""Reads a run directory: scores, evidence, verdict, transcripts, and whether they still agree.

Knows the layout on disk. Does not run anything; verifying recomputes from `scores.parquet`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublebind.errors import RunError
from doublebind.executor import read_ledger
from doublebind.records import Evidence, LedgerEntry, Protocol, Record, Teacher, Verdict
from doublebind.store import Store, file_sha256

if TYPE_CHECKING:
    import pandas as pd


class Manifest(Record):
    """`manifest.json`: what was run, with what, frozen before the first audit."""

    schema_version: int = 1
    protocol: Protocol
    protocol_hash: str
    study: dict[str, Any]
    teachers: tuple[Teacher, ...]
    earlier_protocols: int
    """Protocols that met this suspect before this one."""
    cells: dict[str, dict[str, str]]
    """Kind -> key -> what it is, for every artefact that the run needs."""
    store: str
    versions: dict[str, str]
    hardware: dict[str, Any]
    seeds: dict[str, Any]
    created: str
    """UTC, ISO 8601."""


class Run:
    """A run directory, read lazily."""

    def __init__(self, path: str | Path) -> None:
        """Open the run at `path`.

        Raises:
            RunError: If there is no manifest, or it cannot be read.
        """
        self.path = Path(path)
        self.manifest = self._read("manifest.json", Manifest)

    def _read(self, name: str, kind: type[Any]) -> Any:
        path = self.path / name
        try:
            return kind.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            what = "not a run directory" if name == "manifest.json" else "the run has not ended"
            raise RunError(f"{path}: missing; {what}, start it with `doublebind run`") from None
        except (ValueError, OSError) as error:
            first = str(error).splitlines()[0]
            raise RunError(f"{path}: cannot be read ({first}); restore it or rerun") from None

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every item of every audited model; columns as `records.SCORE_COLUMNS`."""
        import pandas as pd

        path = self.path / "scores.parquet"
        if not path.exists():
            raise RunError(f"{path}: missing; the run has not ended, rerun it to resume")
        try:
            return pd.read_parquet(path)
        except (ValueError, OSError) as error:
            first = str(error).splitlines()[0]
            raise RunError(f"{path}: cannot be read ({first}); restore it or rerun") from None

    @cached_property
    def evidence(self) -> Evidence:
        """What the scores say."""
        return self._read("evidence.json", Evidence)

    @cached_property
    def verdict(self) -> Verdict:
        """What was decided, with reasons."""
        return self._read("verdict.json", Verdict)

    @property
    def shapes(self) -> dict[str, dict[str, float]]:
        """Teacher label -> feature -> value, for the match table."""
        return json.loads((self.path / "shapes.json").read_text(encoding="utf-8"))

    @property
    def ledger(self) -> list[LedgerEntry]:
        """Every event of the run, failures too."""
        return read_ledger(self.path / "ledger.jsonl")

    @property
    def cells(self) -> list[dict[str, Any]]:
        """One entry per student: teacher key, recipe, seed and the artefacts it came from."""
        files = sorted((self.path / "cells").glob("*.json"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def has_transcripts(self, key: str) -> bool:
        """Return whether the model with content key `key` was audited in this run."""
        return (self.path / "transcripts" / f"{key}.jsonl").exists()

    def transcripts(self, key: str) -> list[dict[str, Any]]:
        """Return the audit transcripts of the model with content key `key`; hostile text.

        Raises:
            RunError: If the run has no such model.
        """
        path = self.path / "transcripts" / f"{key}.jsonl"
        if not path.exists():
            raise RunError(f"{path}: missing; `doublebind status` lists the models of a run")
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def status(self) -> dict[str, Any]:
        """Return how far the run is: per kind of cell, how many are needed, done and failed."""
        latest = {entry.cell: entry.status for entry in self.ledger}
        kinds = {}
        for kind, keys in self.manifest.cells.items():
            found = Counter(latest.get(key, "waiting") for key in keys)
            kinds[kind] = {"needed": len(keys), **{s: found[s] for s in sorted(found)}}
        return {
            "run": str(self.path),
            "ended": (self.path / "verdict.json").exists(),
            "protocol_hash": self.manifest.protocol_hash,
            "cells": kinds,
        }

    def verify(self) -> list[str]:
        """Return what does not agree, one line each; an empty list is a verified run.

        Recomputes the protocol hash, the evidence and the verdict from `scores.parquet`, and the
        hash of every file of the run and, where the store is at hand, of every artefact.
        """
        from doublebind.evidence import weigh
        from doublebind.verdict import decide

        problems = self._altered_files()
        manifest = self.manifest
        if manifest.protocol.hash != manifest.protocol_hash:
            problems.append(f"{self.path / 'manifest.json'}: protocol_hash is not the protocol's")
        weighed = weigh(self.scores, manifest.teachers, manifest.protocol)
        decided = decide(
            weighed,
            manifest.protocol,
            suspect=next(t.label for t in manifest.teachers if t.role == "suspect"),
            earlier_protocols=manifest.earlier_protocols,
            shapes=self.shapes,
        )
        problems += _differences(self.path / "evidence.json", _dump(self.evidence), _dump(weighed))
        problems += _differences(self.path / "verdict.json", _dump(self.verdict), _dump(decided))
        store = Path(manifest.store)
        if store.is_dir():
            for kind, keys in manifest.cells.items():
                for key in keys:
                    problems += Store(store).problems(kind, key)
        return problems

    def _altered_files(self) -> list[str]:
        path = self.path / "seal.json"
        if not path.exists():
            raise RunError(f"{path}: missing; the run has not ended, rerun it to resume")
        problems = []
        for name, sha256 in json.loads(path.read_text(encoding="utf-8")).items():
            file = self.path / name
            if not file.exists():
                problems.append(f"{file}: missing")
            elif file_sha256(file) != sha256:
                problems.append(f"{file}: altered since the run ended")
        return problems


# --- where something was made ---

_LIBRARIES = ("doublebind", "torch", "transformers", "peft", "tokenizers", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    found = {name: _version(name) for name in _LIBRARIES}
    return found | {"python": platform.python_version()}


def hardware() -> dict[str, Any]:
    """Return what this machine is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _dump(record: Record) -> dict[str, Any]:
    return record.model_dump(mode="json", by_alias=True)


def _differences(path: Path, stored: Any, computed: Any, at: str = "") -> list[str]:
    """Return one line per leaf in which two JSON values differ; floats to 1e-9 relative."""
    if isinstance(stored, dict) and isinstance(computed, dict):
        keys = sorted(stored.keys() | computed.keys())
        pairs = [(f"{at}.{k}".lstrip("."), stored.get(k), computed.get(k)) for k in keys]
        return [line for at, a, b in pairs for line in _differences(path, a, b, at)]
    if isinstance(stored, float | int) and isinstance(computed, float | int):
        same = abs(stored - computed) <= 1e-9 * max(1.0, abs(stored), abs(computed))
    else:
        same = stored == computed
    return [] if same else [f"{path}: `{at}` is {stored}, recomputed {computed}"]
