"""convbasis.torch.conv_attention: values, gradients, compilation, and what it refuses."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import convbasis as cb

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

from convbasis.torch import _operators, _tensors, conv_attention  # noqa: E402

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
STRIPS = cb.RecoverOptions(num_bases=3)
#: Every column a strip of its own: the strips are exact attention.
EVERY_COLUMN = cb.RecoverOptions(num_bases=64, window=1)


@pytest.fixture
def tensors(qkv):
    """The arrays of `qkv` as tensors that want gradients."""

    def make(*arguments, dtype=torch.float64, **named):
        arrays = qkv(*arguments, **named)
        return [torch.from_numpy(array).to(dtype).requires_grad_() for array in arrays]

    return make


@pytest.fixture
def strips():
    """Tensors of an exactly k-conv problem that want gradients, two batches of two heads."""

    def make(n, *, head_dim=4, num_bases=3, dtype=torch.float64):
        problem = cb.problems.conv_problem(n, head_dim, num_bases, batch=(2, 2), value_dim=3)
        arrays = problem.query, problem.key, problem.value
        return [torch.from_numpy(array).to(dtype).requires_grad_() for array in arrays]

    return make


def gradients(function, inputs, weight):
    """Gradients of ``sum(weight * function(*inputs))`` as arrays."""
    found = torch.autograd.grad(function(*inputs), inputs, weight)
    return [gradient.double().numpy() for gradient in found]


def weight_of(out, seed=1):
    """A gradient for `out`."""
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.dtype)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_values_are_those_of_convbasis(strips, dtype, is_causal):
    pytest.importorskip("ml_dtypes")
    q, k, v = strips(200, dtype=dtype)
    out, exact_mask = conv_attention(
        q, k, v, is_causal=is_causal, options=STRIPS, return_exact_mask=True
    )
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    arrays = [tensor.detach().to(compute).numpy() for tensor in (q, k, v)]
    want = cb.conv_attention(*arrays, is_causal=is_causal, options=STRIPS)
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert torch.equal(out, torch.from_numpy(want).to(dtype))
    assert exact_mask.shape == (2, 2)
    assert not exact_mask.any()


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kv_heads", [None, 2])
def test_exact_heads_agree_with_torch(tensors, dtype, is_causal, kv_heads):
    inputs = tensors(65, lead=(2, 4), kv_heads=kv_heads, value_dim=5, dtype=dtype)
    named = {"is_causal": is_causal, "enable_gqa": kv_heads is not None, "scale": 0.3}
    weight = weight_of(torch.empty(2, 4, 65, 5, dtype=dtype))

    def both(function, inputs):
        return [
            function(*inputs, **named).detach().double().numpy(),
            *gradients(lambda *tensors: function(*tensors, **named), inputs, weight.to(inputs[0])),
        ]

    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    want = both(scaled_dot_product_attention, exact)
    plain = both(scaled_dot_product_attention, inputs)
    for got, peer, truth in zip(both(conv_attention, inputs), plain, want, strict=True):
        error, peer_error = (np.linalg.norm(a - truth) for a in (got, peer))
        assert error <= 3 * peer_error + 1e-14 * np.linalg.norm(truth)


@pytest.mark.parametrize("gradient", ["basis", "attention"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_gradients_of_strips_follow_the_oracle(strips, oracle_basis, gradient, is_causal):
    q, k, v = strips(48)
    out, exact_mask = conv_attention(
        q, k, v, None, 0.0, is_causal, options=STRIPS, gradient=gradient, return_exact_mask=True
    )
    assert not exact_mask.any()
    weight = weight_of(out)
    found = torch.autograd.grad(out, (q, k, v), weight)
    arrays = [tensor.detach().numpy() for tensor in (q, k, v)]
    lower = cb.recover_basis(arrays[0], arrays[1], options=STRIPS)
    upper = cb.recover_basis(*(a[..., ::-1, :] for a in arrays[:2]), options=STRIPS)
    for head in np.ndindex(2, 2):
        want = cb.reference.conv_attention_backward(
            oracle_basis(lower, head),
            *(array[head] for array in arrays),
            weight[head].numpy(),
            upper=None if is_causal else oracle_basis(upper, head),
            gradient=gradient,
        )
        for got, truth in zip(found, want, strict=True):
            error = np.linalg.norm(got[head].numpy() - truth)
            assert error <= 1e-9 * np.linalg.norm(truth)


@pytest.mark.parametrize("gradient", ["basis", "attention"])
@pytest.mark.parametrize("tol", [None, 1e-6])
def test_gradients_are_those_of_convbasis(strips, gradient, tol):
    inputs = strips(300, dtype=torch.float32)
    named = {"is_causal": True, "options": STRIPS, "tol": tol, "gradient": gradient}
    weight = weight_of(inputs[2])
    arrays = [tensor.detach().numpy() for tensor in (*inputs, weight)]
    want = cb.conv_attention_backward(*arrays, **named)
    got = gradients(lambda *tensors: conv_attention(*tensors, **named), inputs, weight)
    assert all(map(np.array_equal, got, want))


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_gradcheck_through_strips(strips, layout, is_causal):
    inputs = [
        _tensors.swapped(tensor.detach()[:1], layout).requires_grad_() for tensor in strips(20)
    ]
    assert gradcheck(
        lambda *tensors: conv_attention(
            *tensors, is_causal=is_causal, options=STRIPS, layout=layout
        ),
        inputs,
    )


@pytest.mark.parametrize("options", [EVERY_COLUMN, None], ids=["every column", "exact heads"])
@pytest.mark.parametrize("kv_heads", [None, 1])
@pytest.mark.parametrize("is_causal", [True, False])
def test_gradcheck_of_the_formulas_of_attention(tensors, options, kv_heads, is_causal):
    inputs = tensors(9, 3, lead=(1, 2), kv_heads=kv_heads, value_dim=2)

    def attend(*tensors):
        return conv_attention(
            *tensors,
            is_causal=is_causal,
            enable_gqa=kv_heads is not None,
            options=options,
            gradient="attention",
            return_exact_mask=True,
        )

    assert attend(*inputs)[1].all() == (options is None)
    assert gradcheck(lambda *tensors: attend(*tensors)[0], inputs)


def test_keys_that_no_query_sees_have_gradient_zero(tensors):
    q, k, v = tensors(12, n_kv=15)
    conv_attention(q, k, v, is_causal=True).sum().backward()
    assert v.grad[..., :12, :].abs().min() > 0.0
    assert not k.grad[..., 12:, :].any()
    assert not v.grad[..., 12:, :].any()


@pytest.mark.parametrize("lead", [(), (3,), (2, 1, 3)])
def test_any_leading_dimensions(tensors, lead):
    inputs = tensors(20, lead=lead)
    out, exact_mask = conv_attention(*inputs, return_exact_mask=True)
    want = scaled_dot_product_attention(*inputs)
    assert exact_mask.shape == lead
    assert torch.allclose(out, want, rtol=1e-12, atol=1e-12)
    for got, truth in zip(
        gradients(conv_attention, inputs, weight_of(out)),
        gradients(scaled_dot_product_attention, inputs, weight_of(out)),
        strict=True,
    ):
        assert np.allclose(got, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strided_tensors_are_read_where_they_are(dtype, layout):
    base = torch.ones(2, 3, 60, 16, dtype=dtype, requires_grad=True)
    views = (
        base,
        base[:, ::2, 5:-5:3, ::2],
        base.transpose(1, 2),
        base[:, :1].expand(base.shape),
    )
    for view in views:
        assert np.shares_memory(_tensors.array_of(view, layout), base.detach().numpy())


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_strides_and_layouts_change_nothing(strips, layout):
    plain = strips(70)
    want = conv_attention(*plain, is_causal=True, options=STRIPS)
    weight = weight_of(want)
    truth = gradients(
        lambda *tensors: conv_attention(*tensors, is_causal=True, options=STRIPS), plain, weight
    )
    spread = []
    for tensor in plain:
        room = torch.zeros(*tensor.shape[:2], 2 * 70, tensor.shape[3], dtype=tensor.dtype)
        room[:, :, ::2] = tensor.detach()
        spread.append(_tensors.swapped(room[:, :, ::2], layout).requires_grad_())
    got = conv_attention(*spread, is_causal=True, options=STRIPS, layout=layout)
    assert got.is_contiguous()
    assert torch.equal(_tensors.swapped(got, layout), want)
    found = torch.autograd.grad(got, spread, _tensors.swapped(weight, layout))
    for gradient, wanted, tensor in zip(found, truth, spread, strict=True):
        assert gradient.shape == tensor.shape
        assert np.array_equal(_tensors.swapped(gradient, layout).numpy(), wanted)


def test_only_what_wants_a_gradient_gets_one(strips):
    inputs = [tensor.detach() for tensor in strips(40)]
    assert not conv_attention(*inputs).requires_grad
    inputs[2].requires_grad_()
    with torch.no_grad():
        assert not conv_attention(*inputs).requires_grad
    conv_attention(*inputs).sum().backward()
    assert [tensor.grad is None for tensor in inputs] == [True, True, False]
    assert torch.allclose(inputs[2].grad.sum(), torch.tensor(2 * 2 * 40 * 3.0).double())


def test_a_graph_can_be_used_twice_and_not_differentiated_twice(strips):
    q, k, v = strips(40)
    loss = conv_attention(q, k, v, options=STRIPS).square().sum()
    first = torch.autograd.grad(loss, (q, k, v), retain_graph=True)
    again = torch.autograd.grad(loss, (q, k, v), create_graph=True)
    assert all(map(torch.equal, first, again))
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(again[0].sum(), q)


def test_the_backward_pass_repeats_the_choice_of_heads(tensors, strips):
    q, k, v = (
        torch.cat([one.detach(), other.detach()], 1).requires_grad_()
        for one, other in zip(strips(300), tensors(300, 4, lead=(2, 2), value_dim=3), strict=True)
    )
    named = {"is_causal": True, "options": STRIPS, "return_exact_mask": True}
    out, exact_mask = conv_attention(q, k, v, tol=1e-6, **named)
    assert exact_mask.tolist() == [[False, False, True, True]] * 2
    found = torch.autograd.grad(out, (q, k, v), weight_of(out))
    kept, none_exact = conv_attention(q, k, v, tol=1e-6, on_miss="keep", **named)
    assert not none_exact.any()
    truncated = torch.autograd.grad(kept, (q, k, v), weight_of(out))
    exact = scaled_dot_product_attention(q, k, v, is_causal=True)
    wanted = torch.autograd.grad(exact, (q, k, v), weight_of(out))
    for got, truth, other in zip(found, wanted, truncated, strict=True):
        assert torch.allclose(got[:, 2:], truth[:, 2:], rtol=1e-9, atol=1e-10)
        assert torch.equal(got[:, :2], other[:, :2])
        assert not torch.allclose(other[:, 2:], truth[:, 2:], rtol=0.1)
    with pytest.raises(cb.ToleranceMissed, match="tol is missed by 4 of 8 heads"):
        conv_attention(q, k, v, tol=1e-6, on_miss="error", **named)


def test_the_backward_pass_has_the_strips_of_the_forward_pass():
    """Even when another cost model would allow fewer by then."""
    model = cb.cost_model(np.float64)
    options = cb.RecoverOptions(window=4)
    problem = cb.problems.conv_problem(n=1024, head_dim=8, num_bases=100)
    q, k, v = (
        torch.from_numpy(array).requires_grad_()
        for array in (problem.query, problem.key, problem.value)
    )
    found = []
    try:
        for later in (100.0, 0.01):
            cb.set_cost_model(dataclasses.replace(model, exact=100.0 * model.exact), np.float64)
            out, exact_mask = conv_attention(
                q,
                k,
                v,
                is_causal=True,
                scale=problem.scale,
                options=options,
                return_exact_mask=True,
            )
            assert not exact_mask
            cb.set_cost_model(dataclasses.replace(model, exact=later * model.exact), np.float64)
            found.append(torch.autograd.grad(out, (q, k, v), weight_of(out)))
    finally:
        cb.set_cost_model(model, np.float64)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_results_repeat_whatever_the_threads(strips, monkeypatch):
    inputs = strips(500, dtype=torch.float32)
    weight = weight_of(inputs[2])
    asked = []

    def attend(inputs, wanted, out):
        asked.append(wanted.threads)
        return original(inputs, wanted, out)

    original = _operators.attend
    monkeypatch.setattr(_operators, "attend", attend)
    before = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            runs.append(gradients(lambda *t: conv_attention(*t, options=STRIPS), inputs, weight))
        conv_attention(*inputs, num_threads=3)
    finally:
        torch.set_num_threads(before)
    assert asked == [1, 2, 2, 3]
    for run in runs[1:]:
        assert all(map(np.array_equal, run, runs[0]))


def resident():
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow(strips):
    inputs = strips(2000, head_dim=32, dtype=torch.float32)

    def step():
        for tensor in inputs:
            tensor.grad = None
        conv_attention(*inputs, is_causal=True, options=STRIPS).sum().backward()

    for _ in range(3):
        step()
    before = resident()
    for _ in range(15):
        step()
    one = inputs[0].numel() * 4
    assert resident() - before < 8 * one


def test_options_beyond_64_bits(tensors):
    options = cb.RecoverOptions(num_bases=10**30, window=10**30)
    inputs = tensors(12)
    got = conv_attention(*inputs, is_causal=True, options=options)
    arrays = (tensor.detach().numpy() for tensor in inputs)
    want = cb.conv_attention(*arrays, is_causal=True, options=options)
    assert np.array_equal(got.detach().numpy(), want)


@pytest.mark.parametrize("n", [0, 1])
def test_empty_and_single_rows(n):
    q = torch.randn(2, n, 3, 4, requires_grad=True)
    out = conv_attention(q, q, q, layout="bshd")
    out.sum().backward()
    assert torch.allclose(out, q)
    assert q.grad.shape == q.shape
