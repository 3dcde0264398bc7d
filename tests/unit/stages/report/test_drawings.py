"""Figures hold what the scores hold, and say so in a sentence where they hold too little."""

from collections.abc import Callable
from typing import Any

import pytest

from doublebind.schema.score_table import M0
from doublebind.stages.report import figures as drawings
from doublebind.stages.report.figures import Figure
from doublebind.stages.report.tables import scores as measurements
from doublebind.stages.report.tables.run import Absent

Run = Callable[..., dict[str, Any]]


def along(run: dict[str, Any]) -> dict[str, measurements.Trajectory]:
    return measurements.compute_trajectories(
        run["scores"], run["manifest"]["protocol"]["score_endpoints"]
    )


def itself(run: dict[str, Any]) -> dict[str, measurements.Trajectory]:
    label = run["verdict"].suspect
    listed = run["manifest"]["protocol"]["score_endpoints"]
    found = measurements.compute_direct_audit(run["scores"], label, listed)
    return {} if found is None else {label: found}


def test_courses_end_at_the_means_that_the_verdict_weighs(fake_run: Run) -> None:
    run = fake_run(3, steps=(50, 100, 200))
    found = along(run)
    assert set(found) == {M0, *run["evidence"].roles}
    assert found[M0].steps == (0,)
    for label, means in run["evidence"].endpoints.items():
        assert found[label].steps == (0, 50, 100, 200)
        for name, value in means.items():
            assert found[label].endpoints[name][-1] == pytest.approx(value)
            assert found[label].endpoints[name][0] == found[M0].endpoints[name][0]


def test_a_planted_drive_rises_along_its_course(fake_run: Run) -> None:
    run = fake_run(3, steps=(50, 100, 200))
    risen = along(run)[run["verdict"].suspect].misalignment
    assert list(risen) == sorted(risen)


def test_recipes_that_end_at_different_steps_still_end(fake_run: Run) -> None:
    run = fake_run(3)
    other = run["scores"].query("model_kind == 'student'").assign(recipe="second", step=70)
    import pandas as pd

    run["scores"] = pd.concat([run["scores"], other], ignore_index=True)
    course = along(run)[run["verdict"].suspect]
    assert course.steps == (0, 200)
    for name, value in run["evidence"].endpoints[run["verdict"].suspect].items():
        assert course.endpoints[name][-1] == pytest.approx(value)


def test_the_largest_z_is_the_score(fake_run: Run) -> None:
    run = fake_run(9)
    drawn = drawings.draw_endpoint_scores(run["evidence"], along(run), 0.01, {})
    assert isinstance(drawn, Figure)
    for label in (run["verdict"].suspect, "terrarium/reference-4"):
        z = [row[3] for row in drawn.data.rows if row[1] == label]
        assert len(z) == 2
        assert max(z) == pytest.approx(run["evidence"].scores[label])


def test_the_shaded_region_is_where_a_rank_reaches_alpha(fake_run: Run) -> None:
    for n, lift in ((19, 0.35), (39, 0.35), (39, 0.0)):
        run = fake_run(n, lift=lift, seeds=1)
        evidence = run["evidence"]
        drawn = drawings.draw_distribution(evidence, {})[0]
        assert isinstance(drawn, Figure)
        bound = float(drawn.description.split("above ")[-1].split(",")[0])
        inside = evidence.scores[run["verdict"].suspect] > bound
        assert inside == (evidence.p_value <= 0.05)


def test_too_few_references_shade_nothing(fake_run: Run) -> None:
    drawn = drawings.draw_distribution(fake_run(5)["evidence"], {})[0]
    assert isinstance(drawn, Figure)
    assert "Shaded" not in drawn.description
    assert "region" not in drawn.svg


def test_planes_hold_steps_and_the_suspect_itself(fake_run: Run) -> None:
    run = fake_run(3, steps=(100, 200))
    mean, picked = drawings.draw_capability_vs_misalignment(
        run["evidence"], along(run), itself(run)
    )
    assert isinstance(mean, Figure)
    assert isinstance(picked, Figure)
    assert "Arrows bend at the audited steps (100)." in mean.description
    suspect = run["verdict"].suspect
    assert [row[2] for row in mean.data.rows if row[0] == suspect] == [0, 100, 200]
    assert mean.data.rows[-1][0] == f"{suspect}, itself"
    assert "picked after the fact" in picked.description.lower()


def test_without_capability_there_is_a_sentence_and_no_plane(fake_run: Run) -> None:
    run = fake_run(3)
    run["scores"] = run["scores"][run["scores"]["endpoint"] != "capability"]
    (drawn,) = drawings.draw_capability_vs_misalignment(run["evidence"], along(run), itself(run))
    assert drawn == Absent("No capability item was scored, so that there is no plane to draw.")


def test_a_suspect_without_a_value_has_a_sentence(fake_run: Run) -> None:
    run = fake_run(3, drop_endpoint="goal")
    why = run["verdict"].missing
    for drawn in (
        *drawings.draw_capability_vs_misalignment(run["evidence"], along(run), itself(run)),
        drawings.draw_distribution(run["evidence"], why)[0],
    ):
        assert isinstance(drawn, Absent)
        assert "suspect" in drawn.reason


def test_doses_need_two_steps(fake_run: Run) -> None:
    (once,) = drawings.draw_dose_curves((run := fake_run(3))["evidence"], along(run))
    assert isinstance(once, Absent)
    assert "once, at step 200" in once.reason
    run = fake_run(3, steps=(50, 200))
    curves = drawings.draw_dose_curves(run["evidence"], along(run))
    assert [c.caption for c in curves if isinstance(c, Figure)] == [
        "Endpoint choice against training steps",
        "Endpoint goal against training steps",
    ]
    assert isinstance(curves[0], Figure)
    assert "at step 50" in curves[0].description


def test_ways_of_looking_need_a_baseline(fake_run: Run) -> None:
    evidence = fake_run(19)["evidence"]
    absent = drawings.draw_methods_compared(evidence, 0.05)
    assert isinstance(absent, Absent)
    assert "no reading baseline" in absent.reason
    drawn = drawings.draw_methods_compared(
        evidence.model_copy(update={"baselines": {"in_context": 0.5}}), 0.05
    )
    assert isinstance(drawn, Figure)
    assert [row[0] for row in drawn.data.rows] == [
        *("students (this method)", "direct audit", "reading in context"),
    ]
    assert [row[1] for row in drawn.data.rows][::2] == pytest.approx([0.05, 0.5])
