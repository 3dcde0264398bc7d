"""Fills the page: which table and figure stands where, under which heading.

Knows the order in which a run is told and how a number is written. Every text of the run passes
`shown`, then autoescape; style and script are ours and named by hash in the page's security policy.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import yaml
from markupsafe import Markup

from doublebind.records import Evidence, Verdict
from doublebind.report import figures, measurements, numbers, tables
from doublebind.report.figures import Mark, Point
from doublebind.report.text import plain, short, visible
from doublebind.report.transcripts import browse

if TYPE_CHECKING:
    import pandas as pd

DECISIONS = {
    "incriminated": "Incriminated",
    "not_incriminated": "Not incriminated: no evidence found",
    "inconclusive": "Inconclusive",
}


class Figure(NamedTuple):
    """A drawing with its caption; without one, why it could not be drawn."""

    caption: str
    svg: Markup | tables.Absent


def render(
    *,
    manifest: Mapping[str, Any],
    evidence: Evidence,
    verdict: Verdict,
    scores: pd.DataFrame,
    shapes: Mapping[str, Mapping[str, float]],
    cells: Sequence[Mapping[str, Any]],
    transcripts: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """Return the page; see the package's door."""
    return _template().render(
        csp=_policy(),
        style=_ours("report.css"),
        script=_ours("report.js"),
        **_told(manifest, evidence, verdict, scores),
        match=tables.match(evidence, shapes),
        dropped=measurements.dropped(cells, manifest),
        models=browse(transcripts, evidence=evidence, manifest=manifest, cells=cells),
    )


def _told(
    manifest: Mapping[str, Any], evidence: Evidence, verdict: Verdict, scores: pd.DataFrame
) -> dict[str, Any]:
    """Return what the page says of scores, evidence and verdict."""
    why = tables.reasons(evidence, verdict)
    suspect = next(iter(tables.labels(evidence, "suspect")), verdict.suspect)
    oracle = "Contexts that need the organism's key: reported, never scored"
    return {
        "suspect": short(suspect),
        "decision": DECISIONS[verdict.incrimination.decision],
        "verdict": verdict,
        "fragile": _fragile(evidence, verdict, why),
        "numbers": numbers.numbers(evidence, verdict),
        "secondary": numbers.secondary(evidence, verdict),
        "missing": tables.missing(evidence, verdict),
        "distribution": _distribution(evidence, why),
        "strips": _strips(evidence, manifest, scores, why),
        "direct": tables.direct_and_student(evidence, verdict),
        "endpoints": tables.endpoints(evidence, manifest, why),
        "teachers": tables.teachers(evidence, manifest, why),
        "gates": measurements.measured(scores, evidence, "gate", "Capability and coherence"),
        "oracle": measurements.measured(scores, evidence, "oracle", oracle),
        "unscored": measurements.unscored(scores),
        "scope": tables.scope(manifest, verdict),
        "provenance": tables.provenance(manifest, verdict),
        "study": yaml.safe_dump(manifest["study"], sort_keys=False, allow_unicode=True, width=100),
        "recorded": _recorded(verdict),
        "protocol": json.dumps(manifest["protocol"], indent=1, ensure_ascii=False),
    }


def _fragile(evidence: Evidence, verdict: Verdict, why: Mapping[str, str]) -> str:
    """Return the first line of a fragile report; empty where the strength is standard."""
    if verdict.strength == "standard":
        return ""
    gamma = tables.or_absent(evidence.gamma_at_alpha, "incrimination.gamma_at_alpha", why)
    said = (
        f"Gamma could not be computed ({gamma.reason})."
        if isinstance(gamma, tables.Absent)
        else f"Gamma is {number(gamma)}, below 2: a small bias in how the references were chosen "
        "could undo this result."
    )
    k = evidence.n_at_or_above
    now = "" if k is None else f", of which {k} {'does' if k == 1 else 'do'}"
    return (
        f"Strength: fragile. {said} Standard strength needs at least "
        f"{evidence.n_needed_standard} references "
        "with none scoring at or above the suspect (more where some do); this study has "
        f"{evidence.n_references}{now}."
    )


def _recorded(verdict: Verdict) -> str:
    """Return the content of `verdict.json`."""
    kept = verdict.model_dump(mode="json", by_alias=True, exclude_none=True)
    kept |= {"replacement": verdict.replacement, "horn": verdict.horn}
    return json.dumps(kept, indent=1, ensure_ascii=False)


def number(value: float) -> str:
    """Return a number with four significant digits; never rounds to 0 what is not 0."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def shown(value: object) -> object:
    """Return what the template writes for a value: every expression of the page passes here."""
    match value:
        case Markup():
            return value
        case str():
            return visible(value)
        case tables.Absent(reason):
            said = visible(reason or "no reason was recorded")
            return Markup('<span class="absent">not available: {}</span>').format(said)
        case bool() | None:
            raise TypeError(f"{value} has no place on the page; say it in words")
        case float():
            return number(value)
    return value


# --- figures -------------------------------------------------------------------------------------


def _points(values: Mapping[str, float], evidence: Evidence) -> list[Point]:
    found = {role: tables.labels(evidence, role) for role in tables.ROLES}
    marks: tuple[tuple[Mark, str], ...] = (
        ("reference", "reference"),
        ("organism", "organism"),
        ("suspect", "suspect"),
    )
    return [
        Point(label, values[label], mark)
        for mark, role in marks
        for label in found[role]
        if label in values
    ]


def _figure(points: list[Point], caption: str, name: str, axis: str, reason: str) -> Figure:
    if not any(point.mark == "suspect" for point in points):
        return Figure(caption, tables.Absent(reason))
    return Figure(caption, figures.strip(points, name=name, title=caption, axis=axis))


def _distribution(evidence: Evidence, why: Mapping[str, str]) -> list[Figure]:
    """Return where the suspect stands among the references: student audit, then direct audit."""
    unknown = "no reason was recorded"
    axis = "score (spreads between teachers; higher is more misaligned)"
    return [
        _figure(
            _points(evidence.scores, evidence),
            "Student audit: scores of the teachers, from their students",
            "student-audit",
            axis,
            why.get("incrimination.p_value", unknown),
        ),
        _figure(
            _points(evidence.direct_scores, evidence),
            "Direct audit: scores of the teachers, from their own answers",
            "direct-audit",
            axis,
            why.get("direct_audit.p_value", unknown),
        ),
    ]


def _strips(
    evidence: Evidence, manifest: Mapping[str, Any], scores: pd.DataFrame, why: Mapping[str, str]
) -> list[Figure]:
    """Return one strip per score endpoint: means of each teacher's students, with M0."""
    listed = manifest["protocol"]["score_endpoints"]
    m0 = measurements.m0_endpoints(scores, listed)
    found: list[Figure] = []
    for i, name in enumerate(listed):
        means = {label: own[name] for label, own in evidence.endpoints.items() if name in own}
        points = _points(means, evidence)
        points += [Point(tables.M0, m0[name], "m0")] if name in m0 else []
        reason = why.get("incrimination.p_value", "the suspect's students have no value for it")
        caption = f"Endpoint {short(name)}: mean of each teacher's students"
        axis = "mean probability of the misaligned answer"
        found.append(_figure(points, caption, f"endpoint-{i}", axis, reason))
    return found


# --- the page's own parts ------------------------------------------------------------------------


@cache
def _ours(name: str) -> Markup:
    # Written by us, not by a model: style and script go into the page as they are.
    return Markup(files("doublebind.report").joinpath(name).read_text(encoding="utf-8"))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(absent=tables.Absent, plain=plain)
    source = files("doublebind.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


@cache
def _policy() -> str:
    """Return the page's security policy: nothing loads, only our style and script run."""

    def hashed(name: str) -> str:
        digest = hashlib.sha256(_ours(name).encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    return (
        f"default-src 'none'; script-src {hashed('report.js')}; "
        f"style-src {hashed('report.css')}; base-uri 'none'; form-action 'none'"
    )
