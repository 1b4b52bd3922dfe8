"""GpuBasis: a ConvBasis whose kernels lie on a GPU."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from . import _basis_rules, _core, _gpu_calls, _layout, _validate
from ._device_arrays import DeviceArray, Native, any_on_device, collapsed
from .basis import ConvBasis

NAME = "GpuBasis"


class GpuBasis(ConvBasis):
    """A `ConvBasis` whose kernels lie on a GPU; where strips begin stays on the host.

    `recover_basis` makes them of arrays on a GPU. `conv_matmul`, `conv_attention`, its gradient and
    `row_sums` take them; everything else of a ConvBasis that reads kernels raises. Kernels are not
    copied, and what is in them is not looked at, since that would wait for the GPU: they must be
    finite, and 0 past the last row.

    Parameters
    ----------
    starts : array_like of int, shape (..., k)
        On the host, as for `ConvBasis`.
    num_bases : array_like of int, shape (...)
        On the host.
    kernels : array on a GPU, shape (..., k, n)
        float32 or float64: a torch tensor, or anything with ``__cuda_array_interface__`` or
        DLPack. The last axis is contiguous.
    num_columns, complete, scale
        As for `ConvBasis`.

    Raises
    ------
    ValueError, TypeError
        If an array breaks a rule.
    NotImplementedError
        If this build or this machine cannot use a GPU.

    Notes
    -----
    Work is enqueued on the stream that the arrays of a call name; nothing waits for it.
    """

    __slots__ = ("_device",)
    _device: DeviceArray

    def __init__(
        self,
        starts: Any,
        num_bases: Any,
        kernels: Any,
        *,
        num_columns: int | None = None,
        complete: Any = True,
        scale: float | None = None,
    ) -> None:
        if not any_on_device(kernels):
            raise _validate.wrong(
                NAME,
                "kernels",
                "is not on a GPU",
                "an array on one (a ConvBasis has NumPy arrays)",
                type(kernels).__name__,
                TypeError,
            )
        device = _gpu_calls.usable(NAME, [("kernels", kernels)])[0]
        if device.ndim < 2:
            raise _validate.wrong(
                NAME, "kernels", "has too few dimensions", "at least 2", f"shape {device.shape}"
            )
        starts = _basis_rules.integers("starts", starts)
        num_bases = _basis_rules.integers("num_bases", num_bases)
        columns = device.shape[-1] if num_columns is None else num_columns
        _basis_rules.check_strips(starts, num_bases, device, columns)
        if scale is not None:
            scale = _validate.scale_in(NAME, scale, _gpu_calls.compute_dtype(device))
        self._starts, self._num_bases, self._kernels = starts, num_bases, kernels
        self._num_columns, self._scale, self._device = columns, scale, device
        self._complete = _basis_rules.completeness(complete, num_bases)
        for array in (starts, num_bases, self._complete):
            array.flags.writeable = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return _gpu_calls.compute_dtype(self._device)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrices, (..., n, num_columns)."""
        return (*self.lead, self._device.shape[-1], self._num_columns)

    @property
    def sizes(self) -> np.ndarray:
        """The paper's ``m_r = n - starts``, (..., k); 0 for unused strips."""
        sizes: np.ndarray = self._device.shape[-1] - self._starts
        return sizes

    def on_device(self, function: str) -> tuple[np.ndarray, np.ndarray, Native, int]:
        """The basis as the core takes it."""
        return (
            _layout.collapse(self._starts, 1),
            _layout.collapse(self._num_bases, 0),
            collapsed(function, "kernels", self._device),
            self._num_columns,
        )

    def row_sums(self, *, num_threads: int | None = None) -> Any:
        """``H @ ones``, (..., n), an array of the kernels' kind. O(k n)."""
        function = "GpuBasis.row_sums"
        _validate.threads(function, num_threads)
        (kernels,) = _gpu_calls.usable(function, [("kernels", self._kernels)])
        sums = _gpu_calls.empty(function, kernels, self.shape[:-1], self.dtype)
        stream = _gpu_calls.stream_of(function, [kernels, sums])
        _core.cuda_row_sums(self.on_device(function), collapsed(function, "out", sums, 1), stream)
        return _gpu_calls.delivered(sums)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise _validate.wrong(
            NAME,
            "kernels",
            "are on a GPU, where this is not computed",
            "a ConvBasis of a NumPy array of the kernels",
            f"a {self._device}",
            NotImplementedError,
        )

    strips = exp = to_dense = residual = save = _state = _refuse
    differences = property(_refuse)
    __eq__ = object.__eq__
    __hash__ = None
