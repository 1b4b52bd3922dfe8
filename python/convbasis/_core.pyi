"""Types of the compiled core. Arrays of one call share one dtype, float32 or float64.

Shapes: query (b, h, n_q, d), key (b, g, n_kv, d), value (b, g, n_kv, d_v), out (b, h, n_q, d_v),
lse (b, h, n_q), starts (b, h, k) int64 padded with n, num_bases (b, h) int64, kernels (b, h, k, n)
C-contiguous, rows (b, h, m) int64, heads: flat numbers ``b * H + h`` to compute, None for all;
mask: the class of a mask by its name, then its numbers and arrays (`masks.Mask`), None for none.
On a device an array is (address, shape, strides in elements, dtype), a stream (device, handle).
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

_Floats: TypeAlias = NDArray[Any]
_Ints: TypeAlias = NDArray[np.int64]
_Mask: TypeAlias = tuple[Any, ...]
_Strips: TypeAlias = tuple[_Ints, _Ints, _Floats, int]
_Device: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...], str]
_DeviceStrips: TypeAlias = tuple[_Ints, _Ints, _Device, int]
_Stream: TypeAlias = tuple[int, int]

class _Forward(TypedDict):
    rows_exact: _Ints
    rounding_bound: NDArray[np.float64]
    seconds: dict[str, float]
    block_lengths: list[int]

def exact_attention(
    query: _Floats,
    key: _Floats,
    value: _Floats,
    out: _Floats,
    lse: _Floats | None,
    scale: float,
    is_causal: bool,
    mask: _Mask | None,
    heads: _Ints | None,
    num_threads: int,
) -> None: ...
def attention_rows(
    query: _Floats,
    key: _Floats,
    value: _Floats,
    rows: _Ints,
    out: _Floats,
    lse: _Floats | None,
    scale: float,
    is_causal: bool,
    mask: _Mask | None,
    heads: _Ints | None,
    num_threads: int,
) -> None: ...

class Calibration:
    def account(self) -> dict[str, Any]: ...
    def head(self, index: int) -> dict[str, Any]: ...

class SelfAttention:
    def __init__(
        self, query: _Floats, key: _Floats, value: _Floats, scale: float, num_threads: int
    ) -> None: ...
    def calibrate(
        self, options: tuple[int, int, int, int, int, int, int], tol: float, num_threads: int
    ) -> Calibration: ...
    def approximate(
        self,
        calibration: Calibration,
        out: _Floats,
        lse: _Floats | None,
        heads: _Ints | None,
        num_threads: int,
    ) -> tuple[_Floats, NDArray[np.float64]]: ...
    def exact_rows(self, rows: _Ints, heads: _Ints | None, num_threads: int) -> _Floats: ...
    def exact_blocks(
        self, blocks: np.ndarray, out: _Floats, lse: _Floats | None, num_threads: int
    ) -> None: ...

def exact_attention_backward(
    query: _Floats,
    key: _Floats,
    value: _Floats,
    grad_output: _Floats,
    grad_query: _Floats,
    grad_key: _Floats,
    grad_value: _Floats,
    scale: float,
    is_causal: bool,
    mask: _Mask | None,
    heads: _Ints | None,
    num_threads: int,
) -> None: ...
def conv_attention_backward(
    lower: _Strips,
    upper: _Strips | None,
    query: _Floats,
    key: _Floats,
    value: _Floats,
    grad_output: _Floats,
    grad_query: _Floats,
    grad_key: _Floats,
    grad_value: _Floats,
    scale: float,
    through_entries: bool,
    heads: _Ints | None,
    num_threads: int,
) -> dict[str, Any]: ...
def conv_attention(
    lower: _Strips,
    upper: _Strips | None,
    value: _Floats,
    out: _Floats,
    lse: _Floats | None,
    heads: _Ints | None,
    num_threads: int,
) -> _Forward: ...
def conv_attention_rows(
    lower: _Strips,
    upper: _Strips | None,
    value: _Floats,
    rows: _Ints,
    out: _Floats,
    heads: _Ints | None,
    num_threads: int,
) -> None: ...
def first_not_finite(arrays: list[_Floats], num_threads: int) -> int: ...
def row_norms(array: _Floats, num_threads: int) -> NDArray[np.float64]: ...
def recover_starts(
    query: _Floats,
    key: _Floats,
    scale: float,
    num_bases: int | None,
    window: int,
    delta: float,
    epsilon: float,
    bisect: bool,
    value_dim: int,
    num_threads: int,
) -> tuple[_Ints, _Ints, NDArray[np.bool_], bool]: ...
def recover_kernels(
    query: _Floats,
    key: _Floats,
    starts: _Ints,
    num_bases: _Ints,
    kernels: _Floats,
    scale: float,
    num_threads: int,
) -> bool: ...
def logit_deviation(
    query: _Floats,
    key: _Floats,
    starts: _Ints,
    num_bases: _Ints,
    kernels: _Floats,
    num_columns: int,
    rows: _Ints | None,
    scale: float,
    num_threads: int,
) -> NDArray[np.float64]: ...
def conv_matmul(
    starts: _Ints,
    num_bases: _Ints,
    kernels: _Floats,
    num_columns: int,
    x: _Floats,
    out: _Floats,
    transpose: bool,
    num_threads: int,
) -> None: ...
def row_sums(
    starts: _Ints,
    num_bases: _Ints,
    kernels: _Floats,
    num_columns: int,
    out: _Floats,
    num_threads: int,
) -> None: ...
def polynomial_attention(
    query: _Floats,
    key: _Floats,
    value: _Floats,
    out: _Floats,
    lse: _Floats | None,
    polynomials: Sequence[tuple[NDArray[np.float64], NDArray[np.float64], _Ints, _Ints]],
    scale: float,
    is_causal: bool,
    mask: _Mask | None,
    heads: _Ints | None,
    num_threads: int,
) -> dict[str, _Ints]: ...
def polynomial_attention_backward(
    query: _Floats,
    key: _Floats,
    value: _Floats,
    grad_output: _Floats,
    grad_query: _Floats,
    grad_key: _Floats,
    grad_value: _Floats,
    polynomials: Sequence[tuple[NDArray[np.float64], NDArray[np.float64], _Ints, _Ints]],
    scale: float,
    is_causal: bool,
    mask: _Mask | None,
    heads: _Ints | None,
    num_threads: int,
) -> dict[str, _Ints]: ...
def cost_model(is_double: bool) -> list[float]: ...
def set_cost_model(times: Sequence[float], is_double: bool) -> None: ...
def break_even(n: int, head_dim: int, value_dim: int, is_double: bool) -> int: ...
def build_info() -> dict[str, Any]: ...

MOST_DEGREE: int
MOST_RADIUS: float

def exp_polynomial(degree: int, radius: float) -> tuple[NDArray[np.float64], float]: ...
def polynomial_error(coefficients: _Floats, radius: float) -> float: ...
def polynomial_rounding(
    coefficients: _Floats, radius: float, unit: float, least_mean: float
) -> float: ...
def polynomial_degree(
    epsilon: float, radius: float, unit: float, mean_zero: bool
) -> int | None: ...
def feature_count(head_dim: int, degree: int) -> int: ...
def logit_range(
    query: _Floats,
    key: _Floats,
    scale: float,
    is_causal: bool,
    sampled_rows: int,
    num_threads: int,
) -> tuple[_Floats, _Floats, _Floats, _Floats, _Floats]: ...
def polynomial_rates(is_double: bool) -> tuple[float, float]: ...
def sparsify_dense(
    x: _Floats,
    is_bss: bool,
    scores: str,
    num_columns: int | None,
    epsilon: float,
    delta: float,
    uniforms: Callable[[int], _Floats],
    progress: Callable[[int, int], None] | None,
    num_threads: int,
) -> dict[str, Any]: ...
def sparsify_sparse(
    x: tuple[int, _Ints, _Ints, _Floats],
    is_bss: bool,
    scores: str,
    num_columns: int | None,
    epsilon: float,
    delta: float,
    uniforms: Callable[[int], _Floats],
    progress: Callable[[int, int], None] | None,
    num_threads: int,
) -> dict[str, Any]: ...
def degree_radii(
    head_dim: int, epsilon: float, unit: float, mean_zero: bool, most_features: int
) -> list[float]: ...
def plan_polynomial(
    query_norms: _Floats,
    key_norms: _Floats,
    head_dim: int,
    value_dim: int,
    visible_share: float,
    epsilon: float,
    unit: float,
    mean_zero: bool,
    rates: Sequence[float],
    radii: Sequence[float],
) -> dict[str, Any]: ...
def cuda_why_unavailable() -> str: ...
def cuda_device_of(address: int) -> int: ...
def cuda_wait(stream: _Stream) -> None: ...
def cuda_clear(address: int, num_bytes: int, stream: _Stream) -> None: ...
def cuda_conv_matmul(
    basis: _DeviceStrips, x: _Device, out: _Device, transpose: bool, stream: _Stream
) -> None: ...
def cuda_row_sums(basis: _DeviceStrips, out: _Device, stream: _Stream) -> None: ...
def cuda_recover_kernels(
    query: _Device,
    key: _Device,
    starts: _Ints,
    num_bases: _Ints,
    kernels: _Device,
    scale: float,
    stream: _Stream,
) -> None: ...
def cuda_conv_attention(
    lower: _DeviceStrips,
    upper: _DeviceStrips | None,
    value: _Device,
    out: _Device,
    lse: _Device | None,
    heads: _Ints | None,
    stream: _Stream,
) -> None: ...
def cuda_recover_starts(
    query: _Device,
    key: _Device,
    scale: float,
    num_bases: int | None,
    window: int,
    delta: float,
    epsilon: float,
    bisect: bool,
    value_dim: int,
    stream: _Stream,
) -> tuple[_Ints, _Ints, NDArray[np.bool_], bool]: ...
def cuda_exact_attention(
    query: _Device,
    key: _Device,
    value: _Device,
    out: _Device,
    lse: _Device | None,
    scale: float,
    is_causal: bool,
    heads: _Ints | None,
    stream: _Stream,
) -> None: ...
def cuda_logit_range(
    query: _Device, key: _Device, scale: float, is_causal: bool, stream: _Stream
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def cuda_polynomial_attention(
    query: _Device,
    key: _Device,
    value: _Device,
    out: _Device,
    lse: _Device | None,
    polynomials: Sequence[tuple[NDArray[np.float64], NDArray[np.float64], _Ints, _Ints]],
    scale: float,
    is_causal: bool,
    heads: _Ints | None,
    stream: _Stream,
) -> None: ...
def cuda_exact_attention_backward(
    query: _Device,
    key: _Device,
    value: _Device,
    grad_output: _Device,
    grad_query: _Device,
    grad_key: _Device,
    grad_value: _Device,
    scale: float,
    is_causal: bool,
    heads: _Ints | None,
    stream: _Stream,
) -> None: ...
def cuda_polynomial_attention_backward(
    query: _Device,
    key: _Device,
    value: _Device,
    grad_output: _Device,
    grad_query: _Device,
    grad_key: _Device,
    grad_value: _Device,
    polynomials: Sequence[tuple[NDArray[np.float64], NDArray[np.float64], _Ints, _Ints]],
    scale: float,
    is_causal: bool,
    heads: _Ints | None,
    stream: _Stream,
) -> None: ...
def cuda_conv_attention_backward(
    lower: _DeviceStrips,
    upper: _DeviceStrips | None,
    query: _Device,
    key: _Device,
    value: _Device,
    grad_output: _Device,
    grad_query: _Device,
    grad_key: _Device,
    grad_value: _Device,
    scale: float,
    through_entries: bool,
    heads: _Ints | None,
    stream: _Stream,
) -> None: ...

class DeviceMemory:
    def __init__(self, shape: tuple[int, ...], dtype: str, stream: _Stream) -> None: ...
    def address(self) -> int: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: object = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object: ...
