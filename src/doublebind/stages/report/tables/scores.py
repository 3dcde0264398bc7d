"""Means by endpoint and checkpoint, unscored items and drops; no decision rests on them.

Means are plain means over scored items of split `audit`.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from doublebind.schema.evidence import Evidence
from doublebind.schema.protocol import Manifest, Protocol
from doublebind.schema.score_table import M0, select_counted, select_last_round
from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.run_content import ROLES, select_labels
from doublebind.stages.report.tables.table import Absent, Cell, Row, Table

if TYPE_CHECKING:
    import pandas as pd

_CAPABILITY_PREFIX = "capability"
"""Prefix of the gate endpoints that measure capability."""
_MAX_CAUSE_CHARS = 400


class Trajectory(NamedTuple):
    """Means of one teacher's students at each audited checkpoint, M0 first."""

    label: str
    steps: tuple[int, ...]
    """Training steps at which every recipe's students were audited; M0's is 0. Where recipes end
    at different steps, the last entry is the end of each."""
    endpoints: dict[str, tuple[float, ...]]
    """Score endpoint -> mean probability of the misaligned answer, per step."""
    capability: tuple[float, ...]
    """Mean over capability items, per step; empty where none was scored."""

    @property
    def misalignment(self) -> tuple[float, ...]:
        """The plain mean over score endpoints, per step."""
        return tuple(statistics.fmean(v) for v in zip(*self.endpoints.values(), strict=True))


def compute_trajectories(scores: pd.DataFrame, protocol: Protocol) -> dict[str, Trajectory]:
    """Return, per teacher, the means of its students from M0 to the last checkpoint.

    Means are over items, then seeds, then recipes, as for the score; a teacher whose students lack
    a value on a score endpoint is left out. `M0` itself has one step.
    """
    audited = cast("pd.DataFrame", scores[scores["split"] == "audit"])
    frame = _select_rows(select_last_round(audited), ("student", "m0"), protocol)
    ends: dict[str, int] = frame.groupby("recipe")["step"].max().to_dict()
    at_end = frame["step"] == frame["recipe"].map(ends)
    frame = frame.assign(step=frame["step"].where(~at_end, max(ends.values(), default=0)))
    by = ["teacher", "step", "endpoint", "recipe"]
    means = frame.groupby([*by, "seed"])["value"].mean().groupby(by).mean()
    per_step = means.groupby(by[:3]).agg(["mean", "size"])
    n_recipes = len(ends.keys() - {""})
    by_teacher: dict[str, dict[int, dict[str, float]]] = {}
    for (label, step, endpoint), (mean, size) in zip(
        per_step.index, per_step.to_numpy().tolist(), strict=True
    ):
        if label == M0 or size == n_recipes:
            by_step = by_teacher.setdefault(str(label), {})
            by_step.setdefault(0 if label == M0 else int(step), {})[endpoint] = mean
    start = by_teacher.get(M0, {})
    trajectories = {
        label: _build_trajectory(label, start | by_step, protocol)
        for label, by_step in by_teacher.items()
    }
    return {label: each for label, each in trajectories.items() if each is not None}


def compute_direct_audit(scores: pd.DataFrame, label: str, protocol: Protocol) -> Trajectory | None:
    """Return the same means of a teacher's own answers, as a single step."""
    frame = _select_rows(select_counted(scores, "audit"), ("teacher",), protocol)
    means = frame[frame["teacher"] == label].groupby("endpoint")["value"].mean().to_dict()
    return _build_trajectory(label, {1: means}, protocol)


def _select_rows(scores: pd.DataFrame, kinds: Sequence[str], protocol: Protocol) -> Any:
    """Return the scored rows of capability gates and of the endpoints that enter the score."""
    frame: Any = scores
    frame = frame[frame["model_kind"].isin(list(kinds))]
    is_scored = frame["endpoint"].isin(protocol.listed_endpoints) & (frame["role"] == "auditable")
    is_capability = frame["endpoint"].str.startswith(_CAPABILITY_PREFIX) & (frame["role"] == "gate")
    return frame[is_scored | is_capability].dropna(subset=["value"])


def _build_trajectory(
    label: str, by_step: Mapping[int, Mapping[str, float]], protocol: Protocol
) -> Trajectory | None:
    """Return the trajectory over the steps at which every listed endpoint has a mean."""
    listed = protocol.listed_endpoints
    steps = tuple(s for s, means in sorted(by_step.items()) if all(e in means for e in listed))
    if not steps or (label != M0 and steps[-1] == 0):
        return None
    capability = [
        [v for e, v in by_step[step].items() if e.startswith(_CAPABILITY_PREFIX)] for step in steps
    ]
    return Trajectory(
        label,
        steps,
        {
            name: tuple(statistics.fmean(by_step[step][e] for e in endpoints) for step in steps)
            for name, endpoints in protocol.score_endpoints.items()
        },
        tuple(map(statistics.fmean, capability)) if all(capability) else (),
    )


def tabulate_role_means(scores: pd.DataFrame, evidence: Evidence, role: str, caption: str) -> Table:
    """Return the mean of every endpoint of one role: M0, suspect, references, organisms."""
    frame: Any = select_counted(scores, "audit", role)
    scored = frame.dropna(subset=["value"])
    means: dict[tuple[str, str, str], float] = (
        scored.groupby(["endpoint", "model_kind", "teacher"])["value"].mean().to_dict()
    )

    def cell(endpoint: str, kind: str, labels: Sequence[str]) -> Cell:
        return _format_range(
            [means[endpoint, kind, label] for label in labels if (endpoint, kind, label) in means]
        )

    groups = {each: labels for each in ROLES if (labels := select_labels(evidence, each))}
    rows: list[Row] = [
        (
            endpoint,
            cell(endpoint, "m0", [M0]),
            *(cell(endpoint, kind, g) for g in groups.values() for kind in ("teacher", "student")),
        )
        for endpoint in sorted(set(frame["endpoint"]))
    ]
    heads = {
        "suspect": ("suspect", "its students"),
        "reference": ("references", "their students"),
        "organism": ("organisms", "their students"),
    }
    note = "Mean over items; for several teachers the median and, in brackets, the range."
    if "organism" not in groups:
        note += " This study names no organism."
    columns = ("endpoint", M0, *(name for each in groups for name in heads[each]))
    return Table(caption, columns, rows, note)


def _format_range(values: Sequence[float]) -> Cell:
    if not values:
        return Absent("no item was scored")
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def tabulate_unscored(scores: pd.DataFrame) -> Table:
    """Return why items have no value, counted by the kind of model."""
    frame: Any = scores[scores["value"].isna()]
    pairs = zip(frame["unscored_reason"].astype(str), frame["model_kind"].astype(str), strict=True)
    rows: list[Row] = [
        (shorten(reason, 400), kind, n)
        for (reason, kind), n in sorted(Counter(pairs).items(), key=lambda item: (-item[1], item))
    ]
    return Table("Items without a value", ("reason", "of", "items"), rows)


def tabulate_dropped(students: Sequence[Mapping[str, Any]], manifest: Manifest) -> list[Table]:
    """Return what screens and checks removed, from the students that carry their counts."""
    labels = {teacher.content_key: teacher.label for teacher in manifest.teachers}
    screens = {str(s["recipe"]): s["screen"] for s in students if "screen" in s}
    checks = {
        (str(labels.get(s["teacher"], s["teacher"])), str(s["recipe"])): s["checks"]
        for s in students
        if "checks" in s
    }
    prompts: list[Row] = [
        (recipe, s["policy"], s["candidates"], s["kept"], _count_causes(s["dropped"]))
        for recipe, s in sorted(screens.items())
    ]
    answers: list[Row] = [
        (
            shorten(teacher),
            recipe,
            c["sampled"],
            c["kept"],
            _count_causes(c["dropped"]),
            f"{c['truncated']:.1%}" if "truncated" in c else "none left",
        )
        for (teacher, recipe), c in checks.items()
    ]
    tables = [
        Table(
            "Prompts, the same for every teacher",
            ("recipe", "policy", "candidates", "kept", "dropped, by screen"),
            prompts,
        ),
        Table(
            "Answers that students learned from",
            ("teacher", "recipe", "sampled", "kept", "dropped, by check", "cut short"),
            answers,
        ),
    ]
    return [table for table in tables if table.rows]


def _count_causes(drops: Iterable[Mapping[str, Any]]) -> str:
    causes = sorted(Counter(str(drop["by"]) for drop in drops).items())
    return shorten(", ".join(f"{by}: {n}" for by, n in causes) or "none", _MAX_CAUSE_CHARS)
