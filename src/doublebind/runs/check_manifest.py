"""Compares a run's manifest with its own protocol."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from doublebind.runs.recorded_plan import is_panel_study
from doublebind.schema.protocol import Manifest, Protocol
from doublebind.schema.study import Study

MAX_AUDITS = 500_000
"""Most audited models of a study that is planned again."""


def find_excess(manifest: Manifest, study: Study) -> str | None:
    """Return why a manifest asks for more than any study; planning it again would take for ever."""
    replacement = manifest.protocol.replacement
    seeds = [study.seeds, manifest.protocol.seeds, study.replace.seeds, study.replace.fresh_seeds]
    seeds += [replacement.seeds, replacement.fresh_seeds] if replacement else []
    n_teachers = len(manifest.teachers) + len(manifest.selection_teachers)
    n_audits = sum(
        n_teachers
        * max(seeds)
        * (1 + len(recipe.training.checkpoints))
        * (1 + sum(t.rounds for t in recipe.treatments if t.kind == "filter"))
        for recipe in (*study.recipes, *study.competing_recipes)
    )
    n_references = getattr(study.references, "n", 0)
    if n_audits > MAX_AUDITS or n_references > MAX_AUDITS:
        return f"`study`: asks for {max(n_audits, n_references)} audits, no study has as many"
    return None


def find_manifest_problems(manifest: Manifest, study: Study) -> Iterator[str]:
    """Compare the manifest's hash, teachers and study with its protocol."""
    protocol = manifest.protocol
    if protocol.hash != manifest.protocol_hash:
        yield f"`protocol_hash` is {manifest.protocol_hash}, the protocol's is {protocol.hash}"
    if (role := _find_role_mismatch(manifest)) is not None:
        yield f"`teachers`: the {role}s are not the protocol's"
    teachers = (*manifest.teachers, *manifest.selection_teachers)
    labels = {teacher.label: teacher.content_key for teacher in teachers}
    keys = {teacher.content_key: teacher.label for teacher in teachers}
    if any(labels[t.label] != t.content_key or keys[t.content_key] != t.label for t in teachers):
        yield "`teachers`: two models have one label, or one model has two"
    if len({t.label for t in manifest.teachers}) < len(manifest.teachers):
        yield "`teachers`: a teacher stands in it twice"
    for name, (ours, theirs) in _list_study_settings(study, protocol).items():
        if ours != theirs:
            yield f"`study.{name}` is not the protocol's"
    if manifest.seeds != {"students": list(range(protocol.seeds))}:
        yield f"`seeds` is {manifest.seeds!r:.60}, the protocol has {protocol.seeds}"


def _find_role_mismatch(manifest: Manifest) -> str | None:
    """Return the first role whose teachers are not the protocol's."""
    protocol, replacement = manifest.protocol, manifest.protocol.replacement
    expected = [
        ("suspect", manifest.teachers, (protocol.suspect,)),
        ("reference", manifest.teachers, protocol.references),
        ("organism", manifest.teachers, protocol.organisms),
    ]
    for role in ("organism", "reference"):
        keys = getattr(replacement, f"{role}s") if replacement else ()
        expected.append((role, manifest.selection_teachers, keys))
    for role, teachers, keys in expected:
        if tuple(t.content_key for t in teachers if t.role == role) != keys:
            return role
    return None


def _list_study_settings(study: Study, protocol: Protocol) -> dict[str, tuple[Any, Any]]:
    """Return setting -> its value in a study, and in the study's protocol."""
    dumped = study.model_dump(mode="json")
    settings: dict[str, tuple[Any, Any]] = {
        name: (dumped.get(name), protocol.model_dump(mode="json")[name])
        for name in ("recipes", "seeds", "dtype", "horns", "baselines")
    }
    for name in ("alpha", "score", "min_effect", "scale_floor", "min_controls"):
        settings[f"policy.{name}"] = getattr(study.policy, name), getattr(protocol, name)
    settings["device"] = study.device, protocol.device
    settings["engine"] = study.engine and study.engine.kind, protocol.engine
    settings["references"] = is_panel_study(study), protocol.panel is not None
    replacement = protocol.replacement
    if replacement is not None:
        competing = tuple(r.model_dump(mode="json") for r in study.competing_recipes)
        settings["replace.recipes"] = competing, replacement.recipes
        settings["policy.margin"] = study.policy.margin, replacement.margin
        for name in ("seeds", "fresh_seeds", "controls"):
            settings[f"replace.{name}"] = getattr(study.replace, name), getattr(replacement, name)
    return settings
