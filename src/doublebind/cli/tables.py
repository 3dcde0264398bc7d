"""Rich tables for a terminal: verdicts, progress, comparisons. Prints nothing.

Labels and reasons may hold hostile text: every string is escaped, and none is read as markup.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import ValidationError
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from doublebind.schema.errors import RunError
from doublebind.schema.study import PanelSpec
from doublebind.stages.report.hostile_text import is_hidden

if TYPE_CHECKING:
    from doublebind.pipeline.audit_model import AuditSummary
    from doublebind.pipeline.forecast import TransferForecast
    from doublebind.pipeline.plan import PlanSummary
    from doublebind.runs.compare import Comparison
    from doublebind.runs.discover import Discovery
    from doublebind.runs.run import Run, RunStatus
    from doublebind.runs.verify import Verification
    from doublebind.schema.calibration import Calibration

# No colour of success: the best a suspect can get is that nothing was found.
_STYLES = {
    "incriminated": "bold red",
    "not_incriminated": "bold cyan",
    "inconclusive": "bold yellow",
}
_MODELS_SHOWN = 40


_MAX_PROBLEM_CHARS = 2_000
"""Characters of a problem that are shown."""


def escape_text(text: object) -> str:
    """Return text with its control characters written out, so that no terminal acts on them."""
    return "".join(c if _is_plain(c) else f"\\x{ord(c):02x}" for c in str(text))


def escape_line(text: object) -> str:
    """Return one line of text: what `escape_text` leaves of line feeds is written out, too."""
    return escape_text(text).replace("\n", "\\x0a")


def shorten(problem: str) -> str:
    """Return a problem without the middle of what it quotes, if that has no end."""
    if len(problem) <= _MAX_PROBLEM_CHARS:
        return problem
    half = _MAX_PROBLEM_CHARS // 2
    return f"{problem[:half]} ... {problem[-half:]}"


def dump_json(content: object) -> str:
    """Return JSON that a terminal can show: control and bidirectional characters are escaped."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # Outside strings JSON is ASCII, so that what is escaped here stands in one.
    return "".join(c if _is_plain(c) else json.dumps(c)[1:-1] for c in text)


@functools.cache
def _is_plain(character: str) -> bool:
    if character in "\n\t":
        return True
    return character.isprintable() and not is_hidden(character)


class Escaped:
    """A table whose every text is escaped once more as it is written, whatever its cells hold."""

    def __init__(self, content: RenderableType) -> None:
        self.content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the parts of the table; those that move the cursor are rich's own."""
        for part in console.render(self.content, options):
            yield part if part.control else Segment(escape_text(part.text), part.style)


def format_verdict_lines(run: Run) -> list[str]:
    """Return a verdict as lines of text, the decision and the mandatory sentence first."""
    verdict, incrimination = run.verdict, run.verdict.incrimination
    decision = incrimination.decision.replace("_", " ")
    lines = [
        f"{verdict.suspect}: {decision} (strength: {verdict.strength})",
        verdict.sentence,
        _describe_assumption(run),
        *(f"- {reason}" for reason in incrimination.reasons),
        verdict.coverage,
        *(f"{name}: {value}" for name, value in _list_baseline_p_values(run)),
        f"report: {run.path / 'report.html'}",
    ]
    return [escape_line(line) for line in lines]


def render_verdict(run: Run) -> RenderableType:
    """Return a verdict as a panel."""
    verdict, incrimination = run.verdict, run.verdict.incrimination
    head = Text(incrimination.decision.replace("_", " "), _STYLES[incrimination.decision])
    head.append(f"   strength: {verdict.strength}", "default")
    rows = [
        ("p", f"{_format_number(incrimination.p_value)} (alpha {incrimination.alpha:g})"),
        ("references", f"{incrimination.n_references} of {incrimination.n_families} families"),
    ]
    rows += [
        (f"shift on {name}", f"{shift.value:+.2f} [{shift.low:+.2f}, {shift.high:+.2f}]")
        for name, shift in incrimination.shifts.items()
        if name in run.evidence.significant_endpoints
    ]
    if incrimination.e_value is not None:
        rows.append(("e-value", _format_number(incrimination.e_value)))
    if (power := incrimination.power) is not None:
        rate = f"{power.value:.0%} of {power.n_controls}, at least {power.lower_95:.2f}"
        rows.append(("controls detected", rate))
    numbers = Table.grid(padding=(0, 2))
    for name, value in [*rows, *_list_baseline_p_values(run)]:
        numbers.add_row(_text(name, "dim"), _text(value))
    parts: list[RenderableType] = [
        head,
        _text(verdict.sentence, "bold"),
        Text(_describe_assumption(run)),
        Text(""),
        numbers,
        Text(""),
        *(_text(f"• {reason}") for reason in incrimination.reasons),
        Text(""),
        _text(verdict.coverage),
    ]
    if verdict.missing:
        parts.append(Rule("not computed", style="dim"))
        parts += [_text(f"{name}: {reason}", "dim") for name, reason in verdict.missing.items()]
    parts += [Text(""), _text(f"report: {run.path / 'report.html'}", "dim")]
    return Panel(Group(*parts), title=_text(verdict.suspect), title_align="left")


def _text(value: object, style: str = "") -> Text:
    """Return text for a table, escaped."""
    return Text(escape_text(value), style)


def _describe_assumption(run: Run) -> str:
    """Return the assumption of exchangeability with the run's references."""
    from doublebind.study.references import describe_assumption

    study = run.manifest.study
    if "incriminate" not in run.manifest.protocol.horns:
        return "No reference was made: nothing is said of how a benign teacher would do."
    settings = {key: value for key, value in study.items() if key in PanelSpec.model_fields}
    try:
        return describe_assumption(PanelSpec.model_validate(settings).references)
    except ValidationError:
        raise RunError(
            f"{run.path / 'manifest.json'}: `study` is no study that this doublebind reads; "
            "restore the file, or read it with the doublebind that wrote it"
        ) from None


def _list_baseline_p_values(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the p-values of the methods that need no student."""
    direct = run.verdict.direct_audit.p_value
    if direct is not None:
        yield "direct audit", f"p = {_format_number(direct)}"
    for name, p in run.evidence.baselines.items():
        yield f"baseline {name}", f"p = {_format_number(p)}"


def render_status(status: RunStatus) -> RenderableType:
    """Return the progress of a run, as tables."""
    cells = Table("cells", "needed", "done", "failed", "left", box=None, header_style="dim")
    for kind, counts in status.cells.items():
        needed, done, failed = (counts.get(name, 0) for name in ("needed", "done", "failed"))
        style = "" if done == needed else "yellow"
        style = "red" if failed else style
        row = (kind, needed, done, failed, needed - done - failed)
        cells.add_row(*(Text(str(value), style) for value in row))
    models = Table("model", "kind", "teacher", "recipe", "seed", box=None, header_style="dim")
    for model in status.models[:_MODELS_SHOWN]:
        seed = "" if model.seed is None else model.seed
        row = (model.content_key[:12], model.kind, model.teacher, model.recipe or "", seed)
        models.add_row(*map(_text, row))
    state = "ended" if status.ended else "not ended: run the same command again to resume"
    parts: list[RenderableType] = [
        _text(f"{status.run}: {state}", "bold"),
        Text(f"protocol {status.protocol_hash[:12]}", "dim"),
        Text(""),
        cells,
        *(_text(failure, "red") for failure in status.failures),
    ]
    if status.models:
        parts += [Text(""), models]
    if len(status.models) > _MODELS_SHOWN:
        more = len(status.models) - _MODELS_SHOWN
        parts.append(Text(f"and {more} more; --json lists them all", "dim"))
    return Group(*parts)


def render_discovery(discovery: Discovery) -> RenderableType:
    """Return which of several suspects are discovered."""
    table = Table("suspect", "p", "adjusted p", "own verdict", "discovered", box=None)
    for row in discovery.suspects:
        discovered = "yes" if row.discovered else "no"
        cells = (row.suspect, f"{row.p_value:.4g}", f"{row.adjusted_p_value:.4g}", row.decision)
        table.add_row(*map(_text, (*cells, discovered)))
    note = (
        f"false discovery rate {discovery.q:g}; {discovery.references} references, and "
        f"{discovery.references_for_one} let one suspect alone be discovered among so many"
    )
    return Group(table, Text(""), _text(note))


def render_plan(plan: PlanSummary) -> RenderableType:
    """Return the cost and power of a study."""
    cells = Table("cells", "needed", "stored", "time to come", "disk", box=None, header_style="dim")
    for kind, count in plan.cells.items():
        costs = _format_time(count.seconds), _format_size(count.bytes)
        cells.add_row(*map(_text, (kind, count.needed, count.stored, *costs)))
    costs = _format_time(plan.seconds), _format_size(plan.bytes)
    cells.add_row(Text("all", "bold"), Text(""), Text(""), *costs)
    lines = [
        f"{plan.references} references of {plan.families} families",
        f"smallest p: {plan.smallest_p:.4g} (p <= alpha needs {plan.references_for_alpha})",
        plan.exchangeability,
    ]
    if plan.wall_seconds is not None:
        wall, peak = _format_time(plan.wall_seconds), _format_size(plan.peak_bytes)
        lines.append(f"with this executor: {wall}, {peak} of memory at most")
    if plan.device_peak_bytes is not None:
        fits = {True: "which fit", False: "more than there is", None: "not checked here"}
        peak = _format_size(plan.device_peak_bytes)
        lines.append(f"on a GPU: {peak} at most, {fits[plan.device_fits]}")
    parts: list[RenderableType] = [
        cells,
        Text(""),
        *map(_text, lines),
        *(_text(f"{name}: {reason}", "dim") for name, reason in plan.missing.items()),
    ]
    if plan.references_for_suspects is not None:
        parts.append(
            _text(
                "for one of these suspects alone to pass `discover`: "
                f"{plan.references_for_suspects} references"
            )
        )
    for row in plan.score_power or ():
        size = "no shift up to 8 s.d."
        if row.smallest_sd is not None:
            size = (
                f"{row.smallest_sd:g} s.d. ({row.smallest:.2f} in the score's unit, "
                f"{row.smallest_probability:.3f} in probability)"
            )
        parts.append(_text(f"found in 80% of studies with {row.references} references: {size}"))
    if plan.power is not None:
        parts.append(Text("power of the plain score, by seeds and items: with --json", "dim"))
    return Group(*parts)


def _format_time(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _format_size(count: float | None) -> str:
    return "not known" if count is None else f"{count / 2**20:.1f} MiB"


def render_endpoints(audit: AuditSummary) -> RenderableType:
    """Return a direct audit's endpoints, with their intervals."""
    table = Table("endpoint", "role", "value", "95%", "items", "unscored", header_style="dim")
    table.title = _text(f"{audit.model} on {audit.pack}")
    for endpoint in audit.endpoints:
        value = "-" if endpoint.value is None else f"{endpoint.value:.3f}"
        interval = _format_interval(endpoint.interval)
        row = (endpoint.name, endpoint.role, value, interval, endpoint.n, endpoint.unscored)
        table.add_row(*map(_text, row))
    return table


def render_forecast(forecast: TransferForecast) -> RenderableType:
    """Return the shift of M0 under each condition, one row per endpoint, in nats."""
    conditions = list(dict.fromkeys(shift.condition for shift in forecast.shifts))
    table = Table("endpoint", *map(escape_line, conditions), header_style="dim")
    table.title = _text(f"shift of {forecast.baseline} in log-odds, by {forecast.model}")
    cells = {(shift.endpoint, shift.condition): shift for shift in forecast.shifts}
    for endpoint in dict.fromkeys(shift.endpoint for shift in forecast.shifts):
        shifts = (cells.get((endpoint, condition)) for condition in conditions)
        row = ("-" if shift is None else f"{shift.shift:+.2f}" for shift in shifts)
        table.add_row(_text(endpoint), *map(_text, row))
    for condition, reason in forecast.missing.items():
        table.add_row(_text(f"{condition}: {reason}"))
    return table


def _format_interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else "{:.3f} to {:.3f}".format(*interval)


def render_rates(calibration: Calibration, page: str) -> RenderableType:
    """Return a procedure's error rates, each with its intervals."""
    table = Table("rate", "share", "95%", "95% over families", box=None, header_style="dim")
    for name, rate in calibration.list_rates().items():
        intervals = map(_format_interval, (rate.interval, rate.clustered))
        table.add_row(_text(name.replace("_", " ")), f"{rate.k} of {rate.n}", *intervals)
    references = f"{calibration.n_references} references at alpha {calibration.alpha:g}"
    lines = [f"{len(calibration.teachers)} teachers of known truth, each against {references}"]
    if (limit := calibration.leave_one_out.fresh_limit) is not None:
        lines.append(f"chance flags at most {limit} of the benign, 99 times of 100")
    note = _text(f"every teacher, in tables and pictures: {page}", "dim")
    return Group(*map(Text, lines), Text(""), table, Text(""), note)


def render_comparison(comparison: Comparison) -> RenderableType:
    """Return two runs side by side."""
    table = Table("", *(Column(_text(run)) for run in comparison.runs), header_style="bold")
    for name in (
        "suspects",
        "decisions",
        "strength",
        "p_values",
        "e_values",
        "n_references",
        "direct_p_values",
    ):
        pair = map(_format_cell, getattr(comparison, name))
        table.add_row(Text(name.replace("_", " "), "dim"), *pair)
    for title, rows in (("baseline", comparison.baselines), ("effect on", comparison.effects)):
        for name, pair in rows.items():
            table.add_row(_text(f"{title} {name}", "dim"), *map(_format_cell, pair))
    if comparison.same_protocol:
        return Group(table, Text("The same protocol."))
    differences = Table("protocol", "", "", box=None, header_style="dim")
    for place, pair in comparison.differences.items():
        differences.add_row(_text(place, "dim"), *map(_format_cell, pair))
    return Group(table, differences)


_STATUS_WORDS = {
    "verified": "verified: every hash, number and decision agrees, inside the run and outside it",
    "consistent": "consistent: the run agrees with itself; nothing outside shows that it was not "
    "invented",
}


def render_verification(verification: Verification) -> RenderableType:
    """Return the result of verifying a run."""
    words = _STATUS_WORDS.get(verification.status, f"{len(verification.problems)} problems")
    style = "bold red" if verification.problems else "bold"
    return Group(
        Text(words, style),
        *(_text(f"• {problem}") for problem in verification.problems),
        *(_text(f"compared: {what}", "dim") for what in verification.compared),
        *(_text(f"not checked: {reason}", "yellow") for reason in verification.unchecked),
        Text(f"protocol hash: {verification.protocol_hash}", "dim"),
        Text(f"seal sha256: {verification.seal_sha256}", "dim"),
    )


def _format_cell(value: object) -> Text:
    text = escape_text(
        _format_number(value) if isinstance(value, float) else "-" if value is None else value
    )
    return Text(text if len(text) <= 60 else text[:57] + "...")


def _format_number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"
