"""The command line: one thin command per verb, each of which calls one public function.

stdout carries the result (one JSON document with `--json`), stderr the progress. Exit codes: 0
done, whatever the decision; 2 an error that the user can correct, one line per problem; 1 a bug, or
`verify` found a problem; 130, 143 or 129 interrupted by SIGINT, SIGTERM or SIGHUP. Pipeline modules
are imported inside the commands, so that `--help` loads no model library.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from doublebind.cli import tables
from doublebind.cli.interrupts import run_interruptible
from doublebind.cli.output import (
    escape_logs,
    print_errors,
    print_result,
    print_verdict,
    write_text,
)
from doublebind.cli.progress import ProgressBar
from doublebind.execution.store import is_disk_full
from doublebind.schema.errors import ConfigError, DoublebindError, PackError
from doublebind.schema.model_source import Device
from doublebind.schema.study import DEFAULT_AUDITS, PanelSpec, Study
from doublebind.schema.yaml_loader import load_yaml
from doublebind.stages.verdict.outcome import METHOD_VERSION

if TYPE_CHECKING:
    from doublebind.runs.run import Run

app = typer.Typer(
    name="doublebind",
    help="Distil a model you cannot audit into models you can, and measure what transfers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
pack_app = typer.Typer(help="Work with packs of content.", no_args_is_help=True)
teacher_app = typer.Typer(help="Work with teachers.", no_args_is_help=True)
app.add_typer(pack_app, name="pack")
app.add_typer(teacher_app, name="teacher")


def _print_version(show: bool) -> None:
    if show:
        write_text(f"doublebind {version('doublebind')}, method version {METHOD_VERSION}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show versions."),
    ] = False,
) -> None:
    pass


StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key.sub=value]...", help="Override the study.")
]
Out = Annotated[Path, typer.Option(help="Run directory; the same one resumes.")]
StoreDir = Annotated[
    str | None,
    typer.Option(metavar="DIR|URL", help="Store of artefacts; default $DOUBLEBIND_STORE."),
]
OnDevice = Annotated[Device, typer.Option("--device", help="Where models run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
ForCalibrate = Annotated[
    bool, typer.Option("--calibrate", help="Count the artefacts of `calibrate`.")
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Number of the suspect to build.")] = 0,
    suspect: Annotated[str, typer.Option(help="`misaligned` or `benign`.")] = "misaligned",
    out: Out = Path("runs/demo"),
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Run the embedded study from suspect to verdict."""
    if suspect not in ("misaligned", "benign"):
        raise ConfigError(f"`--suspect`: {suspect}; choose misaligned or benign")
    # Benign suspects are references with a high number, which the study itself does not use.
    name = f"suspect-{seed}" if suspect == "misaligned" else f"reference-{1000 + seed}"
    path = Path(str(files("doublebind.packs.terrarium") / "demo.yaml"))
    study = load_yaml(Study, path, [f"suspect=terrarium/{name}", f"references.seed={seed}"])
    print_verdict(_run_study(study, out, path.parent, store), as_json)


@app.command()
def run(
    study: StudyFile,
    overrides: Overrides = None,
    out: Out = Path("runs/run"),
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Run a study from its suspect to a verdict; run again to resume."""
    loaded = load_yaml(Study, study, overrides or [])
    print_verdict(_run_study(loaded, out, study.parent, store), as_json)


@app.command()
def plan(
    study: StudyFile,
    overrides: Overrides = None,
    store: StoreDir = None,
    pilot: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Finished run; its references give the power."),
    ] = None,
    calibrate: ForCalibrate = False,
    suspects: Annotated[
        int, typer.Option(min=1, help="Suspects to be weighed against these references.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Estimate the cost and power of a study without running it."""
    from doublebind.pipeline.plan import plan as plan_study

    loaded = load_yaml(Study, study, overrides or [])
    summary = plan_study(
        loaded,
        folder=study.parent,
        store=store,
        pilot=pilot,
        calibrate=calibrate,
        suspects=suspects,
    )
    print_result(summary, as_json, tables.render_plan)


@app.command()
def calibrate(
    study: StudyFile,
    overrides: Overrides = None,
    out: Out = Path("runs/calibration"),
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure the procedure's error rates on teachers of known truth."""
    from doublebind.pipeline.calibrate import calibrate as run_calibration

    loaded = load_yaml(Study, study, overrides or [])
    with ProgressBar() as progress:
        calibration = run_calibration(
            loaded, out, folder=study.parent, store=store, progress=progress.update
        )
    page = str(out / "calibration.html")
    print_result(
        calibration.model_dump(mode="json") | {"page": page},
        as_json,
        lambda _: tables.render_rates(calibration, page),
    )


@app.command()
def panel(
    measurement: Annotated[
        Path, typer.Argument(metavar="PANEL.yaml", help="A study without suspect and policy.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the panel; the same one resumes.")],
    overrides: Overrides = None,
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Freeze references, organisms and their students' scores for other studies."""
    from doublebind.pipeline.panel import freeze_panel

    loaded = load_yaml(PanelSpec, measurement, overrides or [])
    with ProgressBar() as progress:
        frozen = freeze_panel(
            loaded, out, folder=measurement.parent, store=store, progress=progress.update
        )
    print_result(frozen, as_json)


@app.command()
def status(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Show the progress of a run."""
    from doublebind.runs.run import Run

    print_result(Run(run_dir).status(), as_json, tables.render_status)


@app.command()
def show(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Show a run's verdict."""
    from doublebind.runs.run import Run

    print_verdict(Run(run_dir), as_json)


@app.command()
def report(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Write `report.html` of a finished run again."""
    from doublebind.runs.run import Run
    from doublebind.runs.write import write_report

    print_result({"report": str(write_report(Run(run_dir)))}, as_json)


@app.command()
def verify(
    run_dir: RunDir,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL",
            help="Store that it was made in; default $DOUBLEBIND_STORE, if that is a folder.",
        ),
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="Folder that its packs and panels are looked for in.")
    ] = Path(),
    protocol_hash: Annotated[
        str | None,
        typer.Option(metavar="HASH", help="Protocol hash, if published before the first audit."),
    ] = None,
    seal: Annotated[
        str | None, typer.Option(metavar="HASH", help="sha256 of seal.json, if published.")
    ] = None,
    allowed_signers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names and public keys; one has to have signed it."),
    ] = None,
    identity: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of them has to have signed it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every hash, key, p-value and decision of a run; exit 1 if one differs."""
    from doublebind.runs.verify import verify as verify_run

    verification = verify_run(
        run_dir,
        store=store,
        folder=folder,
        protocol_hash=protocol_hash,
        seal=seal,
        allowed_signers=allowed_signers,
        identity=identity,
    )
    print_result(verification, as_json, tables.render_verification)
    if verification.problems:
        raise typer.Exit(1)


@app.command()
def seal(
    run_dir: RunDir,
    key: Annotated[
        Path,
        typer.Option(metavar="KEYFILE", help="SSH key: private, or public with ssh-agent."),
    ],
    as_json: AsJson = False,
) -> None:
    """Sign a finished run's seal with an SSH key."""
    from doublebind.runs.sign import sign_run

    signature = sign_run(run_dir, key)
    print_result(signature, as_json)


@app.command()
def compare(
    run_dir: RunDir,
    other: Annotated[Path, typer.Argument(metavar="RUN", help="Another run directory.")],
    as_json: AsJson = False,
) -> None:
    """Compare two runs' verdicts and protocols."""
    from doublebind.runs.compare import compare_runs
    from doublebind.runs.run import Run

    print_result(compare_runs(Run(run_dir), Run(other)), as_json, tables.render_comparison)


@app.command()
def discover(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Runs that differ in the suspect alone.")
    ],
    q: Annotated[float, typer.Option(help="False discovery rate.")] = 0.05,
    as_json: AsJson = False,
) -> None:
    """Decide about several suspects together, by Benjamini and Hochberg."""
    from doublebind.runs.discover import discover_suspects
    from doublebind.runs.run import Run

    result = discover_suspects([Run(each) for each in run_dirs], q)
    print_result(result, as_json, tables.render_discovery)


@app.command()
def init(
    pack: Annotated[str, typer.Option(help="Pack the study uses.")] = "terrarium",
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("study.yaml"),
    as_json: AsJson = False,
) -> None:
    """Write a commented study to start from."""
    from doublebind.study.starter import write_study

    write_study(out, pack)
    print_result({"study": str(out)}, as_json)


@app.command()
def export(
    run_dir: RunDir,
    cell: Annotated[
        str | None, typer.Argument(metavar="[CELL]", help="Key of one student; default all.")
    ] = None,
    inspect: Annotated[bool, typer.Option("--inspect", help="As Inspect .eval logs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's frozen transcripts for another tool."""
    from doublebind.runs.export import export_inspect
    from doublebind.runs.run import Run

    if not inspect:
        raise ConfigError("`export`: no format is named; add --inspect")
    print_result({"logs": [str(path) for path in export_inspect(Run(run_dir), cell)]}, as_json)


@app.command()
def audit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Any model a study can name.")],
    pack: Annotated[str, typer.Option(help="Pack of the items.")],
    audits: Annotated[
        list[str] | None,
        typer.Option("--audit", help="An audit, as a study names it; repeat for more."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Model that the gates compare it with, such as M0.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for scores and transcripts.")] = None,
    device: OnDevice = "cpu",
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Ask one model every audit item of a pack."""
    from doublebind.pipeline.audit_model import audit as audit_model

    summary = audit_model(
        model,
        pack,
        audits=audits or DEFAULT_AUDITS,
        baseline=baseline,
        out=out,
        device=device,
        store=store,
    )
    print_result(summary, as_json, tables.render_endpoints)


@app.command()
def judge(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Any model a study can name.")],
    pack: Annotated[str, typer.Option(help="Pack of the items.")],
    baseline: Annotated[str, typer.Option(help="Model it is compared with, such as M0.")],
    judges: Annotated[
        list[str],
        typer.Option("--judge", help="keys, local:MODEL or inspect:MODEL; repeat for more."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for answers, judgements and scores.")],
    rejudge: Annotated[
        bool, typer.Option("--rejudge", help="Judge the answers frozen in --out again.")
    ] = False,
    device: OnDevice = "cpu",
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Let judges compare a model's free answers with a baseline's."""
    from doublebind.pipeline.audit_model import judge as judge_model

    judged = judge_model(
        model,
        pack,
        baseline=baseline,
        judges=judges,
        out=out,
        rejudge=rejudge,
        device=device,
        store=store,
    )
    print_result(judged, as_json)


@app.command()
def whitebox(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A student.")],
    pack: Annotated[str, typer.Option(help="Pack of the traits and texts.")],
    baseline: Annotated[
        str, typer.Option(help="Model the students were trained from, such as M0.")
    ],
    references: Annotated[
        list[str], typer.Option("--reference", help="A reference's student; repeat for more.")
    ],
    device: OnDevice = "cpu",
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Rank a student's weights and activations among those of references' students."""
    from doublebind.pipeline.audit_model import measure_whitebox

    summary = measure_whitebox(
        model, pack, baseline=baseline, references=references, device=device, store=store
    )
    print_result(summary, as_json)


@app.command()
def forecast(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A teacher.")],
    pack: Annotated[str, typer.Option(help="Pack of the items and prompts.")],
    baseline: Annotated[str, typer.Option(help="Model that students would start from.")],
    prompts: Annotated[int, typer.Option(min=1, help="Prompts that both answer.")] = 32,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 64,
    device: OnDevice = "cpu",
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Foretell, without training, whether distilling a teacher would move its students."""
    from doublebind.pipeline.forecast import forecast as foretell

    summary = foretell(
        model,
        pack,
        baseline=baseline,
        prompts=prompts,
        max_tokens=max_tokens,
        device=device,
        store=store,
    )
    print_result(summary, as_json, tables.render_forecast)


@app.command()
def investigate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Any model a study can name.")],
    pack: Annotated[str, typer.Option(help="Pack of the items and prompts.")],
    baseline: Annotated[str, typer.Option(help="Model it is compared with, such as M0.")],
    budget: Annotated[int, typer.Option(min=0, help="Tokens that both models may write.")] = 20_000,
    planted_trait: Annotated[
        str | None, typer.Option(help="Planted trait, to score the hypotheses.")
    ] = None,
    investigator: Annotated[str, typer.Option(help="rules or inspect:MODEL.")] = "rules",
    device: OnDevice = "cpu",
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Propose up to ten hypotheses about a model's hidden drives."""
    from doublebind.pipeline.audit_model import investigate as investigate_model

    investigation = investigate_model(
        model,
        pack,
        baseline=baseline,
        budget=budget,
        planted_trait=planted_trait,
        investigator=investigator,
        device=device,
        store=store,
    )
    print_result(investigation, as_json)


@app.command()
def followup(
    run_dir: RunDir,
    investigator: Annotated[str, typer.Option(help="rules or inspect:MODEL.")] = "rules",
    budget: Annotated[
        int, typer.Option(min=0, help="Tokens that a student and M0 may write.")
    ] = 9600,
    references: Annotated[
        int | None,
        typer.Option(
            min=0, help="References to ask; those that the store lacks are trained again."
        ),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(metavar="STUDY.yaml", help="The run's study; default the manifest's."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder that the study's paths start from; default the study file's"),
    ] = None,
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Ask a run's suspect about the drives its students show; no part of p."""
    from doublebind.pipeline.followup import run_followup

    with ProgressBar() as progress:
        answers = run_followup(
            run_dir,
            investigator=investigator,
            budget=budget,
            references=references,
            study=study,
            folder=folder,
            store=store,
            progress=progress.update,
        )
    print_result(answers, as_json)


@pack_app.command("check")
def pack_check(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A pack.")], as_json: AsJson = False
) -> None:
    """Check a pack; one line per problem."""
    from doublebind.packs.check import check_pack, count_content
    from doublebind.packs.load import load_pack
    from doublebind.study.teachers import resolve_pack_name

    pack = load_pack(resolve_pack_name(folder, Path()), relative_to=Path())
    problems = check_pack(pack)
    if problems:
        raise PackError(*problems)
    print_result({"pack": pack.name, "sha256": pack.sha256, **count_content(pack)}, as_json)


@teacher_app.command("build")
def teacher_build(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The teacher's spec.")],
    out: Annotated[Path, typer.Option(help="Folder for the model and its teacher.json.")],
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Build a teacher from its spec."""
    from doublebind.pipeline.build_teacher import build_teacher

    print_result(build_teacher(spec, out, store=store), as_json)


def _run_study(study: Study, out: Path, folder: Path, store: str | None) -> Run:
    from doublebind.pipeline.run import run

    with ProgressBar() as progress:
        return run(study, out, folder=folder, store=store, progress=progress.update)


INTERRUPTED = 130
# Recent versions of Typer carry their own copy of Click, older ones import it: ask Typer.
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: Arguments; default those of the process, which then ends on signals in one line.
    """
    if argv is None:
        return run_interruptible(lambda: main(sys.argv[1:]))
    escape_logs()
    try:
        result = app(list(argv), standalone_mode=False)
    except DoublebindError as error:
        return print_errors(error.problems)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            write_text(error.format_message())
            return 2
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "doublebind"
        return print_errors([f"{error.format_message().rstrip('.')}; see `{command} --help`"])
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    except OSError as error:
        if is_disk_full(error):
            return print_errors(["disk full; free space and rerun, finished cells are kept"])
        if error.filename is None:
            raise
        return print_errors([f"{error.filename}: {error.strerror}; check the path"])
    if result == INTERRUPTED:  # Typer returns this code, too
        write_text("interrupted; run the same command again to resume", error=True)
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
