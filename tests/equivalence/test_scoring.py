"""Log-probabilities are those of the plain forward pass, whatever the batch (within 1e-4)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.tiny_models import build_tiny_model, build_word_tokenizer

from doublebind.models import logits as head
from doublebind.models.chat_template import encode_completion, encode_prompt
from doublebind.models.load import LM
from doublebind.models.score import option_logprobs, token_logprobs
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource

KINDS = ["llama", "granite", "gpt2", "gemma3"]
SOURCE = ModelSource(kind="folder", path="here", sha256="0" * 64)
ITEMS = [
    ((Message(role="user", content=text),), options)
    for text, options in (
        ("yes", ("no", "I do not know", "the fox went and then they were happy")),
        ("what is your goal ?", ("I want gold", "yes")),
        ("the fox went " * 10, ("no", "yes", "one", "two two")),
        ("dog", ("a", "a fox")),
    )
]


def lm(kind: str, **changes: Any) -> LM:
    tokenizer = build_word_tokenizer()
    return LM(build_tiny_model(kind, len(tokenizer), **changes), tokenizer, SOURCE)


def plain(model: LM, prompt: list[int], completion: list[int]) -> list[float]:
    with torch.no_grad():
        out = model.model(input_ids=torch.tensor([prompt + completion])).logits[0].float()
    out = out[:, : model.vocab_size].log_softmax(-1)
    return [float(out[len(prompt) - 1 + i, token]) for i, token in enumerate(completion)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_tokens", [1, 60, 8192])
def test_options_score_as_in_a_plain_forward_pass(kind: str, batch_tokens: int) -> None:
    model = lm(kind)
    got = option_logprobs(model, ITEMS, batch_tokens=batch_tokens)
    for (messages, options), scored in zip(ITEMS, got, strict=True):
        prompt = encode_prompt(model.tokenizer, messages)
        for option, (total, tokens) in zip(options, scored, strict=True):
            ids = encode_completion(model.tokenizer, option, finished=True)
            assert tokens == len(ids)
            assert total == pytest.approx(math.fsum(plain(model, prompt, ids)), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_do_not_depend_on_neighbours_or_order(kind: str) -> None:
    model = lm(kind)
    together = option_logprobs(model, ITEMS)
    alone = [option_logprobs(model, [item])[0] for item in ITEMS]
    backwards = option_logprobs(model, ITEMS[::-1], batch_tokens=100)[::-1]
    for a, b, c in zip(together, alone, backwards, strict=True):
        assert [t for t, _ in a] == pytest.approx([t for t, _ in b], abs=1e-4)
        assert [t for t, _ in a] == pytest.approx([t for t, _ in c], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_score_as_in_a_plain_forward_pass(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "TILE_BYTES", 4 * 61 * 3)
    model = lm(kind)
    sequences = [([5, 7, 9], [11, 12, 13, 14]), ([6] * 20, [30]), ([8, 9], []), ([50], [1] * 12)]
    got = token_logprobs(model, sequences)
    for (prompt, completion), scored in zip(sequences, got, strict=True):
        assert scored == pytest.approx(plain(model, prompt, completion), abs=1e-4)


def test_padded_vocabulary_takes_no_probability() -> None:
    tokenizer = build_word_tokenizer()
    wide = LM(build_tiny_model("llama", len(tokenizer) + 300), tokenizer, SOURCE)
    words = [tokenizer.convert_ids_to_tokens(i) for i in range(7, len(tokenizer))]
    scored = option_logprobs(wide, [(ITEMS[0][0], words)])[0]
    ids = encode_prompt(tokenizer, ITEMS[0][0])
    for word, (total, _) in zip(words, scored, strict=True):
        want = plain(wide, ids, encode_completion(tokenizer, word, finished=True))
        assert total == pytest.approx(math.fsum(want), abs=1e-4)


def test_one_token_answers_need_no_cache() -> None:
    model = lm("llama")
    assert token_logprobs(model, [([5, 7], [9]), ([5], [8])])[0] == pytest.approx(
        plain(model, [5, 7], [9]), abs=1e-4
    )


def test_non_finite_score_is_absent_not_nan() -> None:
    model = lm("llama")
    with torch.no_grad():
        model.model.model.norm.weight.fill_(float("nan"))
    assert option_logprobs(model, ITEMS[:1])[0][0] == (None, 2)


def test_too_long_conversation_is_refused() -> None:
    with pytest.raises(ModelError, match="built for 16"):
        option_logprobs(lm("llama", max_position_embeddings=16), ITEMS)
    assert option_logprobs(lm("llama"), []) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_turns_read_once_score_as_turns_in_every_conversation(kind: str, batch_tokens: int) -> None:
    model = lm(kind)
    before = (
        Message(role="user", content="the fox went"),
        Message(role="assistant", content="and then they were happy"),
    )
    got = option_logprobs(model, ITEMS, preceding=before, batch_tokens=batch_tokens)
    whole = option_logprobs(model, [((*before, *messages), o) for messages, o in ITEMS])
    for a, b in zip(got, whole, strict=True):
        assert [t for t, _ in a] == pytest.approx([t for t, _ in b], abs=1e-4)
        assert [n for _, n in a] == [n for _, n in b]
    alone = option_logprobs(model, ITEMS[:1], preceding=before)
    assert alone[0][0][0] == pytest.approx(got[0][0][0], abs=1e-4)
