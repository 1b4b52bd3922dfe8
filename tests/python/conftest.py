"""Inputs and error measures shared by the tests. Fixtures are functions to call."""

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
