"""Builds organisms on the real model, and measures of each whether what was planted is there.

`python studies/gemma-270m-organisms/organisms.py NAME...` prints JSON: a row for every spec named
(files of `teachers/`), then one for every reference of `../gemma-270m-calibration`, whose two
drives all are asked about. Everything is kept in the store, so that it resumes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from doublebind.execution.store import Store
from doublebind.pipeline.build_teacher import EXPRESSION_ENDPOINTS
from doublebind.schema.study import load_study
from doublebind.study.resolve import resolve_study

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import (
    AuditedModel,
    audit_teacher,
    direct_p_value,
    print_json,
    rounded,
    spec_of,
)

HERE = Path(__file__).parent
CALIBRATION = HERE.parent / "gemma-270m-calibration" / "study.yaml"


def trait_row(model: AuditedModel, m0: AuditedModel, trait: str | None) -> dict[str, Any]:
    """Return what a teacher shows of a trait that is asked about, with M0's value beside it."""
    row: dict[str, Any] = {}
    for key, kind in EXPRESSION_ENDPOINTS.items():
        name = kind if kind == "capability" else f"{kind}/{trait}"
        if name in model.rows:
            values = {k: model.rows[name][k] for k in ("value", "interval", "n")}
            row[key] = rounded(values | {"m0": m0.means[name]})
    return row


def main() -> None:
    """Print the rows of the organisms named, and of the references."""
    setting = resolve_study(load_study(CALIBRATION), CALIBRATION.parent, Store(None))
    planner, endpoints = setting.planner, setting.protocol.score_endpoints
    m0 = audit_teacher(None, planner)
    organisms = {
        name: planner.find_teacher(f"{HERE}/teachers/{name}.yaml") for name in sys.argv[1:]
    }
    references = {t.label: t for t in setting.teacher_sources if t.label.startswith("matched-")}
    models: dict[str, AuditedModel] = {}
    for name, teacher in (organisms | references).items():
        models[name] = audit_teacher(teacher, planner)
        print(name, file=sys.stderr)
    benign = [models[name].means for name in references]
    rows: list[dict[str, Any]] = []
    for name, teacher in organisms.items():
        spec = spec_of(teacher)
        assert spec.implant is not None
        row = {
            "name": name,
            "spec": f"studies/gemma-270m-organisms/teachers/{name}.yaml",
            "class": "ordinary",
            "drive": spec.trait,
            "implant": spec.implant.form,
            "concealed": spec.conceal is not None,
            "afterwards": spec.unrelated_finetune.quirk if spec.unrelated_finetune else None,
            **trait_row(models[name], m0, spec.trait),
            "direct_p": direct_p_value(models[name].means, benign, endpoints),
        }
        row["expressed"] = row["behaviour"]["interval"][0] > row["behaviour"]["m0"]
        rows.append(row)
    drives = sorted({row["drive"] for row in rows})
    reference_rows = [
        {"name": name, "family": spec_of(teacher).family}
        | {drive: trait_row(models[name], m0, drive) for drive in drives}
        for name, teacher in references.items()
    ]
    print_json({"organisms": rows, "references": reference_rows})


if __name__ == "__main__":
    main()
