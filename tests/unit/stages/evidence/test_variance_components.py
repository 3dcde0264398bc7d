"""Variance components against mean squares, and the power that is planned from them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from doublebind.stages.evidence import power_analysis as plan_power
from doublebind.stages.evidence.variance_components import VarianceComponents, estimate_components

Make = Callable[..., Any]
TRUE = {"teacher": 4e-3, "seed": 2e-3, "item_teacher": 6e-3, "answer": 1e-2}


def draw(
    rng: np.random.Generator, teachers: int, seeds: int, items: int, families: int = 0
) -> np.ndarray:
    """Answers of known components, shape (teachers, seeds, items); items differ besides."""
    x = 0.5 + 0.2 * rng.normal(size=items)
    x = x + np.sqrt(TRUE["teacher"]) * rng.normal(size=(teachers, 1, 1))
    x = x + np.sqrt(TRUE["seed"]) * rng.normal(size=(teachers, seeds, 1))
    x = x + np.sqrt(TRUE["item_teacher"]) * rng.normal(size=(teachers, 1, items))
    x = x + np.sqrt(TRUE["answer"]) * rng.normal(size=(teachers, seeds, items))
    if families:
        x = x + 0.1 * rng.normal(size=(families, 1, 1))[np.arange(teachers) % families]
    return x


def estimate(x: np.ndarray, families: int = 0) -> VarianceComponents:
    teachers, seeds, items = x.shape
    labels = [f"t{t}" for t in range(teachers) for _ in range(seeds)]
    kinds = {f"t{t}": f"f{t % families if families else t}" for t in range(teachers)}
    found = estimate_components(x.reshape(-1, items), labels, kinds)
    assert found is not None
    return found


def mean_squares(x: np.ndarray) -> tuple[float, float, float, float]:
    """(teacher, seed, item by teacher, answer) by mean squares, at least two of each.

    Method of moments in a balanced study (Searle, Casella & McCulloch 1992, ch. 4); equals REML
    where all are >= 0.
    """
    t, s, i = x.shape
    by_student, by_item = x.mean(axis=2), x.mean(axis=1)
    by_teacher, of_item = by_student.mean(axis=1), x.mean(axis=(0, 1))
    ms_t = s * i * np.sum((by_teacher - x.mean()) ** 2) / (t - 1)
    ms_s = i * np.sum((by_student - by_teacher[:, None]) ** 2) / (t * (s - 1))
    both = by_item - by_teacher[:, None] - of_item[None, :] + x.mean()
    ms_ti = s * np.sum(both**2) / ((t - 1) * (i - 1))
    left = x - by_student[:, :, None] - by_item[:, None, :] + by_teacher[:, None, None]
    ms_e = np.sum(left**2) / (t * (s - 1) * (i - 1))
    return (ms_t - ms_s - ms_ti + ms_e) / (s * i), (ms_s - ms_e) / i, (ms_ti - ms_e) / s, ms_e


def test_reml_equals_mean_squares_where_the_study_is_balanced() -> None:
    x = draw(np.random.default_rng(50), 15, 3, 30)
    found = estimate(x)
    own = (found.teacher, found.seed, found.item_teacher, found.answer)
    assert own == pytest.approx(mean_squares(x), rel=1e-3)
    assert "family" in found.missing
    assert found.item_main == pytest.approx(0.04, rel=0.6)


def test_components_are_recovered_on_average() -> None:
    rng = np.random.default_rng(51)
    each = [estimate(draw(rng, 24, 2, 20, 6), 6) for _ in range(40)]
    for name, truth in TRUE.items():
        values = np.array([getattr(one, name) for one in each])
        assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(len(values)) + 0.02 * truth
    families = np.array([one.family for one in each])
    assert abs(families.mean() - 0.01) < 4 * families.std() / np.sqrt(40)


def test_unbalanced_students_are_used_and_nothing_falls_below_zero() -> None:
    x = draw(np.random.default_rng(52), 12, 3, 25)
    keep = [0, *range(2, 36)]
    labels = [f"t{t}" for t in range(12) for _ in range(3)]
    kinds = {f"t{t}": f"f{t % 4}" for t in range(12)}
    found = estimate_components(x.reshape(36, 25)[keep], [labels[i] for i in keep], kinds)
    assert found is not None
    assert found.n_students == 35
    parts = (found.family, found.teacher, found.seed, found.item_teacher, found.answer)
    assert min(parts) >= 0
    assert found.answer == pytest.approx(mean_squares(x)[3], rel=0.1)


def test_one_student_a_teacher_leaves_the_seed_in_the_teacher() -> None:
    found = estimate(draw(np.random.default_rng(53), 60, 1, 40))
    assert {"seed", "family", "sample"} == set(found.missing)
    assert found.teacher == pytest.approx(TRUE["teacher"] + TRUE["seed"], rel=0.5)
    assert found.item_teacher == pytest.approx(TRUE["item_teacher"] + TRUE["answer"], rel=0.1)


def test_variance_of_a_teachers_mean_by_hand() -> None:
    found = estimate(draw(np.random.default_rng(54), 10, 2, 10))
    expected = found.teacher + found.seed / 4 + (found.item_teacher + found.answer / 4) / 50
    assert found.teacher_mean_variance(4, 50) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(1, 3, 9), (5, 1, 1)])
def test_too_little_to_estimate_is_none(shape: tuple[int, int, int]) -> None:
    x = draw(np.random.default_rng(55), *shape)
    labels = [f"t{t}" for t in range(shape[0]) for _ in range(shape[1])]
    assert estimate_components(x.reshape(-1, shape[2]), labels, dict.fromkeys(labels, "f")) is None


def test_answers_without_any_spread_have_no_components() -> None:
    found = estimate(np.full((4, 2, 6), 0.25))
    # How a product of matrices rounds is the processor's own: 1e-34 on some.
    assert found.teacher_mean_variance(1, 1) == pytest.approx(0, abs=1e-20)
    assert found.mean == 0.25


# --- planned power -------------------------------------------------------------------------------


def certain(sd: float, endpoints: int, rho: float = 0.0) -> plan_power.Pilot:
    """A pilot in which only teachers differ."""
    one = VarianceComponents(0.0, sd**2, 0.0, 0.0, 0.0, 0.0, 0.5, 20, 20, 20, 10, {})
    correlation = np.full((endpoints, endpoints), rho) + (1 - rho) * np.eye(endpoints)
    return plan_power.Pilot({f"e{i}": one for i in range(endpoints)}, correlation)


def test_power_of_one_normal_endpoint_is_the_known_integral() -> None:
    """Against quadrature: P(suspect above all 19) = integral of phi(x - d) Phi(x)^19."""
    grid = np.linspace(-8, 14, 4001)
    for shift in (2.0, 3.0):
        exact = float(
            integrate.trapezoid(stats.norm.pdf(grid - shift) * stats.norm.cdf(grid) ** 19, grid)
        )
        design = plan_power.Design(19, 19, 1, 1.0)
        rate = plan_power.simulate_power(
            certain(0.02, 1), design, [0.02 * shift], alpha=0.05, floor=1e-6, studies=8000
        )
        assert rate[0] == pytest.approx(exact, abs=0.02)


def test_power_grows_with_effect_references_seeds_and_items() -> None:
    noisy = VarianceComponents(0.0, 1e-4, 4e-4, 0.0, 1e-3, 4e-3, 0.3, 20, 20, 60, 20, {})
    found = plan_power.Pilot({"e": noisy}, np.eye(1))

    def at(*design: Any, effect: float = 0.06) -> float:
        return plan_power.simulate_power(
            found, plan_power.Design(*design), [effect], alpha=0.05, floor=1e-6
        )[0]

    assert at(19, 19, 1, 1.0) < at(19, 19, 5, 1.0)
    assert at(19, 19, 1, 1.0) < at(19, 19, 1, 4.0)
    assert at(19, 19, 1, 1.0) < at(99, 99, 1, 1.0)
    assert at(19, 19, 1, 1.0, effect=0.0) < 0.07
    assert at(9, 9, 1, 1.0, effect=0.9) == 0


def test_table_says_what_the_planned_study_detects() -> None:
    design = plan_power.Design(19, 10, 1, 1.0)
    found = plan_power.tabulate_power(certain(0.01, 2, 0.5), design, alpha=0.05, floor=0.001)
    assert found["planned"]["0.1"] == 1.0
    assert 0.02 <= found["smallest_effect"] <= 0.05
    assert found["flag_rate_at_zero"] < 0.07
    assert len(found["others"]) == 36
    far = plan_power.tabulate_power(
        certain(0.01, 1), plan_power.Design(9, 9, 1, 1.0), alpha=0.05, floor=0.01
    )
    assert far["smallest_effect"] is None


def test_pilot_reads_benign_students_alone(make_scores: Make, make_protocol: Make) -> None:
    frame = make_scores({"u": 0.9, "r0": 0.1, "r1": 0.2, "r2": 0.4, "r3": 0.3}, items=4)
    rng = np.random.default_rng(56)
    frame["value"] = np.clip(frame.value + rng.normal(0, 0.02, len(frame)), 0, 1)
    benign = {f"r{i}": f"f{i % 2}" for i in range(4)}
    found, missing = plan_power.estimate_pilot(frame, benign, make_protocol())
    assert found is not None
    assert missing == {}
    one = found.endpoints["goal"]
    assert (one.n_teachers, one.n_students, one.n_items) == (4, 8, 4)
    assert found.endpoints["choice"].n_items == 8
    assert one.mean == pytest.approx(0.25, abs=0.02)
    assert found.correlation[0, 1] > 0.9


def test_pilot_that_says_nothing_of_an_endpoint_is_refused(
    make_scores: Make, make_protocol: Make
) -> None:
    frame = make_scores({"r0": 0.1, "r1": 0.2})
    lacking = frame[frame.endpoint != "goal/greed"]
    found, missing = plan_power.estimate_pilot(lacking, {"r0": "f", "r1": "g"}, make_protocol())
    assert found is None
    assert set(missing) == {"goal"}
    assert (
        plan_power.estimate_pilot(pd.DataFrame(frame[:0]), {"r0": "f"}, make_protocol())[0] is None
    )
