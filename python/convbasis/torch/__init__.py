"""convbasis for PyTorch: attention of tensors, with gradients, under torch.compile, as a module.

Importing convbasis does not import this; ``import convbasis.torch`` does, and so does the first
use of ``convbasis.torch``. It needs PyTorch: ``pip install torch``.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"[convbasis.torch] PyTorch cannot be imported ({error}); expected PyTorch 2.4 or newer: "
        "run 'pip install torch'; got a Python without it"
    ) from error

from .attention import conv_attention
from .module import ConvAttention

__all__ = ["ConvAttention", "conv_attention"]
