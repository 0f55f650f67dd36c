"""Turns the KV caches that vLLM registers into what the kernels need.

The one place in the kernels that knows vLLM's types: it reads a group's specification to learn
whether tokens can be told apart inside a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from helium.errors import KernelError
from vllm_helium.kernels.kv_blocks import KVBlocks

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec


def describe_vllm_caches(
    kv_caches: Mapping[str, torch.Tensor], kv_cache_config: KVCacheConfig, group_id: int = 0
) -> KVBlocks:
    """Describes the caches of one cache group.

    Args:
        kv_caches: Layer name to cache view, as ``KVConnectorBase_V1.register_kv_caches`` gets them.
            Layers that share another's cache are moved once.
        kv_cache_config: What the worker was initialised with.
        group_id: Which of its groups.

    Returns:
        The group's blocks. They hold the cache's memory: drop them when the engine drops its caches
        and describe them again when it registers new ones.

    Raises:
        KernelError: A layer of the group is missing, or keeps its cache in another form than one
            strided view.
    """
    group = kv_cache_config.kv_cache_groups[group_id]
    views = []
    for layer in group.layer_names:
        view = kv_caches.get(layer)
        if not isinstance(view, torch.Tensor):
            raise KernelError(
                f"layer {layer!r} has {type(view).__name__} for a KV cache, expected a tensor; "
                "leave this cache group to the engine"
            )
        views.append(view)
    return KVBlocks.from_views(
        views,
        kv_cache_config.num_blocks,
        group.kv_cache_spec.block_size,
        token_addressable=_tokens_are_apart(group, views[0].device),
    )


def _tokens_are_apart(group: KVCacheGroupSpec, device: torch.device) -> bool:
    """Whether axis 2 of a view is the token and holds all of the token's bytes.

    The CPU backend reads a block's interior in an order of its own, packed and block-scaled formats
    keep bytes of several tokens together, and other specifications store states.
    """
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode

    spec = group.kv_cache_spec
    return (
        device.type == "cuda"
        and type(spec) is FullAttentionSpec
        and spec.kv_quant_mode in (KVQuantMode.NONE, KVQuantMode.FP8_PER_TENSOR)
        and spec.state_content_bytes is None
        and spec.tokens_per_state == 1
    )
