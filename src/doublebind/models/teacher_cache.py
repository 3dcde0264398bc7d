"""Cache of a model's next-token distributions at supervised positions.

Distributions are stored at temperature 1, from which others can be derived. The file, and resuming
after a kill, are `resumable_file`'s.
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
from doublebind.models.chat_template import template_id
from doublebind.models.load import LM, tokenizer_id
from doublebind.models.logits import compute_logits, iterate_tiles, run_body, unwrap_peft
from doublebind.models.matmul import use_fast_linear
from doublebind.models.resumable_file import TensorSpec, open_resumable_file
from doublebind.models.score import pad_right, token_logprobs
from doublebind.models.vllm import VllmModel
from doublebind.schema.errors import ModelError, StoreError
from doublebind.schema.hashing import Record

HEADER_FILE = "targets.json"
ROWS_FILE = "targets.safetensors"
BATCH_TOKENS = 8192
"""Most tokens (padding included) run at once."""
SMALL_VOCAB = 4096
"""Largest vocabulary whose rows are reduced operation by operation, since frozen panels depend on
the last bits; larger ones are reduced in place."""


class SupervisedExample(Protocol):
    """Token ids, of which those from `first_supervised` on are supervised."""

    @property
    def input_ids(self) -> Sequence[int]:
        """Prompt and completion."""
        ...

    @property
    def first_supervised(self) -> int:
        """Index of the first supervised token; at least 1."""
        ...


class TargetsHeader(Record):
    """`targets.json`: describes the rows and what made them."""

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
    """`completions_id` of the examples that the rows belong to."""
    inputs_sha256: str = ""
    """`inputs_id` of the examples; empty in caches of earlier versions."""
    tail_samples: int = 0
    """Tokens sampled from each row's tail."""
    dtype: str
    """Precision the model ran in."""
    torch: str
    transformers: str


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """Distributions at every supervised position, rows in the order of the examples."""

    header: TargetsHeader
    offsets: Tensor
    """[examples + 1]: example i has rows offsets[i] to offsets[i + 1], one per supervised token.
    An example cut at its end uses its first rows."""
    ids: Tensor
    """[rows, k], int32: the likeliest tokens."""
    logprobs: Tensor
    """[rows, k], float32: their log-probabilities, descending."""
    tail: Tensor
    """[rows], float32: probability of all other tokens together, in [0, 1]."""
    lse: Tensor
    """[rows], float32: log-sum-exp of the logits."""
    chosen: Tensor
    """[rows], float32: log-probability of the example's next token."""
    tail_ids: Tensor | None = None
    """[rows, m], int32: tokens sampled from the tail in proportion to their probability, with
    replacement; `None` without samples. They give estimates of sums over the vocabulary without the
    bias of a top k (Anshumann et al. 2025, arXiv 2503.16870)."""
    tail_logprobs: Tensor | None = None
    """[rows, m], float32: their log-probabilities; each was sampled with probability p / tail."""


def write_targets(
    out: Path,
    lm: LM,
    examples: Sequence[SupervisedExample],
    top_k: int,
    *,
    tail_samples: int = 0,
    resume_folder: Path | None = None,
) -> None:
    """Score `examples` with `lm`; write the distributions at supervised positions to `out`.

    Logits exist only for supervised positions and only a tile at a time. Rows go to a mapped file
    batch by batch, so that memory does not grow with their number.

    Args:
        out: Folder; made if absent.
        lm: The model.
        examples: Token ids with the index of the first supervised one, which is at least 1.
        top_k: Log-probabilities stored per position, at most the vocabulary.
        tail_samples: Tokens sampled from each row's tail, seeded by the example, so that the batch
            does not matter. There are none if the top k is the vocabulary.
        resume_folder: Folder in which unfinished work outlives a killed process; the next call with
            the same model, examples and settings resumes from it.

    Raises:
        ModelError: If nothing is supervised, an example is longer than the model was built for or
            has unknown tokens, or a distribution is not finite.
        StoreError: If a folder cannot be written.
    """
    lengths = [max(0, len(e.input_ids) - e.first_supervised) for e in examples]
    _check_examples(lm, examples, lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    header = _describe_targets(lm, examples, int(offsets[-1]), top_k, tail_samples)
    check_determinism(lm, examples)
    identity = header.model_dump_json()
    with open_resumable_file(
        out / ROWS_FILE, _lay_out_tensors(header), identity, resume_folder
    ) as (rows, done):
        rows["offsets"].copy_(offsets)
        plain = lm.vocab_size <= SMALL_VOCAB or isinstance(lm.model, VllmModel)
        with contextlib.nullcontext() if plain else use_fast_linear(lm.model):
            for number, batch in enumerate(_iterate_batches(examples, lengths)):
                if number not in done:
                    _fill_batch(lm, examples, batch, offsets, rows)
                    done.add(number)
        if not bool(torch.isfinite(rows["lse"]).all()):
            raise ModelError(f"{lm.source.path}: its next-token distributions are not finite")
        check_row_alignment(lm, examples, TeacherTargets(header, **rows))
    try:
        (out / HEADER_FILE).write_text(json.dumps(header.model_dump(), indent=1))
    except OSError as error:
        raise storage_error(error, out) from None


def _describe_targets(
    lm: LM, examples: Sequence[SupervisedExample], n_rows: int, top_k: int, tail_samples: int
) -> TargetsHeader:
    from transformers import __version__ as transformers_version

    k = min(top_k, lm.vocab_size)
    tail_samples = tail_samples if k < lm.vocab_size else 0
    if tail_samples and isinstance(lm.model, VllmModel):
        raise ModelError(f"{lm.source.path}: vLLM samples nothing from a tail; use `top_k` alone")
    return TargetsHeader(
        model_sha256=lm.source.sha256,
        tokenizer_id=tokenizer_id(lm.tokenizer),
        template_id=template_id(lm.tokenizer),
        k=k,
        vocab=lm.vocab_size,
        rows=n_rows,
        examples=len(examples),
        completions_sha256=completions_id(examples),
        inputs_sha256=inputs_id(examples),
        tail_samples=tail_samples,
        dtype=str(unwrap_peft(lm.model).dtype).removeprefix("torch."),
        torch=torch.__version__,
        transformers=transformers_version,
    )


def _lay_out_tensors(header: TargetsHeader) -> dict[str, TensorSpec]:
    rows, k, m = header.rows, header.k, header.tail_samples
    layout: dict[str, TensorSpec] = {
        "ids": ("I32", (rows, k)),
        "logprobs": ("F32", (rows, k)),
        **dict.fromkeys(("tail", "lse", "chosen"), ("F32", (rows,))),
        "offsets": ("I64", (header.examples + 1,)),
    }
    if m:
        layout |= {"tail_ids": ("I32", (rows, m)), "tail_logprobs": ("F32", (rows, m))}
    return layout


def read_targets(folder: Path) -> TeacherTargets:
    """Return the targets in `folder`, mapped: rows are read from disk when they are used.

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

    Prompts are left out, since a student may use another chat template.
    """
    content = [list(e.input_ids[e.first_supervised :]) for e in examples]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def inputs_id(examples: Sequence[SupervisedExample]) -> str:
    """Return a hash (hex) of all token ids and of the first supervised indices."""
    content = [[list(e.input_ids), e.first_supervised] for e in examples]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_row_alignment(
    lm: LM, examples: Sequence[SupervisedExample], targets: TeacherTargets, n_examples: int = 4
) -> None:
    """Score the first `n_examples` supervised examples again, one by one, by other code.

    Detects rows that are a position off or belong to other examples. A student would train on
    either without an error.

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
    supervised = [i for i, e in enumerate(examples) if len(e.input_ids) > e.first_supervised]
    for i in supervised[:n_examples]:
        ids, first = list(examples[i].input_ids), examples[i].first_supervised
        again = torch.tensor(token_logprobs(lm, [(ids[:first], ids[first:])])[0])
        off = (again - targets.chosen[bounds[i] : bounds[i + 1]]).abs()
        if float(off.median() if tolerance == 0.5 else off.max()) > tolerance:
            raise ModelError(
                f"{lm.source.path}: cached log-probabilities of example {i} are off by up to "
                f"{float(off.max()):.3g}; they belong to another model or position"
            )


def check_determinism(lm: LM, examples: Sequence[SupervisedExample]) -> None:
    """Score one example twice, since students would learn a teacher's noise.

    On CPU the numbers must be equal. On a GPU, where the order of sums may change, they must agree
    within a thousandth of a nat in float32 and a tenth otherwise.

    Raises:
        ModelError: If the two differ by more.
    """
    example = next(e for e in examples if len(e.input_ids) > e.first_supervised)
    ids, start = list(example.input_ids), example.first_supervised
    first, second = (
        torch.tensor(token_logprobs(lm, [(ids[:start], ids[start:])])[0]) for _ in range(2)
    )
    model = unwrap_peft(lm.model)
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    off = float((first - second).abs().max())
    if off > (0.0 if model.device.type == "cpu" else tolerance):
        raise ModelError(
            f"{lm.source.path}: scored twice, the same tokens differ by {off:.3g} nats; its "
            f"architecture is not deterministic (dropout outside training, or random routing)"
        )


def check_labels(
    targets: TeacherTargets, examples: Sequence[SupervisedExample], where: str
) -> None:
    """Compare every supervised token's cached log-probability with the top k of its row.

    If the token is among the k, the two numbers are equal; if not, it is no likelier than the last
    of them. Rows that are a position off or of other examples fail this. The check needs no
    teacher, so that it runs for every student.

    Raises:
        ModelError: If a row fails; names the example.
    """
    labels = torch.tensor([t for e in examples for t in e.input_ids[e.first_supervised :]])
    for start in range(0, len(labels), 2**16):
        part = slice(start, start + 2**16)
        among = targets.ids[part] == labels[part, None]
        listed = torch.where(among, targets.logprobs[part], 0.0).sum(1)
        chosen, last = targets.chosen[part], targets.logprobs[part, -1]
        off = torch.where(among.any(1), (listed - chosen).abs(), (chosen - last).clamp_min(0.0))
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
        raise ModelError(f"{where}: an example supervises its first token, which has no context")
    longest = max(len(e.input_ids) for e in examples)
    if longest > lm.context_length:
        raise ModelError(
            f"{where}: an example takes {longest} tokens and the model was built for "
            f"{lm.context_length}; lower `max_tokens`"
        )
    highest = max(max(e.input_ids, default=0) for e in examples)
    if highest >= lm.vocab_size:
        raise ModelError(
            f"{where}: token {highest} is beyond its {lm.vocab_size} tokens; the examples were "
            f"made with another tokenizer"
        )


def _iterate_batches(
    examples: Sequence[SupervisedExample], lengths: Sequence[int]
) -> Iterator[list[int]]:
    """Yield indices of examples of similar length, at most `BATCH_TOKENS` tokens when padded."""
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
    """Fill the rows of the examples in `batch`."""
    if isinstance(lm.model, VllmModel):
        sequences = [(examples[i].input_ids, examples[i].first_supervised) for i in batch]
        scored = lm.model.top_logprobs(sequences, rows["ids"].shape[1])
        for i, tensors in zip(batch, scored, strict=True):
            for name, values in tensors.items():
                rows[name][int(offsets[i]) : int(offsets[i + 1])] = values
        return
    device = unwrap_peft(lm.model).device
    ids = move_to_device(pad_right([examples[i].input_ids for i in batch], lm.pad_id)[0], device)
    # No mask is needed: causal attention never looks right, where the padding is.
    states = run_body(lm.model, ids, use_cache=False).last_hidden_state
    # The state at t - 1 predicts the token at t.
    positions = [
        (row, t) for row, i in enumerate(batch) for t in _list_supervised_positions(examples[i])
    ]
    row, position = move_to_device(torch.tensor(positions).t().contiguous(), device)
    states, following = states[row, position - 1], ids[row, position]
    places = torch.cat([torch.arange(int(offsets[i]), int(offsets[i + 1])) for i in batch])
    uniforms = _draw_uniforms(examples, batch, rows)
    uniforms = uniforms if uniforms is None else move_to_device(uniforms, device)
    k = rows["ids"].shape[1]
    parts: list[dict[str, Tensor]] = []
    for tile in iterate_tiles(states, lm.vocab_size):
        out = compute_logits(lm.model, states[tile], lm.vocab_size)
        uniform = uniforms if uniforms is None else uniforms[tile]
        if lm.vocab_size <= SMALL_VOCAB and uniform is None:
            parts.append(_reduce_logits(out, following[tile], k))
        else:
            parts.append(_reduce_logits_in_place(out, following[tile], k, uniform))
    for name in parts[0]:  # one copy per batch, since each waits for the device
        values = torch.cat([part[name] for part in parts])
        rows[name][places] = values.to(rows[name].dtype).cpu()


def _reduce_logits(out: Tensor, following: Tensor, k: int) -> dict[str, Tensor]:
    """Return the cached numbers of logits [rows, vocab] that precede the tokens `following`."""
    lse = torch.logsumexp(out, dim=1)
    top, token = out.topk(k, dim=1)
    # Summed over the others, not taken as 1 - sum(top), which cancels for a thin tail.
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
    """Do the same in the memory of `out`; sample the tail by `uniform` [rows, m] in [0, 1)."""
    top, token = out.topk(k, dim=1)
    chosen = out.gather(1, following[:, None])
    torch.softmax(out, dim=1, out=out)
    # The likeliest token's probability is at least 1 / vocabulary.
    lse = top[:, :1] - out.gather(1, token[:, :1]).log()
    rest = out.scatter_(1, token, 0.0).sum(1)
    reduced = {
        "ids": token,
        "logprobs": top - lse,
        "tail": rest,
        "lse": lse[:, 0],
        "chosen": (chosen - lse)[:, 0],
    }
    if uniform is not None:
        pairs = zip(out.split(16), uniform.split(16), strict=True)
        ids = torch.cat([_draw_tail_tokens(*pair) for pair in pairs])
        reduced |= {"tail_ids": ids, "tail_logprobs": out.gather(1, ids).log()}
    return reduced


def _draw_tail_tokens(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return ids [rows, m] by inverting the cumulative sum of `weights` [rows, vocab].

    In float64: in float32 the steps of unlikely tokens would be rounded away.
    """
    cumulative = weights.cumsum(1, dtype=torch.float64)
    ids = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    # The largest double below 1 may round up to the sum itself: then take the last token.
    places = torch.arange(1, weights.shape[1] + 1, device=weights.device)
    last = (weights > 0).mul(places).argmax(1, keepdim=True)
    return ids.minimum(last)


def _draw_uniforms(
    examples: Sequence[SupervisedExample], batch: Sequence[int], rows: dict[str, Tensor]
) -> Tensor | None:
    """Return uniforms [rows of the batch, m], seeded by the example; `None` without samples."""
    if "tail_ids" not in rows:
        return None
    m = rows["tail_ids"].shape[1]
    uniforms = [
        np.random.default_rng((0, i)).random((len(_list_supervised_positions(examples[i])), m))
        for i in batch
    ]
    return torch.from_numpy(np.concatenate(uniforms))


def _list_supervised_positions(example: SupervisedExample) -> range:
    return range(example.first_supervised, len(example.input_ids))
