"""ConvAttention: a layer with the weights of torch.nn.MultiheadAttention."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from .. import _validate
from .._gradients import GRADIENTS
from ..recover import RecoverOptions, recover_options
from .attention import conv_attention

NAME = "ConvAttention"
PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class ConvAttention(nn.Module):
    """Multi-head attention by `conv_attention`, in place of ``torch.nn.MultiheadAttention``.

    Parameters, their names and their initial values are those of that layer, so that a
    ``state_dict`` of the one loads into the other.

    Parameters
    ----------
    embed_dim, num_heads, bias, kdim, vdim, batch_first, device, dtype
        As in ``torch.nn.MultiheadAttention``.
    dropout, add_bias_kv, add_zero_attn
        Not supported: 0.0, False and False.
    num_kv_heads : int, optional
        Key and value have so many heads, shared by groups of query heads. Default `num_heads`;
        with fewer, the weights are smaller than those of ``torch.nn.MultiheadAttention``.
    rotary_base : float, optional
        Rotate queries and keys by their positions (RoFormer, arXiv 2104.09864), with this longest
        wavelength over 2 pi; 10,000 is usual. The head dimension must be even. Default: no
        rotation.
    options, tol, on_miss, gradient
        Of every call, as in `convbasis.torch.conv_attention`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        If an argument breaks a rule or cannot be honoured.

    Notes
    -----
    ``torch.nn.TransformerEncoderLayer`` takes it as its ``self_attn``.

    With `rotary_base`, and the same vector for all positions as `query` and as `key`, the logits
    depend on the lag alone: attention by position, one strip a head, whatever the weights learn.

    Examples
    --------
    >>> import convbasis as cb, torch
    >>> layer = cb.torch.ConvAttention(16, 2, batch_first=True, tol=1e-3)
    >>> x = torch.randn(3, 40, 16)
    >>> out, _ = layer(x, x, x, is_causal=True)
    >>> out.shape
    torch.Size([3, 40, 16])
    """

    # torch.nn.TransformerEncoderLayer asks it. With True it would take the weights in evaluation,
    # attend by a kernel of its own, and never call this layer.
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        num_kv_heads: int | None = None,
        rotary_base: float | None = None,
        options: RecoverOptions | None = None,
        tol: float | None = None,
        on_miss: str = "exact",
        gradient: str = "basis",
    ) -> None:
        super().__init__()
        self.embed_dim = _validate.integer(NAME, "embed_dim", embed_dim, minimum=1)
        self.num_heads = _validate.integer(NAME, "num_heads", num_heads, minimum=1)
        check_divides("num_heads", num_heads, "embed_dim", embed_dim)
        for name, value in (
            ("dropout", dropout),
            ("add_bias_kv", add_bias_kv),
            ("add_zero_attn", add_zero_attn),
        ):
            if value:
                raise unsupported(name, "is set and cannot be honoured", "0.0 or False", value)
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.num_kv_heads = _validate.integer(NAME, "num_kv_heads", num_kv_heads, minimum=1)
        check_divides("num_kv_heads", num_kv_heads, "num_heads", num_heads)
        self.batch_first = _validate.flag(NAME, "batch_first", batch_first)
        self.options = recover_options(NAME, options)
        self.tol = _validate.tolerance(NAME, tol)
        self.on_miss = _validate.choice(NAME, "on_miss", on_miss, ("exact", "error", "keep"))
        self.gradient = _validate.choice(NAME, "gradient", gradient, GRADIENTS)
        kdim = embed_dim if kdim is None else kdim
        vdim = embed_dim if vdim is None else vdim
        bias = _validate.flag(NAME, "bias", bias)
        self.head_dim = embed_dim // num_heads
        self.rotary_base = rotary_base_of(rotary_base, self.head_dim)
        kv_dim = num_kv_heads * self.head_dim
        self.rows = embed_dim, kv_dim, kv_dim  # of the projections of query, key and value

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        if kdim == vdim == embed_dim:
            self.in_proj_weight = parameter(sum(self.rows), embed_dim)
            separate: list[nn.Parameter | None] = [None, None, None]
        else:
            self.register_parameter("in_proj_weight", None)
            separate = list(map(parameter, self.rows, (embed_dim, kdim, vdim)))
        for name, weight in zip(PROJECTIONS, separate, strict=True):
            self.register_parameter(name, weight)
        self.register_parameter("in_proj_bias", parameter(sum(self.rows)) if bias else None)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as ``torch.nn.MultiheadAttention`` does, and in its order."""
        for weight in self.input_weights():
            nn.init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    def input_weights(self) -> list[torch.Tensor]:
        """One matrix for query, key and value together, or one for each."""
        if self.in_proj_weight is not None:
            return [self.in_proj_weight]
        return [getattr(self, name) for name in PROJECTIONS]

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: None = None,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, None]:
        """Attend.

        Parameters
        ----------
        query, key, value : Tensor
            (seq, dim), (seq, batch, dim), or (batch, seq, dim) with `batch_first`.
        key_padding_mask : None
            Not supported.
        need_weights : bool
            Only False: the weights are never formed.
        attn_mask : Tensor, optional
            Only with `is_causal`, which says, as in ``torch.nn.MultiheadAttention``, that it is
            the causal mask; its entries are then not looked at.
        average_attn_weights : bool
            Of the weights that are not returned.
        is_causal : bool
            Query i sees keys 0..i; `attn_mask` is not needed for it.

        Returns
        -------
        output : Tensor, of the shape of `query`
        weights : None

        Raises
        ------
        ValueError, TypeError, NotImplementedError, ToleranceMissed
            As `convbasis.torch.conv_attention`.
        """
        is_causal = _validate.flag(NAME, "is_causal", is_causal)
        if key_padding_mask is not None:
            raise unsupported(
                "key_padding_mask", "is given", "None", type(key_padding_mask).__name__
            )
        if need_weights:
            raise unsupported(
                "need_weights", "asks for what is never formed", "False", need_weights
            )
        if attn_mask is not None and not is_causal:
            raise unsupported(
                "attn_mask",
                "is given without is_causal",
                "None, or the causal mask with is_causal=True",
                type(attn_mask).__name__,
            )
        self.check_ranks([("query", query), ("key", key), ("value", value)])
        query, key, value = (
            self.batch_swapped(projected).unflatten(-1, (-1, self.head_dim))
            for projected in self.projections(query, key, value)
        )
        if self.rotary_base is not None:
            query, key = rotated(query, self.rotary_base), rotated(key, self.rotary_base)
        out = self.attend(query, key, value, is_causal)
        return self.batch_swapped(self.out_proj(out.flatten(-2))), None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool
    ) -> torch.Tensor:
        """Attention of projected heads, (..., seq, heads, dim)."""
        out: torch.Tensor = conv_attention(
            query,
            key,
            value,
            is_causal=is_causal,
            enable_gqa=self.num_kv_heads != self.num_heads,
            options=self.options,
            tol=self.tol,
            on_miss=self.on_miss,
            gradient=self.gradient,
            layout="bshd",
        )
        return out

    def check_ranks(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        """All inputs with a batch, or all without."""
        for name, tensor in tensors:
            if tensor.ndim not in (2, 3) or tensor.ndim != tensors[0][1].ndim:
                raise _validate.wrong(
                    NAME,
                    name,
                    "has the wrong number of dimensions",
                    "2, or 3 with a batch, the same for query, key and value",
                    f"shape {tuple(tensor.shape)}",
                )

    def projections(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> Iterable[torch.Tensor]:
        """Query, key and value times their weights; of one tensor in a single product."""
        if query is key and key is value and self.in_proj_weight is not None:
            return linear(query, self.in_proj_weight, self.in_proj_bias).split(self.rows, dim=-1)
        weights = self.input_weights()
        if len(weights) == 1:
            weights = list(weights[0].split(self.rows))
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.split(self.rows)
        return map(linear, (query, key, value), weights, biases)

    def batch_swapped(self, tensor: torch.Tensor) -> torch.Tensor:
        """From the caller's order of batch and seq to batch first, or back."""
        return tensor if self.batch_first or tensor.ndim == 2 else tensor.transpose(0, 1)


def rotary_base_of(rotary_base: float | None, head_dim: int) -> float | None:
    """The checked `rotary_base`."""
    if rotary_base is None:
        return None
    base = _validate.number(NAME, "rotary_base", rotary_base)
    if base <= 1.0:
        raise _validate.wrong(NAME, "rotary_base", "is too small", "more than 1", rotary_base)
    if head_dim % 2:
        raise _validate.wrong(
            NAME, "rotary_base", "needs an even head dimension", "an even one", head_dim
        )
    return base


def rotated(heads: torch.Tensor, base: float) -> torch.Tensor:
    """Rows of (..., seq, heads, dim) rotated by their positions: halves of a row are the two parts
    of complex numbers.

    Angles are formed in float64: those of late positions are many turns.
    """
    half = heads.shape[-1] // 2
    exact = {"dtype": torch.float64, "device": heads.device}
    positions = torch.arange(heads.shape[-3], **exact)[:, None, None]
    angles = positions * base ** -(torch.arange(half, **exact) / half)
    cos, sin = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    re, im = heads.split(half, dim=-1)
    return torch.cat([re * cos - im * sin, re * sin + im * cos], dim=-1)


def check_divides(name: str, count: int, of: str, total: int) -> None:
    if total % count:
        raise _validate.wrong(NAME, name, f"does not divide {of}", f"a divisor of {total}", count)


def unsupported(argument: str, fault: str, expected: str, got: object) -> Exception:
    """The exception for what ``torch.nn.MultiheadAttention`` can do and this layer cannot."""
    return _validate.wrong(NAME, argument, fault, expected, got, NotImplementedError)
