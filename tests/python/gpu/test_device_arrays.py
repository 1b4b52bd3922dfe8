"""What arrays on a GPU say of themselves, and what is refused; needs neither GPU nor emulation."""

import sys
import types

import numpy as np
import pytest

import convbasis as cb
from convbasis import _core, _device_arrays

NAME = "conv_matmul"


@pytest.fixture
def usable(monkeypatch):
    """A core that can use a GPU, and the calls that reach it."""
    calls = []
    monkeypatch.setattr(_core, "cuda_why_unavailable", lambda: "")
    for name in ("conv_matmul", "conv_attention", "recover_kernels", "row_sums"):
        monkeypatch.setattr(
            _core, f"cuda_{name}", lambda *given, name=name: calls.append((name, *given))
        )
    return calls


@pytest.fixture
def basis(library, usable):
    """Two heads of 3 rows on a GPU, and their library."""
    cupy = library()
    kernels = cupy.put(np.ones((2, 1, 3), np.float32))
    return cb.GpuBasis([[0], [0]], [1, 1], kernels), cupy


def test_a_build_without_a_gpu_says_how_to_get_one(library, monkeypatch):
    monkeypatch.setattr(_core, "cuda_why_unavailable", lambda: "this build has no CUDA: build so")
    x = library().put(np.ones((4, 2), np.float32))
    message = (
        r"\[{}\] {} is on a GPU, which cannot be used: this build has no CUDA: build so; "
        r"expected a NumPy array, or a build with CUDA .*CONVBASIS_CUDA=ON.*; got cupy.ndarray"
    )
    with pytest.raises(NotImplementedError, match=message.format("conv_attention", "query")):
        cb.conv_attention(x, x, x, is_causal=True)
    with pytest.raises(NotImplementedError, match=message.format("recover_basis", "query")):
        cb.recover_basis(x, x, starts=[0])
    with pytest.raises(NotImplementedError, match=message.format("GpuBasis", "kernels")):
        cb.GpuBasis([0, 4, 4, 4], 1, x)


def test_where_elements_lie(library):
    host = np.arange(48, dtype=np.float32).reshape(4, 3, 4)
    cupy = library()
    cupy.ndarray.stream, cupy.ndarray.device = 77, 3
    view = cupy.put(host[::-1, :, ::2], read_only=True)
    array = _device_arrays.device_array(NAME, "x", view)
    assert (array.shape, array.strides, array.dtype) == ((4, 3, 2), (-12, 4, 2), np.float32)
    assert (array.device, array.stream, array.writeable) == (3, 77, False)
    assert array.address == host.ctypes.data + 3 * 12 * 4
    assert array.span() == (host.ctypes.data, host.ctypes.data + 47 * 4)
    native = _device_arrays.collapsed(NAME, "x", array)
    assert native == (array.address, (1, 4, 3, 2), (0, -12, 4, 2), "float32")


def test_dlpack_is_read_from_its_capsule(dlpack_array):
    host = np.arange(12.0).reshape(3, 4)[:, 1::2]
    exporter = dlpack_array(host)
    assert _device_arrays.is_on_device(exporter)
    array = _device_arrays.device_array(NAME, "x", exporter)
    assert (array.address, array.dtype) == (host.ctypes.data, np.float64)
    assert (array.shape, array.strides) == ((3, 2), (4, 2))
    assert exporter.asked == [_device_arrays.LEGACY_DEFAULT]
    references = sys.getrefcount(host)
    del array
    assert sys.getrefcount(host) == references - 1  # the capsule let go
    with pytest.raises(TypeError, match=r"unsupported dtype.*type 0 of 32 bits"):
        _device_arrays.device_array(NAME, "x", dlpack_array(np.zeros(3, np.int32)))


def test_borrowed_memory_goes_back_when_the_work_on_it_is_done(dlpack_array, monkeypatch):
    waits = []
    monkeypatch.setattr(_core, "cuda_why_unavailable", lambda: "")
    monkeypatch.setattr(_core, "cuda_wait", waits.append)
    array = _device_arrays.device_array(NAME, "x", dlpack_array(np.ones(3)))
    assert waits == []
    del array
    assert waits == [(0, _device_arrays.LEGACY_DEFAULT)]


def test_torch_tensors_name_their_current_stream(monkeypatch):
    class Tensor:
        is_cuda, requires_grad, layout, dtype = True, False, "strided", "torch.bfloat16"
        shape, device = (2, 3), types.SimpleNamespace(index=1)
        stride = staticmethod(lambda: (3, 1))
        data_ptr = staticmethod(lambda: 4096)

    torch = types.SimpleNamespace(
        Tensor=Tensor,
        strided="strided",
        is_grad_enabled=lambda: True,
        cuda=types.SimpleNamespace(
            current_stream=lambda device: types.SimpleNamespace(cuda_stream=10 + device.index)
        ),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    tensor = Tensor()
    array = _device_arrays.device_array(NAME, "x", tensor)
    assert (array.package, array.address, array.dtype) == ("torch", 4096, "bfloat16")
    assert (array.device, array.stream, array.itemsize) == (1, 11, 2)
    tensor.requires_grad = True
    with pytest.raises(NotImplementedError, match=r"x requires a gradient, .*detach"):
        _device_arrays.device_array(NAME, "x", tensor)
    tensor.is_cuda = False
    assert not _device_arrays.is_on_device(tensor)


def test_work_goes_to_the_stream_that_the_arrays_name(basis, usable):
    matrices, cupy = basis
    x = cupy.put(np.ones((2, 3), np.float32))
    cb.conv_matmul(matrices, x)
    x.stream = 42
    cb.conv_matmul(matrices, x)
    assert [call[-1] for call in usable] == [(0, 0), (0, 42)]
    matrices.kernels.stream = 43
    with pytest.raises(ValueError, match=r"another stream.*got streams \[42, 43\]"):
        cb.conv_matmul(matrices, x)


def test_mixed_arrays_are_refused(basis, library):
    matrices, cupy = basis
    host = np.ones((2, 3), np.float32)
    elsewhere = cupy.put(host)
    elsewhere.device = 1
    x, double = cupy.put(host), cupy.put(host.astype(float))
    other = library("other").put(host)
    for error, message, call in [
        (TypeError, "basis is not on a GPU", lambda: cb.conv_matmul(cb.decompose(np.eye(3)), x)),
        (ValueError, "basis is on another device", lambda: cb.conv_matmul(matrices, elsewhere)),
        (TypeError, "of another library", lambda: cb.conv_matmul(matrices, other)),
        (TypeError, "differs in dtype", lambda: cb.conv_matmul(matrices, double)),
        (TypeError, "key is not on a GPU", lambda: cb.conv_attention(x, host, x, is_causal=True)),
        (TypeError, "query is not on a GPU", lambda: cb.conv_attention(host, x, x, is_causal=True)),
        (TypeError, "query is on a GPU", lambda: cb.bounded_entries(x, x)),
        (NotImplementedError, "are on a GPU", lambda: cb.conv_matmul(matrices, host)),
        (ValueError, "does not match basis", lambda: cb.conv_matmul(matrices, cupy.put(host.T))),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            call()


def test_outputs_that_cannot_be_written_are_refused(basis, usable):
    matrices, cupy = basis
    x = np.ones((2, 3, 1), np.float32)
    for message, out in [
        ("not on a GPU", x.copy()),
        ("wrong dtype", cupy.put(np.ones((2, 3, 1)))),
        ("wrong shape", cupy.put(x[:, :2].copy())),
        ("read-only", cupy.put(x.copy(), read_only=True)),
        ("overlaps x", cupy.put(x)),
        ("share memory", cupy.put(np.broadcast_to(x[:1].copy(), x.shape))),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            cb.conv_matmul(matrices, cupy.put(x), out=out)
    assert usable == []


def test_what_a_gpu_cannot_honour_is_refused(library, usable):
    cupy = library()
    x = cupy.put(np.ones((4, 2), np.float32))
    basis = cb.recover_basis(x, x, starts=[0, 2])
    good = {"is_causal": True, "basis": basis}
    cb.conv_attention(x, x, x, **good)
    assert [call[0] for call in usable] == ["recover_kernels", "conv_attention"]
    for name, value in [
        ("tol", 0.1),
        ("on_miss", "keep"),
        ("return_report", True),
        ("certify", True),
        ("attn_mask", np.ones((4, 4), bool)),
        ("dropout_p", 0.5),
    ]:
        with pytest.raises(NotImplementedError, match=rf"\[conv_attention\] {name} "):
            cb.conv_attention(x, x, x, **{**good, name: value})
    with pytest.raises(NotImplementedError, match=r"\[conv_attention\] options cannot be honoured"):
        cb.conv_attention(x, x, x, is_causal=True, options=cb.CalibrateOptions())
    with pytest.raises(ValueError, match="options is given together with basis"):
        cb.conv_attention(x, x, x, options=cb.RecoverOptions(), **good)
    with pytest.raises(NotImplementedError, match=r"\[exact_attention\] attn_mask cannot"):
        cb.exact_attention(x, x, x, cb.masks.SlidingWindow(1))
    with pytest.raises(ValueError, match="differs in scale"):
        cb.conv_attention(x, x, x, scale=2.0, **good)
    for attribute in ("exp", "to_dense", "strips", "_state"):
        with pytest.raises(NotImplementedError, match="are on a GPU, where this is not computed"):
            getattr(basis, attribute)()
    with pytest.raises(NotImplementedError, match="are on a GPU"):
        _ = basis.differences
    assert repr(basis) == "GpuBasis(shape=(4, 4), num_bases=2, dtype=float32)"
    assert basis == basis
    assert len(usable) == 2


def test_leading_dimensions_that_need_a_copy_are_refused(library):
    x = library().put(np.ones((2, 3, 4, 5, 6))[:, ::2])
    array = _device_arrays.device_array(NAME, "x", x)
    with pytest.raises(ValueError, match="do not collapse"):
        _device_arrays.collapsed(NAME, "x", array)


@pytest.mark.parametrize(
    ("starts", "fault"),
    [
        ([0, 2, 1, 9], "does not increase"),
        ([0, 9, 9, 12], "has columns outside the matrix; expected 0 to 8, padded with 9; got 12"),
        ([-1, 9, 9], "has columns outside"),
        ([3, 4, 9], "leaves out column 0, .* expected 0 first, for each head; got 3"),
        ([9], "leaves out column 0"),
        ([], "leaves out column 0"),
        ([[0, 3]], "does not match kernels"),
    ],
)
def test_given_starts_have_to_be_starts(starts, fault):
    x = np.ones((9, 2))
    with pytest.raises(ValueError, match=rf"\[recover_basis\] starts {fault}"):
        cb.recover_basis(x, x, starts=starts)
    with pytest.raises(ValueError, match="options is given together with starts"):
        cb.recover_basis(x, x, starts=[0], options=cb.RecoverOptions())


def test_host_arrays_are_no_kernels_of_a_gpu():
    with pytest.raises(TypeError, match="kernels is not on a GPU; expected an array on one"):
        cb.GpuBasis([0], 1, np.ones((1, 4)))


def test_the_array_on_a_gpu_is_named(library):
    host, other = np.ones((4, 2)), library().put(np.ones((4, 2)))
    for at, name in enumerate(["query", "key", "value"]):
        arrays = [host] * 3
        arrays[at] = other
        with pytest.raises(NotImplementedError, match=f"{name} is on a GPU, which cannot be used"):
            cb.conv_attention(*arrays, is_causal=True)


def test_given_starts_are_those_that_would_be_found():
    p = cb.problems.conv_problem(n=64, head_dim=8, num_bases=3)
    found = cb.recover_basis(p.query, p.key, scale=p.scale)
    assert cb.recover_basis(p.query, p.key, starts=found.starts, scale=p.scale) == found
