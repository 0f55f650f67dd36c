"""The waiting queue: rank order, aging, and ordinary traffic by arrival."""

import random
from dataclasses import dataclass, field
from itertools import count

import pytest

from vllm_helium.scheduler.plan_queue import PlanQueue

_ids = count()


@dataclass(eq=False)
class FakeRequest:
    """The part of a request the queue reads."""

    arrival_time: float
    rank: int | None = None
    request_id: str = field(default_factory=lambda: f"r{next(_ids)}")


def rank_of(request: FakeRequest) -> tuple[int, ...] | None:
    return None if request.rank is None else (request.rank,)


def make_queue(aging_s: float = 30.0) -> PlanQueue:
    return PlanQueue(aging_s, rank_of)


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


def test_iteration_is_in_rank_order_and_changes_nothing():
    queue = make_queue()
    for rank in (3, 1, 2):
        queue.add_request(FakeRequest(1.0, rank=rank))
    queue.add_request(FakeRequest(0.0))
    assert [request.rank for request in queue] == [1, 2, 3, None]
    assert len(queue) == 4


def test_requests_that_come_and_go_do_not_pile_up():
    queue = make_queue()
    stuck = FakeRequest(0.0, rank=5)
    queue.add_request(stuck)
    moving = FakeRequest(1.0, rank=0)
    for _ in range(10_000):
        queue.add_request(moving)
        assert queue.pop_request() is moving
    heaps = (queue._by_rank, queue._by_arrival, queue._ordinary)
    assert sum(len(heap._items) for heap in heaps) < 300


def test_an_empty_queue_says_so():
    queue = make_queue()
    assert not queue
    for ask in (queue.peek_request, queue.pop_request):
        with pytest.raises(IndexError):
            ask()
