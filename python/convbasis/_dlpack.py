"""DLPack: where an array of another library lies, read from its capsule."""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass
from typing import Any

from . import _core

#: Kinds of devices whose memory CUDA kernels may use: CUDA and CUDA managed.
CUDA_KINDS = (2, 13)

#: Names of types by code and bits.
DTYPES = {
    (2, 16): "float16",
    (2, 32): "float32",
    (2, 64): "float64",
    (4, 16): "bfloat16",
}


class _Tensor(ctypes.Structure):
    """DLTensor, the head of what a capsule points to."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_kind", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Borrowed:
    """An array of another library. The capsule is never consumed: it lets go when it dies.

    The library may then give the memory to other work at once, so that work on `stream` is waited
    for before.
    """

    capsule: object
    stream: int
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # in elements; None = C-contiguous
    dtype: str
    device: int

    def __del__(self) -> None:
        if not _core.cuda_why_unavailable():
            with contextlib.suppress(RuntimeError):  # at the end of a process CUDA may be gone
                _core.cuda_wait((self.device, self.stream))


def is_on_device(value: Any) -> bool:
    """Whether `value` says by DLPack that it lies on a GPU."""
    if isinstance(value, type) or not hasattr(value, "__dlpack_device__"):
        return False
    return int(value.__dlpack_device__()[0]) in CUDA_KINDS


def borrow(value: Any, stream: int) -> Borrowed:
    """`value`, whose elements are ready for work that is enqueued on `stream` from now on."""
    capsule = value.__dlpack__(stream=stream)
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(pointer_of(capsule, b"dltensor"))
    axes = range(tensor.ndim)
    dtype = DTYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    return Borrowed(
        capsule,
        stream,
        (tensor.data or 0) + tensor.byte_offset,
        tuple(tensor.shape[axis] for axis in axes),
        tuple(tensor.strides[axis] for axis in axes) if tensor.strides else None,
        dtype or f"type {tensor.code} of {tensor.bits} bits",
        tensor.device,
    )
