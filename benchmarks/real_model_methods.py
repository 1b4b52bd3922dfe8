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
    """Causal attention of torch."""
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=True
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


def heavy_keys(share: float) -> Function:
    """The keys that sampled rows attend to most, and each row's own, at a share of the cost."""

    def attend(query, key, value, scale):
        out = np.empty((*query.shape[:3], value.shape[3]), np.float32)
        group = query.shape[1] // key.shape[1]
        for head in range(query.shape[1]):
            of = head // group
            out[0, head] = heavy_head(query[0, head], key[0, of], value[0, of], scale, share)
        return out

    return attend


def heavy_head(q, k, v, scale, share, seed=0):
    """One head of `heavy_keys`, dense over the chosen keys."""
    n = len(q)
    rows = np.sort(np.random.default_rng(seed).choice(n, min(SAMPLE_ROWS, n), replace=False))
    logits = scale * torch.from_numpy(q[rows] @ k.T)
    hidden = torch.arange(n) > torch.from_numpy(rows)[:, None]
    mass = torch.softmax(logits.masked_fill(hidden, -torch.inf), 1).sum(0).numpy()
    order = np.argsort(-mass, kind="stable")
    logits_so_far = n + np.cumsum(n - order)  # those of the diagonal first
    count = max(1, int(np.searchsorted(logits_so_far, share * n * (n + 1) / 2)))
    chosen = torch.from_numpy(np.sort(order[:count]))
    tq, tk, tv = (torch.from_numpy(np.ascontiguousarray(x)) for x in (q, k, v))
    logits = scale * (tq @ tk[chosen].T)
    logits = logits.masked_fill(chosen >= torch.arange(n)[:, None], -torch.inf)
    own = scale * (tq * tk).sum(1, keepdim=True)
    weights = torch.softmax(torch.cat([logits, own], 1), 1)
    return (weights[:, :-1] @ tv[chosen] + weights[:, -1:] * tv).numpy()


def strips(k: int) -> Function:
    """Plain strips: k columns of the logits at equal distances, each moved along the diagonals."""

    def attend(query, key, value, scale):
        n = query.shape[2]
        if k >= n:
            return cb.exact_attention(
                query, key, value, is_causal=True, scale=scale, enable_gqa=True
            )
        starts = np.arange(k) * n // k
        group = query.shape[1] // key.shape[1]
        kernels = np.zeros((*query.shape[:2], k, n), np.float32)
        for head in range(query.shape[1]):
            columns = scale * (query[0, head] @ key[0, head // group][starts].T)
            for r, start in enumerate(starts):
                kernels[0, head, r, : n - start] = columns[start:, r]
        lead = query.shape[:2]
        basis = cb.ConvBasis(
            np.broadcast_to(starts, (*lead, k)), np.full(lead, k), kernels, num_columns=n
        )
        common = {"is_causal": True, "scale": scale, "enable_gqa": True}
        return cb.conv_attention(query, key, value, basis=basis, **common)

    return attend


def relative_errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """``||got - want|| / ||want||`` of each head."""
    norm = np.linalg.norm(want, axis=(-2, -1))
    return np.linalg.norm(got - want, axis=(-2, -1)) / np.where(norm > 0, norm, 1.0)
