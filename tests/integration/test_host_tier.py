"""A real engine with a host tier: the same tokens under heavy KV pressure, and clear refusals."""

from __future__ import annotations

import random

import pytest

from helium.errors import ConfigError


def rounds_of_prompts():
    """Three rounds over prefixes that fit neither together nor with the answers."""
    generator = random.Random(3)
    prefixes = [[generator.randrange(3, 250) for _ in range(320)] for _ in range(6)]
    return [
        [prefix + [generator.randrange(3, 250) for _ in range(20)] for prefix in prefixes]
        for _ in range(3)
    ]


def test_outputs_are_the_same_with_a_host_tier_under_pressure(run_engine):
    rounds = rounds_of_prompts()
    block_bytes = 2 * 2 * 32 * 64 * 4  # K and V, layers, tokens, hidden size, float32
    tight = {"kv_cache_memory_bytes": 24 * block_bytes, "max_num_seqs": 1, "max_model_len": 512}
    stock = run_engine(rounds, **tight)
    tier = run_engine(rounds, helium={"host_gib": 0.05}, **tight)
    assert [[o.token_ids for o in batch] for batch in tier] == [
        [o.token_ids for o in batch] for batch in stock
    ]
    # Later rounds find on the host what the device had no room for.
    cached = [sum(o.num_cached_tokens for o in batch) for batch in (*tier[1:], *stock[1:])]
    assert min(cached[:2]) >= 6 * 300 > max(cached[2:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"helium": {"host_gib": 1.0, "prefix_index": "stock"}}, "needs the tree"),
        (
            {
                "helium": {"host_gib": 1.0},
                "kv_transfer_config": {
                    "kv_connector": "OffloadingConnector",
                    "kv_role": "kv_both",
                },
            },
            "OffloadingConnector are both set.*block hashes.*host_gib to 0",
        ),
        (
            {
                "helium": {"host_gib": 1.0},
                "kv_transfer_config": {
                    "kv_connector": "MultiConnector",
                    "kv_role": "kv_both",
                    "kv_connector_extra_config": {
                        "connectors": [
                            {"kv_connector": "HeliumHostTier", "kv_role": "kv_producer"},
                            {"kv_connector": "SimpleCPUOffloadConnector", "kv_role": "kv_both"},
                        ]
                    },
                },
            },
            "with SimpleCPUOffloadConnector are both set.*by the hash that vLLM's pool keeps",
        ),
    ],
)
def test_what_does_not_go_together_with_a_host_tier_is_refused(
    tiny_model, engine_env, fields, message
):
    from vllm.engine.arg_utils import EngineArgs

    arguments = engine_env | fields
    if transfer := arguments.get("kv_transfer_config"):
        from vllm.config import KVTransferConfig

        arguments["kv_transfer_config"] = KVTransferConfig(**transfer)
    with pytest.raises((ConfigError, ValueError), match=message):
        EngineArgs(model=str(tiny_model), **arguments).create_engine_config()
