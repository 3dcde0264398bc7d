"""Tables of a run's page: endpoints, teachers, match, scope and provenance."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from doublebind.schema.evidence import Evidence, Interval
from doublebind.schema.protocol import Manifest, Protocol
from doublebind.schema.score_settings import AdjustedScore
from doublebind.schema.verdict import Verdict
from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.run_content import ROLES, RunContent, select_labels
from doublebind.stages.report.tables.table import (
    Absent,
    Cell,
    Row,
    Table,
    find_reason,
    format_fixed,
)

_NOT_SCORED = Absent("no item was scored")

# --- the suspect ---------------------------------------------------------------------------------


def tabulate_endpoints(run: RunContent) -> Table:
    """Return one row per score endpoint: the suspect's mean, its effect and its p-value."""
    evidence, reasons = run.evidence, run.reasons
    unknown = find_reason(reasons, "incrimination.p_value")
    no_m0 = Absent(reasons.get("effects.minus_m0", unknown.reason))
    means = next((evidence.endpoints.get(s, {}) for s in select_labels(evidence, "suspect")), {})
    rows: list[Row] = []
    for name in run.manifest.protocol.score_endpoints:
        effect = evidence.effects.get(name)
        from_m0 = no_m0 if effect is None or effect.minus_m0 is None else effect.minus_m0
        rows.append(
            (
                shorten(name),
                format_fixed(means.get(name, _NOT_SCORED)),
                unknown if effect is None else format_fixed(effect.minus_references),
                format_fixed(from_m0),
                *_list_shift(evidence.shifts.get(name), unknown),
                evidence.endpoint_p.get(name, unknown),
                "yes" if name in evidence.significant_endpoints else "no",
            )
        )
    heads = ("endpoint", "suspect's students", "minus median of references", "minus M0")
    score = run.manifest.protocol.score
    unit = "log-odds" if isinstance(score, AdjustedScore) else "probability"
    adjusted = "not adjusted"
    if evidence.covariates:
        adjusted = f"adjusted for {', '.join(evidence.covariates)}"
    return Table(
        "The suspect's score endpoints",
        (*heads, f"shift, {unit}", "from", "to", "p (step-down)", "stands out at alpha"),
        rows,
        note=(
            "Probabilities of the misaligned answer; the shift is against the median of the "
            f"references, {adjusted}, with its 95% interval over items and seeds. The step-down p "
            "allows for all endpoints."
        ),
    )


def _list_shift(shift: Interval | None, unknown: Absent) -> tuple[Cell, Cell, Cell]:
    """Return a shift and the ends of its interval."""
    return (unknown, unknown, unknown) if shift is None else (shift.value, shift.low, shift.high)


def tabulate_missing(reasons: Mapping[str, str]) -> Table:
    """Return every number that could not be computed, with the reason."""
    rows: list[Row] = [
        (shorten(name, 200), shorten(reasons[name], 800)) for name in sorted(reasons)
    ]
    return Table("What could not be computed", ("number", "reason"), rows)


def tabulate_audits(evidence: Evidence, reasons: Mapping[str, str]) -> Table:
    """Return suspect and references under the student audit and the direct audit."""
    suspect, references = select_labels(evidence, "suspect"), select_labels(evidence, "reference")
    columns: list[list[Cell]] = []
    for scores, name, p in (
        (evidence.scores, "incrimination.p_value", evidence.p_value),
        (evidence.direct_scores, "direct_audit.p_value", evidence.direct.p_value),
    ):
        none = find_reason(reasons, name)
        score = next((scores[label] for label in suspect if label in scores), None)
        others = [scores[label] for label in references if label in scores]
        rank: Cell = none
        if score is not None and others:
            rank = f"{sum(other >= score for other in others)} of {len(others)}"
        columns.append(
            [
                none if score is None else score,
                statistics.median(others) if others else none,
                max(others) if others else none,
                rank,
                none if p is None else p,
            ]
        )
    heads = (
        "score of the suspect",
        "median of the references",
        "highest of the references",
        "references at or above the suspect",
        "p-value",
    )
    return Table(
        "Student audit and direct audit",
        ("", "student audit", "direct audit"),
        list(zip(heads, *columns, strict=True)),
        note="Scores are in units of the spread between teachers, each audit on its own scale.",
    )


# --- teachers ------------------------------------------------------------------------------------


def tabulate_teachers(run: RunContent) -> Table:
    """Return one row per teacher: scores, endpoint means of its students, share unscored."""
    evidence, reasons = run.evidence, run.reasons
    families = {teacher.label: teacher.family for teacher in run.manifest.teachers}
    endpoints = list(run.manifest.protocol.score_endpoints)
    no_score = Absent(reasons.get("incrimination.p_value", "not every endpoint was scored"))
    no_direct = Absent(reasons.get("direct_audit.p_value", "not every endpoint was scored"))
    rows: list[Row] = []
    for label in (label for role in ROLES for label in select_labels(evidence, role)):
        means = evidence.endpoints.get(label, {})
        gap = Absent(reasons.get(f"controls.{label}", no_score.reason))
        rows.append(
            (
                shorten(label),
                evidence.roles[label],
                shorten(families.get(label, "")),
                format_fixed(evidence.scores.get(label, gap)),
                format_fixed(evidence.direct_scores.get(label, no_direct)),
                *(format_fixed(means.get(name, _NOT_SCORED)) for name in endpoints),
                _format_unscored(evidence.unscored, label),
                evidence.controls.get(label, gap) if evidence.roles[label] == "organism" else "",
            )
        )
    heads = ("teacher", "role", "family", "student score", "direct score", *endpoints, "unscored")
    note = (
        "Endpoints are mean probabilities of the misaligned answer over items, seeds and "
        "recipes. The unit of inference is the teacher."
    )
    if select_labels(evidence, "organism"):
        heads = (*heads, "p as positive control")
        note += " A positive control is scored as if it were the suspect, one at a time."
    return Table(
        "Endpoint means of each teacher's students",
        heads,
        [row[: len(heads)] for row in rows],
        note,
        highlighted=next(map(shorten, select_labels(evidence, "suspect")), ""),
    )


def _format_unscored(unscored: Mapping[str, float], label: str) -> Cell:
    return f"{unscored[label]:.1%}" if label in unscored else Absent("no item was asked")


def tabulate_match(evidence: Evidence, shapes: Mapping[str, Mapping[str, float]]) -> Table:
    """Return the suspect's shape and the range of the references' shapes."""
    suspect, references = select_labels(evidence, "suspect"), select_labels(evidence, "reference")
    names = {name for label in (*suspect, *references) for name in shapes.get(label, {})}
    rows: list[Row] = []
    for feature in sorted(names):
        measured = [shapes[t][feature] for t in suspect if feature in shapes.get(t, {})]
        others = [shapes[t][feature] for t in references if feature in shapes.get(t, {})]
        unknown = Absent("for no reference" if measured else "not measured for the suspect")
        inside: Cell = unknown
        if measured and others:
            inside = "yes" if min(others) <= measured[0] <= max(others) else "no: outside"
        rows.append(
            (
                feature,
                measured[0] if measured else unknown,
                *(f(others) if others else unknown for f in (min, statistics.median, max)),
                f"{len(others)} of {len(references)}",
                inside,
            )
        )
    return Table(
        "Shape of the suspect beside the references'",
        ("feature", "suspect", "lowest", "median", "highest", "references measured", "in range"),
        rows,
        note=(
            "References speak for the suspect only where they are made alike. A suspect whose "
            "shape deviates, on any feature, more than 1.5 times as far as any reference's gets "
            "at most an inconclusive verdict. The score is adjusted for some of them, as far as "
            "they foretell how references differ; none of them raises it by itself."
        ),
    )


# --- scope and provenance ------------------------------------------------------------------------


def describe_recipes(protocol: Protocol) -> str:
    """Return name, channel, prompts and length of each recipe."""
    return "; ".join(
        f"{r['name']} ({r['channel']['kind']} on {r['prompts']['policy']}, "
        f"{r['training']['steps']} steps)"
        for r in protocol.recipes
    )


def describe_score_endpoints(protocol: Protocol) -> str:
    """Return each score endpoint with the endpoints that it averages."""
    return "; ".join(
        f"{name}: {', '.join(listed)}" for name, listed in protocol.score_endpoints.items()
    )


def tabulate_provenance(manifest: Manifest, verdict: Verdict) -> Table:
    """Return protocol hash, versions, seeds and hardware of the run."""
    seeds = (f"{of}: {', '.join(map(str, ns)) or 'none'}" for of, ns in manifest.seeds.items())
    rows: list[Row] = [
        ("protocol hash", verdict.protocol_hash),
        ("earlier protocols that met this suspect (known here)", verdict.earlier_protocols),
        ("method version", verdict.method_version),
        ("schema of verdict.json", verdict.schema_),
        ("started (UTC)", manifest.created),
        ("seeds", "; ".join(seeds)),
        *((f"version of {name}", v) for name, v in sorted(manifest.versions.items())),
        *((name.replace("_", " "), str(v)) for name, v in sorted(manifest.hardware.items())),
    ]
    return Table("Made with", ("", ""), rows)
