"""``helium submit | watch | list | cancel | explain`` on the workflow routes of a server."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from helium.cli import inputs
from helium.cli.options import Options
from helium.errors import EngineError

FAILED_ROWS = 3
"""Exit status of a run that ended with failed rows."""

TIMEOUT_S = 600.0


def submit(options: Options) -> int:
    """Gives a workflow to a server, which runs it; prints the run's id, or waits for its result."""
    graph = inputs.load_workflow(options.workflow)
    inputs.import_functions(options.imports)
    batch = inputs.load_batch(options.batch, options.set)
    server = Server(options)
    name = options.name or options.workflow.rpartition(":")[2]
    plan = json.loads(graph.plan.to_json())
    workflow = server.ask("POST", "/workflows", {"name": name[-128:], "plan": plan})["id"]
    body: dict[str, Any] = {"inputs": batch}
    if options.id is not None:
        body["run"] = options.id
    if options.tenant is not None:
        body["cache_salt"] = options.tenant
    if options.timeout is not None:
        body["options"] = {"timeout_s": options.timeout}
    run = server.ask("POST", f"/workflows/{quote(workflow)}/runs", body)
    if not options.wait:
        print(f"{workflow}/{run['id']}")
        return 0
    print(f"run {workflow}/{run['id']}", file=sys.stderr)
    path = _path(workflow, run["id"])
    for _ in server.events(path):
        pass
    done = server.ask("GET", path)
    text = json.dumps(done, indent=2, ensure_ascii=False)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text + "\n")
    return FAILED_ROWS if done["num_failures"] else 0


def watch(options: Options) -> int:
    """Prints a run's events as they come, one JSON object per line."""
    server = Server(options)
    for event in server.events(server.find(options.run), "tokens" if options.tokens else "events"):
        print(event, flush=True)
    return 0


def list_runs(options: Options) -> int:
    """Prints the runs of a server."""
    runs = Server(options).runs()
    if options.json:
        print(json.dumps(runs))
        return 0
    print(f"{'run':52} {'status':12} {'calls':>13} {'failed':>7}  started")
    for run in runs:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run["created_at"]))
        calls = f"{run['num_done']}/{run['num_calls']}"
        name = f"{run['workflow']}/{run['id']}"
        print(f"{name:52} {run['status']:12} {calls:>13} {run['num_failures']:>7}  {started}")
    return 0


def cancel(options: Options) -> int:
    """Cancels a run of a server."""
    server = Server(options)
    run = server.ask("DELETE", server.find(options.run))
    print(f"{run['workflow']}/{run['id']}: {run['status']}", file=sys.stderr)
    return 0


def explain(options: Options) -> int:
    """Prints how a server schedules a run, with measured figures once it is over."""
    server = Server(options)
    path = server.find(options.workflow)
    with server.open("GET", f"{path}/explain?format={options.format}") as answer:
        print(answer.read().decode(), end="")
    return 0


class Server:
    """The workflow routes of a server, over the standard library alone."""

    def __init__(self, options: Options) -> None:
        """Connects nowhere yet; ``options.server`` is the address, up to ``/v1`` or without."""
        url = options.server.rstrip("/")
        self.url = url if url.endswith("/v1") else f"{url}/v1"
        self._key = options.api_key

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Sends a request and returns the JSON that comes back.

        Raises:
            EngineError: The server refuses, or cannot be reached; says why.
        """
        with self.open(method, path, body) as answer:
            return json.load(answer)

    def open(self, method: str, path: str, body: Any = None) -> Any:
        """Sends a request and returns the open answer; raises as ``ask`` does."""
        raw = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", "authorization": f"Bearer {self._key}"}
        request = urllib.request.Request(self.url + path, raw, headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            raise EngineError(f"{self.url}: {error.code}: {_message(error)}") from None
        except (urllib.error.URLError, OSError) as error:
            raise EngineError(f"{self.url} cannot be reached: {error}") from None

    def events(self, path: str, stream: str = "events") -> Iterator[str]:
        """Yields a run's events as JSON texts, from the beginning to the end.

        Args:
            stream: ``events``, or ``tokens`` for what calls under way have said as well.
        """
        with self.open("GET", f"{path}/events?stream={stream}") as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    yield line[6:].decode().rstrip("\n")

    def runs(self) -> list[dict[str, Any]]:
        """Returns the runs of all workflows, the oldest first."""
        workflows = self.ask("GET", "/workflows")["data"]
        paths = [f"/workflows/{quote(workflow['id'])}/runs" for workflow in workflows]
        runs = [run for path in paths for run in self.ask("GET", path)["data"]]
        return sorted(runs, key=lambda run: (run["created_at"], run["id"]))

    def find(self, run: str) -> str:
        """Returns the path of a run, given as ``WORKFLOW/RUN`` or by its id alone.

        Raises:
            EngineError: The server has no such run.
        """
        workflow, slash, name = run.rpartition("/")
        if slash:
            return _path(workflow, name)
        runs = self.runs()
        for known in runs:
            if known["id"] == run:
                return _path(known["workflow"], run)
        latest = [known["id"] for known in runs[-5:]]
        raise EngineError(f"{self.url} has no run {run!r}; the latest there are {latest}")


def _path(workflow: str, run: str) -> str:
    return f"/workflows/{quote(workflow, safe='')}/runs/{quote(run, safe='')}"


def _message(error: urllib.error.HTTPError) -> str:
    raw = error.read()
    try:
        found = json.loads(raw)["error"]
        return str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError):
        return raw[:200].decode(errors="replace")
