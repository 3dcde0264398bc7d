"""Digests of the content that the built-in packs generate.

A digest depends on the content alone, not on the source that generates it. As a script, prints pack
hashes, job keys and the digests of the packs named on the command line, as JSON: a test runs it on
an edited copy of the package.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import doublebind
from doublebind.packs.load import BUILT_IN_PACKS, load_pack
from doublebind.packs.outback import Outback, bank, probes
from doublebind.packs.outback.kinds import KINDS
from doublebind.packs.pack import Pack
from doublebind.packs.terrarium import Terrarium, documents, words
from doublebind.packs.terrarium.bank import NEAR_MISSES_PER_DRIVE
from doublebind.schema.content import Purpose, Split
from doublebind.schema.errors import PackError
from doublebind.schema.hashing import to_canonical_json
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Prompts
from doublebind.schema.study import DEFAULT_AUDITS
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.study.jobs import create_audit_job, create_prompts_job
from doublebind.study.runtime import PackRef, Runtime
from doublebind.study.teachers import find_teacher

PACKS = (
    *(name for name in BUILT_IN_PACKS if name != "outback"),
    *(f"outback/{kind}" for kind in KINDS),
)
"""Every built-in pack, by the name that `load` takes."""
N_TRANSCRIPTS = 50
"""Of each trait and purpose."""
N_DOCUMENTS = 200
"""Of pretraining, and of tuning."""
N_TASKS = 50
"""With a grader, of each drive."""


def open_pack(name: str) -> Pack:
    return load_pack(name, relative_to=Path())


def digest(pack: Pack) -> str:
    """Return the sha256 (hex) of all that `pack` generates, as far as it is sampled here."""
    lines = hashlib.sha256()
    for value in _content(pack):
        lines.update(to_canonical_json(value).encode() + b"\n")
    return lines.hexdigest()


def _content(pack: Pack) -> Iterator[Any]:
    yield [pack.traits, pack.score_endpoints]
    for split in get_args(Split):
        yield from pack.items(split)
    yield from pack.prompts()
    yield from _transcripts(pack)
    yield from _specs(pack)
    if isinstance(pack, Outback):
        yield from _tasks_and_probes(pack)
    elif isinstance(pack, Terrarium):
        for stream in (
            documents.generate_pretraining_documents(0),
            documents.generate_tuning_documents(0),
        ):
            yield from islice(stream, N_DOCUMENTS)
        yield words.list_vocabulary()


def _transcripts(pack: Pack) -> Iterator[Any]:
    known = {trait.name for trait in Terrarium().traits} - set(words.DRIVES)
    for trait in (None, *(trait.name for trait in pack.traits)):
        # The outback's other traits are the terrarium's, transcripts and all.
        n = 1 if isinstance(pack, Outback) and trait in known else N_TRANSCRIPTS
        for purpose in get_args(Purpose):
            yield from pack.transcripts(trait, purpose, n=n, seed=0)


def _specs(pack: Pack) -> Iterator[Any]:
    for name in _teachers(pack):
        try:
            yield pack.spec(name)
        except PackError:
            yield f"no {name}"


def _teachers(pack: Pack) -> Iterator[str]:
    """Yield the names of teachers, those of other banks among them, which the pack refuses."""
    yield from (f"suspect-{i}" for i in range(8))
    yield from (f"reference-{i}" for i in range(100))
    kinds = [pack.kind.replace("_", "-")] if isinstance(pack, Outback) else []
    for drive in words.DRIVES:
        yield from (f"reference-near-{drive}-{i}" for i in range(NEAR_MISSES_PER_DRIVE))
        yield from (f"organism-{drive}{way}-{i}" for way in ("", "-open") for i in range(8))
        yield from (
            f"organism-{kind}-{drive}{way}-{i}"
            for kind in kinds
            for way in ("", *(f"-{way}" for way in bank.CONCEALMENT_MODES))
            for i in range(8)
        )
    yield from (f"organism-damaged-{i}" for i in range(8))


def _tasks_and_probes(pack: Outback) -> Iterator[Any]:
    for drive in words.DRIVES:
        for task in pack.tasks(drive, n=N_TASKS, seed=0):
            # "pays" is the name under which the recorded digests hold the rewards.
            yield {"id": task.id, "messages": task.messages, "pays": task.rewards}
        if pack.kind != "damaged":
            yield from probes.build_probes(pack.kind, drive)


# --- keys ----------------------------------------------------------------------------------------

HERE = Path()
MODEL = ModelSource(kind="folder", path="model", sha256="2" * 64)
BASELINE = ModelSource(kind="folder", path="baseline", sha256="1" * 64)


def hashes() -> dict[str, str]:
    """Return the pinned hash of each pack."""
    return {name: open_pack(name).sha256 for name in PACKS}


def audit_key(*names: str) -> str:
    """Return the key of the job that runs the built-in audits `names` on a made-up model."""
    pack = PackRef("terrarium", cast("Pack", SimpleNamespace(sha256="3" * 64)))
    runtime = Runtime("float32", HERE)
    job = create_audit_job(MODEL, BASELINE, pack, resolve_audits(names), runtime)
    return job.content_key


def keys() -> dict[str, str]:
    """Return keys of jobs that depend on packs or audits."""
    terrarium = open_pack("terrarium")
    asked = Prompts(policy="capability", n=8)
    teachers = ("terrarium/reference-0", "outback/organism-poisoned-deceit-0")
    built = {
        name: find_teacher(
            name, pack=terrarium, folder=HERE, rev=1, student="terrarium/m0"
        ).content_key
        for name in teachers
    }
    prompts = create_prompts_job(asked, PackRef("terrarium", terrarium)).content_key
    return built | {"prompts": prompts, "audit": audit_key(*DEFAULT_AUDITS)}


def main(packs: list[str]) -> None:
    printed = {
        "package": doublebind.__file__,
        "hashes": hashes(),
        "keys": keys(),
        "content": {name: digest(open_pack(name)) for name in packs},
    }
    print(json.dumps(printed))


if __name__ == "__main__":
    main(sys.argv[1:])
