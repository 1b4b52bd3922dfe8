"""Gradients of polynomial_attention of arrays on a GPU, against the CPU's and exact ones."""

import numpy as np
import pytest

import convbasis as cb

TOLERANCE = {np.float64: 1e-11, np.float32: 5e-5, np.float16: 4e-3}


def by_head(*arrays):
    """Heads as rows: a row whose gradient cancels has no digits of its own."""
    return [array.astype(np.float64).reshape(*array.shape[:2], -1) for array in arrays]


def with_gradient(arrays, dtype):
    shape = (*arrays[0].shape[:-1], arrays[2].shape[-1])
    return [*arrays, np.random.default_rng(5).normal(size=shape).astype(dtype)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("kv_heads", "n_kv"), [(4, 300), (2, 300), (1, 370), (4, 70)])
def test_gradients_are_those_of_the_cpu(backend, qkv, row_error, dtype, is_causal, kv_heads, n_kv):
    host = qkv(300, lead=(2, 4), n_kv=n_kv, kv_heads=kv_heads, d=4, value_dim=5, dtype=dtype)
    host = with_gradient(host, dtype)
    call = {"is_causal": is_causal, "enable_gqa": kv_heads != 4, "scale": 0.1, "degree": 4}
    got = cb.polynomial_attention_backward(*(backend.put(array) for array in host), **call)
    want = cb.polynomial_attention_backward(*host, **call)
    for on_device, gradient in zip(got, want, strict=True):
        assert isinstance(on_device, backend.ndarray)
        assert backend.get(on_device).dtype == dtype
        assert row_error(*by_head(backend.get(on_device), gradient)) < TOLERANCE[dtype]


@pytest.mark.parametrize("on_miss", ["exact", "keep"])
def test_a_tolerance_holds_whatever_heads_are_computed_by(
    backend, qkv, row_error, on_miss, monkeypatch
):
    """Heads of one group, some by polynomials and some not."""
    # With them nothing so short would be left to polynomials.
    monkeypatch.setattr("convbasis._gpu_polynomial.LAUNCHES", 0.0)
    monkeypatch.setattr("convbasis._gpu_polynomial.SLAB_LAUNCHES", 0.0)
    q, k, v = qkv(700, lead=(1, 3), kv_heads=1, d=2, value_dim=2, dtype=np.float64)
    q *= np.array([0.05, 0.3, 20.0])[:, None, None]
    host = with_gradient([q, k, v], np.float64)
    call = {"is_causal": True, "enable_gqa": True}
    got = cb.polynomial_attention_backward(
        *(backend.put(array) for array in host), tol=1e-5, on_miss=on_miss, **call
    )
    want = cb.exact_attention_backward(*host, **call)
    for on_device, gradient in zip(got, want, strict=True):
        assert row_error(*by_head(backend.get(on_device), gradient)) < 1e-4


@pytest.mark.parametrize("shape", [(0, 3, 8, 4), (2, 0, 8, 4), (2, 3, 0, 4)])
def test_gradients_of_empty_arrays(backend, shape):
    x = backend.put(np.zeros(shape))
    for gradient in cb.polynomial_attention_backward(x, x, x, x, degree=2):
        assert backend.get(gradient).shape == shape


def test_gradients_of_arrays_with_strides(emulated, library, qkv, row_error):
    host = [np.swapaxes(array, 1, 2) for array in qkv(6, lead=(2, 70), d=4, value_dim=4)]
    host = [*host, host[0][..., ::-1]]
    put = library().put
    call = {"is_causal": True, "degree": 3, "scale": 0.1}
    got = cb.polynomial_attention_backward(*map(put, host), **call)
    want = cb.polynomial_attention_backward(*host, **call)
    for on_device, gradient in zip(got, want, strict=True):
        assert row_error(*by_head(on_device.host, gradient)) < 5e-5


def test_what_gradients_on_a_gpu_refuse(emulated, library):
    put = library().put
    x = put(np.zeros((2, 5, 4)))
    with pytest.raises(NotImplementedError, match="attn_mask cannot be honoured on a GPU"):
        cb.polynomial_attention_backward(x, x, x, x, cb.masks.SlidingWindow(2))
    for argument, value in (("on_miss", "error"), ("return_report", True)):
        with pytest.raises(NotImplementedError, match=argument):
            cb.polynomial_attention_backward(x, x, x, x, tol=0.1, **{argument: value})
    with pytest.raises(ValueError, match="grad_output differs in shape from the output"):
        cb.polynomial_attention_backward(x, x, x, put(np.zeros((2, 5, 3))))
    with pytest.raises(TypeError, match="grad_output differs in dtype"):
        cb.polynomial_attention_backward(x, x, x, put(np.zeros((2, 5, 4), np.float32)))
