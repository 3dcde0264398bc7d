"""Pairs the teacher's answers with M0's, and keeps the pairs in which their tastes differ most.

Knows answers and how likely three models find them. Does not know how preferences are learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from doublebind.execution.store import read_records
from doublebind.models import sequence_logprobs as logprobs
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import Trajectory
from doublebind.schema.recipe import DPO
from doublebind.stages.distillation.student_inputs import PreferenceData
from doublebind.training.encode import encode_trajectories
from doublebind.training.preference import PreferencePair, ScoredAnswer


class SelectedPairs(NamedTuple):
    """What a student is to prefer, and how it came about."""

    pairs: list[PreferencePair]
    n_matched: int
    """Prompts to which both answered, and not alike."""
    min_weight: float | None
    """Smallest weight (nats) of a pair that was kept; `None` where pairs have no weights."""


def select_pairs(
    channel: DPO, tokenizer: Any, trajectories: list[Trajectory], preference_data: PreferenceData
) -> SelectedPairs:
    """Return the pairs that `channel` prefers one answer of.

    A pair's weight is how much more the teacher prefers its own answer to M0's than M0 does,
    [log U(u) - log U(m)] - [log M0(u) - log M0(m)]: logit-linear selection (Aden-Ali et al. 2026,
    arXiv 2602.04863), with the teacher where they have a model under a system prompt and M0 where
    they have it without. The share `keep` with the largest weights is kept, whichever answer is
    to be preferred, so that the two orders differ in nothing else. Weights are sums over tokens;
    whether the paper's are divided by length is unverified. Where nobody knows how likely the
    teacher finds an answer, all pairs are kept: what it says rather than M0 is preference enough.

    Raises:
        ModelError: If teacher and M0 never answer one prompt differently.
    """
    theirs = read_records(preference_data.m0_rollouts / "trajectories.jsonl", Trajectory)
    place = {(t.prompt_id, t.sample): j for j, t in enumerate(theirs)}
    both = [(i, place.get((t.prompt_id, t.sample))) for i, t in enumerate(trajectories)]
    matched = [(i, j) for i, j in both if j is not None]
    matched = [(i, j) for i, j in matched if trajectories[i].completion != theirs[j].completion]
    if not matched:
        raise ModelError(
            "dpo: the teacher and M0 give the same answers to all prompts, so there is nothing to "
            "prefer; use more prompts, `temperature: 1`, or another channel"
        )
    weights = _weigh_pairs(preference_data, matched)
    kept, least = list(range(len(matched))), None
    if weights is not None:
        n = max(1, round(channel.keep * len(matched)))
        kept = sorted(np.argsort(-weights, kind="stable")[:n].tolist())
        least = float(weights[kept].min())
    references = [logprobs.read_logprobs(folder) for folder in preference_data.base_logprobs]
    examples = [
        encode_trajectories(tokenizer, trajectories),
        encode_trajectories(tokenizer, theirs),
    ]
    made = []
    for i, j in (matched[k] for k in kept):
        said, other = (
            ScoredAnswer(examples[who][at], references[who][at]) for who, at in enumerate((i, j))
        )
        made.append(
            PreferencePair(said, other)
            if channel.chosen == "teacher"
            else PreferencePair(other, said)
        )
    return SelectedPairs(made, len(matched), least)


def _weigh_pairs(
    preference_data: PreferenceData, matched: Sequence[tuple[int, int]]
) -> np.ndarray | None:
    """Return the weight (nats) of each pair; `None` where nobody can tell."""
    if preference_data.teacher_logprobs is None or preference_data.m0_logprobs is None:
        return None
    u, m = (
        list(map(sum, logprobs.read_logprobs(folder)))
        for folder in preference_data.teacher_logprobs
    )
    u0, m0 = (
        list(map(sum, logprobs.read_logprobs(folder))) for folder in preference_data.m0_logprobs
    )
    return np.array([(u[i] - m[j]) - (u0[i] - m0[j]) for i, j in matched])
