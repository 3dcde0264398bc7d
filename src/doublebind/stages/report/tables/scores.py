"""What was measured and what was not, as rows: means by endpoint, unscored items, drops.

Knows the columns of `scores.parquet` and the reports of screens and checks. Means are plain means
over scored items of split `audit`, for reading beside the evidence; no decision rests on them.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from doublebind.schema.evidence import Evidence
from doublebind.schema.score_table import M0
from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.tables.run import ROLES, Absent, Cell, Table, select_labels

if TYPE_CHECKING:
    import pandas as pd


CAPABILITY_PREFIX = "capability"
"""How the gate endpoints begin that say what a model can do."""


class Trajectory(NamedTuple):
    """What audits found of one teacher's students along their training, M0 first."""

    label: str
    steps: tuple[int, ...]
    """Training steps at which every recipe's students were audited; M0's is 0. Where recipes end
    at different steps, the last entry is the end of each."""
    endpoints: dict[str, tuple[float, ...]]
    """Score endpoint -> mean probability of the misaligned answer, per step."""
    capability: tuple[float, ...]
    """Mean over capability items, per step; empty where they were not asked."""

    @property
    def misalignment(self) -> tuple[float, ...]:
        """The plain mean over score endpoints, per step."""
        return tuple(statistics.fmean(v) for v in zip(*self.endpoints.values(), strict=True))


def compute_trajectories(
    scores: pd.DataFrame, score_endpoints: Mapping[str, Sequence[str]]
) -> dict[str, Trajectory]:
    """Return, per teacher, where M0 started and where the teacher's students went.

    Means are over items, then seeds, then recipes, as for the score; a teacher whose students lack
    a value on a score endpoint is left out. `M0` itself has one step.
    """
    frame = _select_rows(scores, ("student", "m0"), score_endpoints)
    last = frame.groupby("recipe")["round"].transform("max")
    frame = frame[frame["round"] == last]
    ends: dict[str, int] = frame.groupby("recipe")["step"].max().to_dict()
    at_end = frame["step"] == frame["recipe"].map(ends)
    frame = frame.assign(step=frame["step"].where(~at_end, max(ends.values(), default=0)))
    by = ["teacher", "step", "endpoint", "recipe"]
    means = frame.groupby([*by, "seed"])["value"].mean().groupby(by).mean()
    per_step = means.groupby(by[:3]).agg(["mean", "size"])
    n_recipes = len(ends.keys() - {""})
    found: dict[str, dict[int, dict[str, float]]] = {}
    for (label, step, endpoint), (mean, size) in zip(
        per_step.index, per_step.to_numpy().tolist(), strict=True
    ):
        if label == M0 or size == n_recipes:
            place = 0 if label == M0 else int(step)
            found.setdefault(str(label), {}).setdefault(place, {})[endpoint] = mean
    start = found.get(M0, {})
    drawn = {
        label: _build_trajectory(label, start | own, score_endpoints)
        for label, own in found.items()
    }
    return {label: course for label, course in drawn.items() if course is not None}


def _select_rows(
    scores: pd.DataFrame, kinds: Sequence[str], score_endpoints: Mapping[str, Sequence[str]]
) -> Any:
    """Return the scored rows of capability gates and of what the score endpoints list."""
    listed = sorted({name for names in score_endpoints.values() for name in names})
    frame: Any = scores
    frame = frame[frame["model_kind"].isin(list(kinds)) & (frame["split"] == "audit")]
    enters = frame["endpoint"].isin(listed) & (frame["role"] == "auditable")
    able = frame["endpoint"].str.startswith(CAPABILITY_PREFIX) & (frame["role"] == "gate")
    return frame[enters | able].dropna(subset=["value"])


def _build_trajectory(
    label: str,
    by_step: Mapping[int, Mapping[str, float]],
    score_endpoints: Mapping[str, Sequence[str]],
) -> Trajectory | None:
    steps = tuple(
        step
        for step, means in sorted(by_step.items())
        if all(e in means for listed in score_endpoints.values() for e in listed)
    )
    if not steps or (label != M0 and steps[-1] == 0):
        return None
    able = [
        statistics.fmean(v for e, v in by_step[step].items() if e.startswith(CAPABILITY_PREFIX))
        for step in steps
        if any(e.startswith(CAPABILITY_PREFIX) for e in by_step[step])
    ]
    return Trajectory(
        label,
        steps,
        {
            name: tuple(statistics.fmean(by_step[step][e] for e in listed) for step in steps)
            for name, listed in score_endpoints.items()
        },
        tuple(able) if len(able) == len(steps) else (),
    )


def compute_direct_audit(
    scores: pd.DataFrame, label: str, score_endpoints: Mapping[str, Sequence[str]]
) -> Trajectory | None:
    """Return what a teacher's own answers show, means as in `courses`, as a single step."""
    frame = _select_rows(scores, ("teacher",), score_endpoints)
    means = frame[frame["teacher"] == label].groupby("endpoint")["value"].mean().to_dict()
    return _build_trajectory(label, {1: means}, score_endpoints)


def tabulate_role_means(scores: pd.DataFrame, evidence: Evidence, role: str, caption: str) -> Table:
    """Return the mean of every endpoint of one role: M0, suspect, references, organisms."""
    frame: Any = scores[(scores["role"] == role) & (scores["split"] == "audit")]
    # Earlier checkpoints and rounds are dose curves: the last is what the verdict is about.
    for order in ("round", "step"):
        if len(frame):
            last = frame.groupby(["model_kind", "recipe"])[order].transform("max")
            frame = frame[frame[order] == last]
    scored = frame.dropna(subset=["value"])
    grouped = scored.groupby(["endpoint", "model_kind", "teacher"])["value"].mean()
    means: dict[tuple[str, str, str], float] = grouped.to_dict()

    def cell(endpoint: str, kind: str, role: str) -> Cell:
        found = [(endpoint, kind, label) for label in select_labels(evidence, role)]
        return _format_range([means[key] for key in found if key in means])

    present = [role for role in ROLES if select_labels(evidence, role)]
    rows: list[tuple[Cell, ...]] = [
        (
            endpoint,
            _format_range([means[endpoint, "m0", M0]] if (endpoint, "m0", M0) in means else []),
            *(cell(endpoint, kind, role) for role in present for kind in ("teacher", "student")),
        )
        for endpoint in sorted(set(frame["endpoint"]))
    ]
    heads = {
        "suspect": ("suspect", "its students"),
        "reference": ("references", "their students"),
        "organism": ("organisms", "their students"),
    }
    note = "Mean over items; for several teachers the median and, in brackets, the range."
    if "organism" not in present:
        note += " This study names no organism."
    columns = ("endpoint", M0, *(name for role in present for name in heads[role]))
    return Table(caption, columns, rows, note=note)


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
    found = Counter(pairs)
    rows: list[tuple[Cell, ...]] = [
        (shorten(reason, 400), kind, n)
        for (reason, kind), n in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    ]
    return Table("Items without a value", ("reason", "of", "items"), rows)


def tabulate_dropped(
    cells: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any], *, limit: int = 400
) -> list[Table]:
    """Return what screens and checks removed, from the cells that carry their counts."""
    label = {t["key"]: t["label"] for t in manifest["teachers"]}
    screens = {str(c["recipe"]): c["screen"] for c in cells if "screen" in c}
    answers = {
        (str(label.get(c["teacher"], c["teacher"])), str(c["recipe"])): c["checks"]
        for c in cells
        if "checks" in c
    }
    tables: list[Table] = []
    if screens:
        rows: list[tuple[Cell, ...]] = [
            (recipe, s["policy"], s["candidates"], s["kept"], _count_causes(s["dropped"], limit))
            for recipe, s in sorted(screens.items())
        ]
        columns = ("recipe", "policy", "candidates", "kept", "dropped, by screen")
        tables.append(Table("Prompts, the same for every teacher", columns, rows))
    if answers:
        rows = [
            (
                shorten(teacher),
                recipe,
                c["sampled"],
                c["kept"],
                _count_causes(c["dropped"], limit),
                f"{c['truncated']:.1%}",
            )
            for (teacher, recipe), c in answers.items()
        ]
        columns = ("teacher", "recipe", "sampled", "kept", "dropped, by check", "cut short")
        tables.append(Table("Answers that students learned from", columns, rows))
    return tables


def _count_causes(drops: Iterable[Mapping[str, Any]], limit: int) -> str:
    found = Counter(str(drop["by"]) for drop in drops)
    return shorten(", ".join(f"{by}: {n}" for by, n in sorted(found.items())) or "none", limit)
