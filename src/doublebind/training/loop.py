"""Training loop of every student and teacher: optimiser, learning rate, losses, saving.

`seed_everything` makes all settings of torch that repeatability depends on.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from doublebind.training import tiled_backward
from doublebind.training.batch import (
    Batch,
    Example,
    can_pack,
    collate,
    count_dropped,
    shuffle_epochs,
    truncate_examples,
)
from doublebind.training.fused_body import fuse_body
from doublebind.training.fused_lora import fuse_lora_layers
from doublebind.training.head_loss import (
    HeadLossSettings,
    SoftTargets,
    head_loss,
    make_sampled_targets,
)
from doublebind.training.losses import (
    DivergenceFunction,
    cross_entropy,
    forward_kl,
    topk_forward_kl,
)
from doublebind.training.training_mode import train_without_base_dropout

ADAM_BETAS = (0.9, 0.95)
"""Momentum of AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), as in LLaMA (arXiv 2302.13971,
section 2.3): a run of a few hundred steps is too short for the usual 0.999."""
MAX_GRADIENT_NORM = 1.0
"""Norm to which a larger gradient is clipped; same source."""
SMALL_VOCAB = 4096
"""Largest vocabulary whose loss is left to autograd. Frozen panels depend on its last bits."""
FINITE_CHECK_INTERVAL = 50
"""Steps between checks that the loss is finite. Each check waits for the device."""


CheckpointSaver = Callable[[Any, int], None]
"""Saves the model after so many steps; must not change it."""


class TrainingSet(NamedTuple):
    """Examples in the model's tokens, with what they are trained towards."""

    examples: Sequence[Example]
    targets: TeacherTargets | None = None
    """Cached distributions of the same examples, in the same order; `None`: the tokens alone."""
    pad_id: int = 0
    """Token that fills rows."""


class TrainLog(NamedTuple):
    """Losses of a training run, each the mean over a step's supervised tokens, in nats."""

    first_loss: float
    last_loss: float
    mean_loss: float
    steps: int
    tokens: int
    """Supervised tokens, counted as often as they were trained on."""
    dropped: int = 0
    """Examples left out, since nothing of them is supervised within `max_length`."""

    @classmethod
    def from_losses(cls, losses: Sequence[float], tokens: int) -> TrainLog:
        """Return the log of a run with these losses, one per step."""
        mean = math.fsum(losses) / len(losses)
        return cls(losses[0], losses[-1], mean, len(losses), tokens)


@dataclass(eq=False)
class TrainingState:
    """State of a training run between two steps."""

    parameters: dict[str, Any]
    """Trainable parameters by name."""
    optimizer: torch.optim.Optimizer
    losses: Tensor
    """[steps]: loss of each step taken, zeros for the others."""
    steps_done: int = 0


def start_training(model: Any, settings: Training) -> TrainingState:
    """Return the state of `model` before its first step."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), settings.lr, ADAM_BETAS, weight_decay=0.0, fused=True
    )
    losses = torch.zeros(settings.steps, device=unwrap_peft(model).device)
    return TrainingState(parameters, optimizer, losses)


def seed_everything(seed: int) -> None:
    """Seed torch and prefer deterministic operations.

    On CPU equal seeds, inputs and thread counts give equal bits. The caller sets the number of
    threads by `OMP_NUM_THREADS` before torch is imported; another number changes the order of
    sums and so the last bits. Set `OMP_WAIT_POLICY=passive` with it: threads that spin between
    small operations cost more than the operations.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    # Some CUDA operations have no deterministic form, so warn. On CPU all used here have one.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode also fills new tensors with NaN to expose uninitialised reads. There are
    # none here, and filling is slow.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore
    if torch.cuda.is_available():  # docs/gpu.md says it once; torch would in every process
        for message in (
            ".*does not have a deterministic implementation",
            "Memory Efficient attention",
        ):
            warnings.filterwarnings("ignore", message=message, category=UserWarning)


def prepare_model(model: Any, lora: Lora | None, seed: int) -> Any:
    """Return `model` ready for training: with new LoRA adapters, or with all weights trainable.

    Adapters go on every linear layer of the blocks, never on the output head. Their weights are
    float32 whatever the base's precision. They start as the identity and depend on `seed` alone.

    Raises:
        ModelError: If the model is an adapter itself, or all its weights would be trained in less
            than float32.
    """
    refuse_adapter(model)
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
        # PEFT reads an attribute that transformers renamed, and warns of its own settings.
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def refuse_adapter(model: Any) -> None:
    """Raise a `ModelError` if `model` has an adapter already."""
    if hasattr(model, "peft_config"):
        raise ModelError(
            f"{unwrap_peft(model).name_or_path}: the model to train is an adapter on this base; "
            f"merge the two into a full model (PEFT's merge_and_unload), save that, and train it"
        )


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
    data: TrainingSet,
    *,
    settings: Training,
    seed: int,
    divergence: DivergenceFunction = forward_kl,
    progress: Callable[[int, int], None] | None = None,
    save_checkpoint: CheckpointSaver | None = None,
) -> TrainLog:
    """Take `settings.steps` optimiser steps of `settings.batch` examples or so many tokens each.

    The loss of a step is the mean over its supervised tokens: of the cross-entropy, or of
    `divergence` from the targets where there are any.

    Args:
        model: Returned by `prepare_model`; changed in place, left in evaluation mode.
        data: Examples, and targets if any.
        settings: Steps, batch, peak learning rate, length.
        seed: Seeds the order of the examples; each epoch is shuffled anew.
        divergence: One of `losses`.
        progress: Called with (steps done, steps) every `FINITE_CHECK_INTERVAL` steps.
        save_checkpoint: Called after each of `settings.checkpoints`.

    Raises:
        ModelError: If nothing is supervised, the targets belong to other examples, a token is
            beyond the vocabulary, or the loss stops being finite.
    """
    vocab = check_vocabulary(model, data.examples, data.targets)
    examples = truncate_examples(data.examples, settings.max_length)
    dropped = count_dropped(len(examples), len(list_usable(examples)), settings.max_length)
    batches = iterate_batches(examples, settings, seed)
    device, packs = unwrap_peft(model).device, can_pack(model)

    def step() -> tuple[Tensor, int]:
        indices = next(batches)
        batch = collate([examples[i] for i in indices], data.pad_id, pack=packs).to(device)
        soft = None
        if data.targets is not None:
            soft = select_target_rows(data.targets, examples, indices, device)
        return backward_batch(model, batch, soft, vocab, divergence), len(batch.labels)

    log = run_optimiser_steps(
        model, step, settings, progress=progress, save_checkpoint=save_checkpoint
    )
    return log._replace(dropped=dropped)


def list_usable(examples: Sequence[Example]) -> list[int]:
    """Return the indices of the examples that supervise anything."""
    return [i for i, e in enumerate(examples) if len(e.input_ids) > e.first_supervised]


def iterate_batches(
    examples: Sequence[Example], settings: Training, seed: int
) -> Iterator[list[int]]:
    """Yield the indices of a step's examples, of those that supervise anything, for ever.

    A step takes `settings.batch` examples, or as many as `settings.tokens_per_step` holds.

    Raises:
        ModelError: If no example supervises anything.
    """
    usable = list_usable(examples)
    indices = (usable[place] for place in shuffle_epochs(len(usable), seed))
    most = settings.tokens_per_step
    if most is None:
        while True:
            yield list(itertools.islice(indices, settings.batch))
    chosen, n_tokens = [next(indices)], 0
    for i in indices:
        n_tokens += len(examples[chosen[-1]].input_ids)
        if n_tokens + len(examples[i].input_ids) > most:
            yield chosen
            chosen, n_tokens = [], 0
        chosen.append(i)


def run_optimiser_steps(
    model: Any,
    backward_step: Callable[[], tuple[Tensor, int]],
    settings: Training,
    *,
    state: TrainingState | None = None,
    progress: Callable[[int, int], None] | None = None,
    save_checkpoint: CheckpointSaver | None = None,
) -> TrainLog:
    """Take the steps that are left of `settings.steps`.

    Args:
        model: Changed in place, left in evaluation mode.
        backward_step: Adds the gradients of the next step; returns its mean loss (detached) and
            how many supervised tokens that is over.
        settings: Steps, checkpoints and peak learning rate.
        state: Where to go on, updated in place; `None` starts anew.
        progress: See `train`.
        save_checkpoint: See `train`.

    Returns:
        The log; losses of all steps, tokens of those taken here.

    Raises:
        ModelError: If the loss stops being finite.
    """
    state = start_training(model, settings) if state is None else state
    tokens = 0
    with train_without_base_dropout(model), _fuse_layers(model):
        for step in range(state.steps_done + 1, settings.steps + 1):
            state.losses[step - 1], n_tokens = backward_step()
            tokens += n_tokens
            torch.nn.utils.clip_grad_norm_(
                state.parameters.values(), MAX_GRADIENT_NORM, foreach=True
            )
            for group in state.optimizer.param_groups:
                group["lr"] = settings.lr * lr_factor(step - 1, settings.steps)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.steps_done = step
            if step % FINITE_CHECK_INTERVAL == 0 or step == settings.steps:
                check_losses_finite(state)
                if progress:
                    progress(step, settings.steps)
            if save_checkpoint and step in settings.checkpoints:
                save_checkpoint(model, step)
    return TrainLog.from_losses(state.losses.tolist(), tokens)


@contextlib.contextmanager
def _fuse_layers(model: Any) -> Iterator[None]:
    """Fuse layers and flush denormals, except where panels need the bits of the plain layers.

    Shards need the layers as they are, too.
    """
    inner = unwrap_peft(model)
    vocab = inner.get_input_embeddings().weight.shape[0]
    # Frozen panels of small float32 models depend on the last bits of PEFT's own layers.
    is_small = vocab <= SMALL_VOCAB and inner.dtype == torch.float32
    is_sharded = any(hasattr(p, "full_tensor") for p in model.parameters())
    if is_small or is_sharded:
        yield
        return
    if inner.device.type != "cpu":  # what is won there was measured on CPUs
        with fuse_lora_layers(model):
            yield
        return
    with fuse_lora_layers(model), fuse_body(model), _flush_denormals():
        yield


@contextlib.contextmanager
def _flush_denormals() -> Iterator[None]:
    """Take denormal numbers for 0: bfloat16 training makes many, and they are slow."""
    was_set = not bool(torch.tensor(1e-40) * 1.0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_set)


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
    """Return the rows of the examples at `indices`, in order; a cut example's first rows."""
    offsets = targets.offsets
    places = torch.cat(
        [
            torch.arange(int(offsets[i]), int(offsets[i]) + len(e.input_ids) - e.first_supervised)
            for i, e in ((i, examples[i]) for i in indices)
        ]
    )
    parts = (getattr(targets, name) for name in TargetRows._fields)
    return TargetRows._make(
        part if part is None else move_to_device(part[places], device) for part in parts
    )


def make_row_loss(labels: Tensor, soft: TargetRows | None) -> tiled_backward.RowLoss:
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
    """Return the targets as events: the tail is sampled, one event, or empty."""
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

    Only supervised rows go through the output head, a tile at a time, so that logits of [tokens,
    vocabulary] never exist whole. One backward pass through the body follows.
    """
    if (
        divergence is forward_kl
        and vocab <= SMALL_VOCAB
        and (soft is None or soft.tail_ids is None)
    ):
        return tiled_backward.backward(model, batch, make_row_loss(batch.labels, soft), vocab)
    rows = tiled_backward.compute_supervised_states(model, batch)
    targets = None if soft is None else _convert_to_soft_targets(soft, vocab)
    labels = batch.labels if targets is None else None
    settings = HeadLossSettings(divergence)
    loss = head_loss(rows, extract_head(model, vocab), targets, labels, settings=settings)
    loss.backward()
    return loss.detach()


def check_vocabulary(
    model: Any, examples: Sequence[Example], targets: TeacherTargets | None
) -> int:
    """Return the width of the logits.

    Raises:
        ModelError: If examples, targets and model do not belong together.
    """
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


def check_losses_finite(state: TrainingState) -> None:
    """Raise a `ModelError` that names the first step whose loss is not finite."""
    finite = torch.isfinite(state.losses[: state.steps_done])
    if not bool(finite.all()):
        step = int((~finite).nonzero()[0]) + 1
        raise ModelError(f"the loss is not finite at step {step}; lower `lr` or check the model")


def save_model(model: Any, tokenizer: Any, out: Path, *, card: str) -> None:
    """Write the adapter or full model, its tokenizer and its model card to the folder `out`.

    Weights are safetensors. `card` is the text of README.md and says that the model must not be
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
            # The embedding is never adapted; to check that, PEFT would ask the hub.
            model.save_pretrained(out, save_embedding_layers=False)
        else:
            model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        (out / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise storage_error(error, out) from error
