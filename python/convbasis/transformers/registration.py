"""register: make conv attention known to transformers under a name."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from .. import _validate
from .attention import Attention
from .mask import visible_keys
from .statistics import Statistics

REGISTERED: dict[str, Statistics] = {}


def register(
    name: str = "conv_basis",
    *,
    tol: float | None = 0.22,
    options: Any = None,
    min_length: int = 4096,
    collect: bool = True,
    num_threads: int | None = None,
) -> Statistics:
    """Make `conv_attention` available to transformers as ``attn_implementation=name``.

    For causal decoder models on the CPU, with or without grouped-query heads and padding. A prefill
    (as many queries as keys) of at least `min_length` tokens is computed by `conv_attention`;
    shorter ones, and steps that go on from a cache, exactly by torch.

    Parameters
    ----------
    name : str
        Registering a name again replaces what it stood for, for models that use it already, too.
    tol : float, optional
        Wanted relative error of each head's output, see `conv_attention`. None: nothing is judged.
    options : CalibrateOptions or RecoverOptions, optional
        Default: ``CalibrateOptions()``.
    min_length : int
        Fewest tokens for which anything is approximated. Padding does not count. Shorter prefills
        of a small model were slower than by torch; with `CalibrateOptions` `conv_attention` itself
        computes fewer than 2,048 tokens exactly.
    collect : bool
        Whether `statistics` are kept.
    num_threads : int, optional
        Of `conv_attention`; default: all cores this process may use.

    Returns
    -------
    Statistics
        The one that ``statistics(name)`` returns; empty without `collect`.

    Raises
    ------
    ValueError, TypeError
        If an argument breaks a rule.

    Notes
    -----
    While a model runs, whatever cannot be honoured raises NotImplementedError and names it: tensors
    that are not on the CPU, gradients, dropout, attention that is not causal, sliding windows
    shorter than the sequence, packed sequences, masks of four dimensions, softcap, sinks, attention
    weights as output, and any argument that is not known. Queries at padded positions give 0, so
    that their logits differ from those of other implementations; nothing else depends on them.
    float16 and bfloat16 prefills are computed in float32.

    Examples
    --------
    >>> import convbasis.transformers
    >>> found = convbasis.transformers.register("conv_basis", tol=0.1)
    >>> model.set_attn_implementation("conv_basis")  # doctest: +SKIP
    >>> model.generate(**tokens)  # doctest: +SKIP
    >>> print(found)
    nothing was computed yet
    """
    function = "register"
    if not isinstance(name, str) or not name:
        raise _validate.wrong(function, "name", "is no name", "a string", repr(name), TypeError)
    if tol is not None:
        _validate.tolerance(function, tol)
    found = Statistics(name)
    attention = Attention(
        tol=tol,
        options=default_options() if options is None else options,
        min_length=_validate.integer(function, "min_length", min_length, minimum=1),
        statistics=found if _validate.flag(function, "collect", collect) else None,
        num_threads=_validate.threads(function, num_threads),
    )
    # A compiler that traced through them would trace NumPy as well.
    AttentionInterface.register(name, torch.compiler.disable(attention.attend))
    AttentionMaskInterface.register(name, torch.compiler.disable(visible_keys))
    REGISTERED[name] = found
    return found


def default_options() -> Any:
    """The options for real heads."""
    from .. import CalibrateOptions

    return CalibrateOptions()


def statistics(name: str = "conv_basis") -> Statistics:
    """What was computed under a registered name so far.

    Raises
    ------
    ValueError
        If the name was not registered.

    Examples
    --------
    >>> import convbasis.transformers
    >>> _ = convbasis.transformers.register("conv_basis")
    >>> convbasis.transformers.statistics("conv_basis").to_dict()["layers"]
    []
    """
    if name not in REGISTERED:
        raise _validate.wrong(
            "statistics", "name", "is not registered", f"one of {sorted(REGISTERED)}", repr(name)
        )
    return REGISTERED[name]
