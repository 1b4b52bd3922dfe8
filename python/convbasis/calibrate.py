"""CalibrateOptions: attention whose logits depend on content, as those of language models do."""

from __future__ import annotations

from dataclasses import dataclass, fields

from . import _validate

#: What the core's integers hold.
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class CalibrateOptions:
    """How a head whose logits depend on content is approximated.

    Logits of trained models are seldom strips: they depend on what is at a position. So some keys
    are taken exactly by every query, and the others together by one convolution of weighted values:
    row i gives key j the weight ``alpha_i tau[I - J] beta_j``, with I and J the blocks of 64 that
    they are in. Keys taken exactly are the nearest ones, the first ones (*sinks*), those which
    receive the most attention (*heavy*), those at distances that stand out (*single lags*), and,
    for heads that look things up, some blocks of keys chosen for each block of 64 queries by its
    mean query.
    How many of these a head needs, and whether the convolution helps it, is found out on sample
    rows; other rows judge the result.

    Parameters
    ----------
    window : int
        Nearest keys taken exactly, rounded up to blocks of 64.
    sinks : int
        First keys taken exactly.
    heavy_keys : int
        Keys with the most attention from the sample rows, taken exactly.
    retrieval_blocks : int
        Blocks of 64 keys that blocks of 64 queries take exactly, at most: in the mean, one of them
        up to four times as many. Without a `tol` as many are taken; with one, the fewest of 0, 1,
        2, 4, ... that seem to bring it.
    sample_rows : int
        Rows of exact attention that the weights are fitted to; fewer below 32 times as many rows.
    sample_keys : int
        Keys drawn for each block of queries, which tell how much its rows give to the convolution.
    seed : int
        Of all draws. Results depend on it, and on nothing else that is random.

    Raises
    ------
    ValueError
        If window, sample_rows or sample_keys < 1, or another number < 0, or any needs 64 bits.
    TypeError
        If a value has the wrong type.

    Notes
    -----
    O((window + sinks + heavy_keys + 64 retrieval_blocks + sample_keys) n d) a head, and exact
    attention of the sample rows and of one mean query for every 64:
    ``O(sample_rows n d + n^2 d / 64)``. The convolution, over blocks, is less than that.

    Not of a paper: this project's own extension of conv bases to content-dependent logits.

    Examples
    --------
    >>> import numpy as np, convbasis as cb
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.normal(size=(3, 2048, 16)) * 0.5
    >>> out, report = cb.conv_attention(query, key, value, is_causal=True, tol=0.2,
    ...                                 options=cb.CalibrateOptions(seed=1), return_report=True)
    >>> exact = cb.exact_attention(query, key, value, is_causal=True)
    >>> bool(np.linalg.norm(out - exact) < 0.2 * np.linalg.norm(exact))
    True
    """

    window: int = 64
    sinks: int = 4
    heavy_keys: int = 64
    retrieval_blocks: int = 16
    sample_rows: int = 128
    sample_keys: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("window", "sample_rows", "sample_keys")
        for entry in fields(self):
            _validate.integer(
                "CalibrateOptions",
                entry.name,
                getattr(self, entry.name),
                minimum=1 if entry.name in positive else 0,
                maximum=LARGEST,
            )

    def as_tuple(self) -> tuple[int, int, int, int, int, int, int]:
        """In the order of the core's options."""
        return (
            int(self.window),
            int(self.sinks),
            int(self.heavy_keys),
            int(self.retrieval_blocks),
            int(self.sample_rows),
            int(self.sample_keys),
            int(self.seed),
        )
