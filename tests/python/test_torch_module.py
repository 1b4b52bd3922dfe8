"""convbasis.torch.ConvAttention beside torch.nn.MultiheadAttention."""

import copy

import pytest

import convbasis as cb

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from convbasis.torch import ConvAttention  # noqa: E402

CONFIGURATIONS = [
    {},
    {"batch_first": True},
    {"bias": False, "batch_first": True},
    {"kdim": 12, "vdim": 20},
    {"kdim": 12, "vdim": 20, "bias": False, "batch_first": True},
    {"vdim": 8, "dtype": torch.float64},
]


def pair(named):
    """Both layers from the same seed, of embed_dim 16 with 4 heads."""
    layers = []
    for kind in (ConvAttention, nn.MultiheadAttention):
        torch.manual_seed(3)
        layers.append(kind(16, 4, **named))
    return layers


def inputs_of(layer, named, batch):
    """Query, key and value that fit the layer."""
    shape = (*batch, 30) if named.get("batch_first") else (30, *batch)
    return [
        torch.randn(*shape, named.get(name, 16), dtype=layer.out_proj.weight.dtype)
        for name in ("embed_dim", "kdim", "vdim")
    ]


@pytest.mark.parametrize("named", CONFIGURATIONS)
def test_parameters_are_those_of_torch(named):
    ours, theirs = (layer.state_dict() for layer in pair(named))
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name])


@pytest.mark.parametrize("named", CONFIGURATIONS)
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("is_causal", [True, False])
def test_output_and_gradients_are_those_of_torch(named, batch, is_causal):
    ours, theirs = pair(named)
    for layer, other in ((ours, theirs), (theirs, ours)):
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
        other.load_state_dict(layer.state_dict())
    inputs = inputs_of(ours, named, batch)
    mask = nn.Transformer.generate_square_subsequent_mask(30, dtype=inputs[0].dtype)
    want, _ = theirs(
        *inputs, need_weights=False, attn_mask=mask if is_causal else None, is_causal=is_causal
    )
    got, weights = ours(*inputs, is_causal=is_causal)
    assert weights is None
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(want)
    for found, truth in zip(
        torch.autograd.grad(got, list(ours.parameters()), weight),
        torch.autograd.grad(want, list(theirs.parameters()), weight),
        strict=True,
    ):
        assert truth.norm() > 0.0
        assert (found - truth).norm() <= 1e-4 * max(truth.norm(), 1.0)


def test_self_attention_projects_once_to_the_same():
    layer = ConvAttention(16, 4)
    x = torch.randn(30, 2, 16)
    once, _ = layer(x, x, x)
    apart, _ = layer(x, x.clone(), x)
    assert torch.allclose(once, apart, rtol=1e-5, atol=1e-6)


def test_fewer_key_heads():
    layer, wide = ConvAttention(16, 4, num_kv_heads=2, bias=False), ConvAttention(16, 4, bias=False)
    assert layer.in_proj_weight.shape == (16 + 2 * 8, 16)
    query, key, value = layer.in_proj_weight.detach().split(layer.rows)
    repeated = [
        weight.unflatten(0, (2, 4)).repeat_interleave(2, 0).flatten(0, 1) for weight in (key, value)
    ]
    wide.load_state_dict({**layer.state_dict(), "in_proj_weight": torch.cat([query, *repeated])})
    x = torch.randn(30, 2, 16)
    assert torch.allclose(layer(x, x, x)[0], wide(x, x, x)[0], rtol=1e-5, atol=1e-6)


def test_the_layer_passes_its_settings_on():
    options = cb.RecoverOptions(num_bases=2)
    layer = ConvAttention(16, 2, options=options, tol=1e-9, on_miss="error")
    x = torch.randn(200, 1, 16)
    for one in (layer, copy.deepcopy(layer)):
        assert one.options == options
        with pytest.raises(cb.ToleranceMissed):
            one(x, x, x, is_causal=True)


@pytest.mark.parametrize("training", [True, False])
def test_an_encoder_layer_takes_it(training):
    block = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True).train(training)
    theirs = copy.deepcopy(block)
    block.self_attn = ConvAttention(16, 4, batch_first=True)
    block.load_state_dict(theirs.state_dict())
    calls = []
    block.self_attn.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 30, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(30)
    with torch.set_grad_enabled(training):
        got, want = (layer(x, src_mask=mask, is_causal=True) for layer in (block, theirs))
    assert len(calls) == 1
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)


def test_under_autocast_and_checkpoints():
    layer = ConvAttention(16, 4)
    x = torch.randn(30, 2, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x, x, x)[0].dtype == torch.bfloat16
    plain = layer(x, x, x)[0].square().sum()
    again = checkpoint(lambda x: layer(x, x, x)[0], x, use_reentrant=False).square().sum()
    (want,), (got,) = (torch.autograd.grad(loss, x) for loss in (plain, again))
    assert torch.equal(got, want)


def test_it_learns():
    torch.manual_seed(0)
    layer = ConvAttention(8, 2, batch_first=True, options=cb.RecoverOptions(num_bases=4))
    x, target = torch.randn(2, 32, 8), torch.randn(2, 32, 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(x, x, x, is_causal=True)[0] - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
