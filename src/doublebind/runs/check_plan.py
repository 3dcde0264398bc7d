"""Compares a run's artefacts and students with the keys that its protocol gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from doublebind.runs.compare import find_differences
from doublebind.runs.measurements import describe_student
from doublebind.runs.recorded_plan import RecordedPlan, RecordedReplacement
from doublebind.runs.records import MANIFEST, ReplacementRecord
from doublebind.schema.protocol import Manifest
from doublebind.study.plan import Plan, list_artefacts

_DROPS = frozenset(("screen", "checks", "treatments"))
"""Parts of a student's record that follow from its artefacts, not from keys."""
_ABSENCE = "absent"
"""Why a student could not be made: in its record where nothing was left to distil."""
Artefacts = Mapping[str, Mapping[str, str]]
"""Kind -> key -> description."""


def find_artefact_mismatches(
    manifest: Manifest,
    replacement: ReplacementRecord | None,
    cells: Mapping[str, Mapping[str, Any]],
    recorded: RecordedPlan,
    searched: RecordedReplacement | None,
) -> Iterator[tuple[str, str]]:
    """Yield file and problem for each artefact and student that the protocol does not give.

    Args:
        manifest: Of the run.
        replacement: Record of the search for a replacement.
        cells: Name of a file in `cells/` or `replacement/` -> the student's record.
        recorded: The plan that the protocol gives.
        searched: The plans of the search for a replacement.
    """
    built = {teacher.content_key for teacher in recorded.own_teachers}
    built |= {teacher.content_key for teacher in manifest.selection_teachers}
    lists: list[tuple[str, Artefacts, list[Plan], bool]]
    lists = [(MANIFEST, manifest.artefacts, [recorded.plan], False)]
    if searched is not None and replacement is not None:
        assert manifest.protocol.replacement is not None
        further = manifest.protocol.replacement.further_training is not None
        plans = [searched.competition, searched.certification]
        lists.append(("replacement.json", replacement.artefacts, plans, further))
        if replacement.student != searched.delivered.sha256:
            yield "replacement.json", "`student` is not the one that the scores choose"
    for name, listed, plans, further in lists:
        for text in _compare_keys(listed, list_artefacts(*plans), further):
            yield name, text
        if not set(listed.get("teacher", {})) <= built:
            yield name, "`artefacts.teacher`: holds a teacher that is none of the study's"
    yield from _compare_students(cells, recorded, searched)


def _compare_keys(listed: Artefacts, planned: Artefacts, further: bool) -> Iterator[str]:
    """Yield the kinds whose keys differ; `further`: models were trained further."""
    for kind in sorted({*listed, *planned} - {"teacher"}):
        ours, expected = dict(listed.get(kind, {})), dict(planned.get(kind, {}))
        if further and kind in ("further", "base"):
            # How a student is trained further depends on how the suspect was built.
            ours = {key: note for key, note in ours.items() if key in expected}
        if ours != expected:
            yield f"`artefacts.{kind}`: the keys are not those that the protocol gives"


def _compare_students(
    cells: Mapping[str, Mapping[str, Any]],
    recorded: RecordedPlan,
    searched: RecordedReplacement | None,
) -> Iterator[tuple[str, str]]:
    """Yield students that are missing, too many, or recorded with other labels or keys."""
    plans = {"cells": [recorded.plan]}
    if searched is not None:
        plans["replacement"] = [searched.competition, searched.certification]
    expected = {
        f"{folder}/{student.train.content_key}.json": student
        for folder, each in plans.items()
        for plan in each
        for student in plan.students
    }
    for name in sorted({*expected, *cells}):
        if name not in cells:
            yield name, "missing, and the protocol asks for this student"
        elif name not in expected:
            yield name, "is no cell of this run's manifest"
        else:
            made = {*_DROPS, _ABSENCE}
            stored = {key: value for key, value in cells[name].items() if key not in made}
            for place, a, b in find_differences(stored, describe_student(expected[name])):
                yield name, f"`{place}` is {a!r:.100}, recomputed {b!r:.100}"
            if not cells[name].keys() >= _DROPS:
                yield name, f"lacks one of {', '.join(sorted(_DROPS))}"
