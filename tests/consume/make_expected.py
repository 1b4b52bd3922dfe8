"""Write expected.h: what the oracle says about the inputs that main.cpp makes.

The inputs are small multiples of 1/4, so both languages hold the very same numbers.

    python tests/consume/make_expected.py           # write expected.h
    python tests/consume/make_expected.py --check   # fail when expected.h is out of date
"""

import re
import sys
from pathlib import Path

import numpy as np

from convbasis import reference

HEADS, KV_HEADS, ROWS, HEAD_DIM, VALUE_DIM = 4, 2, 9, 4, 3
HEADER = Path(__file__).with_name("expected.h")


def pattern(shape, a, b, c):
    """Entry (h, i, j) is ((a h + b i + c j) mod 11 - 5) / 4."""
    h, i, j = np.indices(shape)
    return ((a * h + b * i + c * j) % 11 - 5) / 4


def numbers(array):
    flat = [repr(float(x)) for x in array.ravel()]
    lines = [", ".join(flat[i : i + 4]) for i in range(0, len(flat), 4)]
    return ",\n    ".join(lines)


def header():
    query = pattern((HEADS, ROWS, HEAD_DIM), 3, 7, 2)
    key = pattern((KV_HEADS, ROWS, HEAD_DIM), 5, 4, 3)
    value = pattern((KV_HEADS, ROWS, VALUE_DIM), 2, 3, 5)
    out, lse = reference.attention(query, key, value, is_causal=True, enable_gqa=True)
    return f"""\
#pragma once

// Written by make_expected.py from the float64 oracle; not edited by hand.
// clang-format off
constexpr long heads = {HEADS}, kv_heads = {KV_HEADS}, rows = {ROWS};
constexpr long head_dim = {HEAD_DIM}, value_dim = {VALUE_DIM};

constexpr double expected_out[heads * rows * value_dim] = {{
    {numbers(out)}}};

constexpr double expected_lse[heads * rows] = {{
    {numbers(lse)}}};
"""


def agrees(old, new):
    """Same text, but for the last digits of numbers: they may differ from machine to machine."""
    number = re.compile(r"-?\d+\.\d+(?:e[+-]\d+)?")
    old_values = [float(x) for x in number.findall(old)]
    new_values = [float(x) for x in number.findall(new)]
    return number.sub("x", old) == number.sub("x", new) and np.allclose(
        old_values, new_values, rtol=1e-14, atol=1e-15
    )


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if not agrees(HEADER.read_text(), header()):
            sys.exit("expected.h is out of date: run python tests/consume/make_expected.py")
    else:
        HEADER.write_text(header())
