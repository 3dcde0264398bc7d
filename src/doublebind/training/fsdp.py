"""Trains a student that no single device holds: weights, gradients and moments in shards.

Fully sharded data parallelism (Zhao et al. 2023, arXiv 2304.11277) in the form torch calls FSDP2.
Knows process groups and shards; the examples, their order, the losses and the schedule are
`loop`'s, so that the same seed learns the same batches on any number of processes.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from doublebind.execution.store import storage_error
from doublebind.models.logits import compute_logits, iterate_tiles, run_body, unwrap_peft
from doublebind.models.teacher_cache import TeacherTargets
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import Device
from doublebind.schema.recipe import Training
from doublebind.training.batch import Batch, Example, collate, shuffle_epochs, truncate_examples
from doublebind.training.loop import (
    ADAM_BETAS,
    MAX_GRADIENT_NORM,
    TrainLog,
    check_vocabulary,
    lr_factor,
    make_row_loss,
    select_target_rows,
)


class _StepLoss(nn.Module):
    """One forward pass from tokens to a summed loss, so that sharding sees all of it as one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, soft: Any, vocab: int) -> Tensor:
        """Return the loss summed over supervised tokens; logits exist a tile at a time."""
        states = run_body(self.model, batch.ids, position_ids=batch.positions, use_cache=False)
        rows = states.last_hidden_state.flatten(0, 1).index_select(0, batch.prediction_positions)

        loss_of = make_row_loss(batch.labels, soft)

        def summed(part: Tensor, tile: slice) -> Tensor:
            return loss_of(compute_logits(self.model, part, vocab), tile).sum()

        total = rows.new_zeros((), dtype=torch.float32)
        for tile in iterate_tiles(rows, vocab):
            total = total + torch.utils.checkpoint.checkpoint(  # pyright: ignore
                summed, rows[tile], tile, use_reentrant=False
            )
        return total


def train_sharded(
    model: Any,
    examples: Sequence[Example],
    *,
    settings: Training,
    seed: int,
    targets: TeacherTargets | None,
    pad_id: int,
    device: Device = "cpu",
    checkpoint: Path | None = None,
    checkpoint_interval: int = 100,
) -> TrainLog:
    """Take the steps of `loop.train`, with the model sharded over the default process group.

    Every process calls it with the same arguments, started by `torchrun` or `accelerate launch`.
    Each step's examples are dealt out to the processes; the gradient is that of the mean over all
    supervised tokens of the step. Losses agree with one process to 1e-4 in float32, not to the
    bit: the order of sums is another. Activations of the blocks are recomputed in the backward
    pass.

    Args:
        model: What `loop.attach` returned; changed in place, left sharded.
        examples: See `loop.train`.
        settings: See `loop.train`; `batch` is at least the number of processes.
        seed: See `loop.train`.
        targets: See `loop.train`.
        pad_id: See `loop.train`.
        device: Where shards lie; on `cuda` each process has chosen its GPU, and the model may come
            on the CPU.
        checkpoint: File of trained weights, moments and losses so far (safetensors); where it
            exists, training goes on from it.
        every: Steps between checkpoints.

    Raises:
        ModelError: As `loop.train`, or if a batch has fewer examples than there are processes.
    """
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    if settings.batch < world:
        raise ModelError(
            f"`batch`: {settings.batch} examples cannot be dealt out to {world} processes; raise "
            f"it, or start fewer"
        )
    vocab = check_vocabulary(model, examples, targets)
    examples = truncate_examples(examples, settings.max_length)
    step_of = shard_model(model, device)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(named.values(), settings.lr, ADAM_BETAS, weight_decay=0.0)
    usable = [i for i, e in enumerate(examples) if len(e.input_ids) > e.first_supervised]
    indices = (usable[place] for place in shuffle_epochs(len(usable), seed))
    seen = _resume_checkpoint(checkpoint, named, optimizer) if checkpoint else []
    there, tokens = unwrap_peft(model).device, 0
    model.train()
    for step in range(settings.steps):
        chosen = list(itertools.islice(indices, settings.batch))
        supervised = sum(len(examples[i].input_ids) - examples[i].first_supervised for i in chosen)
        tokens += supervised
        if step < len(seen):  # done before the interruption; the draws are repeated
            continue
        mine = chosen[rank::world]
        batch = collate([examples[i] for i in mine], pad_id, pack=False).to(there)
        soft = None if targets is None else select_target_rows(targets, examples, mine, there)
        loss = step_of(batch, soft, vocab) / supervised
        (loss * world).backward()  # gradients are averaged over processes, the loss is a sum
        total = loss.detach().clone()
        dist.all_reduce(total)
        seen.append(float(total))
        if not math.isfinite(seen[-1]):
            raise ModelError(
                f"the loss is not finite at step {step + 1}; lower `lr` or check the model"
            )
        torch.nn.utils.clip_grad_norm_(named.values(), MAX_GRADIENT_NORM)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * lr_factor(step, settings.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if checkpoint and ((step + 1) % checkpoint_interval == 0 or step + 1 == settings.steps):
            _save_checkpoint(checkpoint, named, optimizer, seen)
    model.eval()
    return TrainLog(seen[0], seen[-1], math.fsum(seen) / len(seen), len(seen), tokens)


def rebuild_log(
    losses: Sequence[float], examples: Sequence[Example], settings: Training, seed: int
) -> TrainLog:
    """Return the log of a training from its losses: the draws are repeated, nothing is trained."""
    examples = truncate_examples(examples, settings.max_length)
    lengths = [n for e in examples if (n := len(e.input_ids) - e.first_supervised) > 0]
    drawn = itertools.islice(shuffle_epochs(len(lengths), seed), settings.steps * settings.batch)
    tokens = sum(lengths[place] for place in drawn)
    return TrainLog(losses[0], losses[-1], math.fsum(losses) / len(losses), len(losses), tokens)


def shard_model(model: Any, device: Device = "cpu") -> nn.Module:
    """Shard `model` in place, block by block; return what computes a step's loss."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Or torch would choose: a GPU wherever there is one.
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    inner = unwrap_peft(model)
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    step_of = _StepLoss(model)
    for block in inner.get_decoder().layers:
        fully_shard(block, mesh=mesh)
    fully_shard(step_of, mesh=mesh)  # what is left: embedding, norms, head
    return step_of


def _gather_full_tensor(value: Any) -> Tensor:
    full = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full.detach().cpu().contiguous()


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _save_checkpoint(
    file: Path, named: dict[str, Any], optimizer: torch.optim.Optimizer, seen: list[float]
) -> None:
    """Write the state as plain tensors, whole: it can be taken up by any number of processes."""
    import torch.distributed as dist
    from safetensors.torch import save_file

    state = {f"weight/{n}": _gather_full_tensor(p) for n, p in named.items()}
    for n, p in named.items():
        state |= {f"{m}/{n}": _gather_full_tensor(optimizer.state[p][m]) for m in _MOMENTS}
    if dist.get_rank() == 0:
        part = file.with_name(f".{file.name}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(state, part, {"losses": json.dumps(seen)})
            part.replace(file)
        except OSError as error:
            raise storage_error(error, file) from error
    dist.barrier()


def read_checkpoint(file: Path, names: Iterable[str]) -> tuple[list[float], dict[str, Tensor]]:
    """Return losses and trained weights, whole, from a checkpoint.

    Raises:
        ModelError: If it is none of this training.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            seen = json.loads((opened.metadata() or {})["losses"])
            return seen, {name: opened.get_tensor(f"weight/{name}") for name in names}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            f"{file}: not a checkpoint of this training ({error}); delete it"
        ) from None


def _resume_checkpoint(
    file: Path, named: dict[str, Any], optimizer: torch.optim.Optimizer
) -> list[float]:
    """Take up the state in `file`, if there is one; return the losses so far."""
    from safetensors import SafetensorError, safe_open
    from torch.distributed.tensor import distribute_tensor

    if not file.exists():
        return []
    try:
        with safe_open(file, framework="pt") as opened:
            seen = json.loads((opened.metadata() or {})["losses"])
            for name, parameter in named.items():

                def like(kind: str, name: str = name, parameter: Any = parameter) -> Tensor:
                    whole = opened.get_tensor(f"{kind}/{name}").to(parameter.device)
                    return distribute_tensor(whole, parameter.device_mesh, parameter.placements)

                with torch.no_grad():
                    parameter.copy_(like("weight"))
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(len(seen))),
                    **{moment: like(moment) for moment in _MOMENTS},
                }
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            f"{file}: not a checkpoint of this training ({error}); delete it"
        ) from None
    return seen
