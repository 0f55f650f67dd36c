"""OpenAI servers on this machine: stock vLLM or this fork."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from helium.errors import EngineError

MODEL = "model"
_START_TIMEOUT_S = 300
_STOP_TIMEOUT_S = 30

_OPTIONS = (
    "--dtype", "float32", "--enforce-eager", "--max-model-len", "8192",
    "--max-num-seqs", "128", "--kv-cache-memory-bytes", str(2 << 30),
    "--enable-prefix-caching", "--enable-prompt-tokens-details",
)  # fmt: skip
"""The same for both; whatever is not named is vLLM's default."""


class Tokens(NamedTuple):
    """Counts of a server; vLLM's own counters, the same on stock vLLM and on this fork.

    Attributes:
        num_prompt: Of all prompts.
        num_computed: Those of them that the prefix cache did not have.
        num_output: Generated.
        num_steps: Steps of the engine; each reads all weights once, however few tokens it has.
    """

    num_prompt: int = 0
    num_computed: int = 0
    num_output: int = 0
    num_steps: int = 0

    def since(self, before: Tokens) -> Tokens:
        """Returns what came after an earlier state."""
        return Tokens(*(now - then for now, then in zip(self, before, strict=True)))


_COUNTERS = {
    "num_prompt": re.compile(r"^vllm:prompt_tokens_total\{.*\} (\S+)$", re.M),
    "num_computed": re.compile(
        r'^vllm:prompt_tokens_by_source_total\{.*source="local_compute".*\} (\S+)$', re.M
    ),
    "num_output": re.compile(r"^vllm:generation_tokens_total\{.*\} (\S+)$", re.M),
    "num_steps": re.compile(r"^vllm:iteration_tokens_total_count\{.*\} (\S+)$", re.M),
}


def read_tokens(text: str) -> Tokens:
    """Reads the counters out of a server's metrics.

    Raises:
        EngineError: One of them is missing.
    """
    found = {name: pattern.findall(text) for name, pattern in _COUNTERS.items()}
    missing = [name for name, values in found.items() if not values]
    if missing:
        raise EngineError(f"the server's metrics lack {missing}; is this vLLM 0.32?")
    return Tokens(**{name: int(sum(map(float, values))) for name, values in found.items()})


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        base_url: Address without ``/v1``.
        pid: Of the process that was started; engines are its children.
    """

    base_url: str
    pid: int

    @property
    def api(self) -> str:
        """Address of the OpenAI API."""
        return f"{self.base_url}/v1"

    def cpu_s(self) -> float:
        """Returns the processor time used so far, in seconds: it does not see who else is here."""
        import psutil

        root = psutil.Process(self.pid)
        times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        return sum(time.user + time.system for time in times)

    def tokens(self) -> Tokens:
        """Returns the tokens of all calls that were answered so far, as the server counts them.

        Raises:
            EngineError: The server does not say.
        """
        try:
            with urllib.request.urlopen(f"{self.base_url}/metrics", timeout=60) as answer:
                return read_tokens(answer.read().decode())
        except urllib.error.URLError as error:
            raise EngineError(f"{self.base_url}: no metrics: {error}") from None

    def reset_prefix_cache(self) -> None:
        """Empties the prefix cache.

        Raises:
            EngineError: The server refused.
        """
        request = urllib.request.Request(f"{self.base_url}/reset_prefix_cache", method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
        except urllib.error.URLError as error:
            raise EngineError(f"{self.base_url}: the cache cannot be reset: {error}") from None


@contextmanager
def serve(python: Path, model: Path, log: Path, extra: Sequence[str] = ()) -> Iterator[Server]:
    """Runs a server and ends it.

    Args:
        python: Interpreter of the environment with vLLM in it.
        model: Folder of the model.
        extra: More options.

    Raises:
        EngineError: The server did not start; the message has the end of its log.
    """
    port = _free_port()
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",  # has the route that resets the prefix cache
    }
    if Path(python) != Path(sys.executable):
        environment.pop("PYTHONPATH", None)  # else stock vLLM would find this fork
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as sink:
        process = subprocess.Popen(
            [*command, *_OPTIONS, *extra],
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    server = Server(f"http://127.0.0.1:{port}", process.pid)
    try:
        _await(server, process, log)
        yield server
    finally:
        _stop(process)


_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Has the kernel end this process when its parent ends, however that ends; Linux only.

    For ``preexec_fn``: a server in a session of its own would outlive a program that is killed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _await(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(f"{server.base_url}/health", timeout=30) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise EngineError(f"the server did not start; {log} ends with:\n{_tail(log)}")
        time.sleep(0.5)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]
