"""The oracle's gradients against finite differences, hand-computed numbers and identities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convbasis import reference

SIZES = [0, 1, 2, 5, 7]
GRADIENTS = ["basis", "attention"]
STEP = np.finfo(np.float64).eps ** 0.2
# Five-point differences err by STEP^4 times a fifth derivative and by eps / STEP: eps^(4/5) = 3e-13
# each, times the size of the function over that of its gradient.
DIFFERENCE_TOLERANCE = 1e-10
# The same sums in another order: some hundred roundings of terms no larger than the gradient.
ROUNDING = 1e-13


def finite_differences(function, *arrays):
    """Gradients of a scalar function of several arrays, entry by entry."""
    gradients = []
    for position, array in enumerate(arrays):
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            values = []
            for steps in (-2, -1, 1, 2):
                moved = [other.copy() for other in arrays]
                moved[position][index] += steps * STEP
                values.append(function(*moved))
            gradient[index] = np.dot([1, -8, 8, -1], values) / (12 * STEP)
        gradients.append(gradient)
    return gradients


def assert_close(got, want, tolerance):
    """Arrays agree relative to the largest entry of each; an all-zero result fails."""
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        largest = np.abs(other).max(initial=0.0)
        assert largest > tolerance
        assert np.abs(one - other).max() <= tolerance * largest


def random_problem(rng, n_q, n_kv, *, d=3, value_dim=2, lead=(), kv_lead=None):
    kv_lead = lead if kv_lead is None else kv_lead
    shapes = ((*lead, n_q, d), (*kv_lead, n_kv, d), (*kv_lead, n_kv, value_dim))
    return [rng.normal(size=shape) for shape in (*shapes, (*lead, n_q, value_dim))]


def basis_of(query, key, starts, scale):
    """The basis that the products of `query` and `key` give at fixed starts."""
    n = len(query)
    kernels = np.zeros((len(starts), n))
    for kernel, s in zip(kernels, starts, strict=True):
        kernel[: n - s] = scale * (query[s:] @ key[s])
    return reference.Basis(starts, kernels, len(key))


def bases_of(query, key, starts, upper_starts, scale):
    """Both halves; the upper one is None without `upper_starts`."""
    lower = basis_of(query, key, starts, scale)
    if upper_starts is None:
        return lower, None
    return lower, basis_of(query[::-1], key[::-1], upper_starts, scale)


def rotated_problem(n, *, is_causal):
    """Queries and keys whose logits are an exact basis of two strips on either side."""
    rng = np.random.default_rng(n)
    angles = np.arange(n)[:, None] * np.array([0.7, 1.9])

    def rotate(pairs):
        """Row ``i`` turned by ``i``: products of turned rows depend on the lag alone."""
        return (pairs.view(complex) * np.exp(1j * angles)).view(float)

    second = (np.arange(n) >= n // 2).astype(int)
    query = rotate(rng.normal(size=(1, 4)))
    key = rotate(rng.normal(size=(2, 4))[second])
    value, grad_output = rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
    upper_starts = None if is_causal else [0, n - n // 2]
    lower, upper = bases_of(query, key, [0, n // 2], upper_starts, 0.5)
    return (query, key, value, grad_output), lower, upper


# --- exact attention ----------------------------------------------------------------------------


def test_two_by_two_by_hand():
    # The second row weighs the values 1 : 3, hence delta = 7 and dS = (-0.75, 0.75).
    query, key = [[0.0], [1.0]], [[0.0], [np.log(3.0)]]
    dq, dk, dv = reference.attention_backward(
        query, key, [[4.0], [8.0]], [[1.0], [1.0]], is_causal=True, scale=1.0
    )
    np.testing.assert_allclose(dq, [[0.0], [0.75 * np.log(3.0)]], rtol=1e-15)
    np.testing.assert_allclose(dk, [[-0.75], [0.75]], rtol=1e-14)
    np.testing.assert_allclose(dv, [[1.25], [0.75]], rtol=1e-15)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("n_q", "n_kv"), [(2, 3), (5, 5), (3, 6), (6, 2)])
@pytest.mark.parametrize("scale", [None, 1.7])
def test_exact_gradient_is_the_derivative(n_q, n_kv, is_causal, masked, scale):
    rng = np.random.default_rng(n_q * 10 + n_kv)
    *inputs, grad_output = random_problem(rng, n_q, n_kv, lead=(2,))
    call = {"is_causal": is_causal, "scale": scale}
    if masked:
        call["mask"] = rng.random((n_q, n_kv)) < 0.8
        call["mask"][-1] = True  # so that some gradient is left

    def function(*arrays):
        return np.sum(grad_output * reference.attention(*arrays, **call)[0])

    got = reference.attention_backward(*inputs, grad_output, **call)
    assert_close(got, finite_differences(function, *inputs), DIFFERENCE_TOLERANCE)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_shared_heads_get_the_sum_of_their_query_heads(kv_heads, is_causal):
    rng = np.random.default_rng(kv_heads)
    query, key, value, grad_output = random_problem(rng, 4, 5, lead=(2, 6), kv_lead=(2, kv_heads))
    got = reference.attention_backward(
        query, key, value, grad_output, is_causal=is_causal, enable_gqa=True
    )
    group = 6 // kv_heads
    repeated = [np.repeat(array, group, axis=1) for array in (key, value)]
    dq, dk, dv = reference.attention_backward(query, *repeated, grad_output, is_causal=is_causal)
    summed = [sum(array[:, g::group] for g in range(group)) for array in (dk, dv)]
    assert_close(got, [dq, *summed], ROUNDING)


@pytest.mark.parametrize("n_kv", SIZES)
@pytest.mark.parametrize("n_q", SIZES)
@pytest.mark.parametrize("enable_gqa", [False, True])
def test_shapes(n_q, n_kv, enable_gqa):
    rng = np.random.default_rng(0)
    *inputs, grad_output = random_problem(
        rng, n_q, n_kv, lead=(4,), kv_lead=(2,) if enable_gqa else None
    )
    for is_causal in (False, True):
        gradients = reference.attention_backward(
            *inputs, grad_output, is_causal=is_causal, enable_gqa=enable_gqa
        )
        for array, gradient in zip(inputs, gradients, strict=True):
            assert gradient.shape == array.shape
            assert np.all(np.isfinite(gradient))
        assert np.any(gradients[2]) == bool(n_q and n_kv)


def test_what_is_not_seen_has_no_gradient():
    rng = np.random.default_rng(5)
    arrays = random_problem(rng, 4, 6)
    mask = np.ones((4, 6), dtype=bool)
    mask[2] = False
    dq, dk, dv = reference.attention_backward(*arrays, mask=mask, is_causal=True)
    assert not np.any(dq[2])
    assert not np.any(dk[4:])
    assert not np.any(dv[4:])
    for seen in (dq[[1, 3]], dk[[0, 1, 3]], dv[[0, 1, 3]]):
        assert np.all(seen != 0)


@pytest.mark.parametrize("is_causal", [False, True])
def test_invariances_of_exact_attention(is_causal):
    rng = np.random.default_rng(6)
    query, key, value, grad_output = random_problem(rng, 6, 7)

    def backward(key, value):
        return reference.attention_backward(query, key, value, grad_output, is_causal=is_causal)

    want = backward(key, value)
    shift = rng.normal(size=3)
    # A vector added to all keys adds a constant to each row of logits.
    assert_close(backward(key + shift, value), want, ROUNDING)
    # A vector added to all values adds it to the output.
    assert_close(backward(key, value + shift[:2]), want, ROUNDING)
    # Queries times a number and keys by that number give the same logits.
    dq, dk, dv = want
    assert abs(np.sum(dq * query) - np.sum(dk * key)) <= ROUNDING * np.abs(dq * query).sum()
    assert np.abs(dk.sum(axis=0)).max() <= ROUNDING * np.abs(dk).sum()
    assert_close([dv.sum(axis=0)], [grad_output.sum(axis=0)], ROUNDING)


# --- through a basis ----------------------------------------------------------------------------


def through_a_basis(inputs, grad_output, starts, upper_starts):
    """Basis gradient of attention at fixed starts, and its finite differences."""

    def function(query, key, value):
        lower, upper = bases_of(query, key, starts, upper_starts, 0.8)
        return np.sum(grad_output * reference.conv_attention(lower, value, upper=upper)[0])

    lower, upper = bases_of(*inputs[:2], starts, upper_starts, 0.8)
    got = reference.conv_attention_backward(lower, *inputs, grad_output, upper=upper, scale=0.8)
    return got, finite_differences(function, *inputs)


@st.composite
def basis_problems(draw):
    n = draw(st.integers(2, 6))
    is_causal = draw(st.booleans())
    num_columns = draw(st.integers(2, 7)) if is_causal else n
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    columns = st.sets(st.integers(0, min(n, num_columns) - 1)).map(sorted)
    upper_starts = None if is_causal else draw(columns)
    return random_problem(rng, n, num_columns), draw(columns), upper_starts


@settings(max_examples=60, deadline=None)
@given(basis_problems())
def test_basis_gradient_is_the_derivative_of_its_own_function(problem):
    """Strips anywhere, or none; columns before the first start; both halves; rows != columns."""
    (*inputs, grad_output), starts, upper_starts = problem
    for one, other in zip(*through_a_basis(inputs, grad_output, starts, upper_starts), strict=True):
        # Gradients of q and k can vanish, so the scale is that of the function's terms.
        size = max(np.abs(other).max(), np.abs(grad_output).max() * np.abs(inputs[2]).max())
        assert np.abs(one - other).max() <= DIFFERENCE_TOLERANCE * size


@pytest.mark.parametrize("is_causal", [True, False])
def test_basis_gradient_at_fixed_starts(is_causal):
    """As above, on a case whose gradients are known not to vanish."""
    *inputs, grad_output = random_problem(np.random.default_rng(8), 7, 7)
    got, want = through_a_basis(inputs, grad_output, [2, 5], None if is_causal else [1, 3])
    assert_close(got, want, DIFFERENCE_TOLERANCE)
    read = {2, 5} if is_causal else {2, 5, 6 - 1, 6 - 3}
    assert set(np.flatnonzero(np.any(got[1] != 0, axis=1))) == read


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("is_causal", [True, False])
def test_a_strip_for_every_column_is_exact_attention(is_causal, gradient):
    query, key, value, grad_output = random_problem(np.random.default_rng(9), 7, 7)
    every = range(7)
    lower, upper = bases_of(query, key, every, None if is_causal else every, 0.4)
    got = reference.conv_attention_backward(
        lower, query, key, value, grad_output, upper=upper, scale=0.4, gradient=gradient
    )
    want = reference.attention_backward(
        query, key, value, grad_output, is_causal=is_causal, scale=0.4
    )
    assert_close(got, want, ROUNDING)


@pytest.mark.parametrize("n", [5, 16, 17])
@pytest.mark.parametrize("is_causal", [True, False])
def test_an_exact_basis_gives_the_gradient_of_attention(is_causal, n):
    """Two strips that are exact: "attention" agrees, "basis" differentiates something else."""
    arrays, lower, upper = rotated_problem(n, is_causal=is_causal)
    logits, mask = reference.conv_logits(lower, upper)
    residual = np.abs(np.where(mask, logits - reference.attention_logits(*arrays[:2]), 0)).max()
    assert residual <= ROUNDING
    want = reference.attention_backward(*arrays, is_causal=is_causal)
    got = reference.conv_attention_backward(lower, *arrays, upper=upper, gradient="attention")
    assert_close(got, want, 10 * ROUNDING)  # the residual moves every weight
    other = reference.conv_attention_backward(lower, *arrays, upper=upper, gradient="basis")
    assert_close(other[2:], want[2:], 10 * ROUNDING)
    for ours, theirs in zip(other[:2], want[:2], strict=True):
        assert np.abs(ours - theirs).max() > 1e-3 * np.abs(theirs).max()


@pytest.mark.parametrize("is_causal", [True, False])
def test_identities_through_a_basis(is_causal):
    query, key, value, grad_output = random_problem(np.random.default_rng(10), 8, 8)
    lower, upper = bases_of(query, key, [1, 4], None if is_causal else [0, 2, 3], 1 / np.sqrt(3))

    def backward(query, key, gradient):
        return reference.conv_attention_backward(
            lower, query, key, value, grad_output, upper=upper, gradient=gradient
        )

    for gradient in GRADIENTS:
        dq, dk, dv = backward(query, key, gradient)
        # dV is the adjoint of the forward pass.
        out, _ = reference.conv_attention(lower, value, upper=upper)
        np.testing.assert_allclose(np.sum(dv * value), np.sum(grad_output * out), rtol=1e-12)
        # dQ . Q and dK . K are both the gradient of the products times the products.
        assert abs(np.sum(dq * query) - np.sum(dk * key)) <= ROUNDING * np.abs(dq * query).sum()
        assert np.any(dq)
    dq, dk, _ = backward(query, key, "attention")
    shifted = backward(query, key + 2.0, "attention")
    assert_close(shifted[:2], (dq, dk), ROUNDING)  # rows of dS sum to 0
    dq, _, _ = backward(query, key, "basis")
    assert np.abs(backward(query, key + 2.0, "basis")[0] - dq).max() > 1e-3


def test_logit_gradient_by_its_parts():
    rng = np.random.default_rng(11)
    query, key, value, grad_output = random_problem(rng, 5, 6)
    mask = reference.visible(5, 6, is_causal=True)
    mask[3] = False
    logits = reference.attention_logits(query, key)
    weights, _ = reference.masked_softmax(logits, mask)

    def function(logits):
        return np.sum(grad_output * (reference.masked_softmax(logits, mask)[0] @ value))

    got = reference.logit_gradient(weights, value, grad_output)
    assert_close([got], finite_differences(function, logits), DIFFERENCE_TOLERANCE)
    assert np.abs(got.sum(axis=1)).max() <= ROUNDING * np.abs(got).max()
    assert not np.any(got[~mask])


@pytest.mark.parametrize(("n", "num_columns"), [(1, 1), (6, 6), (6, 4), (4, 7)])
def test_kernel_gradient_is_the_adjoint_of_the_matrix_of_a_basis(n, num_columns):
    rng = np.random.default_rng(n)
    starts = [s for s in (0, 2, 3) if s < min(n, num_columns)]
    kernels = rng.integers(1, 9, size=(len(starts), n)).astype(float)
    basis = reference.Basis(starts, kernels, num_columns)
    matrix = rng.integers(1, 9, size=(n, num_columns)).astype(float)
    gradient = reference.kernel_gradient(basis, matrix)
    assert np.sum(reference.basis_to_dense(basis) * matrix) == np.sum(basis.kernels * gradient) > 0
    assert not np.any(gradient[basis.kernels == 0])


# --- the training problem -----------------------------------------------------------------------


def training_problem(n=6, d=3, value_dim=2):
    rng = np.random.default_rng(n)
    shapes = ((n, d), (n, d), (n, d), (n, value_dim), (d, d), (d, value_dim))
    return [rng.normal(size=shape) for shape in shapes]


@pytest.mark.parametrize("starts", [None, [0], [1, 4], range(6)])
def test_gradient_of_the_loss_is_its_derivative(starts):
    """Without a basis, and through one that moves with X."""
    A1, A2, A3, E, X, Y = training_problem()

    def loss_and_gradient(X):
        lower = None if starts is None else basis_of(A1 @ X, A2, starts, 1.0)
        return reference.attention_loss(A1, A2, A3, E, X, Y, lower=lower, gradient="basis")

    want = finite_differences(lambda X: loss_and_gradient(X)[0], X)
    assert_close([loss_and_gradient(X)[1]], want, DIFFERENCE_TOLERANCE)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_loss_in_the_terms_of_attention(gradient):
    """X enters through the queries A1 X alone, so that dX = A1^T dQ."""
    A1, A2, A3, E, X, Y = training_problem()
    query, value = A1 @ X, A3 @ Y
    lower = basis_of(query, A2, [1, 4], 1.0)
    out, _ = reference.conv_attention(lower, value)
    dq, _, _ = reference.conv_attention_backward(
        lower, query, A2, value, out - E, scale=1.0, gradient=gradient
    )
    loss, grad_X = reference.attention_loss(A1, A2, A3, E, X, Y, lower=lower, gradient=gradient)
    np.testing.assert_allclose(loss, np.sum((out - E) ** 2) / 2, rtol=1e-14)
    assert_close([grad_X], [A1.T @ dq], ROUNDING)
    loss, grad_X = reference.attention_loss(A1, A2, A3, out, X, Y, lower=lower, gradient=gradient)
    assert loss <= ROUNDING**2
    assert np.abs(grad_X).max() <= ROUNDING


def test_gradient_of_the_loss_by_products_of_the_weights():
    """The paper's way: ``(f o (c h^T)) A2`` is d products of ``f``, one for each channel."""
    A1, A2, A3, E, X, Y = training_problem()
    lower = basis_of(A1 @ X, A2, [1, 4], 1.0)
    f, _ = reference.masked_softmax(*reference.conv_logits(lower))
    h = A3 @ Y
    c = f @ h - E
    p_A2 = sum(c[:, [l]] * (f @ (h[:, [l]] * A2)) for l in range(h.shape[1]))
    p_A2 -= np.sum(c * (f @ h), axis=1, keepdims=True) * (f @ A2)
    _, grad_X = reference.attention_loss(A1, A2, A3, E, X, Y, lower=lower)
    assert_close([grad_X], [A1.T @ p_A2], ROUNDING)


@pytest.mark.parametrize(
    ("position", "name"), [(1, "query"), (2, "key"), (3, "value"), (4, "grad_output")]
)
def test_arrays_that_do_not_fit(position, name):
    basis = reference.Basis([0], np.zeros((1, 4)), 4)
    arrays = [basis, *(np.zeros((4, 2)) for _ in range(4))]
    arrays[position] = np.zeros((5, 2))
    with pytest.raises(ValueError, match=rf"{name} has the wrong shape; expected \(4, 2\)"):
        reference.conv_attention_backward(*arrays)
    with pytest.raises(ValueError, match=r"gradient is unknown; expected .* got 'exact'"):
        reference.conv_attention_backward(*arrays, gradient="exact")
    if position > 2:
        with pytest.raises(ValueError, match=rf"\[attention_backward\] {name} has the wrong"):
            reference.attention_backward(*arrays[1:])


def test_training_problem_that_does_not_fit():
    A1, A2, A3, E, X, Y = training_problem()
    with pytest.raises(ValueError, match=r"E has the wrong shape; expected \(6, 2\)"):
        reference.attention_loss(A1, A2, A3, E[:1], X, Y)
    lower = reference.Basis([0], np.zeros((1, 5)), 5)
    with pytest.raises(ValueError, match=r"lower has the wrong shape; expected \(6, 6\)"):
        reference.attention_loss(A1, A2, A3, E, X, Y, lower=lower)
    with pytest.raises(ValueError, match=r"\[attention_loss\] gradient is unknown; .* got 'exact'"):
        reference.attention_loss(A1, A2, A3, E, X, Y, gradient="exact")
