"""The methods that `convbasis bench` compares: each by name, as a function without arguments.

Those of this package are called as a user calls them. The others are what one would use without it:
torch's attention, a textbook in NumPy, and one long FFT after the other with scipy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..attention import conv_attention, exact_attention
from ..basis import ConvBasis
from ..problems import Problem
from ..recover import RecoverOptions, recover_basis
from ..toeplitz import conv_matmul
from ._names import CONV, EXACT, PLAIN, TORCH
from ._plain import ROWS_AT_ONCE, plain_attention
from ._timing import torch_attention

Array = NDArray[Any]
Peers = dict[str, Callable[[], Any]]  # arrays, or three of them: dq, dk, dv

PRODUCT = "conv_matmul"
BY_BASIS, BY_STRIP = "one FFT per basis", "one FFT per strip"

NOTES = {
    TORCH: "scaled_dot_product_attention of torch",
    EXACT: "this package's own tiles",
    BY_BASIS: "scipy.fft, as in print: each basis meets all columns from its start on",
    BY_STRIP: "scipy.fft, each kernel on the columns of its strip alone; in attention after "
    "this package's recover_basis, which is timed with it",
    PLAIN: "the textbook, on all cores that NumPy takes",
}


def attention_peers(problem: Problem, options: RecoverOptions, threads: int) -> Peers:
    """Causal attention of `problem` by all methods that are installed, recovery included."""
    arrays = problem.query, problem.key, problem.value
    common: Any = {"is_causal": True, "scale": problem.scale, "num_threads": threads}
    peers: Peers = {
        CONV: lambda: np.asarray(conv_attention(*arrays, options=options, **common)),
        EXACT: lambda: np.asarray(exact_attention(*arrays, **common)),
    }
    torch = torch_attention(problem, threads)
    if torch is not None:
        peers[TORCH] = torch[1]
    fft = scipy_fft()
    if fft is not None:
        peers[BY_STRIP] = lambda: attention_by_strip(fft, problem, options, threads)
    peers[PLAIN] = lambda: plain_attention(*arrays, scale=problem.scale, is_causal=True)
    return peers


def product_peers(basis: ConvBasis, x: Array, threads: int) -> Peers:
    """The product of a basis with `x` by all methods that are installed."""
    starts, kernels = basis.starts, basis.kernels
    peers: Peers = {PRODUCT: lambda: conv_matmul(basis, x, num_threads=threads)}
    fft = scipy_fft()
    if fft is not None:
        peers[BY_BASIS] = lambda: product_by_basis(fft, starts, kernels, x, threads)
        peers[BY_STRIP] = lambda: product_by_strip(fft, starts, kernels, x, threads)
    return peers


def scipy_fft() -> Any:
    """The module scipy.fft; None without scipy."""
    try:
        from scipy import fft
    except ImportError:
        return None
    return fft


def product_by_basis(fft: Any, starts: Array, kernels: Array, x: Array, threads: int) -> Array:
    """Sub-convolution matrices, one for each basis, as Conv-Basis (arXiv 2405.05219) prints it."""
    channels = np.ascontiguousarray(x.T)  # transforms of contiguous rows are the fastest
    out = np.zeros_like(channels)
    before = np.zeros_like(kernels[0])
    for start, kernel in zip(starts, kernels, strict=True):
        rows = len(x) - int(start)
        change = (kernel - before)[:rows]
        out[:, start:] += convolved(fft, change, channels[:, start:], threads)
        before = kernel
    return np.ascontiguousarray(out.T)


def product_by_strip(fft: Any, starts: Array, kernels: Array, x: Array, threads: int) -> Array:
    """Each kernel on the columns of its strip: fewer digits cancel, and transforms are shorter."""
    channels = np.ascontiguousarray(x.T)
    out = np.zeros_like(channels)
    for start, stop, kernel in zip(starts, np.append(starts[1:], len(x)), kernels, strict=True):
        part = channels[:, start:stop]
        out[:, start:] += convolved(fft, kernel[: len(x) - int(start)], part, threads)
    return np.ascontiguousarray(out.T)


def convolved(fft: Any, kernel: Array, rows: Array, threads: int) -> Array:
    """The first ``len(kernel)`` entries of `kernel` convolved with each of `rows`."""
    length = fft.next_fast_len(len(kernel) + rows.shape[1] - 1, real=True)
    spectra = fft.rfft(rows, length, workers=threads) * fft.rfft(kernel, length)
    return np.asarray(fft.irfft(spectra, length, workers=threads)[:, : len(kernel)])


def attention_by_strip(fft: Any, problem: Problem, options: RecoverOptions, threads: int) -> Array:
    """Recovery, one FFT per strip for the weights times value and times 1, and the division."""
    basis = recover_basis(
        problem.query, problem.key, scale=problem.scale, options=options, num_threads=threads
    )
    count = int(basis.num_bases)
    starts, kernels = basis.starts[:count], basis.kernels[:count]
    weights = np.exp(kernels - kernels.max())
    ones = np.ones((len(problem.value), 1), problem.value.dtype)
    sums = product_by_strip(fft, starts, weights, np.hstack([problem.value, ones]), threads)
    return sums[:, :-1] / sums[:, -1:]


def attention_truth(problem: Problem, rows: Array) -> Array:
    """Some rows of exact causal attention, in float64."""
    doubles = (array.astype(np.float64) for array in (problem.query, problem.key, problem.value))
    return plain_attention(*doubles, scale=problem.scale, is_causal=True, rows=rows)


def product_truth(basis: ConvBasis, x: Array, rows: Array) -> Array:
    """Some rows of the product, in float64."""
    columns, doubles = np.arange(len(x)), x.astype(np.float64)
    strip_of = np.searchsorted(basis.starts, columns, side="right") - 1
    out = np.empty((rows.size, x.shape[1]))
    for first in range(0, rows.size, ROWS_AT_ONCE):
        some = rows[first : first + ROWS_AT_ONCE, None]
        entries = np.where(columns <= some, basis.kernels[strip_of, some - columns], 0.0)
        out[first : first + some.size] = entries.astype(np.float64) @ doubles
    return out
