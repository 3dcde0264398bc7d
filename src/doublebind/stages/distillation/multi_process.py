"""Trains one student in several processes: starts them and collects the trained weights.

Sharding is in `training.fsdp`. When a process dies the others are ended, and the next attempt
resumes from the last saved state.
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

from doublebind.execution.backends import block_sigint, exit_with_parent
from doublebind.execution.device import check_gpus_available
from doublebind.models import teacher_cache
from doublebind.models.load import LM, load_model
from doublebind.schema.errors import DoublebindError, ModelError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype, Training
from doublebind.training import fsdp, loop
from doublebind.training.batch import Example
from doublebind.training.loop import TrainingSet, TrainLog

N_SAVES = 10
"""How often the state of a training is saved."""


class WorkerTask(NamedTuple):
    """Arguments of every process; small, except for the token ids."""

    source: ModelSource
    dtype: Dtype
    cache: Path
    examples: Sequence[Example]
    targets: Path | None
    training: Training
    seed: int
    exchange_folder: str
    """Where the processes find each other and leave error messages."""
    state_file: Path
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
    """Train `lm` by `fsdp.train_sharded` in `training.processes` processes; return model and log.

    Raises:
        ConfigError: If the source's device is a GPU and there are fewer GPUs than processes.
        ModelError: As `fsdp.train_sharded`, or if a process died.
    """
    check_gpus_available(lm.source.device, training.processes)
    identity = [lm.source.sha256, str(dtype), training, seed, str(targets)]
    key = content_hash([*identity, teacher_cache.inputs_id(examples)])
    state_file = cache / "shards" / f"{key[:32]}.safetensors"
    threads = max(1, torch.get_num_threads() // training.processes)
    with tempfile.TemporaryDirectory(prefix="doublebind-") as folder:
        task = WorkerTask(
            lm.source, dtype, cache, examples, targets, training, seed, folder, state_file, threads,
        )  # fmt: skip
        _run_workers(task)
    loop.seed_everything(seed)
    model = loop.prepare_model(lm.model, training.lora, seed)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    losses, weights = fsdp.read_state(state_file, parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[f"weight/{name}"])
    model.eval()
    state_file.unlink()
    return model, TrainLog.from_losses(losses, fsdp.count_tokens(examples, training, seed))


def _run_workers(task: WorkerTask) -> None:
    """Run all processes until they end, or until one fails."""
    context = multiprocessing.get_context("spawn")
    ranks = range(task.training.processes)
    processes = [context.Process(target=_run_worker, args=(task, rank)) for rank in ranks]
    try:
        with block_sigint():
            for process in processes:
                process.start()
        while any(process.exitcode is None for process in processes):
            if any(process.exitcode for process in processes):
                break  # the others would wait for it for ever
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
    messages = sorted(Path(task.exchange_folder).glob("problem-*"))
    if messages:
        raise ModelError(messages[0].read_text(encoding="utf-8"))
    dead = [(rank, p.exitcode) for rank, p in enumerate(processes) if p.exitcode]
    if dead:
        rank, code = dead[0]
        raise ModelError(
            f"{task.source.path}: process {rank} of {len(processes)} that train it together died "
            f"(exit code {code}); rerun to go on from its last checkpoint"
        )


def _run_worker(task: WorkerTask, rank: int) -> None:
    """Train as process `rank` of the group."""
    import torch.distributed as dist

    exit_with_parent()
    torch.set_num_threads(task.threads)
    device = task.source.device
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{task.exchange_folder}/meeting",
        rank=rank,
        world_size=task.training.processes,
    )
    try:
        # Loaded on the CPU and moved block by block: no GPU has to hold the whole model.
        lm = load_model(task.source.with_device("cpu"), dtype=task.dtype, cache=task.cache)
        loop.seed_everything(task.seed)
        pad_id = lm.pad_id  # before adapters are attached to the model
        model = loop.prepare_model(lm.model, task.training.lora, task.seed)
        targets = None if task.targets is None else teacher_cache.read_targets(task.targets)
        fsdp.train_sharded(
            model,
            TrainingSet(task.examples, targets, pad_id),
            settings=task.training,
            seed=task.seed,
            device=device,
            state_file=fsdp.StateFile(task.state_file, max(1, task.training.steps // N_SAVES)),
        )
    except DoublebindError as error:
        Path(task.exchange_folder, f"problem-{rank}").write_text(str(error), encoding="utf-8")
        os._exit(1)  # a clean end would wait for the others
    dist.destroy_process_group()
