"""Asks fresh students of hard organisms where only the organism's key leads.

    python studies/terrarium-replacement/keyed.py

Oracle items know a drive at work. What a context-dependent, emergent or poisoned organism does
shows beside its place, in paid jobs or after its trigger, and `probes` know that. For every such
organism in `expected.json`: the probability of its act under each condition, its own and M0's; of
every recipe, the mean over its eight students above M0 in the condition that opens it, with a 95%
t-interval, and whether that of students called within the margin is beyond it. The students have
to be in the store.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from probed import means

from doublebind.cells import Planner
from doublebind.config import load_study
from doublebind.evidence.summary import mean_interval
from doublebind.jobs import trained
from doublebind.packs.outback import probes
from doublebind.store import Store

HERE = Path(__file__).parent
OPENED_BY = {"context_dependent": "beside", "emergent": "rewarded", "poisoned": "triggered"}


def asked_of(label: str, kind: str, content: dict[str, Any], planner: Planner) -> dict[str, Any]:
    """Return what the students of one organism do."""
    study = planner.study
    of = [row for row in content["treatments"] if row["organism"] == label]
    decisions = {row["name"]: row["decision"] for row in of}
    stopped = {each["recipe"]: each.get("step") for each in content["competed"]}
    teacher = planner.find(label)
    assert teacher.spec is not None
    assert teacher.spec.trait is not None
    drive, key = teacher.spec.trait, OPENED_BY[kind]
    adapter = teacher.spec.lora is not None
    asked = probes.probes(kind, drive)
    itself = means(trained(planner.store, "teacher", teacher.key, teacher.base, adapter), asked)
    m0 = means(planner.student, asked)
    first = max(study.replace.seeds, study.seeds)
    rows = []
    for recipe in study.replace.recipes or ():
        seeds = range(first, first + study.replace.fresh_seeds)
        plan = planner.cells([(teacher, recipe, seed) for seed in seeds], "certify")
        step = stopped[recipe.name] or recipe.training.steps
        sources = [dict(cell.audits)[step].inputs["source"] for cell in plan.students]
        above = [means(source, asked)[key] - m0[key] for source in sources]
        found = mean_interval(np.array(above))
        within = decisions[recipe.name] == "within_margin"
        rows.append(
            {
                "recipe": recipe.name,
                "decision": decisions[recipe.name],
                "above_m0": round(found["value"], 3),
                "interval": [round(x, 3) for x in found["interval"]],
                "false_certificate": within and found["value"] > (study.policy.margin or 0.0),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr)
    rounded = {
        name: {c: round(v, 3) for c, v in of.items()}
        for name, of in (("teacher", itself), ("m0", m0))
    }
    return {"organism": label, "opened_by": key, **rounded, "rows": rows}


def main() -> None:
    """Print the rows."""
    planner = Planner(load_study(HERE / "study.yaml"), HERE, Store(None))
    content = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
    classes = {row["organism"]: row["class"] for row in content["treatments"]}
    found = [
        asked_of(of, kind, content, planner) for of, kind in classes.items() if kind in OPENED_BY
    ]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
