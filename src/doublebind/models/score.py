"""Log-probabilities of given texts: options of audit items, and tokens of given answers.

Options of an item share the key-value cache of their prompt.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doublebind.execution.device import move_to_device
from doublebind.models.chat_template import encode_completion, encode_prompt
from doublebind.models.load import LM
from doublebind.models.logits import (
    gather_logprobs,
    needs_equal_lengths,
    run_body,
    unwrap_peft,
)
from doublebind.models.sample import pad_left
from doublebind.models.unloaded import LOGPROB, UnloadedModel
from doublebind.models.vllm import VllmModel
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError


class _Question(NamedTuple):
    """A prompt and its continuations as token ids."""

    row: int
    prompt: Sequence[int]
    options: Sequence[Sequence[int]]

    @property
    def max_tokens(self) -> int:
        """Length of the prompt with its longest continuation."""
        return len(self.prompt) + max(map(len, self.options))


def option_logprobs(
    lm: LM,
    items: Sequence[tuple[Sequence[Message], Sequence[str]]],
    *,
    preceding: Sequence[Message] = (),
    batch_tokens: int = 8192,
) -> list[list[tuple[float | None, int]]]:
    """Return (total log-probability, tokens) of each option as the whole answer.

    The end of turn belongs to the option, so that no option is a prefix of another and the
    probabilities of all possible answers sum to one. In float32 the numbers agree within 1e-4
    for any batch size.

    Args:
        lm: The model.
        items: Conversations, each with its options.
        preceding: Turns before every conversation; the model reads them once.
        batch_tokens: Most tokens in a batch: options with their prompts, padding included.

    Returns:
        Per item, per option: nats (`None` if not finite) and the number of tokens.

    Raises:
        ModelError: If a conversation with an option is longer than the model was built for.
    """
    questions = [
        _Question(
            i,
            encode_prompt(lm.tokenizer, (*preceding, *messages)),
            [encode_completion(lm.tokenizer, option, finished=True) for option in options],
        )
        for i, (messages, options) in enumerate(items)
    ]
    scored = _compute_logprobs(lm, questions, batch_tokens, share_prefix=bool(preceding))
    return [[(_sum_logprobs(option), len(option)) for option in options] for options in scored]


def token_logprobs(
    lm: LM,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_tokens: int = 8192,
) -> list[list[float]]:
    """Return the log-probability (nats) of each completion token of (prompt, completion) ids.

    Raises:
        ModelError: If a sequence is longer than the model was built for.
    """
    questions = [_Question(i, prompt, [ids]) for i, (prompt, ids) in enumerate(sequences) if ids]
    scored = iter(_compute_logprobs(lm, questions, batch_tokens))
    return [next(scored)[0] if ids else [] for _, ids in sequences]


def _sum_logprobs(logprobs: Sequence[float]) -> float | None:
    total = math.fsum(logprobs) if all(map(math.isfinite, logprobs)) else math.nan
    return total if math.isfinite(total) else None


def _compute_logprobs(
    lm: LM, questions: Sequence[_Question], batch_tokens: int, *, share_prefix: bool = False
) -> list[list[list[float]]]:
    """Return the log-probability of every token: [question][option][token]."""
    longest = max((q.max_tokens for q in questions), default=0)
    if longest > lm.context_length:
        raise ModelError(
            f"{lm.source.path}: a prompt with its answer takes {longest} tokens and the model was "
            f"built for {lm.context_length}; shorten it"
        )
    if isinstance(lm.model, UnloadedModel):
        return [[[LOGPROB] * len(option) for option in q.options] for q in questions]
    if isinstance(lm.model, VllmModel):
        pairs = [(q.prompt, option) for q in questions for option in q.options]
        scored = iter(lm.model.token_logprobs(pairs))
        return [[next(scored) for _ in q.options] for q in questions]
    by_row: dict[int, list[list[float]]] = {}
    start, past = _cache_shared_prefix(lm, questions) if share_prefix else (0, None)
    questions = [q._replace(prompt=q.prompt[start:]) for q in questions]
    equal = past is not None or needs_equal_lengths(lm.model)
    for batch in _iterate_batches(questions, batch_tokens, equal_prompt_lengths=equal):
        scored = _compute_batch_logprobs(lm, batch, start, copy.deepcopy(past))
        by_row.update(zip((q.row for q in batch), scored, strict=True))
    return [by_row[q.row] for q in questions]


def _iterate_batches(
    questions: Sequence[_Question], batch_tokens: int, *, equal_prompt_lengths: bool = False
) -> Iterator[list[_Question]]:
    """Yield batches of similar length whose padded size is at most `batch_tokens`.

    With `equal_prompt_lengths` the prompts of a batch are equally long: padding between a shared
    beginning and a prompt would take up places in the window of models with sliding attention.
    """
    batch: list[_Question] = []
    rows = 0
    for question in sorted(questions, key=lambda q: (len(q.prompt), q.max_tokens, q.row)):
        width = max(q.max_tokens for q in (*batch[-1:], question))
        full = (rows + len(question.options)) * width > batch_tokens
        if batch and (
            full or (equal_prompt_lengths and len(batch[-1].prompt) < len(question.prompt))
        ):
            yield batch
            batch, rows = [], 0
        batch.append(question)
        rows += len(question.options)
    if batch:
        yield batch


@torch.no_grad()
def _cache_shared_prefix(lm: LM, questions: Sequence[_Question]) -> tuple[int, Any]:
    """Run the tokens that all prompts begin with; return their number and key-value cache.

    At least one token of each prompt is left, since its last state predicts the options.
    """
    prompts = [tuple(q.prompt) for q in questions]
    first, last = min(prompts), max(prompts)
    pairs = zip(first, last, strict=False)
    start = next((i for i, (a, b) in enumerate(pairs) if a != b), len(first))
    start = min(start, min(len(q.prompt) for q in questions) - 1)
    if start == 0:
        return 0, None
    ids = torch.tensor([list(first[:start])], device=unwrap_peft(lm.model).device)
    return start, run_body(lm.model, ids, use_cache=True).past_key_values


@torch.no_grad()
def _compute_batch_logprobs(
    lm: LM, batch: Sequence[_Question], start: int = 0, past: Any = None
) -> list[list[list[float]]]:
    """Run each prompt once, then every option on a copy of its prompt's key-value cache.

    `past` is the cache of the `start` tokens before every prompt; it is changed in place.
    """
    device = unwrap_peft(lm.model).device
    options = [option for q in batch for option in q.options]
    prompt_index = move_to_device(
        torch.tensor([i for i, q in enumerate(batch) for _ in q.options]), device
    )
    option_ids, is_token = (move_to_device(t, device) for t in pad_right(options, lm.pad_id))
    ids, mask = (move_to_device(t, device) for t in pad_left([q.prompt for q in batch], lm.pad_id))
    positions = start + (mask.cumsum(1) - 1).clamp(min=0)
    rest = option_ids.shape[1] - 1  # the last token of an option is never an input
    cache_arguments: dict[str, Any] = {"use_cache": rest > 0}
    if past is not None:
        past.batch_repeat_interleave(len(batch))
        mask = torch.cat([mask.new_ones(len(batch), start), mask], dim=1)
        cache_arguments = {"use_cache": True, "past_key_values": past}
    out = run_body(lm.model, ids, attention_mask=mask, position_ids=positions, **cache_arguments)
    # The last state of the prompt predicts an option's first token.
    states = out.last_hidden_state[prompt_index, -1:]
    if rest:
        cache = out.past_key_values
        cache.batch_select_indices(prompt_index)
        option_states = run_body(
            lm.model,
            option_ids[:, :-1],
            attention_mask=torch.cat([mask[prompt_index], is_token[:, :-1].long()], dim=1),
            position_ids=positions[prompt_index, -1:] + 1 + torch.arange(rest, device=device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        states = torch.cat([states, option_states], dim=1)
    logprobs = gather_logprobs(lm.model, states[is_token], option_ids[is_token], lm.vocab_size)
    flat = iter(logprobs.tolist())
    return [[[next(flat) for _ in option] for option in q.options] for q in batch]


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask [rows, longest], each row starting at the left edge."""
    width = max(map(len, rows))
    ids: list[list[int]] = [[*row] + [pad_id] * (width - len(row)) for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    return torch.tensor(ids), torch.arange(width) < lengths[:, None]
