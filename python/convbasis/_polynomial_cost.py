"""What polynomial and exact attention are expected to cost: nanoseconds of one thread a head."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from . import _core
from ._layout import AttentionInputs

#: Most numbers of a state (features times values), which bounds the memory of a call.
MOST_NUMBERS = 1 << 26

#: What a polynomial takes beside its features, a head and each of its queries and keys: the range
#: of the logits, the plan, and the keys next to each query one by one. Measured for 4 to 16
#: channels and 64 to 2,048 rows, in units of the cost model, which such heads exceed 3 to 4 times.
ANY_HEAD, ANY_TOKEN = 40e3, 50.0

#: What exact columns take for each query, and exact rows for each key, however few.
#: Measured at n = 32,768 with 8 and 64 channels.
ANY_COLUMNS, ANY_ROWS = 350.0, 150.0

#: Cost of exact_attention_backward in calls of exact_attention.
EXACT_BACKWARD = 3.0


class Costs:
    """Of one head of these inputs, forward or backward; rates are those of the CPU by default."""

    def __init__(
        self,
        inputs: AttentionInputs,
        backward: bool = False,
        rates: tuple[float, float] | None = None,
    ) -> None:
        n_q, n_kv = inputs.query.shape[2], inputs.key.shape[2]
        self.head_dim, self.value_dim = inputs.query.shape[3], inputs.value.shape[3]
        self.rates = rates or _core.polynomial_rates(inputs.compute == np.float64)
        self.share: float = visible_share(inputs)
        channels = self.head_dim + self.value_dim
        self.exact: float = n_q * n_kv * self.share * channels * self.rates[0]
        self.feature: float = (n_q + n_kv) * (self.value_dim + 2) * self.rates[1]
        self.beside: float = ANY_HEAD + ANY_TOKEN * (n_q + n_kv)
        self.columns: float = ANY_COLUMNS * n_q
        self.rows: float = ANY_ROWS * n_kv
        if backward:
            self.exact *= EXACT_BACKWARD
            self.feature *= backward_products(self.head_dim, self.value_dim)

    @property
    def most_features(self) -> int:
        """As many as memory allows."""
        return int(MOST_NUMBERS // (self.value_dim + 1))

    @property
    def useful_features(self) -> int:
        """As many as could pay; 0 when no polynomial does."""
        most = (self.exact - self.beside) / max(self.feature, 1e-9)
        return int(min(max(most, 0.0), self.most_features))

    def of_features(self, rank: int) -> float:
        """Of a polynomial with nothing exact beside it."""
        return self.beside + rank * self.feature

    def of_split(self, features_and_pairs: float, rows: int, columns: int) -> float:
        """With the cost of the features and of so many rows and columns, entry by entry."""
        return (
            self.beside + features_and_pairs + self.columns * (columns > 0) + self.rows * (rows > 0)
        )

    @property
    def least_split(self) -> float:
        """Less than any plan costs that has exact rows or columns."""
        return self.beside + min(self.columns, self.rows)


def backward_products(head_dim: int, value_dim: int) -> float:
    """Cost of the products of a backward pass in those of the forward pass."""
    return (2 * (value_dim + 1) * head_dim + value_dim) / (value_dim + 2)


def visible_share(inputs: AttentionInputs) -> float:
    """About which share of the pairs of query and key is seen."""
    n_q, n_kv = int(inputs.query.shape[2]), int(inputs.key.shape[2])
    if n_q == 0 or n_kv == 0:
        return 0.0
    below = min(n_q, n_kv)
    pairs = below * (below + 1) / 2 + (n_q - below) * n_kv
    causal = pairs / (n_q * n_kv) if inputs.is_causal else 1.0
    if inputs.mask is None:
        return causal
    kind, parts = inputs.mask[0], cast(tuple[Any, ...], inputs.mask[1:])
    if kind == "RowWindow":
        stop = np.minimum(parts[1], np.arange(1, n_q + 1)) if inputs.is_causal else parts[1]
        return float(np.mean(np.maximum(stop - parts[0], 0))) / n_kv
    if kind in ("SlidingWindow", "Longformer"):
        tokens = parts[1].size if kind == "Longformer" else 0
        width = (1 if inputs.is_causal else 2) * (parts[0] + tokens)
        return float(min(width / n_kv, causal))
    if kind in ("DistinctRows", "DistinctColumns"):
        return causal * float(np.mean(np.mean(parts[1], axis=1)[parts[0]]))
    return causal
