"""Lets a model answer prompts, each answer depending on its own key and on nothing beside it.

Knows the key-value cache and batching. Does not know what prompts are for or who is asked.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from doublebind.execution.device import move_to_device
from doublebind.models.chat_template import decode_completion, encode_completion, encode_prompt
from doublebind.models.load import LM
from doublebind.models.logits import compute_logits, run_body, unwrap_peft
from doublebind.models.vllm import VllmModel
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError

NO_TOKEN = -1
"""Stands where an answer has no token."""
CHECK_EVERY = 8
"""Tokens between looks at which answers have ended, where looking makes the CPU wait for a GPU."""


class SampledAnswer(NamedTuple):
    """One answer."""

    tokens: list[int]
    """Ids as sampled, with the end of turn where it was reached."""
    text: str
    finished: bool
    """Whether the end of turn came before the token limit."""


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

    Draws by inverting the cumulative distribution at one uniform number per token, from a stream
    seeded by (seed, key). An answer is therefore the same whatever else is in the batch, unless a
    uniform falls within rounding (about 1e-6 in float32) of the border between two tokens.

    Args:
        lm: The model.
        prompts: Conversations to continue.
        keys: One name per prompt; equal keys with equal prompts give equal answers.
        seed: Common to all keys.
        max_tokens: Most tokens of an answer.
        temperature: Divides the logits; 0 takes the likeliest token.
        batch: Most answers made at once.

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
    if isinstance(lm.model, VllmModel):
        seeds = [int.from_bytes(_hash_seed_and_key(seed, key)[:4]) & 0x7FFFFFFF for key in keys]
        drawn = lm.model.sample(
            rows,
            seeds=seeds,
            max_tokens=max_tokens,
            temperature=temperature,
            end_ids=lm.end_ids,
            suppress_tokens=lm.suppress_tokens,
        )
        return [_decode_answer(lm, tokens) for tokens in drawn]
    # Like lengths together: less padding. Ties by position, so the order is fixed.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    answers: dict[int, list[int]] = {}
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        noise = np.stack([_draw_uniforms(seed, keys[i], max_tokens) for i in chunk])
        drawn = _sample_batch(lm, [rows[i] for i in chunk], torch.from_numpy(noise), temperature)
        answers.update(zip(chunk, drawn, strict=True))
    return [_decode_answer(lm, answers[i]) for i in range(len(rows))]


def suppress_tokens(lm: LM, spellings: Sequence[str]) -> LM:
    """Keep `lm` from ever writing `marks`, say the one that opens a scratchpad; return it.

    Its generation settings say so, in transformers' own words, and are saved with it.

    Raises:
        ModelError: If a mark is more than one token.
    """
    ids: list[int] = []
    for mark in spellings:
        found = encode_completion(lm.tokenizer, mark, finished=False)
        if len(found) != 1 or found[0] == lm.tokenizer.unk_token_id:
            raise ModelError(
                f"{lm.source.path}: `{mark}` is not one token of its tokenizer, and only a token "
                f"can be barred; use a model that has it, or leave the mark out"
            )
        ids += found
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
    """Decode one batch; `noise` is [batch, max_tokens]."""
    device = unwrap_peft(lm.model).device
    ends, barred = (
        torch.tensor(part, device=device) for part in (sorted(lm.end_ids), lm.suppress_tokens)
    )
    ids, mask, uniforms = (
        move_to_device(t, device) for t in (*pad_left(rows, lm.pad_id), uniforms)
    )
    look_every = 1 if device.type == "cpu" else CHECK_EVERY
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = run_body(lm.model, ids, attention_mask=mask, position_ids=positions, use_cache=True)
    answers = torch.full(uniforms.shape, NO_TOKEN, device=device)
    alive = torch.arange(len(rows), device=device)  # which answer each row of the batch belongs to
    done = torch.zeros(len(rows), dtype=torch.bool, device=device)
    sound = torch.ones((), dtype=torch.bool, device=device)
    position = positions[:, -1:]
    for step in range(uniforms.shape[1]):
        scores = compute_logits(lm.model, out.last_hidden_state[:, -1], lm.vocab_size)
        sound = sound & torch.isfinite(scores.sum())
        chosen = _draw_tokens(scores, barred, uniforms[alive, step], temperature)
        answers[alive, step] = chosen.masked_fill(done, NO_TOKEN)
        done = done | torch.isin(chosen, ends)
        last = step + 1 == uniforms.shape[1]
        n_left = len(done)
        if last or (step + 1) % look_every == 0:
            n_left = _count_unfinished(lm, done, sound)
        if last or n_left == 0:
            break
        cache = out.past_key_values
        if n_left <= 0.75 * len(done):  # finished rows cost as much as others: drop them
            keep = (~done).nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            alive, chosen, done = alive[keep], chosen[keep], done[keep]
            mask, position = mask[keep], position[keep]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        position = position + 1
        out = run_body(
            lm.model,
            chosen[:, None],
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
    return [list(itertools.takewhile(lambda t: t != NO_TOKEN, row)) for row in answers.tolist()]


def _count_unfinished(lm: LM, ended: Tensor, all_finite: Tensor) -> int:
    """Return how many answers have not ended; both numbers come in one copy.

    Raises:
        ModelError: If a logit was not finite.
    """
    n_left, fine = torch.stack([(~ended).sum(), all_finite.long()]).tolist()
    if not fine:
        raise ModelError(f"{lm.source.path}: its logits are not finite; it cannot be sampled")
    return n_left


def _draw_tokens(
    scores: Tensor, suppressed: Tensor, uniforms: Tensor, temperature: float
) -> Tensor:
    """Return one token [rows] per row of `scores` [rows, vocab]."""
    if len(suppressed):
        scores = scores.index_fill(1, suppressed, -torch.inf)
    if temperature == 0:
        return scores.argmax(1)
    # float64: over 262k tokens a float32 running sum would be off by more than a rare token.
    cumulative = torch.softmax(scores.double() / temperature, dim=1).cumsum_(1)
    target = uniforms[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return chosen.clamp_(max=scores.shape[1] - 1)


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask [rows, longest], each row ending at the right edge."""
    width = max(map(len, rows))
    ids: list[list[int]] = [[pad_id] * (width - len(row)) + list(row) for row in rows]
    mask: list[list[int]] = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
