"""Processor time of a server that nobody calls: with Helium, and upstream's as the baseline.

    python -m benchmarks.runtime.idle_server [--seconds 60] [--output FILE]

Counted are the API server, its engine and its workers, in pauses before which each has answered a
call (with Helium, a run of a workflow as well). Both run at once and are measured in the same
windows, over several lives; the spread of a server's own windows is the noise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.real_systems.servers import MODEL, Server, serve
from benchmarks.results_file import environment, write_results
from helium import graphs, ops
from vllm_helium.models.tiny import make_tiny_llama

_SETTLE_S = 5.0
"""Pause after the call, for what a server does once."""


def post(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        server.base_url + path,
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def run_workflow(server: Server) -> None:
    node = ops.llm([ops.Msg("user", ["say ", ops.placeholder("word")])], max_tokens=4)
    plan = json.loads(graphs.build({"said": node}).plan.to_json())
    workflow = post(server, "/v1/workflows", {"plan": plan})
    body = {"inputs": {"word": ["a", "b"]}, "wait": True}
    run = post(server, f"/v1/workflows/{workflow['id']}/runs", body)
    if run["status"] != "done" or run["failures"]:
        raise SystemExit(f"the run failed: {run}")


def measure(model: Path, folder: Path, seconds: float, windows: int) -> dict[str, list[float]]:
    """Starts both servers; returns the shares of a processor they take while nobody calls them.

    Both are measured in the same windows, so that what else the machine does is the same for both.
    """
    helium = ["--helium", "--helium-state-dir", str(folder / "state")]
    helium += ["--helium-prompt-cache", str(folder / "prompts.db")]
    options: dict[str, list[str]] = {"upstream": [], "helium": helium}
    ratios: dict[str, list[float]] = {name: [] for name in options}
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                serve(Path(sys.executable), model, folder / f"{name}.log", extra)
            )
            for name, extra in options.items()
        }
        for server in servers.values():
            post(server, "/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 4})
        run_workflow(servers["helium"])
        time.sleep(_SETTLE_S)
        for _ in range(windows):
            before = {name: (time.monotonic(), one.cpu_s()) for name, one in servers.items()}
            time.sleep(seconds)
            for name, server in servers.items():
                started, cpu_s = before[name]
                ratio = (server.cpu_s() - cpu_s) / (time.monotonic() - started)
                ratios[name].append(round(ratio, 5))
                print(f"{name:10}{ratio:8.2%} of one processor while idle", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of a window")
    parser.add_argument("--windows", type=int, default=2, help="per life of the servers")
    parser.add_argument("--rounds", type=int, default=2, help="lives of the servers")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = make_tiny_llama(folder / "tiny")
        for number in range(arguments.rounds):
            alone = folder / str(number)
            alone.mkdir()
            rounds.append(measure(model, alone, arguments.seconds, arguments.windows))
    medians = {
        name: round(statistics.median(ratio for found in rounds for ratio in found[name]), 5)
        for name in rounds[0]
    }
    print("medians:", {name: f"{ratio:.2%}" for name, ratio in medians.items()})
    if arguments.output:
        result = {"medians": medians, "rounds": rounds}
        write_results(arguments.output, {"environment": environment(), "results": result})


if __name__ == "__main__":
    main()
