"""The attention function that transformers calls in every layer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from ..attention import conv_attention
from .mask import spans
from .refusals import refuse
from .statistics import Statistics

#: Rows of a masked step computed at a time, so that no mask is n x n.
ROWS = 256


@dataclass(frozen=True)
class Attention:
    """Attention with fixed settings; `attend` is what transformers calls."""

    tol: float | None
    options: Any
    min_length: int
    statistics: Statistics | None
    num_threads: int

    def attend(
        self,
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        scaling: float | None = None,
        **others: Any,
    ) -> tuple[Any, None]:
        """query (B, H, n, d), key and value (B, KVH, m, d) -> (B, n, H, d_v), and no weights."""
        refuse(module, query, key, value, attention_mask, others)
        layer = getattr(module, "layer_idx", None)
        layer = -1 if layer is None else int(layer)
        began = time.perf_counter()
        batch, heads, rows, _ = query.shape
        out = torch.zeros((batch, rows, heads, value.shape[3]), dtype=query.dtype)
        target = out.transpose(1, 2)
        end = key.shape[2] if attention_mask is None else attention_mask.shape[1]
        key, value = key[:, :, :end], value[:, :, :end]
        found = [(0, end)] * batch if attention_mask is None else spans(attention_mask)
        reports = []
        if rows != end or found is None:
            masked(query, key, value, attention_mask, scaling, target)
            kind = "steps" if rows != end else "holes"
        else:
            for some, first, stop in groups(found):
                part = (some, slice(None), slice(first, stop))
                tensors = (query[part], key[part], value[part])
                reports += self.prefill(*tensors, scaling, target[part])
            kind = "prefills" if reports else "short"
        if self.statistics is not None:
            self.statistics.add(layer, kind, reports, rows, time.perf_counter() - began)
        return out, None

    def prefill(self, query: Any, key: Any, value: Any, scale: Any, target: Any) -> list[Any]:
        """Causal attention without padding into `target`; the report, if it was approximated."""
        if query.shape[2] < self.min_length:
            target.copy_(exact(query, key, value, scale=scale, is_causal=query.shape[2] > 1))
            return []
        collect = self.statistics is not None
        half = query.dtype in (torch.float16, torch.bfloat16)
        query, key, value = (
            (tensor.float() if half else tensor).detach().numpy() for tensor in (query, key, value)
        )
        done = conv_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=scale,
            enable_gqa=True,
            options=self.options,
            tol=self.tol,
            return_report=collect,
            num_threads=self.num_threads,
            out=None if half else target.numpy(),
        )
        if half:
            target.copy_(torch.from_numpy(done[0] if collect else done))
        return [done[1]] if collect else []


def groups(found: list[tuple[int, int]]) -> list[tuple[slice, int, int]]:
    """Rows of the batch that can be computed at once, each with first key and end."""
    if len(set(found)) == 1:
        first, stop = found[0]
        return [(slice(None), first, stop)] if stop > first else []
    return [(slice(i, i + 1), *span) for i, span in enumerate(found) if span[1] > span[0]]


def masked(query: Any, key: Any, value: Any, visible: Any, scale: Any, target: Any) -> None:
    """Exact attention of the last positions to all visible keys, a few rows at a time."""
    rows, end = query.shape[2], key.shape[2]
    columns = torch.arange(end)
    for first in range(0, rows, ROWS):
        some = slice(first, min(first + ROWS, rows))
        if rows == 1 and visible is None:
            target.copy_(exact(query, key, value, scale=scale))
            return
        positions = torch.arange(end - rows, end)[some]
        mask = (columns <= positions[:, None])[None, None]
        if visible is not None:
            mask = mask & visible[:, None, None, :]
        part = exact(query[:, :, some], key, value, scale=scale, attn_mask=mask)
        # Rows that see nothing, as padding does, would be NaN.
        target[:, :, some] = torch.where(mask.any(-1, keepdim=True), part, 0.0)


def exact(query: Any, key: Any, value: Any, **options: Any) -> Any:
    """Attention of torch."""
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, enable_gqa=query.shape[1] != key.shape[1], **options
    )
