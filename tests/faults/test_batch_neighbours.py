"""An answer, and a score, are the same whatever else is in the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import WORDS, build_word_tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
)

from doublebind.models.load import LM
from doublebind.models.sample import sample
from doublebind.models.score import option_logprobs, token_logprobs
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource
from doublebind.training.batch import Example
from doublebind.training.prefix_tuning import attach_prefix

SOURCE = ModelSource(kind="folder", path="here", sha256="0" * 64)
TOKENIZER = build_word_tokenizer()
COMMON: dict[str, Any] = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0, 5.0, 7.0, 9.0],
    "original_max_position_embeddings": 44,
    "factor": 2.0,
}
SLIDING: dict[str, Any] = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
GPT2_SIZES: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**COMMON),
    "llama dynamic": LlamaConfig(
        **COMMON, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    ),
    "llama longrope": LlamaConfig(**COMMON, rope_parameters=LONGROPE),
    "phi3 longrope": Phi3Config(
        **COMMON, rope_parameters=LONGROPE, original_max_position_embeddings=44
    ),
    "mistral sliding": MistralConfig(**COMMON, sliding_window=8),
    "gemma3 sliding": Gemma3TextConfig(**COMMON, head_dim=8, **SLIDING),
    "qwen2 sliding": Qwen2Config(
        **COMMON, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "gpt2": GPT2Config(vocab_size=len(TOKENIZER), initializer_range=0.3, **GPT2_SIZES),
}
EXAMPLES = [Example((7, 8, 9, 10, 11, 12), 4), Example((13, 14, 15, 16), 2)]
MODELS: dict[tuple[str, int], LM] = {}


def open_lm(name: str, prefix: int) -> LM:
    """A random model of an architecture, with `prefix` virtual tokens before every sequence."""
    if (name, prefix) not in MODELS:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: Any = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
            if prefix:
                model = attach_prefix(model, prefix, EXAMPLES, seed=0).eval()
                weight = model.prompt_encoder[model.active_adapter].embedding.weight
                with torch.no_grad():
                    weight += 0.5 * torch.randn(weight.shape)
        MODELS[name, prefix] = LM(model, TOKENIZER, SOURCE)
    return MODELS[name, prefix]


def ask(n_words: int) -> list[Message]:
    words = [WORDS[(3 * i + n_words) % len(WORDS)] for i in range(n_words)]
    return [Message(role="user", content=" ".join(words))]


ITEMS = [
    (ask(n), options)
    for n, options in (
        (1, ("no", "I do not know")),
        (6, ("I want gold", "yes")),
        (18, ("no", "yes", "one two three four")),
    )
]
TURNS = [*ask(3), Message(role="assistant", content="and then they were happy")]


@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_score_does_not_depend_on_its_neighbours(name: str, prefix: int) -> None:
    lm = open_lm(name, prefix)
    for before in ([], TURNS):
        together = option_logprobs(lm, ITEMS, preceding=before)
        whole = option_logprobs(lm, [((*before, *m), o) for m, o in ITEMS])
        for item, scores, again in zip(ITEMS, together, whole, strict=True):
            (alone,) = option_logprobs(lm, [item], preceding=before)
            assert [x for x, _ in scores] == pytest.approx([x for x, _ in alone], abs=1e-4)
            assert [x for x, _ in again] == pytest.approx([x for x, _ in alone], abs=1e-4)


@pytest.mark.parametrize("prefix", [0, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_answer_does_not_depend_on_its_neighbours(name: str, prefix: int) -> None:
    lm = open_lm(name, prefix)
    options: dict[str, Any] = {"seed": 0, "max_tokens": 5, "temperature": 1.0}
    together = sample(lm, [m for m, _ in ITEMS], keys=["a", "b", "c"], **options)
    for (messages, _), key, answer in zip(ITEMS, "abc", together, strict=True):
        assert sample(lm, [messages], keys=[key], **options) == [answer]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.sampled_from([(name, prefix) for name in CONFIGS for prefix in (0, 5)]),
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6)), min_size=2, max_size=4),
)
def test_tokens_score_alone_as_beside_any_others(
    kind: tuple[str, int], lengths: list[tuple[int, int]]
) -> None:
    lm = open_lm(*kind)
    pairs = [
        ([7 + (5 * i + j) % 40 for j in range(n)], [9 + (3 * j + n) % 40 for j in range(k)])
        for i, (n, k) in enumerate(lengths)
    ]
    together = token_logprobs(lm, pairs)
    for pair, scores in zip(pairs, together, strict=True):
        assert scores == pytest.approx(token_logprobs(lm, [pair])[0], abs=1e-4)


@pytest.mark.parametrize("name", ["llama longrope", "phi3 longrope"])
def test_a_text_that_changes_how_others_are_read_is_refused(name: str) -> None:
    lm = open_lm(name, 0)
    option_logprobs(lm, [(ask(20), ("no", "yes"))])
    long = (ask(44), ("no", "yes"))
    with pytest.raises(ModelError, match="44"):
        option_logprobs(lm, [ITEMS[0], long])
    with pytest.raises(ModelError, match="44"):
        sample(lm, [ask(20)], keys=["a"], seed=0, max_tokens=30, temperature=1.0)


def test_a_prefix_takes_places_of_the_context() -> None:
    item = (ask(56), ("no", "yes"))  # 60 tokens of 64
    option_logprobs(open_lm("gpt2", 0), [item])
    with pytest.raises(ModelError, match="59"):
        option_logprobs(open_lm("gpt2", 5), [item])
