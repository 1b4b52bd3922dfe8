"""Markdown of the pages that real_model.py writes."""

from __future__ import annotations


def table(names: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table; the first column is of words."""
    rule = ["---"] + ["--:"] * (len(names) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (names, rule, *rows)]


def percent(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"
