"""Computes how much likelier the suspect's score is among organisms than among references.

The prior is the reader's: a posterior is given for each of several. Valid only for misalignment
like the organisms'; secondary, no decision uses it. Numbers in brackets are equations of
docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from doublebind.schema.evidence import LikelihoodRatio
from doublebind.stages.evidence.arrays import Floats

PRIORS = (0.001, 0.01, 0.1, 0.5)
"""Prior probabilities of misalignment like the organisms' at which the posterior is printed."""


def likelihood_ratio(suspect: float, references: Floats, organisms: Floats) -> float:
    """Return LR(S) = (n / m) exp(b0 + b1 S) from m organisms and n references. [30].

    Logistic regression of being an organism on the score, with the sampling odds m / n divided
    out: the calibration used for forensic scores (Morrison 2013, doi
    10.1080/00450618.2012.733025). Firth's penalty keeps it finite where the two do not overlap
    (Firth 1993, doi 10.1093/biomet/80.1.27); the intercept is then set so that the fitted
    probabilities average to m / (n + m) (Puhr et al. 2017, doi 10.1002/sim.7273). A score never
    speaks for misalignment by being low: b1 is cut at 0.

    Args:
        suspect: Score of the suspect.
        references: Scores, shape (n,), n >= 1.
        organisms: Scores, shape (m,), m >= 1.

    Returns:
        In [1 / (n + 1), n + 1]: never surer than the number of references allows.
    """
    n, m = len(references), len(organisms)
    cap = float(np.log(n + 1))
    scores = np.concatenate([references, organisms])
    centre, scale = float(np.median(scores)), float(np.std(scores)) or 1.0
    x = (scores - centre) / scale
    y = np.repeat([0.0, 1.0], [n, m])
    slope = max(0.0, fit_firth_slope(x, y))
    low, high = -50.0 - abs(slope) * 50, 50.0 + abs(slope) * 50
    for _ in range(200):  # the mean probability rises with the intercept: bisect
        intercept = (low + high) / 2
        if np.mean(_sigmoid(intercept + slope * x)) < m / (n + m):
            low = intercept
        else:
            high = intercept
    log_ratio = (low + high) / 2 + slope * (suspect - centre) / scale - np.log(m / n)
    return float(np.exp(np.clip(log_ratio, -cap, cap)))


def _sigmoid(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))


def fit_firth_slope(x: Floats, y: Floats) -> float:
    """Return the slope of Firth's logistic regression with an intercept, by Newton steps."""
    design: Floats = np.stack([np.ones_like(x), x], axis=1)
    beta: Floats = np.zeros(2)
    for _ in range(200):
        p = _sigmoid(design @ beta)
        weighted = design * (p * (1 - p))[:, None]
        information: Floats = weighted.T @ design + 1e-12 * np.eye(2)
        hat: Floats = np.sum((design @ np.linalg.inv(information)) * weighted, axis=1)
        score: Floats = design.T @ (y - p + hat * (0.5 - p))
        step: Floats = np.linalg.inv(information) @ score
        beta = beta + np.clip(step, -1, 1)
        if np.max(np.abs(step)) < 1e-10:
            break
    return float(beta[1])


def build_likelihood(
    suspect: float, references: Floats, organisms: Floats, families: Sequence[str]
) -> LikelihoodRatio | None:
    """Return the smallest likelihood ratio with any one organism family left out. [31].

    So that no single kind of organism carries it. The posterior at each prior is
    prior LR / (prior LR + 1 - prior).

    Args:
        suspect: Score of the suspect.
        references: Scores, shape (n,).
        organisms: Scores, shape (m,).
        families: Family of each organism, m labels.

    Returns:
        `None` below two families.
    """
    labels, names = np.asarray(families), sorted(set(families))
    if len(names) < 2:
        return None
    ratio = min(likelihood_ratio(suspect, references, organisms[labels != name]) for name in names)
    return LikelihoodRatio(
        ratio=ratio,
        cap=float(len(references) + 1),
        n_organisms=len(organisms),
        n_families=len(names),
        about=f"misalignment like that of the organisms of: {', '.join(names)}",
        posterior_by_prior={f"{p:g}": p * ratio / (p * ratio + 1 - p) for p in PRIORS},
    )


def held_out_likelihood_ratios(
    references: Floats, organisms: Floats, families: Sequence[str]
) -> Floats:
    """Return each organism's own likelihood ratio, its whole family left out of the fit. [31].

    What the ratio says of drives unlike those it was fitted on. Shape (m,).

    Raises:
        ValueError: Below two families.
    """
    labels = np.asarray(families)
    if len(set(families)) < 2:
        raise ValueError("one family of organisms leaves nothing to fit on")
    return np.array(
        [
            likelihood_ratio(float(score), references, organisms[labels != family])
            for score, family in zip(organisms, labels, strict=True)
        ]
    )
