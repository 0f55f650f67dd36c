"""What a watcher is told of outputs as they grow."""

import asyncio

from helium import graphs, ops
from helium.plan.operators import Sampling
from helium.runtime import EngineUnavailable, ModelAnswer, Runtime
from helium.runtime.deltas import Deltas
from helium.runtime.events import CallDelta, CallFinished, CallStarted, RowFailed, RunFinished
from helium.runtime.run import LOOK_S
from tests.unit.runtime.engines import Engine, echo
from tests.unit.runtime.virtual_time import run


class Typist(Engine):
    """Says each text over ``seconds``, ``num_parts`` parts of equal length, and what it has so far.

    Attributes:
        num_looks: How often it was asked.
    """

    num_parts = 8

    def __init__(self, seconds=1.0, answer=echo, fail_at=None):
        super().__init__(seconds, answer)
        self.fail_at = fail_at  # part at which the first attempt at every call fails
        self.num_looks = 0
        self.said = {}
        self.failed = set()

    async def call(self, request):
        self.requests.append(request)
        texts = self.answer(request.call)
        try:
            for part in range(1, self.num_parts):
                await asyncio.sleep(self.seconds / self.num_parts)
                if part == self.fail_at and request.call not in self.failed:
                    self.failed.add(request.call)
                    raise EngineUnavailable("not now")
                self.said[id(request)] = [
                    text[: len(text) * part // self.num_parts] for text in texts
                ]
            await asyncio.sleep(self.seconds / self.num_parts)
            return ModelAnswer(texts, 10, 4, 3)
        finally:
            self.said.pop(id(request), None)

    def texts(self, request):
        self.num_looks += 1
        return dict(enumerate(self.said.get(id(request), ())))


def graph(**sampling):
    prompt = [ops.Msg("user", ["say ", ops.placeholder("word")])]
    return graphs.build({"said": ops.llm(prompt, name="say", sampling=Sampling(**sampling))})


async def watched(handle, pause_s=0.0):
    events = []
    async for event in handle.events_and_deltas():
        events.append(event)
        await asyncio.sleep(pause_s)
    return events


def put_together(events):
    """Returns operator, row, index -> output by the deltas, which all come before the end."""
    texts, ended = {}, set()
    for event in events:
        if isinstance(event, CallDelta):
            key = event.operator, event.row, event.index
            assert key[:2] not in ended
            texts[key] = event.text if event.replaces else texts.get(key, "") + event.text
        elif isinstance(event, CallFinished):
            ended.add((event.operator, event.row))
    return texts


def finished(events):
    return {
        (event.operator, event.row, index): text
        for event in events
        if isinstance(event, CallFinished)
        for index, text in enumerate(event.outputs)
    }


def told(engine, words, pause_s=0.0, num_runs=1, **sampling):
    """Runs a workflow under a watcher each; returns the events of every one."""

    async def main():
        async with Runtime(engine) as runtime:
            handles = [
                await runtime.submit(graph(**sampling), {"word": words}) for _ in range(num_runs)
            ]
            return await asyncio.gather(*(watched(handle, pause_s) for handle in handles))

    return run(main())[0]


def test_deltas_put_together_are_the_outputs_and_come_before_them():
    (events,) = told(Typist(), ["a", "b"], n=2, temperature=1.0)
    assert put_together(events) == finished(events) and len(finished(events)) == 4
    deltas = [event for event in events if isinstance(event, CallDelta)]
    assert len(deltas) == 4 * Typist.num_parts
    assert not any(delta.replaces for delta in deltas)
    assert isinstance(events[-1], RunFinished)


def test_a_run_that_nobody_watches_is_never_asked():
    async def main():
        async with Runtime(engine) as runtime:
            handle = await runtime.submit(graph(), {"word": "a"})
            return [event async for event in handle.events()]

    engine = Typist()
    events = run(main())[0]
    assert engine.num_looks == 0
    assert not any(isinstance(event, CallDelta) for event in events)


def test_who_comes_late_is_told_at_once_what_was_said_and_who_comes_afterwards_nothing():
    async def main():
        async with Runtime(engine) as runtime:
            handle = await runtime.submit(graph(), {"word": "a"})
            await asyncio.sleep(0.6)
            late = await watched(handle)
            return late, await watched(handle)

    engine = Typist()
    late, afterwards = run(main())[0]
    (text,) = finished(late).values()
    deltas = [event.text for event in late if isinstance(event, CallDelta)]
    assert deltas[0] == text[: len(text) * 4 // 8] and "".join(deltas) == text
    assert len(deltas) == 5
    assert finished(afterwards) == finished(late) and put_together(afterwards) == {}


def test_a_watcher_that_lags_or_leaves_holds_up_nobody_and_gets_fewer_longer_deltas():
    async def main():
        async with Runtime(engine) as runtime:
            loop = asyncio.get_running_loop()
            handle = await runtime.submit(graph(), {"word": ["a", "b"]})
            left = handle.events_and_deltas()
            await anext(left)
            await left.aclose()
            slow = asyncio.ensure_future(watched(handle, 0.15))
            await handle.result()
            took_s = loop.time()
            return took_s, await slow

    engine = Typist()
    took_s, events = run(main())[0]
    assert took_s == 1.0
    assert put_together(events) == finished(events)
    num_deltas = sum(isinstance(event, CallDelta) for event in events)
    assert 2 <= num_deltas < 2 * Typist.num_parts


def test_calls_that_share_one_have_its_deltas_each():
    engine = Typist()
    first, second = told(engine, ["a", "b"], num_runs=2)
    assert len(engine.requests) == 2
    for events in (first, second):
        assert put_together(events) == finished(events) and len(finished(events)) == 2
    assert {e.origin for e in second if isinstance(e, CallFinished)} == {"shared"}


def test_a_call_made_again_goes_on_where_it_was_if_it_says_the_same():
    engine = Typist(fail_at=5)
    (events,) = told(engine, ["a"])
    assert sum(isinstance(event, CallStarted) for event in events) == 2
    deltas = [event for event in events if isinstance(event, CallDelta)]
    assert len(deltas) == Typist.num_parts and not any(delta.replaces for delta in deltas)
    assert put_together(events) == finished(events)


def test_a_call_made_again_begins_anew_if_it_says_something_else():
    numbers = iter(range(100))
    engine = Typist(answer=lambda call: (f"{next(numbers)} is what it says now",), fail_at=5)
    (events,) = told(engine, ["a"], temperature=1.0)
    assert sum(event.replaces for event in events if isinstance(event, CallDelta)) == 1
    assert put_together(events) == finished(events) == {("say", 0, 0): "1 is what it says now"}


def test_a_call_that_fails_leaves_its_deltas_without_an_end():
    told_of = Deltas()
    assert [delta.text for delta in told_of.grow("a", 0, {0: "x"})] == ["x"]
    assert list(told_of.end(RowFailed("a", 0, "bad"))) == []
    assert [delta.text for delta in told_of.grow("a", 0, {0: "xy"})] == ["xy"], "forgotten"


def test_the_end_of_a_run_does_not_wait_for_the_next_look():
    async def main():
        async with Runtime(Typist(LOOK_S / 8)) as runtime:
            return await watched(await runtime.submit(graph(), {"word": "a"}))

    events, took_s = run(main())
    assert isinstance(events[-1], RunFinished) and took_s < LOOK_S / 4
