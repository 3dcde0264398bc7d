"""Computes secondary numbers: a parametric p-value, and statistics of reference families.

Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from scipy.special import (  # pyright: ignore[reportMissingTypeStubs]
    stdtr,  # pyright: ignore[reportUnknownVariableType]
)

from doublebind.stages.evidence.arrays import Floats


def predictive_t_p_value(suspect: float, references: Floats) -> float | None:
    """Return the one-sided p-value of t = (S_U - mean) / (sd sqrt(1 + 1/n)), n - 1 df. [14].

    The prediction-interval test for one new observation from a normal population (Geisser 1993,
    Predictive Inference). Its level rests on normality in the tail, which few references cannot
    show: secondary to the conformal p-value, and no decision uses it.

    Args:
        suspect: Score of the suspect.
        references: Scores, shape (n,).

    Returns:
        In (0, 1); `None` below two references or where they do not differ.
    """
    n = len(references)
    if n < 2:
        return None
    spread = float(np.std(references, ddof=1))
    if spread == 0:
        return None
    t = (suspect - float(np.mean(references))) / (spread * np.sqrt(1 + 1 / n))
    return float(cast("Any", stdtr)(n - 1, -t))


def family_p_value(suspect: float, references: Floats, families: Sequence[str]) -> float:
    """Return the p-value with the family as the exchangeable unit. [17].

    p = (1 + sum over families of the share of members at or above the suspect) / (F + 1): each
    family weighs the same, whatever its size. Valid where families are exchangeable and the suspect
    is one member of a further one (hierarchical conformal prediction, Lee, Barber & Willett 2023,
    arXiv 2306.06342). Cannot fall below 1 / (F + 1).

    Args:
        suspect: Score of the suspect.
        references: Scores, shape (n,).
        families: Family of each reference, n labels.
    """
    labels = np.asarray(families)
    shares = [float(np.mean(references[labels == f] >= suspect)) for f in sorted(set(families))]
    return (1 + sum(shares)) / (len(shares) + 1)


def intraclass_correlation(references: Floats, families: Sequence[str]) -> float | None:
    """Return the share of variance that lies between families, in [0, 1]. [16].

    The one-way ANOVA estimator for unequal family sizes (Donner 1986, doi 10.2307/1403259), cut to
    [0, 1].

    Returns:
        `None` where it cannot be estimated: fewer than two families, no family with two members,
        or no variance at all.
    """
    labels, sizes = np.unique(np.asarray(families), return_counts=True)
    n, groups = len(references), len(labels)
    if groups < 2 or n == groups:
        return None
    means = np.array([references[np.asarray(families) == label].mean() for label in labels])
    between = float(np.sum(sizes * (means - references.mean()) ** 2)) / (groups - 1)
    total = float(np.sum((references - references.mean()) ** 2))
    within = (total - between * (groups - 1)) / (n - groups)
    typical = (n - float(np.sum(sizes**2)) / n) / (groups - 1)
    spread = between + (typical - 1) * within
    if total <= 0 or spread <= 0:
        return None
    return float(np.clip((between - within) / spread, 0, 1))


def effective_references(references: Floats, families: Sequence[str]) -> float | None:
    """Return n / (1 + (m - 1) rho), the effective number of references. [16].

    Kish's design effect (1965) with m = sum of squared family sizes / n and rho the intraclass
    correlation. n where every family has one member.

    Returns:
        In [1, n]; `None` where rho is needed and cannot be estimated.
    """
    sizes = np.unique(np.asarray(families), return_counts=True)[1]
    n = len(references)
    if n == len(sizes):
        return float(n)
    rho = intraclass_correlation(references, families)
    if rho is None:
        return None
    return n / (1 + (float(np.sum(sizes**2)) / n - 1) * rho)
