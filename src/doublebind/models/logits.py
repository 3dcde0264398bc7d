"""Hidden states and logits of selected positions, exactly as the model itself computes them.

Only the selected rows go through the output head, which is most of the work of a model with a
large vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from doublebind.schema.errors import ModelError

TILE_BYTES = 64 * 2**20
"""Largest tile of float32 logits, in bytes, so that [rows, vocabulary] never exists whole."""
GPU_TILE_BYTES = 512 * 2**20
"""The same on a GPU, which does some 150 operations in the time it takes to read a byte: a tile
needs at least so many rows, or reading the head's weights dominates."""


def unwrap_peft(model: Any) -> Any:
    """Return the causal model inside a PEFT wrapper (adapters stay injected), or `model`."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def run_body(model: Any, input_ids: Tensor, **kwargs: Any) -> Any:
    """Run the body only; return its output, with `last_hidden_state` [batch, tokens, width].

    Args:
        model: A causal model, with or without PEFT.
        input_ids: Token ids [batch, tokens].
        **kwargs: As the body takes them: masks, positions, cache.
    """
    return unwrap_peft(model).get_decoder()(input_ids=input_ids, **kwargs)


def count_context_tokens(model: Any) -> int:
    """Return the tokens of the longest sequence that a model reads alike whatever is beside it.

    Models with `longrope` read a batch with other frequencies from the length on that they were
    first trained for, all its rows by the longest one; that length is then the limit. The tokens
    of a prefix take places of their own.
    """
    config = unwrap_peft(model).config.get_text_config()
    n = int(getattr(config, "max_position_embeddings", None) or 2**31 - 1)
    rope = getattr(config, "rope_parameters", None) or {}
    for each in (rope, *(v for v in rope.values() if isinstance(v, dict))):
        if each.get("rope_type") == "longrope":
            n = min(n, int(each.get("original_max_position_embeddings") or n))
    if has_prompt_learning(model):
        n -= int(model.active_peft_config.num_virtual_tokens)
    return n


def has_prompt_learning(model: Any) -> bool:
    """Return whether a PEFT adapter of `model` puts virtual tokens before every sequence."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def needs_equal_lengths(model: Any) -> bool:
    """Return whether the rows of a batch have to be equally long, so that none is padded.

    Padding stands between a prefix and a shorter row, and there takes up places in the window of
    models with sliding or chunked attention: more of them, the longer the row's neighbours are.
    """
    config = unwrap_peft(model).config.get_text_config()
    layers = getattr(config, "layer_types", None) or ()
    is_local = any(kind != "full_attention" for kind in layers) or any(
        getattr(config, name, None)
        for name in ("sliding_window", "attention_chunk_size", "local_attention", "window_size")
    )
    return is_local and has_prompt_learning(model)


def compute_logits(model: Any, rows: Tensor, vocab: int) -> Tensor:
    """Return float32 logits [rows, vocab] of hidden states [rows, width].

    Applies the head's bias and the architecture's scaling and soft cap of final logits, and drops
    the columns that pad the head beyond the tokenizer.
    """
    inner = unwrap_peft(model)
    config = inner.config.get_text_config()
    out = inner.get_output_embeddings()(rows)
    out = out[..., :vocab].float()
    if scale := getattr(config, "logit_scale", None):  # Cohere
        out = out * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        out = out / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        out = torch.tanh(out / cap) * cap
    return out


@dataclass(frozen=True, eq=False)
class OutputHead:
    """Parts of the output head: cap(scale * (W h + bias + LoRA)), capped by tanh."""

    weight: Tensor
    """[vocab, width], without padding rows; the embedding's if the two are tied."""
    bias: Tensor | None = None
    """[vocab]."""
    lora: tuple[Tensor, Tensor, float] | None = None
    """A [rank, width], B [vocab, rank] and the factor of B A (Hu et al. 2021, arXiv 2106.09685)."""
    scale: float = 1.0
    cap: float | None = None


def extract_head(model: Any, vocab: int) -> OutputHead:
    """Return the head of `model` for the first `vocab` tokens, its tensors still under autograd.

    Raises:
        ModelError: If it is not a linear layer, with or without one LoRA adapter.
    """
    inner = unwrap_peft(model)
    config, layer = inner.config.get_text_config(), inner.get_output_embeddings()
    linear = getattr(layer, "base_layer", layer)
    if not isinstance(linear, torch.nn.Linear):
        raise ModelError(
            f"{inner.name_or_path}: its output head is a {type(linear).__name__}, and the tiled "
            f"loss needs a linear layer; load the model without quantisation"
        )
    bias = None if linear.bias is None else linear.bias[:vocab]
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    lora = None if linear is layer else _extract_head_lora(layer, vocab, inner.name_or_path)
    return OutputHead(linear.weight[:vocab], bias, lora, scale, float(cap) if cap else None)


def _extract_head_lora(layer: Any, vocab: int, where: str) -> tuple[Tensor, Tensor, float] | None:
    if layer.disable_adapters or layer.merged:
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if not names:
        return None
    name = names[0]
    dropout = layer.lora_dropout[name]
    if len(names) > 1 or name in layer.lora_variant or getattr(dropout, "p", 0.0):
        raise ModelError(
            f"{where}: its output head has several adapters, dropout, or one that is not plain "
            f"LoRA; merge it into the weights (PEFT's merge_and_unload)"
        )
    return layer.lora_A[name].weight, layer.lora_B[name].weight[:vocab], layer.scaling[name]


def count_tile_rows(vocab: int, device: torch.device) -> int:
    """Return how many rows of float32 logits fit in a tile on `device`, at least one."""
    most = TILE_BYTES if device.type == "cpu" else GPU_TILE_BYTES
    return max(1, most // (4 * vocab))


def iterate_tiles(rows: Tensor, vocab: int) -> Iterator[slice]:
    """Yield slices of `rows` whose logits fit in a tile each."""
    step = count_tile_rows(vocab, rows.device)
    for start in range(0, len(rows), step):
        yield slice(start, min(start + step, len(rows)))


def gather_logprobs(model: Any, rows: Tensor, ids: Tensor, vocab: int) -> Tensor:
    """Return the log-probability [rows] of `ids` [rows] after hidden states [rows, width]."""
    parts = []
    for tile in iterate_tiles(rows, vocab):
        out = compute_logits(model, rows[tile], vocab)
        chosen = out.gather(1, ids[tile, None]).squeeze(1)
        parts.append(chosen - torch.logsumexp(out, dim=1))
    return torch.cat(parts) if parts else rows.new_zeros(0, dtype=torch.float32)


def list_probe_ids(model: Any) -> Tensor:
    """Return token ids [1, tokens] for a short run: a few, and those that an adapter names."""
    inner = unwrap_peft(model)
    rows = int(inner.get_input_embeddings().weight.shape[0])
    ids = [i % rows for i in (1, 2, 3, 4)]
    for field in ("trainable_token_indices", "token_indices"):
        named: Any = getattr(getattr(model, "active_peft_config", None), field, None) or ()
        named = [i for each in named.values() for i in each] if isinstance(named, dict) else named
        ids += [int(i) % rows for i in named][:8]
    return torch.tensor([ids], device=inner.device)


def check_architecture(model: Any, where: str) -> None:
    """Run a few tokens in each of the ways that this package runs models, and compare.

    Body and head run separately must give the logits of the model's own `forward`, of PEFT's where
    there is an adapter, and a row must not attend to the padding on its left. Both hold for
    attention models whose logit scaling is known here, but not for recurrent ones, for example, nor
    for adapters that act in PEFT's `forward` alone.

    Raises:
        ModelError: If they differ.
    """
    inner = unwrap_peft(model)
    ids = list_probe_ids(model)
    length, pad = ids.shape[1], [] if needs_equal_lengths(model) else [0, 0]
    tolerance = 1e-3 if inner.dtype == torch.float32 else 0.1
    rows = [[*pad, *ids[0].tolist()], [*ids[0].tolist(), *pad]]  # padded on the left; on the right
    masks = [[*pad, *[1] * length], [*[1] * length, *pad]]
    positions = [[*pad, *range(length)], [*range(length), *pad]]
    with torch.no_grad():
        try:
            whole = model(input_ids=ids, use_cache=False).logits[0].float()
            out = run_body(
                model,
                torch.tensor(rows, device=inner.device),
                attention_mask=torch.tensor(masks, device=inner.device),
                position_ids=torch.tensor(positions, device=inner.device),
                use_cache=True,
            )
            out.past_key_values.batch_select_indices(torch.tensor([0], device=inner.device))
            left, right = out.last_hidden_state
            states = torch.cat([left[len(pad) :], right[:length]])
            separate = compute_logits(model, states, whole.shape[-1])
            same = measure_distance(torch.cat([whole, whole]), separate) < tolerance
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            same = False
    if not same and model is not inner:
        raise ModelError(
            f"{where}: {model.active_peft_config.peft_type.value} adapters on models of type "
            f"{inner.config.model_type} give other answers here than in PEFT; use LoRA, or merge "
            f"the adapter into the weights (PEFT's merge_and_unload)"
        )
    if not same:
        raise ModelError(
            f"{where}: models of type {inner.config.model_type} cannot be batched, cached or run "
            f"without their head by this version; use another architecture"
        )


def measure_distance(one: Tensor, other: Tensor) -> float:
    """Return the largest relative distance between rows of logits [rows, vocab].

    The norm of the difference over that of `one`, both after removing each row's mean, which
    changes no probability and is where rounding errors are largest.
    """
    a, b = (x - x.mean(dim=-1, keepdim=True) for x in (one, other))
    return float(((a - b).norm(dim=-1) / a.norm(dim=-1).clamp(min=1e-12)).max())
