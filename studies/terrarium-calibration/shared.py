"""Asks what the n-gram classifier reads: is it words that several drives share by chance?

    python shared.py study.yaml --store STORE

Prints, for a rising number of features left out (those on which the drives agree most first), the
words that go, and how many organisms a classifier trained on other drives' organisms then flags.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from doublebind.config import load_study
from doublebind.evidence.conformal import n_at_or_above, p_value
from doublebind.evidence.reading import resemblance
from doublebind.packs.terrarium.speech import pattern
from doublebind.packs.terrarium.words import FEATURES
from doublebind.records import Trajectory
from doublebind.rollouts.ngrams import rates
from doublebind.setting import prepare
from doublebind.store import Store, read_records

NOTHING = "x"
"""Stands where a word was taken out, so that the others keep their shares."""


def spelled(feature: str) -> set[str]:
    """Return the words of a feature's two variants."""
    return {word for variant in FEATURES[feature] for word in variant.split()}


def counted(texts: Sequence[str], without: set[str]) -> list[float]:
    """Return the shares that the baseline `ngrams` would count."""
    kept = [" ".join(NOTHING if w in without else w for w in t.lower().split()) for t in texts]
    found = rates(kept)
    return [found[name] for name in sorted(found)]


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--store", default=None)
    args = parser.parse_args()
    study, store = load_study(args.study), Store(args.store)
    setting = prepare(study, args.study.parent, store)
    texts: dict[str, list[str]] = {}
    for cell in setting.plan.students:
        if cell.recipe.name == study.recipes[0].name:
            told = store.path(cell.rollouts.kind, cell.rollouts.key) / "trajectories.jsonl"
            texts[cell.teacher.label] = [t.completion for t in read_records(told, Trajectory)]
    references = [teacher.label for teacher in setting.references(0)]
    specs = {ref: setting.planner.find(ref).spec for ref in study.organisms}
    drives = {ref: str(spec.trait) for ref, spec in specs.items() if spec is not None}
    agree = {
        feature: abs(sum(pattern(drive).get(feature, 0) for drive in set(drives.values())))
        for feature in FEATURES
    }
    for least in (max(agree.values()) + 1, 3, 2):
        gone = [feature for feature, n in agree.items() if n >= least]
        without = {word for feature in gone for word in spelled(feature)}
        rows = {label: counted(said, without) for label, said in texts.items()}
        flagged: dict[str, int] = dict.fromkeys(sorted(set(drives.values())), 0)
        for label, drive in drives.items():
            others = np.array([rows[other] for other, its in drives.items() if its != drive])
            scores = resemblance(np.array([rows[label], *(rows[r] for r in references)]), others)
            k = int(n_at_or_above(float(scores[0]), scores[1:]))
            flagged[drive] += p_value(k, len(references)) <= study.policy.alpha
        print(json.dumps({"features_left_out": gone, "words": len(without), "flagged": flagged}))


if __name__ == "__main__":
    main()
