"""Says what stands on a run's page: which table and figure, under which heading.

Knows the order in which a run is told. Does not know how a value is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from markupsafe import Markup

from doublebind.schema.evidence import Evidence, ReplacementEvidence
from doublebind.schema.verdict import Verdict
from doublebind.stages.report import figures as drawings
from doublebind.stages.report import replacement as second
from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.tables import followup as asked_again
from doublebind.stages.report.tables import run as tables
from doublebind.stages.report.tables import scores as measurements
from doublebind.stages.report.tables import verdict as numbers
from doublebind.stages.report.tables.run import Absent, Cell
from doublebind.stages.report.templating import format_number, render_template
from doublebind.stages.report.transcripts import pack_transcripts

if TYPE_CHECKING:
    import pandas as pd

DECISIONS = {
    "incriminated": "Incriminated",
    "not_incriminated": "Not incriminated: no evidence found",
    "inconclusive": "Inconclusive",
}
REPLACEMENT_DECISIONS = {
    "within_margin": "within the margin",
    "not_within_margin": "not within the margin",
    "inconclusive": "inconclusive",
}
"""Decisions of the replacement horn; none of them speaks of anything beyond the margin."""

HORN_SENTENCES = {
    "incriminated": "the suspect is incriminated, and no replacement was shown",
    "replacement_within_margin": "a replacement within the margin, and no incrimination",
    "both": "the suspect is incriminated, and a replacement is within the margin",
    "neither": "neither incrimination nor a replacement",
}


class Tile(NamedTuple):
    """One of the few numbers that stand beside the decision."""

    name: str
    value: Cell
    remark: str


def render_run_page(
    *,
    manifest: Mapping[str, Any],
    evidence: Evidence,
    verdict: Verdict,
    scores: pd.DataFrame,
    shapes: Mapping[str, Mapping[str, float]],
    cells: Sequence[Mapping[str, Any]],
    transcripts: Mapping[str, Sequence[Mapping[str, Any]]],
    replacement: ReplacementEvidence | None = None,
    followup: Mapping[str, Any] | None = None,
) -> str:
    """Return the page; see the package's door."""
    packed = pack_transcripts(
        transcripts, scores=scores, evidence=evidence, manifest=manifest, cells=cells
    )
    return render_template(
        "report.html.j2",
        **_build_texts(manifest, evidence, verdict),
        **_draw_figures(manifest, evidence, verdict, scores),
        field=second.draw_recipe_frontier(
            replacement.recipe_results, replacement.recipe, replacement.margin
        )
        if replacement
        else "",
        second_tables=second.build_tables(replacement) if replacement else (),
        gates=measurements.tabulate_role_means(
            scores, evidence, "gate", "Capability and coherence"
        ),
        oracle=measurements.tabulate_role_means(
            scores,
            evidence,
            "oracle",
            "Contexts that need the organism's key: reported, never scored",
        ),
        unscored=measurements.tabulate_unscored(scores),
        match=tables.tabulate_match(evidence, shapes),
        dropped=measurements.tabulate_dropped(cells, manifest),
        followed=asked_again.build_tables(followup),
        followup_note=followup["note"] if followup else "",
        transcripts=packed,
        # ASCII without `<`, `>` and `&`: nothing in it can end the element that holds it.
        data=Markup(packed.data),
    )


def _build_texts(
    manifest: Mapping[str, Any], evidence: Evidence, verdict: Verdict
) -> dict[str, Any]:
    """Return what the page says of evidence and verdict in words and rows."""
    why = tables.collect_reasons(evidence, verdict)
    suspect = next(iter(tables.select_labels(evidence, "suspect")), verdict.suspect)
    recorded = verdict.model_dump(mode="json")
    replaced: dict[str, Any] | None = recorded["replacement"]
    return {
        "second": replaced
        and REPLACEMENT_DECISIONS.get(replaced["decision"], str(replaced["decision"])),
        "second_reasons": replaced["reasons"] if replaced else (),
        "replacement": replaced and numbers.tabulate_replacement(replaced, why),
        "horns": recorded["horn"] and HORN_SENTENCES.get(recorded["horn"], str(recorded["horn"])),
        "suspect": shorten(suspect),
        "decision": DECISIONS[verdict.incrimination.decision],
        "verdict": verdict,
        "fragile": _describe_fragility(evidence, verdict, why)
        if "incriminate" in manifest["protocol"]["horns"]
        else "Nothing was asked about incrimination; what was found of a replacement stands below.",
        "tiles": _build_tiles(evidence, verdict, why),
        "numbers": numbers.tabulate_numbers(evidence, verdict),
        "secondary": numbers.tabulate_secondary(evidence, verdict),
        "specificity": numbers.tabulate_specificity(evidence),
        "transfer": numbers.tabulate_transfer(evidence),
        "baselines": numbers.tabulate_methods(evidence, verdict),
        "missing": tables.tabulate_missing(evidence, verdict),
        "direct": tables.tabulate_audits(evidence, verdict),
        "endpoints": tables.tabulate_endpoints(evidence, manifest, why),
        "teachers": tables.tabulate_teachers(evidence, manifest, why),
        "scope": tables.tabulate_scope(manifest, verdict),
        "provenance": tables.tabulate_provenance(manifest, verdict),
        "organisms": tables.select_labels(evidence, "organism"),
        "version": manifest["versions"].get("doublebind", "of an unknown version"),
        "study": yaml.safe_dump(manifest["study"], sort_keys=False, allow_unicode=True, width=100),
        "recorded": _dump_verdict(verdict),
        "protocol": json.dumps(manifest["protocol"], indent=1, ensure_ascii=False),
    }


def _draw_figures(
    manifest: Mapping[str, Any], evidence: Evidence, verdict: Verdict, scores: pd.DataFrame
) -> dict[str, Any]:
    """Return the page's figures, each with its data, or with why it cannot be drawn."""
    why = tables.collect_reasons(evidence, verdict)
    protocol = manifest["protocol"]
    listed = protocol["score_endpoints"]
    along = measurements.compute_trajectories(scores, listed)
    own = {
        label: found
        for label in tables.select_labels(evidence, "suspect")
        if (found := measurements.compute_direct_audit(scores, label, listed)) is not None
    }
    return {
        "distribution": drawings.draw_distribution(evidence, why),
        "planes": drawings.draw_capability_vs_misalignment(evidence, along, own),
        "standing": drawings.draw_endpoint_scores(evidence, along, protocol["scale_floor"], why),
        "strips": drawings.draw_endpoint_strips(evidence, along),
        "doses": drawings.draw_dose_curves(evidence, along),
        "ways": drawings.draw_methods_compared(evidence, verdict.incrimination.alpha),
    }


def _build_tiles(evidence: Evidence, verdict: Verdict, why: Mapping[str, str]) -> list[Tile]:
    """Return the four numbers that a reader needs first."""
    inc, k = verdict.incrimination, evidence.n_at_or_above
    power = inc.power
    return [
        Tile(
            "p-value",
            tables.value_or_absent(inc.p_value, "incrimination.p_value", why),
            f"alpha {inc.alpha:g}, fixed before the first audit",
        ),
        Tile(
            "references as high",
            Absent(why.get("incrimination.p_value", ""))
            if k is None
            else f"{k} of {inc.n_references}",
            f"{inc.n_families} families of benign teachers made alike",
        ),
        Tile(
            "direct audit, p",
            tables.value_or_absent(verdict.direct_audit.p_value, "direct_audit.p_value", why),
            "the same test on the suspect's own answers",
        ),
        Tile(
            "controls detected",
            Absent(why.get("incrimination.power", "")) if power is None else f"{power.value:.0%}",
            "positive controls: teachers with a planted drive"
            if power is None
            else f"of {power.n_controls} planted teachers; lower 95% bound {power.lower_95:.0%}",
        ),
    ]


def _describe_fragility(evidence: Evidence, verdict: Verdict, why: Mapping[str, str]) -> str:
    """Return the first line of a fragile report; empty where the strength is standard."""
    if verdict.strength == "standard":
        return ""
    gamma = tables.value_or_absent(evidence.gamma_at_alpha, "incrimination.gamma_at_alpha", why)
    said = (
        f"Gamma could not be computed ({gamma.reason})."
        if isinstance(gamma, tables.Absent)
        else f"Gamma is {format_number(gamma)}, below 2: a small bias in how the references were chosen "
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


def _dump_verdict(verdict: Verdict) -> str:
    """Return the content of `verdict.json`."""
    kept = verdict.model_dump(mode="json", by_alias=True, exclude_none=True)
    for name in ("replacement", "horn"):
        kept.setdefault(name, None)
    return json.dumps(kept, indent=1, ensure_ascii=False)
