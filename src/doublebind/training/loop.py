"""Fits a model to examples: the optimiser, its schedule, and saving what came out.

Knows supervised tokens, cached targets and adapters. Does not know teachers, recipes or cells.
All settings of torch that bear on repeatability are made here, in `seed_everything`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doublebind.execution.device import move_to_device
from doublebind.execution.store import storage_error
from doublebind.models.load import check_finite, silence_transformers
from doublebind.models.logits import extract_head, unwrap_peft
from doublebind.models.teacher_cache import TeacherTargets, check_labels, completions_id
from doublebind.schema.errors import ModelError
from doublebind.schema.recipe import Lora, Training
from doublebind.training import tiled_backward as tiled
from doublebind.training.batch import (
    Batch,
    Example,
    can_pack,
    collate,
    shuffle_epochs,
    truncate_examples,
)
from doublebind.training.fused_lora import fuse_lora_layers
from doublebind.training.head_loss import SoftTargets, head_loss, make_sampled_targets
from doublebind.training.losses import (
    DivergenceFunction,
    cross_entropy,
    forward_kl,
    topk_forward_kl,
)

ADAM_BETAS = (0.9, 0.95)
"""AdamW's (Loshchilov & Hutter 2019, arXiv 1711.05101), as in LLaMA (arXiv 2302.13971, section
2.3): runs of a few hundred steps are over before a memory of a thousand has filled."""
MAX_GRADIENT_NORM = 1.0
"""Largest norm of the gradient; same source."""
SMALL_VOCAB = 4096
"""Up to so many tokens the loss is left to autograd, whose last bits kept panels depend on."""
FINITE_CHECK_INTERVAL = 50
"""Steps between looks at whether the loss is finite, which wait for the device."""


CheckpointSaver = Callable[[Any, int], None]
"""Keeps the model as it is after so many steps; must not change it."""


class TrainLog(NamedTuple):
    """What a training run saw; losses are means over a step's supervised tokens, in nats."""

    first_loss: float
    last_loss: float
    mean_loss: float
    steps: int
    tokens: int
    """Supervised tokens learned, repeats counted."""


def seed_everything(seed: int) -> None:
    """Make torch repeatable: seed it and prefer deterministic operations.

    On CPU equal seeds, inputs and thread counts give equal bits. The number of threads is the
    caller's, through `OMP_NUM_THREADS` before torch is imported; another number changes the order
    of sums, hence the last bits. Set `OMP_WAIT_POLICY=passive` with it: threads that spin between
    small operations cost more than the operations.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    # Warn, not raise: some CUDA operations have no deterministic form. On CPU all used here do.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would also fill every fresh tensor with NaN, to catch reads that do not happen here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore
    if torch.cuda.is_available():  # what `docs/gpu.md` says once, torch would say in every process
        for told in (
            ".*does not have a deterministic implementation",
            "Memory Efficient attention",
        ):
            warnings.filterwarnings("ignore", message=told, category=UserWarning)


def prepare_model(model: Any, lora: Lora | None, seed: int) -> Any:
    """Return `model` ready to be trained: with fresh adapters, or with all its weights free.

    Adapters go on every linear layer of the blocks, never on the output head; their weights are
    float32 whatever the base's precision. They start as the identity, by `seed` alone.

    Raises:
        ModelError: If the model is an adapter itself, or all its weights are asked for in less
            than float32.
    """
    if hasattr(model, "peft_config"):
        raise ModelError(
            f"{unwrap_peft(model).name_or_path}: the model to train is an adapter on this base; merge the "
            f"two into a full model (PEFT's merge_and_unload), save that, and train it"
        )
    if lora is None:
        if model.dtype != torch.float32:
            raise ModelError(
                f"{model.name_or_path}: training all weights in {model.dtype} rounds small updates "
                f"away; set `dtype: float32` or use `lora`"
            )
        return model.requires_grad_(True)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        target_modules="all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT reads an attribute that transformers renamed, and tells of what it sets by itself.
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def lr_factor(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at `step` of `steps`, in (0, 1].

    Rises linearly over the first 5% of steps, then falls linearly to a tenth at the last.
    """
    warmup = max(1, round(0.05 * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 - 0.9 * (step + 1 - warmup) / (steps - warmup)


def train(
    model: Any,
    examples: Sequence[Example],
    *,
    settings: Training,
    seed: int,
    targets: TeacherTargets | None,
    pad_id: int,
    divergence: DivergenceFunction = forward_kl,
    progress: Callable[[int, int], None] | None = None,
    save_checkpoint: CheckpointSaver | None = None,
) -> TrainLog:
    """Take exactly `settings.steps` optimiser steps of `settings.batch` examples.

    The loss of a step is the mean over its supervised tokens: of the cross-entropy, or of
    `divergence` from `targets` where they are given.

    Args:
        model: What `attach` returned; changed in place, left in evaluation mode.
        examples: Token ids, with the index of the first supervised one.
        settings: Steps, batch, peak learning rate, length.
        seed: Order of the examples; each epoch is shuffled anew.
        targets: Cached distributions of the same examples, in the same order.
        pad_id: Token that fills rows.
        divergence: Of `losses`; what the teacher's distribution is held to.
        progress: Called with (steps done, steps) now and then.
        keep: Called after each of `settings.marks`; without it they are passed over.

    Raises:
        ModelError: If nothing is supervised, the targets are of other examples, a token is beyond
            the vocabulary, or the loss stops being finite.
    """
    vocab = check_vocabulary(model, examples, targets)
    examples = truncate_examples(examples, settings.max_length)
    usable = [i for i, e in enumerate(examples) if len(e.input_ids) > e.first_supervised]
    indices = (usable[place] for place in shuffle_epochs(len(usable), seed))
    device, packs = unwrap_peft(model).device, can_pack(model)

    def step() -> tuple[Tensor, int]:
        chosen = list(itertools.islice(indices, settings.batch))
        batch = collate([examples[i] for i in chosen], pad_id, pack=packs).to(device)
        soft = None if targets is None else select_target_rows(targets, examples, chosen, device)
        return backward_batch(model, batch, soft, vocab, divergence), len(batch.labels)

    return run_optimiser_steps(
        model, step, settings, progress=progress, save_checkpoint=save_checkpoint
    )


def run_optimiser_steps(
    model: Any,
    backward_step: Callable[[], tuple[Tensor, int]],
    settings: Training,
    *,
    progress: Callable[[int, int], None] | None = None,
    save_checkpoint: CheckpointSaver | None = None,
) -> TrainLog:
    """Take `settings.steps` optimiser steps, each with the gradients that `step` leaves behind.

    Args:
        model: Changed in place, left in evaluation mode.
        step: Adds one step's gradients; returns its mean loss (detached) and how many supervised
            tokens it was over.
        settings: Steps, marks and peak learning rate.
        progress: See `train`.
        keep: See `train`.

    Raises:
        ModelError: If the loss stops being finite.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, settings.lr, ADAM_BETAS, weight_decay=0.0, fused=True)
    losses = torch.zeros(settings.steps, device=unwrap_peft(model).device)
    tokens = 0
    model.train()
    # PEFT's own way with small worlds in float32: kept panels depend on its last bits.
    rows = unwrap_peft(model).get_input_embeddings().weight.shape[0]
    plain = rows <= SMALL_VOCAB and unwrap_peft(model).dtype == torch.float32
    fusing = contextlib.nullcontext() if plain else fuse_lora_layers(model)
    with fusing:
        for taken in range(settings.steps):
            losses[taken], learned = backward_step()
            tokens += learned
            torch.nn.utils.clip_grad_norm_(trainable, MAX_GRADIENT_NORM, foreach=True)
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * lr_factor(taken, settings.steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if (taken + 1) % FINITE_CHECK_INTERVAL == 0 or taken + 1 == settings.steps:
                _check_losses_finite(losses[: taken + 1])
                if progress:
                    progress(taken + 1, settings.steps)
            if save_checkpoint and taken + 1 in settings.checkpoints:
                save_checkpoint(model, taken + 1)
    model.eval()
    seen = losses.tolist()
    return TrainLog(seen[0], seen[-1], math.fsum(seen) / len(seen), len(seen), tokens)


class TargetRows(NamedTuple):
    """Cached distributions of one step's supervised tokens."""

    ids: Tensor
    logprobs: Tensor
    tail: Tensor
    tail_ids: Tensor | None = None
    tail_logprobs: Tensor | None = None


def select_target_rows(
    targets: TeacherTargets, examples: Sequence[Example], indices: Sequence[int], device: Any
) -> TargetRows:
    """Return the rows of `chosen` examples, in their order; of a cut example, its first rows."""
    offsets = targets.offsets
    places = torch.cat(
        [
            torch.arange(int(offsets[i]), int(offsets[i]) + len(e.input_ids) - e.first_supervised)
            for i, e in ((i, examples[i]) for i in indices)
        ]
    )
    parts = (targets.ids, targets.logprobs, targets.tail)
    drawn = (targets.tail_ids, targets.tail_logprobs)
    return TargetRows(
        *(move_to_device(part[places], device) for part in parts),
        *(part if part is None else move_to_device(part[places], device) for part in drawn),
    )


def make_row_loss(labels: Tensor, soft: TargetRows | None) -> tiled.RowLoss:
    """Return the loss of rows of logits: cross-entropy, or forward KL from cached distributions."""

    def loss_of(out: Tensor, tile: slice) -> Tensor:
        if soft is None:
            return cross_entropy(out, labels[tile])
        if soft.tail_ids is not None:
            events = _convert_to_soft_targets(soft, out.shape[1])
            weights = None if events.logweights is None else events.logweights[tile]
            logq = out.log_softmax(1).gather(1, events.ids[tile])
            return forward_kl(events.logprobs[tile], logq, weights)
        return topk_forward_kl(out, soft.ids[tile], soft.logprobs[tile], soft.tail[tile])

    return loss_of


def _convert_to_soft_targets(soft: TargetRows, vocab: int) -> SoftTargets:
    """Return the same for the head: with the tail sampled, as one event, or none left."""
    if soft.tail_ids is not None and soft.tail_logprobs is not None:
        return make_sampled_targets(
            soft.ids, soft.logprobs, soft.tail, soft.tail_ids, soft.tail_logprobs
        )
    tail = None if soft.ids.shape[1] == vocab else soft.tail
    return SoftTargets(soft.ids.long(), soft.logprobs, tail)


def backward_batch(
    model: Any,
    batch: Batch,
    soft: TargetRows | None,
    vocab: int,
    divergence: DivergenceFunction = forward_kl,
) -> Tensor:
    """Add the gradient of the mean loss over supervised tokens; return that mean.

    Only supervised rows meet the output head, a tile at a time, so that logits of [tokens,
    vocabulary] never exist whole. One pass through the body follows.
    """
    if (
        divergence is forward_kl
        and vocab <= SMALL_VOCAB
        and (soft is None or soft.tail_ids is None)
    ):
        return tiled.backward(model, batch, make_row_loss(batch.labels, soft), vocab)
    rows = tiled.compute_supervised_states(model, batch)
    targets = None if soft is None else _convert_to_soft_targets(soft, vocab)
    labels = batch.labels if targets is None else None
    loss = head_loss(
        rows, extract_head(model, vocab), soft=targets, labels=labels, divergence=divergence
    )
    loss.backward()
    return loss.detach()


def check_vocabulary(
    model: Any, examples: Sequence[Example], targets: TeacherTargets | None
) -> int:
    """Return the width of the logits, after checking that examples, targets and model agree."""
    width = int(unwrap_peft(model).get_output_embeddings().weight.shape[0])
    where = unwrap_peft(model).name_or_path
    highest = max((max(e.input_ids, default=0) for e in examples), default=0)
    if highest >= width:
        raise ModelError(
            f"{where}: token {highest} is beyond its {width} tokens; the examples were made with "
            f"another tokenizer"
        )
    if targets is None:
        return width
    if targets.header.vocab > width:
        raise ModelError(
            f"{where}: the targets are over {targets.header.vocab} tokens and the model has "
            f"{width}; use a student with the teacher's tokenizer"
        )
    if targets.header.completions_sha256 != completions_id(examples):
        raise ModelError(
            f"{where}: the cached targets belong to other completions; score the teacher again"
        )
    check_labels(targets, examples, where)
    return targets.header.vocab


def _check_losses_finite(losses: Tensor) -> None:
    finite = torch.isfinite(losses)
    if not bool(finite.all()):
        step = int((~finite).nonzero()[0]) + 1
        raise ModelError(f"the loss is not finite at step {step}; lower `lr` or check the model")


def save_model(model: Any, tokenizer: Any, out: Path, *, card: str) -> None:
    """Write the adapter, or the full model, with its tokenizer and model card to folder `out`.

    Weights are safetensors. `card` is the text of README.md; say there that the model must not be
    deployed. An adapter names its base by the path it was loaded from.

    Raises:
        ModelError: If a weight is not finite.
        StoreError: If the folder cannot be written.
    """
    silence_transformers()
    check_finite(model, str(out))
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "README.md").unlink(missing_ok=True)  # PEFT would try to amend one
        if model is not unwrap_peft(model):
            # The embedding is never adapted; looking whether it was would ask the hub.
            model.save_pretrained(out, save_embedding_layers=False)
        else:
            model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        (out / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise storage_error(error, out) from error
