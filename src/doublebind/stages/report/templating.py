"""Fills a template of ours: what a value becomes on a page, and what that page may load.

Knows Jinja and the security policy. Every text of a run passes `shown`, then autoescape; style and
script are ours and named by hash in the policy.
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
from doublebind.stages.report.tables.run import Absent

_NUMBER_PATTERN = re.compile(r"-?\d[\d.e-]*%?( of \d+| \(-?[\d.]+ to -?[\d.]+\))?")
"""What a cell holds that is never broken over lines: `0.1`, `3 of 39`, `0.1 (0.0 to 0.2)`."""


def render_template(template: str, **values: Any) -> str:
    """Return a page: a template of this package with its policy, style and script, and `values`."""
    found = _build_environment().get_template(template)
    return found.render(
        csp=_build_policy(),
        style=_read_asset("report.css"),
        script=_read_asset("report.js"),
        **values,
    )


def format_number(value: float) -> str:
    """Return a number with four significant digits; never rounds to 0 what is not 0."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def format_value(value: object) -> object:
    """Return what the template writes for a value: every expression of the page passes here."""
    match value:
        case Markup():
            return value
        case str():
            return mark_invisible(value)
        case Absent(reason):
            said = mark_invisible(reason or "no reason was recorded")
            return Markup('<span class="absent">not available: {}</span>').format(said)
        case bool() | None:
            raise TypeError(f"{value} has no place on the page; say it in words")
        case float():
            return format_number(value)
    return value


# --- the page's own parts ------------------------------------------------------------------------


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
    environment.globals.update(absent=Absent, plain=escape_invisible)
    environment.tests["absent"] = lambda value: isinstance(value, Absent)
    environment.tests["figure"] = lambda value: bool(_NUMBER_PATTERN.fullmatch(str(value)))
    return environment


@cache
def _build_policy() -> str:
    """Return the page's security policy: nothing loads, only our style and script run.

    Trusted types besides: no script, ours included, can turn text into markup.
    """

    def hashed(name: str) -> str:
        digest = hashlib.sha256(_read_asset(name).encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    return (
        f"default-src 'none'; script-src {hashed('report.js')}; "
        f"style-src {hashed('report.css')}; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
