"""Tensors as the NumPy arrays that convbasis computes with, and back, copying nothing it need not.

The layout "bhsd" is convbasis's own, (..., heads, seq, dim); "bshd" has heads after seq.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd.forward_ad import unpack_dual

from .. import _core, _validate

NAME = "conv_attention"
LAYOUTS = ("bhsd", "bshd")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_tensors(tensors: Sequence[tuple[str, Any]], layout: str) -> None:
    """Everything about tensors that is lost once they are arrays, or would not get that far."""
    for name, tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise _validate.wrong(
                NAME, name, "is not a tensor", "torch.Tensor", type(tensor).__name__, TypeError
            )
        check_device(name, tensor, tensors[0][1].device)
        if tensor.layout != torch.strided:
            raise _validate.wrong(
                NAME, name, "is sparse", "a dense tensor", tensor.layout, NotImplementedError
            )
        if not torch.compiler.is_compiling() and unpack_dual(tensor).tangent is not None:
            raise _validate.wrong(
                NAME,
                name,
                "has a tangent, which would be lost: only the backward pass is known",
                "a tensor outside of forward-mode differentiation",
                "a dual tensor",
                NotImplementedError,
            )
        if tensor.dtype not in DTYPES:
            raise _validate.wrong(
                NAME,
                name,
                "has an unsupported dtype",
                "float32, float64, float16 or bfloat16",
                tensor.dtype,
                TypeError,
            )
        first = tensors[0][1]
        if tensor.dtype != first.dtype:
            raise _validate.wrong(
                NAME, name, "differs in dtype from query", first.dtype, tensor.dtype, TypeError
            )
        if layout == "bshd" and tensor.ndim < 3:
            raise _validate.wrong(
                NAME,
                name,
                "has too few dimensions for layout='bshd'",
                "shape (..., seq, heads, head_dim)",
                f"shape {tuple(tensor.shape)}",
            )


def check_device(name: str, tensor: torch.Tensor, first: torch.device) -> None:
    """The CPU, or a GPU that this build can use; the same one for all."""
    if tensor.device.type not in ("cpu", "cuda"):
        raise _validate.wrong(
            NAME,
            name,
            "is on a device that cannot be used",
            f"a tensor on the CPU or a CUDA device ({name}.cpu() makes one)",
            tensor.device,
            NotImplementedError,
        )
    if tensor.device != first:
        raise _validate.wrong(NAME, name, "is on another device than query", first, tensor.device)
    if tensor.device.type == "cuda" and not torch.compiler.is_compiling():
        missing = _core.cuda_why_unavailable()
        if missing:
            raise _validate.wrong(
                NAME,
                name,
                f"is on a GPU, which cannot be used: {missing}",
                f"a tensor on the CPU ({name}.cpu() makes one)",
                tensor.device,
                NotImplementedError,
            )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that is computed in: float64 for itself, float32 for everything smaller."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def swapped(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """A view from "bhsd" to `layout`, or from `layout` to "bhsd"."""
    return tensor.transpose(-3, -2) if layout == "bshd" else tensor


def array_of(tensor: torch.Tensor, layout: str) -> np.ndarray:
    """`tensor` in the computing type as a "bhsd" array: its own memory if it has that type."""
    array: np.ndarray = swapped(tensor, layout).to(compute_dtype(tensor.dtype)).numpy(force=True)
    return array


def lead_of(query: torch.Tensor, layout: str) -> Sequence[int]:
    """Shape of what has one entry a head: the leading dimensions of "bhsd"."""
    return swapped(query, layout).shape[:-2]
