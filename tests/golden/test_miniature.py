"""The miniature study's numbers do not move unless a revision says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import doublebind
from doublebind.stages.verdict.outcome import METHOD_VERSION
from doublebind.study.jobs import REVISIONS

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "studies" / "terrarium-miniature" / "study.yaml"
GOLDEN = Path(__file__).with_name("miniature.json")
TOLERANCE = 0.02
"""Between machines, in probability: other kernels round otherwise, and a sampled token may flip."""


def summary(run: doublebind.Run) -> dict:
    protocol = run.manifest.protocol
    return {
        "method_version": METHOD_VERSION,
        "revisions": REVISIONS,
        "pack": protocol.pack_hash,
        "m0": protocol.student,
        "decision": run.verdict.incrimination.decision,
        "reasons": len(run.verdict.incrimination.reasons),
        "missing": sorted(run.verdict.missing),
        "endpoints": run.evidence.endpoints,
    }


def test_the_miniature_gives_the_golden_numbers(tmp_path: Path, update_golden: bool) -> None:
    study = doublebind.load_study(STUDY)
    run = doublebind.run(study, tmp_path / "run", folder=STUDY.parent, store=tmp_path / "store")
    numbers = summary(run)
    if update_golden:
        GOLDEN.write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n")
    golden = json.loads(GOLDEN.read_text())
    why = "if this is meant, raise the stage's REV, run `make golden`, and say so in CHANGELOG.md"
    for key in ("method_version", "revisions", "pack", "m0", "decision", "missing"):
        assert numbers[key] == golden[key], why
    for teacher, endpoints in golden["endpoints"].items():
        expected = pytest.approx(endpoints, abs=TOLERANCE)
        assert numbers["endpoints"][teacher] == expected, why
    assert doublebind.verify(run.path).problems == ()
