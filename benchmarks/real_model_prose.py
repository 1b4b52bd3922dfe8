"""Perplexity, attention time and coverage on long prose: one part of real_model.py."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from real_model_inputs import Loaded, Missing
from real_model_methods import (
    Plugged,
    exact,
    heavy_keys,
    on_arrays,
    relative_errors,
    window_and_sinks,
)

import convbasis as cb
import convbasis.transformers

EXACT, WINDOW = "exact (torch SDPA)", "window and sinks"
HEAVY, BOTH = "heavy keys", "window 64, sinks, heavy keys"
CHUNK = 512  # positions whose word scores are in memory at a time

Step = Callable[[str], None]


def perplexity(model: Any, tokens: Any) -> float:
    """Of the tokens after the first; a single prefill."""
    with torch.inference_mode():
        hidden = model.model(tokens[None], use_cache=False).last_hidden_state[0]
        total = 0.0
        for first in range(0, len(tokens) - 1, CHUNK):
            last = min(first + CHUNK, len(tokens) - 1)
            scores = model.lm_head(hidden[first:last])
            wanted = tokens[first + 1 : last + 1]
            total += torch.nn.functional.cross_entropy(scores, wanted, reduction="sum").item()
    return math.exp(total / (len(tokens) - 1))


def tokens_of(loaded: Loaded, text: str, n: int) -> Any:
    """The first n tokens."""
    start = text[: 8 * n]
    found = loaded.tokenizer(start, return_tensors="pt", verbose=False).input_ids[0]
    most = min(len(found), loaded.model.config.max_position_embeddings)
    if n > most:
        raise Missing(f"--lengths {n} is longer than the text or the model's context, {most}")
    return found[:n]


def passes(loaded: Loaded, text: str, n: int, arguments: Any, step: Step) -> dict[str, Any]:
    """Everything at one length: rounds of exact and approximate passes in turn, then the others."""
    tokens, model = tokens_of(loaded, text, n), loaded.model
    timed = Plugged("timed_exact", exact)
    runs: dict[str, dict[str, Any]] = {}

    def run(label: str, name: str, seconds: Callable[[], float]) -> dict[str, Any]:
        step(f"n = {n:,}: {label}")
        model.set_attn_implementation(name)
        value = perplexity(model, tokens)
        entry = runs.setdefault(label, {"seconds": []})
        entry["perplexity"] = value
        entry["seconds"].append(seconds())
        return entry

    def run_exact() -> None:
        timed.seconds = 0.0
        run(EXACT, timed.name, lambda: timed.seconds)

    for _ in range(arguments.rounds):
        run_exact()
        for tol in arguments.tols:
            found = cb.transformers.register(
                "conv_basis", tol=tol, min_length=1, num_threads=arguments.num_threads
            )
            entry = run(f"tol {tol:g}", "conv_basis", lambda found=found: attention_seconds(found))
            entry.update(tol=tol, **shares(found))
    cost = runs[f"tol {arguments.tols[0]:g}"]["exact_share"]
    others = {
        WINDOW: window_and_sinks(cost),
        HEAVY: heavy_keys(cost, window=1),
        BOTH: heavy_keys(cost, window=64),
    }
    for label, function in others.items():
        plugged = Plugged("baseline", on_arrays(function))
        entry = run(label, plugged.name, lambda plugged=plugged: plugged.seconds)
        entry["exact_share"] = cost
    for entry in runs.values():
        entry["median_seconds"] = statistics.median(entry["seconds"])
    step(f"n = {n:,}: coverage")
    return {
        "n": n,
        "runs": runs,
        "coverage": coverage(loaded, tokens, arguments),
    }


def attention_seconds(found: Any) -> float:
    """Seconds inside the attention function, all layers."""
    return sum(sum(layer.seconds.values()) for layer in found.layers.values())


def shares(found: Any) -> dict[str, Any]:
    """Means over all heads of all layers, and the table by layer and head."""
    means = [found.layers[number].means() for number in sorted(found.layers)]
    table = {name: np.stack([layer[name] for layer in means]) for name in means[0]}
    return {
        "heads_approximated": float(1.0 - table["heads_exact"].mean()),
        "blocks_approximated": float(1.0 - table["blocks_share"].mean()),
        "exact_share": float(table["exact_share"].mean()),
        "heads": {name: array.tolist() for name, array in table.items()},
    }


def coverage(loaded: Loaded, tokens: Any, arguments: Any) -> dict[str, Any]:
    """Every head with the model's exact inputs: its true error against what the report says."""
    found: list[tuple[np.ndarray, Any]] = []

    def observe(layer: int, query: Any, key: Any, value: Any, scale: float) -> Any:
        want = exact(layer, query, key, value, scale)
        arrays = [tensor.numpy() for tensor in (query, key, value)]
        out, report = cb.conv_attention(
            *arrays,
            is_causal=True,
            scale=scale,
            enable_gqa=True,
            options=cb.CalibrateOptions(),
            tol=arguments.tols[0],
            return_report=True,
            num_threads=arguments.num_threads,
        )
        found.append((relative_errors(out, want.numpy())[0], report))
        return want

    plugged = Plugged("observe", observe)
    loaded.model.set_attn_implementation(plugged.name)
    with torch.inference_mode():
        loaded.model.model(tokens[None], use_cache=False)
    errors = np.stack([errors for errors, _ in found])
    intervals = np.stack([np.asarray(report.error_interval)[0] for _, report in found])
    estimates = np.stack([np.asarray(report.error_estimate)[0] for _, report in found])
    exact_heads = np.stack([np.asarray(report.exact_mask)[0] for _, report in found])
    inside = (intervals[..., 0] <= errors) & (errors <= intervals[..., 1])
    judged = ~exact_heads
    return {
        "tol": arguments.tols[0],
        "heads": int(judged.size),
        "judged": int(judged.sum()),
        "inside": int(inside[judged].sum()),
        "below_interval": int((errors < intervals[..., 0])[judged].sum()),
        "above_tol": int((errors > arguments.tols[0]).sum()),
        "errors": errors.tolist(),
        "estimates": estimates.tolist(),
        "intervals": intervals.tolist(),
        "exact": exact_heads.tolist(),
    }
