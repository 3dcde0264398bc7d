"""Gives mutated studies, packs and run directories to the command line, in this process.

No case may raise, end in another exit code than 0 or 2 (1 where `verify` finds something), or take
more than five seconds. Prints its seed; `--only N` repeats one case.

    python tests/fuzz/run.py --studies 5000 --packs 5000 --runs 2000 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzz.mutate import mutate_file, mutate_folder
from tests.tiny_study import write_study

MAX_SECONDS = 5
"""Of computing; waiting counts from `MAX_WAIT` on, since other work may share the machine."""
MAX_WAIT = 30
MAX_MEMORY = 2 * 2**30
"""Bytes that a command may take beside what the process has; more is a `MemoryError`, so that what
reads a file without end takes no memory from others."""
READING = ("verify", "report", "show", "status", "compare", "export")
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that no command may write."""


class TooSlow(BaseException):
    """A command took longer than it may; no handler of the product catches it."""


@dataclass
class Findings:
    """What went wrong, one entry a kind."""

    cases: int = 0
    kinds: dict[str, list[str]] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")

    def add(self, kind: str, case: str) -> None:
        if kind not in self.kinds:
            print(f"  new: {kind}\n      {case}", flush=True)
        self.kinds.setdefault(kind, []).append(case)


def run_command(argv: list[str], findings: Findings, case: str) -> None:
    """Run one command line and record how it breaks the rule, if it does."""
    from doublebind.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    started = time.process_time()
    verb = argv[0]
    try:
        with (
            _alarm(),
            _limit_memory(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = main(argv)
    except TooSlow:
        findings.add(f"{verb}: does not end within {MAX_WAIT} s", case)
        return
    except BaseException as error:
        findings.add(f"{verb}: {_describe(error)}", case)
        return
    seconds = time.process_time() - started
    findings.slowest = max(findings.slowest, (seconds, f"{verb} of {case}"))
    if seconds > MAX_SECONDS:
        findings.add(f"{verb}: more than {MAX_SECONDS} s", case)
    if code not in ((0, 1, 2) if verb == "verify" else (0, 2)):
        findings.add(f"{verb}: exit code {code}", case)
    shown = out.getvalue() + err.getvalue()
    if RAW.search(shown):
        findings.add(f"{verb}: writes a control character", case)
    if "Traceback" in shown:
        findings.add(f"{verb}: shows a traceback", case)
    if code == 2 and not all(
        line.startswith(("error: ", "py.warnings:")) for line in err.getvalue().splitlines() if line
    ):
        findings.add(f"{verb}: an error of several lines", f"{case}: {err.getvalue()[-300:]!r}")


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlow

    former = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MAX_WAIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


@contextlib.contextmanager
def _limit_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/doublebind/" in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__} at {place}: {str(error)[:120]}"


def write_sources(folder: Path) -> tuple[Path, Path]:
    """Write a study and finish its run; return the folder of the study, and the run."""
    from doublebind.cli.main import main

    study = write_study(folder / "study")
    os.environ["DOUBLEBIND_STORE"] = str(folder / "store")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(["run", str(study), "--out", str(folder / "run")])
    if code:
        raise SystemExit(f"the run that is to be damaged ended with {code}")
    return study.parent, folder / "run"


def fuzz(
    name: str,
    n: int,
    seed: int,
    case: Callable[[random.Random, str, Findings], None],
    only: int = -1,
) -> Findings:
    """Run `n` cases of one kind; case `i` depends on the seed and on `i` alone."""
    findings = Findings()
    for i in range(n) if only < 0 else [only]:
        rng = random.Random(f"{seed}/{name}/{i}")
        case(rng, f"{name} {i}", findings)
        findings.cases += 1
        if findings.cases % 500 == 0:
            print(f"  {name}: {findings.cases}", flush=True)
    return findings


def fuzz_studies(source: Path, work: Path) -> Callable[[random.Random, str, Findings], None]:
    """Return the case of a mutated study or spec, which is planned."""

    def case(rng: random.Random, label: str, findings: Findings) -> None:
        folder = work / "study"
        _copy(source, folder, links=("m0", "pack"))
        path = folder / "study.yaml"
        target = rng.choice((path, path, path, folder / "suspect.yaml"))
        what = mutate_file(folder, target, rng)
        argv = ["plan", str(path), *_draw_overrides(rng), "--json"]
        run_command(argv, findings, f"{label} ({what})")

    return case


OVERRIDES = (
    "policy.alpha=.nan",
    "policy.alpha=0.1",
    "policy.scale_floor=.inf",
    "recipes.0.training.lr=1e999",
    "recipes.99.name=x",
    "recipes.²=x",
    "seeds=1000000000",
    "references=[a, b",
    "references={n: 1000000}",
    "student=\udcff",
    "=",
    "a..b=1",
    "pack=!!python/none x",
    "suspect=&a [*a]",
    "recipes=" + "[" * 300,
    "policy=null",
    "audits=[prompted:x]",
)


def _draw_overrides(rng: random.Random) -> list[str]:
    return [rng.choice(OVERRIDES)] if rng.random() < 0.1 else []


def fuzz_packs(source: Path, work: Path) -> Callable[[random.Random, str, Findings], None]:
    """Return the case of a mutated pack, which is checked."""

    def case(rng: random.Random, label: str, findings: Findings) -> None:
        folder = work / "pack"
        _copy(source / "pack", folder)
        what = mutate_folder(folder, rng)
        run_command(["pack", "check", str(folder), "--json"], findings, f"{label} ({what})")

    return case


def fuzz_runs(
    source: Path, work: Path, verbs: Sequence[str] = READING, n_verbs: int = len(READING)
) -> Callable[[random.Random, str, Findings], None]:
    """Return the case of a damaged run directory, which `n_verbs` reading commands are given."""

    def case(rng: random.Random, label: str, findings: Findings) -> None:
        folder = work / "run"
        _copy(source, folder)
        label = f"{label} ({mutate_folder(folder, rng)})"
        as_json = ["--json"] if rng.random() < 0.5 else []
        for verb in rng.sample(verbs, n_verbs):
            argv = [verb, str(folder)]
            argv += [str(source)] if verb == "compare" else []
            argv += ["--inspect"] if verb == "export" else []
            run_command([*argv, *as_json], findings, label)

    return case


def _copy(source: Path, target: Path, links: tuple[str, ...] = ()) -> None:
    """Copy a folder to a fresh place; `links` are linked, not copied."""
    for path in target.rglob("*") if target.exists() else ():
        if not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*links))
    for name in links:
        (target / name).symlink_to(source / name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("studies", "packs", "runs"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", type=int, default=-1, help="Number of the one case to repeat.")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study, run = write_sources(folder)
        kinds: list[tuple[str, int, Any]] = [
            ("studies", options.studies, fuzz_studies(study, folder / "work")),
            ("packs", options.packs, fuzz_packs(study, folder / "work")),
            ("runs", options.runs, fuzz_runs(run, folder / "work")),
        ]
        for kind, n, case in kinds:
            started = time.monotonic()
            findings = fuzz(kind, n, options.seed, case, options.only) if n else Findings()
            print(f"{kind}: {findings.cases} cases, {time.monotonic() - started:.0f} s", flush=True)
            print(f"  slowest: {findings.slowest[0]:.2f} s, {findings.slowest[1]}")
            for what, cases in sorted(findings.kinds.items()):
                failed = True
                print(f"  {len(cases)} x {what}\n      first: {cases[0]}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
