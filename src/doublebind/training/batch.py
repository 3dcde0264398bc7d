"""Batches of token ids: order of an epoch, truncation, padding, packing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from doublebind.execution.device import move_to_device
from doublebind.models.logits import run_body, unwrap_peft
from doublebind.schema.errors import ModelError

log = logging.getLogger("doublebind.training")

MAX_PACKED_SHARE = 0.7
"""Pack if at most this share of the padded tokens is left; the mask of a packed row costs time."""


class Example(NamedTuple):
    """Prompt and completion as token ids; the completion is supervised."""

    input_ids: tuple[int, ...]
    first_supervised: int
    """Index of the first supervised token; at least 1, since the first token has no context."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Token rows with the positions of the supervised tokens."""

    ids: Tensor
    """[rows, width]."""
    positions: Tensor | None
    """[rows, width], restarting with each example; `None` if no row holds two."""
    prediction_positions: Tensor
    """[supervised]: index into the flattened rows of the token before each supervised one, whose
    state predicts it."""
    labels: Tensor
    """[supervised]: the supervised tokens, example after example."""
    lengths: tuple[int, ...]
    """Tokens of each example."""
    starts: tuple[int, ...]
    """Index of each example's first token into the flattened rows."""

    def to(self, device: Any) -> Batch:
        """Return the batch on `device`."""
        positions = None if self.positions is None else move_to_device(self.positions, device)
        places = move_to_device(self.prediction_positions, device)
        ids, labels = (move_to_device(part, device) for part in (self.ids, self.labels))
        return Batch(ids, positions, places, labels, self.lengths, self.starts)


def shuffle_epochs(n: int, seed: int) -> Iterator[int]:
    """Yield indices of `n` examples for ever, in epochs shuffled by (seed, epoch).

    Raises:
        ModelError: If `n` is 0: no epoch would ever yield.
    """
    if n < 1:
        raise ModelError("no example is left to train on; raise `max_length` or use more prompts")
    epoch = 0
    while True:
        yield from np.random.default_rng((seed, epoch)).permutation(n).tolist()
        epoch += 1


def collate(examples: Sequence[Example], pad_id: int, *, pack: bool) -> Batch:
    """Return `examples` as one batch, as wide as the longest of them.

    Args:
        examples: At least one.
        pad_id: Fills rows; never supervised or attended to by a supervised token.
        pack: Whether several examples may share a row.
    """
    lengths = [len(example.input_ids) for example in examples]
    width = max(lengths)
    rows = [[i] for i in range(len(examples))]
    if pack:
        packed = _pack_rows(lengths, width)
        rows = packed if len(packed) <= MAX_PACKED_SHARE * len(rows) else rows
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    # Each padding token is an example of its own, so that it is kept apart from all others.
    positions = np.zeros((len(rows), width), dtype=np.int64)
    starts = [0] * len(examples)
    for r, row in enumerate(rows):
        column = 0
        for i in row:
            ids[r, column : column + lengths[i]] = examples[i].input_ids
            positions[r, column : column + lengths[i]] = np.arange(lengths[i])
            starts[i] = r * width + column
            column += lengths[i]
    before = [
        np.arange(start + e.first_supervised - 1, start + len(e.input_ids) - 1)
        for start, e in zip(starts, examples, strict=True)
    ]
    flat = torch.from_numpy(np.concatenate(before))
    tokens = torch.from_numpy(ids)
    return Batch(
        ids=tokens,
        positions=torch.from_numpy(positions) if len(rows) < len(examples) else None,
        prediction_positions=flat,
        labels=tokens.flatten()[flat + 1],
        lengths=tuple(lengths),
        starts=tuple(starts),
    )


def _pack_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Return rows of indices by first fit, longest first; each row is at most `width` long."""
    rows: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, left in enumerate(free) if left >= lengths[i]), None)
        if row is None:
            rows.append([i])
            free.append(width - lengths[i])
        else:
            rows[row].append(i)
            free[row] -= lengths[i]
    return rows


@torch.no_grad()
def can_pack(model: Any) -> bool:
    """Return whether `model` keeps examples in one row apart, given only their positions.

    An architecture that ignores restarting positions would let one example attend to another, and
    the loss would not show it; so each model is tested.
    """
    inner = unwrap_peft(model)
    rows = int(inner.get_input_embeddings().weight.shape[0])
    first, second = ([i % rows for i in ids] for ids in ((1, 2, 3, 4), (5, 6, 7)))
    training = model.training
    model.eval()
    try:
        together = run_body(
            model,
            torch.tensor([first + second], device=inner.device),
            position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2]], device=inner.device),
            use_cache=False,
        ).last_hidden_state[:, 4:]
        alone = run_body(
            model, torch.tensor([second], device=inner.device), use_cache=False
        ).last_hidden_state
    finally:
        model.train(training)
    tolerance = 1e-4 if inner.dtype == torch.float32 else 5e-2
    return torch.allclose(together.float(), alone.float(), rtol=tolerance, atol=tolerance)


def truncate_examples(examples: Sequence[Example], max_length: int) -> list[Example]:
    """Return `examples` cut at their ends to `max_length` tokens.

    Raises:
        ModelError: If nothing supervised is left, or an example supervises its first token.
    """
    if any(example.first_supervised < 1 for example in examples):
        raise ModelError("an example supervises its first token, which has no context")
    truncated = [Example(tuple(e.input_ids[:max_length]), e.first_supervised) for e in examples]
    if not any(len(e.input_ids) > e.first_supervised for e in truncated):
        raise ModelError(
            f"no token is supervised: {len(examples)} examples, `max_length` {max_length}; raise "
            f"it or check the completions"
        )
    return truncated


def count_dropped(n: int, n_usable: int, max_length: int) -> int:
    """Return how many of `n` examples supervise nothing within `max_length`; warn if any does."""
    if n > n_usable:
        log.warning(
            "%d of %d examples have no supervised token within `max_length` %d and are left out; "
            "raise it to train on them",
            *(n - n_usable, n, max_length),
        )
    return n - n_usable
