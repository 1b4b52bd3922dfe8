"""The oracle's polynomials for exp and their features."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Chebyshev, Polynomial

from convbasis import reference

RADII = (0.1, 0.5, 1.0, 2.0, 4.0)
EPSILONS = (0.1, 0.01, 0.001, 1e-6)

#: Least degree for a relative error on [-R, R], by R: best polynomial / Chebyshev interpolant of
#: exp / Taylor. The interpolant's error is level in absolute terms and so too large at -R.
DEGREES = {
    0.1: ("0/1/1", "1/1/1", "2/2/2", "3/3/4"),
    0.5: ("1/1/2", "2/2/3", "3/3/4", "5/6/7"),
    1.0: ("2/2/3", "3/4/5", "4/5/6", "7/7/9"),
    2.0: ("3/5/7", "5/6/8", "6/7/10", "9/10/14"),
    4.0: ("6/9/14", "7/10/15", "9/11/17", "13/15/21"),
}


def grid_error(coefficients, low, high):
    x = np.linspace(low, high, 20_001)
    return np.max(np.abs(Polynomial(coefficients)(x) * np.exp(-x) - 1.0))


def interpolant(degree, radius):
    fitted = Chebyshev.interpolate(np.exp, degree, domain=[-radius, radius])
    return fitted.convert(kind=Polynomial).coef


# --- polynomials ------------------------------------------------------------


@pytest.mark.parametrize("radius", RADII)
def test_table_of_degrees(radius):
    def least(family, epsilon):
        return next(
            g
            for g in range(40)
            if reference.polynomial_error(family(g), -radius, radius) <= epsilon
        )

    row = tuple(
        f"{reference.polynomial_degree(epsilon, -radius, radius)}"
        f"/{least(lambda g: interpolant(g, radius), epsilon)}"
        f"/{least(reference.taylor_polynomial, epsilon)}"
        for epsilon in EPSILONS
    )
    assert row == DEGREES[radius]


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-4, 4), (0, 3), (-5, -1), (2, 2.5), (-8, 8)])
def test_the_error_is_level_at_degree_plus_two_points(low, high, degree):
    coefficients = reference.exp_polynomial(degree, low, high)
    assert coefficients.shape == (degree + 1,)
    error = reference.polynomial_error(coefficients, low, high)
    assert grid_error(coefficients, low, high) <= error
    x = np.linspace(low, high, 20_001)
    e = Polynomial(coefficients)(x) * np.exp(-x) - 1.0
    rounding = 1e-15 * math.exp(2 * max(abs(low), abs(high))) * (degree + 1)
    if error < 1e3 * rounding:
        return
    # The best error alternates degree + 2 times (de la Vallee Poussin): no polynomial does better.
    peaks = np.flatnonzero(np.abs(e) > 0.999 * error)
    signs = np.sign(e[peaks])
    assert 1 + np.count_nonzero(np.diff(signs)) == degree + 2
    assert grid_error(coefficients, low, high) >= error * (1 - 1e-5) - rounding


def test_the_best_line_by_hand():
    # On [-R, R]: P' = P at x0 = 1 - a/b; P(-R) e^R = P(R) e^-R gives b R = a tanh R.
    R = 1.0
    a, b = reference.exp_polynomial(1, -R, R)
    assert b * R == pytest.approx(a * math.tanh(R), rel=1e-9)
    x0 = 1 - a / b
    error = reference.polynomial_error([a, b], -R, R)
    assert b * math.exp(-x0) - 1 == pytest.approx(error, rel=1e-9)
    assert 1 - (a - b * R) * math.exp(R) == pytest.approx(error, rel=1e-9)


def test_error_of_a_polynomial_that_is_given():
    assert reference.polynomial_error([1.0], 0.0, 0.0) < 1e-14
    assert reference.polynomial_error([0.0], -3.0, 3.0) == 1.0
    assert reference.polynomial_error([2.0], 0.0, 1.0) == pytest.approx(1.0)
    # An extremum inside: (1 + x) e^-x on [-1/2, 1/2] is largest at 0, least at an end.
    assert reference.polynomial_error([2.0, 2.0], -0.5, 0.5) == pytest.approx(1.0)


def test_a_degenerate_interval_is_one_point():
    coefficients = reference.exp_polynomial(3, 0.7, 0.7)
    assert reference.polynomial_error(coefficients, 0.7, 0.7) < 1e-14
    assert reference.polynomial_degree(1e-9, 0.7, 0.7) == 0


def test_what_powers_cannot_reach_is_none():
    assert reference.polynomial_degree(1e-6, -10.0, 10.0) is None
    assert reference.polynomial_degree(0.1, -50.0, 50.0) is None
    assert reference.polynomial_degree(0.1, -5000.0, 5000.0) is None
    assert reference.polynomial_degree(0.001, -10.0, 10.0) == 17


@settings(max_examples=40, deadline=None)
@given(
    middle=st.floats(-3, 3),
    radius=st.floats(1e-3, 5),
    epsilon=st.floats(1e-6, 0.5),
)
def test_the_degree_is_the_least(middle, radius, epsilon):
    low, high = middle - radius, middle + radius
    degree = reference.polynomial_degree(epsilon, low, high)
    if degree is None:
        assert math.exp(2 * (abs(middle) + radius)) * 1e-13 > epsilon
        return
    assert grid_error(reference.exp_polynomial(degree, low, high), low, high) <= epsilon
    if degree:
        assert (
            grid_error(reference.exp_polynomial(degree - 1, low, high), low, high) > 0.99 * epsilon
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reference.exp_polynomial(-1, 0.0, 1.0), "degree is negative; expected .*; got -1"),
        (lambda: reference.exp_polynomial(1, 1.0, 0.0), "no interval; expected .*; got 1.0 and 0"),
        (lambda: reference.polynomial_error([], 0.0, 1.0), "expected shape .*; got .0"),
        (lambda: reference.polynomial_error([1.0], 0.0, np.inf), "finite numbers"),
        (lambda: reference.exp_polynomial(1, -999.0, 0.0), "too far from 0; expected .* 300; got"),
        (lambda: reference.polynomial_degree(0.0, 0.0, 1.0), "not positive; expected .*; got 0"),
    ],
)
def test_bad_polynomials(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- features ---------------------------------------------------------------


@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_every_monomial_is_there_once(d, degree):
    indices = reference.multi_indices(d, degree)
    assert indices.shape == (reference.feature_count(d, degree), d)
    assert len(np.unique(indices, axis=0)) == len(indices)
    assert np.all(np.diff(indices.sum(axis=1)) >= 0)
    assert indices.min() == 0
    assert indices.sum(axis=1).max() == degree


@pytest.mark.parametrize(
    ("d", "counts"),
    [(4, (5, 15, 35, 70, 210)), (8, (9, 45, 165, 495, 3003)), (16, (17, 153, 969, 4845, 74613))],
)
def test_table_of_ranks(d, counts):
    assert tuple(reference.feature_count(d, g) for g in (1, 2, 3, 4, 6)) == counts


@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("d", [1, 2, 4])
def test_features_multiply_to_the_polynomial(d, degree):
    rng = np.random.default_rng(degree)
    query, key = rng.normal(size=(7, d)), rng.normal(size=(5, d))
    coefficients = rng.normal(size=degree + 1)  # of both signs
    got = reference.query_features(query, coefficients) @ reference.key_features(key, degree).T
    want = Polynomial(coefficients)(query @ key.T)
    size = Polynomial(np.abs(coefficients))(
        np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(key, axis=1)
    )
    assert np.max(np.abs(got - want) / size) < 1e-14
    assert np.max(np.abs(want)) > 0.1


def test_every_query_may_have_a_polynomial_of_its_own():
    rng = np.random.default_rng(0)
    query, key, shift = rng.normal(size=(6, 3)), rng.normal(size=(4, 3)), rng.normal(size=6)
    coefficients = np.array([1.0, -2.0, 0.5, 3.0])
    shifted = reference.shifted_polynomial(coefficients, shift)
    got = reference.query_features(query, shifted) @ reference.key_features(key, 3).T
    want = Polynomial(coefficients)(query @ key.T - shift[:, None])
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)
