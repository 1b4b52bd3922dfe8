"""What the GPU's functions have in common: usable arrays, one stream, outputs of the same kind."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _core, _validate
from ._device_arrays import DeviceArray, any_on_device, contiguous, device_array
from ._validate import wrong


def usable(function: str, named: Sequence[tuple[str, Any]]) -> list[DeviceArray]:
    """All arrays of a call, of one library and on one device, where this build can use them."""
    missing = _core.cuda_why_unavailable()
    if missing:
        name, value = next((pair for pair in named if any_on_device(pair[1])), named[0])
        raise wrong(
            function,
            name,
            f"is on a GPU, which cannot be used: {missing}",
            "a NumPy array, or a build with CUDA (pip install . "
            "-C cmake.define.CONVBASIS_CUDA=ON) on a machine with a GPU",
            f"{type(value).__module__}.{type(value).__name__}",
            NotImplementedError,
        )
    arrays = [(name, device_array(function, name, value)) for name, value in named]
    alike(function, arrays)
    return [array for _, array in arrays]


def alike(function: str, named: Sequence[tuple[str, DeviceArray]]) -> None:
    """Raise unless all arrays are of one library and on one device."""
    first = named[0][1]
    for name, array in named:
        if array.package != first.package:
            raise wrong(
                function, name, "is of another library", f"a {first}", f"a {array}", TypeError
            )
        if array.device != first.device:
            raise wrong(function, name, "is on another device", f"a {first}", f"a {array}")


def stream_of(function: str, arrays: Sequence[DeviceArray]) -> tuple[int, int]:
    """Device and stream on which the work of a call goes: the one that its arrays name."""
    streams = sorted({array.stream for array in arrays if array.stream is not None})
    if len(streams) > 1:
        raise wrong(
            function,
            "an array",
            "is on another stream than the first, and nothing here waits for one",
            "arrays of one stream",
            f"streams {streams}",
        )
    return arrays[0].device, streams[0] if streams else 0


def empty(function: str, like: DeviceArray, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
    """A new array of the library and the device of `like`, to be filled and then `delivered`.

    A library whose arrays cannot be written takes over memory of this package.
    """
    package: Any = sys.modules.get(like.package)
    made: Any
    if like.package == "torch":
        made = package.empty(shape, dtype=getattr(package, str(dtype)), device=like.owner.device)
    elif like.package == "cupy":
        with package.cuda.Device(like.device):
            made = package.empty(shape, dtype)
    elif like.package == "numba":
        with package.cuda.gpus[like.device]:
            made = package.cuda.device_array(shape, dtype)
    else:
        taker_of(function, like)
        stream = like.stream or 0
        memory = _core.DeviceMemory(shape, str(dtype), (like.device, stream))
        return DeviceArray(
            memory,
            like.package,
            memory.address(),
            shape,
            contiguous(shape),
            dtype,
            like.device,
            stream,
        )
    return device_array(function, "the result", made)


def zeros(function: str, like: DeviceArray, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
    """The same of zeros."""
    array = empty(function, like, shape, dtype)
    if array.size > 0:
        _core.cuda_clear(array.address, array.size * array.itemsize, stream_of(function, [array]))
    return array


def delivered(array: DeviceArray) -> Any:
    """The array as its library has it, once the work that fills it is enqueued."""
    if not isinstance(array.owner, _core.DeviceMemory):
        return array.owner
    return taker_of("from_dlpack", array)(array.owner)


def taker_of(function: str, array: DeviceArray) -> Any:
    """The function of the array's library that takes memory over by DLPack."""
    package: Any = sys.modules.get("jax.dlpack" if array.package == "jaxlib" else array.package)
    if not hasattr(package, "from_dlpack"):
        raise wrong(
            function,
            "the result",
            f"would be an array of {array.package}, which cannot be made here",
            "arrays of torch, CuPy, Numba, JAX or a library with from_dlpack",
            f"a {array}",
            NotImplementedError,
        )
    return package.from_dlpack


def output(
    function: str,
    out: Any,
    shape: tuple[int, ...],
    inputs: Sequence[tuple[str, DeviceArray]],
) -> DeviceArray:
    """`out` if it can be written without touching an input; a new array for None."""
    first = inputs[0][1]
    if out is None:
        return empty(function, first, shape, first.dtype)
    array = usable(function, [("out", out)])[0]
    if (array.package, array.device) != (first.package, first.device):
        raise wrong(
            function, "out", "is of another kind than the inputs", f"a {first}", f"a {array}"
        )
    if array.dtype != first.dtype:
        raise wrong(
            function, "out", "has the wrong dtype", str(first.dtype), array.dtype, TypeError
        )
    if array.shape != shape:
        raise wrong(function, "out", "has the wrong shape", str(shape), array.shape)
    if not array.writeable:
        raise wrong(function, "out", "is read-only", "a writeable array", "a read-only one")
    if _validate.steps_overlap(array.shape, array.strides, 1):
        raise wrong(
            function,
            "out",
            "has elements that share memory",
            "an array whose elements are all its own",
            f"strides {array.strides}",
        )
    start, stop = array.span()
    for name, given in inputs:
        low, high = given.span()
        if start < high and low < stop:
            raise wrong(
                function, "out", f"overlaps {name}", "memory of its own", "arrays that share memory"
            )
    return array


def same_dtype(function: str, named: Sequence[tuple[str, DeviceArray]]) -> None:
    first, wanted = named[0][0], named[0][1].dtype
    for name, array in named:
        if array.dtype != wanted:
            raise wrong(
                function,
                name,
                f"differs in dtype from {first}",
                str(wanted),
                array.dtype,
                TypeError,
            )


def compute_dtype(array: DeviceArray) -> np.dtype[Any]:
    """float64 for itself, float32 for all others."""
    return np.dtype(np.float64 if str(array.dtype) == "float64" else np.float32)
