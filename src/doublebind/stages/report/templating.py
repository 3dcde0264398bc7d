"""Renders the Jinja templates of the package's pages, each with its content security policy.

Every text of a run passes `format_value`, then autoescape. Style and script are the package's own,
and the policy names them by hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from doublebind.stages.report.hostile_text import escape_invisible, mark_invisible
from doublebind.stages.report.tables.table import Absent, Table

_NUMBER_PATTERN = re.compile(r"-?\d[\d.e-]*%?( of \d+| \(-?[\d.]+ to -?[\d.]+\))?")
"""Content of a cell that is never broken over lines: `0.1`, `3 of 39`, `0.1 (0.0 to 0.2)`."""


def render_template(template: str, **values: Any) -> str:
    """Return a page from a template of this package and the values in it."""
    page = _build_environment().get_template(template)
    return page.render(
        csp=_build_policy(),
        style=_read_asset("report.css"),
        script=_read_asset("report.js"),
        **values,
    )


def format_number(value: float) -> str:
    """Return a number with four significant digits, so that only 0 is written as 0."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def format_value(value: object) -> object:
    """Return what the page shows for a value; every expression of a template passes here."""
    match value:
        case Markup():
            return value
        case str():
            return mark_invisible(value)
        case Absent(reason):
            text = mark_invisible(reason or "no reason was recorded")
            return Markup('<span class="absent">not available: {}</span>').format(text)
        case bool() | None:
            raise TypeError(f"{value} cannot be shown on the page; pass a text")
        case float():
            return format_number(value)
    return value


# --- parts of the package ------------------------------------------------------------------------


@cache
def _read_asset(name: str) -> Markup:
    # Written by us, not by a model: style and script go into the page as they are.
    return Markup(_read_source(name))


def _read_source(name: str) -> str:
    return files("doublebind.stages.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _build_environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_source),
        autoescape=True,
        finalize=format_value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(absent=Absent, table=Table, plain=escape_invisible)
    environment.tests["absent"] = lambda value: isinstance(value, Absent)
    environment.tests["numeric"] = lambda value: bool(_NUMBER_PATTERN.fullmatch(str(value)))
    return environment


@cache
def _build_policy() -> str:
    """Return the content security policy: nothing loads, and only our style and script run.

    Trusted types forbid every script, ours included, to turn text into markup.
    """

    def source(name: str) -> str:
        digest = hashlib.sha256(_read_asset(name).encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    return (
        f"default-src 'none'; script-src {source('report.js')}; "
        f"style-src {source('report.css')}; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
