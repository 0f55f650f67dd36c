"""The waiting queue: plan order, aging, ordinary traffic by arrival, and shares."""

import random
from dataclasses import dataclass, field
from itertools import count

import pytest

from vllm_helium.scheduler.plan_queue import ORDINARY, Place, PlanQueue

_ids = count()


@dataclass(eq=False)
class FakeRequest:
    """The part of a request the queue reads."""

    arrival_time: float
    rank: int | None = None
    run: str = "run"
    tenant: str | None = None
    num_tokens: float = 10.0
    request_id: str = field(default_factory=lambda: f"r{next(_ids)}")


def place_of(request: FakeRequest) -> Place:
    if request.rank is None:
        return Place(ORDINARY, ORDINARY, (0,), request.num_tokens)
    return Place(request.run, request.tenant, (request.rank,), request.num_tokens)


def make_queue(aging_s: float = 30.0) -> PlanQueue:
    return PlanQueue(aging_s, place_of)


def drain(queue: PlanQueue) -> list:
    order = []
    while queue:
        head = queue.peek_request()
        assert queue.pop_request() is head
        order.append(head)
    return order


def test_planned_requests_go_by_rank_then_arrival():
    queue = make_queue()
    late, early = FakeRequest(2.0, rank=1), FakeRequest(1.0, rank=1)
    first = FakeRequest(3.0, rank=0)
    for request in (late, early, first):
        queue.add_request(request)
    queue.now = 4.0
    assert drain(queue) == [first, early, late]


def test_ordinary_requests_keep_the_order_they_were_added_in_when_they_arrived_together():
    queue = make_queue()
    requests = [FakeRequest(1.0) for _ in range(5)]
    for request in requests:
        queue.add_request(request)
    assert drain(queue) == requests


def test_an_ordinary_request_is_never_overtaken_by_a_later_arrival():
    random.seed(5)
    queue = make_queue(aging_s=1e9)
    for step in range(300):
        rank = random.choice([None, random.randrange(20)])
        queue.add_request(FakeRequest(float(step), rank))
    order = drain(queue)
    for place, request in enumerate(order):
        if request.rank is None:
            assert all(before.arrival_time <= request.arrival_time for before in order[:place])


def test_a_request_older_than_the_bound_goes_first_whatever_its_rank():
    queue = make_queue(aging_s=10.0)
    last = FakeRequest(0.0, rank=99)
    queue.add_request(last)
    for step in range(1, 5):
        queue.add_request(FakeRequest(float(step), rank=0))
    queue.now = 10.0
    assert queue.peek_request().rank == 0
    queue.now = 10.5
    assert queue.peek_request() is last


def test_a_request_put_back_keeps_its_place():
    queue = make_queue()
    first, second = FakeRequest(1.0, rank=0), FakeRequest(1.0, rank=1)
    queue.add_request(second)
    queue.add_request(first)
    assert queue.pop_request() is first
    queue.prepend_request(first)
    assert drain(queue) == [first, second]


def test_removed_requests_never_come_back():
    queue = make_queue()
    requests = [FakeRequest(float(i), rank=i % 3 if i % 2 else None) for i in range(50)]
    for request in requests:
        queue.add_request(request)
    gone = set(requests[::3])
    queue.remove_requests(gone)
    queue.remove_requests(gone)
    assert len(queue) == len(requests) - len(gone)
    assert set(queue) == set(requests) - gone
    assert not gone & set(drain(queue))


def test_iteration_is_in_plan_order_and_changes_nothing():
    queue = make_queue()
    for rank in (3, 1, 2):
        queue.add_request(FakeRequest(1.0, rank=rank))
    queue.add_request(FakeRequest(0.0))
    assert [request.rank for request in queue if request.rank] == [1, 2, 3]
    assert len(list(queue)) == len(queue) == 4


def test_requests_that_come_and_go_do_not_pile_up():
    queue = make_queue()
    stuck = FakeRequest(0.0, rank=5)
    queue.add_request(stuck)
    moving = FakeRequest(1.0, rank=0)
    for _ in range(10_000):
        queue.add_request(moving)
        assert queue.pop_request() is moving
        queue.prepend_request(moving)
        queue.remove_request(moving)
    [lane] = queue._lanes.values()
    heaps = (lane.by_position, lane.by_arrival)
    assert sum(len(heap._items) for heap in heaps) < 300
    assert len(queue._shares._turns) < 150


def test_runs_that_come_and_go_do_not_pile_up():
    queue = make_queue()
    for number in range(10_000):
        queue.add_request(FakeRequest(1.0, rank=0, run=f"run-{number}"))
        queue.pop_request()
    assert not queue._lanes and not len(queue._shares)
    assert len(queue._shares._debts) <= 4096
    assert not queue._shares._runs_of_tenant


# --- shares ------------------------------------------------------------------------------------


def test_a_small_run_does_not_wait_for_all_of_a_large_one():
    queue = make_queue(aging_s=1e9)
    for _ in range(100):
        queue.add_request(FakeRequest(0.0, rank=0, run="large"))
    for _ in range(5):
        queue.add_request(FakeRequest(1.0, rank=0, run="small"))
    order = [request.run for request in drain(queue)]
    assert max(place for place, run in enumerate(order) if run == "small") < 12


def test_shares_count_tokens_and_not_calls():
    queue = make_queue(aging_s=1e9)
    for _ in range(50):
        queue.add_request(FakeRequest(0.0, rank=0, run="long", num_tokens=90.0))
        queue.add_request(FakeRequest(0.0, rank=0, run="short", num_tokens=10.0))
    first = [request.run for request in drain(queue)[:40]]
    assert first.count("short") == pytest.approx(36, abs=2)


def test_runs_of_one_tenant_share_that_tenants_part():
    queue = make_queue(aging_s=1e9)
    for _ in range(50):
        for run in range(3):
            queue.add_request(FakeRequest(0.0, rank=0, run=f"many-{run}", tenant="many"))
        queue.add_request(FakeRequest(0.0, rank=0, run="one", tenant="one"))
    first = [request.tenant for request in drain(queue)[:40]]
    assert first.count("one") == pytest.approx(20, abs=2)


def test_a_run_without_waiting_calls_saves_up_no_turns():
    queue = make_queue(aging_s=1e9)
    for _ in range(100):
        queue.add_request(FakeRequest(0.0, rank=0, run="busy"))
    for _ in range(50):
        assert queue.pop_request().run == "busy"
    for _ in range(50):
        queue.add_request(FakeRequest(1.0, rank=0, run="late"))
    first = [queue.pop_request().run for _ in range(20)]
    assert first.count("late") == pytest.approx(10, abs=1)


def test_a_run_does_not_lose_its_debt_by_sending_one_call_at_a_time():
    queue = make_queue(aging_s=1e9)
    for _ in range(50):
        queue.add_request(FakeRequest(0.0, rank=0, run="steady"))
    served = []
    for number in range(40):
        if not any(request.run == "eager" for request in queue):
            queue.add_request(FakeRequest(float(number), rank=0, run="eager"))
        served.append(queue.pop_request().run)
    assert served.count("eager") == pytest.approx(20, abs=2)


def test_what_a_call_took_more_than_expected_is_charged_to_its_run():
    queue = make_queue(aging_s=1e9)
    for _ in range(50):
        for run in ("as expected", "longer"):
            queue.add_request(FakeRequest(0.0, rank=0, run=run))
    served = []
    for _ in range(40):
        request = queue.pop_request()
        served.append(request.run)
        if request.run == "longer":
            queue.charge(request, 30.0)
    assert served.count("longer") == pytest.approx(8, abs=1)


def test_a_request_put_back_costs_its_run_nothing():
    queue = make_queue(aging_s=1e9)
    for _ in range(20):
        for run in ("skipped", "served"):
            queue.add_request(FakeRequest(0.0, rank=0, run=run))
    served = []
    while len(served) < 20:
        request = queue.pop_request()
        if request.run == "skipped":
            queue.prepend_request(request)  # as if its adapter did not fit this step
            request = queue.pop_request()
        served.append(request.run)
    assert served.count("skipped") == pytest.approx(10, abs=1)


def test_random_traffic_keeps_the_counts():
    chance = random.Random(3)
    queue = make_queue(aging_s=5.0)
    waiting: dict[str, FakeRequest] = {}
    for step in range(5_000):
        queue.now = float(step)
        action = chance.random()
        if action < 0.4 or not waiting:
            rank = chance.choice([None, chance.randrange(9)])
            request = FakeRequest(
                float(step), rank, f"run-{chance.randrange(4)}", chance.choice("ab")
            )
            queue.add_request(request)
            waiting[request.request_id] = request
        elif action < 0.6 and queue:
            request = queue.pop_request()
            del waiting[request.request_id]
        elif action < 0.75 and queue:
            queue.prepend_request(queue.pop_request())
        else:
            request = waiting.pop(chance.choice(list(waiting)))
            queue.remove_request(request)
        assert len(queue) == len(waiting) and bool(queue) == bool(waiting)
    assert set(queue) == set(waiting.values())


def test_an_empty_queue_says_so():
    queue = make_queue()
    assert not queue
    for ask in (queue.peek_request, queue.pop_request):
        with pytest.raises(IndexError):
            ask()
