"""Looks over audits that a user brings, before anything is computed with them.

Knows what an object must be for its scores to be keyed and pickled. Runs no audit.
"""

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
    """Raise a `ConfigError` with one line per problem with the audits a user brings.

    Args:
        audits: What was passed as `audits`.
        built_in: Names of the study's own audits, which are taken.
        elsewhere: Whether other processes call the audits, so that they are pickled.
    """
    problems = [
        f"`audits`: {what}" for audit in audits for what in _find_problems(audit, in_workers)
    ]
    names = [*built_in_names, *(str(getattr(audit, "name", "")) for audit in audits)]
    problems += [
        f"`audits`: two are called `{name}`, and their scores could not be told apart; rename one"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if problems:
        raise ConfigError(*problems)


def _find_problems(audit: Any, in_workers: bool) -> list[str]:
    kind = audit if isinstance(audit, type) else type(audit)
    shown = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(audit, type):
        return [f"{shown} is a class; pass an object of it, `{kind.__name__}()`"]
    if not isinstance(audit, Audit):
        wanted = ("name", "version", "endpoints", "__call__")
        lacking = ", ".join(f"`{name}`" for name in wanted if not hasattr(audit, name))
        return [f"{shown} lacks {lacking}; docs/tutorial.md shows an audit"]
    if kind.__module__ in ("builtins", "functools") or "<locals>" in kind.__qualname__:
        return [
            f"{audit.name}: {shown} cannot be told from another by its name; define a class at the "
            "top of a module, and pass an object of it"
        ]
    found = []
    if not isinstance(audit.version, int) or isinstance(audit.version, bool):
        found.append(f"{audit.name}: `version` is {audit.version!r}; make it a whole number")
    if isinstance(audit.endpoints, str) or not audit.endpoints:
        found.append(f"{audit.name}: `endpoints` is {audit.endpoints!r}; make it a tuple of kinds")
    else:
        found += [
            f"{audit.name}: `endpoints`: {name!r} is no kind of item; one of {', '.join(_ITEM_KINDS)}"
            for name in audit.endpoints
            if name not in _ITEM_KINDS
        ]
    try:
        to_canonical_json(vars(audit))
    except TypeError as error:
        found.append(
            f"{audit.name}: its fields must be plain data, which its scores are keyed by ({error})"
        )
    if in_workers and kind.__module__ == "__main__" and not _main_is_a_file():
        found.append(
            f"{audit.name}: worker processes cannot import it from here; move it to a file, or set "
            "`executor.workers` to 1"
        )
    return found


def _main_is_a_file() -> bool:
    return getattr(sys.modules["__main__"], "__file__", None) is not None
