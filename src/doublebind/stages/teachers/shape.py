"""Measures a teacher's shape: its distance from M0 and the length of its answers.

These features say whether references match the suspect; they never enter a score.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from doublebind.execution.store import read_records
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource, Trajectory
from doublebind.schema.recipe import Dtype
from doublebind.stages.teachers.update_norm import measure_update_norm

MAX_ANSWERS = 200
"""Answers that the features are measured on."""


def measure_teacher_shape(
    out: Path,
    *,
    source: ModelSource,
    baseline: ModelSource,
    rollouts: Path,
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write `shape.json`: `shape`, numbers by feature, and `missing`, reasons by absent feature.

    `kl_to_m0` is the Monte Carlo estimate, in nats per token, of KL(teacher || M0) on the
    teacher's own answers: the mean of log p_teacher - log p_M0 over their tokens. `update_norm` is
    the Frobenius norm of the weight difference to M0, where shapes agree. A served teacher has
    `SERVED_FACTS` beside them, which are no match features.
    """
    from doublebind.models.chat_template import encode_prompt
    from doublebind.models.load import load_model, same_tokenizer
    from doublebind.models.score import token_logprobs

    trajectories = read_records(rollouts / "trajectories.jsonl", Trajectory)[:MAX_ANSWERS]
    n_tokens = sum(len(t.tokens) for t in trajectories)
    shape: dict[str, float] = {
        "completion_tokens": n_tokens / len(trajectories),
        "finished": sum(t.finished for t in trajectories) / len(trajectories),
    }
    if source.served:  # cannot be measured: take what the study declares
        shape |= source.served.shape | _read_served_facts(rollouts)
        unmeasured = {"kl_to_m0", "update_norm"} - shape.keys()
        reason = "served, and not declared in `shape`"
        _write_shape(out, shape, dict.fromkeys(sorted(unmeasured), reason))
        return
    missing: dict[str, str] = {}
    teacher = load_model(source, dtype=dtype, cache=cache)
    m0 = load_model(baseline, dtype=dtype, cache=cache)
    if same_tokenizer(teacher.tokenizer, m0.tokenizer):
        sequences = [(encode_prompt(teacher.tokenizer, t.messages), t.tokens) for t in trajectories]
        log_p, log_m0 = (
            math.fsum(map(math.fsum, token_logprobs(lm, sequences))) for lm in (teacher, m0)
        )
        kl = (log_p - log_m0) / n_tokens
        if math.isfinite(kl):
            shape["kl_to_m0"] = kl
        else:
            missing["kl_to_m0"] = "a log-probability is not finite"
    else:
        missing["kl_to_m0"] = "teacher and M0 read text as different tokens"
    try:
        shape["update_norm"] = measure_update_norm(teacher.model, m0.model)
    except ModelError as error:
        missing["update_norm"] = f"teacher and M0 differ in shape: {error}"
    _write_shape(out, shape, missing)


def _read_served_facts(rollouts: Path) -> dict[str, float]:
    """Return `SERVED_FACTS` of a served teacher, from the checks of its answers."""
    checks = json.loads((rollouts / "checks.json").read_text(encoding="utf-8"))
    missing = sum(drop["by"] in ("missing", "unreadable") for drop in checks["dropped"])
    fingerprints = len(checks["served"]["fingerprints"])
    facts = {"unanswered": missing / checks["sampled"]} if missing else {}
    return facts | ({"fingerprints": float(fingerprints)} if fingerprints > 1 else {})


def _write_shape(out: Path, shape: dict[str, float], missing: dict[str, str]) -> None:
    (out / "shape.json").write_text(json.dumps({"shape": shape, "missing": missing}, indent=1))
