"""Records of a run directory's files: reads the manifest, refusing other formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from doublebind.schema.errors import RunError
from doublebind.schema.evidence import ReplacementEvidence
from doublebind.schema.hashing import Record
from doublebind.schema.protocol import FORMAT, Manifest

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


def read_manifest(run: Path) -> Manifest:
    """Return the manifest of the run directory `run`.

    Raises:
        FileNotFoundError: If there is none.
        OSError, ValueError: If it cannot be read.
        RunError: If the run has another format than this version of doublebind reads.
    """
    path = run / MANIFEST
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    if isinstance(content, dict) and content.get("format") != FORMAT:
        written = content.get("format", 1)
        versions = content.get("versions")
        version = versions.get("doublebind") if isinstance(versions, dict) else None
        reader = f"doublebind {version}" if version else "the doublebind that wrote it"
        raise RunError(
            f"{path}: format {written}, this doublebind reads format {FORMAT}; read it with "
            f"{reader}, or rerun the study with another --out"
        )
    return Manifest.model_validate_json(text)
