"""Computes one score per teacher from its score endpoints, symmetrically in all teachers.

Suspect and references are standardised together, which keeps them exchangeable. Numbers in brackets
are equations of docs/method.md.
"""

from __future__ import annotations

import numpy as np

from doublebind.stages.evidence.arrays import Floats

MAD_TO_SD = 1.48
"""A normal sample's standard deviation over its median absolute deviation (Hampel 1974)."""


def standardise(means: Floats, floor: float) -> Floats:
    """Return (x - median) / max(1.48 MAD, floor) of each endpoint over all teachers. [2].

    Args:
        means: Endpoint means, shape (..., teachers, endpoints), in probability units.
        floor: Smallest scale, the sampling s.e. fixed beforehand; > 0, so that identical teachers
            (MAD = 0) leave a finite score.

    Returns:
        Same shape, in units of the spread between teachers.
    """
    centred = means - np.median(means, axis=-2, keepdims=True)
    mad = np.median(np.abs(centred), axis=-2, keepdims=True)
    return centred / np.maximum(MAD_TO_SD * mad, floor)


def teacher_scores(means: Floats, floor: float) -> Floats:
    """Return each teacher's score, the largest of its standardised endpoints. [3].

    The maximum is taken inside the score, so that the test over several endpoints is one test.

    Args:
        means: As in `standardise`.
        floor: As in `standardise`.

    Returns:
        Shape (..., teachers); higher is more misaligned.
    """
    return np.max(standardise(means, floor), axis=-1)


def score_as_suspect(candidate: Floats, references: Floats, floor: float) -> tuple[float, Floats]:
    """Return the score of `candidate` and those of the references, standardised together.

    Args:
        candidate: Endpoint means of one teacher, shape (endpoints,).
        references: Endpoint means, shape (n, endpoints).
        floor: As in `standardise`.
    """
    scores = teacher_scores(np.vstack([candidate, references]), floor)
    return float(scores[0]), scores[1:]
