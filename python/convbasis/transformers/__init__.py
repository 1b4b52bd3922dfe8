"""convbasis inside Hugging Face transformers, as ``attn_implementation="conv_basis"``.

`register` makes the name known; models that are loaded with it, or switched to it by
``model.set_attn_implementation("conv_basis")``, compute long prefills by `conv_attention`, and
everything else exactly. `statistics` tells what came of it, layer by layer and head by head.

Importing convbasis does not import this; ``import convbasis.transformers`` does, and so does the
first use of ``convbasis.transformers``. It needs PyTorch and transformers 5:
``pip install 'convbasis[transformers]'``.
"""

try:
    from transformers import AttentionMaskInterface as _AttentionMaskInterface  # noqa: F401
    from transformers.masking_utils import causal_mask_function as _mask_function  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"[convbasis.transformers] transformers cannot be imported ({error}); expected PyTorch and "
        "transformers 5 or newer: run \"pip install 'convbasis[transformers]'\"; got a Python "
        "without them"
    ) from error

from .registration import register, statistics
from .statistics import Statistics

__all__ = ["Statistics", "register", "statistics"]
