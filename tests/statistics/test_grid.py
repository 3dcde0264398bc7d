"""The whole rule over the grid of studies that people run, benign teachers only.

Panels of 19 to 99, teachers that differ by 0 to 5 points, families, 1 to 12 recipes, 1 to 6
endpoints, correlation, ties, floors, judges that fail at random. In every setting: flag rate at
most alpha, e-value at most 1 on average, both within three Monte Carlo standard errors.
"""

from typing import NamedTuple

import numpy as np
import pytest

from doublebind.stages.evidence import conformal, evalue
from doublebind.stages.evidence.score import teacher_scores

ALPHA, FLOOR = 0.05, 0.01


class Setting(NamedTuple):
    """One kind of study; all teachers of it are exchangeable."""

    spread: float = 0.03
    recipes: int = 1
    endpoints: int = 3
    rho: float = 0.0
    families: int = 0
    items: int = 40
    base: float = 0.2
    failing: float = 0.0


SETTINGS = {
    "no-spread": Setting(spread=0.0),
    "one-point": Setting(spread=0.01, recipes=2),
    "two-points": Setting(spread=0.02, endpoints=1),
    "five-points": Setting(spread=0.05, endpoints=6),
    "correlated": Setting(endpoints=6, rho=0.8),
    "three-recipes": Setting(recipes=3, rho=0.5),
    "twelve-recipes": Setting(recipes=12, endpoints=2),
    "four-families": Setting(families=4, rho=0.3),
    "many-families": Setting(families=10, recipes=2),
    "ties": Setting(items=4, base=0.3),
    "floor": Setting(spread=0.005, items=10, base=0.005),
    "failing-judges": Setting(failing=0.5, endpoints=2),
    "all-at-once": Setting(0.05, 6, 6, 0.5, 5, 12, 0.1, 0.3),
}


def simulate(rng: np.random.Generator, studies: int, n: int, setting: Setting) -> np.ndarray:
    """Endpoint means, (studies, n + 1, recipes, endpoints); index 0 is the suspect."""
    shape = (studies, n + 1, setting.recipes, setting.endpoints)
    common = rng.normal(size=(*shape[:2], 1, 1))
    if setting.families:  # the suspect is of a random family too: a member like any other
        kinds = rng.normal(size=(studies, setting.families))
        member = rng.integers(setting.families, size=shape[:2])
        common = common + 2 * np.take_along_axis(kinds, member, axis=1)[..., None, None]
    own = rng.normal(size=shape)
    rates = setting.base + setting.spread * (
        np.sqrt(setting.rho) * common + np.sqrt(1 - setting.rho) * own
    )
    kept = np.full(shape, setting.items)
    if setting.failing:  # each teacher loses a share of its own, as to a judge that fails at random
        share = setting.failing * rng.uniform(size=(*shape[:2], 1, 1))
        kept = np.maximum(1, rng.binomial(setting.items, np.broadcast_to(1 - share, shape)))
    return rng.binomial(kept, np.clip(rates, 0, 1)) / kept


def flags_and_e(rng: np.random.Generator, studies: int, n: int, name: str) -> tuple[float, ...]:
    """Flag rate, mean e-value, its s.e.; by recipe scored alone and averaged, as the evidence."""
    flags: list[np.ndarray] = []
    e: list[float] = []
    for _ in range(0, studies, 500):
        means = simulate(rng, 500, n, SETTINGS[name])
        scores = teacher_scores(means.mean(axis=2), FLOOR)
        k = conformal.n_at_or_above(scores[:, 0], scores[:, 1:])
        flags.append(k <= conformal.n_allowed(n, ALPHA))
        alone = teacher_scores(np.moveaxis(means, 2, 1), FLOOR)
        e += [
            float(np.mean([evalue.soft_rank_e_value(s[0], s[1:]) for s in study]))
            for study in alone
        ]
    return float(np.mean(flags)), float(np.mean(e)), float(np.std(e) / np.sqrt(len(e)))


def check(name: str, n: int, studies: int) -> None:
    rate, e, error = flags_and_e(np.random.default_rng([n, studies]), studies, n, name)
    assert rate <= ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / studies)
    assert e <= 1 + 3 * error


@pytest.mark.parametrize("name", SETTINGS)
def test_rule_and_e_value_hold_in_every_kind_of_study(name: str) -> None:
    check(name, 19, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("n", [19, 39, 59, 99])
@pytest.mark.parametrize("name", SETTINGS)
def test_they_hold_in_10_000_studies_of_every_kind_and_size(name: str, n: int) -> None:
    check(name, n, 10_000)
