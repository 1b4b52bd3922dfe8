"""Peak memory of one pass of `conv_attention`, measured in a process of its own. Linux only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..attention import conv_attention
from ..backward import conv_attention_backward
from ..problems import conv_problem

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


class NotMeasured(Exception):
    """The process did not come to its end; the message is its last line."""


def memory_growth(
    n: int,
    head_dim: int,
    num_bases: int,
    *,
    dtype: str,
    seed: int,
    num_threads: int,
    gradient: str | None = None,
) -> float:
    """MiB by which the resident set of a fresh process grows at its peak, recovery included.

    It is that of the forward pass, or with a `gradient` that of the backward pass alone.

    Raises
    ------
    NotMeasured
        If it cannot be told here.
    """
    sizes = {
        "n": n,
        "head_dim": head_dim,
        "num_bases": num_bases,
        "dtype": dtype,
        "seed": seed,
        "num_threads": num_threads,
        "gradient": gradient,
    }
    command = [sys.executable, "-m", __name__, json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMeasured((done.stderr.strip().splitlines() or ["no message"])[-1])
    return float(done.stdout)


def growth_here(num_threads: int, gradient: str | None, **sizes: Any) -> float:
    """The same in this process, which must not have done such work before."""

    def prepare(**changed: Any) -> Any:
        problem = conv_problem(**{**sizes, **changed})
        arrays = problem.query, problem.key, problem.value
        common: Any = {"is_causal": True, "scale": problem.scale, "num_threads": num_threads}
        if gradient is None:
            return lambda: conv_attention(*arrays, **common)
        grad = np.random.default_rng(0).standard_normal(problem.value.shape).astype(sizes["dtype"])
        return lambda: conv_attention_backward(*arrays, grad, gradient=gradient, **common)[0]

    prepare(n=256, num_bases=1)()  # threads and tables, which stay
    call = prepare()
    RESET.write_text("5")  # the peak starts again from what is held now
    before = held("VmRSS")
    out = call()
    assert out.shape[0] == sizes["n"]
    return held("VmHWM") - before


def held(name: str) -> float:
    """A line of the process status, in MiB."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    print(growth_here(**json.loads(sys.argv[1])))
