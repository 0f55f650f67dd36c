"""What the equality benchmark compares and which claims it checks."""

import pytest

from benchmarks.prefix_cache.equality import (
    TRAFFIC,
    broken_claims,
    num_kv_blocks,
    partings,
    prompts,
)


@pytest.fixture
def row():
    return {
        "kv_cache": "small",
        "prompts": 4,
        "identical": 4,
        "identical_without_copies": 1,
        "cached_tokens": {"stock": 10, "tree": 12},
        "requests_with_fewer_cached": 1,
        "preemptions": {"stock": 1, "tree": 1},
        "evicted_blocks": {"stock": 3, "tree": 2},
    }


def test_prompts_are_the_same_every_time_fit_the_engine_and_share_heads():
    drawn = prompts("tiny", 60)
    traffic = TRAFFIC["tiny"]
    assert drawn == prompts("tiny", 60)
    assert max(map(len, drawn)) + traffic.max_tokens <= traffic.max_model_len
    first_tokens = {tuple(prompt[:16]) for prompt in drawn}
    assert len(first_tokens) <= 60 // traffic.prompts_per_head


@pytest.mark.parametrize("model", TRAFFIC)
@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_a_small_cache_holds_two_longest_requests_and_less_than_a_batch(model, block_size):
    small = num_kv_blocks(model, block_size, "small")
    blocks_per_request = TRAFFIC[model].max_model_len // block_size
    assert 2 * blocks_per_request < small < 16 * blocks_per_request
    assert small < num_kv_blocks(model, block_size, "ample")


def test_a_parting_names_the_first_differing_token_and_its_lead():
    one = {"token_ids": [[1, 2, 3], [4, 5, 6]], "leads": [[0.5, 0.25, 0.125], [1.0, 1.0, 1.0]]}
    other = {"token_ids": [[1, 9, 9], [4, 5, 6]]}
    assert partings(one, other) == [{"prompt": 0, "position": 1, "lead": 0.25}]
    assert partings(one, one) == []


def test_a_row_that_shows_everything_breaks_no_claim(row):
    assert broken_claims(row) == []
    ample = row | {"kv_cache": "ample", "requests_with_fewer_cached": 0}
    assert broken_claims(ample | {"preemptions": {"stock": 0, "tree": 0}}) == []


@pytest.mark.parametrize(
    "change",
    [
        {"identical": 3},
        {"identical_without_copies": 4},
        {"cached_tokens": {"stock": 13, "tree": 12}},
        {"preemptions": {"stock": 1, "tree": 0}},
        {"evicted_blocks": {"stock": 0, "tree": 2}},
        {"kv_cache": "ample", "preemptions": {"stock": 0, "tree": 0}},
        {"kv_cache": "ample", "requests_with_fewer_cached": 0},
    ],
)
def test_each_claim_can_break(row, change):
    assert len(broken_claims(row | change)) == 1
