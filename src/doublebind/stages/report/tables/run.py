"""Turns a run's records into rows: every number with what it means, or with why it is absent.

Knows which record holds which number. Decides nothing, estimates nothing beyond medians and
ranges over teachers, and knows no HTML.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from doublebind.schema.evidence import Evidence
from doublebind.schema.verdict import Verdict
from doublebind.stages.report.hostile_text import shorten

ROLES = ("suspect", "reference", "organism")


class Absent(NamedTuple):
    """Stands where a number would; never 0, never NaN."""

    reason: str


Cell = str | int | float | Absent


class Table(NamedTuple):
    """Rows under column heads; the first cell of a row names it."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    note: str = ""
    highlighted: str = ""
    """The row name to be marked: the suspect's."""


def collect_reasons(evidence: Evidence, verdict: Verdict) -> dict[str, str]:
    """Return why each absent number is absent, by its path in `verdict.json`."""
    return {**evidence.missing, **verdict.missing}


def value_or_absent(value: float | None, name: str, why: Mapping[str, str]) -> float | Absent:
    """Return `value`, or the reason that `why` gives for `name`."""
    if value is not None:
        return value
    return Absent(why.get(name, "no reason was recorded"))


def format_fixed(value: float | Absent) -> Cell:
    """Return a number with four decimals, so that a column of them lines up."""
    return value if isinstance(value, Absent) else f"{value:.4f}"


def select_labels(evidence: Evidence, role: str) -> list[str]:
    """Return the teachers of one role, in the evidence's order."""
    return [label for label, its in evidence.roles.items() if its == role]


# --- the suspect ---------------------------------------------------------------------------------


def tabulate_endpoints(
    evidence: Evidence, manifest: Mapping[str, Any], why: Mapping[str, str]
) -> Table:
    """Return one row per score endpoint: the suspect's mean, its effect and its p-value."""
    unknown = Absent(why.get("incrimination.p_value", "no reason was recorded"))
    no_m0 = Absent(why.get("effects.minus_m0", unknown.reason))
    means = next((evidence.endpoints.get(s, {}) for s in select_labels(evidence, "suspect")), {})
    rows: list[tuple[Cell, ...]] = []
    for name in manifest["protocol"]["score_endpoints"]:
        effect = evidence.effects.get(name)
        from_m0 = no_m0 if effect is None or effect.minus_m0 is None else effect.minus_m0
        rows.append(
            (
                shorten(name),
                format_fixed(means.get(name, Absent("no item was scored"))),
                unknown if effect is None else format_fixed(effect.minus_references),
                format_fixed(from_m0),
                evidence.endpoint_p.get(name, unknown),
                "yes" if name in evidence.significant_endpoints else "no",
            )
        )
    heads = ("endpoint", "suspect's students", "minus median of references", "minus M0")
    return Table(
        "The suspect's score endpoints",
        (*heads, "p (step-down)", "stands out at alpha"),
        rows,
        note="Probabilities of the misaligned answer. The step-down p allows for all endpoints.",
    )


def tabulate_missing(evidence: Evidence, verdict: Verdict) -> Table:
    """Return every number that could not be computed, with the reason."""
    why = collect_reasons(evidence, verdict)
    rows: list[tuple[Cell, ...]] = [(shorten(n, 200), shorten(why[n], 800)) for n in sorted(why)]
    return Table("What could not be computed", ("number", "reason"), rows)


def tabulate_audits(evidence: Evidence, verdict: Verdict) -> Table:
    """Return suspect and references under both audits, side by side."""
    why = collect_reasons(evidence, verdict)
    suspect, references = select_labels(evidence, "suspect"), select_labels(evidence, "reference")
    columns: list[list[Cell]] = []
    for scores, name, p in (
        (evidence.scores, "incrimination.p_value", evidence.p_value),
        (evidence.direct_scores, "direct_audit.p_value", evidence.direct.p_value),
    ):
        none = Absent(why.get(name, "no reason was recorded"))
        own = [scores[label] for label in suspect if label in scores]
        others = [scores[label] for label in references if label in scores]
        columns.append(
            [
                own[0] if own else none,
                statistics.median(others) if others else none,
                max(others) if others else none,
                f"{sum(o >= own[0] for o in others)} of {len(others)}" if own and others else none,
                p if p is not None else none,
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


def tabulate_teachers(
    evidence: Evidence, manifest: Mapping[str, Any], why: Mapping[str, str]
) -> Table:
    """Return one row per teacher: scores, endpoint means of its students, what is unscored."""
    family = {t["label"]: t["family"] for t in manifest["teachers"]}
    endpoints = list(manifest["protocol"]["score_endpoints"])
    order = [label for role in ROLES for label in select_labels(evidence, role)]
    none = Absent(why.get("incrimination.p_value", "not every endpoint was scored"))
    no_direct = Absent(why.get("direct_audit.p_value", "not every endpoint was scored"))
    controls = bool(select_labels(evidence, "organism"))
    rows: list[tuple[Cell, ...]] = []
    for label in order:
        means = evidence.endpoints.get(label, {})
        gap = Absent(why.get(f"controls.{label}", none.reason))
        rows.append(
            (
                shorten(label),
                evidence.roles[label],
                shorten(family.get(label, "")),
                format_fixed(evidence.scores.get(label, gap)),
                format_fixed(evidence.direct_scores.get(label, no_direct)),
                *(format_fixed(means.get(e, Absent("no item was scored"))) for e in endpoints),
                _format_unscored(evidence.unscored, label),
                *([_format_control(evidence, label, gap)] if controls else []),
            )
        )
    heads = ("teacher", "role", "family", "student score", "direct score", *endpoints)
    suspect = select_labels(evidence, "suspect")
    return Table(
        "Endpoint means of each teacher's students",
        (*heads, "unscored", *(["p as positive control"] if controls else [])),
        rows,
        note=(
            "Endpoints are mean probabilities of the misaligned answer over items, seeds and "
            "recipes. The unit of inference is the teacher."
            + " A positive control is scored as if it were the suspect, one at a time."
            * controls
        ),
        highlighted=shorten(suspect[0]) if suspect else "",
    )


def _format_unscored(unscored: Mapping[str, float], label: str) -> Cell:
    if label not in unscored:
        return Absent("no item was asked")
    return f"{unscored[label]:.1%}"


def _format_control(evidence: Evidence, label: str, gap: Absent) -> Cell:
    if evidence.roles[label] != "organism":
        return ""
    return evidence.controls.get(label, gap)


def tabulate_match(evidence: Evidence, shapes: Mapping[str, Mapping[str, float]]) -> Table:
    """Return the suspect's shape beside the range of the references'."""
    suspect, references = select_labels(evidence, "suspect"), select_labels(evidence, "reference")
    compared = [*suspect, *references]
    rows: list[tuple[Cell, ...]] = []
    for feature in sorted({name for label in compared for name in shapes.get(label, {})}):
        own = [shapes[t][feature] for t in suspect if feature in shapes.get(t, {})]
        others = [shapes[t][feature] for t in references if feature in shapes.get(t, {})]
        unknown = Absent("not measured for the suspect" if not own else "for no reference")
        inside: Cell = unknown
        if own and others:
            inside = "yes" if min(others) <= own[0] <= max(others) else "no: outside"
        rows.append(
            (
                feature,
                own[0] if own else unknown,
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
            "at most an inconclusive verdict. These numbers never enter a score."
        ),
    )


# --- scope and provenance ------------------------------------------------------------------------


def tabulate_scope(manifest: Mapping[str, Any], verdict: Verdict) -> Table:
    """Return what the study asked, of whom, and what it did not ask."""
    protocol = manifest["protocol"]
    recipes = "; ".join(
        f"{r['name']} ({r['channel']['kind']} on {r['prompts']['policy']}, "
        f"{r['training']['steps']} steps)"
        for r in protocol["recipes"]
    )
    scored = "; ".join(f"{n}: {', '.join(e)}" for n, e in protocol["score_endpoints"].items())
    rows: list[tuple[Cell, ...]] = [
        ("horns asked for", ", ".join(protocol["horns"])),
        ("traits that the verdict names", _join_names(verdict.incrimination.traits)),
        ("score endpoints", scored),
        ("audits", ", ".join(protocol["audits"])),
        ("recipes", recipes),
        ("students per teacher and recipe", protocol["seeds"]),
        ("pack", f"{protocol['pack']} (sha256 {protocol['pack_hash']})"),
        ("student base M0", f"sha256 {protocol['student']}"),
    ]
    return Table("What was looked for, and how", ("", ""), rows)


def _join_names(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def tabulate_provenance(manifest: Mapping[str, Any], verdict: Verdict) -> Table:
    """Return what the run was made with."""
    rows: list[tuple[Cell, ...]] = [
        ("protocol hash", verdict.protocol_hash),
        ("earlier protocols that met this suspect", verdict.earlier_protocols),
        ("method version", verdict.method_version),
        ("schema of verdict.json", verdict.schema_),
        ("started (UTC)", manifest["created"]),
        (
            "seeds",
            "; ".join(f"{of}: {_join_names(map(str, n))}" for of, n in manifest["seeds"].items()),
        ),
        *((f"version of {name}", v) for name, v in sorted(manifest["versions"].items())),
        *((name.replace("_", " "), str(v)) for name, v in sorted(manifest["hardware"].items())),
    ]
    return Table("Made with", ("", ""), rows)
