"""The heads that `convbasis analyze` looks at: from a file, checked before any work."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arguments import CommandError

NAMES = ("query", "key", "value")


@dataclass(frozen=True, eq=False)
class Heads:
    """query (layers, heads, n, d); key and value (layers, kv_heads, n, d or d_v); their numbers."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    layers: list[int]
    scales: list[float]  # of each layer
    origin: str

    @property
    def n(self) -> int:
        return int(self.query.shape[2])

    def cut(self, n: int | None, layers: list[int] | None) -> Heads:
        """The first n positions of some layers.

        Raises
        ------
        CommandError
            If there are fewer, or a layer is not there.
        """
        if n is not None and n > self.n:
            raise CommandError(f"--n {n} is too long: {self.origin} has {self.n} positions")
        unknown = sorted(set(layers or []) - set(self.layers))
        if unknown:
            raise CommandError(
                f"--layers {','.join(map(str, unknown))} not there: {self.origin} has "
                f"{self.layers[0]} to {self.layers[-1]}"
            )
        chosen = self.layers if layers is None else layers
        places = [self.layers.index(layer) for layer in chosen]
        query, key, value = (array[places, :, :n] for array in (self.query, self.key, self.value))
        scales = [self.scales[place] for place in places]
        return Heads(query, key, value, list(chosen), scales, self.origin)


def read_heads(file: str) -> Heads:
    """The arrays of an .npz file, with one to four dimensions in front of the last two made two.

    Raises
    ------
    CommandError
        If the file cannot be read, or an array is missing, or does not fit.
    """
    try:
        content = np.load(file, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise CommandError(f"{file!r} is not an .npz file; make one with numpy.savez")
        with content:
            found = {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise CommandError(f"{file!r} does not exist; give an .npz file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CommandError(f"{file!r} cannot be read as an .npz file: {error}") from error
    missing = [name for name in NAMES if name not in found]
    if missing:
        raise CommandError(
            f"{file!r} has no array {' and no '.join(missing)}; it has {', '.join(found) or 'none'}"
        )
    arrays = [as_layers(file, name, found[name]) for name in NAMES]
    query, key, value = arrays
    check_shapes(file, query, key, value)
    layers = layer_numbers(file, found.get("layers"), len(query))
    scales = scales_of(file, found.get("scale", query.shape[3] ** -0.5), len(query))
    return Heads(query, key, value, layers, scales, file)


def as_layers(file: str, name: str, array: np.ndarray) -> np.ndarray:
    """(n, d), (heads, n, d), (batch, heads, n, d) -> (layers, heads, n, d), float32 or float64."""
    if array.dtype.kind != "f" or not 2 <= array.ndim <= 4:
        raise CommandError(
            f"{name} in {file!r} has shape {array.shape} and type {array.dtype}; expected floats "
            "(layers, heads, n, d), (heads, n, d) or (n, d)"
        )
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise CommandError(f"{name} in {file!r} has NaN or infinity; expected finite numbers")
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def check_shapes(file: str, query: Any, key: Any, value: Any) -> None:
    """Self-attention of heads that share keys evenly."""
    fits = (
        key.shape[:3] == value.shape[:3]
        and query.shape[::2] == key.shape[::2]
        and query.shape[3] == key.shape[3]
        and key.shape[1] > 0
        and query.shape[1] % key.shape[1] == 0
        and query.dtype == key.dtype == value.dtype
    )
    if not fits:
        raise CommandError(
            f"the arrays of {file!r} do not fit: query {query.shape}, key {key.shape}, value "
            f"{value.shape}; expected equal layers, lengths, types and head dimensions, and query "
            "heads a multiple of key heads"
        )
    if query.size == 0 or query.shape[2] < 64:
        raise CommandError(f"{file!r} has {query.shape[2]} positions; at least 64 are needed")


def layer_numbers(file: str, found: Any, count: int) -> list[int]:
    """The array `layers` of the file, or 0, 1, 2, ..."""
    layers = np.arange(count) if found is None else np.ravel(found)
    if layers.dtype.kind not in "iu" or layers.size != count or len(set(layers.tolist())) != count:
        raise CommandError(
            f"layers in {file!r} has {layers.tolist()}; expected {count} distinct whole numbers"
        )
    return [int(layer) for layer in layers]


def scales_of(file: str, found: Any, count: int) -> list[float]:
    """The array `scale` of the file, one number or one for each layer, as the latter."""
    scales = np.ravel(found)
    if scales.dtype.kind not in "iuf" or scales.size not in (1, count):
        raise CommandError(
            f"scale in {file!r} has shape {np.shape(found)} and type {scales.dtype}; expected a "
            f"number, or {count}, one for each layer"
        )
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise CommandError(
            f"scale in {file!r} has {scales.tolist()}; expected finite positive numbers"
        )
    return [float(scale) for scale in np.broadcast_to(scales, count)]
