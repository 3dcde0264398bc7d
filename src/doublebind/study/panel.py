"""Frozen panels: references and their students' scores, measured once for many studies.

A panel is a folder: `panel.json` holds teachers and conditions, `scores.parquet` every item.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from doublebind.execution.store import file_sha256, storage_error, write_atomic
from doublebind.packs.load import refuse_namesake
from doublebind.schema.errors import ConfigError, RunError
from doublebind.schema.hashing import Record, content_hash
from doublebind.schema.model_source import Teacher
from doublebind.schema.read_file import check_regular, read_text
from doublebind.schema.strict_json import parse_json
from doublebind.schema.study import BankReferences, Baseline
from doublebind.study.jobs import REVISIONS
from doublebind.study.planner import Planner
from doublebind.study.protocol import list_audit_names, list_audit_settings
from doublebind.study.students import drop_checkpoints
from doublebind.study.teachers import find_hard_class

if TYPE_CHECKING:
    import pandas as pd

PANEL, SCORES = "panel.json", "scores.parquet"


class PanelConditions(Record):
    """What a study must share with a panel whose references it uses; fields as in `Protocol`.

    Earlier checkpoints of recipes are left out: they change no student that is weighed.
    """

    pack_hash: str
    recipes: tuple[dict[str, Any], ...]
    audits: tuple[str, ...]
    audit_settings: tuple[tuple[str, str, dict[str, Any]], ...]
    seeds: int
    dtype: str
    student: str
    revisions: dict[str, int]
    device: str = Field(default="cpu", exclude_if=lambda v: v == "cpu")
    jobs: str
    """Hash of one teacher's job keys, the teacher left blank: whatever enters a key moves it."""


class PanelStudent(Record):
    """One student of a panel's teacher."""

    recipe: str
    seed: int
    content_key: str = Field(validation_alias="key", serialization_alias="key")
    weights_sha256: str


class PanelTeacher(Record):
    """One teacher of a panel."""

    label: str
    role: Literal["reference", "organism"]
    family: str
    content_key: str = Field(validation_alias="key", serialization_alias="key")
    spec: dict[str, Any] | None
    """How it was built; `None` for a model that existed."""
    weights_sha256: str
    shape: dict[str, float]
    students: tuple[PanelStudent, ...]

    def to_teacher(self) -> Teacher:
        """Return the record that the evidence uses."""
        planted = self.role == "organism"
        return Teacher(
            label=self.label,
            ref=self.label,
            role=self.role,
            family=self.family,
            content_key=self.content_key,
            hard_class=find_hard_class(str(self.spec["pack"])) if self.spec and planted else None,
        )


class Panel(Record):
    """`panel.json`."""

    schema_version: Literal[2] = 2
    conditions: PanelConditions
    teachers: tuple[PanelTeacher, ...]
    """References in the order they were named, then organisms: positive controls."""
    baselines: tuple[Baseline, ...] = ()
    """Measured of every teacher, besides its students."""
    scores_sha256: str
    versions: dict[str, str]
    hardware: dict[str, Any]

    @property
    def hash(self) -> str:
        """Hash of the panel's content (hex)."""
        return content_hash(self)

    def select_role(self, role: str) -> list[PanelTeacher]:
        """Return the teachers of a role."""
        return [teacher for teacher in self.teachers if teacher.role == role]


def find_panel_folder(name: str, folder: Path) -> Path:
    """Return the folder of the panel `name`: a built-in pack's own panel, or a path.

    Raises:
        ConfigError: If there is none, or one of either kind.
    """
    path = folder / name
    shipped = Path(str(files("doublebind.packs") / name / "panel")) if name.isidentifier() else None
    if shipped is not None and (shipped / PANEL).is_file():
        refuse_namesake(name, path, PANEL, shipped, "`references.panel`")
        return shipped
    if not path.is_dir():
        raise ConfigError(
            f"`references.panel`: {name}: no such folder, and no built-in pack of that name ships "
            f"a panel; make one with `doublebind panel STUDY.yaml --out DIR`"
        )
    return path


def read_panel(folder: Path) -> Panel:
    """Return the panel in `folder`, its scores checked against their hash.

    Raises:
        RunError: If a file is missing, unreadable or altered.
    """
    path = folder / PANEL
    try:
        content = parse_json(read_text(path))
        first_version = isinstance(content, dict) and content.get("schema_version") == 1
        panel = None if first_version else Panel.model_validate(content)
        check_regular(folder / SCORES)
        altered = panel is not None and file_sha256(folder / SCORES) != panel.scores_sha256
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise RunError(f"{path}: cannot be read ({first}); restore it or make it again") from None
    if panel is None:
        raise RunError(
            f"{path}: `schema_version`: 1, which says neither what its prompts were nor how its "
            f"audits asked; make the panel again with `doublebind panel`, its artefacts are shared"
        )
    if altered:
        raise RunError(f"{folder / SCORES}: altered since the panel was frozen; restore it")
    return panel


def draw_teachers(panel: Panel, bank: BankReferences, where: Path) -> list[Teacher]:
    """Return `bank.n` references of the panel, drawn by `bank.seed`, and all its organisms.

    Raises:
        ConfigError: If the panel has too few references.
    """
    references = panel.select_role("reference")
    if bank.n > len(references):
        raise ConfigError(
            f"`references.n`: {bank.n}; the panel {where} has {len(references)}, ask for no more"
        )
    drawn = random.Random(f"panel/{bank.seed}").sample(references, bank.n)
    return [t.to_teacher() for t in (*drawn, *panel.select_role("organism"))]


def describe_conditions(planner: Planner) -> PanelConditions:
    """Return the conditions under which a study or a panel measures teachers."""
    spec = planner.study
    recipes = planner.identify_recipes([drop_checkpoints(recipe) for recipe in spec.recipes])
    return PanelConditions(
        pack_hash=planner.pack.sha256,
        recipes=tuple(recipe.model_dump(mode="json") for recipe in recipes),
        audits=list_audit_names(planner.audits),
        audit_settings=list_audit_settings(planner.audits),
        seeds=spec.seeds,
        dtype=spec.dtype,
        device=spec.device,
        student=planner.student_base.sha256,
        revisions=REVISIONS,
        jobs=planner.hash_shared_keys(),
    )


def check_panel(
    panel: Panel, conditions: PanelConditions, baselines: Sequence[Baseline], where: Path
) -> None:
    """Check that a panel was measured under a study's conditions, and has its baselines.

    Raises:
        ConfigError: One line for each value that differs.
    """
    theirs, ours = (each.model_dump(mode="json") for each in (panel.conditions, conditions))
    differences = list(_list_differences(theirs, ours))
    if [place for place, _, _ in differences] != ["jobs"]:
        # The hash of the keys differs with any other condition, and alone only where one has no
        # field of its own.
        differences = [each for each in differences if each[0] != "jobs"]
    problems = [
        f"`references.panel`: {where}: was measured with other {place.replace('_', ' ')} "
        f"({_show(a)}) than this study's ({_show(b)}); make both alike, or make a panel for this "
        f"study"
        for place, a, b in differences
    ]
    problems += [
        f"`baselines`: {name}: the panel {where} has no such baseline; leave it out"
        for name in baselines
        if name not in panel.baselines
    ]
    if problems:
        raise ConfigError(*problems)


def _list_differences(theirs: Any, ours: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the places in which two JSON values differ, with both values; `None` is absent."""
    theirs, ours = _name_entries(theirs), _name_entries(ours)
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in {**theirs, **ours}:
            inner = f"{place}.{key}" if place else str(key)
            yield from _list_differences(theirs.get(key), ours.get(key), inner)
    elif theirs != ours:
        yield place, theirs, ours


def _name_entries(value: Any) -> Any:
    """Return a list of recipes or audits as name -> entry; any other value as it is."""
    if not isinstance(value, list) or not value:
        return value
    if all(isinstance(entry, dict) and "name" in entry for entry in value):
        return {str(entry["name"]): entry for entry in value}
    if all(isinstance(entry, list) and len(entry) == 3 for entry in value):
        return {f"{i}.{name}": fields for i, (_, name, fields) in enumerate(value)}
    return value


def _show(value: Any) -> str:
    """Return a value as an error shows it, hashes cut short."""
    text = "absent" if value is None else str(value)
    return text[:12] if len(text) == 64 else text[:80]


def read_panel_scores(folder: Path, labels: list[str]) -> pd.DataFrame:
    """Return the score rows of the teachers `labels` and their students."""
    import pandas as pd

    rows = pd.read_parquet(folder / SCORES)
    return rows.loc[rows["teacher"].isin(labels), :].reset_index(drop=True)


def write_panel(out: Path, panel: Panel, rows: pd.DataFrame) -> Panel:
    """Write a panel's two files into `out`; return it with the hash of its scores.

    Values are rounded to six decimals, below any item's noise, so that a shipped file is small.
    """
    rows = rows.assign(value=rows["value"].round(6))
    try:
        out.mkdir(parents=True, exist_ok=True)
        part = out / f".{SCORES}"
        rows.to_parquet(part, index=False, compression="zstd")
        part.replace(out / SCORES)
    except OSError as error:
        raise storage_error(error, out) from error
    sealed = panel.model_copy(update={"scores_sha256": file_sha256(out / SCORES)})
    write_atomic(out / PANEL, sealed.model_dump_json(indent=1))
    return sealed
