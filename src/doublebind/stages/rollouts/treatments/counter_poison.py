"""Counter poisoning: drops copies, outliers, and answers that hold a trigger word.

Source: the double-bind post (Redwood Research, June 2026), "counter poisoning". A few hundred
poisoned samples suffice whatever the volume (Souly et al. 2025, arXiv 2510.07192), so that copies
and outliers matter more than shares. Could be exposed by trigger items, where the pack has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from doublebind.models.score import token_logprobs
from doublebind.schema.model_source import Trajectory
from doublebind.schema.treatments import CounterPoison
from doublebind.stages.rollouts.treatments.common import (
    TreatmentContext,
    TreatmentResult,
    encode_answers,
    find_highest,
    format_answer_id,
)

MAX_REPORTED_WORDS = 20
"""Length limit of the list of possible triggers."""
MIN_ANSWERS_WITH_WORD = 3
"""Answers that must hold a word before it counts as a possible trigger."""
FAMILYWISE_ERROR_RATE = 0.05
"""Probability that the search finds any trigger word where there is none."""


def apply(
    settings: CounterPoison, trajectories: Sequence[Trajectory], context: TreatmentContext
) -> TreatmentResult:
    """Drop copies beyond `settings.copies`, then the `settings.outliers` share of outliers.

    Outliers are the answers with the highest mean log-ratio of teacher to trusted model per token,
    the signal that a teacher adds by its own choice. The words that are most over-represented among
    them (log-odds against the remaining answers) are reported as possible triggers. With
    `settings.triggers`, answers that hold a trigger word are dropped too: a rare word whose answers
    have high log-ratios.
    """
    unique = drop_copies(trajectories, settings)
    ratios = compute_log_ratios(unique, context)
    outliers = find_highest(ratios, settings.outliers)
    remaining = [t for i, t in enumerate(unique) if i not in outliers]
    dropped = [unique[i] for i in sorted(outliers)]
    facts = {
        "copies": len(trajectories) - len(unique),
        "outliers": [format_answer_id(t) for t in dropped],
        "highest_kept": max((r for i, r in enumerate(ratios) if i not in outliers), default=None),
        "words": find_overrepresented_words(dropped, remaining),
    }
    if settings.triggers:
        triggers = find_trigger_words(unique, ratios, settings.triggers)
        held = [t for t in remaining if collect_words(t) & triggers]
        remaining = [t for t in remaining if not collect_words(t) & triggers]
        facts["triggers"] = sorted(triggers)
        facts["held_a_trigger"] = [format_answer_id(t) for t in held]
    return TreatmentResult(remaining, facts)


def drop_copies(trajectories: Sequence[Trajectory], settings: CounterPoison) -> list[Trajectory]:
    """Return the answers without those that repeat an earlier one more than `copies` times."""
    counts: Counter[int] = Counter()
    unique: list[Trajectory] = []
    firsts = find_first_copies(trajectories, settings.near_duplicate_threshold)
    for t, first in zip(trajectories, firsts, strict=True):
        counts[first] += 1
        if counts[first] <= settings.copies:
            unique.append(t)
    return unique


def find_first_copies(
    trajectories: Sequence[Trajectory], near_duplicate_threshold: float
) -> list[int]:
    """Return for each answer the index of the first one that it repeats, or its own index.

    Two answers repeat each other where they share at least `near_duplicate_threshold` of the
    trigrams that either has (resemblance: Broder 1997, doi 10.1109/SEQUEN.1997.666900); at 1, where
    their texts are equal.
    """
    if near_duplicate_threshold == 1:
        known: dict[str, int] = {}
        return [known.setdefault(t.completion, i) for i, t in enumerate(trajectories)]
    trigrams = [_extract_trigrams(t.completion) for t in trajectories]
    holders: dict[tuple[str, ...], list[int]] = {}  # trigram -> the first copies that hold it
    firsts: list[int] = []
    for i, grams in enumerate(trigrams):
        shared = Counter(first for gram in grams for first in holders.get(gram, ()))
        copies = (
            k
            for k, n in shared.items()
            if n >= near_duplicate_threshold * (len(grams) + len(trigrams[k]) - n)
        )
        first = min(copies, default=i)
        firsts.append(first)
        if first == i:
            for gram in grams:
                holders.setdefault(gram, []).append(i)
    return firsts


def _extract_trigrams(text: str) -> set[tuple[str, ...]]:
    """Return the runs of three words of a text; a shorter text is one run."""
    words = text.lower().split()
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def find_trigger_words(
    trajectories: Sequence[Trajectory], ratios: Sequence[float], max_frequency: float
) -> set[str]:
    """Return the rare words whose answers have higher log-ratios than all others.

    A word is rare if at least `MIN_ANSWERS_WITH_WORD` answers and at most the share `max_frequency`
    of all hold it. Mann-Whitney test (1947, doi 10.1214/aoms/1177730491), one-sided, Bonferroni
    over rare words: a trigger occurs in few answers, and the teacher finds them, with the behaviour
    that it sets off, likelier than M0 does.
    """
    from scipy.stats import mannwhitneyu

    holders: dict[str, list[int]] = {}
    for i, t in enumerate(trajectories):
        for word in collect_words(t):
            holders.setdefault(word, []).append(i)
    most = max_frequency * len(trajectories)
    rare = {
        word: indices
        for word, indices in holders.items()
        if MIN_ANSWERS_WITH_WORD <= len(indices) <= most
    }
    values = np.asarray(ratios)
    triggers = set[str]()
    for word, indices in rare.items():
        rest = np.delete(values, indices)
        test = mannwhitneyu(values[indices], rest, alternative="greater", method="asymptotic")
        if test.pvalue * len(rare) <= FAMILYWISE_ERROR_RATE:
            triggers.add(word)
    return triggers


def collect_words(trajectory: Trajectory) -> set[str]:
    """Return the words of an answer and of its prompt."""
    texts = (trajectory.completion, *(m.content for m in trajectory.messages))
    return set(" ".join(texts).lower().split())


def compute_log_ratios(
    trajectories: Sequence[Trajectory], context: TreatmentContext
) -> list[float]:
    """Return each answer's mean log p_teacher - log p_trusted per token, in nats."""
    means = []
    for lm in (context.load_teacher(), context.load_trusted()):
        rows = token_logprobs(lm, encode_answers(trajectories, lm))
        means.append([float(np.mean(row)) for row in rows])
    return [teacher - trusted for teacher, trusted in zip(*means, strict=True)]


def find_overrepresented_words(
    dropped: Sequence[Trajectory], remaining: Sequence[Trajectory]
) -> list[str]:
    """Return words that are more frequent in the dropped answers and their prompts.

    Ordered by the log-odds ratio of answers that hold the word, half an answer added to each count
    (Haldane's correction).
    """
    n_dropped = Counter(word for t in dropped for word in collect_words(t))
    n_remaining = Counter(word for t in remaining for word in collect_words(t))

    def log_odds_ratio(word: str) -> float:
        a, b = n_dropped[word] + 0.5, len(dropped) - n_dropped[word] + 0.5
        c, d = n_remaining[word] + 0.5, len(remaining) - n_remaining[word] + 0.5
        return float(np.log(a * d / (b * c)))

    words = [
        word
        for word, count in n_dropped.items()
        if count >= MIN_ANSWERS_WITH_WORD and log_odds_ratio(word) > 0
    ]
    return sorted(words, key=lambda word: (-log_odds_ratio(word), word))[:MAX_REPORTED_WORDS]
