"""Measures how far a teacher's shape lies from the references': whether they match it.

Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

MATCH_MULTIPLE = 1.5
"""Factor by which the suspect's deviation must exceed the largest reference's to be no match."""

MATCH_FLOOR = 0.05
"""Smallest scale of a shape feature, as a share of its mean absolute value."""


class Deviation(NamedTuple):
    """The feature on which a teacher's shape is furthest from the median of all compared."""

    size: float
    """In scales; 0 where no feature tells the teachers apart."""
    feature: str
    value: float
    median: float
    scale: float


class Match(NamedTuple):
    """A teacher's deviation among the references, and the largest of theirs."""

    deviation: Deviation
    largest_reference_deviation: float
    """Largest deviation of a reference, in scales."""
    n_references: int
    """References compared with."""

    @property
    def limit(self) -> float:
        """Deviation beyond which the references are no match."""
        return MATCH_MULTIPLE * max(1.0, self.largest_reference_deviation)

    @property
    def is_outside(self) -> bool:
        """Whether the teacher's shape lies outside the references' support."""
        return self.deviation.size > self.limit


def largest_deviations(
    shapes: Sequence[Mapping[str, float]], features: Sequence[str]
) -> list[Deviation]:
    """Return each teacher's largest absolute standardised deviation over features. [20].

    |x - median| / max(1.48 MAD, 5% of the mean absolute value), with median, MAD and mean over all
    teachers given: symmetric in them, so that exchangeable teachers have exchangeable deviations.

    Args:
        shapes: Feature -> finite number, one mapping per teacher.
        features: Those that every teacher has.
    """
    furthest = [Deviation(0.0, "", 0.0, 0.0, 0.0)] * len(shapes)
    for feature in features:
        values = [shape[feature] for shape in shapes]
        unit = max(map(abs, values))
        if unit == 0:
            continue
        ratios = [value / unit for value in values]  # in [-1, 1], so that nothing overflows
        middle = median(ratios)
        mad = median(abs(ratio - middle) for ratio in ratios)
        mean = sum(map(abs, ratios)) / len(ratios)
        scale = max(1.48 * mad, MATCH_FLOOR * mean)
        for i, ratio in enumerate(ratios):
            size = abs(ratio - middle) / scale
            if size > furthest[i].size:
                furthest[i] = Deviation(size, feature, values[i], middle * unit, scale * unit)
    return furthest


def match_shape(
    own: Mapping[str, float], references: Sequence[Mapping[str, float]]
) -> Match | None:
    """Return how the shape `own` stands among those of the references. [21].

    Outside where its deviation exceeds 1.5 times both the largest of the references' and 1 scale.
    It is then strictly the largest of n + 1, which an exchangeable teacher's is with probability
    at most 1 / (n + 1).

    Returns:
        `None` where teacher and references share no feature.
    """
    features = [name for name in sorted(own) if all(name in shape for shape in references)]
    if not features or not references:
        return None
    first, *others = largest_deviations([own, *references], features)
    return Match(first, max(other.size for other in others), len(others))
