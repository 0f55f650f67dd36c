"""EXPLAIN in Graphviz's language: operators by engine, and the templated radix tree."""

from __future__ import annotations

from collections.abc import Iterator

from helium.explain.report import Report


def to_dot(report: Report) -> str:
    """Returns one digraph with a cluster per engine and one for the tree; ends in a newline."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"digraph {_quote(report.workflow)} {{"
    yield "  rankdir=LR; node [shape=box, fontname=Helvetica]; edge [color=gray40];"
    for engine in sorted({row.engine for row in report.schedule}):
        yield f"  subgraph cluster_engine_{engine} {{"
        yield f"    label={_quote(f'engine {engine}')};"
        for row in report.schedule:
            if row.engine == engine:
                label = (
                    f"{row.operator}\n{row.num_calls} calls\n{row.prefill_tokens:.0f} prefill, "
                    f"{row.cached_tokens:.0f} cached, {row.output_tokens:.0f} decode\n"
                    f"{row.start:.1f} to {row.end:.1f} {report.unit}"
                )
                color = ", color=red, penwidth=2" if row.is_critical else ""
                yield f"    {_quote(f'op {row.operator}')} [label={_quote(label)}{color}];"
        yield "  }"
    for row in report.schedule:
        for producer in row.reads:
            yield f"  {_quote(f'op {producer}')} -> {_quote(f'op {row.operator}')};"
    yield "  subgraph cluster_templates {"
    yield f"    label={_quote('templates')}; node [shape=ellipse];"
    yield f"    {_quote('t root')} [label={_quote('root')}];"
    for index, template in enumerate(report.templates):
        name = template.value if template.kind == "value" else template.kind
        label = "\n".join(
            (
                f"{name}",
                f"{template.num_tokens:.0f} tokens x {template.num_uses}",
                *template.operators,
            )
        )
        parent = "t root" if template.parent < 0 else f"t {template.parent}"
        yield f"    {_quote(f't {index}')} [label={_quote(label)}];"
        yield f"    {_quote(parent)} -> {_quote(f't {index}')};"
    yield "  }"
    yield "}"


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
