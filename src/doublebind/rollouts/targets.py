"""Caches a teacher's next-token distributions on its own trajectories, once for all students.

Knows which tokens are supervised: those of the completion. The cache itself is
`models.teacher_cache`'s.
"""

from __future__ import annotations

from pathlib import Path

from doublebind.config import Dtype
from doublebind.records import ModelSource, Trajectory
from doublebind.store import read_records


def score(
    out: Path, *, source: ModelSource, rollouts: Path, top_k: int, dtype: Dtype, cache: Path
) -> None:
    """Write the teacher's top-k distribution at every completion position to `out`.

    Unfinished work outlives a killed process in `cache`.
    """
    from doublebind.models import teacher_cache
    from doublebind.models.load import load
    from doublebind.models.template import encode_prompt
    from doublebind.training.batch import Example

    lm = load(source, dtype=dtype, cache=cache)
    examples = []
    for t in read_records(rollouts / "trajectories.jsonl", Trajectory):
        prompt = encode_prompt(lm.tokenizer, t.messages)
        examples.append(Example((*prompt, *t.tokens), first=len(prompt)))
    teacher_cache.write(out, lm, examples, top_k, partial=cache)
