"""Causal attention on a GPU beside torch's scaled_dot_product_attention in the same run.

    python benchmarks/gpu/against_sdpa.py [--n 16384 65536 131072] [--heads 32] [--rounds 5]

Heads of 128 channels with 16 strips, which rotary queries and keys have up to rounding,
against SDPA in bfloat16, which torch computes by flash attention. Calls take turns; times are
medians between CUDA events. Errors are those of sampled rows against float64, relative to the row.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

import convbasis as cb
import convbasis.torch as cbt
from convbasis.problems import conv_problem

CHANNELS, STRIPS, DISTINCT, SAMPLES = 128, 16, 2, 8
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Setting:
    """One problem: query, key and value of each type, strips and the exact rows."""

    def __init__(self, n: int, heads: int, device: torch.device) -> None:
        distinct = min(DISTINCT, heads)
        problem = conv_problem(
            n, CHANNELS, STRIPS, batch=(1, distinct), dtype=np.float32, min_size=64
        )
        arrays = (problem.query, problem.key, problem.value)
        repeats = (1, heads // distinct, 1, 1)
        self.single: Tensors = tuple(  # type: ignore[assignment]
            torch.from_numpy(array).to(device).repeat(repeats) for array in arrays
        )
        self.half: Tensors = tuple(part.bfloat16() for part in self.single)  # type: ignore[assignment]
        self.starts = np.tile(problem.starts, repeats[:-1])
        self.scale = problem.scale
        self.rows = torch.linspace(n // SAMPLES, n - 1, SAMPLES, device=device).long()

    def sdpa(self, tensors: Tensors) -> torch.Tensor:
        return scaled_dot_product_attention(*tensors, is_causal=True, scale=self.scale)

    def searched(self, tensors: Tensors) -> torch.Tensor:
        """Strips are looked for in each call."""
        options = cb.RecoverOptions(num_bases=STRIPS)
        return cbt.conv_attention(*tensors, is_causal=True, scale=self.scale, options=options)

    def known(self, tensors: Tensors) -> torch.Tensor:
        """Strips begin where they are known to."""
        query, key, value = tensors
        basis = cb.recover_basis(query, key, starts=self.starts, scale=self.scale)
        return cb.conv_attention(query, key, value, is_causal=True, scale=self.scale, basis=basis)

    def exact(self, tensors: Tensors) -> torch.Tensor:
        # With row sums, which torch does not give: without them torch itself would compute this.
        return cb.exact_attention(*tensors, is_causal=True, scale=self.scale, return_lse=True)[0]

    def error(self, tensors: Tensors, output: torch.Tensor) -> float:
        """The largest relative error of sampled rows, of the first and the last head."""
        worst = 0.0
        for head in (0, -1):
            query, key, value = (part[0, head].double() for part in tensors)
            logits = self.scale * (query[self.rows] @ key.T)
            hidden = torch.arange(key.shape[0], device=key.device) > self.rows[:, None]
            want = torch.softmax(logits.masked_fill(hidden, -torch.inf), -1) @ value
            missed = (output[0, head][self.rows].double() - want).norm(dim=-1)
            worst = max(worst, float((missed / want.norm(dim=-1)).max()))
        return worst


def milliseconds(calls: Sequence[Callable[[], torch.Tensor]], rounds: int) -> list[float]:
    """Medians of calls that take turns, after one turn that makes plans."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for call, taken in zip(calls, times, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            if turn > 0:
                taken.append(begin.elapsed_time(end))
    return [statistics.median(taken) for taken in times]


def contest(setting: Setting, n: int, rounds: int) -> list[str]:
    """Lines of the table."""
    contestants = [
        ("SDPA, bfloat16", setting.sdpa, setting.half),
        ("conv, starts known, bfloat16", setting.known, setting.half),
        ("conv, starts known, float32", setting.known, setting.single),
        ("conv, searched, float32", setting.searched, setting.single),
    ]
    if n <= 16384:  # its time grows with n^2, like SDPA's
        contestants.append(("our exact, bfloat16", setting.exact, setting.half))
    calls = [lambda run=run, tensors=tensors: run(tensors) for _, run, tensors in contestants]
    times = milliseconds(calls, rounds)
    lines = []
    for (name, run, tensors), time in zip(contestants, times, strict=True):
        error = setting.error(tensors, run(tensors))
        lines.append(f"{n:>8,} {name:<30} {time:>9.3f} {times[0] / time:>8.2f}x {error:>9.1e}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, nargs="+", default=[16384, 65536, 131072])
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: torch finds no GPU")
        return 0
    device = torch.device("cuda", torch.cuda.current_device())
    name = torch.cuda.get_device_name(device)
    print(f"{name}, torch {torch.__version__}, convbasis {cb.__version__}")
    print(f"{arguments.heads} heads, {CHANNELS} channels, {STRIPS} strips, causal")
    print(f"{'n':>8} {'':<30} {'ms':>9} {'SDPA / it':>9} {'error':>9}")
    for n in arguments.n:
        print(
            "\n".join(contest(Setting(n, arguments.heads, device), n, arguments.rounds)), flush=True
        )
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
