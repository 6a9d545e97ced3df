"""Penalty methods for min f(x, y) subject to y in argmin g(x, .), first order only.

The constraint becomes a price: minimise f + gamma p, where p is the value gap g - v,
v(x) = min g(x, .), (V-PBGD), or ||grad_y g||^2 (G-PBGD). Where both levels share all
variables (a *simple* bilevel problem) v is a constant, and what is left is a weighted
sum: `joint_gradient`. Losses are functions of parameter trees (see `trees`).
Sources: 2302.05185 (PBGD) and its code; 2401.06980 (BL-JUST) for the shared variable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.func import grad

from lib.bilevel.trees import Loss, Tree, descend, dot, minus, plus
from lib.kit.checks import count, need

Level = Callable[[Tree, Tree], Tensor]  # f(x, y) or g(x, y): a scalar tensor
Project = Callable[[Tree], Tree]


def inner_steps(losses: Sequence[Loss], start: Tree, step: float | Tensor) -> Tree:
    """Gradient steps, one for each loss: `[loss] * T`, or T fresh mini-batches.

    losses: functions of the parameters; start: their tree; step: the rate. Returns the
    parameters after the last step; differentiable in `start` (and in whatever the
    losses hold) inside another `torch.func.grad`. Source: textbook.
    """
    w = start
    for loss in losses:
        w = descend(w, grad(loss)(w), step)
    return w


def penalty_hypergradient(
    f: Level, g: Level, x: Tree, y: Tree, w: Tree, gamma: float | Tensor
) -> Tree:
    """The first-order hypergradient grad_x f(x, y) + gamma (grad_x g(x, y) - grad_x v).

    f, g: upper and lower level; x; y: near argmin f + gamma g; w: near argmin g(x, .),
    so that grad_x g(x, w) = grad v(x) (Danskin); gamma: weight of the penalty. Returns
    a tree like x. Off by O(1 / gamma) at the exact y and w. Source: 2302.05185.
    """
    gap = minus(grad(g)(x, y), grad(g)(x, w))
    return plus(grad(f)(x, y), gap, gamma)


def penalty_step(
    f: Level,
    g: Level,
    x: Tree,
    y: Tree,
    w: Tree,
    *,
    gamma: float | Tensor,
    step: float | Tensor,
    inner: int,
    inner_step: float | Tensor,
    step_x: float | Tensor | None = None,
    project: Project | None = None,
) -> tuple[Tree, Tree, Tree]:
    """One step of V-PBGD: T inner steps on w, then one gradient step on x and y.

    f, g: upper and lower level; x, y: the variables; w: where the inner steps start:
    pass y to restart there (the paper), the returned w to keep it (the public
    hyper-cleaning code); gamma: weight of the gap; step: of x and y, O(1 / (L_f +
    gamma L_g)); inner: T, 0 where w is exact; inner_step; step_x: of x where it is
    another (as in the public code); project: of x onto its set.
    Returns x, y, w. T + 2 gradients of g and one of f. Raises ValueError for T.
    Source: 2302.05185, Algorithm V-PBGD.
    """
    count("inner (the number of inner steps T)", inner, least=0)
    w = inner_steps([lambda w: g(x, w)] * inner, w, inner_step)
    fx, fy = grad(f, argnums=(0, 1))(x, y)
    gx, gy = grad(g, argnums=(0, 1))(x, y)
    vx = grad(g)(x, w)
    step_x = step if step_x is None else step_x
    new_x = descend(x, plus(fx, minus(gx, vx), gamma), step_x)
    new_y = descend(y, plus(fy, gy, gamma), step)
    return (project(new_x) if project else new_x), new_y, w


def gradient_penalty_step(
    f: Level,
    g: Level,
    x: Tree,
    y: Tree,
    *,
    gamma: float | Tensor,
    step: float | Tensor,
    project: Project | None = None,
) -> tuple[Tree, Tree]:
    """One step of G-PBGD: gradient descent on f + gamma ||grad_y g||^2.

    As in `penalty_step`, without an inner loop, but with a gradient of a gradient.
    Returns x, y. Source: 2302.05185, G-PBGD.
    """

    def penalised(x: Tree, y: Tree) -> Tensor:
        gy = grad(g, argnums=1)(x, y)
        return f(x, y) + gamma * dot(gy, gy)

    px, py = grad(penalised, argnums=(0, 1))(x, y)
    new_x = descend(x, px, step)
    return (project(new_x) if project else new_x), descend(y, py, step)


def joint_gradient(
    upper: Loss | None, lower: Loss | None, theta: Tree, gamma: float
) -> Tree:
    """grad upper + gamma grad lower: the penalty gradient where both share theta.

    upper: None in an exploration phase (the lower level alone, not scaled); lower:
    None where nothing is penalised; theta: all parameters, a loss ignores what is not
    its own; gamma: weight of the lower level, 0 or more. At gamma = 0 the lower level
    is *not evaluated*: no random number is drawn, and a loss that is not finite cannot
    spoil the step. v is constant here, so there is nothing to solve. Returns a tree
    like theta. Raises ValueError for a negative gamma or no loss at all.
    Source: 2401.06980 (BL-JUST), 2509.15430 (BiRQ, Algorithm 1).
    """
    need(gamma >= 0, f"gamma is {gamma}; give the weight of the lower level, >= 0.")
    need(
        upper is not None or lower is not None,
        "both levels are None; give at least one loss.",
    )
    if lower is None or (upper is not None and gamma == 0):
        return grad(upper)(theta)
    if upper is None:
        return grad(lower)(theta)
    return plus(grad(upper)(theta), grad(lower)(theta), gamma)


def ramp(step: int, steps: int, top: float, start: float = 0.0) -> float:
    """The schedule of gamma: a straight line from start to top, then constant.

    step: from 0; steps: length of the rise, 0 for none; top: the last gamma. Returns
    gamma. Raises ValueError for negative numbers.
    Source: the code of 2302.05185 and of 2412.08548.
    """
    count("step", step, least=0)
    count("steps", steps, least=0)
    need(
        top >= 0 and start >= 0, f"gamma runs from {start} to {top}; give numbers >= 0."
    )
    return top if step >= steps else start + (top - start) * step / steps
