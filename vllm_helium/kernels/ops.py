"""The block moves as torch operators, ``torch.ops.vllm_helium.*``.

Each takes what its `reference` namesake takes, and hands it to the device's backend. The operators
say what they write, and have fake implementations, so compiled graphs may hold them. Use
`block_moves` for checked calls.
"""

from __future__ import annotations

import torch

from vllm_helium.kernels.dispatch import choose_backend

_STAGED = "Tensor runs, Tensor block_ids, {staging} staging, int num_blocks, int alignment"
_SCHEMAS = {
    "gather_blocks": f"(Tensor storage, {_STAGED.format(staging='Tensor(a!)')}, "
    "int max_programs) -> ()",
    "scatter_blocks": f"(Tensor(a!) storage, {_STAGED.format(staging='Tensor')}, "
    "int max_programs) -> ()",
    "copy_block_prefix": "(Tensor(a!) storage, Tensor runs, Tensor copies, int num_blocks, "
    "int alignment, int max_programs) -> ()",
}

LIBRARY = torch.library.Library("vllm_helium", "FRAGMENT")


def _gather_blocks(storage, runs, block_ids, staging, num_blocks, alignment, max_programs):
    choose_backend(storage.device.type).backend.gather_blocks(
        storage, runs, block_ids, staging, num_blocks, alignment, max_programs
    )


def _scatter_blocks(storage, runs, block_ids, staging, num_blocks, alignment, max_programs):
    choose_backend(storage.device.type).backend.scatter_blocks(
        storage, runs, block_ids, staging, num_blocks, alignment, max_programs
    )


def _copy_block_prefix(storage, runs, copies, num_blocks, alignment, max_programs):
    choose_backend(storage.device.type).backend.copy_block_prefix(
        storage, runs, copies, num_blocks, alignment, max_programs
    )


def _returns_nothing(*arguments):
    return None


for _name, _function in (
    ("gather_blocks", _gather_blocks),
    ("scatter_blocks", _scatter_blocks),
    ("copy_block_prefix", _copy_block_prefix),
):
    LIBRARY.define(f"{_name}{_SCHEMAS[_name]}")
    LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vllm_helium::{_name}", _returns_nothing, lib=LIBRARY)
