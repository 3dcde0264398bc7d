"""Reads a run directory: manifest, scores, evidence, verdict, transcripts, ledger.

Trusts what it reads; `runs.verify` checks it.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from doublebind.execution.ledger import read_ledger
from doublebind.runs.files import check_file, list_files, read_file, read_text
from doublebind.runs.records import (
    ReplacementRecord,
    check_format,
    describe_error,
    parse_cell,
    parse_followup,
    parse_shapes,
    parse_transcript_line,
)
from doublebind.runs.seal import FOLLOWUP, SEAL
from doublebind.schema.errors import DoublebindError, RunError
from doublebind.schema.evidence import Evidence, ReplacementEvidence
from doublebind.schema.hashing import Record, optional_field
from doublebind.schema.model_source import LedgerEntry
from doublebind.schema.protocol import Manifest
from doublebind.schema.score_table import M0, SCORE_COLUMNS
from doublebind.schema.strict_json import split_json_lines
from doublebind.schema.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


class AuditedModel(Record):
    """A model that was audited in a run."""

    content_key: str = Field(serialization_alias="key")
    kind: Literal["m0", "teacher", "student"]
    teacher: str
    """Label of the teacher, or `M0`."""
    recipe: str | None = optional_field()
    seed: int | None = optional_field()
    step: int | None = optional_field()
    """Of a checkpoint."""


class RunStatus(Record):
    """How far a run is."""

    run: str
    ended: bool
    protocol_hash: str
    cells: dict[str, dict[str, int]]
    """Kind of artefact -> how many are needed, done, started, failed and waiting."""
    nodes: dict[str, dict[str, int]]
    """Host -> how many artefacts it finished, and how many failed there."""
    failures: tuple[str, ...]
    """Last error of every artefact that failed and was not made since."""
    models: tuple[AuditedModel, ...]


class Run:
    """A run directory, read lazily.

    Example:
        ```python
        run = doublebind.Run("runs/mine")
        run.verdict.incrimination.decision
        run.scores.groupby(["model_kind", "endpoint"])["value"].mean()
        run.columns["value"]                       # what a column of the scores means
        run.transcripts(run.students[0]["student"])   # what that student answered
        ```
    """

    columns: Mapping[str, str] = SCORE_COLUMNS
    """Column of `scores` -> what it means."""

    def __init__(self, path: str | Path) -> None:
        """Open the run at `path`.

        Raises:
            RunError: If there is no manifest, or it cannot be read.
        """
        self.path = Path(path)
        check_format(self.path)
        self.manifest = self._read("manifest.json", Manifest.model_validate_json)

    def __repr__(self) -> str:
        """Name the run and how it ended."""
        state = self.verdict.incrimination.decision if self.ended else "has not ended"
        return f"Run({str(self.path)!r}): {state}"

    @property
    def ended(self) -> bool:
        """Whether the run was closed: its seal, which is written last, is there."""
        return (self.path / SEAL).exists()

    def _read(self, name: str, parse: Callable[[str], T]) -> T:
        path = self.path / name
        try:
            return parse(read_text(self.path, name))
        except FileNotFoundError:
            if name == "manifest.json":
                raise RunError(
                    f"{path}: missing; not a run directory, name what `doublebind run` was given "
                    "as --out"
                ) from None
            raise RunError(f"{path}: missing; the run has not ended, rerun it to resume") from None
        except RunError:
            raise
        except (ValueError, OSError) as error:
            raise _make_read_error(path, error) from None

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every item of every audited model, one a row, with the columns of `Run.columns`.

        `value` is in [0, 1], and null where `unscored_reason` says why.

        Raises:
            RunError: If the run has not ended, or the file cannot be read.
        """
        import pandas as pd

        path = self.path / "scores.parquet"
        try:
            scores = pd.read_parquet(io.BytesIO(read_file(self.path, path.name)))
        except FileNotFoundError:
            raise RunError(f"{path}: missing; the run has not ended, rerun it to resume") from None
        except RunError:
            raise
        except Exception as error:  # what a parquet reader raises on damaged bytes is not bounded
            raise _make_read_error(path, error) from None
        if (problem := find_column_problem(scores)) is not None:
            raise RunError(f"{path}: {problem}; restore it or rerun")
        return scores

    @cached_property
    def evidence(self) -> Evidence:
        """Statistics of the scores."""
        return self._read("evidence.json", Evidence.model_validate_json)

    @cached_property
    def verdict(self) -> Verdict:
        """The decisions, with reasons."""
        return self._read("verdict.json", Verdict.model_validate_json)

    @cached_property
    def replacement(self) -> ReplacementEvidence | None:
        """Bounds on the fresh students; `None` where the study asks for no replacement."""
        if self.manifest.protocol.replacement is None:
            return None
        return self._read("replacement.json", ReplacementRecord.model_validate_json).evidence

    @property
    def shapes(self) -> dict[str, dict[str, float]]:
        """Teacher label -> feature -> value, for the match table."""
        return self._read("shapes.json", parse_shapes)

    @property
    def followup(self) -> dict[str, Any] | None:
        """Results of the follow-up, if there was one. No part of the verdict."""
        return self._read(FOLLOWUP, parse_followup) if check_file(self.path, FOLLOWUP) else None

    @property
    def ledger(self) -> list[LedgerEntry]:
        """Every event of the run, failures too."""
        check_file(self.path, "ledger.jsonl")
        path = self.path / "ledger.jsonl"
        try:
            return read_ledger(path)
        except OSError as error:
            raise _make_read_error(path, error) from None

    @property
    def students(self) -> list[dict[str, Any]]:
        """One entry per student made in this run, in the manifest's order of teachers.

        Keys: `student`, its content key; `teacher`, the teacher's; `label`, `role` and `family` of
        the teacher; `recipe`; `seed`; the keys of its inputs (`prompts`, `rollouts`,
        `targets`, `audit`); `marks`, where the recipe asks for checkpoints: step -> key of the
        checkpoint; `screen` and `checks`, the prompts and answers that were dropped, and why. A
        panel's students have no entry: another study trained them.
        """
        order = {
            teacher.content_key: (i, teacher) for i, teacher in enumerate(self.manifest.teachers)
        }
        students: list[tuple[int, str, int, dict[str, Any]]] = []
        for name in list_files(self.path, "cells"):
            if not name.endswith(".json"):
                continue
            cell = self._read(name, parse_cell)
            place, teacher = order.get(cell["teacher"], (len(order), None))
            if teacher is None:
                raise RunError(
                    f"{self.path / name}: its teacher is not in the manifest; rerun the study"
                )
            names = {"label": teacher.label, "role": teacher.role, "family": teacher.family}
            students.append((place, cell["recipe"], cell["seed"], cell | names))
        return [cell for *_, cell in sorted(students, key=lambda row: row[:3])]

    def has_transcripts(self, key: str) -> bool:
        """Return whether the model with content key `key` was audited in this run."""
        return check_file(self.path, f"transcripts/{key}.jsonl")

    def find_model(self, model: str) -> str:
        """Return the content key of an audited model.

        Args:
            model: Its key or the first characters of it, a teacher's label, or `M0`.

        Raises:
            RunError: If no audited model of the run has that name, or several have.
        """
        by_label = {t.label: t.content_key for t in self.manifest.teachers}
        by_label[M0] = self.manifest.protocol.student
        names = [n for n in list_files(self.path, "transcripts") if n.endswith(".jsonl")]
        keys = {PurePosixPath(name).stem for name in names}
        if model in by_label:
            if by_label[model] in keys:
                return by_label[model]
            raise RunError(
                f"{model}: was not audited in this run (its scores are a panel's); "
                "`doublebind status` lists the models that were"
            )
        matches = sorted(key for key in keys if model and key.startswith(model))
        if len(matches) != 1:
            raise RunError(
                f"{self.path}: {model!r} matches {len(matches) or 'no'} models; "
                "`doublebind status` lists them"
            )
        return matches[0]

    def transcripts(self, model: str) -> list[dict[str, Any]]:
        """Return the audit transcripts of one model, one entry per item; hostile text.

        Keys: `audit`, `endpoint`, `item`, `messages` (the question), `key` (the option whose
        probability is the value), `value`, `transcript` (for built-in audits a JSON list of
        [option, probability]).

        Args:
            model: Its key or the first characters of it, a teacher's label, or `M0`.

        Raises:
            RunError: If the run has no such model, or the file cannot be read.
        """
        name = f"transcripts/{self.find_model(model)}.jsonl"
        path = self.path / name
        try:
            lines = split_json_lines(read_text(self.path, name))
        except RunError:
            raise
        except (ValueError, OSError) as error:
            raise _make_read_error(path, error) from None
        return [_parse_line(f"{path}:{number}", line) for number, line in lines]

    def status(self) -> RunStatus:
        """Return how far the run is, and which models have transcripts."""
        ledger = self.ledger
        latest = {entry.artefact_key: entry for entry in ledger}
        cells: dict[str, dict[str, int]] = {}
        for kind, keys in self.manifest.artefacts.items():
            states = Counter(latest[key].status if key in latest else "waiting" for key in keys)
            cells[kind] = {"needed": len(keys), **dict(sorted(states.items()))}
        nodes: dict[str, Counter[str]] = {}
        for entry in ledger:
            if entry.node and entry.status != "started":
                nodes.setdefault(entry.node, Counter())[entry.status] += 1
        failures = [entry for entry in latest.values() if entry.status == "failed"]
        return RunStatus(
            run=str(self.path),
            ended=self.ended,
            protocol_hash=self.manifest.protocol_hash,
            cells=cells,
            nodes={node: dict(states) for node, states in sorted(nodes.items())},
            failures=tuple(f"{e.kind} {e.artefact_key[:12]}: {e.error}" for e in failures),
            models=tuple(m for m in self._list_models() if self.has_transcripts(m.content_key)),
        )

    def _list_models(self) -> Iterator[AuditedModel]:
        yield AuditedModel(content_key=self.manifest.protocol.student, kind="m0", teacher=M0)
        for teacher in self.manifest.teachers:
            yield AuditedModel(
                content_key=teacher.content_key, kind="teacher", teacher=teacher.label
            )
        for student in self.students:
            names = {"teacher": student["label"], "recipe": student["recipe"]}
            names |= {"kind": "student", "seed": student["seed"]}
            yield AuditedModel(content_key=student["student"], **names)
            for step, key in student.get("marks", {}).items():
                yield AuditedModel(content_key=key, step=int(step), **names)


def _parse_line(where: str, line: str) -> dict[str, Any]:
    try:
        return parse_transcript_line(line)
    except ValueError as error:
        raise _make_read_error(where, error) from None


def find_column_problem(scores: pd.DataFrame) -> str | None:
    """Return what keeps a table from being a table of scores; `None` where nothing does."""
    import pandas as pd

    lacking = [name for name in SCORE_COLUMNS if name not in scores.columns]
    if lacking or not scores.columns.is_unique:
        return f"no table of scores (without {', '.join(lacking) or 'columns of their own'})"
    for name in ("seed", "round", "step"):
        if not pd.api.types.is_integer_dtype(scores[name].dtype):
            return f"`{name}` holds {scores[name].dtype}, not integers"
    for name in ("teacher", "model_kind", "recipe", "audit", "endpoint", "role", "split", "item"):
        if not all(isinstance(each, str) for each in scores[name]):
            return f"`{name}` holds something else than text"
    values: Any = scores["value"]
    if not pd.api.types.is_float_dtype(values.dtype):
        return f"`value` holds {values.dtype}, not numbers"
    if not bool(values.dropna().between(0, 1).all()):
        return "`value` holds a number outside [0, 1]"
    return None


@contextmanager
def explain_contradictions(run: Path) -> Iterator[None]:
    """Turn an error in what is computed from readable files of `run` into a `RunError`.

    Each file is checked where it is read; what one file says of another is not.
    """
    try:
        yield
    except DoublebindError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        reason = f"{type(error).__name__}: {describe_error(error)}"[:300]
        raise RunError(
            f"{run}: its files contradict one another ({reason}); `doublebind verify` names the "
            "file, restore it or rerun"
        ) from error


def _make_read_error(path: Path | str, error: Exception) -> RunError:
    return RunError(f"{path}: cannot be read ({describe_error(error)}); restore it or rerun")
