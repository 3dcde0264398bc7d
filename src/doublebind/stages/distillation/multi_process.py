"""Trains one student in several processes: starts them, and takes what they learned back.

Knows what each process has to be told. The shards themselves are `training.sharded`'s. When a
process dies the others are ended; what was kept of the training is where the next try begins.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from doublebind.execution.backends import exit_with_parent
from doublebind.execution.device import check_gpus_available
from doublebind.models import teacher_cache
from doublebind.models.load import LM, load_model
from doublebind.schema.errors import DoublebindError, ModelError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype, Training
from doublebind.training import fsdp as sharded
from doublebind.training import loop
from doublebind.training.batch import Example
from doublebind.training.loop import TrainLog

N_CHECKPOINTS = 10
"""Times that a training is kept on its way."""


class WorkerTask(NamedTuple):
    """What every process is told; small, but for the token ids."""

    source: ModelSource
    dtype: Dtype
    cache: Path
    examples: Sequence[Example]
    targets: Path | None
    training: Training
    seed: int
    exchange_folder: str
    """Where the processes meet and leave what they have to say."""
    checkpoint: Path
    threads: int


def train_in_processes(
    lm: LM,
    examples: Sequence[Example],
    targets: Path | None,
    training: Training,
    seed: int,
    *,
    dtype: Dtype,
    cache: Path,
) -> tuple[Any, TrainLog]:
    """Return `lm` trained as `sharded.train` does in `training.processes` processes, and its log.

    Raises:
        ConfigError: If the source's device is a GPU and there are fewer than processes.
        ModelError: As `sharded.train`, or if a process died.
    """
    check_gpus_available(lm.source.device, training.processes)
    made_of = [lm.source.sha256, str(dtype), training, seed, str(targets)]
    key = content_hash([*made_of, teacher_cache.inputs_id(examples)])
    checkpoint = cache / "shards" / f"{key[:32]}.safetensors"
    threads = max(1, torch.get_num_threads() // training.processes)
    with tempfile.TemporaryDirectory(prefix="doublebind-") as folder:
        task = WorkerTask(
            lm.source, dtype, cache, examples, targets, training, seed, folder, checkpoint, threads,
        )  # fmt: skip
        _run_workers(task)
    loop.seed_everything(seed)
    model = loop.prepare_model(lm.model, training.lora, seed)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    losses, weights = sharded.read_checkpoint(checkpoint, named)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    model.eval()
    checkpoint.unlink()
    return model, sharded.rebuild_log(losses, examples, training, seed)


def _run_workers(task: WorkerTask) -> None:
    """Run all processes to their end."""
    context = multiprocessing.get_context("spawn")
    world = task.training.processes
    processes = [context.Process(target=_run_worker, args=(task, rank)) for rank in range(world)]
    try:
        for process in processes:
            process.start()
        while any(process.exitcode is None for process in processes):
            if any(process.exitcode for process in processes):
                break  # the others would wait for it
            time.sleep(0.05)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
        for process in processes:
            if process.pid:
                process.join()
    _raise_worker_errors(task, processes)


def _raise_worker_errors(task: WorkerTask, processes: Sequence[BaseProcess]) -> None:
    told = sorted(Path(task.exchange_folder).glob("problem-*"))
    if told:
        raise ModelError(told[0].read_text(encoding="utf-8"))
    dead = [(rank, p.exitcode) for rank, p in enumerate(processes) if p.exitcode]
    if dead:
        rank, code = dead[0]
        raise ModelError(
            f"{task.source.path}: process {rank} of {len(processes)} that train it together died "
            f"(exit code {code}); rerun to go on from its last checkpoint"
        )


def _run_worker(task: WorkerTask, rank: int) -> None:
    """Be one of the processes."""
    import torch.distributed as dist

    exit_with_parent()
    torch.set_num_threads(task.threads)
    world = task.training.processes
    device = task.source.device
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{task.exchange_folder}/meeting",
        rank=rank,
        world_size=world,
    )
    try:
        # Block by block it goes to the GPU and is sharded there, which need not hold it whole.
        lm = load_model(task.source.with_device("cpu"), dtype=task.dtype, cache=task.cache)
        loop.seed_everything(task.seed)
        pad_id = lm.pad_id  # before adapters are attached to the model
        model = loop.prepare_model(lm.model, task.training.lora, task.seed)
        sharded.train_sharded(
            model,
            task.examples,
            settings=task.training,
            seed=task.seed,
            targets=None if task.targets is None else teacher_cache.read_targets(task.targets),
            pad_id=pad_id,
            device=device,
            checkpoint=task.checkpoint,
            checkpoint_interval=max(1, task.training.steps // N_CHECKPOINTS),
        )
    except DoublebindError as error:
        Path(task.exchange_folder, f"problem-{rank}").write_text(str(error), encoding="utf-8")
        os._exit(1)  # a clean end would wait for the others
    dist.destroy_process_group()
