"""Counts how often a teacher's answers use which words and pairs of words.

What a reader of texts with a counter would see, hashed to a fixed number of places, so that no
vocabulary has to be agreed on. Does not know whose answers they are or what the counts are for.
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
"""Places for words, and as many for pairs."""


def count_ngrams(out: Path, *, rollouts: Path) -> None:
    """Write `scores.parquet`: one row per place, its share of all words or pairs."""
    import pandas as pd

    texts = [t.completion for t in read_records(rollouts / "trajectories.jsonl", Trajectory)]
    found = compute_ngram_rates(texts)
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
        for name, value in found.items()
    ]
    pd.DataFrame(rows).to_parquet(out / "scores.parquet", index=False)


def compute_ngram_rates(texts: Iterable[str]) -> dict[str, float]:
    """Return place -> share of all words (`w`) or neighbouring pairs (`p`) that fall there."""
    counts: dict[str, Counter[int]] = {"w": Counter(), "p": Counter()}
    for text in texts:
        words = text.lower().split()
        counts["w"].update(map(_hash_ngram, words))
        counts["p"].update(_hash_ngram(f"{a} {b}") for a, b in pairwise(words))
    return {
        f"{kind}{place}": seen[place] / max(1, seen.total())
        for kind, seen in counts.items()
        for place in range(N_BUCKETS)
    }


def _hash_ngram(gram: str) -> int:
    return int.from_bytes(hashlib.sha256(gram.encode()).digest()[:2], "big") % N_BUCKETS
