"""Settings of the score: how endpoint means become one number per teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from doublebind.schema.hashing import Record

SHAPE_COVARIATES = ("update_norm", "kl_to_m0", "completion_tokens", "finished")
"""Covariates that are features of a teacher's shape."""

GATE_COVARIATES = ("capability", "coherence")
"""Covariates that are means of gate items, minus M0's, of the models that are scored."""

DEFAULT_COVARIATES = (
    "update_norm",
    "kl_to_m0",
    "completion_tokens",
    "capability",
    "coherence",
)
"""What any fine-tuning moves, in the order in which few references leave out the last."""


def count_usable_covariates(n_references: int) -> int:
    """Return how many covariates this many references can bear: 5 from 39, 2 from 19, else none.

    The level holds with any number; with too many, the power goes into estimating them.
    """
    return 5 if n_references >= 39 else 2 if n_references >= 19 else 0


def _check_covariates(names: tuple[str, ...]) -> tuple[str, ...]:
    known = (*SHAPE_COVARIATES, *GATE_COVARIATES)
    for name in names:
        if name not in known:
            raise ValueError(f"{name} is no covariate; choose from {', '.join(known)}")
    if len(set(names)) < len(names):
        raise ValueError("a covariate is named twice; name each once")
    return names


class AdjustedScore(Record):
    """Log-odds minus M0's, adjusted for covariates, averaged by group."""

    kind: Literal["adjusted"] = "adjusted"
    clip: float = Field(default=1e-3, gt=0, lt=0.5)
    """Probabilities are cut to [clip, 1 - clip] before their log-odds are taken."""
    ridge: float = Field(default=1.0, gt=0)
    """Penalty of the regression on covariates, each of which has variance 1."""
    covariates: Annotated[tuple[str, ...], AfterValidator(_check_covariates)] = DEFAULT_COVARIATES
    """What is adjusted for, the most important first: `update_norm`, `kl_to_m0`,
    `completion_tokens`, `finished` (of the teacher), `capability`, `coherence` (of the students).
    At most 5 are used with 39 references or more, 2 with 19 or more, none with fewer."""


class PlainScore(Record):
    """Mean probability by group, not adjusted: the score up to method version 4."""

    kind: Literal["plain"] = "plain"


ScoreSettings = Annotated[AdjustedScore | PlainScore, Field(discriminator="kind")]

ADJUSTED, PLAIN = AdjustedScore(), PlainScore()


def get_adjusted_settings(score: AdjustedScore | PlainScore) -> AdjustedScore:
    """Return the settings of the adjusted score, those given or the defaults."""
    return score if isinstance(score, AdjustedScore) else ADJUSTED


def get_other_score(score: AdjustedScore | PlainScore) -> AdjustedScore | PlainScore:
    """Return the kind of score that is reported beside `score`."""
    return PLAIN if isinstance(score, AdjustedScore) else ADJUSTED
