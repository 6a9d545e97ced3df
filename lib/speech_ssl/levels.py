"""BiRQ: labels of the model's own middle layer, held by the fixed ones of BEST-RQ.

Upper level F: predict a Gumbel selection from a projection of the model's own layer k
on the unmasked input, with the gradient through both. Lower level G: BEST-RQ. Both
share their only variable, so the penalised problem is w1 F + w2 G.
Source: 2509.15430, equations 8 and 9, algorithm 1; ambiguities as in the arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib.codebooks import fitted_projection, gumbel_select
from lib.kit import parallel
from lib.kit.checks import choice, need
from lib.speech.batches import Batch
from lib.speech.pretraining import Loss, Predictor, cross_entropy, normalised
from lib.speech_ssl.fixed import anchored
from lib.speech_ssl.task import Arm, Step, Table, Task, pool_states, states

FITTED_ON = 200  # utterances


def birq(
    task: Task,
    weights: tuple[float, float] = (0.1, 2.4),
    shared_head: bool = True,
    fitted: str | None = None,
    fit_at: float = 0.3,
    d_c: int = 16,
    **levels: Any,
) -> Arm:
    """BiRQ, or one of its relatives: w1 F + w2 G.

    weights: w1 and w2, divided by their sum; shared_head: one head for both losses;
    fitted: fit the quantizer to raw states of the layer, codes "data" or "kmeans", once
    after a share `fit_at` of the steps, which until then are BEST-RQ's; d_c: directions
    of the quantizer; levels: k, kappa, tau, hard, stopgrad, over of `Levels`. Raises
    ValueError for a choice that contradicts another.
    """
    model = task.predictor(dict.fromkeys(["anchor", "own"][: 2 - shared_head], task.V))
    _check(weights, fitted, fit_at, d_c, model.encoder.d)
    values = task.pool.features.shape[1]
    table = anchored(task, model, "anchor", task.projection("anchor", values))
    model.own_quantizer = task.projection("own", model.encoder.d, d_c)
    head = "anchor" if shared_head else "own"
    both = Levels(model, table, head, raw=fitted is not None, **levels)
    begin = max(1, round(fit_at * task.steps)) if fitted else 0  # of F

    def after(done: int) -> None:
        if fitted and done == begin:
            _refit(task, model, both.k, d_c, fitted)

    w1, w2 = (w / sum(weights) for w in weights)
    losses = {
        "own": Loss(both.upper, lambda step: w1 if step >= begin else 0.0),
        "anchor": Loss(both.lower, lambda step: w2 if step >= begin else 1.0),
    }
    return Arm(model, losses, both.labels, after, both.paths)


@dataclass(frozen=True)
class Levels:
    """The two losses of BiRQ.

    model: a `Predictor` with `own_quantizer`; table: of the anchor; head: the upper
    level's; k: the layer that is labelled; kappa: scale of the cosines before the
    noise, None for the nearest code without noise; tau: of the selection; hard: one-hot
    labels; stopgrad: no gradient through the labels; over: how states are normalised
    (see `normalised`) unless they are used raw. Raises ValueError for these.
    """

    model: Predictor
    table: Table
    head: str
    k: int = 2
    kappa: float | None = 50.0
    tau: float = 0.5
    hard: bool = False
    stopgrad: bool = False
    over: str = "utterance"
    raw: bool = False

    def __post_init__(self) -> None:
        choice("over", self.over, ("utterance", "frame"))
        blocks = len(self.model.encoder.blocks)
        need(
            1 <= self.k <= blocks,
            f"k is {self.k}; the encoder has layers 1 to {blocks}.",
        )
        need(
            self.stopgrad or self.kappa is not None,
            "Without noise (kappa None) the labels are codes and have no gradient; set "
            "stopgrad too.",
        )

    def layer(self, batch: Batch) -> Tensor:
        """z^(k) of the unmasked input: (batch, T, d)."""
        h = states(self.model.encoder, batch, self.k)
        return h if self.raw else normalised(h, batch.lengths, self.over)

    def enhanced(self, step: Step, g: torch.Generator) -> Tensor:
        """Labels of the masked frames: (masked, V), without noise (masked,) codes."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stopgrad):
            z = self.layer(step.batch)[step.masked.mask]
            if self.kappa is None:
                return self.model.own_quantizer(z)
            logits = self.model.own_quantizer.logits(z, self.kappa)
            return gumbel_select(logits, self.tau, self.hard, g)

    def said(self, step: Step) -> Tensor:
        """What the upper level's head says of the masked frames: (masked, V)."""
        return self.model.heads[self.head](step.masked.frames())

    def upper(self, step: Step, g: torch.Generator) -> Tensor:
        """F: predict the labels that the model gives itself."""
        return cross_entropy(self.said(step), self.enhanced(step, g))

    def lower(self, step: Step, g: torch.Generator) -> Tensor:
        """G: predict the fixed labels, as BEST-RQ does."""
        return self.model.loss(step.masked, self.table(step.batch), "anchor")

    def paths(self, step: Step, g: torch.Generator) -> dict[str, Tensor]:
        """F with its gradient through the labels alone, through the prediction alone;
        and G."""
        y, said = self.enhanced(step, g), self.said(step)
        return {
            "labels": cross_entropy(said.detach(), y),
            "prediction": cross_entropy(said, y.detach()),
            "anchor": self.lower(step, g),
        }

    @torch.no_grad()
    def labels(self, batch: Batch) -> Tensor:
        """The nearest codes, without noise: (batch, T)."""
        return self.model.own_quantizer(self.layer(batch))


def _refit(task: Task, model, k: int, d_c: int, codes: str) -> None:
    """The quantizer of the layer, fitted to what the layer says now."""
    z = pool_states(model.encoder, task.some(FITTED_ON, "fitted"), k)
    seed = task.number("quantizer", "fitted")
    found = fitted_projection(z, d_c, task.V, seed, codes)
    model.own_quantizer.A.copy_(found.A)
    model.own_quantizer.C.copy_(found.C)
    parallel.lead([model.own_quantizer.A, model.own_quantizer.C])


def _check(weights, fitted, fit_at, d_c, d) -> None:
    need(
        len(weights) == 2 and min(weights) >= 0 and sum(weights) > 0,
        f"The weights are {list(weights)}; give w1 and w2, not negative, not both 0.",
    )
    if fitted is None:
        return
    choice("fitted", fitted, ("data", "kmeans"))
    need(0 < fit_at < 1, f"fit_at is {fit_at}; give a share of the steps.")
    need(1 <= d_c <= d, f"d_c is {d_c}; the layer has {d} directions to choose from.")
