"""The operators tell torch what they write, and compiled graphs may hold them."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.caches import make_cache, poisoned
from vllm_helium.kernels import ops  # noqa: F401

OPS = torch.ops.vllm_helium


def arguments(name, device="cpu"):
    kv = make_cache(device=device).describe()
    ids = torch.tensor([3, 1], device=device)
    if name == "copy_block_prefix":
        copies = torch.tensor([[0, 1, 5], [3, 4, 16]], device=device)
        return (kv.storage, kv.tokens.rows, copies, kv.num_blocks, kv.tokens.alignment, 4)
    staging = poisoned(2, kv.staged_block_bytes, device=device)
    return (
        kv.storage,
        kv.blocks.rows,
        ids,
        staging,
        kv.num_blocks,
        kv.blocks.alignment,
        4,
    )


@pytest.mark.parametrize("name", ["gather_blocks", "scatter_blocks", "copy_block_prefix"])
def test_operators_keep_their_declared_contract(name):
    # The fake implementations, the declared writes and functionalization, by torch's own checks.
    torch.library.opcheck(getattr(OPS, name).default, arguments(name))


@pytest.mark.parametrize("name", ["gather_blocks", "scatter_blocks", "copy_block_prefix"])
def test_a_compiled_graph_moves_the_same_bytes(name):
    operation = getattr(OPS, name)
    eager, compiled = arguments(name), arguments(name)
    operation(*eager)
    torch.compile(lambda *call: operation(*call), backend="aot_eager", fullgraph=True)(*compiled)
    for expected, tensor in zip(eager, compiled, strict=True):
        assert not isinstance(expected, torch.Tensor) or torch.equal(expected, tensor)
    assert any(
        isinstance(before, torch.Tensor) and not torch.equal(before, after)
        for before, after in zip(arguments(name), compiled, strict=True)
    ), "the operation moved something"
