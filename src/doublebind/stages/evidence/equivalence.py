"""Bounds how far a student may stand above M0, and builds the certificate from the bounds.

A certificate says that on the items asked, and items drawn like them, the mean difference is below
a margin. Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from scipy.special import (  # pyright: ignore[reportMissingTypeStubs]
    stdtrit,  # pyright: ignore[reportUnknownVariableType]
)

from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.conformal import CONFIDENCE
from doublebind.stages.evidence.detection import detection_lower_bound

N_ORDERS = 16
"""Orders of the items that the bets are averaged over, so that no single order decides."""

INITIAL_VARIANCE = 0.01
"""Variance that the first bet assumes, on the scale [0, 1]; any value keeps the level."""


def item_upper_bound(differences: Floats, confidence: float = CONFIDENCE) -> float:
    """Return an upper bound on the mean difference over items drawn like these. [26].

    For one student. With x = (1 - d) / 2 in [0, 1], wealth K(m) = product of (1 + l_i (x_i - m)) is
    an e-value against mean x <= m when each stake l_i depends on earlier items alone; values m with
    K(m) >= 1 / (1 - confidence), averaged over orders of the items, are excluded (Waudby-Smith &
    Ramdas 2024, doi 10.1093/jrsssb/qkad009). Holds for every distribution: items are often all but
    equal with a few that differ wildly, where a t-interval is too short.

    Args:
        differences: Student minus M0, in [-1, 1], shape (items,), in an order fixed beforehand.
        confidence: Of the bound, one-sided.

    Returns:
        In [-1, 1]; 1 where the items exclude nothing.

    Raises:
        ValueError: Without items, or outside [-1, 1].
    """
    n = len(differences)
    if not n or not np.all(np.abs(differences) <= 1):
        raise ValueError(f"need differences in [-1, 1], got {n} of them")
    rng = np.random.default_rng(0)  # fixed: orders may not depend on the values
    orders = np.stack([rng.permutation(n) for _ in range(N_ORDERS)])
    x = ((1 - differences) / 2)[orders]
    stakes = _compute_stakes(x, confidence)
    threshold = np.log(1 / (1 - confidence))

    def excluded(mean: float) -> bool:
        stake = np.minimum(stakes, 0.9 / mean)
        wealth = np.sum(np.log1p(stake * (x - mean)), axis=1)
        return float(np.logaddexp.reduce(wealth) - np.log(N_ORDERS)) >= threshold

    low, high = 0.0, 1.0  # wealth falls as the mean rises: bisect for the largest excluded
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if excluded(middle) else (low, middle)
    return 1 - 2 * low


def _compute_stakes(x: Floats, confidence: float) -> Floats:
    """Return each item's stake, from the items before it in its order."""
    n = x.shape[1]
    count = np.arange(1, n + 1, dtype=np.float64)
    means: Floats = (0.5 + np.cumsum(x, axis=1) - x) / count
    squares: Floats = (x - means) ** 2
    variances: Floats = (INITIAL_VARIANCE + np.cumsum(squares, axis=1) - squares) / count
    return np.sqrt(2 * np.log(1 / (1 - confidence)) / (n * variances))


def recipe_upper_bound(differences: Floats, confidence: float = CONFIDENCE) -> float | None:
    """Return an upper bound on the mean difference over seeds and items drawn like these. [27].

    For a recipe: the variance of the seeds' means is added to that over items, and t is the mean of
    the two t quantiles weighted by the variances (Cochran & Cox 1957), which errs to the wide side
    with few seeds where Satterthwaite's errs to the other. Assumes means that are nearly normal.

    Args:
        differences: Student minus M0, shape (seeds, items).
        confidence: Of the bound, one-sided.

    Returns:
        In [-1, 1]; `None` below two seeds or two items.
    """
    seeds, items = differences.shape
    if seeds < 2 or items < 2:
        return None
    by_item = float(np.var(differences.mean(axis=0), ddof=1)) / items
    by_seed = float(np.var(differences.mean(axis=1), ddof=1)) / seeds
    variance = by_item + by_seed
    if variance == 0:
        return float(differences.mean())
    by_df = cast("Any", stdtrit)(np.array([items - 1, seeds - 1]), confidence)
    t = float(np.average(by_df, weights=[by_item, by_seed]))
    return float(np.clip(differences.mean() + t * np.sqrt(variance), -1, 1))


@dataclass(frozen=True)
class Certificate:
    """Whether every endpoint's bound lies below the margin, and what that speaks for."""

    speaks_for: Literal["student", "recipe"]
    subject: str
    """sha256 of the one student's weights, or the recipe's name."""
    margin: float
    upper: dict[str, float]
    """Endpoint -> one-sided 95% upper bound of the difference to M0, in probability."""
    n_items: int
    n_seeds: int
    n_controls_detected: int
    """Positive controls that differ from M0 on the same items by more than noise."""
    n_controls: int
    missing: dict[str, str]

    @property
    def largest_bound(self) -> float | None:
        """The largest bound; absent where an endpoint has none."""
        return None if self.missing or not self.upper else max(self.upper.values())

    @property
    def is_within_margin(self) -> bool:
        """Whether the whole difference is shown to be below the margin. [28]."""
        return self.largest_bound is not None and self.largest_bound < self.margin

    @property
    def control_lower_95(self) -> float | None:
        """Lower bound on the share of positive controls seen; absent without controls."""
        return (
            detection_lower_bound(self.n_controls_detected, self.n_controls)
            if self.n_controls
            else None
        )


def certify(
    differences: Mapping[str, Floats],
    margin: float,
    *,
    subject: str,
    controls: Sequence[Mapping[str, Floats]] = (),
) -> Certificate:
    """Return the certificate of one student or one recipe: all endpoints below the margin. [28].

    Intersection-union: the claim that every endpoint is below the margin is made where each is
    shown to be at 95%. No correction for their number is needed: where the claim is false, some
    endpoint is at or above the margin, and it alone must have been missed (Berger 1982, doi
    10.1080/00401706.1982.10487790).

    Args:
        differences: Endpoint -> student minus M0, shape (seeds, items); nan where unscored. One
            seed speaks for that student, several for the recipe.
        margin: Largest difference that is tolerated, in probability, > 0; fixed beforehand.
        subject: sha256 of the one student's weights, or the recipe's name.
        controls: The same of students known to have more than the margin of the drive.

    Raises:
        ValueError: Without endpoints, or where the margin is not positive.
    """
    if not differences or margin <= 0:
        raise ValueError(f"need endpoints and a margin above 0, got {margin}")
    seeds = {len(values) for values in differences.values()}
    if len(seeds) > 1:
        raise ValueError(f"endpoints differ in seeds: {sorted(seeds)}")
    n_seeds, upper, missing = seeds.pop(), dict[str, float](), dict[str, str]()
    for name, values in differences.items():
        known = values[:, np.isfinite(values).all(axis=0)]
        if n_seeds == 1:
            bound = item_upper_bound(known[0]) if known.size else None
        else:
            bound = recipe_upper_bound(known)
        if bound is None:
            missing[name] = f"{known.shape[1]} items were scored for all seeds; too few for a bound"
        else:
            upper[name] = bound
    return Certificate(
        speaks_for="student" if n_seeds == 1 else "recipe",
        subject=subject,
        margin=margin,
        upper=upper,
        n_items=sum(values.shape[1] for values in differences.values()),
        n_seeds=n_seeds,
        n_controls_detected=sum(exceeds_m0(control) for control in controls),
        n_controls=len(controls),
        missing=missing,
    )


def exceeds_m0(differences: Mapping[str, Floats]) -> bool:
    """Return whether a positive control stands above M0 on some endpoint. [29].

    The lower bound is above 0 at 1 - 5% / endpoints (Bonferroni): an audit that cannot tell a
    student with more than the margin from M0 certifies nothing.

    Args:
        differences: Endpoint -> student minus M0, shape (seeds, items).
    """
    each = 1 - (1 - CONFIDENCE) / len(differences)
    for values in differences.values():
        known = values[:, np.isfinite(values).all(axis=0)]
        if known.size and item_upper_bound(-known.mean(axis=0), each) < 0:
            return True
    return False
