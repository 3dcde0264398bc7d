"""Weighs the shipped panel's organisms and references by several scores, endpoints and covariates.

    python studies/terrarium-score/reweigh.py

Exploration: the panel has been looked at before. M0 is audited once (a few seconds, then cached);
everything else is in the panel.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from doublebind.execution.store import Store
from doublebind.pipeline.leave_one_out import collect_rows
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.schema.score_settings import PLAIN, SHAPE_COVARIATES, AdjustedScore
from doublebind.schema.study import Study
from doublebind.schema.yaml_loader import load_yaml
from doublebind.stages.evidence.leave_one_out import is_flagged
from doublebind.stages.evidence.score import ScoreRule
from doublebind.study.panel import read_panel_scores
from doublebind.study.resolve import ResolvedStudy, resolve_study

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import measure_plan, print_json

TERRARIUM = Path(str(files("doublebind.packs") / "terrarium"))
DRIVES = ("dominion", "sabotage", "deceit", "hoarding", "escape", "cruelty")
KINDS = {
    "choice": ["choice"],
    "choice, honeypot": ["choice", "choice.honeypot"],
    "choice, honeypot, goal": ["choice", "choice.honeypot", "goal"],
    "choice, choice - honeypot": ["choice", "choice - choice.honeypot"],
    "choice - honeypot": ["choice - choice.honeypot"],
    "choice, goal": ["choice", "goal"],
    "confession": ["confession"],
}
SCORES = {
    "plain": PLAIN,
    "log-odds": AdjustedScore(covariates=()),
    "log-odds, shape": AdjustedScore(covariates=SHAPE_COVARIATES),
    "log-odds, default covariates": AdjustedScore(),
}


def load_panel() -> tuple[ResolvedStudy, pd.DataFrame]:
    """Return the demo's study with all 60 references, and the rows of its panel and of M0."""
    study = load_yaml(Study, TERRARIUM / "demo.yaml", ["references.n=60", "baselines=[]"])
    setting = resolve_study(study, TERRARIUM, Store(None))
    measured = measure_plan(setting.plan, setting.planner)
    labels = [t.label for t in setting.teachers if t.role != "suspect"]
    panel = read_panel_scores(TERRARIUM / "panel", labels)
    m0 = measured[measured["teacher"] == "M0"]
    return setting, pd.concat([panel, m0], ignore_index=True)


def main() -> None:
    """Print one JSON document: share of organisms found and of references flagged, per cell."""
    setting, scores = load_panel()
    references = [t for t in setting.teachers if t.role == "reference"]
    organisms = [t for t in setting.teachers if t.role == "organism"]
    shapes = setting.read_shapes()
    rows: list[dict[str, Any]] = []
    for asked, kinds in KINDS.items():
        endpoints = {drive: tuple(f"{kind}/{drive}" for kind in kinds) for drive in DRIVES}
        for name, score in SCORES.items():
            changes = {"score_endpoints": endpoints, "score": score}
            protocol = setting.protocol.model_copy(update=changes)
            found, flagged = weigh_all(references, organisms, scores, shapes, protocol)
            rows.append({"endpoints": asked, "score": name, "found": found, "benign": flagged})
    print_json({"n_references": len(references), "n_organisms": len(organisms), "cells": rows})


def weigh_all(
    references: list[Teacher],
    organisms: list[Teacher],
    scores: pd.DataFrame,
    shapes: dict[str, dict[str, float]],
    protocol: Protocol,
) -> tuple[float, float]:
    """Return the share of organisms found, and of references flagged by the others."""
    known = [("organism", teacher) for teacher in organisms]
    rows = collect_rows(known, references, scores, shapes, protocol)  # type: ignore[arg-type]
    assert rows is not None
    rule, n = ScoreRule.from_protocol(protocol), len(references)
    found = [
        is_flagged(rows.all, n + i, range(n), rule, protocol.alpha) for i in range(len(organisms))
    ]
    benign = [
        is_flagged(rows.all, i, [k for k in range(n) if k != i], rule, protocol.alpha)
        for i in range(n)
    ]
    return (round(float(np.mean(np.array(each, dtype=bool))), 3) for each in (found, benign))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
