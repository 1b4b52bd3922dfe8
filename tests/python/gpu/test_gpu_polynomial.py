"""polynomial_attention of arrays on a GPU, against the CPU's and exact attention."""

import numpy as np
import pytest

import convbasis as cb

TOLERANCE = {np.float64: 1e-11, np.float32: 2e-5, np.float16: 4e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_degree_gives_what_the_cpu_gives(backend, qkv, row_error, dtype, is_causal):
    host = qkv(300, lead=(2, 4), kv_heads=2, head_dim=4, value_dim=5, dtype=dtype)
    call = {
        "enable_gqa": True,
        "is_causal": is_causal,
        "scale": 0.1,
        "degree": 4,
        "return_lse": True,
    }
    got, lse = cb.polynomial_attention(*(backend.put(array) for array in host), **call)
    want, expected = cb.polynomial_attention(*host, **call)
    assert isinstance(got, backend.ndarray)
    assert row_error(backend.get(got), want) < TOLERANCE[dtype]
    assert row_error(backend.get(lse)[..., None], expected[..., None]) < TOLERANCE[dtype]


@pytest.mark.parametrize("on_miss", ["exact", "keep"])
def test_a_tolerance_holds_whatever_heads_are_computed_by(backend, qkv, on_miss):
    q, k, v = qkv(700, lead=(3,), head_dim=4, value_dim=5, dtype=np.float64)
    q *= np.array([0.05, 0.3, 1.0])[:, None, None]
    call = {"is_causal": True}
    got = cb.polynomial_attention(
        *(backend.put(array) for array in (q, k, v)), tol=1e-3, on_miss=on_miss, **call
    )
    error = np.abs(backend.get(got) - cb.exact_attention(q, k, v, **call)).max()
    assert error <= 2e-3 / (1 - 1e-3) * np.abs(v).max()


@pytest.mark.parametrize(("argument", "value"), [("on_miss", "error"), ("return_report", True)])
def test_what_a_gpu_cannot_honour_is_refused(backend, qkv, argument, value):
    arrays = [backend.put(array) for array in qkv(20, head_dim=2)]
    with pytest.raises(NotImplementedError, match=argument):
        cb.polynomial_attention(*arrays, tol=0.1, **{argument: value})
