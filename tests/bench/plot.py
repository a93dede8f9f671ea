"""The figures as an SVG: a panel for each workload, a horizontal bar for each subject."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from xml.sax.saxutils import escape

from tests.bench.figures import Figure, Results, figures
from tests.bench.machine import in_a_line
from tests.bench.workloads import Workload

WIDTH, MARGIN, GUTTER = 960, 24, 32
COLUMNS = 2
ROW, BAR, HEAD = 19, 13, 44
NAME_WIDTH, VALUE_WIDTH = 118, 44
LINE = 15
OURS, OTHERS, INK, FAINT, PAPER = "#c2410c", "#94a3b8", "#0f172a", "#475569", "#ffffff"
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


def plot(results: Results, workloads: Sequence[Workload]) -> str:
    """CPU per call as a picture; its caption says on what machine."""
    found = [one for one in figures(results, workloads) if one.cpu_us is not None]
    panels = [(workload, [one for one in found if one.workload == workload.name]) for workload in workloads]
    # a workload that only some subjects know has nobody of ours beside whom to stand
    panels = [(workload, several) for workload, several in panels if len(several) > 1]
    panel_width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GUTTER) / COLUMNS
    drawn: list[str] = []
    top = MARGIN + 34
    for number in range(0, len(panels), COLUMNS):
        line = panels[number : number + COLUMNS]
        for column, (workload, several) in enumerate(line):
            left = MARGIN + column * (panel_width + GUTTER)
            drawn += _panel(workload, several, left, top, panel_width)
        top += HEAD + ROW * max(len(several) for _, several in line) + 14
    caption = textwrap.wrap(_caption(results), 150)
    title = _text(MARGIN, MARGIN + 14, "CPU per proxied call: less is better", size=18, weight=600)
    drawn += [_text(MARGIN, top + LINE * (1 + at), line, size=11, fill=FAINT) for at, line in enumerate(caption)]
    height = top + LINE * len(caption) + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
            f'height="{height:.0f}" role="img" aria-label="CPU per proxied call, by workload" '
            f'font-family="{FONT}">',
            f'<rect width="{WIDTH}" height="{height:.0f}" fill="{PAPER}"/>',
            title,
            *drawn,
            "</svg>",
            "",
        ]
    )


def _panel(workload: Workload, several: Sequence[Figure], left: float, top: float, width: float) -> list[str]:
    values = {one.subject: one.cpu_us.median for one in several if one.cpu_us is not None}
    room = width - NAME_WIDTH - VALUE_WIDTH
    scale = room / (max(values.values()) or 1)
    drawn = [
        _text(left, top + 14, f"{workload.name}, µs per {workload.unit}", size=14, weight=600),
        _text(left, top + 30, workload.about, size=11, fill=FAINT),
    ]
    for row, (subject, value) in enumerate(values.items()):
        y = top + HEAD + row * ROW
        fill = OURS if subject.startswith("understudy") else OTHERS
        length = max(1.0, value * scale)
        drawn += [
            _text(left + NAME_WIDTH - 8, y + BAR - 2, subject, size=12, anchor="end"),
            f'<rect x="{left + NAME_WIDTH:.1f}" y="{y:.1f}" width="{length:.1f}" height="{BAR}" rx="2" fill="{fill}"/>',
            _text(left + NAME_WIDTH + length + 6, y + BAR - 2, f"{value:.0f}", size=12, fill=FAINT),
        ]
    return drawn


def _caption(results: Results) -> str:
    rounds = results.effort.rounds
    taken = f"Medians of {rounds} interleaved round{'s' * (rounds != 1)} of one run, {results.at[:10]}, subject on one"
    return f"{taken} core, load and upstream on another unless said. {in_a_line(results.machine)}."


def _text(
    x: float, y: float, text: str, *, size: int, fill: str = INK, weight: int = 400, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
