"""The library's power against a table made by `power_table.py`, which shares no code with it."""

import json
from pathlib import Path

import numpy as np
import pytest

from doublebind.stages.evidence import conformal
from doublebind.stages.evidence.score import teacher_scores

TABLE = json.loads(Path(__file__).with_name("power_table.json").read_text(encoding="utf-8"))
STUDIES = 20_000


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_power_is_within_two_points_of_the_independent_table(row: list[float]) -> None:
    n, endpoints, rho, shift, moved, items, expected = row
    n, endpoints, moved, items = int(n), int(endpoints), int(moved), int(items)
    studies = STUDIES if n * endpoints < 200 else STUDIES // 2
    rng = np.random.default_rng([n, endpoints, items])
    shape = (studies, n + 1, endpoints)
    z = np.sqrt(rho) * rng.normal(size=(*shape[:2], 1)) + np.sqrt(1 - rho) * rng.normal(size=shape)
    rates = 0.2 + 0.03 * z
    rates[:, 0, :moved] += shift
    rates = np.clip(rates, 0, 1)
    scores = teacher_scores(rng.binomial(items, rates) / items if items else rates, 0.01)
    k = conformal.n_at_or_above(scores[:, 0], scores[:, 1:])
    assert np.mean(k <= conformal.n_allowed(n, 0.05)) == pytest.approx(expected, abs=0.02)
