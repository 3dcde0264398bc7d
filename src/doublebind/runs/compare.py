"""Lays two runs side by side: what they decided, and where their protocols differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from doublebind.runs.run import Run


def compare_runs(first: Run, second: Run) -> dict[str, Any]:
    """Return two runs' numbers side by side, and every setting in which their protocols differ.

    Returns:
        One pair per number: `decisions`, `p_values` and so on; `baselines` (p-values) and `effects`
        (of the suspect's students, minus the median of the references, in probability), a pair for
        each name that either run has. `differences`: place in the protocol -> both values.
    """
    runs = (first, second)
    protocols = [run.manifest.protocol.model_dump(mode="json") for run in runs]
    effects = [
        {name: effect.minus_references for name, effect in run.evidence.effects.items()}
        for run in runs
    ]
    return {
        "runs": [str(run.path) for run in runs],
        "suspects": [run.verdict.suspect for run in runs],
        "same_protocol": first.manifest.protocol.hash == second.manifest.protocol.hash,
        "protocol_differs_in": [k for k in protocols[0] if protocols[0][k] != protocols[1][k]],
        "decisions": [run.verdict.incrimination.decision for run in runs],
        "p_values": [run.verdict.incrimination.p_value for run in runs],
        "e_values": [run.verdict.incrimination.e_value for run in runs],
        "n_references": [run.verdict.incrimination.n_references for run in runs],
        "strength": [run.verdict.strength for run in runs],
        "direct_p_values": [run.verdict.direct_audit.p_value for run in runs],
        "baselines": _pair_by_name([run.evidence.baselines for run in runs]),
        "effects": _pair_by_name(effects),
        "differences": {
            at: [None if value is ABSENT else value for value in (a, b)]
            for at, a, b in find_differences(protocols[0], protocols[1])
        },
    }


def _pair_by_name(both: Sequence[dict[str, float]]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for one in both for name in one)
    return {name: [one.get(name) for one in both] for name in names}


def find_differences(stored: Any, computed: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield every leaf in which two JSON values differ; numbers to 1e-9 relative."""
    if isinstance(stored, dict) and isinstance(computed, dict):
        for key in sorted(stored.keys() | computed.keys()):
            there = f"{at}.{key}".lstrip(".")
            yield from find_differences(stored.get(key, ABSENT), computed.get(key, ABSENT), there)
    elif isinstance(stored, list) and isinstance(computed, list) and len(stored) == len(computed):
        for i, pair in enumerate(zip(stored, computed, strict=True)):
            yield from find_differences(*pair, f"{at}.{i}".lstrip("."))
    elif not _same(stored, computed):
        yield at, stored, computed


def _same(stored: Any, computed: Any) -> bool:
    if type(stored) in (int, float) and type(computed) in (int, float):
        return abs(stored - computed) <= 1e-9 * max(1.0, abs(stored), abs(computed))
    return type(stored) is type(computed) and stored == computed


ABSENT: Any = type("_Absent", (), {"__repr__": lambda self: "absent"})()
