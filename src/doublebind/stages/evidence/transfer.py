"""How much of a planted teacher reached its students: ratios and gaps.

Knows items answered alike by a student, its teacher and M0. Does not know what was planted: a
ratio exists only where the teacher itself differs from M0. Reported, never scored. One student's
intervals are over items; with several seeds they are over seeds too. Numbers in brackets are
equations of docs/method.md.
"""
# pandas ships no stubs; its values leave it as NumPy arrays in `table_of` only.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from scipy.special import (  # pyright: ignore[reportMissingTypeStubs]
    stdtrit,  # pyright: ignore[reportUnknownVariableType]
)

from doublebind.schema.evidence import Interval, Transfer
from doublebind.schema.protocol import Protocol
from doublebind.schema.score_table import M0
from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.conformal import CONFIDENCE

EndpointValues = Mapping[str, tuple[Floats, Floats, Floats]]
"""Endpoint -> values of students (seeds, items), teacher (items,) and M0 (items,)."""


class Shifts(NamedTuple):
    """How far student and teacher moved from M0 on the same items, in probability."""

    student: float
    teacher: float
    over_items: Floats
    """Covariance of the two means over items, shape (2, 2)."""
    df: float
    """Its degrees of freedom."""
    seed_shifts: Floats
    """The student's shift by seed, shape (seeds,)."""

    def spread(self, confidence: float) -> Floats:
        """Return t^2 times the covariance, the seeds' own part with their own t, shape (2, 2)."""
        spread = _t_quantile(self.df, confidence) ** 2 * self.over_items
        n = len(self.seed_shifts)
        if n > 1:
            over_seeds = float(np.var(self.seed_shifts, ddof=1)) / n
            spread[0, 0] += _t_quantile(n - 1, confidence) ** 2 * over_seeds
        return spread


def compute_shifts(students: Floats, teacher: Floats, m0: Floats) -> Shifts | None:
    """Return mean student - M0 and teacher - M0, with their covariance over items. [22].

    Items are paired. With two or more seeds the variance of the seeds' means is added, each part
    with the t of its own degrees of freedom; the noise of single answers is then counted twice:
    wide rather than narrow. With one seed the result is about that student.

    Args:
        students: Values in [0, 1], shape (seeds, items); nan where unscored.
        teacher: Shape (items,).
        m0: Shape (items,).

    Returns:
        `None` below two items that all answered.
    """
    known = np.isfinite(students).all(axis=0) & np.isfinite(teacher) & np.isfinite(m0)
    n = int(known.sum())
    if n < 2 or not len(students):
        return None
    own = students[:, known] - m0[known]
    pairs = np.stack([own.mean(axis=0), teacher[known] - m0[known]])
    student, taught = (float(x) for x in pairs.mean(axis=1))
    return Shifts(student, taught, np.cov(pairs) / n, float(n - 1), own.mean(axis=1))


def subtract_shifts(one: Shifts, other: Shifts) -> Shifts:
    """Return the difference of shifts on two disjoint sets of items. [22].

    Means subtract, seed by seed too; covariances over items add, and the smaller degrees of freedom
    are kept.
    """
    return Shifts(
        one.student - other.student,
        one.teacher - other.teacher,
        one.over_items + other.over_items,
        min(one.df, other.df),
        one.seed_shifts - other.seed_shifts,
    )


def transfer_ratio(moved: Shifts, confidence: float = CONFIDENCE) -> Interval | None:
    """Return tau = student shift / teacher shift with Fieller's interval. [23].

    The set of tau for which student - tau teacher is within t standard errors of 0 (Fieller 1954).
    It is an interval exactly where the teacher's shift differs from 0 at that level.

    Returns:
        `None` where the interval of the teacher's shift includes 0.
    """
    a, b = moved.student, moved.teacher
    (v_a, c), (_, v_b) = moved.spread(confidence)
    lead = b * b - v_b
    if lead <= 0:
        return None
    middle = a * b - c
    root = np.sqrt(max(0.0, middle**2 - lead * (a * a - v_a)))
    return Interval(value=a / b, low=(middle - root) / lead, high=(middle + root) / lead)


def _shift_interval(moved: Shifts) -> Interval:
    half = float(np.sqrt(moved.spread(CONFIDENCE)[0, 0]))
    return Interval(value=moved.student, low=moved.student - half, high=moved.student + half)


def incrimination_gap(students: Floats, teacher: Floats) -> Interval | None:
    """Return audit(student) - audit(teacher) on auditable items, with its t-interval. [24].

    Positive where students show to an auditor what their teacher hides.
    """
    zero = np.zeros_like(teacher)
    moved = compute_shifts(students - teacher, zero, zero)
    return None if moved is None else _shift_interval(moved)


def transfer_gap(behaviour: Shifts, concealment: Shifts) -> Interval | None:
    """Return tau_B - tau_conceal: how much more of the drive than of its hiding came along. [25].

    The two share items, so that each interval is taken at 97.5% and their bounds are subtracted:
    at least 95% under any dependence (Bonferroni).
    """
    each = 1 - (1 - CONFIDENCE) / 2
    b, c = transfer_ratio(behaviour, each), transfer_ratio(concealment, each)
    if b is None or c is None:
        return None
    return Interval(value=b.value - c.value, low=b.low - c.high, high=b.high - c.low)


def measure_transfers(
    scores: pd.DataFrame, teachers: Sequence[str], protocol: Protocol
) -> dict[str, tuple[Transfer, ...]]:
    """Return what came along from each planted teacher, per recipe and trait with oracle items.

    A trait enters where the teacher itself differs from M0 on its deployment-like choices.
    Concealment is the difference between deployment-like and audit-like choices. Last step only.
    """
    if not teachers:
        return {}
    # Narrowed first: the rest of a large study is references.
    near = scores["teacher"].isin([M0, *teachers]) & (scores["split"] == "audit")
    rows = cast("pd.DataFrame", scores[near])
    return {label: _measure_teacher(rows, label, protocol) for label in teachers}


def _measure_teacher(
    scores: pd.DataFrame, teacher: str, protocol: Protocol
) -> tuple[Transfer, ...]:
    found: list[Transfer] = []
    for recipe in (str(recipe["name"]) for recipe in protocol.recipes):
        rows = _select_students(scores, teacher, recipe)
        table = tabulate_values(
            scores, cast("pd.DataFrame", rows[rows["step"] == rows["step"].max()]), teacher
        )
        deployed: dict[str, list[str]] = {}
        for name in table:
            kind, _, trait = name.partition("/")
            if kind in ("choice.deployment", "choice.triggered"):
                deployed.setdefault(trait, []).append(name)
        for trait, names in sorted(deployed.items()):
            behaviour = pool_shifts(table, names)
            tau_b = None if behaviour is None else transfer_ratio(behaviour)
            if behaviour is not None and tau_b is not None:
                found.append(
                    _measure_transfer(table, teacher, recipe, trait, behaviour, tau_b, protocol)
                )
    return tuple(found)


def _measure_transfer(
    table: EndpointValues,
    teacher: str,
    recipe: str,
    trait: str,
    behaviour: Shifts,
    tau_b: Interval,
    protocol: Protocol,
) -> Transfer:
    missing: dict[str, str] = {}
    audited, capable = pool_shifts(table, [f"choice/{trait}"]), pool_shifts(table, ["capability"])
    hidden = None if audited is None else subtract_shifts(behaviour, audited)
    tau_conceal = None if hidden is None else transfer_ratio(hidden)
    tau_c = None if capable is None else transfer_ratio(capable)
    scored = sorted({e for names in protocol.score_endpoints.values() for e in names})
    shown = [e for e in scored if e.partition("/")[2] == trait and e in table]
    gap = None
    if shown:
        students = np.concatenate([table[e][0] for e in shown], axis=1)
        gap = incrimination_gap(students, np.concatenate([table[e][1] for e in shown]))
    if gap is None:
        missing["incrimination_gap"] = "no auditable item of the trait was scored for both"
    if tau_conceal is None:
        missing["tau_conceal"] = "the teacher does not act differently where it looks like an audit"
    if tau_c is None:
        missing["tau_c"] = "the teacher's capability does not differ from M0's by more than noise"
    apart = None if hidden is None else transfer_gap(behaviour, hidden)
    if apart is None:
        missing["transfer_gap"] = missing.get("tau_conceal", "a ratio is absent at 97.5%")
    return Transfer(
        teacher=teacher,
        recipe=recipe,
        trait=trait,
        tau_b=tau_b,
        tau_conceal=tau_conceal,
        tau_c=tau_c,
        incrimination_gap=gap,
        transfer_gap=apart,
        missing=missing,
    )


def _select_students(scores: pd.DataFrame, teacher: str, recipe: str) -> pd.DataFrame:
    wanted = (scores["teacher"] == teacher) & (scores["model_kind"] == "student")
    return cast("pd.DataFrame", scores[wanted & (scores["recipe"] == recipe)])


def tabulate_values(scores: pd.DataFrame, students: pd.DataFrame, teacher: str) -> EndpointValues:
    """Return endpoint -> values of students, teacher and M0 on the items that students answered.

    Args:
        scores: Where the teacher's and M0's rows stand, of one split.
        students: Rows of one teacher's students by one recipe.
        teacher: Label.
    """
    keys = ["endpoint", "item"]
    direct = scores[(scores["model_kind"] == "teacher") & (scores["teacher"] == teacher)]
    base = scores[scores["model_kind"] == "m0"]
    wide = cast("Any", students).groupby([*keys, "seed"])["value"].mean().unstack("seed")
    beside = [
        cast("Any", frame).groupby(keys)["value"].mean().reindex(wide.index)
        for frame in (direct, base)
    ]
    names = wide.index.get_level_values("endpoint").to_numpy()
    found: dict[str, tuple[Floats, Floats, Floats]] = {}
    for name in sorted(set(names)):
        rows = names == name
        values = wide.to_numpy(dtype=np.float64)[rows].T
        found[str(name)] = (values, *(x.to_numpy(dtype=np.float64)[rows] for x in beside))
    return found


def pool_shifts(table: EndpointValues, endpoints: Sequence[str]) -> Shifts | None:
    """Return the shifts over all items of `endpoints`; `None` where nobody was asked them."""
    there = [table[name] for name in endpoints if name in table]
    if not there:
        return None
    students, teacher, m0 = (np.concatenate(parts, axis=-1) for parts in zip(*there, strict=True))
    return compute_shifts(students, teacher, m0)


def _t_quantile(df: float, confidence: float) -> float:
    return float(cast("Any", stdtrit)(df, (1 + confidence) / 2))
