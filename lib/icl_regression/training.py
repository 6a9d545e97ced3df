"""Training on fresh prompts, many models at once, and a name for divergence.

`train` reads like the algorithm: draw prompts, ask every model, take Adam's step on
the mean squared error. Models share no weights, and Adam treats each number alone, so
a batch of models trains exactly as each would by itself on these prompts.
Sources: 2503.12734's code (Adam, squared error); schedules are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lib.icl_regression.prompts import Prompts
from lib.kit.checks import choice, count, need

Weights = dict[str, Tensor]
Model = Callable[[Weights, Prompts], Tensor]
Draw = Callable[[int], Prompts]


class Divergence(FloatingPointError):
    """A model's loss is not finite; the sentence names step, model and rate."""


def rate(step: int, steps: int, lr: float, decay: str = "linear") -> float:
    """The learning rate of a step: ten steps of warm-up, then a fall to zero.

    step: from 0; steps: of the run; lr: the highest; decay: "linear" or "cosine".
    Returns a rate. Raises ValueError for the decay.
    """
    choice("decay", decay, ("linear", "cosine"))
    left = 1 - step / steps
    fall = left if decay == "linear" else 0.5 * (1 - math.cos(math.pi * left))
    return lr * min(1.0, (step + 1) / 10) * fall


def train(
    model: Model,
    weights: Weights,
    draw: Draw,
    *,
    steps: int,
    lr: float,
    decay: str = "linear",
    clip: float | None = None,
    frozen: Weights | None = None,
) -> Tensor:
    """Train all models in place on fresh prompts.

    model: (weights, prompts) to answers (..., B); weights: name to (*lead, ...);
    draw: of the step's number, prompts; steps; lr; decay: see `rate`; clip: largest
    gradient norm of one model; frozen: name to a mask, 0 where a weight stays as it
    is. Returns losses (steps, *lead). Raises Divergence, and ValueError for settings.
    """
    count("steps", steps)
    need(lr > 0, f"lr is {lr}; give a positive learning rate.")
    losses, frozen = [], frozen or {}
    names = [name for name in weights if name not in frozen or frozen[name].any()]
    for name in names:
        weights[name].requires_grad_()
    adam = torch.optim.Adam([weights[name] for name in names], lr)
    for step in range(steps):
        adam.param_groups[0]["lr"] = rate(step, steps, lr, decay)
        prompts = draw(step)
        loss = (model(weights, prompts) - prompts.y_q).square().mean(-1)  # (*lead,)
        check_finite(loss, step, lr)
        adam.zero_grad()
        loss.sum().backward()
        for name in names:
            if name in frozen:
                weights[name].grad *= frozen[name]
        if clip is not None:
            clip_each([weights[name].grad for name in names], loss.ndim, clip)
        adam.step()
        losses.append(loss.detach())
    for name in names:
        weights[name].requires_grad_(False)
    return torch.stack(losses)


def check_finite(loss: Tensor, step: int, lr: float) -> None:
    """Raise Divergence where a model's loss is not finite.

    loss: (*lead,); step; lr: for the sentence.
    """
    bad = (~loss.detach().isfinite()).nonzero()
    if len(bad):
        which = f" {tuple(bad[0].tolist())}" if loss.ndim else ""
        raise Divergence(
            f"training diverged: the loss of model{which} is not finite at step {step} "
            f"(learning rate {lr:g}). Take a smaller learning rate or start."
        )


def clip_each(grads: list[Tensor], lead: int, clip: float) -> None:
    """Scale every model's gradient to at most this norm, in place.

    grads: tensors (*lead, ...); lead: how many dimensions count models; clip: norm.
    """
    flat = [
        grad.flatten(lead) if grad.ndim > lead else grad[..., None] for grad in grads
    ]
    norm = torch.cat(flat, dim=-1).square().sum(-1).sqrt()
    scale = (clip / norm.clamp_min(1e-30)).clamp_max(1.0)
    for grad in grads:
        grad *= scale.reshape(*scale.shape, *[1] * (grad.ndim - lead))
