"""What a call of `conv_attention` with `CalibrateOptions` did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .report import Account


@dataclass(frozen=True, eq=False, repr=False)
class CalibratedReport(Account):
    """The account of one `conv_attention` call with `CalibrateOptions`.

    Arrays have the leading dimensions of the inputs, one entry a head; for a single head they are
    scalars. Errors describe the returned output: what was computed exactly has none but rounding.

    Attributes
    ----------
    method : str
        ``"calibrated"``, or ``"exact"`` when every head was computed exactly.
    error_estimate : array of float
        Estimate of ``||Y - Y~||_F / ||Y||_F``.
    error_interval : array of float, shape (..., 2)
        Where that error is expected in 95 of 100 cases. Rows were drawn for it with probabilities
        that grow with the weight of the keys not taken exactly, two fifths evenly.
    sample_error : array of float
        Relative error of rows that the basis was fitted to, which decided what was taken exactly;
        infinite for heads that would cost more than exact attention, NaN for sequences too short
        to be fitted.
    heads_exact : int
        Heads computed exactly.
    exact_mask : array of bool
        Which heads those are.
    blocks_exact : array of int
        Blocks of 64 rows of each head computed exactly.
    num_blocks : int
        Blocks of a head.
    exact_share : array of float
        Logits computed, of any purpose and in vain, relative to those of exact attention.
    window, heavy_keys, lags : array of int
        Nearest keys, keys for all queries, and single lags taken exactly in each head; 0 in heads
        computed exactly. The first keys (`CalibrateOptions.sinks`) are among the heavy ones.
    retrieval_blocks : array of float
        Blocks of 64 keys that a block of queries takes exactly besides, in the mean.
    has_far : array of bool
        Whether the other keys count, through a convolution.
    judged_rows : array of int
        Rows of each head computed exactly for the estimate; more in heads that missed `tol` at
        first sight.
    tol, on_miss
        As given.
    seconds : dict
        Wall-clock seconds per stage; ``total`` is the call.
    backend : str
        Where it ran, ``"cpu"``.
    """

    method: str
    error_estimate: Any
    error_interval: Any
    sample_error: Any
    heads_exact: int
    exact_mask: Any
    blocks_exact: Any
    num_blocks: int
    exact_share: Any
    window: Any
    heavy_keys: Any
    lags: Any
    retrieval_blocks: Any
    has_far: Any
    judged_rows: Any
    tol: float | None
    on_miss: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    backend: str = "cpu"

    def __repr__(self) -> str:
        share = np.mean(self.exact_share) if np.size(self.exact_share) else 0.0
        return (
            f"<CalibratedReport {self.method}: {self.heads_exact} of {np.size(self.exact_mask)} "
            f"heads exact, {share:.0%} of the logits computed, estimated error "
            f"at most {np.max(self.error_interval, initial=0.0):.2g}, "
            f"{self.seconds.get('total', 0.0):.3g} s>"
        )

    def why_exact(self, head: tuple[int, ...] | int = ()) -> str:
        """Why a head was computed exactly; "-" when it was approximated, blocks that missed apart.

        "short" is a sequence below 2,048 rows; "costs more" a head whose approximation would by its
        sample rows cost more than exact attention; "missed tol" one that was tried.
        """
        if not np.asarray(self.exact_mask)[head]:
            return "-"
        error = float(np.asarray(self.sample_error)[head])
        if np.isnan(error):
            return "short"
        return "costs more" if np.isinf(error) else "missed tol"

    def to_markdown(self) -> str:
        """A line on the whole and a table with one row a head."""
        tol = "no tolerance" if self.tol is None else f"tol {self.tol:g}, on_miss {self.on_miss!r}"
        lines = [
            f"{self.method} on {self.backend}, {self.seconds.get('total', 0.0):.3g} s; "
            f"{self.heads_exact} of {np.size(self.exact_mask)} heads exact; {tol}.",
            "",
            "| head | error | interval | judged rows | logits computed | blocks exact | window "
            "| heavy | lags | retrieved | convolution | exact because |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for head in np.ndindex(np.shape(self.exact_mask)):
            low, high = np.asarray(self.error_interval)[head]
            cells = [
                ", ".join(map(str, head)) or "-",
                f"{np.asarray(self.error_estimate)[head]:.2e}",
                f"{low:.2e} to {high:.2e}",
                str(np.asarray(self.judged_rows)[head]),
                f"{np.asarray(self.exact_share)[head]:.0%}",
                f"{np.asarray(self.blocks_exact)[head]} of {self.num_blocks}",
                str(np.asarray(self.window)[head]),
                str(np.asarray(self.heavy_keys)[head]),
                str(np.asarray(self.lags)[head]),
                f"{np.asarray(self.retrieval_blocks)[head]:.1f}",
                "yes" if np.asarray(self.has_far)[head] else "no",
                self.why_exact(head),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)
