"""What conv_attention_backward promises besides numbers: errors, its report, memory."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest

import convbasis as cb
from convbasis import problems

GOOD = dict(zip(("query", "key", "value", "grad_output"), np.ones((4, 2, 3, 5, 4)), strict=True))
OTHER_SCALE = cb.ConvBasis([0], 1, np.ones((1, 5)), scale=3.0)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("query", np.full((2, 3, 5, 4), np.inf), ValueError),
        ("query", np.ones((2, 3, 5, 0)), ValueError),
        ("key", np.ones((2, 1, 5, 4)), ValueError),
        ("key", np.ones((2, 3, 5, 4), np.float32), TypeError),
        ("value", np.ones((2, 3, 6, 4)), ValueError),
        ("grad_output", [[1.0]], TypeError),
        ("grad_output", None, TypeError),
        ("grad_output", np.ones((2, 3, 5, 4), np.float32), TypeError),
        ("grad_output", np.ones(4), ValueError),
        ("grad_output", np.ones((2, 3, 5, 3)), ValueError),
        ("grad_output", np.ones((2, 3, 4, 4)), ValueError),
        ("grad_output", np.ones((6, 5, 4)), ValueError),
        ("grad_output", np.full((2, 3, 5, 4), np.nan), ValueError),
        ("attn_mask", np.ones((5, 5), bool), NotImplementedError),
        ("dropout_p", 0.1, NotImplementedError),
        ("is_causal", 1, TypeError),
        ("scale", np.nan, ValueError),
        ("enable_gqa", 0, TypeError),
        ("basis", 1, TypeError),
        ("basis", OTHER_SCALE, ValueError),
        ("options", 3, TypeError),
        ("tol", -1.0, ValueError),
        ("on_miss", "keep", ValueError),
        ("on_miss", "ignore", ValueError),
        ("gradient", "x", ValueError),
        ("gradient", None, ValueError),
        ("check_finite", 1, TypeError),
        ("return_report", 1, TypeError),
        ("num_threads", 0, ValueError),
    ],
)
def test_errors(argument, value, error):
    call = {"is_causal": True, argument: value}
    with pytest.raises(
        error, match=rf"(?s)^\[conv_attention_backward\] {argument} .*; expected .*; got .*$"
    ):
        cb.conv_attention_backward(**{**GOOD, **call})


def test_a_basis_of_another_scale_is_refused():
    arrays = [array[0, 0] for array in GOOD.values()]
    with pytest.raises(ValueError, match=r"^\[conv_attention_backward\] basis differs in scale; "):
        cb.conv_attention_backward(*arrays, is_causal=True, basis=OTHER_SCALE, scale=0.5)
    grads = cb.conv_attention_backward(*arrays, is_causal=True, basis=OTHER_SCALE)
    same = cb.conv_attention_backward(*arrays, is_causal=True, basis=OTHER_SCALE, scale=3.0)
    assert np.any(grads[2])
    for one, other in zip(grads, same, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("tol", [None, 1e-3])
def test_logits_that_overflow_are_refused(tol):
    """In a row, too, that no sample has."""
    ones = np.ones((2048, 4), np.float32)
    query = ones.copy()
    query[1000:1003] = 3e38
    with pytest.raises(ValueError, match=r"\[conv_attention_backward\] query has logits"):
        cb.conv_attention_backward(query, ones, ones, ones, is_causal=True, tol=tol)


def test_lengths_that_differ_need_a_causal_call():
    longer = {**GOOD, "key": np.ones((2, 3, 6, 4)), "value": np.ones((2, 3, 6, 4))}
    with pytest.raises(NotImplementedError, match=r"^\[conv_attention_backward\] key differs in "):
        cb.conv_attention_backward(**longer)


@pytest.mark.parametrize("gradient", ["basis", "attention"])
def test_nan_spreads_when_it_is_not_looked_for(gradient):
    problem = problems.conv_problem(40, 8, 2)
    grad = np.ones(problem.value.shape)
    grad[4, 2] = np.nan
    grads = cb.conv_attention_backward(
        problem.query,
        problem.key,
        problem.value,
        grad,
        is_causal=True,
        gradient=gradient,
        options=cb.RecoverOptions(num_bases=2),
        check_finite=False,
    )
    assert all(np.isnan(one).any() for one in grads)


def test_the_report():
    problem = problems.conv_problem(300, 8, 3, batch=(2,))
    query = np.stack([problem.query[0], np.random.default_rng(0).normal(size=(300, 8))])
    *grads, report = cb.conv_attention_backward(
        query,
        problem.key,
        problem.value,
        np.ones((2, 300, 8)),
        is_causal=True,
        scale=problem.scale,
        tol=1e-3,
        options=cb.RecoverOptions(num_bases=3),
        return_report=True,
    )
    assert len(grads) == 3
    assert report.gradient == "basis"
    assert report.heads_exact == 1
    np.testing.assert_array_equal(report.num_bases, [3, 3])
    np.testing.assert_array_equal(report.exact_mask, [False, True])
    np.testing.assert_array_equal(report.rows_exact, [0, 0])
    assert {"judge", "differentiate", "exp", "normalize", "total"} <= set(report.seconds)
    assert all(seconds >= 0 for seconds in report.seconds.values())
    assert report.seconds["total"] >= report.seconds["differentiate"] > 0
    entries = json.loads(report.to_json())
    assert entries == json.loads(json.dumps(report.to_dict()))
    assert set(entries) == set(vars(report))
    assert entries["exact_mask"] == [False, True]
    assert entries["num_bases"] == [3, 3]


def test_the_report_of_one_head_has_numbers():
    problem = problems.conv_problem(60, 8, 2)
    *_, report = cb.conv_attention_backward(
        problem.query,
        problem.key,
        problem.value,
        np.ones((60, 8)),
        is_causal=True,
        scale=problem.scale,
        gradient="attention",
        options=cb.RecoverOptions(num_bases=2),
        return_report=True,
    )
    assert json.loads(report.to_json())["num_bases"] == report.num_bases == 2
    assert report.gradient == "attention"
    assert not report.exact_mask


MEMORY = """
import resource
import numpy as np
import convbasis as cb

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

problem = cb.problems.conv_problem(16384, 16, 4, dtype=np.float32)
arrays = [problem.query, problem.key, problem.value, np.ones((16384, 16), np.float32)]
call = dict(is_causal=True, scale=problem.scale, options=cb.RecoverOptions(num_bases=4),
            gradient="{gradient}", num_threads=2)
cb.conv_attention_backward(*(array[:512] for array in arrays), **call)
before = peak()
assert all(map(np.any, cb.conv_attention_backward(*arrays, **call)))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="units of the peak are those of Linux")
@pytest.mark.parametrize("gradient", ["basis", "attention"])
def test_memory_is_that_of_the_arrays(gradient):
    script = MEMORY.format(gradient=gradient)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64  # MiB; an array has 1, n x n numbers would take 1,024


def test_the_order_of_arguments_is_that_of_the_forward_pass():
    names = list(inspect.signature(cb.conv_attention_backward).parameters)
    forward = list(inspect.signature(cb.conv_attention).parameters)
    assert names[:7] == [*forward[:3], "grad_output", *forward[3:6]]
