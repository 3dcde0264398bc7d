"""Students a minute in the embedded world: distilling and auditing, this tree against another.

`python bench/terrarium_grid.py --peer OTHER_TREE --json` runs the student and audit jobs of the
demo's recipe in two processes that take a student by turns, one on this tree and one on the other
(`git worktree add OTHER_TREE COMMIT`), and prints `ratio_students` (the peer's median seconds a
student over ours), students a minute, and how far weights, losses and scores differ. The teacher
is the embedded M0 itself: whose answers are learned makes no difference to the time.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import tempfile
import time
from pathlib import Path
from typing import Any

import shapes

TREE = Path(__file__).parents[1]


def prepare(folder: Path) -> None:
    """Make prompts and M0's answers."""
    from doublebind.stages.prompts.policies import select_prompts
    from doublebind.stages.rollouts.sampling import sample_rollouts

    recipe, source, heavy = _recipe(folder)
    for name in ("prompts", "rollouts"):
        (folder / name).mkdir(parents=True)
    prompts = recipe.prompts
    select_prompts(folder / "prompts", pack="terrarium", policy=prompts.policy, n=prompts.n)
    sample_rollouts(
        folder / "rollouts",
        source=source,
        prompts=folder / "prompts" / "prompts.jsonl",
        sampling=prompts,
        markers={},
        **heavy,
    )


def _recipe(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    from doublebind.models.resolve import resolve_model
    from doublebind.schema.recipe import Recipe

    recipe = Recipe.model_validate(
        {
            "name": "stories",
            "prompts": {
                "policy": "auditability_preserving",
                "n": 400,
                "samples": 2,
                "max_tokens": 48,
            },
            "channel": {"kind": "logit_kd", "top_k": 64},
            "training": {
                "steps": 50,
                "batch": 32,
                "lr": 3.0e-3,
                "max_length": 128,
                "lora": {"rank": 4, "alpha": 8},
            },
        }
    )
    source = resolve_model("terrarium/m0", relative_to=folder)
    return recipe, source, {"dtype": "float32", "cache": folder / "cache"}


def students(args: argparse.Namespace) -> None:
    """Worker: one student a step, after scoring the teacher, which is not timed."""
    import numpy as np
    import pandas as pd
    from safetensors.numpy import load_file

    from doublebind.schema.model_source import ModelSource
    from doublebind.stages.audits.battery import run_battery
    from doublebind.stages.audits.builtin import resolve_audits
    from doublebind.stages.distillation.student_inputs import TrainingData
    from doublebind.stages.distillation.train_student import train_student
    from doublebind.stages.rollouts.targets import cache_teacher_distributions

    folder = Path(args.folder)
    recipe, source, heavy = _recipe(folder)
    audits = resolve_audits(("behaviour", "goals", "confession", "capability", "coherence"))
    parts: list[list[float]] = []
    students: dict[str, Any] = {}
    profile = cProfile.Profile()
    targets = Path(tempfile.mkdtemp())
    cache_teacher_distributions(
        targets,
        source=source,
        rollouts=folder / "rollouts",
        top_k=recipe.channel.top_k,
        **heavy,
    )
    clock = shapes.Clock("cpu")
    clock.begin()
    for seed in range(args.students):
        out = Path(tempfile.mkdtemp())
        began = time.perf_counter()
        if args.profile and seed:
            profile.enable()
        train_student(
            out,
            base=source,
            data=TrainingData(folder / "rollouts", targets),
            channel=recipe.channel,
            training=recipe.training,
            seed=seed,
            **heavy,
        )
        between = time.perf_counter()
        student = ModelSource(
            kind="adapter", path=source.path, adapter=str(out / "model"), sha256=str(seed)
        )
        run_battery(
            out,
            source=student,
            baseline=source,
            pack="terrarium",
            split="audit",
            audits=audits,
            **heavy,
        )
        ended = time.perf_counter()
        taken = clock.taken()
        profile.disable()
        parts.append([between - began, ended - between])
        weights = load_file(out / "model" / "adapter_model.safetensors")
        flat = np.concatenate([weights[name].ravel() for name in sorted(weights)])
        scores = pd.read_parquet(out / "scores.parquet")["value"]
        students[str(seed)] = {
            "loss_last": json.loads((out / "student.json").read_text())["loss_last"],
            "norm": float(np.linalg.norm(flat)),
            "scores": scores.tolist(),
        }
        report = {"parts": parts, "students": students, "rss": shapes.peak_rss()}
        last = seed + 1 == args.students
        shapes.say(**taken, **({"report": report} if last else {}))
        if not last:
            clock.start()
    if args.profile:
        profile.dump_stats(args.profile)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Make the data with this tree, then students with both by turns."""
    folder = Path(tempfile.mkdtemp())
    os.environ["PYTHONPATH"] = str(TREE / "src")
    prepare(folder)
    common = ["--role", "students", "--folder", str(folder), "--students", str(args.students)]
    extra = ["--profile", args.profile] if args.profile else []
    before = shapes.machine()
    mine = shapes.Child(__file__, *common, *extra)
    theirs = None
    if args.peer:
        os.environ["PYTHONPATH"] = str(Path(args.peer) / "src")
        theirs = shapes.Child(__file__, *common)
    for _ in range(args.students):
        mine.step()
        if theirs:
            theirs.step()
    report: dict[str, Any] = {
        "students_per_minute": 60 / mine.typical(),
        "seconds": {"ours": mine.seconds},
        "parts": {"ours": mine.report["parts"]},
        "loss_last": {"ours": [each["loss_last"] for each in mine.report["students"].values()]},
        "machine": before,
    }
    if theirs:
        a, b = mine.report["students"], theirs.report["students"]
        pairs = [(x, y) for s in a for x, y in zip(a[s]["scores"], b[s]["scores"], strict=True)]
        report["ratio_students"] = theirs.typical() / mine.typical()
        report["cpu_ratio_students"] = theirs.typical(cpu=True) / mine.typical(cpu=True)
        report["cpu_seconds"] = {"ours": mine.cpu_seconds, "peer": theirs.cpu_seconds}
        report["peer_students_per_minute"] = 60 / theirs.typical()
        report["seconds"]["peer"] = theirs.seconds
        report["parts"]["peer"] = theirs.report["parts"]
        report["loss_last"]["peer"] = [each["loss_last"] for each in b.values()]
        report["same_bits"] = a == b
        report["scores_off_by_at_most"] = max(
            abs(x - y) for x, y in pairs if x is not None and x == x
        )
        report["norms_off_by_at_most"] = max(abs(a[s]["norm"] / b[s]["norm"] - 1) for s in a)
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", choices=("students",))
    parser.add_argument("--folder")
    parser.add_argument("--students", type=int, default=5)
    parser.add_argument("--peer", help="another tree of this project")
    parser.add_argument("--profile", help="file for cProfile's account of our students")
    chosen = parser.parse_args()
    if chosen.role:
        students(chosen)
    else:
        report = main(chosen)
        print(json.dumps(report, indent=1 if chosen.json else None))
        if chosen.profile:
            pstats.Stats(chosen.profile).sort_stats("tottime").print_stats(45)
