"""Gradients of conv_attention of arrays on a GPU, against the CPU's."""

import numpy as np
import pytest

import convbasis as cb

TOLERANCE = {np.float64: 1e-11, np.float32: 5e-5, np.float16: 4e-3}


def by_head(*arrays):
    """Heads as rows: a row whose gradient cancels has no digits of its own."""
    return [array.astype(np.float64).reshape(*array.shape[:2], -1) for array in arrays]


def check(backend, row_error, got, want, dtype):
    for on_device, gradient in zip(got, want, strict=True):
        assert isinstance(on_device, backend.ndarray)
        assert backend.get(on_device).dtype == dtype
        assert row_error(*by_head(backend.get(on_device), gradient)) < TOLERANCE[dtype]


@pytest.mark.parametrize("gradient", ["basis", "attention"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("is_causal", "kv_heads", "n_kv"),
    [(True, 2, 130), (True, 1, 200), (True, 4, 70), (False, 4, 130), (False, 2, 130)],
)
def test_gradients_through_given_strips(
    backend, qkv, row_error, dtype, kv_heads, n_kv, is_causal, gradient
):
    n = 130
    host = [*qkv(n, lead=(2, 4), n_kv=n_kv, kv_heads=kv_heads, value_dim=5, dtype=dtype)]
    host.append(np.random.default_rng(5).normal(size=(2, 4, n, 5)).astype(dtype))
    strips = {"starts": [0, 17, 64], "enable_gqa": kv_heads != 4, "scale": 0.3}
    call = {"is_causal": is_causal, "enable_gqa": kv_heads != 4, "gradient": gradient}

    def bases(put):
        halves = [host[:2]]
        if not is_causal:
            halves.append([array[..., ::-1, :].copy() for array in host[:2]])
        made = tuple(cb.recover_basis(*map(put, half), **strips) for half in halves)
        return made[0] if is_causal else made

    want = cb.conv_attention_backward(*host, basis=bases(np.asarray), **call)
    arrays = [backend.put(array) for array in host]
    got = cb.conv_attention_backward(*arrays, basis=bases(backend.put), **call)
    check(backend, row_error, got, want, dtype)


@pytest.mark.parametrize("gradient", ["basis", "attention"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("exact_heads", [(), (1, 2, 6), range(8)])
def test_heads_with_too_many_strips_are_differentiated_exactly(
    backend, qkv, row_error, kv_heads, exact_heads, gradient
):
    """A shared key head may have heads of both kinds; keys past the last query get 0."""
    n = 260
    p = cb.problems.conv_problem(n, 8, 2, batch=(2, 4))
    group = 4 // kv_heads
    host = [np.repeat(p.query[:, ::group], group, axis=1), p.key[:, ::group], p.value[:, ::group]]
    noise = qkv(n, 8, lead=(2, 4))[0]
    for head in exact_heads:
        host[0].reshape(8, n, 8)[head] = 3.0 * noise.reshape(8, n, 8)[head]
    host[1:] = [np.concatenate([array, array[:, :, :3]], axis=2) for array in host[1:]]
    host.append(np.random.default_rng(3).normal(size=(2, 4, n, 8)))
    call = {"is_causal": True, "scale": p.scale, "enable_gqa": True, "gradient": gradient}
    want = cb.conv_attention_backward(*host, **call)
    got = cb.conv_attention_backward(*(backend.put(array) for array in host), **call)
    check(backend, row_error, got, want, np.float64)
    assert not backend.get(got[1])[:, :, n:].any()
    assert not backend.get(got[2])[:, :, n:].any()


@pytest.mark.parametrize("shape", [(0, 3, 8, 4), (2, 0, 8, 4), (2, 3, 0, 4)])
def test_gradients_of_empty_arrays(backend, shape):
    x = backend.put(np.zeros(shape))
    for gradient in cb.conv_attention_backward(x, x, x, x):
        assert backend.get(gradient).shape == shape


def test_what_gradients_on_a_gpu_refuse(emulated, library):
    put = library().put
    x = put(np.zeros((2, 5, 4)))
    for name, value in [
        ("tol", 0.1),
        ("on_miss", "keep"),
        ("return_report", True),
        ("certify", True),
        ("attn_mask", np.ones((5, 5), bool)),
        ("dropout_p", 0.5),
    ]:
        with pytest.raises(NotImplementedError, match=rf"\[conv_attention_backward\] {name} "):
            cb.conv_attention_backward(x, x, x, x, **{"is_causal": True, name: value})
    with pytest.raises(ValueError, match="gradient is unknown"):
        cb.conv_attention_backward(x, x, x, x, gradient="exact")
    with pytest.raises(ValueError, match="grad_output differs in shape from the output"):
        cb.conv_attention_backward(x, x, x, put(np.zeros((2, 5, 3))))
    with pytest.raises(TypeError, match="grad_output differs in dtype"):
        cb.conv_attention_backward(x, x, x, put(np.zeros((2, 5, 4), np.float32)))
