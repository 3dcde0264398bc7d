"""Weighs teachers of known truth, each as if it were the suspect, and counts what is decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from doublebind.evidence import weigh
from doublebind.evidence.summary import flags, paired_difference, rate_interval
from doublebind.records import Protocol, Teacher
from doublebind.verdict import decide

if TYPE_CHECKING:
    import pandas as pd

DIRECT = "direct"
"""The direct audit, beside the baselines."""
Class = str
"""`organism`, `benign` or `near_miss`."""


def weigh_each(
    known: Sequence[tuple[Class, Teacher]],
    references: Callable[[int], Sequence[Teacher]],
    controls: Sequence[Teacher],
    scores: pd.DataFrame,
    shapes: Mapping[str, Mapping[str, float]],
    protocol: Protocol,
) -> list[dict[str, Any]]:
    """Return one row per teacher: what the procedure says of it.

    Args:
        known: Teachers with their class.
        references: The references that the i-th of them is weighed against.
        controls: Positive controls; those of the teacher's own family are left out, so that
            nothing learned from a drive's own organisms helps to find it.
        scores: Rows of all.
        shapes: Label -> feature -> value.
        protocol: Alpha, endpoints and what else was frozen.
    """
    rows: list[dict[str, Any]] = []
    for i, (kind, teacher) in enumerate(known):
        suspect = teacher.model_copy(update={"role": "suspect"})
        against = [t for t in references(i) if t.key != teacher.key]
        others = [c for c in controls if c.family != teacher.family and c.key != teacher.key]
        weighed = weigh(scores, [suspect, *against, *others], protocol)
        decided = decide(
            weighed, protocol, suspect=teacher.label, earlier_protocols=0, shapes=shapes
        ).incrimination
        row: dict[str, Any] = {"teacher": teacher.label, "family": teacher.family, "class": kind}
        row |= {"decision": decided.decision, "incriminated": decided.decision == "incriminated"}
        row |= {"traits": list(weighed.carried_by), "n_references": len(against)}
        p_values = {"": weighed.p_value, DIRECT: weighed.direct.p_value, **weighed.baselines}
        for name, p in p_values.items():
            if p is not None:
                end = f"_{name}" if name else ""
                row |= {
                    f"p_value{end}": p,
                    f"flagged{end}": flags(p, len(against), protocol.alpha),
                }
        rows.append(row)
    return rows


def rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the rates of `rows`, each with a 95% interval over teachers.

    Returns:
        `tpr` (organisms), `fpr` (benign) and `near_misses` count incriminations, match gate
        included; `_by_rank` counts p <= alpha alone, `_direct` the direct audit's, `_NAME` a
        baseline's. `not_incriminated` is the share of benign teachers of which that is said.
        `by_family` holds every family's rate, and `gain` the paired difference between the
        students' rate and that of the best baseline.
    """
    found: dict[str, Any] = {}
    columns = {"": "incriminated", "_by_rank": "flagged"}
    named = sorted({key for row in rows for key in row if key.startswith("flagged_")})
    columns |= {f"_{name.removeprefix('flagged_')}": name for name in named}
    for prefix, kind in (("tpr", "organism"), ("fpr", "benign"), ("near_misses", "near_miss")):
        those = _of(rows, kind)
        for end, column in columns.items():
            found |= _rate(f"{prefix}{end}", those, column)
    benign = [row | {"clear": row["decision"] == "not_incriminated"} for row in _of(rows, "benign")]
    found |= _rate("not_incriminated", benign, "clear")
    families = sorted({row["family"] for row in rows})
    found["by_family"] = {
        family: rate_interval(
            sum(row["incriminated"] for row in rows if row["family"] == family),
            sum(row["family"] == family for row in rows),
        )
        for family in families
    }
    return found | _gain(_of(rows, "organism"), [c for c in columns.values() if c in named])


def _of(rows: Sequence[Mapping[str, Any]], kind: Class) -> list[dict[str, Any]]:
    return [dict(row) for row in rows if row["class"] == kind]


def _rate(name: str, rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    seen = [bool(row[column]) for row in rows if column in row]
    return {name: rate_interval(sum(seen), len(seen))} if seen else {}


def _gain(organisms: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, Any]:
    """Return the students' detection rate minus the best reading baseline's, on the same teachers.

    The best is chosen after the fact, in the baselines' favour; the direct audit is none of them.
    """
    baselines = [c for c in columns if c != f"flagged_{DIRECT}"]
    whole = [row for row in organisms if all(c in row for c in ("flagged", *baselines))]
    if not baselines or not whole:
        return {}
    best = max(baselines, key=lambda column: sum(row[column] for row in whole))
    difference = paired_difference([row["flagged"] for row in whole], [row[best] for row in whole])
    return {"gain": {"over": best.removeprefix("flagged_"), **difference}}
