"""conv_attention for torch tensors."""

from __future__ import annotations

from typing import Any

import torch

from .. import _validate
from .._gradients import GRADIENTS
from ..recover import RecoverOptions, recover_options
from ._operators import conv_attention as operator
from ._tensors import LAYOUTS, NAME, check_tensors

#: Operators take 64-bit integers; strips and windows beyond that are beyond any sequence.
LARGEST = 2**62


def conv_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    options: RecoverOptions | None = None,
    tol: float | None = None,
    on_miss: str = "exact",
    gradient: str = "basis",
    layout: str = "bhsd",
    check_finite: bool = True,
    return_exact_mask: bool = False,
    num_threads: int | None = None,
) -> Any:
    """`convbasis.conv_attention` of torch tensors, with gradients.

    Called like ``torch.nn.functional.scaled_dot_product_attention``, and computes the same up to
    the error of the strips, which `tol` bounds.

    Parameters
    ----------
    query : Tensor, shape (..., n, d)
        float32, float64, float16 or bfloat16; the last two are computed in float32. Any strides.
        On the CPU, or on a GPU in a build with CUDA. Tensors are read where they are, but for
        those of the last two types on the CPU.
    key : Tensor, shape (..., n_kv, d)
    value : Tensor, shape (..., n_kv, d_v)
        Dtype and leading dimensions of `query`. ``n_kv`` must be n unless `is_causal`.
    attn_mask, dropout_p, is_causal, scale, enable_gqa, options, tol, on_miss, check_finite
        As in `convbasis.conv_attention`; the first two cannot be honoured.
    gradient : {"basis", "attention"}
        Of heads that go through strips. "basis": the derivative of the output as it was computed,
        with the starts of the strips held fixed; it reads the keys at the starts only, so that all
        others have gradient 0. "attention": the formulas of attention with the weights of the
        strips, an approximation of the gradient of exact attention. Heads that were computed
        exactly have the exact gradient in both.
    layout : {"bhsd", "bshd"}
        "bshd": tensors in and out are (..., seq, heads, dim).
    return_exact_mask : bool
        Return also which heads were computed exactly, without strips.
    num_threads : int, optional
        Default: ``torch.get_num_threads()``.

    Returns
    -------
    output : Tensor, shape (..., n, d_v)
        Contiguous; dtype and layout of `query`.
    exact_mask : Tensor of bool, shape (...)
        With `return_exact_mask` only, in a tuple: one entry a head, as ``Report.exact_mask``.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        If an argument breaks a rule or cannot be honoured.
    ToleranceMissed
        With ``on_miss="error"``.

    Notes
    -----
    For the backward pass only the inputs and one bit a head are kept. It finds the strips again,
    which costs as much as in the forward pass, and gives the same ones. Its own derivative is not
    available, nor is forward-mode differentiation. Results and gradients do not depend on the
    number of threads.

    On a GPU, `tol` cannot be honoured, and nothing checks for NaN. Work goes to torch's current
    stream; the search for strips waits for it, once a triangle in each pass. Heads that
    show more strips than pay go through torch's own ``scaled_dot_product_attention``; so should
    what is refused here.

    Under autocast inputs are not cast: give all three the same type.

    ``torch.compile`` takes the call whole, as the operator ``torch.ops.convbasis.conv_attention``,
    and its gradient as another: nothing inside is compiled anew and nothing breaks the graph.
    What is rejected for its shape is then rejected when the graph runs. A `RecoverOptions` should
    be made outside the compiled function.

    `convbasis.conv_attention` of ``tensor.detach().numpy()`` gives a `Report` on top.

    Examples
    --------
    >>> import convbasis as cb, torch
    >>> problem = cb.problems.conv_problem(n=256, head_dim=8, num_bases=2)
    >>> q, k, v = (
    ...     torch.from_numpy(array).requires_grad_()
    ...     for array in (problem.query, problem.key, problem.value))
    >>> out, exact_mask = cb.torch.conv_attention(
    ...     q, k, v, is_causal=True, tol=1e-6, return_exact_mask=True)
    >>> out.sum().backward()
    >>> bool(exact_mask), v.grad.shape
    (False, torch.Size([256, 8]))
    """
    layout = _validate.choice(NAME, "layout", layout, LAYOUTS)
    check_tensors([("query", query), ("key", key), ("value", value)], layout)
    _validate.no_mask_or_dropout(NAME, attn_mask, dropout_p)
    options = recover_options(NAME, options)
    if num_threads is not None:
        num_threads = _validate.threads(NAME, num_threads)
    output, exact_mask = operator(
        query,
        key,
        value,
        is_causal=_validate.flag(NAME, "is_causal", is_causal),
        scale=None if scale is None else _validate.number(NAME, "scale", scale),
        enable_gqa=_validate.flag(NAME, "enable_gqa", enable_gqa),
        num_bases=None if options.num_bases is None else min(int(options.num_bases), LARGEST),
        window=min(int(options.window), LARGEST),
        delta=float(options.delta),
        epsilon=float(options.epsilon),
        search=options.search,
        gradient=_validate.choice(NAME, "gradient", gradient, GRADIENTS),
        layout=layout,
        num_threads=num_threads,
        tol=_validate.tolerance(NAME, tol),
        on_miss=_validate.choice(NAME, "on_miss", on_miss, ("exact", "error", "keep")),
        check_finite=_validate.flag(NAME, "check_finite", check_finite),
    )
    return_exact_mask = _validate.flag(NAME, "return_exact_mask", return_exact_mask)
    return (output, exact_mask) if return_exact_mask else output
