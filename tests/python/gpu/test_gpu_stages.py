"""Stages of arrays on a GPU, against the CPU's."""

import ctypes
import sys
import types

import numpy as np
import pytest

import convbasis as cb
from convbasis import _device_arrays

TOLERANCE = {np.float64: 1e-12, np.float32: 2e-5, np.float16: 4e-3}


def on_gpu(backend, basis):
    return cb.GpuBasis(
        basis.starts,
        basis.num_bases,
        backend.put(basis.kernels),
        num_columns=basis.num_columns,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(
    ("n", "columns", "lead"), [(1, 1, ()), (33, 33, (3,)), (130, 97, (2, 3)), (700, 700, ())]
)
def test_products_are_those_of_the_cpu(
    backend, random_basis, row_error, n, columns, lead, transpose, dtype
):
    compute = np.float64 if dtype == np.float64 else np.float32
    basis = random_basis(n, 4, lead=lead, num_columns=columns, dtype=compute)
    x = np.random.default_rng(1).normal(size=(*lead, n if transpose else columns, 5)).astype(dtype)
    got = cb.conv_matmul(on_gpu(backend, basis), backend.put(x), transpose=transpose)
    assert isinstance(got, backend.ndarray)
    want = cb.conv_matmul(basis, x, transpose=transpose)
    assert backend.get(got).dtype == dtype
    assert row_error(backend.get(got), want) < TOLERANCE[dtype]


def test_vectors_and_row_sums(backend, random_basis, row_error):
    basis = random_basis(65, 5, lead=(2,))
    x = np.random.default_rng(2).normal(size=(2, 65))
    got = cb.conv_matmul(on_gpu(backend, basis), backend.put(x))
    assert row_error(backend.get(got), cb.conv_matmul(basis, x)) < 1e-12
    sums = on_gpu(backend, basis).row_sums()
    assert row_error(backend.get(sums), basis.row_sums()) < 1e-12


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("kv_heads", "n_kv"), [(4, 130), (2, 130), (1, 200), (4, 70)])
def test_attention_is_that_of_the_cpu(backend, qkv, row_error, dtype, kv_heads, n_kv):
    """Kernels of given starts, then attention through them, with grouped heads and odd lengths."""
    n, heads = 130, 4
    host = qkv(n, lead=(2, heads), n_kv=n_kv, kv_heads=kv_heads, value_dim=5, dtype=dtype)
    starts = np.broadcast_to([0, 17, 64, n], (2, heads, 4))
    call = {"enable_gqa": kv_heads != heads, "scale": 0.3}
    basis = cb.recover_basis(*host[:2], starts=starts, **call)
    query, key, value = (backend.put(array) for array in host)
    on_device = cb.recover_basis(query, key, starts=starts, **call)
    assert isinstance(on_device, cb.GpuBasis)
    assert on_device.shape == basis.shape == (2, heads, n, min(n, n_kv))
    assert np.array_equal(on_device.num_bases, basis.num_bases)
    assert on_device.scale == basis.scale
    kernels = backend.get(on_device.kernels)[..., :3, :]
    assert row_error(kernels, basis.kernels[..., :3, :]) < TOLERANCE[dtype]

    got, lse = cb.conv_attention(
        query, key, value, is_causal=True, basis=on_device, return_lse=True, **call
    )
    want, expected = cb.conv_attention(*host, is_causal=True, basis=basis, return_lse=True, **call)
    assert isinstance(got, backend.ndarray)
    assert isinstance(lse, backend.ndarray)
    assert row_error(backend.get(got), want) < TOLERANCE[dtype]
    assert row_error(backend.get(lse)[..., None], expected[..., None]) < 10 * TOLERANCE[dtype]


@pytest.mark.parametrize("search", ["scan", "bisect"])
@pytest.mark.parametrize("num_bases", [None, 2, 5])
def test_strips_that_are_looked_for_are_those_of_the_cpu(backend, row_error, num_bases, search):
    p = cb.problems.conv_problem(n=150, head_dim=8, num_bases=3, batch=(2, 3))
    call = {"options": cb.RecoverOptions(num_bases=num_bases, search=search), "scale": p.scale}
    query, key, value = (backend.put(array) for array in (p.query, p.key, p.value))
    basis = cb.recover_basis(p.query, p.key, **call)
    found = cb.recover_basis(query, key, **call)
    for part in ("starts", "num_bases", "complete"):
        assert np.array_equal(getattr(found, part), getattr(basis, part))
    assert row_error(backend.get(found.kernels), basis.kernels) < 1e-12
    want = cb.conv_attention(p.query, p.key, p.value, is_causal=True, **call)
    got = cb.conv_attention(query, key, value, is_causal=True, **call)
    assert row_error(backend.get(got), want) < 1e-12


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("exact_heads", [(), (1, 2, 6), range(8)])
def test_heads_with_too_many_strips_are_computed_exactly(
    backend, qkv, row_error, kv_heads, exact_heads
):
    """Grouped heads, some of noise: these go through exact attention, the lse of all is there."""
    p = cb.problems.conv_problem(n=260, head_dim=8, num_bases=2, batch=(2, 4))
    noise = qkv(260, 8, lead=(2, 4))
    host = [array.copy() for array in (p.query, p.key, p.value)]
    if kv_heads < 4:
        host[1:] = (array[:, ::2].copy() for array in host[1:])
        host[0] = np.repeat(host[0][:, ::2], 2, axis=1)
    for head in exact_heads:
        host[0].reshape(8, 260, 8)[head] = 3.0 * noise[0].reshape(8, 260, 8)[head]
    call = {"is_causal": True, "scale": p.scale, "enable_gqa": kv_heads != 4}
    basis = cb.recover_basis(*host[:2], scale=p.scale, enable_gqa=kv_heads != 4)
    assert np.array_equal(np.flatnonzero(~basis.complete), exact_heads)
    want, expected = cb.conv_attention(*host, return_lse=True, **call)
    arrays = [backend.put(array) for array in host]
    got, lse = cb.conv_attention(*arrays, return_lse=True, **call)
    assert row_error(backend.get(got), want) < 1e-12
    assert row_error(backend.get(lse)[..., None], expected[..., None]) < 1e-12
    assert row_error(backend.get(cb.conv_attention(*arrays, **call)), want) < 1e-12


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n_kv", [40, 70])
def test_exact_attention_is_that_of_the_cpu(backend, qkv, row_error, dtype, n_kv):
    host = qkv(70, lead=(2, 4), n_kv=n_kv, kv_heads=2, value_dim=5, dtype=dtype)
    for is_causal in (True, False):
        call = {"is_causal": is_causal, "enable_gqa": True, "scale": 0.3, "return_lse": True}
        got = cb.exact_attention(*(backend.put(array) for array in host), **call)
        want = cb.exact_attention(*host, **call)
        assert isinstance(got[0], backend.ndarray)
        assert row_error(backend.get(got[0]), want[0]) < TOLERANCE[dtype]
        assert row_error(backend.get(got[1])[..., None], want[1][..., None]) < TOLERANCE[dtype]


def test_out_is_written_in_place(backend, qkv, row_error):
    host = qkv(40, lead=(3,))
    query, key, value = (backend.put(array) for array in host)
    starts = np.tile([0, 9], (3, 1))
    basis = cb.recover_basis(query, key, starts=starts)
    out = backend.put(np.zeros((3, 40, 8)))
    if "jax" in sys.modules and isinstance(out, sys.modules["jax"].Array):
        pytest.skip("arrays of jax cannot be written")
    result = cb.conv_attention(query, key, value, is_causal=True, basis=basis, out=out)
    assert result is out
    of_host = cb.recover_basis(*host[:2], starts=starts)
    want = cb.conv_attention(*host, is_causal=True, basis=of_host)
    assert row_error(backend.get(out), want) < 1e-12


@pytest.mark.parametrize("shape", [(0, 3, 8, 4), (2, 0, 8, 4), (2, 3, 0, 4)])
def test_empty_arrays(backend, shape):
    x = backend.put(np.zeros(shape))
    basis = cb.GpuBasis(
        np.zeros((*shape[:2], 0), int),
        np.zeros(shape[:2], int),
        backend.put(np.zeros((*shape[:2], 0, shape[2]))),
    )
    assert backend.get(cb.conv_matmul(basis, x)).shape == shape


def test_arrays_with_strides_are_read_in_place(emulated, library, random_basis, row_error):
    backend = library()
    basis = random_basis(50, 3, lead=(2, 3))
    wide = np.random.default_rng(3).normal(size=(2, 50, 3, 14))
    x = wide.transpose(0, 2, 1, 3)[..., ::-2]  # heads after seq, every other channel, reversed
    out = np.full((2, 50, 3, 7), np.nan).transpose(0, 2, 1, 3)
    cb.conv_matmul(on_gpu(backend, basis), backend.put(x), out=backend.put(out))
    assert row_error(out, cb.conv_matmul(basis, x)) < 1e-12


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_that_cannot_be_written_come_back_by_dlpack(
    emulated, dlpack_array, monkeypatch, random_basis, row_error, dtype
):
    taken = []

    class Immutable(dlpack_array):
        """As JAX has them: read by DLPack, made of memory that is taken over by it."""

        def __init__(self, source):
            self.source = source
            super().__init__(source)

        def __dlpack__(self, stream=None):
            return self.source.__dlpack__(stream=stream)

    def from_dlpack(memory):
        assert memory.__dlpack_device__() == (2, 0)
        taken.append(memory)
        return Immutable(memory)

    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(from_dlpack=from_dlpack))
    Immutable.__module__ = dlpack_array.__module__ = "jax"
    basis = random_basis(40, 3, dtype=np.dtype(dtype))
    x = np.random.default_rng(4).normal(size=(40, 5)).astype(dtype)
    matrices = cb.GpuBasis(basis.starts, basis.num_bases, dlpack_array(basis.kernels.copy()))
    got = cb.conv_matmul(matrices, dlpack_array(x))
    assert isinstance(got, Immutable)
    where = _device_arrays.device_array("test", "got", got)
    assert (where.shape, where.dtype, where.address) == ((40, 5), dtype, taken[0].address())
    memory = (ctypes.c_char * (x.itemsize * x.size)).from_address(where.address)
    assert row_error(np.frombuffer(memory, dtype).reshape(40, 5), cb.conv_matmul(basis, x)) < 2e-5
    for named in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError, match=next(iter(named))):
            taken[0].__dlpack__(**named)
