"""Rates over teachers of known truth."""

from __future__ import annotations

from typing import Any

import pytest

from doublebind.pipeline.error_rates import compute_rates, count_false_certificates, mark_comparable
from doublebind.schema.calibration import CertificateResult, MethodResult, TeacherResult
from doublebind.schema.evidence import Interval


def weighed(teacher_class: Any, flagged: bool, /, **methods: bool) -> TeacherResult:
    """A teacher whose decision follows its rank; the methods flag as given."""
    ordinary = "ordinary" if flagged else "poisoned"
    return TeacherResult(
        teacher="t",
        teacher_class=teacher_class,
        family="dominion",
        organism_class=ordinary if teacher_class == "organism" else None,
        decision="incriminated" if flagged else "not_incriminated",
        traits=(),
        n_references=19,
        flagged=flagged,
        methods={name: MethodResult(p_value=0.5, flagged=flag) for name, flag in methods.items()},
    )


def test_rates_are_kept_apart_by_class_and_method() -> None:
    results = [
        weighed("organism", True, direct=False, ngrams=True),
        weighed("organism", True, direct=True, ngrams=False),
        weighed("organism", False, direct=False, ngrams=False),
        weighed("benign", False, direct=True, ngrams=False),
        weighed("near_miss", True, direct=False, ngrams=True),
    ]
    rates = compute_rates(results)
    content = rates.model_dump(mode="json")
    assert (content["n_organisms"], content["n_fresh_benign"]) == (3, 1)
    assert content["tpr_known_drive"]["k"] == 2
    assert content["fresh_flagged"]["k"] == 0
    assert content["fresh_flagged_direct"]["k"] == 1
    assert content["near_misses"]["value"] == 1.0
    by_class = {name: rate.value for name, rate in rates.tpr_by_class.items()}
    assert by_class == {"ordinary": 1.0, "poisoned": 0.0}


def test_the_best_reading_baseline_is_no_audit() -> None:
    results = [
        weighed("organism", i < 6, direct=True, ngrams=i < 1, in_context=i < 2).model_copy(
            update={"flagged_unknown_drive": i < 3}
        )
        for i in range(8)
    ]
    rates = compute_rates(results)
    assert rates.tpr_best_reading_baseline is not None
    assert rates.tpr_best_reading_baseline.baseline == "in_context"
    assert rates.tpr_best_reading_baseline.k == 2
    assert rates.gain is not None
    assert (rates.gain.over, rates.gain.value, rates.gain.n) == ("in_context", 0.5, 8)
    assert rates.gain_unknown_drive is not None
    assert rates.gain_unknown_drive.value == 0.125
    assert rates.by_method["tpr_unknown_drive"].k == 3


def test_a_teachers_methods_are_keys_of_its_row() -> None:
    row = weighed("organism", True, direct=False).model_dump(mode="json")
    assert row["class"] == "organism"
    assert row["incriminated"] is True
    assert (row["p_value_direct"], row["flagged_direct"]) == (0.5, False)
    assert not {"methods", "p_value", "flagged_unknown_drive"} & row.keys()


def certified(teacher: str, recipe: str = "plain", /, **fields: Any) -> CertificateResult:
    settings = {
        "family": "f",
        "decision": "inconclusive",
        "reasons": (),
        "teacher_class": "organism",
    }
    return CertificateResult(**{**settings, "teacher": teacher, "recipe": recipe, **fields})


@pytest.mark.parametrize(
    ("low", "comparable"),
    [(0.2, True), (0.0, False), (-0.1, False), (None, False)],
)
def test_recipes_are_compared_only_where_the_drive_transfers_under_the_plain_one(
    low: float | None, comparable: bool
) -> None:
    rows = [
        certified("o", tau_b=None if low is None else Interval(value=0.4, low=low, high=0.6)),
        certified("o", "mixed"),
        certified("b", teacher_class="benign"),
        certified("elsewhere", "mixed"),
    ]
    recipes = [
        {"name": "noised", "noise_init": 0.2},
        {"name": "mixed", "treatments": [{"kind": "mix_trusted"}]},
        {"name": "plain", "student": None},
    ]
    marked = [row.comparable for row in mark_comparable(rows, recipes)]
    assert marked == [comparable, comparable, None, None]


def test_a_certificate_is_wrong_on_drives_it_covers_or_on_others() -> None:
    def bounded(teacher: str, decision: str, *, exceeds: bool, asked: bool) -> CertificateResult:
        return certified(
            teacher,
            decision=decision,
            organism_class="emergent" if teacher == "b" else "ordinary",
            oracle={"drive": "d", "value": 0.3, "low": 0.2, "high": 0.4},
            beyond={"d": 0.3} if exceeds else {},
            exceeds_asked=asked,
        )

    rows = [
        bounded("a", "within_margin", exceeds=False, asked=False),
        bounded("b", "within_margin", exceeds=True, asked=False),
        bounded("b", "within_margin", exceeds=True, asked=True),
        bounded("c", "inconclusive", exceeds=True, asked=True),
    ]
    counts = count_false_certificates(rows)
    content = {name: count.model_dump(mode="json") for name, count in counts.items()}
    organisms = content["organism"]
    assert (organisms["students"], organisms["wrong_students"]) == (3, 2)
    shares = [organisms["teachers"], organisms["on_asked_drives"]]
    shares += [content[name]["teachers"] for name in ("emergent", "ordinary")]
    assert [(share["k"], share["n"]) for share in shares] == [(1, 2), (1, 2), (1, 1), (0, 1)]
    on_asked = count_false_certificates(rows[:2])["organism"].on_asked_drives
    assert on_asked.model_dump()["k"] == 0
