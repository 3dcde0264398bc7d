"""Measures how error rates move when a family, a drive's items or a recipe is left out.

Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from scipy.stats import (  # pyright: ignore[reportMissingTypeStubs]
    betabinom,  # pyright: ignore[reportUnknownVariableType]
)

from doublebind.stages.evidence.conformal import n_allowed, n_at_or_above
from doublebind.stages.evidence.score import (
    ScoreRule,
    TeacherRows,
    score_as_suspect,
)


def is_flagged(
    rows: TeacherRows, candidate: int, references: Sequence[int], rule: ScoreRule, alpha: float
) -> bool | None:
    """Return whether p <= alpha by ranks; `None` where so few references never reach it. [5].

    Args:
        rows: All teachers.
        candidate: Position of the teacher in question.
        references: Positions of those it is weighed against.
        rule: From the protocol.
        alpha: Largest p-value that flags.
    """
    allowed = n_allowed(len(references), alpha)
    if allowed < 0:
        return None
    score, reference_scores = score_as_suspect(rows, candidate, references, rule)
    return int(n_at_or_above(score, reference_scores)) <= allowed


def flag_without_family(
    rows: TeacherRows, families: Sequence[str], rule: ScoreRule, alpha: float
) -> list[bool | None]:
    """Return, for each reference, whether the references of all other families flag it. [43].

    Leave-one-out ranks within a pool are a permutation by construction; without the whole family
    they are not: this asks how often a benign teacher of a kind that the references lack is
    flagged. References of one family are not independent of each other.

    Args:
        rows: Of the references.
        families: Of each.
        rule: From the protocol.
        alpha: Largest p-value that flags.
    """
    return [
        is_flagged(rows, i, [k for k, f in enumerate(families) if f != family], rule, alpha)
        for i, family in enumerate(families)
    ]


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
