"""The driver's own batched copy, ``cuMemcpyBatchAsync``, as a baseline.

This is what upstream's offloading ends up calling; here it is called straight, one descriptor per
block and layer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

CUDA_12_8 = 12080
STREAM_ORDER = 1


class _Location(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class _Attributes(ctypes.Structure):
    _fields_ = [
        ("source_access_order", ctypes.c_int),
        ("source_hint", _Location),
        ("destination_hint", _Location),
        ("flags", ctypes.c_uint),
    ]


def load_memcpy_batch():
    """Returns the driver's entry point.

    Raises:
        OSError: There is no driver, or it is older than CUDA 12.8.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    entry, status = ctypes.c_void_p(), ctypes.c_int()
    code = driver.cuGetProcAddress_v2(
        b"cuMemcpyBatchAsync",
        ctypes.byref(entry),
        CUDA_12_8,
        ctypes.c_uint64(0),
        ctypes.byref(status),
    )
    if code or not entry.value:
        raise OSError(f"the driver has no cuMemcpyBatchAsync (code {code}, status {status.value})")
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    return ctypes.CFUNCTYPE(
        ctypes.c_int, pointer, pointer, pointer, size, pointer, pointer, size, pointer, pointer
    )(entry.value)


class MemcpyBatch:
    """A prepared batch of copies of equal length; calling it submits them to the current stream."""

    def __init__(self, destinations: Sequence[int], sources: Sequence[int], num_bytes: int) -> None:
        self._submit = load_memcpy_batch()
        count = len(sources)
        self._arrays = (
            (ctypes.c_uint64 * count)(*destinations),
            (ctypes.c_uint64 * count)(*sources),
            (ctypes.c_size_t * count)(*[num_bytes] * count),
        )
        self._attributes = _Attributes(source_access_order=STREAM_ORDER)
        self._first = ctypes.c_size_t(0)
        self._failed = ctypes.c_size_t(0)

    def __call__(self) -> None:
        code = self._submit(
            *self._arrays,
            len(self._arrays[0]),
            ctypes.byref(self._attributes),
            ctypes.byref(self._first),
            1,
            ctypes.byref(self._failed),
            torch.cuda.current_stream().cuda_stream,
        )
        if code:
            raise RuntimeError(f"cuMemcpyBatchAsync failed with {code} at {self._failed.value}")
