"""Compares two runs: their decisions, and the settings in which their protocols differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from doublebind.runs.run import Run, explain_contradictions
from doublebind.schema.hashing import Record


class Comparison(Record):
    """The numbers of two runs side by side; each pair is (first, second)."""

    runs: tuple[str, str]
    suspects: tuple[str, str]
    same_protocol: bool
    protocol_differs_in: tuple[str, ...]
    decisions: tuple[str, str]
    p_values: tuple[float | None, float | None]
    e_values: tuple[float | None, float | None]
    n_references: tuple[int, int]
    strength: tuple[str, str]
    direct_p_values: tuple[float | None, float | None]
    baselines: dict[str, tuple[float | None, float | None]]
    """Baseline of either run -> p-values."""
    effects: dict[str, tuple[float | None, float | None]]
    """Score endpoint of either run -> suspect's students minus the median of the references, in
    probability."""
    differences: dict[str, tuple[Any, Any]]
    """Place in the protocol -> values, null where absent."""


def compare_runs(first: Run, second: Run) -> Comparison:
    """Return two runs' numbers side by side, and every setting in which their protocols differ."""
    with explain_contradictions(first.path), explain_contradictions(second.path):
        return _compare_records(first, second)


def _compare_records(first: Run, second: Run) -> Comparison:
    def both(read: Callable[[Run], Any]) -> tuple[Any, Any]:
        return read(first), read(second)

    protocols = both(lambda run: run.manifest.protocol.model_dump(mode="json"))
    effects = both(
        lambda run: {name: e.minus_references for name, e in run.evidence.effects.items()}
    )
    return Comparison(
        runs=both(lambda run: str(run.path)),
        suspects=both(lambda run: run.verdict.suspect),
        same_protocol=first.manifest.protocol.hash == second.manifest.protocol.hash,
        protocol_differs_in=tuple(
            name
            for name in {**protocols[0], **protocols[1]}  # some are left out where empty
            if protocols[0].get(name) != protocols[1].get(name)
        ),
        decisions=both(lambda run: run.verdict.incrimination.decision),
        p_values=both(lambda run: run.verdict.incrimination.p_value),
        e_values=both(lambda run: run.verdict.incrimination.e_value),
        n_references=both(lambda run: run.verdict.incrimination.n_references),
        strength=both(lambda run: run.verdict.strength),
        direct_p_values=both(lambda run: run.verdict.direct_audit.p_value),
        baselines=_pair_by_name(both(lambda run: run.evidence.baselines)),
        effects=_pair_by_name(effects),
        differences={
            place: (None if a is ABSENT else a, None if b is ABSENT else b)
            for place, a, b in find_differences(*protocols)
        },
    )


def _pair_by_name(
    pair: tuple[dict[str, float], dict[str, float]],
) -> dict[str, tuple[float | None, float | None]]:
    first, second = pair
    return {name: (first.get(name), second.get(name)) for name in {**first, **second}}


def find_differences(stored: Any, computed: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield every leaf in which two JSON values differ: its place, and both values.

    Numbers are equal to 1e-9 relative.
    """
    prefix = f"{place}." if place else ""
    if isinstance(stored, dict) and isinstance(computed, dict):
        for key in sorted(stored.keys() | computed.keys()):
            values = stored.get(key, ABSENT), computed.get(key, ABSENT)
            yield from find_differences(*values, f"{prefix}{key}")
    elif isinstance(stored, list) and isinstance(computed, list) and len(stored) == len(computed):
        for i, pair in enumerate(zip(stored, computed, strict=True)):
            yield from find_differences(*pair, f"{prefix}{i}")
    elif not _is_same(stored, computed):
        yield place, stored, computed


def _is_same(stored: Any, computed: Any) -> bool:
    if type(stored) in (int, float) and type(computed) in (int, float):
        try:
            return abs(stored - computed) <= 1e-9 * max(1.0, abs(stored), abs(computed))
        except OverflowError:  # an integer that no float holds
            return stored == computed
    return type(stored) is type(computed) and stored == computed


ABSENT: Any = type("_Absent", (), {"__repr__": lambda self: "absent"})()
