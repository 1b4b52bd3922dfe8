"""The backward passes of `convbasis bench`, and the float64 gradients that they are held to."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..attention import conv_attention, exact_attention
from ..backward import conv_attention_backward, exact_attention_backward
from ..problems import Problem
from ..recover import RecoverOptions
from ._bench_peers import Array, Peers, attention_truth
from ._names import EXACT, TORCH
from ._plain import ROWS_AT_ONCE, relative_error
from ._timing import turn

FORWARD = "conv_attention forward"
BASIS, ATTENTION = "basis gradient", "attention gradient"

#: The argument of conv_attention_backward, by method.
GRADIENT_OF = {BASIS: "basis", ATTENTION: "attention"}

NOTES = {
    BASIS: 'conv_attention_backward with gradient="basis", recovery and what it needs of the '
    "forward pass included; held to the same function in float64, on all rows",
    ATTENTION: 'the same with gradient="attention"; held to the gradient of exact attention, as '
    "the other backward passes are",
    "backward": f"dq, dk and dv; errors are the largest of the three. {EXACT} is "
    f"exact_attention_backward. {TORCH} is torch.autograd.grad with a graph built before the "
    "rounds, so without its forward pass, in one thread if a trial finds more to be slower: with "
    "one head to share they gain it little, and cost it much where other programs run",
}

#: Rows of the problem on which torch's threads are tried.
TRIAL_ROWS = 2048

Arrays = tuple[Array, Array, Array]


def output_gradient(problem: Problem, seed: int) -> Array:
    """Random numbers in the shape and type of the output."""
    n, num_bases = len(problem.value), len(problem.starts)
    draw = np.random.default_rng([seed, n, num_bases, 1])  # other numbers than the problem's own
    return draw.standard_normal(problem.value.shape).astype(problem.value.dtype)


def backward_peers(problem: Problem, grad: Array, options: RecoverOptions, threads: int) -> Peers:
    """Backward passes of causal attention by all methods that are installed."""
    arrays = problem.query, problem.key, problem.value
    common: Any = {"is_causal": True, "scale": problem.scale, "num_threads": threads}

    def through_strips(gradient: str) -> Callable[[], Any]:
        return lambda: conv_attention_backward(
            *arrays, grad, gradient=gradient, options=options, **common
        )

    peers: Peers = {
        FORWARD: lambda: conv_attention(*arrays, options=options, **common),
        **{method: through_strips(gradient) for method, gradient in GRADIENT_OF.items()},
        EXACT: lambda: exact_attention_backward(*arrays, grad, **common),
    }
    torch = torch_backward(problem, grad, threads)
    if torch is not None:
        peers[TORCH] = torch
    return peers


def torch_backward(problem: Problem, grad: Array, threads: int) -> Callable[[], Arrays] | None:
    """The backward pass of torch's attention alone; None without torch."""
    try:
        import torch
    except (ImportError, OSError):  # OSError: a library of it cannot be loaded
        return None
    torch.set_num_threads(threads)

    def prepared(rows: int) -> Callable[[], Any]:
        inputs = [
            torch.from_numpy(array[:rows])[None, None].requires_grad_()
            for array in (problem.query, problem.key, problem.value)
        ]
        out = torch.nn.functional.scaled_dot_product_attention(
            *inputs, is_causal=True, scale=problem.scale
        )
        upstream = torch.from_numpy(grad[:rows])[None, None]
        return lambda: torch.autograd.grad(out, inputs, upstream, retain_graph=True)

    def seconds_with(count: int) -> float:
        torch.set_num_threads(count)
        return turn(trial)

    backward: list[Callable[[], Any]] = []
    trial = prepared(min(TRIAL_ROWS, len(grad)))

    def differentiate() -> Arrays:
        if not backward:  # in the warm-up: contests without this method do not wait for it
            backward.append(prepared(len(grad)))
            torch.set_num_threads(min((threads, 1), key=seconds_with))
        query, key, value = (array[0, 0].numpy() for array in backward[0]())
        return query, key, value

    return differentiate


class Judge:
    """Errors of the methods of one problem: each against the float64 result of its function.

    Parameters
    ----------
    problem : Problem
    grad : ndarray, shape (n, d_v)
        Gradient by the output.
    options : RecoverOptions
        Of the methods through strips.
    rows : ndarray of int
        Rows of dq, and columns of the matrix that make dk and dv, on which exact gradients are
        formed.
    threads : int
    """

    def __init__(
        self, problem: Problem, grad: Array, options: RecoverOptions, rows: Array, threads: int
    ) -> None:
        self.problem, self.options, self.rows, self.threads = problem, options, rows, threads
        self.arrays = (
            problem.query.astype(np.float64),
            problem.key.astype(np.float64),
            problem.value.astype(np.float64),
            grad.astype(np.float64),
        )
        self.common: Any = {"is_causal": True, "scale": problem.scale, "num_threads": threads}

    def error(self, method: str, got: Any) -> float:
        """Relative, in the Frobenius norm; of a gradient the largest of dq, dk and dv."""
        if method == FORWARD:
            return relative_error(got[self.rows], attention_truth(self.problem, self.rows))
        if method == BASIS:
            return max(map(relative_error, got, self.basis_truth))
        return max(map(relative_error, (array[self.rows] for array in got), self.exact_truth))

    @cached_property
    def basis_truth(self) -> Arrays:
        """All rows: dk is 0 but at the starts of strips, which a sample would miss."""
        found: Arrays = conv_attention_backward(
            *self.arrays, gradient="basis", options=self.options, **self.common
        )
        return found

    @cached_property
    def exact_truth(self) -> Arrays:
        """Some rows of the gradients of exact attention.

        All entries are written out in NumPy; `exact_attention` in float64 contributes the sum of
        each row, which columns need of rows that are not in the sample.
        """
        query, key, value, grad = self.arrays
        scale, rows = self.problem.scale, self.rows
        out, lse = exact_attention(query, key, value, return_lse=True, **self.common)
        delta = (grad * out).sum(axis=1)
        every = np.arange(len(query))
        dq, dk, dv = (np.empty((rows.size, array.shape[1])) for array in (query, key, value))
        for first in range(0, rows.size, ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            some = rows[part]
            _, slopes = entries(self.arrays, scale, lse, delta, some, every)
            dq[part] = scale * slopes @ key
            weights, slopes = entries(self.arrays, scale, lse, delta, every, some)
            dk[part] = scale * slopes.T @ query
            dv[part] = weights.T @ grad
        return dq, dk, dv


def entries(
    arrays: tuple[Array, Array, Array, Array],
    scale: float,
    lse: Array,
    delta: Array,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> tuple[Array, Array]:
    """The softmax matrix, and the gradient by its logits, on some rows and columns."""
    query, key, value, grad = arrays
    logits = scale * (query[rows] @ key[columns].T)
    logits[columns > rows[:, None]] = -np.inf
    weights = np.exp(logits - lse[rows, None])
    return weights, weights * (grad[rows] @ value[columns].T - delta[rows, None])
