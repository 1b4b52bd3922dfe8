"""The oracle's softmax attention against hand-computed numbers and exact rationals."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from convbasis import reference

SIZES = [0, 1, 2, 3, 5, 7, 16, 17]


def rational_attention(weights, value, is_causal):
    """``Y = D^-1 A V`` in exact arithmetic, entry by entry."""
    rows = []
    for i, row in enumerate(weights):
        seen = [j for j in range(len(row)) if not is_causal or j <= i]
        total = sum((row[j] for j in seen), Fraction(0))
        rows.append(
            [
                sum((row[j] * value[j][c] for j in seen), Fraction(0)) / total
                for c in range(len(value[0]))
            ]
        )
    return rows


def test_two_by_two_by_hand():
    # Logits 0 and log 3: the second row weighs the values 1 : 3.
    query, key = [[0.0], [1.0]], [[0.0], [np.log(3.0)]]
    value = [[4.0, 0.0], [8.0, 1.0]]
    out, lse = reference.attention(query, key, value, is_causal=True, scale=1.0)
    np.testing.assert_allclose(out, [[4.0, 0.0], [7.0, 0.75]], rtol=1e-15)
    np.testing.assert_allclose(lse, [0.0, np.log(4.0)], rtol=1e-15, atol=0)
    out, lse = reference.attention(query, key, value, scale=1.0)
    np.testing.assert_allclose(out, [[6.0, 0.5], [7.0, 0.75]], rtol=1e-15)
    np.testing.assert_allclose(lse, [np.log(2.0), np.log(4.0)], rtol=1e-15)


def test_default_scale_is_one_over_root_of_head_dim():
    query, key = np.full((1, 4), 1.0), np.full((1, 4), 3.0)
    assert reference.attention_logits(query, key)[0, 0] == 6.0
    assert reference.attention_logits(query, key, scale=0.25)[0, 0] == 3.0


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("n_q", "n_kv"), [(n, n) for n in range(1, 7)] + [(3, 5), (6, 2)])
def test_against_exact_rationals(n_q, n_kv, is_causal):
    rng = np.random.default_rng(n_q * 10 + n_kv)
    weights = [
        [Fraction(int(a), int(b)) for a, b in rng.integers(1, 50, size=(n_kv, 2))]
        for _ in range(n_q)
    ]
    value = [[Fraction(int(x), 7) for x in rng.integers(-20, 20, size=2)] for _ in range(n_kv)]
    logits = np.log(np.array(weights, dtype=np.float64))
    # Query rows e_i pick column i of the transposed logits.
    out, lse = reference.attention(
        np.eye(n_q), logits.T, np.array(value, dtype=np.float64), is_causal=is_causal, scale=1.0
    )
    expected = np.array(rational_attention(weights, value, is_causal), dtype=np.float64)
    np.testing.assert_allclose(out, expected, rtol=1e-13, atol=1e-14)
    totals = [float(sum(row[: i + 1] if is_causal else row)) for i, row in enumerate(weights)]
    np.testing.assert_allclose(np.exp(lse), totals, rtol=1e-13)


@pytest.mark.parametrize("n_kv", SIZES)
@pytest.mark.parametrize("n_q", SIZES)
def test_shapes_and_value_of_ones(n_q, n_kv):
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, n_q, 3)), rng.normal(size=(2, n_kv, 3))
    for is_causal in (False, True):
        out, lse = reference.attention(query, key, np.ones((2, n_kv, 4)), is_causal=is_causal)
        assert out.shape == (2, n_q, 4)
        assert lse.shape == (2, n_q)
        if n_kv:
            np.testing.assert_allclose(out, 1.0, rtol=1e-14)
            assert np.all(np.isfinite(lse))
        else:  # nothing to see
            assert not out.any()
            assert np.all(np.isneginf(lse))


def test_rows_without_visible_keys():
    mask = np.array([[True, False], [False, False], [True, True]])
    out, lse = reference.attention(np.zeros((3, 1)), np.zeros((2, 1)), [[2.0], [4.0]], mask=mask)
    assert out.tolist() == [[2.0], [0.0], [3.0]]
    assert lse.tolist() == [0.0, -np.inf, np.log(2.0)]


def test_mask_joins_the_causal_mask():
    mask = np.array([[True, True], [False, True]])
    out, _ = reference.attention(
        np.zeros((2, 1)), np.zeros((2, 1)), [[2.0], [4.0]], mask=mask, is_causal=True
    )
    assert out.tolist() == [[2.0], [4.0]]


def test_causal_is_top_left_aligned():
    assert reference.visible(2, 4, is_causal=True).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
    value = np.arange(1.0, 3.0)[:, None]
    out, _ = reference.attention(np.zeros((5, 1)), np.zeros((2, 1)), value, is_causal=True)
    assert out[:, 0].tolist() == [1.0, 1.5, 1.5, 1.5, 1.5]


def test_grouped_heads_are_repeated_in_a_row():
    rng = np.random.default_rng(1)
    query = rng.normal(size=(2, 6, 5, 3))
    key, value = rng.normal(size=(2, 2, 7, 3)), rng.normal(size=(2, 2, 7, 4))
    out, lse = reference.attention(query, key, value, enable_gqa=True)
    for h in range(6):
        one, one_lse = reference.attention(query[:, h], key[:, h // 3], value[:, h // 3])
        np.testing.assert_array_equal(out[:, h], one)
        np.testing.assert_array_equal(lse[:, h], one_lse)
    assert not np.allclose(out[:, 0], out[:, 3])


def test_a_constant_on_the_logits_moves_lse_alone():
    rng = np.random.default_rng(2)
    logits, mask = rng.normal(size=(5, 5)), reference.visible(5, 5, is_causal=True)
    weights, lse = reference.masked_softmax(logits, mask)
    shifted, shifted_lse = reference.masked_softmax(logits + 3.0, mask)
    np.testing.assert_allclose(shifted, weights, rtol=1e-14)
    np.testing.assert_allclose(shifted_lse, lse + 3.0, rtol=1e-14)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-14)


@pytest.mark.parametrize("size", [800.0, -800.0])
def test_large_logits_neither_overflow_nor_vanish(size):
    out, lse = reference.attention([[1.0]], [[size], [size]], [[2.0], [4.0]], scale=1.0)
    np.testing.assert_allclose(out, [[3.0]], rtol=1e-15)
    np.testing.assert_allclose(lse, [size + np.log(2.0)], rtol=1e-15)


def test_other_types_are_computed_in_float64():
    arrays = [np.array([[1.0, 2.0]], dtype=np.float16) for _ in range(3)]
    out, lse = reference.attention(*arrays)
    assert out.dtype == lse.dtype == np.float64
    assert out.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 0), (2, 0), (2, 1)), "head_dim 0"),
        (((2, 3), (2, 4), (2, 1)), "key has head_dim 4; expected 3"),
        (((2, 3), (2, 3), (5, 1)), "value has 5 rows; expected 2"),
    ],
)
def test_bad_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        reference.attention(*(np.ones(shape) for shape in shapes))


def test_heads_that_cannot_be_shared():
    query, key = np.ones((4, 2, 3)), np.ones((3, 2, 3))
    with pytest.raises(ValueError, match="3 heads; expected a divisor of the 4"):
        reference.attention(query, key, key, enable_gqa=True)


def test_oracle_needs_nothing_but_numpy():
    """It loads by its own path, in a process without the rest of the package."""
    folder = Path(reference.__file__).parent
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("oracle", {str(folder / "__init__.py")!r},
                                              submodule_search_locations=[{str(folder)!r}])
oracle = importlib.util.module_from_spec(spec)
sys.modules["oracle"] = oracle
spec.loader.exec_module(oracle)
assert not [name for name in sys.modules if name.split(".")[0] in ("convbasis", "scipy", "torch")]
print(oracle.conv([1.0, 2.0]).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[1.0, 0.0], [2.0, 1.0]]"


def test_every_exported_name_exists_and_is_documented():
    for name in reference.__all__:
        assert getattr(reference, name).__doc__
