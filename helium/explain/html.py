"""EXPLAIN as one HTML page without scripts or anything fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from html import escape

from helium.explain.report import Report, ScheduleRow, TemplateRow

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #667085; --line: #d9dee8;
  --card: #f6f8fb; --bar: #5b8def; --critical: #d9534f; --static: #2f9e6e; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --soft: #9aa4b5; --line: #343b4a;
  --card: #1d2230; --bar: #6f9bf5; --critical: #ef6b66; --static: #4fc18d; --paper: #141822; } }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1180px; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
.soft { color: var(--soft); } .scroll { overflow-x: auto; }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
.card { background: var(--card); border-radius: 8px; padding: .6rem 1rem; }
.card b { display: block; font-size: 1.25rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } .left { text-align: left; }
tr.critical td:first-child { box-shadow: inset 3px 0 var(--critical); }
details { margin-left: 1.1rem; } summary { cursor: pointer; }
.leaf { margin-left: 2.2rem; }
.static { color: var(--static); } .ops { font-weight: 600; }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
svg .axis { fill: var(--soft); } svg line { stroke: var(--line); }
svg rect { fill: var(--bar); } svg rect.critical { fill: var(--critical); }
"""

_CHART_WIDTH = 1_120
_LABEL_WIDTH = 220
_BAR_HEIGHT = 16


def to_html(report: Report) -> str:
    """Returns a complete page."""
    return "\n".join(_page(report)) + "\n"


def _page(report: Report) -> Iterator[str]:
    title = escape(f"EXPLAIN {report.workflow}")
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f"<style>{_STYLE}</style></head><body>"
    level = "call" if report.is_by_call else "operator"
    yield f"<h1>{escape(report.workflow)}</h1>"
    yield f'<div class="soft">policy {escape(report.policy)}, scheduled by {level}</div>'
    yield from _cards(report)
    if report.rules:
        yield "<h2>Rules</h2>"
        yield from _rules(report)
    yield "<h2>Timeline</h2>"
    yield (
        f'<div class="soft">Predicted, in {escape(report.unit)}; the critical path is red. A '
        "thin bar is the delay until readers of the last row may start. "
        "One slice of the rows is shown.</div>"
    )
    yield from _timeline(report)
    yield "<h2>Schedule</h2>"
    yield from _schedule(report)
    yield "<h2>Critical path</h2>"
    yield f"<p>{escape(' → '.join(report.critical_path))}</p>"
    if report.measured_path:
        yield f"<p>Measured: {escape(' → '.join(report.measured_path))}</p>"
    yield "<h2>Templates</h2>"
    yield '<div class="soft">Tokens of each run, times the calls that read it.</div>'
    yield from _templates(report.templates)
    if report.prefixes:
        yield "<h2>Static prefixes to prewarm</h2>"
        yield from _table(
            ("engine", "tokens", "calls", "operators"),
            [(p.engine, p.num_tokens, p.num_uses, ", ".join(p.operators)) for p in report.prefixes],
            left={3},
        )
    yield "</body></html>"


def _cards(report: Report) -> Iterator[str]:
    prefill = sum(row.prefill_tokens for row in report.schedule)
    cached = sum(row.cached_tokens for row in report.schedule)
    figures = [
        ("LLM operators", f"{len(report.schedule):,}"),
        ("calls", f"{report.num_calls:,}"),
        ("engines", f"{report.num_engines}"),
        ("slices of rows", f"{report.num_slices}{' and a rest' * report.has_left_over}"),
        (f"makespan, {report.unit}", f"{report.makespan:,.1f}"),
        ("prefill tokens", f"{prefill:,.0f}"),
        ("cached tokens", f"{cached:,.0f} ({100 * cached / max(1.0, prefill + cached):.0f}%)"),
        ("decode tokens", f"{sum(row.output_tokens for row in report.schedule):,.0f}"),
    ]
    cards = (f'<div class="card"><b>{escape(v)}</b>{escape(k)}</div>' for k, v in figures)
    yield f'<div class="cards">{"".join(cards)}</div>'


def _rules(report: Report) -> Iterator[str]:
    rows = [
        (
            rule.rule or "(as written)",
            rule.num_operators,
            rule.num_llm_operators,
            "-" if rule.num_calls is None else rule.num_calls,
            "-" if rule.elapsed_ms is None else f"{rule.elapsed_ms:.2f}",
        )
        for rule in report.rules
    ]
    yield from _table(("rule", "operators", "LLM operators", "calls", "ms"), rows, left={0})


def _timeline(report: Report) -> Iterator[str]:
    lanes = len(report.schedule) + len({row.engine for row in report.schedule})
    height = lanes * (_BAR_HEIGHT + 4) + 30
    end = max((row.end + row.delay for row in report.schedule), default=0.0)
    scale = (_CHART_WIDTH - _LABEL_WIDTH - 60) / max(end, 1e-9)
    yield f'<div class="scroll"><svg width="{_CHART_WIDTH}" height="{height}" role="img">'
    for tick in range(6):
        time = end * tick / 5
        x = _LABEL_WIDTH + time * scale
        yield f'<line x1="{x:.1f}" y1="16" x2="{x:.1f}" y2="{height}"/>'
        yield f'<text class="axis" x="{x:.1f}" y="12" text-anchor="middle">{time:,.0f}</text>'
    y, engine = 22, -1
    for row in report.schedule:
        if row.engine != engine:
            engine = row.engine
            yield f'<text class="axis" x="0" y="{y + 12}">engine {engine}</text>'
            y += _BAR_HEIGHT + 4
        x, width = _LABEL_WIDTH + row.start * scale, max(1.0, (row.end - row.start) * scale)
        css = ' class="critical"' if row.is_critical else ""
        name = row.operator if len(row.operator) <= 32 else f"{row.operator[:31]}…"
        yield f'<text x="8" y="{y + 12}">{escape(name)}</text>'
        yield (
            f'<rect{css} x="{x + width:.1f}" y="{y + 5}" width="{row.delay * scale:.1f}" '
            f'height="{_BAR_HEIGHT - 10}" opacity=".3"/>'
        )
        yield (
            f'<rect{css} x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR_HEIGHT}" rx="3">'
            f"<title>{escape(row.operator)}: {row.start:,.1f} to {row.end:,.1f}</title></rect>"
        )
        y += _BAR_HEIGHT + 4
    yield "</svg></div>"


def _schedule(report: Report) -> Iterator[str]:
    header = ["operator", "engine", "sequence", "rank", "calls", "prefill", "cached", "decode"]
    header += ["start", "end", "after"]
    if report.is_measured:
        header += [f"measured {name}" for name in ("calls", "prefill", "cached", "decode")]
        header += ["queue ms", "start ms", "end ms", "misses"]
    rows = []
    for row in report.schedule:
        cells: list[object] = [row.operator, row.engine, row.sequence, row.rank, row.num_calls]
        cells += [f"{row.prefill_tokens:,.0f}", f"{row.cached_tokens:,.0f}"]
        cells += [f"{row.output_tokens:,.0f}", f"{row.start:,.1f}", f"{row.end:,.1f}"]
        cells += [row.after or "-"]
        if report.is_measured:
            cells += _measured(row)
        rows.append(cells)
    critical = {i for i, row in enumerate(report.schedule) if row.is_critical}
    yield from _table(header, rows, left={0, 10}, critical=critical)


def _measured(row: ScheduleRow) -> list[object]:
    m = row.measured
    if m is None:
        return ["-"] * 8
    cells: list[object] = [m.num_calls, f"{m.prefill_tokens:,}", f"{m.cached_tokens:,}"]
    misses = ", ".join(f"{reason} {num_tokens:,}" for reason, num_tokens in m.misses.items())
    cells += [f"{m.output_tokens:,}", f"{m.queue_ms:,.1f}", f"{m.start_ms:,.1f}"]
    return [*cells, f"{m.end_ms:,.1f}", misses or "-"]


def _templates(rows: Sequence[TemplateRow]) -> Iterator[str]:
    children: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        children.setdefault(row.parent, []).append(index)
    # Written with a stack, since chains may be deeper than Python's recursion; None closes.
    stack: list[int | None] = list(reversed(children.get(-1, [])))
    while stack:
        item = stack.pop()
        if item is None:
            yield "</details>"
            continue
        parts, first = [_run(rows[item])], rows[item]
        while not rows[item].operators and len(children.get(item, ())) == 1:
            (item,) = children[item]
            parts.append(_run(rows[item]))
        line = f"{' + '.join(parts)} <span class=soft>&times; {first.num_uses}</span>"
        if rows[item].operators:
            line += f' <span class="ops">{escape(", ".join(rows[item].operators))}</span>'
        below = children.get(item, [])
        if not below:
            yield f'<div class="leaf">{line}</div>'
            continue
        yield f"<details open><summary>{line}</summary>"
        stack.append(None)
        stack += reversed(below)


def _run(row: TemplateRow) -> str:
    if row.kind == "static":
        return f'<span class="static">{row.num_tokens:.0f}</span>'
    name = f"{{{row.value}}}" if row.kind == "value" else "join"
    return f"{escape(name)}&nbsp;~{row.num_tokens:.0f}"


def _table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    left: Set[int],
    critical: Set[int] = frozenset(),
) -> Iterator[str]:
    def cell(tag: str, index: int, value: object) -> str:
        css = ' class="left"' if index in left else ""
        return f"<{tag}{css}>{escape(str(value))}</{tag}>"

    yield '<div class="scroll"><table><tr>'
    yield "".join(cell("th", i, name) for i, name in enumerate(header)) + "</tr>"
    for number, row in enumerate(rows):
        css = ' class="critical"' if number in critical else ""
        yield f"<tr{css}>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>"
    yield "</table></div>"
