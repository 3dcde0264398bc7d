"""Keeps a model's next-token distributions at supervised positions, scored once for all students.

Knows rows, top-k and tails. Does not know whose distributions they are or what is learned from
them. Everything is kept raw, at temperature 1: other temperatures can be derived, not undone. The
file itself, and picking up after a kill, are `row_file`'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from doublebind.execution.device import move_to_device
from doublebind.execution.store import storage_error
from doublebind.models import resumable_file as row_file
from doublebind.models.chat_template import template_id
from doublebind.models.load import LM, tokenizer_id
from doublebind.models.logits import compute_logits, iterate_tiles, run_body, unwrap_peft
from doublebind.models.matmul import use_fast_linear
from doublebind.models.score import pad_right, token_logprobs
from doublebind.models.vllm import VllmModel
from doublebind.schema.errors import ModelError, StoreError
from doublebind.schema.hashing import Record

HEADER_FILE, ROWS_FILE = "targets.json", "targets.safetensors"
BATCH_TOKENS = 8192
"""Most tokens (padding included) run at once."""
SMALL_VOCAB = 4096
"""Up to so many tokens rows are reduced operation by operation, whose last bits kept panels depend
on; beyond, in place."""


class SupervisedExample(Protocol):
    """Token ids, of which those from `first` on are learned."""

    @property
    def input_ids(self) -> Sequence[int]:
        """Prompt and completion."""
        ...

    @property
    def first_supervised(self) -> int:
        """Index of the first supervised token; at least 1."""
        ...


class TargetsHeader(Record):
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
    inputs_sha256: str = ""
    """Hash of all token ids, prompts included; empty in caches of earlier versions."""
    tail_samples: int = 0
    """Tokens drawn from each row's tail."""
    dtype: str
    """Precision the model ran in."""
    torch: str
    transformers: str


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """Distributions at every supervised position, rows in the order of the examples."""

    header: TargetsHeader
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
    tail_ids: Tensor | None = None
    """[rows, m], int32: tokens drawn from the tail in proportion to their probability, with
    replacement; `None` where none were. With them sums over the vocabulary can be estimated
    without the bias of a top k (Anshumann et al. 2025, arXiv 2503.16870)."""
    tail_logprobs: Tensor | None = None
    """[rows, m], float32: their log-probabilities; drawn with chance p / tail."""


def write_targets(
    out: Path,
    lm: LM,
    examples: Sequence[SupervisedExample],
    top_k: int,
    *,
    tail_samples: int = 0,
    resume_folder: Path | None = None,
) -> None:
    """Score `examples` with `lm`; write the distributions of supervised positions to `out`.

    Logits exist only for supervised positions and only a tile at a time; rows go to a mapped file
    batch by batch, so that memory does not grow with them.

    Args:
        out: Folder; made if absent.
        lm: The model.
        examples: Token ids with the index of the first supervised one, which is at least 1.
        top_k: Log-probabilities kept per position, at most the vocabulary.
        tail_samples: Tokens drawn from each row's tail; keyed by example and position, so that the
            batch does not matter. None are drawn where the top k is the vocabulary.
        partial: Folder in which unfinished work outlives a killed process; the next call with the
            same model, examples and settings goes on from there.

    Raises:
        ModelError: If nothing is supervised, an example is longer than the model was built for or
            has unknown tokens, or a distribution is not finite.
        StoreError: If a folder cannot be written.
    """
    from transformers import __version__ as transformers_version

    lengths = [max(0, len(e.input_ids) - e.first_supervised) for e in examples]
    _check_examples(lm, examples, lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    rows, k = int(offsets[-1]), min(top_k, lm.vocab_size)
    m = tail_samples if k < lm.vocab_size else 0
    if m and isinstance(lm.model, VllmModel):
        raise ModelError(f"{lm.source.path}: vLLM draws nothing from a tail; use `top_k` alone")
    header = TargetsHeader(
        model_sha256=lm.source.sha256,
        tokenizer_id=tokenizer_id(lm.tokenizer),
        template_id=template_id(lm.tokenizer),
        k=k,
        vocab=lm.vocab_size,
        rows=rows,
        examples=len(examples),
        completions_sha256=completions_id(examples),
        inputs_sha256=inputs_id(examples),
        tail_samples=m,
        dtype=str(unwrap_peft(lm.model).dtype).removeprefix("torch."),
        torch=torch.__version__,
        transformers=transformers_version,
    )
    layout: dict[str, row_file.TensorSpec] = {
        "ids": ("I32", (rows, k)),
        "logprobs": ("F32", (rows, k)),
        **dict.fromkeys(("tail", "lse", "chosen"), ("F32", (rows,))),
        "offsets": ("I64", (len(offsets),)),
    }
    if m:
        layout |= {"tail_ids": ("I32", (rows, m)), "tail_logprobs": ("F32", (rows, m))}
    check_determinism(lm, examples)
    with row_file.open_resumable_file(
        out / ROWS_FILE, layout, header.model_dump_json(), resume_folder
    ) as (kept, done):
        kept["offsets"].copy_(offsets)
        plain = lm.vocab_size <= SMALL_VOCAB or isinstance(lm.model, VllmModel)
        with contextlib.nullcontext() if plain else use_fast_linear(lm.model):
            for number, batch in enumerate(_iterate_batches(examples, lengths)):
                if number not in done:
                    _fill_batch(lm, examples, batch, offsets, kept)
                    done.add(number)
        if not bool(torch.isfinite(kept["lse"]).all()):
            raise ModelError(f"{lm.source.path}: its next-token distributions are not finite")
        check_row_alignment(lm, examples, TeacherTargets(header, **kept))
    try:
        (out / HEADER_FILE).write_text(json.dumps(header.model_dump(), indent=1))
    except OSError as error:
        raise storage_error(error, out) from None


def read_targets(folder: Path) -> TeacherTargets:
    """Return what `write` wrote to `folder`, mapped: rows are read from disk as they are used.

    Raises:
        StoreError: If a file is absent or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        header = TargetsHeader.model_validate_json((folder / HEADER_FILE).read_bytes())
        rows = load_file(folder / ROWS_FILE)
        targets = TeacherTargets(header, **rows)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise StoreError(
            f"{folder}: cached targets cannot be read ({type(error).__name__}); delete the folder"
        ) from None
    if len(targets.chosen) != header.rows or targets.ids.shape != (header.rows, header.k):
        raise StoreError(f"{folder}: cached targets do not match their header; delete the folder")
    return targets


def completions_id(examples: Sequence[SupervisedExample]) -> str:
    """Return a hash (hex) of the supervised tokens, example by example.

    Prompts are left out: a student may write the same conversation with another template.
    """
    content = [list(e.input_ids[e.first_supervised :]) for e in examples]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def inputs_id(examples: Sequence[SupervisedExample]) -> str:
    """Return a hash (hex) of all token ids and of where supervision starts."""
    content = [[list(e.input_ids), e.first_supervised] for e in examples]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_row_alignment(
    lm: LM, examples: Sequence[SupervisedExample], targets: TeacherTargets, n_examples: int = 4
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
    tolerance = 1e-3 if unwrap_peft(lm.model).dtype == torch.float32 else 0.5
    for i in [i for i, e in enumerate(examples) if len(e.input_ids) > e.first_supervised][
        :n_examples
    ]:
        ids, first = list(examples[i].input_ids), examples[i].first_supervised
        again = torch.tensor(token_logprobs(lm, [(ids[:first], ids[first:])])[0])
        off = (again - targets.chosen[bounds[i] : bounds[i + 1]]).abs()
        if float(off.median() if tolerance == 0.5 else off.max()) > tolerance:
            raise ModelError(
                f"{lm.source.path}: cached log-probabilities of example {i} are off by up to "
                f"{float(off.max()):.3g}; they belong to another model or position"
            )


def check_determinism(lm: LM, examples: Sequence[SupervisedExample]) -> None:
    """Score one example twice the same way: a teacher that wavers teaches its noise.

    On CPU the numbers must be equal; elsewhere, where sums may be ordered anew each time, within
    a thousandth of a nat in float32 and a tenth otherwise.

    Raises:
        ModelError: If the two differ.
    """
    example = next(e for e in examples if len(e.input_ids) > e.first_supervised)
    pair = [
        (
            list(example.input_ids[: example.first_supervised]),
            list(example.input_ids[example.first_supervised :]),
        )
    ]
    first, second = (torch.tensor(token_logprobs(lm, pair)[0]) for _ in range(2))
    model = unwrap_peft(lm.model)
    near = 1e-3 if model.dtype == torch.float32 else 0.1
    off = float((first - second).abs().max())
    if off > (0.0 if model.device.type == "cpu" else near):
        raise ModelError(
            f"{lm.source.path}: scored twice, the same tokens differ by {off:.3g} nats; its "
            f"architecture is not deterministic (dropout outside training, or random routing)"
        )


def check_labels(
    targets: TeacherTargets, examples: Sequence[SupervisedExample], where: str
) -> None:
    """Compare every supervised token's cached log-probability with its place in the top k.

    Where the token is among the k the two are one number; where it is not, it is no likelier than
    the last of them. Rows that are a position off, or of other examples, fail both. Needs no
    teacher, so that every student can ask.

    Raises:
        ModelError: If a row says otherwise; names the example.
    """
    labels = torch.tensor([t for e in examples for t in e.input_ids[e.first_supervised :]])
    for start in range(0, len(labels), 2**16):
        part = slice(start, start + 2**16)
        among = targets.ids[part] == labels[part, None]
        kept = torch.where(among, targets.logprobs[part], 0.0).sum(1)
        chosen, last = targets.chosen[part], targets.logprobs[part, -1]
        off = torch.where(among.any(1), (kept - chosen).abs(), (chosen - last).clamp_min(0.0))
        if float(off.max()) > 1e-3:
            row = start + int(off.argmax())
            example = int(torch.searchsorted(targets.offsets, row, right=True)) - 1
            raise ModelError(
                f"{where}: the cached distribution of example {example} is not of the token that "
                f"follows there (off by {float(off.max()):.3g} nats); score the teacher again"
            )


def _check_examples(lm: LM, examples: Sequence[SupervisedExample], lengths: Sequence[int]) -> None:
    where = lm.source.path
    if not any(lengths):
        raise ModelError(f"{where}: no token is supervised, so there is nothing to score")
    if min(e.first_supervised for e in examples) < 1:
        raise ModelError(f"{where}: an example supervises its first token, which follows nothing")
    longest = max(len(e.input_ids) for e in examples)
    if longest > lm.context_length:
        raise ModelError(
            f"{where}: an example takes {longest} tokens and the model was built for "
            f"{lm.context_length}; lower `max_tokens`"
        )
    highest = max(max(e.input_ids, default=0) for e in examples)
    if highest >= lm.vocab_size:
        raise ModelError(
            f"{where}: token {highest} is beyond its {lm.vocab_size} tokens; the examples were made "
            f"with another tokenizer"
        )


def _iterate_batches(
    examples: Sequence[SupervisedExample], lengths: Sequence[int]
) -> Iterator[list[int]]:
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
def _fill_batch(
    lm: LM,
    examples: Sequence[SupervisedExample],
    batch: Sequence[int],
    offsets: Tensor,
    rows: dict[str, Tensor],
) -> None:
    """Fill the rows of `batch` in `kept`."""
    if isinstance(lm.model, VllmModel):
        asked = [(examples[i].input_ids, examples[i].first_supervised) for i in batch]
        for i, found in zip(batch, lm.model.top_logprobs(asked, rows["ids"].shape[1]), strict=True):
            for name, values in found.items():
                rows[name][int(offsets[i]) : int(offsets[i + 1])] = values
        return
    device = unwrap_peft(lm.model).device
    ids = move_to_device(pad_right([examples[i].input_ids for i in batch], lm.pad_id)[0], device)
    # No mask: causal attention never looks right, where the padding is.
    states = run_body(lm.model, ids, use_cache=False).last_hidden_state
    # The token at position t is foreseen at t - 1.
    at = [(row, t) for row, i in enumerate(batch) for t in _list_supervised_positions(examples[i])]
    row, position = move_to_device(torch.tensor(at).t().contiguous(), device)
    states, following = states[row, position - 1], ids[row, position]
    places = torch.cat([torch.arange(int(offsets[i]), int(offsets[i + 1])) for i in batch])
    drawn, k = _draw_uniforms(examples, batch, rows), rows["ids"].shape[1]
    drawn = drawn if drawn is None else move_to_device(drawn, device)
    parts: list[dict[str, Tensor]] = []
    for tile in iterate_tiles(states, lm.vocab_size):
        out = compute_logits(lm.model, states[tile], lm.vocab_size)
        uniform = drawn if drawn is None else drawn[tile]
        if lm.vocab_size <= SMALL_VOCAB and uniform is None:
            parts.append(_reduce_logits(out, following[tile], k))
        else:
            parts.append(_reduce_logits_in_place(out, following[tile], k, uniform))
    for name in parts[0]:  # a batch leaves the device at once: each copy waits for it
        values = torch.cat([part[name] for part in parts])
        rows[name][places] = values.to(rows[name].dtype).cpu()


def _reduce_logits(out: Tensor, following: Tensor, k: int) -> dict[str, Tensor]:
    """Return what is kept of logits [rows, vocab] before tokens `following`."""
    lse = torch.logsumexp(out, dim=1)
    top, token = out.topk(k, dim=1)
    # Summed over the others, not taken as 1 - sum(top), which cancels where the tail is thin.
    rest = (out - lse[:, None]).exp_().scatter_(1, token, 0.0).sum(1)
    chosen = out.gather(1, following[:, None])[:, 0] - lse
    return {
        "ids": token,
        "logprobs": top - lse[:, None],
        "tail": rest,
        "lse": lse,
        "chosen": chosen,
    }


def _reduce_logits_in_place(
    out: Tensor, following: Tensor, k: int, uniform: Tensor | None
) -> dict[str, Tensor]:
    """Do the same using up `out`, and draw from the tail by `uniform` [rows, m] in [0, 1)."""
    top, token = out.topk(k, dim=1)
    chosen = out.gather(1, following[:, None])
    torch.softmax(out, dim=1, out=out)
    # The likeliest token's probability is at least 1 / vocabulary.
    lse = top[:, :1] - out.gather(1, token[:, :1]).log()
    rest = out.scatter_(1, token, 0.0).sum(1)
    found = {
        "ids": token,
        "logprobs": top - lse,
        "tail": rest,
        "lse": lse[:, 0],
        "chosen": (chosen - lse)[:, 0],
    }
    if uniform is not None:
        pairs = zip(out.split(16), uniform.split(16), strict=True)
        ids = torch.cat([_draw_tail_tokens(*pair) for pair in pairs])
        found |= {"tail_ids": ids, "tail_logprobs": out.gather(1, ids).log()}
    return found


def _draw_tail_tokens(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return ids [rows, m] by inverting the cumulative sum of `weights` [rows, vocab].

    In float64: in float32 the steps of unlikely tokens would be rounded away.
    """
    up_to = weights.cumsum(1, dtype=torch.float64)
    found = torch.searchsorted(up_to, uniform * up_to[:, -1:], right=True)
    # The topmost double below 1 may round up to the sum itself: take the last token there is.
    places = torch.arange(1, weights.shape[1] + 1, device=weights.device)
    last = (weights > 0).mul(places).argmax(1, keepdim=True)
    return found.minimum(last)


def _draw_uniforms(
    examples: Sequence[SupervisedExample], batch: Sequence[int], kept: dict[str, Tensor]
) -> Tensor | None:
    """Return [rows of the batch, m] numbers in [0, 1), by example; `None` where none are used."""
    if "tail_ids" not in kept:
        return None
    m = kept["tail_ids"].shape[1]
    rows = [
        np.random.default_rng((0, i)).random((len(_list_supervised_positions(examples[i])), m))
        for i in batch
    ]
    return torch.from_numpy(np.concatenate(rows))


def _list_supervised_positions(example: SupervisedExample) -> range:
    return range(example.first_supervised, len(example.input_ids))
