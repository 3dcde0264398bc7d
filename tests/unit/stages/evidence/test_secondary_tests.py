"""Numbers beside the p-value, each against an independent computation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from doublebind.stages.evidence import detection as power
from doublebind.stages.evidence import endpoint_effects as endpoints
from doublebind.stages.evidence import intervals as summary
from doublebind.stages.evidence import secondary_tests as secondary
from doublebind.stages.evidence.conformal import n_allowed
from doublebind.stages.evidence.score import ScoreRule, TeacherRows, standardise, teacher_scores

# --- step-down max-T -----------------------------------------------------------------------------


def test_first_step_is_the_test_on_the_score() -> None:
    means = np.random.default_rng(0).uniform(size=(20, 4))
    scores = teacher_scores(means, 0.01)
    counts = endpoints.step_down_counts(standardise(means, 0.01))
    assert counts.min() == np.sum(scores[1:] >= scores[0])


def test_single_endpoint_needs_no_adjustment() -> None:
    z = np.array([[1.0], [0.0], [2.0], [1.0]])
    assert list(endpoints.step_down_counts(z)) == [2]


def test_step_down_by_hand() -> None:
    suspect = [3.0, 1.0, 5.0]
    references = [[0.0, 6.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    # endpoint 2 first, all in play: 1 of (6, 4, 0) reaches 5; then endpoint 0: (6, 4, 0) against 3;
    # then endpoint 1 alone: one of (6, 0, 0) reaches 1, but counts never fall.
    assert list(endpoints.step_down_counts(np.array([suspect, *references]))) == [2, 2, 1]


# --- effects -------------------------------------------------------------------------------------


def test_effect_is_taken_from_the_median_reference() -> None:
    references = np.array([[0.1, 0.5], [0.2, 0.5], [0.9, 0.2]])
    shift = endpoints.subtract_reference_median(np.array([0.5, 0.5]), references)
    assert shift == pytest.approx([0.3, 0.0])


def test_drift_that_moves_every_trait_alike_has_no_margin() -> None:
    drift = {"greed": 0.2, "tea": 0.2, "chess": 0.1}
    assert endpoints.specificity_margin(drift, "greed", ["tea", "chess"]) == 0
    assert endpoints.specificity_margin(drift | {"greed": 0.5}, "greed", ["tea"]) == 0.3


@pytest.mark.parametrize("placebos", [[], ["tea", "greed"]])
def test_margin_needs_placebos_beside_the_target(placebos: list[str]) -> None:
    with pytest.raises(ValueError, match="placebo"):
        endpoints.specificity_margin({"greed": 0.2, "tea": 0.1}, "greed", placebos)


# --- families ------------------------------------------------------------------------------------


def test_singleton_families_change_nothing() -> None:
    references = np.array([0.1, 0.5, 0.9, 0.2])
    names = ["a", "b", "c", "d"]
    assert secondary.family_p_value(0.5, references, names) == pytest.approx(3 / 5)
    assert secondary.effective_references(references, names) == 4.0


def test_each_family_weighs_the_same() -> None:
    references = np.array([0.9, 0.9, 0.9, 0.1, 0.9, 0.1])
    names = ["big"] * 4 + ["small", "other"]
    assert secondary.family_p_value(0.5, references, names) == pytest.approx((1 + 0.75 + 1) / 4)


def test_copies_of_one_reference_count_once() -> None:
    references = np.repeat([0.1, 0.4, 0.8], 5)
    names = list(np.repeat(["a", "b", "c"], 5))
    assert secondary.intraclass_correlation(references, names) == pytest.approx(1)
    assert secondary.effective_references(references, names) == pytest.approx(3)


def test_intraclass_correlation_of_unrelated_members_is_near_zero() -> None:
    rng = np.random.default_rng(1)
    names = list(np.repeat([str(i) for i in range(200)], 4))
    rho = secondary.intraclass_correlation(rng.normal(size=800), names)
    assert rho == pytest.approx(0, abs=0.06)


def test_intraclass_correlation_recovers_what_was_planted() -> None:
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 8, size=400)
    shared = np.repeat(rng.normal(size=400), sizes)
    values = np.sqrt(0.6) * shared + np.sqrt(0.4) * rng.normal(size=len(shared))
    rho = secondary.intraclass_correlation(
        values, list(np.repeat(np.arange(400).astype(str), sizes))
    )
    assert rho == pytest.approx(0.6, abs=0.06)


@pytest.mark.parametrize(
    ("values", "names"), [([0.1, 0.2, 0.3], ["a"] * 3), ([0.2] * 4, ["a", "a", "b", "b"])]
)
def test_what_cannot_be_estimated_is_absent(values: list[float], names: list[str]) -> None:
    assert secondary.intraclass_correlation(np.array(values), names) is None
    assert secondary.effective_references(np.array(values), names) is None


# --- predictive t --------------------------------------------------------------------------------


def test_predictive_t_is_the_two_sample_t_with_one_suspect() -> None:
    """Student's equal-variance test degenerates to it when one sample has a single member."""
    references = np.random.default_rng(3).normal(size=9)
    expected = stats.ttest_ind([1.7], references, equal_var=True, alternative="greater").pvalue
    assert secondary.predictive_t_p_value(1.7, references) == pytest.approx(expected)


@pytest.mark.parametrize("references", [[0.3], [0.3, 0.3, 0.3]])
def test_predictive_t_is_absent_without_spread(references: list[float]) -> None:
    assert secondary.predictive_t_p_value(1.0, np.array(references)) is None


# --- smallest detectable shift -------------------------------------------------------------------


def rows_of(means: np.ndarray) -> TeacherRows:
    return TeacherRows(means, np.zeros((len(means), 0)))


def rule(endpoints: int) -> ScoreRule:
    return ScoreRule(tuple((e,) for e in range(endpoints)), floor=0.01, ridge=None)


def test_detectable_shift_flags_four_in_five_and_a_smaller_one_does_not() -> None:
    references = np.random.default_rng(5).uniform(0.1, 0.3, size=(19, 2))
    shift = power.smallest_detectable_shift(rows_of(references), rule(2), n_allowed(19, 0.05))
    assert shift is not None

    def share(by: float) -> float:
        flags = []
        for row in references:
            s = teacher_scores(np.vstack([row + by, references]), 0.01)
            flags.append(np.sum(s[1:] >= s[0]) == 0)
        return float(np.mean(flags))

    assert share(shift) >= 0.8 > share(shift - 1e-4)


def test_detectable_shift_of_alike_references_is_the_resolution() -> None:
    assert power.smallest_detectable_shift(rows_of(np.full((19, 1), 0.2)), rule(1), 0) == 1e-4


def test_detectable_shift_grows_with_the_spread_between_teachers() -> None:
    spread = np.random.default_rng(6).normal(size=(39, 1))
    shifts = [
        power.smallest_detectable_shift(rows_of(0.5 + s * spread), rule(1), 1)
        for s in (0.01, 0.03, 0.1)
    ]
    assert None not in shifts
    assert shifts == sorted(shifts)


def test_no_detectable_shift_where_nothing_is_flagged() -> None:
    assert power.smallest_detectable_shift(rows_of(np.full((4, 1), 0.2)), rule(1), -1) is None
    half = np.repeat([[0.0, 1.0], [1.0, 0.0]], 10, axis=0)
    assert power.smallest_detectable_shift(rows_of(half * 1000), rule(2), 0) is None


# --- summaries for people ------------------------------------------------------------------------


def test_a_rate_over_families_that_agree_is_as_wide_as_one_over_the_families() -> None:
    alike = summary.clustered_rate_interval(
        [True] * 12 + [False] * 12, [f"f{i // 4}" for i in range(24)]
    )
    apart = summary.clustered_rate_interval(
        [True] * 12 + [False] * 12, [f"f{i % 6}" for i in range(24)]
    )
    assert alike["interval"] == apart["interval"]
    widths = [found["clustered"][1] - found["clustered"][0] for found in (alike, apart)]
    assert widths[0] > 1.5 * widths[1]
    # Six clusters that agree within are six teachers, less what the variance of six costs.
    six = summary.rate_interval(3, 6)["interval"]
    assert widths[0] > six[1] - six[0]


def test_an_interval_over_families_covers_where_one_over_teachers_does_not() -> None:
    rng, families = np.random.default_rng(0), [str(i // 5) for i in range(60)]
    missed = {"interval": 0, "clustered": 0}
    for _ in range(400):
        chance = rng.beta(0.6, 1.4, 12)  # mean 0.3, families far apart
        flags = [bool(x) for x in rng.random(60) < np.repeat(chance, 5)]
        found = summary.clustered_rate_interval(flags, families)
        for name in missed:
            low, high = found[name]
            missed[name] += not low <= 0.3 <= high
    assert missed["clustered"] / 400 <= 0.06
    assert missed["interval"] / 400 >= 0.1


def test_one_family_gives_no_interval_over_families() -> None:
    found = summary.clustered_rate_interval([True, False], ["a", "a"])
    assert "clustered" not in found
    assert found["n_clusters"] == 1


def test_rate_interval_is_clopper_pearson() -> None:
    rate = summary.rate_interval(3, 20)
    expected = stats.binomtest(3, 20).proportion_ci(method="exact")
    assert rate["interval"] == pytest.approx([expected.low, expected.high])
    assert summary.rate_interval(20, 20)["interval"][1] == 1.0
    with pytest.raises(ValueError, match="need 0 <= k <= n"):
        summary.rate_interval(3, 2)


def test_endpoint_summary_leaves_absent_what_cannot_be_computed() -> None:
    values = {"a": [0.1, 0.2, 0.6, None], "b": [0.5, None], "c": [None]}
    rows = [
        {"endpoint": name, "role": "auditable", "value": value}
        for name, group in values.items()
        for value in group
    ]
    a, b, c = summary.summarise_endpoints(pd.DataFrame(rows).astype({"value": float}))
    low, high = stats.t.interval(0.95, 2, 0.3, stats.sem([0.1, 0.2, 0.6]))
    assert a["value"] == pytest.approx(0.3)
    assert a["interval"] == pytest.approx([max(0, low), min(1, high)])
    assert (a["n"], a["unscored"]) == (3, 1)
    assert (b["value"], b["interval"]) == (0.5, None)
    assert (c["value"], c["interval"], c["unscored"]) == (None, None, 1)


def test_flags_compares_by_rank() -> None:
    assert summary.reaches_alpha(1 / 20, 19, 0.05)
    assert not summary.reaches_alpha(2 / 20, 19, 0.05)
    assert summary.reaches_alpha(2 / 40, 39, 0.05)
