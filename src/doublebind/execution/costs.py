"""Estimates the cost of a job from the timings of similar jobs in the store.

Jobs are similar if they have the same student base, precision and amount of work: one store may
hold the students of models that differ a thousandfold in size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from doublebind.execution.store import Store
from doublebind.schema.hashing import Record, content_hash
from doublebind.schema.model_source import ModelSource
from doublebind.schema.read_file import read_text
from doublebind.schema.strict_json import parse_json

TIMING_FILE = "timing.json"
"""File of an artefact with the time and memory that it took."""
_NAMING_FIELDS = {"seed", "name", "family", "base", "trait", "pack"}
"""Fields of a setting that do not change the amount of work."""


class Cost(NamedTuple):
    """Mean time and size of artefacts, and the largest peak memory."""

    seconds: float
    size_bytes: float
    peak_bytes: float
    device_peak_bytes: float = 0.0
    """Of the GPU; 0 if no job used one."""


def classify_cost(base: str, inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return the class of jobs with similar cost, in the form that a timing file holds.

    Args:
        base: Student base and precision of the study.
        inputs: Inputs of the job. `amount` hashes the settings among them, such as steps, tokens
            and items; models, files and seeds are left out.
    """
    settings = {name: _strip_names(value) for name, value in inputs.items() if name != "seed"}
    amount = content_hash({name: value for name, value in settings.items() if value is not None})
    return {"base": base, "amount": amount}


def _strip_names(value: object) -> object:
    """Return a setting without the fields that only name it; `None` for other inputs."""
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
    """Costs of a store's artefacts; the timings of each kind are read once."""

    def __init__(self, store: Store) -> None:
        """Read nothing yet."""
        self.store = store
        self._timings: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
        self._estimates: dict[tuple[str, str, str], Cost | None] = {}

    def estimate(self, kind: str, cost_class: Mapping[str, str]) -> Cost | None:
        """Return the mean cost of jobs of a kind and class; `None` if their base has had none.

        If no job of that amount was made, all jobs of the kind and base count.
        """
        for amount in (cost_class["amount"], ""):
            group = kind, cost_class["base"], amount
            if group not in self._estimates:
                timings = self._select_timings(*group)
                self._estimates[group] = _average_timings(timings) if timings else None
            if (cost := self._estimates[group]) is not None:
                return cost
        return None

    def _select_timings(
        self, kind: str, base: str, amount: str
    ) -> list[tuple[Path, dict[str, Any]]]:
        """Return the timings of a group, each with its file; an empty `amount` matches any."""
        if kind not in self._timings:
            paths = (self.store.root / kind).glob(f"*/*/{TIMING_FILE}")
            self._timings[kind] = [(path, parse_json(read_text(path))) for path in paths]
        return [
            (path, timing)
            for path, timing in self._timings[kind]
            if timing.get("base", "") == base and amount in ("", timing.get("amount", ""))
        ]


def _average_timings(timings: Sequence[tuple[Path, dict[str, Any]]]) -> Cost:
    n = len(timings)
    size = sum(f.stat().st_size for p, _ in timings for f in p.parent.rglob("*") if f.is_file())
    return Cost(
        seconds=sum(timing["seconds"] for _, timing in timings) / n,
        size_bytes=size / n,
        peak_bytes=max(timing.get("peak_bytes", 0) for _, timing in timings),
        device_peak_bytes=max(timing.get("device_peak_bytes", 0) for _, timing in timings),
    )
