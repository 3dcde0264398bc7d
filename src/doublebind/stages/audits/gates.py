"""The gates: which models are too damaged for their answers to mean anything.

A model that lost its abilities or its coherence answers at random, and random answers look
misaligned where good behaviour is rare. The same rule holds for all models, blind to roles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from doublebind.schema.hashing import Record
from doublebind.schema.protocol import MAX_GATE_LOSS, MAX_UNSCORED_SHARE
from doublebind.schema.score_table import GATES, UNSCORED_GATE, measure_unscored_share

if TYPE_CHECKING:
    import pandas as pd


class GateCheck(Record):
    """One gate: a value, the `floor` or `ceiling` it is held to, and whether it passes."""

    name: str
    value: float
    floor: float | None = None
    ceiling: float | None = None
    passed: bool


class GateResult(Record):
    """The gates of one model."""

    passed: bool
    checks: tuple[GateCheck, ...]
    removed: int
    """Auditable items that a failed gate takes out."""


def check_gates(scores: pd.DataFrame, baseline: pd.DataFrame) -> GateResult:
    """Check capability, coherence and the share of items without a value of a model.

    Args:
        scores: Rows of `scores.parquet` of one model.
        baseline: Rows of M0, from the same audits. A gate that either lacks is not checked.

    Example:
        >>> import pandas as pd
        >>> rows = pd.DataFrame({"audit": ["capability@1"] * 2, "endpoint": ["capability"] * 2,
        ...     "role": ["gate"] * 2, "item": ["a", "b"], "value": [0.9, 0.7]})
        >>> check_gates(rows, rows).passed
        True
    """
    checks: list[GateCheck] = []
    for name in GATES:
        value = _average_endpoint(scores, name)
        baseline_value = _average_endpoint(baseline, name)
        if value is not None and baseline_value is not None:
            floor = baseline_value - MAX_GATE_LOSS
            checks.append(GateCheck(name=name, value=value, floor=floor, passed=value >= floor))
    unscored = measure_unscored_share(scores, baseline) if len(scores) else 1.0
    limit = MAX_UNSCORED_SHARE
    checks.append(
        GateCheck(name=UNSCORED_GATE, value=unscored, ceiling=limit, passed=unscored <= limit)
    )
    passed = all(check.passed for check in checks)
    n_auditable = list(scores["role"]).count("auditable")
    return GateResult(passed=passed, checks=tuple(checks), removed=0 if passed else n_auditable)


def _average_endpoint(scores: pd.DataFrame, endpoint: str) -> float | None:
    values: Any = scores.loc[scores["endpoint"] == endpoint, "value"].dropna()
    return float(values.mean()) if len(values) else None
