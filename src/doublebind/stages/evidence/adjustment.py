"""Takes out of every teacher's endpoints what covariates predict, symmetrically in all teachers.

Any fine-tuning moves a model's answers: how far it moved the weights, and what it cost in
capability, foretell much of how benign teachers differ. Numbers in brackets are equations of
docs/method.md.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from doublebind.schema.score_settings import count_usable_covariates
from doublebind.stages.evidence.arrays import Floats

_SMALLEST_SPREAD = 1e-9
"""Spread of a covariate, as a share of its size, below which it is constant."""


def select_covariates(covariates: Floats) -> list[int]:
    """Return the positions of the covariates that are used: known of all, as many as n can bear.

    Args:
        covariates: Shape (..., n + 1, k), the most important first; nan where unknown.
    """
    limit = count_usable_covariates(covariates.shape[-2] - 1)
    known = np.isfinite(covariates).all(axis=tuple(range(covariates.ndim - 1)))
    return [int(column) for column in np.flatnonzero(known)][:limit]


def adjust_endpoints(endpoints: Floats, covariates: Floats, ridge: float) -> Floats:
    """Return the deleted residuals of a ridge regression of endpoints on covariates. [50, 51].

    r = (x - Hx) / (1 - h) with hat matrix H: what a teacher's endpoint differs by from what all
    *other* teachers' regression predicts for it, for the penalty and the units of all of them. The
    suspect is one of the n + 1 that are fitted: fitted to the references alone, it would be the
    only teacher outside the fit, and stand out for it (Barber et al. 2021, arXiv 1905.02928;
    Marandon et al. 2022, arXiv 2208.06685).

    Args:
        endpoints: Shape (..., n + 1, listed endpoints).
        covariates: Shape (..., n + 1, k), finite; k may be 0: residuals are then from the mean of
            the others. One that does not differ between teachers has no effect.
        ridge: Penalty > 0, for covariates of mean 0 and variance 1; the mean is not penalised.

    Returns:
        Shape of `endpoints`, in their unit.
    """
    n = endpoints.shape[-2]
    centred = covariates - covariates.mean(axis=-2, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=-2, keepdims=True))
    size = np.abs(covariates).max(axis=-2, keepdims=True, initial=0.0)
    differs = spread > _SMALLEST_SPREAD * size
    unit = np.where(differs, centred / np.where(differs, spread, 1.0), 0.0)
    gram = np.swapaxes(unit, -1, -2) @ unit + ridge * np.eye(unit.shape[-1])
    hat = unit @ np.linalg.solve(gram, np.swapaxes(unit, -1, -2)) + 1 / n
    leverage = cast("Any", np).diagonal(hat, axis1=-2, axis2=-1)[..., None]
    return (endpoints - hat @ endpoints) / (1 - leverage)
