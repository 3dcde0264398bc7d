"""What a person reads in a terminal: verdicts, progress and comparisons as tables.

Knows Rich, and that labels and reasons may hold hostile text: every string goes through `plain`
and none is read as markup. Prints nothing; `cli` does. Where stdout is no terminal, `cli` writes
YAML or, with `--json`, JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from doublebind.schema.study import PanelSpec

if TYPE_CHECKING:
    from doublebind.runs.run import Run

# No colour of success: the best a suspect can get is that nothing was found.
_STYLES = {
    "incriminated": "bold red",
    "not_incriminated": "bold cyan",
    "inconclusive": "bold yellow",
}
_MODELS_SHOWN = 40


def escape_text(text: object) -> str:
    """Return text without what a terminal would act on."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))


def format_verdict_lines(run: Run) -> list[str]:
    """Return a verdict as lines of text, the decision and the mandatory sentence first."""
    verdict, found = run.verdict, run.verdict.incrimination
    decision = found.decision.replace("_", " ")
    lines = [f"{verdict.suspect}: {decision} (strength: {verdict.strength})", verdict.sentence]
    lines.append(_describe_assumption(run))
    lines += [f"- {reason}" for reason in found.reasons]
    lines.append(verdict.coverage)
    lines += [f"{name}: {value}" for name, value in _list_baseline_p_values(run)]
    return [escape_text(line) for line in [*lines, f"report: {run.path / 'report.html'}"]]


def render_verdict(run: Run) -> RenderableType:
    """Return a verdict as a panel."""
    found, its = run.verdict, run.verdict.incrimination
    head = Text(its.decision.replace("_", " "), _STYLES[its.decision])
    head.append(f"   strength: {found.strength}", "default")
    numbers = Table.grid(padding=(0, 2))
    rows = [("p", f"{_format_number(its.p_value)} (alpha {its.alpha:g})")]
    rows.append(("references", f"{its.n_references} of {its.n_families} families"))
    if its.e_value is not None:
        rows.append(("e-value", _format_number(its.e_value)))
    if its.power is not None:
        power = (
            f"{its.power.value:.0%} of {its.power.n_controls}, at least {its.power.lower_95:.2f}"
        )
        rows.append(("controls detected", power))
    for name, value in [*rows, *_list_baseline_p_values(run)]:
        numbers.add_row(Text(escape_text(name), "dim"), Text(escape_text(value)))
    reasons = [Text(f"• {escape_text(reason)}") for reason in its.reasons]
    missing = [Text(f"{escape_text(k)}: {escape_text(v)}", "dim") for k, v in found.missing.items()]
    parts: list[RenderableType] = [
        head,
        Text(found.sentence, "bold"),
        Text(_describe_assumption(run)),
    ]
    parts += [Text(""), numbers, Text("")]
    parts += [*reasons, Text(""), Text(escape_text(found.coverage))]
    if missing:
        parts += [Rule("not computed", style="dim"), *missing]
    parts += [Text(""), Text(f"report: {escape_text(run.path / 'report.html')}", "dim")]
    return Panel(Group(*parts), title=Text(escape_text(found.suspect)), title_align="left")


def _describe_assumption(run: Run) -> str:
    """Return what exchangeability with the run's references assumes."""
    from doublebind.study.references import describe_assumption

    study = run.manifest.study
    if "incriminate" not in run.manifest.protocol.horns:
        return "No reference was made: nothing is said of how a benign teacher would do."
    known = {key: value for key, value in study.items() if key in PanelSpec.model_fields}
    return describe_assumption(PanelSpec.model_validate(known).references)


def _list_baseline_p_values(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what looks at the suspect without a student."""
    direct = run.verdict.direct_audit.p_value
    if direct is not None:
        yield "direct audit", f"p = {_format_number(direct)}"
    for name, p in run.evidence.baselines.items():
        yield f"baseline {name}", f"p = {_format_number(p)}"


def render_status(found: Mapping[str, Any]) -> RenderableType:
    """Return how far a run is, as tables."""
    cells = Table("cells", "needed", "done", "failed", "left", box=None, header_style="dim")
    for kind, its in found["cells"].items():
        done, failed = its.get("done", 0), its.get("failed", 0)
        style = "red" if failed else "" if done == its["needed"] else "yellow"
        left = its["needed"] - done - failed
        cells.add_row(*(Text(str(x), style) for x in (kind, its["needed"], done, failed, left)))
    models = Table("model", "kind", "teacher", "recipe", "seed", box=None, header_style="dim")
    for its in found["models"][:_MODELS_SHOWN]:
        row = (its["key"][:12], its["kind"], its["teacher"], its.get("recipe", ""))
        models.add_row(*(Text(escape_text(x)) for x in (*row, its.get("seed", ""))))
    state = "ended" if found["ended"] else "not ended: run the same command again to resume"
    head = Text(f"{escape_text(found['run'])}: {state}", "bold")
    parts: list[RenderableType] = [head, Text(f"protocol {found['protocol_hash'][:12]}", "dim")]
    parts += [Text(""), cells]
    parts += [Text(escape_text(failure), "red") for failure in found["failures"]]
    if found["models"]:
        parts += [Text(""), models]
    if len(found["models"]) > _MODELS_SHOWN:
        more = len(found["models"]) - _MODELS_SHOWN
        parts.append(Text(f"and {more} more; --json lists them all", "dim"))
    return Group(*parts)


def render_plan(found: Mapping[str, Any]) -> RenderableType:
    """Return what a study would take and could show."""
    cells = Table("cells", "needed", "stored", "time to come", "disk", box=None, header_style="dim")
    for kind, its in found["cells"].items():
        row = (
            kind,
            its["needed"],
            its["stored"],
            _format_time(its.get("seconds")),
            _format_size(its.get("bytes")),
        )
        cells.add_row(*(Text(escape_text(x)) for x in row))
    total = (Text("all", "bold"), Text(""), Text(""))
    cells.add_row(*total, _format_time(found.get("seconds")), _format_size(found.get("bytes")))
    families = f"{found['references']} references of {found['families']} families"
    least = (
        f"smallest p: {found['smallest_p']:.4g} (p <= alpha needs {found['references_for_alpha']})"
    )
    told = [str(found["exchangeability"])] if found.get("exchangeability") else []
    if "wall_seconds" in found:
        wall, peak = _format_time(found["wall_seconds"]), _format_size(found["peak_bytes"])
        told.append(f"with this executor: {wall}, {peak} of memory at most")
    if "device_peak_bytes" in found:
        room = {True: "which fit", False: "more than there is", None: "not checked here"}
        held = _format_size(found["device_peak_bytes"])
        told.append(f"on a GPU: {held} at most, {room[found.get('device_fits')]}")
    parts: list[RenderableType] = [cells, Text("")]
    parts += [Text(escape_text(line)) for line in (families, least, *told)]
    parts += [
        Text(f"{escape_text(k)}: {escape_text(v)}", "dim") for k, v in found["missing"].items()
    ]
    if found.get("power"):
        parts.append(Text("power: with --json", "dim"))
    return Group(*parts)


def _format_time(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _format_size(count: float | None) -> str:
    return "not known" if count is None else f"{count / 2**20:.1f} MiB"


def render_endpoints(found: Mapping[str, Any]) -> RenderableType:
    """Return a direct audit's endpoints, with their intervals."""
    table = Table("endpoint", "role", "value", "95%", "items", "unscored", header_style="dim")
    table.title = Text(escape_text(f"{found['model']} on {found['pack']}"))
    for its in found["endpoints"]:
        low, high = its.get("interval") or (None, None)
        value = its.get("value")
        span = "-" if low is None else f"{low:.3f} to {high:.3f}"
        shown = "-" if value is None else f"{value:.3f}"
        row = (its["name"], its["role"], shown, span, its["n"], its["unscored"])
        table.add_row(*(Text(escape_text(x)) for x in row))
    return table


def render_rates(found: Mapping[str, Any]) -> RenderableType:
    """Return a procedure's error rates, each with its intervals."""
    table = Table("rate", "share", "95%", "95% over families", box=None, header_style="dim")
    for name, its in found.items():
        if isinstance(its, Mapping) and "k" in its:
            spans = (its.get(key) for key in ("interval", "clustered"))
            told = ("-" if span is None else "{:.3f} to {:.3f}".format(*span) for span in spans)
            row = (name.replace("_", " "), f"{its['k']} of {its['n']}", *told)
            table.add_row(*(Text(escape_text(x)) for x in row))
    weighed = f"{found['n_references']} references at alpha {found['alpha']:g}"
    lines = [f"{len(found['teachers'])} teachers of known truth, each against {weighed}"]
    if "fresh_limit" in found:
        lines.append(f"chance flags at most {found['fresh_limit']} of the benign, 99 times of 100")
    told_of = Text(f"every teacher, in tables and pictures: {escape_text(found['page'])}", "dim")
    return Group(*(Text(line) for line in lines), Text(""), table, Text(""), told_of)


def render_comparison(found: Mapping[str, Any]) -> RenderableType:
    """Return two runs side by side."""
    runs = (Column(Text(escape_text(run))) for run in found["runs"])
    table = Table("", *runs, header_style="bold")
    names = ("suspects", "decisions", "strength", "p_values", "e_values", "n_references")
    for name in (*names, "direct_p_values"):
        table.add_row(Text(name.replace("_", " "), "dim"), *map(_format_cell, found[name]))
    for title, rows in (("baseline", found["baselines"]), ("effect on", found["effects"])):
        for name, pair in rows.items():
            table.add_row(Text(escape_text(f"{title} {name}"), "dim"), *map(_format_cell, pair))
    if found["same_protocol"]:
        return Group(table, Text("The same protocol."))
    differing = Table("protocol", "", "", box=None, header_style="dim")
    for at, pair in found["differences"].items():
        differing.add_row(Text(escape_text(at), "dim"), *map(_format_cell, pair))
    return Group(table, differing)


def render_verification(found: Mapping[str, Any]) -> RenderableType:
    """Return what verifying found."""
    good = "verified: every hash, number and decision agrees"
    bad = f"{len(found['problems'])} problems"
    lines = [Text(good, "bold") if found["verified"] else Text(bad, "bold red")]
    lines += [Text(f"• {escape_text(problem)}") for problem in found["problems"]]
    lines += [Text(f"not checked: {escape_text(what)}", "yellow") for what in found["unchecked"]]
    for name in ("protocol_hash", "seal_sha256"):
        lines.append(Text(f"{name.replace('_', ' ')}: {found[name]}", "dim"))
    return Group(*lines)


def _format_cell(value: object) -> Text:
    text = escape_text(
        _format_number(value) if isinstance(value, float) else "-" if value is None else value
    )
    return Text(text if len(text) <= 60 else text[:57] + "...")


def _format_number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"
