"""Says whether a run directory still agrees with itself, and with what it was made from.

Knows the layout of a run, the seal, and how to recompute a verdict from `scores.parquet`. Writes
nothing, and trusts no file: one that cannot be read is a problem to name, not an error. A run
that was rewritten as a whole, seal included, agrees with itself: what shows that is the hash of
its seal, if it was published, and the store and panel it came from, where they are at hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublebind.execution.store import Store, file_sha256, is_url
from doublebind.runs.assess import assess
from doublebind.runs.compare import find_differences
from doublebind.runs.manifest import ReplacementRecord
from doublebind.runs.seal import SEAL, list_sealed_files
from doublebind.schema.errors import DoublebindError, RunError
from doublebind.schema.hashing import Record
from doublebind.schema.protocol import Manifest
from doublebind.schema.score_table import M0
from doublebind.stages.distillation.student_inputs import derive_checkpoint_key
from doublebind.stages.verdict.outcome import METHOD_VERSION, verdict_to_json
from doublebind.study import panel as panels

if TYPE_CHECKING:
    import pandas as pd

_MAX_ROWS_SHOWN = 5
"""Rows that are named one by one; the others are counted."""


_MODEL_COLUMNS = ["teacher", "model_kind", "recipe", "seed", "step"]


_ROW_COLUMNS = [*_MODEL_COLUMNS, "audit", "endpoint", "item"]


class Verification(Record):
    """What verifying a run found."""

    verified: bool
    """True where nothing disagrees."""
    problems: tuple[str, ...]
    """One line for each thing that does not agree: file, what, remedy."""
    unchecked: tuple[str, ...]
    """What could not be looked at from here, and why."""
    protocol_hash: str | None
    """As recomputed; compare it with one that was published before the audit."""
    seal_sha256: str | None
    """Hash of `seal.json`, which holds the hashes of all other files: publish it with a verdict,
    and nobody can rewrite the run unseen."""


def verify(path: str | Path, *, store: str | Path | None = None) -> Verification:
    """Recompute every hash, p-value and decision of the run in `path`, on any machine.

    Compared are: every file with the seal; the protocol with its hash; the manifest's teachers with
    the protocol; evidence and verdict with what `scores.parquet` gives, numbers to 1e-9; every
    score row with its transcript; and, where they are at hand, the rows of a panel with the panel
    and all artefacts with their hashes in the store.

    Args:
        path: A finished run.
        store: Where its artefacts are, if they were moved; default as in the manifest.

    Raises:
        RunError: If `path` holds no run, one that has not ended, or one of another method version.
    """
    run = Path(path)
    if not (run / "manifest.json").exists():
        raise RunError(
            f"{run / 'manifest.json'}: missing; not a run directory, name what "
            "`doublebind run` was given as --out"
        )
    found = _Verifier(run)
    manifest = found.read_json("manifest.json", Manifest)
    if not (run / SEAL).exists() and not (run / "verdict.json").exists():
        if manifest is None:
            raise RunError(f"{found.problems[0]}; restore it or choose another --out")
        raise RunError(f"{run / SEAL}: missing; the run has not ended, rerun it to resume")
    found.check_files()
    if manifest is not None:
        _check_method_version(run, manifest)
        scores = found.read_scores()
        if found.check_manifest(manifest) and scores is not None:
            found.check_recomputed(manifest, scores)
            found.check_rows(manifest, scores)
            found.check_panel(manifest, scores)
        found.check_artefacts(manifest, store)
    return Verification(
        verified=not found.problems,
        problems=tuple(dict.fromkeys(found.problems)),
        unchecked=tuple(found.unchecked),
        protocol_hash=manifest.protocol.hash if manifest else None,
        seal_sha256=file_sha256(run / SEAL) if (run / SEAL).exists() else None,
    )


def _check_method_version(run: Path, manifest: Manifest) -> None:
    theirs = manifest.protocol.method_version
    if theirs != METHOD_VERSION:
        made_by = manifest.versions.get("doublebind", "the version that made it")
        raise RunError(
            f"{run}: was decided by method version {theirs}, this is {METHOD_VERSION}, which may "
            f"give other numbers; verify it with doublebind {made_by}"
        )


class _Verifier:
    """Problems of one run, as they are found."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.problems: list[str] = []
        self.unchecked: list[str] = []

    def add_problem(self, name: str, what: str) -> None:
        self.problems.append(f"{self.run / name}: {what}")

    def read_json(self, name: str, kind: type[Record] | None = None) -> Any:
        """Return a file's content, or `None` with a problem where it cannot be read."""
        try:
            text = (self.run / name).read_text(encoding="utf-8")
            found = kind.model_validate_json(text) if kind else json.loads(text)
            if kind or isinstance(found, dict):
                return found
            self.add_problem(
                name, f"cannot be read (a mapping is needed, not {type(found).__name__})"
            )
        except FileNotFoundError:
            self.add_problem(name, "missing")
        except (OSError, ValueError, RecursionError) as error:
            lines = str(error).splitlines()
            self.add_problem(name, f"cannot be read ({' '.join(lines[:2])})")
        return None

    def check_files(self) -> None:
        """Compare every file with the seal, and what the seal covers with what it has to."""
        sealed = self.read_json(SEAL)
        if sealed is None:
            return
        there = list_sealed_files(self.run)
        for name in dict.fromkeys([*there, *map(str, sealed)]):
            file = self.run / name
            if name not in sealed:
                self.add_problem(
                    name, "is not in the seal, and may have been added after the run ended"
                )
            elif name not in there:
                what = "missing" if not file.exists() else "is no file of a run"
                self.add_problem(name, f"{what}, but in the seal")
            elif not file.is_file():
                self.add_problem(name, "missing")
            elif file_sha256(file) != sealed[name]:
                self.add_problem(name, "altered since the run ended")

    def check_manifest(self, manifest: Manifest) -> bool:
        """Compare the manifest with itself; return whether its teachers are the protocol's."""
        protocol = manifest.protocol
        if protocol.hash != manifest.protocol_hash:
            self.add_problem(
                "manifest.json",
                f"`protocol_hash` is {manifest.protocol_hash}, the protocol's is {protocol.hash}",
            )
        for role, keys in (
            ("suspect", (protocol.suspect,)),
            ("reference", protocol.references),
            ("organism", protocol.organisms),
        ):
            named = tuple(t.content_key for t in manifest.teachers if t.role == role)
            if named != keys:
                self.add_problem("manifest.json", f"`teachers`: the {role}s are not the protocol's")
                return False
        return True

    def read_scores(self) -> pd.DataFrame | None:
        """Return the rows of `scores.parquet`."""
        import pandas as pd

        path = self.run / "scores.parquet"
        if not path.exists():
            return None  # named by the seal
        try:
            return pd.read_parquet(path)
        except Exception as error:  # what a parquet reader raises on damaged bytes is not bounded
            first = (str(error).splitlines() or [type(error).__name__])[0]
            self.add_problem(
                "scores.parquet", f"cannot be read ({first}); nothing can be recomputed"
            )
            return None

    def check_recomputed(self, manifest: Manifest, scores: pd.DataFrame) -> None:
        """Compare evidence and verdict with what the scores give."""
        try:
            computed = self._recompute_files(manifest, scores)
        except (DoublebindError, ValueError, TypeError, AttributeError, KeyError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            self.add_problem("scores.parquet", f"no verdict can be recomputed from it ({first})")
            return
        for name, content in computed.items():
            stored = self.read_json(name)
            if stored is not None:
                for at, a, b in find_differences(stored, content):
                    self.add_problem(name, f"`{at}` is {_shorten(a)}, recomputed {_shorten(b)}")

    def _recompute_files(self, manifest: Manifest, scores: pd.DataFrame) -> dict[str, Any]:
        """Return the files that follow from the scores, as they should be."""
        evidence, verdict, bounds = assess(
            scores,
            manifest.teachers,
            manifest.selection_teachers,
            manifest.protocol,
            earlier_protocols=manifest.earlier_protocols,
            shapes=self.read_json("shapes.json"),
            weights_sha256=self._read_delivered_weights()
            if manifest.protocol.replacement
            else None,
        )
        files = {"evidence.json": evidence.model_dump(mode="json")}
        if bounds is not None:
            stored = self.read_json("replacement.json", ReplacementRecord)
            if stored is not None:
                record = stored.model_copy(update={"evidence": bounds})
                files["replacement.json"] = record.model_dump(mode="json")
        return files | {"verdict.json": verdict_to_json(verdict)}

    def _read_delivered_weights(self) -> str | None:
        """Return the weights that the verdict names; the store's seal says whether they are."""
        verdict = self.read_json("verdict.json") or {}
        return (verdict.get("replacement") or {}).get("weights_sha256")

    def check_rows(self, manifest: Manifest, scores: pd.DataFrame) -> None:
        """Compare every score row of this run's own models with its transcript."""
        import pandas as pd

        keys = {t.label: t.content_key for t in (*manifest.selection_teachers, *manifest.teachers)}
        models: dict[tuple[Any, ...], str] = {
            (label, "teacher", "", -1, -1): key for label, key in keys.items()
        }
        models[M0, "m0", "", -1, -1] = manifest.protocol.student
        labels = {key: label for label, key in keys.items()}
        recipes = [*manifest.protocol.recipes]
        recipes += manifest.protocol.replacement.recipes if manifest.protocol.replacement else ()
        audited = {str(r.get("name")): _list_audited_steps(r) for r in recipes}
        for folder, listed in self._list_artefacts(manifest, "student").items():
            for file in sorted((self.run / folder).glob("*.json")):
                cell = self.read_json(f"{folder}/{file.name}")
                if cell is None:
                    continue
                name, label = cell.get("student"), labels.get(str(cell.get("teacher")))
                if name != file.stem or name not in listed or label is None:
                    self.add_problem(f"{folder}/{file.name}", "is no cell of this run's manifest")
                    continue
                recipe = str(cell.get("recipe"))
                for i, step in enumerate(audited.get(recipe, ())):
                    key = derive_checkpoint_key(file.stem, step) if i else file.stem
                    models[label, "student", recipe, str(cell.get("seed")), step] = key
        models |= self._list_further_trained(manifest)
        lines = [
            dict(
                zip(
                    _ROW_COLUMNS,
                    (*model, line["audit"], line["endpoint"], line["item"]),
                    strict=True,
                )
            )
            | {"said": line["value"]}
            for model, key in models.items()
            if (self.run / "transcripts" / f"{key}.jsonl").exists()
            for line in self._read_transcript(key)
        ]
        if not lines or any(name not in scores.columns for name in (*_ROW_COLUMNS, "value")):
            return
        said = pd.DataFrame(lines).astype({"said": "float64"})
        # What an audit gave outside [0, 1] is unscored, and only its transcript says what it was.
        said["said"] = said["said"].where(said["said"].between(0, 1))
        asked = pd.MultiIndex.from_frame(_as_text(said).loc[:, _MODEL_COLUMNS]).unique()
        models_of = pd.MultiIndex.from_frame(_as_text(scores).loc[:, _MODEL_COLUMNS])
        self._compare_rows(scores.loc[models_of.isin(asked), :], said, "its transcript")

    def _list_artefacts(self, manifest: Manifest, kind: str) -> dict[str, dict[str, str]]:
        """Return folder -> the artefacts of a kind that were made for the cells in it."""
        found = {"cells": manifest.artefacts.get(kind, {})}
        if manifest.protocol.replacement is not None:
            done = self.read_json("replacement.json", ReplacementRecord)
            found["replacement"] = done.artefacts.get(kind, {}) if done else {}
        return found

    def _list_further_trained(self, manifest: Manifest) -> dict[tuple[Any, ...], str]:
        """Return who was trained further: what names their rows -> their key."""
        second = manifest.protocol.replacement
        done = (
            self.read_json("replacement.json", ReplacementRecord)
            if second and second.further_training
            else None
        )
        found: dict[tuple[Any, ...], str] = {}
        if done is None:
            return found
        for made in done.further_training:
            if made.content_key not in done.artefacts.get("further", {}):
                self.add_problem(
                    "replacement.json", f"`further`: {made.content_key} is no artefact of this run"
                )
                continue
            suspect = next(t.label for t in manifest.teachers if t.role == "suspect")
            row = (suspect, made.model_kind, made.recipe, str(made.seed), made.step)
            found[row] = made.content_key
        return found

    def _read_transcript(self, key: str) -> Iterator[Mapping[str, Any]]:
        name = f"transcripts/{key}.jsonl"
        try:
            with (self.run / name).open(encoding="utf-8") as file:
                for line in file:
                    found = json.loads(line)
                    value = found["value"]
                    said = None if value is None else float(value)
                    names = {k: str(found[k]) for k in ("audit", "endpoint", "item")}
                    yield names | {"value": said}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self.add_problem(name, f"cannot be read ({type(error).__name__}: {error})")

    def _compare_rows(self, own: pd.DataFrame, others: pd.DataFrame, what: str) -> None:
        """Name score rows that `others` lacks, that come twice, or whose value is not `said`."""
        name, own, others = "scores.parquet", _as_text(own), _as_text(others)
        for row in (
            own.loc[own.duplicated(_ROW_COLUMNS), :].head(_MAX_ROWS_SHOWN).to_dict("records")
        ):
            self.add_problem(name, f"two rows for {_describe_row(row)}")
        own, others = own.drop_duplicates(_ROW_COLUMNS), others.drop_duplicates(_ROW_COLUMNS)
        both = own.merge(others, on=_ROW_COLUMNS, how="outer", indicator="side")
        same = (both["value"] == both["said"]) | (both["value"].isna() & both["said"].isna())
        wrong = both.loc[(both["side"] != "both") | ~same, :]
        for row in wrong.head(_MAX_ROWS_SHOWN).to_dict("records"):
            if row["side"] == "right_only":
                self.add_problem(name, f"no row for {_describe_row(row)}, which {what} has")
            elif row["side"] == "left_only":
                self.add_problem(name, f"{what} has nothing for {_describe_row(row)}")
            else:
                self.add_problem(
                    name, f"{row['value']} for {_describe_row(row)}; {what} says {row['said']}"
                )
        if len(wrong) > _MAX_ROWS_SHOWN:
            self.add_problem(
                name, f"{len(wrong) - _MAX_ROWS_SHOWN} rows more do not agree with {what}"
            )

    def check_panel(self, manifest: Manifest, scores: pd.DataFrame) -> None:
        """Compare the rows of a panel's teachers with the panel, where it is at hand."""
        if manifest.protocol.panel is None or any(c not in scores.columns for c in _ROW_COLUMNS):
            return
        bank = manifest.study.get("references")
        name = str(bank.get("panel")) if isinstance(bank, Mapping) else ""
        try:
            folder = panels.find_panel_folder(name, Path())
            panel = panels.read_panel(folder)
        except DoublebindError as error:
            self.unchecked.append(f"rows of the panel's teachers: {error.problems[0]}")
            return
        if panel.hash != manifest.protocol.panel:
            self.unchecked.append(
                f"rows of the panel's teachers: {folder} is another panel than the run's"
            )
            return
        made = {
            t.label
            for t in manifest.teachers
            if t.content_key in manifest.artefacts.get("teacher", {})
        }
        made.add(next(t.label for t in manifest.teachers if t.role == "suspect"))
        kept = {t.label for t in panel.teachers} - made
        labels = sorted(t.label for t in manifest.teachers if t.label in kept)
        rows = panels.read_panel_scores(folder, labels).rename(columns={"value": "said"})
        own = scores.loc[scores["teacher"].isin(labels), :]
        self._compare_rows(own, rows.loc[:, [*_ROW_COLUMNS, "said"]], "the panel")

    def check_artefacts(self, manifest: Manifest, moved: str | Path | None) -> None:
        """Compare every artefact of the run with its seal in the store."""
        root = str(moved or manifest.store)
        if not is_url(root) and not Path(root).is_dir():
            self.unchecked.append(
                f"artefacts (weights, answers): no store at {root}; name one with --store"
            )
            return
        store = Store(root, writable=False)
        done = manifest.protocol.replacement and self.read_json(
            "replacement.json", ReplacementRecord
        )
        second = done.artefacts if done else {}
        for kind in sorted({*manifest.artefacts, *second}):
            for key in {**manifest.artefacts.get(kind, {}), **second.get(kind, {})}:
                self.problems += store.find_problems(kind, key)


def _as_text(rows: pd.DataFrame) -> pd.DataFrame:
    """Return `rows` with what identifies a row as text: a damaged file may hold other types."""
    return rows.assign(
        **{name: rows[name].astype(str) for name in _ROW_COLUMNS if name in rows.columns}
    )


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _list_audited_steps(recipe: Mapping[str, Any]) -> list[Any]:
    """Return the steps at which a recipe's students were audited, the last one first."""
    training = recipe.get("training")
    if not isinstance(training, Mapping):
        return [None]
    marks = training.get("marks")
    return [training.get("steps"), *(marks if isinstance(marks, list) else ())]


def _describe_row(row: Mapping[Any, Any]) -> str:
    who = f"{row['model_kind']} of {row['teacher']}, {row['recipe']}, seed {row['seed']}"
    who += "" if row["step"] == "-1" else f", step {row['step']}"
    if row["model_kind"] in ("m0", "teacher"):
        who = f"{row['model_kind']} {row['teacher']}"
    return f"item {row['item']} ({row['audit']}, {row['endpoint']}) of {who}"
