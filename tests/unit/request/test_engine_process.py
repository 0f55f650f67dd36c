"""An engine's process ends with its front end; other processes are left alone."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from vllm_helium.integration import engine_process

REPO = Path(__file__).resolve().parents[3]

FRONT_END = """
import multiprocessing, sys, time
from vllm_helium.integration.engine_process import end_with_front_end

def engine():
    end_with_front_end()
    time.sleep(600)

if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=engine, name=sys.argv[1])
    child.start()
    print(child.pid, flush=True)
    time.sleep(600)
"""

WATCHED = """
    import threading
    print(any(thread.name == "helium-front-end" for thread in threading.enumerate()), flush=True)
"""


def has_ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("name", ["EngineCore", "EngineCore_DP0"])
def test_an_engine_ends_with_a_killed_front_end(name):
    parent = subprocess.Popen(
        [sys.executable, "-c", FRONT_END, name], stdout=subprocess.PIPE, text=True, cwd=REPO
    )
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while not has_ended(child):
        assert time.monotonic() < deadline, "the engine goes on"
        time.sleep(0.05)


def test_a_process_that_is_not_an_engines_own_is_not_watched():
    engine_process.end_with_front_end()
    code = FRONT_END.replace("time.sleep(600)\n\nif", WATCHED + "\nif")
    done = subprocess.run(
        [sys.executable, "-c", code.replace("time.sleep(600)", "child.join()"), "worker"],
        capture_output=True,
        text=True,
        cwd=REPO,
        timeout=120,
    )
    assert "False" in done.stdout and "True" not in done.stdout, done.stderr
    assert not is_watched()


def is_watched():
    return "helium-front-end" in {thread.name for thread in threading.enumerate()}
