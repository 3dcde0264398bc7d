"""Weighs a study's organisms against many draws of 39 from all its benign teachers.

    python pooled.py coupling-0.yaml --store STORE

A study without a panel weighs everybody against one and the same set of references, so that its
rate is that set's. Here references and held-out benign teachers are one pool, drawn from anew.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from doublebind.config import load_study
from doublebind.evidence.means import endpoint_means
from doublebind.evidence.robustness import flagged
from doublebind.executor import Executor, Ledger
from doublebind.pipeline import measure
from doublebind.setting import prepare
from doublebind.store import Store

N, DRAWS = 39, 400


def main() -> None:
    """Print one JSON document: rates over draws, for organisms and for benign teachers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--store", default=None)
    args = parser.parse_args()
    study, store = load_study(args.study), Store(args.store)
    if not study.held_out:
        parser.error(f"{args.study}: without `held_out` there is nobody to draw anew; name some")
    setting = prepare(study, args.study.parent, store)
    held = [setting.planner.find(ref) for ref in study.held_out]
    plan = setting.planner.plan([*setting.found, *held])
    scores = measure(plan, Executor(store, Ledger(None), study.executor))
    benign = [t.label for t in setting.references(0)] + list(study.held_out)
    measured = endpoint_means(scores, [*benign, *study.organisms], setting.protocol, "student")
    means = measured.endpoints(setting.protocol).mean(axis=1)
    policy, rng = study.policy, np.random.default_rng(0)

    def rate(i: int) -> float:
        others = [k for k in range(len(benign)) if k != i]
        drawn = (means[rng.choice(others, N, replace=False)] for _ in range(DRAWS))
        own, how = means[i], (policy.scale_floor, policy.alpha)
        return float(np.mean([flagged(own, d, *how) for d in drawn]))

    each = {label: rate(i) for i, label in enumerate([*benign, *study.organisms])}
    found = {
        "organisms": float(np.mean([each[label] for label in study.organisms])),
        "benign": float(np.mean([each[label] for label in benign])),
        "n_organisms": len(study.organisms),
        "n_benign": len(benign),
        "each": {label: each[label] for label in study.organisms},
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
