"""The recurrence in log2(length) parallel rounds: the doubling scan, to be read.

A step is the pair (a, b) of h -> a h + b. Doing (a1, b1) and then (a2, b2) is again
such a pair, (a2 a1, a2 b1 + b2), and this product is associative, so pairs may be
joined in any order. Round k joins every position with the one 2^k earlier; after the
last, b is the state. That is depth log2 L for L log2 L work on tensors of all states:
it pays off on parallel machines only. Sources: 1709.04057, 2208.04933 (S5).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.scan import terms


def linear(
    a: Tensor, b: Tensor, h0: Tensor | None = None, reset: Tensor | None = None
) -> Tensor:
    """All states of h_t = a_t h_{t-1} + b_t. a, b: (batch, length, ...)."""
    cut = None if reset is None else terms.trailing(reset, b)
    b = _begin(a, b, torch.zeros_like(b[:, 0]) if h0 is None else h0, cut)
    span = 1
    while span < b.shape[1]:
        earlier = a[:, span:] * b[:, :-span]
        if cut is not None:  # nothing earlier than a reset is reached; not even a NaN
            earlier = earlier.masked_fill(cut[:, span:], 0)
            cut = torch.cat([cut[:, :span], cut[:, span:] | cut[:, :-span]], dim=1)
        b = torch.cat([b[:, :span], b[:, span:] + earlier], dim=1)
        a = torch.cat([a[:, :span], a[:, span:] * a[:, :-span]], dim=1)
        span *= 2
    return b


def _begin(a: Tensor, b: Tensor, h0: Tensor, cut: Tensor | None) -> Tensor:
    """b with the initial state's share added to the first step."""
    share = a[:, :1] * h0[:, None]
    share = share if cut is None else share.masked_fill(cut[:, :1], 0)
    return torch.cat([b[:, :1] + share, b[:, 1:]], dim=1)


def selective(*case, discretization: str = "euler") -> tuple[Tensor, Tensor]:
    """y (batch, length, channels) and the last state; as `reference.selective`."""
    return terms.selective_by(linear, case, discretization)


def ssd(*case) -> tuple[Tensor, Tensor]:
    """y (batch, length, heads, P) and the state at the end; as `reference.ssd`."""
    return terms.ssd_by(linear, case)
