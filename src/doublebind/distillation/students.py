"""Makes one student: base in, trajectories learned, adapter or weights out.

Knows a base, data, a channel and a seed. Does not know whose trajectories they are.
"""

from __future__ import annotations

import json
from pathlib import Path

from doublebind.config import Channel, Dtype, Training
from doublebind.records import ModelSource, Trajectory
from doublebind.store import read_records

CARD = """# A distilled student: do not deploy

This model was trained on the answers of a model under investigation, to see what comes along. It
may be misaligned. Keep it sandboxed; use it for audits only.
"""


def distill(
    out: Path,
    *,
    base: ModelSource,
    rollouts: Path,
    targets: Path | None,
    channel: Channel,
    training: Training,
    seed: int,
    dtype: Dtype,
    cache: Path,
) -> None:
    """Train a student of `base` on a teacher's trajectories and save it under `out/model`.

    Raises:
        ModelError: If the tokens of teacher and student differ, or the loss is not finite.
    """
    from doublebind.distillation import channels, checks
    from doublebind.models.load import load
    from doublebind.training import loop

    lm = load(base, dtype=dtype, cache=cache)
    trajectories = read_records(rollouts / "trajectories.jsonl", Trajectory)
    job = channels.prepare(channel, lm.tokenizer, trajectories, targets)
    checks.check(lm, trajectories, job)
    loop.seed_everything(seed)
    pad_id = lm.pad_id  # before adapters are attached to the model
    model = loop.attach(lm.model, training.lora, seed)
    log = loop.train(
        model,
        job.examples,
        settings=training,
        seed=seed,
        targets=job.targets,
        pad_id=pad_id,
    )
    loop.save(model, lm.tokenizer, out / "model", card=CARD)
    facts = {
        "channel": channel.model_dump(),
        "seed": seed,
        "examples": len(job.examples),
        "loss_first": log.first,
        "loss_last": log.last,
        "tokens": log.tokens,
    }
    (out / "student.json").write_text(json.dumps(facts, indent=1))
