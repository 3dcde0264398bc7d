"""Makes hostile text visible: what a reader could not see is written out, and lengths are capped.

Knows Unicode. Does not know HTML beyond one mark around what was written out; escaping of markup
is left to autoescape.
"""

from __future__ import annotations

import re

from markupsafe import Markup, escape

LABEL = 120
"""Characters shown of a name."""

_HIDDEN = re.compile(
    "["
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\xad"  # controls, with ANSI's escape; soft hyphen
    r"\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2"  # joiner, Arabic marks
    r"\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0"  # letters without ink
    r"\u200b-\u200f\u2028-\u202e\u2060-\u206f"  # zero width, separators, direction overrides
    r"\u2800\ufe00-\ufe0e\ufeff\ufff0-\uffff"  # blank braille, selectors (not emoji's), specials
    r"\ud800-\udfff"  # lone surrogates: no UTF-8 file can hold them
    r"\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff"  # tags and selectors, used to smuggle whole sentences
    "]+"
)
"""Control and format characters, separators other than space, tab and line feed, and blanks."""


def _written_out(found: re.Match[str]) -> str:
    return "".join(
        f"\\x{point:02x}"
        if point < 0x100
        else f"\\u{point:04x}"
        if point < 0x10000
        else f"\\U{point:08x}"
        for point in map(ord, found[0])
    )


def plain(text: str) -> str:
    r"""Return `text` with everything that has no ink written as an escape.

    Example:
        >>> plain("a\x1b[31mb\u202ec")
        'a\\x1b[31mb\\u202ec'
    """
    return _HIDDEN.sub(_written_out, text)


def visible(text: str) -> Markup:
    """Return `text` as HTML: escaped, with what was written out marked, so that none is forged."""
    parts: list[str] = []
    end = 0
    for found in _HIDDEN.finditer(text):
        parts.append(str(escape(text[end : found.start()])))
        parts.append(f'<span class="esc">{_written_out(found)}</span>')
        end = found.end()
    parts.append(str(escape(text[end:])))
    # Every part is escaped above; the mark and the escapes hold no markup of the text's.
    return Markup("".join(parts))


def short(text: object, limit: int = LABEL) -> str:
    """Return at most `limit` characters of `text`, saying how many were left out."""
    whole = str(text)
    if len(whole) <= limit:
        return whole
    return f"{whole[:limit]}… ({len(whole) - limit:,} more characters)"
