"""What a model may ask for and conv attention cannot do."""

from __future__ import annotations

from typing import Any

import torch

from .. import _validate

#: Arguments that models pass along and that do not change attention, whatever their value.
HARMLESS = {
    "cache_position",
    "logits_to_keep",
    "num_items_in_batch",
    "output_hidden_states",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "use_cache",
}

FUNCTION = "conv_basis in transformers"


def unsupported(argument: str, expected: str, got: object) -> Exception:
    """The exception for what cannot be honoured."""
    return _validate.wrong(
        FUNCTION, argument, "is not supported", expected, got, NotImplementedError
    )


def refuse(
    module: Any, query: Any, key: Any, value: Any, mask: Any, others: dict[str, Any]
) -> None:
    """Raise NotImplementedError for the first thing that cannot be honoured."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.device.type != "cpu":
            raise unsupported(f"{name}.device", "tensors on the CPU", tensor.device)
        if tensor.requires_grad and torch.is_grad_enabled():
            raise unsupported(
                f"a gradient of {name}", "inference under torch.no_grad()", "requires_grad=True"
            )
    if mask is not None and mask.ndim != 2:
        raise unsupported(
            "attention_mask", "one of two dimensions, (batch, keys)", f"{mask.ndim} dimensions"
        )
    others = dict(others)
    causal = others.pop("is_causal", None)
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise unsupported("is_causal", "a causal decoder layer", False)
    if others.pop("dropout", 0.0):
        raise unsupported("dropout", "0, as in evaluation: model.eval()", "another")
    window = others.pop("sliding_window", None)
    if window is not None and window < key.shape[2]:
        raise unsupported("sliding_window", f"None or at least {key.shape[2]} keys", window)
    for name, entry in others.items():
        if name not in HARMLESS and entry is not None and entry is not False:
            raise unsupported(name, "None", type(entry).__name__)
