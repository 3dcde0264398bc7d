"""Frozen panels: references and their students' scores, measured once for many studies.

A panel is a folder: `panel.json` holds teachers and conditions, `scores.parquet` every item.
"""

from __future__ import annotations

import random
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from doublebind.execution.store import file_sha256, storage_error, write_atomic
from doublebind.schema.errors import ConfigError, RunError
from doublebind.schema.hashing import Record, content_hash
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.schema.read_file import check_regular, read_text
from doublebind.schema.study import BankReferences, Baseline
from doublebind.study.teachers import find_hard_class

if TYPE_CHECKING:
    import pandas as pd

PANEL, SCORES = "panel.json", "scores.parquet"


class PanelConditions(Record):
    """What a study must share with a panel whose references it uses."""

    pack_hash: str
    recipes: tuple[dict[str, Any], ...]
    audits: tuple[str, ...]
    seeds: int
    dtype: str
    student: str
    revisions: dict[str, int]
    device: str = Field(default="cpu", exclude_if=lambda v: v == "cpu")


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

    schema_version: int = 1
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
    """Return the folder of the panel `name`: a path, or a built-in pack's own panel."""
    path = folder / name
    if path.is_dir():
        return path
    shipped = Path(str(files("doublebind.packs") / name / "panel")) if name.isidentifier() else None
    if shipped is None or not (shipped / PANEL).is_file():
        raise ConfigError(
            f"`references.panel`: {name}: no such folder, and no built-in pack of that name ships "
            f"a panel; make one with `doublebind panel STUDY.yaml --out DIR`"
        )
    return shipped


def read_panel(folder: Path) -> Panel:
    """Return the panel in `folder`, its scores checked against their hash.

    Raises:
        RunError: If a file is missing, unreadable or altered.
    """
    path = folder / PANEL
    try:
        panel = Panel.model_validate_json(read_text(path))
        check_regular(folder / SCORES)
        altered = file_sha256(folder / SCORES) != panel.scores_sha256
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise RunError(f"{path}: cannot be read ({first}); restore it or make it again") from None
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


def _drop_checkpoints(conditions: PanelConditions) -> PanelConditions:
    """Return conditions without earlier checkpoints, which change no student that is weighed."""
    recipes = tuple(
        recipe | {"training": {k: v for k, v in recipe["training"].items() if k != "marks"}}
        for recipe in conditions.recipes
    )
    return conditions.model_copy(update={"recipes": recipes})


def check_panel(panel: Panel, protocol: Protocol, where: Path) -> None:
    """Raise a `ConfigError` naming every condition in which the panel differs from a protocol."""
    names = PanelConditions.model_fields
    ours = PanelConditions(**{name: getattr(protocol, name) for name in names})
    ours, theirs = _drop_checkpoints(ours), _drop_checkpoints(panel.conditions)
    differing = [name for name in names if getattr(ours, name) != getattr(theirs, name)]
    lacking = [name for name in protocol.baselines if name not in panel.baselines]
    if lacking:
        raise ConfigError(
            f"`baselines`: {lacking[0]}: the panel {where} has no such baseline; leave it out"
        )
    if differing:
        raise ConfigError(
            *(
                f"`references.panel`: {where}: was measured with other {name.replace('_', ' ')} "
                f"than this study's; make both alike, or make a panel for this study"
                for name in differing
            )
        )


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
