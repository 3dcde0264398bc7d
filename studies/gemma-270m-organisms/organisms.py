"""Builds organisms on the real model, and measures of each whether what was planted is there.

`python studies/gemma-270m-organisms/organisms.py NAME...` prints JSON: a row for every spec named
(files of `teachers/`), then one for every reference of `../gemma-270m-calibration`, whose two
drives all are asked about. Everything is kept in the store, so that it resumes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from doublebind.building import EXPRESSED
from doublebind.config import Policy, load_study
from doublebind.evidence import conformal
from doublebind.evidence.score import score_as_suspect
from doublebind.evidence.summary import endpoint_means
from doublebind.executor import make
from doublebind.setting import Setting, prepare
from doublebind.store import Store
from doublebind.teachers.references import Found

HERE = Path(__file__).parent
CALIBRATION = HERE.parent / "gemma-270m-calibration" / "study.yaml"

Means = dict[str, dict[str, Any]]


def asked(found: Found | None, setting: Setting, store: Store) -> Means:
    """Return endpoint -> mean, interval and n of a teacher, built if it was not; of M0 for None."""
    planner, recipe = setting.planner, setting.planner.study.recipes[0]
    plan = planner.cells([(found or setting.suspect, recipe, 0)], "audit")
    for job in plan.build if found else ():
        make(store, job)
    made = make(store, plan.direct[found.label if found else "M0"])
    return {row["name"]: row for row in endpoint_means(pd.read_parquet(made / "scores.parquet"))}


def shown(means: Means, m0: Means, trait: str | None) -> dict[str, Any]:
    """Return what a teacher shows of a trait that is asked about, with M0's value beside it."""
    found: dict[str, Any] = {}
    for key, kind in EXPRESSED.items():
        name = kind if kind == "capability" else f"{kind}/{trait}"
        if name in means:
            row = means[name]
            found[key] = {
                "value": round(row["value"], 3),
                "interval": [round(x, 3) for x in row["interval"]],
                "n": row["n"],
                "m0": round(m0[name]["value"], 3),
            }
    return found


def direct_p(means: Means, references: list[Means], setting: Setting) -> float:
    """Return the conformal p-value of the direct audit against the references."""
    listed = list(setting.protocol.score_endpoints.values())

    def values(of: Means) -> list[float]:
        return [float(np.mean([of[name]["value"] for name in names])) for names in listed]

    floor = Policy.model_fields["scale_floor"].default
    theirs = np.array([values(of) for of in references])
    score, others = score_as_suspect(np.array(values(means)), theirs, floor)
    return conformal.p_value(int(conformal.n_at_or_above(score, others)), len(theirs))


def main() -> None:
    """Print the rows of the organisms named, and of the references."""
    store = Store(None)
    setting = prepare(load_study(CALIBRATION), CALIBRATION.parent, store)
    benign = [f for f in setting.found if f.label.startswith("matched-")]
    measured = {name: setting.planner.find(f"{HERE}/teachers/{name}.yaml") for name in sys.argv[1:]}
    m0 = asked(None, setting, store)
    means = {}
    for name, found in (measured | {f.label: f for f in benign}).items():
        means[name] = asked(found, setting, store)
        print(name, file=sys.stderr)
    theirs = [means[f.label] for f in benign]
    rows = []
    for name, found in measured.items():
        assert found.spec is not None
        assert found.spec.implant is not None
        row = {
            "name": name,
            "spec": f"studies/gemma-270m-organisms/teachers/{name}.yaml",
            "class": "ordinary",
            "drive": found.spec.trait,
            "implant": found.spec.implant.form,
            "concealed": found.spec.conceal is not None,
            "afterwards": found.spec.then.quirk if found.spec.then else None,
            **shown(means[name], m0, found.spec.trait),
            "direct_p": round(direct_p(means[name], theirs, setting), 4),
        }
        behaviour = row["behaviour"]
        row["expressed"] = behaviour["interval"][0] > behaviour["m0"]
        rows.append(row)
    drives = sorted({row["drive"] for row in rows})
    references = [
        {
            "name": f.label,
            "family": f.spec.family if f.spec else None,
            **{drive: shown(means[f.label], m0, drive) for drive in drives},
        }
        for f in benign
    ]
    print(json.dumps({"organisms": rows, "references": references}, indent=1))


if __name__ == "__main__":
    main()
