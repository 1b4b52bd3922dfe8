"""convbasis.torch on a GPU: the same operators, values and gradients as on the CPU."""

import numpy as np
import pytest

import convbasis as cb

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

from convbasis.torch import ConvAttention, conv_attention  # noqa: E402

STRIPS = cb.RecoverOptions(num_bases=3)
#: Every column a strip of its own: the strips are exact attention.
EVERY_COLUMN = cb.RecoverOptions(num_bases=64, window=1)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-5}


def problem(n=70, head_dim=4, noisy_heads=()):
    """An exactly k-conv problem of two batches of four heads, float64, some heads of noise."""
    p = cb.problems.conv_problem(n, head_dim, 3, batch=(2, 4), value_dim=3)
    query = p.query.copy()
    rng = np.random.default_rng(7)
    for head in noisy_heads:
        query.reshape(8, n, head_dim)[head] = 3.0 * rng.normal(size=(n, head_dim))
    return query, p.key, p.value, rng.normal(size=p.value.shape)


def on(device, arrays, dtype, layout="bhsd"):
    """Tensors on the device that want gradients, but for the last one, a gradient."""

    def tensor(array):
        made = torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype)
        return made.transpose(1, 2).contiguous() if layout == "bshd" else made

    *inputs, weight = map(tensor, arrays)
    return [one.requires_grad_() for one in inputs], weight


def as_array(tensor, layout="bhsd"):
    tensor = tensor.detach().double().cpu()
    return (tensor.transpose(1, 2) if layout == "bshd" else tensor).numpy()


def heads_error(got, want, row_error):
    """By all rows of a head together: a row that cancels has no digits of its own."""
    return row_error(*(array.reshape(*array.shape[:2], -1) for array in (got, want)))


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("n", "options", "noisy_heads"),
    [(70, STRIPS, ()), (260, None, ()), (260, None, (1, 2, 6)), (260, None, range(8))],
)
def test_values_are_those_of_the_cpu(
    device, row_error, n, options, noisy_heads, dtype, layout, is_causal
):
    arrays = problem(n, noisy_heads=noisy_heads)
    host = [array.astype(str(dtype)[6:]) for array in arrays[:3]]
    call = {"is_causal": is_causal, "options": options}
    want, report = cb.conv_attention(*host, return_report=True, **call)
    inputs, _ = on(device, arrays, dtype, layout)
    got, exact_mask = conv_attention(*inputs, layout=layout, return_exact_mask=True, **call)
    assert (got.device, got.dtype, got.is_contiguous()) == (device, dtype, True)
    assert exact_mask.device == device
    assert np.array_equal(exact_mask.cpu().numpy(), report.exact_mask)
    assert row_error(as_array(got, layout), want) < TOLERANCE[dtype]


def test_shared_heads_and_unseen_keys(device, qkv, row_error):
    host = qkv(50, lead=(2, 4), n_kv=60, kv_heads=2, value_dim=5)
    tensors = [torch.from_numpy(array).to(device) for array in host]
    for options in (STRIPS, EVERY_COLUMN, None):
        call = {"is_causal": True, "enable_gqa": True, "options": options}
        got = conv_attention(*tensors, **call)
        assert row_error(as_array(got), cb.conv_attention(*host, **call)) < 1e-11


def test_what_a_gpu_does_not_compute_is_refused(device):
    inputs, _ = on(device, problem(), torch.float32)
    with pytest.raises(NotImplementedError, match="tol cannot be honoured"):
        conv_attention(*inputs, is_causal=True, tol=1e-3)
    with pytest.raises(NotImplementedError, match="key differs in length from query"):
        conv_attention(inputs[0], *(tensor[:, :, 1:] for tensor in inputs[1:]))


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("gradient", ["basis", "attention"])
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("n", "options", "noisy_heads"), [(70, STRIPS, ()), (260, None, (1, 2, 6))]
)
def test_gradients_are_those_of_the_cpu(
    device, row_error, n, options, noisy_heads, dtype, gradient, layout, is_causal
):
    arrays = problem(n, noisy_heads=noisy_heads)
    call = {"is_causal": is_causal, "options": options, "gradient": gradient}
    host = [array.astype(str(dtype)[6:]) for array in arrays]
    want = cb.conv_attention_backward(*host, **call)
    inputs, weight = on(device, arrays, dtype, layout)
    out = conv_attention(*inputs, layout=layout, **call)
    found = torch.autograd.grad(out, inputs, weight)
    for tensor, got, truth in zip(inputs, found, want, strict=True):
        assert (got.device, got.dtype, got.shape) == (device, dtype, tensor.shape)
        assert heads_error(as_array(got, layout), truth, row_error) < TOLERANCE[dtype]


def test_keys_that_no_query_sees_have_gradient_zero(device, qkv):
    q, k, v = (
        torch.from_numpy(array).to(device).requires_grad_()
        for array in qkv(12, lead=(1, 2), n_kv=15)
    )
    conv_attention(q, k, v, is_causal=True).sum().backward()
    assert v.grad[..., :12, :].abs().min() > 0.0
    assert not k.grad[..., 12:, :].any()
    assert not v.grad[..., 12:, :].any()


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_gradcheck_through_strips(device, layout, is_causal):
    arrays = [array[:1, :2] for array in problem(20)]
    inputs, _ = on(device, arrays, torch.float64, layout)
    call = {"is_causal": is_causal, "options": STRIPS, "layout": layout}
    assert gradcheck(lambda *tensors: conv_attention(*tensors, **call), inputs)


@pytest.mark.parametrize("gradient", ["basis", "attention"])
@pytest.mark.parametrize("options", [EVERY_COLUMN, None], ids=["every column", "exact heads"])
@pytest.mark.parametrize("kv_heads", [None, 1])
def test_gradcheck_of_the_formulas_of_attention(device, qkv, options, kv_heads, gradient):
    arrays = qkv(9, 3, lead=(1, 2), kv_heads=kv_heads, value_dim=2)
    inputs = [torch.from_numpy(array).to(device).requires_grad_() for array in arrays]
    call = {"options": options, "enable_gqa": kv_heads is not None, "gradient": gradient}
    assert gradcheck(lambda *tensors: conv_attention(*tensors, is_causal=True, **call), inputs)


@pytest.mark.parametrize("options", [EVERY_COLUMN, None], ids=["every column", "exact heads"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(device, qkv, dtype, options):
    """Recovery, attention and gradients: at most the rounding of the result, and 3 times the error
    of torch's own attention in that type for gradients, whose intermediate sums may be rounded.
    """
    arrays = [*qkv(40, 8, lead=(2, 3), value_dim=5), qkv(40, 5, lead=(2, 3), seed=1)[0]]
    inputs, weight = on(device, arrays, dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    truth = scaled_dot_product_attention(*exact, is_causal=True)
    got = conv_attention(*inputs, is_causal=True, options=options)
    assert got.dtype == dtype
    half_ulp = torch.finfo(dtype).eps / 2
    small = 1e-5 * truth.norm(dim=-1, keepdim=True)
    if options is not None:  # exact heads round as torch does
        assert ((got - truth).abs() <= half_ulp * truth.abs() + small).all()
    peer = scaled_dot_product_attention(*inputs, is_causal=True)
    assert (got - truth).norm() <= 2 * (peer - truth).norm()
    wanted = torch.autograd.grad(truth, exact, weight.double())
    plain = torch.autograd.grad(peer, inputs, weight)
    for mine, torchs, right in zip(
        torch.autograd.grad(got, inputs, weight), plain, wanted, strict=True
    ):
        assert mine.dtype == dtype
        assert (mine - right).norm() <= 3 * (torchs - right).norm() + half_ulp * right.norm()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_whole_it_gives_the_same(device):
    torch.compiler.reset()
    inputs, weight = on(device, problem(), torch.float32)

    def attend(*tensors):
        return conv_attention(*tensors, is_causal=True, options=STRIPS) * 2.0

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    got, want = compiled(*inputs), attend(*inputs)
    assert torch.equal(got, want)
    for one, other in zip(
        torch.autograd.grad(got, inputs, weight),
        torch.autograd.grad(want, inputs, weight),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_autocast_leaves_types_alone(device):
    inputs, weight = on(device, problem(260, noisy_heads=(1,)), torch.float32)
    want = conv_attention(*inputs, is_causal=True)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got = conv_attention(*inputs, is_causal=True)
    assert torch.equal(got, want)
    torch.autograd.grad(got, inputs, weight)


def test_an_output_that_torch_would_copy_is_refused(device):
    inputs = [torch.ones(2, 3, 1, 8, 4, device=device)] * 3
    out = torch.zeros(3, 2, 1, 8, 4, device=device).transpose(0, 1)
    with pytest.raises(ValueError, match="out has leading dimensions that do not collapse"):
        cb.exact_attention(*inputs, out=out)


@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_a_layer_trains(device, num_kv_heads):
    torch.manual_seed(0)
    layer = ConvAttention(16, 4, batch_first=True, num_kv_heads=num_kv_heads, options=STRIPS)
    layer.to(device)
    x = torch.randn(2, 40, 16, device=device)
    step = torch.optim.SGD(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        step.zero_grad()
        losses.append((layer(x, x, x, is_causal=True)[0] - x.roll(1, dims=1)).square().mean())
        losses[-1].backward()
        step.step()
    assert losses[-1] < losses[0]
