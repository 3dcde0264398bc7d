"""What a person reads in a terminal: verdicts, progress and comparisons as tables.

Knows Rich, and that labels and reasons may hold hostile text: every string goes through `plain`
and none is read as markup. Prints nothing; `cli` does. Where stdout is no terminal, `cli` writes
YAML or, with `--json`, JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from doublebind.runs.run import Run
from doublebind.schema.study import Measurement
from doublebind.study.references import assumes

# No colour of success: the best a suspect can get is that nothing was found.
_STYLES = {
    "incriminated": "bold red",
    "not_incriminated": "bold cyan",
    "inconclusive": "bold yellow",
}
_MODELS_SHOWN = 40


def plain(text: object) -> str:
    """Return text without what a terminal would act on."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))


def verdict_lines(run: Run) -> list[str]:
    """Return a verdict as lines of text, the decision and the mandatory sentence first."""
    verdict, found = run.verdict, run.verdict.incrimination
    decision = found.decision.replace("_", " ")
    lines = [f"{verdict.suspect}: {decision} (strength: {verdict.strength})", verdict.sentence]
    lines.append(_assumes(run))
    lines += [f"- {reason}" for reason in found.reasons]
    lines.append(verdict.coverage)
    lines += [f"{name}: {value}" for name, value in _beside(run)]
    return [plain(line) for line in [*lines, f"report: {run.path / 'report.html'}"]]


def verdict(run: Run) -> RenderableType:
    """Return a verdict as a panel."""
    found, its = run.verdict, run.verdict.incrimination
    head = Text(its.decision.replace("_", " "), _STYLES[its.decision])
    head.append(f"   strength: {found.strength}", "default")
    numbers = Table.grid(padding=(0, 2))
    rows = [("p", f"{_number(its.p_value)} (alpha {its.alpha:g})")]
    rows.append(("references", f"{its.n_references} of {its.n_families} families"))
    if its.e_value is not None:
        rows.append(("e-value", _number(its.e_value)))
    if its.power is not None:
        power = (
            f"{its.power.value:.0%} of {its.power.n_controls}, at least {its.power.lower_95:.2f}"
        )
        rows.append(("controls detected", power))
    for name, value in [*rows, *_beside(run)]:
        numbers.add_row(Text(plain(name), "dim"), Text(plain(value)))
    reasons = [Text(f"• {plain(reason)}") for reason in its.reasons]
    missing = [Text(f"{plain(k)}: {plain(v)}", "dim") for k, v in found.missing.items()]
    parts: list[RenderableType] = [head, Text(found.sentence, "bold"), Text(_assumes(run))]
    parts += [Text(""), numbers, Text("")]
    parts += [*reasons, Text(""), Text(plain(found.coverage))]
    if missing:
        parts += [Rule("not computed", style="dim"), *missing]
    parts += [Text(""), Text(f"report: {plain(run.path / 'report.html')}", "dim")]
    return Panel(Group(*parts), title=Text(plain(found.suspect)), title_align="left")


def _assumes(run: Run) -> str:
    """Return what exchangeability with the run's references assumes."""
    study = run.manifest.study
    if "incriminate" not in run.manifest.protocol.horns:
        return "No reference was made: nothing is said of how a benign teacher would do."
    known = {key: value for key, value in study.items() if key in Measurement.model_fields}
    return assumes(Measurement.model_validate(known).references)


def _beside(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what looks at the suspect without a student."""
    direct = run.verdict.direct_audit.p_value
    if direct is not None:
        yield "direct audit", f"p = {_number(direct)}"
    for name, p in run.evidence.baselines.items():
        yield f"baseline {name}", f"p = {_number(p)}"


def status(found: Mapping[str, Any]) -> RenderableType:
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
        models.add_row(*(Text(plain(x)) for x in (*row, its.get("seed", ""))))
    state = "ended" if found["ended"] else "not ended: run the same command again to resume"
    head = Text(f"{plain(found['run'])}: {state}", "bold")
    parts: list[RenderableType] = [head, Text(f"protocol {found['protocol_hash'][:12]}", "dim")]
    parts += [Text(""), cells]
    parts += [Text(plain(failure), "red") for failure in found["failures"]]
    if found["models"]:
        parts += [Text(""), models]
    if len(found["models"]) > _MODELS_SHOWN:
        more = len(found["models"]) - _MODELS_SHOWN
        parts.append(Text(f"and {more} more; --json lists them all", "dim"))
    return Group(*parts)


def plan(found: Mapping[str, Any]) -> RenderableType:
    """Return what a study would take and could show."""
    cells = Table("cells", "needed", "stored", "time to come", "disk", box=None, header_style="dim")
    for kind, its in found["cells"].items():
        row = (
            kind,
            its["needed"],
            its["stored"],
            _time(its.get("seconds")),
            _size(its.get("bytes")),
        )
        cells.add_row(*(Text(plain(x)) for x in row))
    total = (Text("all", "bold"), Text(""), Text(""))
    cells.add_row(*total, _time(found.get("seconds")), _size(found.get("bytes")))
    families = f"{found['references']} references of {found['families']} families"
    least = (
        f"smallest p: {found['smallest_p']:.4g} (p <= alpha needs {found['references_for_alpha']})"
    )
    told = [str(found["exchangeability"])] if found.get("exchangeability") else []
    if "wall_seconds" in found:
        wall, peak = _time(found["wall_seconds"]), _size(found["peak_bytes"])
        told.append(f"with this executor: {wall}, {peak} of memory at most")
    if "device_peak_bytes" in found:
        room = {True: "which fit", False: "more than there is", None: "not checked here"}
        held = _size(found["device_peak_bytes"])
        told.append(f"on a GPU: {held} at most, {room[found.get('device_fits')]}")
    parts: list[RenderableType] = [cells, Text("")]
    parts += [Text(plain(line)) for line in (families, least, *told)]
    parts += [Text(f"{plain(k)}: {plain(v)}", "dim") for k, v in found["missing"].items()]
    if found.get("power"):
        parts.append(Text("power: with --json", "dim"))
    return Group(*parts)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _size(count: float | None) -> str:
    return "not known" if count is None else f"{count / 2**20:.1f} MiB"


def endpoints(found: Mapping[str, Any]) -> RenderableType:
    """Return a direct audit's endpoints, with their intervals."""
    table = Table("endpoint", "role", "value", "95%", "items", "unscored", header_style="dim")
    table.title = Text(plain(f"{found['model']} on {found['pack']}"))
    for its in found["endpoints"]:
        low, high = its.get("interval") or (None, None)
        value = its.get("value")
        span = "-" if low is None else f"{low:.3f} to {high:.3f}"
        shown = "-" if value is None else f"{value:.3f}"
        row = (its["name"], its["role"], shown, span, its["n"], its["unscored"])
        table.add_row(*(Text(plain(x)) for x in row))
    return table


def rates(found: Mapping[str, Any]) -> RenderableType:
    """Return a procedure's error rates, each with its intervals."""
    table = Table("rate", "share", "95%", "95% over families", box=None, header_style="dim")
    for name, its in found.items():
        if isinstance(its, Mapping) and "k" in its:
            spans = (its.get(key) for key in ("interval", "clustered"))
            told = ("-" if span is None else "{:.3f} to {:.3f}".format(*span) for span in spans)
            row = (name.replace("_", " "), f"{its['k']} of {its['n']}", *told)
            table.add_row(*(Text(plain(x)) for x in row))
    weighed = f"{found['n_references']} references at alpha {found['alpha']:g}"
    lines = [f"{len(found['teachers'])} teachers of known truth, each against {weighed}"]
    if "fresh_limit" in found:
        lines.append(f"chance flags at most {found['fresh_limit']} of the benign, 99 times of 100")
    told_of = Text(f"every teacher, in tables and pictures: {plain(found['page'])}", "dim")
    return Group(*(Text(line) for line in lines), Text(""), table, Text(""), told_of)


def comparison(found: Mapping[str, Any]) -> RenderableType:
    """Return two runs side by side."""
    runs = (Column(Text(plain(run))) for run in found["runs"])
    table = Table("", *runs, header_style="bold")
    names = ("suspects", "decisions", "strength", "p_values", "e_values", "n_references")
    for name in (*names, "direct_p_values"):
        table.add_row(Text(name.replace("_", " "), "dim"), *map(_cell, found[name]))
    for title, rows in (("baseline", found["baselines"]), ("effect on", found["effects"])):
        for name, pair in rows.items():
            table.add_row(Text(plain(f"{title} {name}"), "dim"), *map(_cell, pair))
    if found["same_protocol"]:
        return Group(table, Text("The same protocol."))
    differing = Table("protocol", "", "", box=None, header_style="dim")
    for at, pair in found["differences"].items():
        differing.add_row(Text(plain(at), "dim"), *map(_cell, pair))
    return Group(table, differing)


def verification(found: Mapping[str, Any]) -> RenderableType:
    """Return what verifying found."""
    good = "verified: every hash, number and decision agrees"
    bad = f"{len(found['problems'])} problems"
    lines = [Text(good, "bold") if found["verified"] else Text(bad, "bold red")]
    lines += [Text(f"• {plain(problem)}") for problem in found["problems"]]
    lines += [Text(f"not checked: {plain(what)}", "yellow") for what in found["unchecked"]]
    for name in ("protocol_hash", "seal_sha256"):
        lines.append(Text(f"{name.replace('_', ' ')}: {found[name]}", "dim"))
    return Group(*lines)


def _cell(value: object) -> Text:
    text = plain(_number(value) if isinstance(value, float) else "-" if value is None else value)
    return Text(text if len(text) <= 60 else text[:57] + "...")


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"
