"""A few hundred cases of the fuzzer, the same ones each time; `run.py` runs thousands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fuzz.run import READING, fuzz, fuzz_packs, fuzz_runs, fuzz_studies, write_sources

SEED = 23
N_CASES = 200


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The folder of a tiny study, and its finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOUBLEBIND_STORE", "")  # set by what follows, and restored
        yield write_sources(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", ["studies", "packs", "runs"])
def test_no_mutated_input_raises_hangs_or_reaches_a_terminal(
    sources: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    study, run = sources
    case = {
        "studies": fuzz_studies(study, tmp_path),
        "packs": fuzz_packs(study, tmp_path),
        "runs": fuzz_runs(run, tmp_path, verbs=READING, n_verbs=3),
    }[kind]
    findings = fuzz(kind, N_CASES, SEED, case)
    assert findings.cases == N_CASES
    assert findings.kinds == {}
