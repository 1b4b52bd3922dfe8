"""Inputs and error measures shared by the tests. Fixtures are functions to call."""

from dataclasses import dataclass

import numpy as np
import pytest

import convbasis as cb
from convbasis import cli, reference


@pytest.fixture
def qkv():
    """Random query, key and value."""

    def make(
        n,
        d=8,
        *,
        lead=(2, 3),
        n_kv=None,
        value_dim=None,
        kv_heads=None,
        dtype=np.float64,
        spread=1.0,
        seed=0,
    ):
        rng = np.random.default_rng(seed)
        n_kv = n if n_kv is None else n_kv
        kv_lead = lead if kv_heads is None else (*lead[:-1], kv_heads)
        query = rng.normal(size=(*lead, n, d)) * np.sqrt(spread)
        key = rng.normal(size=(*kv_lead, n_kv, d)) * np.sqrt(spread)
        value = rng.normal(size=(*kv_lead, n_kv, d if value_dim is None else value_dim))
        return query.astype(dtype), key.astype(dtype), value.astype(dtype)

    return make


@pytest.fixture
def content_heads():
    """Query, key and value whose logits are sums of parts, each of its own size in each head.

    A function of the lag, a part of the clusters that query and key belong to (in some heads, of
    another query's), a few heavy keys, and noise.
    """

    def make(n, heads, *, d=32, kv_heads=None, dtype=np.float64, seed=0, strength=1.0):
        rng = np.random.default_rng(seed)
        kv_heads = heads if kv_heads is None else kv_heads
        query = np.zeros((1, heads, n, d))
        key, value = np.zeros((2, 1, kv_heads, n, d))
        turning, content = slice(0, d // 2), slice(d // 2, d - 1)
        angles = np.arange(n)[:, None] * 1e-4 ** (4 * np.arange(d // 4) / d)
        turns = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        for g in range(kv_heads):
            clusters = np.repeat(rng.integers(8, size=n), rng.integers(1, 40, size=n))[:n]
            centres = rng.normal(size=(8, d - 1 - d // 2))
            key[0, g, :, turning] = turns
            key[0, g, :, content] = centres[clusters] + 0.3 * rng.normal(size=(n, len(centres[0])))
            key[0, g, rng.choice(n // 2, 6, replace=False), -1] = 1.0
            value[0, g] = rng.normal(size=(8, d))[clusters] + rng.normal(size=(n, d))
            value[0, g] += rng.normal(size=d)
        for h in range(heads):
            like = key[0, h * kv_heads // heads]
            looked_up = rng.permutation(n) if rng.random() < 0.3 else np.arange(n)
            size = rng.uniform(0.0, 2.0) * rng.random(d // 4)
            query[0, h, :, turning] = turns * np.tile(size, 2)
            query[0, h, :, content] = rng.uniform(0.0, 0.5) * like[looked_up, content]
            query[0, h] += 0.3 * rng.normal(size=(n, d)) * (np.arange(d) >= d // 2)
            query[0, h, :, -1] = rng.uniform(0.0, 8.0)
        query *= strength
        return query.astype(dtype), key.astype(dtype), value.astype(dtype)

    return make


@pytest.fixture
def row_error():
    """Largest error of a row, relative to the norm of that row; 1 for an all-zero result."""

    def measure(got, want):
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        assert got.shape == want.shape
        if want.size == 0:
            return 0.0
        norm = np.linalg.norm(want, axis=-1)
        return float((np.linalg.norm(got - want, axis=-1) / np.where(norm > 0, norm, 1.0)).max())

    return measure


@pytest.fixture
def naive():
    """Attention in the working precision, written plainly: what the library is held against."""

    def attend(query, key, value, *, is_causal, scale):
        logits = query.dtype.type(scale) * (query @ np.swapaxes(key, -1, -2))
        if is_causal:
            logits = np.where(np.tri(*logits.shape[-2:], dtype=bool), logits, -np.inf)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True)).astype(query.dtype)
        return (weights @ value) / weights.sum(axis=-1, keepdims=True)

    return attend


@pytest.fixture
def oracle_basis():
    """One head of a ConvBasis as the oracle's Basis."""

    def convert(basis, head=()):
        count = int(np.asarray(basis.num_bases)[head])
        return reference.Basis(
            basis.starts[head][:count], basis.kernels[head][:count], basis.num_columns
        )

    return convert


@pytest.fixture
def random_basis():
    """A ConvBasis with planted strips; every head has a number of its own."""

    def make(
        n, max_bases, *, lead=(), first=0, num_columns=None, dtype=np.float64, seed=0, spread=1.0
    ):
        rng = np.random.default_rng(seed)
        columns = n if num_columns is None else num_columns
        most = min(max_bases, max(columns - first, 0))
        starts = np.full((*lead, most), n)
        num_bases = np.zeros(lead, int)
        kernels = np.zeros((*lead, most, n), dtype)
        for head in np.ndindex(lead):
            count = int(rng.integers(1, most + 1)) if lead else most
            count = min(count, most)
            chosen = np.sort(rng.choice(np.arange(first, columns), count, replace=False))
            if count:
                chosen[0] = first
            num_bases[head], starts[head][:count] = count, chosen
            for r, start in enumerate(chosen):
                kernels[head][r, : n - start] = spread * rng.normal(size=n - start)
        return cb.ConvBasis(starts, num_bases, kernels, num_columns=columns)

    return make


@pytest.fixture
def run(capsys):
    """Exit code, standard output and standard error of a call of the command."""

    def call(*arguments):
        code = cli.main(arguments)
        return code, *capsys.readouterr()

    return call


@dataclass(frozen=True)
class StripHead:
    """One head whose logits are strips: what the library and what the oracle take."""

    arrays: tuple[np.ndarray, ...]  # query, key, value, gradient of the output
    basis: cb.ConvBasis | tuple[cb.ConvBasis, cb.ConvBasis]
    lower: reference.Basis
    upper: reference.Basis | None
    scale: float

    def backward(self, **call):
        """Gradients of the library, by default with the basis given."""
        arrays = call.pop("arrays", self.arrays)
        call = {"basis": self.basis, "is_causal": self.upper is None, "scale": self.scale, **call}
        return cb.conv_attention_backward(*arrays, **call)

    def oracle(self, gradient):
        """The same in float64, dense. Keys that no query sees have gradient 0."""
        query, _, _, grad = self.arrays
        key, value = (array[: self.lower.num_columns] for array in self.arrays[1:3])
        call = {"upper": self.upper, "scale": self.scale, "gradient": gradient}
        grads = reference.conv_attention_backward(self.lower, query, key, value, grad, **call)
        return [
            np.pad(got, [(0, len(array) - len(got)), (0, 0)])
            for array, got in zip(self.arrays[:3], grads, strict=True)
        ]

    def plain(self, gradient):
        """The oracle's formulas in the type of the arrays, with n x n matrices."""
        query, key, value, grad = self.arrays
        logits, mask = reference.conv_logits(self.lower, self.upper)
        logits = np.where(mask, logits, -np.inf).astype(query.dtype)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        delta = (grad * (weights @ value)).sum(axis=1, keepdims=True)
        grads = weights * (grad @ value.T - delta)
        if gradient == "basis":
            grads = onto_starts(self.lower, np.tril(grads)) + (
                onto_starts(self.upper, np.triu(grads, 1)[::-1, ::-1])[::-1, ::-1]
                if self.upper
                else 0
            )
        scale = query.dtype.type(self.scale)
        return scale * (grads @ key), scale * (grads.T @ query), weights.T @ grad


def onto_starts(basis, grads):
    """Sums along the diagonals of each strip, in its first column."""
    result = np.zeros_like(grads)
    n = len(grads)
    for start, stop in zip(basis.starts, basis.stops, strict=True):
        for j in range(start, min(stop, n)):
            result[start : start + n - j, start] += grads[j:, j]
    return result


@pytest.fixture
def strip_head():
    """A random head with strips at given starts, exactly as its queries and keys have them."""

    def make(
        n,
        starts,
        upper_starts=None,
        *,
        d=6,
        value_dim=5,
        n_kv=None,
        dtype=np.float64,
        spread=1.0,
        offset=0.0,
        kernels=None,
        seed=0,
    ):
        rng = np.random.default_rng(seed)
        n_kv = n if n_kv is None else n_kv
        shapes = ((n, d), (n_kv, d), (n_kv, value_dim), (n, value_dim))
        query, key, value, grad = (rng.normal(size=shape) for shape in shapes)
        arrays = [x.astype(dtype) for x in (query, spread * key, value + offset, grad)]
        scale, columns = d**-0.5, min(n, n_kv)

        def basis_of(query, key, starts, kernels):
            if kernels is None:
                kernels = np.zeros((len(starts), n), dtype)
                for kernel, s in zip(kernels, starts, strict=True):
                    kernel[: n - s] = scale * (query[s:].astype(float) @ key[s].astype(float))
            basis = cb.ConvBasis(starts, len(starts), kernels, num_columns=columns)
            return basis, reference.Basis(starts, kernels, columns)

        basis, lower = basis_of(*arrays[:2], starts, kernels)
        upper = None
        if upper_starts is not None:
            above, upper = basis_of(*(x[::-1] for x in arrays[:2]), upper_starts, None)
            basis = basis, above
        return StripHead(tuple(arrays), basis, lower, upper, scale)

    return make
