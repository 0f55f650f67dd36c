"""What an engine is built from: architecture figures and scheduler options, no weights, no hub."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm.config import KVTransferConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
)

from helium.cost import ModelShape, RooflineModel
from helium.errors import ConfigError


@dataclass(frozen=True)
class EngineOptions:
    """Options of a simulated engine, named as vLLM's; the defaults are the benchmarks'.

    Attributes:
        num_blocks: KV blocks; ``None`` for as many as the device's memory holds beside the weights.
        max_model_len: Longest sequence in tokens.
        async_scheduling: Schedule a step while the one before runs, as vLLM does on CUDA.
        scheduler_cls: Dotted path of a scheduler instead of vLLM's.
        kv_connector: Fields of vLLM's ``KVTransferConfig``, for a connector of its own.
        helium: ``True`` or fields of ``HeliumConfig`` for this fork's scheduler.
    """

    num_blocks: int | None = None
    block_size: int = 16
    max_num_seqs: int = 1_024
    max_num_batched_tokens: int = 4_096
    max_model_len: int = 40_960
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    async_scheduling: bool = True
    scheduler_cls: str | None = None
    helium: bool | dict[str, Any] = field(default=False)
    kv_connector: dict[str, Any] | None = None

    def blocks_on(self, cost: RooflineModel) -> int:
        """Returns the engine's KV blocks on a device; one of them vLLM never hands out.

        Raises:
            ConfigError: Fewer than one sequence of two blocks fits.
        """
        num_blocks = self.num_blocks or cost.kv_capacity_tokens // self.block_size
        if num_blocks < 3:
            raise ConfigError(
                f"num_blocks: an engine needs 3 or more, got {num_blocks}; give it more memory"
            )
        return num_blocks

    def vllm_config(self, shape: ModelShape, num_blocks: int) -> VllmConfig:
        """Returns vLLM's configuration of the engine; the model's is a file that is gone again."""
        with tempfile.TemporaryDirectory(prefix="helium-simulated-") as folder:
            Path(folder, "config.json").write_text(json.dumps(_model_config(shape, self)))
            config = EngineArgs(
                model=folder,
                dtype="bfloat16",
                load_format="dummy",
                skip_tokenizer_init=True,
                enforce_eager=True,
                max_model_len=self.max_model_len,
                block_size=self.block_size,
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=self.max_num_batched_tokens,
                enable_prefix_caching=self.enable_prefix_caching,
                enable_chunked_prefill=self.enable_chunked_prefill,
                kv_cache_memory_bytes=1 << 26,
                scheduler_cls=self.scheduler_cls,
                helium=self.helium,
                kv_transfer_config=KVTransferConfig(**self.kv_connector)
                if self.kv_connector
                else None,
            ).create_engine_config()
        config.cache_config.num_gpu_blocks = num_blocks
        # On the CPU vLLM turns it off; what is simulated is a GPU.
        config.scheduler_config.async_scheduling = self.async_scheduling
        if config.helium_config is not None:
            config.helium_config.finalize(config)
        return config

    def kv_cache_config(self, shape: ModelShape, num_blocks: int) -> KVCacheConfig:
        """Returns the layout of the KV cache: one group of full-attention layers."""
        spec = FullAttentionSpec(
            block_size=self.block_size,
            num_kv_heads=shape.num_kv_heads,
            head_size=shape.head_size,
            dtype=torch.bfloat16,
        )
        layers = [f"layer.{number}" for number in range(shape.num_layers)]
        page = spec.page_size_bytes
        tensor = KVCacheTensor(
            size=page * len(layers) * num_blocks,
            layers=layers,
            layer_stride=page * num_blocks,
            block_stride=page,
        )
        return KVCacheConfig(
            num_blocks=num_blocks,
            kv_cache_tensors=[tensor],
            kv_cache_groups=[KVCacheGroupSpec(layers, spec)],
        )


def _model_config(shape: ModelShape, options: EngineOptions) -> dict[str, Any]:
    """A Llama of the same attention shape: the scheduler sees nothing else of a model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.num_heads * shape.head_size,
        "intermediate_size": 4 * shape.num_heads * shape.head_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_size,
        "vocab_size": 1 << 31,  # token ids are hashes
        "max_position_embeddings": options.max_model_len,
        "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
    }
