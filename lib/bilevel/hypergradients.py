"""The gradient of F(x) = f(x, y*(x)): by implicit differentiation and by unrolling.

The implicit function theorem gives
    grad F = grad_x f - grad_x <grad_y g(x, y), v>,   (grad_yy g) v = grad_y f,
for a lower level that is strongly convex in y. The methods differ in what solves for v
and where y comes from; `lib.bilevel.penalty.penalty_hypergradient` needs neither.
Sources: textbook (implicit function theorem); Franceschi et al. 2017 (1703.01785,
reverse mode through the inner steps); Shaban et al. 2019 (1810.10667, truncated);
Lorraine et al. 2020 (1911.02590, Neumann series).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad

from lib.bilevel.penalty import Level, inner_steps
from lib.bilevel.trees import (
    Loss,
    Tree,
    descend,
    detached,
    dot,
    mapped,
    minus,
    plus,
    scaled,
)
from lib.kit.checks import count, need

Linear = Callable[[Tree], Tree]  # v -> H v
Solver = Callable[[Linear, Tree], Tree]  # H, b -> about H^{-1} b


def hessian_vector(loss: Loss, y: Tree, v: Tree) -> Tree:
    """The Hessian of a loss at y times a vector, as the gradient of a gradient.

    loss: of y; y, v: trees of one form. Returns such a tree. About two gradients.
    """
    return grad(lambda y: dot(grad(loss)(y), v))(y)


def conjugate_gradient(H: Linear, b: Tree, iterations: int) -> Tree:
    """Solve H v = b by a fixed number of conjugate gradient iterations from v = 0.

    H: v -> H v, symmetric and positive; b: a tree; iterations: exact after as many as
    there are unknowns, up to rounding. Returns v. Raises ValueError for iterations.
    Source: Hestenes and Stiefel 1952.
    """
    count("iterations", iterations)
    v, r, p = mapped(torch.zeros_like, b), b, b
    size = dot(r, r)
    for _ in range(iterations):
        Hp = H(p)
        tiny = torch.finfo(size.dtype).tiny  # a solved system stays as it is
        alpha = size / dot(p, Hp).clamp_min(tiny)
        v, r = plus(v, p, alpha), plus(r, Hp, -alpha)
        size, old = dot(r, r), size
        p = plus(r, p, size / old.clamp_min(tiny))
    return v


def neumann(H: Linear, b: Tree, iterations: int, step: float | Tensor) -> Tree:
    """Solve H v = b by v <- v + step (b - H v) from 0: a truncated Neumann series.

    H: v -> H v with eigenvalues in (0, 2 / step); b: a tree; iterations: terms of
    step sum_j (I - step H)^j b. Returns v, whose error is (I - step H)^iterations.
    Raises ValueError for iterations. Source: 1911.02590.
    """
    count("iterations", iterations)
    v = scaled(b, step)
    for _ in range(iterations - 1):
        v = descend(v, minus(H(v), b), step)
    return v


def implicit_hypergradient(f: Level, g: Level, x: Tree, y: Tree, solve: Solver) -> Tree:
    """The hypergradient by implicit differentiation at y, near argmin g(x, .).

    f, g: upper and lower level; x, y: trees; solve: `conjugate_gradient` or `neumann`
    with its iterations bound, called with H and grad_y f. Returns a tree like x. One
    gradient of f, one mixed product, one Hessian product a term of the solver.
    Source: implicit function theorem; see the module.
    """
    fx, fy = grad(f, argnums=(0, 1))(x, y)
    v = solve(lambda v: hessian_vector(lambda y: g(x, y), y, v), fy)
    mixed = grad(lambda x: dot(grad(g, argnums=1)(x, y), v))(x)
    return minus(fx, mixed)


def unrolled_hypergradient(
    f: Level,
    g: Level,
    x: Tree,
    y: Tree,
    *,
    steps: int,
    step: float | Tensor,
    last: int | None = None,
) -> tuple[Tree, Tree]:
    """The gradient of f(x, y_T(x)) through T inner gradient steps from y.

    f, g: upper and lower level; x, y: trees, y the start; steps: T; step: inner rate;
    last: how many of the last steps are differentiated (None: all; fewer is truncated
    back-propagation, whose memory does not grow with T). Returns the hypergradient and
    y_T. T gradients of g forward, about two a differentiated step back.
    Raises ValueError for T and last. Sources: 1703.01785; 1810.10667.
    """
    count("steps (the number of inner steps T)", steps)
    last = steps if last is None else last
    count("last", last)
    need(last <= steps, f"last is {last}, but only {steps} inner steps are taken.")
    start = inner_steps([lambda y: g(x, y)] * (steps - last), y, step)
    start = detached(start)

    def through(x: Tree) -> tuple[Tensor, Tree]:
        y = inner_steps([lambda y: g(x, y)] * last, start, step)
        return f(x, y), y

    return grad(through, has_aux=True)(x)
