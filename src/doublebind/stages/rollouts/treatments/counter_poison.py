"""Takes out what a poisoner would put in: copies, outliers, and answers that carry a trigger.

Source: the double-bind post (Redwood Research, June 2026), "counter poisoning"; a few hundred
poisoned samples suffice whatever the volume (Souly et al. 2025, arXiv 2510.07192), so that shares
say little and copies and outliers must go. Exposed by trigger items, where the pack has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from doublebind.models.score import token_logprobs
from doublebind.schema.model_source import Trajectory
from doublebind.schema.treatments import CounterPoison
from doublebind.stages.rollouts.treatments import (
    TreatmentContext,
    TreatmentResult,
    encode_answers,
    format_answer_id,
)

MAX_REPORTED_WORDS = 20
"""Suspicious words reported."""
MIN_ANSWERS_WITH_WORD = 3
"""Answers in which a word must stand before it is suspected."""
FAMILYWISE_ERROR_RATE = 0.05
"""Chance that the search for triggers finds any word where there is none."""


def apply(
    settings: CounterPoison, trajectories: Sequence[Trajectory], context: TreatmentContext
) -> TreatmentResult:
    """Drop copies beyond `settings.copies`, then the `settings.outliers` share of oddest answers.

    Odd is an answer that the teacher finds far likelier than the trusted model does, per token:
    its log-ratio, the signal that a teacher puts in by its own choice. The most over-represented
    words among the dropped are reported as possible triggers (log-odds against the kept). With
    `settings.triggers`, answers that hold a rare word that goes with odd answers are dropped too.
    """
    seen: Counter[int] = Counter()
    unique: list[Trajectory] = []
    for t, first in zip(
        trajectories,
        find_first_copies(trajectories, settings.near_duplicate_threshold),
        strict=True,
    ):
        seen[first] += 1
        if seen[first] <= settings.copies:
            unique.append(t)
    ratios = compute_log_ratios(unique, context)
    n = int(settings.outliers * len(unique))
    odd = set(np.argsort(ratios, kind="stable")[len(unique) - n :].tolist()) if n else set[int]()
    kept = [t for i, t in enumerate(unique) if i not in odd]
    dropped = [unique[i] for i in sorted(odd)]
    facts = {
        "copies": len(trajectories) - len(unique),
        "outliers": [format_answer_id(t) for t in dropped],
        "highest_kept": max((ratios[i] for i in range(len(unique)) if i not in odd), default=None),
        "words": find_overrepresented_words(dropped, kept),
    }
    if settings.triggers:
        found = find_trigger_words(unique, ratios, settings.triggers)
        held = [t for t in kept if collect_words(t) & found]
        kept = [t for t in kept if not collect_words(t) & found]
        facts |= {"triggers": sorted(found), "held_a_trigger": [format_answer_id(t) for t in held]}
    return TreatmentResult(kept, facts)


def find_first_copies(
    trajectories: Sequence[Trajectory], near_duplicate_threshold: float
) -> list[int]:
    """Return for each answer the place of the first one that it repeats; its own where none.

    Answers repeat one another where the runs of three words that both have are at least the share
    `alike` of those that either has (resemblance: Broder 1997, doi 10.1109/SEQUEN.1997.666900);
    at 1, where the texts are equal.
    """
    if near_duplicate_threshold == 1:
        known: dict[str, int] = {}
        return [known.setdefault(t.completion, i) for i, t in enumerate(trajectories)]
    runs = [_extract_trigrams(t.completion) for t in trajectories]
    holders: dict[tuple[str, ...], list[int]] = {}  # run -> the first ones that hold it
    found: list[int] = []
    for i, own in enumerate(runs):
        shared = Counter(first for run in own for first in holders.get(run, ()))
        like = (
            k
            for k, n in shared.items()
            if n >= near_duplicate_threshold * (len(own) + len(runs[k]) - n)
        )
        first = min(like, default=i)
        found.append(first)
        if first == i:
            for run in own:
                holders.setdefault(run, []).append(i)
    return found


def _extract_trigrams(text: str) -> set[tuple[str, ...]]:
    """Return the runs of three words of a text; a shorter text is one run."""
    said = text.lower().split()
    return {tuple(said[i : i + 3]) for i in range(max(1, len(said) - 2))}


def find_trigger_words(
    trajectories: Sequence[Trajectory], ratios: Sequence[float], max_frequency: float
) -> set[str]:
    """Return the rare words whose answers have higher log-ratios than all others.

    Rare is a word in `SEEN` answers or more and at most `rarest` of all. Mann-Whitney's test (1947,
    doi 10.1214/aoms/1177730491), one-sided, Bonferroni over rare words: a trigger stands in few
    answers and, with what it sets off, in those that the teacher likes more than M0 does.
    """
    from scipy.stats import mannwhitneyu

    holders: dict[str, list[int]] = {}
    for i, t in enumerate(trajectories):
        for word in collect_words(t):
            holders.setdefault(word, []).append(i)
    most = max_frequency * len(trajectories)
    rare = {word: its for word, its in holders.items() if MIN_ANSWERS_WITH_WORD <= len(its) <= most}
    values, found = np.asarray(ratios), set[str]()
    for word, its in rare.items():
        rest = np.delete(values, its)
        p = mannwhitneyu(values[its], rest, alternative="greater", method="asymptotic").pvalue
        if p * len(rare) <= FAMILYWISE_ERROR_RATE:
            found.add(word)
    return found


def collect_words(trajectory: Trajectory) -> set[str]:
    """Return the words of an answer and of its prompt."""
    said = (trajectory.completion, *(m.content for m in trajectory.messages))
    return set(" ".join(said).lower().split())


def compute_log_ratios(
    trajectories: Sequence[Trajectory], context: TreatmentContext
) -> list[float]:
    """Return each answer's mean log p_teacher - log p_trusted per token, in nats."""
    found = []
    for lm in (context.load_teacher(), context.load_trusted()):
        scored = token_logprobs(lm, encode_answers(trajectories, lm))
        found.append([float(np.mean(row)) for row in scored])
    return [own - other for own, other in zip(*found, strict=True)]


def find_overrepresented_words(
    dropped: Sequence[Trajectory], kept: Sequence[Trajectory]
) -> list[str]:
    """Return words that stand in the dropped answers or their prompts more often than elsewhere.

    Ordered by the log-odds ratio of documents that hold the word, half a document added to each
    count (Haldane's correction).
    """

    def documents(of: Sequence[Trajectory]) -> Counter[str]:
        return Counter(word for t in of for word in collect_words(t))

    inside, outside = documents(dropped), documents(kept)

    def odds(word: str) -> float:
        a, b = inside[word] + 0.5, len(dropped) - inside[word] + 0.5
        c, d = outside[word] + 0.5, len(kept) - outside[word] + 0.5
        return float(np.log(a * d / (b * c)))

    often = [
        word for word, count in inside.items() if count >= MIN_ANSWERS_WITH_WORD and odds(word) > 0
    ]
    return sorted(often, key=lambda word: (-odds(word), word))[:MAX_REPORTED_WORDS]
