"""Kills servers, engines and clients at random moments of runs; what was begun ends as if never.

    python -m tests.e2e.kill_moments [--moments 20] [--kinds engine,client,routes] [--seed 1]
        [--serve-with helium-host-gib=0.1 kv-cache-memory-bytes=1048576]

What is killed, always with SIGKILL:

* ``server``: the process of ``vllm serve`` alone;
* ``server-engine``: the ``EngineCore`` of ``vllm serve``;
* ``engine``: the ``EngineCore`` of an ``AsyncLLM``, under ``run_workflow``;
* ``client``: a process that runs a workflow over HTTP and writes checkpoints;
* ``routes``: a server of our routes alone, over an engine that answers by itself: as ``server``,
  but started in a moment.

After each kill whatever died is started again and goes on with the run. Checked are the outputs
against an unbroken run's, that no call which was finished is made again, and that nothing is left
running behind a killed server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from benchmarks.real_systems.servers import end_with_parent
from helium import graphs, ops
from helium.runtime import EngineGone, RunStore, Runtime, RuntimeOptions
from helium.runtime.events import CallFinished
from helium.runtime.http_backend import HttpBackend
from tests.e2e.conftest import Server, serve, stop
from tests.e2e.test_server import send
from tests.integration.test_async_llm import async_llm, kill_engine
from vllm_helium.models.tiny import make_tiny_llama

ROWS = 24
NUM_CALLS = 3 * ROWS
BATCH = {"question": [f"question {row} of {ROWS}" for row in range(ROWS)]}
OPEN_CALLS = 4
"""Calls a client has under way at once: a kill costs those, and answers not on disk yet."""
WAIT_S = 300


class KillError(AssertionError):
    """A promise was broken; the message says which."""


def graph() -> Any:
    question = ops.placeholder("question")
    sampling = {"max_tokens": 40, "ignore_eos": True}
    first = ops.llm([ops.Msg("user", ["One: ", question])], name="first", **sampling)
    second = ops.llm([ops.Msg("user", ["Two: ", first])], name="second", **sampling)
    third = ops.llm([ops.Msg("user", [question, " Three: ", second])], name="third", **sampling)
    return graphs.build({"first": first, "third": third})


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise KillError(f"waited {WAIT_S} s in vain: {what}")
        time.sleep(0.05)


def random_moment(rng: random.Random, path: Path, run: str) -> None:
    """Waits until a random number of the run's calls is done, and a little longer."""
    num_done = rng.randrange(NUM_CALLS)
    with closing(RunStore(path)) as store:
        until(lambda: any(i.num_done >= num_done for i in store.find(run)), f"{num_done} calls")
    time.sleep(rng.uniform(0.0, 0.02))


def finished_calls(path: Path, run: str) -> set[tuple[str, int]]:
    """Returns the calls a store says are done.

    Raises:
        KillError: One of them was made twice.
    """
    with closing(RunStore(path)) as store:
        calls = Counter(
            (event.operator, event.row)
            for _, event in store.events(run)
            if isinstance(event, CallFinished)
        )
    again = {call: count for call, count in calls.items() if count > 1}
    if again:
        raise KillError(f"{run}: finished calls were made again: {again}")
    return set(calls)


def num_engine_requests(server: Server) -> int:
    """Returns how many requests the server's engine has ended, in whatever way."""
    with urllib.request.urlopen(server.base_url + "/metrics", timeout=60) as answer:
        text = answer.read().decode()
    counts = re.findall(r"^vllm:request_success_total\{[^}]*\} ([0-9.e+]+)$", text, re.M)
    return int(sum(map(float, counts)))


class ServerMoments:
    """Lives of one server, each ended by a kill while a run is under way, mostly.

    Attributes:
        left: Calls that were left to do at each kill.
    """

    def __init__(self, folder: Path, seed: int, options: Sequence[str] = ()) -> None:
        self.folder = folder
        self.options = options
        self.random = random.Random(seed)
        self.run = 0
        self.left: list[int] = []
        self.client_left: list[int] = []
        self.expected: dict[str, Any] = {}

    def request(self, method: str, path: str, body: Any = None) -> Any:
        raw = None if body is None else json.dumps(body).encode()
        status, answer = send(self.server, method, path, raw)
        if status >= 400:
            raise KillError(f"{method} {path}: {status} {answer}")
        return answer

    def start(self) -> None:
        state = self.folder / "state"
        state_dir = ("--helium-state-dir", str(state))
        self.server = serve(self.folder, "--helium", *state_dir, *self.options)
        self.path = self.register()

    def register(self) -> str:
        plan = json.loads(graph().plan.to_json())
        info = self.request("POST", "/v1/workflows", {"name": "kills", "plan": plan})
        return f"/v1/workflows/{info['id']}/runs"

    def measure(self) -> None:
        """Makes an unbroken run, the yardstick."""
        body = {"inputs": BATCH, "wait": True, "cache_salt": "unbroken"}
        done = self.request("POST", self.path, body)
        if done["usage"]["num_calls"] != NUM_CALLS or done["failures"]:
            raise KillError(f"the unbroken run: {done['usage']}, {done['failures']}")
        self.expected = done["results"]

    def live(self, kind: str) -> None:
        """Goes on with the run, kills after a random time, starts anew."""
        self.submit()
        store = self.folder / "state" / "runs.db"
        random_moment(self.random, store, f"r{self.run}")
        self.kill(kind)
        done = finished_calls(store, f"r{self.run}")
        self.left.append(NUM_CALLS - len(done))
        self.start()
        self.check(done)

    def submit(self) -> None:
        body = {"inputs": BATCH, "run": f"r{self.run}"}
        self.request("POST", self.path, body)

    def kill(self, kind: str) -> None:
        main = psutil.Process(self.server.process.pid)
        children = main.children(recursive=True)
        if kind == "server-engine":
            kill_engine(main)
        else:
            main.kill()
        try:
            # A server whose engine has died ends by itself.
            self.server.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            raise KillError(f"the server outlives its {kind} by {WAIT_S} s") from None
        _, alive = psutil.wait_procs(children, timeout=WAIT_S)
        if alive:
            raise KillError(f"left behind: {[child.cmdline() for child in alive]}")

    def check(self, done: set[tuple[str, int]]) -> None:
        """The run ends without being asked, and made only what was left."""
        run = f"{self.path}/r{self.run}"
        until(lambda: self.request("GET", run)["status"] == "done", "the run goes on by itself")
        result = self.request("GET", run)
        if result["failures"] or result["results"] != self.expected:
            raise KillError(f"r{self.run}: other outputs than unbroken: {result['failures']}")
        finished_calls(self.folder / "state" / "runs.db", f"r{self.run}")
        num_left = NUM_CALLS - len(done)
        until(lambda: num_engine_requests(self.server) >= num_left, "the server counts its calls")
        num_made = num_engine_requests(self.server)
        if num_made != num_left:
            raise KillError(f"{num_made} calls for {num_left} that were left")
        self.run += 1


class RoutesMoments(ServerMoments):
    """The same over a server that starts in a moment and counts the calls of its engine."""

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "tests.unit.serving.routes_server", str(port)]
        process = subprocess.Popen(
            [*command, str(self.folder / "state")], preexec_fn=end_with_parent
        )
        self.server = Server(f"http://127.0.0.1:{port}", "tiny", process, self.folder / "log")
        until(lambda: self.server.is_healthy() or process.poll() is not None, "the routes")
        self.path = self.register()


class EngineMoments:
    """Engines of one ``AsyncLLM`` after the other, each killed under ``run_workflow``."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.store_path = folder / "engine.db"
        self.model = make_tiny_llama(folder / "engine-model")
        self.expected: dict[str, Any] = {}
        self.left: list[int] = []

    async def live(self, moments: int) -> list[int]:
        with closing(RunStore(self.store_path)) as store:
            with async_llm(self.model) as engine:
                unbroken = await engine.run_workflow(graph(), BATCH, use_tqdm=False)
                self.expected = unbroken.outputs
                await self.kill_one(engine, 0, store)
            for number in range(1, moments):
                with async_llm(self.model) as engine:
                    await self.go_on(engine, number - 1, store)
                    await self.kill_one(engine, number, store)
            with async_llm(self.model) as engine:
                await self.go_on(engine, moments - 1, store)
        return self.left

    async def kill_one(self, engine: Any, number: int, store: RunStore) -> None:
        run = asyncio.ensure_future(self.run(engine, number, store))
        moment = self.random, self.store_path, f"e{number}"
        await asyncio.to_thread(random_moment, *moment)
        is_over = run.done()
        kill_engine(psutil.Process())
        try:
            await run
        except EngineGone as gone:
            if "EngineDead" not in str(gone):
                raise KillError(f"unclear: {gone}") from gone
        else:
            if not is_over and len(finished_calls(self.store_path, f"e{number}")) < NUM_CALLS:
                raise KillError("the run of a dead engine ended as if nothing had been")
        self.left.append(NUM_CALLS - len(finished_calls(self.store_path, f"e{number}")))
        print(f"engine {number}: {self.left[-1]} calls were left", flush=True)

    async def go_on(self, engine: Any, number: int, store: RunStore) -> None:
        result = await self.run(engine, number, store)
        if result.outputs != self.expected or result.failures:
            raise KillError(f"e{number}: other outputs than unbroken: {result.failures}")
        finished_calls(self.store_path, f"e{number}")
        # Of a run that was over, nothing is asked again either.
        if result.total.num_calls != self.left[number]:
            raise KillError(f"{result.total.num_calls} calls, {self.left[number]} were left")

    @staticmethod
    def run(engine: Any, number: int, store: RunStore) -> Any:
        return engine.run_workflow(graph(), BATCH, use_tqdm=False, store=store, run=f"e{number}")


class ClientMoments:
    """Processes of one client after the other, over a server that stays."""

    def __init__(self, folder: Path, seed: int, server: Server, expected: dict[str, Any]) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.server = server
        self.expected = expected
        self.left: list[int] = []

    def live(self, number: int) -> None:
        """Kills a client; another one goes on with its run."""
        run, store = f"c{number}", self.folder / "client.db"
        client = self.client(run)
        random_moment(self.random, store, run)
        client.kill()
        client.wait()
        done = finished_calls(store, run)
        self.left.append(NUM_CALLS - len(done))
        if self.client(run).wait(WAIT_S):
            raise KillError(f"{run} did not go on")
        result = json.loads((self.folder / f"{run}.json").read_text())
        if result["outputs"] != self.expected:
            raise KillError(f"{run}: other outputs than unbroken")
        if len(finished_calls(store, run)) != NUM_CALLS:
            raise KillError(f"{run}: calls are missing")
        if result["num_calls"] != NUM_CALLS - len(done):
            raise KillError(f"{run}: {result['num_calls']} calls, {NUM_CALLS - len(done)} left")

    def client(self, run: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.e2e.kill_moments", "--as-client", run]
        command += ["--server", self.server.base_url, "--folder", str(self.folder)]
        return subprocess.Popen(command, preexec_fn=end_with_parent)


async def be_client(run: str, server: str, folder: Path) -> None:
    """Runs the workflow, or goes on with it, and writes its outputs."""
    backend = HttpBackend(f"{server}/v1", model="tiny")
    options = RuntimeOptions(max_open_calls=OPEN_CALLS)
    with closing(RunStore(folder / "client.db")) as store:
        # A tenant per run: the server's own coalescing and caches are not what is shown here.
        async with Runtime(backend, store=store, options=options) as runtime:
            handle = await runtime.submit(graph(), BATCH, run=run, cache_salt=run, resume=True)
            result = await handle.result()
    report = {"outputs": result.outputs, "num_calls": result.total.num_calls}
    (folder / f"{run}.json").write_text(json.dumps(report))


def kill_all(
    folder: Path, moments: int, kinds: list[str], seed: int, options: Sequence[str] = ()
) -> dict[str, list[int]]:
    """Goes through the moments of each kind.

    Args:
        options: Further ones of ``vllm serve``.

    Returns:
        Kind -> calls that were left at each kill.

    Raises:
        KillError: A promise was broken.
    """
    left: dict[str, list[int]] = {}
    if "routes" in kinds:
        left["routes"] = kill_servers(RoutesMoments(folder / "routes", seed), ["routes"], moments)
    if "engine" in kinds:
        left["engine"] = asyncio.run(EngineMoments(folder, seed).live(moments))
    if {"server", "server-engine", "client"} & set(kinds):
        servers = ServerMoments(folder, seed, options)
        both = [kind for kind in kinds if kind in ("server", "server-engine")]
        left["+".join(both)] = kill_servers(servers, both, moments, clients="client" in kinds)
        left["client"] = servers.client_left
    return {kind: counts for kind, counts in left.items() if counts}


def kill_servers(
    servers: ServerMoments, kinds: list[str], moments: int, clients: bool = False
) -> list[int]:
    """Kills a server ``moments`` times per kind, then clients of the last one."""
    servers.folder.mkdir(parents=True, exist_ok=True)
    servers.start()
    try:
        servers.measure()
        for number in range(moments * len(kinds)):
            kind = kinds[number % len(kinds)]
            servers.live(kind)
            print(f"{kind} {number}: {servers.left[-1]} calls were left", flush=True)
        for number in range(moments if clients else 0):
            client = ClientMoments(servers.folder, number, servers.server, servers.expected)
            client.live(number)
            servers.client_left += client.left
            print(f"client {number}: {client.left[-1]} calls were left", flush=True)
    finally:
        stop(servers.server)
    return servers.left


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--kinds", default="routes,engine,client")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--as-client", metavar="RUN", help=argparse.SUPPRESS)
    parser.add_argument("--server", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where files go; a temporary folder if unset")
    parser.add_argument(
        "--serve-with",
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="options of vllm serve, without dashes",
    )
    options = parser.parse_args()
    if options.as_client:
        asyncio.run(be_client(options.as_client, options.server, options.folder))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        kinds = options.kinds.split(",")
        extra = [f"--{option}" for option in options.serve_with]
        left = kill_all(folder, options.moments, kinds, options.seed, extra)
    for kind, counts in left.items():
        midway = sum(0 < count < NUM_CALLS for count in counts)
        print(f"{kind}: {len(counts)} kills, {midway} in the middle of a run; outputs equal")


if __name__ == "__main__":
    main()
