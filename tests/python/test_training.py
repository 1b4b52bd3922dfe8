"""attention_loss: the paper's training problem against the oracle and slopes."""

import ml_dtypes
import numpy as np
import pytest

import convbasis as cb
from convbasis import reference
from convbasis.problems import conv_problem

GRADIENTS = ("attention", "basis")
NAMES = ("A1", "A2", "A3", "E", "X", "Y")


def training_problem(n, d=8, value_dim=None, num_bases=3, dtype=np.float64, seed=0):
    """Logits A1 X A2^T with a conv basis of `num_bases` strips."""
    value_dim = d if value_dim is None else value_dim
    problem = conv_problem(n, d, num_bases, seed=seed)
    rng = np.random.default_rng(seed)
    arrays = (
        problem.query,
        problem.key,
        rng.normal(size=(n, d)),
        rng.normal(size=(n, value_dim)),
        problem.scale * np.eye(d),
        rng.normal(size=(d, value_dim)),
    )
    return [array.astype(dtype) for array in arrays]


def random_problem(n, d=3, value_dim=2, seed=0):
    """Logits without any structure."""
    rng = np.random.default_rng(seed)
    shapes = [(n, d), (n, d), (n, d), (n, value_dim), (d, d), (d, value_dim)]
    return [0.5 * rng.normal(size=shape) for shape in shapes]


def error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("value_dim", [8, 5])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(("n", "num_bases"), [(64, 1), (300, 3), (700, 5)])
def test_against_the_oracle(n, num_bases, gradient, value_dim, oracle_basis):
    A1, A2, A3, E, X, Y = training_problem(n, value_dim=value_dim, num_bases=num_bases)
    options = cb.RecoverOptions(num_bases=num_bases)
    basis = cb.recover_basis(A1 @ X, A2, scale=1.0, options=options)
    lower = oracle_basis(basis)
    assert lower.num_bases == num_bases
    want = reference.attention_loss(A1, A2, A3, E, X, Y, lower=lower, gradient=gradient)
    got = cb.attention_loss(A1, A2, A3, E, X, Y, options=options, gradient=gradient)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-12)
    assert error(got[1], want[1]) <= 1e-11
    if gradient == "attention":  # the basis is exact, so this is the gradient of attention
        exact_loss, exact_gradient = reference.attention_loss(A1, A2, A3, E, X, Y)
        np.testing.assert_allclose(got[0], exact_loss, rtol=1e-9)
        assert error(got[1], exact_gradient) <= 1e-9


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("by_strips", [True, False])
def test_slopes(gradient, by_strips):
    """Every column a strip, or none: then both gradients are the derivative of the loss."""
    n = 12
    A1, A2, A3, E, X, Y = random_problem(n)
    options = cb.RecoverOptions(num_bases=n, window=1) if by_strips else None

    def loss(X):
        return cb.attention_loss(A1, A2, A3, E, X, Y, options=options, gradient=gradient)[0]

    _, grad_X = cb.attention_loss(A1, A2, A3, E, X, Y, options=options, gradient=gradient)
    step = 1e-5
    for entry in np.ndindex(X.shape):
        shift = np.zeros_like(X)
        shift[entry] = step
        slope = (loss(X + shift) - loss(X - shift)) / (2 * step)
        assert abs(grad_X[entry] - slope) <= 1e-7 * np.abs(grad_X).max()


def test_steps_down_the_gradient_fit_the_target():
    A1, A2, A3, _, X, Y = random_problem(20)
    E = cb.exact_attention(A1 @ X, A2, A3 @ Y, is_causal=True, scale=1.0)
    X = np.zeros_like(X)
    losses = []
    for _ in range(50):
        loss, grad_X = cb.attention_loss(A1, A2, A3, E, X, Y)
        losses.append(loss)
        X = X - 0.5 * grad_X
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("n", [64, 700])
def test_float32(n, gradient):
    double = training_problem(n)
    single = [array.astype(np.float32) for array in double]
    double = [array.astype(np.float64) for array in single]  # the same numbers
    options = cb.RecoverOptions(num_bases=3)
    want = cb.attention_loss(*double, options=options, gradient=gradient)
    loss, grad_X = cb.attention_loss(*single, options=options, gradient=gradient)
    assert isinstance(loss, float)
    assert grad_X.dtype == np.float32
    np.testing.assert_allclose(loss, want[0], rtol=1e-5)
    assert error(grad_X, want[1]) <= 1e-5


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    arrays = [array.astype(dtype) for array in random_problem(40)]
    want = cb.attention_loss(*(array.astype(np.float32) for array in arrays))
    loss, grad_X = cb.attention_loss(*arrays)
    assert grad_X.dtype == dtype
    assert loss == want[0]
    np.testing.assert_array_equal(grad_X, want[1].astype(dtype))


def test_layouts_and_threads_do_not_matter():
    arrays = training_problem(300)
    loss, grad_X = cb.attention_loss(*arrays, num_threads=1)
    strided = [np.repeat(array, 2, axis=0)[::2] for array in arrays]
    for other in (arrays, strided):
        again = cb.attention_loss(*other, num_threads=3)
        np.testing.assert_allclose(again[0], loss, rtol=1e-12)
        assert error(again[1], grad_X) <= 1e-12


@pytest.mark.parametrize("position", range(6))
def test_messages_of_arrays(position):
    arrays, name = random_problem(5), NAMES[position]

    def call(array):
        return cb.attention_loss(*arrays[:position], array, *arrays[position + 1 :])

    good = arrays[position]
    with pytest.raises(TypeError, match=rf"\[attention_loss\] {name} is not a NumPy array"):
        call(good.tolist())
    with pytest.raises(ValueError, match=rf"\[attention_loss\] {name} has too few dimensions"):
        call(good[0])
    with pytest.raises(ValueError, match=r"\[attention_loss\] \w+ (is|has) .*; expected .*; got "):
        call(good[:-1])
    with pytest.raises(ValueError, match=r"\[attention_loss\] \w+ (is|has) .*; expected .*; got "):
        call(good[None])
    with pytest.raises(ValueError, match=r"\[attention_loss\] \w+ (is|has) .*; expected .*; got "):
        call(good[:0])
    with pytest.raises(TypeError, match=r"differs in dtype from A1; expected float"):
        call(good.astype(np.float32))
    bad = good.copy()
    bad[0, 0] = np.nan
    with pytest.raises(ValueError, match=rf"\[attention_loss\] {name} has NaN or infinite"):
        call(bad)
    cb.attention_loss(*arrays[:position], good, *arrays[position + 1 :], check_finite=False)


def test_messages_of_options():
    arrays = random_problem(5)
    with pytest.raises(ValueError, match=r"\[attention_loss\] gradient is unknown; .* got 'exact'"):
        cb.attention_loss(*arrays, gradient="exact")
    with pytest.raises(TypeError, match=r"\[attention_loss\] check_finite is not a bool"):
        cb.attention_loss(*arrays, check_finite=1)
    with pytest.raises(ValueError, match=r"\[attention_loss\] num_threads is too small"):
        cb.attention_loss(*arrays, num_threads=0)


def test_one_row():
    """One key has all the weight whatever X is."""
    arrays = random_problem(1)
    loss, grad_X = cb.attention_loss(*arrays)
    np.testing.assert_allclose(loss, np.sum((arrays[2] @ arrays[5] - arrays[3]) ** 2) / 2)
    np.testing.assert_allclose(grad_X, 0, atol=1e-15)
