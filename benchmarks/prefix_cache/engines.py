"""KV managers and schedulers without an engine, stock and ours, from one configuration."""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.structured_output import StructuredOutputManager

from vllm_helium.config import HeliumConfig
from vllm_helium.integration.kv_cache_manager import TrtKVCacheManager, kv_cache_manager_factory
from vllm_helium.models.tiny import make_tiny_llama
from vllm_helium.prefix_cache.options import PrefixCacheOptions
from vllm_helium.scheduler.scheduler import HeliumScheduler

BLOCK_SIZE = 16


def kv_cache_config(num_blocks: int) -> KVCacheConfig:
    spec = FullAttentionSpec(
        block_size=BLOCK_SIZE, num_kv_heads=1, head_size=32, dtype=torch.float32
    )
    return KVCacheConfig(
        num_blocks=num_blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer.0"], spec)],
    )


def block_hasher() -> Any:
    """Upstream's default hasher (SHA-256)."""
    function = get_hash_fn_by_name("sha256")
    init_none_hash(function)
    return get_request_block_hasher(BLOCK_SIZE, function)


def build_manager(system: str, num_blocks: int, max_model_len: int) -> KVCacheManager:
    """``system`` is ``stock`` or ``tree``."""
    arguments = {
        "kv_cache_config": kv_cache_config(num_blocks),
        "max_model_len": max_model_len,
        "scheduler_block_size": BLOCK_SIZE,
        "hash_block_size": BLOCK_SIZE,
        "log_stats": False,
    }
    if system == "stock":
        return KVCacheManager(**arguments)
    return TrtKVCacheManager(options=PrefixCacheOptions(), **arguments)


@lru_cache(maxsize=1)
def _model() -> Path:
    return make_tiny_llama(Path(tempfile.mkdtemp()) / "llama")


def build_scheduler(
    system: str,
    num_blocks: int,
    max_num_seqs: int,
    options: PrefixCacheOptions = PrefixCacheOptions(),  # noqa: B008
) -> Scheduler:
    """Upstream's synchronous scheduler over upstream's KV manager (``stock``) or ours (``tree``).

    ``helium`` is our scheduler over our manager.
    """
    config = EngineArgs(
        model=str(_model()),
        dtype="float32",
        max_model_len=8192,
        block_size=BLOCK_SIZE,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=8192,
        enable_prefix_caching=True,
        enforce_eager=True,
        skip_tokenizer_init=True,
        kv_cache_memory_bytes=1 << 26,
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = num_blocks
    cls = Scheduler
    if system == "tree":
        factory = kv_cache_manager_factory(config, options)
        cls = type("TreeScheduler", (Scheduler,), {"kv_cache_manager_cls": staticmethod(factory)})
    elif system == "helium":
        config.helium_config = HeliumConfig()
        cls = HeliumScheduler
    return cls(
        vllm_config=config,
        kv_cache_config=kv_cache_config(num_blocks),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_SIZE,
        hash_block_size=BLOCK_SIZE,
        log_stats=False,
    )
