"""Says what a job will cost from what others like it took in this store.

Jobs are alike if they belong to the same student base at the same precision, and ask for as much:
a store may hold a toy's students beside those of a model a thousand times its size. Knows inputs
of jobs and the files that tell what making an artefact took. Runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from doublebind.execution.store import Store
from doublebind.schema.hashing import Record, content_hash
from doublebind.schema.model_source import ModelSource

TIMING_FILE = "timing.json"
"""File of an artefact that says what making it took."""
_NAMING_FIELDS = {"seed", "name", "family", "base", "trait", "pack"}
"""Fields of a setting that make it another one, and no larger."""


class Cost(NamedTuple):
    """Mean time and size of an artefact, and the most memory that making one took."""

    seconds: float
    size_bytes: float
    peak_bytes: float
    device_peak_bytes: float = 0.0
    """Of a GPU's memory; 0 where none was made on one."""


def classify_cost(base: str, inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return what jobs of a kind that cost alike have in common, as a timing holds it.

    Args:
        base: What tells the study's student base and precision.
        inputs: The job's. `amount` hashes the settings among them: steps, tokens, items, whatever
            is no model, file or seed.
    """
    asked = {name: _strip_names(value) for name, value in inputs.items() if name != "seed"}
    amount = content_hash({name: value for name, value in asked.items() if value is not None})
    return {"base": base, "amount": amount}


def _strip_names(value: object) -> object:
    """Return a setting without what only names it; `None` for what is none."""
    match value:
        case ModelSource():
            return None
        case Record():
            return value.model_dump(mode="json", exclude=_NAMING_FIELDS)
        case tuple():
            return [_strip_names(each) for each in value]
        case str() | int() | float():
            return value
        case _:
            return None


class CostEstimates:
    """What artefacts of a store took; each kind is read once."""

    def __init__(self, store: Store) -> None:
        """Read nothing yet."""
        self.store = store
        self._timings: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
        self._estimates: dict[tuple[str, str, str], Cost | None] = {}

    def estimate(self, kind: str, cost_class: Mapping[str, str]) -> Cost | None:
        """Return the mean cost of jobs of a `likeness`; `None` where their base has had none.

        Those that ask for as much count; where there are none, all of the kind and base do.
        """
        for amount in (cost_class["amount"], ""):
            place = kind, cost_class["base"], amount
            if place not in self._estimates:
                found = self._select_timings(*place)
                self._estimates[place] = _average_timings(found) if found else None
            if (cost := self._estimates[place]) is not None:
                return cost
        return None

    def _select_timings(
        self, kind: str, base: str, amount: str
    ) -> list[tuple[Path, dict[str, Any]]]:
        """Return the timings of a group, each with its place; `amount` empty: whatever it is."""
        if kind not in self._timings:
            there = (self.store.root / kind).glob(f"*/*/{TIMING_FILE}")
            self._timings[kind] = [(path, json.loads(path.read_text())) for path in there]
        return [
            (path, told)
            for path, told in self._timings[kind]
            if told.get("base", "") == base and amount in ("", told.get("amount", ""))
        ]


def _average_timings(timings: Sequence[tuple[Path, dict[str, Any]]]) -> Cost:
    places, told = zip(*timings, strict=True)
    sizes = [sum(f.stat().st_size for f in p.parent.rglob("*") if f.is_file()) for p in places]
    peaks = [max(t.get(key, 0) for t in told) for key in ("peak_bytes", "device_peak_bytes")]
    return Cost(sum(t["seconds"] for t in told) / len(told), sum(sizes) / len(told), *peaks)
