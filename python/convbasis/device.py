"""What this build can do and where it runs."""

from __future__ import annotations

from typing import Any

from . import _core


def build_info() -> dict[str, Any]:
    """Version, compiler, instruction sets built and used, BLAS, FFT and CUDA of this build.

    Returns
    -------
    dict

    Examples
    --------
    >>> import convbasis as cb
    >>> cb.build_info()["version"] == cb.__version__
    True
    """
    return dict(_core.build_info())


def cuda_available() -> bool:
    """True when this build has CUDA and a GPU is usable in this process; never raises."""
    return bool(_core.build_info()["cuda"])
