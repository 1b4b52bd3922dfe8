"""Strides, transposes, odd addresses, leading dimensions, shared heads, `out` and every dtype."""

import numpy as np
import pytest

import convbasis as cb

OPTIONS = cb.RecoverOptions(num_bases=3, window=4)


def conv(query, key, value, **call):
    return cb.conv_attention(query, key, value, options=OPTIONS, **call)


FUNCTIONS = [conv, cb.exact_attention]


def rearranged(array, how):
    """The same numbers in another layout."""
    if how == "heads last":  # (batch, seq, heads, dim) in memory
        return np.ascontiguousarray(array.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    if how == "dim first":
        return np.ascontiguousarray(array.swapaxes(2, 3)).swapaxes(2, 3)
    if how == "fortran":
        return np.asfortranarray(array)
    if how == "every second":
        wide = np.full((*array.shape[:3], 2 * array.shape[3]), 9.0, array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if how == "reversed":
        return np.ascontiguousarray(array[:, :, ::-1, ::-1])[:, :, ::-1, ::-1]
    if how == "one element in":  # no SIMD alignment
        flat = np.empty(array.size + 1, array.dtype)
        flat[1:] = array.ravel()
        return flat[1:].reshape(array.shape)
    if how == "one byte in":  # no alignment at all
        raw = np.empty(array.nbytes + 1, np.uint8)
        view = raw[1:].view(array.dtype).reshape(array.shape)
        view[...] = array
        return view
    if how == "field":  # strides that are no whole elements
        record = np.zeros(array.shape, [("tag", np.uint8), ("number", array.dtype)])
        record["number"] = array
        return record["number"]
    raise ValueError(how)


LAYOUTS = [
    "heads last",
    "dim first",
    "fortran",
    "every second",
    "reversed",
    "one element in",
    "one byte in",
    "field",
]


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("is_causal", [True, False])
def test_any_layout_of_inputs_and_output(function, how, is_causal, qkv, row_error):
    query, key, value = qkv(37, d=6, value_dim=5)
    want, want_lse = function(query, key, value, is_causal=is_causal, return_lse=True)
    moved = [rearranged(array, how) for array in (query, key, value)]
    out = rearranged(np.zeros_like(want), how)
    got, lse = function(*moved, is_causal=is_causal, return_lse=True, out=out)
    assert got is out
    assert np.any(want)
    assert row_error(out, want) <= 1e-13
    np.testing.assert_allclose(lse, want_lse, rtol=1e-13, atol=1e-13)
    for array, original in zip(moved, (query, key, value), strict=True):
        np.testing.assert_array_equal(array, original)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_out_writes_nothing_outside(function, qkv):
    query, key, value = qkv(20)
    guarded = np.full((4, 5, 26, 12), 7.0)
    inside = (slice(1, 3), slice(1, 4), slice(3, 23), slice(2, 10))
    function(query, key, value, is_causal=True, out=guarded[inside])
    np.testing.assert_array_equal(guarded[inside], function(query, key, value, is_causal=True))
    guarded[inside] = 7.0
    np.testing.assert_array_equal(guarded, 7.0)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("lead", [(), (1,), (6,), (3, 2), (1, 3, 2), (3, 1, 2, 1)])
def test_leading_dimensions(function, lead, qkv):
    arrays = qkv(30, lead=(6,))
    want, want_lse = function(*arrays, is_causal=True, return_lse=True)
    if int(np.prod(lead)) == 1:
        arrays, want, want_lse = [a[0] for a in arrays], want[0], want_lse[0]
    shaped = [array.reshape(*lead, 30, 8) for array in arrays]
    out, lse = function(*shaped, is_causal=True, return_lse=True)
    assert np.any(want)
    np.testing.assert_array_equal(out, want.reshape(*lead, 30, 8))
    np.testing.assert_array_equal(lse, want_lse.reshape(*lead, 30))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_leading_dimensions_that_do_not_collapse(function, qkv):
    query, key, value = qkv(15, lead=(2, 3, 4))
    want = function(query, key, value, is_causal=True)
    order = (1, 0, 2, 3, 4)  # two leading axes swapped: no reshape without a copy
    swapped = [
        np.ascontiguousarray(array.transpose(order)).transpose(order)
        for array in (query, key, value)
    ]
    out = np.zeros((3, 2, 4, 15, 8)).transpose(order)
    assert function(*swapped, is_causal=True, out=out) is out
    assert np.any(want)
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0), (0,)])
def test_empty_batches(function, shape, qkv):
    query, key, value = qkv(9, lead=shape, value_dim=5)
    for is_causal in (True, False):
        out, lse = function(query, key, value, is_causal=is_causal, return_lse=True)
        assert out.shape == (*shape, 9, 5)
        assert lse.shape == (*shape, 9)
    report = conv(query, key, value, is_causal=True, tol=0.1, return_report=True)[1]
    assert report.heads_exact == 0
    assert report.num_bases.shape == shape


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("is_causal", [True, False])
def test_sequences_of_length_0_and_1(function, is_causal, qkv):
    query, key, value = qkv(0)
    out = np.empty((2, 3, 0, 8))
    got, lse = function(query, key, value, is_causal=is_causal, return_lse=True, out=out)
    assert got is out
    assert lse.shape == (2, 3, 0)
    query, key, value = qkv(1)
    out, lse = function(query, key, value, is_causal=is_causal, return_lse=True)
    np.testing.assert_allclose(out, value, rtol=1e-15)
    np.testing.assert_allclose(lse, (query * key).sum(-1) / np.sqrt(8), rtol=1e-14)


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 3, 0, 4), (0, 3, 5, 4), (1, 1, 1, 1)])
def test_any_layout_of_nothing_and_of_one(how, shape):
    """Addresses and strides that are no whole elements, where there may be no element at all."""
    four = (1, 1, 1, 1, *shape)[-4:]

    def moved(entries):
        return rearranged(np.full(four, entries), how).reshape(shape)

    query, key, value = moved(0.5), moved(0.25), moved(3.0)
    for is_causal in (True, False):
        for function in FUNCTIONS:
            out = rearranged(np.zeros(four), how)
            out = out[(0,) * (4 - len(shape))]
            assert function(query, key, value, is_causal=is_causal, out=out) is out
            np.testing.assert_array_equal(out, value)
    basis = cb.recover_basis(query, key)
    np.testing.assert_allclose(basis.residual(query, key), np.zeros(shape[:-2]), atol=1e-15)
    np.testing.assert_allclose(basis.residual(query, key, 3), np.zeros(shape[:-2]), atol=1e-15)
    np.testing.assert_allclose(
        cb.conv_matmul(basis, value), basis.to_dense() @ np.asarray(value), rtol=1e-14
    )
    want = np.cumsum(0.5 * value, axis=-2)
    np.testing.assert_allclose(cb.toeplitz_matmul(query[..., 0], value), want, rtol=1e-14)


@pytest.mark.parametrize("n", [0, 1])
def test_bases_of_length_0_and_1(n, tmp_path):
    basis = cb.decompose(np.full((n, n), 2.0))
    assert basis.num_bases == n
    np.testing.assert_array_equal(basis.row_sums(), np.full(n, 2.0))
    np.testing.assert_array_equal(basis.exp().to_dense(), np.exp(basis.to_dense()))
    np.testing.assert_array_equal(basis.differences, np.full((n, n), 2.0))
    np.testing.assert_array_equal(cb.conv_matmul(basis, np.full(n, 3.0), transpose=True), 6.0)
    basis.save(tmp_path / "basis")
    assert cb.ConvBasis.load(tmp_path / "basis") == basis


def test_reports_of_length_0(qkv):
    _, report = conv(*qkv(0), is_causal=True, tol=0.1, return_report=True, certify=True)
    np.testing.assert_array_equal(report.error_estimate, np.zeros((2, 3)))
    assert report.sample_rows == 0


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("lead", [(4,), (2, 6), (2, 1, 4)])
@pytest.mark.parametrize("is_causal", [True, False])
def test_shared_heads(function, lead, is_causal, qkv):
    query, key, value = qkv(25, lead=lead, kv_heads=2, value_dim=3)
    out, lse = function(query, key, value, is_causal=is_causal, enable_gqa=True, return_lse=True)
    repeated = [np.repeat(array, lead[-1] // 2, axis=-3) for array in (key, value)]
    want, want_lse = function(query, *repeated, is_causal=is_causal, return_lse=True)
    assert np.any(want)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(lse, want_lse)


def bfloat16():
    return pytest.importorskip("ml_dtypes").bfloat16


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_is_float32_cast_back(function, name, qkv):
    dtype = np.float16 if name == "float16" else bfloat16()
    half = [array.astype(dtype) for array in qkv(40)]
    wide = [array.astype(np.float32) for array in half]
    out, lse = function(*half, is_causal=True, return_lse=True)
    want, want_lse = function(*wide, is_causal=True, return_lse=True)
    assert out.dtype == dtype
    assert lse.dtype == np.float32
    assert np.any(want)
    np.testing.assert_array_equal(out, want.astype(dtype))
    np.testing.assert_array_equal(lse, want_lse)
    target = np.zeros((2, 3, 80, 8), dtype)[:, :, ::2]
    assert function(*half, is_causal=True, out=target) is target
    np.testing.assert_array_equal(target, out)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_products_and_bases(name):
    dtype = np.float16 if name == "float16" else bfloat16()
    dense = np.tril(np.ones((20, 20))).astype(dtype)
    basis = cb.decompose(dense)
    assert basis.dtype == np.float32
    assert basis.num_bases == 1
    x = np.arange(20).astype(dtype)
    for product in (cb.conv_matmul(basis, x), cb.toeplitz_matmul(np.ones(20, dtype), x)):
        assert product.dtype == dtype
        np.testing.assert_array_equal(product, np.cumsum(np.arange(20)).astype(dtype))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_half_precision_does_not_mix(function, qkv):
    query, key, value = qkv(10, dtype=np.float16)
    with pytest.raises(TypeError, match=r"\] key differs in dtype"):
        function(query, key.astype(bfloat16()), value)
    with pytest.raises(TypeError, match=r"\] out has .* dtype; expected float16; got float32"):
        function(query, key, value, out=np.zeros((2, 3, 10, 8), np.float32))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_memory_maps_and_other_subclasses(function, tmp_path, qkv):
    query, key, value = qkv(12)
    want = function(query, key, value, is_causal=True)
    mapped = np.memmap(tmp_path / "query", query.dtype, "w+", shape=query.shape)
    mapped[...] = query
    out = np.memmap(tmp_path / "out", query.dtype, "w+", shape=query.shape)
    assert type(function(mapped, key, value, is_causal=True)) is np.ndarray
    assert function(mapped, key, value, is_causal=True, out=out) is out
    assert np.any(want)
    np.testing.assert_array_equal(out, want)


def test_inputs_may_be_read_only_and_broadcast(qkv):
    query, key, value = qkv(12, lead=(1, 1))
    repeated = [np.broadcast_to(array, (2, 3, 12, 8)) for array in (query, key, value)]
    for function in FUNCTIONS:
        got = function(*repeated, is_causal=True)
        np.testing.assert_array_equal(got[1, 2], function(query, key, value, is_causal=True)[0, 0])
