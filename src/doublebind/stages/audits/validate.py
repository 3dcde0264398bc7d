"""Checks of the audits that users bring, before anything is computed with them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, get_args

from doublebind.schema.content import ItemKind
from doublebind.schema.errors import ConfigError
from doublebind.schema.hashing import to_canonical_json
from doublebind.stages.audits.protocol import Audit

_ITEM_KINDS = get_args(ItemKind)


def check_audits(audits: Sequence[Any], built_in_names: Sequence[str], *, in_workers: bool) -> None:
    """Raise a `ConfigError` with one line per problem with a user's audits.

    Args:
        audits: Objects passed as `audits`.
        built_in_names: Names of the study's own audits, which are taken.
        in_workers: Whether other processes call the audits, so that they are pickled.
    """
    problems = [problem for audit in audits for problem in _find_problems(audit, in_workers)]
    names = [*built_in_names, *(str(getattr(audit, "name", "")) for audit in audits)]
    problems += [
        f"two are called `{name}`, and their scores could not be told apart; rename one"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if problems:
        raise ConfigError(*(f"`audits`: {problem}" for problem in problems))


def _find_problems(audit: Any, in_workers: bool) -> list[str]:
    kind = audit if isinstance(audit, type) else type(audit)
    kind_name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(audit, type):
        return [f"{kind_name} is a class; pass an object of it, `{kind.__name__}()`"]
    if not isinstance(audit, Audit):
        members = ("name", "version", "endpoints", "__call__")
        missing = ", ".join(f"`{name}`" for name in members if not hasattr(audit, name))
        return [f"{kind_name} lacks {missing}; docs/tutorial.md shows an audit"]
    if kind.__module__ in ("builtins", "functools") or "<locals>" in kind.__qualname__:
        return [
            f"{audit.name}: {kind_name} cannot be told from another by its name; define a class at "
            "the top of a module, and pass an object of it"
        ]
    problems: list[str] = []
    if not isinstance(audit.version, int) or isinstance(audit.version, bool):
        problems.append(f"`version` is {audit.version!r}; make it a whole number")
    if isinstance(audit.endpoints, str) or not audit.endpoints:
        problems.append(f"`endpoints` is {audit.endpoints!r}; make it a tuple of kinds")
    else:
        problems += [
            f"`endpoints`: {name!r} is no kind of item; use one of {', '.join(_ITEM_KINDS)}"
            for name in audit.endpoints
            if name not in _ITEM_KINDS
        ]
    try:
        to_canonical_json(vars(audit))
    except TypeError as error:
        problems.append(f"its fields must be plain data, because they enter keys ({error})")
    if in_workers and kind.__module__ == "__main__" and not _main_is_a_file():
        problems.append(
            "worker processes cannot import it from here; move it to a file, or set "
            "`executor.workers` to 1"
        )
    return [f"{audit.name}: {problem}" for problem in problems]


def _main_is_a_file() -> bool:
    return getattr(sys.modules["__main__"], "__file__", None) is not None
