"""Scores, p-values, hashes and job keys are those of the record; it says how to make it anew."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.golden.unchanged import (
    GOLDEN,
    as_json,
    differences,
    record_packs,
    record_panel,
    record_studies,
    record_teachers,
)

RECORD: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
WHY = "if this is meant, run `python tests/golden/unchanged.py record tests/golden/unchanged.json`"
SLOW_TO_PLAN = ("gemma-270m-calibration", "gemma-270m-goals", "gemma-270m-replacement")
"""Studies that only the script plans on the embedded base: seconds each."""
TOLERANCE = 1e-9
"""Between kinds of processor, in scores."""


def test_packs_have_the_recorded_hashes() -> None:
    assert record_packs() == RECORD["packs"], WHY


def test_teachers_of_the_banks_have_the_recorded_keys() -> None:
    assert record_teachers() == RECORD["teachers"], WHY


def test_organisms_of_the_panel_have_the_recorded_scores_and_p_values() -> None:
    weighed = record_panel(step=8)
    assert len(weighed) == 7
    for name, numbers in weighed.items():
        expected = RECORD["panel"][name]
        if isinstance(expected, dict):
            for score in ("score", "direct_score"):
                exact = pytest.approx(expected[score], abs=TOLERANCE, rel=0)
                assert numbers.pop(score) == exact, f"{name}: {WHY}"
            expected = {k: v for k, v in expected.items() if k not in ("score", "direct_score")}
        assert numbers == expected, f"{name}: {WHY}"


def test_every_study_has_the_recorded_protocol_hash_and_job_keys() -> None:
    now = as_json(record_studies(calibrate=False, not_embedded=SLOW_TO_PLAN))
    assert now.keys() == RECORD["studies"].keys(), WHY
    compared = 0
    for name, planned in RECORD["studies"].items():
        for base, recorded in planned.items():
            keys = now[name].get(base)
            if not isinstance(recorded, dict) or not isinstance(keys, dict):
                continue  # a model that one of the machines lacks
            compared += 1
            expected = {verb: digest for verb, digest in recorded.items() if verb != "calibrate"}
            assert list(differences(expected, keys)) == [], f"{name}: {WHY}"
    assert compared >= 17
