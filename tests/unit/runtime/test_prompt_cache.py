"""The prompt cache: exact, bounded, shared by processes, and never wrong, whatever the file is."""

import asyncio
import logging
import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from helium import function, graphs, ops
from helium.errors import CacheError
from helium.optimizer.driver import optimize
from helium.plan.calls import Call
from helium.plan.operators import Sampling
from helium.runtime import ModelCall, PromptCache
from helium.runtime.cache_lookup import CacheLookup
from helium.runtime.dispatcher import Dispatcher
from helium.runtime.execution import Execution, RunOptions
from helium.runtime.function_threads import FunctionThreads
from helium.runtime.prompt_cache import _ENTRY_BYTES, Entry
from tests.unit.runtime.engines import Engine, echo
from tests.unit.runtime.test_dispatcher import DIFFERENT

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "prompts.db"


def chat(text, **sampling):
    return Call((("user", text),), None, Sampling(**sampling), None)


def key(number):
    return number.to_bytes(32, "big")


def check_integrity(cache):
    """The totals are those of the entries, every entry is intact, and the bound holds."""
    connection = sqlite3.connect(cache.path)
    count, size = connection.execute("SELECT count(*), total(num_bytes) FROM entries").fetchone()
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    stats = cache.stats()
    assert (stats.num_entries, stats.num_bytes) == (count, size)
    assert size <= cache.max_bytes
    connection.close()


def test_an_output_comes_back_in_another_process(path):
    cache = PromptCache(path)
    cache.view("m").put_many([(chat("é\n\0|"), ("one", "\ud83d\ude00 two"[2:]))])
    cache.close()
    code = (
        "from helium.runtime import PromptCache; from helium.plan.calls import Call; "
        "from helium.plan.operators import Sampling; import sys; "
        "view = PromptCache(sys.argv[1]).view('m'); "
        "call = Call((('user', 'é\\n\\0|'),), None, Sampling(n=2), None); "
        "print(view.get_many([call]), view.get_many([Call(call.messages, None, Sampling(), None)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=REPO, capture_output=True, text=True
    )
    assert done.stdout == "[None] [None]\n", done.stderr  # n=2 is another call; n=1 has 2 outputs
    cache = PromptCache(path)
    cache.view("m").put_many([(chat("é\n\0|", n=2), ("one", "two"))])
    cache.close()
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=REPO, capture_output=True, text=True
    )
    assert done.stdout == "[('one', 'two')] [None]\n"


def test_calls_that_differ_in_anything_have_entries_of_their_own(path):
    view = PromptCache(path).view("m")
    outputs = [
        tuple(f"{i}.{c}" for c in range(call.sampling.n)) for i, call in enumerate(DIFFERENT)
    ]
    for number, call in enumerate(DIFFERENT):
        assert view.get_many([call]) == [None]
        view.put_many([(call, outputs[number])])
    assert view.get_many(DIFFERENT) == outputs


def test_revisions_and_tenants_see_nothing_of_each_other(path):
    cache = PromptCache(path)
    views = [cache.view(r, t) for r in ("m", "m2", "") for t in (None, "", "t1", "null", "m")]
    for number, view in enumerate(views):
        assert view.get_many([chat("q")]) == [None]
        view.put_many([(chat("q"), (str(number),))])
    assert [view.get_many([chat("q")]) for view in views] == [
        [(str(number),)] for number in range(len(views))
    ]


def test_what_is_drawn_at_random_is_not_stored(path):
    cache = PromptCache(path)
    cache.view("m").put_many([(chat("q", temperature=1), ("x",))])
    assert cache.stats().num_entries == 0


def test_the_first_output_stored_stays(path):
    """Two processes may make the same call at once; who reads gets one of the two, always."""
    view = PromptCache(path).view("m")
    view.put_many([(chat("q"), ("first",))])
    view.put_many([(chat("q"), ("second",))])
    assert view.get_many([chat("q")]) == [("first",)]


def test_the_least_recently_used_entries_go_first(path):
    now = 0.0
    cache = PromptCache(path, max_bytes=10 * (_ENTRY_BYTES + 5), clock=lambda: now)
    for number in range(10):
        now += 1
        cache.put([(key(number), None, Entry(("x",)))])
    now += 1
    cache.get([key(0), key(2)])
    now += 1
    cache.put([(key(10), None, Entry(("x",)))])
    check_integrity(cache)
    left = [number for number in range(11) if cache.get([key(number)]) != [None]]
    assert left == [0, 2, 4, 5, 6, 7, 8, 9, 10] or left == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert cache.stats().num_evicted == 11 - len(left)


def test_an_entry_larger_than_the_cache_is_not_stored(path):
    cache = PromptCache(path, max_bytes=2000)
    cache.put([(key(1), None, Entry(("small",))), (key(2), None, Entry(("x" * 2000,)))])
    assert cache.get([key(1), key(2)]) == [Entry(("small",)), None]
    check_integrity(cache)


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_holds_and_every_hit_is_right(path, seed):
    """Against a dictionary: the cache may forget, but never answers anything else."""
    rng = random.Random(seed)
    cache = PromptCache(path, max_bytes=30_000)
    truth = {}
    for _ in range(300):
        entries = []
        for number in rng.choices(range(400), k=rng.randrange(6)):
            entry = Entry((str(number) * rng.randrange(300),), rng.randrange(99))
            entries.append((key(number), rng.choice([None, "t"]), truth.setdefault(number, entry)))
        cache.put(entries)
        asked = rng.choices(range(400), k=rng.randrange(6))
        for number, found in zip(asked, cache.get([key(n) for n in asked]), strict=True):
            assert found is None or found == truth[number]
    check_integrity(cache)
    assert cache.stats().num_evicted > 100
    cache.close()
    assert path.stat().st_size < 4 * 30_000


def test_hits_and_misses_of_all_processes_are_counted(path):
    for _ in range(2):
        cache = PromptCache(path)
        cache.put([(key(1), None, Entry(("x",)))])
        cache.get([key(1), key(2), key(3)])
        cache.close()
    stats = PromptCache(path).stats()
    assert (stats.num_hits, stats.num_misses, stats.num_entries) == (2, 4, 1)
    assert stats.num_file_bytes > 0


def test_clear_deletes_one_tenant_or_all(path):
    cache = PromptCache(path)
    cache.put([(key(n), t, Entry(("x",))) for n, t in [(1, None), (2, "a"), (3, "b"), (4, "a")]])
    assert cache.clear("a") == 2
    assert [entry is not None for entry in cache.get([key(n) for n in (1, 2, 3, 4)])] == [
        True,
        False,
        True,
        False,
    ]
    assert cache.clear() == 2 and cache.stats().num_entries == 0
    check_integrity(cache)


def test_threads_share_a_cache(path):
    cache = PromptCache(path)

    def work(first):
        for number in range(first, first + 50):
            cache.put([(key(number), None, Entry((str(number),)))])
            assert cache.get([key(number)]) == [Entry((str(number),))]

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 25, 50, 75)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.stats().num_entries == 125
    check_integrity(cache)


def test_processes_share_a_file(path):
    code = (
        "from helium.runtime.prompt_cache import PromptCache, Entry; import sys\n"
        "cache = PromptCache(sys.argv[1])\n"
        "for n in range(int(sys.argv[2]), int(sys.argv[2]) + 60):\n"
        "    cache.put([(n.to_bytes(32, 'big'), None, Entry((str(n),)))])\n"
        "cache.close()"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(first)], cwd=REPO)
        for first in (0, 30, 60)
    ]
    assert [child.wait() for child in children] == [0, 0, 0]
    cache = PromptCache(path)
    assert cache.get([key(n) for n in range(120)]) == [Entry((str(n),)) for n in range(120)]
    check_integrity(cache)


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" * 50])
def test_a_file_that_is_no_cache_is_refused_by_name(path, content):
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"prompts\.db.*delete the file"):
        PromptCache(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("make", ["PRAGMA user_version = 99", "CREATE TABLE other (x)"])
def test_a_file_of_another_version_or_program_is_refused(path, make):
    connection = sqlite3.connect(path)
    connection.execute(make)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(CacheError, match="schema version"):
        PromptCache(path)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be opened"):
        PromptCache(tmp_path / "file" / "prompts.db")


@pytest.mark.parametrize("column", ["outputs", "checksum", "num_tokens"])
def test_a_damaged_entry_is_a_miss_and_is_stored_anew(path, column, caplog):
    cache = PromptCache(path)
    cache.put([(key(n), None, Entry((f"answer {n}",), 5)) for n in (1, 2)])
    connection = sqlite3.connect(path)
    value = {"outputs": b'["answer 2"]', "checksum": b"x" * 16, "num_tokens": "many"}[column]
    connection.execute(f"UPDATE entries SET {column} = ? WHERE key = ?", (value, key(1)))
    connection.commit()
    assert cache.get([key(1), key(2)]) == [None, Entry(("answer 2",), 5)]
    assert cache.get([key(1)]) == [None]
    assert len(caplog.records) == 1 and "damaged entry" in caplog.text
    cache.put([(key(1), None, Entry(("answer 1",), 5))])
    assert cache.get([key(1)]) == [Entry(("answer 1",), 5)]
    check_integrity(cache)


@pytest.mark.parametrize("seed", range(8))
def test_a_file_damaged_anywhere_gives_right_answers_misses_or_an_error(path, seed):
    rng = random.Random(seed)
    cache = PromptCache(path)
    cache.put([(key(n), None, Entry((f"answer {n}" * 9,))) for n in range(200)])
    cache.close()
    content = bytearray(path.read_bytes())
    for _ in range(60):
        content[rng.randrange(100, len(content))] = rng.randrange(256)
    path.write_bytes(content)
    try:
        cache = PromptCache(path)
    except CacheError:
        return
    for n in range(200):
        assert cache.get([key(n)]) in ([None], [Entry((f"answer {n}" * 9,))])
    cache.put([(key(n), None, Entry((f"answer {n}" * 9,))) for n in range(200, 300)])


def test_a_locked_file_costs_one_log_line_and_no_answer(path, monkeypatch, caplog):
    monkeypatch.setattr("helium.runtime.sqlite_file.BUSY_TIMEOUT_S", 0.01)
    cache = PromptCache(path)
    cache.put([(key(1), None, Entry(("x",)))])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for number in range(2, 5):
        cache.put([(key(number), None, Entry(("x",)))])
    assert cache.get([key(1), key(2)]) == [Entry(("x",)), None]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "cannot be written: database is locked" in caplog.text
    other.execute("ROLLBACK")
    cache.put([(key(2), None, Entry(("x",)))])
    assert cache.get([key(2)]) == [Entry(("x",))]
    check_integrity(cache)


def test_a_full_disk_costs_one_log_line_and_no_answer(path, caplog):
    cache = PromptCache(path)
    cache.put([(key(1), None, Entry(("x",)))])
    (pages,) = cache._connection.execute("PRAGMA page_count").fetchone()
    cache._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    for number in range(2, 10):
        cache.put([(key(number), None, Entry(("x" * 20_000,)))])
    assert cache.get([key(1), key(9)]) == [Entry(("x",)), None]
    assert len(caplog.records) == 1 and "full" in caplog.text
    check_integrity(cache)


# With the optimizer and the runtime.


@function(name="prompt_cache_test.shout")
def shout(text: str) -> str:
    return text.upper()


def workflow(rows, sampling=Sampling()):  # noqa: B008
    question = ops.placeholder("question")
    draft = ops.llm([ops.Msg("user", question)], name="draft", sampling=sampling)
    final = ops.llm([ops.Msg("user", ["of ", shout(draft)])], name="final", sampling=sampling)
    return graphs.build({"out": final}).compile(question=rows)


def execute(compiled, engine, cache, tenant=None):
    async def main():
        dispatcher = Dispatcher(engine, cache=CacheLookup(cache, "m"))
        threads = FunctionThreads()
        options = RunOptions(cache_salt=tenant)
        try:
            return await Execution(compiled, dispatcher, threads, "r", None, options).execute()
        finally:
            await dispatcher.close()
            await threads.close()

    return asyncio.run(main())


def test_the_optimizer_takes_what_a_run_has_stored(path):
    cache, engine = PromptCache(path), Engine()
    first = execute(workflow(["a", "b"]), engine, cache)
    planned = optimize(workflow(["a", "b", "c"]), cache=cache.view("m")).compiled
    assert "draft" in planned.plan.by_name
    assert list(planned.calls("draft")) == [2] and list(planned.calls("final")) == [0, 1, 2]
    second = execute(planned, engine, cache)
    assert second.outputs["out"][:2] == first.outputs["out"]
    # What is behind a function is found only when the call is about to be made.
    assert second.counts["final"].num_cache_hits == 2 and second.total.num_calls == 2
    assert len(engine.requests) == 4 + 2


def test_a_second_run_makes_no_call_and_another_tenant_makes_all(path):
    cache, engine = PromptCache(path), Engine()
    first = execute(workflow(["a", "b"]), engine, cache, "t1")
    again = execute(workflow(["a", "b"]), engine, cache, "t1")
    assert again.outputs == first.outputs and len(engine.requests) == 4
    assert again.total.num_cache_hits == 4 and again.total.num_calls == 0
    other = execute(workflow(["a", "b"]), engine, cache, "t2")
    assert other.outputs == first.outputs and len(engine.requests) == 8
    assert other.total.num_cache_hits == 0


def test_what_is_drawn_at_random_is_drawn_again(path):
    cache, engine = PromptCache(path), Engine()
    for _ in range(2):
        execute(workflow(["a"], Sampling(temperature=1.0)), engine, cache)
    assert len(engine.requests) == 4 and cache.stats().num_entries == 0


def test_a_cache_that_breaks_while_it_is_used_changes_no_output(path, caplog):
    cache, engine = PromptCache(path), Engine()
    expected = execute(workflow(["a", "b"]), engine, cache)
    cache._connection.execute("DROP TABLE entries")
    result = execute(workflow(["a", "b"]), engine, cache)
    assert result.outputs == expected.outputs and result.failures == []
    assert len(engine.requests) == 8 and len(caplog.records) == 2


def test_a_call_cancelled_while_it_is_looked_up_is_never_made(path):
    cache, engine = PromptCache(path), Engine()

    async def main():
        dispatcher = Dispatcher(engine, cache=CacheLookup(cache, "m"))
        ticket = dispatcher.submit(ModelCall(chat("q")), 0, None)
        dispatcher.cancel(ticket)
        await asyncio.sleep(0.05)
        await dispatcher.close()

    asyncio.run(main())
    assert engine.requests == []


@pytest.mark.parametrize("outputs", [(), ("a", "b")])
def test_an_answer_with_too_few_or_too_many_outputs_is_not_stored(path, outputs):
    cache = PromptCache(path)
    result = execute(workflow(["a"]), Engine(answer=lambda call: outputs), cache)
    assert len(result.failures) == 1 and cache.stats().num_entries == 0


def test_answers_are_those_of_the_engine(path):
    cache = PromptCache(path)
    call = chat("q", n=2, stop=("x",))
    cache.view("m").put_many([(call, echo(call))])
    assert cache.view("m").get_many([call, chat("q", n=2)]) == [echo(call), None]
