"""The recurrence as it is written: one step after another, in plain torch.

Every other backend is tested against this one; it takes any precision and any A, and
may be differentiated twice. Sequences are taken apart by `unbind`: autograd answers an
index x[:, t] with a tensor of zeros as large as x, so that a backward over L of them
costs L^2. Sources: 2312.00752 (Algorithm 2), 2405.21060 (eq. 1, scalar A).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lib.scan import terms


def _cuts(reset: Tensor | None, like: Tensor, length: int) -> Iterator[Tensor | None]:
    """Step by step where a sequence starts, shaped to mask a state `like`."""
    if reset is None:
        return iter([None] * length)
    return iter(cut.reshape(-1, *[1] * (like.ndim - 1)) for cut in reset.unbind(1))


def _stack(parts: list[Tensor], empty: Tensor) -> Tensor:
    return torch.stack(parts, dim=1) if parts else empty


def linear(
    a: Tensor, b: Tensor, h0: Tensor | None = None, reset: Tensor | None = None
) -> Tensor:
    """All states of h_t = a_t h_{t-1} + b_t. a, b: (batch, length, ...)."""
    h = b.new_zeros(b.shape[:1] + b.shape[2:]) if h0 is None else h0
    states = []
    cuts = _cuts(reset, h, b.shape[1])
    for a_t, b_t, cut in zip(a.unbind(1), b.unbind(1), cuts):
        h = h if cut is None else h.masked_fill(cut, 0)
        h = a_t * h + b_t
        states.append(h)
    return _stack(states, b)


def selective(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    reset: Tensor | None,
    discretization: str = "euler",
) -> tuple[Tensor, Tensor]:
    """y (batch, length, channels) and the last state; shapes as in `terms`."""
    batch, length, channels = u.shape
    delta = terms.steps(delta, delta_bias, delta_softplus, A)
    h = terms.start(initial_state, (batch, *A.shape), A)
    x, ys = u.to(delta.dtype), []
    over_time = zip(
        x.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), _cuts(reset, h, length)
    )
    for x_t, delta_t, B_t, C_t, cut in over_time:
        h = h if cut is None else h.masked_fill(cut, 0)
        decay, gain = terms.discretize(delta_t, A, discretization)
        h = decay * h + gain * x_t[..., None] * terms.per_channel(B_t, channels)
        ys.append(terms.read_out(terms.per_channel(C_t, channels), h))
    return terms.gate(_stack(ys, x), u, D, z), h


def ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (batch, length, heads, P) and the state (batch, heads, P, N) at the end."""
    batch, length, heads, width = x.shape
    delta = terms.steps(delta, delta_bias, delta_softplus, A)
    h = terms.start(initial_state, (batch, heads, width, B.shape[3]), A)
    decay = torch.exp(delta * A)[..., None, None]
    drive, ys = delta[..., None] * x.to(delta.dtype), []
    over_time = zip(
        decay.unbind(1),
        drive.unbind(1),
        B.unbind(1),
        C.unbind(1),
        _cuts(reset, h, length),
    )
    for decay_t, drive_t, B_t, C_t, cut in over_time:
        h = h if cut is None else h.masked_fill(cut, 0)
        h = decay_t * h + drive_t[..., None] * terms.per_channel(B_t, heads)[:, :, None]
        ys.append(terms.read_out(terms.per_channel(C_t, heads)[:, :, None], h))
    return terms.gate(_stack(ys, drive), x, D, z), h
