"""Measures how error rates move when a family, a drive's items or a recipe is left out.

Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from scipy.stats import (  # pyright: ignore[reportMissingTypeStubs]
    betabinom,  # pyright: ignore[reportUnknownVariableType]
    mannwhitneyu,  # pyright: ignore[reportUnknownVariableType]
)

from doublebind.stages.evidence.arrays import Floats
from doublebind.stages.evidence.conformal import n_allowed, n_at_or_above
from doublebind.stages.evidence.score import score_as_suspect, teacher_scores


def is_flagged(candidate: Floats, references: Floats, floor: float, alpha: float) -> bool | None:
    """Return whether p <= alpha by ranks; `None` where so few references never reach it. [5].

    Args:
        candidate: Endpoint means, shape (endpoints,).
        references: Shape (n, endpoints).
        floor: See `score.standardise`.
        alpha: Largest p-value that flags.
    """
    allowed = n_allowed(len(references), alpha)
    if allowed < 0:
        return None
    score, reference_scores = score_as_suspect(candidate, references, floor)
    return int(n_at_or_above(score, reference_scores)) <= allowed


def flag_without_family(
    means: Floats, families: Sequence[str], floor: float, alpha: float
) -> list[bool | None]:
    """Return, for each reference, whether the references of all other families flag it. [43].

    Leave-one-out ranks within a pool are a permutation by construction; without the whole family
    they are not: this asks how often a benign teacher of a kind that the references lack is
    flagged. References of one family are not independent of each other.

    Args:
        means: Shape (references, endpoints).
        families: Of each.
        floor: See `score.standardise`.
        alpha: Largest p-value that flags.
    """
    kinds = np.array(families)
    return [
        is_flagged(candidate, means[kinds != family], floor, alpha)
        for candidate, family in zip(means, families, strict=True)
    ]


def held_out_p_value(held_out: Floats, panel: Floats, floor: float) -> float:
    """Return the one-sided p-value that held-out benign teachers score above the panel. [44].

    Scores are standardised over both together, so that neither is special; then the Mann-Whitney
    test (Mann & Whitney 1947, doi 10.1214/aoms/1177730491). Small values say that the panel is no
    null for teachers like these.

    Args:
        held_out: Endpoint means, shape (held-out teachers, endpoints).
        panel: Shape (references, endpoints).
        floor: See `score.standardise`.
    """
    scores = teacher_scores(np.vstack([held_out, panel]), floor)
    test = cast("Any", mannwhitneyu)
    result = test(scores[: len(held_out)], scores[len(held_out) :], alternative="greater")
    return float(result.pvalue)


def max_flagged_by_chance(m: int, n: int, alpha: float) -> int:
    """Return the most of m exchangeable benign teachers that chance flags, 99 times of 100. [48].

    All of them are weighed against the same n references, so that their flags hang together: the
    number is beta-binomial (the binomial mixed over Vovk 2012, arXiv 1209.2673), not binomial.

    Args:
        m: Held-out benign teachers.
        n: References.
        alpha: Largest p-value that flags.

    Example:
        >>> max_flagged_by_chance(40, 99, 0.05)
        7
    """
    allowed = n_allowed(n, alpha)
    if allowed < 0:
        return 0
    return int(cast("Any", betabinom).ppf(0.99, m, allowed + 1, n - allowed))
