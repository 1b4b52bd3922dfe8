"""The rules for arguments: one ``if`` per rule, in argument order, and one form of message.

Every message reads ``[function] argument is/has ...; expected ...; got ...``. Nothing here
changes an array, and every public function runs all its checks before it writes anything.
"""

from __future__ import annotations

import math
import numbers
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from . import _core

#: Work that NumPy may spend to decide whether two interleaved arrays share an element.
OVERLAP_EFFORT = 100_000

#: Most threads that may be asked for: more is a mistake, and would exhaust the machine.
MOST_THREADS = 1024


def wrong(
    function: str,
    argument: str,
    fault: str,
    expected: str,
    got: object,
    error: type[Exception] = ValueError,
) -> Exception:
    """The exception for a broken rule, with its message in three parts."""
    return error(f"[{function}] {argument} {fault}; expected {expected}; got {got}")


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """True for the bfloat16 of ml_dtypes; an array of it cannot exist before that is imported."""
    ml_dtypes = sys.modules.get("ml_dtypes")
    return ml_dtypes is not None and dtype == ml_dtypes.bfloat16


def compute_dtype(dtype: np.dtype[Any] | str) -> np.dtype[Any]:
    """The type that is computed in: float64 for itself, float32 for everything smaller."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def float_array(function: str, name: str, value: object, *, min_ndim: int) -> np.ndarray:
    """`value` as a plain ndarray of a supported type and enough dimensions."""
    if not isinstance(value, np.ndarray):
        if hasattr(value, "__cuda_array_interface__"):
            raise wrong(
                function,
                name,
                "is on a GPU, where this function computes nothing, or other arrays are not",
                f"NumPy arrays, or all arrays of {function} on one GPU if it takes them there",
                f"{type(value).__module__}.{type(value).__name__}",
                TypeError,
            )
        raise wrong(
            function,
            name,
            "is not a NumPy array",
            f"numpy.ndarray (numpy.asarray({name}) makes one)",
            type(value).__name__,
            TypeError,
        )
    if isinstance(value, np.ma.MaskedArray):
        raise wrong(
            function,
            name,
            "is a masked array, whose mask cannot be honoured",
            "a plain numpy.ndarray",
            type(value).__name__,
            TypeError,
        )
    if value.dtype not in (np.float32, np.float64, np.float16) and not is_bfloat16(value.dtype):
        raise wrong(
            function,
            name,
            "has an unsupported dtype",
            "float32, float64, float16 or bfloat16 in native byte order",
            value.dtype,
            TypeError,
        )
    if value.ndim < min_ndim:
        raise wrong(
            function,
            name,
            "has too few dimensions",
            f"at least {min_ndim}",
            f"{value.ndim} (shape {value.shape})",
        )
    return np.asarray(value)


def same_dtype(function: str, name: str, array: np.ndarray, first: str, dtype: Any) -> None:
    if array.dtype != dtype:
        raise wrong(
            function, name, f"differs in dtype from {first}", str(dtype), array.dtype, TypeError
        )


def attention_shapes(
    function: str, query: Any, key: Any, value: Any | None, enable_gqa: bool
) -> None:
    """Shapes (..., n_q, d), (..., n_kv, d), (..., n_kv, d_v); only `enable_gqa` shares heads."""
    if query.shape[-1] == 0:
        raise wrong(function, "query", "has a head_dim of 0", "at least 1", f"shape {query.shape}")
    if enable_gqa and query.ndim < 3:
        raise wrong(
            function,
            "query",
            "has no heads to share by enable_gqa",
            "shape (..., heads, seq, head_dim)",
            f"shape {query.shape}",
        )
    if key.ndim != query.ndim:
        raise wrong(
            function,
            "key",
            "differs in rank from query",
            f"{query.ndim} dimensions",
            f"{key.ndim} (shape {key.shape})",
        )
    if key.shape[-1] != query.shape[-1]:
        raise wrong(
            function,
            "key",
            "differs in head_dim from query",
            str(query.shape[-1]),
            f"{key.shape[-1]} (shape {key.shape})",
        )
    kept = query.ndim - (3 if enable_gqa else 2)  # leading dimensions that must be equal
    if key.shape[:kept] != query.shape[:kept]:
        hint = "" if enable_gqa else " (enable_gqa=True lets heads share keys)"
        raise wrong(
            function,
            "key",
            "differs in leading dimensions from query" + hint,
            str(query.shape[:kept]),
            f"{key.shape[:kept]} (shape {key.shape})",
        )
    if enable_gqa and (key.shape[-3] == 0) != (query.shape[-3] == 0):
        raise wrong(
            function,
            "key",
            "has no heads that query could share",
            f"a divisor of {query.shape[-3]} heads",
            f"{key.shape[-3]} (shape {key.shape})",
        )
    if enable_gqa and key.shape[-3] and query.shape[-3] % key.shape[-3]:
        raise wrong(
            function,
            "key",
            "has a number of heads that query cannot share evenly",
            f"a divisor of {query.shape[-3]} heads",
            f"{key.shape[-3]} (shape {key.shape})",
        )
    if value is None:
        return
    if value.shape[:-1] != key.shape[:-1]:
        raise wrong(
            function,
            "value",
            "does not match key",
            f"shape {(*key.shape[:-1], 'd_v')}",
            f"shape {value.shape}",
        )
    if value.shape[-1] == 0:
        raise wrong(function, "value", "has a head_dim of 0", "at least 1", f"shape {value.shape}")


def output_gradient_shape(function: str, shape: tuple[int, ...], output: tuple[int, ...]) -> None:
    if shape != output:
        raise wrong(function, "grad_output", "differs in shape from the output", str(output), shape)


def no_mask_or_dropout(function: str, attn_mask: object, dropout_p: object) -> None:
    if attn_mask is not None:
        raise wrong(
            function,
            "attn_mask",
            "is given and cannot be honoured",
            "None (is_causal=True masks the future; exact_attention takes a mask of "
            "convbasis.masks)",
            type(attn_mask).__name__,
            NotImplementedError,
        )
    no_dropout(function, dropout_p)


def no_dropout(function: str, dropout_p: object) -> None:
    if number(function, "dropout_p", dropout_p) != 0.0:
        raise wrong(
            function,
            "dropout_p",
            "is not 0 and cannot be honoured",
            "0.0",
            dropout_p,
            NotImplementedError,
        )


def flag(function: str, name: str, value: object) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise wrong(function, name, "is not a bool", "True or False", repr(value), TypeError)
    return bool(value)


def integer(
    function: str, name: str, value: object, *, minimum: int, maximum: int | None = None
) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise wrong(function, name, "is not an integer", "an int", repr(value), TypeError)
    if value < minimum:
        raise wrong(function, name, "is too small", f"at least {minimum}", value)
    if maximum is not None and int(value) > maximum:
        raise wrong(function, name, "is too large", f"at most {maximum}", value)
    return int(value)


def number(function: str, name: str, value: object) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise wrong(function, name, "is not a number", "a float", repr(value), TypeError)
    try:
        result = float(value)
    except OverflowError:  # an integer or a fraction beyond float64
        result = math.inf
    if not abs(result) < math.inf:  # unlike math.isfinite, a compiler of Python can follow it
        raise wrong(function, name, "is not finite", "a finite number", result)
    return result


def choice(function: str, name: str, value: object, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise wrong(function, name, "is unknown", " or ".join(map(repr, choices)), repr(value))
    return value


def scale_in(function: str, scale: object, dtype: np.dtype[Any]) -> float:
    """`scale` as a float that is finite in the computing type `dtype` too."""
    scale = number(function, "scale", scale)
    largest = float(np.finfo(dtype).max)
    if abs(scale) > largest:
        raise wrong(function, "scale", f"overflows {dtype}", f"at most {largest:.4g}", scale)
    return scale


def scale_or_default(function: str, scale: object, query: Any) -> float:
    if scale is None:
        return 1.0 / math.sqrt(query.shape[-1])
    return scale_in(function, scale, compute_dtype(query.dtype))


def tolerance(function: str, tol: object) -> float | None:
    if tol is None:
        return None
    tol = number(function, "tol", tol)
    if tol <= 0.0:
        raise wrong(function, "tol", "is not positive", "a number above 0, or None", tol)
    return tol


def threads(function: str, num_threads: object) -> int:
    """The number of threads asked for; None is all cores this process may use."""
    if num_threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return min(cores or 1, MOST_THREADS)
    count = integer(function, "num_threads", num_threads, minimum=1)
    if count > MOST_THREADS:
        raise wrong(function, "num_threads", "is too large", f"at most {MOST_THREADS}", count)
    return count


def output(
    function: str,
    out: object,
    shape: tuple[int, ...],
    dtype: Any,
    inputs: Iterable[tuple[str, np.ndarray]],
) -> np.ndarray | None:
    """`out` if every element of it can be written without touching another or an input."""
    if out is None:
        return None
    if not isinstance(out, np.ndarray):
        raise wrong(
            function,
            "out",
            "is not a NumPy array",
            "numpy.ndarray or None",
            type(out).__name__,
            TypeError,
        )
    if out.dtype != dtype:
        raise wrong(function, "out", "has the wrong dtype", str(dtype), out.dtype, TypeError)
    if out.shape != shape:
        raise wrong(function, "out", "has the wrong shape", str(shape), out.shape)
    if not out.flags.writeable:
        raise wrong(function, "out", "is read-only", "a writeable array", "writeable=False")
    if overlaps_itself(out):
        raise wrong(
            function,
            "out",
            "has elements that share memory",
            "an array whose elements are all its own",
            f"strides {out.strides}",
        )
    for name, array in inputs:
        if overlap(out, array):
            raise wrong(
                function, "out", f"overlaps {name}", "memory of its own", "arrays that share memory"
            )
    return out


def overlaps_itself(array: np.ndarray) -> bool:
    """True unless each axis steps over everything that the axes with smaller strides cover.

    All slices and transposes of ordinary arrays pass; broadcast arrays do not.
    """
    return steps_overlap(array.shape, array.strides, array.itemsize)


def steps_overlap(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """The same for elements of `itemsize` in the unit of the strides."""
    if math.prod(shape) == 0:
        return False
    covered = itemsize
    axes = zip(strides, shape, strict=True)
    for stride, extent in sorted((abs(stride), extent) for stride, extent in axes if extent > 1):
        if stride < covered:
            return True
        covered += stride * (extent - 1)
    return False


def overlap(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays share an element; a case too hard to decide counts as yes."""
    try:
        effort: Any = OVERLAP_EFFORT  # the stubs of NumPy know only -1 and 0
        return bool(np.shares_memory(one, other, max_work=effort))
    except np.exceptions.TooHardError:
        return True


def finite(function: str, arrays: Sequence[tuple[str, np.ndarray]], num_threads: int) -> None:
    """All 4-D `arrays` of one type are free of NaN and infinity, which a transform would spread."""
    found = _core.first_not_finite([array for _, array in arrays], num_threads)
    if found < len(arrays):
        name, array = arrays[found]
        raise wrong(
            function,
            name,
            "has NaN or infinite entries",
            "finite numbers",
            f"an array of shape {array.shape} with some that are not",
        )
