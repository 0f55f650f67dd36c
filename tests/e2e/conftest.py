"""A real server per module: ``vllm serve`` with the tiny model in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.real_systems.servers import end_with_parent
from vllm_helium.models.tiny import make_tiny_llama

START_TIMEOUT_S = 600


@dataclass(frozen=True)
class Server:
    """A running server."""

    base_url: str
    model: str
    process: subprocess.Popen
    log: Path

    def is_healthy(self) -> bool:
        """Asks ``/health``, which asks the engine."""
        try:
            with urllib.request.urlopen(self.base_url + "/health", timeout=30) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


def serve(folder: Path, *options: str) -> Server:
    """Starts ``vllm serve`` and waits until it answers."""
    model = make_tiny_llama(folder / "tiny")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "4096"]
    command += ["--max-num-seqs", "8", "--block-size", "32"]
    command += ["--kv-cache-memory-bytes", str(32 << 20), *options]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = folder / "server.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    server = Server(f"http://127.0.0.1:{port}", "tiny", process, log)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not server.is_healthy():
        if process.poll() is not None or time.monotonic() > deadline:
            stop(server)
            pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")
        time.sleep(0.5)
    return server


def stop(server: Server) -> None:
    """Ends the server and whatever it started."""
    server.process.terminate()
    try:
        server.process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()


@pytest.fixture(scope="session")
def helium_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = serve(tmp_path_factory.mktemp("server"), "--helium")
    yield server
    stop(server)
