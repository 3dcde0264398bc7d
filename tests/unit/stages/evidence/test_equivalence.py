"""Upper bounds and certificates, on differences that are known."""

import numpy as np
import pytest

from doublebind.stages.evidence.detection import detection_lower_bound
from doublebind.stages.evidence.equivalence import (
    certify,
    exceeds_m0,
    item_upper_bound,
    recipe_upper_bound,
)

SHA = "ab" * 32


def noise(seeds: int, items: int, mean: float = 0.0, sd: float = 0.05, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(mean, sd, size=(seeds, items)), -1, 1)


def test_bound_is_above_the_mean_and_nears_it_with_items() -> None:
    bounds = [item_upper_bound(noise(1, items, 0.02)[0]) for items in (20, 100, 500, 2500)]
    assert bounds == sorted(bounds, reverse=True)
    assert 0.02 < bounds[-1] < 0.03


def test_bound_moves_with_the_differences() -> None:
    d = noise(1, 200)[0]
    assert item_upper_bound(d) < item_upper_bound(d + 0.1) < item_upper_bound(d + 0.2) <= 1


def test_identical_answers_leave_a_bound_above_zero() -> None:
    """200 items without any difference do not show that there never is one."""
    assert 0 < item_upper_bound(np.zeros(200)) < 0.03
    assert item_upper_bound(np.zeros(1)) > 0.5


def test_lower_confidence_gives_a_lower_bound() -> None:
    d = noise(1, 100)[0]
    assert item_upper_bound(d, 0.5) < item_upper_bound(d, 0.95) < item_upper_bound(d, 0.999)


@pytest.mark.parametrize("bad", [[], [0.1, 1.2], [np.nan, 0.0]])
def test_what_is_no_difference_of_probabilities_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="differences"):
        item_upper_bound(np.array(bad))


def test_recipe_bound_by_hand() -> None:
    d = np.array([[0.0, 0.02], [0.02, 0.04]])  # both variances 1e-4; 1 degree of freedom each
    assert recipe_upper_bound(d) == pytest.approx(0.02 + 6.313752 * np.sqrt(2e-4))
    assert recipe_upper_bound(np.full((3, 4), 0.1)) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(1, 50), (3, 1), (0, 5)])
def test_recipe_bound_needs_two_seeds_and_two_items(shape: tuple[int, int]) -> None:
    assert recipe_upper_bound(np.zeros(shape)) is None


def test_one_student_is_certified_by_its_weights() -> None:
    made = certify({"goal": noise(1, 200), "choice": noise(1, 200, seed=1)}, 0.05, subject=SHA)
    assert made.is_within_margin
    assert (made.speaks_for, made.subject, made.n_items, made.n_seeds) == ("student", SHA, 400, 1)
    assert made.largest_bound == max(made.upper.values())
    assert made.control_lower_95 is None


def test_one_endpoint_beyond_the_margin_refuses_all() -> None:
    parts = {"goal": noise(3, 200), "choice": noise(3, 200, 0.2)}
    made = certify(parts, 0.05, subject="stories")
    assert made.speaks_for == "recipe"
    assert made.upper["goal"] < 0.05 < made.upper["choice"]
    assert not made.is_within_margin


def test_unscored_items_are_left_out_and_an_empty_endpoint_refuses() -> None:
    values = noise(1, 300)
    values[0, 200:] = np.nan
    made = certify({"goal": values}, 0.05, subject=SHA)
    assert made.upper["goal"] == item_upper_bound(values[0, :200])
    for seeds in (1, 2):
        gone = certify(
            {"goal": noise(seeds, 200), "choice": np.full((seeds, 9), np.nan)}, 0.05, subject=SHA
        )
        assert gone.largest_bound is None
        assert not gone.is_within_margin
        assert gone.missing["choice"].startswith("0 items")


def test_controls_are_counted_where_the_audit_sees_them() -> None:
    controls = [{"goal": noise(2, 200, mean, seed=i)} for i, mean in enumerate([0.2, 0.2, 0.0])]
    assert [exceeds_m0(control) for control in controls] == [True, True, False]
    made = certify({"goal": noise(2, 200)}, 0.05, subject="stories", controls=controls)
    assert (made.n_controls_detected, made.n_controls) == (2, 3)
    assert made.control_lower_95 == detection_lower_bound(2, 3)


@pytest.mark.parametrize(
    ("parts", "margin"),
    [
        ({}, 0.05),
        ({"a": np.zeros((1, 9))}, 0.0),
        ({"a": np.zeros((1, 9)), "b": np.zeros((2, 9))}, 0.1),
    ],
)
def test_claims_that_cannot_be_are_refused(parts: dict[str, np.ndarray], margin: float) -> None:
    with pytest.raises(ValueError, match=r"margin|seeds"):
        certify(parts, margin, subject=SHA)
