"""Caches what a model makes of trajectories, once for all students: distributions, or likelihoods.

Knows which tokens are supervised: those of the completion. The caches themselves are
`models.teacher_cache`'s and `models.logprobs`'.
"""

from __future__ import annotations

from pathlib import Path

from doublebind.execution.store import read_records
from doublebind.schema.model_source import ModelSource, Trajectory
from doublebind.schema.recipe import Dtype


def cache_teacher_distributions(
    out: Path,
    *,
    source: ModelSource,
    rollouts: Path,
    top_k: int,
    tail_samples: int = 0,
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write the teacher's top-k distribution at every completion position to `out`.

    With `tail_samples` tokens drawn from each tail. Unfinished work outlives a killed process in
    `cache`.
    """
    from doublebind.models import teacher_cache
    from doublebind.models.chat_template import encode_prompt
    from doublebind.models.load import load_model
    from doublebind.training.batch import Example

    lm = load_model(source, dtype=dtype, cache=cache)
    examples = []
    for t in read_records(rollouts / "trajectories.jsonl", Trajectory):
        prompt = encode_prompt(lm.tokenizer, t.messages)
        examples.append(Example((*prompt, *t.tokens), first_supervised=len(prompt)))
    teacher_cache.write_targets(
        out, lm, examples, top_k, tail_samples=tail_samples, resume_folder=cache
    )


def cache_token_logprobs(
    out: Path, *, source: ModelSource, rollouts: Path, dtype: Dtype, cache: Path
) -> None:
    """Write the log-probability of every completion token to `out`, whoever wrote it.

    A model of another family is asked about the same text in its own tokens.
    """
    from doublebind.models import sequence_logprobs as logprobs
    from doublebind.models.load import load_model
    from doublebind.training.encode import encode_trajectories

    lm = load_model(source, dtype=dtype, cache=cache)
    trajectories = read_records(rollouts / "trajectories.jsonl", Trajectory)
    logprobs.write_logprobs(out, lm, encode_trajectories(lm.tokenizer, trajectories))
