"""From ``(..., seq, dim)`` arrays of any type to the core's four dimensions, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import _validate, masks


def collapse(array: np.ndarray, trailing: int) -> np.ndarray:
    """(..., trailing dims) as (batch, heads, trailing dims); a view wherever one exists."""
    lead = array.shape[: array.ndim - trailing]
    rest = array.shape[array.ndim - trailing :]
    return array.reshape((math.prod(lead[:-1]), math.prod(lead[-1:]), *rest))


def operand(array: np.ndarray, trailing: int = 2) -> np.ndarray:
    """An input as the core reads it: computing type, aligned elements, two leading dimensions.

    Copies only what has another type, is misaligned, or has leading dimensions that do not
    collapse.
    """
    dtype = _validate.compute_dtype(array.dtype)
    if array.dtype != dtype or not is_aligned(array):
        array = array.astype(dtype)
        array = array if is_aligned(array) else np.ascontiguousarray(array)
    return collapse(array, trailing)


def is_aligned(array: np.ndarray) -> bool:
    """Whether the address and all strides are whole elements.

    NumPy's own flag leaves out the strides of axes that have no second entry.
    """
    size = array.itemsize
    return array.flags.aligned and not any(stride % size for stride in array.strides)


def buffer(
    out: np.ndarray | None, shape: tuple[int, ...], dtype: Any, *, direct: bool = True
) -> np.ndarray:
    """A (batch, heads, seq, dim) array for the core to write.

    It is `out` itself when the core can write there at once (`direct`, computing type, aligned,
    leading dimensions that collapse), otherwise an array for `deliver` to copy.
    """
    target = np.asarray(out) if out is not None else None
    if target is not None and direct and target.dtype == dtype and is_aligned(target):
        view = collapse(target, 2)
        if np.may_share_memory(view, target):
            return view
    return np.empty(shape, dtype)


def deliver(
    result: np.ndarray, out: np.ndarray | None, shape: tuple[int, ...], dtype: Any
) -> np.ndarray:
    """The finished `result` as the caller gets it: in `out`, or in an array of its own."""
    if out is None:
        return result.reshape(shape).astype(dtype, copy=False)
    if not np.may_share_memory(result, out):
        np.copyto(out, result.reshape(shape), casting="unsafe")
    return out


@dataclass(frozen=True)
class AttentionInputs:
    """Checked inputs of one attention call, in the core's layout and computing type."""

    query: np.ndarray  # (batch, heads, n_q, d)
    key: np.ndarray  # (batch, kv_heads, n_kv, d)
    value: np.ndarray  # (batch, kv_heads, n_kv, d_v)
    lead: tuple[int, ...]  # the caller's leading dimensions
    dtype: np.dtype[Any]  # the caller's type
    is_causal: bool
    scale: float
    mask: tuple[object, ...] | None = None  # as the core takes it
    attn_mask: masks.Mask | None = None  # as the caller gave it

    @property
    def heads(self) -> tuple[int, int]:
        return self.query.shape[0], self.query.shape[1]

    @property
    def compute(self) -> np.dtype[Any]:
        return self.query.dtype

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output for the caller."""
        return (*self.lead, self.query.shape[2], self.value.shape[3])

    def named(self) -> list[tuple[str, np.ndarray]]:
        return [("query", self.query), ("key", self.key), ("value", self.value)]

    def without_unseen_keys(self) -> AttentionInputs:
        """The same with causal keys past the last query row cut off: no query sees them."""
        n = self.query.shape[2]
        if not self.is_causal or self.key.shape[2] <= n:
            return self
        return replace(self, key=self.key[:, :, :n], value=self.value[:, :, :n])

    def restore(self, array: Any) -> Any:
        """(batch, heads, ...) with the caller's leading dimensions; a scalar for none at all."""
        array = np.asarray(array)
        return array.reshape(self.lead + array.shape[2:])[()]


def attention_inputs(
    function: str,
    query: object,
    key: object,
    value: object,
    attn_mask: object,
    dropout_p: object,
    is_causal: object,
    scale: object,
    enable_gqa: object,
    *,
    takes_mask: bool = False,
) -> AttentionInputs:
    """Check everything that the attention functions have in common, in argument order.

    Those with `takes_mask` honour an `attn_mask`, the others refuse it.
    """
    query = _validate.float_array(function, "query", query, min_ndim=2)
    key = _validate.float_array(function, "key", key, min_ndim=2)
    _validate.same_dtype(function, "key", key, "query", query.dtype)
    value = _validate.float_array(function, "value", value, min_ndim=2)
    _validate.same_dtype(function, "value", value, "query", query.dtype)
    enable_gqa = _validate.flag(function, "enable_gqa", enable_gqa)
    _validate.attention_shapes(function, query, key, value, enable_gqa)
    mask, mask_is_causal = None, False
    if takes_mask and attn_mask is not None:
        mask, mask_is_causal = native_mask(function, attn_mask, query.shape[-2], key.shape[-2])
        _validate.no_dropout(function, dropout_p)
    else:
        _validate.no_mask_or_dropout(function, attn_mask, dropout_p)
    is_causal = _validate.flag(function, "is_causal", is_causal)
    return AttentionInputs(
        query=operand(query),
        key=operand(key),
        value=operand(value),
        lead=query.shape[:-2],
        dtype=query.dtype,
        is_causal=is_causal or mask_is_causal,
        scale=_validate.scale_or_default(function, scale, query),
        mask=mask,
        attn_mask=attn_mask if isinstance(attn_mask, masks.Mask) else None,
    )


def native_mask(
    function: str, attn_mask: object, n_q: int, n_kv: int
) -> tuple[tuple[object, ...] | None, bool]:
    """A mask that fits, as the core takes it, and whether it asks for the causal mask too."""
    if not isinstance(attn_mask, masks.Mask):
        kinds = [name for name in masks.__all__ if name not in ("Mask", "KeyLists")]
        raise _validate.wrong(
            function,
            "attn_mask",
            "is no mask with structure",
            f"None or one of convbasis.masks ({', '.join(kinds)})",
            type(attn_mask).__name__,
            NotImplementedError,
        )
    attn_mask.check(function, n_q, n_kv)
    return attn_mask._native()


def output_gradient(function: str, grad_output: object, inputs: AttentionInputs) -> np.ndarray:
    """The gradient by the output of a call with `inputs`, checked, as the core reads it."""
    grad = _validate.float_array(function, "grad_output", grad_output, min_ndim=2)
    _validate.same_dtype(function, "grad_output", grad, "query", inputs.dtype)
    _validate.output_gradient_shape(function, grad.shape, inputs.out_shape)
    return operand(grad)
