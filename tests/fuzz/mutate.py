"""Mutates studies, packs and run directories: bytes, lines, values, and the files themselves.

Every function draws from the `random.Random` it is given: a seed and a number repeat a case.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

TEXTS = (
    "",
    " ",
    "\x00",
    "\x1b]0;owned\x07",
    "\x1b[31m\u202eevil\u2066",
    "\u2028",
    "\u0085",
    "a\u2028b\u0085c\x0bd\x1ce",
    "\r\rwritten over",
    "..",
    "../../../../etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "~nobody/x",
    "a\x00b",
    "x" * 5_000,
    "nan",
    "Infinity",
    "terrarium/m0",
    "terrarium/suspect-99999999999999999999",
    "terrarium/reference-0",
    "openai:http://127.0.0.1:9#m",
    "hub/does-not-exist",
    "prompted:",
    "prompted:" + "a" * 3_000 + "\n",
    "inspect:x",
    "<script>alert(1)</script>",
    "{{7*7}}",
    '[["a", 0.5], ["b", 1e400]]',
    "é" * 100,
    "👩\u200d👩\u200d👧",
    "(a+)+$" + "a" * 50,
    ":" * 50,
    "terrarium:a,b",
    "M0",
    "suspect",
    "a/b",
    "choice/ruler",
)
NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2,
    0.5,
    1e-320,
    1e308,
    -0.0,
    10**9,
    10**15,
    2**63,
    2**64 + 1,
    10**400,
    float("nan"),
    float("inf"),
    float("-inf"),
)
MAX_CHANGES = 3


def mutate_value(content: Any, rng: random.Random) -> Any:
    """Return a JSON-like value with one to three changes at random places."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, MAX_CHANGES)):
        content = _change_place(content, rng)
    return content


def _change_place(content: Any, rng: random.Random) -> Any:
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(list(content))
        action = rng.random()
        if action < 0.08:
            del content[key]
        elif action < 0.14:
            content[rng.choice((*TEXTS, key + "x", key.upper()))] = content.pop(key)
        elif action < 0.18:
            content[rng.choice(TEXTS)] = draw_value(rng)
        else:
            content[key] = _change_place(content[key], rng)
        return content
    if isinstance(content, list) and content and rng.random() < 0.9:
        i = rng.randrange(len(content))
        action = rng.random()
        if action < 0.1:
            del content[i]
        elif action < 0.2:
            content.insert(i, copy.deepcopy(content[i]))
        elif action < 0.25:
            content[i:i] = [draw_value(rng)]
        elif action < 0.28:
            content *= rng.choice((2, 30))
        else:
            content[i] = _change_place(content[i], rng)
        return content
    if isinstance(content, str) and rng.random() < 0.3:
        at = rng.randint(0, len(content))
        return content[:at] + rng.choice(TEXTS) + content[at:]
    return draw_value(rng)


def draw_value(rng: random.Random) -> Any:
    """Return a leaf, an empty container or a deep one."""
    match rng.randrange(9):
        case 0 | 1 | 2:
            return rng.choice(TEXTS)
        case 3 | 4:
            return rng.choice(NUMBERS)
        case 5:
            return rng.choice((None, True, False))
        case 6:
            return rng.choice(([], {}, [[]], [None], {"": None}, ["a", "a"], {"a": {"b": [1]}}))
        case 7:
            return nest(rng.choice((5, 60, 90)))
        case _:
            return [rng.choice(TEXTS) for _ in range(rng.randint(1, 5))]


def nest(depth: int) -> Any:
    """Return a list in a mapping in a list, `depth` deep."""
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return bytes flipped, cut, doubled, swapped by line, or with something put in."""
    match rng.randrange(12):
        case 0:
            return b""
        case 1:
            return content[: rng.randint(0, len(content))]
        case 2:
            return content[rng.randint(0, len(content)) :]
        case 3 | 4:
            changed = bytearray(content)
            for _ in range(rng.choice((1, 1, 3, 20))):
                if changed:
                    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 5 | 6:
            return _change_lines(content, rng)
        case 7:
            at = rng.randint(0, len(content))
            return content[:at] + rng.choice(INSERTED) + content[at:]
        case 8:
            return content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\xe2\x80\xa8", b"\n\n")))
        case 9:
            return rng.choice(WHOLES)
        case 10:
            return content + rng.choice(INSERTED)
        case _:
            return _change_numbers(content, rng)


INSERTED = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b'"\\ud800"',
    b"\\ud83d",
    b"\x1b[2J",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"NaN",
    b"1e999",
    b"Infinity",
    b"[" * 2_000,
    b'{"a":' * 2_000,
    b"- " * 2_000,
    b"9" * 5_000,
    b"!!python/object/apply:os.system ['true']",
    b"2001-99-99",
    b"? [a, b]\n: c\n",
    b"&a [*a]",
    b"<<: *a\n",
    b"<<: {alpha: 1}\n",
    b"%YAML 9.9\n---\n",
    b"---\n--- x\n",
    b"\n\n\n",
    b"}{",
    b"\t",
    b'"',
)
WHOLES = (
    b"null",
    b"[]",
    b"{}",
    b"0",
    b'""',
    b"NaN",
    b"[[[]]]",
    b"\x00" * 4096,
    b"a: &a [*a]\n",
    b"{" * 5_000,
    b"a: &b [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(
        b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 9)) for c in range(98, 110)
    ),
    b"a:\n" + b"".join(b"- name%d\n" % i for i in range(20_000)),
    b"PAR1" + b"\x00" * 64 + b"PAR1",
    b"\x80\x04cos\nsystem\n(S'true'\ntR.",
)


def _change_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[i]
        case 1:
            lines.insert(j, lines[i])
        case 2:
            lines[i], lines[j] = lines[j], lines[i]
        case 3:
            lines[i] = lines[i][: len(lines[i]) // 2]
        case _:
            lines = [line for line in lines for _ in range(2)]
    return b"\n".join(lines)


def _change_numbers(content: bytes, rng: random.Random) -> bytes:
    """Replace one run of digits by a hostile number."""
    at = [i for i, byte in enumerate(content) if 48 <= byte < 58]
    if not at:
        return content
    i = j = rng.choice(at)
    while j < len(content) and 48 <= content[j] < 58:
        j += 1
    number = rng.choice((b"NaN", b".nan", b"-1", b"1e999", b".inf", b"9" * 400, b"0x10", b"null"))
    return content[:i] + number + content[j:]


def duplicate_key(content: bytes, rng: random.Random) -> bytes:
    """Return JSON or YAML text in which one key of a mapping is given twice."""
    try:
        parsed = json.loads(content)
    except ValueError:
        lines = content.split(b"\n")
        keyed = [line for line in lines if b":" in line]
        if not keyed:
            return content
        line = rng.choice(keyed)
        return content.replace(line, line + b"\n" + line, 1)
    if not isinstance(parsed, dict) or not parsed:
        return content
    key = rng.choice(list(parsed))
    return content.rstrip()[:-1] + b", " + json.dumps({key: None}).encode()[1:-1] + b"}"


def mutate_json_text(content: bytes, rng: random.Random) -> bytes:
    """Return the text of a JSON value, or of JSON lines, with changed values."""
    try:
        return _dump(mutate_value(json.loads(content), rng), rng)
    except ValueError:
        lines = content.split(b"\n")
        i = rng.randrange(len(lines))
        try:
            lines[i] = _dump(mutate_value(json.loads(lines[i]), rng), rng)
        except ValueError:
            return mutate_bytes(content, rng)
        return b"\n".join(lines)


def _dump(content: Any, rng: random.Random) -> bytes:
    text = json.dumps(content, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def mutate_yaml_text(content: bytes, rng: random.Random) -> bytes:
    """Return the text of a YAML file with changed values."""
    try:
        parsed = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError):
        return mutate_bytes(content, rng)
    changed = mutate_value(parsed, rng)
    try:
        return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).encode()
    except (yaml.YAMLError, ValueError, RecursionError):
        return json.dumps(changed).encode()


def mutate_text(path: Path, content: bytes, rng: random.Random) -> bytes:
    """Return a file's content, mutated as its kind of file is."""
    action = rng.random()
    if action < 0.08:
        return duplicate_key(content, rng)
    if action < 0.65 and path.suffix in (".json", ".jsonl"):
        return mutate_json_text(content, rng)
    if action < 0.65 and path.suffix in (".yaml", ".yml"):
        return mutate_yaml_text(content, rng)
    if action < 0.65 and path.suffix == ".parquet":
        return mutate_table(content, rng)
    return mutate_bytes(content, rng)


def mutate_table(content: bytes, rng: random.Random) -> bytes:
    """Return a parquet file with a changed cell, column or type; a valid file."""
    import io

    import pandas as pd

    frame = pd.read_parquet(io.BytesIO(content))
    name = str(rng.choice(list(frame.columns)))
    i = rng.randrange(len(frame))
    match rng.randrange(8):
        case 0:
            frame = frame.drop(columns=[name])
        case 1:
            frame = frame.rename(columns={name: rng.choice(TEXTS)})
        case 2:
            frame[name] = frame[name].astype(str)
        case 3:
            frame[name] = rng.choice((0, 1.5, None, "x", True))
        case 4:
            frame = frame.iloc[: rng.choice((0, 1, len(frame) // 2))]
        case 5:
            frame = pd.concat([frame, frame])
        case 6:
            values = list(frame[name])
            values[i] = rng.choice((None, "x", "M0")) if isinstance(values[i], str) else None
            frame[name] = values
        case _:
            values = list(frame[name])
            values[i] = rng.choice(TEXTS) if isinstance(values[i], str) else rng.choice((-5, 2, 7))
            frame[name] = values
    out = io.BytesIO()
    try:
        frame.to_parquet(out, index=rng.random() < 0.1)
    except Exception:  # not every change is a table
        return mutate_bytes(content, rng)
    return out.getvalue()


# --- files ----------------------------------------------------------------------------------------


def mutate_file(folder: Path, path: Path, rng: random.Random) -> str:
    """Change one file of a folder, or what stands in its place; return what was done."""
    action = rng.random()
    if action < 0.82 and _is_small(path):
        path.write_bytes(mutate_text(path, path.read_bytes(), rng))
        return f"content of {path.name}"
    name, replace = rng.choice(REPLACEMENTS)
    replace(folder, path, rng)
    return f"{name} {path.name}"


def _is_small(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 10**8


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _delete(folder: Path, path: Path, rng: random.Random) -> None:
    _remove(path)


def _empty(folder: Path, path: Path, rng: random.Random) -> None:
    _remove(path)
    path.write_bytes(b"")


def _make_folder(folder: Path, path: Path, rng: random.Random) -> None:
    _remove(path)
    path.mkdir()


def _make_pipe(folder: Path, path: Path, rng: random.Random) -> None:
    _remove(path)
    os.mkfifo(path)


def _link(folder: Path, path: Path, rng: random.Random) -> None:
    _remove(path)
    targets = ("/dev/zero", "/dev/null", "nowhere", path.name, "..", "/etc/hostname", "/")
    path.symlink_to(rng.choice(targets))


def _swap(folder: Path, path: Path, rng: random.Random) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    other = rng.choice(files)
    if _is_small(path) and _is_small(other) and other != path:
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)


def _rename(folder: Path, path: Path, rng: random.Random) -> None:
    name = rng.choice(("x.json", "é.jsonl", "\x1b[31m.jsonl", "a\nb.jsonl", "0" * 64 + ".json"))
    path.rename(path.with_name(name))


def _grow(folder: Path, path: Path, rng: random.Random) -> None:
    _remove(path)
    with path.open("wb") as file:
        file.truncate(300 * 2**20)  # sparse: no byte is written


def _forbid(folder: Path, path: Path, rng: random.Random) -> None:
    path.chmod(0)


REPLACEMENTS: tuple[tuple[str, Callable[[Path, Path, random.Random], None]], ...] = (
    ("deleted", _delete),
    ("emptied", _empty),
    ("folder for", _make_folder),
    ("pipe for", _make_pipe),
    ("link for", _link),
    ("swapped", _swap),
    ("renamed", _rename),
    ("grown", _grow),
    ("forbidden", _forbid),
)


def mutate_folder(folder: Path, rng: random.Random) -> str:
    """Change one file of a folder, sometimes two; return what was done."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
        if paths:
            done.append(mutate_file(folder, rng.choice(paths), rng))
    return "; ".join(done)
