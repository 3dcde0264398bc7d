"""Training starts from the model that is audited, and refuses to start on nothing."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.tiny_models import build_tiny_model
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from doublebind.models.teacher_cache import TeacherTargets
from doublebind.schema.errors import ModelError
from doublebind.schema.recipe import Lora, Training
from doublebind.training import loop, tiled_backward
from doublebind.training.batch import Example, collate, shuffle_epochs
from doublebind.training.loop import TrainingSet, prepare_model
from doublebind.training.preference import PreferencePair, ScoredAnswer, train_dpo
from doublebind.training.prefix_tuning import attach_prefix
from doublebind.training.training_mode import set_training_mode, train_without_base_dropout
from doublebind.training.uld import train_uld

VOCAB = 64
EXAMPLES = [Example(tuple((7 * i + j) % VOCAB for j in range(12)), 4) for i in range(6)]


def settings(**changes: Any) -> Training:
    values: dict[str, Any] = {"steps": 1, "batch": 4, "lr": 0.01, "max_length": 64}
    return Training.model_validate(values | {"lora": {"rank": 2, "alpha": 4}} | changes)


def build_opt() -> Any:
    """A model whose dropout is an argument of functions, and that skips layers in training."""
    config = OPTConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32, dropout=0.5, attention_dropout=0.5,
        layerdrop=0.9, init_std=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OPTForCausalLM(config).eval()


def build(kind: str) -> Any:
    if kind == "opt":
        return build_opt()
    rates = {"gpt2": {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}}
    return build_tiny_model(kind, VOCAB, **rates.get(kind, {"attention_dropout": 0.5}))


def score(model: Any, examples: Sequence[Example]) -> list[list[float]]:
    """Log-probabilities of the supervised tokens of each example."""
    rows: list[list[float]] = []
    for example in examples:
        ids = torch.tensor([example.input_ids])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits.float().log_softmax(-1)[0, :-1]
        chosen = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        rows.append(chosen[example.first_supervised - 1 :].tolist())
    return rows


KINDS = ["llama", "gpt2", "granite", "gemma", "opt"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4)])
def test_the_first_preference_loss_is_log_2_whatever_dropout_the_base_declares(
    kind: str, lora: Lora | None
) -> None:
    model = build(kind)
    answers = [ScoredAnswer(e, r) for e, r in zip(EXAMPLES, score(model, EXAMPLES), strict=True)]
    pairs = [PreferencePair(a, b) for a, b in zip(answers[::2], answers[1::2], strict=True)]
    log = train_dpo(
        prepare_model(model, lora, 0), pairs, beta=0.1, settings=settings(), seed=0, vocab=VOCAB,
        pad_id=0,
    )  # fmt: skip
    assert log.first_loss == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_loss_is_that_of_the_audited_model(kind: str) -> None:
    model = build(kind)
    expected = -math.fsum(x for row in score(model, EXAMPLES) for x in row)
    n = sum(len(e.input_ids) - e.first_supervised for e in EXAMPLES)
    data = TrainingSet(EXAMPLES)
    log = loop.train(
        prepare_model(model, Lora(rank=2, alpha=4), 0), data, settings=settings(batch=6), seed=0
    )
    assert log.first_loss == pytest.approx(expected / n, abs=1e-4)
    assert not any(module.training for module in model.modules())


def test_an_adapters_own_dropout_stays_on() -> None:
    from peft import LoraConfig, get_peft_model

    model = build_tiny_model("gpt2", VOCAB, resid_pdrop=0.5)
    config = LoraConfig(r=2, lora_dropout=0.5, target_modules=["c_attn"], fan_in_fan_out=True)
    adapted = get_peft_model(model, config)
    set_training_mode(adapted)
    on = {name for name, m in adapted.named_modules() if isinstance(m, nn.Dropout) and m.training}
    assert on
    assert all("lora_dropout" in name for name in on)


def test_blocks_that_save_memory_still_do_and_drop_nothing() -> None:
    model = build_opt().requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an alias of this method is to come
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = collate(EXAMPLES, 0, pack=False)
    with torch.no_grad():
        plain = tiled_backward.compute_supervised_states(model, batch)
    with train_without_base_dropout(model):
        layer = model.get_decoder().layers[0]
        assert layer.training
        states = tiled_backward.compute_supervised_states(model, batch)
    assert torch.allclose(plain, states.detach(), atol=1e-5)
    assert layer.dropout == 0.5
    assert not layer.training


def uld(examples: Sequence[Example], **changes: Any) -> Any:
    n = sum(len(e.input_ids) - e.first_supervised for e in examples)
    logprobs = torch.full((n, 2), math.log(0.4))
    targets: Any = type("Targets", (), {"logprobs": logprobs, "tail": torch.full((n,), 0.2)})()
    rows = iter(range(n))
    aligned = [[next(rows) for _ in e.input_ids[e.first_supervised :]] for e in examples]
    cached: TeacherTargets = targets
    return train_uld(
        prepare_model(build_tiny_model("llama", VOCAB), Lora(rank=2, alpha=4), 0),
        TrainingSet(examples, cached), aligned, weight=1.0, settings=settings(**changes), seed=0,
        vocab=VOCAB,
    )  # fmt: skip


def test_a_length_that_leaves_nothing_supervised_is_refused_before_the_first_step() -> None:
    late = [Example(e.input_ids, 10) for e in EXAMPLES]
    with pytest.raises(ModelError, match=r"no token is supervised.*`max_length` 8; raise it"):
        uld(late, max_length=8)
    with pytest.raises(ModelError, match=r"no token is supervised.*`max_length` 8; raise it"):
        loop.train(
            prepare_model(build_tiny_model("llama", VOCAB), None, 0),
            TrainingSet(late), settings=settings(max_length=8), seed=0,
        )  # fmt: skip
    with pytest.raises(ModelError, match="no example is left to train on; raise `max_length`"):
        next(shuffle_epochs(0, seed=0))
    with pytest.raises(ModelError, match="no example is left to train on"):
        next(loop.iterate_batches([Example((1, 2), 2)], settings(), seed=0))
    with pytest.raises(ModelError, match="text of prompts, and there is none"):
        attach_prefix(build_tiny_model("llama", VOCAB), 4, [], 0)


def test_examples_beyond_the_length_are_left_out_counted_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.getLogger("doublebind.training").addHandler(caplog.handler)
    long = Example(tuple(range(20)), 16)
    for log in (
        uld([*EXAMPLES, long], max_length=14),
        loop.train(
            prepare_model(build_tiny_model("llama", VOCAB), Lora(rank=2, alpha=4), 0),
            TrainingSet([*EXAMPLES, long]), settings=settings(max_length=14), seed=0,
        ),
    ):  # fmt: skip
        assert log.dropped == 1
    assert "1 of 7 examples have no supervised token within `max_length` 14" in caplog.text
    caplog.clear()
    assert uld(EXAMPLES).dropped == 0
    assert not caplog.text
