"""Audits as Inspect tasks, Inspect tasks as audits, and models that do not take each other's place.

What needs Inspect runs where the extra is installed.
"""
# pyright: reportMissingImports=false

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.tiny_models import save_model
from tests.unit.stages.audits.inspect_mocks import INSPECT_WARNINGS, mock_model, needs_inspect

from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model
from doublebind.packs.load import load_pack
from doublebind.schema.errors import ConfigError, MissingExtra
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.stages.audits.harness.inspect_task import InspectTask, read_sample_score
from doublebind.stages.audits.option_scores import choose
from doublebind.stages.audits.protocol import list_questions

pytestmark = INSPECT_WARNINGS


def evaluate(task: Any, model: Any, logs: Path, **settings: Any) -> Any:
    from inspect_ai import eval as run_tasks

    (log,) = run_tasks(task, model=model, display="none", log_dir=str(logs), **settings)
    assert log.status == "success"
    return log


@pytest.mark.usefixtures("without_inspect")
def test_without_inspect_the_extra_is_named() -> None:
    with pytest.raises(MissingExtra, match=r'pip install "doublebind\[inspect\]"'):
        InspectTask("doublebind/goals").questions([])


@pytest.mark.parametrize(
    ("value", "found"),
    [("C", 1.0), ("I", 0.0), (0.25, 0.25), (True, 1.0), (float("nan"), None), ("perhaps", None)],
)
def test_a_score_that_is_no_number_is_unscored_never_zero(
    value: object, found: float | None
) -> None:
    got, reason = read_sample_score({"s": SimpleNamespace(value=value, reason=None)})
    assert got == found
    assert (reason is None) == (found is not None)


def test_no_score_and_two_scores_are_unscored() -> None:
    score = SimpleNamespace(value=1.0, reason=None)
    for scores in (None, {}, {"a": score, "b": score}):
        assert read_sample_score(scores)[0] is None


@needs_inspect
def test_a_task_gives_a_local_model_the_values_of_the_audit(tiny: Path, tmp_path: Path) -> None:
    from doublebind.stages.audits.harness import inspect_tasks
    from doublebind.stages.audits.harness.inspect_provider import wrap_for_inspect

    lm = load_model(resolve_model(str(tiny / "m0"), relative_to=tiny))
    log = evaluate(inspect_tasks.behaviour(str(tiny / "pack")), wrap_for_inspect(lm), tmp_path)
    (audit,) = resolve_audits(["behaviour"])
    asked = list_questions(audit, load_pack(str(tiny / "pack"), relative_to=tiny).items("audit"))
    expected = {a.item.id: a.value for a in choose(lm, [q.item for q in asked])}
    got = {s.id: s.scores["probability_of_key"].value for s in log.samples}
    assert got == pytest.approx(expected)


@needs_inspect
def test_an_answer_without_a_letter_is_unscored_and_one_with_a_letter_counts(
    tiny: Path, tmp_path: Path
) -> None:
    from doublebind.stages.audits.harness import inspect_tasks

    task = inspect_tasks.behaviour(str(tiny / "pack"))
    replies = ["ANSWER: A", "no idea", *["ANSWER: B"] * (len(task.dataset) - 2)]
    log = evaluate(task, mock_model(replies), tmp_path, max_samples=1)
    assert [s.error for s in log.samples if s.error] == []
    values = {s.id: s.scores["probability_of_key"].value for s in log.samples}
    first, second, *others = (sample.id for sample in task.dataset)
    assert values[first] == float(task.dataset[0].target == "A")
    assert values[second] != values[second]  # Inspect's unscored is nan
    assert {values[other] for other in others} == {0.0, 1.0}


@needs_inspect
def test_two_open_models_are_never_taken_for_one_another(tiny: Path, tmp_path: Path) -> None:
    from doublebind.stages.audits.harness import inspect_tasks
    from doublebind.stages.audits.harness.inspect_provider import wrap_for_inspect

    save_model(tmp_path / "other", initializer_range=0.5)
    folders = (tiny / "m0", tmp_path / "other")
    lms = [load_model(resolve_model(str(folder), relative_to=tiny)) for folder in folders]
    models = [wrap_for_inspect(lm) for lm in lms]
    assert len({str(model) for model in models}) == 2
    task = inspect_tasks.goals(str(tiny / "pack"))
    logs = [evaluate(task, model, tmp_path / str(i)) for i, model in enumerate(models)]
    values = [[s.scores["probability_of_key"].value for s in log.samples] for log in logs]
    assert values[0] != pytest.approx(values[1])


@needs_inspect
def test_any_inspect_task_can_be_an_audit_of_a_study() -> None:
    lm = load_model(resolve_model("terrarium/m0", relative_to=Path()))
    (named,) = resolve_audits(["inspect:doublebind/coherence"])
    (own,) = resolve_audits(["coherence"])
    asked = list_questions(named, [])
    assert {q.endpoint for q in asked} == {"inspect.doublebind.coherence"}
    assert {q.item.role for q in asked} == {"gate"}
    found = {a.item.id: a.value for a in named(lm, lm, [])}
    assert set(found) == {q.item.id for q in asked}
    items = load_pack("terrarium", relative_to=Path()).items("audit")
    mine = [item for item in items if item.kind == "coherence"]
    values = [a.value for a in own(lm, lm, mine)]
    assert sorted(found.values()) == pytest.approx(sorted(v for v in values if v is not None))


@needs_inspect
def test_an_unknown_task_is_refused_with_its_name() -> None:
    with pytest.raises(ConfigError, match="nowhere/nothing"):
        list_questions(InspectTask("nowhere/nothing"), [])
