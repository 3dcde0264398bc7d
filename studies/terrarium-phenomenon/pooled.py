"""Weighs a study's organisms against many draws of 39 from all its benign teachers.

    python pooled.py coupling-0.yaml --store STORE

A study without a panel weighs everybody against one and the same set of references, so that its
rate is that set's. Here references and held-out benign teachers are one pool, drawn from anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from doublebind.stages.evidence.endpoint_means import compute_endpoint_means
from doublebind.stages.evidence.leave_one_out import is_flagged
from doublebind.study.resolve import resolve_study

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import measure_plan, print_json, read_arguments

N, DRAWS = 39, 400


def main() -> None:
    """Print one JSON document: rates over draws, for organisms and for benign teachers."""
    study, folder, store = read_arguments(__doc__)
    if not study.held_out:
        sys.exit("the study has no `held_out`, so that there is nobody to draw anew; name some")
    setting = resolve_study(study, folder, store)
    held_out = [setting.planner.find_teacher(label) for label in study.held_out]
    scores = measure_plan(
        setting.planner.plan([*setting.teacher_sources, *held_out]), setting.planner
    )
    benign = [t.label for t in setting.draw_references(0)] + list(study.held_out)
    labels = [*benign, *study.organisms]
    measured = compute_endpoint_means(scores, labels, setting.protocol, "student")
    means = measured.score_endpoint_means(setting.protocol).mean(axis=1)
    rng = np.random.default_rng(0)
    rates: dict[str, float] = {}
    for i, label in enumerate(labels):
        others = [k for k in range(len(benign)) if k != i]
        draws = (means[rng.choice(others, N, replace=False)] for _ in range(DRAWS))
        test = study.policy.scale_floor, study.policy.alpha
        rates[label] = float(np.mean([is_flagged(means[i], draw, *test) for draw in draws]))
    organisms = {label: rates[label] for label in study.organisms}
    print_json(
        {
            "organisms": float(np.mean(list(organisms.values()))),
            "benign": float(np.mean([rates[label] for label in benign])),
            "n_organisms": len(organisms),
            "n_benign": len(benign),
            "each": organisms,
        }
    )


if __name__ == "__main__":
    main()
