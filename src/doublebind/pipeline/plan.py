"""Estimates the cost and the power of a study, without running it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doublebind.execution.costs import Cost, CostEstimates, classify_cost
from doublebind.execution.executor import Job
from doublebind.execution.store import Store
from doublebind.pipeline.preflight import check_before_work, list_passing_prompts
from doublebind.runs.run import Run
from doublebind.schema.executor import LocalOptions
from doublebind.schema.hashing import Record, optional_field
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.schema.score_settings import PLAIN
from doublebind.schema.study import Study
from doublebind.stages.audits.protocol import Audit
from doublebind.stages.evidence.conformal import min_references, smallest_p
from doublebind.stages.evidence.many_suspects import min_references_for_suspects
from doublebind.study.plan import Plan
from doublebind.study.references import describe_assumption
from doublebind.study.replacement import plan_certification, plan_competition
from doublebind.study.resolve import ResolvedStudy, label_teachers, load_if_path, resolve_study
from doublebind.study.teachers import TeacherSource

CUDA_RESERVED_BYTES = 2**29
"""Bytes of GPU memory that CUDA itself takes in each process, beside tensors; typically 0.5 GiB."""


class ArtefactCounts(Record):
    """The artefacts of one kind that a study needs, and the cost of those still to be made.

    Costs are means over artefacts of the same kind, base and amount in this store, or of the same
    kind and base where there are none of that amount. They are absent where this base has none.
    """

    needed: int
    stored: int
    seconds: float | None = optional_field()
    bytes: float | None = optional_field()
    peak_bytes: float | None = optional_field()
    """Most memory that one of them takes."""
    device_peak_bytes: float | None = optional_field()
    """Most GPU memory that one of them takes."""


class PowerAtSize(Record):
    """Power of a study of another size."""

    references: int
    seeds: int
    items: float
    """Items, as a multiple of the pilot's."""
    power: dict[str, float]
    """Effect -> share of simulated studies that flag the suspect."""
    students: int
    """Students that such a study trains."""


class SimulatedPower(Record):
    """Power of the planned study, simulated from a benign pilot."""

    planned: dict[str, float]
    """Effect (shift of every score endpoint, in probability) -> share of studies that flag it."""
    smallest_effect: float | None
    """Smallest effect detected in 80% of studies; null where none up to 1 is."""
    flag_rate_at_zero: float
    others: tuple[PowerAtSize, ...]
    components: dict[str, dict[str, int | float | dict[str, str]]]
    """Score endpoint -> variance components of the pilot."""


class ScorePowerAtSize(Record):
    """Power of the study's score with some number of references, one drive being moved."""

    references: int
    power: dict[str, float]
    """Shift in s.d. of the pilot's references -> share of studies that flag it."""
    smallest_sd: float | None
    """Smallest shift found in 80% of studies, in s.d.; null where 8 are not enough."""
    smallest: float | None
    """The same in log-odds; of a plain score, in probability."""
    smallest_probability: float | None
    """The same in probability, at the references' mean."""


class PlanSummary(Record):
    """The cost of a study, and what it can show, before anything is run."""

    cells: dict[str, ArtefactCounts]
    """Kind of artefact -> how many are needed."""
    references: int
    families: int
    smallest_p: float
    exchangeability: str
    """Assumption that the p-value rests on."""
    references_for_alpha: int
    """Fewest references with which p <= alpha can be reached."""
    protocol_hash: str
    missing: dict[str, str]
    """Number that is absent -> why."""
    seconds: float | None = optional_field()
    """Sum over all artefacts still to be made."""
    bytes: float | None = optional_field()
    wall_seconds: float | None = optional_field()
    """From start to end, with `executor: local`."""
    peak_bytes: float | None = optional_field()
    """Memory of all local workers together, if the largest artefacts are made at once."""
    device_peak_bytes: float | None = optional_field()
    """The same of the memory of one GPU."""
    device_fits: bool | None = optional_field()
    """Whether the smallest GPU here has that, and what CUDA itself takes in each worker."""
    power: SimulatedPower | None = optional_field()
    """By the plain score, for other numbers of seeds and items too."""
    score_power: tuple[ScorePowerAtSize, ...] | None = optional_field()
    """By the study's own score, from the pilot's references as they were measured."""
    references_for_suspects: int | None = optional_field()
    """Fewest references with which one of the suspects alone can pass Benjamini and Hochberg's
    procedure at alpha, where several suspects are planned."""


def plan(
    study: Study | str | Path,
    *,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    pilot: str | Path | None = None,
    calibrate: bool = False,
    suspects: int = 1,
    audits: Sequence[Audit] = (),
) -> PlanSummary:
    """Return the cost of a study, and what it can show, without running anything.

    Args:
        study: The study, or its file.
        folder: Folder that relative paths in the study start from; default the file's folder, or
            the current one.
        store: Where artefacts are kept.
        pilot: Run directory whose references, benign by assumption, give the variance components
            from which power is simulated.
        calibrate: Count what `calibrate` makes, for all teachers of known truth.
        suspects: How many suspects will be weighed against these references, each in a run of its
            own, and decided about together with `discover`.
        audits: Audits besides the study's, as `run` is given them.

    Raises:
        ConfigError: One line per reason for which the study would fail later.
    """
    study, folder = load_if_path(study, folder)
    costs = CostEstimates(Store(store))
    setting = resolve_study(study, folder, costs.store, audits)
    references = [t for t in setting.teachers if t.role == "reference"]
    more = label_teachers(study, setting).sources if calibrate else ()
    plans = _list_plans(study, setting, calibrate=calibrate)
    sources = [*setting.teacher_sources, *more]
    check_before_work(setting.planner, sources, plans[0], setting.replacement)
    counts = {kind: _count_artefacts(jobs, costs) for kind, jobs in _group_jobs(plans).items()}
    totals = _sum_costs(counts)
    totals |= _estimate_local_run(study, plans, costs)
    gpu, gpu_missing = _estimate_gpu_memory(study, counts)
    power, power_missing = _simulate_power(study, setting.protocol, references, pilot)
    score_power, score_missing = _simulate_score_power(setting.protocol, pilot)
    alpha = study.policy.alpha
    return PlanSummary(
        cells=counts,
        references=len(references),
        families=len({t.family for t in references}),
        smallest_p=smallest_p(len(references)),
        exchangeability=describe_assumption(study.references)
        if "incriminate" in study.horns
        else "nothing is asked about incrimination",
        references_for_alpha=min_references(alpha),
        protocol_hash=setting.protocol.hash,
        missing=_explain_missing(study, plans, counts)
        | gpu_missing
        | power_missing
        | score_missing,
        **totals,
        **gpu,
        power=power,
        score_power=score_power,
        references_for_suspects=min_references_for_suspects(suspects, alpha)
        if suspects > 1
        else None,
    )


def _explain_missing(
    study: Study, plans: Sequence[Plan], counts: Mapping[str, ArtefactCounts]
) -> dict[str, str]:
    """Return number -> why it is absent, as far as jobs and settings tell."""
    missing = {
        f"cells.{kind}.seconds": "no such cell was ever made here for this base"
        for kind, count in counts.items()
        if count.seconds is None
    }
    n_organisms, needed = len(study.replace.organisms), study.policy.min_controls
    if "replace" in study.horns and n_organisms < needed:
        missing["within_margin"] = (
            f"`replace.organisms` names {n_organisms}: of fewer than {needed} positive controls "
            "nothing is certified"
        )
    return missing | _find_prompt_shortages(plans)


def _list_plans(study: Study, setting: ResolvedStudy, *, calibrate: bool) -> list[Plan]:
    """Return the plans of a run, or of a calibration."""
    if not calibrate:
        return [setting.plan, *_list_replacement_plans(setting, [setting.suspect], every=False)]
    known = label_teachers(study, setting)
    first = setting.planner.plan([*setting.teacher_sources, *known.benign_sources.values()])
    every = study.replace.bound == "every"
    return [first, *_list_replacement_plans(setting, known.sources, every=every)]


def _list_replacement_plans(
    setting: ResolvedStudy, suspects: Sequence[TeacherSource], *, every: bool
) -> list[Plan]:
    """Return the plans of a replacement, as if the first recipe won the competition."""
    replacement, planner = setting.replacement, setting.planner
    if replacement is None:
        return []
    recipes = replacement.recipes if every else replacement.recipes[:1]
    names = [recipe.name for recipe in recipes]
    return [
        plan_competition(replacement, planner, suspects[0]),
        plan_certification(replacement, planner, suspects, names),
    ]


def _count_artefacts(jobs: Sequence[Job], costs: CostEstimates) -> ArtefactCounts:
    """Return how many artefacts of one kind are needed, and the cost of those still to be made."""
    todo = [job for job in jobs if not costs.store.has(job.kind, job.content_key)]
    estimates = _estimate_costs(todo, costs)
    counts = ArtefactCounts(needed=len(jobs), stored=len(jobs) - len(todo))
    if estimates is None:
        return counts
    peaks = {
        name: max((getattr(cost, name) for cost in estimates), default=0) or None
        for name in ("peak_bytes", "device_peak_bytes")
    }
    total = {
        "seconds": sum(cost.seconds for cost in estimates),
        "bytes": sum(cost.size_bytes for cost in estimates),
    }
    return counts.model_copy(update=total | peaks)


def _estimate_costs(jobs: Sequence[Job], costs: CostEstimates) -> list[Cost] | None:
    """Return the cost of each job; `None` where one is unknown."""
    estimates = [costs.estimate(job.kind, classify_cost(job.cost_base, job.inputs)) for job in jobs]
    known = [cost for cost in estimates if cost is not None]
    return known if len(known) == len(jobs) else None


def _sum_costs(counts: Mapping[str, ArtefactCounts]) -> dict[str, float]:
    """Return seconds and bytes of all kinds; nothing where those of one kind are unknown."""
    known = [count for count in counts.values() if count.seconds is not None]
    if len(known) < len(counts):
        return {}
    return {
        "seconds": sum(count.seconds or 0.0 for count in known),
        "bytes": sum(count.bytes or 0.0 for count in known),
    }


def _group_jobs(plans: Sequence[Plan]) -> dict[str, list[Job]]:
    """Return kind -> its jobs, each once."""
    groups: dict[str, dict[str, Job]] = {}
    for job in (job for plan in plans for job in plan.list_jobs()):
        groups.setdefault(job.kind, {}).setdefault(job.content_key, job)
    return {kind: list(jobs.values()) for kind, jobs in groups.items()}


def _find_prompt_shortages(plans: Sequence[Plan]) -> dict[str, str]:
    """Return prompt policy -> that fewer prompts pass its screens than a recipe asks for."""
    shortages: dict[str, str] = {}
    for job in sorted(_group_jobs(plans)["prompts"], key=lambda job: job.inputs["n"]):
        n = job.inputs["n"]
        settings = {k: v for k, v in job.inputs.items() if k not in ("n", "file_hash")}
        n_passing = len(list_passing_prompts(**settings))
        if n_passing < n:
            shortages[f"prompts.{settings['policy']}"] = (
                f"{n} are asked for (`n`) and {n_passing} pass; name more in `file`, or ask "
                "for more `samples` of each"
            )
    return shortages


def _estimate_local_run(
    study: Study, plans: Sequence[Plan], costs: CostEstimates
) -> dict[str, float]:
    """Return wall-clock seconds and peak memory of the local executor.

    Empty with another executor, where a cost is unknown, and where nothing is left to do.
    """
    if not isinstance(study.executor, LocalOptions):
        return {}
    seen: set[tuple[str, str]] = set()  # plans share artefacts
    stages: list[list[Cost]] = []
    for stage in (stage for plan in plans for stage in plan.list_batches()):
        todo = {
            (job.kind, job.content_key): job
            for job in stage
            if (job.kind, job.content_key) not in seen
            and not costs.store.has(job.kind, job.content_key)
        }
        seen |= todo.keys()
        estimates = _estimate_costs([job for _, job in sorted(todo.items())], costs)
        if estimates is None:
            return {}
        stages.append(estimates)
    if not any(stages):
        return {}
    workers = study.executor.workers
    at_once = min(workers, max(map(len, stages)))
    return {
        "wall_seconds": sum(_makespan(stage, workers) for stage in stages),
        "peak_bytes": at_once * max(cost.peak_bytes for stage in stages for cost in stage),
    }


def _makespan(stage: Sequence[Cost], workers: int) -> float:
    """Return the seconds of a stage whose cells start in order on the worker that is free first.

    List scheduling, at most twice the optimum (Graham 1969).
    """
    free = [0.0] * workers
    for cost in stage:
        heapq.heappush(free, heapq.heappop(free) + cost.seconds)
    return max(free)


def _estimate_gpu_memory(
    study: Study, counts: Mapping[str, ArtefactCounts]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the GPU memory that local workers take together and whether it fits; and why not."""
    todo = [count for count in counts.values() if count.needed > count.stored]
    if study.device == "cpu" or not isinstance(study.executor, LocalOptions) or not todo:
        return {}, {}
    peak = max(count.device_peak_bytes or 0.0 for count in todo)
    if not peak:
        return {}, {"device_peak_bytes": "no such cell was ever made on a GPU in this store"}
    from doublebind.execution.device import list_gpu_memory

    sizes = list_gpu_memory()
    n_sharing = math.ceil(study.executor.workers / max(1, len(sizes)))
    memory: dict[str, Any] = {"device_peak_bytes": n_sharing * peak}
    if not sizes:
        return memory, {"device_fits": "torch sees no GPU here"}
    fits = n_sharing * (peak + CUDA_RESERVED_BYTES) <= min(sizes)
    return memory | {"device_fits": fits}, {}


def _simulate_power(
    study: Study, protocol: Protocol, references: Sequence[Teacher], pilot: str | Path | None
) -> tuple[SimulatedPower | None, dict[str, str]]:
    """Return the study's power, simulated from the references of the run `pilot`; and why not."""
    from doublebind.stages.evidence.power_analysis import Design, estimate_pilot, tabulate_power

    if pilot is None:
        return None, {"power": "no benign pilot; name a finished run with --pilot"}
    run = Run(pilot)
    benign = {t.label: t.family for t in run.manifest.teachers if t.role == "reference"}
    components, reasons = estimate_pilot(run.scores, benign, protocol)
    if components is None:
        return None, {f"power.{name}": reason for name, reason in reasons.items()}
    families = len({t.family for t in references})
    design = Design(len(references), families, study.seeds, 1.0)
    policy = study.policy
    power = tabulate_power(components, design, alpha=policy.alpha, floor=policy.scale_floor)
    for row in power["others"]:
        row["students"] = (row["references"] + 1) * row["seeds"] * len(study.recipes)
    return SimulatedPower(**power), {}


def _simulate_score_power(
    protocol: Protocol, pilot: str | Path | None
) -> tuple[tuple[ScorePowerAtSize, ...] | None, dict[str, str]]:
    """Return the power of the study's score, from the references of the run `pilot`; or why not."""
    from doublebind.pipeline.leave_one_out import collect_rows
    from doublebind.stages.evidence.score import ScoreRule
    from doublebind.stages.evidence.score_power import MIN_REFERENCES, tabulate_score_power

    if pilot is None:
        return None, {}  # said of the other power
    run = Run(pilot)
    references = [t for t in run.manifest.teachers if t.role == "reference"]
    of_pilot = protocol.model_copy(update={"recipes": run.manifest.protocol.recipes})
    rows = collect_rows([], references, run.scores, run.shapes, of_pilot)
    if rows is None or len(references) < MIN_REFERENCES:
        why = (
            f"the pilot has {len(references)} references; {MIN_REFERENCES} or more are needed"
            if rows is not None
            else "the pilot lacks a value of this study's score endpoints"
        )
        return None, {"score_power": why}
    probabilities = collect_rows([], references, run.scores, run.shapes, _plain(of_pilot))
    assert probabilities is not None  # fewer values are needed than for the rows
    table = tabulate_score_power(
        rows.all, probabilities.all.endpoints, ScoreRule.from_protocol(of_pilot), protocol.alpha
    )
    return tuple(ScorePowerAtSize(**each._asdict()) for each in table), {}


def _plain(protocol: Protocol) -> Protocol:
    return protocol.model_copy(update={"score": PLAIN})
