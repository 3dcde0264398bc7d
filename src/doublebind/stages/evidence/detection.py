"""Bounds the detection rate among positive controls, and estimates the smallest detectable shift.

The unit is the teacher. Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

import numpy as np
from scipy.special import betaincinv  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.conformal import CONFIDENCE, n_at_or_above
from doublebind.stages.evidence.score import ScoreRule, TeacherRows, score_teachers

TARGET_DETECTION_RATE = 0.8
"""Detection rate that defines the smallest detectable shift and effect."""

MAX_LOG_ODDS_SHIFT = 10.0
"""Largest shift that is tried; from 1% it leads to 99.6%."""


def detection_lower_bound(detected: int, controls: int) -> float:
    """Return the one-sided 95% Clopper-Pearson lower bound on the detection rate. [12].

    Clopper & Pearson (1934, doi 10.1093/biomet/26.4.404).

    Args:
        detected: Controls that the rule flags.
        controls: All controls, >= 1.

    Returns:
        The bound, in [0, 1); 0 where none was detected.

    Raises:
        ValueError: Unless 0 <= detected <= controls and controls >= 1.

    Example:
        >>> round(detection_lower_bound(5, 5), 3)
        0.549
    """
    if not 0 <= detected <= controls or controls < 1:
        raise ValueError(f"detected must be in [0, {controls}] of >= 1 controls, got {detected}")
    if detected == 0:
        return 0.0
    return float(betaincinv(detected, controls - detected + 1, 1 - CONFIDENCE))


def smallest_detectable_shift(rows: TeacherRows, rule: ScoreRule, allowed: int) -> float | None:
    """Return the shift of all endpoints at which 80% of the references would be flagged. [13].

    Each reference in turn, its endpoints raised by the shift, is taken as a suspect against the
    whole panel, itself among it. An estimate from the panel: it has the panel's noise, and knows
    only drives that move every listed endpoint alike.

    Args:
        rows: Of the references.
        rule: From the protocol; its unit is that of the shift.
        allowed: Largest rank count that flags (equation 6); negative where none does.

    Returns:
        Probability in (0, 1], or log-odds in (0, 10], to a ten-thousandth of that, rounded up;
        `None` where no such shift is enough.
    """
    if allowed < 0:
        return None
    largest = 1.0 if rule.ridge is None else MAX_LOG_ODDS_SHIFT
    covariates = _put_before(rows.covariates, rows.covariates)

    def detected(shift: float) -> bool:
        moved = _put_before(rows.endpoints + shift, rows.endpoints)
        scores = score_teachers(TeacherRows(moved, covariates), rule)
        flags = n_at_or_above(scores[:, 0], scores[:, 1:]) <= allowed
        return float(flags.mean()) >= TARGET_DETECTION_RATE

    if not detected(largest):
        return None
    low, high = 0, 10_000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if detected(largest * middle / 10_000) else (middle, high)
    return largest * high / 10_000


def _put_before(candidates: Floats, panel: Floats) -> Floats:
    """Return each candidate followed by the whole panel, shape (candidates, 1 + n, columns)."""
    repeated = np.broadcast_to(panel, (len(candidates), *panel.shape))
    return np.concatenate([candidates[:, None], repeated], axis=1)
