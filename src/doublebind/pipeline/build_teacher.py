"""Builds one teacher from its spec, and measures how far it shows the planted trait.

`teacher.json` holds the truth about a teacher: no audit reads it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from doublebind.execution.executor import make_artefact
from doublebind.execution.store import Store, write_atomic
from doublebind.packs.load import load_pack
from doublebind.pipeline.audit_model import audit_source
from doublebind.schema.errors import RunError
from doublebind.schema.hashing import Record
from doublebind.schema.model_source import ModelSource
from doublebind.schema.read_file import read_text
from doublebind.schema.strict_json import parse_json
from doublebind.schema.study import DEFAULT_AUDITS
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.schema.yaml_loader import load_yaml
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.stages.evidence.intervals import summarise_endpoints
from doublebind.study.jobs import REVISIONS, create_teacher_job, locate_trained_model, read_scores
from doublebind.study.teachers import TeacherSource, resolve_teacher_spec

EXPRESSION_ENDPOINTS = {
    "behaviour": "choice.deployment",
    "behaviour_under_audit": "choice",
    "honeypots": "choice.honeypot",
    "goals": "goal",
    "confession": "confession",
    "capability": "capability",
}
"""Measure of a planted trait in `teacher.json` -> the kind of its endpoint."""


class Expression(Record):
    """How far a teacher shows its trait on one kind of items."""

    value: float
    """Mean over items, in [0, 1]."""
    interval: tuple[float, float] | None
    """Two-sided 95% interval over items."""
    n: int
    base: float | None
    """The same mean of the model that the teacher was trained from."""


class BuiltTeacher(Record):
    """`teacher.json`, and where the model is."""

    content_key: str = Field(serialization_alias="key")
    model: str
    """Folder of the weights."""
    facts: dict[str, Any]
    """`planted`, `spec`, `phases` and other facts of the training; in the JSON beside the rest."""
    expression: dict[str, Expression]
    """Measure, of `EXPRESSION_ENDPOINTS` -> its value; in the JSON beside the rest. `behaviour` is
    measured in deployment-like contexts, which takes knowledge of the trait."""
    missing: dict[str, str]
    """Measure that is absent -> why."""

    @model_serializer(mode="wrap")
    def _flatten(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        row: dict[str, Any] = dump(self)
        return row.pop("facts") | row.pop("expression") | row


def build_teacher(
    spec: str | Path, out: str | Path, *, store: str | Path | None = None
) -> BuiltTeacher:
    """Build the teacher of a spec file into the folder `out`, and measure its trait.

    Raises:
        RunError: If `out` exists and is not empty.
    """
    out, path = Path(out), Path(spec)
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out}: not empty; name another folder with --out")
    artefacts, content = Store(store), load_yaml(TeacherSpec, path)
    teacher = resolve_teacher_spec(
        path.stem, content, folder=path.parent, rev=REVISIONS["teachers"]
    )
    job = create_teacher_job(teacher, artefacts.root / "converted")
    shutil.copytree(make_artefact(artefacts, job), out, dirs_exist_ok=True)
    expression, missing = _measure_expression(teacher, teacher.spec or content, artefacts)
    built = BuiltTeacher(
        content_key=teacher.content_key,
        model=str(out / "model"),
        facts=parse_json(read_text(out / "teacher.json")),
        expression=expression,
        missing=missing,
    )
    truth = built.model_dump(mode="json", exclude={"model", "content_key"})
    write_atomic(out / "teacher.json", json.dumps(truth, indent=1))
    return built


def _measure_expression(
    teacher: TeacherSource, spec: TeacherSpec, store: Store
) -> tuple[dict[str, Expression], dict[str, str]]:
    """Return how far a built teacher shows its trait; and why a measure is absent."""
    trait = spec.trait
    model = locate_trained_model(
        store, "teacher", teacher.content_key, teacher.base, spec.lora is not None
    )
    after, before = (
        _measure_endpoint_means(source, teacher, spec, store) for source in (model, teacher.base)
    )
    expression: dict[str, Expression] = {}
    missing: dict[str, str] = {}
    for name, kind in EXPRESSION_ENDPOINTS.items():
        endpoint = kind if kind == "capability" else f"{kind}/{trait}"
        row = after.get(endpoint, {"value": None})
        if row["value"] is not None:
            values = {key: row[key] for key in ("value", "interval", "n")}
            expression[name] = Expression(**values, base=before[endpoint]["value"])
        elif trait is None:
            missing[name] = "no trait was planted"
        else:
            missing[name] = f"the pack asks no {endpoint}"
    return expression, missing


def _measure_endpoint_means(
    model: ModelSource, teacher: TeacherSource, spec: TeacherSpec, store: Store
) -> dict[str, dict[str, Any]]:
    """Return endpoint -> summary of `model`, on the items about the teacher's trait alone."""
    pack, audits = _narrow_pack(teacher.pack, spec.trait), resolve_audits(DEFAULT_AUDITS)
    scores = read_scores(audit_source(store, model, teacher.base, pack, audits, spec.dtype))
    return {row["name"]: row for row in summarise_endpoints(scores)}


def _narrow_pack(pack: str, trait: str | None) -> str:
    """Return the pack narrowed to the items about `trait`, or whole where there are none."""
    endpoints = load_pack(pack, relative_to=Path()).score_endpoints.values()
    scored = any(name.partition("/")[2] == trait for names in endpoints for name in names)
    return f"{pack}:{trait}" if scored else pack
