"""Conv-basis attention: fast attention through convolution bases of the logits, with known error.

Start with `conv_attention`; `exact_attention` is the same without any approximation, and
`conv_attention_backward` and `exact_attention_backward` are their gradients. Conventions of every
function:

- Arrays are NumPy arrays of shape ``(..., seq, dim)`` with any number of leading dimensions,
  usually ``(batch, heads, seq, dim)``, and any strides.
- `conv_matmul`, `recover_basis`, `conv_attention`, `exact_attention` and the gradients of both also
  take arrays on a GPU (torch, CuPy, Numba, JAX) in a build with CUDA, and give back the same kind.
  NumPy arrays never move to one.
- ``is_causal`` is top-left aligned: query i sees keys 0..i.
- float32 and float64 are computed in their own type; float16 and bfloat16 in float32, and cast
  back; on a GPU, `exact_attention` rounds its weights to them. Other types, mixed types, wrong
  shapes and NaN or infinity raise, before anything is written. An argument that cannot be honoured
  raises; none is ignored.
- ``num_threads=None`` means all cores this process may use. The environment is not read, and
  results do not depend on the number.

``convbasis.torch`` has the same for PyTorch, with gradients; ``convbasis.transformers`` plugs it
into Hugging Face models. Both are imported when first used.

Source of the method: Liang, Liu, Shi, Song, Xu, Yin et al., *Conv-Basis: A New Paradigm for
Efficient Attention Inference and Gradient Computation in Transformers*, arXiv 2405.05219.
"""

import importlib
from typing import Any

try:
    from . import _core
except ImportError as error:
    raise ImportError(
        f"[convbasis] the compiled part, convbasis._core, cannot be loaded ({error}); expected an "
        "installed package: run 'pip install .' in the source tree; got "
        f"the package at {__path__[0]!r}"
    ) from error

from . import masks, problems, reference
from ._entries_report import BoundedEntries
from ._sparsified import Sparsified
from .attention import conv_attention, exact_attention
from .backward import conv_attention_backward, exact_attention_backward
from .basis import ConvBasis
from .bounded_entries import bounded_entries
from .calibrate import CalibrateOptions
from .calibrated_report import CalibratedReport
from .cost_model import CostModel, break_even, cost_model, set_cost_model
from .decompose import decompose
from .device import build_info, cuda_available
from .gpu_basis import GpuBasis
from .polynomial import polynomial_attention
from .polynomial_backward import polynomial_attention_backward
from .polynomial_report import PolynomialBackwardReport, PolynomialReport
from .recover import RecoverOptions, recover_basis
from .report import BackwardReport, Report, ToleranceMissed
from .sparsify import sparsify_features
from .toeplitz import conv_matmul, toeplitz_matmul
from .training import attention_loss

__version__: str = _core.build_info()["version"]

__all__ = [
    "BackwardReport",
    "BoundedEntries",
    "CalibrateOptions",
    "CalibratedReport",
    "ConvBasis",
    "CostModel",
    "GpuBasis",
    "PolynomialBackwardReport",
    "PolynomialReport",
    "RecoverOptions",
    "Report",
    "Sparsified",
    "ToleranceMissed",
    "__version__",
    "attention_loss",
    "bounded_entries",
    "break_even",
    "build_info",
    "conv_attention",
    "conv_attention_backward",
    "conv_matmul",
    "cost_model",
    "cuda_available",
    "decompose",
    "exact_attention",
    "exact_attention_backward",
    "masks",
    "polynomial_attention",
    "polynomial_attention_backward",
    "problems",
    "recover_basis",
    "reference",
    "set_cost_model",
    "sparsify_features",
    "toeplitz_matmul",
]


def __getattr__(name: str) -> Any:
    """What needs another library is imported when it is first used."""
    if name in ("sklearn", "torch", "transformers"):
        return importlib.import_module(f"convbasis.{name}")
    raise AttributeError(f"module 'convbasis' has no attribute {name!r}")
