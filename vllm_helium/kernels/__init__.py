"""Block moves: KV blocks of all layers to a staging buffer, back, and from block to block.

One operation has one name through all layers: `block_moves` is what callers use, `checks` what it
refuses, `ops` registers the torch operator, `dispatch` picks the backend, and `compiled_library`,
`triton_kernels` and `reference` do the work, the last one in plain torch for the others to equal.
`kv_blocks` and `runs` turn any cache layout into the table of byte runs that all of them loop over;
`vllm_caches` reads that off vLLM's caches, and `mover` orders transfers on a stream of their own.

Bytes are moved as bytes: element types and head sizes play no part. Importing this package imports
torch but not vllm.
"""

from __future__ import annotations

from vllm_helium.kernels.block_moves import copy_block_prefix, gather_blocks, scatter_blocks
from vllm_helium.kernels.dispatch import describe
from vllm_helium.kernels.kv_blocks import KVBlocks

__all__ = ["KVBlocks", "copy_block_prefix", "describe", "gather_blocks", "scatter_blocks"]
