"""Processor time of a server that nobody calls: with Helium, and upstream's as the baseline.

    python -m benchmarks.runtime.idle_server [--seconds 60] [--output FILE]

Counted are the API server, its engine and its workers, in a pause before which each has answered a
call (with Helium, a run of a workflow as well). The baseline is measured twice; the difference of
the two is the noise floor. Processor time hardly depends on who else uses the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.real_systems.servers import MODEL, Server, serve
from benchmarks.simulate import environment
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


def measure(model: Path, folder: Path, seconds: float, options: list[str]) -> float:
    """Returns the share of one processor that a server takes while nobody calls it."""
    with serve(Path(sys.executable), model, folder / "server.log", options) as server:
        post(server, "/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 4})
        if options:
            run_workflow(server)
        time.sleep(_SETTLE_S)
        started, cpu_s = time.monotonic(), server.cpu_s()
        time.sleep(seconds)
        return (server.cpu_s() - cpu_s) / (time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = make_tiny_llama(folder / "tiny")
        helium = ["--helium", "--helium-state-dir", str(folder / "state")]
        helium += ["--helium-prompt-cache", str(folder / "prompts.db")]
        for name, options in [("upstream", []), ("helium", helium), ("upstream again", [])]:
            ratios[name] = measure(model, folder, arguments.seconds, options)
            print(f"{name:16}{ratios[name]:8.2%} of one processor while idle", flush=True)
    if arguments.output:
        command = " ".join(["python -m benchmarks.runtime.idle_server", *sys.argv[1:]])
        report = environment() | {"command": command, "idle_cpu_ratio": ratios}
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
