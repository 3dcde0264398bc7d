"""Records of a run directory's files: checks its format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from doublebind.runs.files import read_text
from doublebind.schema.errors import RunError
from doublebind.schema.evidence import ReplacementEvidence
from doublebind.schema.hashing import Record
from doublebind.schema.protocol import FORMAT
from doublebind.schema.strict_json import parse_json

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


# --- files without a record of their own: what their readers rely on -----------------------------


class _Part(BaseModel):
    """Part of a file; keys that nothing reads may hold anything."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class _Drop(_Part):
    by: str


class _Screen(_Part):
    policy: str
    candidates: int
    kept: int
    dropped: list[_Drop]


class _Checks(_Part):
    sampled: int
    kept: int
    truncated: float | None = None
    dropped: list[_Drop]


class _Cell(_Part):
    teacher: str
    student: str
    recipe: str
    seed: int
    marks: dict[Annotated[str, Field(pattern=r"^[0-9]{1,15}$")], str] = {}
    screen: _Screen | None = None
    checks: _Checks | None = None


class _Turn(_Part):
    role: str
    content: str


class _TranscriptLine(_Part):
    audit: str
    endpoint: str
    item: str
    messages: list[_Turn]
    key: str
    value: float | None
    transcript: str


class _Effect(_Part):
    value: float


class _Lead(_Part):
    name: str
    text: str
    students: int
    n: int = 0
    m0: float | None = None
    suspect: float | None = None
    its_students: float | None = None
    references: float | None = None
    their_students: float | None = None
    n_references: int = 0
    n_at_or_above: int = 0
    forms: dict[str, _Effect] = {}
    missing: str = ""


class _OwnRound(_Part):
    excess: dict[str, float]
    suggested: dict[str, list[str]]
    p_value: float | None = None
    n_at_or_above: int = 0
    n_references: int = 0


class _Followup(_Part):
    suspect: str
    note: str
    leads: list[_Lead]
    own_round: _OwnRound


_CELL = TypeAdapter(_Cell)
_TRANSCRIPT_LINE = TypeAdapter(_TranscriptLine)
_FOLLOWUP = TypeAdapter(_Followup)
_SHAPES = TypeAdapter(dict[str, dict[str, Annotated[float, Field(allow_inf_nan=False)]]])


def parse_cell(text: str) -> dict[str, Any]:
    """Return the content of a file of `cells/`; raise a `ValueError` if it is not one."""
    return _parse(_CELL, text)


def parse_transcript_line(text: str) -> dict[str, Any]:
    """Return one line of `transcripts/*.jsonl`; raise a `ValueError` if it is not one."""
    return _parse(_TRANSCRIPT_LINE, text)


def parse_followup(text: str) -> dict[str, Any]:
    """Return the content of `followup.json`; raise a `ValueError` if it is not one."""
    return _parse(_FOLLOWUP, text)


def parse_shapes(text: str) -> dict[str, dict[str, float]]:
    """Return the content of `shapes.json`; raise a `ValueError` if it is not one."""
    return _parse(_SHAPES, text)


def _parse(adapter: TypeAdapter[Any], text: str) -> Any:
    """Return the content of a JSON text if `adapter` accepts it."""
    content = parse_json(text)
    adapter.validate_python(content)
    return content


def describe_error(error: Exception) -> str:
    """Return why a file cannot be read, in one line that names the key and the value."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "(top level)"
        return f"`{key[:200]}`: {first['msg']}, got {repr(first['input'])[:80]}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), type(error).__name__)


# --- the format ----------------------------------------------------------------------------------


def check_format(run: Path) -> None:
    """Check that this version of doublebind reads the run directory `run`.

    A manifest that is missing or unreadable passes: whoever reads it reports that.

    Raises:
        RunError: If the run has another format.
    """
    path = run / MANIFEST
    try:
        content = parse_json(read_text(run, MANIFEST))
    except (OSError, ValueError):
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
