"""polynomial_attention: softmax attention with a polynomial in place of the exponential."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core, _gpu_polynomial, _layout, _validate
from ._device_arrays import any_on_device
from ._judge import Sample
from ._polynomial_plan import DEFAULT_TOL, PolynomialPlan, make_plan, without_unseen_keys
from ._run import exactly, result_arrays, results
from .masks import Mask
from .polynomial_report import PolynomialReport
from .report import Stopwatch, ToleranceMissed


@dataclass(frozen=True)
class PolynomialSettings:
    """Checked settings of one call."""

    function: str  # named in messages
    degree: int | None
    tol: float | None
    on_miss: str
    check_finite: bool
    threads: int


def polynomial_attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    attn_mask: Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    degree: int | None = None,
    tol: float | None = None,
    on_miss: str = "exact",
    check_finite: bool = True,
    out: np.ndarray | None = None,
    return_lse: bool = False,
    return_report: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Softmax attention with a polynomial for exp, ``D^-1 (W o P(H)) V``, in linear time.

    ``P(q . k)`` is an inner product of ``C(d + g, g)`` monomials of q and of k, so that no entry
    of the attention matrix is formed. That pays for small heads with small logits: at d = 8 and
    logits within 1, degree 4 and 495 features. Other heads are computed exactly.

    Parameters
    ----------
    query : ndarray, shape (..., n_q, d)
    key : ndarray, shape (..., n_kv, d)
    value : ndarray, shape (..., n_kv, d_v)
        Any n_q and n_kv, causal or not.
    attn_mask, dropout_p, is_causal, scale, enable_gqa
        As in `exact_attention`.
    degree : int, optional
        Of the polynomial, 0 to 40, whatever it costs and however it errs: see the report's
        `error_bound`. Default: the least that reaches `tol`.
    tol : float, optional
        Largest relative error of any weight before the division, certified, rounding included;
        below 1; the output then errs by at most ``2 tol / (1 - tol) max|V|``, besides its own
        rounding to float16 or bfloat16. Default: 1e-3, or with a `degree` no judgement.
    on_miss : {"exact", "error", "keep"}
        What happens to heads for which `tol` is out of reach, or, without a `degree`, takes so
        many features that exact attention is cheaper: computed exactly, an exception, or the
        polynomial all the same (of the degree with the least error where `tol` is out of reach).
        Heads whose logits may be beyond 40, or whose features take too much memory, are never
        kept but computed exactly. Others than "exact" need a `tol` when a `degree` is given.
        What pays follows from `cost_model`: fix it for choices that can be repeated.
    check_finite, out, return_lse, num_threads
        As in `conv_attention`.
    return_report : bool
        Return also a `PolynomialReport`.

    Returns
    -------
    output : ndarray, shape (..., n_q, d_v), the dtype of `query`
    lse : ndarray, shape (..., n_q), float32 or float64
        Natural log of the row sums of weights. With `return_lse` only.
    report : PolynomialReport
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
    Time O((n_q + n_kv) r d_v) for r features, without mask, causal and with windows, none of
    which subtracts sums; as much for each pattern of `masks.DistinctRows` and
    `masks.DistinctColumns`. Memory O(n (d + d_v)). The range of the logits is certified in
    O(n d) by the norms of queries and of keys from which the mean key is subtracted, which
    softmax does not notice. Results do not depend on the number of threads.

    Arrays on a GPU (torch, CuPy, Numba, JAX) are read where they are, without mask or causal, and
    heads are taken whole: no exact rows and columns. The call waits for the stream once, for the
    range of the logits, from which the host chooses the polynomials; what pays is an estimate.

    Under the strong exponential time hypothesis there is no such method for logits of about
    ``log n`` and more (AS23): that is what `on_miss` is about.

    Sources: AS23 (arXiv 2302.13214); Conv-Basis (arXiv 2405.05219), section on low-rank
    approximation with structured masks.

    Examples
    --------
    >>> import numpy as np, convbasis as cb
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = 0.5 * rng.uniform(-1, 1, (3, 2048, 4))
    >>> out, report = cb.polynomial_attention(q, k, v, is_causal=True, return_report=True)
    >>> exact = cb.exact_attention(q, k, v, is_causal=True)
    >>> bool(np.abs(out - exact).max() < report.error_bound), bool(report.epsilon < 1e-3)
    (True, True)
    """
    name = "polynomial_attention"
    if any_on_device(query, key, value):
        settings = polynomial_settings(name, degree, tol, on_miss, check_finite, num_threads)
        return _gpu_polynomial.polynomial_attention(
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            degree=settings.degree,
            tol=settings.tol,
            on_miss=settings.on_miss,
            out=out,
            return_lse=return_lse,
            return_report=return_report,
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
    wanted = polynomial_settings(name, degree, tol, on_miss, check_finite, num_threads)
    _validate.output(
        name,
        out,
        inputs.out_shape,
        inputs.dtype,
        [("query", query), ("key", key), ("value", value)],
    )
    return_lse = _validate.flag(name, "return_lse", return_lse)
    return_report = _validate.flag(name, "return_report", return_report)

    clock = Stopwatch()
    if wanted.check_finite:
        with clock("check"):
            _validate.finite(name, inputs.named(), wanted.threads)
    inputs = without_unseen_keys(inputs)
    with clock("plan"):
        plan = choose(inputs, wanted, sample=return_report)
    target, lse = result_arrays(inputs, out, return_lse, direct=False)  # logits may overflow yet
    with overflow_named(name, inputs):
        with clock("attend"):
            done = attend(inputs, plan, target, lse, wanted.threads)
        exactly(inputs, ~plan.by_polynomial, target, lse, wanted.threads, clock)
        report = account(inputs, plan, target, done, wanted, clock) if return_report else None
    return results(inputs, target, out, lse, report)


def polynomial_settings(
    function: str,
    degree: object,
    tol: object,
    on_miss: object,
    check_finite: object,
    num_threads: object,
) -> PolynomialSettings:
    """Check in argument order."""
    if degree is not None:
        degree = _validate.integer(function, "degree", degree, minimum=0)
        if degree > _core.MOST_DEGREE:
            raise _validate.wrong(
                function, "degree", "is too high", f"at most {_core.MOST_DEGREE}", degree
            )
    tol = _validate.tolerance(function, tol)
    if degree is None and tol is None:
        tol = DEFAULT_TOL
    elif tol is not None and tol >= 1.0:
        raise _validate.wrong(
            function, "tol", "bounds no error", "a relative error of weights below 1", tol
        )
    on_miss = _validate.choice(function, "on_miss", on_miss, ("exact", "error", "keep"))
    if on_miss != "exact" and tol is None:
        raise _validate.wrong(
            function, "on_miss", "is set, but nothing is judged", "a tol with it", "tol=None"
        )
    check_finite = _validate.flag(function, "check_finite", check_finite)
    threads = _validate.threads(function, num_threads)
    return PolynomialSettings(function, degree, tol, on_miss, check_finite, threads)


def choose(
    inputs: _layout.AttentionInputs,
    wanted: PolynomialSettings,
    *,
    sample: bool = False,
    backward: bool = False,
) -> PolynomialPlan:
    """The plan after `on_miss`."""
    plan = make_plan(
        inputs,
        wanted.degree,
        wanted.tol,
        wanted.threads,
        sample=sample,
        backward=backward,
        may_skip=wanted.on_miss == "exact" and not sample,
    )
    if wanted.on_miss == "error" and plan.of("missed").any():
        raise tolerance_missed(inputs, plan, wanted)
    return plan.without_missed() if wanted.on_miss == "exact" else plan


def attend(
    inputs: _layout.AttentionInputs,
    plan: PolynomialPlan,
    target: np.ndarray,
    lse: np.ndarray | None,
    threads: int,
) -> dict[str, np.ndarray]:
    """Compute the heads that have a polynomial; what the core says about it."""
    if not plan.by_polynomial.any():
        return {"rows_exact": np.zeros(inputs.heads, np.int64)}
    return _core.polynomial_attention(
        inputs.query,
        inputs.key,
        inputs.value,
        target,
        lse,
        plan.native(),
        inputs.scale,
        inputs.is_causal,
        inputs.mask,
        np.flatnonzero(plan.by_polynomial),
        threads,
    )


@contextmanager
def overflow_named(function: str, inputs: _layout.AttentionInputs) -> Iterator[None]:
    """Let exact attention to logits that overflow fail in the name of `function`."""
    try:
        yield
    except ValueError as error:
        raise _validate.wrong(
            function,
            "query",
            "has logits with key that overflow",
            f"finite products in {inputs.compute}",
            "infinite ones",
        ) from error


def half_unit(dtype: np.dtype[Any]) -> float:
    """The largest relative error of rounding to float16 or bfloat16."""
    return 2.0**-11 if dtype == np.float16 else 2.0**-8


def tolerance_missed(
    inputs: _layout.AttentionInputs, plan: PolynomialPlan, wanted: PolynomialSettings
) -> ToleranceMissed:
    """The exception for ``on_miss="error"``."""
    flat = np.flatnonzero(plan.of("missed"))
    first = plan.heads[flat[0]]
    place = np.unravel_index(flat[0], inputs.lead) if inputs.lead else ()
    where = f"head {tuple(int(i) for i in place)}" if place else "the head"
    logits = f"logits of up to {first.radius:.3g}"
    if first.coefficients is None and not first.radius <= _core.MOST_RADIUS:
        found = f"{logits}, beyond any polynomial"
    elif first.coefficients is None:
        found = f"{logits}, for which the features take too much memory"
    elif wanted.tol is not None and not first.error <= wanted.tol:
        found = f"{logits}, and with degree {first.degree} an error of {first.error:.3g}"
    else:
        found = f"{logits}, whose {first.rank} features take longer than exact attention"
    return ToleranceMissed(
        f"[{wanted.function}] tol is missed by {flat.size} of {len(plan.heads)} heads; expected "
        f"weights with a relative error of at most {wanted.tol:g}, and in less time than exact "
        f"attention where the degree is free; got, in {where}, {found}. on_miss='exact' computes "
        "such heads exactly"
    )


def account(
    inputs: _layout.AttentionInputs,
    plan: PolynomialPlan,
    target: np.ndarray,
    done: dict[str, np.ndarray],
    wanted: PolynomialSettings,
    clock: Stopwatch,
) -> PolynomialReport:
    """The report, in the caller's leading dimensions."""
    with clock("estimate"):
        sample = Sample.drawn(inputs, wanted.threads)
        sample = sample.with_heavy_rows(inputs, target, wanted.threads)
        verdict = sample.verdict(sample.of(target))
    largest = np.abs(inputs.value).max(axis=(2, 3), initial=0.0).astype(np.float64)
    largest = np.repeat(largest, inputs.heads[1] // max(largest.shape[1], 1), axis=1)
    error = plan.of("epsilon") + plan.of("rounding")
    below = np.where(error < 1.0, error, 0.0)
    bound = np.where(error < 1.0, 2.0 * below / (1.0 - below) * largest, np.inf)
    if inputs.dtype != inputs.compute:  # the output is rounded to it
        bound = bound + half_unit(inputs.dtype) * (largest + bound)
    restore, exact = inputs.restore, ~plan.by_polynomial
    return PolynomialReport(
        method="exact" if exact.all() and exact.size else "polynomial",
        heads_exact=int(exact.sum()),
        exact_mask=restore(exact),
        radius=restore(plan.of("radius")),
        sampled_radius=restore(plan.sampled_radius),
        degree=restore(plan.of("degree")),
        rank=restore(plan.of("rank")),
        epsilon=restore(plan.of("epsilon")),
        rounding=restore(plan.of("rounding")),
        error_bound=restore(np.where(exact, 0.0, bound)),
        error_estimate=restore(np.where(exact, 0.0, verdict.error)),
        error_interval=restore(np.where(exact[..., None], 0.0, verdict.interval)),
        unseen_share=restore(np.where(exact, 0.0, sample.unseen_share())),
        rows_exact=restore(done["rows_exact"]),
        columns_exact=restore(np.where(exact, 0, plan.of("columns_exact"))),
        cost_polynomial=restore(plan.of("cost")),
        cost_exact=restore(plan.of("cost_exact")),
        sample_rows=sample.rows.shape[2],
        tol=wanted.tol,
        on_miss=wanted.on_miss,
        seconds=clock.stages(),
    )
