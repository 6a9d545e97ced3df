"""SGD on the hinge loss, one pass over fresh prompts, as the theory assumes.

`train_sgd` reads like the algorithm. Runs are a leading dimension: every one has its
own start and its own prompts, and all of them are trained side by side.
Source: 2510.00399, section 3 (hinge loss, fresh batches, eta <= 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.kit.checks import choice, count, need
from lib.mamba_icl.model import ARMS, Theta, initial
from lib.mamba_icl.world import PatternWorld, generator, sample_prompts

RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
# Step sizes: for every rival the best of RATES (see `tune`). Mamba's training loss is
# lowest at 1.0, but its outliers then get unequal gates, so it keeps 0.3.
ETA = {
    "mamba": 0.3,
    "linear": 0.03,
    "fixed decay": 0.1,
    "normalised": 1.0,
    "softmax": 0.3,
}
TOO_LARGE = 1e4  # a hinge loss that no stable run reaches
START, DATA = 1, 2  # purposes of a run's generators


class Divergence(FloatingPointError):
    """Training left every bound; the text names arm, step and what to do."""


@dataclass(frozen=True)
class Trained:
    """What training leaves: the arm's name, its theta, and the loss (steps, runs)."""

    arm: str
    theta: Theta
    loss: Tensor

    def __call__(self, P: Tensor) -> Tensor:
        """F of every prompt: P (runs, B, l + 1, d + 1) to (runs, B)."""
        return ARMS[self.arm](self.theta, P)


def hinge(F: Tensor, z: Tensor) -> Tensor:
    """max(0, 1 - z F), the mean over the batch: (runs, B) to (runs,)."""
    return (1 - z * F).clamp(min=0).mean(-1)


def train_sgd(
    arm: str,
    world: PatternWorld,
    *,
    runs: int = 1,
    steps: int = 400,
    batch: int = 128,
    l: int = 20,  # noqa: E741
    eta: float | None = None,
    p_a: float | Tensor = 0.6,
    kappa_a: float = 2.0,
    delta: float = 0.2,
    seed: int = 0,
    until: float | None = None,
    on_step: Callable[[int, Theta], None] | None = None,
) -> Trained:
    """Train W_B, W_C (and w) by plain SGD on fresh prompts.

    arm: one of ARMS; runs: independent runs; batch, l: prompts a step and examples a
    prompt; eta: step size, ETA[arm] unless given; p_a: outlier fraction, a number or
    one a run; kappa_a: size of the outliers; delta: see `initial`; seed: of start and
    data; until: stop once the smoothed loss of every run was below it; on_step: called
    with the number of steps done and theta. Returns `Trained`. Raises ValueError for
    settings, Divergence where the loss leaves every bound.
    """
    choice("arm", arm, ARMS)
    for name, value in (("runs", runs), ("steps", steps), ("batch", batch)):
        count(name, value)
    eta = ETA[arm] if eta is None else eta
    need(eta > 0, f"eta is {eta}; give a positive step size (the paper's is <= 1).")
    place = {"device": world.mu.device}
    g, data = generator(seed, START, **place), generator(seed, DATA, **place)
    start = {"generator": g, "delta": delta, "dtype": world.mu.dtype}
    theta = initial(arm, world.d, runs=(runs,), **start)
    p_a = torch.as_tensor(p_a, **place).reshape(-1, 1)
    losses, smooth, done = [], None, torch.zeros(runs, dtype=torch.bool, **place)
    for step in range(steps):
        if on_step:
            on_step(step, theta)
        draw = {"generator": data, "frac": p_a, "kappa_a": kappa_a}
        prompts = sample_prompts(world, (runs, batch), l, **draw)
        theta = {name: value.requires_grad_() for name, value in theta.items()}
        loss = hinge(ARMS[arm](theta, prompts.P), prompts.z)
        slopes = torch.autograd.grad(loss.sum(), list(theta.values()))
        theta = {n: (p - eta * s).detach() for (n, p), s in zip(theta.items(), slopes)}
        losses.append(loss.detach())
        stop_divergence(arm, losses[-1], step, eta, l)
        smooth = losses[-1] if smooth is None else 0.9 * smooth + 0.1 * losses[-1]
        done |= smooth < (until or 0)
        if done.all():
            break
    return Trained(arm, theta, torch.stack(losses))


def stop_divergence(arm: str, loss: Tensor, step: int, eta: float, l: int) -> None:  # noqa: E741
    """Raise Divergence with a sentence where a loss is not finite or beyond bounds."""
    if bool((loss < TOO_LARGE).all()):  # False for nan
        return
    why = {
        "mamba": "its gates sum to less than 1, so the cause is another",
        "linear": f"it adds the votes of all {l} examples, so eta must fall like 1/l",
    }.get(arm, "its step is too large")
    raise Divergence(
        f"The {arm} arm diverges at step {step} with eta = {eta:g} and l = {l}: {why}. "
        f"Take a smaller eta, such as {eta / 10:g}."
    )


def steps_to(loss: Tensor, level: float) -> Tensor:
    """Steps until the smoothed loss (average with factor 0.9) is below a level.

    loss: (steps, runs); level: hinge loss. Returns (runs,) counts as floats, nan where
    the level was never reached.
    """
    smooth, found = loss[0], torch.full_like(loss[0], float("nan"))
    for step, now in enumerate(loss):
        smooth = 0.9 * smooth + 0.1 * now if step else now
        fresh = found.isnan() & (smooth < level)
        found = torch.where(fresh, float(step + 1), found)
    return found


def tune(
    arm: str, world: PatternWorld, rates: Sequence[float] = RATES, **settings
) -> dict[float, float]:
    """The mean loss of the last tenth of training for every step size of a grid.

    arm: one of ARMS; rates: step sizes; settings: of `train_sgd`, without eta. Returns
    {eta: loss}, infinite where training diverged. The same grid and budget for every
    arm is what makes their comparison fair.
    """
    found = {}
    for eta in rates:
        try:
            loss = train_sgd(arm, world, eta=eta, **settings).loss
            found[eta] = float(loss[-max(1, len(loss) // 10) :].mean())
        except Divergence:
            found[eta] = float("inf")
    return found
