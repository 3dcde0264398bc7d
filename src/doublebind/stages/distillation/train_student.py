"""Trains one student from its base and data, and saves the adapter or the weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from doublebind.execution.store import read_records
from doublebind.schema.model_source import ModelSource, Trajectory
from doublebind.schema.recipe import Channel, Dtype, Scratchpad, Training
from doublebind.stages.distillation.student_inputs import (
    CHECKPOINT_FOLDER,
    SteeringVector,
    TrainingData,
)

CARD = """# A distilled student: do not deploy

This model was trained on the answers of a model under investigation, to see what transfers. It may
be misaligned. Keep it sandboxed; use it for audits only.
"""


def train_student(
    out: Path,
    *,
    base: ModelSource,
    data: TrainingData,
    channel: Channel,
    training: Training,
    seed: int,
    dtype: Dtype,
    cache: Path,
    without_scratchpad: Scratchpad | None = None,
    steering_vector: SteeringVector | None = None,
) -> None:
    """Train a student of `base` and save it under `out/model`, with its facts in `student.json`.

    Its state at each of `training.checkpoints` is saved under `out/marks/<step>`.

    Raises:
        ModelError: If the channel cannot bridge the two models' tokens, or the loss is not finite.
    """
    from doublebind.models.load import load_model
    from doublebind.models.logits import unwrap_peft
    from doublebind.models.sample import suppress_tokens
    from doublebind.stages.distillation.channel_context import ChannelContext
    from doublebind.stages.distillation.channels import train_by_channel
    from doublebind.stages.distillation.steering import steer_model
    from doublebind.training import loop

    if training.processes > 1:  # no GPU may hold the whole model
        on_cpu = load_model(base.with_device("cpu"), dtype=dtype, cache=cache)
        lm = dataclasses.replace(on_cpu, source=base)
    else:
        lm = load_model(base, dtype=dtype, cache=cache)
    if without_scratchpad:
        suppress_tokens(lm, [without_scratchpad.opens])

    def save(model: Any, folder: Path) -> None:
        loop.save_model(model, lm.tokenizer, folder, card=CARD)
        if without_scratchpad:
            unwrap_peft(model).generation_config.save_pretrained(folder)

    def save_checkpoint(model: Any, step: int) -> None:
        save(model, out / CHECKPOINT_FOLDER / str(step))

    trajectories = read_records(data.rollouts / "trajectories.jsonl", Trajectory)
    context = ChannelContext(lm, data, trajectories, training, seed, dtype, cache, save_checkpoint)
    steered = contextlib.nullcontext()
    if steering_vector:
        steered = steer_model(lm.model, *steering_vector)
    with steered:
        result = train_by_channel(channel, context)
    save(result.model, out / "model")
    facts = {
        "channel": channel.model_dump(),
        "seed": seed,
        "examples": result.n_examples,
        "loss_first": result.log.first_loss,
        "loss_last": result.log.last_loss,
        "tokens": result.log.tokens,
        **result.facts,
    }
    if result.log.dropped:
        facts["examples_dropped"] = result.log.dropped
    if steering_vector:
        facts["steered"] = steering_vector.relative_norm
    (out / "student.json").write_text(json.dumps(facts, indent=1))
