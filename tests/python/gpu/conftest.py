"""Arrays on a GPU, and arrays that only say so: the same tests run on both.

The emulated device is the host. CONVBASIS_EMULATED names the folder of its module, which
`cmake --build <folder> --target _emulated` makes.
"""

import contextlib
import importlib.util
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import convbasis as cb
from convbasis import _core, _device_arrays


class Array:
    """Host memory with `__cuda_array_interface__`, as CuPy has it."""

    stream = None
    device = 0

    def __init__(self, host, *, read_only=False):
        self.host, self.read_only = host, read_only

    @property
    def __cuda_array_interface__(self):
        return {
            "version": 3,
            "shape": self.host.shape,
            "strides": self.host.strides,
            "typestr": self.host.dtype.str,
            "data": (self.host.ctypes.data, self.read_only),
            "stream": self.stream,
        }

    def __dlpack_device__(self):
        return 2, self.device


class DLPackArray:
    """Host memory that says by DLPack alone that a GPU holds it."""

    def __init__(self, host):
        self.host, self.asked = host, []

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, stream=None):
        self.asked.append(stream)
        return self.host.__dlpack__()


@pytest.fixture
def library(monkeypatch):
    """A library by that name whose arrays pretend to be on a GPU."""

    def make(name="cupy"):
        kind = type("ndarray", (Array,), {"__module__": name})
        module = types.SimpleNamespace(
            ndarray=kind,
            put=lambda host, **more: kind(np.asarray(host), **more),
            get=lambda array: array.host,
            empty=lambda shape, dtype: kind(np.empty(shape, dtype)),
            cuda=types.SimpleNamespace(Device=lambda _: contextlib.nullcontext()),
        )
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return make


@pytest.fixture
def dlpack_array():
    return DLPackArray


@pytest.fixture
def emulated(monkeypatch):
    """The GPU's functions of the core, on the emulated device."""
    folder = os.environ.get("CONVBASIS_EMULATED", "")
    found = sorted(Path(folder).glob("_emulated*.so")) if folder else []
    if not found:
        pytest.skip("CONVBASIS_EMULATED names no folder with the module _emulated")
    spec = importlib.util.spec_from_file_location("_emulated", found[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in dir(module):
        if name.startswith("cuda_") or name == "DeviceMemory":
            monkeypatch.setattr(_core, name, getattr(module, name))


def gpu_library(name):
    """put() and get() of a library that really uses a GPU; skips where there is none."""
    module = pytest.importorskip(name, reason=f"{name} is not installed")
    if not cb.cuda_available():
        pytest.skip(cb.build_info()["cuda_missing"])
    return globals()[f"by_{name}"](module)


def by_torch(torch):
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return types.SimpleNamespace(
        put=lambda host: torch.from_numpy(np.ascontiguousarray(host)).cuda(),
        get=lambda tensor: tensor.cpu().numpy(),
        ndarray=torch.Tensor,
    )


def by_cupy(cupy):
    return types.SimpleNamespace(put=cupy.asarray, get=cupy.asnumpy, ndarray=cupy.ndarray)


def by_numba(numba):
    cuda = importlib.import_module("numba.cuda")
    if not cuda.is_available():
        pytest.skip("this numba has no CUDA")
    kind = cuda.cudadrv.devicearray.DeviceNDArray
    return types.SimpleNamespace(
        put=cuda.to_device, get=lambda array: array.copy_to_host(), ndarray=kind
    )


def by_jax(jax):
    if jax.default_backend() != "gpu":
        pytest.skip("this jax has no CUDA")
    jax.config.update("jax_enable_x64", True)
    return types.SimpleNamespace(put=jax.numpy.asarray, get=np.asarray, ndarray=jax.Array)


LIBRARIES = [
    pytest.param(name, marks=pytest.mark.gpu) for name in ("torch", "cupy", "numba", "jax")
]


@pytest.fixture(params=["emulated", *LIBRARIES])
def backend(request):
    """put(host) gives an array on the device, get(array) brings it back, ndarray is its type."""
    if request.param != "emulated":
        return gpu_library(request.param)
    request.getfixturevalue("emulated")
    return request.getfixturevalue("library")()


@pytest.fixture
def cuda_torch():
    """torch, where it has a GPU."""
    gpu_library("torch")
    return sys.modules["torch"]


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """The device of tensors whose attention goes to the GPU's stages; emulated, the host itself."""
    torch = pytest.importorskip("torch")
    if request.param == "cuda":
        gpu_library("torch")
        return torch.device("cuda", torch.cuda.current_device())
    request.getfixturevalue("emulated")
    operators = importlib.import_module("convbasis.torch._operators")

    def is_on_device(value):
        return isinstance(value, torch.Tensor)

    def of_tensor(function, name, tensor, torch):
        dtype = _device_arrays.dtype_named(str(tensor.dtype).removeprefix("torch."))
        where = tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride())
        return _device_arrays.DeviceArray(tensor, "torch", *where, dtype, 0, 0)

    monkeypatch.setattr(operators, "is_on_device", is_on_device)
    monkeypatch.setattr(_device_arrays, "is_on_device", is_on_device)
    monkeypatch.setattr(_device_arrays, "of_tensor", of_tensor)
    return torch.device("cpu")


ERRORS = pytest.StashKey()


@pytest.fixture
def errors_by_stage(request, device):
    """Where errors are kept for the table at the end: of a device, by stage and type."""
    tables = request.config.stash.setdefault(ERRORS, {})
    name = "emulated device"
    if device.type == "cuda":
        name = sys.modules["torch"].cuda.get_device_name(device)
    return tables.setdefault(name, {})


def pytest_terminal_summary(terminalreporter, config):
    """The table of `test_errors_by_stage.py`."""
    for device, stages in config.stash.get(ERRORS, {}).items():
        types_seen = sorted({kind for errors in stages.values() for kind in errors})
        terminalreporter.section(f"largest errors against the oracle, {device}")
        terminalreporter.line("".join([" " * 34, *(f"{kind:>10}" for kind in types_seen)]))
        for stage, errors in stages.items():
            cells = (f"{errors[kind]:10.1e}" if kind in errors else " " * 10 for kind in types_seen)
            terminalreporter.line("".join([f"{stage:<34}", *cells]))
