"""Calibrated attention: what it refuses, in words, and what it leaves to exact attention."""

import json

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
