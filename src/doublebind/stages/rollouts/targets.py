"""Caches a model's distributions or log-probabilities of completions, once for all students."""

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

    With `tail_samples` tokens sampled from each tail. Partial results are saved in `cache`, so that
    a rerun after a kill resumes.
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
    """Write the log-probability of every completion token under `source` to `out`.

    A model with another tokenizer scores the same text in its own tokens.
    """
    from doublebind.models.load import load_model
    from doublebind.models.sequence_logprobs import write_logprobs
    from doublebind.training.encode import encode_trajectories

    lm = load_model(source, dtype=dtype, cache=cache)
    trajectories = read_records(rollouts / "trajectories.jsonl", Trajectory)
    write_logprobs(out, lm, encode_trajectories(lm.tokenizer, trajectories))
