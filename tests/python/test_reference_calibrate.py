"""The oracle of calibrated attention, by hand and by what its parts promise."""

import numpy as np
import pytest

from convbasis import reference as ref


def softmax_rows(query, key, rows):
    logits = ref.attention_logits(query[rows], key)
    return ref.masked_softmax(logits, rows[:, None] >= np.arange(len(key)))[0]


def model_rows(rows, beta, tau):
    """Rows of weights that are ``alpha_i tau[i - j] beta_j``, with sum 1."""
    lags = rows[:, None] - np.arange(len(beta))
    weights = np.where(lags >= 0, tau[np.maximum(lags, 0)] * beta, 0.0)
    return weights / weights.sum(1, keepdims=True)


def test_draws_are_numbers_of_splitmix():
    # The first outputs of SplitMix64 with seed 0, as published: a hash of one index is one step.
    x = 0x9E3779B97F4A7C15
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    assert x ^ x >> 31 == 0xE220A8397B1DCDAF
    draws = [ref.uniform_draw(seed, a, b) for seed in range(9) for a in range(9) for b in range(9)]
    assert len(set(draws)) == 9**3
    assert min(draws) >= 0
    assert max(draws) < 1
    assert np.mean(draws) == pytest.approx(0.5, abs=4 / np.sqrt(12 * 9**3))
    assert ref.uniform_draw(3, 1, -1) == ref.uniform_draw(3, 1, -1, 0)


def test_sample_rows_are_one_of_each_part():
    rows = ref.sample_rows(5, 1, 2100, 60)
    borders = 256 + (2100 - 256) * np.arange(61) // 60
    assert (borders[:-1] <= rows).all()
    assert (rows < borders[1:]).all()
    assert not np.array_equal(rows, ref.sample_rows(5, 2, 2100, 60))


def test_bins_by_hand():
    masses = np.ones(100)
    assert ref.lag_bins(masses, 10).tolist() == [10, 18, 26, 37, 53, 75, 100]
    masses[60] = 50.0
    assert ref.lag_bins(masses, 10).tolist() == [10, 18, 26, 37, 53, 60, 61, 75, 100]
    assert ref.lag_bins(masses, 99).tolist() == [99, 100]


@pytest.mark.parametrize("window", [1, 20, 40])
def test_the_fit_finds_what_is_there(window, monkeypatch):
    n = 100
    rng = np.random.default_rng(window)
    monkeypatch.setattr("convbasis.reference.calibrate.KEY_PRIOR", 1e-12)
    monkeypatch.setattr("convbasis.reference.calibrate.LAG_PRIOR", 1e-12)
    monkeypatch.setattr("convbasis.reference.calibrate.ITERATIONS", 1500)
    borders = ref.lag_bins(np.ones(n), window)
    tau = np.zeros(n)
    tau[window:] = np.repeat(rng.uniform(0.5, 2.0, len(borders) - 1), np.diff(borders))
    beta = rng.uniform(0.5, 2.0, n)
    rows = np.arange(window, n)
    weights = model_rows(rows, beta, tau)
    found = model_rows(rows, *ref.fit_far(weights, rows, window))
    np.testing.assert_allclose(found, weights, rtol=1e-6, atol=1e-9)


def test_a_sharp_lag_keeps_its_own_weight():
    n, window, lag = 1000, 16, 300
    tau = np.ones(n)
    tau[lag] = 500.0
    rows = np.arange(500, n, 7)
    _, found = ref.fit_far(model_rows(rows, np.ones(n), tau), rows, window)
    assert found[:window].max() == 0
    others = np.delete(found[window : rows[-1]], lag - window)
    assert found[lag] > 200 * others.max()


def test_masses_match():
    n, window = 700, 32
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, n, 4))
    rows = np.arange(256, n, 5)
    weights = softmax_rows(query, key, rows)
    lags = rows[:, None] - np.arange(n)
    far = lags >= window
    beta, tau = ref.fit_far(weights, rows, window)
    assert beta.mean() == pytest.approx(1)
    assert tau.sum() == pytest.approx(1)
    target = np.where(far, weights, 0.0)
    model = np.where(far, tau[np.maximum(lags, 0)] * beta, 0.0)
    model *= target.sum(1, keepdims=True) / model.sum(1, keepdims=True)
    borders = ref.lag_bins(np.bincount(lags[far], target[far], n), window)
    bins = np.searchsorted(borders, lags[far], side="right") - 1
    # After few rounds, and drawn to equal masses by a fiftieth and a fifth of the mean.
    got, want = np.bincount(bins, model[far]), np.bincount(bins, target[far])
    np.testing.assert_allclose(got, want, rtol=0.05, atol=0.05 * want.mean())
    got, want = model.sum(0), target.sum(0)
    loss = np.linalg.norm(got - want)
    assert loss < 0.25 * np.linalg.norm(want - want.mean())


def test_nothing_far_is_nothing():
    rows = np.arange(5, 10)
    weights = model_rows(rows, np.ones(10), np.eye(1, 10)[0])
    for window in (1, 10, 50):
        for fitted in ref.fit_far(weights, rows, window):
            np.testing.assert_array_equal(fitted, np.zeros(10))


def test_heavy_keys_by_hand():
    masses = [0.0, 5.0, 1.0, 0.0, 3.0, 1.0]
    assert ref.heavy_keys(masses, 1, 2).tolist() == [0, 1, 4]
    assert ref.heavy_keys(masses, 0, 3).tolist() == [1, 2, 4]
    assert ref.heavy_keys(masses, 2, 9).tolist() == [0, 1, 2, 4, 5]
    assert ref.heavy_keys(masses, 9, 9).tolist() == [0, 1, 2, 3, 4, 5]


def test_blocks_are_ranked_by_weight():
    n = 6 * 64 + 10
    query, key = np.ones((n, 1)), np.zeros((n, 1))
    key[64:128], key[200], key[250] = 1.0, 9.0, 3.0
    ranked = ref.rank_key_blocks(query, key, [200], 1, scale=1.0)
    assert [r.tolist() for r in ranked[:4]] == [[], [], [0], [1, 0]]
    assert ranked[5].tolist() == [1, 3, 2, 0]
    assert ranked[6].tolist() == [1, 3, 4, 2, 0]


def test_even_draws_are_in_proportion():
    weights = np.array([0.0, 1.0, 2.0, 0.0, 5.0])
    for offset in (0.0, 0.3, 0.999):
        drawn = ref.draw_keys(weights, 80, offset)
        np.testing.assert_array_equal(np.bincount(drawn), 10 * weights)
    assert len(ref.draw_keys(np.zeros(3), 5, 0.5)) == 0


@pytest.fixture
def head():
    """A head of 7 blocks and a bit, its arrays, and drawn keys."""
    n = 7 * 64 + 9
    rng = np.random.default_rng(4)
    query, key, value = rng.normal(size=(3, n, 4))
    tau = rng.random(n)
    tau[:70] = 0.0
    beta = rng.random(n)
    heavy = np.array([0, 5, 130, 300])
    beta[heavy] = 0.0
    retrieved = [[] for _ in range(5)] + [[1], [0, 3], [2]]
    head = ref.CalibratedHead(2, retrieved, heavy, beta, tau)
    drawn = [ref.draw_keys(head.draw_weights(block), 40, 0.5) for block in range(8)]
    return head, (query, key, value), drawn


def test_each_key_is_exact_or_far(head):
    exact = head[0].exact_keys()
    assert not np.triu(exact, 1).any()
    for row in (0, 100, 255):
        assert exact[row, : row + 1].all()
    for row, blocks in ((256, {2, 3, 4}), (400, {0, 3, 4, 5, 6}), (456, {2, 5, 6, 7})):
        want = np.isin(np.arange(row + 1) // 64, list(blocks))
        want[[k for k in (0, 5, 130, 300) if k <= row]] = True
        np.testing.assert_array_equal(exact[row, : row + 1], want)
    for block in range(8):
        far = head[0].draw_weights(block) > 0
        assert not (far & exact[min(64 * block + 63, 456)]).any()
        assert far.any() == (block in (4, 5, 6, 7))


def test_weights_of_the_definition(head):
    found, (query, key, value), drawn = head
    out, lse, share = ref.calibrated_attention(query, key, value, found, drawn, scale=0.5)
    exact = found.exact_keys()
    for row in (3, 255, 256, 330, 456):
        logits = 0.5 * key[: row + 1] @ query[row]
        weights, chosen = np.exp(logits), drawn[row // 64]
        model = np.array([found.lag_weights[row - j] for j in range(row + 1)])
        model *= found.key_weights[: row + 1]
        far = ~exact[row, : row + 1]
        if far.any():
            chance = found.draw_weights(row // 64)[chosen]
            alpha = (weights[chosen] / chance).sum() / (model[chosen] / chance).sum()
            drawn_mass = (weights[chosen] / chance).mean() * found.draw_weights(row // 64).sum()
            near_mass = weights[~far].sum()
            assert share[row] == pytest.approx(drawn_mass / (drawn_mass + near_mass))
            weights[far] = alpha * model[far]
        want = weights @ value[: row + 1] / weights.sum()
        np.testing.assert_allclose(out[row], want, rtol=1e-12)
        assert lse[row] == pytest.approx(np.log(weights.sum()))


def test_a_model_that_is_true_gives_exact_attention(head):
    found, (_, _, value), drawn = head
    n = len(value)
    tau = np.exp(-np.arange(n) / 200.0)
    bias = np.random.default_rng(1).normal(size=n)
    bias[np.asarray(found.heavy)] = 0.0
    # The logit -(i - j) / 200 + bias_j + 1, as an inner product.
    query = np.stack([np.arange(n) / -200.0, np.ones(n)], axis=1)
    key = np.stack([np.ones(n), np.arange(n) / 200.0 + bias + 1.0], axis=1)
    beta = np.exp(bias)
    beta[np.asarray(found.heavy)] = 0.0
    true = ref.CalibratedHead(2, found.retrieved, found.heavy, beta, tau)
    out, lse, _ = ref.calibrated_attention(query, key, value, true, drawn, scale=1.0)
    want = ref.attention(query, key, value, is_causal=True, scale=1.0)
    np.testing.assert_allclose(out, want[0], rtol=1e-10)
    logits = np.where(np.tri(n, dtype=bool), query @ key.T, -np.inf)
    np.testing.assert_allclose(lse, np.log(np.exp(logits).sum(1)), rtol=1e-10)


def test_far_keys_can_be_dropped(head):
    found, (query, key, value), drawn = head
    near = ref.CalibratedHead(
        2, found.retrieved, found.heavy, found.key_weights, found.lag_weights, has_far=False
    )
    out, _, _ = ref.calibrated_attention(query, key, value, near, drawn, scale=0.5)
    logits = ref.attention_logits(query, key, scale=0.5)
    want = ref.masked_softmax(logits, near.exact_keys())[0] @ value
    np.testing.assert_allclose(out, want, rtol=1e-11, atol=1e-13)
