"""Checks whether a run directory agrees with itself, and with the store and panel it came from.

Recomputes the verdict from `scores.parquet`. Writes nothing, and trusts no file: one that cannot be
read is reported as a problem. A run that was rewritten as a whole, seal included, agrees with
itself: only a published hash of its seal, or its store and panel, can show that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from doublebind.execution.store import Store, file_sha256, is_url
from doublebind.runs.assess import assess
from doublebind.runs.compare import find_differences
from doublebind.runs.records import ReplacementRecord, check_format
from doublebind.runs.seal import SEAL, list_sealed_files
from doublebind.schema.errors import DoublebindError, RunError
from doublebind.schema.hashing import Record
from doublebind.schema.protocol import Manifest
from doublebind.schema.score_table import M0
from doublebind.stages.distillation.student_inputs import derive_checkpoint_key
from doublebind.stages.verdict.outcome import METHOD_VERSION, verdict_to_json
from doublebind.study.panel import find_panel_folder, read_panel, read_panel_scores

if TYPE_CHECKING:
    import pandas as pd

_AnyRecord = TypeVar("_AnyRecord", bound=Record)
_MAX_ROWS_SHOWN = 5
"""Rows that are reported one by one; the others are counted."""
_MODEL_COLUMNS = ["teacher", "model_kind", "recipe", "seed", "step"]
_ROW_COLUMNS = [*_MODEL_COLUMNS, "audit", "endpoint", "item"]
_ModelKey = tuple[Any, ...]
"""Values of `_MODEL_COLUMNS`."""


class Verification(Record):
    """The result of verifying a run."""

    verified: bool
    """True where there is no problem."""
    problems: tuple[str, ...]
    """One line for each disagreement: file, what is wrong, remedy."""
    unchecked: tuple[str, ...]
    """Checks that could not be made here, and why."""
    protocol_hash: str | None
    """As recomputed; compare it with one that was published before the audit."""
    seal_sha256: str | None
    """Hash of `seal.json`, which holds the hashes of all other files: publish it with a verdict,
    and nobody can rewrite the run unseen."""


class _CannotCheck(Exception):
    """Raised where a check cannot be made on this machine; says why."""


def verify(path: str | Path, *, store: str | Path | None = None) -> Verification:
    """Recompute every hash, p-value and decision of the run in `path`, on any machine.

    Compares every file with the seal; the protocol with its hash; the manifest's teachers with the
    protocol; evidence and verdict with those recomputed from `scores.parquet`, numbers to 1e-9;
    every score row with its transcript; and, where they can be found, the rows of a panel with the
    panel and all artefacts with their hashes in the store.

    Args:
        path: A finished run.
        store: Store with its artefacts, if they were moved; default as in the manifest.

    Raises:
        RunError: If `path` holds no run, one that has not ended, or one of another method version.
    """
    run = Path(path)
    if not (run / "manifest.json").exists():
        raise RunError(
            f"{run / 'manifest.json'}: missing; not a run directory, name what "
            "`doublebind run` was given as --out"
        )
    check_format(run)
    reader = _Reader(run)
    manifest = reader.read_json("manifest.json", Manifest)
    if not (run / SEAL).exists() and not (run / "verdict.json").exists():
        if manifest is None:
            raise RunError(f"{reader.problems[0]}; restore it or choose another --out")
        raise RunError(f"{run / SEAL}: missing; the run has not ended, rerun it to resume")
    problems, unchecked = list(_check_files(reader)), list[str]()
    if manifest is not None:
        _check_method_version(run, manifest)
        content = _read_content(reader, manifest, str(store or manifest.store))
        for check in (_check_manifest, _check_scores, _check_panel, _check_artefacts):
            try:
                problems += check(content)
            except _CannotCheck as reason:
                unchecked.append(str(reason))
    problems = [*reader.problems, *problems]
    return Verification(
        verified=not problems,
        problems=tuple(dict.fromkeys(problems)),
        unchecked=tuple(unchecked),
        protocol_hash=manifest.protocol.hash if manifest else None,
        seal_sha256=file_sha256(run / SEAL) if (run / SEAL).exists() else None,
    )


def _check_method_version(run: Path, manifest: Manifest) -> None:
    version = manifest.protocol.method_version
    if version != METHOD_VERSION:
        package = manifest.versions.get("doublebind", "the version that made it")
        raise RunError(
            f"{run}: was decided by method version {version}, this is {METHOD_VERSION}, which may "
            f"give other numbers; verify it with doublebind {package}"
        )


class _Reader:
    """Reads files of a run, and records those that cannot be read in `problems`."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.problems: list[str] = []

    def problem(self, name: str, text: str) -> str:
        """Return the line on a problem with a file of the run."""
        return f"{self.run / name}: {text}"

    @overload
    def read_json(self, name: str) -> dict[str, Any] | None: ...

    @overload
    def read_json(self, name: str, kind: type[_AnyRecord]) -> _AnyRecord | None: ...

    def read_json(self, name: str, kind: type[Record] | None = None) -> Any:
        """Return the content of a JSON object or record; `None` if it is missing or damaged."""
        try:
            text = (self.run / name).read_text(encoding="utf-8")
            content = kind.model_validate_json(text) if kind else json.loads(text)
            if kind or isinstance(content, dict):
                return content
            reason = f"cannot be read (a mapping is needed, not {type(content).__name__})"
        except FileNotFoundError:
            reason = "missing"
        except (OSError, ValueError, RecursionError) as error:
            reason = f"cannot be read ({' '.join(str(error).splitlines()[:2])})"
        self.problems.append(self.problem(name, reason))
        return None

    def read_scores(self) -> pd.DataFrame | None:
        """Return the rows of `scores.parquet`; `None` if it is missing or damaged."""
        import pandas as pd

        path = self.run / "scores.parquet"
        if not path.exists():
            return None
        try:
            return pd.read_parquet(path)
        except Exception as error:  # what a parquet reader raises on damaged bytes is not bounded
            text = f"cannot be read ({_first_line(error)}); nothing can be recomputed"
            self.problems.append(self.problem("scores.parquet", text))
            return None

    def read_transcript(self, key: str) -> Iterator[dict[str, Any]]:
        """Yield audit, endpoint, item and value of each line, until one cannot be read."""
        name = f"transcripts/{key}.jsonl"
        try:
            with (self.run / name).open(encoding="utf-8") as file:
                for line in file:
                    entry = json.loads(line)
                    value = None if entry["value"] is None else float(entry["value"])
                    names = {k: str(entry[k]) for k in ("audit", "endpoint", "item")}
                    yield names | {"expected": value}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            text = f"cannot be read ({type(error).__name__}: {error})"
            self.problems.append(self.problem(name, text))


class _RunContent(NamedTuple):
    """The files of a run that several checks read."""

    reader: _Reader
    manifest: Manifest
    scores: pd.DataFrame | None
    """`None` also where the manifest's teachers are not the protocol's."""
    replacement: ReplacementRecord | None
    store: str

    def problem(self, name: str, text: str) -> str:
        """Return the line on a problem with a file of the run."""
        return self.reader.problem(name, text)

    @property
    def suspect(self) -> str:
        """Label of the suspect."""
        return next(t.label for t in self.manifest.teachers if t.role == "suspect")

    def list_artefacts(self, kind: str) -> dict[str, dict[str, str]]:
        """Return folder of the run -> the artefacts of a kind whose records are in it."""
        artefacts = {"cells": self.manifest.artefacts.get(kind, {})}
        if self.manifest.protocol.replacement is not None:
            artefacts["replacement"] = (
                self.replacement.artefacts.get(kind, {}) if self.replacement else {}
            )
        return artefacts


def _read_content(reader: _Reader, manifest: Manifest, store: str) -> _RunContent:
    replacement = None
    if manifest.protocol.replacement is not None:
        replacement = reader.read_json("replacement.json", ReplacementRecord)
    scores = reader.read_scores()
    if _find_role_mismatch(manifest) is not None:
        scores = None
    return _RunContent(reader, manifest, scores, replacement, store)


def _check_files(reader: _Reader) -> Iterator[str]:
    """Compare every file with the seal, and the seal with the files that it has to cover."""
    sealed = reader.read_json(SEAL)
    if sealed is None:
        return
    names = list_sealed_files(reader.run)
    for name in dict.fromkeys([*names, *map(str, sealed)]):
        file = reader.run / name
        if name not in sealed:
            yield reader.problem(
                name, "is not in the seal, and may have been added after the run ended"
            )
        elif name not in names:
            reason = "is no file of a run" if file.exists() else "missing"
            yield reader.problem(name, f"{reason}, but in the seal")
        elif not file.is_file():
            yield reader.problem(name, "missing")
        elif file_sha256(file) != sealed[name]:
            yield reader.problem(name, "altered since the run ended")


def _check_manifest(content: _RunContent) -> Iterator[str]:
    """Compare the manifest's hash and teachers with its protocol."""
    manifest, protocol = content.manifest, content.manifest.protocol
    if protocol.hash != manifest.protocol_hash:
        yield content.problem(
            "manifest.json",
            f"`protocol_hash` is {manifest.protocol_hash}, the protocol's is {protocol.hash}",
        )
    if (role := _find_role_mismatch(manifest)) is not None:
        yield content.problem("manifest.json", f"`teachers`: the {role}s are not the protocol's")


def _find_role_mismatch(manifest: Manifest) -> str | None:
    """Return the first role whose teachers are not the protocol's."""
    protocol = manifest.protocol
    keys = {
        "suspect": (protocol.suspect,),
        "reference": protocol.references,
        "organism": protocol.organisms,
    }
    for role, expected in keys.items():
        if tuple(t.content_key for t in manifest.teachers if t.role == role) != expected:
            return role
    return None


def _check_scores(content: _RunContent) -> Iterator[str]:
    """Recompute evidence and verdict from the scores, and compare each row with its transcript."""
    if content.scores is not None:
        yield from _check_recomputed(content, content.scores)
        yield from _check_rows(content, content.scores)


def _check_recomputed(content: _RunContent, scores: pd.DataFrame) -> Iterator[str]:
    """Compare evidence and verdict with those that the scores give."""
    try:
        files = _recompute_files(content, scores)
    except (DoublebindError, ValueError, TypeError, AttributeError, KeyError) as error:
        text = f"no verdict can be recomputed from it ({_first_line(error)})"
        yield content.problem("scores.parquet", text)
        return
    for name, computed in files.items():
        stored = content.reader.read_json(name)
        if stored is not None:
            for place, a, b in find_differences(stored, computed):
                yield content.problem(name, f"`{place}` is {_shorten(a)}, recomputed {_shorten(b)}")


def _recompute_files(content: _RunContent, scores: pd.DataFrame) -> dict[str, Any]:
    """Return name -> content of the files that follow from the scores."""
    manifest = content.manifest
    stored = content.reader.read_json("verdict.json") or {}
    shapes = content.reader.read_json("shapes.json")
    if shapes is None:
        raise ValueError("the match features in shapes.json cannot be read")
    evidence, verdict, bounds = assess(
        scores,
        manifest.teachers,
        manifest.selection_teachers,
        manifest.protocol,
        earlier_protocols=manifest.earlier_protocols,
        shapes=shapes,
        # The store's seal, not the verdict's scores, shows whether the weights are these.
        weights_sha256=(stored.get("replacement") or {}).get("weights_sha256"),
    )
    files = {"evidence.json": evidence.model_dump(mode="json")}
    if bounds is not None and content.replacement is not None:
        record = content.replacement.model_copy(update={"evidence": bounds})
        files["replacement.json"] = record.model_dump(mode="json")
    return files | {"verdict.json": verdict_to_json(verdict)}


def _check_rows(content: _RunContent, scores: pd.DataFrame) -> Iterator[str]:
    """Compare every score row of this run's own models with its transcript."""
    import pandas as pd

    models = _list_audited_teachers(content.manifest)
    yield from _collect_students(content, models)
    yield from _collect_further_trained(content, models)
    lines = [
        dict(zip(_MODEL_COLUMNS, model, strict=True)) | line
        for model, key in models.items()
        if (content.reader.run / "transcripts" / f"{key}.jsonl").exists()
        for line in content.reader.read_transcript(key)
    ]
    if not lines or any(name not in scores.columns for name in (*_ROW_COLUMNS, "value")):
        return
    expected = pd.DataFrame(lines).astype({"expected": "float64"})
    # A value outside [0, 1] is unscored; only its transcript still holds it.
    expected["expected"] = expected["expected"].where(expected["expected"].between(0, 1))
    audited = pd.MultiIndex.from_frame(_as_text(expected).loc[:, _MODEL_COLUMNS]).unique()
    models_of_rows = pd.MultiIndex.from_frame(_as_text(scores).loc[:, _MODEL_COLUMNS])
    rows = scores.loc[models_of_rows.isin(audited), :]
    for text in _compare_rows(rows, expected, "its transcript"):
        yield content.problem("scores.parquet", text)


def _list_audited_teachers(manifest: Manifest) -> dict[_ModelKey, str]:
    """Return model -> content key, of M0 and of all teachers."""
    teachers = (*manifest.selection_teachers, *manifest.teachers)
    models: dict[_ModelKey, str] = {
        (t.label, "teacher", "", -1, -1): t.content_key for t in teachers
    }
    models[M0, "m0", "", -1, -1] = manifest.protocol.student
    return models


def _collect_students(content: _RunContent, models: dict[_ModelKey, str]) -> Iterator[str]:
    """Add the students of the run and their checkpoints to `models`."""
    manifest, protocol = content.manifest, content.manifest.protocol
    teachers = (*manifest.selection_teachers, *manifest.teachers)
    labels = {t.content_key: t.label for t in teachers}
    recipes = [*protocol.recipes, *(protocol.replacement.recipes if protocol.replacement else ())]
    steps = {str(recipe.get("name")): _list_audited_steps(recipe) for recipe in recipes}
    for folder, listed in content.list_artefacts("student").items():
        for file in sorted((content.reader.run / folder).glob("*.json")):
            student = content.reader.read_json(f"{folder}/{file.name}")
            if student is None:
                continue
            name, label = student.get("student"), labels.get(str(student.get("teacher")))
            if name != file.stem or name not in listed or label is None:
                yield content.problem(f"{folder}/{file.name}", "is no cell of this run's manifest")
                continue
            recipe, seed = str(student.get("recipe")), str(student.get("seed"))
            for i, step in enumerate(steps.get(recipe, ())):
                key = derive_checkpoint_key(file.stem, step) if i else file.stem
                models[label, "student", recipe, seed, step] = key


def _collect_further_trained(content: _RunContent, models: dict[_ModelKey, str]) -> Iterator[str]:
    """Add the students that were trained further to `models`."""
    replacement = content.manifest.protocol.replacement
    if not replacement or not replacement.further_training or content.replacement is None:
        return
    listed = content.replacement.artefacts.get("further", {})
    for model in content.replacement.further_training:
        key = model.content_key
        if key not in listed:
            yield content.problem(
                "replacement.json", f"`further`: {key} is no artefact of this run"
            )
            continue
        row = (content.suspect, model.model_kind, model.recipe, str(model.seed), model.step)
        models[row] = key


def _compare_rows(rows: pd.DataFrame, expected: pd.DataFrame, source: str) -> Iterator[str]:
    """Yield score rows that occur twice, that only one side has, or whose values differ."""
    rows, expected = _as_text(rows), _as_text(expected)
    twice = rows.loc[rows.duplicated(_ROW_COLUMNS), :]
    for row in twice.head(_MAX_ROWS_SHOWN).to_dict("records"):
        yield f"two rows for {_describe_row(row)}"
    rows, expected = rows.drop_duplicates(_ROW_COLUMNS), expected.drop_duplicates(_ROW_COLUMNS)
    both = rows.merge(expected, on=_ROW_COLUMNS, how="outer", indicator="side")
    equal = both["value"] == both["expected"]
    equal |= both["value"].isna() & both["expected"].isna()
    wrong = both.loc[(both["side"] != "both") | ~equal, :]
    for row in wrong.head(_MAX_ROWS_SHOWN).to_dict("records"):
        place = _describe_row(row)
        if row["side"] == "right_only":
            yield f"no row for {place}, which {source} has"
        elif row["side"] == "left_only":
            yield f"{source} has nothing for {place}"
        else:
            yield f"{row['value']} for {place}; {source} says {row['expected']}"
    if len(wrong) > _MAX_ROWS_SHOWN:
        n = len(wrong) - _MAX_ROWS_SHOWN
        yield f"{n} rows more do not agree with {source}"


def _check_panel(content: _RunContent) -> Iterator[str]:
    """Compare the rows of a panel's teachers with the panel, if it can be found."""
    manifest, scores = content.manifest, content.scores
    if manifest.protocol.panel is None or scores is None:
        return
    if any(name not in scores.columns for name in _ROW_COLUMNS):
        return
    references = manifest.study.get("references")
    name = str(references.get("panel")) if isinstance(references, Mapping) else ""
    try:
        folder = find_panel_folder(name, Path())
        panel = read_panel(folder)
    except DoublebindError as error:
        raise _CannotCheck(f"rows of the panel's teachers: {error.problems[0]}") from None
    if panel.hash != manifest.protocol.panel:
        raise _CannotCheck(
            f"rows of the panel's teachers: {folder} is another panel than the run's"
        )
    built = manifest.artefacts.get("teacher", {})
    trained = {t.label for t in manifest.teachers if t.content_key in built} | {content.suspect}
    frozen = {t.label for t in panel.teachers} - trained
    labels = sorted(t.label for t in manifest.teachers if t.label in frozen)
    expected = read_panel_scores(folder, labels).rename(columns={"value": "expected"})
    rows = scores.loc[scores["teacher"].isin(labels), :]
    for text in _compare_rows(rows, expected.loc[:, [*_ROW_COLUMNS, "expected"]], "the panel"):
        yield content.problem("scores.parquet", text)


def _check_artefacts(content: _RunContent) -> Iterator[str]:
    """Compare every artefact of the run with its seal in the store."""
    root = content.store
    if not is_url(root) and not Path(root).is_dir():
        raise _CannotCheck(
            f"artefacts (weights, answers): no store at {root}; name one with --store"
        )
    store = Store(root, writable=False)
    artefacts = content.manifest.artefacts
    replacement = content.replacement.artefacts if content.replacement else {}
    for kind in sorted({*artefacts, *replacement}):
        for key in {**artefacts.get(kind, {}), **replacement.get(kind, {})}:
            yield from store.find_problems(kind, key)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _as_text(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with the columns that identify them as text, since a damaged file may vary."""
    columns = [name for name in _ROW_COLUMNS if name in rows.columns]
    return rows.assign(**{name: rows[name].astype(str) for name in columns})


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
    model = f"{row['model_kind']} of {row['teacher']}, {row['recipe']}, seed {row['seed']}"
    if row["model_kind"] in ("m0", "teacher"):
        model = f"{row['model_kind']} {row['teacher']}"
    elif row["step"] != "-1":
        model += f", step {row['step']}"
    return f"item {row['item']} ({row['audit']}, {row['endpoint']}) of {model}"
