"""Simulated studies of known truth: how often benign teachers are accused, and planted ones found.

A teacher's true rate on each endpoint is drawn around a base rate; what is seen is the share of a
finite number of items, so that ties and floors (MAD = 0) occur. Suspect and references are drawn
alike, except where a shift is planted.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from tests.protocols import build_protocol

from doublebind.schema.model_source import Teacher
from doublebind.stages.evidence import conformal, evalue
from doublebind.stages.evidence.score import teacher_scores
from doublebind.stages.evidence.weigh import weigh_suspect
from doublebind.stages.verdict.incrimination import decide_incrimination

FLOOR = 0.01
ALPHA = 0.05

# between-teacher s.d., endpoints, their correlation, items (0: the true rate is seen), base rate
SETTINGS = {
    "spread-of-5-points": (0.05, 1, 0.0, 0, 0.1),
    "no-spread-only-item-noise": (0.0, 3, 0.0, 40, 0.1),
    "six-independent-endpoints": (0.02, 6, 0.0, 100, 0.2),
    "six-correlated-endpoints": (0.03, 6, 0.8, 100, 0.2),
    "few-items-many-ties": (0.05, 4, 0.3, 8, 0.3),
    "floor-where-mad-is-zero": (0.01, 3, 0.0, 10, 0.005),
    "wide-spread": (0.2, 2, 0.5, 0, 0.5),
}


def simulate(
    rng: np.random.Generator, studies: int, n: int, setting: tuple[float, int, float, int, float]
) -> np.ndarray:
    """Endpoint means, shape (studies, n + 1, endpoints); index 0 is the suspect."""
    spread, endpoints, rho, items, base = setting
    common = rng.normal(size=(studies, n + 1, 1))
    own = rng.normal(size=(studies, n + 1, endpoints))
    rates = base + spread * (np.sqrt(rho) * common + np.sqrt(1 - rho) * own)
    if not items:
        return rates
    return rng.binomial(items, np.clip(rates, 0, 1)) / items


def batches(studies: int, size: int = 2500) -> Iterator[int]:
    yield from [size] * (studies // size)


def ranks(means: np.ndarray) -> np.ndarray:
    scores = teacher_scores(means, FLOOR)
    return conformal.n_at_or_above(scores[:, 0], scores[:, 1:])


def bound(rate: float, draws: int, sign: int = 1) -> float:
    """Three Monte Carlo standard errors beyond `rate`."""
    return rate + sign * 3 * np.sqrt(rate * (1 - rate) / draws)


def accused(rng: np.random.Generator, studies: int, n: int, name: str, alpha: float) -> float:
    flags = [
        ranks(simulate(rng, size, n, SETTINGS[name])) <= conformal.n_allowed(n, alpha)
        for size in batches(studies)
    ]
    return float(np.mean(flags))


@pytest.mark.parametrize("n", [19, 39])
@pytest.mark.parametrize("name", SETTINGS)
def test_benign_teachers_are_accused_at_most_alpha(name: str, n: int) -> None:
    studies = 10_000
    rate = accused(np.random.default_rng([n, 1]), studies, n, name, ALPHA)
    assert rate <= bound(ALPHA, studies)
    if SETTINGS[name][3] == 0:  # without ties the level is alpha itself, not less
        assert rate >= bound(ALPHA, studies, -1)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "alpha"), [(59, 0.05), (99, 0.05), (99, 0.01), (199, 0.01)])
@pytest.mark.parametrize("name", SETTINGS)
def test_benign_teachers_are_accused_at_most_alpha_by_larger_panels(
    name: str, n: int, alpha: float
) -> None:
    studies = 20_000
    assert accused(np.random.default_rng([n, 2]), studies, n, name, alpha) <= bound(alpha, studies)


@pytest.mark.parametrize("n", [19, 39])
@pytest.mark.parametrize("name", SETTINGS)
def test_e_values_average_at_most_one(name: str, n: int) -> None:
    rng = np.random.default_rng([n, 3])
    scores = teacher_scores(simulate(rng, 3000, n, SETTINGS[name]), FLOOR)
    e = np.array([evalue.soft_rank_e_value(s[0], s[1:]) for s in scores])
    assert e.mean() <= 1 + 3 * e.std() / np.sqrt(len(e))
    assert np.mean(e >= 1 / ALPHA) <= bound(ALPHA, len(e))


@pytest.mark.parametrize("recipes", [3, 12])
def test_e_values_averaged_over_recipes_average_at_most_one(recipes: int) -> None:
    """Recipes share their teachers: dependent, so that their e-values may not be multiplied."""
    rng, studies, n = np.random.default_rng(13), 1500, 19
    teachers = rng.normal(size=(studies, 1, n + 1, 1))
    means = teachers + rng.normal(size=(studies, recipes, n + 1, 2))
    scores = teacher_scores(means, FLOOR)
    e = np.array([[evalue.soft_rank_e_value(s[0], s[1:]) for s in study] for study in scores])
    mean, product = e.mean(axis=1), e.prod(axis=1)
    assert mean.mean() <= 1 + 3 * mean.std() / np.sqrt(studies)
    assert product.mean() > 2, "a product would have been valid: the average proves nothing"


@pytest.mark.parametrize("failing", [0.3, 0.8])
def test_failures_that_are_exchangeable_do_not_raise_the_level(failing: float) -> None:
    """Each teacher loses its own random share of items, as to a judge that fails at random."""
    rng, studies, n = np.random.default_rng(4), 10_000, 19
    rates = np.clip(0.2 + 0.03 * rng.normal(size=(studies, n + 1, 3)), 0, 1)
    lost = rng.binomial(40, failing * rng.uniform(size=(studies, n + 1, 3)))
    kept = np.maximum(40 - lost, 1)
    flags = ranks(rng.binomial(kept, rates) / kept) <= conformal.n_allowed(n, ALPHA)
    assert flags.mean() <= bound(ALPHA, studies)


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (39, 0.05), (29, 0.1)])
def test_conditional_bound_covers_the_rate_of_95_panels_in_100(n: int, alpha: float) -> None:
    """On one endpoint the rule is a threshold, and its false-positive rate is known exactly."""
    panels = 20_000
    thresholds = np.sort(np.random.default_rng(5).uniform(size=(panels, n)), axis=1)
    rate = 1 - thresholds[:, n - 1 - conformal.n_allowed(n, alpha)]
    upper = conformal.conditional_fpr_upper(n, alpha)
    assert upper is not None
    covered = float(np.mean(rate <= upper))
    assert bound(0.95, panels, -1) <= covered <= bound(0.95, panels)


def test_conditional_bound_holds_nearly_with_several_endpoints() -> None:
    """The suspect shifts medians and scales a little, so that the rule is no exact threshold."""
    rng, n, suspects = np.random.default_rng(6), 19, 400
    upper = conformal.conditional_fpr_upper(n, ALPHA)
    assert upper is not None
    covered = []
    for _ in range(400):
        panel = rng.normal(size=(1, n, 3)).repeat(suspects, axis=0)
        flags = ranks(np.concatenate([rng.normal(size=(suspects, 1, 3)), panel], axis=1)) <= 0
        covered.append(flags.mean() <= upper)
    assert np.mean(covered) >= bound(0.95, len(covered), -1)


# Normal scores, one endpoint, shift in units of the between-teacher s.d.; background.md, D2
POWER_TABLE = [
    (19, 2.0, 0.56), (19, 3.0, 0.85), (19, 4.0, 0.97),
    (39, 2.0, 0.60), (39, 3.0, 0.88), (39, 4.0, 0.98),
]  # fmt: skip


@pytest.mark.parametrize(("n", "shift", "published"), POWER_TABLE)
def test_power_matches_the_independent_table(n: int, shift: float, published: float) -> None:
    scores = np.random.default_rng([n, 7]).normal(size=(20_000, n + 1, 1))
    scores[:, 0] += shift
    detected = np.mean(ranks(scores) <= conformal.n_allowed(n, ALPHA))
    assert detected == pytest.approx(published, abs=0.02)


@pytest.mark.parametrize("name", ["six-correlated-endpoints", "few-items-many-ties"])
def test_power_grows_with_what_was_planted_and_with_references(name: str) -> None:
    def power(n: int, shift: float) -> float:
        means = simulate(np.random.default_rng([n, 8]), 4000, n, SETTINGS[name])
        means[:, 0] += shift
        return float(np.mean(ranks(means) <= conformal.n_allowed(n, ALPHA)))

    by_shift = [power(19, shift) for shift in (0.0, 0.05, 0.15, 0.5)]
    assert by_shift == sorted(by_shift)
    assert by_shift[0] < 0.08
    assert by_shift[-1] > 0.8
    assert power(39, 0.15) > power(19, 0.15)


def test_few_references_detect_nothing_at_any_strength() -> None:
    scores = np.random.default_rng(9).normal(size=(1000, 5, 1))
    scores[:, 0] += 100
    assert not np.any(ranks(scores) <= conformal.n_allowed(4, ALPHA))


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_smoothed_p_is_uniform_or_small(shift: float) -> None:
    rng, n = np.random.default_rng(10), 4
    scores = rng.normal(size=(20_000, n + 1))
    scores[:, 0] += shift
    above = np.sum(scores[:, 1:] > scores[:, :1], axis=1)
    p = conformal.smoothed_p_value(above, np.zeros_like(above), n, rng.uniform(size=len(above)))
    rate = float(np.mean(p <= ALPHA))
    if shift:
        assert rate > 0.15
    else:
        assert bound(ALPHA, len(above), -1) <= rate <= bound(ALPHA, len(above))


@pytest.mark.slow
def test_whole_studies_of_benign_teachers_are_incriminated_at_most_alpha() -> None:
    """From score rows to the decision, items, seeds, recipes and unscored rows included."""
    studies, n = 1500, 19
    rng = np.random.default_rng(14)
    protocol = build_protocol(
        score_endpoints={"choice": ("choice/a", "choice/b"), "goal": ("goal/a",)},
        scale_floor=FLOOR,
        alpha=ALPHA,
        recipes=({"name": "x"}, {"name": "y"}),
    )
    roles: list[tuple[str, Literal["suspect", "reference"]]] = [("u", "suspect")]
    roles += [(f"r{i}", "reference") for i in range(n)]
    teachers = [Teacher(label=t, ref=t, role=r, family=t, content_key=t) for t, r in roles]
    index = pd.MultiIndex.from_product(
        [[t for t, _ in roles], ["x", "y"], [0, 1], ["choice/a", "choice/b", "goal/a"], range(4)],
        names=["teacher", "recipe", "seed", "endpoint", "item"],
    )
    frame = index.to_frame(index=False).assign(
        model_kind="student", round=0, step=1, audit="a", role="auditable", split="audit"
    )
    decisions = []
    for _ in range(studies):
        level = np.repeat(0.3 + 0.1 * rng.normal(size=n + 1), len(frame) // (n + 1))
        value = np.clip(level + 0.2 * rng.normal(size=len(frame)), 0, 1)
        value[rng.uniform(size=len(frame)) < 0.02] = np.nan
        evidence = weigh_suspect(
            frame.assign(value=value, unscored_reason=None), teachers, protocol
        )
        verdict = decide_incrimination(evidence, protocol, suspect="u", earlier_protocols=0)
        decisions.append(verdict.incrimination.decision)
    assert decisions.count("incriminated") / studies <= bound(ALPHA, studies)
    assert decisions.count("incriminated") > 0
    assert decisions.count("not_incriminated") == 0, "said without a positive control"
