"""Time and memory of weighing and deciding on a million score rows.

`python bench/weigh.py` prints rows, seconds and the process's peak memory; the rows are drawn at
random before the clock starts. Last seen (2 shared cores, busy): 1,094,445 rows, 2.2 s, 0.6 GiB.
"""

import resource
import time

import numpy as np
import pandas as pd

from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
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


if __name__ == "__main__":
    who, frozen = study()
    scores = rows(who)
    start = time.perf_counter()
    decide_incrimination(
        weigh_suspect(scores, who, frozen), frozen, suspect="u", earlier_protocols=0
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(scores):,} rows, {seconds:.1f} s, {peak:.1f} GiB at most")
