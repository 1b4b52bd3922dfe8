"""The Report: what it says is true, and it prints."""

import dataclasses
import json

import numpy as np
import pytest

import convbasis as cb
from convbasis import problems, reference


@pytest.fixture
def noisy():
    """Three heads whose logits deviate a little from two strips."""
    return problems.conv_problem(300, 8, 2, batch=(3,), seed=1, epsilon=1e-3)


def attend(problem, **options):
    call = {
        "options": cb.RecoverOptions(num_bases=2, delta=0.1),
        "is_causal": True,
        "scale": problem.scale,
        "return_report": True,
        **options,
    }
    return cb.conv_attention(problem.query, problem.key, problem.value, **call)


def test_a_certificate_bounds_the_error(noisy):
    out, report = attend(noisy, certify=True)
    want, _ = reference.attention(
        noisy.query, noisy.key, noisy.value, is_causal=True, scale=noisy.scale
    )
    error = np.abs(out - want).max(axis=(1, 2))
    basis = cb.recover_basis(
        noisy.query, noisy.key, scale=noisy.scale, options=cb.RecoverOptions(num_bases=2, delta=0.1)
    )
    deviation = basis.residual(noisy.query, noisy.key, scale=noisy.scale)
    assert report.certified is True
    np.testing.assert_allclose(report.logit_deviation, deviation, rtol=1e-12)
    assert np.all(error > 0)
    assert np.all(error <= report.error_bound)
    for head in range(3):
        bound = reference.a_posteriori_bound(deviation[head], noisy.value[head])
        assert report.error_bound[head] == pytest.approx(bound)


def test_the_estimate_is_near_the_truth(noisy):
    out, report = attend(noisy)
    want, _ = reference.attention(
        noisy.query, noisy.key, noisy.value, is_causal=True, scale=noisy.scale
    )
    true = np.linalg.norm(out - want, axis=(1, 2)) / np.linalg.norm(want, axis=(1, 2))
    assert report.certified is False
    assert report.sample_rows == 224
    np.testing.assert_allclose(report.error_estimate, true, rtol=0.5)
    assert np.all(report.error_interval[:, 0] < report.error_estimate)
    assert np.all(report.error_estimate < report.error_interval[:, 1])
    assert np.all(true <= report.error_interval[:, 1])
    assert np.all((report.unseen_share > 0) & (report.unseen_share < 0.2))


def test_the_estimate_is_exact_when_all_rows_are_sampled(noisy):
    short = dataclasses.replace(
        noisy, query=noisy.query[:, :100], key=noisy.key[:, :100], value=noisy.value[:, :100]
    )
    out, report = attend(short)
    want, _ = reference.attention(
        short.query, short.key, short.value, is_causal=True, scale=short.scale
    )
    true = np.linalg.norm(out - want, axis=(1, 2)) / np.linalg.norm(want, axis=(1, 2))
    assert report.sample_rows == 100
    np.testing.assert_allclose(report.error_estimate, true, rtol=1e-9)
    np.testing.assert_array_equal(report.error_interval[:, 0], report.error_estimate)
    np.testing.assert_array_equal(report.error_interval[:, 1], report.error_estimate)
    np.testing.assert_array_equal(report.unseen_share, [0.0, 0.0, 0.0])


@pytest.mark.parametrize("is_causal", [True, False])
def test_both_triangles_are_measured(is_causal, noisy):
    _, report = attend(
        noisy, is_causal=is_causal, certify=True, options=cb.RecoverOptions(num_bases=1)
    )
    logits = reference.attention_logits(noisy.query, noisy.key, scale=noisy.scale)
    bases = [(logits[h], noisy.query[h], noisy.key[h]) for h in range(3)]
    for head, (dense, query, key) in enumerate(bases):
        lower, _ = reference.recover(query, key, num_bases=1, scale=noisy.scale)
        want = reference.logit_deviation(dense, lower)
        if not is_causal:
            upper, _ = reference.recover(query[::-1], key[::-1], num_bases=1, scale=noisy.scale)
            want = max(want, reference.logit_deviation(dense[::-1, ::-1], upper))
        assert report.logit_deviation[head] == pytest.approx(want)


def test_values_at_the_ends_of_the_range():
    """Squares of the outputs neither overflow nor vanish."""
    problem = problems.conv_problem(200, 8, 2, seed=1, epsilon=1e-3)
    estimates = []
    for factor in (1.0, 1e200, 1e-200):
        scaled = dataclasses.replace(problem, value=problem.value * factor)
        estimates.append(attend(scaled)[1].error_estimate)
    assert estimates[0] > 0
    np.testing.assert_allclose(estimates, estimates[0], rtol=1e-6)


def test_shapes_follow_the_inputs():
    for lead in [(), (4,), (2, 3), (2, 1, 2)]:
        problem = problems.conv_problem(140, 4, 1, batch=lead)
        report = attend(problem)[-1]
        for name in (
            "num_bases",
            "complete",
            "logit_deviation",
            "error_bound",
            "error_estimate",
            "unseen_share",
            "strips_error",
            "exact_mask",
            "rows_exact",
            "rounding_bound",
        ):
            assert np.shape(getattr(report, name)) == lead, name
        assert report.error_interval.shape == (*lead, 2)
        assert report.to_markdown().count("\n") == 3 + int(np.prod(lead))


def test_json_is_strict_and_complete(noisy):
    report = attend(noisy, tol=1e-9, on_miss="keep", return_lse=True)[-1]
    loaded = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(name))
    assert set(loaded) == {field.name for field in dataclasses.fields(cb.Report)}
    assert loaded["num_bases"] == [2, 2, 2]
    assert loaded["method"] == "conv_basis"
    assert loaded["tol"] == 1e-9
    assert loaded["on_miss"] == "keep"
    assert loaded["backend"] == "cpu"
    unknown = dataclasses.replace(report, error_bound=np.array([np.nan, np.inf, 1.0]))
    assert json.loads(unknown.to_json())["error_bound"] == [None, None, 1.0]


def test_seconds_and_block_lengths(noisy):
    stages = {"check", "recover", "kernels", "estimate", "total"}
    for tol, stage in [(None, "attend"), (1e-9, "exact")]:
        report = attend(noisy, tol=tol)[-1]
        assert stages | {stage} <= set(report.seconds)
        assert all(seconds >= 0 for seconds in report.seconds.values())
        wall = stages | {stage}
        assert max(report.seconds[name] for name in wall) == report.seconds["total"]
        assert all(isinstance(length, int) for length in report.block_lengths)
    assert report.method == "exact"
    assert np.all(report.strips_error > 1e-9)


def test_a_report_cannot_be_changed(noisy):
    report = attend(noisy)[-1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.tol = 1.0


def test_results_come_in_order(noisy):
    arrays = noisy.query, noisy.key, noisy.value
    assert isinstance(cb.conv_attention(*arrays, is_causal=True), np.ndarray)
    out, lse, report = cb.conv_attention(
        *arrays, is_causal=True, return_lse=True, return_report=True
    )
    assert out.shape == (3, 300, 8)
    assert lse.shape == (3, 300)
    assert isinstance(report, cb.Report)


def test_printing_is_short_and_says_what_happened():
    x = np.ones((2, 8, 4))
    _, report = cb.conv_attention(x, x, x, is_causal=True, return_report=True)
    assert repr(report).startswith(
        "<Report conv_basis: 0 of 2 heads exact, estimated error at most"
    )
    assert len(repr(report)) < 120
    assert str(report) == report.to_markdown()
