"""The oracle of calibrated attention, by hand and by what its parts promise."""

import numpy as np
import pytest

from convbasis import reference as ref


def softmax_rows(query, key, rows):
    logits = ref.attention_logits(query[rows], key)
    return ref.masked_softmax(logits, rows[:, None] >= np.arange(len(key)))[0]


def model_rows(rows, beta, tau, near=0):
    """Rows of weights that are ``alpha_i tau[I - J] beta_j`` for far blocks, with sum 1."""
    lags = rows[:, None] // 64 - np.arange(len(beta)) // 64
    weights = np.where(lags > near, tau[np.maximum(lags, 0)] * beta, 0.0)
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
    assert ref.block_lag_bins(1, 20).tolist() == [1, 2, 3, 5, 8, 12, 17, 20]
    assert ref.block_lag_bins(3, 6).tolist() == [3, 5, 6]
    assert ref.block_lag_bins(7, 8).tolist() == [7, 8]


def test_single_lags_by_hand():
    masses, borders = np.ones(500), [1, 2, 3, 5, 8]
    masses[:64] = 0.0
    assert ref.single_lags(masses, borders).tolist() == []
    masses[[100, 400, 499]] = 30.0, 60.0, 9.0  # 8 times the mean of its bin; and 2 % of all
    assert ref.single_lags(masses, borders).tolist() == [100, 400]
    masses[64:84] = 30.0  # the bin of the first is heavy all over
    assert ref.single_lags(masses, borders).tolist() == [400]


@pytest.mark.parametrize("near", [0, 1, 3])
def test_the_fit_finds_what_is_there(near, monkeypatch):
    n = 620
    rng = np.random.default_rng(near)
    monkeypatch.setattr("convbasis.reference.calibrate.KEY_PRIOR", 1e-12)
    monkeypatch.setattr("convbasis.reference.calibrate.LAG_PRIOR", 1e-12)
    monkeypatch.setattr("convbasis.reference.calibrate.ITERATIONS", 1500)
    borders = ref.block_lag_bins(near + 1, 10)
    tau = np.zeros(10)
    tau[near + 1 :] = np.repeat(rng.uniform(0.5, 2.0, len(borders) - 1), np.diff(borders))
    beta = rng.uniform(0.5, 2.0, n)
    rows = np.arange(64 * (near + 1), n, 3)
    weights = model_rows(rows, beta, tau, near)
    beta, tau, single = ref.fit_far(weights, rows, near)
    np.testing.assert_allclose(model_rows(rows, beta, tau, near), weights, rtol=1e-6, atol=1e-9)
    assert len(single) == 0


def test_a_single_lag_is_found_and_left_out_of_its_bin():
    n, lag = 1000, 300
    tau = np.zeros(16)
    tau[2:] = 1.0
    rows = np.arange(500, n, 7)
    flat = model_rows(rows, np.ones(n), tau, 1)
    sharp = flat.copy()
    sharp[np.arange(len(rows)), rows - lag] += 0.5
    beta, with_it, single = ref.fit_far(sharp, rows, 1)
    assert single.tolist() == [lag]
    _, without, none = ref.fit_far(flat, rows, 1)
    assert len(none) == 0
    assert with_it[:2].max() == 0
    # All of it in the bin would make 8 blocks of it, of 14, half again as heavy.
    np.testing.assert_allclose(with_it[2:], without[2:], rtol=0.12)
    assert beta.mean() == pytest.approx(1)


def test_masses_match():
    n, near = 700, 1
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, n, 4))
    rows = np.arange(256, n, 5)
    weights = softmax_rows(query, key, rows)
    lags = rows[:, None] // 64 - np.arange(n) // 64
    far = lags > near
    beta, tau, single = ref.fit_far(weights, rows, near)
    assert beta.mean() == pytest.approx(1)
    assert 64 * tau.sum() == pytest.approx(1)
    assert len(single) == 0
    target = np.where(far, weights, 0.0)
    model = np.where(far, tau[np.maximum(lags, 0)] * beta, 0.0)
    model *= target.sum(1, keepdims=True) / model.sum(1, keepdims=True)
    borders = ref.block_lag_bins(near + 1, 11)
    bins = np.searchsorted(borders, lags[far], side="right") - 1
    # After few rounds, and drawn to equal masses by a fiftieth and a fifth of the mean.
    got, want = np.bincount(bins, model[far]), np.bincount(bins, target[far])
    np.testing.assert_allclose(got, want, rtol=0.05, atol=0.05 * want.mean())
    got, want = model.sum(0), target.sum(0)
    loss = np.linalg.norm(got - want)
    assert loss < 0.25 * np.linalg.norm(want - want.mean())


def test_nothing_far_is_nothing():
    rows = np.arange(100, 130)
    weights = np.eye(130)[rows]
    for near in (0, 1, 5):
        for fitted in ref.fit_far(weights, rows, near):
            assert not np.any(fitted)


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
    assert [order.tolist() for order, _ in ranked[:4]] == [[], [], [0], [1, 0]]
    assert ranked[5][0].tolist() == [1, 3, 2, 0]
    assert ranked[6][0].tolist() == [1, 3, 4, 2, 0]
    total = np.exp(9) + np.exp(3) + 64 * np.e + 10 + 6 * 64 - 66  # the last block has 10 keys
    want = [64 * np.e, 63 + np.exp(3), 64, 64, 64]
    want[2 - 1] = 62 + np.exp(3)  # block 3 has the heavy key too
    np.testing.assert_allclose(ranked[6][1], np.array(want) / total)


def test_the_largest_shares_are_taken():
    none = np.zeros(0, np.int64), np.zeros(0)
    ranked = [none] * 4 + [
        (np.array([0, 2]), np.array([0.5, 0.1])),
        (np.array([3, 0, 1]), np.array([0.4, 0.3, 0.2])),
        (np.array([1, 2]), np.array([0.05, 0.0])),
    ]
    assert ref.take_largest(ranked, 1, 0, 9).tolist() == [0] * 7
    assert ref.take_largest(ranked, 1, 1, 9).tolist() == [0, 0, 0, 0, 1, 2, 0]
    assert ref.take_largest(ranked, 2, 1, 9).tolist() == [0, 0, 0, 0, 1, 2, 0]  # 3 is near 5
    assert ref.take_largest(ranked, 1, 9, 9).tolist() == [0, 0, 0, 0, 2, 3, 1]
    assert ref.take_largest(ranked, 1, 9, 1).tolist() == [0, 0, 0, 0, 1, 1, 1]


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
    tau = rng.random(8)
    tau[:3] = 0.0
    beta = rng.random(n)
    heavy = np.array([0, 5, 130, 300])
    beta[heavy] = 0.0
    retrieved = [[] for _ in range(5)] + [[1], [0, 3], [2]]
    head = ref.CalibratedHead(2, retrieved, heavy, beta, tau, lags=[210, 250])
    drawn = [ref.draw_keys(head.model(block), 40, 0.5) for block in range(8)]
    return head, (query, key, value), drawn


def test_each_key_is_exact_or_far(head):
    exact = head[0].exact_keys()
    assert not np.triu(exact, 1).any()
    for row in (0, 100, 255):
        assert exact[row, : row + 1].all()
    for row, blocks in ((256, {2, 3, 4}), (400, {0, 3, 4, 5, 6}), (456, {2, 5, 6, 7})):
        want = np.isin(np.arange(row + 1) // 64, list(blocks))
        want[[k for k in (0, 5, 130, 300, row - 210, row - 250) if k <= row]] = True
        np.testing.assert_array_equal(exact[row, : row + 1], want)
    for block in range(8):
        far = head[0].model(block) > 0
        assert (far & exact[min(64 * block + 63, 456)]).sum() <= 2  # at single lags
        assert far.any() == (block in (4, 5, 6, 7))


def test_weights_of_the_definition(head):
    found, (query, key, value), drawn = head
    out, lse, share = ref.calibrated_attention(query, key, value, found, drawn, scale=0.5)
    exact = found.exact_keys()
    for row in (3, 255, 256, 330, 456):
        logits = 0.5 * key[: row + 1] @ query[row]
        weights, chosen = np.exp(logits), drawn[row // 64]
        model = np.array([found.lag_weights[row // 64 - j // 64] for j in range(row + 1)])
        model *= found.key_weights[: row + 1]
        far = ~exact[row, : row + 1]
        if far.any():
            is_far = far[chosen]
            ratios = (weights[chosen] / model[chosen])[is_far]
            alpha = ratios.mean()
            chances = found.model(row // 64)
            np.testing.assert_allclose(chances[: row + 1][far], model[far])
            drawn_mass = ratios.sum() / len(chosen) * chances.sum()
            near_mass = weights[~far].sum()
            assert share[row] == pytest.approx(drawn_mass / (drawn_mass + near_mass))
            weights[far] = alpha * model[far]
        want = weights @ value[: row + 1] / weights.sum()
        np.testing.assert_allclose(out[row], want, rtol=1e-12)
        assert lse[row] == pytest.approx(np.log(weights.sum()))


def test_a_model_that_is_true_gives_exact_attention(head):
    found, (_, _, value), drawn = head
    n = len(value)
    blocks = np.arange(n) // 64
    tau = np.exp(-np.arange(8) / 3.0)
    bias = np.random.default_rng(1).normal(size=n)
    bias[np.asarray(found.heavy)] = 0.0
    # The logit -(I - J) / 3 + bias_j + 1, as an inner product.
    query = np.stack([blocks / -3.0, np.ones(n)], axis=1)
    key = np.stack([np.ones(n), blocks / 3.0 + bias + 1.0], axis=1)
    beta = np.exp(bias)
    beta[np.asarray(found.heavy)] = 0.0
    true = ref.CalibratedHead(2, found.retrieved, found.heavy, beta, tau, found.lags)
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
