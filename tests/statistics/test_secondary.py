"""Error rates of the numbers that stand beside the p-value, in studies of known truth."""

import numpy as np
import pytest

from doublebind.stages.evidence import conformal, likelihood
from doublebind.stages.evidence import endpoint_effects as endpoints
from doublebind.stages.evidence import secondary_tests as secondary
from doublebind.stages.evidence.score import standardise

ALPHA = 0.05


def bound(rate: float, draws: int) -> float:
    return rate + 3 * np.sqrt(rate * (1 - rate) / draws)


@pytest.mark.parametrize("rho", [0.0, 0.7])
@pytest.mark.parametrize("planted", [0, 2])
def test_step_down_accuses_an_innocent_endpoint_at_most_alpha(planted: int, rho: float) -> None:
    rng, studies, n = np.random.default_rng([planted, 1]), 4000, 39
    shape = (studies, n + 1, 5)
    means = np.sqrt(rho) * rng.normal(size=(*shape[:2], 1)) + np.sqrt(1 - rho) * rng.normal(
        size=shape
    )
    means[:, 0, :planted] += 4
    allowed = conformal.n_allowed(n, ALPHA)
    carried = np.array([endpoints.step_down_counts(standardise(m, 1e-6)) <= allowed for m in means])
    assert carried[:, planted:].any(axis=1).mean() <= bound(ALPHA, studies)
    if planted:
        assert carried[:, :planted].mean() > 0.75


def families_of(sizes: np.ndarray) -> list[str]:
    return list(np.repeat(np.arange(len(sizes)).astype(str), sizes))


def test_families_break_the_teacher_level_p_and_not_the_family_level_one() -> None:
    """Families of unequal size and a suspect from one more: teachers are not exchangeable.

    Large families are alike and calm, small ones differ widely, and the suspect is as likely to be
    of either kind: rare kinds are over-represented among suspects.
    """
    rng, studies = np.random.default_rng(2), 6000
    by_teacher, by_family = [], []
    for _ in range(studies):
        order = rng.permutation(41)  # 6 calm families and 35 wild ones; one of them has the suspect
        calm = order < 6
        level = np.where(calm, 0.0, np.abs(rng.normal(size=41)) * 3)
        own = level[0] + rng.normal()
        member_of = np.where(calm[1:], 20, 1)
        names = families_of(member_of)
        others = np.repeat(level[1:], member_of) + rng.normal(size=int(member_of.sum()))
        n = len(others)
        k = int(conformal.n_at_or_above(own, others))
        by_teacher.append(k <= conformal.n_allowed(n, ALPHA))
        by_family.append(secondary.family_p_value(own, others, names) <= ALPHA)
    assert np.mean(by_teacher) > 0.1
    assert np.mean(by_family) <= bound(ALPHA, studies)


@pytest.mark.parametrize(
    ("shift", "published"), [(0.0, 0.05), (2.0, 0.40), (3.0, 0.65), (4.0, 0.85)]
)
def test_predictive_t_has_its_level_and_power_where_scores_are_normal(
    shift: float, published: float
) -> None:
    """Four references, where ranks can show nothing; background.md, D2."""
    rng, studies = np.random.default_rng(4), 8000
    scores = rng.normal(size=(studies, 5))
    scores[:, 0] += shift
    p = [secondary.predictive_t_p_value(s[0], s[1:]) for s in scores]
    assert np.mean([value is not None and value <= ALPHA for value in p]) == pytest.approx(
        published, abs=0.02
    )


def test_predictive_t_exceeds_its_level_where_scores_have_heavy_tails() -> None:
    """Why it is secondary: the level is the assumption's, not the method's."""
    rng, studies = np.random.default_rng(5), 8000
    scores = np.exp(1.5 * rng.normal(size=(studies, 20)))
    p = np.array([secondary.predictive_t_p_value(s[0], s[1:]) for s in scores], dtype=float)
    k = conformal.n_at_or_above(scores[:, 0], scores[:, 1:])
    level = 0.01
    assert np.mean(p <= level) > 2 * level
    assert np.mean(k <= conformal.n_allowed(19, ALPHA)) <= bound(ALPHA, studies)


def test_likelihood_ratio_rarely_speaks_against_the_benign_and_mostly_for_the_planted() -> None:
    """Organism families differ; the suspect is of one more, or benign."""
    rng, n, each, kinds = np.random.default_rng(6), 39, 2, 4
    names = list(np.repeat(np.arange(kinds).astype(str), each))
    benign, planted = [], []
    for _ in range(150):
        references = rng.normal(size=n)
        level = rng.normal(3, 1, size=kinds + 1)
        organisms = np.repeat(level[1:], each) + rng.normal(size=kinds * each)
        for own, ratios in ((rng.normal(), benign), (level[0] + rng.normal(), planted)):
            found = likelihood.build_likelihood(own, references, organisms, names)
            assert found is not None
            assert 1 / (n + 1) <= found.ratio * (1 + 1e-9)
            assert found.ratio <= (n + 1) * (1 + 1e-9)
            ratios.append(found.ratio)
    # A true likelihood ratio averages 1 under the null, and exceeds 10 in at most a tenth of it.
    assert np.mean(benign) <= 1 + 3 * np.std(benign) / np.sqrt(len(benign))
    assert np.mean(np.array(benign) >= 10) <= bound(0.1, len(benign))
    assert np.median(planted) > 5
