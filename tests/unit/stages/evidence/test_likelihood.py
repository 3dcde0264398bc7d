"""The likelihood ratio from organisms: calibrated, capped, and carried by no single family."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from doublebind.stages.evidence.likelihood import (
    build_likelihood,
    held_out_likelihood_ratios,
    likelihood_ratio,
)
from doublebind.stages.evidence.weigh import weigh_suspect

Make = Callable[..., Any]
RNG = np.random.default_rng(40)
REFERENCES = RNG.normal(0, 1, 39)


def test_ratio_of_two_normals_is_recovered() -> None:
    """N(0, 1) against N(2, 1): log LR = 2 s - 2, known exactly."""
    rng = np.random.default_rng(41)
    references, organisms = rng.normal(0, 1, 4000), rng.normal(2, 1, 1000)
    for s in (0.0, 1.0, 2.0):
        truth = stats.norm.pdf(s, 2) / stats.norm.pdf(s, 0)
        assert likelihood_ratio(s, references, organisms) == pytest.approx(truth, rel=0.15)


def test_slope_is_firths() -> None:
    """Against a direct maximisation of the penalised likelihood."""
    from doublebind.stages.evidence import likelihood as module

    x = np.array([-1.2, -0.5, 0.1, 0.3, 0.4, 1.0, 1.7])
    y = np.array([0.0, 0, 0, 1, 0, 1, 1])
    design = np.stack([np.ones_like(x), x], axis=1)

    def negative(beta: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-design @ beta))
        information = design.T @ (design * (p * (1 - p))[:, None])
        return -float(
            np.sum(y * np.log(p) + (1 - y) * np.log(1 - p))
            + 0.5 * np.linalg.slogdet(information)[1]
        )

    best = optimize.minimize(
        negative, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
    )
    assert module.fit_firth_slope(x, y) == pytest.approx(best.x[1], abs=1e-4)


def test_separated_scores_stay_within_the_cap() -> None:
    organisms = np.full(6, 80.0)
    assert likelihood_ratio(80.0, REFERENCES, organisms) <= 40 * (1 + 1e-12)
    assert likelihood_ratio(-80.0, REFERENCES, organisms) >= 1 / 40 / (1 + 1e-12)
    assert likelihood_ratio(80.0, REFERENCES, organisms) > 10


def test_ratio_never_rises_as_the_score_falls() -> None:
    organisms = np.random.default_rng(42).normal(3, 4, 8)
    ratios = [likelihood_ratio(s, REFERENCES, organisms) for s in np.linspace(-9, 9, 30)]
    assert ratios == sorted(ratios)


def test_organisms_below_the_references_say_nothing() -> None:
    for s in (-5.0, 0.0, 5.0):
        assert likelihood_ratio(s, REFERENCES, REFERENCES[:8] - 5) == pytest.approx(1.0)
    assert likelihood_ratio(0.0, np.zeros(9), np.zeros(3)) == pytest.approx(1.0)


def test_weakest_fit_counts_and_posteriors_follow_bayes() -> None:
    organisms, families = np.array([1.0, 1.2, 9.0, 9.5]), ["a", "a", "b", "b"]
    found = build_likelihood(4.0, REFERENCES, organisms, families)
    assert found is not None
    without = [likelihood_ratio(4.0, REFERENCES, organisms[i : i + 2]) for i in (0, 2)]
    assert found.ratio == min(without)
    assert (found.cap, found.n_organisms, found.n_families) == (40, 4, 2)
    assert found.posterior_by_prior["0.5"] == pytest.approx(found.ratio / (found.ratio + 1))
    assert found.posterior_by_prior["0.01"] == pytest.approx(
        0.01 * found.ratio / (0.01 * found.ratio + 0.99)
    )


def test_one_family_is_too_few() -> None:
    assert build_likelihood(1.0, REFERENCES, np.ones(5), ["a"] * 5) is None
    with pytest.raises(ValueError, match="one family"):
        held_out_likelihood_ratios(REFERENCES, np.ones(5), ["a"] * 5)


def test_organism_unlike_the_others_is_shown_to_be() -> None:
    own = held_out_likelihood_ratios(
        REFERENCES, np.array([8.0, 9.0, 8.5, 0.0]), ["a", "b", "c", "odd"]
    )
    assert own[-1] < 1 < own[:-1].min()


def test_evidence_carries_it_and_says_where_it_cannot(
    make_scores: Make, make_teachers: Make, make_protocol: Make
) -> None:
    means = {"u": 0.6} | {f"r{i}": 0.1 + i / 100 for i in range(19)}
    means |= {f"o{i}": 0.5 + i / 10 for i in range(3)}
    evidence = weigh_suspect(make_scores(means), make_teachers(19, 3), make_protocol())
    assert evidence.likelihood is not None
    assert 1 < evidence.likelihood.ratio <= 20
    assert "drive-0" in evidence.likelihood.about
    assert set(evidence.likelihood.organisms_left_out) == {"o0", "o1", "o2"}
    alone = weigh_suspect(make_scores(means), make_teachers(19, 1), make_protocol())
    assert alone.likelihood is None
    assert "two families" in alone.missing["likelihood"]
