"""What calibrated attention says of its error, and what it does about it."""

import json

import numpy as np
import pytest

import convbasis as cb

CASES = [(2048, 0.3, 32), (2048, 0.2, 32), (4096, 0.2, 16)]


def attend(arrays, **call):
    call = {"is_causal": True, "scale": 1.0, "enable_gqa": True, **call}
    call.setdefault("options", cb.CalibrateOptions())
    return cb.conv_attention(*arrays, return_report=True, **call)


def exactly(arrays):
    return cb.exact_attention(*arrays, is_causal=True, scale=1.0, enable_gqa=True)


def true_errors(out, exact):
    exact = exact.astype(np.float64)
    return np.linalg.norm(out - exact, axis=(2, 3)) / np.linalg.norm(exact, axis=(2, 3))


@pytest.mark.parametrize(("n", "tol", "heads"), CASES)
def test_errors_lie_in_their_intervals_and_below_the_tolerance(content_heads, n, tol, heads):
    inside, below, ratios = [], [], []
    for seed in range(2):
        arrays = content_heads(n, heads, kv_heads=heads // 2, dtype=np.float32, seed=seed)
        out, report = attend(arrays, tol=tol, options=cb.CalibrateOptions(seed=seed))
        errors = true_errors(out, exactly(arrays))
        assert (errors[report.exact_mask] < 1e-5).all()
        kept = ~report.exact_mask
        low, high = (report.error_interval[kept][:, end] for end in (0, 1))
        inside += list((low <= errors[kept]) & (errors[kept] <= high))
        below += list(errors[kept] <= tol)
        ratios += list(errors[kept] / report.error_estimate[kept])
        assert (high <= tol).all()
    assert len(inside) >= heads // 2  # of 2 heads each: some are approximated
    assert np.mean(inside) >= 0.9
    assert np.mean(below) >= 0.95
    assert 0.8 < np.median(ratios) < 1.2


def test_without_a_tolerance_errors_are_told_too(content_heads):
    arrays = content_heads(2048, 32, dtype=np.float32, seed=5)
    out, report = attend(arrays)
    errors = true_errors(out, exactly(arrays))
    assert report.heads_exact == 0
    assert not report.blocks_exact.any()
    low, high = report.error_interval[..., 0], report.error_interval[..., 1]
    assert np.mean((low <= errors) & (errors <= high)) >= 0.9


def test_blocks_judged_exact_are_exact(content_heads, row_error):
    n = 4133
    arrays = content_heads(n, 8, kv_heads=4, seed=8)
    out, report = attend(arrays, tol=0.2)
    some = (report.blocks_exact > 0) & ~report.exact_mask
    assert some.any()
    assert not some.all()
    exact, kept = exactly(arrays), attend(arrays, tol=0.2, on_miss="keep")[0]
    assert report.num_blocks == 65
    for head in zip(*np.nonzero(~report.exact_mask), strict=True):
        mended = 0
        for rows in (slice(first, first + 64) for first in range(256, n, 64)):
            if not np.array_equal(out[head][rows], kept[head][rows]):
                assert row_error(out[head][rows], exact[head][rows]) < 1e-12
                mended += 1
        # Early blocks may have been all but exact before.
        assert report.blocks_exact[head] - 8 <= mended <= report.blocks_exact[head]
    assert row_error(out[report.exact_mask], exact[report.exact_mask]) < 1e-12


def test_a_tiny_tolerance_means_exact_attention(content_heads, row_error):
    arrays = content_heads(2085, 3)
    out, report = attend(arrays, tol=1e-9)
    assert row_error(out, exactly(arrays)) < 1e-12
    assert report.method == "exact"
    assert report.heads_exact == 3
    assert (report.blocks_exact == report.num_blocks).all()
    assert not report.error_interval.any()


def test_hopeless_heads_are_seen_early(qkv, row_error):
    arrays = qkv(2048, 16, lead=(1, 4), seed=2)
    out, report = attend(arrays, tol=0.05)
    assert row_error(out, exactly(arrays)) < 1e-12
    assert report.heads_exact == 4
    assert report.exact_mask.all()
    assert np.isinf(report.sample_error).all()
    assert (report.exact_share <= 1.15).all()
    assert report.why_exact((0, 3)) == "costs more"
    assert str(report).count("| costs more |") == 4
    assert not report.judged_rows.any()
    assert not report.has_far.any()


def test_hopeless_heads_that_are_kept_get_all_that_the_options_allow(qkv):
    arrays = qkv(2048, 16, lead=(1, 2), seed=1)
    plain, _ = attend(arrays)
    kept, report = attend(arrays, tol=0.05, on_miss="keep")
    assert np.isinf(report.sample_error).all()
    exact = exactly(arrays)
    assert (true_errors(kept, exact) < 1.1 * true_errors(plain, exact)).all()


def test_exact_share_counts_what_was_tried_in_vain(qkv):
    query, key, value = qkv(2048, 16, lead=(1, 4), seed=2)
    _, report = attend((query * 2.0, key, value), tol=0.3)
    early = np.isinf(report.sample_error)
    assert early.any()
    assert not early.all()
    assert report.exact_share[~early].min() > report.exact_share[early].max() + 0.1
    np.testing.assert_array_equal(report.judged_rows, np.where(early, 0, 64 + 3 * 64))


def test_exact_share_of_more_drawn_keys_than_there_are(qkv):
    arrays = qkv(2048, 8, lead=(1, 1))
    few, many = (cb.CalibrateOptions(sample_keys=count) for count in (64, 2**63 - 1))
    assert attend(arrays, options=many)[1].exact_share > attend(arrays, options=few)[1].exact_share


def test_on_miss_error_of_hopeless_heads(qkv):
    query, key, value = qkv(2048, 16, lead=(1, 2), seed=2)
    with pytest.raises(
        cb.ToleranceMissed, match=r"got head \(0, 0\): no approximation pays, head \(0, 1\): no app"
    ):
        attend((query * 2.0, key, value), tol=1e-6, on_miss="error")


def test_on_miss(content_heads):
    arrays = content_heads(2048, 4, seed=4)
    out = np.full(arrays[2].shape, 7.0)
    with pytest.raises(cb.ToleranceMissed, match=r"tol is missed by . of 4 heads"):
        attend(arrays, tol=0.01, on_miss="error", out=out)
    assert (out == 7.0).all()
    kept, report = attend(arrays, tol=0.01, on_miss="keep")
    assert report.heads_exact == 0
    assert report.on_miss == "keep"
    assert (true_errors(kept, exactly(arrays)) > 0.01).any()
    met, report = attend(arrays, tol=0.9, on_miss="error", out=out)
    assert met is out
    assert report.heads_exact == 0
    assert (true_errors(out, exactly(arrays)) < 0.9).all()


def test_out_and_lse_of_mended_blocks(content_heads):
    arrays = content_heads(2048, 4, seed=3)
    want, want_lse, report = attend(arrays, tol=0.12, return_lse=True)
    assert report.blocks_exact.any()
    out = np.empty((1, 4, 32, 2048)).swapaxes(2, 3)
    got, _ = attend(arrays, tol=0.12, out=out)
    assert got is out
    np.testing.assert_array_equal(got, want)
    _, exact_lse = cb.exact_attention(*arrays, is_causal=True, scale=1.0, return_lse=True)
    assert np.median(np.abs(want_lse - exact_lse)) < 0.1


@pytest.mark.parametrize("n", [0, 1, 65, 2047])
def test_short_sequences_are_exact(content_heads, qkv, n):
    arrays = qkv(n, 8, lead=(1, 2))
    out, report = attend(arrays, tol=0.1)
    np.testing.assert_array_equal(out, exactly(arrays))
    assert report.method == "exact"
    assert report.heads_exact == 2
    np.testing.assert_array_equal(report.exact_share, np.ones((1, 2)))
    assert json.loads(report.to_json())["sample_error"] == [[None, None]]
    assert report.why_exact((0, 1)) == "short"


def test_the_report(content_heads):
    arrays = [array[0] for array in content_heads(2048, 3, seed=3)]
    _, report = attend(arrays, tol=0.1)
    for name in ("error_estimate", "sample_error", "exact_mask", "blocks_exact", "window"):
        assert getattr(report, name).shape == (3,)
    assert report.error_interval.shape == (3, 2)
    plain = report.to_dict()
    assert json.loads(report.to_json()) == json.loads(json.dumps(plain))
    assert plain["heads_exact"] == sum(plain["exact_mask"])
    assert plain["tol"] == 0.1
    for head in range(3):
        whole = plain["exact_mask"][head]
        assert (plain["blocks_exact"][head] == 32) == whole
        assert plain["window"][head] in ((0,) if whole else (64, 256))
        assert (report.why_exact(head) != "-") == whole
        # At most what is approximated, all of it again, and the sample rows.
        assert 0.05 < plain["exact_share"][head] < 1.4
    text = str(report)
    assert text == report.to_markdown()
    assert len(text.splitlines()) == 7
    assert "| 2 |" in text
    assert "heads exact" in repr(report)
    none = attend([np.zeros((1, 0, 2048, 8))] * 3, tol=0.1)[1]
    assert "0 of 0 heads exact, 0% of the logits" in repr(none)
    single = attend([array[0] for array in arrays], tol=0.1, enable_gqa=False)[1]
    assert np.ndim(single.error_estimate) == 0
    assert "| - |" in str(single)
