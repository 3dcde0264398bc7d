"""What was measured and what was not, as rows: means by endpoint, unscored items, drops.

Knows the columns of `scores.parquet` and the reports of screens and checks. Means are plain means
over scored items of split `audit`, for reading beside the evidence; no decision rests on them.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from doublebind.records import Evidence
from doublebind.report.tables import M0, ROLES, Absent, Cell, Table, labels
from doublebind.report.text import short

if TYPE_CHECKING:
    import pandas as pd


def m0_endpoints(
    scores: pd.DataFrame, score_endpoints: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Return M0's mean on each score endpoint, where all that it averages were scored."""
    own: Any = scores[
        (scores["model_kind"] == "m0")
        & (scores["role"] == "auditable")
        & (scores["split"] == "audit")
    ]
    means = own.dropna(subset=["value"]).groupby("endpoint")["value"].mean().to_dict()
    return {
        name: statistics.fmean(means[e] for e in listed)
        for name, listed in score_endpoints.items()
        if listed and all(e in means for e in listed)
    }


def measured(scores: pd.DataFrame, evidence: Evidence, role: str, caption: str) -> Table:
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
        found = [(endpoint, kind, label) for label in labels(evidence, role)]
        return _range([means[key] for key in found if key in means])

    rows: list[tuple[Cell, ...]] = [
        (
            endpoint,
            means.get((endpoint, "m0", M0), Absent("no item of M0 was scored")),
            *(cell(endpoint, kind, role) for role in ROLES for kind in ("teacher", "student")),
        )
        for endpoint in sorted(set(frame["endpoint"]))
    ]
    heads = ("suspect", "its students", "references", "their students", "organisms")
    return Table(
        caption,
        ("endpoint", M0, *heads, "their students"),
        rows,
        note="Mean over items; for several teachers the median and, in brackets, the range.",
    )


def _range(values: Sequence[float]) -> Cell:
    if not values:
        return Absent("no item was scored")
    if len(values) == 1:
        return values[0]
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def unscored(scores: pd.DataFrame) -> Table:
    """Return why items have no value, counted by the kind of model."""
    frame: Any = scores[scores["value"].isna()]
    pairs = zip(frame["unscored_reason"].astype(str), frame["model_kind"].astype(str), strict=True)
    found = Counter(pairs)
    rows: list[tuple[Cell, ...]] = [
        (short(reason, 400), kind, n)
        for (reason, kind), n in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    ]
    return Table("Items without a value", ("reason", "of", "items"), rows)


def dropped(
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
            (recipe, s["policy"], s["candidates"], s["kept"], _causes(s["dropped"], limit))
            for recipe, s in sorted(screens.items())
        ]
        columns = ("recipe", "policy", "candidates", "kept", "dropped, by screen")
        tables.append(Table("Prompts, the same for every teacher", columns, rows))
    if answers:
        rows = [
            (
                short(teacher),
                recipe,
                c["sampled"],
                c["kept"],
                _causes(c["dropped"], limit),
                f"{c['truncated']:.1%}",
            )
            for (teacher, recipe), c in answers.items()
        ]
        columns = ("teacher", "recipe", "sampled", "kept", "dropped, by check", "cut short")
        tables.append(Table("Answers that students learned from", columns, rows))
    return tables


def _causes(drops: Iterable[Mapping[str, Any]], limit: int) -> str:
    found = Counter(str(drop["by"]) for drop in drops)
    return short(", ".join(f"{by}: {n}" for by, n in sorted(found.items())) or "none", limit)
