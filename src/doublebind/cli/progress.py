"""Shows how many cells of each kind are finished."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import Progress, TaskID


class ProgressBar:
    """A progress bar per kind of cell on stderr; silent where stderr is no terminal."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBar:
        """Start the bar where someone sees it."""
        if sys.stderr.isatty():
            self.bar = Progress(console=Console(stderr=True))
            self.bar.start()
        return self

    def update(self, kind: str, finished: int, total: int) -> None:
        """Show that `finished` of `total` cells of a kind are there."""
        if self.bar is None:
            return
        if kind not in self.tasks:
            self.tasks[kind] = self.bar.add_task(kind, total=total)
        self.bar.update(self.tasks[kind], completed=finished, total=total)

    def __exit__(self, *_: object) -> None:
        """Stop the bar."""
        if self.bar is not None:
            self.bar.stop()
