"""Bad input: the right exception, a message in three parts, and nothing written."""

import inspect

import numpy as np
import pytest

import convbasis as cb

ATTENTION = [cb.conv_attention, cb.exact_attention]
N, D = 24, 4


def good(**change):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(2, 3, N, D)) for name in ("query", "key", "value")}
    return {**arrays, "is_causal": True, **change}


def assert_refuses(function, error, argument, call):
    """`call` raises the three-part message about `argument` and leaves `out` alone."""
    out = call.setdefault("out", np.full((2, 3, N, D), 7.0))
    before = out.copy() if isinstance(out, np.ndarray) else None
    with pytest.raises(
        error,
        match=rf"(?s)^\[{function.__name__}\] {argument} .*; "
        r"expected .*; got .*$",
    ) as caught:
        function(**call)
    assert type(caught.value) is error
    if before is not None:
        np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("function", ATTENTION)
@pytest.mark.parametrize("argument", ["query", "key", "value"])
@pytest.mark.parametrize(
    "bad",
    [
        [[1.0]],
        None,
        "x",
        1.0,
        np.ma.masked_array(np.ones((2, 3, N, D)), mask=False),
        np.ones((2, 3, N, D), int),
        np.ones((2, 3, N, D), bool),
        np.ones((2, 3, N, D), complex),
        np.ones((2, 3, N, D), object),
        np.ones((2, 3, N, D), np.float32),
        np.ones((2, 3, N, D), np.dtype(np.float64).newbyteorder()),
        np.ones((2, 3, N, D), np.longdouble),
    ],
    ids=lambda bad: f"{type(bad).__name__}-{getattr(bad, 'dtype', '')}",
)
def test_types(function, argument, bad):
    call = good(**{argument: bad})
    if argument == "query" and getattr(bad, "dtype", None) == np.float32:
        argument = "key"  # the first array sets the type
    assert_refuses(function, TypeError, argument, call)


@pytest.mark.parametrize("function", ATTENTION)
def test_lists_are_told_what_to_do(function):
    with pytest.raises(TypeError, match=r"numpy\.asarray\(key\) makes one\); got list$"):
        function(**good(key=[[1.0]]))


@pytest.mark.parametrize("function", ATTENTION)
@pytest.mark.parametrize(
    ("argument", "shape"),
    [
        ("query", (D,)),
        ("query", ()),
        ("query", (2, 3, N, 0)),
        ("key", (3, N, D)),
        ("key", (2, 3, N, D + 1)),
        ("key", (2, 1, N, D)),
        ("key", (1, 3, N, D)),
        ("key", (2, 0, N, D)),
        ("value", (3, N, D)),
        ("value", (2, 3, N + 1, D)),
        ("value", (2, 1, N, D)),
        ("value", (2, 3, N, 0)),
        ("value", (D,)),
    ],
)
def test_shapes(function, argument, shape):
    assert_refuses(function, ValueError, argument, good(**{argument: np.ones(shape)}))


@pytest.mark.parametrize("function", ATTENTION)
@pytest.mark.parametrize("kv_lead", [(2, 2), (2, 0), (1, 1), (2, 6)])
def test_shared_heads(function, kv_lead):
    keys = np.ones((*kv_lead, N, D))
    assert_refuses(function, ValueError, "key", good(key=keys, value=keys, enable_gqa=True))


@pytest.mark.parametrize("function", ATTENTION)
def test_shared_heads_need_heads(function):
    flat = np.ones((N, D))
    call = good(query=flat, key=flat, value=flat, enable_gqa=True, out=np.ones((N, D)))
    assert_refuses(function, ValueError, "query", call)


@pytest.mark.parametrize("function", ATTENTION)
@pytest.mark.parametrize("argument", ["query", "key", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(function, argument, bad):
    call = good()
    call[argument][1, 2, N // 2, D - 1] = bad
    assert_refuses(function, ValueError, argument, call)
    call["check_finite"] = False
    if np.isnan(bad) or argument == "value":
        assert function(**call).shape == (2, 3, N, D)
    else:  # no softmax of infinite logits, checked or not
        with pytest.raises(ValueError, match=r"^\[.*\] query has logits .* overflow; expected "):
            function(**call)


@pytest.mark.parametrize("function", ATTENTION)
@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("attn_mask", np.ones((N, N), bool), NotImplementedError),
        ("attn_mask", False, NotImplementedError),
        ("dropout_p", 0.1, NotImplementedError),
        ("dropout_p", "0", TypeError),
        ("dropout_p", True, TypeError),
        ("dropout_p", np.nan, ValueError),
        ("is_causal", 1, TypeError),
        ("is_causal", None, TypeError),
        ("scale", "1", TypeError),
        ("scale", np.nan, ValueError),
        ("scale", np.inf, ValueError),
        ("scale", True, TypeError),
        ("scale", 10**400, ValueError),
        ("enable_gqa", 1, TypeError),
        ("check_finite", None, TypeError),
        ("return_lse", 1, TypeError),
        ("num_threads", 0, ValueError),
        ("num_threads", -1, ValueError),
        ("num_threads", 1.0, TypeError),
        ("num_threads", True, TypeError),
        ("num_threads", 1025, ValueError),
        ("num_threads", 2**40, ValueError),
        ("num_threads", 2**70, ValueError),
    ],
)
def test_options_of_both(function, argument, value, error):
    assert_refuses(function, error, argument, good(**{argument: value}))


@pytest.mark.parametrize("function", ATTENTION)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("scale", [1e300, -1e39])
def test_a_scale_must_fit_the_computing_type(function, dtype, scale):
    arrays = {name: good()[name].astype(dtype) for name in ("query", "key", "value")}
    assert_refuses(function, ValueError, "scale", good(**arrays, scale=scale, out=None))
    zeros = {**arrays, "query": np.zeros_like(arrays["query"])}
    assert function(**good(**zeros, scale=np.copysign(3e38, scale))).shape == (2, 3, N, D)


def test_a_scale_must_fit_wherever_it_is_taken():
    query = np.ones((N, D), np.float32)
    basis = cb.recover_basis(query, query)
    with pytest.raises(ValueError, match=r"^\[recover_basis\] scale overflows float32; expected "):
        cb.recover_basis(query, query, scale=1e300)
    with pytest.raises(ValueError, match=r"^\[ConvBasis.residual\] scale overflows .*; got 1e"):
        basis.residual(query, query, scale=1e300)
    with pytest.raises(ValueError, match=r"^\[ConvBasis\] scale overflows .*; got 1e\+300"):
        cb.ConvBasis([0], 1, np.ones((1, 3), np.float32), scale=1e300)


OTHER = cb.decompose(np.tril(np.ones((N + 1, N + 1))))
SINGLE = cb.decompose(np.eye(N))
BATCH = cb.decompose(np.broadcast_to(np.eye(N), (2, 3, N, N)))
BATCH32 = cb.decompose(np.broadcast_to(np.eye(N, dtype=np.float32), (2, 3, N, N)))


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("basis", "basis", TypeError),
        ("basis", np.eye(N), TypeError),
        ("basis", [1, 2], TypeError),
        ("basis", OTHER, ValueError),
        ("basis", SINGLE, ValueError),
        ("basis", BATCH32, TypeError),
        ("basis", (BATCH, BATCH), ValueError),
        ("basis", (), ValueError),
        ("options", {"num_bases": 3}, TypeError),
        ("options", 3, TypeError),
        ("tol", 0.0, ValueError),
        ("tol", -0.1, ValueError),
        ("tol", np.nan, ValueError),
        ("tol", np.inf, ValueError),
        ("tol", "0.1", TypeError),
        ("tol", True, TypeError),
        ("on_miss", "ignore", ValueError),
        ("on_miss", None, ValueError),
        ("return_report", 1, TypeError),
        ("certify", "yes", TypeError),
        ("certify", True, ValueError),
    ],
)
def test_options_of_conv_attention(argument, value, error):
    assert_refuses(cb.conv_attention, error, argument, good(**{argument: value}))


def test_basis_and_options_exclude_each_other():
    assert_refuses(
        cb.conv_attention, ValueError, "options", good(basis=BATCH, options=cb.RecoverOptions())
    )


def test_two_bases_when_not_causal():
    assert_refuses(cb.conv_attention, ValueError, "basis", good(basis=BATCH, is_causal=False))
    assert_refuses(cb.conv_attention, ValueError, "basis", good(basis=(BATCH,), is_causal=False))
    assert_refuses(
        cb.conv_attention, ValueError, "basis", good(basis=(BATCH, SINGLE), is_causal=False)
    )


def read_only():
    out = np.zeros((2, 3, N, D))
    out.flags.writeable = False
    return out


@pytest.mark.parametrize("function", ATTENTION)
@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.zeros((2, 3, N, D), np.float32), TypeError),
        (np.zeros((2, 3, N, D), int), TypeError),
        ([[0.0]], TypeError),
        (np.zeros((2, 3, N, D + 1)), ValueError),
        (np.zeros((6, N, D)), ValueError),
        (np.zeros((1, 2, 3, N, D)), ValueError),
        (read_only(), ValueError),
        (np.lib.stride_tricks.as_strided(np.zeros(D), (2, 3, N, D), (0, 0, 0, 8)), ValueError),
        (np.lib.stride_tricks.as_strided(np.zeros(1000), (2, 3, N, D), (8, 8, 8, 8)), ValueError),
    ],
    ids=[
        "float32",
        "int",
        "list",
        "shape",
        "flat",
        "rank",
        "read-only",
        "broadcast",
        "overlapping",
    ],
)
def test_out(function, out, error):
    assert_refuses(function, error, "out", good(out=out))


@pytest.mark.parametrize("function", ATTENTION)
@pytest.mark.parametrize("argument", ["query", "key", "value"])
def test_out_overlapping_an_input(function, argument):
    call = good()
    assert_refuses(function, ValueError, "out", {**call, "out": call[argument]})
    assert_refuses(function, ValueError, "out", {**call, "out": call[argument][:, :, ::-1]})
    padded = np.zeros((2, 3, N + 3, D))
    call[argument] = padded[:, :, :N]
    assert_refuses(function, ValueError, "out", {**call, "out": padded[:, :, 3:]})


@pytest.mark.parametrize("function", ATTENTION)
def test_out_interleaved_with_an_input_is_no_overlap(function):
    packed = np.random.default_rng(1).normal(size=(2, N, 4, 3, D)).transpose(2, 0, 3, 1, 4)
    query, key, value, out = packed
    want = function(query.copy(), key.copy(), value.copy(), is_causal=True)
    assert function(query, key, value, is_causal=True, out=out) is out
    np.testing.assert_array_equal(out, want)
    assert np.any(want)


@pytest.mark.parametrize(
    ("call", "argument", "error"),
    [
        ({"query": [1.0]}, "query", TypeError),
        ({"query": np.ones((2, 3, N, 0))}, "query", ValueError),
        ({"key": np.ones((2, 3, N, D), int)}, "key", TypeError),
        ({"key": np.ones((2, 3, N, D), np.float32)}, "key", TypeError),
        ({"key": np.ones((2, 3, N, D + 1))}, "key", ValueError),
        ({"key": np.ones((2, 2, N, D))}, "key", ValueError),
        ({"key": np.full((2, 3, N, D), np.nan)}, "key", ValueError),
        ({"scale": "x"}, "scale", TypeError),
        ({"enable_gqa": 0}, "enable_gqa", TypeError),
        ({"options": 3}, "options", TypeError),
        ({"num_threads": 0}, "num_threads", ValueError),
        ({"num_threads": 2**40}, "num_threads", ValueError),
    ],
)
def test_recover_basis(call, argument, error):
    arrays = {name: good()[name] for name in ("query", "key")}
    with pytest.raises(error, match=rf"^\[recover_basis\] {argument} .*; expected .*; got "):
        cb.recover_basis(**{**arrays, **call})


@pytest.mark.parametrize(
    ("matrix", "atol", "argument", "error"),
    [
        ([[1.0]], 0.0, "matrix", TypeError),
        (np.eye(3, dtype=int), 0.0, "matrix", TypeError),
        (np.ones(3), 0.0, "matrix", ValueError),
        (np.ones((3, 4)), 0.0, "matrix", ValueError),
        (np.ones((3, 3)), 0.0, "matrix", ValueError),
        (np.diag([np.nan, 1.0]), 0.0, "matrix", ValueError),
        (np.eye(3), -1.0, "atol", ValueError),
        (np.eye(3), np.nan, "atol", ValueError),
        (np.eye(3), None, "atol", TypeError),
    ],
)
def test_decompose(matrix, atol, argument, error):
    with pytest.raises(error, match=rf"^\[decompose\] {argument} .*; expected .*; got "):
        cb.decompose(matrix, atol=atol)


@pytest.mark.parametrize(
    ("change", "argument", "error"),
    [
        ({"basis": np.eye(N)}, "basis", TypeError),
        ({"x": [1.0]}, "x", TypeError),
        ({"x": np.ones(N, int)}, "x", TypeError),
        ({"x": np.ones(N, np.float32)}, "x", TypeError),
        ({"x": np.ones(N + 1)}, "x", ValueError),
        ({"x": np.ones((2, N, D))}, "x", ValueError),
        ({"x": np.ones((N, D, 1))}, "x", ValueError),
        ({"x": np.full((N, D), np.nan)}, "x", ValueError),
        ({"transpose": 1}, "transpose", TypeError),
        ({"out": np.zeros((N, D + 1))}, "out", ValueError),
        ({"out": np.zeros((N, D), np.float32)}, "out", TypeError),
        ({"num_threads": 0}, "num_threads", ValueError),
    ],
)
def test_conv_matmul(change, argument, error):
    call = {"basis": SINGLE, "x": np.ones((N, D)), "out": np.full((N, D), 7.0), **change}
    assert_refuses(cb.conv_matmul, error, argument, call)


@pytest.mark.parametrize(
    ("change", "argument", "error"),
    [
        ({"column": [1.0]}, "column", TypeError),
        ({"column": np.ones(N, int)}, "column", TypeError),
        ({"column": np.array(1.0)}, "column", ValueError),
        ({"column": np.full(N, np.inf)}, "column", ValueError),
        ({"x": np.ones((N, D), np.float32)}, "x", TypeError),
        ({"x": np.ones(N + 1)}, "x", ValueError),
        ({"x": np.full((N, D), np.inf)}, "x", ValueError),
        ({"transpose": None}, "transpose", TypeError),
        ({"out": np.zeros(N)}, "out", ValueError),
        ({"num_threads": 2.5}, "num_threads", TypeError),
    ],
)
def test_toeplitz_matmul(change, argument, error):
    call = {"column": np.ones(N), "x": np.ones((N, D)), "out": np.full((N, D), 7.0), **change}
    assert_refuses(cb.toeplitz_matmul, error, argument, call)


def test_products_refuse_to_work_in_place():
    x = np.ones((N, D))
    assert_refuses(cb.conv_matmul, ValueError, "out", {"basis": SINGLE, "x": x, "out": x})
    assert_refuses(
        cb.toeplitz_matmul, ValueError, "out", {"column": np.ones(N), "x": x, "out": x[::-1]}
    )


@pytest.mark.parametrize("function", ATTENTION)
def test_defaults_are_those_of_torch(function):
    parameters = inspect.signature(function).parameters
    assert list(parameters)[:6] == ["query", "key", "value", "attn_mask", "dropout_p", "is_causal"]
    assert parameters["is_causal"].default is False
    assert parameters["dropout_p"].default == 0.0
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in list(kinds.values())[6:])


@pytest.mark.parametrize("on_miss", ["keep", "error"])
def test_on_miss_without_a_tolerance_is_refused(on_miss):
    x = np.ones((4, 2))
    with pytest.raises(ValueError, match=r"^\[conv_attention\] on_miss .* a tol with it"):
        cb.conv_attention(x, x, x, on_miss=on_miss)
