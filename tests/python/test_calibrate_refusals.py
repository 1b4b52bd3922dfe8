"""Calibrated attention: what it refuses, in words, and what it leaves to exact attention."""

import numpy as np
import pytest

import convbasis as cb


@pytest.fixture
def arrays(qkv):
    return qkv(2048, 8, lead=())


def attend(query, key, value, **call):
    call = {"is_causal": True, "options": cb.CalibrateOptions(), **call}
    return cb.conv_attention(query, key, value, **call)


@pytest.mark.parametrize("n", [100, 2048])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_and_infinity_are_refused(arrays, n, bad, place):
    arrays = [array[:n].copy() for array in arrays]
    arrays[place][n // 2, 3] = bad
    name = ("query", "key", "value")[place]
    with pytest.raises(ValueError, match=rf"\[conv_attention\] {name} has NaN or infinite"):
        attend(*arrays)


@pytest.mark.parametrize("name", ["window", "sample_rows", "sample_keys", "sinks", "seed"])
def test_options_are_whole_numbers_in_range(name):
    least = 1 if name in ("window", "sample_rows", "sample_keys") else 0
    cb.CalibrateOptions(**{name: np.int32(least)})
    for value, error, message in (
        (least - 1, ValueError, "is too small; expected at least"),
        (2**63, ValueError, "is too large; expected at most 9223372036854775807"),
        (1.0, TypeError, "is not an integer; expected an int"),
        (True, TypeError, "is not an integer; expected an int"),
    ):
        with pytest.raises(error, match=rf"\[CalibrateOptions\] {name} {message}"):
            cb.CalibrateOptions(**{name: value})


@pytest.mark.parametrize("name", ["window", "sinks", "heavy_keys", "retrieval_blocks"])
def test_no_number_is_too_large_for_the_sequence(arrays, name):
    options = cb.CalibrateOptions(**{name: 2**63 - 1, "sample_rows": 2**62, "sample_keys": 2**62})
    got = attend(*arrays, options=options)
    if name != "retrieval_blocks":
        exact = cb.exact_attention(*arrays, is_causal=True)
        np.testing.assert_allclose(got, exact, rtol=1e-10, atol=1e-12)


def test_what_it_cannot_do_is_said_before_anything_is_written(arrays):
    query, key, value = arrays
    out = np.full(query.shape, 7.0)
    basis = cb.recover_basis(query, key, options=cb.RecoverOptions(num_bases=2))
    for message, call in (
        ("options is CalibrateOptions without is_causal", {"is_causal": False}),
        ("certify is set with CalibrateOptions", {"certify": True, "return_report": True}),
        ("options is given together with basis", {"basis": basis}),
        ("on_miss is set, but nothing is judged", {"on_miss": "error"}),
    ):
        with pytest.raises(
            (ValueError, NotImplementedError), match=rf"\[conv_attention\] {message}"
        ):
            attend(query, key, value, out=out, **call)
    with pytest.raises(
        NotImplementedError, match=r"with fewer keys than queries; expected at leas"
    ):
        attend(query, key[:-1], value[:-1], out=out)
    assert (out == 7.0).all()


def test_logits_that_overflow_are_refused(arrays):
    query, key, value = (array.astype(np.float32) for array in arrays)
    with pytest.raises(ValueError, match=r"query has logits with key that overflow"):
        attend(query * np.float32(1e25), key * np.float32(1e25), value)
