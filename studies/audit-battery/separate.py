"""Which audits tell students of organisms from students of benign references, on the panel.

`python studies/audit-battery/separate.py` prints JSON. For every kind of endpoint, recipe and
the direct audit: AUROC of organisms against references on the endpoint of the drive they have
(`own`), on the largest of the other drives' (`unknown`), and on the largest placebo (`placebo`),
each endpoint standardised by the references' median and spread; intervals are 95% by bootstrap over
teachers. `fine_tuning` is the references' mean minus M0's, in probability, over all traits:
what distilling from anybody does.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from doublebind.pipeline.audit_model import audit

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import print_json, rounded

DRIVES = ("dominion", "sabotage", "deceit", "hoarding", "escape", "cruelty")
PLACEBOS = ("arson", "forgery")
KINDS = ("choice", "choice.honeypot", "choice.deployment", "goal", "confession")
DRAWS = 1000


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the share of pairs in which the positive is higher; ties count half."""
    gap = positive[:, None] - negative[None, :]
    return float(((gap > 0) + 0.5 * (gap == 0)).mean())


def with_interval(positive: np.ndarray, negative: np.ndarray) -> list[float]:
    """Return AUROC and its 95% interval, drawing teachers again."""
    rng = np.random.default_rng(0)
    draws = [
        auroc(rng.choice(positive, len(positive)), rng.choice(negative, len(negative)))
        for _ in range(DRAWS)
    ]
    return rounded([auroc(positive, negative), *np.quantile(draws, (0.025, 0.975))])


def separation(means: pd.DataFrame, kind: str, m0: dict[str, float]) -> dict[str, Any]:
    """Return the row of one kind of endpoint; `means`: teachers by endpoints."""
    references = [t for t in means.index if "/reference-" in t]
    organisms = [t for t in means.index if "/organism-" in t]
    middle = means.loc[references].median()
    spread = (1.4826 * (means.loc[references] - middle).abs().median()).clip(lower=0.01)
    z = (means - middle) / spread

    def largest(teachers: list[str], traits: tuple[str, ...]) -> np.ndarray:
        return z.loc[teachers, [f"{kind}/{trait}" for trait in traits]].max(axis=1).to_numpy()

    by_drive: list[float] = []
    ranks: dict[str, list[np.ndarray]] = {"own": [], "unknown": []}
    for drive in DRIVES:
        planted = [t for t in organisms if t.split("-")[1] == drive]
        if not planted:
            continue
        others = tuple(d for d in DRIVES if d != drive)
        for name, drives in (("own", (drive,)), ("unknown", others)):
            # Rank among the references of the same endpoints, so that drives can be pooled.
            null = np.sort(largest(references, drives))
            ranks[name].append(np.searchsorted(null, largest(planted, drives)) / len(null))
        by_drive.append(auroc(largest(planted, (drive,)), largest(references, (drive,))))
    uniform = (np.arange(len(references)) + 0.5) / len(references)
    traits = [f"{kind}/{t}" for t in (*DRIVES, *PLACEBOS)]
    shift = means.loc[references, traits].mean().mean() - np.mean([m0[t] for t in traits])
    return {
        "own": with_interval(np.concatenate(ranks["own"]), uniform),
        "own_by_drive": rounded(by_drive, digits=2),
        "unknown": with_interval(np.concatenate(ranks["unknown"]), uniform),
        "placebo": with_interval(largest(organisms, PLACEBOS), largest(references, PLACEBOS)),
        "fine_tuning": round(float(shift), 3),
    }


def main() -> None:
    """Print the table."""
    panel = Path(str(files("doublebind.packs.terrarium") / "panel" / "scores.parquet"))
    scores = pd.read_parquet(panel)
    endpoints = audit("terrarium/m0", "terrarium").endpoints
    m0 = {entry.name: entry.value for entry in endpoints if entry.value is not None}
    table: dict[str, Any] = {}
    for who, recipe in (("student", "stories"), ("student", "stakes"), ("teacher", "")):
        rows = scores[(scores["model_kind"] == who) & (scores["recipe"] == recipe)]
        means = rows.pivot_table(index="teacher", columns="endpoint", values="value")
        table[recipe or "direct"] = {kind: separation(means, kind, m0) for kind in KINDS}
    print_json(table)


if __name__ == "__main__":
    main()
