"""Stands in for vLLM's compiled CUDA files where they are missing: a dense model's operators.

`install` registers Triton and torch versions under the names that vLLM's Python code calls, and
makes the imports of the missing files succeed. Attention and the KV cache need none: vLLM's Triton
backend brings its own kernels. Quantization, mixtures of experts and FlashAttention stay missing.

Importing this module imports torch, but not vLLM.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

COMPILED_MODULES = (
    "vllm._C_stable_libtorch",
    "vllm._moe_C_stable_libtorch",
    "vllm.vllm_flash_attn._vllm_fa2_C",
)
"""What vLLM's CUDA platform imports, whether or not it is used: all of it must be importable."""

SCHEMAS = {
    "rms_norm": "(Tensor! result, Tensor input, Tensor? weight, float epsilon) -> ()",
    "fused_add_rms_norm": "(Tensor! input, Tensor! residual, Tensor? weight, float epsilon) -> ()",
    "silu_and_mul": "(Tensor! result, Tensor input) -> ()",
    "rotary_embedding": "(Tensor positions, Tensor! query, Tensor!? key, int head_size, "
    "Tensor cos_sin_cache, bool is_neox) -> ()",
    "get_cuda_view_from_cpu_tensor": "(Tensor cpu_tensor) -> Tensor",
    "weak_ref_tensor": "(Tensor input) -> Tensor",
}
"""Operator of the namespace ``_C`` -> its signature."""

CAPABILITIES = (
    "cutlass_group_gemm_supported",
    "cutlass_scaled_mm_supports_block_fp8",
    "cutlass_scaled_mm_supports_fp4",
    "cutlass_scaled_mm_supports_fp8",
    "mxfp4_experts_quant_supported",
)
"""Operators by which vLLM asks what its library can do on a compute capability: here, nothing."""

_LIBRARIES: list[torch.library.Library] = []  # an operator lives as long as its library


def missing_modules() -> list[str]:
    """Returns the modules that vLLM's tree does not hold compiled."""
    found = find_spec("vllm")
    folders = [Path(folder) for folder in (found and found.submodule_search_locations) or ()]
    files = {name: Path(*name.split(".")[1:]) for name in COMPILED_MODULES}
    compiled = {
        name
        for name, file in files.items()
        for folder in folders
        if any((folder / file.parent).glob(f"{file.name}.*so"))
    }
    return [name for name in files if name not in compiled]


def install() -> list[str]:
    """Registers what is missing; call it before vLLM's platform is imported.

    Returns:
        The operators that were registered; empty where vLLM's own files are there.
    """
    missing = missing_modules()
    if not missing:
        return []
    for name in missing:
        sys.modules[name] = ModuleType(name, "Stands in for a compiled file that is missing.")
    return register("CUDA")


def register(device: str) -> list[str]:
    """Registers the operators that no library has, for tensors on a device ("CUDA" or "CPU")."""
    from benchmarks.gpu import plain_kernels

    library = torch.library.Library("_C", "FRAGMENT")
    _LIBRARIES.append(library)
    registered = []
    for name, schema in SCHEMAS.items():
        if hasattr(torch.ops._C, name):
            continue
        library.define(name + schema)
        on_host = name == "get_cuda_view_from_cpu_tensor"
        implementation = globals().get(name) or getattr(plain_kernels, name)
        library.impl(name, implementation, "CPU" if on_host else device)
        registered.append(name)
    for name in CAPABILITIES:
        if not hasattr(torch.ops._C, name):
            library.define(f"{name}(int cuda_device_capability) -> bool")
            library.impl(name, lambda _: False, "CompositeExplicitAutograd")
    return registered


def get_cuda_view_from_cpu_tensor(cpu_tensor: torch.Tensor) -> torch.Tensor:
    """Returns a CUDA tensor over the same pinned memory; host and device share one address."""
    if not cpu_tensor.numel():
        return torch.empty(cpu_tensor.shape, dtype=cpu_tensor.dtype, device="cuda")
    if not cpu_tensor.is_pinned():
        raise ValueError("the tensor is not pinned; allocate it with pin_memory=True")
    return _alias(cpu_tensor, cpu_tensor)


def weak_ref_tensor(input: torch.Tensor) -> torch.Tensor:
    """Returns a tensor over the same memory that does not keep it alive."""
    return _alias(input, None)


class _Memory:
    """Memory as the CUDA array interface describes it, version 3; torch keeps it, and its owner."""

    def __init__(self, address: int, num_bytes: int, owner: Any) -> None:
        self.owner = owner
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": (num_bytes,),
            "strides": None,
            "typestr": "|u1",
            "version": 3,
        }


def _alias(tensor: torch.Tensor, owner: Any) -> torch.Tensor:
    # As bytes: the interface has no name for bfloat16 and its like.
    span = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    num_bytes = (span + 1) * tensor.element_size()
    memory = _Memory(tensor.data_ptr(), num_bytes, owner)
    view = torch.as_tensor(memory, device="cuda").view(tensor.dtype)
    return view.as_strided(tensor.shape, tensor.stride())


def check_on_device() -> dict[str, str]:
    """Tries every operator on the GPU; returns operator -> what is wrong with it."""
    from benchmarks.gpu import plain_checks

    return plain_checks.check("cuda")
