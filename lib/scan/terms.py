"""The terms of the recurrence that every plain-torch backend computes alike.

A backend is called with channel-last tensors that `forms` has checked: u, delta, z
(batch, length, channels), A (channels, N), B and C (batch, length, groups, N). A's own
precision is the one to compute in, whatever the precision of u.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

RULES = ("euler", "zoh")


def steps(delta: Tensor, bias: Tensor | None, softplus: bool, A: Tensor) -> Tensor:
    """The steps in A's precision: delta + bias, made positive by a softplus or not."""
    delta = delta.to(A.real.dtype)
    delta = delta if bias is None else delta + bias
    return F.softplus(delta, threshold=40) if softplus else delta  # 20 loses 2e-9


def zoh_gain(delta: Tensor, A: Tensor) -> Tensor:
    """(e^(delta A) - 1) / A with its value and its gradients where A or delta is 0.

    The series reaches further in float32: there the derivative by A loses its digits to
    cancellation long before the value does. That by delta is e^(delta A) exactly.
    """
    z = delta * A
    near = z.abs() < (1e-3 if z.real.dtype == torch.float64 else 1e-1)
    tiny = z.masked_fill(~near, 0)
    series = torch.ones_like(z)
    for k in range(7, 1, -1):
        series = 1 + tiny / k * series
    away = torch.expm1(z) / torch.where(near, 1, A)
    return torch.where(near, delta * series, away)


def discretize(delta: Tensor, A: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Decay e^(delta A) and what multiplies B u, both (..., channels, N or 1).

    delta: (..., channels); rule: "euler" delta, "zoh" (e^(delta A) - 1) / A.
    """
    delta = delta[..., None]
    gain = delta if rule == "euler" else zoh_gain(delta, A)
    return torch.exp(delta * A), gain


def per_channel(B: Tensor, channels: int) -> Tensor:
    """(..., groups, N) as (..., channels, N): a view if there is one group."""
    groups, N = B.shape[-2:]
    if groups == channels:
        return B
    B = B[..., :, None, :].expand(*B.shape[:-1], channels // groups, N)
    return B.flatten(-3, -2)


def read_out(C: Tensor, h: Tensor) -> Tensor:
    """The sum of C h over the states; half of the states are given if complex."""
    y = (C * h).sum(-1)
    return 2 * y.real if y.is_complex() else y


def gate(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """(y + D u) silu(z) in u's type; D has u's trailing dimensions, or its heads."""
    if D is not None:
        D = D if D.ndim == u.ndim - 2 else D[..., None]
        y = y + D * u.to(y.dtype)
    if z is not None:
        y = y * F.silu(z.to(y.dtype))
    return y.to(u.dtype)


def start(initial_state: Tensor | None, shape: tuple[int, ...], A: Tensor) -> Tensor:
    """The state before the first step: zeros unless given."""
    return A.new_zeros(shape) if initial_state is None else initial_state


def trailing(reset: Tensor, like: Tensor) -> Tensor:
    """(batch, length) with as many trailing dimensions of size 1 as `like` has."""
    return reset.reshape(*reset.shape, *[1] * (like.ndim - reset.ndim))


def selective_by(linear: Callable, case: tuple, rule: str) -> tuple[Tensor, Tensor]:
    """A selective scan from a linear one, on all states (batch, length, channels, N).

    linear: (a, b, h0, reset) to all states; case: the eleven core arguments.
    """
    u, delta, A, B, C, D, z, bias, softplus, h0, reset = case
    decay, gain = discretize(steps(delta, bias, softplus, A), A, rule)
    drive = gain * u.to(gain.dtype)[..., None] * per_channel(B, u.shape[2])
    h = linear(decay, drive, h0, reset)
    y = read_out(per_channel(C, u.shape[2]), h)
    return gate(y, u, D, z), h[:, -1].clone()  # a view would keep all states


def ssd_by(linear: Callable, case: tuple) -> tuple[Tensor, Tensor]:
    """An SSD from a linear scan, on all states (batch, length, heads, P, N)."""
    x, delta, A, B, C, D, z, bias, softplus, h0, reset = case
    delta = steps(delta, bias, softplus, A)
    drive = (delta[..., None] * x.to(delta.dtype))[..., None]
    drive = drive * per_channel(B, x.shape[2])[..., None, :]
    h = linear(torch.exp(delta * A)[..., None, None], drive, h0, reset)
    y = read_out(per_channel(C, x.shape[2])[..., None, :], h)
    return gate(y, x, D, z), h[:, -1].clone()
