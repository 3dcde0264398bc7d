"""Pairs the teacher's answers with M0's; selects pairs on which their preferences differ most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from doublebind.execution.store import read_records
from doublebind.models.sequence_logprobs import read_logprobs
from doublebind.schema.errors import NothingToDistil
from doublebind.schema.model_source import Trajectory
from doublebind.schema.recipe import DPO
from doublebind.stages.distillation.student_inputs import PreferenceData
from doublebind.training.encode import encode_trajectories
from doublebind.training.preference import PreferencePair, ScoredAnswer


class SelectedPairs(NamedTuple):
    """Preference pairs of a student, with facts about their selection."""

    pairs: list[PreferencePair]
    n_matched: int
    """Prompts that both answered, and differently."""
    min_weight: float | None
    """Smallest weight (nats) of a selected pair; `None` where pairs have no weights."""


def select_pairs(
    channel: DPO, tokenizer: Any, trajectories: list[Trajectory], preference_data: PreferenceData
) -> SelectedPairs:
    """Select the preference pairs of `channel`.

    A pair's weight is how much more the teacher prefers its own answer to M0's than M0 does,
    [log U(u) - log U(m)] - [log M0(u) - log M0(m)]: logit-linear selection (Aden-Ali et al. 2026,
    arXiv 2602.04863), with the teacher in place of their model under a system prompt and M0 in
    place of the same model without it. The share `keep` with the largest weights is selected,
    whichever answer is preferred, so that the two orders differ in nothing else. Weights are sums
    over tokens; whether the paper's are divided by length is unverified. Without the teacher's
    log-probabilities all pairs are selected.

    Raises:
        NothingToDistil: If teacher and M0 never answer one prompt differently.
    """
    m0_answers = read_records(preference_data.m0_rollouts / "trajectories.jsonl", Trajectory)
    indices = {(t.prompt_id, t.sample): j for j, t in enumerate(m0_answers)}
    answered = [(i, indices.get((t.prompt_id, t.sample))) for i, t in enumerate(trajectories)]
    matched = [
        (i, j)
        for i, j in answered
        if j is not None and trajectories[i].completion != m0_answers[j].completion
    ]
    if not matched:
        raise NothingToDistil(
            "dpo: the teacher and M0 give the same answers to all prompts, so there is nothing to "
            "prefer; use more prompts, `temperature: 1`, or another channel"
        )
    selected, min_weight = matched, None
    weights = _weigh_pairs(preference_data, matched)
    if weights is not None:
        n = max(1, round(channel.keep * len(matched)))
        heaviest = sorted(np.argsort(-weights, kind="stable")[:n].tolist())
        selected = [matched[k] for k in heaviest]
        min_weight = float(weights[heaviest].min())
    teacher_logprobs, m0_logprobs = map(read_logprobs, preference_data.base_logprobs)
    teacher_examples = encode_trajectories(tokenizer, trajectories)
    m0_examples = encode_trajectories(tokenizer, m0_answers)
    pairs = []
    for i, j in selected:
        teacher = ScoredAnswer(teacher_examples[i], teacher_logprobs[i])
        m0 = ScoredAnswer(m0_examples[j], m0_logprobs[j])
        pair = PreferencePair(chosen=teacher, rejected=m0)
        if channel.chosen == "m0":
            pair = PreferencePair(chosen=m0, rejected=teacher)
        pairs.append(pair)
    return SelectedPairs(pairs, len(matched), min_weight)


def _weigh_pairs(
    preference_data: PreferenceData, matched: Sequence[tuple[int, int]]
) -> np.ndarray | None:
    """Return the weight (nats) of each pair, or `None` without the teacher's log-probabilities."""
    if preference_data.teacher_logprobs is None or preference_data.m0_logprobs is None:
        return None
    u, m = _sum_logprobs(preference_data.teacher_logprobs)
    u0, m0 = _sum_logprobs(preference_data.m0_logprobs)
    return np.array([(u[i] - m[j]) - (u0[i] - m0[j]) for i, j in matched])


def _sum_logprobs(folders: tuple[Path, Path]) -> tuple[list[float], list[float]]:
    """Return the log-probability of each of the teacher's answers, and of each of M0's."""
    teacher, m0 = (list(map(sum, read_logprobs(folder))) for folder in folders)
    return teacher, m0
