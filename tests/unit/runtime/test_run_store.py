"""A list of runs says how each stands right now, and disturbs nobody."""

import fcntl

import pytest

from helium import graphs, ops
from helium.plan.compiled_plan import bind
from helium.runtime import RunError, RunStore, run_lock
from helium.runtime.events import RunFinished
from helium.runtime.run_store import RunSpec


def spec():
    prompt = [ops.Msg("user", ["say ", ops.placeholder("word")])]
    plan = graphs.build({"said": ops.llm(prompt)}).plan
    return RunSpec("w", "s", bind(plan, {"word": ["a"]}))


def test_who_looks_whether_a_run_is_worked_on_does_not_pass_for_an_owner(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        looker.close()  # it has seen enough

    monkeypatch.setattr(run_lock.time, "sleep", pause)
    with open(path, "a") as looker:
        fcntl.flock(looker, fcntl.LOCK_SH | fcntl.LOCK_NB)
        lock = run_lock.RunLock.take(path)
    assert lock is not None and len(pauses) == 1
    assert run_lock.RunLock.take(path) is None and run_lock.RunLock.is_held(path)
    lock.release()
    assert not run_lock.RunLock.is_held(path)


def test_a_run_that_ends_while_a_list_is_made_is_not_shown_as_left_off(tmp_path, monkeypatch):
    store = RunStore(tmp_path / "runs.db")
    for name in ("ends", "left"):
        store.create(name, spec())
    lock = store.acquire("ends")
    is_held = run_lock.RunLock.is_held

    def end_first(path):
        if path.name == "ends":
            store.append("ends", [RunFinished("done", 0)])
            lock.release()
        return is_held(path)

    monkeypatch.setattr(run_lock.RunLock, "is_held", staticmethod(end_first))
    assert {info.id: info.status for info in store.runs()} == {
        "ends": "done",
        "left": "interrupted",
    }
    store.close()


def test_a_cancellation_outlives_the_process_that_did_not_carry_it_out(tmp_path):
    store = RunStore(tmp_path / "runs.db")
    store.create("r1", spec())
    lock = store.acquire("r1")
    store.request_cancel("r1")
    lock.release()  # as a kill does
    store.reopen("r1")
    assert store.cancel_requests() == {"r1"}
    store.append("r1", [RunFinished("cancelled", 0)])
    store.reopen("r1")
    assert store.cancel_requests() == set(), "it was carried out"
    store.close()


def test_an_unknown_run_among_many_is_told_without_reading_them_all(tmp_path, monkeypatch):
    store = RunStore(tmp_path / "runs.db")
    for number in range(8):
        store.create(f"r{number}", spec())
    monkeypatch.setattr(store, "runs", lambda: pytest.fail("it lists all runs"))
    with pytest.raises(RunError, match=r"\['r3', 'r4', 'r5', 'r6', 'r7'\]"):
        store.info("ghost")
    store.close()
