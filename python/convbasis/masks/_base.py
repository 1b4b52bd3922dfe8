"""What all masks share: they are values, of linear size, that some pairs of can be joined."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _validate

Indices = NDArray[np.int64]
Booleans = NDArray[np.bool_]

#: An index that no sequence reaches, so that sums of two cannot overflow.
MOST_INDEX = 2**62


class Mask(ABC):
    """Which keys each query sees; immutable, comparable, hashable, of linear memory.

    ``one & other`` sees what both see, for the pairs whose intersection has a structure of its
    own: every mask with `Causal`, and windows with windows.
    """

    __slots__ = ()

    @abstractmethod
    def check(self, function: str, n_q: int, n_kv: int) -> None:
        """Raise ValueError, in the name of `function`, unless the mask fits ``n_q`` x ``n_kv``."""

    @abstractmethod
    def _dense(self, n_q: int, n_kv: int) -> Booleans: ...

    @abstractmethod
    def _seen_keys(self, n_q: int, n_kv: int) -> Booleans:
        """Which keys some query sees, in linear time."""

    @abstractmethod
    def _joined(self, other: Mask) -> Mask | None:
        """The intersection if this class knows it."""

    def _native(self) -> tuple[tuple[object, ...] | None, bool]:
        """What the core takes: the class and its fields, and whether to join the causal mask."""
        items = self._items()
        is_causal = items.pop("is_causal", False)
        parts: list[object] = [type(self).__name__]
        for value in items.values():
            parts += value if isinstance(value, tuple) else [value]
        return tuple(parts), is_causal

    def to_dense(self, n_q: int, n_kv: int) -> Booleans:
        """The mask as a matrix, True where query i sees key j; the only thing of size n_q n_kv.

        Parameters
        ----------
        n_q, n_kv : int
            Numbers of queries and keys.

        Returns
        -------
        ndarray of bool, shape (n_q, n_kv)

        Raises
        ------
        ValueError
            If the mask is for other numbers of queries or keys.
        """
        name = f"{type(self).__name__}.to_dense"
        n_q = _validate.integer(name, "n_q", n_q, minimum=0)
        n_kv = _validate.integer(name, "n_kv", n_kv, minimum=0)
        self.check(name, n_q, n_kv)
        return self._dense(n_q, n_kv)

    def __and__(self, other: object) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        joined = self._joined(other)
        if joined is None:
            joined = other._joined(self)
        if joined is None:
            raise _validate.wrong(
                "Mask",
                "other",
                "has no structure in common with this mask that could be kept",
                "Causal, or a window and a window",
                f"{type(self).__name__} & {type(other).__name__}",
                NotImplementedError,
            )
        return joined

    def _items(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return comparable(self._items()) == comparable(other._items())

    def __hash__(self) -> int:
        return hash((type(self), comparable(self._items())))

    def __repr__(self) -> str:
        shown = {name: value for name, value in self._items().items() if value is not False}
        return f"{type(self).__name__}({text(shown)})"


@dataclass(frozen=True, eq=False, repr=False)
class Causal(Mask):
    """Query i sees keys 0..i (top-left aligned), for any numbers of queries and keys.

    Low-rank product: a running sum, O((n_q + n_kv) r d_v).

    Examples
    --------
    >>> import convbasis as cb
    >>> cb.masks.Causal().to_dense(2, 3).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0]]
    """

    def check(self, function: str, n_q: int, n_kv: int) -> None:
        """Any numbers of queries and keys will do."""

    def _native(self) -> tuple[tuple[object, ...] | None, bool]:
        return None, True

    def _dense(self, n_q: int, n_kv: int) -> Booleans:
        return np.tri(n_q, n_kv, dtype=bool)

    def _seen_keys(self, n_q: int, n_kv: int) -> Booleans:
        return np.arange(n_kv) < n_q

    def _joined(self, other: Mask) -> Mask | None:
        return self if isinstance(other, Causal) else None


def comparable(items: dict[str, Any]) -> tuple[object, ...]:
    """The values of a dict as one that compares and hashes, arrays by their elements."""
    values: list[object] = []
    for value in items.values():
        if isinstance(value, np.ndarray):
            value = (value.shape, value.tobytes())
        elif isinstance(value, tuple):
            value = comparable(value._asdict())  # type: ignore[attr-defined]
        values.append(value)
    return tuple(values)


def text(items: dict[str, Any]) -> str:
    """``name=value, ...``, long arrays cut."""
    parts = []
    for name, value in items.items():
        if isinstance(value, np.ndarray):
            value = " ".join(
                np.array2string(
                    value, threshold=8, edgeitems=2, separator=", ", formatter={"all": str}
                ).split()
            )
        elif isinstance(value, tuple):
            value = f"{type(value).__name__}({text(value._asdict())})"  # type: ignore[attr-defined]
        parts.append(f"{name}={value}")
    return ", ".join(parts)


def frozen(array: np.ndarray) -> np.ndarray:
    """A copy in C order that cannot be written to, so that masks can be shared by threads."""
    copy = np.array(array, order="C")
    copy.flags.writeable = False
    return copy


def index_array(function: str, name: str, value: object) -> Indices:
    """`value` as a frozen array of indices: 1-D, integers, none negative."""
    array = np.asarray(value)
    if array.ndim != 1:
        raise _validate.wrong(
            function, name, "is not one-dimensional", "1 dimension", f"shape {array.shape}"
        )
    if array.size and array.dtype.kind not in "iu":
        raise _validate.wrong(
            function, name, "is not made of integers", "an integer dtype", array.dtype, TypeError
        )
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < MOST_INDEX:
        wrong = array.min() if array.min() < 0 else array.max()
        raise _validate.wrong(function, name, "has no index", f"0 to {MOST_INDEX - 1}", wrong)
    return frozen(array.astype(np.int64))


def distinct_indices(function: str, name: str, value: object) -> Indices:
    """`value` as a frozen, sorted array of indices, none of them twice."""
    array = np.sort(index_array(function, name, value))
    twice = array[1:][array[1:] == array[:-1]]
    if twice.size:
        raise _validate.wrong(
            function, name, "names an index twice", "distinct indices", int(twice[0])
        )
    return frozen(array)


def fitting(function: str, mask: Mask, axis: str, expected: str, fits: bool, got: int) -> None:
    """Raise unless a mask fits the number of queries or keys."""
    if not fits:
        raise _validate.wrong(
            function, "mask", f"{type(mask).__name__} does not fit the {axis}", expected, got
        )
