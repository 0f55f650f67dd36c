"""A client killed at any moment: its run goes on elsewhere, and ends as if nothing had been."""

import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from helium.runtime import RunError, RunStore
from helium.runtime.events import CallFinished, Event, FunctionFinished, RowDone
from tests.unit.runtime.crash_child import BATCH, NUM_CALLS, NUM_ROWS, work

REPO = Path(__file__).resolve().parents[3]


def calls_made(folder):
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def told(folder):
    lines = (folder / "events").read_text().splitlines()
    # The last line of a killed process may be cut.
    whole = [line for line in lines if line.endswith("}")]
    return [msgspec.json.decode(line, type=Event) for line in whole]


def kill_after(folder, num_calls, mode):
    """Starts the run in a child and kills it once that many calls were begun."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.runtime.crash_child", str(folder), "run", mode],
        cwd=REPO,
    )
    try:
        while len(calls_made(folder)) < num_calls and child.poll() is None:
            time.sleep(0.001)
    finally:
        child.kill()
    assert child.wait() in (0, -signal.SIGKILL)


def crash_and_resume(folder, seed, mode):
    rng = random.Random(seed)
    kill_after(folder, rng.randrange(1, NUM_CALLS), mode)
    store = RunStore(folder / "runs.db")
    assert store.info("run").status in ("interrupted", "done")
    before = [event for _, event in store.events("run")]
    finished = {(e.operator, e.row) for e in before if isinstance(e, CallFinished)}
    functions = {(e.operator, e.row) for e in before if isinstance(e, FunctionFinished)}
    reported = told(folder)
    num_made = len(calls_made(folder))
    store.close()

    result = asyncio.run(work(folder, "run", mode, is_resumed=True, seconds=0.0))

    assert result.failures == []
    # Nothing that was finished is repeated, everything else is made, once.
    assert len(calls_made(folder)) - num_made == NUM_CALLS - len(finished)
    # Nothing that was told is lost or different.
    for event in reported:
        if isinstance(event, CallFinished):
            assert (event.operator, event.row) in finished
        elif isinstance(event, FunctionFinished):
            assert (event.operator, event.row) in functions
        elif isinstance(event, RowDone):
            assert result.outputs[event.output][event.row] == event.value
            assert ("first", event.row) in finished
            assert event.output == "first" or ("third", event.row) in finished
    store = RunStore(folder / "runs.db")
    assert store.info("run").status == "done"
    assert store.info("run").num_done == store.info("run").num_calls == NUM_CALLS
    return result


def check_outputs(result):
    for row in range(NUM_ROWS):
        first = f"<First: {BATCH['question'][row]}>"
        assert result.outputs["first"][row] == first
        assert result.outputs["third"][row] == f"<Third: <Second: {first[:20]}>>"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("mode", ["greedy", "random"])
def test_a_killed_run_ends_as_if_it_had_not_been_killed(tmp_path, seed, mode):
    result = crash_and_resume(tmp_path, seed, mode)
    if mode == "greedy":
        check_outputs(result)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
@pytest.mark.parametrize("mode", ["greedy", "random"])
def test_a_run_killed_at_many_moments_ends_the_same(tmp_path, seed, mode):
    result = crash_and_resume(tmp_path, seed, mode)
    if mode == "greedy":
        check_outputs(result)


def test_an_unbroken_run_is_the_yardstick(tmp_path):
    result = asyncio.run(work(tmp_path, "run", "greedy", seconds=0.0))
    check_outputs(result)
    assert len(calls_made(tmp_path)) == NUM_CALLS


@pytest.fixture(scope="module")
def store_bytes(tmp_path_factory):
    """Sizes of the store before and after an unbroken run."""
    folder = tmp_path_factory.mktemp("unbroken")
    RunStore(folder / "runs.db").close()
    empty = (folder / "runs.db").stat().st_size
    asyncio.run(work(folder, "run", "greedy", seconds=0.0))
    return empty, (folder / "runs.db").stat().st_size


@pytest.mark.parametrize("share", [0.5, 0.6, 0.7])
def test_a_full_disk_ends_a_run_cleanly_and_space_lets_it_go_on(tmp_path, share, store_bytes):
    empty, full = store_bytes
    max_bytes = int(empty + share * (full - empty))
    with pytest.raises(RunError, match=r"full.*make room.*resume"):
        asyncio.run(work(tmp_path, "run", "greedy", max_bytes=max_bytes))
    store = RunStore(tmp_path / "runs.db")
    assert store.info("run").status == "interrupted"
    finished = {
        (event.operator, event.row)
        for _, event in store.events("run")
        if isinstance(event, CallFinished)
    }
    assert len(finished) < NUM_CALLS
    # What was told is what was written.
    heard = {(e.operator, e.row) for e in told(tmp_path) if isinstance(e, CallFinished)}
    assert heard == finished
    store.close()
    num_made = len(calls_made(tmp_path))
    check_outputs(asyncio.run(work(tmp_path, "run", "greedy", is_resumed=True)))
    assert len(calls_made(tmp_path)) - num_made == NUM_CALLS - len(finished)


def test_a_disk_without_room_for_the_run_itself_refuses_it(tmp_path):
    RunStore(tmp_path / "runs.db").close()
    size = (tmp_path / "runs.db").stat().st_size
    with pytest.raises(RunError, match="full"):
        asyncio.run(work(tmp_path, "run", "greedy", max_bytes=size))
    assert RunStore(tmp_path / "runs.db").runs() == []
    assert calls_made(tmp_path) == []
