"""What `sparsify_features` gives."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from . import _columns, _validate
from .report import plain


@dataclass(frozen=True, eq=False, repr=False)
class Sparsified:
    """A few reweighted columns, and how well they stand for all; ``str()`` is a short table.

    `epsilon` and everything after it is measured, for this x and in float64: before the features
    are rounded to the type of x.

    Attributes
    ----------
    features : array (n, m), of the type of x, sparse if x is
        ``x[:, indices] * weights``: query and key of an attention with ``scale=1``.
    indices : ndarray of int64, shape (m,)
        The columns, increasing.
    weights : ndarray of float64, shape (m,)
    method : str
    num_columns : int
        How many columns were asked for; m is less where one was drawn more than once.
    total_columns : int
        d.
    rank : int
        Of x; singular values up to 1e-6 of the largest, with rows of norm 1, count as zero.
    is_sketched : bool
        Whether "leverage" guessed the scores of columns on which no draw fell.
    epsilon_promised : float
        What theory says before anything is drawn: of "bss" for certain, of "leverage" with
        probability ``1 - delta``.
    epsilon : float
        Least number with ``(1 - epsilon) X X^T <= Y Y^T <= (1 + epsilon) X X^T``, on the range of
        X, for ``Y = features``.
    condition_number : float
        Largest eigenvalue of ``Y Y^T`` against ``X X^T`` by the smallest.
    radius : float
        r, the largest ``|X X^T|``.
    logit_deviation : float
        Largest ``|Y Y^T - X X^T|``: at most ``epsilon r`` on the range of X.
    error_bound : float
        ``exp(2 max(epsilon r, logit_deviation)) - 1``: no entry of the softmax of ``X X^T``, under
        any mask, changes by more, relative to itself.
    error : float
        How much the entries do change without a mask, at most.
    trivial_error : float
        The same for ``Y = 0``, the mean of all rows: an `error` near it says nothing.
    """

    features: Any
    indices: np.ndarray
    weights: np.ndarray
    method: str
    num_columns: int
    total_columns: int
    rank: int
    is_sketched: bool
    epsilon_promised: float
    epsilon: float
    condition_number: float
    radius: float
    logit_deviation: float
    error_bound: float
    error: float
    trivial_error: float

    def transform(self, x_new: Any) -> Any:
        """The same columns with the same weights of other rows.

        Parameters
        ----------
        x_new : ndarray (..., d), or scipy.sparse CSR or CSC (n_new, d)

        Returns
        -------
        array (..., m), of the type of `x_new`

        Raises
        ------
        ValueError, TypeError
            If `x_new` has another number of columns, is not of floats, or overflows its type.
        """
        x_new = _columns.checked("Sparsified.transform", "x_new", x_new)
        if x_new.shape[-1] != self.total_columns:
            raise _validate.wrong(
                "Sparsified.transform",
                "x_new",
                "has another number of columns than x had",
                f"{self.total_columns}",
                f"shape {x_new.shape}",
            )
        return _columns.reweighted(
            "Sparsified.transform", "x_new", x_new, self.indices, self.weights
        )

    def __repr__(self) -> str:
        return (
            f"<Sparsified: {len(self.indices)} of {self.total_columns} columns, "
            f"epsilon {self.epsilon:.3g}>"
        )

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self._lines())

    def _lines(self) -> list[tuple[str, str]]:
        certainly = "promised" if self.method == "bss" else "promised, with probability 1 - delta"
        return [
            ("columns", f"{len(self.indices)} of {self.total_columns}, rank {self.rank}"),
            ("method", f"{self.method}, {self.num_columns} columns asked for"),
            ("epsilon", f"{self.epsilon:.3g} ({self.epsilon_promised:.3g} {certainly})"),
            ("condition number", f"{self.condition_number:.3g}"),
            ("logits", f"up to {self.radius:.3g}, off by {self.logit_deviation:.3g} at most"),
            ("softmax", f"off by {self.error:.3g} at most (bound {self.error_bound:.3g})"),
            ("trivial answer", f"off by {self.trivial_error:.3g} at most"),
        ]

    def to_markdown(self) -> str:
        """The table of ``str()`` in Markdown."""
        rows = [f"| {name} | {value} |" for name, value in self._lines()]
        return "\n".join(["| what | value |", "|---|---|", *rows])

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers and lists, without the features; infinity as None."""
        kept = (entry.name for entry in fields(self) if entry.name != "features")
        return {name: plain(getattr(self, name)) for name in kept}
