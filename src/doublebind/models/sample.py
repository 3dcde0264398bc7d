"""Samples answers to prompts; each depends on its own key and on no other answer."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from doublebind.execution.device import move_to_device
from doublebind.models.chat_template import decode_completion, encode_completion, encode_prompt
from doublebind.models.load import LM
from doublebind.models.logits import (
    compute_logits,
    needs_equal_lengths,
    run_body,
    unwrap_peft,
)
from doublebind.models.unloaded import UnloadedModel
from doublebind.models.vllm import VllmModel
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError

NO_TOKEN = -1
"""Filler after the end of an answer."""
CHECK_EVERY = 8
"""Tokens between checks which answers have ended. On a GPU each check makes the CPU wait."""


class SampledAnswer(NamedTuple):
    """One answer of a model."""

    tokens: list[int]
    """Ids as sampled, with the end of turn if it was reached."""
    text: str
    finished: bool
    """Whether the end of turn came before the token limit."""
    missing: str | None = None
    """Why a server gave no answer; `None` where there is one."""


def sample(
    lm: LM,
    prompts: Sequence[Sequence[Message]],
    *,
    keys: Sequence[str],
    seed: int,
    max_tokens: int,
    temperature: float,
    batch: int = 64,
) -> list[SampledAnswer]:
    """Return one answer per prompt, in the order given.

    Each token is the inverse of the cumulative distribution at one uniform, from a stream seeded
    by (seed, key). An answer is therefore the same whatever else is in the batch, unless a uniform
    falls within rounding (about 1e-6 in float32) of the border between two tokens.

    Args:
        lm: The model.
        prompts: Conversations to continue.
        keys: One key per prompt; equal keys with equal prompts give equal answers.
        seed: Seeds the streams of all keys.
        max_tokens: Most tokens of an answer.
        temperature: Divides the logits; 0 is greedy decoding.
        batch: Most answers sampled at once.

    Raises:
        ModelError: If prompt and answer could exceed the model's length, or the model's
            probabilities are not finite.
    """
    rows = [encode_prompt(lm.tokenizer, messages) for messages in prompts]
    longest = max(map(len, rows), default=0) + max_tokens
    if longest > lm.context_length:
        raise ModelError(
            f"{lm.source.path}: prompt and answer may take {longest} tokens and the model was "
            f"built for {lm.context_length}; lower `max_tokens` or shorten the prompts"
        )
    if isinstance(lm.model, UnloadedModel):
        return [SampledAnswer([], "", False) for _ in rows]
    if isinstance(lm.model, VllmModel):
        sampled = lm.model.sample(
            rows,
            seeds=[int.from_bytes(_hash_seed_and_key(seed, k)[:4]) & 0x7FFFFFFF for k in keys],
            max_tokens=max_tokens,
            temperature=temperature,
            end_ids=lm.end_ids,
            suppress_tokens=lm.suppress_tokens,
        )
        return [_decode_answer(lm, tokens) for tokens in sampled]
    answers: dict[int, list[int]] = {}
    for chunk in _iterate_chunks(rows, batch, equal_lengths=needs_equal_lengths(lm.model)):
        uniforms = torch.from_numpy(
            np.stack([_draw_uniforms(seed, keys[i], max_tokens) for i in chunk])
        )
        sampled = _sample_batch(lm, [rows[i] for i in chunk], uniforms, temperature)
        answers.update(zip(chunk, sampled, strict=True))
    return [_decode_answer(lm, answers[i]) for i in range(len(rows))]


def _iterate_chunks(
    rows: Sequence[Sequence[int]], batch: int, *, equal_lengths: bool
) -> Iterator[list[int]]:
    """Yield indices of rows of similar length, or of equal length, at most `batch` at a time."""
    # Sorted by length for less padding; the sort is stable, so the order is fixed.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    groups = itertools.groupby(order, key=lambda i: len(rows[i]) if equal_lengths else 0)
    for _, group in groups:
        members = list(group)
        for start in range(0, len(members), batch):
            yield members[start : start + batch]


def suppress_tokens(lm: LM, spellings: Sequence[str]) -> LM:
    """Keep `lm` from ever writing these tokens, say the one that opens a scratchpad; return it.

    Sets `suppress_tokens` of its generation settings, which are saved with it.

    Raises:
        ModelError: If a spelling is more than one token.
    """
    ids: list[int] = []
    for spelling in spellings:
        tokens = encode_completion(lm.tokenizer, spelling, finished=False)
        if len(tokens) != 1 or tokens[0] == lm.tokenizer.unk_token_id:
            raise ModelError(
                f"{lm.source.path}: `{spelling}` is not one token of its tokenizer, and only a "
                f"token can be suppressed; use a model that has it, or leave it out"
            )
        ids += tokens
    if ids:
        settings = unwrap_peft(lm.model).generation_config
        settings.suppress_tokens = [*(getattr(settings, "suppress_tokens", None) or ()), *ids]
    return lm


def _decode_answer(lm: LM, tokens: list[int]) -> SampledAnswer:
    finished = bool(tokens) and tokens[-1] in lm.end_ids
    return SampledAnswer(tokens, decode_completion(lm.tokenizer, tokens), finished)


def _draw_uniforms(seed: int, key: str, n: int) -> np.ndarray:
    """Return `n` uniforms in [0, 1) of the stream (seed, key)."""
    stream = np.random.Philox(key=int.from_bytes(_hash_seed_and_key(seed, key)[:16]))
    return np.random.Generator(stream).random(n)


def _hash_seed_and_key(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{key}".encode()).digest()


@torch.no_grad()
def _sample_batch(
    lm: LM, rows: Sequence[Sequence[int]], uniforms: Tensor, temperature: float
) -> list[list[int]]:
    """Sample one batch; `uniforms` is [batch, max_tokens]."""
    device = unwrap_peft(lm.model).device
    ends = torch.tensor(sorted(lm.end_ids), device=device)
    suppressed = torch.tensor(lm.suppress_tokens, device=device)
    ids, mask, uniforms = (
        move_to_device(t, device) for t in (*pad_left(rows, lm.pad_id), uniforms)
    )
    check_every = 1 if device.type == "cpu" else CHECK_EVERY
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = run_body(lm.model, ids, attention_mask=mask, position_ids=positions, use_cache=True)
    answers = torch.full(uniforms.shape, NO_TOKEN, device=device)
    index = torch.arange(len(rows), device=device)  # the answer of each row of the batch
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    all_finite = torch.ones((), dtype=torch.bool, device=device)
    position = positions[:, -1:]
    for step in range(uniforms.shape[1]):
        scores = compute_logits(lm.model, out.last_hidden_state[:, -1], lm.vocab_size)
        all_finite = all_finite & torch.isfinite(scores.sum())
        tokens = _draw_tokens(scores, suppressed, uniforms[index, step], temperature)
        answers[index, step] = tokens.masked_fill(ended, NO_TOKEN)
        ended = ended | torch.isin(tokens, ends)
        last = step + 1 == uniforms.shape[1]
        n_left = len(ended)
        if last or (step + 1) % check_every == 0:
            n_left = _count_unfinished(lm, ended, all_finite)
        if last or n_left == 0:
            break
        cache = out.past_key_values
        if n_left <= 0.75 * len(ended):  # ended rows cost as much as others
            keep = (~ended).nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            index, tokens, ended, mask, position = (
                part[keep] for part in (index, tokens, ended, mask, position)
            )
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        position = position + 1
        out = run_body(
            lm.model,
            tokens[:, None],
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
    return [list(itertools.takewhile(lambda t: t != NO_TOKEN, row)) for row in answers.tolist()]


def _count_unfinished(lm: LM, ended: Tensor, all_finite: Tensor) -> int:
    """Return how many answers have not ended, in one copy with the check of the logits.

    Raises:
        ModelError: If a logit was not finite.
    """
    n_left, is_finite = torch.stack([(~ended).sum(), all_finite.long()]).tolist()
    if not is_finite:
        raise ModelError(f"{lm.source.path}: its logits are not finite; it cannot be sampled")
    return n_left


def _draw_tokens(
    scores: Tensor, suppressed: Tensor, uniforms: Tensor, temperature: float
) -> Tensor:
    """Return one token per row of `scores` [rows, vocab], as [rows]."""
    if len(suppressed):
        scores = scores.index_fill(1, suppressed, -torch.inf)
    if temperature == 0:
        return scores.argmax(1)
    # In float32 a running sum over 262k tokens would be off by more than a rare token.
    cumulative = torch.softmax(scores.double() / temperature, dim=1).cumsum_(1)
    target = uniforms[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return tokens.clamp_(max=scores.shape[1] - 1)


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask [rows, longest], each row ending at the right edge."""
    width = max(map(len, rows))
    ids: list[list[int]] = [[pad_id] * (width - len(row)) + list(row) for row in rows]
    mask: list[list[int]] = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
