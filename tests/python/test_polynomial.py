"""Polynomials and the choice of exact rows and columns, against the oracle."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
from numpy.polynomial import polynomial

from convbasis import _core, reference

RADII = (0.1, 0.5, 1.0, 2.0, 4.0, 6.0)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 5, 8, 10])
def test_error_is_that_of_the_best_polynomial(degree, radius):
    best = reference.polynomial_error(
        reference.exp_polynomial(degree, -radius, radius), -radius, radius
    )
    coefficients, epsilon = _core.exp_polynomial(degree, radius)
    error = reference.polynomial_error(coefficients, -radius, radius)
    rounding = 1e-14 * np.exp(2 * radius)  # of powers in float64
    assert error <= 1.002 * best + rounding
    assert error <= epsilon + rounding
    assert epsilon <= 1.02 * best + rounding
    assert _core.polynomial_error(coefficients, radius) == epsilon


@pytest.mark.parametrize(
    ("degree", "radius"),
    [(11, 0.20926544240400669), (18, 1.855008347245409), (18, 2.3726210350584305)],
)
def test_no_exchange_makes_it_worse_where_rounding_outweighs_the_error(degree, radius):
    """Points that coincide gave errors of up to 0.2."""
    assert _core.exp_polynomial(degree, radius)[1] < 1e-13 * np.exp(2 * radius)


@pytest.mark.parametrize(
    ("degree", "radius"), [(16, 11.0), (20, 11.0), (20, 12.0), (20, 13.0), (16, 15.0)]
)
def test_wide_intervals_have_the_best_polynomial(degree, radius):
    """As many alternating errors as the best one has, of nearly one size: none is much better."""
    coefficients, epsilon = _core.exp_polynomial(degree, radius)
    points = radius * np.sin(np.linspace(-np.pi / 2, np.pi / 2, 3001))
    with localcontext() as context:
        context.prec = 60  # powers in float64 lose exp(2 radius) roundings
        values = polynomial.polyval(
            np.array([Decimal(x) for x in points]), np.array([Decimal(c) for c in coefficients])
        )
    error = values.astype(float) * np.exp(-points) - 1.0
    runs = np.split(np.abs(error), np.flatnonzero(np.diff(error < 0)) + 1)
    largest = [run.max() for run in runs]
    assert len(runs) == degree + 2
    assert max(largest) <= 1.2 * min(largest)
    assert max(largest) <= epsilon


@pytest.mark.parametrize("radius", [0.0, *RADII, 8.0])
@pytest.mark.parametrize("epsilon", [0.5, 0.1, 0.01, 0.001, 1e-6])
def test_degree_is_the_oracles(radius, epsilon):
    want = reference.polynomial_degree(epsilon, -radius, radius)
    assert _core.polynomial_degree(epsilon, radius, 0.0, False) == want
    counted = _core.polynomial_degree(epsilon, radius, 2.0**-24, False)
    assert counted is None or want <= counted <= want + 1


def test_rounding_in_float32_is_covered():
    rng = np.random.default_rng(0)
    for radius in (1.0, 3.0):
        query, key = rng.normal(size=(2, 200, 3))
        query *= np.sqrt(radius) / np.linalg.norm(query, axis=1).max()
        key *= np.sqrt(radius) / np.linalg.norm(key, axis=1).max()
        query, key = query.astype(np.float32), key.astype(np.float32)
        coefficients, _ = _core.exp_polynomial(8, radius)
        indices = reference.multi_indices(3, 8)
        weights = reference.key_features(np.ones(3), 8).astype(np.float32)
        phi_q, phi_k = (
            np.prod(x[:, None, :] ** indices.astype(np.float32), axis=-1, dtype=np.float32)
            * weights
            for x in (query, key)
        )
        phi_q *= coefficients.astype(np.float32)[indices.sum(axis=1)]
        got = (phi_q @ phi_k.T).astype(float)
        want = np.polynomial.Polynomial(coefficients)(query.astype(float) @ key.T.astype(float))
        bound = _core.polynomial_rounding(coefficients, radius, 2.0**-24, 0.0)
        worst = np.max(np.abs(got / want - 1))
        assert 0 < worst <= bound


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("radius", "pays"), [(1.0, False), (8.0, True), (16.0, True)])
def test_exact_entries_are_no_more_than_the_oracles(seed, radius, pays):
    """With features that cost nothing, the plan is the one with the fewest exact entries.

    Single ones cost twice as much as those of exact attention: they have to be less than half.
    """
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(70, 3)) * rng.lognormal(size=(70, 1))
    key = rng.normal(size=(90, 3)) * rng.lognormal(size=(90, 1))
    key -= key.mean(axis=0)
    _, query_norms, key_norms, _, _ = _core.logit_range(
        query[None, None], key[None, None], 3**-0.5, False, 0, 1
    )
    rates = (1.0, 1e-12)
    args = (query_norms, key_norms, 3, 3, 1.0, 0.01, 0.0, False, rates, [radius])
    plan = _core.plan_polynomial(*args)
    rows, columns = reference.large_entries(query, key, radius)
    kept = (~rows).sum() * (~columns).sum()
    got_rows, got_columns = 70 - len(plan["exact_rows"]), 90 - len(plan["exact_columns"])
    assert (2 * kept > 70 * 90) == pays
    assert got_rows * got_columns == (kept if pays else 0)
    if not pays:
        return
    left = np.abs(query @ key.T / np.sqrt(3))
    left[plan["exact_rows"]] = 0.0
    left[:, plan["exact_columns"]] = 0.0
    assert left.max() <= plan["radius"] <= radius


def test_feature_count_is_the_oracles():
    for head_dim in (1, 4, 16, 64):
        for degree in range(8):
            want = reference.feature_count(head_dim, degree)
            assert _core.feature_count(head_dim, degree) == want
