"""Trains a student that no single device holds: weights, gradients and moments are sharded.

Fully sharded data parallelism (Zhao et al. 2023, arXiv 2304.11277) as torch's FSDP2. Examples,
their order, losses and schedule are those of `loop`, so that a seed gives the same batches on any
number of processes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from doublebind.execution.store import storage_error
from doublebind.models.logits import compute_logits, iterate_tiles, unwrap_peft
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import Device
from doublebind.schema.recipe import Training
from doublebind.training.batch import Batch, Example, collate, count_dropped, truncate_examples
from doublebind.training.loop import (
    TargetRows,
    TrainingSet,
    TrainingState,
    TrainLog,
    check_losses_finite,
    check_vocabulary,
    iterate_batches,
    list_usable,
    make_row_loss,
    run_optimiser_steps,
    select_target_rows,
    start_training,
)
from doublebind.training.tiled_backward import compute_supervised_states

_MOMENTS = ("exp_avg", "exp_avg_sq")


class SummedLoss(nn.Module):
    """One forward pass from tokens to a summed loss, so that FSDP wraps all of it as one module."""

    def __init__(self, model: Any) -> None:
        """Wrap `model`."""
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, soft: TargetRows | None, vocab: int) -> Tensor:
        """Return the loss summed over supervised tokens; logits exist a tile at a time."""
        rows = compute_supervised_states(self.model, batch)
        loss_of = make_row_loss(batch.labels, soft)

        def sum_tile(part: Tensor, tile: slice) -> Tensor:
            return loss_of(compute_logits(self.model, part, vocab), tile).sum()

        total = rows.new_zeros((), dtype=torch.float32)
        for tile in iterate_tiles(rows, vocab):
            total = total + torch.utils.checkpoint.checkpoint(  # pyright: ignore
                sum_tile, rows[tile], tile, use_reentrant=False
            )
        return total


class StateFile(NamedTuple):
    """Where a sharded training saves its state, and how often."""

    path: Path
    interval: int
    """Steps between two saves; the last step is always saved."""


def train_sharded(
    model: Any,
    data: TrainingSet,
    *,
    settings: Training,
    seed: int,
    state_file: StateFile,
    device: Device = "cpu",
) -> TrainLog:
    """Take the steps of `loop.train` with the model sharded over the default process group.

    Every process calls it with the same arguments. Each step's examples are dealt out to the
    processes; the gradient is that of the mean over all supervised tokens of the step. In float32
    losses agree with one process to 1e-4, not to the bit, because sums have another order.
    Activations of the blocks are recomputed in the backward pass.

    Args:
        model: Returned by `loop.prepare_model`; changed in place, left sharded.
        data: See `loop.train`.
        settings: See `loop.train`; `batch` is at least the number of processes.
        seed: See `loop.train`.
        state_file: Trained weights, moments and losses (safetensors). If it exists, training
            resumes from it.
        device: Device of the shards; on `cuda` each process has chosen its GPU, and the model may
            be passed on the CPU.

    Raises:
        ModelError: As `loop.train`, or if a batch has fewer examples than there are processes.
    """
    import torch.distributed as dist

    rank, n_processes = dist.get_rank(), dist.get_world_size()
    if settings.batch < n_processes:
        raise ModelError(
            f"`batch`: {settings.batch} examples cannot be dealt out to {n_processes} processes; "
            f"raise it, or start fewer"
        )
    vocab = check_vocabulary(model, data.examples, data.targets)
    examples = truncate_examples(data.examples, settings.max_length)
    compute_loss = shard_model(model, device)
    state = start_training(model, settings)
    load_state(state_file.path, state)
    # The batches before an interruption are drawn again and passed over.
    batches = itertools.islice(iterate_batches(examples, settings, seed), state.steps_done, None)
    here = unwrap_peft(model).device

    def backward_step() -> tuple[Tensor, int]:
        indices = next(batches)
        n_tokens = _count_supervised(examples, indices)
        mine = indices[rank::n_processes]
        batch = collate([examples[i] for i in mine], data.pad_id, pack=False).to(here)
        soft = None
        if data.targets is not None:
            soft = select_target_rows(data.targets, examples, mine, here)
        loss = compute_loss(batch, soft, vocab) / n_tokens
        (loss * n_processes).backward()  # FSDP averages gradients; the loss is a sum
        total = loss.detach().clone()
        dist.all_reduce(total)
        return total, n_tokens

    def save(_model: Any, _step: int) -> None:
        check_losses_finite(state)
        save_state(state_file.path, state)

    saves = range(state_file.interval, settings.steps, state_file.interval)
    settings = settings.model_copy(update={"checkpoints": (*saves, settings.steps)})
    log = run_optimiser_steps(model, backward_step, settings, state=state, save_checkpoint=save)
    dropped = count_dropped(len(examples), len(list_usable(examples)), settings.max_length)
    return log._replace(tokens=count_tokens(data.examples, settings, seed), dropped=dropped)


def count_tokens(examples: Sequence[Example], settings: Training, seed: int) -> int:
    """Return how many supervised tokens a whole training sees, counted as often as it does."""
    examples = truncate_examples(examples, settings.max_length)
    batches = itertools.islice(iterate_batches(examples, settings, seed), settings.steps)
    return sum(_count_supervised(examples, batch) for batch in batches)


def _count_supervised(examples: Sequence[Example], indices: Sequence[int]) -> int:
    return sum(len(examples[i].input_ids) - examples[i].first_supervised for i in indices)


def shard_model(model: Any, device: Device = "cpu") -> nn.Module:
    """Shard `model` in place, block by block; return the module that computes a step's loss."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Without a mesh torch would choose the device: a GPU wherever there is one.
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    inner = unwrap_peft(model)
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss = SummedLoss(model)
    for block in inner.get_decoder().layers:
        fully_shard(block, mesh=mesh)
    fully_shard(loss, mesh=mesh)  # embedding, norms and head
    return loss


def save_state(file: Path, state: TrainingState) -> None:
    """Write the state as unsharded tensors, from which any number of processes can resume.

    Raises:
        StoreError: If the file cannot be written.
    """
    import torch.distributed as dist
    from safetensors.torch import save_file

    tensors = {}
    for name, parameter in state.parameters.items():
        tensors[f"weight/{name}"] = _gather_full_tensor(parameter)
        for moment in _MOMENTS:
            value = state.optimizer.state[parameter][moment]
            tensors[f"{moment}/{name}"] = _gather_full_tensor(value)
    losses = state.losses[: state.steps_done].tolist()
    if dist.get_rank() == 0:
        part = file.with_name(f".{file.name}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, {"losses": json.dumps(losses)})
            part.replace(file)
        except OSError as error:
            raise storage_error(error, file) from error
    dist.barrier()


def _gather_full_tensor(value: Any) -> Tensor:
    full = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full.detach().cpu().contiguous()


def load_state(file: Path, state: TrainingState) -> None:
    """Read what `save_state` wrote to `file` into the sharded `state`; without a file do nothing.

    Raises:
        ModelError: If the file does not belong to this training.
    """
    from torch.distributed.tensor import distribute_tensor

    if not file.exists():
        return
    losses, tensors = read_state(file, state.parameters, ("weight", *_MOMENTS))

    def shard(kind: str, name: str) -> Tensor:
        like = state.parameters[name]
        full = tensors[f"{kind}/{name}"].to(like.device)
        return distribute_tensor(full, like.device_mesh, like.placements)

    for name, parameter in state.parameters.items():
        with torch.no_grad():
            parameter.copy_(shard("weight", name))
        moments = {moment: shard(moment, name) for moment in _MOMENTS}
        state.optimizer.state[parameter] = {"step": torch.tensor(float(len(losses))), **moments}
    state.steps_done = len(losses)
    state.losses[: len(losses)] = torch.tensor(losses)


def read_state(
    file: Path, names: Iterable[str], kinds: Sequence[str] = ("weight",)
) -> tuple[list[float], dict[str, Tensor]]:
    """Return the losses and the unsharded tensors `kind/name` of a saved state.

    Raises:
        ModelError: If the file does not belong to this training.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            losses = json.loads((opened.metadata() or {})["losses"])
            keys = [f"{kind}/{name}" for name in names for kind in kinds]
            return losses, {key: opened.get_tensor(key) for key in keys}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            f"{file}: not a checkpoint of this training ({error}); delete it"
        ) from None
