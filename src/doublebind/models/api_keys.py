"""API keys: read from the environment, struck out of texts, and named with the host they go to."""

from __future__ import annotations

import base64
import functools
import html
import ipaddress
import json
import logging
import os
import re
import urllib.parse
from collections.abc import Iterable

from doublebind.schema.errors import ModelError

log = logging.getLogger("doublebind.serve")

ENGINE_KEY = "VLLM_API_KEY"
"""Environment variable with the key of a vLLM server, which reads it from there, too."""
STRUCK = "[key]"
"""What stands in place of a key."""
_SHORTEST = 4
"""Characters of the shortest key that is struck: a shorter one is part of any text."""
_FRAGMENT = 8
"""Characters of a key in a row that are struck, too."""
_FRAGMENT_TEXT = 2**18
"""Longest text, in characters, that is searched for fragments."""
_BETWEEN = r"(?:\s|\\[nrt]|%0[adAD]|[\u200b-\u200d\u2060\ufeff\u00ad])*"
"""What may stand between two characters of a key: line breaks and invisible characters."""


def read_api_key(variable: str) -> str | None:
    """Return the key in an environment variable; `None` if the variable is absent or empty.

    Raises:
        ModelError: If the key holds a character that no header may hold; the key is not shown.
    """
    key = os.environ.get(variable)
    if not key:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ModelError(
            f"${variable}: the key holds a space, a line break or a character beyond ASCII; "
            "set the variable to the key alone"
        )
    return key


def check_server_url(url: str, variable: str) -> str | None:
    """Return the key in `variable` if it may travel to the server at `url`; `None` without one.

    Raises:
        ModelError: If the URL has no host, holds a name, password or query, which would be printed
            and kept, or if the key would travel in plain text to another machine.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not host or re.search(r"[\x00-\x20\x7f]", url):
        raise ModelError("a server's URL is not of the form http://host:port/v1; write it so")
    place = describe_host(parts.scheme, host, port)
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise ModelError(
            f"{place}: the server's URL holds a name, a password or a query, which files would "
            "keep; leave it out, and put the key into the variable of `served.api_key_env`"
        )
    key = read_api_key(variable)
    if key and parts.scheme == "http" and not is_loopback(host):
        raise ModelError(
            f"{place}: the key in ${variable} would travel unencrypted; use https, empty the "
            "variable, or name another in `served.api_key_env`"
        )
    if key:
        tell_destination(variable, place)
    return key


def hide_credentials(ref: str) -> str:
    """Return a URL, or a reference that holds one, without name, password and query."""
    return re.sub(r"\?[^#]*", "", re.sub(r"(:/*)[^/#]*@", r"\1", ref))


def describe_host(scheme: str, host: str, port: int | None) -> str:
    """Return scheme, host and port of a URL, without what else it holds."""
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}:{port}" if port else f"{scheme}://{name}"


@functools.lru_cache(maxsize=64)
def tell_destination(variable: str, place: str) -> None:
    """Say once per process where a key goes, before it is sent."""
    log.warning("the key in $%s goes to %s", variable, place)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def list_environment_keys() -> list[str]:
    """Return the values of environment variables that are named like API keys."""
    named = re.compile(r"(API_?KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)
    return [value for name, value in os.environ.items() if named.search(name) and len(value) >= 8]


def list_proxy_passwords(proxy: str | None) -> list[str]:
    """Return name and password in a proxy's URL."""
    if not proxy:
        return []
    parts = urllib.parse.urlsplit(proxy)
    return [urllib.parse.unquote(part) for part in (parts.username, parts.password) if part]


def strike_keys(text: str, keys: Iterable[str]) -> str:
    """Return `text` without keys, as they are, encoded, escaped, broken into lines or in part."""
    for key in keys:
        if len(key) < _SHORTEST:
            continue
        text = _compile_pattern(key).sub(STRUCK, text)
        fragments = _compile_fragments(key)
        if fragments is not None and len(text) <= _FRAGMENT_TEXT:
            text = fragments.sub(STRUCK, text)
    return text


@functools.lru_cache(maxsize=64)
def _compile_pattern(key: str) -> re.Pattern[str]:
    """Return a pattern of a key, each character plain or encoded, and of its base64 and hex."""
    spelled = _BETWEEN.join(_spell_character(c) for c in key)
    raw = key.encode()
    cores = {raw.hex()}
    for offset in range(3):  # base64 of `user:key` depends on the length of `user:`
        coded = base64.b64encode(b"\0" * offset + raw).rstrip(b"=").decode()
        start = -(-8 * offset // 6)
        core = coded[start : (8 * (offset + len(raw))) // 6]
        cores |= {core, core.replace("+", "-").replace("/", "_")}
    encoded = sorted((c for c in cores if len(c) >= 5), key=len, reverse=True)
    spelled_cores = [_BETWEEN.join(_spell_character(c) for c in core) for core in encoded]
    return re.compile("|".join([spelled, *spelled_cores]), re.IGNORECASE)


def _spell_character(c: str) -> str:
    """Return a pattern of a character: itself, or as URL, JSON or HTML write it."""
    code = ord(c)
    plain = {re.escape(c), re.escape(json.dumps(c)[1:-1]), re.escape(html.escape(c))}
    if not c.isalnum():
        plain.add(rf"\\+{re.escape(c)}")
    written = [rf"%(?:25)*{code:02x}", rf"\\+u{code:04x}", rf"\\+x{code:02x}"]
    written += [rf"&#0*{code};", rf"&#x0*{code:x};"]
    return f"(?:{'|'.join([*sorted(plain, key=len, reverse=True), *written])})"


@functools.lru_cache(maxsize=64)
def _compile_fragments(key: str) -> re.Pattern[str] | None:
    """Return a pattern of the parts of a key; `None` for a key too short to have any."""
    if len(key) < 2 * _FRAGMENT:
        return None
    parts = {key[i : i + _FRAGMENT] for i in range(len(key) - _FRAGMENT + 1)}
    windows = "|".join(map(re.escape, sorted(parts)))
    # Lookaheads overlap, so that a run of several windows is struck as a whole.
    return re.compile(rf"(?:(?=(?:{windows})).)+.{{{_FRAGMENT - 1}}}", re.DOTALL)
