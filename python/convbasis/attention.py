"""conv_attention and exact_attention: softmax attention with known error, and without any."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core, _gpu_attention, _layout, _validate
from ._calibrated import attend_calibrated
from ._device_arrays import any_on_device
from ._run import attend, result_arrays, results
from ._settings import conv_settings
from .basis import ConvBasis
from .calibrate import CalibrateOptions
from .masks import Mask
from .recover import RecoverOptions


def conv_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    basis: ConvBasis | tuple[ConvBasis, ConvBasis] | None = None,
    options: RecoverOptions | CalibrateOptions | None = None,
    tol: float | None = None,
    on_miss: str = "exact",
    check_finite: bool = True,
    out: Any = None,
    return_lse: bool = False,
    return_report: bool = False,
    certify: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Softmax attention through a conv basis of the logits, ``D^-1 exp(H~) V``.

    The basis is recovered from a few columns of the logits, or given. Heads that do not pay, and
    with `tol` heads that are not accurate enough, are computed exactly.

    Parameters
    ----------
    query : ndarray, shape (..., n, d)
        float32, float64, float16 or bfloat16 (through ml_dtypes); the last two are computed in
        float32. Any number of leading dimensions, any strides.
    key : ndarray, shape (..., n_kv, d)
    value : ndarray, shape (..., n_kv, d_v)
        Dtype and leading dimensions of `query`. ``n_kv`` must be n unless `is_causal`.
    attn_mask : None
        Not supported: `exact_attention` takes masks.
    dropout_p : float
        Must be 0.
    is_causal : bool
        Query i sees keys 0..i (top-left aligned). The default is False, as in torch; the upper
        triangle then has a basis of its own.
    scale : float, optional
        Of the products ``q . k``; default ``1 / sqrt(d)``, or what a given `basis` remembers. It
        counts for sample rows and exact heads too, so a `basis` of another scale is an error.
    enable_gqa : bool
        Key and value may have fewer heads (third dimension from the end); query head h uses
        key head ``h // (heads / kv_heads)``.
    basis : ConvBasis, or (lower, upper), optional
        Basis of the logits, from `recover_basis` or your own, used as it is; the pair, of the
        triangle and of the reversed rows, when not causal. The report and `tol` judge it against
        `query` and `key`; without them only the shapes of these matter.
    options : RecoverOptions or CalibrateOptions, optional
        How to recover. With ``num_bases=None`` (the default) a head that shows more strips than
        are worth it is computed exactly; with a number it is truncated and judged by `tol`.
        `CalibrateOptions` are for logits that depend on content, as in language models: causal,
        without `certify`; blocks of 64 rows are computed exactly, the worst first, until the
        interval of the head ends below `tol`.
    tol : float, optional
        Wanted relative error ``||Y - Y~||_F / ||Y||_F`` of each head. Default: do not judge.
    on_miss : {"exact", "error", "keep"}
        What happens to heads whose error interval ends above `tol`: computed exactly, an
        exception, or nothing but the entry in the report. Others than "exact" need a `tol`.
    check_finite : bool
        False skips the check for NaN and infinity, which spread over a whole head. Logits that
        overflow are an error all the same.
    out : ndarray, optional
        Where to write: exact shape and dtype, no memory shared with an input.
    return_lse, return_report : bool
        Return also the log of the row sums, and a `Report`.
    certify : bool
        Measure the deviation of every logit for the report, O(n^2 d) time, so that
        ``Report.error_bound`` is a certificate (rounding apart) and not an estimate.
    num_threads : int, optional
        Default: all cores this process may use.

    Returns
    -------
    output : ndarray, shape (..., n, d_v), the dtype of `query`
    lse : ndarray, shape (..., n), float32 or float64
        Natural log of the row sums of ``exp(H~)``. With `return_lse` only.
    report : Report, or CalibratedReport with CalibrateOptions
        With `return_report` only. More than one result comes as a tuple in this order. A row
        without visible key has output 0 and lse -inf.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        If an argument breaks a rule or cannot be honoured, before anything is written.
    ToleranceMissed
        With ``on_miss="error"``, before `out` is written.

    Notes
    -----
    Arrays on a GPU (torch, CuPy, Numba, JAX) are read where they are, on the stream that they name;
    the same kind comes out, and nothing checks for NaN. With a `GpuBasis` (or two) as `basis`
    nothing waits; without, the search for strips does, once a triangle. What judges strips is
    refused.
    Heads computed exactly go through torch's own attention when they are tensors.

    Recovery O(n T d + k n d), then O(n d_v log L + k n d_v) in blocks of L rows; memory
    O(k n + n d). ``max|Y - Y~| <= 2 (exp(dev) - 1) max|V|`` where the logits deviate by at
    most dev. Results do not depend on the number of threads, and with a given basis an output
    row does not depend on later value rows, bit for bit.

    The estimate behind `tol` computes 224 rows of each head exactly: the first 32 and the last,
    159 drawn from between, more densely near the start, and the 32 heaviest of the output (all
    rows up to n = 256). Heads have different rows, the same ones in every call of equal size, so
    results can be repeated. **What `tol` cannot see:** wrong rows that are fewer than about one in
    fifty, and neither early nor heavy in the output, may all escape the sample, whatever the
    interval says; ``Report.unseen_share`` is the relative error they could make up. Where that is
    too much, compare with `exact_attention`, or bound the error with `certify`.

    Source: Conv-Basis (arXiv 2405.05219), Algorithm 1 and the theorem on attention inference.

    Examples
    --------
    >>> import numpy as np, convbasis as cb
    >>> problem = cb.problems.conv_problem(n=256, head_dim=8, num_bases=2)
    >>> out, report = cb.conv_attention(
    ...     problem.query, problem.key, problem.value, is_causal=True, scale=problem.scale,
    ...     options=cb.RecoverOptions(num_bases=8), tol=1e-3, return_report=True)
    >>> int(report.num_bases), report.heads_exact, bool(report.error_estimate < 1e-9)
    (2, 0, True)
    """
    name = "conv_attention"
    if any_on_device(query, key, value):
        return _gpu_attention.conv_attention(
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            basis=basis,
            options=options,
            judging=_gpu_attention.judgements(tol, on_miss, return_report, certify),
            check_finite=check_finite,
            out=out,
            return_lse=return_lse,
            num_threads=num_threads,
        )
    inputs = _layout.attention_inputs(
        name, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
    )
    wanted = conv_settings(
        inputs,
        query,
        key,
        value,
        scale=scale,
        basis=basis,
        options=options,
        tol=tol,
        on_miss=on_miss,
        check_finite=check_finite,
        out=out,
        return_lse=return_lse,
        return_report=return_report,
        certify=certify,
        num_threads=num_threads,
        may_calibrate=True,
    )
    if wanted.calibrate is not None:
        target, lse, report = attend_calibrated(
            inputs,
            wanted,
            wanted.calibrate,
            out,
            return_lse=return_lse,
            return_report=return_report,
        )
        return results(inputs, target, out, lse, report)
    done = attend(inputs, wanted, out, return_lse=return_lse, return_report=return_report)
    return results(inputs, done.target, out, done.lse, done.report)


def exact_attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    check_finite: bool = True,
    out: np.ndarray | None = None,
    return_lse: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Softmax attention in tiles, ``D^-1 exp(H) V``: nothing approximated, nothing n x n.

    Parameters
    ----------
    query : ndarray, shape (..., n_q, d)
    key : ndarray, shape (..., n_kv, d)
    value : ndarray, shape (..., n_kv, d_v)
        Any n_q and n_kv, causal or not.
    attn_mask : masks.Mask, optional
        Which keys each query sees, alike for all heads: one of `convbasis.masks`, which are of
        linear size. Keys that no query of a tile sees cost nothing, so a sliding window takes
        O(n size (d + d_v)). With `is_causal`, what both show. Arrays are refused.
    dropout_p, is_causal, scale, enable_gqa, check_finite, out, return_lse, num_threads
        As in `conv_attention`. Keys that nobody sees are checked as well.

    Returns
    -------
    output : ndarray, shape (..., n_q, d_v), the dtype of `query`
    lse : ndarray, shape (..., n_q), float32 or float64
        With `return_lse` only, in a tuple. A row without visible key has output 0 and lse -inf.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        If an argument breaks a rule or cannot be honoured, before anything is written.

    Notes
    -----
    Time O(n_q n_kv (d + d_v)), half of it when causal, with a mask in proportion to what tiles of
    some 64 queries see; memory O(n (d + d_v)) by an online softmax. Rounding is that of the
    computing type alone.

    Examples
    --------
    >>> import numpy as np, convbasis as cb
    >>> ones = np.ones((2, 1))
    >>> cb.exact_attention(ones, ones, np.array([[2.0], [4.0]]), is_causal=True)
    array([[2.],
           [3.]])
    >>> cb.exact_attention(
    ...     ones, ones, np.array([[2.0], [4.0]]), cb.masks.SlidingWindow(1), return_lse=True)
    (array([[2.],
           [4.]]), array([1., 1.]))
    """
    name = "exact_attention"
    if any_on_device(query, key, value):
        return _gpu_attention.exact_attention(
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            check_finite=check_finite,
            out=out,
            return_lse=return_lse,
            num_threads=num_threads,
        )
    inputs = _layout.attention_inputs(
        name,
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale,
        enable_gqa,
        takes_mask=True,
    )
    check_finite = _validate.flag(name, "check_finite", check_finite)
    _validate.output(
        name,
        out,
        inputs.out_shape,
        inputs.dtype,
        [("query", query), ("key", key), ("value", value)],
    )
    return_lse = _validate.flag(name, "return_lse", return_lse)
    threads = _validate.threads(name, num_threads)
    if check_finite:
        _validate.finite(name, inputs.named(), threads)

    target, lse = result_arrays(inputs, out, return_lse)
    _core.exact_attention(
        inputs.query,
        inputs.key,
        inputs.value,
        target,
        lse,
        inputs.scale,
        inputs.is_causal,
        inputs.mask,
        None,
        threads,
    )
    return results(inputs, target, out, lse)
