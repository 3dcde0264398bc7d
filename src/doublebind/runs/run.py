"""Reads a run directory: scores, evidence, verdict, cells, transcripts.

Knows the layout on disk. Does not run anything, and does not doubt what it reads: `verification`
does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublebind.execution.ledger import read_ledger
from doublebind.runs.manifest import ReplacementRecord
from doublebind.schema.errors import RunError
from doublebind.schema.evidence import Evidence, ReplacementEvidence
from doublebind.schema.model_source import LedgerEntry
from doublebind.schema.protocol import Manifest
from doublebind.schema.score_table import M0, SCORE_COLUMNS
from doublebind.schema.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd


class Run:
    """A run directory, read lazily.

    Example:
        ```python
        run = doublebind.Run("runs/mine")
        run.verdict.incrimination.decision
        run.scores.groupby(["model_kind", "endpoint"])["value"].mean()
        run.columns["value"]                       # what a column of the scores means
        run.transcripts(run.cells[0]["student"])   # what that student answered
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
        self.manifest: Manifest = self._read("manifest.json", Manifest)

    def __repr__(self) -> str:
        """Name the run and how it ended."""
        ended = (self.path / "verdict.json").exists()
        state = self.verdict.incrimination.decision if ended else "has not ended"
        return f"Run({str(self.path)!r}): {state}"

    def _read(self, name: str, kind: type[Any]) -> Any:
        path = self.path / name
        try:
            return kind.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if name == "manifest.json":
                raise RunError(
                    f"{path}: missing; not a run directory, name what `doublebind run` was given "
                    "as --out"
                ) from None
            raise RunError(f"{path}: missing; the run has not ended, rerun it to resume") from None
        except (ValueError, OSError) as error:
            raise _make_read_error(path, error) from None

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every item of every audited model, one a row.

        The columns are those of `Run.columns`, which says what each means. `value` is in [0, 1],
        and null where `unscored_reason` says why.

        Raises:
            RunError: If the run has not ended, or the file cannot be read.
        """
        import pandas as pd

        path = self.path / "scores.parquet"
        if not path.exists():
            raise RunError(f"{path}: missing; the run has not ended, rerun it to resume")
        try:
            return pd.read_parquet(path)
        except (ValueError, OSError) as error:
            raise _make_read_error(path, error) from None

    @cached_property
    def evidence(self) -> Evidence:
        """What the scores say."""
        return self._read("evidence.json", Evidence)

    @cached_property
    def verdict(self) -> Verdict:
        """What was decided, with reasons."""
        return self._read("verdict.json", Verdict)

    @cached_property
    def replacement(self) -> ReplacementEvidence | None:
        """What the second horn rests on; `None` where it was not asked for."""
        if self.manifest.protocol.replacement is None:
            return None
        return self._read("replacement.json", ReplacementRecord).evidence

    @property
    def shapes(self) -> dict[str, dict[str, float]]:
        """Teacher label -> feature -> value, for the match table."""
        return self._json(self.path / "shapes.json")

    @property
    def followup(self) -> dict[str, Any] | None:
        """What a follow-up found; `None` where there was none. Apart from the verdict."""
        path = self.path / "followup.json"
        return self._json(path) if path.exists() else None

    @property
    def ledger(self) -> list[LedgerEntry]:
        """Every event of the run, failures too."""
        return read_ledger(self.path / "ledger.jsonl")

    @property
    def students(self) -> list[dict[str, Any]]:
        """One entry per student made in this run, in the manifest's order of teachers.

        Keys: `student`, its content key; `teacher`, the teacher's; `label`, `role` and `family` of
        the teacher; `recipe`; `seed`; the keys of what it was made from (`prompts`, `rollouts`,
        `targets`, `audit`); `marks`, where the recipe asks for some: step -> key of the student as
        it was then; `screen` and `checks`, what was dropped on the way and why. A panel's students
        have no entry: they were made elsewhere.
        """
        order = {
            teacher.content_key: (i, teacher) for i, teacher in enumerate(self.manifest.teachers)
        }
        found = []
        for file in sorted((self.path / "cells").glob("*.json")):
            cell = self._json(file)
            place, teacher = order.get(cell["teacher"], (len(order), None))
            if teacher is None:
                raise RunError(f"{file}: its teacher is not in the manifest; rerun the study")
            names = {"label": teacher.label, "role": teacher.role, "family": teacher.family}
            found.append((place, cell["recipe"], cell["seed"], cell | names))
        return [cell for *_, cell in sorted(found, key=lambda row: row[:3])]

    def _json(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{path}: missing; the run has not ended, rerun it to resume") from None
        except (ValueError, OSError) as error:
            raise _make_read_error(path, error) from None

    def has_transcripts(self, key: str) -> bool:
        """Return whether the model with content key `key` was audited in this run."""
        return (self.path / "transcripts" / f"{key}.jsonl").exists()

    def find_model(self, model: str) -> str:
        """Return the content key of an audited model.

        Args:
            model: Its key or the first characters of it, a teacher's label, or `M0`.

        Raises:
            RunError: If no audited model of the run is called so, or more than one.
        """
        named = {t.label: t.content_key for t in self.manifest.teachers}
        named[M0] = self.manifest.protocol.student
        keys = {file.stem for file in (self.path / "transcripts").glob("*.jsonl")}
        if model in named:
            if named[model] in keys:
                return named[model]
            raise RunError(
                f"{model}: was not audited in this run (its scores are a panel's); "
                "`doublebind status` lists who was"
            )
        fitting = sorted(key for key in keys if model and key.startswith(model))
        if len(fitting) != 1:
            what = "fits no model" if not fitting else f"fits {len(fitting)} models"
            raise RunError(f"{self.path}: {model!r} {what}; `doublebind status` lists them")
        return fitting[0]

    def transcripts(self, model: str) -> list[dict[str, Any]]:
        """Return the audit transcripts of one model, one entry per item; hostile text.

        Keys: `audit`, `endpoint`, `item`, `messages` (what was asked), `key` (the option whose
        probability is the value), `value`, `transcript` (for built-in audits a JSON list of
        [option, probability]).

        Args:
            model: As for `find`: a key from `cells`, a teacher's label, or `M0`.

        Raises:
            RunError: If the run has no such model, or the file cannot be read.
        """
        path = self.path / "transcripts" / f"{self.find_model(model)}.jsonl"
        try:
            with path.open(encoding="utf-8") as lines:
                return [json.loads(line) for line in lines]
        except (ValueError, OSError) as error:
            raise _make_read_error(path, error) from None

    def status(self) -> dict[str, Any]:
        """Return how far the run is, and which models have transcripts.

        `cells`: kind -> how many are needed, and how many are done, started, failed or waiting.
        `nodes`: what each host finished, and what failed there. `failures`: the last error of
        every cell that failed and was not made since. `models`: key, kind, teacher, recipe and
        seed of every model that was audited here; `step` of students kept on the way.
        """
        ledger = self.ledger
        latest = {entry.artefact_key: entry for entry in ledger}
        kinds = {}
        for kind, keys in self.manifest.artefacts.items():
            found = Counter(latest[key].status if key in latest else "waiting" for key in keys)
            kinds[kind] = {"needed": len(keys), **{s: found[s] for s in sorted(found)}}
        nodes: dict[str, Counter[str]] = {}
        for entry in ledger:
            if entry.node and entry.status != "started":
                nodes.setdefault(entry.node, Counter())[entry.status] += 1
        return {
            "run": str(self.path),
            "ended": (self.path / "verdict.json").exists(),
            "protocol_hash": self.manifest.protocol_hash,
            "cells": kinds,
            "nodes": {node: dict(found) for node, found in sorted(nodes.items())},
            "failures": [
                f"{entry.kind} {entry.artefact_key[:12]}: {entry.error}"
                for entry in latest.values()
                if entry.status == "failed"
            ],
            "models": self._models(),
        }

    def _models(self) -> list[dict[str, Any]]:
        named = [(M0, "m0", self.manifest.protocol.student)]
        named += [(t.label, "teacher", t.content_key) for t in self.manifest.teachers]
        found: list[dict[str, Any]] = [
            {"key": key, "kind": kind, "teacher": label} for label, kind, key in named
        ]
        found += [
            {"key": key, "kind": "student", "teacher": c["label"]}
            | {"recipe": c["recipe"], "seed": c["seed"]}
            | ({"step": int(step)} if step else {})
            for c in self.students
            for step, key in {"": c["student"], **c.get("marks", {})}.items()
        ]
        return [model for model in found if self.has_transcripts(model["key"])]


def _make_read_error(path: Path, error: Exception) -> RunError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return RunError(f"{path}: cannot be read ({first}); restore it or rerun")
