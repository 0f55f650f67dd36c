"""Upstream's KV cache manager over the radix tree, without scheduler and worker."""

from __future__ import annotations

import pytest
import torch
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)
from vllm.v1.request import Request, RequestStatus

from vllm_helium.integration.kv_cache_manager import TrtKVCacheManager, kv_cache_manager_factory
from vllm_helium.prefix_cache.options import PrefixCacheOptions

BLOCK = 4


def full_attention():
    return FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)


def make_manager(num_blocks=32, options=PrefixCacheOptions(min_partial_tokens=2), **changes):  # noqa: B008
    specs = changes.pop("specs", (full_attention(),))
    manager = TrtKVCacheManager(
        kv_cache_config=KVCacheConfig(
            num_blocks=num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[
                KVCacheGroupSpec([f"layer.{i}"], spec) for i, spec in enumerate(specs)
            ],
        ),
        max_model_len=1024,
        scheduler_block_size=BLOCK,
        hash_block_size=BLOCK,
        log_stats=True,
        options=options,
        **changes,
    )
    manager.clock = lambda: 0.0
    return manager


def make_request(name, prompt, **fields):
    return Request(
        name, list(prompt), SamplingParams(max_tokens=50, temperature=0.0), None, **fields
    )


def admit(manager, request, num_tokens=None):
    """One step: looks the request up and allocates its prompt; returns the cached tokens."""
    manager.new_step_starts()
    blocks, num_cached, _ = manager.get_computed_blocks(request)
    num_new = (num_tokens or request.num_tokens) - num_cached
    new = manager.allocate_slots(
        request, num_new, num_new_computed_tokens=num_cached, new_computed_blocks=blocks
    )
    assert new is not None
    manager.record_prefix_cache_stats(request, num_cached)
    request.status = RequestStatus.RUNNING
    request.num_computed_tokens = num_cached + num_new
    copies, retained = manager.take_kv_cache_block_copies()
    manager.block_pool.free_blocks(retained)
    return num_cached, copies


def finish(manager, request):
    request.status = RequestStatus.FINISHED_STOPPED
    manager.free(request)


def serve(manager, name, prompt, **fields):
    request = make_request(name, prompt, **fields)
    result = admit(manager, request)
    finish(manager, request)
    manager.pool.index.check_integrity()
    return result


def test_a_repeated_prompt_hits_all_but_its_last_token_through_one_copy():
    manager = make_manager()
    assert serve(manager, "a", range(12)) == (0, [])
    num_cached, copies = serve(manager, "b", range(12))
    assert (num_cached, len(copies)) == (11, 1)
    assert manager.block_pool.get_num_free_blocks() == 31


def test_the_partial_tail_of_a_finished_request_is_found():
    manager = make_manager()
    serve(manager, "a", range(10))
    assert serve(manager, "b", [*range(10), 50, 51])[0] == 10


def test_the_partial_tail_of_a_preempted_request_is_found():
    manager = make_manager()
    request = make_request("a", range(11))
    admit(manager, request)
    manager.free(request)
    request.status, request.num_computed_tokens = RequestStatus.PREEMPTED, 0
    assert admit(manager, request)[0] == 10


def test_the_partial_tail_of_a_prompt_is_found_while_its_request_goes_on():
    manager = make_manager()
    first = make_request("a", range(10))
    admit(manager, first)
    for token in (60, 61, 62, 63):  # the tail's block fills up and the next one begins
        second = make_request(f"b{token}", [*range(10), token + 100, 51])
        assert admit(manager, second)[0] == 10
        finish(manager, second)
        first.append_output_token_ids(token)
        assert manager.allocate_slots(first, 1) is not None
        first.num_computed_tokens += 1
        manager.pool.index.check_integrity()
    finish(manager, first)
    assert serve(manager, "c", [*range(10), 60, 61, 62, 63, 64])[0] == 14
    assert manager.block_pool.get_num_free_blocks() == 31


def test_a_prompt_in_parts_is_found_to_its_end_only_when_it_is_computed():
    manager = make_manager()
    first = make_request("a", range(10))
    admit(manager, first, num_tokens=7)
    assert admit(manager, make_request("b", [*range(10), 50]))[0] == 4
    manager.new_step_starts()
    assert manager.allocate_slots(first, 3) is not None
    first.num_computed_tokens = 10
    assert admit(manager, make_request("c", [*range(10), 51]))[0] == 10
    manager.pool.index.check_integrity()


def test_without_prompt_tails_a_running_prompt_is_shared_in_whole_blocks():
    manager = make_manager(options=PrefixCacheOptions(min_partial_tokens=2, prompt_tails=False))
    admit(manager, make_request("a", range(10)))
    assert admit(manager, make_request("b", [*range(10), 50, 51]))[0] == 8


def test_blocks_a_preempted_step_never_wrote_are_not_found():
    manager = make_manager()
    request = make_request("a", range(16))
    admit(manager, request, num_tokens=8)
    assert manager.allocate_slots(request, 8) is not None
    manager.free(request)
    assert serve(manager, "b", range(20))[0] == 8


def test_output_tokens_are_cached_as_they_fill_blocks():
    manager = make_manager()
    request = make_request("a", range(6))
    admit(manager, request)
    for token in (60, 61, 62):
        request.append_output_token_ids(token)
        assert manager.allocate_slots(request, 1) is not None
        request.num_computed_tokens += 1
    assert manager.estimate_cached_tokens(request) == 8
    finish(manager, request)
    assert serve(manager, "b", [*range(6), 60, 61, 62, 63])[0] == 8


def running_with_one_slot_left(manager):
    request = make_request("a", range(6))
    admit(manager, request)
    request.append_output_token_ids(60)
    return request


def test_a_decode_step_inside_a_block_leaves_upstreams_method_alone(monkeypatch):
    manager = make_manager()
    request = running_with_one_slot_left(manager)
    monkeypatch.setattr(KVCacheManager, "allocate_slots", None)
    blocks = manager.allocate_slots(request, 1, num_lookahead_tokens=1)
    assert blocks is manager.empty_kv_cache_blocks


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ({"num_lookahead_tokens": 2}, RequestStatus.RUNNING),
        ({"num_external_computed_tokens": 1}, RequestStatus.RUNNING),
        ({"reserved_blocks": 1}, RequestStatus.RUNNING),
        ({"delay_cache_blocks": True, "num_lookahead_tokens": 0}, RequestStatus.RUNNING),
        ({"full_sequence_must_fit": True}, RequestStatus.RUNNING),
        ({"new_computed_blocks": None}, RequestStatus.RUNNING),
        ({}, RequestStatus.WAITING),
        ({}, RequestStatus.PREEMPTED),
    ],
)
def test_any_other_allocation_is_upstreams(monkeypatch, arguments, status):
    manager = make_manager()
    request = running_with_one_slot_left(manager)
    request.status = status
    monkeypatch.setattr(KVCacheManager, "allocate_slots", lambda *args, **kwargs: "upstream")
    assert manager.allocate_slots(request, 1, **arguments) == "upstream"


def test_a_step_that_fills_a_known_block_is_upstreams():
    manager = make_manager()
    request = running_with_one_slot_left(manager)
    request.num_computed_tokens = 7
    request.append_output_token_ids(61)
    assert manager.allocate_slots(request, 1).get_block_ids() == ([],)
    assert manager.estimate_cached_tokens(request) == 8


def test_no_tokens_at_all_are_refused_as_upstream_does():
    manager = make_manager()
    with pytest.raises(ValueError, match="greater than 0"):
        manager.allocate_slots(running_with_one_slot_left(manager), 0)


def test_tokens_in_flight_are_not_cached_as_a_tail():
    manager = make_manager()
    request = make_request("a", range(7))
    admit(manager, request)
    request.append_output_token_ids(9)
    request.num_computed_tokens, request.num_output_placeholders = 9, 2
    finish(manager, request)
    assert serve(manager, "b", [*range(7), 9, 9])[0] == 7


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_salt": "tenant"},
        {"lora_request": LoRARequest("a", 1, "/a")},
        {"lora_request": LoRARequest("a", 1, "/b")},
        {"lora_request": LoRARequest("a", 1, "/a"), "cache_salt": "tenant"},
    ],
)
def test_salts_and_adapters_keep_prompts_apart(fields):
    manager = make_manager()
    serve(manager, "plain", range(12))
    assert serve(manager, "own", range(12), **fields)[0] == 0
    assert manager.misses.num_requests["other_namespace"] == 1
    assert serve(manager, "again", range(12), **fields)[0] == 11


def image(identifier, offset):
    return MultiModalFeatureSpec(
        data=None,
        modality="image",
        identifier=identifier,
        mm_position=PlaceholderRange(offset=offset, length=3),
    )


def test_multimodal_blocks_match_only_with_the_same_content_and_only_whole():
    manager = make_manager()
    serve(manager, "a", [7] * 12, mm_features=[image("cat", 5)])
    assert serve(manager, "b", [7] * 12, mm_features=[image("cat", 5)])[0] == 11
    assert serve(manager, "c", [7] * 12, mm_features=[image("dog", 5)])[0] == 4
    assert serve(manager, "d", [7] * 12)[0] == 4


def test_a_streaming_session_that_replaces_tokens_is_read_anew():
    manager = make_manager()
    request = make_request("a", range(8), resumable=True)
    admit(manager, request)
    del request._all_token_ids[6:]
    request._all_token_ids.extend([70, 71, 72, 73, 74, 75])
    request.num_computed_tokens = 6
    manager.coordinator.single_type_managers[0].num_cached_block["a"] = 1
    manager.pool.index.forget(manager.get_block_ids("a")[0][1])
    assert manager.allocate_slots(request, 6) is not None
    request.num_computed_tokens = 12
    finish(manager, request)
    assert serve(manager, "b", [*range(6), 70, 71, 72, 73, 74])[0] == 10


def test_a_request_that_must_not_read_the_cache_does_not_but_fills_it():
    manager = make_manager()
    serve(manager, "a", range(12))
    request = make_request("b", range(12))
    request.skip_reading_prefix_cache = True
    assert admit(manager, request)[0] == 0
    finish(manager, request)


def test_without_partial_reuse_hits_are_whole_blocks():
    manager = make_manager(options=PrefixCacheOptions(min_partial_tokens=0))
    serve(manager, "a", range(10))
    assert serve(manager, "b", range(10)) == (8, [])


def test_reset_waits_for_running_requests_and_then_forgets_all():
    manager = make_manager()
    request = make_request("a", range(12))
    admit(manager, request)
    assert not manager.reset_prefix_cache()
    finish(manager, request)
    assert manager.reset_prefix_cache()
    assert serve(manager, "b", range(12))[0] == 0


def test_evicted_blocks_are_not_found():
    manager = make_manager()
    request = make_request("a", range(12))
    admit(manager, request)
    manager.evict_blocks({manager.get_block_ids("a")[0][1]})
    finish(manager, request)
    assert serve(manager, "b", range(12))[0] == 4


def test_a_full_pool_gives_no_slots_and_leaks_nothing():
    manager = make_manager(num_blocks=4)
    first = make_request("a", range(12))
    admit(manager, first)
    second = make_request("b", range(50, 62))
    assert manager.allocate_slots(second, 12) is None
    finish(manager, first)
    assert serve(manager, "c", range(50, 62))[0] == 0
    assert manager.block_pool.get_num_free_blocks() == 3
    assert manager.block_pool.num_evicted_blocks == 3


def test_a_leased_prefix_outlives_ordinary_traffic():
    manager = make_manager(num_blocks=11)
    first = make_request("a", range(8))
    admit(manager, first)
    assert manager.lease_prefix(first, 8, 60.0)
    finish(manager, first)
    for round_ in range(6):
        serve(manager, f"other-{round_}", range(100 * round_ + 100, 100 * round_ + 120))
    assert serve(manager, "b", [*range(8), 9])[0] == 8


def test_the_free_queue_serves_upstreams_other_callers():
    manager = make_manager(num_blocks=6)
    queue = manager.block_pool.free_block_queue
    first = queue.popleft()
    rest = queue.popleft_n(2)
    assert queue.num_free_blocks == 2
    queue.append(first)
    queue.prepend_n(rest)
    queue.remove(first)
    queue.append_n([first])
    blocks = queue.get_all_free_blocks()
    assert len(blocks) == queue.num_free_blocks == 5
    assert list(queue.iter_blocks_after(blocks[1])) == blocks[2:]
    assert list(queue.iter_blocks_after(None)) == blocks


@pytest.mark.parametrize(
    "changes",
    [
        {"options": None},
        {"enable_caching": False},
        {"enable_kv_cache_events": True},
        {"use_eagle": True},
        {"unsupported": "a KV connector needs block hashes"},
        {"specs": (full_attention(), full_attention())},
        {
            "specs": (
                SlidingWindowSpec(
                    block_size=BLOCK,
                    num_kv_heads=1,
                    head_size=8,
                    dtype=torch.float32,
                    sliding_window=8,
                ),
            )
        },
    ],
)
def test_what_the_tree_does_not_serve_stays_upstreams(changes):
    manager = make_manager(**changes)
    assert manager.pool is None and manager.needs_block_hashes
    assert type(manager.block_pool).__module__.startswith("vllm.")
    assert manager.describe() == {"index": "upstream"}
    request = make_request("a", range(6))
    assert not manager.lease_prefix(request, 6, 1.0)
    manager.register_plan("digest", None)
    manager.free(request)


def test_the_tree_needs_no_block_hashes_and_says_what_it_holds():
    manager = make_manager()
    assert not manager.needs_block_hashes
    serve(manager, "a", range(8))
    described = manager.describe()
    assert (described["index"], described["num_indexed"]) == ("tree", 2)
    assert described["miss_requests"]["never_seen"] == 1


def test_upstreams_own_manager_is_untouched():
    manager = KVCacheManager(
        kv_cache_config=KVCacheConfig(
            num_blocks=8,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer.0"], full_attention())],
        ),
        max_model_len=64,
        scheduler_block_size=BLOCK,
        hash_block_size=BLOCK,
    )
    assert type(manager.block_pool).__name__ == "BlockPool"


def report_of(manager, name, prompt, report):
    request = make_request(name, prompt)
    request.prefill_stats.helium = report
    admit(manager, request)
    finish(manager, request)
    return request.prefill_stats.helium


def test_a_request_that_asks_is_told_why_its_lookup_fell_short():
    manager = make_manager(num_blocks=8)
    first = report_of(manager, "a", range(12), {"planned": True})
    assert first["planned"]
    assert first["prefix_cache"] == {
        "hit_tokens": 0,
        "miss_tokens": 12,
        "reason": "never_seen",
        "miss_token": 0,
    }
    again = report_of(manager, "b", [*range(12), 90], {})["prefix_cache"]
    assert (again["hit_tokens"], again["miss_tokens"]) == (12, 1)
    serve(manager, "big", range(100, 128))
    evicted = report_of(manager, "c", range(12), {})["prefix_cache"]
    assert evicted["reason"] == "evicted" and evicted["evicted_ago_s"] >= 0
    assert report_of(manager, "plain", range(12), None) is None


class FakeConfig:
    kv_transfer_config = None
    speculative_config = None


@pytest.mark.parametrize("field", ["kv_transfer_config", "speculative_config"])
def test_the_factory_knows_what_the_whole_engine_rules_out(field):
    config = FakeConfig()
    assert kv_cache_manager_factory(config, None).keywords["unsupported"] is None
    setattr(config, field, object())
    assert kv_cache_manager_factory(config, None).keywords["unsupported"]
