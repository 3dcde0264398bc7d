"""Records of a run directory's files: checks its format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from doublebind.runs.files import read_text
from doublebind.schema.errors import RunError
from doublebind.schema.evidence import ReplacementEvidence
from doublebind.schema.hashing import Record
from doublebind.schema.protocol import FORMAT

MANIFEST = "manifest.json"


class FurtherTrainedModel(NamedTuple):
    """A model that was trained further, by the labels of its score rows."""

    model_kind: str
    recipe: str
    seed: int
    step: int
    content_key: str


class ReplacementRecord(Record):
    """`replacement.json`: the bounds on a replacement, and the artefacts made for it."""

    evidence: ReplacementEvidence
    artefacts: dict[str, dict[str, str]]
    """Kind -> key -> description, for every artefact."""
    student: str | None
    """Content key of the delivered student."""
    further_training: tuple[FurtherTrainedModel, ...] = Field(
        default=(), exclude_if=lambda v: not v
    )
    """Students that were trained further, and M0 trained alike beside each."""


def check_format(run: Path) -> None:
    """Check that this version of doublebind reads the run directory `run`.

    A manifest that is missing or unreadable passes: whoever reads it reports that.

    Raises:
        RunError: If the run has another format.
    """
    path = run / MANIFEST
    try:
        content = json.loads(read_text(run, MANIFEST))
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(content, dict) or content.get("format", 1) == FORMAT:
        return
    if "versions" not in content:  # every manifest of any format names them
        return
    versions = content["versions"]
    version = versions.get("doublebind") if isinstance(versions, dict) else None
    reader = f"doublebind {version}" if version else "the doublebind that wrote it"
    raise RunError(
        f"{path}: format {content.get('format', 1)}, this doublebind reads format {FORMAT}; read "
        f"it with {reader}, or rerun the study with another --out"
    )
