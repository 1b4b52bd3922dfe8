"""conv_matmul of arrays on a GPU, and what its bases are held against; nothing waits for it."""

from __future__ import annotations

from typing import Any

from . import _basis_rules, _core, _gpu_calls, _validate
from ._device_arrays import DeviceArray, collapsed
from ._validate import wrong
from .gpu_basis import GpuBasis


def gpu_basis(function: str, basis: object) -> GpuBasis:
    """`basis`, whose kernels have to be on a GPU too."""
    if not isinstance(basis, GpuBasis):
        raise wrong(
            function,
            "basis",
            "is not on a GPU, but another array is",
            "a GpuBasis (recover_basis makes one)",
            type(basis).__name__,
            TypeError,
        )
    return basis


def in_compute_dtype(function: str, name: str, array: DeviceArray, basis: GpuBasis) -> None:
    if _gpu_calls.compute_dtype(array) != basis.dtype:
        raise wrong(
            function,
            name,
            "differs in dtype from basis",
            f"{basis.dtype} to compute in",
            array.dtype,
            TypeError,
        )


def as_matrix(array: DeviceArray) -> DeviceArray:
    """A vector as a matrix of one column."""
    return array.with_axes((*array.shape, 1), (*array.strides, 1))


def conv_matmul(basis: object, x: Any, *, transpose: object, out: Any, num_threads: object) -> Any:
    name = "conv_matmul"
    matrices = gpu_basis(name, basis)
    given, kernels = _gpu_calls.usable(name, [("x", x), ("basis", matrices.kernels)])
    in_compute_dtype(name, "x", given, matrices)
    transpose = _validate.flag(name, "transpose", transpose)
    shape = _basis_rules.product_shape(name, matrices, given.shape, transpose)
    _validate.threads(name, num_threads)
    made = _gpu_calls.output(name, out, shape, [("x", given), ("basis", kernels)])
    stream = _gpu_calls.stream_of(name, [given, kernels, made])
    is_vector = given.ndim == len(matrices.lead) + 1
    operand, result = (as_matrix(given), as_matrix(made)) if is_vector else (given, made)
    _core.cuda_conv_matmul(
        matrices.on_device(name),
        collapsed(name, "x", operand),
        collapsed(name, "out", result),
        transpose,
        stream,
    )
    return _gpu_calls.delivered(made)
