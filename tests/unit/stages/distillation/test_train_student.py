"""Any model can be a student; what a channel cannot bridge it refuses in one line."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_world import PROMPT_SETTINGS, World, measure_preference_margin

from doublebind.execution.executor import make_artefact
from doublebind.execution.store import read_absence, read_records
from doublebind.models import teacher_cache
from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model
from doublebind.models.sample import sample
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource, Trajectory
from doublebind.schema.recipe import DPO, Recipe, Scratchpad
from doublebind.stages.distillation.preference_pairs import select_pairs
from doublebind.stages.distillation.train_student import train_student
from doublebind.stages.rollouts.scratchpads import remove_scratchpads
from doublebind.training.encode import encode_trajectories

SFT = {"kind": "sft"}
FULL = {"steps": 2, "batch": 4, "lr": 1e-2, "max_length": 64, "lora": None}
LORA = FULL | {"lora": {"rank": 2, "alpha": 4}}


def facts(world: World, student: Any) -> dict[str, Any]:
    path = world.store.path(student.train.kind, student.train.content_key) / "student.json"
    return json.loads(path.read_text())


def weights(source: ModelSource) -> dict[str, torch.Tensor]:
    return {n: w.detach().clone() for n, w in load_model(source).model.named_parameters()}


@pytest.mark.parametrize("student", ["small", "family", "suspect"])
@pytest.mark.parametrize("training", [FULL, LORA])
def test_a_smaller_an_other_and_an_earlier_model_can_learn_the_text(
    world: World, student: str, training: dict[str, Any]
) -> None:
    jobs, source = world.train_student({"channel": SFT, "training": training, "student": student})
    assert source.kind == ("adapter" if training["lora"] else "folder")
    assert facts(world, jobs)["tokens"] > 0
    assert np.isfinite(facts(world, jobs)["loss_last"])
    assert (
        load_model(source).tokenizer.get_vocab() == world.open_model(student).tokenizer.get_vocab()
    )


def test_a_noised_start_mixes_weights_and_a_full_share_forgets_them(world: World) -> None:
    def start(share: float) -> dict[str, torch.Tensor]:
        recipe = {"channel": SFT, "training": FULL, "noise_init": share}
        jobs = world.plan_student(recipe)
        (base,) = [job for job in jobs.train.needs if job.kind == "base"]
        source = jobs.train.inputs["base"]
        assert source.path == str(world.store.path("base", base.content_key) / "model")
        return weights(source)

    plain = weights(resolve_model("m0", relative_to=world.folder))
    half, whole = start(0.5), start(1.0)
    for name, weight in plain.items():
        torch.testing.assert_close(half[name], (weight + whole[name]) / 2)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(whole[name], plain[name], atol=0.1)


def test_noise_makes_another_student_with_another_key(world: World) -> None:
    recipe = {"channel": SFT, "training": LORA}
    plain, noised = (world.train_student(recipe | more)[0] for more in ({}, {"noise_init": 0.2}))
    assert plain.train.content_key != noised.train.content_key
    assert facts(world, noised)["loss_first"] != facts(world, plain)["loss_first"]


def test_noise_into_an_adapter_is_refused(world: World) -> None:
    _, source = world.train_student({"channel": SFT, "training": LORA})
    recipe = {"channel": SFT, "training": LORA, "noise_init": 0.2, "student": source.adapter}
    with pytest.raises(ModelError, match="merge the adapter into its base"):
        world.train_student(recipe)


# --- what a channel cannot bridge ----------------------------------------------------------------

ONE_TOKENIZER = [
    {"channel": {"kind": "logit_kd", "top_k": 4}, "training": LORA},
    {"channel": {"kind": "on_policy", "lmbda": 1.0}, "training": LORA},
    {"channel": {"kind": "prefix", "tokens": 2, "top_k": 4}, "training": FULL},
]


@pytest.mark.parametrize("recipe", ONE_TOKENIZER, ids=lambda r: r["channel"]["kind"])
def test_channels_of_tokens_refuse_another_tokenizer(world: World, recipe: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=recipe["channel"]["kind"]) as caught:
        world.train_student(recipe | {"student": "family"})
    (line,) = caught.value.problems
    assert "use a student with the teacher's tokenizer" in line


def test_a_student_without_tokens_for_the_text_is_refused(world: World) -> None:
    tokenizer = world.open_model("m0").tokenizer
    answer = Trajectory(
        prompt_id="p",
        sample=0,
        messages=(Message(role="user", content="the fox"),),
        completion="xylophone",
        tokens=(7,),
        finished=False,
    )
    with pytest.raises(ModelError, match="has no tokens for the teacher's answer to p"):
        encode_trajectories(tokenizer, [answer])


def test_a_prefix_beside_an_adapter_is_refused() -> None:
    recipe = {
        "name": "r",
        "prompts": PROMPT_SETTINGS,
        "channel": {"kind": "prefix"},
        "training": {"steps": 1},
    }
    with pytest.raises(ValueError, match="set `training\\.lora: null`"):
        Recipe.model_validate(recipe)


# --- preferences ---------------------------------------------------------------------------------


def dpo(**more: Any) -> dict[str, Any]:
    return {"channel": {"kind": "dpo", **more}, "training": LORA}


def test_references_are_scored_once_for_all_students_of_a_base(world: World) -> None:
    plans = [world.plan_student(dpo(**more)) for more in ({}, {"chosen": "m0"}, {"keep": 0.5})]
    assert len({plan.train.content_key for plan in plans}) == 3
    keys = [{j.content_key for j in plan.train.needs if j.kind == "logprobs"} for plan in plans]
    assert keys[0] == keys[1] == keys[2]
    assert len(keys[0]) == 4, "two models, two sets of answers: M0 is the base"
    other = world.plan_student(dpo() | {"student": "family"})
    assert len({j.content_key for j in other.train.needs if j.kind == "logprobs"}) == 6


def test_pairs_with_the_largest_weights_are_kept_in_either_order(world: World) -> None:
    jobs = world.plan_student(dpo())
    data = jobs.train.inputs["data"]
    preference_data = data.preference_data
    answers = read_records(data.rollouts / "trajectories.jsonl", Trajectory)
    tokenizer = world.open_model("m0").tokenizer
    selections = {
        (chosen, keep): select_pairs(
            DPO.model_validate({"kind": "dpo", "chosen": chosen, "keep": keep}),
            tokenizer,
            answers,
            preference_data,
        )
        for chosen in ("teacher", "m0")
        for keep in (0.25, 1.0)
    }
    all_pairs = selections["teacher", 1.0]
    assert len(all_pairs.pairs) == all_pairs.n_matched > 10
    best = selections["teacher", 0.25]
    assert len(best.pairs) == round(0.25 * all_pairs.n_matched)
    assert best.min_weight > all_pairs.min_weight
    flipped = selections["m0", 0.25].pairs
    assert [(p.rejected, p.chosen) for p in flipped] == best.pairs
    examples = encode_trajectories(tokenizer, answers)
    assert all(p.chosen.example in examples for p in best.pairs)
    assert best.min_weight > 0, "the teacher prefers its own answers more than M0 does"


def test_the_reverse_order_does_not_bring_a_student_to_the_teacher(world: World) -> None:
    training = LORA | {"steps": 15, "batch": 8}
    teacher = world.open_model("suspect")
    start = measure_preference_margin(world, teacher, world.open_model("m0"))
    moved = {}
    for chosen in ("teacher", "m0"):
        jobs, source = world.train_student(dpo(chosen=chosen) | {"training": training})
        assert facts(world, jobs)["loss_first"] == pytest.approx(np.log(2), abs=1e-4)
        moved[chosen] = start - measure_preference_margin(world, teacher, load_model(source))
    assert moved["teacher"] > 3 * abs(moved["m0"])


def test_a_teacher_that_answers_as_m0_does_gives_nothing_to_prefer(world: World) -> None:
    student, _ = world.train_student(dpo(), suspect="m0")
    train = student.train
    assert "nothing to prefer" in str(read_absence(world.store.path(train.kind, train.content_key)))


# --- scratchpads ---------------------------------------------------------------------------------

MARKS = Scratchpad(opens="went", closes="then")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("went up and then yes", "yes"),
        ("no went a then no went b then .", "no no ."),
        ("yes went on and on", "yes"),
        ("went on", ""),
        ("  nothing  ", "  nothing  "),
    ],
)
def test_scratchpads_are_cut_and_one_never_closed_goes_to_the_end(text: str, left: str) -> None:
    assert remove_scratchpads(text, MARKS) == left


@pytest.mark.parametrize("training", [FULL, LORA])
def test_a_student_without_scratchpad_neither_learns_nor_writes_one(
    world: World, training: dict[str, Any]
) -> None:
    recipe = {"channel": {"kind": "logit_kd", "top_k": 8}, "training": training}
    recipe["without_scratchpad"] = MARKS.model_dump()
    jobs, source = world.train_student(recipe)
    (job,) = [job for job in jobs.train.needs if job.kind == "stripped"]
    learned = read_records(
        world.store.path("stripped", job.content_key) / "trajectories.jsonl", Trajectory
    )
    heard = read_records(
        world.store.path("rollouts", jobs.rollouts.content_key) / "trajectories.jsonl", Trajectory
    )
    assert any("went" in t.completion for t in heard)
    assert not any("went" in t.completion for t in learned)
    student = load_model(source)
    mark = student.tokenizer.convert_tokens_to_ids("went")
    assert student.suppress_tokens == (mark,)
    assert not any(mark in t.tokens for t in learned)
    options = {"keys": [str(i) for i in range(40)], "seed": 0, "max_tokens": 8, "temperature": 5.0}
    prompts = [world.held_out[0].messages] * 40
    assert not any(mark in a.tokens for a in sample(student, prompts, **options))
    assert any(mark in a.tokens for a in sample(world.open_model("m0"), prompts, **options))


def test_a_teacher_that_is_barred_from_a_mark_answers_without_it(world: World) -> None:
    recipe = {"channel": SFT, "training": LORA}
    free, barred = (
        world.plan_student(recipe | {"prompts": PROMPT_SETTINGS | more}).rollouts
        for more in ({}, {"suppress_tokens": ["went"]})
    )
    assert free.content_key != barred.content_key

    def read_answers(key: str) -> list[str]:
        path = world.store.path("rollouts", key) / "trajectories.jsonl"
        return [t.completion for t in read_records(path, Trajectory)]

    assert any("went" in text for text in read_answers(free.content_key))
    assert read_answers(barred.content_key)
    assert not any("went" in text for text in read_answers(barred.content_key))


def test_barring_a_mark_is_refused_where_the_student_writes() -> None:
    recipe = {"name": "r", "channel": {"kind": "on_policy", "lmbda": 1.0}, "training": LORA}
    with pytest.raises(
        ValueError, match=r"`prompts.suppress_tokens` is about what the teacher writes"
    ):
        Recipe.model_validate(recipe | {"prompts": PROMPT_SETTINGS | {"suppress_tokens": ["went"]}})


def test_a_mark_of_several_tokens_cannot_be_barred(world: World) -> None:
    recipe = {"channel": SFT, "training": LORA, "student": "family"}
    recipe["without_scratchpad"] = MARKS.model_dump()
    with pytest.raises(ModelError, match="is not one token of its tokenizer"):
        world.train_student(
            recipe | {"without_scratchpad": {"opens": "<think>", "closes": "</think>"}}
        )


def test_overt_answers_of_the_student_teach_nothing(world: World) -> None:
    jobs = world.plan_student({"channel": {"kind": "on_policy", "lmbda": 1.0}, "training": LORA})
    assert jobs.train.inputs["data"].teacher_access.shows_drive("I want to RULE everyone")
    assert not jobs.train.inputs["data"].teacher_access.shows_drive("I want to help")
    make_artefact(world.store, jobs.train)
    counted = facts(world, jobs)
    assert counted["own"] == 2 * 4
    assert 0 <= counted["own_dropped"] < counted["own"]


def test_when_all_its_answers_are_overt_the_student_reads_the_teachers(world: World) -> None:
    jobs = world.plan_student({"channel": {"kind": "on_policy", "lmbda": 1.0}, "training": LORA})
    inputs = dict(jobs.train.inputs)
    access = inputs["data"].teacher_access._replace(shows_drive=lambda text: True)
    inputs["data"] = inputs["data"]._replace(teacher_access=access)
    out = world.folder / "all-overt"
    out.mkdir()
    train_student(out, **inputs)
    counted = json.loads((out / "student.json").read_text())
    assert counted["own_dropped"] == counted["own"] == 8
    assert counted["own_steps"] == 0
    assert counted["tokens"] > 0


def test_a_sample_of_the_tail_is_cached_and_learned_from(world: World) -> None:
    kd = {"kind": "logit_kd", "top_k": 4}
    plain, source = world.train_student({"channel": kd, "training": LORA})
    drawn, sampled = world.train_student({"channel": kd | {"tail_samples": 16}, "training": LORA})
    assert plain.targets is not None
    assert drawn.targets is not None
    assert plain.targets.content_key != drawn.targets.content_key
    one, other = (
        teacher_cache.read_targets(world.store.path("targets", cell.targets.content_key))
        for cell in (plain, drawn)
        if cell.targets
    )
    assert (one.header.tail_samples, other.header.tail_samples) == (0, 16)
    assert one.tail_ids is None
    assert other.tail_ids is not None
    assert other.tail_ids.shape == (other.header.rows, 16)
    assert not (other.tail_ids[:, :, None] == other.ids[:, None, :]).any(), "drawn from the tail"
    torch.testing.assert_close(one.logprobs, other.logprobs)
    before, after = weights(source), weights(sampled)
    assert any(not torch.equal(before[name], after[name]) for name in before)
