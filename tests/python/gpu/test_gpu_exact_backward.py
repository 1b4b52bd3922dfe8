"""Gradients of exact attention of arrays on a GPU, against the CPU's."""

import numpy as np
import pytest

import convbasis as cb

TOLERANCE = {np.float64: 1e-12, np.float32: 2e-5, np.float16: 4e-3}


def by_head(*arrays):
    """Heads as rows: a row whose gradient cancels has no digits of its own."""
    return [array.astype(np.float64).reshape(*array.shape[:2], -1) for array in arrays]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("kv_heads", "n_kv"), [(4, 130), (2, 130), (1, 200), (4, 70)])
def test_gradients_are_those_of_the_cpu(backend, qkv, row_error, dtype, is_causal, kv_heads, n_kv):
    host = [*qkv(130, lead=(2, 4), n_kv=n_kv, kv_heads=kv_heads, value_dim=5, dtype=dtype)]
    host.append(np.random.default_rng(5).normal(size=(2, 4, 130, 5)).astype(dtype))
    call = {"is_causal": is_causal, "enable_gqa": kv_heads != 4, "scale": 0.3}
    got = cb.exact_attention_backward(*(backend.put(array) for array in host), **call)
    want = cb.exact_attention_backward(*host, **call)
    for on_device, gradient in zip(got, want, strict=True):
        assert isinstance(on_device, backend.ndarray)
        assert backend.get(on_device).dtype == dtype
        assert row_error(*by_head(backend.get(on_device), gradient)) < TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(0, 3, 8, 4), (2, 0, 8, 4), (2, 3, 0, 4)])
def test_gradients_of_empty_arrays(backend, shape):
    x = backend.put(np.zeros(shape))
    for gradient in cb.exact_attention_backward(x, x, x, x):
        assert backend.get(gradient).shape == shape


def test_gradients_of_arrays_with_strides(emulated, library, qkv, row_error):
    host = [np.swapaxes(array, 1, 2) for array in qkv(6, lead=(2, 70))]
    host = [*host, host[0][..., ::-1]]
    put = library().put
    got = cb.exact_attention_backward(*map(put, host), is_causal=True)
    want = cb.exact_attention_backward(*host, is_causal=True)
    for on_device, gradient in zip(got, want, strict=True):
        assert row_error(*by_head(on_device.host, gradient)) < 1e-12


def test_what_gradients_on_a_gpu_refuse(emulated, library):
    put = library().put
    x = put(np.zeros((2, 5, 4)))
    with pytest.raises(NotImplementedError, match="attn_mask cannot be honoured on a GPU"):
        cb.exact_attention_backward(x, x, x, x, cb.masks.SlidingWindow(2))
    with pytest.raises(NotImplementedError, match="dropout_p"):
        cb.exact_attention_backward(x, x, x, x, dropout_p=0.5)
    with pytest.raises(ValueError, match="grad_output differs in shape from the output"):
        cb.exact_attention_backward(x, x, x, put(np.zeros((2, 5, 3))))
    with pytest.raises(TypeError, match="grad_output differs in dtype"):
        cb.exact_attention_backward(x, x, x, put(np.zeros((2, 5, 4), np.float32)))
