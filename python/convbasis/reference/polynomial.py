"""Polynomials that stand for the exponential on an interval, with the relative error certified.

The error of ``P`` is measured relative to the exponential, ``e(x) = P(x) exp(-x) - 1``: softmax
divides by a sum of exponentials, so that it is the relative error of the weights that counts.

``e'(x) = (P'(x) - P(x)) exp(-x)``. The extrema of the error are therefore the roots of the
polynomial ``P' - P``, at most ``g`` of them, and the ends of the interval: the largest error is
found by root finding, without a grid.

Source: Alman and Song, *Fast Attention Requires Bounded Entries*, arXiv:2302.13214, called "AS23"
in the docstrings, for the method; the polynomials here have the least relative error, so that
fewer features are needed than with the paper's.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from numpy.typing import ArrayLike, NDArray

#: Degrees that are looked at: more have no place in an attention, whose features are C(d+g, g).
MOST_DEGREE = 40

#: Intervals beyond this cannot be had with powers in float64: ``exp(WIDEST) u > 0.1``.
WIDEST = 35.0

#: Beyond this exp overflows or vanishes somewhere on the way.
LARGEST = 300.0

#: The exchange converges quadratically; rounding stops it before.
MOST_EXCHANGES = 30


def check_interval(function: str, low: float, high: float, largest: float = LARGEST) -> None:
    if not (low <= high and math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"[{function}] low and high are no interval; expected finite numbers with "
            f"low <= high; got {low} and {high}"
        )
    if max(-low, high) > largest:
        raise ValueError(
            f"[{function}] low and high are too far from 0; expected sizes of at most {largest:g}; "
            f"got {low} and {high}"
        )


def taylor_polynomial(degree: int) -> NDArray[np.float64]:
    """Coefficients ``1 / p!`` of the Taylor polynomial at 0, constant first.

    Examples
    --------
    >>> from convbasis import reference
    >>> reference.taylor_polynomial(2).tolist()
    [1.0, 1.0, 0.5]
    """
    return np.array([1.0 / math.factorial(p) for p in range(degree + 1)])


def exp_polynomial(degree: int, low: float, high: float) -> NDArray[np.float64]:
    """The polynomial of least relative error against the exponential on an interval.

    Parameters
    ----------
    degree : int
        The paper's ``g``.
    low, high : float
        Ends of the interval.

    Returns
    -------
    ndarray of float64, shape (degree + 1,)
        Coefficients ``c_p`` of ``P(x) = sum_p c_p x^p``, constant first.

    Raises
    ------
    ValueError
        If `degree` is negative, or the interval is none or goes beyond 300 in size.

    Notes
    -----
    Remez exchange. The functions ``x^p exp(-x)`` are a Haar system, so the best ``P`` is the one
    whose error takes its largest size, with alternating signs, at ``g + 2`` points. Each step
    levels the error on ``g + 2`` points and moves to its extrema. Between alternating signs the
    error has ``g + 1`` zeros, so all ``g`` roots of ``P' - P`` are real and inside, and with the
    ends they are the next ``g + 2`` points: nothing has to be chosen.

    Powers of x cancel: with ``R = max(|low|, |high|)`` the error cannot be brought below about
    ``exp(2 R)`` roundings, whatever the degree.

    Examples
    --------
    The best constant on ``[-R, R]`` is ``1 / cosh(R)``, with the relative error ``tanh(R)``.

    >>> from convbasis import reference
    >>> import math
    >>> bool(abs(reference.exp_polynomial(0, -1.0, 1.0)[0] - 1 / math.cosh(1.0)) < 1e-15)
    True
    """
    if degree < 0:
        raise ValueError(
            f"[exp_polynomial] degree is negative; expected an integer >= 0; got {degree}"
        )
    check_interval("exp_polynomial", low, high)
    if low == high:
        return padded([math.exp(low)], degree + 1)
    middle, radius = (low + high) / 2, (high - low) / 2
    points = middle - radius * np.cos(np.pi * np.arange(degree + 2) / (degree + 1))
    signs = (-1.0) ** np.arange(degree + 2)
    for _ in range(MOST_EXCHANGES):
        columns = np.polynomial.chebyshev.chebvander((points - middle) / radius, degree)
        system = np.c_[columns * np.exp(-points)[:, None], signs]
        solution = np.linalg.solve(system, np.ones(degree + 2))
        fitted = Chebyshev(solution[:-1], domain=[low, high])
        roots = (fitted.deriv() - fitted).roots()
        inside = np.sort(roots.real[(np.abs(roots.imag) < radius * 1e-6)])
        moved = np.r_[low, np.clip(inside, low, high), high]
        if len(moved) != len(points) or np.any(np.diff(moved) <= 0.0):
            break  # rounding errors outweigh the levelled error
        step, points = np.max(np.abs(moved - points)), moved
        if step <= radius * 1e-9:
            break
    return padded(fitted.convert(kind=Polynomial).coef, degree + 1)


def padded(coefficients: ArrayLike, length: int) -> NDArray[np.float64]:
    """Coefficients, followed by zeros up to a length."""
    result = np.zeros(length)
    result[: np.size(coefficients)] = coefficients
    return result


def polynomial_error(coefficients: ArrayLike, low: float, high: float) -> float:
    """``max |P(x) / exp(x) - 1|`` over ``low <= x <= high``.

    Parameters
    ----------
    coefficients : array_like, shape (g + 1,)
        Constant first.
    low, high : float

    Returns
    -------
    float
        The largest error at the ends and at every root of ``P' - P`` (see above), plus what
        rounding does to the sum of powers, ``2 (g + 1) u sum_p |c_p| |x|^p exp(-x)`` at its
        largest, ``u`` half the distance from 1 to the next float64.

    Raises
    ------
    ValueError
        If `coefficients` is empty, or the interval is none or goes beyond 300 in size.

    Examples
    --------
    >>> from convbasis import reference
    >>> round(reference.polynomial_error([1.0, 1.0], 0.0, 1.0), 6)  # 1 - 2/e at x = 1
    0.264241
    """
    coefficients = np.asarray(coefficients, dtype=np.float64)
    if coefficients.ndim != 1 or len(coefficients) == 0:
        raise ValueError(
            "[polynomial_error] coefficients are no polynomial; expected shape (g + 1,); "
            f"got {coefficients.shape}"
        )
    check_interval("polynomial_error", low, high)
    powers = Polynomial(coefficients)
    points = np.array([low, high])
    if low < high:
        # In Chebyshev polynomials of the interval the roots are found where powers would not.
        scaled = powers.convert(kind=Chebyshev, domain=[low, high])
        # The real part of a complex root costs nothing and is right for a nearly double one.
        points = np.r_[points, np.clip((scaled.deriv() - scaled).roots().real, low, high)]
    error = np.max(np.abs(powers(points) * np.exp(-points) - 1.0))
    # Both factors at their largest, wherever they are so.
    radius = max(abs(low), abs(high))
    largest = Polynomial(np.abs(coefficients))(radius) * math.exp(-low)
    unit = np.finfo(np.float64).eps / 2
    return float(error + 2 * len(coefficients) * unit * largest)


def polynomial_degree(epsilon: float, low: float, high: float) -> int | None:
    """The least degree whose best polynomial has a relative error of at most `epsilon`.

    Parameters
    ----------
    epsilon : float
        Positive.
    low, high : float

    Returns
    -------
    int or None
        None if no degree up to 40 reaches `epsilon` in float64; that is so from about
        ``exp(high - low) > epsilon * 1e15`` on, whatever the degree.

    Raises
    ------
    ValueError
        If `epsilon` is not positive, or the interval is none or a narrow one beyond 300.

    Notes
    -----
    AS23: ``O(max(log(1/eps) / log(log(1/eps) / R), R^2))`` on ``[-R, R]``.

    Examples
    --------
    >>> from convbasis import reference
    >>> [reference.polynomial_degree(0.01, -R, R) for R in (0.5, 1.0, 2.0, 4.0)]
    [2, 3, 5, 7]
    """
    if not epsilon > 0.0:
        raise ValueError(
            f"[polynomial_degree] epsilon is not positive; expected a number above 0; got {epsilon}"
        )
    check_interval("polynomial_degree", low, high, math.inf)
    if high - low > WIDEST:
        return None
    for degree in range(MOST_DEGREE + 1):
        if polynomial_error(exp_polynomial(degree, low, high), low, high) <= epsilon:
            return degree
    return None
