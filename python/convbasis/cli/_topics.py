"""The topics of `convbasis check`. Every case fails on a result that is all zeros."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _validate, problems, reference
from ..attention import conv_attention, exact_attention
from ..decompose import decompose
from ..recover import RecoverOptions, recover_basis
from ..toeplitz import conv_matmul, toeplitz_matmul
from ._cases import Case, attention_case, dense, precision, random_arrays, random_basis, same
from ._plain import budget, relative_error, row_errors

DTYPES: tuple[Any, ...] = (np.float64, np.float32)
SIZES = ((1, 1), (2, 2), (17, 17), (64, 64), (97, 40), (40, 97), (131, 131))


@dataclass(frozen=True)
class Topic:
    """A title and what makes its cases, given the number of threads."""

    title: str
    cases: Callable[[int], Iterator[Case]]


def exact(threads: int) -> Iterator[Case]:
    for dtype, is_causal, (n_q, n_kv) in itertools.product(DTYPES, (True, False), SIZES):
        arrays = random_arrays(n_q, n_q, n_kv, dtype=dtype)
        got = exact_attention(*arrays, is_causal=is_causal, scale=0.5, num_threads=threads)
        kind = "causal" if is_causal else "full"
        name = f"{precision(dtype)}, {kind}, {n_q} x {n_kv}"
        yield attention_case(name, got, arrays, scale=0.5, is_causal=is_causal)


def shared_heads(threads: int) -> Iterator[Case]:
    options = RecoverOptions(num_bases=70, window=1)
    for dtype, kv_heads in itertools.product(DTYPES, (1, 2, 6)):
        arrays = random_arrays(3, 70, 70, heads=(2, 6), kv_heads=(2, kv_heads), dtype=dtype)
        common: Any = {"enable_gqa": True, "is_causal": True, "num_threads": threads, "scale": 0.3}
        name = f"{precision(dtype)}, 6 query heads, {kv_heads} kv heads"
        got = exact_attention(*arrays, **common)
        yield attention_case(f"exact, {name}", got, arrays, scale=0.3, is_causal=True)
        got = conv_attention(*arrays, options=options, **common)
        yield attention_case(f"conv, {name}", got, arrays, scale=0.3, is_causal=True)


def half_precision(threads: int) -> Iterator[Case]:
    for is_causal in (True, False):
        arrays = random_arrays(4, 65, 65, dtype=np.float16)
        got = exact_attention(*arrays, is_causal=is_causal, scale=0.5, num_threads=threads)
        want, _ = reference.attention(*arrays, is_causal=is_causal, scale=0.5)
        name = f"float16, {'causal' if is_causal else 'full'}"
        yield Case(name, relative_error(got, want), 2.0**-11)  # one rounding, at the end


def recovery(threads: int) -> Iterator[Case]:
    for dtype, k, search in itertools.product(DTYPES, (1, 3, 16), ("scan", "bisect")):
        problem = problems.conv_problem(401, 10, k, seed=k, dtype=dtype)
        options = RecoverOptions(search=search, num_bases=20)
        basis = recover_basis(
            problem.query, problem.key, scale=problem.scale, options=options, num_threads=threads
        )
        name = f"{precision(dtype)}, k = {k}, {search}"
        yield same(f"starts, {name}", basis.starts, problem.starts)
        oracle, _ = reference.recover(
            problem.query, problem.key, scale=problem.scale, search=search
        )
        plain = dtype(problem.scale) * (problem.query @ problem.key[problem.starts].T)
        heads = [plain[s:, r] for r, s in enumerate(problem.starts)]
        wanted = [oracle.kernels[r, : len(head)] for r, head in enumerate(heads)]
        yield Case(
            f"kernels, {name}",
            relative_error(basis.kernels, oracle.kernels),
            budget(relative_error(np.concatenate(heads), np.concatenate(wanted)), dtype),
        )


def strips(threads: int) -> Iterator[Case]:
    sizes = ((1, 17), (1, 33), (3, 130), (3, 257), (16, 500))
    for dtype, is_causal, (k, n) in itertools.product(DTYPES, (True, False), sizes):
        problem = problems.dyadic_conv_problem(n, 18, k, batch=(2,), seed=n, dtype=dtype)
        arrays = problem.query, problem.key, problem.value
        got = conv_attention(
            *arrays,
            is_causal=is_causal,
            scale=problem.scale,
            options=RecoverOptions(num_bases=k),
            num_threads=threads,
        )
        kind = "causal" if is_causal else "full"
        name = f"{precision(dtype)}, {kind}, n = {n}, k = {k}"
        yield attention_case(name, got, arrays, scale=problem.scale, is_causal=is_causal)


def every_column(threads: int) -> Iterator[Case]:
    for dtype, is_causal, n in itertools.product(DTYPES, (True, False), (1, 2, 31, 100)):
        arrays = random_arrays(n, n, n, dtype=dtype)
        got = conv_attention(
            *arrays,
            is_causal=is_causal,
            scale=0.5,
            options=RecoverOptions(num_bases=n, window=1),
            num_threads=threads,
        )
        name = f"{precision(dtype)}, {'causal' if is_causal else 'full'}, n = {n}"
        yield attention_case(name, got, arrays, scale=0.5, is_causal=is_causal)


def heavy_logits(threads: int) -> Iterator[Case]:
    for seed, k in ((1, 1), (2, 3)):
        problem = problems.dyadic_conv_problem(700, 34, k, spread=8.0, seed=seed, dtype=np.float32)
        arrays = problem.query, problem.key, problem.value
        got = conv_attention(
            *arrays,
            is_causal=True,
            scale=problem.scale,
            options=RecoverOptions(num_bases=k),
            num_threads=threads,
        )
        want, _ = reference.attention(*arrays, is_causal=True, scale=problem.scale)
        yield Case(f"worst row, float32, k = {k}", float(row_errors(got, want).max()), 1e-4)


def decomposition(threads: int) -> Iterator[Case]:
    for dtype, (n, k) in itertools.product(DTYPES, ((1, 1), (7, 3), (64, 5), (101, 101))):
        basis = random_basis(n, n, k, dtype)
        matrix = dense(basis).astype(dtype)
        found = decompose(matrix)
        name = f"{precision(dtype)}, n = {n}, k = {k}"
        yield same(f"starts, {name}", found.starts, basis.starts)
        yield same(f"multiplied back, {name}", dense(found).astype(dtype), matrix)


def products(threads: int) -> Iterator[Case]:
    sizes = ((1, 1), (2, 1), (33, 2), (127, 5), (300, 16), (300, 300))
    for dtype, (n, k) in itertools.product(DTYPES, sizes):
        basis, rng = random_basis(n, n, k, dtype), np.random.default_rng(k)
        x, y = (rng.normal(size=(n, 3)).astype(dtype) for _ in range(2))
        matrix = dense(basis)
        name = f"{precision(dtype)}, n = {n}, k = {k}"
        forward = conv_matmul(basis, x, num_threads=threads)
        back = conv_matmul(basis, y, transpose=True, num_threads=threads)
        yield product_case(f"H x, {name}", forward, matrix, x)
        yield product_case(f"H' y, {name}", back, matrix.T, y)


def toeplitz(threads: int) -> Iterator[Case]:
    for dtype, n in itertools.product(DTYPES, (1, 5, 64, 333)):
        rng = np.random.default_rng(n)
        column, x = rng.normal(size=n).astype(dtype), rng.normal(size=(n, 3)).astype(dtype)
        got = toeplitz_matmul(column, x, num_threads=threads)
        yield product_case(f"{precision(dtype)}, n = {n}", got, reference.conv(column), x)


def product_case(name: str, got: Any, matrix: Any, x: Any) -> Case:
    """A product against the dense one, and that against the same in the type of `x`."""
    want = matrix @ x.astype(np.float64)
    plain = relative_error(matrix.astype(x.dtype) @ x, want)
    return Case(name, relative_error(got, want), budget(plain, x.dtype))


def sums_and_deviation(threads: int) -> Iterator[Case]:
    for dtype, n in itertools.product(DTYPES, (1, 40, 129)):
        query, key, _ = random_arrays(n, n, n, heads=(), dtype=dtype)
        options = RecoverOptions(num_bases=min(n, 4), window=1)
        basis = recover_basis(query, key, scale=0.5, options=options, num_threads=threads)
        weights = basis.exp()
        want = dense(weights).sum(axis=1, keepdims=True)
        plain = dense(weights).astype(dtype).sum(axis=1, keepdims=True)
        name = f"{precision(dtype)}, n = {n}"
        limit = budget(relative_error(plain, want), dtype)
        got = weights.row_sums(num_threads=threads)[:, None]
        yield Case(f"row sums, {name}", relative_error(got, want), limit)
        logits = reference.attention_logits(query, key, scale=0.5)
        gap = np.abs(np.tril(logits) - dense(basis)).max()
        got = basis.residual(query, key, scale=0.5, num_threads=threads)
        # Logits are below 10 here; each of the two that are compared is rounded.
        rounding = 40 * float(np.finfo(dtype).eps)
        yield Case(f"logit deviation, {name}", abs(float(got) - gap), rounding)


def known_error(threads: int) -> Iterator[Case]:
    """With at most 128 rows every row is a sample row, and the estimate is the true error."""
    for n, k in ((30, 1), (128, 5)):
        arrays = random_arrays(n, n, n, heads=(3,))
        options = RecoverOptions(num_bases=k, window=2)
        common: Any = {"is_causal": True, "scale": 0.3, "num_threads": threads}
        out, report = conv_attention(
            *arrays, options=options, certify=True, return_report=True, **common
        )
        want, _ = reference.attention(*arrays, is_causal=True, scale=0.3)
        true = np.linalg.norm(out - want, axis=(1, 2)) / np.linalg.norm(want, axis=(1, 2))
        name = f"n = {n}, k = {k}"
        yield Case(f"estimate, {name}", float(np.abs(report.error_estimate / true - 1).max()), 1e-9)
        bounded = np.abs(out - want).max(axis=(1, 2)) <= report.error_bound
        yield same(f"bound holds, {name}", bounded, np.ones(3, bool))
        kept = conv_attention(*arrays, options=options, tol=1e-6, **common)
        yield attention_case(f"tol, {name}", kept, arrays, scale=0.3, is_causal=True)


def number_of_threads(threads: int) -> Iterator[Case]:
    numbers = sorted({2, 3, threads, _validate.threads("check", None)})
    for dtype in DTYPES:
        problem = problems.dyadic_conv_problem(300, 18, 4, batch=(2,), seed=1, dtype=dtype)
        arrays = problem.query, problem.key, problem.value
        common: Any = {"is_causal": True, "scale": problem.scale}
        for name, function in (("conv", conv_attention), ("exact", exact_attention)):
            label = f"{name}, {precision(dtype)}"
            one = function(*arrays, num_threads=1, **common)
            yield attention_case(f"{label}, 1 thread", one, arrays, **common)
            for number in numbers:
                many = function(*arrays, num_threads=number, **common)
                yield same(f"{label}, {number} threads", many, one)


def layouts(threads: int) -> Iterator[Case]:
    for name, function in (("conv", conv_attention), ("exact", exact_attention)):
        problem = problems.conv_problem(90, 8, 3, batch=(4,), seed=2)
        arrays = problem.query, problem.key, problem.value
        strided = [np.repeat(array, 2, axis=1)[:, ::2] for array in arrays]
        transposed = [np.asfortranarray(array) for array in arrays]
        plain = function(*arrays, is_causal=True, num_threads=threads)
        yield attention_case(name, plain, arrays, scale=problem.scale, is_causal=True)
        for layout, views in (("every other row", strided), ("columns first", transposed)):
            query, key, value = views
            got = function(query, key, value, is_causal=True, num_threads=threads)
            yield same(f"{name}, {layout}", got, plain)


TOPICS = (
    Topic("exact attention", exact),
    Topic("shared heads", shared_heads),
    Topic("half precision", half_precision),
    Topic("recovery", recovery),
    Topic("attention by strips", strips),
    Topic("every column a strip", every_column),
    Topic("heavy logits", heavy_logits),
    Topic("decompose", decomposition),
    Topic("conv_matmul, transpose", products),
    Topic("toeplitz_matmul", toeplitz),
    Topic("row sums, deviation", sums_and_deviation),
    Topic("error known", known_error),
    Topic("number of threads", number_of_threads),
    Topic("memory layouts", layouts),
)
