"""attention_loss: the paper's training problem, loss and gradient in almost linear time."""

from __future__ import annotations

import numpy as np

from . import _validate
from ._gradients import GRADIENTS
from .attention import conv_attention
from .backward import conv_attention_backward
from .recover import RecoverOptions


def attention_loss(
    A1: np.ndarray,
    A2: np.ndarray,
    A3: np.ndarray,
    E: np.ndarray,
    X: np.ndarray,
    Y: np.ndarray,
    *,
    options: RecoverOptions | None = None,
    gradient: str = "attention",
    check_finite: bool = True,
    num_threads: int | None = None,
) -> tuple[float, np.ndarray]:
    """The paper's training problem: one causal attention layer fitted to a target.

    ``L(X) = 1/2 || D(X)^-1 (M o exp(A1 X A2^T)) A3 Y - E ||_F^2`` and ``dL/dX``. In terms of
    attention: queries ``A1 X``, keys ``A2``, values ``A3 Y``, scale 1, through a conv basis of the
    logits.

    Parameters
    ----------
    A1, A2, A3 : ndarray, shape (n, d)
        float32, float64, float16 or bfloat16 (through ml_dtypes); the last two are computed in
        float32.
    E : ndarray, shape (n, d_v)
        The target.
    X : ndarray, shape (d, d)
    Y : ndarray, shape (d, d_v)
        The paper has ``d_v = d``. All arrays have the dtype of `A1`.
    options : RecoverOptions, optional
        How to recover the basis, as in `conv_attention`: logits that show too many strips are
        computed exactly.
    gradient : {"attention", "basis"}
        As in `conv_attention_backward`: the formulas of attention with the weights of the basis,
        as in the paper, or the derivative of the approximate loss that is returned. They agree
        where the basis is exact and a change of X leaves it so.
    check_finite : bool
        False skips the check for NaN and infinity.
    num_threads : int, optional
        Default: all cores this process may use. Products with X, Y and ``A1^T`` are NumPy's, with
        threads of its own.

    Returns
    -------
    loss : float
    grad_X : ndarray, shape (d, d), the dtype of `X`
        ``A1^T p A2``, where ``c = f h - E``, ``h = A3 Y``, ``q = c h^T`` and
        ``p = f o q - diag(rowsum(f o q)) f``; nothing n x n is formed.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks a rule, or products overflow.

    Notes
    -----
    The time of `conv_attention`, of `conv_attention_backward`, and O(n d (d + d_v)). Source:
    Conv-Basis, section on gradient computation.

    Examples
    --------
    The second row weighs the values 1 : 1 and misses its target by 1.

    >>> import numpy as np, convbasis as cb
    >>> A1, A2, A3, E = np.array([[[0.0], [1]], [[1], [3]], [[2], [4]], [[2], [2]]])
    >>> loss, grad_X = cb.attention_loss(A1, A2, A3, E, np.zeros((1, 1)), np.ones((1, 1)))
    >>> loss, grad_X.tolist()
    (0.5, [[1.0]])
    """
    name = "attention_loss"
    given = {"A1": A1, "A2": A2, "A3": A3, "E": E, "X": X, "Y": Y}
    arrays = {
        argument: _validate.float_array(name, argument, array, min_ndim=2)
        for argument, array in given.items()
    }
    check_shapes(name, arrays)
    dtype = arrays["A1"].dtype
    for argument, array in arrays.items():
        _validate.same_dtype(name, argument, array, "A1", dtype)
    gradient = _validate.choice(name, "gradient", gradient, GRADIENTS)
    check_finite = _validate.flag(name, "check_finite", check_finite)
    threads = _validate.threads(name, num_threads)
    compute = _validate.compute_dtype(dtype)
    A1, A2, A3, E, X, Y = (array.astype(compute, copy=False) for array in arrays.values())
    if check_finite:
        named = zip(arrays, (A1, A2, A3, E, X, Y), strict=True)
        _validate.finite(
            name, [(argument, array[None, None]) for argument, array in named], threads
        )

    query, value = A1 @ X, A3 @ Y
    output = conv_attention(
        query,
        A2,
        value,
        is_causal=True,
        scale=1.0,
        options=options,
        check_finite=check_finite,
        num_threads=threads,
    )
    error = output - E
    grad_query, _, _ = conv_attention_backward(
        query,
        A2,
        value,
        error,
        is_causal=True,
        scale=1.0,
        options=options,
        gradient=gradient,
        check_finite=check_finite,
        num_threads=threads,
    )
    loss = 0.5 * float(np.sum(np.square(error, dtype=np.float64)))
    return loss, (A1.T @ grad_query).astype(dtype, copy=False)


def check_shapes(function: str, arrays: dict[str, np.ndarray]) -> None:
    """A1, A2, A3 (n, d), E (n, d_v), X (d, d), Y (d, d_v), none of them empty."""
    for argument in ("A1", "E"):
        array = arrays[argument]
        if array.ndim != 2 or 0 in array.shape:
            raise _validate.wrong(
                function,
                argument,
                "is not a matrix with entries",
                "two dimensions, each at least 1",
                f"shape {array.shape}",
            )
    n, d = arrays["A1"].shape
    value_dim = arrays["E"].shape[1]
    expected = {
        "A2": (n, d),
        "A3": (n, d),
        "E": (n, value_dim),
        "X": (d, d),
        "Y": (d, value_dim),
    }
    for argument, shape in expected.items():
        got = arrays[argument].shape
        if got != shape:
            raise _validate.wrong(
                function, argument, "has the wrong shape", str(shape), f"shape {got}"
            )
