"""The heads of a language model on a text, captured while transformers runs it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np

from ._analyze_input import Heads
from ._arguments import CommandError

NEEDED = "pip install 'convbasis[models]'"


def check_model(folder: str, gguf: str | None, text: str) -> None:
    """Find out early what is missing.

    Raises
    ------
    CommandError
    """
    needed = ["torch", "transformers"] + ["gguf", "accelerate"] * (gguf is not None)
    for module in needed:
        if importlib.util.find_spec(module) is None:
            raise CommandError(f"{module} is not installed; {NEEDED}")
    if not Path(folder).is_dir():
        raise CommandError(f"--model {folder!r} is no folder; give one with a model in it")
    if gguf is not None and not (Path(folder) / gguf).is_file():
        raise CommandError(f"--gguf {gguf!r} is not in {folder!r}")
    if not Path(text).is_file():
        raise CommandError(f"--text {text!r} is no file")


def read_text(file: str) -> str:
    """The text of a file.

    Raises
    ------
    CommandError
        If it is not UTF-8.
    """
    try:
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(f"--text {file!r} is not UTF-8: {error}") from error


def capture(
    folder: str, gguf: str | None, text: str, n: int, layers: list[int] | None, threads: int
) -> Heads:
    """Query, key and value, after the rotary embedding, of the first n tokens.

    Raises
    ------
    CommandError
        If the model cannot be loaded, or the text is too short, or a layer is not there,
        or if attention is more than causal: windows, softcap and the like.
    """
    import torch
    from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from ..transformers.refusals import refuse

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    how: dict[str, Any] = {"local_files_only": True}
    if gguf is not None:
        how["gguf_file"] = gguf
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars that cannot be turned off
            tokenizer = AutoTokenizer.from_pretrained(folder, **how)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CommandError(f"the model of {folder!r} cannot be loaded: {reason}") from error
    tokens = tokenizer(text, return_tensors="pt", verbose=False).input_ids[:, :n]
    most = min(tokens.shape[1], getattr(model.config, "max_position_embeddings", n))
    if most < n:
        raise CommandError(f"--n {n} is too long: the text or the model's context has {most}")
    count = model.config.num_hidden_layers
    chosen = list(range(count)) if layers is None else layers
    if max(chosen) >= count:
        raise CommandError(f"--layers {max(chosen)} is not there: the model has 0 to {count - 1}")
    kept: dict[int, list[np.ndarray]] = {}
    scales: dict[int, float] = {}

    def attend(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **others: Any
    ) -> Any:
        refuse(module, query, key, value, mask, others)
        if module.layer_idx in chosen:
            kept[module.layer_idx] = [tensor[0].numpy().copy() for tensor in (query, key, value)]
            scales[module.layer_idx] = scaling or query.shape[3] ** -0.5
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("convbasis_analyze", attend)
    model.set_attn_implementation("convbasis_analyze")
    try:
        with torch.inference_mode():
            model.base_model(tokens, use_cache=False)
    except NotImplementedError as error:
        raise CommandError(f"the model of {folder!r} has other attention: {error}") from error
    query, key, value = (np.stack([kept[layer][i] for layer in chosen]) for i in range(3))
    return Heads(query, key, value, chosen, [scales[layer] for layer in chosen], gguf or folder)
