"""Local constraints: each source adapts the shared theta by K steps of its own.

    min_theta (1/M) sum_i L_i(phi_i(theta)),   phi_i: K gradient steps on L_i from theta

A source is a list of K + 1 losses (fresh mini-batches of it): the first K move phi, the
last one is the outer loss. With one loss there is no inner step, and what is left is
mixing. Where the inner losses are a task's support set and the outer one its query,
`exact_local` is MAML and `first_order_local` FOMAML. Every function returns a
*gradient*, a tree like theta, to pass to any optimiser.
Sources: 2508.19990 (PTEC); 1703.03400 (MAML); 1803.02999 (FOMAML, Reptile).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import grad

from lib.bilevel.hypergradients import hessian_vector
from lib.bilevel.penalty import inner_steps
from lib.bilevel.trees import Loss, Tree, average, dot, mapped, minus, scaled
from lib.kit.checks import count, need

Source = Sequence[Loss]


def mixing(sources: Sequence[Source], theta: Tree) -> Tree:
    """The gradient of the pooled loss, (1/M) sum_i grad L_i(theta), over all losses.

    sources: M lists of losses, each list averaged first; theta: the parameters.
    Raises ValueError for no source or an empty one. Source: textbook.
    """
    _checked(sources)
    return average([average([grad(loss)(theta) for loss in s]) for s in sources])


def first_order_local(
    sources: Sequence[Source], theta: Tree, alpha: float | Tensor
) -> Tree:
    """The first-order hypergradient (1/M) sum_i grad L_i(phi_i^K): FOMAML, PTEC.

    sources: M lists of K + 1 losses, the last the outer one; theta; alpha: inner rate,
    below 1 / lambda_max of the losses: where alpha times a curvature exceeds 1 and K is
    odd, this direction *climbs*. K + 1 gradients a source. Raises ValueError for an
    empty source. Source: 2508.19990; 1803.02999.
    """
    _checked(sources)
    gradients = []
    for *inner, outer in sources:
        phi = inner_steps(inner, theta, alpha)
        gradients.append(grad(outer)(phi))
    return average(gradients)


def exact_local(sources: Sequence[Source], theta: Tree, alpha: float | Tensor) -> Tree:
    """The exact hypergradient, differentiated through the K inner steps: MAML.

    As in `first_order_local`: (1/M) sum_i prod_j (I - alpha Hess L_i(phi^j))
    grad L_i(phi_i^K). Raises ValueError for an empty source. Source: 1703.03400.
    """
    _checked(sources)

    def adapted(theta: Tree, source: Source) -> Tensor:
        *inner, outer = source
        return outer(inner_steps(inner, theta, alpha))

    return average([grad(adapted)(theta, source) for source in sources])


def reptile(sources: Sequence[Source], theta: Tree, alpha: float | Tensor) -> Tree:
    """Reptile's direction as a gradient, (1/M) sum_i (theta - phi_i^K) / (alpha K).

    sources: M lists of K losses, all of them inner steps (K gradients a source); theta;
    alpha: inner rate. The division keeps the size of a gradient, which Adam's epsilon
    needs. With K = 1 it is mixing. Raises ValueError for an empty source.
    Source: 1803.02999, "Batched version"; the scale is ours.
    """
    _checked(sources)
    moves = []
    for source in sources:
        moves.append(minus(theta, inner_steps(source, theta, alpha)))
        moves[-1] = scaled(moves[-1], 1 / (alpha * len(source)))
    return average(moves)


def largest_curvature(
    loss: Loss, theta: Tree, iterations: int = 30, seed: int = 0
) -> float:
    """The Hessian's eigenvalue of largest size at theta, by power iteration.

    loss; theta; iterations: Hessian products; seed: of the first vector. Returns the
    Rayleigh quotient; for `first_order_local` alpha must stay below one over it.
    Raises ValueError for iterations. Source: textbook.
    """
    count("iterations", iterations)
    g = torch.Generator().manual_seed(seed)

    def unit(v: Tree) -> Tree:
        return scaled(v, 1 / dot(v, v).sqrt())

    v = unit(mapped(lambda p: torch.randn(p.shape, generator=g).to(p), theta))
    value = 0.0
    for _ in range(iterations):
        Hv = hessian_vector(loss, theta, v)
        value = float(dot(v, Hv))
        if float(dot(Hv, Hv)) == 0:
            return 0.0  # no curvature at all
        v = unit(Hv)
    return value


def _checked(sources: Sequence[Source]) -> None:
    for place, source in enumerate(sources):
        need(
            len(source) > 0,
            f"source {place} has no loss; give K inner losses and one outer loss "
            "(mini-batches of this source).",
        )
