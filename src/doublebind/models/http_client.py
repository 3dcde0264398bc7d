"""HTTP client of a model server: no redirects, one key, deadlines, retries, capped responses.

Besides Ray and fsspec this is the only module that opens a connection. Whatever a server or a
library says passes `strike_keys` before anything else sees it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import email.utils
import functools
import json
import logging
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from doublebind.models.api_keys import (
    check_server_url,
    describe_host,
    is_loopback,
    list_proxy_passwords,
    strike_keys,
)
from doublebind.models.server_answers import shorten
from doublebind.schema.model_source import ServedModel, ServerOptions

log = logging.getLogger("doublebind.serve")

SCHEME = "openai:"
MAX_RESPONSE_BYTES = 16 * 2**20
"""Largest response that is read, in bytes."""
DEADLINE_FACTOR = 4
"""Multiple of `served.timeout` after which a try has failed, however often a byte comes."""
MAX_RETRY_AFTER = 300.0
"""Longest wait, in seconds, that a server's `Retry-After` may ask for."""
_ONE_PROMPT_STATUS = frozenset({400, 413, 414, 415, 422, 451})
"""HTTP statuses that refuse one request; others of 4xx refuse all."""
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429})
"""HTTP statuses below 500 after which a retry may succeed."""


class RequestRefused(Exception):
    """The server refused, and a retry would not help."""

    def __init__(self, problem: str, status: int) -> None:
        """Keep the HTTP status; 0 where there was no response."""
        super().__init__(problem)
        self.status = status


class NoAnswer(Exception):
    """The server gave no answer to this one request; others may have one."""

    def __init__(self, reason: str, status: int = 200) -> None:
        """Keep the HTTP status."""
        super().__init__(reason)
        self.status = status


class Temporary(Exception):
    """The server did not answer, or may answer a retry."""

    def __init__(self, reason: str, status: int, *, was_sent: bool = True) -> None:
        """Keep the HTTP status, 0 where there was no response, and whether a server was reached."""
        super().__init__(reason)
        self.status, self.was_sent = status, was_sent


class _Unreadable(Temporary):
    """A response with status 200 that cannot be read; a retry may be."""


Attempt = Callable[[], AbstractContextManager[None]]
"""Returns the context of one try, which may refuse it and sees its exception."""


@dataclass
class HttpClient:
    """Requests to one server: rate limit, deadline, retries with backoff."""

    served: ServedModel
    lock: threading.Lock = field(default_factory=threading.Lock)
    next_at: float = 0.0
    """Monotonic time before which no request begins."""

    @property
    def limits(self) -> ServerOptions:
        """Options of the server."""
        return self.served.options

    @property
    def where(self) -> str:
        """Reference of the model, for messages."""
        return f"{SCHEME}{self.served.url}#{shorten(self.served.model)}"

    @functools.cached_property
    def _key(self) -> str | None:
        return check_server_url(self.served.url, self.limits.api_key_env)

    @functools.cached_property
    def _proxy(self) -> str | None:
        return find_environment_proxy(self.served.url)

    def strike(self, text: str) -> str:
        """Return a text without the key and without the proxy's password."""
        keys = [*([self._key] if self._key else []), *list_proxy_passwords(self._proxy)]
        return strike_keys(text, keys)

    def request(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        plain: bool = False,
        attempt: Attempt = contextlib.nullcontext,
    ) -> dict[str, Any]:
        """Return the JSON object of the response, after retries if needed.

        Args:
            path: Appended to the server's URL.
            body: Sent as JSON; `None` sends a GET.
            plain: Whether the response is not JSON; the result is then empty.
            attempt: Context that each try is made in.

        Raises:
            ModelError: If the URL or the key may not be used.
            NoAnswer: If the server refuses this one request, or its response cannot be read.
            RequestRefused: If the server refuses, or all tries fail.
        """
        check_server_url(self.served.url, self.limits.api_key_env)
        retrying = Retrying(
            stop=stop_after_attempt(self.limits.tries),
            wait=wait_random_exponential(multiplier=0.5, max=60.0),  # full jitter
            retry=retry_if_exception_type(Temporary),
            before_sleep=self._log_failure,
            reraise=True,
        )
        try:
            return retrying(self._attempt, path, body, plain, attempt)
        except _Unreadable as error:
            raise NoAnswer(f"{error}, {self.limits.tries} times") from None
        except Temporary as error:
            raise RequestRefused(
                f"{self.where}: no answer after {self.limits.tries} tries ({error}); answers so "
                f"far are kept, rerun to go on",
                error.status,
            ) from None

    def _log_failure(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.info("%s: try %d failed (%s)", self.where, state.attempt_number, error)

    def _attempt(
        self, path: str, body: Mapping[str, Any] | None, plain: bool, attempt: Attempt
    ) -> dict[str, Any]:
        self._wait()
        with attempt():
            try:
                return self._send(path, body, plain)
            except (httpx2.HTTPError, httpx2.InvalidURL, ImportError, OSError) as error:
                # Connection lost, timeout, or a SOCKS proxy without its extra.
                reason = self.strike(f"{type(error).__name__}: {error}")
                was_sent = not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                raise Temporary(shorten(reason), 0, was_sent=was_sent) from None

    def _send(self, path: str, body: Mapping[str, Any] | None, plain: bool) -> dict[str, Any]:
        # Uncompressed, so that a small response cannot grow beyond the limit.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
        url = f"{self.served.url}/{path}"
        with self._deadline() as (extensions, is_over):
            try:
                with self._client.stream(
                    method, url, content=data, headers=headers, extensions=extensions
                ) as response:
                    if not response.is_success:
                        raise self._classify_failure(response)
                    content = _read_response(response)
                if is_over.is_set():  # a body without a length ends where the connection does
                    raise httpx2.ReadTimeout("")
            except (httpx2.HTTPError, OSError):
                if is_over.is_set():
                    raise Temporary(f"slower than {self._longest:g} s in all", 0) from None
                raise
        return {} if plain else self._parse_response(content)

    @property
    def _longest(self) -> float:
        """Seconds that a try may take in all."""
        return DEADLINE_FACTOR * self.limits.timeout

    @contextlib.contextmanager
    def _deadline(self) -> Iterator[tuple[dict[str, Any], threading.Event]]:
        """Shut the connection when a try takes too long, though bytes still come."""
        streams: list[Any] = []
        is_over = threading.Event()

        def note_stream(event: str, info: Mapping[str, Any]) -> None:
            if event.endswith(("connect_tcp.complete", "start_tls.complete")):
                streams.append(info["return_value"])

        def shut() -> None:
            is_over.set()
            for stream in streams:
                with contextlib.suppress(Exception):
                    connection = stream.get_extra_info("socket")
                    # Of a TLS connection the plain part: its own may wait for an answer.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

        timer = threading.Timer(self._longest, shut)
        timer.daemon = True
        timer.start()
        try:
            yield {"trace": note_stream}, is_over
        finally:
            timer.cancel()

    def _parse_response(self, content: bytes) -> dict[str, Any]:
        """Return the JSON object in a response's body.

        Raises:
            NoAnswer: If it is an error of this one request.
            Temporary: If it is none, or another error.
        """
        text = self.strike(content.decode("utf-8", "replace"))
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as error:
            kind = "nested too deep" if isinstance(error, RecursionError) else shorten(error, 80)
            raise _Unreadable(f"not a JSON object ({kind}: {shorten(text, 80)})", 200) from None
        if not isinstance(answer, dict):
            raise _Unreadable(f"not a JSON object ({shorten(text, 80)})", 200)
        error = answer.get("error") or _find_choice_error(answer)
        if error:
            code = error.get("code", error.get("status")) if isinstance(error, dict) else None
            reason = f"an error in a response with status 200 ({shorten(json.dumps(error))})"
            if code in ("content_filter", "content_policy_violation", *_ONE_PROMPT_STATUS):
                raise NoAnswer(reason)
            raise _Unreadable(reason, 200)
        return answer

    @functools.cached_property
    def _client(self) -> httpx2.Client:
        """HTTP client that keeps neither cookies nor connections between requests."""
        return httpx2.Client(
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=self.limits.timeout,
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            proxy=self._proxy,
            trust_env=False,
            verify=ssl.create_default_context(),
        )

    def _classify_failure(self, response: httpx2.Response) -> Exception:
        """Return the exception for an HTTP status; obey `Retry-After`."""
        status = response.status_code
        if status in _TRANSIENT_STATUS or status >= 500:
            self._postpone(response.headers.get("Retry-After"))
            return Temporary(f"HTTP {status}", status)
        if 300 <= status < 400:
            host = _find_host(response.headers.get("Location", ""))
            problem = (
                f"{self.where}: HTTP {status} redirects to {shorten(self.strike(host))}, and "
                "redirects are not followed; name the address that it redirects to"
            )
            return RequestRefused(problem, status)
        try:
            text = shorten(self.strike(_read_start(response).decode("utf-8", "replace")), 300)
        except httpx2.HTTPError:
            text = ""
        if status in _ONE_PROMPT_STATUS:
            return NoAnswer(f"HTTP {status} ({text}); check the request's limits", status)
        remedy = "check the request's limits"
        if status in (401, 403):
            remedy = f"set ${self.limits.api_key_env}"
        elif status == 404:
            remedy = "check the URL and the model's name"
        return RequestRefused(f"{self.where}: HTTP {status} ({text}); {remedy}", status)

    def _wait(self) -> None:
        """Wait until the rate limit allows the next request."""
        gap = 60.0 / self.limits.requests_per_minute if self.limits.requests_per_minute else 0.0
        with self.lock:
            now = time.monotonic()
            at = max(now, self.next_at)
            self.next_at = at + gap
        if at > now:
            time.sleep(at - now)

    def _postpone(self, retry_after: str | None) -> None:
        """Let no request begin before the server's `Retry-After` is over."""
        seconds = read_retry_after(retry_after, dt.datetime.now(dt.UTC))
        if seconds > 0:
            with self.lock:
                self.next_at = max(self.next_at, time.monotonic() + seconds)


def read_retry_after(value: str | None, now: dt.datetime) -> float:
    """Return the seconds that `Retry-After` asks for, at most `MAX_RETRY_AFTER`; 0 if unreadable.

    Args:
        value: A number of seconds or an HTTP date.
        now: This machine's time, UTC.
    """
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(value)
        except (ValueError, TypeError):
            return 0.0
        date = date if date.tzinfo else date.replace(tzinfo=dt.UTC)
        seconds = (date - now).total_seconds()
    # Also of nan, for which no comparison holds.
    return min(seconds, MAX_RETRY_AFTER) if seconds > 0 else 0.0


def find_environment_proxy(url: str) -> str | None:
    """Return the proxy that the environment names for a URL, as urllib reads it.

    `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` count, `ALL_PROXY` does not. A server on this machine
    is never asked through a proxy, which would see its key.
    """
    parts = urllib.parse.urlsplit(url)
    if is_loopback(parts.hostname or ""):
        return None
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _find_choice_error(answer: Mapping[str, Any]) -> Any:
    """Return the error that stands in place of an answer's text, as some routers write it."""
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first.get("error") if isinstance(first, dict) else None


def _find_host(location: str) -> str:
    """Return scheme, host and port of a redirect; a path stays on the same host."""
    try:
        parts = urllib.parse.urlsplit(location)
        if not parts.hostname:
            return "another path" if location else "nowhere"
        return describe_host(parts.scheme, parts.hostname, parts.port)
    except ValueError:
        return "an address that cannot be read"


def _read_start(response: httpx2.Response, limit: int = 4000) -> bytes:
    """Return the first `limit` bytes of a response's body, undecoded."""
    content = bytearray()
    for chunk in response.iter_raw():
        content += chunk
        if len(content) >= limit:
            break
    return bytes(content[:limit])


def _read_response(response: httpx2.Response) -> bytes:
    """Return a response's body.

    Raises:
        NoAnswer: If it is compressed, or larger than `MAX_RESPONSE_BYTES`.
    """
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise NoAnswer(f"the response is compressed ({shorten(coding, 20)}), unasked")
    content = bytearray()
    for chunk in response.iter_raw():
        content += chunk
        if len(content) > MAX_RESPONSE_BYTES:
            raise NoAnswer(f"the response is larger than {MAX_RESPONSE_BYTES // 2**20} MiB")
    return bytes(content)
