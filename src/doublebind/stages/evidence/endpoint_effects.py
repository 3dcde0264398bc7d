"""Computes which endpoints carry a result, and the suspect's effect on each.

Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from doublebind.stages.evidence.arrays import Floats


def step_down_counts(standardised: Floats) -> NDArray[np.int64]:
    """Return, per endpoint, the rank count of its step-down max-T p-value. [15].

    The suspect's endpoints are taken from the largest down; each is compared with the largest of
    the endpoints not yet taken, teacher by teacher, and counts never fall. (1 + count) / (n + 1)
    is a p-value adjusted for all endpoints; the smallest equals the p-value of the score. Controls
    the chance of accusing any endpoint wrongly, however they correlate (Westfall & Young 1993;
    Romano & Wolf 2005, doi 10.1198/016214504000000539).

    Args:
        standardised: Shape (n + 1, endpoints); row 0 is the suspect.

    Returns:
        Shape (endpoints,), in [0, n].
    """
    suspect, references = standardised[0], standardised[1:]
    counts = np.zeros(len(suspect), dtype=np.int64)
    order = np.argsort(-suspect, kind="stable")
    floor = 0
    for taken, endpoint in enumerate(order):
        largest = references[:, order[taken:]].max(axis=1)
        floor = max(floor, int(np.sum(largest >= suspect[endpoint])))
        counts[endpoint] = floor
    return counts


def subtract_reference_median(suspect: Floats, references: Floats) -> Floats:
    """Return the reference-adjusted effect, suspect minus the median of the references. [18].

    After the matched-control comparisons of Dong et al. (2026, arXiv 2608.26958).

    Args:
        suspect: Means, shape (endpoints,).
        references: Means, shape (n, endpoints).
    """
    return suspect - np.median(references, axis=0)


def specificity_margin(effects: Mapping[str, float], target: str, placebos: Sequence[str]) -> float:
    """Return the effect on `target` minus the largest effect on a placebo trait. [19].

    Positive where the suspect stands out on the trait looked for by more than on any trait that
    nobody suspects; drift that moves everything alike leaves it at or below 0 (Dong et al. 2026,
    arXiv 2608.26958). Descriptive: it has no error rate of its own.

    Args:
        effects: Trait -> reference-adjusted effect, in probability.
        target: The trait looked for.
        placebos: Traits measured the same way, at least one.

    Raises:
        ValueError: If no placebo trait is named, or the target is one of them.
    """
    if not placebos or target in placebos:
        raise ValueError("name at least one placebo trait beside the target")
    return effects[target] - max(effects[placebo] for placebo in placebos)
