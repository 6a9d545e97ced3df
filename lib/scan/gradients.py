"""What the fused kernels share: their place in autograd, and second derivatives.

A kernel computes results and first derivatives. Whoever asks for a graph of those
(create_graph=True) gets them through a form in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "bias", "h0")
Given = Sequence[Tensor | None]  # in the order of NAMES


class Kernel(NamedTuple):
    """A fused scan.

    plain: the same scan in plain torch, as in `reference`; run: (softplus, reset,
    given, keep) -> y, the last state, and (if it is to be kept) what the backward needs
    besides; derive: (softplus, reset, given, kept, gy, glast) -> gradients of `given`.
    """

    plain: Callable
    run: Callable
    derive: Callable


def scan(
    kernel: Kernel, softplus: bool, reset: Tensor | None, given: Given
) -> tuple[Tensor, Tensor]:
    """y and the last state; with a backward, and what it needs, if one may come."""
    if torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in given
    ):
        return _Scan.apply(kernel, softplus, reset, *given)
    return kernel.run(softplus, reset, given, keep=False)[:2]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernel, softplus, reset, *given):
        ctx.set_materialize_grads(False)
        y, last, kept = kernel.run(softplus, reset, given, keep=True)
        ctx.how = kernel, softplus
        ctx.save_for_backward(reset, kept, *given)
        return y, last

    @staticmethod
    def backward(ctx, gy, glast):
        (kernel, softplus), (reset, kept, *given) = ctx.how, ctx.saved_tensors
        if gy is None and glast is None:
            return (None,) * (3 + len(given))
        gy = torch.zeros_like(given[0]) if gy is None else gy
        if torch.is_grad_enabled():  # create_graph=True: these must have a graph
            grads = by_torch(kernel.plain, softplus, reset, given, gy, glast)
        else:
            grads = kernel.derive(softplus, reset, given, kept, gy, glast)
        wanted = ctx.needs_input_grad[3:]
        return None, None, None, *(g if w else None for g, w in zip(grads, wanted))


def by_torch(
    plain: Callable,
    softplus: bool,
    reset: Tensor | None,
    given: Given,
    gy: Tensor,
    glast: Tensor | None,
) -> list[Tensor | None]:
    """Gradients through a form in plain torch, with a graph if one is recorded."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that a tensor given twice has two gradients.
        given = [
            None
            if x is None
            else x.view_as(x)
            if graph
            else x.detach().requires_grad_()
            for x in given
        ]
        u, delta, A, B, C, *rest, h0 = given
        y, last = plain(u, delta, A, B.float(), C.float(), *rest, softplus, h0, reset)
    outputs, weights = [y.to(u.dtype)], [gy]
    if glast is not None:
        outputs, weights = [*outputs, last], [gy, glast]
    leaves = [x for x in given if x is not None and x.requires_grad]
    options = {"create_graph": graph, "allow_unused": True}
    grads = iter(torch.autograd.grad(outputs, leaves, weights, **options))
    return [next(grads) if x is not None and x.requires_grad else None for x in given]


def of_linear(
    linear: Callable,
    a: Tensor,
    h0: Tensor | None,
    reset: Tensor | None,
    h: Tensor,
    gh: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of a linear recurrence as differentiable expressions.

    They are the recurrence run backwards, g_t = gh_t + a_{t+1} g_{t+1}, by `linear`
    itself. a, h, gh: (batch, length, channels); h0: (batch, channels). Returns those of
    a, of the inputs and of h0. Source: 1709.04057.
    """
    cut = torch.zeros_like(a[..., :1], dtype=torch.bool)
    cut = cut if reset is None else reset[..., None]
    live = a.masked_fill(cut, 0)
    later = torch.cat([live[:, 1:], torch.zeros_like(live[:, :1])], dim=1)
    g = linear(later.flip(1), gh.flip(1)).flip(1)
    start = torch.zeros_like(h[:, :1]) if h0 is None else h0[:, None]
    before = torch.cat([start, h[:, :-1]], dim=1).masked_fill(cut, 0)
    return g * before, g, None if h0 is None else live[:, 0] * g[:, 0]
