"""Makes hostile text visible: invisible characters are written as escapes, lengths are capped."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

MAX_LABEL_CHARS = 120
"""Characters shown of a name."""

_RANGES = (
    # controls, with ANSI's escape; soft hyphen
    *((0x00, 0x08), (0x0B, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD)),
    # joiner, Arabic marks
    *((0x034F, 0x034F), (0x0600, 0x0605), (0x061C, 0x061C), (0x06DD, 0x06DD), (0x070F, 0x070F)),
    *((0x0890, 0x0891), (0x08E2, 0x08E2)),
    # letters without ink
    *((0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x3164, 0x3164), (0xFFA0, 0xFFA0)),
    # zero width, separators, direction overrides
    *((0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F)),
    # blank braille, selectors (not emoji's), specials
    *((0x2800, 0x2800), (0xFE00, 0xFE0E), (0xFEFF, 0xFEFF), (0xFFF0, 0xFFFF)),
    (0xD800, 0xDFFF),  # lone surrogates: no UTF-8 file can hold them
    *((0x110BD, 0x110BD), (0x110CD, 0x110CD), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3)),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),  # tags and selectors, used to smuggle whole sentences
)
"""Control and format characters, separators other than space, tab and line feed, and blanks."""

_HIDDEN = re.compile(f"[{''.join(f'{chr(a)}-{chr(b)}' for a, b in _RANGES)}]+")

HIDDEN_IN_SCRIPT = f"[{''.join(f'{chr(92)}u{{{a:x}}}-{chr(92)}u{{{b:x}}}' for a, b in _RANGES)}]+"
"""The same characters as a pattern of the page's script, with flag `u`."""


def is_hidden(text: str) -> bool:
    """Return whether `text` holds a character that is not seen, or that acts on a display."""
    return _HIDDEN.search(text) is not None


def _write_escapes(match: re.Match[str]) -> str:
    return "".join(
        f"\\x{point:02x}"
        if point < 0x100
        else f"\\u{point:04x}"
        if point < 0x10000
        else f"\\U{point:08x}"
        for point in map(ord, match[0])
    )


def escape_invisible(text: str) -> str:
    r"""Return `text` with every invisible character written as an escape.

    Example:
        >>> escape_invisible("a\x1b[31mb\u202ec")
        'a\\x1b[31mb\\u202ec'
    """
    return _HIDDEN.sub(_write_escapes, text)


def mark_invisible(text: str) -> Markup:
    """Return `text` as HTML, with our escapes in elements of their own: no text can forge them."""
    parts: list[str] = []
    end = 0
    for match in _HIDDEN.finditer(text):
        parts.append(str(escape(text[end : match.start()])))
        parts.append(f'<span class="esc">{_write_escapes(match)}</span>')
        end = match.end()
    parts.append(str(escape(text[end:])))
    # Every part is escaped above.
    return Markup("".join(parts))


def shorten(text: object, limit: int = MAX_LABEL_CHARS) -> str:
    """Return at most `limit` characters of `text`, saying how many were left out."""
    whole = str(text)
    if len(whole) <= limit:
        return whole
    return f"{whole[:limit]}… ({len(whole) - limit:,} more characters)"
