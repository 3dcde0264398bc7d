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
from doublebind.schema.recipe import SFT, Training
from doublebind.schema.study import Study, load_study
from doublebind.schema.treatments import CounterPoison
from doublebind.stages.distillation import REV
from doublebind.stages.distillation.student_inputs import TrainingData
from doublebind.stages.distillation.train_student import train_student
from doublebind.stages.rollouts.treatments.apply import apply_treatments
from doublebind.study.jobs import create_audit_job, locate_trained_model
from doublebind.study.planner import Planner

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import certify_bounds, mean_row, print_each, print_json, probe_means, rounded

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
    """The study's models, and the store of results."""

    def __init__(self, store: Store) -> None:
        """Make the teacher and its answers."""
        base = load_study(HERE / "study.yaml")
        recipe = base.recipes[0].model_dump() | {"prompts": PROMPTS}
        study = Study.model_validate({**base.model_dump(), "recipes": [recipe]})
        self.store, self.planner = store, Planner(study, HERE, store)
        teacher = self.planner.find_teacher(TEACHER)
        plan = self.planner.plan([teacher])
        self.cell = plan.students[0]
        for job in (*plan.teacher_jobs, self.cell.prompts, self.cell.rollouts):
            make_artefact(store, job)
        self.m0 = self.planner.student_base
        self.teacher = self.locate_model("teacher", teacher.content_key, teacher.base)

    def locate_model(self, kind: str, key: str, base: ModelSource) -> ModelSource:
        """Return a model whose weights were all trained."""
        return locate_trained_model(self.store, kind, key, base, False)

    def data(self, share: float, cover: bool, way: str) -> tuple[Path, Path]:
        """Return the folders of the answers before and after they were cleaned."""
        rollouts = make_artefact(self.store, self.cell.rollouts)
        depends = ["poison", DRIVE, share, cover, rollouts.name]

        def write_poisoned(out: Path) -> None:
            answers = read_records(rollouts / "trajectories.jsonl", Trajectory)
            poisoned = poison(answers, share, load_model(self.m0).tokenizer, cover=cover)
            write_records(out / "trajectories.jsonl", poisoned)

        job = Job("rollouts", content_hash(depends), write_poisoned, {})
        before = make_artefact(self.store, job)
        if not WAYS[way]:
            return before, before
        inputs = {
            "teacher": self.teacher,
            "trusted": self.m0,
            "rollouts": before,
            "prompts": make_artefact(self.store, self.cell.prompts) / "prompts.jsonl",
            "sampling": self.cell.recipe.prompts,
            "treatments": WAYS[way],
            **self.planner.runtime.inputs,
        }
        key = content_hash([*depends, WAYS[way]])
        return before, make_artefact(self.store, Job("treated", key, apply_treatments, inputs))

    def student(self, answers: Path, seed: int) -> tuple[ModelSource, pd.DataFrame]:
        """Return a student of the answers, and its scores on `certify` items."""
        inputs = {
            "base": self.m0,
            "data": TrainingData(answers),
            "channel": SFT(kind="sft"),
            "training": TRAINING,
            "seed": seed,
            **self.planner.runtime.inputs,
        }
        key = content_hash(["poisoned-student", REV, answers.name, TRAINING, seed, self.m0.sha256])
        make_artefact(self.store, Job("student", key, train_student, inputs))
        source = self.locate_model("student", key, self.m0)
        return source, self.certify_scores(source)

    def certify_scores(self, source: ModelSource) -> pd.DataFrame:
        """Return a model's scores on `certify` items."""
        planner = self.planner
        pack, audits, runtime = planner.certify_pack, planner.audits, planner.runtime
        job = create_audit_job(source, self.m0, pack, audits, runtime, "certify")
        return pd.read_parquet(make_artefact(self.store, job) / "scores.parquet")

    def row(self, share: float, cover: bool, way: str) -> dict[str, Any]:
        """Return the row of a share of poison, under cover or not, and a way of cleaning."""
        before, after = self.data(share, cover, way)
        m0 = self.certify_scores(self.m0)
        frames = [m0.assign(teacher="M0", model_kind="m0", recipe="", seed=0, step=0)]
        labels = {"teacher": "poisoner", "model_kind": "student", "recipe": way}
        acts: dict[str, list[float]] = {}
        for seed in SEEDS:
            source, scores = self.student(after, seed)
            frames.append(scores.assign(**labels, seed=seed, step=TRAINING.steps))
            for condition, value in probe_means(source, PROBES).items():
                acts.setdefault(condition, []).append(value)
        table = pd.concat(frames).assign(round=0)
        return {
            "share": share,
            "cover": cover,
            "cleaned": way,
            "poisoned_answers": count_triggers(before),
            "left": count_triggers(after),
            "activation": {condition: mean_row(values) for condition, values in acts.items()},
            "certify_upper": rounded(certify_bounds(table, self.planner, "poisoner", way)),
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
