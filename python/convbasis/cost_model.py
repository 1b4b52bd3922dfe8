"""What the elementary steps cost on this machine, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from . import _core, _validate


@dataclass(frozen=True)
class CostModel:
    """Nanoseconds that one thread takes for the elementary steps. Only their ratios matter.

    Parameters
    ----------
    transform : float
        A transform of L points takes ``L log2(L)`` of them for each channel.
    product : float
        A complex multiply-add of a product of spectra.
    direct : float
        A multiply-add of the directly summed diagonal.
    exact : float
        A multiply-add of exact attention, its exponentials included.
    entry : float
        The exponential and the sums of one entry of a kernel.
    """

    transform: float
    product: float
    direct: float
    exact: float
    entry: float


def cost_model(dtype: Any = np.float32) -> CostModel:
    """The cost model that picks the schedule of a product and the limit of `break_even`.

    Measured when it is first needed and kept for the process.

    Parameters
    ----------
    dtype : dtype-like
        float32 or float64, the type of the computation.

    Returns
    -------
    CostModel

    Raises
    ------
    TypeError
        If `dtype` is another one.

    Notes
    -----
    The measurement takes 20 to 30 milliseconds on the calling thread. Times are rounded to
    steps of ``2**(1/16)``, so that noise seldom changes a choice from process to process.

    Examples
    --------
    >>> import convbasis as cb
    >>> model = cb.cost_model()
    >>> 0 < model.direct < model.entry
    True
    """
    return CostModel(*_core.cost_model(_is_double("cost_model", dtype)))


def set_cost_model(model: CostModel, dtype: Any = np.float32) -> None:
    """Fix the cost model of this process instead of measuring it.

    Parameters
    ----------
    model : CostModel
        All times positive and finite.
    dtype : dtype-like
        float32 or float64, the type of the computation; the other keeps its own model.

    Returns
    -------
    None

    Raises
    ------
    TypeError, ValueError
        If an argument breaks a rule; the model is then as before.

    Notes
    -----
    A measurement may come out differently in another process; another schedule then changes
    results by rounding. With the same model they are repeatable bit for bit.

    Examples
    --------
    >>> import convbasis as cb
    >>> cb.set_cost_model(cb.cost_model())
    """
    is_double = _is_double("set_cost_model", dtype)
    if not isinstance(model, CostModel):
        raise TypeError(
            f"[set_cost_model] model is {model!r}; expected a CostModel; got {type(model).__name__}"
        )
    times = [
        _nanoseconds(f"model.{field.name}", getattr(model, field.name)) for field in fields(model)
    ]
    _core.set_cost_model(times, is_double)


def break_even(n: int, head_dim: int, value_dim: int | None = None, dtype: Any = np.float32) -> int:
    """Number of bases from which exact attention is expected to be cheaper, by the cost model.

    Parameters
    ----------
    n : int
        Sequence length.
    head_dim : int
        Of query and key.
    value_dim : int, optional
        Of value; default `head_dim`.
    dtype : dtype-like
        float32 or float64, the type of the computation.

    Returns
    -------
    int
        At least ``min(n, 64)``: small problems take microseconds either way.

    Raises
    ------
    TypeError, ValueError
        If an argument breaks a rule.

    Notes
    -----
    O(log n) looks at the costs of all schedules, some hundred microseconds. `conv_attention` with
    ``num_bases=None`` computes heads with more strips exactly.

    Examples
    --------
    >>> import convbasis as cb
    >>> 64 <= cb.break_even(16384, 64) < 16384
    True
    """
    name = "break_even"
    n = _validate.integer(name, "n", n, minimum=0)
    head_dim = _validate.integer(name, "head_dim", head_dim, minimum=1)
    value_dim = head_dim if value_dim is None else value_dim
    value_dim = _validate.integer(name, "value_dim", value_dim, minimum=0)
    return _core.break_even(n, head_dim, value_dim, _is_double(name, dtype))


def _nanoseconds(name: str, value: object) -> float:
    """A time of a model."""
    time = _validate.number("set_cost_model", name, value)
    if time <= 0.0:
        raise _validate.wrong("set_cost_model", name, "is not positive", "nanoseconds > 0", time)
    return time


def _is_double(function: str, dtype: Any) -> bool:
    """Whether the type of the computation is float64 and not float32."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found not in (np.float32, np.float64):
        raise TypeError(
            f"[{function}] dtype is {dtype!r}; expected float32 or float64; got another type"
        )
    return bool(found == np.float64)
