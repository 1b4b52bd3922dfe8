"""Feature sparsification as a feature selector of scikit-learn.

Importing convbasis does not import this; ``import convbasis.sklearn`` does, and so does the first
use of ``convbasis.sklearn``. It needs scikit-learn: ``pip install scikit-learn``.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

try:
    from scipy.sparse import csr_array
    from sklearn.base import BaseEstimator
    from sklearn.feature_selection import SelectorMixin
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"[convbasis.sklearn] scikit-learn cannot be imported ({error}); expected scikit-learn 1.6 "
        "or newer: run 'pip install scikit-learn'; got a Python without it"
    ) from error

from . import _validate
from .sparsify import sparsify_features

__all__ = ["AttentionColumnSelector"]

_KINDS: dict[str, Any] = {"accept_sparse": ("csr", "csc"), "dtype": (np.float64, np.float32)}


class AttentionColumnSelector(SelectorMixin, BaseEstimator):
    """A few reweighted features that keep the inner products of the samples.

    ``fit`` is `convbasis.sparsify_features`: rows of X are samples, the rows of an attention, and
    columns are features. Features are selected and multiplied by weights, so that ``Y Y^T`` of the
    transformed samples is within a factor of ``1 - epsilon`` and ``1 + epsilon`` of ``X X^T``.
    There have to be at least as many features as samples, and many more for anything to be left
    out. For other samples than those of ``fit`` nothing is promised.

    Parameters
    ----------
    method : {"leverage", "bss"}
    num_columns : int, optional
        At most so many features.
    epsilon : float, optional
        In place of `num_columns`; 0.5 if neither is given.
    delta : float
    scores : {"auto", "exact", "sketched"}
    num_threads : int, optional
        Those of `sparsify_features`.
    random_state : int, numpy.random.RandomState or None
        Of the draws of "leverage".

    Attributes
    ----------
    sparsified_ : Sparsified
        What was promised and what came out.
    weights_ : ndarray of float64, shape (n_selected,)
        Of the selected features, in their order.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        If X had names.

    Examples
    --------
    >>> import numpy as np
    >>> from convbasis.sklearn import AttentionColumnSelector
    >>> x = np.random.default_rng(0).normal(size=(16, 2000))
    >>> selector = AttentionColumnSelector(method="bss", num_columns=64)
    >>> selector.fit_transform(x).shape[1] == selector.get_support(indices=True).size <= 64
    True
    >>> bool(selector.sparsified_.epsilon < 0.8)
    True
    """

    def __init__(
        self,
        method: Literal["leverage", "bss"] = "leverage",
        *,
        num_columns: int | None = None,
        epsilon: float | None = None,
        delta: float = 0.05,
        scores: Literal["auto", "exact", "sketched"] = "auto",
        num_threads: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.method = method
        self.num_columns = num_columns
        self.epsilon = epsilon
        self.delta = delta
        self.scores = scores
        self.num_threads = num_threads
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> AttentionColumnSelector:
        """Select features of X, dense or sparse, shape (n_samples, n_features); y is ignored."""
        X = validate_data(self, X, **_KINDS)
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        self.sparsified_ = sparsify_features(
            X,
            method=self.method,
            num_columns=self.num_columns,
            epsilon=self.epsilon,
            delta=self.delta,
            scores=self.scores,
            rng=int(seed),
            num_threads=self.num_threads,
        )
        self.weights_ = self.sparsified_.weights
        return self

    def transform(self, X: Any) -> Any:
        """The selected features of X times their weights, of the type of X."""
        check_is_fitted(self)
        return self.sparsified_.transform(validate_data(self, X, reset=False, **_KINDS))

    def inverse_transform(self, X: Any) -> Any:
        """The features of which X are the selected ones, without weights and with zeros between."""
        check_is_fitted(self)
        X = check_array(X, **_KINDS)
        few = self.sparsified_
        if X.shape[1] != len(few.indices):
            raise _validate.wrong(
                "AttentionColumnSelector.inverse_transform",
                "X",
                "has another number of columns than were selected",
                f"{len(few.indices)}",
                f"shape {X.shape}",
            )
        at = np.arange(len(few.indices)), few.indices
        places = csr_array((1 / few.weights, at), shape=(len(few.indices), few.total_columns))
        return X @ places.astype(X.dtype)

    def _get_support_mask(self) -> np.ndarray:
        check_is_fitted(self)
        mask = np.zeros(self.sparsified_.total_columns, bool)
        mask[self.sparsified_.indices] = True
        return mask

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
