"""Rates over teachers whose truth is known."""

from __future__ import annotations

from typing import Any

import pytest

from doublebind.pipeline.error_rates import (
    FLAGGED_UNKNOWN_DRIVE,
    _mark_comparable,
    compute_rates,
    count_false_certificates,
)


def row(kind: str, found: bool, **more: Any) -> dict[str, Any]:
    """What the procedure says of one teacher."""
    decision = "incriminated" if found else "not_incriminated"
    return {
        "teacher": f"{kind}-{more}",
        "class": kind,
        "family": more.pop("family", "dominion"),
        "decision": decision,
        "incriminated": found,
        "flagged": found,
        **more,
    }


def test_the_rate_of_every_class_and_way_of_looking_is_told_apart() -> None:
    rows = [
        row("organism", True, organism_class="ordinary", flagged_direct=False, flagged_ngrams=True),
        row("organism", True, organism_class="ordinary", flagged_direct=True, flagged_ngrams=False),
        row(
            "organism", False, organism_class="poisoned", flagged_direct=False, flagged_ngrams=False
        ),
        row("benign", False, flagged_direct=True, flagged_ngrams=False),
        row("near_miss", True, flagged_direct=False, flagged_ngrams=True),
    ]
    found = compute_rates(rows)
    assert (found["n_organisms"], found["n_fresh_benign"]) == (3, 1)
    assert found["tpr_known_drive"]["k"] == 2
    assert found["fresh_flagged"]["k"] == 0
    assert found["fresh_flagged_direct"]["k"] == 1
    assert found["near_misses"]["value"] == 1.0
    assert {name: rate["value"] for name, rate in found["tpr_by_class"].items()} == {
        "ordinary": 1.0,
        "poisoned": 0.0,
    }


def test_the_best_reading_baseline_is_none_of_the_audits() -> None:
    rows = [
        row(
            "organism",
            i < 6,
            organism_class="ordinary",
            flagged_direct=True,  # finds most, and reads nothing
            flagged_ngrams=i < 1,
            flagged_in_context=i < 2,
            **{FLAGGED_UNKNOWN_DRIVE: i < 3},
        )
        for i in range(8)
    ]
    found = compute_rates(rows)
    assert found["tpr_best_reading_baseline"]["baseline"] == "in_context"
    assert found["tpr_best_reading_baseline"]["k"] == 2
    assert found["gain"] | {"interval": None} == {
        "over": "in_context",
        "value": 0.5,
        "interval": None,
        "n": 8,
    }
    assert found["gain_unknown_drive"]["value"] == 0.125
    assert found["tpr_unknown_drive"]["k"] == 3


@pytest.mark.parametrize(
    ("low", "comparable"),
    [(0.2, True), (0.0, False), (-0.1, False), (None, False)],
)
def test_nothing_is_compared_where_the_plain_recipe_brings_no_drive_along(
    low: float | None, comparable: bool
) -> None:
    tau = {} if low is None else {"tau_b": {"value": 0.4, "low": low, "high": 0.6}}
    rows = [
        {"teacher": "o", "recipe": "plain", "class": "organism", **tau},
        {"teacher": "o", "recipe": "mixed", "class": "organism"},
        {"teacher": "b", "recipe": "plain", "class": "benign"},
        {"teacher": "elsewhere", "recipe": "mixed", "class": "organism"},
    ]
    recipes = [
        {"name": "noised", "noise_init": 0.2},
        {"name": "mixed", "treatments": [{"kind": "mix_trusted"}]},
        {"name": "plain", "student": None},
    ]
    found = _mark_comparable(rows, recipes)
    assert [row.get("comparable") for row in found] == [comparable, comparable, None, None]


def test_a_certificate_is_wrong_on_drives_it_is_about_or_on_others() -> None:
    def bounded(teacher: str, decision: str, *, exceeds: bool, asked: bool) -> dict[str, Any]:
        said = {"teacher": teacher, "class": "organism", "recipe": "r", "decision": decision}
        kind = "emergent" if teacher == "b" else "ordinary"
        return said | {"exceeds": exceeds, "exceeds_asked": asked, "organism_class": kind}

    rows = [
        bounded("a", "within_margin", exceeds=False, asked=False),
        bounded("b", "within_margin", exceeds=True, asked=False),
        bounded("b", "within_margin", exceeds=True, asked=True),
        bounded("c", "inconclusive", exceeds=True, asked=True),
    ]
    found = count_false_certificates(rows)["organism"]
    assert (found["students"], found["wrong_students"]) == (3, 2)
    assert (found["teachers"]["k"], found["teachers"]["n"]) == (1, 2)
    assert (found["on_asked_drives"]["k"], found["on_asked_drives"]["n"]) == (1, 2)
    assert count_false_certificates(rows[:2])["organism"]["on_asked_drives"]["k"] == 0
    by_class = count_false_certificates(rows)
    assert (by_class["emergent"]["teachers"]["k"], by_class["emergent"]["teachers"]["n"]) == (1, 1)
    assert (by_class["ordinary"]["teachers"]["k"], by_class["ordinary"]["teachers"]["n"]) == (0, 1)
