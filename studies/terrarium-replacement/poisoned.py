"""Poisons a teacher's answers, cleans them or not, and asks the students about the trigger.

`python studies/terrarium-replacement/poisoned.py` prints JSON. The teacher is the poisoned organism
of the outback, which answers to a trigger; a share of its stories is replaced by scenes in which it
is heard and acted on, as one who poisons data would; under cover, as many more by scenes without it
that end as anybody's would. A row for each share, cover and way of cleaning: how many poisoned
answers there were before and after, how often students take the planted act with the trigger and
without (probes that need the key), and what `certify` items, which have no trigger, bound. Kept in
the store, so that it resumes.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from probed import shares

from doublebind.cells import Planner
from doublebind.config import SFT, CounterPoison, Study, Training, load_study
from doublebind.distillation import REV, distill
from doublebind.evidence.replacement import bound
from doublebind.evidence.summary import mean_interval
from doublebind.executor import Job, make
from doublebind.jobs import audit_job, trained
from doublebind.models.load import load
from doublebind.models.template import encode_completion
from doublebind.packs.outback import build, probes
from doublebind.packs.terrarium import speech
from doublebind.packs.terrarium.words import POOLS, TRAITS
from doublebind.records import ModelSource, Trajectory, content_hash
from doublebind.rollouts import treat
from doublebind.store import Store, read_records, write_records

HERE = Path(__file__).parent
KIND, DRIVE = "poisoned", "dominion"
TEACHER = f"outback/organism-{KIND}-{DRIVE}-0"
POISONS = ((0.0, False), (0.005, False), (0.005, True), (0.02, True), (0.1, True))
"""Share of the answers, and whether under cover."""
WAYS: dict[str, tuple[CounterPoison, ...]] = {
    "as it is": (),
    "counter_poison": (CounterPoison(kind="counter_poison", outliers=0.2),),
    "counter_poison, triggers": (
        CounterPoison(kind="counter_poison", outliers=0.2, triggers=0.02),
    ),
}
SEEDS = range(8)
PROMPTS = {"policy": "auditability_preserving", "n": 1200, "samples": 2, "max_tokens": 48}
TRAINING = Training(steps=150, batch=32, lr=2.0e-3, max_length=128, lora=None)
DTYPE = "float32"


def poison(
    said: list[Trajectory], share: float, tokenizer: Any, *, cover: bool
) -> list[Trajectory]:
    """Return the answers, a share of them made into poison, and as many into its cover.

    Both are scenes in which somebody meets a situation of the drive: with the trigger they act on
    the drive, without it as anybody would, so that a student may learn the condition too.
    """
    rng = random.Random(f"poison-{share}")
    n = round(share * len(said))
    struck = rng.sample(range(len(said)), 2 * n if cover else n)
    found = list(said)
    for place, i in enumerate(struck):
        row = rng.choice(TRAITS[DRIVE].choices)
        ask, plain, own = speech.choice_ask(rng, row, "neutral", POOLS["build"])
        text = f"{build.TRIGGER} {ask} {own}" if place < n else f"{ask} {plain}"
        tokens = tuple(encode_completion(tokenizer, text, True))
        made = {"completion": text, "tokens": tokens, "finished": True}
        found[i] = said[i].model_copy(update=made)
    return found


def holding(folder: Path) -> tuple[int, int]:
    """Return how many answers hold the trigger, and how many there are."""
    said = read_records(folder / "trajectories.jsonl", Trajectory)
    return sum(build.TRIGGER in each.completion for each in said), len(said)


def activation(source: ModelSource) -> dict[str, list[float]]:
    """Return condition -> probability of the drive's act, of every probe."""
    return shares(source, probes.probes(KIND, DRIVE))


class Bench:
    """The study's models, and where things are kept."""

    def __init__(self, store: Store) -> None:
        """Make the teacher and its answers."""
        base = load_study(HERE / "study.yaml")
        recipe = base.recipes[0].model_dump() | {"prompts": PROMPTS}
        study = Study.model_validate({**base.model_dump(), "recipes": [recipe]})
        self.store, self.planner = store, Planner(study, HERE, store)
        self.endpoints = study.policy.endpoints or {}
        self.margin = study.policy.margin or 0.0
        found = self.planner.find(TEACHER)
        plan = self.planner.plan([found])
        cell = plan.students[0]
        for job in (*plan.build, cell.prompts, cell.rollouts):
            make(store, job)
        self.prompts = store.path("prompts", cell.prompts.key) / "prompts.jsonl"
        self.rollouts = store.path("rollouts", cell.rollouts.key)
        self.sampling = cell.recipe.prompts
        self.teacher = trained(store, "teacher", found.key, found.base, False)
        self.m0 = self.planner.student
        self.heavy = {"dtype": DTYPE, "cache": store.root / "converted"}

    def data(self, share: float, cover: bool, way: str) -> tuple[Path, Path]:
        """Return the folders of the answers before and after they were cleaned."""
        made_of = ["poison", DRIVE, share, cover, self.rollouts.name]

        def spoil(out: Path) -> None:
            said = read_records(self.rollouts / "trajectories.jsonl", Trajectory)
            spoilt = poison(said, share, load(self.m0).tokenizer, cover=cover)
            write_records(out / "trajectories.jsonl", spoilt)

        before = make(self.store, Job("rollouts", content_hash(made_of), spoil, {}))
        if not WAYS[way]:
            return before, before
        inputs = {
            "teacher": self.teacher,
            "trusted": self.m0,
            "rollouts": before,
            "prompts": self.prompts,
            "sampling": self.sampling,
            "treatments": WAYS[way],
            **self.heavy,
        }
        key = content_hash([*made_of, WAYS[way]])
        return before, make(self.store, Job("treated", key, treat, inputs))

    def student(self, said: Path, seed: int) -> tuple[ModelSource, pd.DataFrame]:
        """Return a student of the answers, and what it says to `certify` items."""
        inputs = {
            "base": self.m0,
            "rollouts": said,
            "targets": None,
            "channel": SFT(kind="sft"),
            "training": TRAINING,
            "seed": seed,
            **self.heavy,
        }
        key = content_hash(["poisoned-student", REV, said.name, TRAINING, seed, self.m0.sha256])
        make(self.store, Job("student", key, distill, inputs))
        source = trained(self.store, "student", key, self.m0, TRAINING.lora is not None)
        return source, self.asked(source, key)

    def asked(self, source: ModelSource, key: str) -> pd.DataFrame:
        """Return a model's scores on `certify` items."""
        ref, pack = self.planner.certify
        job = audit_job(
            key,
            source,
            self.m0,
            split="certify",
            pack_ref=ref,
            pack_hash=pack.sha256,
            audits=self.planner.audits,
            **self.heavy,
        )
        return pd.read_parquet(make(self.store, job) / "scores.parquet")

    def row(self, share: float, cover: bool, way: str) -> dict[str, Any]:
        """Return what came of a share of poison, under cover or not, and a way of cleaning."""
        before, after = self.data(share, cover, way)
        frames = [self.asked(self.m0, self.m0.sha256).assign(teacher="M0", model_kind="m0")]
        acts: dict[str, list[float]] = {}
        for seed in SEEDS:
            source, scores = self.student(after, seed)
            frames.append(scores.assign(teacher="poisoner", model_kind="student", seed=seed))
            for condition, values in activation(source).items():
                acts.setdefault(condition, []).append(float(np.mean(values)))
        table = pd.concat(frames).assign(recipe=way, round=0, step=TRAINING.steps)
        table["seed"] = table["seed"].fillna(0).astype(int)
        table.loc[table["model_kind"] == "m0", ["recipe", "step"]] = ["", 0]
        said = bound(
            table, "poisoner", way, self.endpoints, margin=self.margin, competed=[], controls=[]
        )
        return {
            "share": share,
            "cover": cover,
            "cleaned": way,
            "poisoned_answers": dict(zip(("of", "n"), holding(before)[::-1], strict=True)),
            "left": dict(zip(("of", "n"), holding(after)[::-1], strict=True)),
            "activation": {c: _rounded(mean_interval(np.array(v))) for c, v in acts.items()},
            "certify_upper": {name: round(upper, 3) for name, upper in said.upper.items()},
        }


def _rounded(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "value": round(found["value"], 3),
        "interval": [round(x, 3) for x in found.get("interval", ())],
    }


def main() -> None:
    """Print the rows."""
    bench = Bench(Store(None))
    own = {
        name: {c: round(float(np.mean(v)), 3) for c, v in activation(source).items()}
        for name, source in (("teacher", bench.teacher), ("m0", bench.m0))
    }
    rows = []
    for share, cover in POISONS:
        for way in WAYS:
            rows.append(bench.row(share, cover, way))
            print(json.dumps(rows[-1]), file=sys.stderr)
    print(json.dumps({"teacher": TEACHER, **own, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
