"""Figures hold what the scores hold, or a sentence where they hold too little."""

from collections.abc import Mapping

import pandas as pd
import pytest
from tests.unit.stages.report.fake_run import make_run

from doublebind.schema.score_table import M0
from doublebind.stages.report.figures import (
    Figure,
    FigureOrAbsent,
    draw_capability_vs_misalignment,
    draw_distribution,
    draw_dose_curves,
    draw_endpoint_scores,
    draw_methods_compared,
)
from doublebind.stages.report.run_content import RunContent
from doublebind.stages.report.tables.scores import (
    Trajectory,
    compute_direct_audit,
    compute_trajectories,
)
from doublebind.stages.report.tables.table import Absent


def trajectories(run: RunContent) -> Mapping[str, Trajectory]:
    return compute_trajectories(run.scores, run.manifest.protocol)


def planes(run: RunContent) -> list[FigureOrAbsent]:
    label = run.verdict.suspect
    direct = compute_direct_audit(run.scores, label, run.manifest.protocol)
    direct_audit = {} if direct is None else {label: direct}
    return draw_capability_vs_misalignment(run.evidence, trajectories(run), direct_audit)


def drawn(figure: FigureOrAbsent) -> Figure:
    assert isinstance(figure, Figure)
    return figure


def test_trajectories_rise_from_m0_to_the_means_that_the_verdict_weighs() -> None:
    run = make_run(3, steps=(50, 100, 200))
    by_teacher = trajectories(run)
    assert set(by_teacher) == {M0, *run.evidence.roles}
    assert by_teacher[M0].steps == (0,)
    for label, means in run.evidence.endpoints.items():
        assert by_teacher[label].steps == (0, 50, 100, 200)
        for name, value in means.items():
            assert by_teacher[label].endpoints[name][-1] == pytest.approx(value)
            assert by_teacher[label].endpoints[name][0] == by_teacher[M0].endpoints[name][0]
    planted = by_teacher[run.verdict.suspect].misalignment
    assert list(planted) == sorted(planted)


def test_recipes_that_end_at_different_steps_still_end() -> None:
    run = make_run(3)
    other = run.scores.query("model_kind == 'student'").assign(recipe="second", step=70)
    run = run._replace(scores=pd.concat([run.scores, other], ignore_index=True))
    trajectory = trajectories(run)[run.verdict.suspect]
    assert trajectory.steps == (0, 200)
    for name, value in run.evidence.endpoints[run.verdict.suspect].items():
        assert trajectory.endpoints[name][-1] == pytest.approx(value)


def test_the_largest_z_is_the_score() -> None:
    run = make_run(9)
    figure = drawn(draw_endpoint_scores(run.evidence, trajectories(run), 0.01, {}))
    for label in (run.verdict.suspect, "terrarium/reference-4"):
        z = [row[3] for row in figure.data.rows if row[1] == label]
        assert len(z) == 2
        assert max(z) == pytest.approx(run.evidence.scores[label])


@pytest.mark.parametrize(("n", "lift"), [(19, 0.35), (39, 0.35), (39, 0.0)])
def test_the_shaded_region_is_where_a_rank_reaches_alpha(n: int, lift: float) -> None:
    run = make_run(n, lift=lift, seeds=1)
    figure = drawn(draw_distribution(run.evidence, {})[0])
    bound = float(figure.description.split("above ")[-1].split(",")[0])
    inside = run.evidence.scores[run.verdict.suspect] > bound
    assert inside == (run.evidence.p_value <= 0.05)


def test_too_few_references_shade_nothing() -> None:
    figure = drawn(draw_distribution(make_run(5).evidence, {})[0])
    assert "Shaded" not in figure.description
    assert "alpha" not in figure.svg


def test_planes_hold_steps_and_the_suspect_itself() -> None:
    run = make_run(3, steps=(100, 200))
    mean, picked = map(drawn, planes(run))
    assert "Arrows bend at the audited steps (100)." in mean.description
    suspect = run.verdict.suspect
    assert [row[2] for row in mean.data.rows if row[0] == suspect] == [0, 100, 200]
    assert mean.data.rows[-1][0] == f"{suspect}, itself"
    assert "picked after the fact" in picked.description.lower()


def test_without_capability_or_a_suspects_value_there_is_a_sentence_and_no_plane() -> None:
    run = make_run(3)
    run = run._replace(scores=run.scores[run.scores["endpoint"] != "capability"])
    sentence = "No capability item was scored, so that there is no plane to draw."
    assert planes(run) == [Absent(sentence)]
    run = make_run(3, drop_endpoint="goal")
    for figure in (*planes(run), draw_distribution(run.evidence, run.verdict.missing)[0]):
        assert isinstance(figure, Absent)
        assert "suspect" in figure.reason


def test_dose_curves_need_two_steps() -> None:
    run = make_run(3)
    (once,) = draw_dose_curves(run.evidence, trajectories(run))
    assert isinstance(once, Absent)
    assert "once, at step 200" in once.reason
    run = make_run(3, steps=(50, 200))
    curves = [drawn(figure) for figure in draw_dose_curves(run.evidence, trajectories(run))]
    captions = [f"Endpoint {name} against training steps" for name in ("choice", "goal")]
    assert [curve.caption for curve in curves] == captions
    assert "at step 50" in curves[0].description


def test_methods_are_compared_where_there_is_a_baseline() -> None:
    evidence = make_run(19).evidence
    absent = draw_methods_compared(evidence, 0.05)
    assert isinstance(absent, Absent)
    assert "no reading baseline" in absent.reason
    evidence = evidence.model_copy(update={"baselines": {"in_context": 0.5}})
    rows = drawn(draw_methods_compared(evidence, 0.05)).data.rows
    names = ["students (this method)", "direct audit", "reading in context"]
    assert [row[0] for row in rows] == names
    assert [row[1] for row in rows][::2] == pytest.approx([0.05, 0.5])
