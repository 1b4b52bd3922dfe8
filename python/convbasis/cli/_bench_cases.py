"""What `convbasis bench` measures: problems, the methods that solve them, and the targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ._bench_backward import ATTENTION, BASIS, FORWARD
from ._bench_peers import BY_BASIS, BY_STRIP, PRODUCT
from ._names import CONV, EXACT, PLAIN, TORCH


@dataclass(frozen=True)
class Settings:
    """What is asked for."""

    head_dim: int
    dtype: str
    seed: int
    num_threads: int
    repeats: int
    quick: bool

    @property
    def has_targets(self) -> bool:
        """The targets are for this type and head dimension alone."""
        return self.dtype == "float32" and self.head_dim == 64


@dataclass(frozen=True)
class Target:
    """How many times as fast as the baseline a method should be."""

    factor: float

    def __str__(self) -> str:
        if self.factor < 1.0:
            return f"<= {1.0 / self.factor:g}x its time"
        return f">= {self.factor:g}x"


@dataclass(frozen=True)
class Contest:
    """Methods that solve one problem in the same rounds."""

    what: str  # "product", "attention" or "backward"
    n: int
    num_bases: int
    methods: tuple[str, ...]
    targets: dict[str, Target] = field(default_factory=dict)
    demands_strips: bool = False  # also where exact attention would be chosen
    against: str | None = None  # a baseline other than the usual one

    @property
    def baseline(self) -> str:
        """What others are compared with, where it is installed."""
        if self.against is not None:
            return self.against
        return BY_BASIS if self.what == "product" else TORCH

    @property
    def title(self) -> str:
        """What it is about, in a word or two."""
        return f"{self.what} vs {self.against.split()[-1]}" if self.against else self.what

    def __str__(self) -> str:
        return f"{self.title}, n = {self.n:,}, k = {self.num_bases}"


PRODUCTS = (PRODUCT, BY_BASIS, BY_STRIP)
FAST = (CONV, TORCH, EXACT, BY_STRIP)
AS_FAST = Target(1.0 / 1.2)

QUICK_TABLE = (
    Contest("product", 16384, 16, PRODUCTS, {PRODUCT: Target(15)}),
    Contest("product", 16384, 64, PRODUCTS, {PRODUCT: Target(25)}),
    Contest("attention", 4096, 4, (*FAST, PLAIN), {CONV: Target(12), EXACT: AS_FAST}),
    Contest("attention", 4096, 512, (CONV, TORCH, EXACT), {CONV: Target(1.3)}),
    Contest("attention", 16384, 16, FAST, {CONV: Target(35), EXACT: AS_FAST}),
    Contest("backward", 16384, 16, (FORWARD, BASIS), {BASIS: Target(1 / 4)}, against=FORWARD),
    Contest("backward", 16384, 16, (BASIS, TORCH), {BASIS: Target(20)}),
    Contest("backward", 16384, 4, (ATTENTION, TORCH, EXACT), {ATTENTION: Target(1.2)}),
)
TABLE = (
    *QUICK_TABLE,
    Contest("attention", 65536, 16, FAST, {CONV: Target(130)}),
    # exact_attention would take as long again as torch, and the line above tells their ratio.
    Contest("attention", 131072, 16, (CONV, TORCH, BY_STRIP), {CONV: Target(200)}),
    Contest("backward", 65536, 4, (ATTENTION, TORCH), {ATTENTION: Target(3)}),
)

#: Lengths over which the growth of conv_attention's time is fitted, and its largest exponent.
GROWTH = tuple(Contest("growth", 2**power, 16, (CONV,)) for power in range(14, 19))
GROWTH_TARGET = 1.1

#: Problem of the memory lines, n and k, their methods, and how many MiB the forward pass may need.
MEMORY = (262144, 8)
MEMORY_METHODS = (CONV, BASIS)
MEMORY_TARGET = 1536.0


@dataclass(frozen=True)
class Grid:
    """The problems of the picture."""

    lengths: tuple[int, ...]
    bases: tuple[int, ...]
    length: int  # of the panel that shows time against k
    num_bases: int  # of the panel that shows time against n

    def contests(self) -> Iterator[Contest]:
        """conv_attention everywhere; the others along the two lines that show them."""
        for n in self.lengths:
            for k in self.bases:
                # Drawing more strips takes longer than timing them; 2^25 entries are 256 MiB.
                if k > max(n // 8, min(n // 4, 256)) or k * n > 2**25:
                    continue
                methods: tuple[str, ...] = (CONV,)
                if k == self.num_bases:
                    methods = FAST
                elif n == self.length and k <= 256:
                    methods = (CONV, BY_STRIP)
                yield Contest("attention", n, k, methods, demands_strips=True)


QUICK_GRID = Grid((1024, 2048, 4096, 8192), (2, 8, 32, 128, 512), 4096, 8)
GRID = Grid(
    tuple(2**power for power in range(10, 17)), tuple(2**power for power in range(12)), 16384, 16
)
