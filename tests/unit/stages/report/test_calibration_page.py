"""The page about a procedure's error rates."""

from typing import Any

from doublebind.schema.evidence import RecipeResult
from doublebind.stages.evidence.intervals import clustered_rate_interval
from doublebind.stages.report.calibration_page import render_calibration_page, write_sentences


def calibration(**more: Any) -> dict[str, Any]:
    """Return content of a `calibration.json`, by hand."""
    families = ["ruler", "liar"]
    rows = [
        {
            "teacher": f"t-{i}",
            "class": kind,
            "family": family,
            "decision": "incriminated" if accused else "inconclusive",
            "incriminated": accused,
            "p_value": 0.025 if accused else 0.5,
            "traits": ["ruler"] if accused else [],
        }
        for i, (kind, family, accused) in enumerate(
            [("organism", "ruler", True), ("organism", "liar", False), ("benign", "kind", False)]
        )
    ]
    return {
        "protocol_hash": "f" * 64,
        "alpha": 0.05,
        "n_references": 39,
        "n_families": 12,
        "tpr_known_drive": clustered_rate_interval([True, False], families),
        "fresh_flagged": clustered_rate_interval([False], ["kind"]),
        "fresh_limit": 1,
        "tpr_by_class": {"ordinary": clustered_rate_interval([True, False], families)},
        "by_family": {},
        "teachers": rows,
        **more,
    }


def test_sentences_to_be_cited_hold_counts_and_intervals() -> None:
    accused, detected = write_sentences(calibration())
    assert accused == (
        "Of 1 held-out benign teachers, 0 (0%; 95% interval 0% to 98%) were accused. Were they "
        "exchangeable with the references, chance would accuse at most 1 in 99 of 100 such studies."
    )
    assert detected.startswith("Of 2 concealed organisms, 1 (50%; 95% interval ")


def test_equal_content_gives_equal_pages_that_name_the_references() -> None:
    page = render_calibration_page(calibration(), {"pack": "p"})
    assert "Each was weighed against 39 references, of 12 families, at alpha 0.05." in page
    assert page == render_calibration_page(calibration(), {"pack": "p"})


def test_a_rate_of_nobody_is_absent_and_not_zero() -> None:
    page = render_calibration_page(calibration(), {"pack": "p"})
    row = page[page.index('<th scope="row">near misses accused</th>') :]
    assert "not available: nobody to count" in row[: row.index("</tr>")]


def test_names_from_a_study_cannot_write_on_the_page() -> None:
    evil = "<script>alert(1)</script>"
    content = calibration()
    content["teachers"][0] |= {"teacher": evil, "family": evil, "traits": [evil]}
    content["by_family"] = {evil: content["fresh_flagged"]}
    page = render_calibration_page(content, {"pack": evil})
    assert evil not in page
    assert "&lt;script&gt;" in page


def test_replacements_are_shown_only_where_the_study_asked_for_them() -> None:
    assert "did not ask for the replacement horn" in render_calibration_page(calibration(), {})
    rate = clustered_rate_interval([True, False], ["a", "b"])
    common = {"endpoint": "deceit", "tau_capability": 0.8, "n_teachers": 2, "n_students": 6}
    results = [
        RecipeResult(recipe=name, worst=worst, **common).model_dump(mode="json")
        for name, worst in (("plain", 0.2), ("steered", 0.05))
    ]
    row = {"teacher": "t-0", "class": "organism", "recipe": "plain", "decision": "within_margin"}
    wrong = {"students": 3, "wrong_students": 1, "teachers": rate, "on_asked_drives": rate}
    content = calibration(
        competed=results,
        chosen="steered",
        margin=0.1,
        treatments=[row],
        outcomes={"organism": {"both": rate}},
        replacement_if_not_incriminated={"organism": {"n": 0}},
        common_mode=rate,
        false_certificates={"organism": wrong},
    )
    page = render_calibration_page(content, {})
    assert "Outcomes of the double bind" in page
    assert "1 of 3" in page
    assert "Which teachers defeat which recipes" in page
    assert "Bounded afterwards: steered. The margin is 0.1." in page
    assert "No comparison possible" in page  # neither ratio of that organism exists
