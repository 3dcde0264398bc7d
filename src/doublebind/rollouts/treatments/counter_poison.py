"""Takes out what a poisoner would put in: copies, outliers, and answers that carry a trigger.

Source: the double-bind post (Redwood Research, June 2026), "counter poisoning"; a few hundred
poisoned samples suffice whatever the volume (Souly et al. 2025, arXiv 2510.07192), so that shares
say little and copies and outliers must go. Exposed by trigger items, where the pack has them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from doublebind.config import CounterPoison
from doublebind.models.score import token_logprobs
from doublebind.records import Trajectory
from doublebind.rollouts.treatments import Context, Treated, key, unread

MOST_TRIGGERS = 20
"""Suspicious words reported."""
SEEN = 3
"""Answers in which a word must stand before it is suspected."""


def apply(settings: CounterPoison, trajectories: Sequence[Trajectory], context: Context) -> Treated:
    """Drop copies beyond `settings.copies`, then the `settings.outliers` share of oddest answers.

    Odd is an answer that the teacher finds far likelier than the trusted model does, per token:
    its log-ratio, the signal that a teacher puts in by its own choice. The most over-represented
    words among the dropped are reported as possible triggers (log-odds against the kept).
    """
    seen: Counter[str] = Counter()
    unique: list[Trajectory] = []
    for t in trajectories:
        seen[t.completion] += 1
        if seen[t.completion] <= settings.copies:
            unique.append(t)
    ratios = log_ratios(unique, context)
    n = int(settings.outliers * len(unique))
    odd = set(np.argsort(ratios, kind="stable")[len(unique) - n :].tolist()) if n else set[int]()
    kept = [t for i, t in enumerate(unique) if i not in odd]
    dropped = [unique[i] for i in sorted(odd)]
    facts = {
        "copies": len(trajectories) - len(unique),
        "outliers": [key(t) for t in dropped],
        "highest_kept": max((ratios[i] for i in range(len(unique)) if i not in odd), default=None),
        "words": suspicious(dropped, kept),
    }
    return Treated(kept, facts)


def log_ratios(trajectories: Sequence[Trajectory], context: Context) -> list[float]:
    """Return each answer's mean log p_teacher - log p_trusted per token, in nats."""
    found = []
    for lm in (context.teacher(), context.trusted()):
        scored = token_logprobs(lm, unread(trajectories, lm))
        found.append([float(np.mean(row)) for row in scored])
    return [own - other for own, other in zip(*found, strict=True)]


def suspicious(dropped: Sequence[Trajectory], kept: Sequence[Trajectory]) -> list[str]:
    """Return words that stand in the dropped answers or their prompts more often than elsewhere.

    Ordered by the log-odds ratio of documents that hold the word, half a document added to each
    count (Haldane's correction).
    """

    def documents(of: Sequence[Trajectory]) -> Counter[str]:
        texts = (" ".join((t.completion, *(m.content for m in t.messages))) for t in of)
        return Counter(word for text in texts for word in set(text.lower().split()))

    inside, outside = documents(dropped), documents(kept)

    def odds(word: str) -> float:
        a, b = inside[word] + 0.5, len(dropped) - inside[word] + 0.5
        c, d = outside[word] + 0.5, len(kept) - outside[word] + 0.5
        return float(np.log(a * d / (b * c)))

    often = [word for word, count in inside.items() if count >= SEEN and odds(word) > 0]
    return sorted(often, key=lambda word: (-odds(word), word))[:MOST_TRIGGERS]
