"""What holds of any pool of teachers, whatever their scores, ties included."""

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.protocols import build_protocol

from doublebind.schema.evidence import Evidence
from doublebind.schema.protocol import Protocol
from doublebind.schema.verdict import Verdict
from doublebind.stages.evidence import conformal, evalue, sensitivity
from doublebind.stages.evidence import detection as power
from doublebind.stages.evidence.score import teacher_scores
from doublebind.stages.verdict.incrimination import decide_incrimination
from doublebind.stages.verdict.matching import match_shape
from doublebind.stages.verdict.outcome import verdict_to_json

# A busy machine is no failure.
settings.register_profile("evidence", deadline=None)
settings.load_profile("evidence")

FLOOR = 0.01
ALPHAS = st.sampled_from([0.01, 0.025, 0.05, 0.07, 0.1, 0.25, 0.4])

# Few distinct values: ties and MAD = 0 are the rule here, not the exception.
COARSE = st.integers(0, 5).map(lambda i: i / 5)
FINE = st.floats(0, 1).map(lambda x: round(x, 12))


@st.composite
def pools(draw: st.DrawFn, max_endpoints: int = 4) -> np.ndarray:
    """Endpoint means of a pool, shape (teachers, endpoints); the first is the suspect."""
    shape = (draw(st.integers(2, 25)), draw(st.integers(1, max_endpoints)))
    return draw(arrays(np.float64, shape, elements=draw(st.sampled_from([COARSE, FINE]))))


def rank(pool: np.ndarray, suspect: int = 0) -> int:
    scores = teacher_scores(pool, FLOOR)
    return int(conformal.n_at_or_above(scores[suspect], np.delete(scores, suspect)))


@given(pools(), st.randoms(use_true_random=False))
def test_relabelling_references_changes_nothing(pool: np.ndarray, random: Any) -> None:
    order = list(range(1, len(pool)))
    random.shuffle(order)
    other = pool[[0, *order]]
    assert rank(other) == rank(pool)
    scores, permuted = teacher_scores(pool, FLOOR), teacher_scores(other, FLOOR)
    assert evalue.soft_rank_e_value(permuted[0], permuted[1:]) == pytest.approx(
        evalue.soft_rank_e_value(scores[0], scores[1:])
    )


@given(pools(max_endpoints=5))
def test_of_any_pool_at_most_one_is_no_match_for_the_others(pool: np.ndarray) -> None:
    """Why an exchangeable suspect is barred in at most 1 in n + 1 studies."""
    shapes = [dict(zip("abcde", map(float, row), strict=False)) for row in pool]
    judged = [match_shape(own, shapes[:i] + shapes[i + 1 :]) for i, own in enumerate(shapes)]
    assert sum(one is not None and one.is_outside for one in judged) <= 1


@given(pools(), ALPHAS)
def test_of_any_pool_at_most_a_share_alpha_would_be_accused(pool: np.ndarray, alpha: float) -> None:
    """Exchangeability in finite form: let every member be the suspect in turn."""
    n = len(pool) - 1
    accused = sum(rank(pool, i) <= conformal.n_allowed(n, alpha) for i in range(n + 1))
    assert accused <= conformal.exact_fraction(alpha) * (n + 1)


@given(pools())
def test_without_ties_every_p_value_occurs_once(pool: np.ndarray) -> None:
    scores = teacher_scores(pool, FLOOR)
    ranks = sorted(rank(pool, i) for i in range(len(pool)))
    if len(set(scores)) == len(pool):
        assert ranks == list(range(len(pool)))
    else:
        assert all(k >= i for i, k in enumerate(ranks))


@given(pools())
def test_e_values_of_a_pool_average_to_one(pool: np.ndarray) -> None:
    scores = teacher_scores(pool, FLOOR)
    values = [evalue.soft_rank_e_value(s, np.delete(scores, i)) for i, s in enumerate(scores)]
    assert np.mean(values) == pytest.approx(1)
    assert all(0 <= e <= len(pool) * (1 + 1e-12) for e in values)


@given(pools(max_endpoints=1), st.floats(0, 1))
def test_on_one_endpoint_a_higher_suspect_never_has_a_higher_p(
    pool: np.ndarray, rise: float
) -> None:
    higher = pool.copy()
    higher[0] += rise
    assert rank(higher) <= rank(pool)


@given(pools(max_endpoints=1))
def test_on_one_endpoint_p_depends_on_ranks_alone(pool: np.ndarray) -> None:
    assert rank(pool) == int(np.sum(pool[1:, 0] >= pool[0, 0]))


@given(pools(), st.floats(-0.5, 0.5), st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_score_ignores_where_an_endpoint_starts_and_its_unit(
    pool: np.ndarray, shift: float, unit: float
) -> None:
    moved = teacher_scores(pool * unit + shift, FLOOR * unit)
    assert moved == pytest.approx(teacher_scores(pool, FLOOR), abs=1e-9, rel=1e-9)


@given(st.integers(1, 300), ALPHAS)
def test_rule_is_the_p_value_compared_exactly(n: int, alpha: float) -> None:
    c = conformal.n_allowed(n, alpha)
    level = Fraction(str(alpha))
    assert all((Fraction(1 + k, n + 1) <= level) == (k <= c) for k in range(n + 1))


@given(st.integers(1, 300), ALPHAS)
def test_more_references_never_widen_the_rule_beyond_alpha(n: int, alpha: float) -> None:
    assert (conformal.n_allowed(n, alpha) >= 0) == (n >= conformal.min_references(alpha))
    bound = conformal.conditional_fpr_upper(n, alpha)
    assert bound is None or (conformal.n_allowed(n, alpha) + 1) / (n + 1) < bound <= 1


@given(st.integers(1, 300), st.data(), ALPHAS)
def test_gamma_falls_with_rank_and_is_one_or_more_exactly_where_p_holds(
    n: int, data: st.DataObject, alpha: float
) -> None:
    k = data.draw(st.integers(0, n))
    gamma = sensitivity.gamma_at_alpha(k, n, alpha)
    assert (gamma >= 1) == (k <= conformal.n_allowed(n, alpha))
    assert k == n or sensitivity.gamma_at_alpha(k + 1, n, alpha) < gamma


@given(st.integers(1, 60), st.data())
def test_detection_bound_is_below_the_rate_and_rises_with_it(
    controls: int, data: st.DataObject
) -> None:
    detected = data.draw(st.integers(0, controls))
    bound = power.detection_lower_bound(detected, controls)
    assert 0 <= bound <= detected / controls
    assert detected == 0 or power.detection_lower_bound(detected - 1, controls) < bound


@given(st.integers(1, 100), st.data(), st.floats(0, 1, exclude_max=True))
def test_smoothed_p_never_exceeds_p(n: int, data: st.DataObject, v: float) -> None:
    above = data.draw(st.integers(0, n))
    equal = data.draw(st.integers(0, n - above))
    smoothed = conformal.smoothed_p_value(above, equal, n, v)
    assert 0 <= smoothed <= conformal.p_value(above + equal, n)


# --- verdicts ------------------------------------------------------------------------------------

SHARES = st.floats(0, 1)
WORDS = st.sampled_from(["greed", "flattery", "norm", "r0 has no value", "stories"])


@st.composite
def protocols(draw: st.DrawFn) -> Protocol:
    traits = draw(st.lists(WORDS, min_size=1, max_size=3, unique=True))
    return build_protocol(
        score_endpoints={f"e{i}": (f"choice/{trait}",) for i, trait in enumerate(traits)},
        scale_floor=FLOOR,
        alpha=draw(ALPHAS),
        min_controls=draw(st.integers(1, 8)),
        recipes=({"name": "stories"},),
        seeds=1,
    )


@st.composite
def weighed(draw: st.DrawFn, protocol: Protocol) -> Evidence:
    """Evidence as `weigh` makes it: numbers that agree, some absent with a reason."""
    n = draw(st.integers(1, 60))
    k = draw(st.none() | st.integers(0, n))
    labels = [f"r{i}" for i in range(n)]
    controls = draw(st.none() | st.integers(1, 12))
    missing: dict[str, str] = {}
    if k is None:
        names = ("p_value", "e_value", "gamma_at_alpha")
        missing |= {f"incrimination.{name}": draw(WORDS) for name in names}
    bound = conformal.conditional_fpr_upper(n, protocol.alpha)
    if bound is None:
        missing["incrimination.conditional_fpr_upper_95"] = draw(WORDS)
    fields: dict[str, Any] = {}
    if controls is None or k is None:
        missing["incrimination.power"] = draw(WORDS)
    else:
        detected = draw(st.integers(0, controls))
        fields["power"] = {
            "value": detected / controls,
            "effect": draw(WORDS),
            "n_controls": controls,
            "lower_95": power.detection_lower_bound(detected, controls),
        }
    if k is not None:
        fields |= {
            "p_value": conformal.p_value(k, n),
            "e_value": draw(st.floats(0, n + 1)),
            "gamma_at_alpha": sensitivity.gamma_at_alpha(k, n, protocol.alpha),
        }
    return Evidence.model_validate(
        {
            "scores": {},
            "direct_scores": {},
            "endpoints": {},
            "n_references": n,
            "n_families": draw(st.integers(1, n)),
            "n_at_or_above": k,
            "n_allowed": conformal.n_allowed(n, protocol.alpha),
            "n_needed": conformal.min_references(protocol.alpha),
            "n_needed_standard": conformal.min_references(protocol.alpha / 2),
            "roles": {"u": "suspect"} | dict.fromkeys(labels, "reference"),
            "p_value": None,
            "conditional_fpr_upper_95": bound,
            "direct": {"p_value": draw(st.none() | SHARES)},
            "unscored": draw(st.dictionaries(st.sampled_from(["u", *labels]), SHARES)),
            "traits": draw(st.lists(WORDS, max_size=2, unique=True)),
            "significant_endpoints": draw(st.lists(WORDS, max_size=2, unique=True)),
            "missing": missing,
        }
        | fields
    )


@st.composite
def rulings(draw: st.DrawFn) -> tuple[Protocol, Evidence, Verdict]:
    protocol = draw(protocols())
    evidence = draw(weighed(protocol))
    numbers = st.floats(allow_nan=True, allow_infinity=True)
    features = st.dictionaries(WORDS, numbers, max_size=3)
    shapes = draw(st.none() | st.dictionaries(st.sampled_from(["u", "r0", "r1"]), features))
    verdict = decide_incrimination(
        evidence,
        protocol,
        suspect="u",
        earlier_protocols=draw(st.integers(0, 3)),
        shapes=shapes,
    )
    return protocol, evidence, verdict


CLAIMS = ("benign model", "is safe", "is benign", "aligned with", "is aligned", "innocent", "clear")


@settings(max_examples=200)
@given(rulings())
def test_no_verdict_calls_a_model_benign_or_safe(ruling: tuple[Any, Any, Verdict]) -> None:
    said = json.dumps(verdict_to_json(ruling[2])).lower()
    assert not [claim for claim in CLAIMS if claim in said]


@settings(max_examples=200)
@given(rulings())
def test_decision_follows_the_policy(ruling: tuple[Protocol, Evidence, Verdict]) -> None:
    protocol, evidence, verdict = ruling
    found = verdict.incrimination
    assert found.reasons
    p = evidence.n_at_or_above
    if found.decision == "incriminated":
        assert p is not None
        assert Fraction(1 + p, evidence.n_references + 1) <= Fraction(str(protocol.alpha))
    if found.decision == "not_incriminated":
        assert p is not None
        assert Fraction(1 + p, evidence.n_references + 1) > Fraction(str(protocol.alpha))
        assert evidence.power is not None
        assert evidence.power.n_controls >= protocol.min_controls
        assert evidence.power.lower_95 >= 0.5
    gamma = evidence.gamma_at_alpha
    assert (verdict.strength == "standard") == (gamma is not None and gamma >= 2)


@given(rulings())
def test_verdict_json_round_trips_with_finite_numbers_and_reasons_for_the_rest(
    ruling: tuple[Any, Any, Verdict],
) -> None:
    verdict = ruling[2]
    content = json.loads(json.dumps(verdict_to_json(verdict), allow_nan=False))
    assert Verdict.model_validate(content) == verdict
    numbers = ("p_value", "e_value", "conditional_fpr_upper_95", "gamma_at_alpha", "power")
    for name in numbers:
        absent = name not in content["incrimination"]
        assert absent == (f"incrimination.{name}" in content["missing"])


@given(rulings())
def test_evidence_round_trips_through_json(ruling: tuple[Any, Evidence, Any]) -> None:
    evidence = ruling[1]
    assert Evidence.model_validate_json(evidence.model_dump_json()) == evidence
    assert all(math.isfinite(x) for x in evidence.unscored.values())
