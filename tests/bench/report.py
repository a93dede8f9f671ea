"""The figures as tables: for the terminal, and in Markdown for the README."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.bench.figures import Figure, Results, Spread, figures
from tests.bench.machine import in_a_line
from tests.bench.subjects import SUBJECTS
from tests.bench.workloads import Workload

Row = Sequence[str]
TOLD = ("rss-loaded", "startup", "routes-1000-to-1", "endpoints-100-to-1", "workers-2-to-1")
"""The facts a README's reader may want."""
BEGIN, END = "<!-- bench -->", "<!-- end of bench -->"


def report(results: Results, workloads: Sequence[Workload]) -> str:
    """The tables, as text."""
    found = figures(results, workloads)
    measured = [workload for workload in workloads if any(one.workload == workload.name for one in found)]
    lines: list[str] = []
    if found:
        title = "CPU us per call, per chunk of a stream: median of rounds (range)"
        lines += ["", title, *_aligned(_grid(found, measured, lambda one: _shown(one.cpu_us)))]
        title = "calls or chunks a second, and the share of a core the subject used"
        lines += ["", title, *_aligned(_grid(found, measured, _rate))]
    for workload in measured:
        if workload.on_one_core or workload.unit == "chunk":
            what = "chunk delay" if workload.unit == "chunk" else "latency"
            lines += ["", f"{workload.name}: {what} in us, and what is added to direct in the same round"]
            lines += _aligned(_latencies([one for one in found if one.workload == workload.name]))
    if results.facts:
        rows = [(one.name, f"{one.value} {one.unit}", one.about, one.unsure) for one in results.facts]
        lines += ["", "beside the calls: median (range)", *_aligned(rows)]
    lines += ["", *(f"{workload.name}: {workload.about}" for workload in measured)]
    lines += [f"{name} left out: {reason}" for name, reason in results.left_out.items()]
    lines += ["", *(f"{name}: {value}" for name, value in results.machine.items())]
    return "\n".join(lines)


def _grid(found: Sequence[Figure], columns: Sequence[Workload], cell: Callable[[Figure], str]) -> list[Row]:
    at = {(figure.subject, figure.workload): figure for figure in found}
    rows: list[Row] = [["", *(workload.name for workload in columns)]]
    for subject in dict.fromkeys(figure.subject for figure in found):
        figures_here = [at.get((subject, workload.name)) for workload in columns]
        rows.append([subject, *("-" if one is None else cell(one) for one in figures_here)])
    return rows


def _latencies(found: Sequence[Figure]) -> list[Row]:
    rows: list[Row] = [("", "p50", "p99", "p50 added", "p99 added")]
    for one in found:
        cells = (one.p50_us, one.p99_us, one.added_p50_us, one.added_p99_us)
        rows.append((one.subject, *(_shown(cell) for cell in cells)))
    return rows


def _aligned(rows: Sequence[Row]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _shown(one: Spread | None) -> str:
    return "-" if one is None else str(one)


def _rate(figure: Figure) -> str:
    busy = f", {figure.busy.median:.0%}" if figure.busy else ""
    return f"{figure.per_s.median:,.0f}{busy}"


# --- for the README ------------------------------------------------------------------------------------------------


def markdown(results: Results, workloads: Sequence[Workload], picture: str) -> str:
    """The picture, and a table of CPU per call with the latency added at one connection."""
    found = figures(results, workloads)
    at = {(figure.subject, figure.workload): figure for figure in found}
    columns = [one for one in workloads if any((name, one.name) in at for name in ("understudy", "direct"))]
    shown = [one for one in columns if not one.on_one_core]
    alone = [one for one in columns if one.on_one_core and one.connections == 1]
    heads = ["", *(one.name for one in shown), *(f"{one.name}: p50 added" for one in alone)]
    rows = [heads, ["---", *("---:" for _ in heads[1:])]]
    for subject in SUBJECTS:
        cells = [_plain(at.get((subject.name, one.name)), "cpu_us") for one in shown]
        cells += [_plain(at.get((subject.name, one.name)), "added_p50_us") for one in alone]
        if any(cells):
            rows.append([f"{subject.name}: {subject.about}", *(cell or "–" for cell in cells)])
    lines = [f"![CPU per call, by workload and subject]({picture})", ""]
    lines += ["CPU time of the subject per call, in µs (per chunk of a stream), and what it adds to the latency:", ""]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- {one.name}: {one.about}" for one in (*shown, *alone))]
    facts = [one for one in results.facts if one.name in TOLD and not one.unsure]
    lines += [f"- {one.about}: {one.value} {one.unit}" for one in facts]
    rounds = results.effort.rounds
    lines += ["", f"Medians of {rounds} interleaved round{'s' * (rounds != 1)}, {results.at[:10]}. Machine: "]
    lines[-1] += in_a_line(results.machine) + "."
    return "\n".join(lines)


def _plain(figure: Figure | None, field: str) -> str:
    value: Spread | None = getattr(figure, field, None)
    return "" if value is None else f"{value.median:.0f}"


def with_block(text: str, block: str) -> str:
    """`text` with `block` between the markers, in the place of what stood there. Raises ValueError without markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there are no {BEGIN} and {END} to write between")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"
