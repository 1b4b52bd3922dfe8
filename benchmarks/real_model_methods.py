"""Attention as real_model.py plugs it into the model: exact, cheaper by a mask, and by strips."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

import convbasis as cb

#: On arrays query (1, heads, n, d), key and value (1, kv_heads, n, d) -> (1, heads, n, d_v).
Function = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]

SAMPLE_ROWS = 128
SINKS = 4
ROWS = 256  # of a dense block


class Plugged:
    """A function as an attention of the model; its seconds add up."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function, self.seconds = name, function, 0.0
        AttentionInterface.register(name, self.attend)

    def attend(self, module, query, key, value, attention_mask, scaling=None, **_):
        began = time.perf_counter()
        out = self.function(module.layer_idx, query, key, value, scaling)
        out = out.transpose(1, 2).contiguous()
        self.seconds += time.perf_counter() - began
        return out, None


def exact(_: int, query: Any, key: Any, value: Any, scale: float) -> Any:
    """Causal attention of torch; the queries are the last tokens."""
    rows, columns = query.shape[2], key.shape[2]
    seen = None
    if rows < columns:  # torch's own causal mask is for the first ones
        seen = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, seen, is_causal=seen is None, scale=scale, enable_gqa=True
    )


def on_arrays(function: Function) -> Callable[..., Any]:
    """A function of arrays as one of tensors."""

    def call(_: int, query: Any, key: Any, value: Any, scale: float) -> Any:
        arrays = (tensor.numpy() for tensor in (query, key, value))
        return torch.from_numpy(function(*arrays, scale))

    return call


def window_of(n: int, share: float) -> int:
    """The window that, with the sinks, computes this share of a causal head's logits."""
    windows = np.arange(1, n + 1)
    logits = windows * (n - (windows - 1) / 2) + SINKS * np.maximum(n - windows, 0)
    return int(windows[np.searchsorted(logits, share * n * (n + 1) / 2).clip(0, n - 1)])


def window_and_sinks(share: float) -> Function:
    """The last keys and the first few, at a share of the cost of exact attention."""

    def attend(query, key, value, scale):
        n = query.shape[2]
        mask = cb.masks.Longformer(window_of(n, share), np.arange(min(SINKS, n)), is_causal=True)
        return cb.exact_attention(query, key, value, mask, scale=scale, enable_gqa=True)

    return attend


def heavy_keys(share: float, window: int) -> Function:
    """The keys that sampled rows attend to most, and a window, at a share of the cost.

    With a window of 1, each row's own key, there are no sinks either: they are heavy anyway.
    """

    def attend(query, key, value, scale):
        out = np.empty((*query.shape[:3], value.shape[3]), np.float32)
        group = query.shape[1] // key.shape[1]
        for head in range(query.shape[1]):
            one = (query[0, head], key[0, head // group], value[0, head // group])
            tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in one]
            out[0, head] = heavy_head(*tensors, scale, share, window)
        return out

    return attend


def heavy_head(q, k, v, scale, share, window, seed=0):
    """One head of `heavy_keys`. All by torch: threads of NumPy's BLAS would spin beside its own."""
    n = len(q)
    rows = np.sort(np.random.default_rng(seed).choice(n, min(SAMPLE_ROWS, n), replace=False))
    rows, columns = torch.from_numpy(rows)[:, None], torch.arange(n)
    logits = scale * (q[rows[:, 0]] @ k.T)
    weights = torch.softmax(logits.masked_fill(columns > rows, -torch.inf), 1)
    mass = weights.masked_fill(columns > rows - window, 0.0).sum(0).numpy()
    order = np.argsort(-mass, kind="stable")
    near = window * (n - (window - 1) / 2)
    so_far = near + np.cumsum(np.maximum(n - order - window, 0))
    count = int(np.searchsorted(so_far, share * n * (n + 1) / 2))
    heavy = torch.zeros(n, dtype=torch.bool)
    heavy[torch.from_numpy(order[:count])] = True
    if window > 1:
        heavy[:SINKS] = True
    out = torch.empty_like(v)
    for first in range(0, n, ROWS):
        some = torch.arange(first, min(first + ROWS, n))[:, None]
        seen = torch.nonzero(heavy | (columns > first - window))[:, 0]
        seen = seen[seen <= some[-1]]
        shown = (seen <= some) & (heavy[seen] | (seen > some - window))
        logits = (scale * (q[some[:, 0]] @ k[seen].T)).masked_fill(~shown, -torch.inf)
        out[some[:, 0]] = torch.softmax(logits, 1) @ v[seen]
    return out.numpy()


def strips(k: int, threads: int) -> Function:
    """Plain strips: k columns of the logits at equal distances, each moved along the diagonals."""

    def attend(query, key, value, scale):
        n = query.shape[2]
        common = {"is_causal": True, "scale": scale, "enable_gqa": True, "num_threads": threads}
        if k >= n:
            return cb.exact_attention(query, key, value, **common)
        starts = np.arange(k) * n // k
        group = query.shape[1] // key.shape[1]
        kernels = np.zeros((*query.shape[:2], k, n), np.float32)
        for head in range(query.shape[1]):
            chosen = torch.from_numpy(key[0, head // group][starts])
            columns = (scale * (chosen @ torch.from_numpy(query[0, head]).T)).numpy()
            for r, start in enumerate(starts):
                kernels[0, head, r, : n - start] = columns[r, start:]
        lead = query.shape[:2]
        basis = cb.ConvBasis(
            np.broadcast_to(starts, (*lead, k)), np.full(lead, k), kernels, num_columns=n
        )
        return cb.conv_attention(query, key, value, basis=basis, **common)

    return attend


def relative_errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """``||got - want|| / ||want||`` of each head."""
    norm = np.linalg.norm(want, axis=(-2, -1))
    return np.linalg.norm(got - want, axis=(-2, -1)) / np.where(norm > 0, norm, 1.0)
