"""Hook ``host-tier-order``: evicted blocks are stored before a step writes into them.

The model runner for CUDA zeroes and copies blocks before it shows the step to its KV connector.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

from vllm_helium.integration.host_tier_connector import HostTierMetadata


def before_block_writes(scheduler_output: Any) -> None:
    """Begins the step of the host tier, where this engine has one."""
    metadata = scheduler_output.kv_connector_metadata
    if isinstance(metadata, HostTierMetadata) and has_kv_transfer_group():
        get_kv_transfer_group().handle_preemptions(metadata)
