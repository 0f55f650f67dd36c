"""The lane: every item once, in order of priority, with no more tasks than are waiting."""

import asyncio

import pytest

from helium.runtime.lane import Lane
from tests.unit.runtime.virtual_time import run


def test_items_are_done_once_each_by_priority_then_arrival():
    done = []

    async def work(item):
        done.append(item)

    async def main():
        lane = Lane(work, max_open=1)
        for item, priority in [("c", 2), ("a", 0), ("d", 2), ("b", 1)]:
            lane.put(item, priority)
        await asyncio.sleep(1)

    run(main())
    assert done == ["a", "b", "c", "d"]


@pytest.mark.parametrize("num_items", [1, 17, 300])
@pytest.mark.parametrize("max_open", [1, 16, 1000])
def test_as_many_items_are_under_way_as_may_be(num_items, max_open):
    num_open = most = 0

    async def work(item):
        nonlocal num_open, most
        num_open += 1
        most = max(most, num_open)
        await asyncio.sleep(1)
        num_open -= 1

    async def main():
        lane = Lane(work, max_open)
        for item in range(num_items):
            lane.put(item)
        while lane._waiting or num_open:
            await asyncio.sleep(0.25)

    _, seconds = run(main())
    assert most == min(num_items, max_open)
    assert seconds == pytest.approx(-(-num_items // max_open), abs=0.5)


def test_work_that_never_waits_needs_few_tasks():
    tasks = set()

    async def work(item):
        tasks.add(asyncio.current_task())

    async def main():
        lane = Lane(work, max_open=10_000)
        for item in range(10_000):
            lane.put(item)
        await asyncio.sleep(1)

    run(main())
    assert 1 <= len(tasks) < 200


def test_a_cancelled_item_leaves_the_others_alone():
    done, tasks = [], {}

    async def work(item):
        tasks[item] = asyncio.current_task()
        await asyncio.sleep(1)
        done.append(item)

    async def main():
        lane = Lane(work, max_open=2)
        for item in range(6):
            lane.put(item)
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        await asyncio.sleep(10)
        lane.put(6)
        await asyncio.sleep(2)

    run(main())
    assert sorted(done) == [1, 2, 3, 4, 5, 6]


def test_a_closed_lane_runs_nothing():
    done = []

    async def work(item):
        await asyncio.sleep(1)
        done.append(item)

    async def main():
        lane = Lane(work, max_open=1)
        lane.put(1)
        lane.put(2)
        await asyncio.sleep(0.5)
        await lane.close()
        await asyncio.sleep(5)
        assert len(asyncio.all_tasks()) == 1

    run(main())
    assert done == []
