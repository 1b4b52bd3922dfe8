"""The scale of a recovered basis: remembered, saved, and the same wherever a call needs one."""

import copy
import pickle

import numpy as np
import pytest

import convbasis as cb
from convbasis import problems, reference

SCALE = 0.7
WINDOW_1 = cb.RecoverOptions(num_bases=60, window=1)


@pytest.fixture
def basis(qkv):
    """A truncated basis of random logits at SCALE, and its query and key."""
    query, key, value = qkv(60, lead=(2,))
    options = cb.RecoverOptions(num_bases=3)
    return cb.recover_basis(query, key, scale=SCALE, options=options), query, key, value


def test_what_knows_its_scale(basis, qkv):
    query, key, _ = qkv(20, d=16)
    assert basis[0].scale == SCALE
    assert cb.recover_basis(query, key).scale == 0.25
    assert cb.decompose(np.eye(3)).scale is None
    assert cb.ConvBasis([0], 1, np.ones((1, 3))).scale is None
    assert cb.ConvBasis([0], 1, np.ones((1, 3)), scale=2).scale == 2.0
    assert basis[0].exp().scale is None  # no logits any more


@pytest.mark.parametrize(
    ("scale", "error"),
    [(np.nan, ValueError), (np.inf, ValueError), ("1", TypeError), (True, TypeError)],
)
def test_the_constructor_checks_the_scale(scale, error):
    with pytest.raises(error, match=r"^\[ConvBasis\] scale .*; expected .*; got "):
        cb.ConvBasis([0], 1, np.ones((1, 3)), scale=scale)


def test_copies_and_files_keep_the_scale(basis, tmp_path):
    basis = basis[0]
    basis.save(tmp_path / "basis")
    loaded = cb.ConvBasis.load(tmp_path / "basis")
    for twin in (copy.deepcopy(basis), pickle.loads(pickle.dumps(basis)), loaded):
        assert twin == basis
        assert type(twin.scale) is float
        assert twin.scale == SCALE
    unknown = cb.ConvBasis(basis.starts, basis.num_bases, basis.kernels, complete=basis.complete)
    assert unknown != basis
    unknown.save(tmp_path / "unknown")
    assert cb.ConvBasis.load(tmp_path / "unknown") == unknown


def test_files_without_a_scale_are_read(basis, tmp_path):
    basis, path = basis[0], tmp_path / "basis.npz"
    fields = {
        name: getattr(basis, name)
        for name in ("starts", "num_bases", "kernels", "num_columns", "complete")
    }
    np.savez(path, format="convbasis.ConvBasis", version=1, **fields)
    loaded = cb.ConvBasis.load(path)
    assert loaded.scale is None
    np.testing.assert_array_equal(loaded.kernels, basis.kernels)
    np.savez(path, format="convbasis.ConvBasis", version=1, scale=[1.0, 2.0], **fields)
    with pytest.raises(TypeError, match=r"^\[ConvBasis\] scale is not a number; expected "):
        cb.ConvBasis.load(path)


def test_the_residual_measures_the_logits_of_the_basis(basis):
    basis, query, key, _ = basis
    right = basis.residual(query, key)
    for head in range(2):
        logits = SCALE * query[head] @ key[head].T
        want = np.abs(np.tril(logits - basis.to_dense()[head])).max()
        assert right[head] == pytest.approx(want, rel=1e-12)
    np.testing.assert_array_equal(basis.residual(query, key, scale=SCALE), right)
    assert np.all(basis.residual(query, key, scale=2 * SCALE) > 1.1 * right)
    unknown = cb.ConvBasis(basis.starts, basis.num_bases, basis.kernels)
    np.testing.assert_allclose(
        unknown.residual(query, key), basis.residual(query, key, scale=8**-0.5), rtol=1e-12
    )


def test_samples_are_the_third_argument(basis):
    basis, query, key, _ = basis
    sampled = basis.residual(query, key, 5)
    np.testing.assert_array_equal(sampled, basis.residual(query, key, samples=5))
    assert np.all((sampled > 0) & (sampled < basis.residual(query, key)))
    np.testing.assert_array_equal(basis.residual(query, key, 2**70), basis.residual(query, key))


def test_a_given_basis_brings_its_scale(row_error):
    """Estimates, certificates and exact heads of a call are all at the scale of the strips."""
    problem = problems.conv_problem(200, 8, 3, seed=1)
    query, key, value = problem.query, problem.key, problem.value
    scale = 1.7 * problem.scale
    assert abs(scale - 8**-0.5) > 0.1
    want, _ = reference.attention(query, key, value, is_causal=True, scale=scale)
    full = cb.recover_basis(query, key, scale=scale)
    out, report = cb.conv_attention(
        query, key, value, is_causal=True, basis=full, tol=1e-6, return_report=True, certify=True
    )
    assert report.heads_exact == 0
    assert report.error_estimate <= 1e-11
    assert report.logit_deviation <= 1e-11
    assert row_error(out, want) <= 1e-11
    short = cb.recover_basis(query, key, scale=scale, options=cb.RecoverOptions(num_bases=1))
    out, report = cb.conv_attention(
        query, key, value, is_causal=True, basis=short, tol=1e-6, return_report=True
    )
    assert report.heads_exact == 1
    assert row_error(out, want) <= 1e-11


def test_both_triangles_bring_their_scale(qkv, row_error):
    query, key, value = qkv(60)
    reverse = (..., slice(None, None, -1), slice(None))
    lower = cb.recover_basis(query, key, scale=SCALE, options=WINDOW_1)
    upper = cb.recover_basis(query[reverse], key[reverse], scale=SCALE, options=WINDOW_1)
    want, _ = reference.attention(query, key, value, scale=SCALE)
    for pair in ((lower, upper), (lower, forgetful(upper)), (forgetful(lower), upper)):
        out, report = cb.conv_attention(query, key, value, basis=pair, tol=1e-6, return_report=True)
        assert report.heads_exact == 0
        assert row_error(out, want) <= 1e-11
    other = cb.recover_basis(query[reverse], key[reverse], options=WINDOW_1)
    with pytest.raises(
        ValueError,
        match=r"^\[conv_attention\] basis differs in scale from the other; "
        r"expected .* 0\.7; got .* 0\.353553391$",
    ):
        cb.conv_attention(query, key, value, basis=(lower, other))


def test_an_explicit_scale_must_be_that_of_the_basis(basis):
    basis, query, key, value = basis
    out = np.full(value.shape, 7.0)
    call = {"is_causal": True, "basis": basis}
    for scale in (8**-0.5, -SCALE, SCALE * (1 + 1e-12), 0.0):
        with pytest.raises(
            ValueError,
            match=r"^\[conv_attention\] basis differs in scale; expected .*; got .* 0\.7$",
        ):
            cb.conv_attention(query, key, value, scale=scale, out=out, **call)
    np.testing.assert_array_equal(out, 7.0)
    want = cb.conv_attention(query, key, value, **call)
    rounded = np.nextafter(SCALE, 1.0)  # one unit in the last place is the same scale
    for scale in (SCALE, rounded):
        np.testing.assert_array_equal(
            cb.conv_attention(query, key, value, scale=scale, **call), want
        )
    assert np.any(want)


def test_a_basis_without_a_scale_takes_that_of_the_call(basis, row_error):
    basis, query, key, value = basis
    bare = forgetful(basis)
    for scale in (SCALE, None):
        out, report = cb.conv_attention(
            query,
            key,
            value,
            is_causal=True,
            basis=bare,
            scale=scale,
            tol=1e-9,
            return_report=True,
        )
        want, _ = reference.attention(query, key, value, is_causal=True, scale=scale)
        assert report.heads_exact == 2
        assert row_error(out, want) <= 1e-11


def forgetful(basis):
    """The same basis without its scale."""
    return cb.ConvBasis(
        basis.starts,
        basis.num_bases,
        basis.kernels,
        num_columns=basis.num_columns,
        complete=basis.complete,
    )
