"""The records that a run's page is built from, and which teacher has which role in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from doublebind.schema.evidence import Evidence, ReplacementEvidence
from doublebind.schema.protocol import Manifest
from doublebind.schema.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("suspect", "reference", "organism")


class RunContent(NamedTuple):
    """What the page of a run is built from."""

    manifest: Manifest
    evidence: Evidence
    verdict: Verdict
    scores: pd.DataFrame
    """Columns as in `SCORE_COLUMNS`."""
    shapes: Mapping[str, Mapping[str, float]]
    """Teacher label -> feature -> value."""
    students: Sequence[Mapping[str, Any]]
    """Entries of `cells/`: `teacher` and `student` (content keys), `recipe`, `seed`; optionally
    `screen` and `checks`, the counts of dropped prompts and answers."""
    transcripts: Mapping[str, Sequence[Mapping[str, Any]]]
    """Content key of a model -> lines of its `transcripts.jsonl`; M0's key is the protocol's
    `student`."""
    replacement: ReplacementEvidence | None = None
    """Absent where the study has no replacement horn."""
    followup: Mapping[str, Any] | None = None
    """Content of `followup.json`; absent where there was no follow-up."""

    @property
    def reasons(self) -> dict[str, str]:
        """Why each absent number is absent, by its path in `verdict.json`."""
        return {**self.evidence.missing, **self.verdict.missing}


def select_labels(evidence: Evidence, role: str) -> list[str]:
    """Return the teachers of one role, in the evidence's order."""
    return [label for label, each in evidence.roles.items() if each == role]
