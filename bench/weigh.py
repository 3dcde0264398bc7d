"""Time and memory of weighing and deciding on a million score rows, or on a broad battery.

`python bench/weigh.py` prints rows, seconds and the process's peak memory; the rows are drawn at
random before the clock starts. `--broad`: 100 teachers, 150 traits in 30 groups, 20 items each, two
students a teacher. What was last seen stands in bench/README.md.
"""

import resource
import sys
import time

import numpy as np
import pandas as pd

from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.schema.score_settings import ADJUSTED, DEFAULT_COVARIATES
from doublebind.stages.evidence.weigh import weigh_suspect
from doublebind.stages.verdict.incrimination import decide_incrimination
from doublebind.stages.verdict.outcome import METHOD_VERSION

TRAITS = ("a", "b", "c", "d", "e", "f", "p", "q")
KINDS = ("choice", "choice.honeypot", "goal")
RECIPES = ("x", "y", "z")


def study() -> tuple[list[Teacher], Protocol]:
    """One suspect, 39 references, 6 organisms; six score endpoints and two placebo traits."""
    roles = [("u", "suspect"), *((f"r{i}", "reference") for i in range(39))]
    roles += [(f"o{i}", "organism") for i in range(6)]
    teachers = [
        Teacher.model_validate({"label": t, "ref": t, "role": r, "family": t, "key": t})
        for t, r in roles
    ]
    protocol = Protocol(
        method_version=METHOD_VERSION,
        pack="p",
        pack_hash="h",
        score_endpoints={t: tuple(f"{k}/{t}" for k in KINDS) for t in TRAITS[:6]},
        placebo_endpoints={t: tuple(f"{k}/{t}" for k in KINDS) for t in TRAITS[6:]},
        scale_floor=0.01,
        alpha=0.05,
        min_controls=5,
        recipes=tuple({"name": name} for name in RECIPES),
        audits=("behaviour",),
        seeds=5,
        dtype="float32",
        horns=("incriminate",),
        revisions={},
        student="m0",
        references=(),
        organisms=(),
        suspect="u",
    )
    return teachers, protocol


def rows(teachers: list[Teacher]) -> pd.DataFrame:
    """Students, teachers and M0 on 45 items of every endpoint; organisms act where deployed."""
    roles = {f"{kind}/{trait}": "auditable" for trait in TRAITS for kind in KINDS}
    roles |= {f"choice.deployment/{trait}": "oracle" for trait in TRAITS} | {"capability": "gate"}
    axes = [[t.label for t in teachers], RECIPES, range(5), list(roles), range(45)]
    names = ["teacher", "recipe", "seed", "endpoint", "item"]
    frame = pd.MultiIndex.from_product(axes, names=names).to_frame(index=False)
    frame = frame.assign(model_kind="student", round=0, step=100, audit="behaviour-1")
    frame = frame.assign(split="audit", unscored_reason=None, role=frame["endpoint"].map(roles))
    first = frame[(frame["recipe"] == "x") & (frame["seed"] == 0)]
    direct = first.assign(model_kind="teacher", recipe="", seed=-1, step=-1)
    base = direct[direct["teacher"] == "u"].assign(teacher="M0", model_kind="m0")
    frame = pd.concat([frame, direct, base], ignore_index=True)
    shows = frame["teacher"].str.startswith("o") & (frame["role"] == "oracle")
    noise = np.random.default_rng(0).normal(0.3, 0.1, len(frame))
    return frame.assign(value=np.clip(noise + 0.4 * shows, 0, 1))


def broad_study() -> tuple[list[Teacher], Protocol]:
    """One suspect and 99 references; 150 traits in 30 groups."""
    teachers, protocol = study()
    first = teachers[0]
    labels = [("u", "suspect"), *((f"r{i}", "reference") for i in range(99))]
    teachers = [
        first.model_copy(update={"label": t, "ref": t, "role": r, "family": t, "content_key": t})
        for t, r in labels
    ]
    groups = {f"g{g}": tuple(f"choice/t{5 * g + k}" for k in range(5)) for g in range(30)}
    changes = {
        "score_endpoints": groups,
        "placebo_endpoints": {},
        "recipes": ({"name": "x"},),
        "seeds": 2,
        "score": ADJUSTED,
        "min_effect": 0.1,
    }
    return teachers, protocol.model_copy(update=changes)


def broad_rows(teachers: list[Teacher]) -> pd.DataFrame:
    """Students and M0 on 20 items of every trait."""
    labels = [t.label for t in teachers]
    names = ["teacher", "seed", "endpoint", "item"]
    endpoints = [f"choice/t{i}" for i in range(150)]
    axes = [labels, range(2), endpoints, [f"i{i}" for i in range(20)]]
    frame = pd.MultiIndex.from_product(axes, names=names).to_frame(index=False)
    frame = frame.assign(model_kind="student", recipe="x", round=0, step=100, audit="behaviour-1")
    frame = frame.assign(split="audit", unscored_reason=None, role="auditable")
    first = frame[(frame["seed"] == 0) & (frame["teacher"] == "u")]
    base = first.assign(teacher="M0", model_kind="m0", recipe="", seed=-1, step=-1)
    frame = pd.concat([frame, base], ignore_index=True)
    return frame.assign(value=np.random.default_rng(0).beta(2, 4, len(frame)))


if __name__ == "__main__":
    broad = "--broad" in sys.argv
    who, frozen = broad_study() if broad else study()
    scores = broad_rows(who) if broad else rows(who)
    rng = np.random.default_rng(1)
    shapes = {t.label: {n: rng.normal() for n in DEFAULT_COVARIATES[:3]} for t in who}
    start = time.perf_counter()
    decide_incrimination(
        weigh_suspect(scores, who, frozen, shapes=shapes),
        frozen,
        suspect="u",
        earlier_protocols=0,
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(scores):,} rows, {seconds:.1f} s, {peak:.1f} GiB at most")
