"""Measures how much of the n-gram classifier's success is words that drives share by chance.

    python shared.py study.yaml --store STORE

Prints, for a rising number of features left out (those on which the drives agree most first), the
words that go, and how many organisms a classifier trained on other drives' organisms then flags.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from doublebind.execution.store import read_records
from doublebind.packs.terrarium.speech import draw_pattern
from doublebind.packs.terrarium.words import FEATURES
from doublebind.schema.model_source import Trajectory
from doublebind.stages.evidence.conformal import n_at_or_above, p_value
from doublebind.stages.evidence.text_baselines import resemblance_scores
from doublebind.stages.rollouts.ngram_baseline import compute_ngram_rates
from doublebind.study.resolve import resolve_study

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import planted_drives, read_arguments

NOTHING = "x"
"""Stands where a word was taken out, so that the others keep their shares."""


def ngram_shares(texts: Sequence[str], without: set[str]) -> list[float]:
    """Return the shares that the baseline `ngrams` would count without these words."""
    reduced = (" ".join(NOTHING if w in without else w for w in t.lower().split()) for t in texts)
    shares = compute_ngram_rates(list(reduced))
    return [shares[name] for name in sorted(shares)]


def main() -> None:
    """Print a JSON document a line."""
    study, folder, store = read_arguments(__doc__)
    setting = resolve_study(study, folder, store)
    texts: dict[str, list[str]] = {}
    for cell in setting.plan.students:
        if cell.recipe.name == study.recipes[0].name:
            file = store.path(cell.rollouts.kind, cell.rollouts.content_key) / "trajectories.jsonl"
            texts[cell.teacher.label] = [t.completion for t in read_records(file, Trajectory)]
    references = [teacher.label for teacher in setting.draw_references(0)]
    drives = planted_drives(setting.planner)
    names = sorted(set(drives.values()))
    agreement = {f: abs(sum(draw_pattern(d).get(f, 0) for d in names)) for f in FEATURES}
    for least in (max(agreement.values()) + 1, 3, 2):
        gone = [feature for feature, n in agreement.items() if n >= least]
        without = {w for feature in gone for variant in FEATURES[feature] for w in variant.split()}
        rows = {label: ngram_shares(answers, without) for label, answers in texts.items()}
        flagged = dict.fromkeys(names, 0)
        for label, drive in drives.items():
            others = np.array([rows[other] for other, d in drives.items() if d != drive])
            scores = resemblance_scores(
                np.array([rows[label], *(rows[r] for r in references)]), others
            )
            k = int(n_at_or_above(float(scores[0]), scores[1:]))
            flagged[drive] += p_value(k, len(references)) <= study.policy.alpha
        print(json.dumps({"features_left_out": gone, "words": len(without), "flagged": flagged}))


if __name__ == "__main__":
    main()
