"""Recovery of a conv basis from Q and K, for one triangle of the logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import _basis_rules, _core, _gpu_recover, _layout, _validate
from ._device_arrays import any_on_device
from ._starts import Starts
from .basis import ConvBasis, Strips

#: Windows beyond this would not fit in a float; where noise is excluded any more is the same.
FLOAT_WINDOW = 2**1000


@dataclass(frozen=True)
class RecoverOptions:
    """How strips are looked for.

    Parameters
    ----------
    num_bases : int, optional
        Most strips a head may have, the paper's k; a head whose data shows more is truncated.
        Default: as many as the data shows, up to the number from which exact attention is cheaper
        (`recover_basis`, which sees no values, takes the head_dim for their dimension).
        From the number of candidate columns on (``n`` with ``window=1``), every column is a strip
        of its own, which is exact attention.
    window : int
        The paper's T: leading entries of a column that are compared. Strips of fewer than T rows
        are not looked for.
    delta : float
        Distance, in the l1 norm over the window, from which a column starts a new strip.
    epsilon : float
        Noise of a logit; the threshold is ``delta - 2 * window * epsilon``. Logits recovered from
        epsilon-close ones differ from them by at most ``2 * epsilon``.
    search : {"scan", "bisect"}
        "scan" looks at every column, O(n T d) a head. "bisect" is the paper's binary search,
        O(k log(n) T d); it relies on all later strips being as far from the current one.

    Raises
    ------
    ValueError
        If num_bases < 1, window < 1, delta < 0, epsilon < 0, ``epsilon > delta / (5 * window)``,
        or `search` is neither of the two.
    TypeError
        If a value has the wrong type.

    Notes
    -----
    Source: Conv-Basis (arXiv 2405.05219), Algorithms 2 and 3 and the definition of
    (T, delta)-non-degenerate bases.
    """

    num_bases: int | None = None
    window: int = 16
    delta: float = 1e-2
    epsilon: float = 0.0
    search: str = "scan"

    def __post_init__(self) -> None:
        name = "RecoverOptions"
        if self.num_bases is not None:
            _validate.integer(name, "num_bases", self.num_bases, minimum=1)
        window = _validate.integer(name, "window", self.window, minimum=1)
        if _validate.number(name, "delta", self.delta) < 0.0:
            raise _validate.wrong(name, "delta", "is negative", "at least 0", self.delta)
        if _validate.number(name, "epsilon", self.epsilon) < 0.0:
            raise _validate.wrong(name, "epsilon", "is negative", "at least 0", self.epsilon)
        most = float(self.delta) / (5 * min(window, FLOAT_WINDOW))
        if self.epsilon > most:
            raise _validate.wrong(
                name,
                "epsilon",
                "is too large to tell strips apart",
                f"at most delta / (5 * window) = {most:g}",
                self.epsilon,
            )
        _validate.choice(name, "search", self.search, ("scan", "bisect"))

    def within(self, n: int) -> tuple[int | None, int, float, float, bool]:
        """The options for n rows as the core takes them; the last one says whether to bisect.

        A window longer than the sequence is the sequence, for the threshold too, and more strips
        than rows are every column; so both are cut to n, whatever integers they are.
        """
        most = max(n, 1)
        num_bases = None if self.num_bases is None else min(int(self.num_bases), most)
        window = min(int(self.window), most)
        is_bisect = self.search == "bisect"
        return num_bases, window, float(self.delta), float(self.epsilon), is_bisect

    def unlimited(self, n: int, columns: int) -> RecoverOptions:
        """The same with as many strips as n rows can have, though no column be one of its own."""
        candidates = min(n - int(self.window) + 1, columns)
        return replace(self, num_bases=max(candidates - 1, 1))


DEFAULT_OPTIONS = RecoverOptions()


def find_starts(
    query: np.ndarray,
    key: np.ndarray,
    value_dim: int,
    scale: float,
    options: RecoverOptions,
    threads: int,
) -> Starts:
    """Starts of the strips of 4-D `query` and `key`, at most as many as `options` allow.

    With a free number of strips `value_dim` decides from how many on exact attention is cheaper.
    """
    limits = options.within(query.shape[2])
    return Starts(*_core.recover_starts(query, key, scale, *limits, value_dim, threads))


def form_strips(
    query: np.ndarray,
    key: np.ndarray,
    found: Starts,
    wanted: np.ndarray,
    scale: float,
    threads: int,
    checked_by: str | None = None,
) -> Strips:
    """Strips with their kernels, for the `wanted` heads alone; the others get none. O(k n d).

    Raises ValueError in the name of the function `checked_by`, if any, when logits overflow.
    """
    batch, heads, n, _ = query.shape
    starts, num_bases, *_ = found.only(wanted, n)
    kernels = np.empty((batch, heads, starts.shape[2], n), query.dtype)
    finite = _core.recover_kernels(query, key, starts, num_bases, kernels, scale, threads)
    if checked_by is not None and not finite:
        raise _validate.wrong(
            checked_by,
            "query",
            "has logits with key that overflow",
            f"finite products in {kernels.dtype}",
            "infinite ones",
        )
    return Strips(starts, num_bases, kernels, key.shape[2])


def given_starts(starts: Any, query: np.ndarray, query4: np.ndarray, key4: np.ndarray) -> Starts:
    """Strips as the caller names them, all of them."""
    of_heads, lead = query.shape[:-2], query4.shape[:2]
    begin, num_bases = _basis_rules.given_starts(
        "recover_basis", starts, query4.dtype, of_heads, query.shape[-2], key4.shape[2]
    )
    k = begin.shape[-1]
    return Starts(begin.reshape(*lead, k), num_bases.reshape(lead), np.ones(lead, bool), False)


def recover_basis(
    query: Any,
    key: Any,
    *,
    starts: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    options: RecoverOptions | None = None,
    num_threads: int | None = None,
) -> ConvBasis:
    """Recover the conv basis of the logits ``scale * Q K^T`` on and below the diagonal.

    Only single columns of the logits are formed. For attention that is not causal, the upper
    triangle has a basis of its own: ``recover_basis(query[..., ::-1, :], key[..., ::-1, :])``, and
    ``conv_attention(..., basis=(lower, upper))`` takes both.

    Parameters
    ----------
    query : ndarray, or array on a GPU, shape (..., n, d)
        float32, float64, float16 or bfloat16 (the last two are computed in float32).
    key : as query, shape (..., n_kv, d)
        Same dtype. Keys past the last query row are seen by no query and not looked at.
    starts : array_like of int, shape (..., k) or (k,), optional
        First columns of the strips of each head, or of all, increasing from 0 on and padded with
        n: kernels are formed for these, and nothing is looked for. On a GPU the call then waits
        for nothing.
    scale : float, optional
        Default ``1 / sqrt(d)``. The basis remembers it, see ``ConvBasis.scale``.
    enable_gqa : bool
        Query head h uses key head ``h // (heads / kv_heads)``.
    options : RecoverOptions, optional
    num_threads : int, optional
        Default: all cores this process may use.

    Returns
    -------
    ConvBasis, or GpuBasis for arrays on a GPU
        With ``num_columns = min(n, n_kv)``. ``complete`` is False for a head whose data shows more
        strips than allowed; its last strip then stands for all columns that follow.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not match, `starts` do not fit, or an entry is not finite.

    Notes
    -----
    Time O(n T d) for the scan (O(k log(n) T d) bisecting) and O(k n d) for the kernels, memory
    O(k n), a head. When the logits are epsilon-close to a (T, delta)-non-degenerate k-conv basis,
    with epsilon <= delta / (5 T), the starts are its starts and the recovered logits differ from
    the given ones by at most 2 epsilon. Source: Conv-Basis (arXiv 2405.05219), Algorithms 2 and 3.

    Examples
    --------
    >>> import numpy as np, convbasis as cb
    >>> problem = cb.problems.conv_problem(n=64, head_dim=8, num_bases=2)
    >>> basis = cb.recover_basis(problem.query, problem.key, scale=problem.scale)
    >>> bool(np.array_equal(basis.starts, problem.starts))
    True
    """
    name = "recover_basis"
    if starts is not None and options is not None:
        raise _validate.wrong(
            name, "options", "is given together with starts", "one of the two", "both"
        )
    if any_on_device(query, key):
        return _gpu_recover.recover_basis(
            query,
            key,
            starts=starts,
            scale=scale,
            enable_gqa=enable_gqa,
            options=recover_options(name, options),
            num_threads=num_threads,
        )
    query = _validate.float_array(name, "query", query, min_ndim=2)
    key = _validate.float_array(name, "key", key, min_ndim=2)
    _validate.same_dtype(name, "key", key, "query", query.dtype)
    enable_gqa = _validate.flag(name, "enable_gqa", enable_gqa)
    _validate.attention_shapes(name, query, key, None, enable_gqa)
    scale = _validate.scale_or_default(name, scale, query)
    options = recover_options(name, options)
    threads = _validate.threads(name, num_threads)
    query4, key4 = _layout.operand(query), _layout.operand(key)
    key4 = key4[:, :, : query4.shape[2]]

    if starts is None:
        found = find_starts(query4, key4, query.shape[-1], scale, options, threads)
    else:
        found = given_starts(starts, query, query4, key4)
    if not found.seen_finite:
        _validate.finite(name, [("query", query4), ("key", key4)], threads)
    strips = form_strips(query4, key4, found, np.ones_like(found.complete), scale, threads, name)
    return ConvBasis.of_strips(strips, query.shape[:-2], found.complete, scale)


def recover_options(
    function: str, options: object, expected: str = "RecoverOptions or None"
) -> RecoverOptions:
    """`options`, or the defaults for None."""
    if options is None:
        return DEFAULT_OPTIONS
    if not isinstance(options, RecoverOptions):
        raise _validate.wrong(
            function,
            "options",
            "has the wrong type",
            expected,
            f"the class {options.__name__}, not called"
            if isinstance(options, type)
            else type(options).__name__,
            TypeError,
        )
    return options
