"""User functions: as many at once as may be, stuck ones in nobody's way."""

import asyncio
import concurrent.futures
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helium.runtime.function_threads import FunctionFailed, FunctionJob, FunctionThreads

REPO = Path(__file__).resolve().parents[3]


def outcomes_of(functions, max_open=4, timeout_s=5.0, cancel=()):
    async def main():
        threads = FunctionThreads(max_open)
        outcomes = {}
        jobs = [
            FunctionJob(f"f{number}", function, (), timeout_s, _keep(outcomes, number))
            for number, function in enumerate(functions)
        ]
        for job in jobs:
            threads.submit(job)
        for number in cancel:
            jobs[number].cancel()
        while len(outcomes) < len(jobs) - len(cancel):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        await threads.close()
        return outcomes

    return asyncio.run(main())


def _keep(outcomes, number):
    def done(outcome):
        assert number not in outcomes
        outcomes[number] = outcome

    return done


@pytest.mark.parametrize("count", [1, 17, 500])
def test_every_function_is_called_once(count):
    outcomes = outcomes_of([lambda number=number: str(number) for number in range(count)])
    assert outcomes == {number: str(number) for number in range(count)}


def test_functions_run_beside_each_other():
    barrier = threading.Barrier(4)

    def meet():
        barrier.wait(10)
        return "met"

    assert set(outcomes_of([meet] * 8).values()) == {"met"}


def test_stuck_functions_keep_nobody_waiting():
    """More of them than may run at once: each is abandoned and its place is free again."""
    release = threading.Event()

    def stuck():
        release.wait(20)
        return "late"

    started = time.monotonic()
    outcomes = outcomes_of([stuck] * 6 + [lambda: "fine"] * 3, max_open=2, timeout_s=0.05)
    release.set()
    assert [outcomes[number] for number in (6, 7, 8)] == ["fine"] * 3
    for number in range(6):
        assert isinstance(outcomes[number], FunctionFailed)
        assert "took more than 0.05 s" in str(outcomes[number])
    assert time.monotonic() - started < 15


def test_a_timeout_of_the_functions_own_is_an_error_of_its_own():
    def slow_service():
        raise TimeoutError("the service is slow")

    (outcome,) = outcomes_of([slow_service]).values()
    assert str(outcome) == "function 'f0' raised TimeoutError: the service is slow"


class Untold(Exception):
    def __str__(self):
        return "bad \ud800"


RAISED = [StopIteration(), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Untold()]
RAISED += [asyncio.CancelledError(), concurrent.futures.CancelledError()]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__module__)
def test_whatever_a_function_raises_is_an_error_of_its_own(error):
    def bad():
        raise error

    outcomes = outcomes_of([bad, lambda: "good"])
    assert outcomes[1] == "good"
    assert type(error).__name__ in str(outcomes[0]) and str(outcomes[0]).encode()


def test_text_that_cannot_be_sent_is_an_error_of_the_function():
    outcomes = outcomes_of([lambda: "a\ud800", lambda: "\U0001f600"])
    assert "surrogate" in str(outcomes[0]) and isinstance(outcomes[0], FunctionFailed)
    assert outcomes[1] == "\U0001f600"


def test_a_cancelled_job_is_not_heard_of():
    ran = []
    outcomes = outcomes_of([lambda: ran.append(1) or "x", lambda: "y"], cancel=[0])
    assert outcomes == {1: "y"} and ran == []


def test_a_stuck_function_does_not_keep_the_process_from_ending():
    code = (
        "import asyncio, threading\n"
        "from helium.runtime.function_threads import *\n"
        "async def main():\n"
        "    threads = FunctionThreads()\n"
        "    job = FunctionJob('f', threading.Event().wait, (), 0.01, print)\n"
        "    threads.submit(job)\n"
        "    await asyncio.sleep(0.1)\n"
        "    await threads.close()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "function 'f' took more than 0.01 s\n" and done.returncode == 0
