"""The cost model: measured once, settable, and what follows from it."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

import convbasis as cb
from convbasis import problems

MODEL = cb.CostModel(transform=0.1, product=0.05, direct=0.01, exact=0.04, entry=4.0)


@pytest.fixture(autouse=True)
def as_before():
    """Other tests see the model that was measured."""
    kept = {dtype: cb.cost_model(dtype) for dtype in ("float32", "float64")}
    yield
    for dtype, model in kept.items():
        cb.set_cost_model(model, dtype)


def block_lengths(dtype=np.float32):
    problem = problems.conv_problem(n=1024, head_dim=16, num_bases=2, dtype=dtype)
    _, report = cb.conv_attention(
        problem.query,
        problem.key,
        problem.value,
        is_causal=True,
        scale=problem.scale,
        return_report=True,
    )
    return report.block_lengths


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_measured_model_has_plausible_times_in_rounded_steps(dtype):
    model = cb.cost_model(dtype)
    steps = 16 * np.log2(dataclasses.astuple(model))
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)
    assert 0 < model.direct < model.entry  # by a factor of some hundred
    assert cb.cost_model(dtype) == model  # measured once


def test_types_have_models_of_their_own():
    double = cb.cost_model(np.float64)
    cb.set_cost_model(MODEL)
    assert cb.cost_model() == cb.cost_model("float32") == MODEL
    assert cb.cost_model(np.float64) == double
    cb.set_cost_model(MODEL, np.float64)
    assert cb.cost_model(np.float64) == MODEL


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_model_picks_the_schedule(dtype):
    """Where direct sums cost next to nothing blocks are long, where they are dear, short."""
    cb.set_cost_model(dataclasses.replace(MODEL, direct=1e-9), dtype)
    assert block_lengths(dtype) == (1024,)
    cb.set_cost_model(dataclasses.replace(MODEL, direct=1e9), dtype)
    assert block_lengths(dtype)[-1] == 32


def test_break_even_follows_the_price_of_exact_attention():
    limits = []
    for exact in (0.001, 0.01, 0.04, 1.0):
        cb.set_cost_model(dataclasses.replace(MODEL, exact=exact))
        limits.append(cb.break_even(4096, 64))
    assert limits == sorted(limits)
    assert limits[0] == 64  # never below: small problems take microseconds
    assert limits[-1] > limits[-2] > limits[0]
    assert cb.break_even(10, 64) == 10
    assert cb.break_even(4096, 64, 64) == cb.break_even(4096, 64)


def test_a_fixed_model_makes_processes_agree_bit_for_bit():
    code = f"""
import hashlib, sys
import numpy as np
import convbasis as cb
cb.set_cost_model(cb.{MODEL!r})
p = cb.problems.conv_problem(n=2048, head_dim=16, num_bases=3, dtype=np.float32)
out = cb.conv_attention(p.query, p.key, p.value, is_causal=True, scale=p.scale)
print(hashlib.sha256(out.tobytes()).hexdigest())
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout != ""


@pytest.mark.parametrize("time", [0.0, -1.0, np.inf, np.nan])
@pytest.mark.parametrize("step", ["transform", "product", "direct", "exact", "entry"])
def test_times_have_to_be_positive_and_finite(step, time):
    before = cb.cost_model()
    with pytest.raises(
        ValueError, match=rf"^\[set_cost_model\] model\.{step} is not (positive|finite)"
    ):
        cb.set_cost_model(dataclasses.replace(MODEL, **{step: time}))
    assert cb.cost_model() == before


@pytest.mark.parametrize("dtype", [np.float16, "int32", "no type", object()])
def test_other_types_have_no_model(dtype):
    for call in (
        lambda: cb.cost_model(dtype),
        lambda: cb.set_cost_model(MODEL, dtype),
        lambda: cb.break_even(10, 10, dtype=dtype),
    ):
        with pytest.raises(TypeError, match="expected float32 or float64"):
            call()


def test_a_model_is_a_cost_model():
    with pytest.raises(TypeError, match=r"^\[set_cost_model\] model is .*; expected a CostModel"):
        cb.set_cost_model((0.1, 0.05, 0.01, 0.04, 4.0))
    with pytest.raises(TypeError, match=r"^\[set_cost_model\] model\.exact is not a number"):
        cb.set_cost_model(dataclasses.replace(MODEL, exact="0.04"))


@pytest.mark.parametrize(
    "arguments", [(-1, 8), (8, 0), (8, 8, -1)], ids=["n", "head_dim", "value_dim"]
)
def test_break_even_wants_sizes(arguments):
    with pytest.raises(ValueError, match=r"^\[break_even\]"):
        cb.break_even(*arguments)
