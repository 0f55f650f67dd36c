"""What interrupts the host tier's transfers leaks no block or slot and leaves nothing stale.

The real scheduler and KV manager drive a worker that checks every read, one request at a time, so
that each test knows what is in flight when the interruption comes.
"""

from __future__ import annotations

import pytest
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.v1.request import Request, RequestStatus

from tests.property.shadow_kv import build_scheduler
from tests.property.shadow_worker import ShadowWorker
from vllm_helium.config import HeliumConfig

SIZE = 16
NUM_BLOCKS, NUM_SLOTS = 24, 64
PREFIX = [token % 37 for token in range(8 * SIZE)]
FILLER = [39 - token % 37 for token in range(23 * SIZE - 1)]


class Engine:
    """A scheduler and a worker, stepped by hand."""

    def __init__(self, config, is_async=False, step_slots=64):
        block_bytes = 2 * SIZE * 32 * 4
        helium = HeliumConfig(
            host_gib=NUM_SLOTS * block_bytes / 2**30,
            host_step_mib=step_slots * block_bytes / 2**20,
            host_prefetch=True,
        )
        self.scheduler = build_scheduler(config, NUM_BLOCKS, SIZE, helium, is_async)
        self.index = self.scheduler.kv_cache_manager.pool.index
        self.tier = self.scheduler.kv_cache_manager.host_tier
        self.worker = ShadowWorker(NUM_BLOCKS, SIZE, NUM_SLOTS)
        self.num_requests = self.num_preempted = 0

    def add(self, tokens, max_tokens=1, **fields):
        name = f"r{self.num_requests}"
        self.num_requests += 1
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0)
        adapter = fields.get("lora_request")
        self.worker.seeds[name] = hash((fields.get("cache_salt"), adapter and adapter.lora_path))
        self.scheduler.add_request(Request(name, list(tokens), params, None, **fields))
        return name

    def schedule(self):
        """Schedules a step that is then in flight; the worker has not seen it."""
        return self.scheduler.schedule()

    def finish(self, output):
        """Lets the worker do a step, and the scheduler take its results."""
        self.num_preempted += len(output.preempted_req_ids or ())
        self.scheduler.update_from_output(output, self.worker.step(output))

    def step(self):
        self.finish(self.schedule())

    def drain(self):
        while self.scheduler.has_requests():
            self.step()

    def serve(self, tokens, **fields):
        """Runs a request by itself; returns the blocks loaded for it."""
        before = self.worker.num_loads
        self.add(tokens, **fields)
        self.drain()
        return self.worker.num_loads - before

    def push_out(self, tokens=PREFIX, **fields):
        """Caches a prompt and makes it leave the device for the host."""
        self.serve([*tokens, 1], **fields)
        self.serve(FILLER)
        assert self.worker.num_stores > 0

    def check_no_leak(self):
        self.drain()
        self.scheduler.kv_cache_manager.new_step_starts()
        self.index.check_integrity()
        assert self.index.num_free == NUM_BLOCKS - 1, "device blocks leaked"
        assert self.index.stats()["host"]["slots"]["held"] == 0, "slots are locked for ever"
        assert self.tier._num_promised == 0 and not self.tier._awaited


@pytest.fixture
def engine(engine_config):
    return Engine(engine_config(False, "fcfs"))


def abort(engine, name):
    engine.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)


def load_in_flight(engine, **fields):
    """A scheduled step that loads the prefix for a request; returns the request and the step."""
    name = engine.add([*PREFIX, 2], max_tokens=20, **fields)
    output = engine.schedule()
    assert len(output.kv_connector_metadata.moves.loads[0]) == 8
    return name, output


def test_a_prefix_that_left_the_device_is_loaded(engine):
    engine.push_out()
    assert engine.serve([*PREFIX, 2]) == 8
    engine.check_no_leak()


def aborted_load(engine):
    """A scheduled step whose load is for a request that is aborted by now."""
    engine.push_out()
    name, output = load_in_flight(engine)
    abort(engine, name)
    return output


def test_an_aborted_request_gives_back_what_its_load_was_for(engine):
    engine.finish(aborted_load(engine))
    engine.check_no_leak()
    engine.serve([*PREFIX, 3])
    engine.check_no_leak()


def test_blocks_of_an_aborted_load_may_go_to_the_next_step(engine):
    output = aborted_load(engine)
    engine.add(FILLER)  # takes the blocks that the load writes; steps are done in order
    following = engine.schedule()
    engine.finish(output)
    engine.finish(following)
    engine.check_no_leak()
    engine.serve([*PREFIX, 3])
    engine.check_no_leak()


def test_a_preempted_load_is_made_again_or_found(engine):
    engine.push_out()
    _, output = load_in_flight(engine)
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    engine.finish(output)
    engine.check_no_leak()


def test_preempted_requests_get_back_what_was_pushed_out(engine):
    engine.push_out()
    engine.add([*PREFIX, 2], max_tokens=14 * SIZE)
    engine.step()
    engine.add([5, *PREFIX], max_tokens=12 * SIZE)
    engine.drain()
    assert engine.num_preempted > 0
    assert engine.worker.num_loads > 0
    engine.check_no_leak()


def test_a_reset_leaves_nothing_of_either_tier(engine):
    engine.push_out()
    assert engine.scheduler.reset_prefix_cache()
    assert engine.index.stats()["host"]["slots"]["unindexed"] == NUM_SLOTS
    engine.worker.change_weights()  # whatever is on either tier is wrong from here on
    assert engine.serve([*PREFIX, 2]) == 0
    engine.check_no_leak()


def test_sleep_and_new_weights_leave_nothing_to_load_for_requests_that_go_on(engine):
    engine.push_out()
    _, output = load_in_flight(engine)
    engine.finish(output)
    # What the engine core does before it sleeps, and a change of weights in mid-flight.
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
    engine.worker.change_weights()
    before = engine.worker.num_loads
    engine.drain()
    assert engine.worker.num_loads == before
    engine.check_no_leak()


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_salt": "other"},
        {"lora_request": LoRARequest("adapter", 1, "/adapter")},
        {"cache_salt": "tenant", "lora_request": LoRARequest("adapter", 1, "/adapter")},
    ],
    ids=("salt", "adapter", "both"),
)
def test_a_host_copy_is_loaded_for_its_own_tenant_only(engine, fields):
    engine.push_out(cache_salt="tenant")
    assert engine.serve([*PREFIX, 2], **fields) == 0
    assert engine.serve([*PREFIX, 2]) == 0
    assert engine.serve([*PREFIX, 2], cache_salt="tenant") > 0
    engine.check_no_leak()


@pytest.fixture(params=(False, True), ids=("sync", "async"))
def waiting(engine_config, request):
    """A running request, and one whose prefix is too long for a step: it waits for a prefetch."""
    engine = Engine(engine_config(request.param, "fcfs"), request.param, step_slots=6)
    engine.push_out()
    engine.add([7, 8, 9], max_tokens=40)
    engine.step()
    engine.waiting = engine.add([*PREFIX, 2])
    output = engine.schedule()
    assert len(output.kv_connector_metadata.moves.prefetches[0]) == 6
    return engine, output


def test_what_a_request_waits_for_is_there_when_it_is_admitted(waiting):
    engine, output = waiting
    engine.finish(output)
    engine.drain()
    host = engine.index.stats()["host"]
    assert (host["num_prefetches_used"], host["num_prefetches_wasted"]) == (6, 0)
    engine.check_no_leak()


def test_a_request_aborted_while_its_prefix_comes_back_leaves_it_cached(waiting):
    engine, output = waiting
    abort(engine, engine.waiting)
    engine.finish(output)
    engine.check_no_leak()
    engine.serve([*PREFIX, 3])
    engine.check_no_leak()


def test_promised_room_is_nobody_elses_in_that_step_only(engine_config):
    engine = Engine(engine_config(False, "fcfs"), step_slots=6)
    engine.push_out()
    engine.add([7, 8, 9], max_tokens=40)
    engine.step()
    waiting = engine.add([*PREFIX, 2], max_tokens=30)
    other = engine.add(FILLER[: 14 * SIZE + 1])
    output = engine.schedule()
    assert not output.scheduled_new_reqs
    assert engine.tier.figures.num_deferrals == 1
    engine.finish(output)
    output = engine.schedule()
    assert next(new.req_id for new in output.scheduled_new_reqs) == waiting
    engine.finish(output)
    assert other in engine.scheduler.requests
    engine.check_no_leak()
