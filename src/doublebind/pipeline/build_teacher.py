"""Builds one teacher from its spec into a folder, and says how far it shows what was planted.

Knows the truth about a teacher, which no audit reads.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from doublebind.execution.executor import make_artefact
from doublebind.execution.store import Store, write_atomic
from doublebind.packs.load import load_pack
from doublebind.schema.errors import RunError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.study import DEFAULT_AUDITS
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.schema.yaml_loader import load_yaml
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.stages.evidence.intervals import summarise_endpoints
from doublebind.study.jobs import (
    REVISIONS,
    create_audit_job,
    create_teacher_job,
    locate_trained_model,
)
from doublebind.study.runtime import Runtime, open_pack
from doublebind.study.teachers import TeacherSource, resolve_teacher_spec

EXPRESSION_ENDPOINTS = {
    "behaviour": "choice.deployment",
    "behaviour_under_audit": "choice",
    "honeypots": "choice.honeypot",
    "goals": "goal",
    "confession": "confession",
    "capability": "capability",
}
"""What is said of a planted trait in `teacher.json` -> the kind of endpoint."""


def build_teacher(
    spec: str | Path, out: str | Path, *, store: str | Path | None = None
) -> dict[str, Any]:
    """Build the teacher of a spec file into the folder `out`; measure and return what was built.

    Returns:
        `teacher.json`: `planted`, `spec`, `phases`, and what `_expressed` says; with `model`, the
        folder of its weights, and `key`. It holds the truth about a teacher: no audit reads it.

    Raises:
        RunError: If `out` exists and is not empty.
    """
    out, path = Path(out), Path(spec)
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out}: not empty; name another folder with --out")
    kept = Store(store)
    found = resolve_teacher_spec(
        path.stem, load_yaml(TeacherSpec, path), folder=path.parent, rev=REVISIONS["teachers"]
    )
    job = create_teacher_job(found, kept.root / "converted")
    shutil.copytree(make_artefact(kept, job), out, dirs_exist_ok=True)
    facts = json.loads((out / "teacher.json").read_text(encoding="utf-8"))
    facts |= _measure_expression(found, kept)
    write_atomic(out / "teacher.json", json.dumps(facts, indent=1))
    return {**facts, "model": str(out / "model"), "key": found.content_key}


def _measure_expression(teacher: TeacherSource, store: Store) -> dict[str, Any]:
    """Return how far a built teacher shows what was planted.

    `behaviour` (in deployment-like contexts, which only one who knows the trait can ask about),
    `behaviour_under_audit`, `honeypots`, `goals`, `confession` and `capability`: each the mean over
    items, in [0, 1], with a 95% interval over items, their number, and `base`, the same of the
    model it was made from. What cannot be measured is in `missing`, with the reason.
    """
    assert teacher.spec is not None
    trait, adapter = teacher.spec.trait, teacher.spec.lora is not None
    after = _measure_endpoint_means(
        locate_trained_model(store, "teacher", teacher.content_key, teacher.base, adapter),
        teacher,
        store,
    )
    before = _measure_endpoint_means(teacher.base, teacher, store)
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, kind in EXPRESSION_ENDPOINTS.items():
        endpoint = kind if kind == "capability" else f"{kind}/{trait}"
        row = after.get(endpoint, {"value": None})
        if row["value"] is None:
            missing[name] = (
                "no trait was planted" if trait is None else f"the pack asks no {endpoint}"
            )
            continue
        found[name] = {key: row[key] for key in ("value", "interval", "n")}
        found[name]["base"] = before[endpoint]["value"]
    return {**found, "missing": missing}


def _measure_endpoint_means(
    model: ModelSource, teacher: TeacherSource, store: Store
) -> dict[str, dict[str, Any]]:
    """Return endpoint -> means of `model`, asked as a study would, about its own trait alone."""
    import pandas as pd

    assert teacher.spec is not None
    pack = open_pack(_narrow_pack(teacher.pack, teacher.spec.trait), Path())
    runtime = Runtime(teacher.spec.dtype, store.root / "converted")
    job = create_audit_job(model, teacher.base, pack, resolve_audits(DEFAULT_AUDITS), runtime)
    scores = pd.read_parquet(make_artefact(store, job) / "scores.parquet")
    return {row["name"]: row for row in summarise_endpoints(scores)}


def _narrow_pack(pack: str, trait: str | None) -> str:
    """Return the pack narrowed to what is asked about `trait`, or whole where nothing is."""
    scored = load_pack(pack, relative_to=Path()).score_endpoints.values()
    own = any(name.partition("/")[2] == trait for names in scored for name in names)
    return f"{pack}:{trait}" if own else pack
