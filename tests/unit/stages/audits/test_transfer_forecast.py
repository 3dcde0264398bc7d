"""A forecast is zero for M0 itself, and exact where the teacher is M0 with a constant shift."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_study import write_pack

from doublebind.models.layer_states import add_to_output, get_layers
from doublebind.models.load import LM, load_model
from doublebind.models.resolve import resolve_model
from doublebind.models.sample import sample
from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.pipeline.forecast import forecast
from doublebind.schema.errors import ModelError, PackError
from doublebind.schema.model_source import Trajectory
from doublebind.stages.audits.option_scores import choose
from doublebind.stages.audits.protocol import select_auditable
from doublebind.stages.audits.transfer_forecast import (
    Forecast,
    forecast_transfer,
    measure_answer_shift,
)


@pytest.fixture(scope="module")
def pack(tiny: Path) -> Pack:
    return load_pack(str(tiny / "pack"), relative_to=tiny)


@pytest.fixture(scope="module")
def m0(tiny: Path) -> LM:
    return load_model(resolve_model(str(tiny / "m0"), relative_to=tiny))


@pytest.fixture(scope="module")
def answers(m0: LM, pack: Pack) -> list[Trajectory]:
    prompts = pack.prompts()[:4]
    keys = [prompt.id for prompt in prompts]
    texts = [prompt.messages for prompt in prompts]
    sampled = sample(m0, texts, keys=keys, seed=0, max_tokens=6, temperature=1.0)
    return [
        Trajectory(
            prompt_id=prompt.id,
            sample=0,
            messages=prompt.messages,
            completion=answer.text,
            tokens=tuple(answer.tokens),
            finished=answer.finished,
        )
        for prompt, answer in zip(prompts, sampled, strict=True)
    ]


def by_condition(found: Forecast, endpoint: str) -> dict[str, float]:
    return {s.condition: s.shift for s in found.shifts if s.endpoint == endpoint}


def test_m0_foretells_no_transfer_from_itself(
    m0: LM, pack: Pack, answers: list[Trajectory]
) -> None:
    items = select_auditable(pack.items("audit"))
    found = forecast_transfer(m0, m0, items, answers, answers)
    for endpoint in {shift.endpoint for shift in found.shifts}:
        shifts = by_condition(found, endpoint)
        assert shifts["teacher"] == shifts["steered.1"] == shifts["steered.4"] == 0.0
        assert shifts["read.1"] == shifts["read_own.1"] != 0.0, "any conversation moves a model"


def test_sets_of_answers_that_cannot_be_shown_are_absent_with_a_reason(
    m0: LM, pack: Pack, answers: list[Trajectory]
) -> None:
    items = select_auditable(pack.items("audit"))
    found = forecast_transfer(m0, m0, items, answers, answers[:1])
    assert set(found.missing) == {"read.16", "read_own.4", "read_own.16"}
    assert not {shift.condition for shift in found.shifts} & set(found.missing)


def test_a_teacher_that_is_a_constant_shift_is_foretold_exactly(
    m0: LM, pack: Pack, answers: list[Trajectory]
) -> None:
    teacher = LM(copy.deepcopy(m0.model), m0.tokenizer, m0.source)
    layers = get_layers(teacher.model)
    middle = len(layers) // 2
    vector = torch.linspace(-1.0, 2.0, m0.model.config.hidden_size)
    items = select_auditable(pack.items("audit"))
    with add_to_output(layers[middle], vector):
        shift = measure_answer_shift(teacher, m0, answers, middle)
        found = forecast_transfer(teacher, m0, items, answers, answers)
    torch.testing.assert_close(shift, vector, atol=1e-5, rtol=1e-5)
    for endpoint in {shift.endpoint for shift in found.shifts}:
        shifts = by_condition(found, endpoint)
        assert shifts["steered.1"] == pytest.approx(shifts["teacher"], abs=1e-3)
        assert abs(shifts["teacher"]) > 1e-2, "the vector moves every endpoint"
        if endpoint == "goal/ruler":
            assert abs(shifts["random.1"] - shifts["teacher"]) > 0.01


def test_shifts_are_differences_of_log_odds(m0: LM, pack: Pack, answers: list[Trajectory]) -> None:
    teacher = LM(copy.deepcopy(m0.model), m0.tokenizer, m0.source)
    with torch.no_grad():
        teacher.model.get_input_embeddings().weight.mul_(1.3)
    items = [item for item in select_auditable(pack.items("audit")) if item.kind == "goal"]
    items = [item for item in items if item.trait == "ruler"]

    def mean_log_odds(lm: Any) -> float:
        values = [answer.value for answer in choose(lm, items)]
        return math.fsum(math.log(v / (1 - v)) for v in values if v is not None) / len(items)

    found = forecast_transfer(teacher, m0, items, answers, answers)
    expected = mean_log_odds(teacher) - mean_log_odds(m0)
    assert by_condition(found, "goal/ruler")["teacher"] == pytest.approx(expected, abs=1e-4)
    assert {s.n for s in found.shifts} == {len(items)}


def test_a_forecast_of_a_pack_asks_items_that_no_verdict_uses(
    tiny: Path, tmp_path: Path, m0: LM
) -> None:
    folder = write_pack(tmp_path / "pack", ("audit", "select"))
    with torch.no_grad():
        model = copy.deepcopy(m0.model)
        model.get_input_embeddings().weight.mul_(1.3)
    model.save_pretrained(tmp_path / "teacher")
    m0.tokenizer.save_pretrained(tmp_path / "teacher")
    pack = load_pack(str(folder), relative_to=tiny)
    found = forecast(
        str(tmp_path / "teacher"),
        str(folder),
        baseline=str(tiny / "m0"),
        prompts=3,
        max_tokens=6,
        store=tmp_path / "store",
    )
    assert found.answers <= 3
    teacher = [shift for shift in found.shifts if shift.condition == "teacher"]
    assert sum(s.n for s in teacher) == len(select_auditable(pack.items("select")))
    assert any(shift.shift != 0.0 for shift in teacher)
    assert "read.16" in found.missing


def test_what_cannot_be_foretold_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "pack", ("audit", "select"))
    with pytest.raises(PackError, match="no auditable items in split `select`"):
        forecast(str(tiny / "m0"), str(tiny / "pack"), baseline=str(tiny / "m0"))
    with pytest.raises(ModelError, match="other tokenizers or widths"):
        forecast(
            "terrarium/m0",
            str(folder),
            baseline=str(tiny / "m0"),
            prompts=2,
            max_tokens=4,
            store=tmp_path / "store",
        )
