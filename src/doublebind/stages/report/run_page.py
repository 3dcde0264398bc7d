"""Builds the page of a run: which table and figure stands under which heading."""

from __future__ import annotations

import json
from typing import Any

import yaml
from markupsafe import Markup

from doublebind.schema.score_settings import get_other_score
from doublebind.schema.verdict import Verdict
from doublebind.stages.report import figures, replacement
from doublebind.stages.report.hostile_text import shorten
from doublebind.stages.report.run_content import RunContent, select_labels
from doublebind.stages.report.tables import followup, scores
from doublebind.stages.report.tables import run as run_tables
from doublebind.stages.report.tables import verdict as verdict_tables
from doublebind.stages.report.templating import render_template
from doublebind.stages.report.transcripts import pack_transcripts

_ORACLE_CAPTION = "Contexts that need the organism's key: reported, never scored"


def render_run_page(run: RunContent) -> str:
    """Return `report.html`: one page that needs no network and trusts no text it shows.

    Equal records give equal pages, byte for byte.
    """
    suspect = next(iter(select_labels(run.evidence, "suspect")), run.verdict.suspect)
    transcripts = pack_transcripts(run)
    return render_template(
        "report.html.j2",
        suspect=shorten(suspect),
        evidence=run.evidence,
        verdict=run.verdict,
        protocol=run.manifest.protocol,
        shift_unit="log-odds" if run.manifest.protocol.score.kind == "adjusted" else "probability",
        other_score=get_other_score(run.manifest.protocol.score).kind,
        **_build_tables(run),
        **_draw_figures(run),
        **_build_replacement(run),
        **_build_sources(run),
        transcripts=transcripts,
        # ASCII without `<`, `>` and `&`: nothing in it can end the element that holds it.
        transcript_data=Markup(transcripts.data),
    )


def _build_tables(run: RunContent) -> dict[str, Any]:
    evidence = run.evidence
    gates = scores.tabulate_role_means(run.scores, evidence, "gate", "Capability and coherence")
    return {
        "numbers": verdict_tables.collect_numbers(run),
        "secondary": verdict_tables.collect_secondary_numbers(run),
        "posteriors": verdict_tables.describe_posteriors(evidence.likelihood),
        "specificity": verdict_tables.tabulate_specificity(evidence),
        "transfer": verdict_tables.tabulate_transfer(evidence.transfer),
        "baselines": verdict_tables.tabulate_methods(run),
        "missing": run_tables.tabulate_missing(run.reasons),
        "audits": run_tables.tabulate_audits(evidence, run.reasons),
        "endpoints": run_tables.tabulate_endpoints(run),
        "teachers": run_tables.tabulate_teachers(run),
        "match": run_tables.tabulate_match(evidence, run.shapes),
        "recipes": run_tables.describe_recipes(run.manifest.protocol),
        "score_endpoints": run_tables.describe_score_endpoints(run.manifest.protocol),
        "provenance": run_tables.tabulate_provenance(run.manifest, run.verdict),
        "organisms": select_labels(evidence, "organism"),
        "gates": gates,
        "oracle": scores.tabulate_role_means(run.scores, evidence, "oracle", _ORACLE_CAPTION),
        "unscored": scores.tabulate_unscored(run.scores),
        "dropped": scores.tabulate_dropped(run.students, run.manifest),
        "followup_tables": followup.tabulate_followup(run.followup) if run.followup else (),
        "followup_note": run.followup["note"] if run.followup else "",
    }


def _draw_figures(run: RunContent) -> dict[str, Any]:
    """Return the page's figures, each with its data, or with why it cannot be drawn."""
    evidence, protocol = run.evidence, run.manifest.protocol
    trajectories = scores.compute_trajectories(run.scores, protocol)
    direct_audit = {
        label: trajectory
        for label in select_labels(evidence, "suspect")
        if (trajectory := scores.compute_direct_audit(run.scores, label, protocol)) is not None
    }
    return {
        "distribution": figures.draw_distribution(evidence, run.reasons),
        "capability_vs_misalignment": figures.draw_capability_vs_misalignment(
            evidence, trajectories, direct_audit
        ),
        "endpoint_scores": figures.draw_endpoint_scores(
            evidence, trajectories, protocol.scale_floor, run.reasons
        ),
        "endpoint_strips": figures.draw_endpoint_strips(evidence, trajectories),
        "dose_curves": figures.draw_dose_curves(evidence, trajectories),
        "methods_compared": figures.draw_methods_compared(
            evidence, run.verdict.incrimination.alpha
        ),
    }


def _build_replacement(run: RunContent) -> dict[str, Any]:
    """Return the section of the replacement horn; its parts are empty where there is none."""
    decision, evidence = run.verdict.replacement, run.replacement
    frontier = evidence and replacement.draw_recipe_frontier(
        evidence.recipe_results, evidence.recipe, evidence.margin
    )
    return {
        "replacement": decision and verdict_tables.tabulate_replacement(decision, run.reasons),
        "recipe_frontier": [frontier] if frontier else [],
        "replacement_tables": replacement.build_tables(evidence) if evidence else [],
    }


def _build_sources(run: RunContent) -> dict[str, Any]:
    """Return what repeats the run: study, protocol, version and recorded verdict."""
    study, protocol = run.manifest.study, run.manifest.protocol.model_dump(mode="json")
    return {
        "version": run.manifest.versions.get("doublebind", "of an unknown version"),
        "study": yaml.safe_dump(study, sort_keys=False, allow_unicode=True, width=100),
        "verdict_json": _dump_verdict(run.verdict),
        "protocol_json": json.dumps(protocol, indent=1, ensure_ascii=False),
    }


def _dump_verdict(verdict: Verdict) -> str:
    """Return the content of `verdict.json`; the keys of the replacement horn are always there."""
    content = verdict.model_dump(mode="json", exclude_none=True)
    content = content | {name: content.get(name) for name in ("replacement", "horn")}
    return json.dumps(content, indent=1, ensure_ascii=False)
