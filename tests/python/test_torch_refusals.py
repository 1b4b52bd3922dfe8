"""What convbasis.torch refuses, with messages in three parts."""

import re

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from convbasis import _core  # noqa: E402
from convbasis.torch import ConvAttention, conv_attention  # noqa: E402


@pytest.fixture
def tensors(qkv):
    return [torch.from_numpy(array) for array in qkv(8)]


def assert_refuses(error, message, call, *inputs, **named):
    with pytest.raises(error, match=message) as caught:
        call(*inputs, **named)
    name = "conv_attention" if call is conv_attention else "ConvAttention"
    assert re.match(rf"\[{name}\] .+; expected .+; got .+", str(caught.value))


def test_tensors_that_are_refused(tensors):
    (q, k, v), attend = tensors, conv_attention
    assert_refuses(TypeError, "query is not a tensor", attend, q.numpy(), k, v)
    assert_refuses(TypeError, "query has an unsupported dtype", attend, q.long(), k, v)
    assert_refuses(TypeError, "key differs in dtype", attend, q.bfloat16(), k.float(), v.bfloat16())
    assert_refuses(NotImplementedError, "value is on a device", attend, q, k, v.to("meta"))
    assert_refuses(NotImplementedError, "query is sparse", attend, q.to_sparse(), k, v)
    assert_refuses(ValueError, "key differs in head_dim", attend, q, k[..., :4], v)
    assert_refuses(ValueError, "enable_gqa=True", attend, q, k[:, :1], v[:, :1])
    assert_refuses(
        ValueError, "too few dimensions", attend, q[0, 0], k[0, 0], v[0, 0], layout="bshd"
    )
    assert_refuses(
        NotImplementedError, "differs in length", attend, q, k[..., :4, :], v[..., :4, :]
    )
    assert_refuses(ValueError, "value has NaN", attend, q, k, v * torch.nan)
    assert conv_attention(q, k, v * torch.nan, check_finite=False).isnan().any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.func uses
def test_forward_mode_is_refused(tensors):
    """torch itself would take the tangent of an operator that has none for zero."""
    q, k, v = tensors
    with pytest.raises(NotImplementedError, match="query has a tangent"):
        torch.func.jvp(lambda one: conv_attention(one, k, v), (q,), (torch.ones_like(q),))


def test_tensors_on_a_gpu_are_refused_where_none_can_be_used(monkeypatch):
    monkeypatch.setattr(_core, "cuda_why_unavailable", lambda: "this build has no CUDA")
    with FakeTensorMode():
        fake = torch.empty(1, 1, 4, 4, device="cuda")
        message = "query is on a GPU, which cannot be used: this build has no CUDA"
        assert_refuses(NotImplementedError, message, conv_attention, fake, fake, fake)
        monkeypatch.setattr(_core, "cuda_why_unavailable", lambda: "")
        host = torch.empty(1, 1, 4, 4)
        assert_refuses(ValueError, "key is on another device", conv_attention, fake, host, fake)


@pytest.mark.parametrize(
    ("named", "error"),
    [
        ({"attn_mask": torch.zeros(8, 8)}, NotImplementedError),
        ({"dropout_p": 0.1}, NotImplementedError),
        ({"is_causal": 1}, TypeError),
        ({"scale": "1"}, TypeError),
        ({"options": 3}, TypeError),
        ({"tol": -1.0}, ValueError),
        ({"on_miss": "keep"}, ValueError),
        ({"gradient": "exact"}, ValueError),
        ({"layout": "sbhd"}, ValueError),
        ({"return_exact_mask": 1}, TypeError),
        ({"num_threads": 0}, ValueError),
    ],
)
def test_arguments_that_are_refused(tensors, named, error):
    assert_refuses(error, next(iter(named)), conv_attention, *tensors, **named)


@pytest.mark.parametrize(
    ("named", "error"),
    [
        ({"num_heads": 3}, ValueError),
        ({"embed_dim": 0}, ValueError),
        ({"dropout": 0.1}, NotImplementedError),
        ({"add_bias_kv": True}, NotImplementedError),
        ({"add_zero_attn": True}, NotImplementedError),
        ({"num_kv_heads": 3}, ValueError),
        ({"bias": 1}, TypeError),
        ({"batch_first": None}, TypeError),
        ({"options": 3}, TypeError),
        ({"tol": 0.0}, ValueError),
        ({"on_miss": "never"}, ValueError),
        ({"gradient": "exact"}, ValueError),
    ],
)
def test_layers_that_are_refused(named, error):
    assert_refuses(
        error, next(iter(named)), ConvAttention, **{"embed_dim": 8, "num_heads": 4, **named}
    )


@pytest.mark.parametrize(
    ("named", "error"),
    [
        ({"key_padding_mask": torch.zeros(2, 8, dtype=torch.bool)}, NotImplementedError),
        ({"need_weights": True}, NotImplementedError),
        ({"attn_mask": torch.zeros(8, 8)}, NotImplementedError),
        ({"is_causal": 1}, TypeError),
        ({"value": torch.zeros(8, 16)}, ValueError),
    ],
)
def test_calls_of_a_layer_that_are_refused(named, error):
    layer = ConvAttention(16, 2)
    x = torch.zeros(8, 2, 16)
    assert_refuses(error, next(iter(named)), layer, **{"query": x, "key": x, "value": x, **named})
