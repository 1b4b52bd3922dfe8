"""The mask that transformers prepares once per forward pass: which keys are no padding."""

from __future__ import annotations

from typing import Any

import torch
from transformers.masking_utils import causal_mask_function

from .refusals import unsupported


def visible_keys(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Any = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    device: Any = "cpu",
    **others: Any,
) -> Any:
    """Which keys are visible to later queries, (batch, end), or None for all; never n x n.

    Queries are the last `q_length` positions before `end`; keys from there on are places that a
    static cache has not filled. Named and called as transformers does with every mask function;
    `others` are about the making of n x n masks.
    """
    # A local window that nothing leaves is none, if nothing else was added to the causal mask.
    whole_window = local_size is not None and local_size >= kv_length and allow_is_causal_skip
    if kv_offset or not (mask_function is causal_mask_function or whole_window):
        raise unsupported(
            "attention_mask",
            "a causal mask with padding (no sliding window shorter than the sequence, no packed "
            "sequences, no two-way attention)",
            "another pattern" if local_size is None else f"a local window of {local_size}",
        )
    end = int(q_offset) + q_length
    if attention_mask is None:
        every = torch.ones((batch_size, end), dtype=torch.bool, device=device)
        return None if end == kv_length else every
    visible = attention_mask[:, :end].bool()
    visible = torch.nn.functional.pad(visible, (0, end - visible.shape[1]))
    return None if end == kv_length and bool(visible.all()) else visible


def spans(visible: Any) -> list[tuple[int, int]] | None:
    """First visible key and the end, for each row of the batch; None if a row has holes."""
    found = []
    for row in visible:
        (places,) = row.nonzero(as_tuple=True)
        first, count = (int(places[0]), len(places)) if len(places) else (0, 0)
        if count and int(places[-1]) != first + count - 1:
            return None
        found.append((first, first + count))
    return found
