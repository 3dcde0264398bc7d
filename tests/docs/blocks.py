"""Reads the code blocks of a Markdown page, and runs them as a reader would.

A line before a block says what a reader cannot see: `<!-- not run: WHY -->`, `<!-- needs: MODULE
-->` or `<!-- run on: FOLDER (WHY) -->`, where the study in FOLDER stands in for `study.yaml`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from doublebind.cli.main import main
from doublebind.packs.folder import PackHeader
from doublebind.schema.content import Item, Prompt, Transcript
from doublebind.schema.errors import ConfigError
from doublebind.schema.study import Study
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.schema.yaml_loader import load_yaml, read_yaml, validate_content

_BLOCK = re.compile(
    r"(?:^<!-- (?P<directive>not run|needs|run on): (?P<argument>[^\n]*?) -->\n)?"
    r"^```(?P<language>[a-z]+)(?: title=(?P<title>\S+))?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """One block with a language; those without are output, trees and messages."""

    page: str
    line: int
    directive: str | None
    argument: str
    language: str
    title: str | None
    code: str


def blocks(path: Path, root: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(
            path.relative_to(root).as_posix(),
            text.count("\n", 0, m.start("code")),
            m["directive"],
            m["argument"] or "",
            m["language"],
            m["title"],
            m["code"],
        )
        for m in _BLOCK.finditer(text)
    ]


class Reader:
    """Someone who follows a page from its top, in the current folder."""

    def __init__(self, *, standins: bool) -> None:
        self.standins = standins
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def follow(self, block: Block) -> None:
        """Do what a block says; an assertion names what does not work."""
        if block.directive == "not run":
            assert len(block.argument) > 10, "say why it is not run"
            return
        if block.directive == "needs" and importlib.util.find_spec(block.argument) is None:
            return
        if block.directive == "run on" and self.standins:
            folder = Path(block.argument.partition(" ")[0])
            for file in folder.iterdir():
                Path(file.name).unlink(missing_ok=True)
                Path(file.name).symlink_to(file)
        match block.language:
            case "sh":
                for line in block.code.splitlines():
                    self.command(line)
            case "python":
                where = f"{block.page}:{block.line}"
                exec(compile(block.code, where, "exec", dont_inherit=True), self.names)
            case "yaml":
                self.yaml(block)
            case "json":
                self.json(block)
            case other:
                raise AssertionError(f"{block.page}:{block.line}: nobody runs {other}")

    def command(self, line: str) -> None:
        argv = shlex.split(line, comments=True)
        if not argv:
            return
        if Path(argv[0]).name == "doublebind":
            assert main(argv[1:]) == 0, line
        elif argv[0] == "python":
            before = sys.argv
            sys.argv = argv[1:]
            with contextlib.redirect_stdout(sys.stderr):
                runpy.run_path(argv[1], run_name="__main__")
            sys.argv = before
        else:
            subprocess.run(line, shell=True, check=True)

    def yaml(self, block: Block) -> None:
        """Write a file with a title; check that it is a study, spec or pack header."""
        path = Path(block.title or "untitled.yaml")
        path.write_text(block.code)
        for kind in (Study, TeacherSpec):
            with contextlib.suppress(ConfigError):
                load_yaml(kind, path)
                return
        validate_content(PackHeader, read_yaml(path), f"{block.page}:{block.line}")

    def json(self, block: Block) -> None:
        row = json.loads(block.code)
        kind = Item if "options" in row else Transcript if "purpose" in row else Prompt
        kind.model_validate(row)
