"""Generates pages and schemas from the code: `python docs/generate.py`.

Writes the page on the commands, the page on the files that they write, and the JSON schemas that
editors complete YAML with. A test compares the files with what this would write.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel

from doublebind.cli.main import app
from doublebind.packs.folder import PackHeader
from doublebind.pipeline.plan import ArtefactCounts, PlanSummary, SimulatedPower
from doublebind.schema import content as records
from doublebind.schema.calibration import (
    Calibration,
    CertificateResult,
    DetectionRates,
    LeaveOneOutRates,
    Rate,
    ReplacementRates,
    TeacherResult,
)
from doublebind.schema.evidence import Evidence, LikelihoodRatio, Power, Transfer
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Manifest, Protocol
from doublebind.schema.score_table import SCORE_COLUMNS
from doublebind.schema.study import PanelSpec, Study
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.schema.verdict import Incrimination, Verdict

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "doublebind"
SCHEMAS: dict[str, tuple[type[BaseModel], str]] = {
    "study": (Study, "A study: the suspect, and how to investigate it."),
    "panel": (PanelSpec, "A panel: a study without suspect and policy."),
    "teacher": (TeacherSpec, "How a teacher is made."),
    "pack": (PackHeader, "`pack.yaml`: a pack's name, traits and score endpoints."),
    "item": (records.Item, "One line of a pack's `items/*.jsonl`."),
    "prompt": (records.Prompt, "One line of a pack's `prompts/*.jsonl`."),
    "transcript": (records.Transcript, "One line of a pack's `build/*.jsonl`."),
}
MADE = "<!-- Written by `python docs/generate.py`; change the code, then run it. -->\n\n"


def pages() -> dict[Path, str]:
    """Return path -> content of every generated file."""
    generated = {
        ROOT / "docs" / "cli.md": MADE + "".join(command_line()),
        ROOT / "docs" / "files.md": MADE + "".join(files_of_a_run()),
        ROOT / "AGENTS.md": agents_page(),
    }
    for name, (model, what) in SCHEMAS.items():
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **model.model_json_schema(),
            "title": f"doublebind {name}",
            "description": what,
        }
        path = PACKAGE / "schema" / "json" / f"{name}.json"
        generated[path] = json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
    return generated


def agents_page() -> str:
    """Return AGENTS.md with the table of folders between its two markers written anew."""
    page = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    start, end = re.escape("<!-- layout:"), re.escape("<!-- /layout -->")
    table = "".join(folders())
    return re.sub(rf"({start}.*?-->\n).*?({end})", lambda m: m[1] + table + m[2], page, flags=re.S)


def folders() -> Iterator[str]:
    """Yield a table of the package's folders, in the order in which they may import."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (
        c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers"
    )
    yield (
        "A folder may import the folders below it, never one above it; folders in one row, and the "
        "stages, never import each other.\n\n"
    )
    yield "| in `src/doublebind` | does |\n|---|---|\n"
    for layer in contract["layers"]:
        names = [name.strip() for name in layer.split("|")]
        what = " · ".join(summary(name) for name in names)
        yield f"| {' · '.join(f'`{name}/`' for name in names)} | {what} |\n"
        if names == ["stages"]:
            for stage in sorted(p.parent.name for p in PACKAGE.glob("stages/*/__init__.py")):
                yield f"| &nbsp;&nbsp;`stages/{stage}/` | {summary(f'stages/{stage}')} |\n"


def summary(folder: str) -> str:
    """Return the first sentence of a package's docstring."""
    tree = ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n\n")[0].replace("\n", " ")


def command_line() -> Iterator[str]:
    """Yield the page on the commands."""
    yield "# Commands\n\n"
    yield (
        "stdout carries the result, with `--json` as one JSON document; stderr carries progress, "
        "where it is a terminal. Exit codes: 0 done, whatever the decision; 2 an error that you "
        "can correct, one line per problem; 130, 143 or 129 interrupted by SIGINT, SIGTERM or "
        "SIGHUP, which takes seconds and loses nothing finished; 1 a bug, or `verify` found a "
        "problem. Artefacts are kept in `--store`, `$DOUBLEBIND_STORE` or `~/.cache/doublebind`, "
        "and never computed twice; one whose files changed is refused, and made again once its "
        "folder is deleted.\n"
    )
    # Any: Typer carries a copy of Click whose types are not public.
    root: Any = typer.main.get_command(app)
    for path, command in _commands(root, ("doublebind",)):
        shown = [p for p in command.params if p.name != "help"]
        arguments = [p for p in shown if p.param_type_name == "argument"]
        options = [p for p in shown if p.param_type_name == "option"]
        usage = [*path, *(p.metavar or p.name.upper() for p in arguments)]
        usage += [f"{p.opts[0]} {_value(p)}" for p in options if p.required]
        yield f"\n## `{' '.join(path)}`\n\n{command.help.strip()}\n\n"
        yield f"    {' '.join(usage)}{' [options]' if options else ''}\n\n"
        yield "| | |\n|---|---|\n"
        for p in arguments:
            yield f"| `{p.metavar or p.name.upper()}` | {p.help} |\n"
        for p in options:
            yield f"| `{p.opts[0]}{_value(p, ' ')}` | {p.help}{_default(p)} |\n"


def _commands(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


def _value(p: Any, space: str = "") -> str:
    return "" if p.is_flag else f"{space}{p.metavar or p.name.upper()}"


def _default(p: Any) -> str:
    if p.required:
        return " Required."
    if p.is_flag or p.default is None:
        return ""
    return f" Default `{p.default}`."


def files_of_a_run() -> Iterator[str]:
    """Yield the page on the files that commands write."""
    yield "# The files of a run\n\n"
    yield (
        "`doublebind.Run(path)` reads them. A number that could not be computed is absent (in "
        "`evidence.json` null), never 0 or NaN, and `missing` says why.\n\n"
    )
    yield "| file | what |\n|---|---|\n"
    for name, what in (
        ("manifest.json", "the study and its protocol, frozen before the first audit"),
        ("ledger.jsonl", "every event of every artefact, failures too"),
        ("scores.parquet", "every item of every audited model"),
        ("shapes.json", "teacher -> feature -> number, for the match table"),
        ("evidence.json", "the statistics of the scores, before any decision"),
        ("verdict.json", "the decisions, with reasons"),
        ("transcripts/KEY.jsonl", "questions to the model with content key KEY, and its answers"),
        (
            "cells/KEY.json",
            "the student KEY: the keys of its inputs, the prompts and answers that were dropped",
        ),
        ("report.html", "all of it on one page"),
        ("followup.json", "written by `doublebind followup`"),
        ("seal.json", "the hashes of all files above, for `doublebind verify`"),
        ("seal.json.sig", "its SSH signature, written by `doublebind seal`; not sealed"),
        ("inspect/*.eval", "written by `doublebind export --inspect`; not sealed"),
    ):
        yield f"| `{name}` | {what} |\n"
    yield "\n## Columns of `scores.parquet`\n\n`doublebind.Run.columns`.\n\n"
    yield "| column | what it means |\n|---|---|\n"
    for name, what in SCORE_COLUMNS.items():
        yield f"| `{name}` | {what} |\n"
    for model, where in (
        (Manifest, "`manifest.json`"),
        (Protocol, "`protocol`, in the manifest"),
        (Teacher, "`teachers`, in the manifest"),
        (Verdict, "`verdict.json`"),
        (Incrimination, "`incrimination`, in the verdict"),
        (Power, "`power`"),
        (Evidence, "`evidence.json`"),
        (Transfer, "`transfer`, in the evidence"),
        (LikelihoodRatio, "`likelihood`, in the evidence"),
        (Calibration, "`calibration.json`, written by `doublebind calibrate`"),
        (TeacherResult, "`teachers`, in the calibration"),
        (DetectionRates, "`detection`: keys of `calibration.json` itself"),
        (LeaveOneOutRates, "`leave_one_out`: keys of `calibration.json` itself"),
        (ReplacementRates, "`replacement`: keys of `calibration.json` itself"),
        (CertificateResult, "`treatments`, in the calibration"),
        (Rate, "a rate of the calibration"),
        (PlanSummary, "the result of `doublebind plan --json`"),
        (ArtefactCounts, "`cells`, in the plan"),
        (SimulatedPower, "`power`, in the plan"),
    ):
        yield f"\n## {where[0].upper()}{where[1:]}\n\n{_flat(model.__doc__)}\n\n"
        yield "| key | type | what it means |\n|---|---|---|\n"
        for name, field in model.model_fields.items():
            key = field.serialization_alias or field.alias or name
            yield f"| `{key}` | {_kind(field.annotation)} | {_flat(field.description)} |\n"


def _flat(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _kind(annotation: Any) -> str:
    """Return a type in words that JSON has."""
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"`{annotation.__name__}`"
    parts = get_args(annotation)
    origin = getattr(annotation, "__origin__", None)
    if origin is dict:
        return f"{_kind(parts[0])} to {_kind(parts[1])}"
    if origin is tuple:
        return f"list of {_kind(parts[0])}"
    if parts and origin is None:  # a union
        return " or ".join(_kind(part) for part in parts)
    if parts:  # a literal
        return ", ".join(f"`{part}`" for part in parts)
    return {"str": "text", "float": "number", "int": "integer", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), "any"
    )


def main() -> None:
    """Write every generated file."""
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
