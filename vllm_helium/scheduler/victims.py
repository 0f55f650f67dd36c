"""Which running request gives its KV back when a step has no room left.

Between runs, and between plans and ordinary traffic, the latest arrival goes, as upstream's first
come, first served would have it. Inside a run it is the call that the plan needs last: of the last
row, and there the one whose KV costs least to compute again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vllm.v1.request import Request

from vllm_helium.scheduler.plan_queue import ORDINARY, Place


def select_victim(running: Sequence[Request], place_of: Callable[[Request], Place]) -> Request:
    """Returns the running request to preempt; O(running requests).

    Args:
        running: Not empty.
    """
    latest = max(running, key=lambda request: request.arrival_time)
    run = place_of(latest).run
    if run == ORDINARY:
        return latest

    def last_and_cheapest(request: Request) -> tuple[int, int, float]:
        position = place_of(request).position
        return position[0], -request.num_computed_tokens, request.arrival_time

    return max(
        (request for request in running if place_of(request).run == run), key=last_and_cheapest
    )
