"""``helium run | resume | watch | list | cancel | delete``."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import msgspec

from helium.cli import inputs
from helium.cli.options import Options, Session
from helium.errors import ConfigError
from helium.runtime import Run, RunResult, RunStore, Runtime
from helium.runtime.events import CallFinished, RowFailed, RunFinished
from helium.runtime.trace import RunTrace
from helium.runtime.watching import follow

FAILED_ROWS = 3
"""Exit status of a run that ended with failed rows."""


def run(options: Options) -> int:
    """Runs a workflow to its end and prints its result."""
    graph = inputs.load_workflow(options.workflow)
    inputs.import_functions(options.imports)
    batch = inputs.load_batch(options.batch, options.set)

    async def start(runtime: Runtime) -> Run:
        return await runtime.submit(
            graph,
            batch,
            name=options.name or options.workflow.rpartition(":")[2],
            run=options.id,
            cache_salt=options.tenant,
            timeout_s=options.timeout,
        )

    return asyncio.run(_carry_out(options, start))


def resume(options: Options) -> int:
    """Goes on with a run and prints its result."""
    inputs.import_functions(options.imports)
    return asyncio.run(_carry_out(options, lambda runtime: runtime.resume(options.run)))


def watch(options: Options) -> int:
    """Prints a run's events as they are written, one JSON object per line."""
    if options.tokens:
        raise ConfigError("--tokens: outputs are written down when they are whole; add --server")

    async def main() -> None:
        with closing(RunStore(options.store)) as store:
            async for event in follow(store, options.run):
                print(msgspec.json.encode(event).decode(), flush=True)

    asyncio.run(main())
    return 0


def list_runs(options: Options) -> int:
    """Prints the runs there are."""
    with closing(RunStore(options.store)) as store:
        infos = store.runs()
    if options.json:
        print(msgspec.json.encode(infos).decode())
        return 0
    print(f"{'run':24} {'workflow':20} {'status':12} {'calls':>13} {'failed':>7}  started")
    for info in infos:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.created_at))
        calls = f"{info.num_done}/{info.num_calls}"
        print(
            f"{info.id:24} {info.workflow:20} {info.status:12} {calls:>13} "
            f"{info.num_failures:>7}  {started}"
        )
    return 0


def cancel(options: Options) -> int:
    """Asks the process that works on a run to cancel it."""
    with closing(RunStore(options.store)) as store:
        store.request_cancel(options.run)
    print(f"{options.run} will be cancelled", file=sys.stderr)
    return 0


def delete(options: Options) -> int:
    """Forgets a run."""
    with closing(RunStore(options.store)) as store:
        store.delete(options.run)
    return 0


async def _carry_out(options: Options, start: Callable[[Runtime], Awaitable[Run]]) -> int:
    async with Session(options) as runtime:
        handle = await start(runtime)
        trace = RunTrace() if options.trace or options.analyze else None
        if trace is not None:
            trace.follow(handle)
        print(f"run {handle.id}", file=sys.stderr)
        try:
            await _show(handle)
            result = await handle.result()
        except asyncio.CancelledError:
            print(f"\ninterrupted; go on with: helium resume {handle.id}", file=sys.stderr)
            raise
    _write(result, options.output)
    if trace is not None:
        _write_analysis(trace, options)
    total = result.total
    print(
        f"{handle.status}: {total.num_calls} calls, {total.num_shared} shared, "
        f"{total.num_cache_hits} from the prompt cache; {total.num_prompt_tokens} prompt tokens, "
        f"{total.num_cached_tokens} of them cached; {total.num_output_tokens} output tokens; "
        f"{len(result.failures)} rows failed; {result.elapsed_s:.1f} s",
        file=sys.stderr,
    )
    return FAILED_ROWS if result.failures else 0


async def _show(handle: Run) -> None:
    """Shows progress on a terminal, and failures anywhere."""
    is_terminal = sys.stderr.isatty()
    async for event in handle.events():
        if isinstance(event, RowFailed):
            print(f"{event.operator}[{event.row}] failed: {event.reason}", file=sys.stderr)
        elif is_terminal and isinstance(event, (CallFinished, RunFinished)):
            num_done, num_calls = handle.progress
            end = "\n" if isinstance(event, RunFinished) else ""
            print(f"\r{num_done}/{num_calls} calls", end=end, file=sys.stderr, flush=True)


def _write_analysis(trace: RunTrace, options: Options) -> None:
    if options.trace:
        options.trace.write_bytes(msgspec.json.encode(trace.to_chrome()))
    if options.analyze and trace.schedule is None:
        print("nothing to analyze: no calls were left to plan", file=sys.stderr)
    elif options.analyze:
        format = {".html": "html", ".json": "json"}.get(options.analyze.suffix, "text")
        options.analyze.write_text(trace.explain(format))


def _write(result: RunResult, output: Path | None) -> None:
    text = msgspec.json.format(msgspec.json.encode(result), indent=2)
    if output is None:
        print(text.decode())
    else:
        output.write_bytes(text + b"\n")
