"""Describes a teacher's shape: how far it is from M0 and how it writes.

These numbers say whether the references are like the suspect; they never enter its score.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from doublebind.execution.store import read_records
from doublebind.schema.model_source import ModelSource, Trajectory
from doublebind.schema.recipe import Dtype
from doublebind.stages.teachers.update_norm import measure_update_norm


def measure_teacher_shape(
    out: Path,
    *,
    source: ModelSource,
    baseline: ModelSource,
    rollouts: Path,
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write `shape.json`: numbers by feature, and `missing`: why others are absent.

    `kl_to_m0` is the Monte Carlo estimate, in nats per token, of KL(teacher || M0) on the
    teacher's own answers: the mean of log p_teacher - log p_M0 over their tokens. `update_norm` is
    the Frobenius norm of the weight difference to M0, where shapes agree.
    """
    from doublebind.models.chat_template import encode_prompt
    from doublebind.models.load import load_model, same_tokenizer
    from doublebind.models.score import token_logprobs

    trajectories = read_records(rollouts / "trajectories.jsonl", Trajectory)[:200]
    tokens = sum(len(t.tokens) for t in trajectories)
    shape: dict[str, float] = {
        "completion_tokens": tokens / len(trajectories),
        "finished": sum(t.finished for t in trajectories) / len(trajectories),
    }
    missing: dict[str, str] = {}
    if source.served:  # a black box: what its owner says stands for what cannot be measured
        why = dict.fromkeys(("kl_to_m0", "update_norm"), "served, and not declared in `shape`")
        shape |= source.served.shape
        _write_shape(out, shape, {name: told for name, told in why.items() if name not in shape})
        return
    teacher = load_model(source, dtype=dtype, cache=cache)
    m0 = load_model(baseline, dtype=dtype, cache=cache)
    if same_tokenizer(teacher.tokenizer, m0.tokenizer):
        sequences = [(encode_prompt(teacher.tokenizer, t.messages), t.tokens) for t in trajectories]
        own, theirs = token_logprobs(teacher, sequences), token_logprobs(m0, sequences)
        ratio = (math.fsum(map(math.fsum, own)) - math.fsum(map(math.fsum, theirs))) / tokens
        if math.isfinite(ratio):
            shape["kl_to_m0"] = ratio
        else:
            missing["kl_to_m0"] = "a log-probability is not finite"
    else:
        missing["kl_to_m0"] = "teacher and M0 read text as different tokens"
    norm = measure_update_norm(teacher.model, m0.model)
    if norm is None:
        missing["update_norm"] = "teacher and M0 differ in shape"
    else:
        shape["update_norm"] = norm
    _write_shape(out, shape, missing)


def _write_shape(out: Path, shape: dict[str, float], missing: dict[str, str]) -> None:
    (out / "shape.json").write_text(json.dumps({"shape": shape, "missing": missing}, indent=1))
