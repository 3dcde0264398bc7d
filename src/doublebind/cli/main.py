"""One thin command per verb; everything it does is a public function.

Imports no torch: `--help` is quick, and a cached run never pays for it. stdout carries the result
(one JSON document with `--json`), stderr the progress. Exit codes: 0 done, whatever the decision;
2 the user can mend it, one line per problem; 1 our bug, or `verify` found something; 130
interrupted.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from doublebind.cli import tables as terminal
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
    help="Distil a model you cannot audit into models you can, and weigh what came along.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
pack_app = typer.Typer(help="Work with packs of content.", no_args_is_help=True)
teacher_app = typer.Typer(help="Work with teachers.", no_args_is_help=True)
app.add_typer(pack_app, name="pack")
app.add_typer(teacher_app, name="teacher")


def _version(asked: bool) -> None:
    if asked:
        print(f"doublebind {version('doublebind')}, method version {METHOD_VERSION}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions.")
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
    typer.Option(metavar="DIR|URL", help="Where artefacts are kept; default $DOUBLEBIND_STORE."),
]
OnDevice = Annotated[Device, typer.Option("--device", help="Where models run.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
ForCalibrate = Annotated[
    bool, typer.Option("--calibrate", help="Count what `calibrate` would make.")
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Which suspect is built.")] = 0,
    suspect: Annotated[str, typer.Option(help="`misaligned` or `benign`.")] = "misaligned",
    out: Out = Path("runs/demo"),
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Run the embedded study, end to end."""
    if suspect not in ("misaligned", "benign"):
        raise ConfigError(f"`--suspect`: {suspect}; choose misaligned or benign")
    # Benign suspects come from far along the reference bank, beyond what the study weighs against.
    name = f"suspect-{seed}" if suspect == "misaligned" else f"reference-{1000 + seed}"
    path = Path(str(files("doublebind.packs.terrarium") / "demo.yaml"))
    study = load_yaml(Study, path, [f"suspect=terrarium/{name}", f"references.seed={seed}"])
    _print_verdict(_run_study(study, out, path.parent, store), as_json)


@app.command()
def run(
    study: StudyFile,
    overrides: Overrides = None,
    out: Out = Path("runs/run"),
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Take a study from its suspect to a verdict; run again to resume."""
    _print_verdict(
        _run_study(load_yaml(Study, study, overrides or []), out, study.parent, store), as_json
    )


@app.command()
def plan(
    study: StudyFile,
    overrides: Overrides = None,
    store: StoreDir = None,
    pilot: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Finished run whose references give the power."),
    ] = None,
    calibrate: ForCalibrate = False,
    as_json: AsJson = False,
) -> None:
    """Say what a study would take and what it could show, without running it."""
    from doublebind.pipeline.plan import plan as plan_study

    loaded = load_yaml(Study, study, overrides or [])
    found = plan_study(loaded, folder=study.parent, store=store, pilot=pilot, calibrate=calibrate)
    _print_result(found, as_json, terminal.render_plan)


@app.command()
def calibrate(
    study: StudyFile,
    overrides: Overrides = None,
    out: Out = Path("runs/calibration"),
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure the error rates of the whole procedure on teachers whose truth is known."""
    from doublebind.pipeline.calibrate import calibrate as run_calibration

    loaded = load_yaml(Study, study, overrides or [])
    with _ProgressBar() as progress:
        found = run_calibration(
            loaded, out, folder=study.parent, store=store, progress=progress.update
        )
    _print_result({**found, "page": str(out / "calibration.html")}, as_json, terminal.render_rates)


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
    """Freeze references, organisms and their students' scores, for other studies to use."""
    from doublebind.pipeline.panel import freeze_panel

    loaded = load_yaml(PanelSpec, measurement, overrides or [])
    with _ProgressBar() as progress:
        found = freeze_panel(
            loaded, out, folder=measurement.parent, store=store, progress=progress.update
        )
    _print_result(found, as_json)


@app.command()
def status(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Say how far a run is."""
    from doublebind.runs.run import Run

    _print_result(Run(run_dir).status(), as_json, terminal.render_status)


@app.command()
def show(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Show a run's verdict."""
    from doublebind.runs.run import Run

    _print_verdict(Run(run_dir), as_json)


@app.command()
def report(run_dir: RunDir, as_json: AsJson = False) -> None:
    """Write `report.html` of a finished run again."""
    from doublebind.runs.run import Run
    from doublebind.runs.write import write_report

    _print_result({"report": str(write_report(Run(run_dir)))}, as_json)


@app.command()
def verify(
    run_dir: RunDir,
    store: Annotated[
        Path | None, typer.Option(help="Where its artefacts are now; default as in the manifest.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every hash, p-value and decision of a run; exit 1 if one differs."""
    from doublebind.runs.verify import verify as verify_run

    found = verify_run(run_dir, store=store)
    _print_result(found.model_dump(mode="json"), as_json, terminal.render_verification)
    if not found.verified:
        raise typer.Exit(1)


@app.command()
def compare(
    run_dir: RunDir,
    other: Annotated[Path, typer.Argument(metavar="RUN", help="Another run directory.")],
    as_json: AsJson = False,
) -> None:
    """Put two runs' verdicts side by side."""
    from doublebind.runs.compare import compare_runs
    from doublebind.runs.run import Run

    _print_result(compare_runs(Run(run_dir), Run(other)), as_json, terminal.render_comparison)


@app.command()
def init(
    pack: Annotated[str, typer.Option(help="Pack the study uses.")] = "terrarium",
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("study.yaml"),
    as_json: AsJson = False,
) -> None:
    """Write a commented study to start from."""
    from doublebind.study.starter import write_study

    write_study(out, pack)
    _print_result({"study": str(out)}, as_json)


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
        raise ConfigError("`export`: say in which format; the one there is: --inspect")
    _print_result({"logs": [str(path) for path in export_inspect(Run(run_dir), cell)]}, as_json)


@app.command()
def audit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Any model a study can name.")],
    pack: Annotated[str, typer.Option(help="Whose items are asked.")],
    audits: Annotated[
        list[str] | None,
        typer.Option("--audit", help="An audit, as a study names it; repeat for more."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Model that the gates hold it to, such as M0.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for scores and transcripts.")] = None,
    device: OnDevice = "cpu",
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Ask one model every audit item of a pack."""
    from doublebind.pipeline.audit_model import audit as audit_model

    found = audit_model(
        model,
        pack,
        audits=audits or DEFAULT_AUDITS,
        baseline=baseline,
        out=out,
        device=device,
        store=store,
    )
    _print_result(found, as_json, terminal.render_endpoints)


@app.command()
def judge(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Any model a study can name.")],
    pack: Annotated[str, typer.Option(help="Whose items are asked.")],
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
    """Put a model's free answers before judges, beside a baseline's."""
    from doublebind.pipeline.audit_model import judge as judge_model

    at: dict[str, Any] = {"out": out, "device": device, "store": store}
    found = judge_model(model, pack, baseline=baseline, judges=judges, rejudge=rejudge, **at)
    _print_result(found, as_json)


@app.command()
def whitebox(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A student.")],
    pack: Annotated[str, typer.Option(help="Whose traits and texts are used.")],
    baseline: Annotated[str, typer.Option(help="What the students were made from, such as M0.")],
    references: Annotated[
        list[str], typer.Option("--reference", help="A reference's student; repeat for more.")
    ],
    device: OnDevice = "cpu",
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Look into a student's weights and activations, beside those of references' students."""
    from doublebind.pipeline.audit_model import measure_whitebox

    found = measure_whitebox(
        model, pack, baseline=baseline, references=references, device=device, store=store
    )
    _print_result(found, as_json)


@app.command()
def investigate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Any model a study can name.")],
    pack: Annotated[str, typer.Option(help="Whose items and prompts are used.")],
    baseline: Annotated[str, typer.Option(help="Model it is compared with, such as M0.")],
    budget: Annotated[int, typer.Option(min=0, help="Tokens that both may write.")] = 20_000,
    planted_trait: Annotated[
        str | None, typer.Option(help="Planted trait, to score the guesses.")
    ] = None,
    investigator: Annotated[
        str, typer.Option(help="Who guesses: rules or inspect:MODEL.")
    ] = "rules",
    device: OnDevice = "cpu",
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Say in up to ten hypotheses what a model may hide."""
    from doublebind.pipeline.audit_model import investigate as investigate_model

    found = investigate_model(
        model,
        pack,
        baseline=baseline,
        budget=budget,
        planted_trait=planted_trait,
        investigator=investigator,
        device=device,
        store=store,
    )
    _print_result(found, as_json)


@app.command()
def followup(
    run_dir: RunDir,
    investigator: Annotated[
        str, typer.Option(help="Who guesses and asks: rules or inspect:MODEL.")
    ] = "rules",
    budget: Annotated[
        int, typer.Option(min=0, help="Tokens that a student and M0 may write.")
    ] = 9600,
    references: Annotated[
        int | None,
        typer.Option(min=0, help="References to ask; made again where the store lacks them."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="What the study's paths are relative to.")] = Path(),
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Ask a run's suspect itself about what its students gave away; apart from p."""
    from doublebind.pipeline.followup import run_followup

    with _ProgressBar() as progress:
        found = run_followup(
            run_dir,
            investigator=investigator,
            budget=budget,
            references=references,
            folder=folder,
            store=store,
            progress=progress.update,
        )
    _print_result(found, as_json)


@pack_app.command("check")
def pack_check(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A pack.")], as_json: AsJson = False
) -> None:
    """Check a pack; one line per problem."""
    from doublebind.packs.check import check_pack, count_content
    from doublebind.packs.load import load_pack

    pack = load_pack(folder, relative_to=Path())
    problems = check_pack(pack)
    if problems:
        raise PackError(*problems)
    _print_result({"pack": pack.name, "sha256": pack.sha256, **count_content(pack)}, as_json)


@teacher_app.command("build")
def teacher_build(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="How the teacher is made.")],
    out: Annotated[Path, typer.Option(help="Folder for the model and its teacher.json.")],
    store: StoreDir = None,
    as_json: AsJson = False,
) -> None:
    """Build a teacher from its spec."""
    from doublebind.pipeline.build_teacher import build_teacher

    _print_result(build_teacher(spec, out, store=store), as_json)


# --- output --------------------------------------------------------------------------------------


class _ProgressBar:
    """A progress bar per kind of cell on stderr; silent where stderr is not a terminal."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> _ProgressBar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self.bar = Progress(console=Console(stderr=True))
            self.bar.start()
        return self

    def update(self, kind: str, finished: int, total: int) -> None:
        if self.bar is None:
            return
        if kind not in self.tasks:
            self.tasks[kind] = self.bar.add_task(kind, total=total)
        self.bar.update(self.tasks[kind], completed=finished, total=total)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


def _run_study(study: Study, out: Path, folder: Path, store: str | None) -> Run:
    from doublebind.pipeline.run import run

    with _ProgressBar() as progress:
        return run(study, out, folder=folder, store=store, progress=progress.update)


def _print_verdict(run: Run, as_json: bool) -> None:
    """Print a run's verdict."""
    if as_json:
        _print_result(json.loads((run.path / "verdict.json").read_text(encoding="utf-8")), True)
        return
    if sys.stdout.isatty():
        _print_rich(terminal.render_verdict(run))
    else:
        print("\n".join(terminal.format_verdict_lines(run)))


def _print_result(value: Any, as_json: bool, shown: Callable[[Any], Any] | None = None) -> None:
    """Print a result: JSON if asked, `shown` on a terminal, YAML otherwise."""
    if as_json:
        print(json.dumps(value, indent=1, ensure_ascii=False))
    elif shown and sys.stdout.isatty():
        _print_rich(shown(value))
    else:
        import yaml

        print(
            terminal.escape_text(
                yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()
            )
        )


def _print_rich(shown: Any) -> None:
    from rich.console import Console

    Console(markup=False, highlight=False, emoji=False).print(shown)


# Recent versions of Typer carry their own copy of Click, older ones import it: ask Typer.
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the documented code."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    sys.exit(run_command(list(sys.argv[1:] if argv is None else argv)))


def run_command(argv: list[str]) -> int:
    """Run one command; return its exit code."""
    try:
        result = app(argv, standalone_mode=False)
    except DoublebindError as error:
        for problem in error.problems:
            print(f"error: {terminal.escape_text(problem)}", file=sys.stderr)
        return 2
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return 2
        said, context = error.format_message().rstrip("."), getattr(error, "ctx", None)
        help_ = f"{context.command_path if context else 'doublebind'} --help"
        print(f"error: {terminal.escape_text(said)}; see `{help_}`", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        result = 130
    except OSError as error:
        if not is_disk_full(error):
            raise
        print("error: disk full; free space and rerun, finished cells are kept", file=sys.stderr)
        return 2
    if result == 130:  # as Typer reports an interrupt, too
        print("interrupted; run the same command again to resume", file=sys.stderr)
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
