"""K-step local constraints for modules: plain autograd, one graph, no second loop.

Each source i takes K gradient steps of its own from theta to phi_i, and its loss is
read there. In `adapted` phi = theta - alpha * (slopes without history), so that the
gradient of L(phi) with respect to theta *is* the gradient at phi: the first order. With
the history kept it is the exact hypergradient. No parameter is ever overwritten, and a
step costs the K + 1 gradients and nothing else. A source is a list of losses of a
dictionary of parameters, as in `lib.bilevel.local`, whose functions are the reference.
Sources: 2508.19990 (PTEC); 1703.03400 (MAML); 1803.02999 (FOMAML, Reptile).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib.kit import parallel
from lib.kit.checks import choice, count, need

Parameters = Mapping[str, Tensor]
Loss = Callable[[Parameters], Tensor]

KINDS = ("mixing", "first_order", "exact", "reptile")


@dataclass(frozen=True)
class Arm:
    """One way to pre-train on several sources.

    kind: "mixing", "first_order", "exact" or "reptile"; K: inner steps of a source
    (mixing: batches more than one that it averages); alpha: inner rate, of plain SGD;
    same: all K + 1 losses of a step on one batch with one mask, instead of fresh ones.
    Raises ValueError for a kind, a count, or inner steps without a rate.
    """

    kind: str = "mixing"
    K: int = 0
    alpha: float = 0.0
    same: bool = False

    def __post_init__(self) -> None:
        choice("kind", self.kind, KINDS)
        count("K (the number of inner steps)", self.K, int(self.kind == "reptile"))
        inner = self.K > 0 and self.kind != "mixing"
        need(
            not inner or 0 < self.alpha < math.inf,
            f"alpha is {self.alpha} and K is {self.K}; inner steps need a positive "
            "rate.",
        )

    @property
    def batches(self) -> int:
        """Losses of one source in one outer step: K + 1, for Reptile K."""
        return self.K if self.kind == "reptile" else self.K + 1

    @property
    def gradients(self) -> int:
        """Gradient evaluations of one source in one outer step.

        One a batch; the exact kind adds K Hessian products of two gradients each.
        """
        return self.batches + (2 * self.K if self.kind == "exact" else 0)

    def steps(self, budget: int, sources: int) -> int:
        """Outer steps that spend a budget of gradient evaluations exactly.

        budget: over all sources; sources: how many. Raises ValueError where it does
        not divide, naming the nearest budgets that do.
        """
        count("The budget of gradients", budget)
        each = sources * self.gradients
        low = budget // each * each
        need(
            low == budget,
            f"{budget} gradients do not divide into steps of {each} ({sources} sources "
            f"times {self.gradients}); give "
            + (f"{low} or {low + each}." if low else f"{each}."),
        )
        return budget // each


class Adapted(NamedTuple):
    """What one source made of theta.

    loss: the outer loss, whose gradient in theta is the arm's; values: losses at
    phi_0 = theta, phi_1, ...; norms: of the gradients at the points that were left;
    phi: where the last gradient is taken.
    """

    loss: Tensor
    values: list[float]
    norms: list[float]
    phi: dict[str, Tensor]


def adapted(
    source: Sequence[Loss],
    theta: Parameters,
    alpha: float | Tensor,
    exact: bool = False,
) -> Adapted:
    """K inner steps of a source, then its loss at phi_K as a function of theta.

    source: K + 1 losses, the last the outer one; theta: parameters that ask for
    gradients; alpha: inner rate, below 1 / lambda_max of the losses; exact: keep the
    inner steps' history. Parameters that a loss does not use stay where they are.
    Raises ValueError for no loss. Source: 2508.19990; 1703.03400.
    """
    _some(source)
    *inner, outer = source
    phi = {name: p.view_as(p) for name, p in theta.items()}  # this source's own names
    values, norms = [], []
    for loss in inner:
        value, slopes = _slopes(loss, phi, exact)
        phi = _moved(phi, slopes, alpha)
        values.append(float(value.detach()))
        norms.append(norm(slopes))
    last = outer(phi)
    return Adapted(last, [*values, float(last.detach())], norms, phi)


def reptile(
    source: Sequence[Loss], theta: Parameters, alpha: float | Tensor
) -> Adapted:
    """Reptile: K inner steps, and (theta - phi_K) / (alpha K) as the gradient.

    source: K losses; theta; alpha: as in `adapted`. The direction is the mean of the
    inner gradients, so the last step is never taken; `loss` has the value of the last
    inner loss and that gradient. With K = 1 it is mixing. Raises ValueError for no
    loss. Source: 1803.02999; the scale is ours, for Adam's epsilon.
    """
    _some(source)
    phi, values, norms = dict(theta), [], []
    slopes: Sequence[Tensor | None] = [None] * len(phi)
    total = list(slopes)
    for loss in source:
        phi = _moved(phi, slopes, alpha)  # the first time, nowhere
        value, slopes = _slopes(loss, phi, False)
        values.append(float(value.detach()))
        norms.append(norm(slopes))
        total = [_sum(t, s) for t, s in zip(total, slopes)]
    used = [
        (p, t / len(source)) for p, t in zip(theta.values(), total) if t is not None
    ]
    handed = _Handed.apply(
        value.detach(), len(used), *(x for x, _ in used), *(d for _, d in used)
    )
    return Adapted(handed, values, norms, phi)


def pooled(source: Sequence[Loss], theta: Parameters) -> Adapted:
    """Mixing: the mean of a source's losses at theta itself.

    source: losses; theta: parameters. Raises ValueError for no loss.
    """
    _some(source)
    losses = [loss(theta) for loss in source]
    mean = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
    return Adapted(mean, [float(x.detach()) for x in losses], [], {})


def source_loss(arm: Arm, source: Sequence[Loss], theta: Parameters) -> Adapted:
    """The loss of one source under an arm, with the arm's gradient in theta.

    arm; source: `arm.batches` losses; theta: parameters. Raises ValueError for another
    number of losses.
    """
    need(
        len(source) == arm.batches,
        f"The source has {len(source)} losses; {arm.kind} with K = {arm.K} needs "
        f"{arm.batches}.",
    )
    if arm.kind == "mixing":
        return pooled(source, theta)
    if arm.kind == "reptile":
        return reptile(source, theta, arm.alpha)
    return adapted(source, theta, arm.alpha, arm.kind == "exact")


def step_advice(alpha: float, curvature: float) -> str:
    """A sentence where an inner rate is too large for a curvature, else "".

    alpha: inner rate; curvature: lambda_max of a source's loss. Source: derived in
    `lib.bilevel.local.first_order_local`.
    """
    if curvature <= 0 or alpha * curvature <= 1:
        return ""
    return (
        f"alpha is {alpha:g}, above 1 / lambda_max = {1 / curvature:.3g} (lambda_max "
        f"{curvature:.3g}): with an odd K the first order climbs there; give a smaller "
        "alpha."
    )


def norm(slopes: Sequence[Tensor | None]) -> float:
    """The norm of a gradient, of which some parts may be missing."""
    return math.sqrt(
        sum(float(s.detach().square().sum()) for s in slopes if s is not None)
    )


def _some(source: Sequence[Loss]) -> None:
    need(
        len(source) > 0,
        "The source has no loss; give K inner losses and one outer loss (mini-batches "
        "of this source).",
    )


def _slopes(loss: Loss, phi: Parameters, exact: bool) -> tuple[Tensor, Sequence]:
    """A loss and its gradient, of several processes the mean of theirs."""
    value = loss(phi)
    found = torch.autograd.grad(
        value, list(phi.values()), create_graph=exact, allow_unused=True
    )
    if parallel.size() == 1:
        return value, found
    need(not exact, "The exact kind trains in one process; start only one.")
    means = iter(parallel.same([s for s in found if s is not None]))
    return value, [s if s is None else next(means) for s in found]


def _moved(phi: Parameters, slopes: Sequence, alpha: float | Tensor) -> dict:
    """One step of plain SGD."""
    pairs = zip(phi.items(), slopes)
    return {n: p if s is None else p - alpha * s for (n, p), s in pairs}


def _sum(total: Tensor | None, slope: Tensor | None) -> Tensor | None:
    if total is None or slope is None:
        return slope if total is None else total
    return total + slope


class _Handed(torch.autograd.Function):
    """A number whose gradients are given: value, n, n parameters, n directions."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, n: int, *rest: Tensor) -> Tensor:
        ctx.save_for_backward(*rest[n:])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> tuple:
        given = ctx.saved_tensors
        return None, None, *(up * d for d in given), *[None] * len(given)
