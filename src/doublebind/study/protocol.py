"""Freezes every choice of a study as one hashable record, the protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from doublebind.packs.pack import Pack
from doublebind.schema.content import Item, Split
from doublebind.schema.errors import PackError
from doublebind.schema.hashing import to_canonical_json
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol, ReplacementProtocol
from doublebind.schema.recipe import Recipe
from doublebind.schema.score_table import split_contrast
from doublebind.schema.study import Study
from doublebind.stages.audits.protocol import (
    Audit,
    describe_audit,
    identify_audit,
    list_questions,
)
from doublebind.stages.verdict.outcome import METHOD_VERSION


def freeze_protocol(
    study: Study,
    pack: Pack,
    audits: Sequence[Audit],
    teachers: Sequence[Teacher],
    *,
    recipes: Sequence[Recipe],
    student: str,
    revisions: Mapping[str, int],
    jobs: str | None = None,
    panel: str | None = None,
    replacement: ReplacementProtocol | None = None,
) -> Protocol:
    """Return every choice of a study as one hashable record.

    Teachers enter by the content keys of their models: renaming a file changes no hash.

    Args:
        study: The study.
        pack: Its pack.
        audits: Its audits, those of Python included.
        teachers: Suspect, references and organisms.
        recipes: Those of the study, with content hashes in place of names.
        student: Content key of M0.
        revisions: Stage -> revision.
        jobs: Hash of the keys of all jobs.
        panel: Hash of the panel, if the references are one's.
        replacement: The part of the horn `replace`.

    Raises:
        PackError: If a score endpoint has no auditable item that the study's audits ask.
    """
    score_endpoints = select_auditable_endpoints(
        pack, study.policy.endpoints or pack.score_endpoints, audits, "audit"
    )
    auditable = _list_auditable_endpoints(audits, pack.items("audit"))
    placebos = {trait.name for trait in pack.traits if trait.kind == "placebo"}
    by_trait = {
        name: tuple(sorted(e for e in auditable if e.partition("/")[2] == name))
        for name in sorted(placebos)
    }
    by_role = {
        role: tuple(t.content_key for t in teachers if t.role == role)
        for role in ("suspect", "reference", "organism")
    }
    return Protocol(
        method_version=METHOD_VERSION,
        pack=pack.name,
        pack_hash=pack.sha256,
        score_endpoints=score_endpoints,
        placebo_endpoints={name: names for name, names in by_trait.items() if names},
        score=study.policy.score,
        min_effect=study.policy.min_effect,
        scale_floor=study.policy.scale_floor,
        alpha=study.policy.alpha,
        min_controls=study.policy.min_controls,
        recipes=tuple(recipe.model_dump(mode="json") for recipe in recipes),
        audits=list_audit_names(audits),
        audit_settings=list_audit_settings(audits),
        seeds=study.seeds,
        dtype=study.dtype,
        horns=study.horns,
        revisions=dict(revisions),
        student=student,
        references=by_role["reference"],
        organisms=by_role["organism"],
        suspect=by_role["suspect"][0],
        baselines=study.baselines,
        panel=panel,
        replacement=replacement,
        engine=study.engine.kind if study.engine else None,
        device=study.device,
        shape=study.shape,
        families=_number_families(teachers),
        jobs=jobs,
    )


def _number_families(teachers: Sequence[Teacher]) -> tuple[int, ...]:
    """Return the number of each reference's family, then of each organism's."""
    families = [t.family for role in ("reference", "organism") for t in teachers if t.role == role]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(families))}
    return tuple(numbers[name] for name in families)


def select_auditable_endpoints(
    pack: Pack, endpoints: Mapping[str, Sequence[str]], audits: Sequence[Audit], split: Split
) -> dict[str, tuple[str, ...]]:
    """Return score endpoint -> those of its parts for which `audits` ask an auditable item.

    Raises:
        PackError: If a score endpoint has none.
    """
    auditable = _list_auditable_endpoints(audits, pack.items(split))
    selected = {
        name: tuple(e for e in parts if auditable.issuperset(split_contrast(e)))
        for name, parts in endpoints.items()
    }
    problems = [
        f"pack {pack.name}: score endpoint `{name}` ({', '.join(endpoints[name])}) has no "
        f"auditable item of split {split} that the study's audits ask; change `audits` or "
        "`policy.endpoints`"
        for name, parts in selected.items()
        if not parts
    ]
    if problems:
        raise PackError(*problems)
    return selected


def _list_auditable_endpoints(audits: Sequence[Audit], items: Sequence[Item]) -> set[str]:
    return {
        question.endpoint
        for audit in audits
        for question in list_questions(audit, items)
        if question.item.role == "auditable"
    }


def list_audit_names(audits: Sequence[Audit]) -> tuple[str, ...]:
    """Return the names of audits in a protocol: identity and version."""
    return tuple(f"{'.'.join(identify_audit(audit))}@{audit.version}" for audit in audits)


def list_audit_settings(audits: Sequence[Audit]) -> tuple[tuple[str, str, dict[str, Any]], ...]:
    """Return module, name and fields of audits, as plain JSON: what enters their scores' keys."""
    return tuple(json.loads(to_canonical_json([describe_audit(audit) for audit in audits])))
