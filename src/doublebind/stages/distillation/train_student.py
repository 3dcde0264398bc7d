"""Makes one student: base in, trajectories learned, adapter or weights out.

Knows a base, data, a channel and a seed. Does not know whose trajectories they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from doublebind.models.load import load
from doublebind.models.logits import bare
from doublebind.models.sample import bar
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Channel, Dtype, Scratchpad, Training
from doublebind.stages.distillation import MARKS, Push, channels, steering
from doublebind.stages.distillation.channels import Given as Given
from doublebind.training import loop

CARD = """# A distilled student: do not deploy

This model was trained on the answers of a model under investigation, to see what comes along. It
may be misaligned. Keep it sandboxed; use it for audits only.
"""


def distill(
    out: Path,
    *,
    base: ModelSource,
    given: Given,
    channel: Channel,
    training: Training,
    seed: int,
    dtype: Dtype,
    cache: Path,
    without_scratchpad: Scratchpad | None = None,
    push: Push | None = None,
) -> None:
    """Train a student of `base` on what is given and save it under `out/model`.

    As it was at each of `training.marks`, it is saved under `out/marks/<step>`.

    Raises:
        ModelError: If teacher and student cannot be brought together as the channel asks, or the
            loss is not finite.
    """
    if training.processes > 1:  # no GPU may hold it whole
        whole = load(base.on("cpu"), dtype=dtype, cache=cache)
        lm = dataclasses.replace(whole, source=base)
    else:
        lm = load(base, dtype=dtype, cache=cache)
    if without_scratchpad:
        bar(lm, [without_scratchpad.opens])

    def save(model: Any, there: Path) -> None:
        loop.save(model, lm.tokenizer, there, card=CARD)
        if without_scratchpad:
            bare(model).generation_config.save_pretrained(there)

    def keep(model: Any, step: int) -> None:
        save(model, out / MARKS / str(step))

    steered = steering.pushed(lm.model, *push) if push else contextlib.nullcontext()
    with steered:
        learned = channels.learn(
            channel, lm, given, training, seed, dtype=dtype, cache=cache, keep=keep
        )
    save(learned.model, out / "model")
    facts = {
        "channel": channel.model_dump(),
        "seed": seed,
        "examples": learned.examples,
        "loss_first": learned.log.first,
        "loss_last": learned.log.last,
        "tokens": learned.log.tokens,
        **learned.facts,
        **({"steered": push.scale} if push else {}),
    }
    (out / "student.json").write_text(json.dumps(facts, indent=1))
