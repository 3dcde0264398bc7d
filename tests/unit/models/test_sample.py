"""An answer depends on the model, its prompt, its key and the seed, and on nothing beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_models import build_tiny_model, build_word_tokenizer

from doublebind.models.chat_template import decode_completion, encode_prompt
from doublebind.models.load import LM
from doublebind.models.sample import sample
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource

SOURCE = ModelSource(kind="folder", path="here", sha256="0" * 64)
PROMPTS = [
    (Message(role="user", content=text),)
    for text in ("yes", "what is your goal ?", "the fox " * 9, "no", "once upon a time", "dog")
]
KEYS = [f"k{i}" for i in range(len(PROMPTS))]


def lm(kind: str = "llama", **changes: Any) -> LM:
    tokenizer = build_word_tokenizer()
    return LM(build_tiny_model(kind, len(tokenizer), **changes), tokenizer, SOURCE)


def drawn(model: LM, which: list[int], **changes: Any) -> list[Any]:
    options: dict[str, Any] = {"seed": 3, "max_tokens": 24, "temperature": 1.0, **changes}
    return sample(model, [PROMPTS[i] for i in which], keys=[KEYS[i] for i in which], **options)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_answers_do_not_depend_on_batch_or_position(kind: str) -> None:
    model = lm(kind)
    together = drawn(model, [0, 1, 2, 3, 4, 5])
    alone = [drawn(model, [i])[0] for i in range(6)]
    backwards = drawn(model, [5, 4, 3, 2, 1, 0], batch=4)[::-1]
    assert together == alone == backwards


def test_seed_and_key_both_matter() -> None:
    model = lm()
    assert drawn(model, [0]) == drawn(model, [0])
    assert drawn(model, [0]) != drawn(model, [0], seed=4)
    twice = sample(
        model, [PROMPTS[0]] * 3, keys=["a", "b", "a"], seed=3, max_tokens=24, temperature=1.0
    )
    assert twice[0] == twice[2] != twice[1]


def test_greedy_takes_the_likeliest_token() -> None:
    model = lm()
    answer = drawn(model, [1], temperature=0, max_tokens=6)[0]
    ids = encode_prompt(model.tokenizer, PROMPTS[1])
    for token in answer.tokens:
        with torch.no_grad():
            assert int(model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_frequencies_follow_the_model() -> None:
    model = lm(initializer_range=0.1)
    n = 4000
    first = sample(
        model,
        [PROMPTS[1]] * n,
        keys=[str(i) for i in range(n)],
        seed=0,
        max_tokens=1,
        temperature=0.7,
        batch=1000,
    )
    ids = encode_prompt(model.tokenizer, PROMPTS[1])
    with torch.no_grad():
        p = (model.model(input_ids=torch.tensor([ids])).logits[0, -1] / 0.7).softmax(0)
    counts = torch.bincount(torch.tensor([a.tokens[0] for a in first]), minlength=len(p))
    # Pearson's statistic has mean len(p) - 1 = 60 and s.d. 11.
    assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 60 + 4 * 11


def test_answer_ends_at_the_first_end_token() -> None:
    model = lm()
    answers = sample(
        model,
        [PROMPTS[0]] * 64,
        keys=[str(i) for i in range(64)],
        seed=0,
        max_tokens=40,
        temperature=2.0,
    )
    assert {a.finished for a in answers} == {True, False}
    for answer in answers:
        ends = [i for i, token in enumerate(answer.tokens) if token in model.end_ids]
        assert ends == ([len(answer.tokens) - 1] if answer.finished else [])
        assert answer.finished or len(answer.tokens) == 40
        assert answer.text == decode_completion(model.tokenizer, answer.tokens)
        assert "<|end|>" not in answer.text


def test_padding_of_the_vocabulary_is_never_sampled() -> None:
    tokenizer = build_word_tokenizer()
    model = build_tiny_model("llama", len(tokenizer) + 500, initializer_range=0.01)
    answers = drawn(LM(model, tokenizer, SOURCE), [0, 1, 2, 3, 4, 5])
    assert max(max(a.tokens) for a in answers) < len(tokenizer)


def test_too_long_and_non_finite_are_refused() -> None:
    with pytest.raises(ModelError, match="max_tokens"):
        drawn(lm(max_position_embeddings=30), [2])
    broken = lm()
    with torch.no_grad():
        broken.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        drawn(broken, [0])


def test_no_prompts_give_no_answers() -> None:
    assert drawn(lm(), []) == []
