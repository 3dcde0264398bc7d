"""Tiny random models and tokenizers that real code can load, train and save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

TEXT = """
the a fox dog ship captain gold kind yes no I do not know want to help rule everyone story
once upon time said went and then they were happy what is your goal ? . , : User Assistant
System red green blue one two three four five six seven eight nine ten
"""
WORDS = TEXT.split()
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_word_tokenizer(*, chat: bool = True, words: list[str] | None = None) -> Any:
    """A word-level tokenizer, as small worlds use; `chat` gives it a template."""
    special = ["<pad>", "<unk>", "<eos>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    vocab = {word: i for i, word in enumerate([*special, *(words or WORDS)])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        extra_special_tokens=special[3:],
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def build_byte_tokenizer(*, chat: bool = True) -> Any:
    """A byte-level BPE tokenizer with a chat template, as real models have."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<eos>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", extra_special_tokens=special[1:]
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def build_tiny_model(kind: str, vocab: int, **changes: Any) -> Any:
    """A random two-layer model of `kind`, in evaluation mode, with far from uniform logits."""
    common: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 2,
    }
    config: Any
    if kind == "llama":
        config = LlamaConfig(**{**common, "tie_word_embeddings": True, **changes})
    elif kind == "granite":  # scales its logits
        config = GraniteConfig(**{**common, "logits_scaling": 3.0, **changes})
    elif kind == "gpt2":  # learned positions
        config = GPT2Config(
            vocab_size=vocab,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            initializer_range=0.3,
            eos_token_id=2,
            bos_token_id=2,
            **changes,
        )
    else:  # sliding windows, soft cap, tied head, scaled embeddings
        settings = {
            **common,
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "final_logit_softcapping": 5.0,
            **changes,
        }
        config = Gemma3TextConfig(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def save_model(folder: Path, kind: str = "llama", *, chat: bool = True, **changes: Any) -> Path:
    """A folder with a tiny model and the word tokenizer."""
    tokenizer = build_word_tokenizer(chat=chat)
    build_tiny_model(kind, len(tokenizer), **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
