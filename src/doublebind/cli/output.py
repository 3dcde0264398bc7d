"""Writes what a command shows: stdout carries its result, stderr its progress and errors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console, RenderableType

from doublebind.cli import tables
from doublebind.schema.hashing import Record
from doublebind.schema.yaml_loader import MAX_PROBLEMS
from doublebind.stages.verdict.outcome import verdict_to_json

if TYPE_CHECKING:
    from doublebind.runs.run import Run


def print_verdict(run: Run, as_json: bool) -> None:
    """Print the verdict of a run as JSON, as a panel where stdout is a terminal, or as lines."""
    from doublebind.runs.run import explain_contradictions

    with explain_contradictions(run.path):
        if as_json:
            print_result(verdict_to_json(run.verdict), True)
        elif sys.stdout.isatty():
            _print_rich(tables.render_verdict(run))
        else:
            write_text("\n".join(tables.format_verdict_lines(run)))


def print_result(
    result: Any, as_json: bool, render: Callable[[Any], RenderableType] | None = None
) -> None:
    """Print a result as JSON, as a table where stdout is a terminal, or as YAML."""
    content = result.model_dump(mode="json") if isinstance(result, Record) else result
    if as_json:
        write_text(tables.dump_json(content))
    elif render and sys.stdout.isatty():
        _print_rich(render(result))
    else:
        write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip())


# Whatever a command shows passes one of these two, progress bars apart, which name kinds of cells.


def write_text(text: str, *, error: bool = False) -> None:
    """Write lines to stdout or stderr, with what acts on a terminal escaped."""
    stream = sys.stderr if error else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = tables.escape_text(text).encode(encoding, "backslashreplace").decode(encoding)
    print(shown, file=stream)


def _print_rich(content: RenderableType) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    console.print(tables.Escaped(content))


class _EscapedRecord(logging.LogRecord):
    """A log record of any library: its message may quote a file."""

    def getMessage(self) -> str:
        return tables.escape_text(super().getMessage())


class _EscapedFormatter(logging.Formatter):
    """Escapes tracebacks, too."""

    def format(self, record: logging.LogRecord) -> str:
        return tables.escape_text(super().format(record))


def escape_logs() -> None:
    """Let warnings and logs, of libraries too, reach stderr escaped."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_EscapedFormatter("%(name)s: %(message)s"))
    logging.setLogRecordFactory(_EscapedRecord)
    logging.captureWarnings(True)


def print_errors(problems: Sequence[str]) -> int:
    """Write one line per problem to stderr, and return the exit code 2."""
    for problem in problems[:MAX_PROBLEMS]:
        write_text(f"error: {tables.shorten(tables.escape_line(problem))}", error=True)
    if len(problems) > MAX_PROBLEMS:
        write_text(f"error: and {len(problems) - MAX_PROBLEMS} more problems", error=True)
    return 2
