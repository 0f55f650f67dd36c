"""EXPLAIN as text: stable, so that it can serve as a test format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from helium.explain.report import Report, ScheduleRow, TemplateRow

MAX_TEMPLATE_LINES = 400
"""Longer trees are cut; JSON and HTML have all of it."""


def to_text(report: Report) -> str:
    """Returns the report in aligned plain text; ends in a newline."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    unit = report.unit
    engines = f"{report.num_engines} engine{'s' * (report.num_engines > 1)}"
    slices = f" in {report.num_slices} slices of the rows" if report.num_slices > 1 else ""
    slices += ", rows left over by operator" if report.has_left_over else ""
    yield f"Workflow {report.workflow}"
    yield (
        f"  {len(report.schedule)} LLM operators, {report.num_calls} calls on {engines}{slices}; "
        f"policy {report.policy}, scheduled by {'call' if report.is_by_call else 'operator'}"
    )
    yield f"  predicted makespan {report.makespan:.1f} {unit}"
    if report.rules:
        yield ""
        yield "Rules"
        yield from _rules(report)
    yield ""
    yield "Templates (tokens x calls that read them; ~ expected)"
    yield from _templates(report.templates)
    if report.prefixes:
        yield ""
        yield "Static prefixes to prewarm"
        for prefix in report.prefixes:
            where = f"engine {prefix.engine}: " if report.num_engines > report.num_slices else ""
            names = ", ".join(prefix.operators)
            yield f"  {where}{prefix.num_tokens} tokens x {prefix.num_uses}: {names}"
    yield ""
    yield f"Schedule (* critical; times in {unit}; braces run query by query)"
    yield from _schedule(report)
    yield ""
    yield "Critical path"
    yield "  " + (" -> ".join(report.critical_path) or "(no calls)")
    if report.measured_path:
        yield ""
        yield "Critical path, measured"
        yield "  " + " -> ".join(report.measured_path)
    if any(row.measured and row.measured.misses for row in report.schedule):
        yield ""
        yield "Cache misses, measured (tokens)"
        yield from table(
            [
                ("operator", "reason", "tokens"),
                *(
                    (row.operator, reason, str(num_tokens))
                    for row in report.schedule
                    if row.measured
                    for reason, num_tokens in row.measured.misses.items()
                ),
            ]
        )


def _rules(report: Report) -> Iterator[str]:
    rows = [("rule", "operators", "LLM", "calls", "ms")]
    for rule in report.rules:
        rows.append(
            (
                rule.rule or "(as written)",
                str(rule.num_operators),
                str(rule.num_llm_operators),
                "-" if rule.num_calls is None else str(rule.num_calls),
                "-" if rule.elapsed_ms is None else f"{rule.elapsed_ms:.2f}",
            )
        )
    yield from table(rows)


def _templates(rows: Sequence[TemplateRow]) -> Iterator[str]:
    """One line per stretch without branches, indented by its depth in such stretches."""
    children: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        children.setdefault(row.parent, []).append(index)
    stack = [(index, 0) for index in reversed(children.get(-1, []))]
    num_lines = 0
    while stack:
        if num_lines == MAX_TEMPLATE_LINES:
            yield f"  ... and {len(stack)} more branches"
            return
        index, depth = stack.pop()
        parts = [_run(rows[index])]
        uses = rows[index].num_uses
        while not rows[index].operators and len(children.get(index, ())) == 1:
            (index,) = children[index]
            parts.append(_run(rows[index]))
        ends = f" => {', '.join(rows[index].operators)}" if rows[index].operators else ""
        yield f"  {'| ' * depth}{' + '.join(parts)}  x{uses}{ends}"
        num_lines += 1
        stack += [(child, depth + 1) for child in reversed(children.get(index, []))]


def _run(row: TemplateRow) -> str:
    if row.kind == "static":
        return f"{row.num_tokens:.0f}"
    label = f"{{{row.value}}}" if row.kind == "value" else "join"
    return f"{label} ~{row.num_tokens:.0f}"


def _schedule(report: Report) -> Iterator[str]:
    header = ["", "rank", "operator", "calls", "prefill", "cached", "decode", "start", "end"]
    header += ["after"]
    if report.is_measured:
        header += ["measured: calls", "prefill", "cached", "decode", "queue ms"]
        header += ["start ms", "end ms"]
    engine = -1
    rows: list[Sequence[str]] = []
    for index, row in enumerate(report.schedule):
        if row.engine != engine:
            if rows:
                yield from table(rows)
            engine = row.engine
            yield f"  engine {engine}"
            rows = [header]
        cells = ["*" if row.is_critical else "", str(row.rank), _braced(report.schedule, index)]
        cells += [str(row.num_calls), f"{row.prefill_tokens:.0f}", f"{row.cached_tokens:.0f}"]
        cells += [f"{row.output_tokens:.0f}", f"{row.start:.1f}", f"{row.end:.1f}"]
        cells += [row.after or "-"]
        if report.is_measured:
            cells += _measured(row)
        rows.append(cells)
    if rows:
        yield from table(rows)


def _braced(schedule: Sequence[ScheduleRow], index: int) -> str:
    row = schedule[index]
    key = (row.engine, row.sequence)
    same = [other for other in (index - 1, index + 1) if 0 <= other < len(schedule)]
    near = {other for other in same if (schedule[other].engine, schedule[other].sequence) == key}
    if not near:
        return row.operator
    brace = "{" if index - 1 not in near else "|" if index + 1 in near else "}"
    return f"{brace} {row.operator}"


def _measured(row: ScheduleRow) -> list[str]:
    if row.measured is None:
        return ["-"] * 7
    m = row.measured
    return [
        str(m.num_calls),
        _against(m.prefill_tokens, row.prefill_tokens),
        _against(m.cached_tokens, row.cached_tokens),
        _against(m.output_tokens, row.output_tokens),
        f"{m.queue_ms:.1f}",
        f"{m.start_ms:.1f}",
        f"{m.end_ms:.1f}",
    ]


def _against(measured: float, predicted: float) -> str:
    if predicted < 0.5:
        return f"{measured:.0f}"
    return f"{measured:.0f} ({100 * (measured / predicted - 1):+.0f}%)"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields aligned lines: text to the left, columns that hold numbers to the right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    is_number = [
        all(cell[:1].isdigit() or cell in ("", "-") for cell in column[1:])
        and any(cell[:1].isdigit() for cell in column[1:])
        for column in columns
    ]
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ]
        yield "  " + "  ".join(cells).rstrip()
