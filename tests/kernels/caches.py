"""Caches of every layout, and a byte-by-byte oracle that knows nothing of runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_helium.kernels import KVBlocks

POISON = 0xA5
LAYOUTS = ("LBNHC", "LBHNC", "LHBNC", "BLHNC", "BLNHC", "BHLNC")
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn)


@dataclass
class Cache:
    """A KV cache of one layout, full of random bytes, with padding between pages where asked."""

    storage: torch.Tensor
    views: list[torch.Tensor]
    num_blocks: int
    block_size: int

    def describe(self, **options) -> KVBlocks:
        options = {"token_addressable": True, **options}
        return KVBlocks.from_views(self.views, self.num_blocks, self.block_size, **options)

    def block_bytes(self, block: int, num_tokens: int | None = None) -> torch.Tensor:
        """Offsets in the storage of a block's bytes, or of its first tokens', in their order."""
        num_tokens = self.block_size if num_tokens is None else num_tokens
        offsets = []
        for view in self.views:
            item = view.element_size()
            kernel_blocks = view.shape[0] // self.num_blocks
            page = torch.tensor(view.storage_offset() * item)
            shape = (kernel_blocks, *view.shape[1:], item)
            for size, stride in zip(shape, (*view.stride(), 0), strict=True):
                step = stride * item or 1
                page = page[..., None] + torch.arange(size) * step
            page = page + block * kernel_blocks * view.stride(0) * item
            offsets.append(page.transpose(1, 2).flatten(0, 1)[:num_tokens].flatten())
        return torch.cat(offsets).unique()


def make_cache(
    layout: str = "LBNHC",
    *,
    dtype: torch.dtype = torch.bfloat16,
    num_layers: int = 3,
    num_blocks: int = 6,
    num_heads: int = 2,
    block_size: int = 16,
    head_size: int = 8,
    kernel_blocks: int = 1,
    padding: int = 0,
    device: str = "cpu",
    seed: int = 0,
) -> Cache:
    """Makes a cache with K and V of a token side by side, ``padding`` bytes after every page."""
    assert block_size % kernel_blocks == 0, "kernel blocks share a block's tokens evenly"
    sizes = {
        "L": num_layers,
        "B": num_blocks * kernel_blocks,
        "H": num_heads,
        "N": block_size // kernel_blocks,
        "C": 2 * head_size * dtype.itemsize,
    }
    padded = max(layout.index("L"), layout.index("B"))
    strides, stride = {}, 1
    for position, axis in reversed(list(enumerate(layout))):
        if position == padded:
            stride += padding
        strides[axis] = stride
        stride *= sizes[axis]
    generator = torch.Generator().manual_seed(seed)
    storage = torch.randint(0, 256, (stride,), dtype=torch.uint8, generator=generator).to(device)
    views = storage.as_strided(
        tuple(sizes[axis] for axis in "LBHNC"), tuple(strides[axis] for axis in "LBHNC")
    )
    return Cache(storage, [layer.view(dtype) for layer in views], num_blocks, block_size)


def read_only_copy(cache: Cache) -> torch.Tensor:
    """The storage as it is now, on the host."""
    return cache.storage.cpu().clone()


def poisoned(*shape: int, device: str = "cpu") -> torch.Tensor:
    return torch.full(shape, POISON, dtype=torch.uint8, device=device)


def expected_gather(cache: Cache, block_ids: list[int], staged_block_bytes: int) -> torch.Tensor:
    """What a gather into a poisoned buffer gives; ids outside the cache leave the poison."""
    staging = poisoned(len(block_ids), staged_block_bytes)
    for row, block in enumerate(block_ids):
        if 0 <= block < cache.num_blocks:
            staging[row] = cache.storage.cpu()[cache.block_bytes(block)]
    return staging
