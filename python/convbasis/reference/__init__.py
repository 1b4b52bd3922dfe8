"""The oracle: every result of the library in plain NumPy, float64 and dense.

Nothing here is fast and nothing here is compiled: the modules are meant to be read beside the
paper and to be compared against. Matrices are formed entry by entry, logits included, so that
memory and time are O(n^2) or worse.

Notation, used in every module. Indices start at 0: ``i`` a query row, ``j`` a key column,
``t = i - j`` the lag, ``r`` a strip. ``n`` rows, ``d`` the head dimension, ``k`` strips,
``T`` the window, ``H`` the logits ``scale * Q K^T``.

=================== =========================================================================
``attention``       softmax attention, causal or not, with the log-sum-exp of every row
``conv``            ``conv(a, m)``, bases in strip form and in difference form, exp, row sums
``recover``         the starts and kernels of a basis from a few columns of the logits
``conv_attention``  attention through a basis
``backward``        gradients of attention, exact and through a basis
``training``        the paper's training problem: its loss and gradient
``bounds``          what a deviation of the logits can do to the output
=================== =========================================================================

References
----------
Liang, Liu, Shi, Song, Xu, Yin et al., *Conv-Basis: A New Paradigm for Efficient Attention
Inference and Gradient Computation in Transformers*, arXiv:2405.05219, Findings of EMNLP 2025.
Called "Conv-Basis" in the docstrings.
"""

from .attention import (
    attention,
    attention_logits,
    attention_weights,
    masked_softmax,
    visible,
)
from .backward import (
    attention_backward,
    conv_attention_backward,
    kernel_gradient,
    logit_gradient,
)
from .bounds import (
    a_posteriori_bound,
    is_non_degenerate,
    logit_deviation,
    non_degeneracy,
    theorem_bound,
)
from .conv import (
    Basis,
    basis_to_dense,
    conv,
    decompose,
    differences,
    differences_to_dense,
    exp_basis,
    exp_differences,
    row_sums,
)
from .conv_attention import conv_attention, conv_logits
from .recover import recover, recover_logits, search_bisect, search_scan
from .training import attention_loss

__all__ = [
    "Basis",
    "a_posteriori_bound",
    "attention",
    "attention_backward",
    "attention_logits",
    "attention_loss",
    "attention_weights",
    "basis_to_dense",
    "conv",
    "conv_attention",
    "conv_attention_backward",
    "conv_logits",
    "decompose",
    "differences",
    "differences_to_dense",
    "exp_basis",
    "exp_differences",
    "is_non_degenerate",
    "kernel_gradient",
    "logit_deviation",
    "logit_gradient",
    "masked_softmax",
    "non_degeneracy",
    "recover",
    "recover_logits",
    "row_sums",
    "search_bisect",
    "search_scan",
    "theorem_bound",
    "visible",
]
