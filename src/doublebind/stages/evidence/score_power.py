"""Simulates which shift of a drive the score would find, from a pilot's references.

Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.conformal import n_allowed, n_at_or_above
from doublebind.stages.evidence.detection import TARGET_DETECTION_RATE
from doublebind.stages.evidence.score import ScoreRule, TeacherRows, score_teachers

REFERENCE_COUNTS = (19, 39, 59, 99)
SHIFTS = (1.0, 2.0, 3.0)
"""Shifts at which power is given, in s.d. of the references."""
MIN_REFERENCES = 10
"""Fewer say too little of how references vary together."""
N_STUDIES = 400
_STEP, _LARGEST = 0.1, 8.0
_BATCH = 50


class ScorePower(NamedTuple):
    """Power of the score with some number of references, for one drive that is moved."""

    references: int
    power: dict[str, float]
    """Shift in s.d. of the references -> share of studies that flag the suspect."""
    smallest_sd: float | None
    """Smallest shift found in 80% of studies, in s.d.; `None` where 8 are not enough."""
    smallest: float | None
    """The same in the unit of the score's endpoints, in the mean over them."""
    smallest_probability: float | None
    """The same in probability, by the slope at the references' mean."""


def tabulate_score_power(
    rows: TeacherRows, probabilities: Floats, rule: ScoreRule, alpha: float
) -> list[ScorePower]:
    """Return the power of the score with 19, 39, 59 and 99 references. [60].

    Teachers, suspect included, are drawn from the normal distribution with mean and covariance of
    the pilot's references, covariates included; all endpoints of one score endpoint of the suspect,
    a random one in each study, are raised by the same multiple of their s.d.

    Args:
        rows: Of the pilot's references, `MIN_REFERENCES` or more.
        probabilities: Their listed endpoints in probability, shape (references, listed).
        rule: From the protocol.
        alpha: Level of the rule.
    """
    spread = rows.endpoints.std(axis=0, ddof=1)
    slope = np.ones_like(spread)
    if rule.ridge is not None:
        means = probabilities.mean(axis=0)
        slope = means * (1 - means)
    table: list[ScorePower] = []
    for n in REFERENCE_COUNTS:
        # The bisection assumes that power grows with the shift; all shifts see the same draws.
        low, high = 0, round(_LARGEST / _STEP)
        detectable = _simulate(rows, rule, n, alpha, high * _STEP) >= TARGET_DETECTION_RATE
        while detectable and high - low > 1:
            middle = (low + high) // 2
            enough = _simulate(rows, rule, n, alpha, middle * _STEP) >= TARGET_DETECTION_RATE
            low, high = (low, middle) if enough else (middle, high)
        size = high * _STEP if detectable else None
        table.append(
            ScorePower(
                references=n,
                power={f"{s:g}": _simulate(rows, rule, n, alpha, s) for s in SHIFTS},
                smallest_sd=None if size is None else round(size, 1),
                smallest=None if size is None else float(size * spread.mean()),
                smallest_probability=(
                    None if size is None else float(size * (spread * np.abs(slope)).mean())
                ),
            )
        )
    return table


def _simulate(rows: TeacherRows, rule: ScoreRule, n: int, alpha: float, shift: float) -> float:
    """Return the share of simulated studies that flag a suspect moved by `shift` s.d."""
    rng, allowed = np.random.default_rng(0), n_allowed(n, alpha)
    known = np.isfinite(rows.covariates).all(axis=0)
    listed = rows.endpoints.shape[1]
    pilot = np.hstack([rows.endpoints, rows.covariates[:, known]])
    centred = pilot - pilot.mean(axis=0)
    spread = rows.endpoints.std(axis=0, ddof=1)
    columns = [list(group) for group in rule.groups]
    flagged = 0
    for _ in range(N_STUDIES // _BATCH):
        # Normal weights on the pilot's teachers: exactly its sample covariance.
        weights = rng.normal(size=(_BATCH, n + 1, len(pilot)))
        drawn = weights @ centred / np.sqrt(len(pilot) - 1)
        moved = np.zeros((_BATCH, listed))
        for study, group in enumerate(rng.integers(0, len(columns), _BATCH).tolist()):
            moved[study, columns[group]] = shift * spread[columns[group]]
        drawn[:, 0, :listed] += moved
        scores = score_teachers(TeacherRows(drawn[..., :listed], drawn[..., listed:]), rule)
        flagged += int(np.sum(n_at_or_above(scores[:, 0], scores[:, 1:]) <= allowed))
    return flagged / N_STUDIES
