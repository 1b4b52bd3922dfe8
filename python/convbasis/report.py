"""What a call of `conv_attention` did and how far its output can be trusted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np


class ToleranceMissed(RuntimeError):
    """Raised by ``conv_attention(..., on_miss="error")`` when a head misses `tol`.

    Nothing has been written to `out` then. The message names the heads and their estimates.
    """


class Stopwatch:
    """Seconds per stage; stages entered more than once add up."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - began)

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def stages(self) -> dict[str, float]:
        return {**self.seconds, "total": time.perf_counter() - self.began}


@dataclass(frozen=True, eq=False, repr=False)
class Account:
    """What all reports can do; ``str()`` is the Markdown."""

    def to_markdown(self) -> str:
        """A line on the whole and a table with one row a head."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.to_markdown()

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers and lists; NaN and infinity as None."""
        return {entry.name: plain(getattr(self, entry.name)) for entry in fields(self)}

    def to_json(self) -> str:
        """Strict JSON: what is not a number, or infinite, is null.

        Examples
        --------
        >>> import json, numpy as np, convbasis as cb
        >>> x = np.ones((2, 8, 4))
        >>> _, report = cb.conv_attention(x, x, x, is_causal=True, return_report=True,
        ...                               options=cb.RecoverOptions(num_bases=1))
        >>> json.loads(report.to_json())["num_bases"]
        [1, 1]
        """
        return json.dumps(self.to_dict(), allow_nan=False)


@dataclass(frozen=True, eq=False, repr=False)
class Report(Account):
    """The account of one `conv_attention` call, as ``return_report=True`` gives it.

    Arrays have the leading dimensions of the inputs, one entry a head; for a single head they are
    scalars. NaN stands for what was not measured. The figures describe the returned output: a
    head that was computed exactly has the error 0, which means rounding alone.

    Attributes
    ----------
    method : str
        ``"conv_basis"``, or ``"exact"`` when every head was computed exactly.
    num_bases : array of int
        Strips that the search found in each head, both triangles together when not causal. For a
        head given up because it shows more than pay, what was found when the search stopped at
        its cap; `complete` is False then, and no strips were built.
    complete : array of bool
        False where the data shows more strips than `num_bases`.
    logit_deviation : array of float
        Largest ``|H~ - H|`` of the logits: over all entries when `certified`, else over those of
        the sampled rows. NaN for heads without strips.
    error_bound : array of float
        The theorem's bound of ``max|Y - Y~|``, ``2 (exp(logit_deviation) - 1) max|V|``: without
        rounding, a certificate when `certified`, else an estimate.
    error_estimate : array of float
        Estimate of ``||Y - Y~||_F / ||Y||_F``.
    error_interval : array of float, shape (..., 2)
        Where that error is expected in 95 of 100 cases; a head misses when its end exceeds `tol`.
        It describes errors that the measured rows show: see `unseen_share`.
    unseen_share : array of float
        The blind spot of `error_interval`: the relative error that could hide in rows that were
        not measured. With m rows drawn, errors in fewer than ``3 / m`` of the rows (about one in
        fifty), neither early nor heavy, may all be missed, and the interval can then be a point at
        0 and wrong. This is the root of the share of ``||Y~||^2`` that so many rows have. 0 when
        every row was measured.
    strips_error : array of float
        The estimate for the strips alone, which decided about the heads recomputed; NaN for heads
        without strips.
    heads_exact : int
        Heads computed exactly.
    exact_mask : array of bool
        Which heads those are.
    rows_exact : array of int
        Rows summed directly because the transforms could have rounded them too coarsely.
    rounding_bound : array of float
        Largest estimated relative rounding error of a row that was kept from the transforms.
    certified : bool
        Whether `logit_deviation` covers every entry.
    sample_rows : int
        Rows of each head computed exactly for the estimate.
    tol, on_miss
        As given.
    seconds : dict
        Wall-clock seconds per stage; ``total`` is the call. Those inside the core (``exp``,
        ``products``, ...) are summed over heads, not over workers: of heads that run side by side
        each counts, so that they may add up to more than ``attend``.
    backend : str
        Where it ran, ``"cpu"``.
    block_lengths : tuple of int
        Blocks of the schedule, outermost first; empty when no head used strips.
    """

    method: str
    num_bases: Any
    complete: Any
    logit_deviation: Any
    error_bound: Any
    error_estimate: Any
    error_interval: Any
    unseen_share: Any
    strips_error: Any
    heads_exact: int
    exact_mask: Any
    rows_exact: Any
    rounding_bound: Any
    certified: bool
    sample_rows: int
    tol: float | None
    on_miss: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    backend: str = "cpu"
    block_lengths: tuple[int, ...] = ()

    def __repr__(self) -> str:
        heads = np.size(self.exact_mask)
        worst = np.max(self.error_interval, initial=0.0)
        return (
            f"<Report {self.method}: {self.heads_exact} of {heads} heads exact, estimated error "
            f"at most {worst:.2g}, {self.seconds.get('total', 0.0):.3g} s>"
        )

    def to_markdown(self) -> str:
        """A line on the whole and a table with one row a head."""
        tol = "no tolerance" if self.tol is None else f"tol {self.tol:g}, on_miss {self.on_miss!r}"
        kind = "bound certified" if self.certified else "bound estimated"
        lines = [
            f"{self.method} on {self.backend}, {self.seconds.get('total', 0.0):.3g} s; "
            f"{self.heads_exact} of {np.size(self.exact_mask)} heads exact; {tol}; "
            f"{self.sample_rows} sampled rows; {kind}.",
            "",
            "| head | strips | complete | computed | error | interval | unseen | bound "
            "| rows direct |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for head in np.ndindex(np.shape(self.exact_mask)):
            low, high = np.asarray(self.error_interval)[head]
            cells = [
                ", ".join(map(str, head)) or "-",
                str(np.asarray(self.num_bases)[head]),
                "yes" if np.asarray(self.complete)[head] else "no",
                "exactly" if np.asarray(self.exact_mask)[head] else "by strips",
                f"{np.asarray(self.error_estimate)[head]:.2e}",
                f"{low:.2e} to {high:.2e}",
                f"{np.asarray(self.unseen_share)[head]:.2e}",
                f"{np.asarray(self.error_bound)[head]:.2e}",
                str(np.asarray(self.rows_exact)[head]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False)
class BackwardReport(Account):
    """The account of one `conv_attention_backward` call. Arrays as in `Report`.

    Attributes
    ----------
    gradient : str
        ``"basis"`` or ``"attention"``.
    num_bases : array of int
    heads_exact : int
    exact_mask : array of bool
        As in `Report`.
    logit_deviation : array of float
        As in `Report`.
    error_bound : array of float, shape (..., 3)
        Bounds of what that deviation does to the gradients by query, key and value, compared with
        those of exact attention: each of the sum of the absolute deviations of all entries (of this
        head's part, where query heads share a key head). Rounding apart, a certificate when
        `certified`, else an estimate. NaN for query and key with ``"basis"``, which is the
        gradient of another function; 0 for heads computed exactly.
    certified : bool
        Whether `logit_deviation` covers every entry.
    rows_exact : array of int
        Rows computed one by one because the transforms could have rounded them too coarsely.
    seconds : dict
        Wall-clock seconds per stage; ``total`` is the call, ``differentiate`` all of the backward
        pass, whose stages in the core follow, summed over heads.
    """

    gradient: str
    num_bases: Any
    heads_exact: int
    exact_mask: Any
    logit_deviation: Any
    error_bound: Any
    certified: bool
    rows_exact: Any
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"<BackwardReport {self.gradient}: {self.heads_exact} of {np.size(self.exact_mask)} "
            f"heads exact, {self.seconds.get('total', 0.0):.3g} s>"
        )

    def to_markdown(self) -> str:
        """A line on the whole and a table with one row a head; "-" where there is no bound."""
        lines = [
            f"gradient {self.gradient!r}, {self.seconds.get('total', 0.0):.3g} s; "
            f"{self.heads_exact} of {np.size(self.exact_mask)} heads exact; bounds of the sum of "
            f"|deviations| {'certified' if self.certified else 'estimated'}.",
            "",
            "| head | strips | computed | logit deviation | bound: query | key | value "
            "| rows direct |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for head in np.ndindex(np.shape(self.exact_mask)):
            bounds = np.asarray(self.error_bound)[head]
            cells = [
                ", ".join(map(str, head)) or "-",
                str(np.asarray(self.num_bases)[head]),
                "exactly" if np.asarray(self.exact_mask)[head] else "by strips",
                f"{np.asarray(self.logit_deviation)[head]:.2e}",
                *("-" if np.isnan(bound) else f"{bound:.2e}" for bound in bounds),
                str(np.asarray(self.rows_exact)[head]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def plain(value: Any) -> Any:
    """`value` as JSON knows it."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
