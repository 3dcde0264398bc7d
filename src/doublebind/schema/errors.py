"""Every error a user can fix, as one tree.

    DoublebindError
    ├── ConfigError     (ValueError)   a study, spec or override that does not validate
    ├── PackError       (ValueError)   content that breaks the pack format
    ├── ModelError      (ValueError)   a model that cannot be found, read or trusted
    │   └── NothingToDistil            a teacher of whose answers none is left to distil on
    ├── RunError        (ValueError)   a run directory that is busy, altered or of another study
    ├── StoreError      (OSError)      a store that cannot be read or written
    └── MissingExtra    (ImportError)  a feature whose optional dependency is absent

Each carries one line per problem; a line names the key or file, the value and the remedy. The
command line prints the lines and exits with 2; anything else that escapes is our bug.
"""

from __future__ import annotations

from collections.abc import Sequence

_MAX_DESCRIPTION = 600
"""Characters of a library's error that are shown."""


class DoublebindError(Exception):
    """Root of the tree; holds one or more problems, one line each."""

    def __init__(self, *problems: str) -> None:
        """Keep `problems`, each a sentence that says what to change."""
        super().__init__(*problems)
        self.problems = tuple(to_line(problem) for problem in problems)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by problems and attributes, so that every subclass crosses processes."""
        return rebuild_error, (type(self), self.problems), dict(self.__dict__)

    def __str__(self) -> str:
        """Return the problems, one per line."""
        return "\n".join(self.problems)


def to_line(text: str) -> str:
    """Return `text` as one line, without characters that a terminal would obey."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)


def describe_error(error: BaseException) -> str:
    """Return a library's error as one line: its type and its whole message, cut in the middle.

    Libraries name the tensor or file in a later line of their messages.
    """
    text = to_line(f"{type(error).__name__}: {error}").removesuffix(": ")
    half = _MAX_DESCRIPTION // 2
    return text if len(text) <= _MAX_DESCRIPTION else f"{text[:half]} ... {text[-half:]}"


def rebuild_error(kind: type[DoublebindError], problems: Sequence[str]) -> DoublebindError:
    """Return an error of type `kind` with `problems`, whatever its constructor takes."""
    error = kind.__new__(kind)
    DoublebindError.__init__(error, *problems)
    return error


class ConfigError(DoublebindError, ValueError):
    """A study, teacher spec or override that does not validate."""


class PackError(DoublebindError, ValueError):
    """Pack content that breaks the format."""


class ModelError(DoublebindError, ValueError):
    """A model that cannot be found, read or trusted."""


class NothingToDistil(ModelError):
    """A teacher of whose answers none is left to distil on: its students cannot be made."""


class RunError(DoublebindError, ValueError):
    """A run directory that is busy, altered, or belongs to another study."""


class StoreError(DoublebindError, OSError):
    """A store that cannot be read or written."""


class MissingExtra(DoublebindError, ImportError):
    """A feature whose optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        """Say which `extra` brings `feature`."""
        super().__init__(f'{feature} needs an extra: pip install "doublebind[{extra}]"')
