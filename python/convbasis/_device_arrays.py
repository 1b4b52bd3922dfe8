"""Arrays on a GPU, read where they lie: torch, `__cuda_array_interface__` or DLPack.

No other library is imported here: an array whose type is of one shows that it has been.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from . import _core, _dlpack
from ._validate import wrong

#: address, shape, strides in elements, dtype
Native: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...], str]

#: Of elements on a GPU.
DTYPES = ("float32", "float64", "float16", "bfloat16")

#: Libraries with `__cuda_array_interface__` whose arrays may be written and name their stream. All
#: others are read by DLPack, which knows bfloat16 and makes them ready first.
WRITEABLE = ("cupy", "numba")

#: Streams by number, as `__cuda_array_interface__` and DLPack count them.
LEGACY_DEFAULT = 1


@dataclass(frozen=True)
class DeviceArray:
    """Where the elements of a caller's array lie."""

    owner: Any  # the caller's array
    package: str  # whose type it is: torch, cupy, numba, ...
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    dtype: np.dtype[Any] | str  # NumPy's, or "bfloat16"
    device: int
    stream: int | None  # the work on it is enqueued there; None: there is none to wait for
    writeable: bool = True

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize if isinstance(self.dtype, np.dtype) else 2

    def with_axes(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> DeviceArray:
        """Another view from the same address on."""
        return replace(self, shape=shape, strides=strides)

    def span(self) -> tuple[int, int]:
        """First byte, and the one after the last; an interval that holds all elements."""
        if self.size == 0:
            return self.address, self.address
        reach = [(n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)]
        low, high = sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach)
        return self.address + low * self.itemsize, self.address + (high + 1) * self.itemsize

    def __str__(self) -> str:
        return f"{self.package} array of shape {self.shape} on cuda:{self.device}"


def is_on_device(value: object) -> bool:
    """Whether a GPU holds `value`; False for what is no array at all."""
    if isinstance(value, np.ndarray):
        return False
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return bool(value.is_cuda)
    return hasattr(value, "__cuda_array_interface__") or _dlpack.is_on_device(value)


def package_of(value: object) -> str:
    return type(value).__module__.partition(".")[0]


def any_on_device(*values: object) -> bool:
    return any(is_on_device(value) for value in values)


def device_array(function: str, name: str, value: Any) -> DeviceArray:
    """`value`, an array on a GPU of a supported type; nothing is copied or waited for."""
    if not is_on_device(value):
        raise wrong(
            function,
            name,
            "is not on a GPU, but another array is",
            "all arrays on one device; none is moved",
            type(value).__name__,
            TypeError,
        )
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        array = of_tensor(function, name, value, torch)
    elif package_of(value) in WRITEABLE or not hasattr(value, "__dlpack__"):
        array = of_interface(function, name, value)
    else:
        array = _of_dlpack(function, name, value)
    if str(array.dtype) not in DTYPES:
        raise wrong(
            function,
            name,
            "has an unsupported dtype",
            " or ".join(DTYPES),
            array.dtype,
            TypeError,
        )
    return array


def dtype_named(name: str) -> np.dtype[Any] | str:
    """NumPy's type where it has one of that name that is supported, else the name."""
    return np.dtype(name) if name in ("float32", "float64", "float16") else name


def of_tensor(function: str, name: str, tensor: Any, torch: Any) -> DeviceArray:
    """A torch tensor. Work goes to the current stream of its device."""
    if tensor.layout != torch.strided:
        raise wrong(function, name, "is sparse", "a dense tensor", tensor.layout, TypeError)
    if tensor.requires_grad and torch.is_grad_enabled():
        raise wrong(
            function,
            name,
            "requires a gradient, which would be lost",
            f"{name}.detach(), or a call inside torch.no_grad()",
            "requires_grad=True",
            NotImplementedError,
        )
    dtype = str(tensor.dtype).removeprefix("torch.")
    return DeviceArray(
        tensor,
        "torch",
        tensor.data_ptr(),
        tuple(tensor.shape),
        tuple(tensor.stride()),
        dtype_named(dtype),
        tensor.device.index,
        torch.cuda.current_stream(tensor.device).cuda_stream,
    )


def of_interface(function: str, name: str, value: Any) -> DeviceArray:
    """An array with `__cuda_array_interface__`, version 2 or 3."""
    interface = value.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise wrong(
            function, name, "has a mask, which cannot be honoured", "no mask", "one", TypeError
        )
    dtype = np.dtype(interface["typestr"])
    shape = tuple(int(extent) for extent in interface["shape"])
    address, read_only = interface["data"]
    steps = interface.get("strides")
    strides = contiguous(shape) if steps is None else in_elements(function, name, steps, dtype)
    if hasattr(value, "__dlpack_device__"):
        device = int(value.__dlpack_device__()[1])
    else:
        device = _core.cuda_device_of(address) if address else 0
    return DeviceArray(
        value,
        package_of(value),
        int(address or 0),
        shape,
        strides,
        dtype,
        device,
        interface.get("stream"),
        not read_only,
    )


def _of_dlpack(function: str, name: str, value: Any) -> DeviceArray:
    """An array of DLPack alone, made ready on the default stream of its device."""
    tensor = _dlpack.borrow(value, LEGACY_DEFAULT)
    return DeviceArray(
        tensor,  # holds the caller's array
        package_of(value),
        tensor.address,
        tensor.shape,
        contiguous(tensor.shape) if tensor.strides is None else tensor.strides,
        dtype_named(tensor.dtype),
        tensor.device,
        LEGACY_DEFAULT,
        writeable=False,
    )


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a C-contiguous array, in elements."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def in_elements(
    function: str, name: str, steps: Sequence[int], dtype: np.dtype[Any]
) -> tuple[int, ...]:
    if any(step % dtype.itemsize for step in steps):
        raise wrong(
            function, name, "has strides between elements", "whole elements", f"strides {steps}"
        )
    return tuple(int(step) // dtype.itemsize for step in steps)


def collapsed(function: str, name: str, array: DeviceArray, trailing: int = 2) -> Native:
    """(..., trailing dims) as (batch, heads, trailing dims), in place."""
    lead = array.ndim - trailing
    axes = list(zip(array.shape, array.strides, strict=True))
    outer = axes[: max(lead - 1, 0)]
    batch = merged(outer) if array.size else (math.prod(extent for extent, _ in outer), 0)
    if batch is None:
        raise wrong(
            function,
            name,
            "has leading dimensions that do not collapse into one without a copy",
            "an array whose dimensions before the heads are contiguous among themselves",
            f"strides {array.strides} of shape {array.shape}",
        )
    heads = axes[lead - 1 : lead] if lead else [(1, 0)]
    shape, strides = zip(batch, *heads, *axes[lead:], strict=True)
    return array.address, shape, strides, str(array.dtype)


def merged(axes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Extent and stride of several axes as one, None if there is no such stride."""
    extent, stride = 1, 0
    for length, step in reversed(axes):
        if length == 1:
            continue
        if extent > 1 and step != stride * extent:
            return None
        extent, stride = extent * length, stride if extent > 1 else step
    return extent, stride
