"""The oracle: every result of the library in plain NumPy, float64 and dense.

Nothing here is fast and nothing here is compiled: the modules are meant to be read beside the
paper and to be compared against. Matrices are formed entry by entry, logits included, so that
memory and time are O(n^2) or worse.

Notation, used in every module. Indices start at 0: ``i`` a query row, ``j`` a key column,
``t = i - j`` the lag, ``r`` a strip. ``n`` rows, ``d`` the head dimension, ``k`` strips,
``T`` the window, ``H`` the logits ``scale * Q K^T``.

======================== =====================================================================
``attention``            softmax attention, causal or not, with the log-sum-exp of every row
``conv``                 ``conv(a, m)``, bases in strip form and in difference form, exp, row sums
``recover``              the starts and kernels of a basis from a few columns of the logits
``conv_attention``       attention through a basis
``backward``             gradients of attention, exact and through a basis
``training``             the paper's training problem: its loss and gradient
``bounds``               what a deviation of the logits can do to the output
``polynomial``           polynomials of least relative error in place of exp
``features``             features whose inner product is a polynomial of the logit
``polynomial_attention`` attention with a polynomial in place of exp
``bounded_entries``      whether an input's entries are small enough for that
``masked_product``       ``(W o U1 U2^T) V`` for masks with structure, without an n x n array
``calibrate``            exact keys, and a convolution fitted to the others
``sparsify``             a few reweighted columns that stand for all of a wide matrix
======================== =====================================================================

References
----------
Liang, Liu, Shi, Song, Xu, Yin et al., *Conv-Basis: A New Paradigm for Efficient Attention
Inference and Gradient Computation in Transformers*, arXiv:2405.05219, Findings of EMNLP 2025.
Called "Conv-Basis" in the docstrings.

Alman and Song, *Fast Attention Requires Bounded Entries*, arXiv:2302.13214. Called "AS23".

Deng, Mahadevan and Song, *Randomized and Deterministic Attention Sparsification Algorithms for
Over-parameterized Feature Dimension*, arXiv:2304.04397. Called "DMS23".
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
from .bounded_entries import BoundedEntries, bounded_entries
from .bounds import (
    a_posteriori_bound,
    is_non_degenerate,
    logit_deviation,
    non_degeneracy,
    theorem_bound,
)
from .calibrate import (
    CalibratedHead,
    block_lag_bins,
    calibrated_attention,
    draw_keys,
    fit_far,
    heavy_keys,
    rank_key_blocks,
    sample_rows,
    single_lags,
    take_largest,
    uniform_draw,
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
from .features import (
    feature_count,
    key_features,
    multi_indices,
    query_features,
    shifted_polynomial,
)
from .masked_product import (
    causal_product,
    distinct_columns_product,
    distinct_rows_product,
    longformer_product,
    masked_product,
    row_change_product,
    row_window_product,
    sliding_window_product,
)
from .polynomial import (
    exp_polynomial,
    polynomial_degree,
    polynomial_error,
    taylor_polynomial,
)
from .polynomial_attention import (
    PolynomialAttention,
    large_entries,
    mean_key,
    polynomial_attention,
    polynomial_bound,
    row_middles,
)
from .recover import recover, recover_logits, search_bisect, search_scan
from .sparsify import (
    barrier_epsilon,
    barrier_sample,
    chernoff_columns,
    count_sketch,
    leverage_sample,
    leverage_scores,
    sketched_scores,
    softmax_change,
    sparsified_bound,
    spectral_epsilon,
    spectral_range,
    whitening,
)
from .training import attention_loss

__all__ = [
    "Basis",
    "BoundedEntries",
    "CalibratedHead",
    "PolynomialAttention",
    "a_posteriori_bound",
    "attention",
    "attention_backward",
    "attention_logits",
    "attention_loss",
    "attention_weights",
    "barrier_epsilon",
    "barrier_sample",
    "basis_to_dense",
    "block_lag_bins",
    "bounded_entries",
    "calibrated_attention",
    "causal_product",
    "chernoff_columns",
    "conv",
    "conv_attention",
    "conv_attention_backward",
    "conv_logits",
    "count_sketch",
    "decompose",
    "differences",
    "differences_to_dense",
    "distinct_columns_product",
    "distinct_rows_product",
    "draw_keys",
    "exp_basis",
    "exp_differences",
    "exp_polynomial",
    "feature_count",
    "fit_far",
    "heavy_keys",
    "is_non_degenerate",
    "kernel_gradient",
    "key_features",
    "large_entries",
    "leverage_sample",
    "leverage_scores",
    "logit_deviation",
    "logit_gradient",
    "longformer_product",
    "masked_product",
    "masked_softmax",
    "mean_key",
    "multi_indices",
    "non_degeneracy",
    "polynomial_attention",
    "polynomial_bound",
    "polynomial_degree",
    "polynomial_error",
    "query_features",
    "rank_key_blocks",
    "recover",
    "recover_logits",
    "row_change_product",
    "row_middles",
    "row_sums",
    "row_window_product",
    "sample_rows",
    "search_bisect",
    "search_scan",
    "shifted_polynomial",
    "single_lags",
    "sketched_scores",
    "sliding_window_product",
    "softmax_change",
    "sparsified_bound",
    "spectral_epsilon",
    "spectral_range",
    "take_largest",
    "taylor_polynomial",
    "theorem_bound",
    "uniform_draw",
    "visible",
    "whitening",
]
