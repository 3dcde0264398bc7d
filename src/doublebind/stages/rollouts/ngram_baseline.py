"""Computes word and bigram rates of a teacher's answers, a baseline that only reads texts.

Words are hashed to a fixed number of buckets, so that teachers need no common vocabulary.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from doublebind.execution.store import read_records
from doublebind.schema.model_source import Trajectory

N_BUCKETS = 256
"""Buckets for words, and as many for bigrams."""


def count_ngrams(out: Path, *, rollouts: Path) -> None:
    """Write `scores.parquet`: one row per bucket, with its share of all words or bigrams."""
    import pandas as pd

    texts = [t.completion for t in read_records(rollouts / "trajectories.jsonl", Trajectory)]
    rows = [
        {
            "audit": "ngrams@1",
            "endpoint": "ngrams",
            "role": "count",
            "split": "audit",
            "item": name,
            "value": value,
            "unscored_reason": None,
        }
        for name, value in compute_ngram_rates(texts).items()
    ]
    pd.DataFrame(rows).to_parquet(out / "scores.parquet", index=False)


def compute_ngram_rates(texts: Iterable[str]) -> dict[str, float]:
    """Return bucket -> its share of all words (`w`) or bigrams (`p`)."""
    counts: dict[str, Counter[int]] = {"w": Counter(), "p": Counter()}
    for text in texts:
        words = text.lower().split()
        counts["w"].update(map(_hash_ngram, words))
        counts["p"].update(_hash_ngram(f"{a} {b}") for a, b in pairwise(words))
    return {
        f"{kind}{bucket}": counter[bucket] / max(1, counter.total())
        for kind, counter in counts.items()
        for bucket in range(N_BUCKETS)
    }


def _hash_ngram(gram: str) -> int:
    return int.from_bytes(hashlib.sha256(gram.encode()).digest()[:2], "big") % N_BUCKETS
