"""The oracle's attention through polynomials, what it promises and when it applies."""

import numpy as np
import pytest
from numpy.polynomial import Polynomial

from convbasis import reference


def random_qkv(n_q, n_kv, d, spread, seed=0, lead=()):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(*lead, n_q, d)) * spread
    return query, rng.normal(size=(*lead, n_kv, d)) * spread, rng.normal(size=(*lead, n_kv, 3))


def adversarial(kind):
    """Inputs on which errors do not average out."""
    n = 33
    sign = np.where(np.arange(n) % 2, 1.0, -1.0)[:, None]
    if kind == "two groups":  # logits at both ends of the range, values that tell them apart
        return np.full((n, 1), 1.5), sign, sign
    if kind == "one key":  # one key far from all others
        key = np.zeros((n, 2))
        key[7] = 3.0
        return np.ones((n, 2)), key, np.eye(n)[:, 5:9]
    key = np.linspace(-2.0, 2.0, n)[:, None]  # all logits of the range, values of the error's sign
    P = Polynomial(reference.exp_polynomial(3, -2.0, 2.0))
    return np.ones((n, 1)), key, np.sign(P(key) * np.exp(-key) - 1.0)


@pytest.mark.parametrize("kind", ["two groups", "one key", "all of the range"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("degree", [1, 3, 5, 8])
def test_the_bound_holds_on_adversarial_inputs(kind, is_causal, degree):
    query, key, value = adversarial(kind)
    want, lse = reference.attention(query, key, value, is_causal=is_causal, scale=1.0)
    got = reference.polynomial_attention(
        query, key, value, is_causal=is_causal, scale=1.0, degree=degree
    )
    assert np.abs(got.out - want).max() <= reference.polynomial_bound(got.epsilon, value) + 1e-12
    assert np.abs(got.lse - lse).max() <= -np.log1p(-got.epsilon) + 1e-12


def test_the_bound_is_of_the_right_size():
    query, key, value = adversarial("all of the range")
    want, _ = reference.attention(query, key, value, scale=1.0)
    got = reference.polynomial_attention(query, key, value, scale=1.0, degree=3)
    assert np.abs(got.out - want).max() > 0.1 * reference.polynomial_bound(got.epsilon, value)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("n_q", "n_kv"), [(1, 1), (3, 7), (31, 31), (33, 5), (0, 4), (4, 0)])
def test_features_and_logits_agree(n_q, n_kv, is_causal):
    query, key, value = random_qkv(n_q, n_kv, 3, 1.0, lead=(2, 2))
    kwargs = {"is_causal": is_causal, "degree": 4}
    one = reference.polynomial_attention(query, key, value, **kwargs)
    other = reference.polynomial_attention(query, key, value, through="logits", **kwargs)
    np.testing.assert_allclose(one.out, other.out, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(one.lse, other.lse, rtol=1e-9, atol=1e-11)
    assert one.out.shape == (2, 2, n_q, 3)
    assert one.epsilon == other.epsilon


def test_success_is_not_the_weakness_of_the_test():
    """Degree 8 is near exact attention where the mean of V, degree 1 and a window are not."""
    query, key, value = random_qkv(65, 65, 4, 1.0)
    want, _ = reference.attention(query, key, value)
    norm = np.linalg.norm(want)

    def error(out):
        return np.linalg.norm(out - want) / norm

    fine = reference.polynomial_attention(query, key, value, degree=8)
    coarse = reference.polynomial_attention(query, key, value, degree=1)
    lag = np.abs(np.arange(65)[:, None] - np.arange(65))
    window, _ = reference.attention(query, key, value, mask=lag < 16)
    assert error(fine.out) < 0.01
    assert error(fine.out) <= reference.polynomial_bound(fine.epsilon, value)
    for weak in (coarse.out, window, np.broadcast_to(value.mean(axis=0), want.shape), 0 * want):
        assert error(weak) > 30 * error(fine.out)


def test_reductions_narrow_the_range_and_change_nothing_else():
    query, key, value = random_qkv(20, 30, 2, 0.5)
    key = key + 3.0
    want, lse = reference.attention(query, key, value)
    radius = {}
    for centre in (False, True):
        for shift in (False, True):
            got = reference.polynomial_attention(
                query, key, value, degree=16, centre_keys=centre, shift_rows=shift
            )
            radius[centre, shift] = got.radius
            np.testing.assert_allclose(got.out, want, atol=1e-8)
            np.testing.assert_allclose(got.lse, lse, atol=1e-8)
    assert radius[True, False] < 0.5 * radius[False, False]
    assert radius[True, True] == pytest.approx(radius[False, True])
    assert radius[True, True] < radius[True, False]


def test_grouped_heads():
    query, key, value = random_qkv(6, 5, 2, 1.0, lead=(4,))
    got = reference.polynomial_attention(query, key[:2], value[:2], degree=9, enable_gqa=True)
    want, _ = reference.attention(query, key[:2], value[:2], enable_gqa=True)
    np.testing.assert_allclose(got.out, want, atol=1e-4)


def test_given_coefficients_are_used_as_they_are():
    query, key, value = random_qkv(6, 5, 2, 1.0)
    got = reference.polynomial_attention(query, key, value, coefficients=[7.0])
    np.testing.assert_allclose(got.out, np.broadcast_to(value.mean(axis=0), (6, 3)), rtol=1e-12)
    with pytest.raises(ValueError, match=r"do not sum to a positive number; expected .*; got"):
        reference.polynomial_attention(query, key, value, coefficients=[-1.0])
    for kwargs in ({}, {"degree": 1, "coefficients": [1.0]}):
        with pytest.raises(ValueError, match="exactly one of them; got"):
            reference.polynomial_attention(query, key, value, **kwargs)
    with pytest.raises(ValueError, match="through is unknown"):
        reference.polynomial_attention(query, key, value, degree=1, through="rows")


# --- large entries -----------------------------------------------------------


def with_large_entries(n=48, d=3, spread=0.4):
    query, key, value = random_qkv(n, n, d, spread, seed=3)
    query[[5, 17]] *= 30.0
    key[[0, 9, 30]] *= 30.0
    return query, key, value


@pytest.mark.parametrize("is_causal", [False, True])
def test_large_entries_are_taken_exactly(is_causal):
    query, key, value = with_large_entries()
    rows, columns = reference.large_entries(query, key, 1.5)
    assert set(np.flatnonzero(rows)) >= {5, 17}
    assert set(np.flatnonzero(columns)) >= {0, 9, 30}
    assert rows.sum() + columns.sum() <= 12
    want, lse = reference.attention(query, key, value, is_causal=is_causal)
    taken = {"exact_rows": rows, "exact_columns": columns}
    got = reference.polynomial_attention(query, key, value, degree=5, is_causal=is_causal, **taken)
    assert got.radius < 1.5
    assert got.epsilon < 1e-3
    assert np.abs(got.out - want).max() <= reference.polynomial_bound(got.epsilon, value)
    np.testing.assert_allclose(got.lse, lse, atol=2 * got.epsilon)
    # The polynomial alone, and the exact part alone, are no approximations here.
    alone = reference.polynomial_attention(query, key, value, degree=5, is_causal=is_causal)
    assert np.abs(alone.out - want).max() > 100 * np.abs(got.out - want).max()
    exact = rows[:, None] | columns
    dropped, _ = reference.attention(query, key, value, is_causal=is_causal, mask=exact)
    assert np.abs(dropped - want).max() > 100 * np.abs(got.out - want).max()


@pytest.mark.parametrize("radius", [0.1, 1.0, 10.0, 1e6])
def test_what_is_left_is_within_the_radius(radius):
    query, key, _ = with_large_entries()
    rows, columns = reference.large_entries(query, key, radius, scale=0.7)
    left = reference.attention_logits(query, key, scale=0.7)[~rows][:, ~columns]
    assert np.max(np.abs(left), initial=0.0) <= radius * (1 + 1e-12)
    assert left.size == query.shape[0] * key.shape[0] or radius < 1e6


def test_everything_exact_is_attention_itself():
    query, key, value = with_large_entries()
    want, lse = reference.attention(query * 30, key, value)
    every = np.ones(48, dtype=bool)
    for taken in ({"exact_rows": every}, {"exact_columns": every}):
        got = reference.polynomial_attention(query * 30, key, value, degree=0, **taken)
        np.testing.assert_allclose(got.out, want, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(got.lse, lse, rtol=1e-12)
        assert got.radius == 0.0


# --- bounded entries ---------------------------------------------------------


def test_the_numbers_of_bounded_entries():
    query, key = [[1.0, -0.5]] * 3, [[0.25, 0.0], [0.0, 0.25]] * 8
    found = reference.bounded_entries(query, key, scale=2.0)
    assert (found.num_keys, found.head_dim) == (16, 2)
    assert found.entry_bound == pytest.approx(2.0)  # sqrt(2 * 2) * 1
    assert found.balanced_entry_bound == pytest.approx(1.0)  # sqrt(2 * 2) * sqrt(1 / 4)
    assert found.threshold == pytest.approx(np.sqrt(np.log(16)))
    assert (found.low, found.high, found.radius) == (-0.25, 0.5, 0.375)
    assert found.bounded
    assert found.degrees[0.01] == reference.polynomial_degree(0.01, -0.375, 0.375)
    assert found.ranks[0.01] == reference.feature_count(2, found.degrees[0.01])
    assert str(found).startswith("Entries of 1 are below sqrt(log n) = 1.67")


def test_the_balanced_bound_does_not_depend_on_how_a_factor_is_shared():
    query, key, _ = random_qkv(9, 9, 3, 1.0)
    one, other = (reference.bounded_entries(query * c, key / c) for c in (1.0, 50.0))
    assert one.balanced_entry_bound == pytest.approx(other.balanced_entry_bound)
    assert one.degrees == other.degrees
    assert other.entry_bound > 5 * one.entry_bound


def test_the_entry_bound_is_the_papers():
    """Logits are at most B^2, as with entries of B and the scale 1/d."""
    query, key, _ = random_qkv(9, 9, 3, 1.0)
    query, key = np.sign(query), np.sign(key)
    found = reference.bounded_entries(query, key)
    assert max(-found.low, found.high) <= found.entry_bound**2 * (1 + 1e-12)
    assert found.high == pytest.approx(found.entry_bound**2)


def test_unbounded_entries_are_said_to_be_so():
    query, key, _ = random_qkv(64, 64, 8, 6.0)
    found = reference.bounded_entries(query, key, is_causal=True)
    assert not found.bounded
    assert found.ranks[0.01] is None
    assert "not below" in str(found)
    assert "no degree reaches a relative error of 0.01" in str(found)


def test_only_visible_entries_count():
    query, key = np.ones((3, 1)), np.array([[0.0], [0.5], [99.0]])
    assert reference.bounded_entries(query, key, mask=[True, True, False]).radius == 0.25
    nothing = reference.bounded_entries(query, key, mask=[False] * 3)
    assert nothing.radius == 0.0
    assert nothing.degrees[0.01] == 0
