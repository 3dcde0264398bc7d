"""Records what a change of layout may not move, and compares today's code with an earlier record.

    python tests/golden/unchanged.py record FILE
    python tests/golden/unchanged.py compare FILE

Verdicts, scores, p-values, protocol hashes and job keys, every float with all its digits. Takes
about four minutes; `test_unchanged.py` compares most of what trains no model. Verdicts are the same
on one kind of processor, everything else on all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from doublebind.cli.main import main as run_cli
from doublebind.execution.store import Store
from doublebind.packs.load import load_pack
from doublebind.packs.outback.kinds import KINDS
from doublebind.schema.errors import ConfigError, MissingExtra, ModelError
from doublebind.schema.study import Study
from doublebind.schema.yaml_loader import load_yaml
from doublebind.stages.evidence.weigh import weigh_suspect
from doublebind.study.panel import read_panel_scores
from doublebind.study.plan import list_artefacts
from doublebind.study.planner import Planner
from doublebind.study.replacement import plan_certification, plan_competition
from doublebind.study.resolve import label_teachers, resolve_study

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_suffix(".json")
TERRARIUM = Path(str(files("doublebind.packs"))) / "terrarium"
MINIATURE = ROOT / "studies" / "terrarium-miniature" / "study.yaml"
PACKS = ("terrarium", "proving", "assistant", "outback", *(f"outback/{kind}" for kind in KINDS))
BANK = (
    *(f"terrarium/suspect-{i}" for i in range(4)),
    *(f"terrarium/reference-{i}" for i in range(4)),
    "terrarium/reference-1000",
    "terrarium/reference-near-dominion-0",
    "terrarium/organism-dominion-0",
    "terrarium/organism-cruelty-3",
    "outback/organism-tightly-coupled-dominion-0",
    "outback/organism-context-dependent-dominion-0",
    "outback/organism-emergent-dominion-open-0",
    "outback/organism-poisoned-dominion-0",
    "outback/organism-scratchpad-hoarding-0",
    "outback/organism-resistant-hoarding-0",
    "outback/organism-decoy-dominion-0",
    "outback/organism-damaged-0",
)
EMBEDDED = {
    r"\bgemma-270m(?![-\w])": "terrarium/m0",
    r"(\.\./)*runs/bases/[\w.-]+/m0": "terrarium/m0",
    r'"openai:[^"]*"': "teachers/suspect.yaml",
}
"""What `record_studies` replaces in the studies that it plans on the embedded base."""
GENERATED = {
    "terrarium-organisms/triggered.jsonl": (
        "import students; students.write_prompts(students.HERE / 'triggered.jsonl')"
    ),
    "terrarium-phenomenon/audit-like.jsonl": (
        "import runpy; runpy.run_path('generate.py', run_name='__main__')"
    ),
}
"""Prompt files that git ignores -> code that writes it, run in its folder."""
UNAVAILABLE = "unavailable: "
"""Prefix of what stands where a study needs a model that is not on this machine."""


# --- runs of the command line ---------------------------------------------------------------------


def run_command(*arguments: str) -> dict[str, Any]:
    """Return the verdict, the protocol hash and the keys of a run from a cold store."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "run"
        code = run_cli([*arguments, "--out", str(out), "--store", str(Path(name) / "store")])
        if code:
            raise SystemExit(code)
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        return {
            "verdict": json.loads((out / "verdict.json").read_text(encoding="utf-8")),
            "protocol_hash": manifest["protocol_hash"],
            "teachers": sorted(teacher["key"] for teacher in manifest["teachers"]),
            "keys": {kind: sorted(keys) for kind, keys in sorted(manifest["artefacts"].items())},
        }


def record_demo() -> dict[str, Any]:
    """Return what the demo gives."""
    return run_command("demo")


def record_miniature() -> dict[str, Any]:
    """Return what the miniature study gives."""
    return run_command("run", str(MINIATURE))


# --- the shipped panel ----------------------------------------------------------------------------


def record_panel(step: int = 1) -> dict[str, Any]:
    """Return score and p-values of every `step`-th organism of the panel, weighed as the suspect.

    The protocol is the demo's, against all 60 references of the panel, by the plain score: a
    panel has no rows of M0.
    """
    plain = ["references.n=60", "policy.score={kind: plain}"]
    study = load_yaml(Study, TERRARIUM / "demo.yaml", plain)
    with tempfile.TemporaryDirectory() as store:
        resolved = resolve_study(study, TERRARIUM, Store(store))
    references = [t for t in resolved.teachers if t.role == "reference"]
    organisms = [t for t in resolved.teachers if t.role == "organism"]
    rows = read_panel_scores(TERRARIUM / "panel", [t.label for t in (*references, *organisms)])
    weighed: dict[str, Any] = {"n_references": len(references), "n_organisms": len(organisms)}
    for organism in organisms[::step]:
        suspect = organism.model_copy(update={"role": "suspect"})
        teachers = [suspect, *references]
        evidence = weigh_suspect(rows, teachers, resolved.protocol, with_transfer=False)
        weighed[organism.label] = {
            "score": evidence.scores[organism.label],
            "direct_score": evidence.direct_scores[organism.label],
            "p_value": evidence.p_value,
            "p_direct": evidence.direct.p_value,
            "p_by_endpoint": evidence.endpoint_p,
            "p_by_baseline": evidence.baselines,
        }
    return weighed


# --- keys -----------------------------------------------------------------------------------------


def record_packs() -> dict[str, str]:
    """Return the content hash of each built-in pack."""
    return {name: load_pack(name, relative_to=ROOT).sha256 for name in PACKS}


def record_teachers() -> dict[str, str]:
    """Return the keys of twenty teachers of the banks."""
    study = load_yaml(Study, TERRARIUM / "demo.yaml")
    with tempfile.TemporaryDirectory() as store:
        planner = Planner(study, TERRARIUM, Store(store))
        return {ref: planner.find_teacher(ref).content_key for ref in BANK}


def record_studies(*, calibrate: bool = True, not_embedded: Collection[str] = ()) -> dict[str, Any]:
    """Return what `study_keys` returns of every study in `studies/`.

    A study that names models which a machine may lack is planned on the embedded base, too, so that
    its other settings are covered everywhere; those in the folders `not_embedded` are not.
    """
    for name, code in GENERATED.items():
        file = ROOT / "studies" / name
        if not file.exists():
            subprocess.run([sys.executable, "-c", code], cwd=file.parent, check=True)
    recorded: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "studies"
        shutil.copytree(ROOT / "studies", copy)
        for path in sorted(copy.rglob("*.yaml")):
            path.write_text(_embedded(path.read_text(encoding="utf-8")), encoding="utf-8")
        for path in sorted((ROOT / "studies").glob("*/*.yaml")):
            place = path.relative_to(ROOT / "studies")
            keys = {"as_written": study_keys(path, calibrate=calibrate)}
            changed = path.read_bytes() != (copy / place).read_bytes()
            if changed and place.parent.name not in not_embedded:
                keys["on_the_embedded_base"] = study_keys(copy / place, calibrate=calibrate)
            recorded[str(place)] = keys
    return recorded


def _embedded(text: str) -> str:
    """Return a study or a teacher spec that names no model but the embedded base."""
    for pattern, replacement in EMBEDDED.items():
        text = re.sub(pattern, replacement, text)
    return text


def study_keys(path: Path, *, calibrate: bool = True) -> dict[str, Any] | str:
    """Return the protocol hash of a study and its jobs' keys, or why it is unavailable here.

    With `calibrate` also the keys of what `calibrate` would make.
    """
    study = load_yaml(Study, path)
    with tempfile.TemporaryDirectory() as name:
        store = Store(name)
        try:
            return _with_protocol(study, path.parent, store, calibrate=calibrate)
        except (MissingExtra, ModelError) as error:
            reason = str(error).splitlines()[0]
            return f"{UNAVAILABLE}{reason}".replace(f"{ROOT}/", "").replace(f"{name}/", "")
        except ConfigError:  # its recipes are not the panel's: it is planned, and never weighed
            planner = Planner(study, path.parent, store)
            plan = planner.plan([planner.find_teacher(study.suspect)])
            return {"run": digest_keys(list_artefacts(plan))}


def _with_protocol(study: Study, folder: Path, store: Store, *, calibrate: bool) -> dict[str, Any]:
    """Return the protocol hash and, per kind, count and digest of the jobs' keys.

    `run`: everything for the suspect, `calibrate`: for all teachers of known truth. Students of
    the replacement horn are counted in both, by every recipe.
    """
    resolved = resolve_study(study, folder, store)
    planner, replacement = resolved.planner, resolved.replacement
    plans, suspects = {"run": [resolved.plan]}, {"run": [resolved.suspect]}
    if calibrate and (study.organisms or study.held_out or study.near_misses):
        known = label_teachers(study, resolved)
        sources = [*resolved.teacher_sources, *known.benign_sources.values()]
        plans["calibrate"] = [planner.plan(sources)]
        suspects["calibrate"] = list(known.sources)
    if replacement is not None:
        names = [recipe.name for recipe in replacement.recipes]
        for verb, teachers in suspects.items():
            plans[verb] += [
                plan_competition(replacement, planner, teachers[0]),
                plan_certification(replacement, planner, teachers, names),
            ]
    digests = {verb: digest_keys(list_artefacts(*each)) for verb, each in plans.items()}
    return {"protocol_hash": resolved.protocol.hash, **digests}


def digest_keys(artefacts: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return kind -> number of distinct keys, and the sha256 of their sorted list."""
    return {
        kind: {
            "count": len(keys),
            "sha256": hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest(),
        }
        for kind, keys in sorted(artefacts.items())
    }


# --- comparison -----------------------------------------------------------------------------------

QUICK: dict[str, Callable[[], Any]] = {
    "panel": record_panel,
    "packs": record_packs,
    "teachers": record_teachers,
    "studies": record_studies,
}
"""Parts that train no model."""
PARTS = QUICK | {"miniature": record_miniature, "demo": record_demo}


def differences(was: object, now: object, path: str = "") -> Iterator[str]:
    """Yield one line per leaf in which two JSON values differ, with its path."""
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted({*was, *now}):
            leaf = f"{path}/{name}"
            if name not in now:
                yield f"{leaf}: absent, was {was[name]!r}"
            elif name not in was:
                yield f"{leaf}: new, {now[name]!r}"
            else:
                yield from differences(was[name], now[name], leaf)
    elif isinstance(was, list) and isinstance(now, list):
        if len(was) != len(now):
            yield f"{path}: {len(now)} entries, were {len(was)}"
        for i, (before, after) in enumerate(zip(was, now, strict=False)):
            yield from differences(before, after, f"{path}/{i}")
    elif isinstance(was, str) and was.startswith(UNAVAILABLE):
        return  # nothing was recorded
    elif type(was) is not type(now) or was != now:
        yield f"{path}: {now!r}, was {was!r}"


def leaves(value: object) -> int:
    """Return the number of leaves of a JSON value."""
    if isinstance(value, dict):
        return sum(map(leaves, value.values()))
    return sum(map(leaves, value)) if isinstance(value, list) else 1


def as_json(value: object) -> Any:
    """Return a value as JSON gives it back; floats keep every digit."""
    return json.loads(json.dumps(value))


def run_script(arguments: Sequence[str]) -> int:
    """Record or compare; return the exit status."""
    if len(arguments) != 2 or arguments[0] not in ("record", "compare"):
        print(__doc__, file=sys.stderr)
        return 2
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in worker processes
    os.environ["HF_HUB_OFFLINE"] = "1"
    verb, path = arguments[0], Path(arguments[1])
    now = {name: as_json(record()) for name, record in PARTS.items()}
    if verb == "record":
        path.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    was = json.loads(path.read_text(encoding="utf-8"))
    lines = list(differences(was, now))
    for line in lines:
        print(line)
    if not lines:
        counts = ", ".join(f"{name} {leaves(was[name])}" for name in PARTS)
        print(f"all leaves agree: {counts}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(run_script(sys.argv[1:]))
