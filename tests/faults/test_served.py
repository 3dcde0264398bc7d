"""What a server may do wrong: each misbehaviour has its right outcome, and no key leaves."""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model_server import ModelServer

from doublebind.models import api_keys
from doublebind.models import openai_client as client
from doublebind.models.answer_journal import Journal
from doublebind.models.http_client import MAX_RESPONSE_BYTES, read_retry_after
from doublebind.models.server_answers import Completion, check_probes, parse_echoed_logprobs
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ModelSource, ServedModel, ServerOptions

KEY = "sk-Proj/4f9+Zq=8h2-Lm0Qw7Rt5"
HOW: dict[str, Any] = {"seed": 0, "max_tokens": 8, "temperature": 1.0}


class Reply(NamedTuple):
    """A raw response: status, headers, body; seconds between bytes where it drips."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    drip: float = 0.0
    """Seconds between single bytes of the body."""
    drip_headers: bool = False
    has_length: bool = True


def chat(content: Any = "fine", **changes: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 5}
    return {"model": "m", "choices": [choice], "usage": usage} | changes


def of_choice(**changes: Any) -> dict[str, Any]:
    content = chat()
    content["choices"][0] |= changes
    return content


def of_message(**changes: Any) -> dict[str, Any]:
    content = chat()
    content["choices"][0]["message"] |= changes
    return content


def say(content: Any, status: int = 200, **headers: str) -> Reply:
    named = tuple((k.replace("_", "-"), v) for k, v in headers.items())
    return Reply(status, json.dumps(content).encode(), named)


class RawServer:
    """Answers each prompt by a list of replies, the last of which repeats; others are answered."""

    def __init__(self) -> None:
        self.replies: dict[str, list[Any]] = {}
        self.default: Any = None
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.lock = threading.Lock()
        raw = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                with raw.lock:
                    raw.requests.append((self.path, dict(self.headers), None))
                self.write(say({"data": [{"id": "m"}]}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"] if "messages" in body else "ids"
                with raw.lock:
                    raw.requests.append((self.path, dict(self.headers), body))
                    replies = raw.replies.get(text, [raw.default or say(chat(f"to {text}"))])
                    reply = replies.pop(0) if len(replies) > 1 else replies[0]
                self.write(reply(body) if callable(reply) else reply)

            def write(self, reply: Reply | None) -> None:
                self.close_connection = True
                if reply is None:
                    return
                lines = [f"HTTP/1.1 {reply.status} x", "Connection: close"]
                lines += [f"{name}: {value}" for name, value in reply.headers]
                if reply.has_length:
                    lines.append(f"Content-Length: {len(reply.body)}")
                head = "\r\n".join([*lines, "", ""]).encode()
                slow = head + reply.body if reply.drip_headers else reply.body
                try:
                    if not reply.drip_headers:
                        self.wfile.write(head)
                    if not reply.drip:
                        self.wfile.write(slow)
                        return
                    for byte in slow:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(reply.drip)
                except OSError:
                    pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def source(self, **limits: Any) -> ModelSource:
        options = ServerOptions(**{"timeout": 2.0, "tries": 3, "concurrency": 4} | limits)
        served = ServedModel(url=self.url, model="m", declared={"id": "m"}, options=options)
        return ModelSource(
            kind="served", path=f"openai:{self.url}#m", sha256="0" * 64, served=served
        )

    def ask(self, cache: Path, n: int = 3, **limits: Any) -> list[Completion]:
        texts = [f"prompt {i}" for i in range(n)]
        messages = [(Message(role="user", content=text),) for text in texts]
        lm = client.connect_served_model(self.source(**limits), cache)
        return lm.sample(messages, keys=texts, **HOW)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RawServer]:
    for name in ("OPENAI_API_KEY", "MY_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)  # no waiting between tries
    client.query_declared_facts.cache_clear()
    api_keys.tell_destination.cache_clear()
    raw = RawServer()
    yield raw
    raw.close()


# --- one prompt without an answer (D1, D3, D5) ---------------------------------------------------

DEEP = b"[" * 200_000
NO_ANSWER: dict[str, tuple[Any, str]] = {
    "no choices": (say(chat(choices=[])), "choices"),
    "choices null": (say(chat(choices=None)), "choices"),
    "choices absent": (say({"model": "m"}), "choices"),
    "choices a mapping": (say(chat(choices={"0": 1})), "choices"),
    "choices a text": (say(chat(choices="yes")), "choices"),
    "choice null": (say(chat(choices=[None])), "protocol"),
    "choice a text": (say(chat(choices=["yes"])), "protocol"),
    "message null": (say(of_choice(message=None)), "protocol"),
    "message a list": (say(of_choice(message=["yes"])), "protocol"),
    "content null": (say(chat(None)), "content is null"),
    "content absent": (say(of_choice(message={"role": "assistant"})), "content is null"),
    "content a number": (say(chat(7)), "content is int"),
    "content a boolean": (say(chat(True)), "content is bool"),
    "content parts": (say(chat([{"type": "text", "text": "yes"}])), "content is list"),
    "refusal": (say(of_message(content=None, refusal="I will not")), "refusal: I will not"),
    "refusal beside content": (say(of_message(refusal="no")), "refusal: no"),
    "tool call": (say(of_message(content=None, tool_calls=[{"id": "1"}])), "tool call"),
    "tool call beside content": (say(of_message(tool_calls=[{"id": "1"}])), "tool call"),
    "function call": (say(of_message(function_call={"name": "f"})), "tool call"),
    "content filter": (say(of_choice(finish_reason="content_filter")), "content_filter"),
    "finish reason error": (say(of_choice(finish_reason="error")), "finish_reason: error"),
    "half a character": (Reply(200, rb'{"choices":[{"message":{"content":"a\ud800"}}]}'), "half"),
    "the other half": (Reply(200, rb'{"choices":[{"message":{"content":"\udfffa"}}]}'), "half"),
    "halves in the wrong order": (
        Reply(200, rb'{"choices":[{"message":{"content":"\udc00\ud800"}}]}'),
        "half",
    ),
    "HTML page": (Reply(200, b"<html><body>Sign in</body></html>"), "Sign in"),
    "truncated JSON": (Reply(200, b'{"choices": [{"mess'), "not a JSON object"),
    "empty body": (Reply(200, b""), "not a JSON object"),
    "a list": (Reply(200, b"[]"), "not a JSON object"),
    "null": (Reply(200, b"null"), "not a JSON object"),
    "a text": (Reply(200, b'"yes"'), "not a JSON object"),
    "not UTF-8": (Reply(200, b"\xff\xfe\x00{}"), "not a JSON object"),
    "nested without end": (Reply(200, DEEP), "not a JSON object"),
    "a number of many digits": (Reply(200, b'{"choices": ' + b"9" * 9000 + b"}"), "JSON"),
    "stream of events": (Reply(200, b'data: {"choices": []}\n\n'), "not a JSON object"),
    "gzip unasked": (
        Reply(200, gzip.compress(json.dumps(chat()).encode()), (("Content-Encoding", "gzip"),)),
        "compressed",
    ),
    "gzip bomb": (
        Reply(200, gzip.compress(b" " * 10**7), (("Content-Encoding", "gzip"),)),
        "compressed",
    ),
    "too large": (Reply(200, b" " * (MAX_RESPONSE_BYTES + 9)), "larger than 16 MiB"),
    "HTTP 400 policy": (say({"error": {"code": "content_policy"}}, 400), "content_policy"),
    "HTTP 413": (say({"error": "too long"}, 413), "HTTP 413"),
    "HTTP 422": (say({"detail": "unprocessable"}, 422), "unprocessable"),
    "HTTP 451": (say({"error": "law"}, 451), "HTTP 451"),
    "filter in a 200": (say({"error": {"code": "content_filter"}}), "content_filter"),
    "400 in a 200": (say({"error": {"code": 400, "message": "bad"}}), "bad"),
    "lasting error in a 200": (say({"error": {"message": "overloaded"}}), "overloaded"),
    "lasting error in a choice": (say(of_choice(error={"code": 502})), "502"),
    "error as text": (say({"error": "overloaded"}), "overloaded"),
    "escape sequences": (say({"error": "\x1b]0;x\x07\x1b[2J"}, 400), "HTTP 400"),
}


@pytest.mark.parametrize("name", NO_ANSWER)
def test_one_prompt_without_an_answer_is_one_missing_answer(
    server: RawServer, tmp_path: Path, name: str
) -> None:
    reply, reason = NO_ANSWER[name]
    server.replies["prompt 1"] = [reply]
    answers = server.ask(tmp_path)
    assert [a.text for a in answers] == ["to prompt 0", "", "to prompt 2"]
    missing = answers[1].missing or ""
    assert reason in missing
    assert "\n" not in missing
    assert "\x1b" not in missing
    assert len(missing) <= 400
    assert [a.missing for a in (answers[0], answers[2])] == [None, None]
    n = len(server.requests)
    assert server.ask(tmp_path) == answers, "resumed"
    assert len(server.requests) == n, "a missing answer is not asked for again"


@pytest.mark.parametrize("name", ["no choices", "HTML page", "HTTP 400 policy", "half a character"])
def test_a_server_that_answers_nothing_ends_the_run_and_is_asked_again_later(
    server: RawServer, tmp_path: Path, name: str
) -> None:
    server.default = NO_ANSWER[name][0]
    with pytest.raises(ModelError, match="none of 3 prompts has an answer") as stopped:
        server.ask(tmp_path)
    assert len(stopped.value.problems) == 1
    server.default = None
    assert [a.missing for a in server.ask(tmp_path)] == [None] * 3


def test_a_server_that_answers_nothing_is_given_up_on_early(
    server: RawServer, tmp_path: Path
) -> None:
    server.default = say(chat(choices=[]))
    with pytest.raises(ModelError, match="has an answer"):
        server.ask(tmp_path, n=200)
    assert len(server.requests) < 40


# --- what ends the run, and what is tried again (D1, C2) -----------------------------------------

REFUSED: dict[str, tuple[Any, str]] = {
    "HTTP 401": (say({"error": "who?"}, 401), r"HTTP 401 .*set \$OPENAI_API_KEY"),
    "HTTP 403": (say({"error": "no"}, 403), "HTTP 403"),
    "HTTP 404": (say({"error": "model not found"}, 404), "HTTP 404 .*model's name"),
    "HTTP 405": (say({}, 405), "HTTP 405"),
    "HTTP 410": (say({}, 410), "HTTP 410"),
    "another model": (say(chat(model="other")), "two models"),
} | {
    f"HTTP {status}": (
        say({}, status, Location="http://u:pw@elsewhere.invalid:99/x?api_key=k"),
        rf"HTTP {status} redirects to http://elsewhere\.invalid:99, and",
    )
    for status in (301, 302, 303, 307, 308)
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_of_all_prompts_ends_the_run_in_one_line(
    server: RawServer, tmp_path: Path, name: str
) -> None:
    reply, message = REFUSED[name]
    server.replies["prompt 1"] = [reply]
    with pytest.raises(ModelError, match=message) as stopped:
        server.ask(tmp_path, concurrency=1)
    assert len(stopped.value.problems) == 1
    assert "pw" not in str(stopped.value)
    assert "api_key=" not in str(stopped.value)


TRANSIENT: dict[str, Any] = {
    **{f"HTTP {s}": say({"error": "later"}, s) for s in (408, 409, 425, 429, 500, 502, 503, 504)},
    "HTTP 529": say({}, 529),
    "Retry-After of 0": say({}, 429, Retry_After="0"),
    "Retry-After long ago": say({}, 503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "Retry-After nonsense": say({}, 503, Retry_After="soon"),
    "Retry-After negative": say({}, 503, Retry_After="-5"),
    "Retry-After nan": say({}, 503, Retry_After="nan"),
    "reset": None,
    "error in a 200": say({"error": {"message": "overloaded", "code": 529}}),
    "error in a choice": say(of_choice(error={"message": "overloaded"})),
    "truncated once": Reply(200, b'{"cho'),
    "HTML once": Reply(200, b"<html>"),
    "short body": Reply(200, b'{"cho', (("Content-Length", "999"),), has_length=False),
    "read timeout": Reply(200, b"xxxx", drip=1.0),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_what_passes_is_tried_again(server: RawServer, tmp_path: Path, name: str) -> None:
    server.replies["prompt 1"] = [TRANSIENT[name], say(chat("to prompt 1"))]
    timeout = 0.4 if name == "read timeout" else 2.0
    answers = server.ask(tmp_path, timeout=timeout)
    assert [a.text for a in answers] == [f"to prompt {i}" for i in range(3)]
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30", 30.0),
        ("1.5", 1.5),
        ("999999", 300.0),
        ("inf", 300.0),
        ("nan", 0.0),
        ("-3", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        (None, 0.0),
        ("Tue, 01 Dec 2026 00:01:00 GMT", 60.0),
        ("Tue, 01 Dec 2026 00:01:00 -0000", 60.0),
        ("Wed, 01 Dec 2027 00:00:00 GMT", 300.0),
        ("Mon, 30 Nov 2026 00:00:00 GMT", 0.0),
        ("Tue, 99 Dec 2026 00:01:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date_and_capped(
    value: str | None, seconds: float
) -> None:
    assert read_retry_after(value, dt.datetime(2026, 12, 1, tzinfo=dt.UTC)) == seconds


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, json.dumps(chat()).encode(), drip=0.05),
        Reply(200, json.dumps(chat()).encode(), drip=0.05, has_length=False),
        Reply(200, json.dumps(chat()).encode(), drip=0.05, drip_headers=True),
        Reply(429, b"x" * 200, drip=0.05, drip_headers=True),
    ],
    ids=["body", "body without a length", "headers", "headers of a 429"],
)
def test_a_byte_now_and_then_is_not_waited_for_without_end(
    server: RawServer, tmp_path: Path, reply: Reply
) -> None:
    server.replies["prompt 0"] = [reply]
    began = time.monotonic()
    with pytest.raises(ModelError, match="no answer after 2 tries"):
        server.ask(tmp_path, n=1, timeout=0.1, tries=2)
    assert time.monotonic() - began < 5


# --- keys (C2) -----------------------------------------------------------------------------------


def spelled(key: str) -> dict[str, str]:
    """Return ways in which a server may write a key."""
    coded = {f"base64 of {u}key": base64.b64encode(f"{u}{key}".encode()).decode() for u in
             ("", "u:", "us:", "user:")}  # fmt: skip
    return coded | {
        "as it is": key,
        "in a sentence": f"Incorrect API key provided: {key}.",
        "URL": quote(key, safe=""),
        "URL in part": key.replace("/", "%2f"),
        "URL of every character": "".join(f"%{ord(c):02X}" for c in key),
        "URL twice": quote(quote(key, safe=""), safe=""),
        "JSON": json.dumps({"k": key}),
        "JSON with slashes": key.replace("/", "\\/"),
        "JSON of every character": "".join(f"\\u{ord(c):04x}" for c in key),
        "HTML": "".join(f"&#{ord(c)};" for c in key),
        "lines": "\n".join(key[i : i + 5] for i in range(0, len(key), 5)),
        "lines in JSON": "\\n".join(key[i : i + 5] for i in range(0, len(key), 5)),
        "invisible characters": "\u200b".join(key),
        "spaces": " ".join(key),
        "hexadecimal": key.encode().hex(),
        "urlsafe base64": base64.urlsafe_b64encode(f"user:{key}".encode()).decode(),
        "upper case": key.upper(),
        "its first half": key[: len(key) // 2],
        "all but two": key[:-2],
        "twice": key + key,
        "header": f"Authorization: Bearer {key}\r\n",
    }


def is_shown(text: str, key: str) -> bool:
    """Return whether a text holds 8 characters of a key in a row, plain or encoded."""
    plain = "".join(text.split()).replace("\\n", "").replace("\u200b", "").lower()
    forms = [key, base64.b64encode(key.encode()).decode()[4:-4], key.encode().hex()]
    return any(form.lower()[i : i + 8] in plain for form in forms for i in range(len(form) - 7))


@pytest.mark.parametrize("way", spelled(KEY))
def test_a_key_is_struck_out_however_a_server_writes_it(way: str) -> None:
    text = api_keys.strike_keys(f"before {spelled(KEY)[way]} after", [KEY])
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert not is_shown(text, KEY)
    assert api_keys.STRUCK in text


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60),
    st.text(max_size=20),
    st.text(max_size=20),
    st.sampled_from(sorted(spelled("xxxxxxxx").keys() - {"its first half", "all but two"})),
)
def test_no_key_survives_in_any_spelling(key: str, before: str, after: str, way: str) -> None:
    text = api_keys.strike_keys(f"{before}{spelled(key)[way]}{after}", [key])
    assert api_keys.STRUCK in text
    assert key not in text


@pytest.mark.parametrize("way", ["as it is", "URL", "JSON of every character", "lines", "HTML"])
@pytest.mark.parametrize("place", ["error", "policy", "content", "fingerprint", "page", "model"])
def test_an_echoed_key_reaches_neither_messages_nor_files(
    server: RawServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    way: str,
    place: str,
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    echo = spelled(KEY)[way]
    replies = {
        "error": say({"error": {"message": echo}}, 401, X_Key="x"),
        "policy": say({"error": {"message": echo}}, 400),
        "content": say(chat(echo)),
        "fingerprint": say(chat(system_fingerprint=echo)),
        "page": Reply(200, f"<html>{echo}</html>".encode()),
        "model": say(chat(model=echo)),
    }
    server.replies["prompt 1"] = [replies[place]]
    shown = ""
    with caplog.at_level(logging.DEBUG, logger="doublebind"):
        try:
            answers = server.ask(tmp_path, api_key_env="MY_KEY", concurrency=1)
            shown = repr(answers)
        except ModelError as error:
            shown = str(error)
    files = [p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file()]
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    assert not any(is_shown(text, KEY) for text in (shown, caplog.text, *files))


@pytest.mark.parametrize(
    "key", ["a\nb12345", "abcd123 ", " abcd123", "abc\r\nX: y", "abc\u00e9fgh"]
)
def test_a_key_that_no_header_may_hold_is_refused_unseen(
    server: RawServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ModelError, match=r"\$MY_KEY: the key holds") as refused:
        client.identify_served_model(f"openai:{server.url}#m", ServerOptions(api_key_env="MY_KEY"))
    assert key.strip() not in str(refused.value)
    assert server.requests == []


def test_the_studys_own_key_alone_is_sent_and_the_user_is_told_where(
    server: RawServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-key-0000")
    ref = f"openai:{server.url}#m"
    client.identify_served_model(ref, ServerOptions(api_key_env="MY_KEY"))
    host = server.url.removesuffix("/v1")
    assert caplog.messages == [f"the key in $MY_KEY goes to {host}"]
    assert {r[1]["Authorization"] for r in server.requests} == {f"Bearer {KEY}"}
    client.identify_served_model(ref)
    assert caplog.messages[1:] == [f"the key in $OPENAI_API_KEY goes to {host}"]
    assert server.requests[-1][1]["Authorization"] == "Bearer sk-another-key-0000"


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter22@127.0.0.1:9/v1",
        "https://hunter22@127.0.0.1:9/v1",
        "http://user:hunter22@127.0.0.1:9/v1",
        "https://127.0.0.1:9/v1?api_key=hunter22",
        "https://127.0.0.1:9/v1?hunter22",
        "ftp://user:hunter22@127.0.0.1/v1",
        "http://user:hunter22@/v1",
        "http://user:hunter22@[::1/v1",
        "http://127.0.0.1:99999999/hunter22?x",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_printed(url: str) -> None:
    with pytest.raises(ModelError) as refused:
        client.identify_served_model(f"openai:{url}#m")
    assert "hunter22" not in str(refused.value)
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize("host", ["model.invalid", "10.0.0.7:8000", "[fd00::1]:8000", "127.1.evil"])
def test_a_key_does_not_travel_in_plain_text_to_another_machine(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ModelError, match=r"the key in \$OPENAI_API_KEY would travel unencrypted"):
        client.identify_served_model(f"openai:http://{host}/v1#m")


def test_a_key_for_this_machine_passes_no_proxy_and_no_netrc(
    server: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login u password p\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert len(server.ask(tmp_path, n=1)) == 1
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"


# --- scores of given tokens (D2, D5) -------------------------------------------------------------

SENT = [4, 5, 6, 7]


def scored(row: Any, tokens: Any = None, **more: Any) -> dict[str, Any]:
    tokens = ["t4", "t5", "t6", "t7", "x"][: len(row)] if tokens is None else tokens
    logprobs = {"token_logprobs": row, "tokens": tokens} | more
    return {"request": {"prompt": SENT}, "response": {"choices": [{"logprobs": logprobs}]}}


GOOD = [None, -1.0, -2.0, -3.0, -0.5]
BAD_SCORES: dict[str, dict[str, Any]] = {
    "too few": scored(GOOD[:3]),
    "too many": scored([*GOOD, -1.0], ["t4", "t5", "t6", "t7", "x", "y"]),
    "none at all": scored([], []),
    "null": scored([None, None, None, None, None]),
    "the first has a score": scored([-1.0, *GOOD[1:]]),
    "the first left out": scored(GOOD[1:], ["t5", "t6", "t7", "x"]),
    "positive": scored([None, 0.5, -2.0, -3.0, -0.5]),
    "probabilities": scored([None, 0.3, 0.2, 0.1, 0.5]),
    "boolean": scored([None, True, -2.0, -3.0, -0.5]),
    "false": scored([None, False, -2.0, -3.0, -0.5]),
    "text": scored([None, "-1.0", -2.0, -3.0, -0.5]),
    "nan": scored([None, math.nan, -2.0, -3.0, -0.5]),
    "minus infinity": scored([None, -math.inf, -2.0, -3.0, -0.5]),
    "list": scored([None, [-1.0], -2.0, -3.0, -0.5]),
    "other tokens": scored(GOOD, ["t4", "t5", "t9", "t7", "x"]),
    "tokens one to the left": scored(GOOD, ["t5", "t6", "t7", "x", "y"]),
    "tokens one to the right": scored(GOOD, ["<s>", "t4", "t5", "t6", "t7"]),
    "too few tokens": scored(GOOD, ["t4", "t5", "t6", "t7"]),
    "tokens are numbers": scored(GOOD, [*SENT, 0]),
    "other ids": scored(GOOD, [f"token_id:{t + 1}" for t in [*SENT, 0]]),
    "offsets fall": scored(GOOD, text_offset=[0, 2, 1, 6, 8]),
    "offsets begin late": scored(GOOD, text_offset=[2, 4, 6, 8, 10]),
    "too few offsets": scored(GOOD, text_offset=[0, 2, 4]),
    "offsets are booleans": scored(GOOD, text_offset=[False, True, True, True, True]),
    "logprobs null": {"request": {"prompt": SENT}, "response": {"choices": [{"logprobs": None}]}},
    "no tokens": {
        "request": {"prompt": SENT},
        "response": {"choices": [{"logprobs": {"token_logprobs": GOOD}}]},
    },
}


def spell(token: int) -> str:
    return f"t{token}"


@pytest.mark.parametrize("name", BAD_SCORES)
def test_scores_that_are_not_of_the_tokens_sent_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ModelError, match=r"s: (its scores of given|does not return)") as refused:
        parse_echoed_logprobs(BAD_SCORES[name], "s", spell)
    assert len(refused.value.problems) == 1


@pytest.mark.parametrize(
    "entry",
    [
        scored(GOOD),
        scored(GOOD[:4], ["t4", "t5", "t6", "t7"]),
        scored(GOOD, text_offset=[0, 2, 4, 6, 8]),
        scored(GOOD, ["\u0120t4", "\u2581t5", " t6", "t7", "x"]),
        scored(GOOD, [f"token_id:{t}" for t in [*SENT, 0]]),
    ],
)
def test_scores_of_the_tokens_sent_are_read(entry: dict[str, Any]) -> None:
    assert parse_echoed_logprobs(entry, "s", spell) == [0.0, -1.0, -2.0, -3.0]


def score(ids: list[int]) -> list[float | None]:
    """Return log-probabilities that depend on a token and all before it, as a model's do."""
    return [None] + [-(1.0 + math.sin(7 * t + sum(ids[:i]))) for i, t in enumerate(ids) if i]


def shift_left(ids: list[int]) -> list[float | None]:
    return [None, *score(ids)[2:], -0.7]


def shift_right(ids: list[int]) -> list[float | None]:
    return [None, -0.7, *score(ids)[1:-1]]


def constant(ids: list[int]) -> list[float | None]:
    return [None, *[-1.0] * (len(ids) - 1)]


def sees_what_follows(ids: list[int]) -> list[float | None]:
    return [None] + [-abs(math.sin(sum(ids) + t)) for t in ids[1:]]


@pytest.mark.parametrize("faulty", [shift_left, shift_right, constant, sees_what_follows])
def test_scores_that_are_off_by_one_token_are_refused_at_every_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faulty: Callable[[list[int]], Any]
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    client.query_declared_facts.cache_clear()
    server = ModelServer(lambda body: ("yes", True), score=faulty, spell=spell)
    try:
        lm = client.connect_served_model(client.identify_served_model(server.ref), tmp_path)
        for _ in range(2):
            with pytest.raises(ModelError, match="stand at other tokens"):
                lm.token_logprobs([((1, 2, 3), (4, 5)), ((3, 2), (1, 6))])
    finally:
        server.close()


def test_scores_where_they_belong_pass_the_probe_and_are_paid_once(tmp_path: Path) -> None:
    client.query_declared_facts.cache_clear()
    server = ModelServer(lambda body: ("yes", True), score=score, spell=spell)
    pairs = [((1, 2, 3), (4, 5)), ((3, 2), (1, 6))]
    try:
        lm = client.connect_served_model(client.identify_served_model(server.ref), tmp_path)
        expected = [score([*p, *i])[len(p) :] for p, i in pairs]
        assert lm.token_logprobs(pairs) == expected
        assert lm.token_logprobs(pairs) == expected
        assert set(server.response_counts.values()) == {1}
    finally:
        server.close()


def test_probes_that_differ_only_in_their_last_score_pass() -> None:
    check_probes([[0.0, -1.0, -2.0], [0.0, -1.0, -2.5]], "s")


# --- budgets (D4) --------------------------------------------------------------------------------

LONG = "word " * 40
USAGES = [
    {"prompt_tokens": 0, "completion_tokens": 0},
    {},
    None,
    "free",
    [1, 2],
    {"prompt_tokens": -5, "completion_tokens": -5},
    {"prompt_tokens": True, "completion_tokens": True},
    {"prompt_tokens": False, "completion_tokens": False},
    {"prompt_tokens": 1, "completion_tokens": 1},
    {"prompt_tokens": 0.0, "completion_tokens": 0.0},
    {"prompt_tokens": "7", "completion_tokens": "5"},
    {"total_tokens": 0},
]


@pytest.mark.parametrize("usage", USAGES, ids=str)
def test_a_budget_holds_whatever_the_server_counts(
    server: RawServer, tmp_path: Path, usage: Any
) -> None:
    server.default = say(chat(LONG, usage=usage))  # 200 bytes: 50 tokens or more
    with pytest.raises(ModelError, match=r"`served.max_tokens`: 400 is spent"):
        server.ask(tmp_path, n=40, max_tokens=400, concurrency=1)
    spent = len(server.requests)
    assert 1 <= spent <= 8
    with pytest.raises(ModelError, match=r"`served.max_tokens`: 400 is spent"):
        server.ask(tmp_path, n=40, max_tokens=400, concurrency=1)
    assert len(server.requests) == spent, "a budget holds when the run resumes"


@pytest.mark.parametrize(
    "reply",
    [
        say({}, 500),
        Reply(200, b"<html>"),
        say(chat(choices=[], usage={}), 200),
        say({}, 429),
        lambda body: None,
    ],
    ids=["HTTP 500", "HTML", "no choices", "HTTP 429", "reset"],
)
def test_every_try_counts_and_does_so_when_the_run_resumes(
    server: RawServer, tmp_path: Path, reply: Any
) -> None:
    server.default = reply
    for _ in range(6):
        with pytest.raises(ModelError):
            server.ask(tmp_path, n=2, max_tokens=400, tries=3, concurrency=1)
    sent = len(server.requests)
    assert sent <= 400 // 72 + 1, "a prompt may take 72 tokens and an answer 8"
    with pytest.raises(ModelError, match=r"is spent after 0 answers and \d+ tries without one"):
        server.ask(tmp_path, n=2, max_tokens=400, tries=3)
    assert len(server.requests) == sent


# --- the journal ---------------------------------------------------------------------------------


def test_writers_of_one_journal_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    def write(writer: int) -> None:
        for i in range(20):
            journal = Journal(path, "m")
            journal.add(f"{writer}/{i}", {"messages": []}, {"choices": [], "text": "x" * 500})

    threads = [threading.Thread(target=write, args=(w,)) for w in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Journal(path, "m").entries) == 80


def test_a_changed_fingerprint_is_told(
    server: RawServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i, name in enumerate(("fp-1", "fp-2", "fp-1")):
        server.replies[f"prompt {i}"] = [say(chat("x", system_fingerprint=name))]
    server.ask(tmp_path, concurrency=1)
    (line,) = [m for m in caplog.messages if "changed" in m]
    assert "fingerprint was fp-1 and is fp-2" in line
