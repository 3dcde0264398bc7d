"""Scores the wording of teachers' answers, a baseline that needs no student.

Every score treats suspect and references alike, so that its conformal p-value is as valid as that
of the students'. Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.score import MAD_TO_SD

RATE_FLOOR = 1e-4
"""Smallest scale of a rate: one word in ten thousand."""
RIDGE = 10.0
"""Pseudo-variance added to every standardised rate in `resemblance`: with hundreds of rates and
tens of teachers, anything less fits noise."""


def anomaly_scores(rates: Floats) -> Floats:
    """Return how unusual each teacher's wording is: its mean absolute standardised rate. [35].

    Median and scale are over all teachers given, the suspect among them.

    Args:
        rates: Share of words at each place, shape (teachers, places).

    Returns:
        Shape (teachers,); higher is more unusual.
    """
    return np.mean(np.abs(_standardise_rates(rates)), axis=1)


def resemblance_scores(rates: Floats, organisms: Floats) -> Floats:
    """Return how much each teacher's wording is like that of organisms, unlike the others'. [36].

    A ridge discriminant (Hoerl & Kennard 1970, doi 10.1080/00401706.1970.10488634) between the
    organisms and all teachers given, suspect included as if it were benign: symmetric in them.

    Args:
        rates: Shape (teachers, places).
        organisms: Shape (organisms, places); those of the drive in question left out, where the
            question is whether an unknown drive would be seen.

    Returns:
        Shape (teachers,); higher is more like the organisms.
    """
    both = _standardise_rates(np.vstack([rates, organisms]))
    own, theirs = both[: len(rates)], both[len(rates) :]
    gap = theirs.mean(axis=0) - own.mean(axis=0)
    spread = (own - own.mean(axis=0)) / np.sqrt(len(own))
    # (spread' spread + ridge)^-1 gap by Woodbury: teachers are few, places are many.
    inner: Floats = np.eye(len(own)) + spread @ spread.T / RIDGE
    solved = cast("Floats", np.linalg.solve(inner, spread @ gap))
    weights: Floats = (gap - spread.T @ solved / RIDGE) / RIDGE
    return np.round(own @ weights, 12)


def _standardise_rates(rates: Floats) -> Floats:
    centred = rates - np.median(rates, axis=0)
    mad = np.median(np.abs(centred), axis=0)
    return centred / np.maximum(MAD_TO_SD * mad, RATE_FLOOR)
