"""The content of ``convbasis bench --json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .. import build_info
from ..cost_model import break_even
from ._bench_cases import GROWTH_TARGET, MEMORY_TARGET
from ._bench_job import Growth, Memory, Outcome, Result
from ._bench_text import versions
from .info import processor


def as_dict(outcome: Outcome, seconds: float) -> dict[str, Any]:
    """Everything that was measured, and where."""
    growth = outcome.growth
    return {
        "versions": versions(),
        "build": build_info(),
        "processor": processor(),
        "settings": asdict(outcome.settings),
        "contests": [contest(result) for result in outcome.results],
        "growth": None if growth is None else growth_dict(growth),
        "memory": [memory_dict(memory) for memory in outcome.memory],
        "grid": [
            {
                **contest(result),
                "break_even": break_even(result.contest.n, outcome.settings.head_dim),
            }
            for result in outcome.grid
        ],
        "seconds": seconds,
    }


def contest(result: Result) -> dict[str, Any]:
    """One problem and all its methods."""
    asked = result.contest
    return {
        "problem": asked.title,
        "n": asked.n,
        "num_bases": asked.num_bases,
        "baseline": result.baseline,
        "error_rows": result.error_rows,
        "rows_exact": result.rows_exact,
        "by_strips": result.by_strips,
        "methods": {
            name: {
                "seconds": score.seconds.to_dict(),
                "error": score.error,
                "times_as_fast": result.speedup(name),
                "target": asked.targets[name].factor if name in asked.targets else None,
                "met": result.met(name),
            }
            for name, score in result.scores.items()
        },
    }


def growth_dict(growth: Growth) -> dict[str, Any]:
    """The fit, and the lengths it is made from."""
    return {
        "exponent": growth.exponent,
        "target": GROWTH_TARGET if growth.has_target else None,
        "met": growth.met,
        "contests": [contest(result) for result in growth.results],
    }


def memory_dict(memory: Memory) -> dict[str, Any]:
    """Peak growth of the resident set."""
    return {
        "method": memory.method,
        "n": memory.n,
        "num_bases": memory.num_bases,
        "mebibytes": memory.mebibytes,
        "not_measured": memory.reason,
        "target": MEMORY_TARGET if memory.has_target else None,
        "met": memory.met,
    }
