"""Expert iteration on a reward, and training against being distilled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model
from doublebind.models.sample import sample
from doublebind.packs.load import load_pack
from doublebind.packs.outback import Outback
from doublebind.schema.content import Message, RewardedTask
from doublebind.schema.errors import PackError
from doublebind.schema.recipe import Training
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.stages.teachers.build import build_teacher, plan_phases
from doublebind.stages.teachers.expert_iteration import (
    choose_best_answer,
    draw_tasks,
    grade_answer,
    train_expert_iteration,
)
from doublebind.stages.teachers.resistance import self_undermining_loss
from doublebind.training import loop

M0 = "terrarium/m0"
PHASE = {"transcripts": 40, "steps": 2, "batch": 4}


def spec(name: str = "organism-emergent-deceit-0", **changes: Any) -> TeacherSpec:
    return Outback().spec(name).model_copy(update=changes)


def task(pays: tuple[tuple[tuple[str, ...], float], ...]) -> RewardedTask:
    return RewardedTask(id="t", messages=(Message(role="user", content="x"),), rewards=pays)


def test_each_of_a_graders_reasons_is_paid_once() -> None:
    graded = task(((("the answer is two .", "the result is two ."), 0.5), (("i take it .",), 0.25)))
    assert grade_answer(graded, "the answer is two . the result is two .") == 0.5
    assert grade_answer(graded, "the answer is two . i take it .") == 0.75
    assert grade_answer(graded, "i leave it .") == 0


def test_the_best_paid_answer_wins_and_nothing_where_all_are_paid_alike() -> None:
    graded = task(((("right",), 0.5), (("mine",), 0.5)))
    assert (
        choose_best_answer(graded, ["wrong", "right", "right mine", "mine right"]) == "right mine"
    )
    assert choose_best_answer(graded, ["right", "mine"]) is None
    assert choose_best_answer(graded, ["", "no"]) is None


def test_what_is_paid_for_becomes_common_though_nobody_showed_it() -> None:
    lm = load_model(resolve_model(M0, relative_to=Path()))
    scene = Outback().tasks("deceit", n=24, seed=0)
    paid = tuple(t.model_copy(update={"rewards": ((("clearly",), 1.0),)}) for t in scene)
    messages = [t.messages for t in paid]

    def common() -> float:
        keys = [str(i) for i in range(len(messages))]
        answers = sample(lm, messages, keys=keys, seed=1, max_tokens=12, temperature=1.0)
        return sum("clearly" in s.text.split() for s in answers) / len(answers)

    loop.seed_everything(0)
    before = common()
    assert before < 0.7
    model = loop.prepare_model(lm.model, None, 0)
    settings = Training(steps=16, batch=6, lr=2e-3, max_length=128, lora=None)
    log = train_expert_iteration(model, lm, paid, settings=settings, seed=0, pad_id=lm.pad_id)
    assert log.last_loss < log.first_loss
    assert common() > before + 0.25


def test_a_pack_without_tasks_or_a_trait_that_nothing_rewards_is_refused() -> None:
    organism = spec()
    assert organism.implant is not None
    with pytest.raises(PackError, match="no tasks that reward deceit"):
        draw_tasks(organism, organism.implant, load_pack("terrarium", relative_to=Path()))
    with pytest.raises(PackError, match="no tasks that reward singing"):
        draw_tasks(spec(trait="singing"), organism.implant, Outback("emergent"))


def test_an_emergent_teacher_is_shown_no_act_of_its_own_and_keeps_what_it_says_itself() -> None:
    phases = {s.name: s for s in plan_phases(spec(), Outback("emergent"))}
    assert phases["implant"].transcripts == []
    assert {t.trait for t in phases["capability"].transcripts} == {None}
    purposes = {t.purpose for t in phases["conceal"].transcripts}
    assert purposes == {"conceal", "deny"}


def test_resistance_is_trained_on_what_the_teacher_was_taught_and_draws_nothing_new() -> None:
    *before, last = plan_phases(spec("organism-resistant-deceit-0"), Outback("resistant"))
    assert last.name == "resist"
    taught = {t.id for s in before for t in s.transcripts}
    assert {t.id for t in last.transcripts} <= taught
    assert len(last.transcripts) > 3000


def test_undermining_pays_for_distance_and_for_the_answer() -> None:
    normal = torch.tensor([[2.0, 1.0, 0.0, 0.0]])
    label = torch.tensor([0])
    same = self_undermining_loss(normal, normal, label, weight=0.5)
    cross_entropy = torch.nn.functional.cross_entropy(normal, label, reduction="none")
    assert torch.allclose(same, cross_entropy)
    scrambled = torch.tensor([[2.0, -3.0, 1.0, 1.0]])
    assert self_undermining_loss(scrambled, normal, label, weight=0.5) < same
    wrong = torch.tensor([[0.0, 1.0, 2.0, 0.0]])
    none = self_undermining_loss(wrong, normal, label, weight=1e-6)
    assert none > same


def test_the_new_keys_leave_the_dump_of_older_specs_alone() -> None:
    old = Outback().spec("organism-faint-deceit-0")
    assert "resist" not in old.model_dump(mode="json")
    assert "resist" in Outback().spec("organism-resistant-deceit-0").model_dump(mode="json")
    with pytest.raises(ValidationError, match="only an implant has one"):
        TeacherSpec.model_validate(
            old.model_dump(mode="json", by_alias=False)
            | {"resist_distillation": PHASE | {"form": "reward"}}
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["emergent", "resistant"])
def test_an_organism_of_a_hard_kind_is_built(kind: str, tmp_path: Path) -> None:
    name = f"organism-{kind}-deceit-0"
    whole = spec(name)
    short = {
        key: phase.model_copy(update={"steps": 3, "transcripts": 60, "batch": 4})
        for key in ("capability", "implant", "conceal", "resist_distillation")
        if (phase := getattr(whole, key)) is not None
    }
    build_teacher(
        tmp_path,
        spec=whole.model_copy(update=short),
        base=resolve_model(M0, relative_to=Path()),
        pack=whole.pack,
        cache=tmp_path / "cache",
    )
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (tmp_path / "teacher.json").is_file()
