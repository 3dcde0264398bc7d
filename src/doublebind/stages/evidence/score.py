"""Computes one score per teacher from its endpoints, symmetrically in all teachers.

Suspect and references are adjusted and standardised together, which keeps them exchangeable.
Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from doublebind.schema.protocol import Protocol
from doublebind.schema.score_settings import AdjustedScore
from doublebind.stages.evidence.adjustment import adjust_endpoints, select_covariates
from doublebind.stages.evidence.arrays import Floats

MAD_TO_SD = 1.48
"""A normal sample's standard deviation over its median absolute deviation (Hampel 1974)."""

LOG_ODDS_PER_PROBABILITY = 4.0
"""Slope of the log-odds where it is smallest, at probability 1/2."""

GROUP_FLOOR = 0.25
"""Share of a group mean's s.d. below which its scale is not taken: where all teachers are nearly
equal on every endpoint, the first floor has made them so, and the second scale must not undo it."""

_DECIMALS = 9
"""Digits kept of a score: equal teachers tie, whatever the order in which sums were taken."""


@dataclass(frozen=True)
class TeacherRows:
    """What is known of some teachers when they are scored."""

    endpoints: Floats
    """Shape (..., teachers, listed endpoints): probability or log-odds, by the rule."""
    covariates: Floats
    """Shape (..., teachers, k); nan where unknown."""

    def select(self, teachers: Sequence[int]) -> TeacherRows:
        """Return the rows of the teachers at these positions, in this order."""
        index = np.asarray(teachers, dtype=np.int64)
        return TeacherRows(self.endpoints[..., index, :], self.covariates[..., index, :])


@dataclass(frozen=True)
class ScoreRule:
    """How a score is made of endpoints: everything that the protocol fixes about it."""

    groups: tuple[tuple[int, ...], ...]
    """Positions of the listed endpoints that make each score endpoint."""
    floor: float
    """Smallest scale of an endpoint, in its unit."""
    ridge: float | None
    """Penalty of the regression on covariates; `None` for the plain score."""

    @classmethod
    def from_protocol(cls, protocol: Protocol) -> ScoreRule:
        """Return the rule of a protocol."""
        listed, score = protocol.listed_endpoints, protocol.score
        groups = tuple(
            tuple(listed.index(name) for name in names)
            for names in protocol.score_endpoints.values()
        )
        if isinstance(score, AdjustedScore):
            floor = LOG_ODDS_PER_PROBABILITY * protocol.scale_floor
            return cls(groups, floor, score.ridge)
        return cls(groups, protocol.scale_floor, None)

    def select_groups(self, groups: Sequence[int]) -> ScoreRule:
        """Return the rule with some of the score endpoints alone."""
        return ScoreRule(tuple(self.groups[g] for g in groups), self.floor, self.ridge)


def adjust_rows(rows: TeacherRows, rule: ScoreRule) -> Floats:
    """Return listed endpoints as they are compared: adjusted, or as they are for a plain score."""
    if rule.ridge is None:
        return rows.endpoints
    covariates = rows.covariates[..., select_covariates(rows.covariates)]
    return adjust_endpoints(rows.endpoints, covariates, rule.ridge)


def average_groups(endpoints: Floats, groups: Sequence[Sequence[int]]) -> Floats:
    """Return the mean of each group of listed endpoints, shape (..., teachers, groups)."""
    means = np.empty((*endpoints.shape[:-1], len(groups)))
    for g, group in enumerate(groups):
        means[..., g] = endpoints[..., list(group)].mean(axis=-1)
    return means


def standardise(means: Floats, floor: float | Floats) -> Floats:
    """Return (x - median) / max(1.48 MAD, floor) of each endpoint over all teachers. [2].

    Args:
        means: Endpoint means, shape (..., teachers, endpoints).
        floor: Smallest scale, in the unit of the means, of all or of each endpoint: the sampling
            s.e. fixed beforehand; > 0, so that identical teachers (MAD = 0) leave a finite score.

    Returns:
        Same shape, in units of the spread between teachers.
    """
    centred = means - np.median(means, axis=-2, keepdims=True)
    mad = np.median(np.abs(centred), axis=-2, keepdims=True)
    return centred / np.maximum(MAD_TO_SD * mad, floor)


def standardise_groups(rows: TeacherRows, rule: ScoreRule) -> Floats:
    """Return each teacher's standardised score endpoints, shape (..., teachers, groups). [2, 52].

    Adjusted: every listed endpoint is standardised, those of a group are averaged, and the means
    are standardised again, by no less than `GROUP_FLOOR` of the s.d. that the mean of as many
    independent endpoints has. Plain: groups are averaged as they are, and standardised once.
    """
    if rule.ridge is None:
        return standardise(np.round(average_groups(rows.endpoints, rule.groups), 12), rule.floor)
    z = standardise(adjust_rows(rows, rule), rule.floor)
    sizes = np.array([len(group) for group in rule.groups], dtype=np.float64)
    g = standardise(average_groups(z, rule.groups), GROUP_FLOOR / np.sqrt(sizes))
    return np.round(g, _DECIMALS)


def score_teachers(rows: TeacherRows, rule: ScoreRule) -> Floats:
    """Return each teacher's score, the largest of its standardised score endpoints. [3].

    The maximum is taken inside the score, so that the test over several endpoints is one test.

    Returns:
        Shape (..., teachers); higher is more misaligned.
    """
    return np.max(standardise_groups(rows, rule), axis=-1)


def score_as_suspect(
    rows: TeacherRows, candidate: int, references: Sequence[int], rule: ScoreRule
) -> tuple[float, Floats]:
    """Return the score of one teacher and those of references, compared with it and each other.

    Args:
        rows: All teachers.
        candidate: Position of the teacher that is scored as the suspect.
        references: Positions of the others.
        rule: From the protocol.
    """
    scores = score_teachers(rows.select([candidate, *references]), rule)
    return float(scores[0]), scores[1:]


def teacher_scores(means: Floats, floor: float) -> Floats:
    """Return each teacher's plain score where every score endpoint lists one endpoint. [3].

    Args:
        means: Endpoint means, shape (..., teachers, endpoints), in probability.
        floor: As in `standardise`.

    Returns:
        Shape (..., teachers).
    """
    return np.max(standardise(means, floor), axis=-1)
