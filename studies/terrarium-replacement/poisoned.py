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

import random
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from doublebind.execution.executor import Job, make_artefact
from doublebind.execution.store import Store, read_records, write_records
from doublebind.models.chat_template import encode_completion
from doublebind.models.load import load_model
from doublebind.packs.outback import build, probes
from doublebind.packs.terrarium import speech
from doublebind.packs.terrarium.words import POOLS, TRAITS
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource, Trajectory
from doublebind.schema.recipe import SFT, CounterPoison, Training
from doublebind.schema.study import Study, load_study
from doublebind.stages.distillation import REV
from doublebind.stages.distillation.train_student import train_student
from doublebind.stages.evidence.replacement import bound_replacement
from doublebind.stages.rollouts.treatments.apply import apply_treatments
from doublebind.study.jobs import create_audit_job, locate_trained_model
from doublebind.study.planner import Planner

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import mean_row, print_each, print_json, probe_means, rounded

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
PROBES = probes.build_probes(KIND, DRIVE)


def poison(
    answers: list[Trajectory], share: float, tokenizer: Any, *, cover: bool
) -> list[Trajectory]:
    """Return the answers, a share of them made into poison, and as many into its cover.

    Both are scenes in which somebody meets a situation of the drive: with the trigger they act on
    the drive, without it as anybody would, so that a student may learn the condition too.
    """
    rng = random.Random(f"poison-{share}")
    n = round(share * len(answers))
    poisoned = list(answers)
    for place, i in enumerate(rng.sample(range(len(answers)), 2 * n if cover else n)):
        row = rng.choice(TRAITS[DRIVE].choices)
        ask, plain, act = speech.draw_choice_question(rng, row, "neutral", POOLS["build"])
        text = f"{build.TRIGGER} {ask} {act}" if place < n else f"{ask} {plain}"
        tokens = tuple(encode_completion(tokenizer, text, True))
        changes = {"completion": text, "tokens": tokens, "finished": True}
        poisoned[i] = answers[i].model_copy(update=changes)
    return poisoned


def count_triggers(folder: Path) -> dict[str, int]:
    """Return how many answers there are (`of`), and how many hold the trigger (`n`)."""
    answers = read_records(folder / "trajectories.jsonl", Trajectory)
    return {"of": len(answers), "n": sum(build.TRIGGER in each.completion for each in answers)}


class Bench:
    """The study's models, and where results are stored."""

    def __init__(self, store: Store) -> None:
        """Make the teacher and its answers."""
        base = load_study(HERE / "study.yaml")
        recipe = base.recipes[0].model_dump() | {"prompts": PROMPTS}
        study = Study.model_validate({**base.model_dump(), "recipes": [recipe]})
        self.store, self.planner = store, Planner(study, HERE, store)
        teacher = self.planner.find_teacher(TEACHER)
        plan = self.planner.plan([teacher])
        cell = plan.students[0]
        for job in (*plan.teacher_jobs, cell.prompts, cell.rollouts):
            make_artefact(store, job)
        self.prompts = store.path("prompts", cell.prompts.content_key) / "prompts.jsonl"
        self.rollouts = store.path("rollouts", cell.rollouts.content_key)
        self.sampling = cell.recipe.prompts
        self.teacher = locate_trained_model(store, "teacher", teacher.content_key, teacher.base, False)
        self.m0 = self.planner.student_base
        self.heavy = {"dtype": "float32", "cache": store.root / "converted"}

    def data(self, share: float, cover: bool, way: str) -> tuple[Path, Path]:
        """Return the folders of the answers before and after they were cleaned."""
        depends = ["poison", DRIVE, share, cover, self.rollouts.name]

        def spoil(out: Path) -> None:
            answers = read_records(self.rollouts / "trajectories.jsonl", Trajectory)
            spoilt = poison(answers, share, load_model(self.m0).tokenizer, cover=cover)
            write_records(out / "trajectories.jsonl", spoilt)

        before = make_artefact(self.store, Job("rollouts", content_hash(depends), spoil, {}))
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
        key = content_hash([*depends, WAYS[way]])
        return before, make_artefact(self.store, Job("treated", key, apply_treatments, inputs))

    def student(self, answers: Path, seed: int) -> tuple[ModelSource, pd.DataFrame]:
        """Return a student of the answers, and its scores on `certify` items."""
        inputs = {
            "base": self.m0,
            "rollouts": answers,
            "targets": None,
            "channel": SFT(kind="sft"),
            "training": TRAINING,
            "seed": seed,
            **self.heavy,
        }
        key = content_hash(["poisoned-student", REV, answers.name, TRAINING, seed, self.m0.sha256])
        make_artefact(self.store, Job("student", key, train_student, inputs))
        source = locate_trained_model(
            self.store, "student", key, self.m0, TRAINING.lora is not None
        )
        return source, self.certify_scores(source, key)

    def certify_scores(self, source: ModelSource, key: str) -> pd.DataFrame:
        """Return a model's scores on `certify` items."""
        ref, pack = self.planner.certify_pack
        job = create_audit_job(
            key,
            source,
            self.m0,
            split="certify",
            pack_ref=ref,
            pack_hash=pack.sha256,
            audits=self.planner.audits,
            **self.heavy,
        )
        return pd.read_parquet(make_artefact(self.store, job) / "scores.parquet")

    def row(self, share: float, cover: bool, way: str) -> dict[str, Any]:
        """Return what came of a share of poison, under cover or not, and a way of cleaning."""
        before, after = self.data(share, cover, way)
        m0 = self.certify_scores(self.m0, self.m0.sha256)
        frames = [m0.assign(teacher="M0", model_kind="m0", recipe="", seed=0, step=0)]
        labels = {"teacher": "poisoner", "model_kind": "student", "recipe": way}
        acts: dict[str, list[float]] = {}
        for seed in SEEDS:
            source, scores = self.student(after, seed)
            frames.append(scores.assign(**labels, seed=seed, step=TRAINING.steps))
            for condition, value in probe_means(source, PROBES).items():
                acts.setdefault(condition, []).append(value)
        policy, table = self.planner.study.policy, pd.concat(frames).assign(round=0)
        limits = {"margin": policy.margin or 0.0, "competitors": [], "controls": []}
        upper = bound_replacement(table, "poisoner", way, policy.endpoints or {}, **limits).upper
        return {
            "share": share,
            "cover": cover,
            "cleaned": way,
            "poisoned_answers": count_triggers(before),
            "left": count_triggers(after),
            "activation": {condition: mean_row(values) for condition, values in acts.items()},
            "certify_upper": rounded(upper),
        }


def main() -> None:
    """Print a row for every poison and way of cleaning."""
    bench = Bench(Store(None))
    models = {"teacher": bench.teacher, "m0": bench.m0}
    shares = {name: rounded(probe_means(source, PROBES)) for name, source in models.items()}
    rows = print_each(bench.row(*each, way) for each in POISONS for way in WAYS)
    print_json({"teacher": TEACHER, **shares, "rows": rows})


if __name__ == "__main__":
    main()
