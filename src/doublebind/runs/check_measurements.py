"""Compares a run's models, transcripts and rows with its protocol, its packs and its panel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from doublebind.packs.load import BUILT_IN_PACKS
from doublebind.runs.check_rows import (
    MODEL_COLUMNS,
    compare_rows,
    describe_row,
    parse_transcripts,
    tabulate_transcripts,
)
from doublebind.runs.compare import find_differences
from doublebind.runs.reader import RunReader
from doublebind.runs.recorded_plan import (
    CannotCheck,
    NamedFolder,
    RecordedPacks,
    list_own_teachers,
)
from doublebind.runs.records import ReplacementRecord
from doublebind.schema.content import Item
from doublebind.schema.errors import DoublebindError
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Manifest, Protocol
from doublebind.schema.score_table import M0
from doublebind.schema.study import BankReferences, Study
from doublebind.stages.audits.battery import TranscriptLine
from doublebind.stages.audits.option_audits import OPTION_AUDITS
from doublebind.stages.audits.protocol import Audit, list_questions
from doublebind.stages.distillation.student_inputs import derive_checkpoint_key
from doublebind.study.panel import PANEL, Panel, draw_teachers, read_panel, read_panel_scores
from doublebind.study.plan import Plan

if TYPE_CHECKING:
    import pandas as pd

Labels = tuple[str, str, str, int, int, int]
"""Values of `MODEL_COLUMNS` in the score rows of a model."""
_ALL_COLUMNS = ("value", "unscored_reason", "role", "split", "round")
_OPTION_AUDIT_NAMES = frozenset(audit.name for audit in OPTION_AUDITS)


class ExpectedModel(NamedTuple):
    """A model whose transcripts and score rows a run has to hold."""

    content_key: str
    splits: frozenset[str]
    """Of the items that it was asked; empty where they are not known."""


class ExpectedModels(NamedTuple):
    """The models of a run, by the labels of their rows."""

    transcribed: dict[Labels, ExpectedModel]
    baselines: set[Labels]
    """Those that have rows and no transcripts."""


def list_planned_models(plans: Sequence[Plan]) -> ExpectedModels:
    """Return the models whose rows and transcripts the plans give."""
    models: dict[Labels, ExpectedModel] = {}
    baselines: set[Labels] = set()
    for plan in plans:
        without = {audited.job.content_key for audited in plan.baselines}
        for job, *labels in plan.audited:
            place: Any = (*labels,)
            if job.content_key in without:
                baselines.add(place)
                continue
            splits = frozenset([str(job.inputs["split"])])
            if place in models:
                splits |= models[place].splits
            models[place] = ExpectedModel(str(job.inputs["source"].sha256), splits)
    return ExpectedModels(models, baselines)


def list_recorded_models(
    reader: RunReader,
    manifest: Manifest,
    study: Study,
    replacement: ReplacementRecord | None,
    cells: Mapping[str, Mapping[str, Any]],
) -> tuple[ExpectedModels, list[str]]:
    """Return the models that the run's own records name, and what is wrong with those records.

    For a run whose keys cannot be recomputed here: a key is then taken from the record.

    Args:
        reader: Of the run.
        manifest: Of the run.
        study: Of the manifest.
        replacement: Record of the search for a replacement.
        cells: Name of a file in `cells/` or `replacement/` -> the student's record.
    """
    protocol, problems = manifest.protocol, list[str]()
    teachers = (*manifest.selection_teachers, *list_own_teachers(manifest, study))
    models: dict[Labels, ExpectedModel] = {
        (t.label, "teacher", "", -1, 0, -1): ExpectedModel(t.content_key, frozenset())
        for t in teachers
    }
    models[M0, "m0", "", -1, 0, -1] = ExpectedModel(protocol.student, frozenset())
    labels = {teacher.content_key: teacher.label for teacher in teachers}
    artefacts = replacement.artefacts if replacement else {}
    listed = {
        "cells": manifest.artefacts.get("student", {}),
        "replacement": artefacts.get("student", {}),
    }
    made: list[tuple[str, str, int]] = []
    for name, cell in cells.items():
        student = _read_student(name, cell, labels, protocol, listed[name.partition("/")[0]])
        if student is None:
            problems.append(reader.describe(name, "is no cell of this run's manifest"))
            continue
        models |= student
        if name.startswith("cells/"):
            label, _, recipe, seed, *_ = next(iter(student))
            made.append((label, recipe, seed))
    for student in _list_students(manifest, study):
        if made.count(student) != 1:
            label, recipe, seed = student
            text = f"{made.count(student)} students of {label}, {recipe}, seed {seed}"
            problems.append(reader.describe("cells", text))
    (suspect,) = (t.label for t in manifest.teachers if t.role == "suspect")
    for each in replacement.further_training if replacement else ():
        key = each.content_key
        if key not in artefacts.get("further", {}):
            text = f"`further`: {key} is no artefact of this run"
            problems.append(reader.describe("replacement.json", text))
            continue
        place = (suspect, each.model_kind, each.recipe, each.seed, 0, each.step)
        models[place] = ExpectedModel(key, frozenset())
    baselines: set[Labels] = {
        (t.label, kind, "", -1, 0, -1)
        for t in list_own_teachers(manifest, study)
        for kind in protocol.baselines
    }
    return ExpectedModels(models, baselines), problems


def _read_student(
    name: str,
    cell: Mapping[str, Any],
    labels: Mapping[str, str],
    protocol: Protocol,
    listed: Mapping[str, str],
) -> dict[Labels, ExpectedModel] | None:
    """Return a student and its checkpoints; `None` if its record contradicts the manifest.

    Args:
        name: Of the file with its record.
        cell: The record.
        labels: Content key of a teacher -> its label.
        protocol: Of the run.
        listed: The students among the run's artefacts.
    """
    key = name.partition("/")[2].removesuffix(".json")
    replacement = protocol.replacement.recipes if protocol.replacement else ()
    recipes = {str(recipe.get("name")): recipe for recipe in (*protocol.recipes, *replacement)}
    label = labels.get(str(cell.get("teacher")))
    recipe, seed = recipes.get(str(cell.get("recipe"))), cell.get("seed")
    if cell.get("student") != key or key not in listed or type(seed) is not int:
        return None
    if label is None or recipe is None:
        return None
    models: dict[Labels, ExpectedModel] = {}
    for i, step in enumerate(_list_audited_steps(recipe)):
        checkpoint = derive_checkpoint_key(key, step) if i else key
        place = (label, "student", str(recipe["name"]), seed, _count_rounds(recipe), step)
        models[place] = ExpectedModel(checkpoint, frozenset())
    return models


def _list_students(manifest: Manifest, study: Study) -> Iterator[tuple[str, str, int]]:
    """Yield teacher, recipe and seed of every student that the protocol asks for."""
    for teacher in list_own_teachers(manifest, study):
        for recipe in manifest.protocol.recipe_names:
            for seed in range(manifest.protocol.seeds):
                yield teacher.label, recipe, seed


def _count_rounds(recipe: Mapping[str, Any]) -> int:
    """Return the number of earlier rounds of a recipe's last student."""
    treatments = recipe.get("treatments") or ()
    return sum(t.get("rounds", 0) for t in treatments if t.get("kind") == "filter")


def _list_audited_steps(recipe: Mapping[str, Any]) -> list[Any]:
    """Return the steps at which a recipe's students were audited, the last one first."""
    training = recipe.get("training")
    if not isinstance(training, Mapping):
        return [None]
    marks = training.get("marks")
    return [training.get("steps"), *(marks if isinstance(marks, list | tuple) else ())]


# --- transcripts ---------------------------------------------------------------------------------


class Questions(NamedTuple):
    """The questions of a run's packs: (audit, endpoint, item) -> the item, of each split."""

    by_split: dict[str, dict[tuple[str, str, str], Item]]

    def select(self, splits: frozenset[str]) -> dict[tuple[str, str, str], Item]:
        """Return the questions of some splits."""
        return {k: v for split in splits for k, v in self.by_split.get(split, {}).items()}


def list_pack_questions(packs: RecordedPacks, audits: Sequence[Audit]) -> Questions:
    """Return the questions that the audits ask of the packs' items.

    Raises:
        CannotCheck: If a pack is not at hand.
    """
    if packs.missing is not None:
        raise CannotCheck(f"items of the audits: {packs.missing}")
    pack, certify = packs.audit.pack, packs.certify.pack
    items = {"audit": pack.items("audit"), "select": pack.items("select")}
    items["certify"] = certify.items("certify")
    return Questions(
        {
            split: {
                (f"{audit.name}@{audit.version}", question.endpoint, question.item.id): (
                    question.item
                )
                for audit in audits
                for question in list_questions(audit, listed)
            }
            for split, listed in items.items()
        }
    )


def read_transcript_rows(
    reader: RunReader, models: Mapping[Labels, ExpectedModel], questions: Questions | None
) -> tuple[pd.DataFrame, set[Labels], list[str]]:
    """Return the rows that the transcripts give, the models that have them, and the problems.

    Args:
        reader: Of the run.
        models: Those that have to have transcripts.
        questions: What they were asked, where the packs are at hand.
    """
    import pandas as pd

    problems: list[str] = []
    complete: set[Labels] = set()
    columns: dict[str, list[Any]] = {}
    for labels, model in models.items():
        name = f"transcripts/{model.content_key}.jsonl"
        text = reader.read_text(name)
        if text is None:
            continue
        try:
            lines = parse_transcripts(text)
        except ValueError as error:
            problems.append(reader.describe(name, f"cannot be believed ({error})"))
            continue
        if questions is not None and model.splits:
            asked = questions.select(model.splits)
            problems += [reader.describe(name, text) for text in _find_wrong(lines, asked)]
        complete.add(labels)
        for column, values in tabulate_transcripts(labels, lines).items():
            columns.setdefault(column, []).extend(values)
    names = [*MODEL_COLUMNS, "audit", "endpoint", "item", "value"]
    rows = pd.DataFrame({name: columns.get(name, []) for name in names})
    return rows.astype({"value": "float64"}), complete, problems


def _find_wrong(
    lines: Sequence[TranscriptLine], asked: Mapping[tuple[str, str, str], Item]
) -> Iterator[str]:
    """Yield the first items that are missing, or that were not asked as the pack has them."""
    answered = {(line.audit, line.endpoint, line.item): line for line in lines}
    for audit, endpoint, item in [key for key in asked if key not in answered][:3]:
        yield f"the pack's item {item} ({audit}, {endpoint}) is missing"
    for key, line in answered.items():
        item = asked.get(key)
        if item is None:
            yield f"item {line.item} ({line.audit}, {line.endpoint}) is none of the pack's"
            return
        if line.audit.partition("@")[0] in _OPTION_AUDIT_NAMES and not _is_same(line, item):
            yield f"item {line.item} was not asked as the pack has it"
            return


def _is_same(line: TranscriptLine, item: Item) -> bool:
    """Return whether a transcript holds the question of an item."""
    messages = tuple({"role": m.role, "content": m.content} for m in item.messages)
    return (line.messages, line.target_option) == (messages, item.options[item.target_index])


def select_models(rows: pd.DataFrame, models: set[Labels]) -> pd.DataFrame:
    """Return the rows of some models."""
    import pandas as pd

    labels = pd.MultiIndex.from_frame(rows.loc[:, list(MODEL_COLUMNS)])
    # `round` and `step` aside, so that a row with another one is compared, too.
    places = {(*model[:4], model[5]) for model in models}
    short = labels.droplevel("round")
    return rows.loc[short.isin(list(places)), :] if places else rows.head(0)


def find_label_problems(
    rows: pd.DataFrame, models: ExpectedModels, without_answers: set[str]
) -> Iterator[str]:
    """Yield models that have rows and should not, or that have none.

    A teacher in `without_answers`, of whose answers none was left, need not have baselines.
    """
    present = set(rows.loc[:, list(MODEL_COLUMNS)].drop_duplicates().itertuples(index=False))
    present = {tuple(each) for each in present}
    expected = {*models.transcribed, *models.baselines}
    needed = expected - {place for place in models.baselines if place[0] in without_answers}
    for text, places in (
        ("no row of {}", [place for place in needed if place not in present]),
        ("rows of {}, no model of this run", [p for p in present if p not in expected]),
    ):
        for place in sorted(places, key=str)[:5]:
            names = dict(zip(MODEL_COLUMNS, place, strict=True))
            yield text.format(
                f"{names['model_kind']} {names['teacher']}, recipe {names['recipe'] or '-'}, seed "
                f"{names['seed']}, round {names['round']}, step {names['step']}"
            )


def find_item_problems(
    rows: pd.DataFrame, models: Mapping[Labels, ExpectedModel], questions: Questions
) -> Iterator[str]:
    """Yield rows whose role or split is not that of the pack's item."""
    splits = {split for model in models.values() for split in model.splits}
    asked = questions.select(frozenset(splits))
    kinds = {labels[1] for labels in models}
    own = rows.loc[rows["model_kind"].isin(sorted(kinds)), :]
    keys = own.loc[:, ["audit", "endpoint", "item", "role", "split"]].drop_duplicates()
    wrong = [
        row
        for row in keys.itertuples(index=False)
        if (item := asked.get((row.audit, row.endpoint, row.item))) is not None
        and (row.role, row.split) != (item.role, item.split)
    ]
    for row in wrong[:5]:
        same = (own["item"] == row.item) & (own["role"] == row.role) & (own["split"] == row.split)
        first = own.loc[same, :].iloc[0].to_dict()
        item = asked[row.audit, row.endpoint, row.item]
        yield (
            f"`role` and `split` are {row.role} and {row.split}, the pack's {item.role} and "
            f"{item.split}, for {describe_row(first)}"
        )


# --- panels --------------------------------------------------------------------------------------


def find_recorded_panel(
    study: Study, protocol_panel: str, folder: NamedFolder
) -> tuple[Path, Panel]:
    """Return the panel of a run: one below `folder`, or that of a built-in pack, by its hash.

    Raises:
        CannotCheck: If it is not at hand.
    """
    references = study.references
    name = references.panel if isinstance(references, BankReferences) else None
    if name is None:
        raise CannotCheck("rows of the panel's teachers: the manifest's study names no panel")
    shipped = Path(str(files("doublebind.packs")))
    places = [shipped / pack / "panel" for pack in BUILT_IN_PACKS]
    if folder.holds(name):
        places.insert(0, folder.path / name)
    reasons: list[str] = []
    for place in places:
        try:
            if not (place / PANEL).is_file():
                continue
            panel = read_panel(place)
        except (DoublebindError, OSError, ValueError) as error:
            reasons.append(str(error).splitlines()[0])
            continue
        if panel.hash == protocol_panel:
            return place, panel
        if place == folder.path / name or place.parent.name == name:
            reasons.append(f"{place} is another panel than the run's")
    reason = reasons[0] if reasons else f"no panel {name} is in {folder.path}, or built in"
    raise CannotCheck(f"rows of the panel's teachers: {reason}; name its parent folder")


def check_panel_teachers(
    manifest: Manifest, study: Study, panel: Panel, where: Path
) -> Iterator[str]:
    """Yield differences between a run's teachers and those that its study draws of the panel."""
    references = study.references
    if not isinstance(references, BankReferences):
        yield "`study.references`: names no panel, and the protocol has one"
        return
    own = {teacher.label for teacher in list_own_teachers(manifest, study)}
    recorded = [t for t in manifest.teachers if t.label not in own]
    try:
        drawn = draw_teachers(panel, references, where)
    except DoublebindError as error:
        yield error.problems[0]
        return
    for i, (ours, theirs) in enumerate(zip(_dump(recorded), _dump(drawn), strict=False)):
        for place, a, b in find_differences(ours, theirs):
            yield f"`teachers`: `{place}` of the panel's teacher {i} is {a!r}, in the panel {b!r}"
    if len(recorded) != len(drawn):
        yield f"`teachers`: {len(recorded)} of the panel, the study draws {len(drawn)}"


def _dump(teachers: Sequence[Teacher]) -> list[dict[str, Any]]:
    return [teacher.model_dump(mode="json") for teacher in teachers]


def compare_panel_rows(
    rows: pd.DataFrame, teachers: Sequence[Teacher], panel: Panel, where: Path
) -> Iterator[str]:
    """Compare the rows of a panel's teachers with the panel's, by content key.

    Args:
        rows: Those of the run's teachers that are the panel's.
        teachers: The run's teachers.
        panel: As frozen.
        where: Folder of the panel.
    """
    names = {teacher.content_key: teacher.label for teacher in panel.teachers}
    labels = {
        names[teacher.content_key]: teacher.label
        for teacher in teachers
        if teacher.content_key in names
    }
    expected = read_panel_scores(where, list(labels))
    expected = expected.assign(teacher=expected["teacher"].map(lambda label: labels[label]))
    yield from compare_rows(rows, expected, "the panel", _ALL_COLUMNS)
