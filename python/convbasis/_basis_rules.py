"""What makes a ConvBasis valid, and whether one belongs to given inputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ._validate import compute_dtype, integer, wrong

if TYPE_CHECKING:
    from .basis import ConvBasis

NAME = "ConvBasis"


def integers(argument: str, value: Any) -> np.ndarray:
    """A copy of `value` as int64."""
    array = np.array(value)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise wrong(
            NAME, argument, "does not hold integers", "an integer array", array.dtype, TypeError
        )
    return array.astype(np.int64)


def starts_of(value: Any, lead: tuple[int, ...]) -> np.ndarray:
    """Starts of each head, (*lead, k), from these or from one list for all heads."""
    starts = integers("starts", value)
    return np.tile(starts, (*lead, 1)) if starts.ndim == 1 else starts


def given_starts(
    function: str, value: Any, dtype: np.dtype[Any], lead: tuple[int, ...], n: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Starts as a caller names them for all columns of (n, columns) logits, and their numbers."""
    starts = starts_of(value, lead)
    counts = np.asarray((starts < n).sum(axis=-1))
    k = starts.shape[-1] if starts.ndim else 0
    if starts.size > 0 and starts.max() > n:
        raise wrong(
            function,
            "starts",
            "has columns outside the matrix",
            f"0 to {columns - 1}, padded with {n}",
            starts.max(),
        )
    kernels = np.broadcast_to(dtype.type(0), (*lead, k, n))
    check_strips(starts, counts, kernels, columns, function)
    if columns > 0 and counts.size > 0 and (k == 0 or (starts[..., 0] > 0).any()):
        raise wrong(
            function,
            "starts",
            "leaves out column 0, and keys before the first strip would count as if their logits "
            "were 0",
            "0 first, for each head",
            "no starts" if k == 0 else starts[..., 0].max(),
        )
    return starts, counts


def check(
    starts: np.ndarray,
    num_bases: np.ndarray,
    kernels: np.ndarray,
    num_columns: Any,
) -> None:
    """The constructor's rules for the matrices, in argument order."""
    n = kernels.shape[-1]
    check_strips(starts, num_bases, kernels, num_columns)
    if not np.isfinite(kernels).all():
        raise wrong(
            NAME,
            "kernels",
            "has NaN or infinite entries",
            "finite numbers",
            f"an array of shape {kernels.shape} with some that are not",
        )
    if np.any(kernels[np.arange(n) >= (n - starts)[..., None]] != 0.0):
        raise wrong(
            NAME, "kernels", "has entries past the last row", "0 at lags t >= n - start", "others"
        )


def completeness(complete: Any, num_bases: np.ndarray) -> np.ndarray:
    """A copy of `complete`, one bool a head; one for all of them is repeated."""
    array = np.array(complete)
    if array.ndim == 0:
        array = np.full(num_bases.shape, array)
    if array.dtype != bool:
        raise wrong(NAME, "complete", "does not hold bools", "a bool array", array.dtype, TypeError)
    if array.shape != num_bases.shape:
        raise wrong(
            NAME,
            "complete",
            "does not match num_bases",
            f"shape {num_bases.shape}",
            f"shape {array.shape}",
        )
    return array


def check_strips(
    starts: np.ndarray,
    num_bases: np.ndarray,
    kernels: Any,
    num_columns: Any,
    function: str = NAME,
) -> None:
    """The rules for where strips begin and the type of `kernels`, wherever these lie."""
    *lead, k, n = kernels.shape
    if kernels.dtype not in (np.float32, np.float64):
        raise wrong(
            function,
            "kernels",
            "has an unsupported dtype",
            "float32 or float64",
            kernels.dtype,
            TypeError,
        )
    if starts.shape != (*lead, k):
        raise wrong(
            function,
            "starts",
            "does not match kernels",
            f"shape {(*lead, k)}",
            f"shape {starts.shape}",
        )
    if num_bases.shape != tuple(lead):
        raise wrong(
            function,
            "num_bases",
            "does not match kernels",
            f"shape {tuple(lead)}",
            f"shape {num_bases.shape}",
        )
    columns = integer(function, "num_columns", num_columns, minimum=0)
    if columns > n:
        raise wrong(function, "num_columns", "exceeds the rows", f"at most {n}", columns)
    if np.any((num_bases < 0) | (num_bases > k)):
        raise wrong(
            function,
            "num_bases",
            "is out of range",
            f"0 to {k}",
            f"{num_bases.min()} to {num_bases.max()}",
        )
    used = np.arange(k) < num_bases[..., None]
    if np.any(used & ((starts < 0) | (starts >= columns))):
        raise wrong(
            function,
            "starts",
            "has columns outside the matrix",
            f"0 to {columns - 1}",
            starts[used].tolist(),
        )
    if np.any(used[..., 1:] & (np.diff(starts, axis=-1) <= 0)):
        raise wrong(
            function,
            "starts",
            "does not increase",
            "strictly increasing columns",
            starts[used].tolist(),
        )
    if np.any(starts[~used] != n):
        raise wrong(
            function,
            "starts",
            "is not padded with n",
            f"{n} after the first num_bases",
            starts[~used].tolist(),
        )


def belongs(function: str, argument: str, basis: ConvBasis, query: Any, num_keys: int) -> None:
    """`basis` has the heads, rows, columns and type of the logits of `query`."""
    rows = query.shape[-2]
    expected = (*query.shape[:-2], rows, min(rows, num_keys))
    if basis.shape != expected:
        raise wrong(
            function,
            argument,
            "does not match the shape of the basis",
            f"logits of shape {expected}",
            f"a basis of shape {basis.shape}",
        )
    if basis.dtype != compute_dtype(query.dtype):
        raise wrong(
            function,
            argument,
            "differs in dtype from the basis",
            f"a basis in {compute_dtype(query.dtype)} for inputs in {query.dtype}",
            f"a basis in {basis.dtype}",
            TypeError,
        )


def product_shape(
    function: str, basis: ConvBasis, given: tuple[int, ...], transpose: bool
) -> tuple[int, ...]:
    """Shape of the product of `basis` with an x of shape `given`, which has to fit."""
    rows, columns = basis.shape[-2:]
    taken, made = (rows, columns) if transpose else (columns, rows)
    depth = len(basis.lead) + 1
    if given[:depth] != (*basis.lead, taken) or len(given) > depth + 1:
        raise wrong(
            function,
            "x",
            "does not match basis",
            f"shape {(*basis.lead, taken)} or {(*basis.lead, taken, 'channels')}",
            f"shape {given}",
        )
    return (*basis.lead, made, *given[depth:])


def scale_of(function: str, bases: tuple[ConvBasis, ...], own: float, asked: object) -> float:
    """The one scale of the whole call: strips, sample rows and exact heads must not disagree.

    `own` is that of the call without them, `asked` the argument. Scales that differ by rounding in
    the computing type count as the same.
    """
    common = None if asked is None else own
    for basis in bases:
        if basis.scale is None:
            continue
        if common is None:
            common = basis.scale
        elif not math.isclose(common, basis.scale, rel_tol=8 * float(np.finfo(basis.dtype).eps)):
            raise wrong(
                function,
                "basis",
                "differs in scale from the other" if asked is None else "differs in scale",
                f"a basis recovered with scale {common:.9g}",
                f"one recovered with {basis.scale:.9g}",
            )
    return own if common is None else common
