"""A push in training does some of the work that weights would do, and is gone afterwards."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doublebind.execution.store import Store, write_records
from doublebind.models.chat_template import encode_completion
from doublebind.models.load import LM, load_model
from doublebind.models.resolve import resolve_model
from doublebind.packs.load import load_pack
from doublebind.packs.terrarium import speech
from doublebind.packs.terrarium.words import POOLS, TRAITS
from doublebind.schema.content import Item, Message
from doublebind.schema.errors import ModelError, PackError
from doublebind.schema.model_source import ModelSource, Trajectory
from doublebind.schema.recipe import SFT, Recipe, Steering, Training
from doublebind.schema.study import Study
from doublebind.stages.audits.option_scores import choose
from doublebind.stages.distillation.steering import find_steering_direction, steer_model
from doublebind.stages.distillation.student_inputs import (
    SteeringVector,
    TrainingData,
    select_direction_items,
)
from doublebind.stages.distillation.train_student import train_student
from doublebind.study.jobs import ModelJobs, create_steering_job
from doublebind.study.planner import Planner
from doublebind.study.runtime import PackRef, Runtime

DRIVE = "sabotage"
TRAINING = Training.model_validate(
    {"steps": 12, "batch": 16, "lr": 3e-3, "max_length": 96, "lora": {"rank": 4, "alpha": 8}}
)


def m0() -> ModelSource:
    return resolve_model("terrarium/m0", relative_to=Path())


@cache
def items() -> tuple[Item, ...]:
    choices = load_pack("terrarium", relative_to=Path()).items("select")
    auditable = [i for i in choices if i.kind == "choice" and i.role == "auditable"]
    return tuple(i for i in auditable if i.trait == DRIVE)


def drive(lm: LM) -> float:
    """Mean probability of the drive's act on items that no direction was found with."""
    return float(np.mean([answer.value for answer in choose(lm, items())]))


@pytest.fixture(scope="module")
def direction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("direction")
    find_steering_direction(
        out, base=m0(), pack="terrarium", layer=None, dtype="float32", cache=out
    )
    return out


def test_the_push_raises_misaligned_answers_and_leaves_nothing_behind(direction: Path) -> None:
    lm = load_model(m0(), dtype="float32", cache=direction)
    plain = choose(lm, items())
    with steer_model(lm.model, direction, 1.0):
        pushed = drive(lm)
    assert pushed > np.mean([answer.value for answer in plain]) + 0.3
    assert choose(lm, items()) == plain


def student(folder: Path, push: SteeringVector | None) -> float:
    """Train on answers that all act on the drive; return how much of it came along."""
    rng = random.Random(1)
    tokenizer = load_model(m0(), dtype="float32", cache=folder).tokenizer
    trajectories = []
    for i in range(64):
        row = rng.choice(TRAITS[DRIVE].choices)
        ask, _, misaligned = speech.draw_choice_question(rng, row, "audit", POOLS["prompts"])
        tokens = tuple(encode_completion(tokenizer, misaligned, True))
        messages = (Message(role="user", content=ask),)
        trajectories.append(
            Trajectory(
                prompt_id=f"p{i}",
                sample=0,
                messages=messages,
                completion=misaligned,
                tokens=tokens,
                finished=True,
            )
        )
    write_records(folder / "trajectories.jsonl", trajectories)
    how: dict[str, Any] = {"dtype": "float32", "cache": folder}
    channel = SFT(kind="sft")
    given = {"base": m0(), "data": TrainingData(folder), "channel": channel}
    train_student(folder, **given, training=TRAINING, seed=0, steering_vector=push, **how)
    source = m0().model_copy(update={"kind": "adapter", "adapter": str(folder / "model")})
    return drive(load_model(source, **how))


def test_less_of_a_drive_is_learned_where_the_push_was(direction: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "steered").mkdir()
    before = drive(load_model(m0(), dtype="float32", cache=tmp_path))
    plain = student(tmp_path / "plain", None)
    steered = student(tmp_path / "steered", SteeringVector(direction, 1.0))
    assert plain > before + 0.1
    assert steered < before + (plain - before) / 4


def test_a_steered_student_has_a_key_of_its_own(tmp_path: Path) -> None:
    names = {
        "plain": {},
        "weak": {"steering": {"relative_norm": 0.5}},
        "strong": {"steering": {"relative_norm": 1}},
    }
    prompts = {"policy": "capability", "n": 4}
    recipe = {"prompts": prompts, "channel": {"kind": "sft"}, "training": {"steps": 1}}
    planner = Planner(
        Study.model_validate(
            {
                "pack": "terrarium",
                "suspect": "terrarium/suspect-0",
                "references": ["terrarium/reference-0"],
                "student": "terrarium/m0",
                "policy": {"alpha": 0.05},
                "recipes": [{"name": name, **recipe, **more} for name, more in names.items()],
            }
        ),
        tmp_path,
        Store(tmp_path / "store"),
    )
    plan = planner.plan([planner.find_teacher("terrarium/suspect-0")])
    trained = {s.recipe.name: s.train for s in plan.students}
    assert len({job.content_key for job in trained.values()}) == 3
    assert trained["plain"].inputs["steering_vector"] is None
    # One direction serves every scale, and is there before any student.
    pushes = [trained[name].inputs["steering_vector"] for name in ("weak", "strong")]
    assert [push.relative_norm for push in pushes] == [0.5, 1]
    (where,) = {push.direction for push in pushes}
    jobs = plan.list_jobs()
    assert where.name in {job.content_key for job in jobs}
    for name in ("weak", "strong"):
        assert [job.kind for job in trained[name].needs].count("direction") == 1
    kinds = [job.kind for job in jobs]
    direction = next(i for i, job in enumerate(jobs) if job.content_key == where.name)
    steered = {trained[name].content_key for name in ("weak", "strong")}
    assert direction < min(i for i, job in enumerate(jobs) if job.content_key in steered)
    assert kinds.count("direction") == 1


class Bare:
    """A pack that asks about no drive."""

    name, sha256, traits = "bare", "0", ()

    def items(self, split: str) -> tuple[Item, ...]:
        return ()


def test_a_pack_without_questions_about_drives_is_refused(tmp_path: Path) -> None:
    pack: Any = Bare()
    base, named = ModelJobs(m0()), PackRef("bare", pack)
    with pytest.raises(PackError, match=r"`steering` finds its direction with auditable `build`"):
        create_steering_job(Steering(relative_norm=1), base, named, Runtime("float32", tmp_path))


def test_questions_that_judge_nobody_come_first() -> None:
    pack = load_pack("terrarium", relative_to=Path())
    assert {item.id for item in select_direction_items(pack)} <= {
        item.id for item in pack.items("build")
    }
    without = load_pack("assistant:flattery", relative_to=Path())
    assert not without.items("build")
    assert {item.trait for item in select_direction_items(without)} == {"flattery"}


def test_a_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"`steering.layer` 7 is not one of its 3 decoder layers"):
        find_steering_direction(
            tmp_path, base=m0(), pack="terrarium", layer=7, dtype="float32", cache=tmp_path
        )


def test_channels_that_sample_or_compare_are_not_steered() -> None:
    recipe = {
        "name": "r",
        "prompts": {"policy": "capability", "n": 1},
        "steering": {"relative_norm": 1},
    }
    training = {"steps": 1}
    for channel in ({"kind": "dpo"}, {"kind": "on_policy", "lmbda": 0.5}):
        with pytest.raises(ValueError, match="`steering` goes with the channels sft and logit_kd"):
            Recipe.model_validate(recipe | {"channel": channel, "training": training})
