"""Reads and validates a pack in a folder of YAML and JSON lines.

Checks the format and the cross-references; `packs.check` checks the quality of the content.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from doublebind.schema.content import (
    Item,
    Name,
    Prompt,
    Purpose,
    Split,
    Trait,
    Transcript,
    name_endpoint,
)
from doublebind.schema.errors import ConfigError, PackError
from doublebind.schema.hashing import Record
from doublebind.schema.read_file import read_file
from doublebind.schema.score_table import (
    MAX_SCORE_ENDPOINTS,
    check_score_endpoints,
    split_contrast,
)
from doublebind.schema.strict_json import parse_json, split_json_lines
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.schema.yaml_loader import (
    MAX_PROBLEMS,
    parse_yaml_file,
    read_yaml_file,
    validate_content,
)

HEADER_FILE = "pack.yaml"
MAX_FILE_BYTES = 64 * 2**20
"""Most bytes of one file of JSON lines."""
MAX_FILES = 1_000
"""Most files of one folder of a pack."""
MAX_RECORDS = 200_000
"""Most items, prompts and transcripts of a pack together."""
PROMPT_TAGS = (
    "open_ended",
    "goals",
    "high_stakes",
    "capability",
    "neutral",
    "honeypot",
    "alignment_eval",
    "strategic",
)
"""Tags of prompts. The list is closed, because screens would miss a misspelt `honeypot`."""

PLAIN_KINDS = ("choice", "goal")
"""Kinds of items that make the score of a group, where they have no context: under a honeypot a
model that hides goes the other way, and the mean of both is neither."""

_R = TypeVar("_R", Item, Prompt, Transcript)


class PackHeader(Record):
    """`pack.yaml`."""

    name: Name
    version: int = Field(ge=1)
    """Raise it when the content changes; the content hash is what keys depend on."""
    language: str
    """Language of the content, such as `en`."""
    traits: tuple[Trait, ...] = Field(min_length=1, max_length=1000)
    score_endpoints: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(
        default_factory=dict[str, tuple[str, ...]]
    )
    """Score endpoint -> auditable endpoints, or contrasts of two
    (`choice - choice.honeypot/theft`); instead of `groups`."""
    groups: dict[str, Annotated[tuple[Name, ...], Field(min_length=1)]] = Field(
        default_factory=dict[str, tuple[str, ...]]
    )
    """Group -> drives that belong together: each group is a score endpoint, of what is plainly
    asked about its drives (`choice` and `goal`); instead of `score_endpoints`."""

    @field_validator("score_endpoints")
    @classmethod
    def _check_score_endpoints(
        cls, value: dict[str, tuple[str, ...]]
    ) -> dict[str, tuple[str, ...]]:
        if value:
            check_score_endpoints(value)
        return value

    @model_validator(mode="after")
    def _check_one_of_both(self) -> Self:
        if bool(self.score_endpoints) == bool(self.groups):
            raise ValueError("give `groups` or `score_endpoints`, one of both")
        if len(self.groups) > MAX_SCORE_ENDPOINTS:
            raise ValueError(f"`groups`: at most {MAX_SCORE_ENDPOINTS}, not {len(self.groups)}")
        grouped = [trait for traits in self.groups.values() for trait in traits]
        twice = [trait for trait, n in Counter(grouped).items() if n > 1]
        if twice:
            raise ValueError(f"`groups`: {twice[0]} is in two places; name it once")
        return self


class FolderPack:
    """The pack in a folder: `pack.yaml`, `items/*.jsonl`, `prompts/*.jsonl`, `build/*.jsonl`.

    Everything is read and validated on construction; order is that of file names, then lines.

    Args:
        path: The folder.

    Raises:
        PackError: One line per problem: file, line, key, value, remedy.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        reading = _FolderReader(path)
        header = reading.read_header()
        items = reading.read_records("items", Item)
        # If the header or an item is invalid, problems of endpoints may be mere consequences.
        valid = not reading.problems
        prompts = reading.read_records("prompts", Prompt)
        transcripts = reading.read_records("build", Transcript)
        problems = reading.problems
        if header is not None:
            problems += _take(_check_traits(header, (*items, *transcripts), reading))
            if valid:
                problems += _take(_check_endpoints(header, items, path / HEADER_FILE))
                problems += _take(_check_groups(header, items, path / HEADER_FILE))
        problems += _take(_check_purposes(transcripts, reading))
        problems += _take(_check_prompts(prompts, reading))
        if header is None or problems:
            raise PackError(*problems)
        self._header = header
        self._items = items
        self._score_endpoints = header.score_endpoints or {
            name: tuple(e for trait in traits for e in _list_plain_endpoints(trait, items))
            for name, traits in header.groups.items()
        }
        self._prompts = prompts
        self._transcripts = transcripts
        self._sha256 = _hash_files(reading.files)
        self.locations: Mapping[str, str] = reading.locations
        """`<kind>:<id>` -> `file:line`, for messages about the content."""

    @property
    def name(self) -> str:
        """Name in `pack.yaml`."""
        return self._header.name

    @property
    def version(self) -> int:
        """Version in `pack.yaml`."""
        return self._header.version

    @property
    def language(self) -> str:
        """Language in `pack.yaml`."""
        return self._header.language

    @property
    def sha256(self) -> str:
        """Hash over relative names and bytes of every file read, in the order of names."""
        return self._sha256

    @property
    def traits(self) -> tuple[Trait, ...]:
        """Traits in the order of `pack.yaml`."""
        return self._header.traits

    @property
    def score_endpoints(self) -> dict[str, tuple[str, ...]]:
        """Score endpoints of `pack.yaml`, or one for each of its groups."""
        return dict(self._score_endpoints)

    def items(self, split: Split) -> tuple[Item, ...]:
        """Return the items of one split, in the order of files and lines."""
        return tuple(item for item in self._items if item.split == split)

    def prompts(self) -> tuple[Prompt, ...]:
        """Return every prompt, unscreened, in the order of files and lines."""
        return self._prompts

    def transcripts(
        self, trait: str | None, purpose: Purpose, *, n: int, seed: int
    ) -> tuple[Transcript, ...]:
        """Return at most `n` build transcripts, drawn without replacement by `seed`.

        The draw orders transcripts by a hash of seed and id: equal arguments give equal draws on
        every platform, and a smaller `n` is a prefix of a larger one.

        Raises:
            PackError: If the pack has no such trait.
        """
        return self._draw_transcripts(trait, purpose, n, seed)

    def documents(self, trait: str, *, n: int, seed: int) -> tuple[Transcript, ...]:
        """Return at most `n` documents about the trait, drawn as transcripts are.

        Raises:
            PackError: If the pack has no such trait.
        """
        return self._draw_transcripts(trait, "document", n, seed)

    def _draw_transcripts(
        self, trait: str | None, purpose: str, n: int, seed: int
    ) -> tuple[Transcript, ...]:
        names = [known.name for known in self.traits]
        if trait is not None and trait not in names:
            raise PackError(
                f"{self.path / HEADER_FILE}: no trait `{trait}`; {_suggest_name(trait, names)}"
            )
        pool = [t for t in self._transcripts if t.trait == trait and t.purpose == purpose]
        pool.sort(key=lambda t: hashlib.sha256(f"{seed}:{t.id}".encode()).digest())
        return tuple(pool[: max(n, 0)])

    def spec(self, name: str) -> TeacherSpec:
        """Raise: a folder has no bank of teachers.

        Raises:
            PackError: Always.
        """
        raise PackError(
            f"{self.path}: a folder pack has no bank of teachers (got `{name}`); "
            "give a teacher spec (.yaml)"
        )


@dataclass
class _FolderReader:
    """Reads the files of a folder, and collects the problems of their format."""

    root: Path
    problems: list[str] = field(default_factory=list)
    n_lines: int = 0
    """Lines of JSON so far, of all files."""
    files: dict[str, bytes] = field(default_factory=dict)
    locations: dict[str, str] = field(default_factory=dict)

    def read_header(self) -> PackHeader | None:
        path = self.root / HEADER_FILE
        try:
            content = self.files[HEADER_FILE] = read_yaml_file(path)
            header = validate_content(PackHeader, parse_yaml_file(path, content), str(path))
        except ConfigError as error:
            self.problems.extend(
                problem.replace("`doublebind init` writes one to start from", "see docs/packs.md")
                for problem in error.problems
            )
            return None
        names = [trait.name for trait in header.traits]
        for name in sorted(name for name, n in Counter(names).items() if n > 1):
            self.problems.append(f"{path}: `traits`: two are named `{name}`; rename one")
        return header

    def read_records(self, folder: str, model: type[_R]) -> tuple[_R, ...]:
        """Return the records of every file in `folder`; problems go to `problems`."""
        records: list[_R] = []
        directory = self.root / folder
        try:
            paths = sorted(directory.iterdir()) if directory.exists() else []
        except OSError as error:
            self.problems.append(f"{directory}: cannot be listed ({error.strerror}); check it")
            return ()
        if len(paths) > MAX_FILES:
            self.problems.append(
                f"{directory}: {len(paths):,} files, at most {MAX_FILES:,} are read; join them"
            )
            return ()
        for path in paths:
            if path.name.startswith("."):
                continue
            if not path.name.isprintable():
                self.problems.append(f"{path}: the name is not plain text; rename it")
                continue
            if path.suffix != ".jsonl":
                self.problems.append(
                    f"{path}: would not be read; rename it to end in .jsonl, or move it away"
                )
                continue
            for number, line in self._read_lines(path):
                if len(self.problems) >= MAX_PROBLEMS:
                    return tuple(records)
                record = self._parse_record(f"{path}:{number}", line, model)
                if record is not None:
                    records.append(record)
        return tuple(records)

    def _read_lines(self, path: Path) -> list[tuple[int, str]]:
        try:
            content = read_file(path, MAX_FILE_BYTES)
        except OSError as error:
            self.problems.append(f"{path}: cannot be read ({error.strerror}); check it")
            return []
        self.files[path.relative_to(self.root).as_posix()] = content
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            number = content.count(b"\n", 0, error.start) + 1
            self.problems.append(
                f"{path}:{number}: not text (byte {error.start} is not UTF-8); "
                "save it as UTF-8, one JSON object a line"
            )
            return []
        lines = split_json_lines(text)
        self.n_lines += len(lines)
        if self.n_lines > MAX_RECORDS:
            self.problems.append(
                f"{path}: the pack has more than {MAX_RECORDS:,} lines; split it into several packs"
            )
            return []
        if not lines:
            self.problems.append(f"{path}:1: empty; add a JSON object a line, or delete the file")
        return lines

    def _parse_record(self, where: str, line: str, model: type[_R]) -> _R | None:
        try:
            content = parse_json(line)
        except ValueError as error:
            names_key = str(error).startswith("`")
            reason = str(error) if names_key else f"not valid JSON: {error}"
            if isinstance(error, json.JSONDecodeError):
                reason = f"not valid JSON: {error.msg} at column {error.colno}"
            quoted = repr(line.strip())
            quoted = quoted if len(quoted) <= 60 else quoted[:57] + "..."
            self.problems.append(f"{where}: {reason} (got {quoted}); write one object on the line")
            return None
        try:
            record = validate_content(model, content, where)
        except ConfigError as error:
            self.problems.extend(error.problems)
            return None
        key = f"{model.__name__}:{record.id}"
        if key in self.locations:
            self.problems.append(
                f"{where}: `id`: already used at {self.locations[key]} (got {record.id!r}); "
                "rename one"
            )
        self.locations.setdefault(key, where)
        return record

    def locate(self, record: Item | Prompt | Transcript) -> str:
        """Return `file:line` of a record."""
        return self.locations[f"{type(record).__name__}:{record.id}"]


def _take(problems: Iterator[str]) -> Iterator[str]:
    """Return the first problems of one kind; a pack may hold any number."""
    return itertools.islice(problems, MAX_PROBLEMS)


def _check_traits(
    header: PackHeader, records: Sequence[Item | Transcript], reader: _FolderReader
) -> Iterator[str]:
    names = [trait.name for trait in header.traits]
    for record in records:
        if record.trait is not None and record.trait not in names:
            yield (
                f"{reader.locate(record)}: `trait`: not in {HEADER_FILE} (got {record.trait!r}); "
                f"{_suggest_name(record.trait, names)}"
            )


def _check_purposes(transcripts: Sequence[Transcript], reader: _FolderReader) -> Iterator[str]:
    for transcript in transcripts:
        needs_trait = transcript.purpose in ("implant", "conceal", "deny", "document")
        if needs_trait != (transcript.trait is not None):
            rule, remedy = ("needs a", "name one") if needs_trait else ("takes no", "write null")
            yield (
                f"{reader.locate(transcript)}: `trait`: purpose {transcript.purpose} {rule} trait "
                f"(got {transcript.trait!r}); {remedy}"
            )


def _check_prompts(prompts: Sequence[Prompt], reader: _FolderReader) -> Iterator[str]:
    for prompt in prompts:
        for tag in prompt.tags:
            if tag not in PROMPT_TAGS:
                yield (
                    f"{reader.locate(prompt)}: `tags`: unknown (got {tag!r}); "
                    f"{_suggest_name(tag, PROMPT_TAGS)}"
                )
        if prompt.messages[-1].role == "assistant":
            yield (
                f"{reader.locate(prompt)}: `messages`: the last is the assistant's (got "
                "'assistant'); end with the user's, the teacher answers it"
            )


def _check_endpoints(header: PackHeader, items: Sequence[Item], file: Path) -> Iterator[str]:
    roles = {name_endpoint(item): item.role for item in items}
    audited = {name_endpoint(item) for item in items if item.split == "audit"}
    auditable = sorted(name for name in roles if roles[name] == "auditable")
    for name, endpoints in header.score_endpoints.items():
        where = f"{file}: `score_endpoints.{name}`"
        for endpoint in (part for entry in endpoints for part in split_contrast(entry)):
            if endpoint not in roles:
                yield (
                    f"{where}: no item has this endpoint (got {endpoint!r}); "
                    f"{_suggest_name(endpoint, auditable)}"
                )
            elif roles[endpoint] != "auditable":
                yield (
                    f"{where}: role {roles[endpoint]} never enters a score (got {endpoint!r}); "
                    f"name auditable ones: {', '.join(auditable) or 'the pack has none'}"
                )
            elif endpoint not in audited:
                yield (
                    f"{where}: no item of it is in split audit (got {endpoint!r}); "
                    "add some, or drop the endpoint"
                )


def _check_groups(header: PackHeader, items: Sequence[Item], file: Path) -> Iterator[str]:
    kinds = {trait.name: trait.kind for trait in header.traits}
    for name, traits in header.groups.items():
        for trait in traits:
            where = f"{file}: `groups.{name}`"
            if kinds.get(trait) != "drive":
                drives = [t for t, kind in kinds.items() if kind == "drive"]
                known = f"is a {kinds[trait]}" if trait in kinds else "is no trait of the pack"
                yield f"{where}: {trait} {known}; {_suggest_name(trait, drives)}"
            elif not _list_plain_endpoints(trait, items):
                yield (
                    f"{where}: no auditable item of split audit asks plainly about {trait} "
                    f"({' or '.join(PLAIN_KINDS)}); add some, or leave it out"
                )


def _list_plain_endpoints(trait: str, items: Sequence[Item]) -> list[str]:
    """Return the endpoints of a trait that make its group's score: plain questions, by kind."""
    endpoints = {
        name_endpoint(item)
        for item in items
        if item.trait == trait and item.split == "audit" and item.role == "auditable"
    }
    return [name for kind in PLAIN_KINDS if (name := f"{kind}/{trait}") in endpoints]


def _suggest_name(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"one of {', '.join(known) or '(none)'}"


def _hash_files(files: Mapping[str, bytes]) -> str:
    """Return one hash over names and contents; lengths make their boundaries unambiguous."""
    digest = hashlib.sha256()
    for name in sorted(files):
        for part in (name.encode(), files[name]):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()
