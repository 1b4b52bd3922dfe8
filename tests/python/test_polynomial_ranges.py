"""polynomial_attention where numbers are large, unbalanced or hidden, or sequences short."""

import numpy as np
import pytest

import convbasis as cb
from convbasis import masks

ROWS, KEYS = np.arange(127), np.arange(300)
CHANGES = [[k] for k in 2 * np.arange(1, 127)], [[]] * 126

#: Some keys of 300 are seen by none of 127 queries.
HIDING = {
    "sliding": masks.SlidingWindow(50),
    "row window": masks.RowWindow(ROWS // 2, 2 * ROWS),
    "row change": masks.RowChange([0], *CHANGES),
    "distinct rows": masks.DistinctRows(ROWS % 3, [KEYS < 90, KEYS % 2 == 0, KEYS < 0]),
    "distinct columns": masks.DistinctColumns(KEYS % 3, [ROWS < 90, ROWS % 2 == 0, ROWS < 0]),
}


def uniform(n_q, n_kv, d, *, lead=(), spread=1.0):
    rng = np.random.default_rng(0)
    shapes = ((*lead, n_q, d), (*lead, n_kv, d), (*lead, n_kv, 5))
    query, key, value = (rng.uniform(-1.0, 1.0, size=s).astype(np.float32) for s in shapes)
    return np.float32(spread) * query, np.float32(spread) * key, value


@pytest.mark.parametrize("kind", [None, *HIDING])
def test_large_keys_with_small_queries_are_as_good(kind):
    query, key, value = uniform(127, 300, 4)
    call = {"degree": 6, "return_lse": True, "return_report": True}
    call["attn_mask"] = None if kind is None else HIDING[kind]
    *want, report = cb.polynomial_attention(query, key, value, **call)
    for power in (10, -10, 60):
        factor = np.float32(2.0**power)
        *got, again = cb.polynomial_attention(query * factor, key / factor, value, **call)
        assert all((a == b).all() for a, b in zip(got, want, strict=True))
        assert again.rows_exact == report.rows_exact == 0
        kept = again.to_dict() | {"seconds": None}
        assert kept == report.to_dict() | {"seconds": None}


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", HIDING)
def test_keys_that_nobody_sees_do_not_count(kind, is_causal):
    query, key, value = uniform(127, 300, 3)
    mask = HIDING[kind]
    dense = mask.to_dense(127, 300) & (np.tri(127, 300, dtype=bool) if is_causal else True)
    hidden = ~dense.any(axis=0)
    assert 0 < hidden.sum() < 300
    call = {"attn_mask": mask, "is_causal": is_causal}
    want, report = cb.polynomial_attention(query, key, value, degree=5, return_report=True, **call)
    grads = cb.polynomial_attention_backward(query, key, value, query[:, [0] * 5], degree=5, **call)
    key[hidden] = 1e30
    got, again = cb.polynomial_attention(query, key, value, degree=5, return_report=True, **call)
    assert (got == want).all()
    assert (again.heads_exact, again.rows_exact) == (report.heads_exact, report.rows_exact)
    assert report.heads_exact == report.rows_exact == 0
    assert again.radius == report.radius
    assert cb.bounded_entries(query, key, **call).radius == report.radius
    hurt = cb.polynomial_attention_backward(query, key, value, query[:, [0] * 5], degree=5, **call)
    assert all((a == b).all() for a, b in zip(hurt, grads, strict=True))


def test_logits_that_overflow_leave_out_alone():
    query, key, value = uniform(200, 200, 4, lead=(3,))
    query[2, 5] = key[2, 9] = 1e30
    out = np.full_like(value, 7.0)
    wrong = r"^\[polynomial_attention\] query has logits .* overflow; expected .* in float32; got "
    for wanted in ({"tol": 1e-2}, {"degree": 3}):
        with pytest.raises(ValueError, match=wrong):
            cb.polynomial_attention(query, key, value, out=out, **wanted)
        assert (out == 7.0).all()
    with pytest.raises(ValueError, match=wrong.replace("attention", "attention_backward")):
        cb.polynomial_attention_backward(query, key, value, value)


def test_short_sequences_are_computed_exactly():
    query, key, value = uniform(200, 200, 8, spread=0.5)
    out, report = cb.polynomial_attention(
        query, key, value, is_causal=True, tol=0.1, return_report=True
    )
    assert report.heads_exact == 1
    assert report.degree >= 1
    assert report.cost_exact < report.cost_polynomial
    alone = cb.polynomial_attention(query, key, value, is_causal=True, tol=0.1)
    assert (alone == out).all()
    assert (out == cb.exact_attention(query, key, value, is_causal=True)).all()
