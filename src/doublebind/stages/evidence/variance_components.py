"""Estimates variance components of scores: family, teacher, seed, item, single answer.

They come from a benign pilot, to plan a study. Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]

from doublebind.stages.evidence.arrays import Floats


class Stratum(NamedTuple):
    """Independent normal columns with one covariance, sum over j of v_j G_j."""

    products: Floats
    """Sum over columns of y y', shape (N, N)."""
    columns: int
    structures: Floats
    """G_j, shape (components, N, N)."""

    def select(self, components: Sequence[bool]) -> Stratum:
        """Return the stratum with the components that are true."""
        return self._replace(structures=self.structures[np.asarray(components)])


def fit_reml(strata: Sequence[Stratum]) -> Floats:
    """Return the components that maximise the restricted likelihood, each >= 0. [32].

    Every column has its own unknown mean, the same in all N rows; it is projected out (Patterson &
    Thompson 1971, doi 10.1093/biomet/58.3.545). Own maximisation: L-BFGS-B on the components,
    with the gradient, from equal shares; by the covariance, never its inverse square.

    Args:
        strata: At least one, all with the same components in the same order.
    """
    parts: list[Stratum] = []
    for stratum in strata:
        basis = _build_contrasts(len(stratum.products))  # contrasts of rows carry no mean
        structures = np.stack([basis @ g @ basis.T for g in stratum.structures])
        parts.append(Stratum(basis @ stratum.products @ basis.T, stratum.columns, structures))
    total = sum(float(np.trace(part.products)) for part in parts)
    size = sum(part.columns * len(part.products) for part in parts)
    count = len(strata[0].structures)
    if total <= 0:
        return np.zeros(count)
    unit = total / size
    result: Any = optimize.minimize(
        lambda shares: _restricted_loss(shares, parts, unit),
        np.full(count, 1 / count),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, None)] * count,
        options={"maxiter": 1000, "ftol": 1e-10, "gtol": 1e-7},
    )
    shares: Floats = np.asarray(result.x, dtype=np.float64)
    return shares * unit


def _restricted_loss(shares: Floats, parts: Sequence[Stratum], unit: float) -> tuple[float, Floats]:
    """Return minus twice the restricted log-likelihood and its gradient, in `shares` of `unit`."""
    value, slope = 0.0, np.zeros(len(shares))
    for products, columns, structures in parts:
        covariance = 1e-9 * np.eye(len(products))
        for share, g in zip(shares, structures, strict=True):
            covariance += share * g
        inverse: Floats = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
        fitted: Floats = inverse @ products @ inverse / unit
        value += columns * float(np.linalg.slogdet(covariance)[1])
        value += float(np.sum(inverse * products)) / unit
        slope += np.array([np.sum((columns * inverse - fitted) * g) for g in structures])
    return value, slope


def _build_contrasts(n: int) -> Floats:
    """Return n - 1 orthonormal rows that sum to 0: Helmert's."""
    rows = np.zeros((n - 1, n))
    for i in range(1, n):
        rows[i - 1, :i], rows[i - 1, i] = 1.0, -i
        rows[i - 1] /= float(np.sqrt(i * (i + 1)))
    return rows


@dataclass(frozen=True)
class VarianceComponents:
    """Variances of one endpoint, in squared probability; those not estimable are in `missing`."""

    family: float
    """Between families of teachers; 0 where every family has one member (it is then in teacher)."""
    teacher: float
    """Between teachers of one family."""
    seed: float
    """Between students of one teacher."""
    item_main: float
    """Between items, for all alike: cancels where all are asked the same items."""
    item_teacher: float
    """Between items, differently for each teacher."""
    answer: float
    """What is left of a single value: seed by item, sample, judge."""
    mean: float
    n_teachers: int
    n_families: int
    n_students: int
    n_items: int
    missing: dict[str, str]

    def teacher_mean_variance(self, seeds: int, items: int) -> float:
        """Return the variance of a teacher's mean around its family's. [33].

        Args:
            seeds: Students per teacher.
            items: Items per student.
        """
        over_items = (self.item_teacher + self.answer / seeds) / items
        return self.teacher + self.seed / seeds + over_items


def estimate_components(
    values: Floats, teachers: Sequence[str], families: Mapping[str, str]
) -> VarianceComponents | None:
    """Return the variance components of students x items by REML. [32, 33].

    x[f,t,s,i] = mean + item_i + F_f + T_ft + S_fts + (TI)_fti + answer, item_i fixed. All students
    answer the same items, so that the likelihood splits exactly into the students' means and the
    I - 1 contrasts of their items; teachers and families may differ in size.

    Args:
        values: Shape (students, items), no nan; items that not all answered are left out before.
        teachers: Teacher of each row.
        families: Teacher -> family.

    Returns:
        `None` below two teachers or two items.
    """
    students, items = values.shape
    names, rows = np.unique(np.asarray(teachers), return_inverse=True)
    if len(names) < 2 or items < 2:
        return None
    kinds = [families[str(name)] for name in names]
    crossed = len(set(kinds)) > 1 and len(set(kinds)) < len(kinds)
    repeated = len(names) < students
    strata = _build_strata(values, rows, np.asarray(kinds)[rows], repeated=repeated)
    estimable = [crossed, True, repeated, True, repeated]
    estimates = iter(fit_reml([stratum.select(estimable) for stratum in strata]))
    family, teacher, seed, item_teacher, answer = (
        float(next(estimates)) if known else 0.0 for known in estimable
    )
    missing = {"sample": "one value per item is kept; samples and judges are in `answer`"}
    if not crossed:
        missing["family"] = "no family has two members beside another family; it is in `teacher`"
    if not repeated:
        missing["seed"] = "one student a teacher; it is in `teacher`, and `answer` in items"
    noise = (item_teacher / len(names)) + answer / students
    return VarianceComponents(
        family=family,
        teacher=teacher,
        seed=seed,
        item_main=max(0.0, float(np.var(values.mean(axis=0), ddof=1)) - noise),
        item_teacher=item_teacher,
        answer=answer,
        mean=float(values.mean()),
        n_teachers=len(names),
        n_families=len(set(kinds)),
        n_students=students,
        n_items=items,
        missing=missing,
    )


def _build_strata(
    values: Floats, teacher_of_row: ArrayLike, family_of_row: ArrayLike, *, repeated: bool
) -> tuple[Stratum, Stratum]:
    """Return the students' means, and the contrasts of their items, as two strata.

    Structures are those of family, teacher, seed, item by teacher, and answer.
    """
    students, items = values.shape
    teacher, family = np.asarray(teacher_of_row), np.asarray(family_of_row)
    same_teacher = (teacher[:, None] == teacher[None, :]).astype(np.float64)
    same_family = (family[:, None] == family[None, :]).astype(np.float64)
    one, none = np.eye(students), np.zeros((students, students))
    # With one student a teacher, seed lies in teacher and answer in item by teacher.
    item_by_teacher = same_teacher if repeated else one
    between = [items * same_family, items * same_teacher, items * one, item_by_teacher, one]
    within = [none, none, none, item_by_teacher, one]
    means = values.mean(axis=1) * np.sqrt(items)
    # What is left of a row beside its mean has items - 1 independent contrasts.
    rest = values - values.mean(axis=1, keepdims=True)
    return (
        Stratum(np.outer(means, means), 1, np.stack(between)),
        Stratum(rest @ rest.T, items - 1, np.stack(within)),
    )
