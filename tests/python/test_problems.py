"""The structured problems: their logits are the basis that they say."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from convbasis import reference
from convbasis.problems import conv_problem, dyadic_conv_problem

GENERATORS = [conv_problem, dyadic_conv_problem]


def true_basis(problem, head=()):
    n = problem.query.shape[-2]
    return reference.Basis(problem.starts[head], problem.kernels[head], n)


def logits_of(problem, head=()):
    return reference.attention_logits(problem.query[head], problem.key[head], scale=problem.scale)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("head_dim", [1, 2, 3, 5, 8, 64])
@pytest.mark.parametrize(
    ("n", "num_bases"), [(1, 1), (2, 1), (3, 2), (5, 5), (7, 2), (16, 1), (17, 3), (127, 4)]
)
def test_logits_are_the_basis(generator, n, num_bases, head_dim):
    problem = generator(n, head_dim, num_bases, seed=n)
    basis, logits = true_basis(problem), logits_of(problem)
    assert problem.query.shape == problem.key.shape == problem.value.shape == (n, head_dim)
    assert problem.starts.shape == (num_bases,)
    assert problem.kernels.shape == (num_bases, n)
    assert np.max(np.abs(logits)) > 0.01
    assert reference.logit_deviation(logits, basis) <= 1e-13 * max(1.0, np.max(np.abs(logits)))
    assert reference.decompose(np.tril(logits), atol=1e-9).starts.tolist() == basis.starts.tolist()
    assert reference.non_degeneracy(basis, min(16, basis.sizes.min())) >= 0.1


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(GENERATORS),
    st.integers(1, 6),
    st.integers(0, 60),
    st.integers(1, 40),
    st.sampled_from(["scan", "bisect"]),
    st.integers(0, 2**20),
)
def test_default_options_recover_the_true_starts(
    generator, num_bases, extra, head_dim, search, seed
):
    n = 17 * num_bases + extra
    problem = generator(n, head_dim, num_bases, seed=seed)
    basis, complete = reference.recover(
        problem.query, problem.key, scale=problem.scale, search=search
    )
    assert complete
    assert basis.starts.tolist() == problem.starts.tolist()
    np.testing.assert_allclose(basis.kernels, problem.kernels, rtol=0, atol=1e-12)
    assert reference.non_degeneracy(true_basis(problem), 16) >= 0.1


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("num_bases", [1, 3, 16])
def test_size_of_the_main_job_in_small(generator, num_bases):
    problem = generator(1024, 64, num_bases, seed=1, dtype=np.float32)
    assert problem.query.dtype == problem.key.dtype == problem.value.dtype == np.float32
    gaps = np.diff(np.append(problem.starts, 1024))
    assert gaps.min() >= max(16, 1024 // (4 * num_bases))
    assert problem.starts[0] == 0
    basis, _ = reference.recover(problem.query, problem.key, scale=problem.scale)
    assert basis.starts.tolist() == problem.starts.tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 70),
    st.integers(1, 5),
    st.integers(0, 2**20),
    st.sampled_from([0.3, 1.0, 2.0, 7.0]),
)
def test_dyadic_problem_is_exact_in_float32(n, head_dim, num_bases, seed, spread):
    num_bases = min((n + 3) // 4, num_bases)
    try:
        problem = dyadic_conv_problem(
            n, head_dim, num_bases, seed=seed, dtype=np.float32, spread=spread
        )
    except ValueError as error:  # the documented refusal; other errors are failures
        assume("spread is too small" not in str(error))
        raise
    np.testing.assert_array_equal(problem.kernels, problem.kernels.astype(np.float32))
    assert np.frexp(problem.scale)[0] == 0.5  # a power of two
    in_float64 = logits_of(problem)
    in_float32 = np.float32(problem.scale) * (problem.query @ problem.key.T)
    assert in_float32.dtype == np.float32
    # The other order of summation, with the scale on the query.
    scaled = np.float32(problem.scale) * problem.query[:, ::-1]
    backwards = np.zeros((n, n), dtype=np.float32)
    for c in range(head_dim):
        backwards += np.outer(scaled[:, c], problem.key[:, head_dim - 1 - c])
    np.testing.assert_array_equal(in_float32, in_float64)
    np.testing.assert_array_equal(backwards, in_float64)
    dense = reference.basis_to_dense(true_basis(problem))
    np.testing.assert_array_equal(np.tril(in_float32), dense)
    assert np.any(dense)
    found = reference.decompose(np.tril(in_float32))
    assert found.starts.tolist() == problem.starts.tolist()


def test_dyadic_problem_is_exact_at_full_length():
    problem = dyadic_conv_problem(16384, 64, 16, seed=3, dtype=np.float32)
    columns = np.append(problem.starts, problem.starts[1:] - 1)
    strips = np.append(np.arange(16), np.arange(15))
    found = np.float32(problem.scale) * (problem.query @ problem.key[columns].T)
    for column, strip, logits in zip(columns, strips, found.T, strict=True):
        np.testing.assert_array_equal(logits[column:], problem.kernels[strip, : 16384 - column])
    assert np.std(problem.kernels[0]) > 0.5


def test_rotary_problem_keeps_its_digits_at_full_length():
    problem = conv_problem(16384, 64, 2, seed=3)
    start = problem.starts[1]
    for column, strip in [(start - 1, 0), (start, 1), (16000, 1)]:
        logits = problem.scale * (problem.query[column:] @ problem.key[column])
        expected = problem.kernels[strip, : 16384 - column]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-13)
        assert np.std(expected[:300]) > 0.1


@pytest.mark.parametrize("head_dim", [2, 3, 4, 8, 9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_stays_within_epsilon_and_reaches_for_it(head_dim, dtype):
    epsilon = 1e-2 / (5 * 16)
    problem = conv_problem(200, head_dim, 3, seed=2, dtype=dtype, epsilon=epsilon)
    assert problem.query.shape == (200, head_dim)
    assert problem.epsilon == epsilon
    noise_dims = 2 if head_dim >= 4 else 1
    signs = problem.query[:, -noise_dims:].astype(np.float64)
    small = problem.key[:, -noise_dims:].astype(np.float64)
    noise = problem.scale * signs @ small.T
    assert 0.8 * epsilon < np.max(np.abs(noise)) <= epsilon
    rounding = 200 * np.finfo(dtype).eps
    deviation = reference.logit_deviation(logits_of(problem), true_basis(problem))
    assert 0.8 * epsilon < deviation <= epsilon + rounding


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_noise_bound_holds_after_rounding(dtype):
    """With one noise dimension and many keys the largest logit of the noise nears epsilon."""
    problem = conv_problem(20_000, 3, 1, dtype=dtype, epsilon=0.01)
    assert np.array_equal(np.unique(problem.query[:, -1]), [-1.0, 1.0])
    largest = problem.scale * np.max(np.abs(problem.key[:, -1].astype(np.float64)))
    assert 0.99 * problem.epsilon < largest <= problem.epsilon


@pytest.mark.parametrize("search", ["scan", "bisect"])
def test_noisy_problems_are_recovered_within_the_theorems_bound(search):
    for seed in range(30):
        epsilon = 0.1 / (5 * 16)  # the kernels are at least 0.1 apart
        problem = conv_problem(120, 8, 4, seed=seed, epsilon=epsilon)
        basis, complete = reference.recover(
            problem.query,
            problem.key,
            scale=problem.scale,
            delta=0.1,
            epsilon=epsilon,
            search=search,
        )
        assert complete
        assert basis.starts.tolist() == problem.starts.tolist()
        out, _ = reference.conv_attention(basis, problem.value)
        expected, _ = reference.attention(
            problem.query, problem.key, problem.value, scale=problem.scale, is_causal=True
        )
        error = np.max(np.abs(out - expected))
        assert 0.0 < error <= reference.theorem_bound(epsilon, problem.value)


@pytest.mark.parametrize("generator", GENERATORS)
def test_batches_differ_by_head_and_repeat_by_seed(generator):
    first = generator(50, 6, 2, batch=(2, 3), seed=7)
    again = generator(50, 6, 2, batch=(2, 3), seed=np.random.default_rng(7))
    other = generator(50, 6, 2, batch=(2, 3), seed=8)
    assert first.query.shape == (2, 3, 50, 6)
    assert first.starts.shape == (2, 3, 2)
    assert first.kernels.shape == (2, 3, 2, 50)
    for name in ("query", "key", "value", "starts", "kernels"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        if name not in ("query", "starts"):
            assert np.all(np.any(getattr(first, name) != getattr(other, name), axis=(-1, -2)))
    assert not np.array_equal(first.kernels[0, 0], first.kernels[0, 1])
    for head in np.ndindex(2, 3):
        assert reference.logit_deviation(logits_of(first, head), true_basis(first, head)) < 1e-13
    assert generator(50, 6, 2, batch=(0, 3)).kernels.shape == (0, 3, 2, 50)


@pytest.mark.parametrize("generator", GENERATORS)
def test_first_start_and_value_dim_and_min_size(generator):
    problem = generator(100, 6, 3, seed=1, first_start=9, value_dim=4, min_size=30)
    assert problem.value.shape == (100, 4)
    assert problem.starts[0] == 9
    assert np.diff(np.append(problem.starts, 100)).min() >= 30
    assert not logits_of(problem)[:, :9].any()
    assert logits_of(problem)[:, 9:].any()
    basis, _ = reference.recover(problem.query, problem.key, scale=problem.scale)
    assert basis.starts.tolist() == problem.starts.tolist()


def test_spread_is_the_size_of_the_logits():
    small, large = (conv_problem(2000, 32, 1, seed=4, spread=spread) for spread in (0.5, 8.0))
    for problem, spread in ((small, 0.5), (large, 8.0)):
        assert 0.3 < np.sqrt(np.mean(problem.kernels**2)) / spread < 1.7
    assert small.scale == 1 / np.sqrt(32)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is too small"),
        ({"head_dim": 0}, "head_dim is too small"),
        ({"num_bases": 0}, "num_bases is out of range; expected 1..40; got 0"),
        ({"num_bases": 41}, "num_bases is out of range; expected 1..40; got 41"),
        ({"first_start": 40}, "first_start is no column"),
        ({"spread": 0.0}, "spread is no size"),
        ({"spread": 1e-6}, "spread is too small"),
        ({"min_size": 21}, "min_size leaves no room; expected 1 to 20"),
        ({"min_size": 0}, "min_size leaves no room"),
    ],
)
def test_bad_arguments(generator, arguments, message):
    with pytest.raises(ValueError, match=message):
        generator(**{"n": 40, "head_dim": 4, "num_bases": 2, **arguments})


def test_bad_types():
    with pytest.raises(TypeError, match="at least 32 bits; got float16"):
        dyadic_conv_problem(40, 4, 2, dtype=np.float16)
    with pytest.raises(TypeError, match="real floating type of at least 16 bits; got int64"):
        conv_problem(40, 4, 2, dtype=np.int64)
    with pytest.raises(ValueError, match="epsilon cannot be honoured"):
        conv_problem(40, 1, 1, epsilon=1e-3)
    with pytest.raises(ValueError, match="epsilon cannot be honoured"):
        conv_problem(40, 4, 1, epsilon=-1e-3)
    with pytest.raises(ValueError, match="n is too large for exact numbers"):
        dyadic_conv_problem(2**22, 4, 1)
