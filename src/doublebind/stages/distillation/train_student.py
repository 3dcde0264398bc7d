"""Makes one student: base in, trajectories learned, adapter or weights out.

Knows a base, data, a channel and a seed. Does not know whose trajectories they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from doublebind.models.load import load_model
from doublebind.models.logits import unwrap_peft
from doublebind.models.sample import suppress_tokens
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Channel, Dtype, Scratchpad, Training
from doublebind.stages.distillation import channels, steering
from doublebind.stages.distillation.student_inputs import (
    CHECKPOINT_FOLDER,
    SteeringVector,
    TrainingData,
)
from doublebind.training import loop

CARD = """# A distilled student: do not deploy

This model was trained on the answers of a model under investigation, to see what comes along. It
may be misaligned. Keep it sandboxed; use it for audits only.
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
    """Train a student of `base` on `data` and save it under `out/model`.

    As it was at each of `training.checkpoints`, it is saved under `out/marks/<step>`.

    Raises:
        ModelError: If teacher and student cannot be brought together as the channel asks, or the
            loss is not finite.
    """
    if training.processes > 1:  # no GPU may hold it whole
        whole = load_model(base.with_device("cpu"), dtype=dtype, cache=cache)
        lm = dataclasses.replace(whole, source=base)
    else:
        lm = load_model(base, dtype=dtype, cache=cache)
    if without_scratchpad:
        suppress_tokens(lm, [without_scratchpad.opens])

    def save(model: Any, there: Path) -> None:
        loop.save_model(model, lm.tokenizer, there, card=CARD)
        if without_scratchpad:
            unwrap_peft(model).generation_config.save_pretrained(there)

    def keep(model: Any, step: int) -> None:
        save(model, out / CHECKPOINT_FOLDER / str(step))

    steered = (
        steering.steer_model(lm.model, *steering_vector)
        if steering_vector
        else contextlib.nullcontext()
    )
    with steered:
        learned = channels.train_by_channel(
            channel, lm, data, training, seed, dtype=dtype, cache=cache, save_checkpoint=keep
        )
    save(learned.model, out / "model")
    facts = {
        "channel": channel.model_dump(),
        "seed": seed,
        "examples": learned.n_examples,
        "loss_first": learned.log.first_loss,
        "loss_last": learned.log.last_loss,
        "tokens": learned.log.tokens,
        **learned.facts,
        **({"steered": steering_vector.relative_norm} if steering_vector else {}),
    }
    (out / "student.json").write_text(json.dumps(facts, indent=1))
