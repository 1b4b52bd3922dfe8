"""convbasis.torch.ConvAttention beside torch.nn.MultiheadAttention."""

import copy

import pytest

import convbasis as cb

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.autograd import gradcheck  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from convbasis.torch import ConvAttention, conv_attention  # noqa: E402
from convbasis.torch.module import rotated  # noqa: E402

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


# --- rotary_base --------------------------------------------------------------------------------
ONE_STRIP = cb.RecoverOptions(num_bases=1)


class Watched(ConvAttention):
    """Keeps the rotated heads, and which were computed exactly."""

    def attend(self, query, key, value, is_causal):
        self.heads = [heads.detach().transpose(1, 2).numpy() for heads in (query, key)]
        how = {"is_causal": is_causal, "layout": "bshd", "options": self.options}
        out, self.exact_mask = conv_attention(query, key, value, return_exact_mask=True, **how)
        return out


class Exact(ConvAttention):
    """The same layer by torch's exact attention."""

    def attend(self, query, key, value, is_causal):
        heads_first = (heads.transpose(1, 2) for heads in (query, key, value))
        return scaled_dot_product_attention(*heads_first, is_causal=is_causal).transpose(1, 2)


def by_position(kind, **named):
    """A layer of embed_dim 16 with 2 heads in float64; all weights and biases drawn alike."""
    how = {"batch_first": True, "rotary_base": 50.0, "dtype": torch.float64}
    layer = kind(16, 2, **{**how, **named})
    generator = torch.Generator().manual_seed(5)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -0.7, 0.7, generator=generator)
    return layer


def shared(n, *vectors):
    """Each vector at all n positions of a batch of two."""
    return [vector.expand(2, n, -1) for vector in vectors]


@pytest.mark.parametrize(("n", "half"), [(0, 2), (1, 1), (7, 3), (130, 8)])
def test_rotation_multiplies_complex_numbers(n, half):
    heads = torch.randn(2, n, 3, 2 * half, dtype=torch.float64)
    numbers = torch.complex(heads[..., :half], heads[..., half:])
    for base in (1.5, 1e4):
        rates = torch.tensor([base ** (-j / half) for j in range(half)], dtype=torch.float64)
        angles = torch.outer(torch.arange(n, dtype=torch.float64), rates)
        turned = numbers * torch.polar(torch.ones_like(angles), angles)[:, None]
        want = torch.cat([turned.real, turned.imag], dim=-1)
        assert torch.allclose(rotated(heads, base), want, rtol=1e-12, atol=1e-12)


def test_late_positions_are_rotated_accurately_in_float32():
    heads = torch.randn(200_000, 1, 4)
    got, want = rotated(heads, 1e4), rotated(heads.double(), 1e4)
    assert got.dtype == torch.float32
    assert (got - want).abs().max() < 2e-6


def test_logits_are_those_of_relative_positions():
    query, key = torch.randn(2, 40, 1, 6, dtype=torch.float64)
    earlier = torch.randn(23, 1, 6, dtype=torch.float64)
    at_once, shifted = (
        rotated(torch.cat([first, query]), 100.0)[len(first) :, 0]
        @ rotated(torch.cat([first, key]), 100.0)[len(first) :, 0].T
        for first in (earlier[:0], earlier)
    )
    assert torch.allclose(at_once, shifted, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(at_once, query[:, 0] @ key[:, 0].T, atol=0.1)


@pytest.mark.parametrize("batch_first", [True, False])
def test_positions_count_along_the_sequence(batch_first):
    layer = by_position(Watched, batch_first=batch_first)
    seen = []
    for vector in torch.randn(2, 16, dtype=torch.float64):
        x = vector.expand((3, 9, 16) if batch_first else (9, 3, 16))
        layer(x, x, x)
        seen += layer.heads
    for heads in seen:
        assert heads.shape == (3, 2, 9, 8)
        assert abs(heads[0] - heads[2]).max() == 0.0
        assert abs(heads[:, :, 1:] - heads[:, :, :-1]).max() > 0.01


@pytest.mark.parametrize(
    ("base", "embed_dim", "error", "message"),
    [
        (100.0, 6, ValueError, "rotary_base needs an even head dimension; .* got 3"),
        (1.0, 8, ValueError, "rotary_base is too small; expected more than 1; got 1.0"),
        (-5, 8, ValueError, "rotary_base is too small"),
        (float("nan"), 8, ValueError, "rotary_base is not finite"),
        (True, 8, TypeError, "rotary_base is not a number"),
        ("100", 8, TypeError, "rotary_base is not a number"),
    ],
)
def test_wrong_bases_raise(base, embed_dim, error, message):
    with pytest.raises(error, match=rf"\[ConvAttention\] {message}"):
        ConvAttention(embed_dim, 2, rotary_base=base)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_vector_for_all_positions_is_one_strip_a_head(dtype):
    layer = by_position(Watched, dtype=dtype)
    query, key = shared(600, *torch.randn(2, 16, dtype=dtype))
    layer(query, key, torch.randn(2, 600, 16, dtype=dtype), is_causal=True)
    assert not layer.exact_mask.any()
    assert (cb.recover_basis(*layer.heads).num_bases == 1).all()


@pytest.mark.parametrize("is_causal", [True, False])
def test_there_basis_gradients_of_all_parameters_are_exact(is_causal):
    """One strip holds what logits of lags can be, so that the approximation is the function."""
    vectors = torch.randn(2, 16, dtype=torch.float64)
    value = torch.randn(2, 90, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 90, 16, dtype=torch.float64)
    found = []
    for layer in (by_position(ConvAttention, options=ONE_STRIP), by_position(Exact)):
        leaves = [vector.clone().requires_grad_() for vector in vectors]
        inputs = [*leaves, value, *layer.parameters()]
        out, _ = layer(*shared(90, *leaves), value, is_causal=is_causal)
        found.append([out, *torch.autograd.grad(out, inputs, weight)])
    for got, want in zip(*found, strict=True):
        assert want.norm() > 0.0
        assert (got - want).norm() <= 1e-11 * want.norm()


@pytest.mark.parametrize("is_causal", [True, False])
def test_gradcheck_with_rotation(is_causal):
    layer = by_position(Watched, options=ONE_STRIP)

    def attend(query, key, value):
        return layer(*shared(12, query, key), value, is_causal=is_causal)[0]

    vectors = torch.randn(2, 16, dtype=torch.float64)
    value = torch.randn(2, 12, 16, dtype=torch.float64)
    assert gradcheck(attend, [x.clone().requires_grad_() for x in (*vectors, value)])
    assert not layer.exact_mask.any()


def test_rotation_adds_no_parameters():
    ours, theirs = ConvAttention(16, 4, rotary_base=1e4), nn.MultiheadAttention(16, 4)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(30, 2, 16)
    plain = ConvAttention(16, 4)
    plain.load_state_dict(theirs.state_dict())
    assert not torch.allclose(ours(x, x, x)[0], plain(x, x, x)[0], atol=1e-3)
