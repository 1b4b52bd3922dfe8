"""recover_basis and its options, against the oracle and against planted strips."""

import dataclasses

import numpy as np
import pytest

import convbasis as cb
from convbasis import problems, reference


@pytest.mark.parametrize("search", ["scan", "bisect"])
@pytest.mark.parametrize("num_bases", [1, 2, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_planted_strips_are_found(dtype, num_bases, search):
    problem = problems.dyadic_conv_problem(300, 10, num_bases, batch=(2, 2), dtype=dtype, seed=1)
    basis = cb.recover_basis(
        problem.query,
        problem.key,
        scale=problem.scale,
        options=cb.RecoverOptions(num_bases=9, search=search),
    )
    np.testing.assert_array_equal(basis.starts, problem.starts)
    np.testing.assert_array_equal(basis.num_bases, num_bases)
    np.testing.assert_array_equal(basis.complete, True)
    np.testing.assert_array_equal(basis.kernels, problem.kernels)  # the logits are dyadic
    assert basis.dtype == dtype
    assert basis.num_columns == 300


@pytest.mark.parametrize("num_bases", [1, 4, 29, 30, 100])
@pytest.mark.parametrize("lengths", [(33, 33), (40, 21), (33, 50)])
@pytest.mark.parametrize("search", ["scan", "bisect"])
def test_any_logits_as_the_oracle(lengths, num_bases, search, qkv):
    query, key, _ = qkv(lengths[0], n_kv=lengths[1], lead=(2,))
    options = cb.RecoverOptions(num_bases=num_bases, window=4, delta=0.5, search=search)
    basis = cb.recover_basis(query, key, options=options)
    key = key[:, : lengths[0]]
    for head in range(2):
        want, complete = reference.recover(
            query[head], key[head], num_bases=num_bases, window=4, delta=0.5, search=search
        )
        count = basis.num_bases[head]
        np.testing.assert_array_equal(basis.starts[head][:count], want.starts)
        np.testing.assert_allclose(basis.kernels[head][:count], want.kernels, atol=1e-13)
        assert basis.complete[head] == complete
    assert basis.shape == (2, lengths[0], min(lengths))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_moves_no_logit_by_more_than_twice_epsilon(dtype):
    options = cb.RecoverOptions(num_bases=3, window=16, delta=0.05, epsilon=0.05 / 80)
    problem = problems.conv_problem(200, 8, 3, epsilon=options.epsilon, seed=2, dtype=dtype)
    basis = cb.recover_basis(problem.query, problem.key, scale=problem.scale, options=options)
    np.testing.assert_array_equal(basis.starts, problem.starts)
    deviation = float(basis.residual(problem.query, problem.key, scale=problem.scale))
    assert 0 < deviation <= 2 * options.epsilon + 20 * np.finfo(dtype).eps


def test_heads_share_keys(qkv):
    query, key, _ = qkv(40, lead=(2, 6), kv_heads=2)
    options = cb.RecoverOptions(num_bases=5)
    basis = cb.recover_basis(query, key, enable_gqa=True, options=options)
    repeated = cb.recover_basis(query, np.repeat(key, 3, axis=1), options=options)
    assert np.any(basis.kernels)
    assert basis == repeated


def test_a_truncated_basis_says_so():
    problem = problems.conv_problem(300, 8, 5, seed=3)
    basis = cb.recover_basis(
        problem.query, problem.key, scale=problem.scale, options=cb.RecoverOptions(num_bases=3)
    )
    assert basis.complete is False
    np.testing.assert_array_equal(basis.starts, problem.starts[:3])


def test_heads_with_fewer_strips_are_padded():
    few = problems.conv_problem(200, 8, 1, seed=4)
    many = problems.conv_problem(200, 8, 3, seed=5)
    query, key = np.stack([few.query, many.query]), np.stack([few.key, many.key])
    basis = cb.recover_basis(query, key, options=cb.RecoverOptions(num_bases=4))
    np.testing.assert_array_equal(basis.num_bases, [1, 3])
    np.testing.assert_array_equal(basis.starts[0], [0, 200, 200])
    np.testing.assert_array_equal(basis.kernels[0, 1:], 0.0)
    np.testing.assert_array_equal(basis.sizes[0], [200, 0, 0])


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17])
def test_short_sequences_and_the_window(n, qkv):
    query, key, _ = qkv(n, lead=(2,))
    basis = cb.recover_basis(query, key, options=cb.RecoverOptions(num_bases=20, window=16))
    assert basis.shape == (2, n, n)
    assert np.all(basis.num_bases == max(n - 15, min(n, 1)))


def test_half_precision_is_computed_in_float32():
    problem = problems.conv_problem(100, 4, 2, dtype=np.float16, seed=1)
    options = cb.RecoverOptions(num_bases=40, delta=1.0)
    basis = cb.recover_basis(problem.query, problem.key, options=options)
    wide = cb.recover_basis(
        problem.query.astype(np.float32), problem.key.astype(np.float32), options=options
    )
    assert basis.dtype == np.float32
    assert basis == wide


def test_overflowing_logits_are_an_error():
    query = np.full((20, 2), 1e30, np.float32)
    with pytest.raises(ValueError, match=r"^\[recover_basis\] query .*; expected .*; got "):
        cb.recover_basis(query, query)


def test_options_are_frozen_and_have_documented_defaults():
    options = cb.RecoverOptions()
    assert dataclasses.asdict(options) == {
        "num_bases": None,
        "window": 16,
        "delta": 1e-2,
        "epsilon": 0.0,
        "search": "scan",
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.window = 3


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("num_bases", 0, ValueError),
        ("num_bases", -3, ValueError),
        ("num_bases", 2.0, TypeError),
        ("num_bases", True, TypeError),
        ("window", 0, ValueError),
        ("window", -1, ValueError),
        ("window", "16", TypeError),
        ("delta", -1e-9, ValueError),
        ("delta", np.nan, ValueError),
        ("delta", np.inf, ValueError),
        ("delta", None, TypeError),
        ("epsilon", -1e-9, ValueError),
        ("epsilon", 1.3e-4, ValueError),
        ("epsilon", "0", TypeError),
        ("search", "both", ValueError),
        ("search", None, ValueError),
    ],
)
def test_options_are_checked(argument, value, error):
    with pytest.raises(error, match=rf"^\[RecoverOptions\] {argument} .*; expected .*; got "):
        cb.RecoverOptions(**{argument: value})


@pytest.mark.parametrize("huge", [2**31, 2**63 - 1, 2**63, 2**70, 10**400])
@pytest.mark.parametrize("search", ["scan", "bisect"])
@pytest.mark.parametrize("n", [0, 1, 40])
def test_integers_beyond_any_machine_type(huge, search, n, qkv):
    """More strips than rows, or a window longer than the sequence, means n of them."""
    query, key, _ = qkv(n, lead=(2,))
    for change in ({"num_bases": huge, "window": 1}, {"window": huge}):
        options = cb.RecoverOptions(search=search, **change)
        cut = {name: max(n, 1) if value == huge else value for name, value in change.items()}
        got = cb.recover_basis(query, key, options=options)
        want = cb.recover_basis(query, key, options=cb.RecoverOptions(search=search, **cut))
        assert got == want
        assert np.all(got.num_bases == (n if "num_bases" in change else min(n, 1)))


def test_noise_and_a_window_beyond_any_machine_type():
    with pytest.raises(ValueError, match=r"^\[RecoverOptions\] epsilon .*; expected .*; got 1e-09"):
        cb.RecoverOptions(window=10**400, epsilon=1e-9)


def test_the_threshold_takes_a_long_window_as_the_sequence():
    """Column 1 is 0.04 from column 0, over 2 entries: more than delta - 2 * 3 * epsilon."""
    query = np.ones((3, 1))
    key = np.array([[1.0], [1.02], [1.02]])
    for window in (1, 10, 2**70):
        delta, epsilon = 0.045, 0.045 / 5 / window
        basis = cb.recover_basis(
            query,
            key,
            scale=1.0,
            options=cb.RecoverOptions(window=window, delta=delta, epsilon=epsilon),
        )
        threshold = delta - 2 * min(window, 3) * epsilon
        assert basis.complete == (window == 1 or threshold > 0.04)


def test_options_at_their_limits():
    assert cb.RecoverOptions(epsilon=1e-2 / 80).epsilon == 1e-2 / 80
    options = cb.RecoverOptions(num_bases=np.int64(3), delta=0, window=1)
    assert (options.num_bases, options.delta, options.window) == (3, 0, 1)


def test_one_list_of_starts_is_for_all_heads():
    query, key = np.random.default_rng(0).normal(size=(2, 2, 3, 64, 8))
    listed = [0, 20, 40]
    basis = cb.recover_basis(query, key, starts=listed)
    want = cb.recover_basis(query, key, starts=np.tile(listed, (2, 3, 1)))
    np.testing.assert_array_equal(basis.starts, want.starts)
    np.testing.assert_array_equal(basis.kernels, want.kernels)
    assert basis.starts.shape == (2, 3, 3)


def test_options_that_are_a_class(qkv):
    message = r"options has the wrong type; expected RecoverOptions, CalibrateOptions or None; got"
    with pytest.raises(TypeError, match=rf"{message} the class CalibrateOptions, not called"):
        cb.conv_attention(*qkv(64, 8), is_causal=True, options=cb.CalibrateOptions)
    with pytest.raises(TypeError, match=r"expected RecoverOptions or None; got CalibrateOptions"):
        cb.recover_basis(*qkv(64, 8)[:2], options=cb.CalibrateOptions())
