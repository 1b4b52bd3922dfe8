"""Sentiment of film reviews against the number of strips, and against tol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from real_model_inputs import Loaded, answers, reviews
from real_model_methods import Function, Plugged, exact, on_arrays, relative_errors, strips

import convbasis as cb
import convbasis.transformers

EXACT = "exact"


def calibrated(tol: float, threads: int) -> Function:
    """The calibrated method on arrays."""

    def attend(query, key, value, scale):
        return cb.conv_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=scale,
            enable_gqa=True,
            options=cb.CalibrateOptions(),
            tol=tol,
            num_threads=threads,
        )

    return attend


def experiment(loaded: Loaded, arguments: Any, step: Callable[[str], None]) -> dict[str, Any]:
    """Accuracy with every method on every review, and errors of every head on a few of them."""
    found = reviews(loaded, arguments.reviews, arguments.shortest, arguments.longest)
    lengths = [int(review.tokens.shape[1]) for review in found]
    functions: dict[str, Function] = {f"k = {k}": strips(k) for k in arguments.num_bases}
    threads = arguments.num_threads
    functions |= {f"tol {tol:g}": calibrated(tol, threads) for tol in arguments.tols}
    whole = {EXACT: exact} | {label: on_arrays(f) for label, f in functions.items()}
    margins = {
        label: margins_of(loaded, label, function, found, step) for label, function in whole.items()
    }
    right = np.array([review.positive for review in found])
    said = {label: np.array(margin) > 0 for label, margin in margins.items()}
    errors = head_errors(loaded, functions, found[: arguments.error_reviews], step)
    return {
        "lengths": lengths,
        "positive": right.tolist(),
        "methods": {
            label: {
                "accuracy": float((said[label] == right).mean()),
                "agreement": float((said[label] == said[EXACT]).mean()),
                "margins": margins[label],
                "squared_errors": errors.get(label),
            }
            for label in whole
        },
    }


def margins_of(
    loaded: Loaded, label: str, function: Any, found: list[Any], step: Callable[[str], None]
) -> list[float]:
    """How much more likely " positive" is than " negative", of each review."""
    plugged, (no, yes) = Plugged("reviews", function), answers(loaded)
    loaded.model.set_attn_implementation(plugged.name)
    margins = []
    for number, review in enumerate(found):
        step(f"{label}: review {number + 1} of {len(found)}, {review.tokens.shape[1]} tokens")
        with torch.inference_mode():
            scores = loaded.model(review.tokens, use_cache=False, logits_to_keep=1).logits[0, -1]
        margins.append(float(scores[yes] - scores[no]))
    return margins


def head_errors(
    loaded: Loaded, functions: dict[str, Function], found: list[Any], step: Callable[[str], None]
) -> dict[str, Any]:
    """Squared relative errors with the exact model's inputs, (reviews, layers, heads)."""
    errors: dict[str, list[Any]] = {label: [] for label in functions}

    def observe(layer: int, query: Any, key: Any, value: Any, scale: float) -> Any:
        want = exact(layer, query, key, value, scale)
        arrays = [tensor.numpy() for tensor in (query, key, value)]
        for label, function in functions.items():
            errors[label].append(relative_errors(function(*arrays, scale), want.numpy())[0] ** 2)
        return want

    plugged = Plugged("reviews_observed", observe)
    loaded.model.set_attn_implementation(plugged.name)
    for number, review in enumerate(found):
        step(f"errors of every head: review {number + 1} of {len(found)}")
        with torch.inference_mode():
            loaded.model(review.tokens, use_cache=False, logits_to_keep=1)
    layers = loaded.model.config.num_hidden_layers
    return {
        label: np.reshape(entry, (len(found), layers, -1)).tolist()
        for label, entry in errors.items()
    }
