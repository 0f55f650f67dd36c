"""Triton compiles the kernels to 16-byte accesses; no GPU is needed to see that."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from vllm_helium.kernels import triton_kernels

POINTERS = {
    "storage": "*u8",
    "staging": "*u8",
    "runs": "*i64",
    "block_ids": "*i64",
    "copies": "*i64",
}
CONSTANTS = {
    "ALIGNMENT": 16,
    "ELEMENT": triton_kernels._ELEMENTS[16],
    "TO_STAGING": True,
    "ITERATION_BYTES": triton_kernels.ITERATION_BYTES,
}


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("name", ["_move_blocks_kernel", "_copy_block_prefix_kernel"])
def test_aligned_moves_use_16_byte_accesses(name, architecture):
    kernel = getattr(triton_kernels, name)
    signature, constants, aligned = {}, {}, {}
    for position, argument in enumerate(kernel.arg_names):
        if argument in CONSTANTS:
            signature[argument] = "constexpr"
            constants[(position,)] = CONSTANTS[argument]
            continue
        signature[argument] = POINTERS.get(argument, "i32")
        if argument in POINTERS:
            aligned[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    code = compile(source, target=GPUTarget("cuda", architecture, 32)).asm["ptx"]
    stores = set(re.findall(r"st\.global\S*", code))
    assert stores == {"st.global.v2.b64"} or stores == {"st.global.v4.b32"}
