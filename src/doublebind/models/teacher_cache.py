"""Keeps a model's next-token distributions at supervised positions, scored once for all students.

Knows rows, top-k and tails. Does not know whose distributions they are or what is learned from
them. Everything is kept raw, at temperature 1: other temperatures can be derived, not undone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from doublebind.errors import ModelError, StoreError
from doublebind.models.head import bare, hidden, logits, tiles
from doublebind.models.load import LM, tokenizer_id
from doublebind.models.score import right_padded, token_logprobs
from doublebind.models.template import template_id
from doublebind.records import Record
from doublebind.store import storage_error

HEADER, ROWS = "targets.json", "targets.safetensors"
BATCH_TOKENS = 8192
"""Most tokens (padding included) run at once."""


class Supervised(Protocol):
    """Token ids, of which those from `first` on are learned."""

    @property
    def input_ids(self) -> Sequence[int]:
        """Prompt and completion."""
        ...

    @property
    def first(self) -> int:
        """Index of the first supervised token; at least 1."""
        ...


class Header(Record):
    """`targets.json`: what the rows are and what made them."""

    schema_version: int = 1
    model_sha256: str
    tokenizer_id: str
    template_id: str
    k: int
    vocab: int
    """Tokens the distributions are over."""
    rows: int
    examples: int
    completions_sha256: str
    """What the rows belong to: `completions_id` of the examples."""
    dtype: str
    """Precision the model ran in."""
    torch: str
    transformers: str


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """Distributions at every supervised position, rows in the order of the examples."""

    header: Header
    offsets: Tensor
    """[examples + 1]: example i owns rows offsets[i] to offsets[i + 1], one per supervised token.
    Rows stay with the first tokens where an example is cut at its end."""
    ids: Tensor
    """[rows, k], int32: the likeliest tokens."""
    logprobs: Tensor
    """[rows, k], float32: their log-probabilities, descending."""
    tail: Tensor
    """[rows], float32: probability of all other tokens together, in [0, 1]."""
    lse: Tensor
    """[rows], float32: log-sum-exp of the logits."""
    chosen: Tensor
    """[rows], float32: log-probability of the token that follows in the example."""


def write(out: Path, lm: LM, examples: Sequence[Supervised], top_k: int) -> None:
    """Score `examples` with `lm`; write the distributions of supervised positions to `out`.

    Logits exist only for supervised positions and only a tile at a time.

    Args:
        out: Folder; made if absent.
        lm: The model.
        examples: Token ids with the index of the first supervised one, which is at least 1.
        top_k: Log-probabilities kept per position, at most the vocabulary.

    Raises:
        ModelError: If nothing is supervised, an example is longer than the model was built for or
            has unknown tokens, or a distribution is not finite.
    """
    from safetensors.torch import save_file
    from transformers import __version__ as transformers_version

    lengths = [max(0, len(e.input_ids) - e.first) for e in examples]
    _check(lm, examples, lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    rows, k = int(offsets[-1]), min(top_k, lm.vocab)
    kept = {
        "ids": torch.empty(rows, k, dtype=torch.int32),
        "logprobs": torch.empty(rows, k),
        "tail": torch.empty(rows),
        "lse": torch.empty(rows),
        "chosen": torch.empty(rows),
    }
    for batch in _batches(examples, lengths):
        _score(lm, examples, batch, offsets, kept)
    if not bool(torch.isfinite(kept["lse"]).all()):
        raise ModelError(f"{lm.source.path}: its next-token distributions are not finite")
    header = Header(
        model_sha256=lm.source.sha256,
        tokenizer_id=tokenizer_id(lm.tokenizer),
        template_id=template_id(lm.tokenizer),
        k=k,
        vocab=lm.vocab,
        rows=rows,
        examples=len(examples),
        completions_sha256=completions_id(examples),
        dtype=str(bare(lm.model).dtype).removeprefix("torch."),
        torch=torch.__version__,
        transformers=transformers_version,
    )
    check_shift(lm, examples, TeacherTargets(header, offsets, **kept))
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_file({"offsets": offsets, **kept}, out / ROWS)
        (out / HEADER).write_text(json.dumps(header.model_dump(), indent=1))
    except OSError as error:
        raise storage_error(error, out) from None


def read(folder: Path) -> TeacherTargets:
    """Return what `write` wrote to `folder`.

    Raises:
        StoreError: If a file is absent or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        header = Header.model_validate_json((folder / HEADER).read_bytes())
        rows = load_file(folder / ROWS)
        targets = TeacherTargets(header, **rows)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise StoreError(
            f"{folder}: cached targets cannot be read ({type(error).__name__}); delete the folder"
        ) from None
    if len(targets.chosen) != header.rows or targets.ids.shape != (header.rows, header.k):
        raise StoreError(f"{folder}: cached targets do not match their header; delete the folder")
    return targets


def completions_id(examples: Sequence[Supervised]) -> str:
    """Return a hash (hex) of the supervised tokens, example by example.

    Prompts are left out: a student may write the same conversation with another template.
    """
    content = [list(e.input_ids[e.first :]) for e in examples]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_shift(
    lm: LM, examples: Sequence[Supervised], targets: TeacherTargets, n: int = 4
) -> None:
    """Score the first `n` supervised examples again, one by one and by another route.

    Catches rows that are a position off, or that belong to other examples: either would train
    without complaint and teach something else.

    Raises:
        ModelError: If a log-probability differs from the cached one beyond rounding.
    """
    if targets.header.completions_sha256 != completions_id(examples):
        raise ModelError(
            f"{lm.source.path}: the cached targets belong to other completions; score the model "
            f"again"
        )
    bounds = targets.offsets.tolist()
    tolerance = 1e-3 if bare(lm.model).dtype == torch.float32 else 0.5
    for i in [i for i, e in enumerate(examples) if len(e.input_ids) > e.first][:n]:
        ids, first = list(examples[i].input_ids), examples[i].first
        again = torch.tensor(token_logprobs(lm, [(ids[:first], ids[first:])])[0])
        off = (again - targets.chosen[bounds[i] : bounds[i + 1]]).abs()
        if float(off.median() if tolerance == 0.5 else off.max()) > tolerance:
            raise ModelError(
                f"{lm.source.path}: cached log-probabilities of example {i} are off by up to "
                f"{float(off.max()):.3g}; they belong to another model or position"
            )


def _check(lm: LM, examples: Sequence[Supervised], lengths: Sequence[int]) -> None:
    where = lm.source.path
    if not any(lengths):
        raise ModelError(f"{where}: no token is supervised, so there is nothing to score")
    if min(e.first for e in examples) < 1:
        raise ModelError(f"{where}: an example supervises its first token, which follows nothing")
    longest = max(len(e.input_ids) for e in examples)
    if longest > lm.context:
        raise ModelError(
            f"{where}: an example takes {longest} tokens and the model was built for "
            f"{lm.context}; lower `max_tokens`"
        )
    highest = max(max(e.input_ids, default=0) for e in examples)
    if highest >= lm.vocab:
        raise ModelError(
            f"{where}: token {highest} is beyond its {lm.vocab} tokens; the examples were made "
            f"with another tokenizer"
        )


def _batches(examples: Sequence[Supervised], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield indices of examples of like length, `BATCH_TOKENS` at most when padded."""
    batch: list[int] = []
    order = sorted(
        (i for i, n in enumerate(lengths) if n), key=lambda i: len(examples[i].input_ids)
    )
    for i in order:
        if batch and (len(batch) + 1) * len(examples[i].input_ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.no_grad()
def _score(
    lm: LM,
    examples: Sequence[Supervised],
    batch: Sequence[int],
    offsets: Tensor,
    kept: dict[str, Tensor],
) -> None:
    """Fill the rows of `batch` in `kept`."""
    device = bare(lm.model).device
    ids = right_padded([examples[i].input_ids for i in batch], lm.pad_id)[0].to(device)
    # No mask: causal attention never looks right, where the padding is.
    states = hidden(lm.model, ids, use_cache=False).last_hidden_state
    # The token at position t is foreseen at t - 1.
    at = [(row, t) for row, i in enumerate(batch) for t in _positions(examples[i])]
    row, position = (torch.tensor(part, device=device) for part in zip(*at, strict=True))
    states, following = states[row, position - 1], ids[row, position]
    places = torch.cat([torch.arange(int(offsets[i]), int(offsets[i + 1])) for i in batch])
    k = kept["ids"].shape[1]
    for tile in tiles(len(states), lm.vocab):
        out = logits(lm.model, states[tile], lm.vocab)
        lse = torch.logsumexp(out, dim=1)
        top, token = out.topk(k, dim=1)
        # Summed over the others, not taken as 1 - sum(top), which cancels where the tail is thin.
        rest = (out - lse[:, None]).exp_().scatter_(1, token, 0.0).sum(1)
        where = places[tile]
        kept["ids"][where] = token.int().cpu()
        kept["logprobs"][where] = (top - lse[:, None]).cpu()
        kept["tail"][where] = rest.cpu()
        kept["lse"][where] = lse.cpu()
        kept["chosen"][where] = (out.gather(1, following[tile, None])[:, 0] - lse).cpu()


def _positions(example: Supervised) -> range:
    return range(example.first, len(example.input_ids))
