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
from convbasis import _core


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
    if name == "cupy":
        return types.SimpleNamespace(put=module.asarray, get=module.asnumpy, ndarray=module.ndarray)
    if not module.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return types.SimpleNamespace(
        put=lambda host: module.from_numpy(np.ascontiguousarray(host)).cuda(),
        get=lambda tensor: tensor.cpu().numpy(),
        ndarray=module.Tensor,
    )


@pytest.fixture(
    params=[
        "emulated",
        pytest.param("torch", marks=pytest.mark.gpu),
        pytest.param("cupy", marks=pytest.mark.gpu),
    ]
)
def backend(request):
    """put(host) gives an array on the device, get(array) brings it back, ndarray is its type."""
    if request.param != "emulated":
        return gpu_library(request.param)
    request.getfixturevalue("emulated")
    return request.getfixturevalue("library")()
