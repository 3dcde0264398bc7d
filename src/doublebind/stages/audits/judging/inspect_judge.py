"""Model-graded judging as an Inspect task: a brief per sample, a verdict only with its secret code.

Inspect connects to the model, retries, limits connections and isolates failures.
"""
# Inspect is an extra; the checker runs where it may be absent.
# pyright: reportMissingImports=false

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from inspect_ai import Task
from inspect_ai import eval as run_tasks
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, Model
from inspect_ai.scorer import Score, Target, scorer
from inspect_ai.solver import TaskState

from doublebind.models.api_keys import list_environment_keys, strike_keys
from doublebind.models.server_answers import shorten
from doublebind.stages.audits.judging.brief import Brief, Reply, parse_reply


@scorer(metrics=[])
def coded_verdict() -> Any:
    """Score `first`, `second` or `neither`; any reply but one line with the target is unscored."""

    async def score(state: TaskState, target: Target) -> Score:
        reply = parse_reply(state.output.completion, target.text)
        if reply.verdict is None:
            return Score.unscored(reason="invalid_response_format", explanation=reply.reason)
        return Score(value=reply.verdict, answer=reply.verdict)

    return score


def ask_model(model: Model, briefs: Sequence[Brief]) -> list[Reply]:
    """Return the model's reply to each brief; a call that fails gives no verdict."""
    if not briefs:
        return []
    samples = [Sample(id=i, input=b.text, target=b.code) for i, b in enumerate(briefs, start=1)]
    task = Task(
        dataset=MemoryDataset(samples, name="briefs"),
        scorer=coded_verdict(),
        config=GenerateConfig(temperature=0.0, max_tokens=64),
        fail_on_error=False,
    )
    with tempfile.TemporaryDirectory() as logs:
        (log,) = run_tasks(task, model=model, display="none", log_dir=logs)
        replies = {sample.id: _read_reply(sample) for sample in log.samples or []}
    missing = Reply(None, f"Inspect ended with status {log.status}", "")
    return [replies.get(sample.id, missing) for sample in samples]


def _read_reply(sample: Any) -> Reply:
    """Return a sample's reply; what a server or Inspect says of the keys it uses is struck out."""
    keys = list_environment_keys()
    if sample.error is not None:
        return Reply(None, shorten(strike_keys(sample.error.message, keys), 300), "")
    score = (sample.scores or {}).get("coded_verdict")
    if score is None:
        return Reply(None, "Inspect gave no score", "")
    return Reply(score.answer, score.explanation, strike_keys(sample.output.completion, keys))
