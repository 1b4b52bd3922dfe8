"""The operators of convbasis.torch under torch.compile and torch's own checks of operators."""

import shutil

import pytest

import convbasis as cb

torch = pytest.importorskip("torch")

from torch import library  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

from convbasis.torch import ConvAttention, _operators, conv_attention  # noqa: E402

# torch's compiler uses what torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BACKENDS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
        ],
    ),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def inputs_of(n, layout="bhsd", dtype=torch.float64, kv_heads=4):
    """Random query, key and value that want gradients."""
    generator = torch.Generator().manual_seed(n)

    def draw(heads):
        shape = (2, heads, n, 8) if layout == "bhsd" else (2, n, heads, 8)
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    return draw(4), draw(kv_heads), draw(kv_heads)


def run(function, inputs):
    """Output and gradients."""
    out = function(*inputs)
    return out, *torch.autograd.grad(out.square().sum(), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_whole_it_gives_the_same(backend, layout, dtype):
    options = cb.RecoverOptions(num_bases=3)

    def attend(query, key, value):
        out, exact_mask = conv_attention(
            query * 2.0,
            key,
            value,
            is_causal=True,
            enable_gqa=True,
            options=options,
            tol=0.5,
            gradient="attention",
            layout=layout,
            return_exact_mask=True,
        )
        return out.flatten(-2) + exact_mask.sum()

    compiled = torch.compile(attend, fullgraph=True, backend=backend)
    inputs = inputs_of(40, layout, dtype, kv_heads=2)
    for got, want in zip(run(compiled, inputs), run(attend, inputs), strict=True):
        error = (got - want).double().norm()
        assert error <= 8 * torch.finfo(dtype).eps * want.double().norm()


def test_one_graph_serves_all_lengths():
    def attend(query, key, value):
        return conv_attention(query, key, value, is_causal=True)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, fullgraph=True, backend=counter, dynamic=True)
    compiled(*inputs_of(20))
    graphs = counter.frame_count
    for n in (24, 33, 40):
        inputs = inputs_of(n)
        for got, want in zip(run(compiled, inputs), run(attend, inputs), strict=True):
            assert torch.equal(got, want)
    assert counter.frame_count == graphs


def test_a_layer_compiles_whole():
    layer = ConvAttention(16, 4, num_kv_heads=2, batch_first=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 20, 16)
    got, want = compiled(x, x, x, is_causal=True)[0], layer(x, x, x, is_causal=True)[0]
    assert torch.equal(got, want)


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_operators_keep_the_rules_of_torch(layout, dtype):
    inputs = inputs_of(20, layout, dtype, kv_heads=2)
    settings = {
        "is_causal": True,
        "scale": None,
        "enable_gqa": True,
        "num_bases": 3,
        "window": 16,
        "delta": 1e-2,
        "epsilon": 0.0,
        "search": "scan",
        "gradient": "basis",
        "layout": layout,
        "num_threads": None,
    }
    judged = {"tol": None, "on_miss": "exact", "check_finite": True}
    library.opcheck(_operators.conv_attention, inputs, {**settings, **judged})
    grad_output = torch.randn(inputs[0].shape).to(dtype)
    exact_mask = torch.tensor([[True, False, False, True]] * 2)
    saved = [tensor.detach() for tensor in inputs]
    library.opcheck(_operators.conv_attention_backward, (grad_output, *saved, exact_mask), settings)
