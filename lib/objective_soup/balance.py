"""One step of a recipe: from losses to weights, and to the gradient of everything.

`Balance` keeps what a recipe carries from step to step (MoDo's weights, the last
gradients, learned variances, the layers' cosines) as buffers, so that a checkpoint
holds it. Rows are the objectives in the recipe's order of names, whatever order the
losses come in. Every .grad is assigned, also after `zero_grad()`; heads get the plain
gradient of their own loss.
Sources: 2508.09228 (code), 2305.20057 (MoDo), 1705.07115 (uncertainty).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lib.kit import parallel
from lib.kit.checks import choice, need
from lib.multi_objective.aggregators import AGGREGATORS, pcgrad, scales
from lib.multi_objective.conflict import (
    conflict,
    conflicting_layers,
    corrected_cosines,
    cosines,
)
from lib.multi_objective.gradients import (
    aggregate,
    assign,
    assign_below,
    assign_rest,
    cut,
    filled,
    layer_grams,
    passes,
)
from lib.multi_objective.stochastic import modo
from lib.objective_soup.recipes import MODO, UNCERTAINTY, Recipe
from lib.speech.masking import generator

Layers = Mapping[str, Sequence[Tensor]]
Heads = Mapping[str, Sequence[Tensor]]
Losses = Mapping[str, Tensor]


def pairs_between(names: Sequence[str], pairs: str) -> Tensor:
    """Which pairs of objectives count: (M, M) booleans.

    names: of the rows; pairs: "all", "asr x st" or "supervised x ssl".
    """
    kinds = [name.partition("_")[0] for name in names]
    wanted = {"asr x st": {"asr", "st"}, "supervised x ssl": {"supervised", "ssl"}}
    if pairs == "all":
        return torch.ones(len(names), len(names), dtype=torch.bool)
    if pairs == "supervised x ssl":
        kinds = ["ssl" if kind == "ssl" else "supervised" for kind in kinds]
    return torch.tensor([[{a, b} == wanted[pairs] for b in kinds] for a in kinds])


def values_of(losses: Sequence[Tensor]) -> Tensor:
    """The values of M losses, of several processes the means of theirs: (M,)."""
    return parallel.same([torch.stack(list(losses)).detach()])[0]


def weighted(
    losses: Sequence[Tensor], w: Tensor, shared: list[Tensor], heads: list[list[Tensor]]
) -> None:
    """One backward pass of the weighted sum; the heads are freed of their weights.

    losses: M scalars; w: (M,); shared: parameters that get sum w_i grad loss_i; heads:
    of each loss, which get its gradient as it is, also where w_i is 0.
    """
    total = w @ torch.stack(list(losses)).to(w)
    live = [i for i, weight in enumerate(w.tolist()) if weight]
    inputs = shared + [p for i in live for p in heads[i]]
    need(bool(live), "All weights are 0; give one objective a weight.")
    slopes = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)
    assign(shared, filled(slopes, shared))
    rest = iter(slopes[len(shared) :])
    for i, own in enumerate(heads):
        if i in live:
            found = [g / w[i] for g in filled([next(rest) for _ in own], own)]
        else:
            found = torch.autograd.grad(
                losses[i], own, retain_graph=True, allow_unused=True
            )
        assign(own, filled(found, own))


class Balance(nn.Module):
    """A recipe at work: `update` fills every .grad and returns the weights.

    recipe; layers: the shared parameters by name; steps: of the training; seed: of
    PCGrad's orders. lam: (M,), each group of objectives on its simplex; cosine: of
    every layer, where layers are selected; chosen: which layers decide.
    """

    lam: Tensor
    first: Tensor
    cosine: Tensor
    chosen: Tensor
    last: Tensor
    kept: Tensor

    def __init__(
        self, recipe: Recipe, layers: Layers, steps: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.recipe, self.steps, self.seed = recipe, steps, seed
        self.names, self.shared = list(recipe.names), dict(layers)
        place = next(iter(layers.values()))[0].device
        self.groups = [
            torch.tensor(sorted(map(self.names.index, group)), device=place)
            for group in recipe.groups()
        ]
        M, L = len(self.names), len(self.shared)
        P = sum(p.numel() for group in self.shared.values() for p in group)
        lam = torch.ones(M, device=place)
        for rows in self.groups:
            lam[rows] = 1 / len(rows)
        self.register_buffer("lam", lam)
        self.register_buffer("size", (1 / lam).round())  # objectives on its simplex
        self.register_buffer("first", torch.full((M,), math.nan, device=place))
        self.register_buffer("cosine", torch.full((L,), math.nan, device=place))
        self.register_buffer("chosen", torch.ones(L, dtype=torch.bool, device=place))
        self.lagged = recipe.inside == MODO and recipe.sample == "lagged"
        held = P if self.lagged else 0
        self.register_buffer("last", torch.zeros(M, held, device=place))
        self.register_buffer("kept", torch.zeros(L, dtype=torch.bool, device=place))
        self.log_variance = None
        if recipe.inside == UNCERTAINTY:
            self.log_variance = nn.Parameter(torch.zeros(M, device=place))

    # -- weights ----------------------------------------------------------------------

    def coefficients(self, step: int) -> Tensor:
        """What each objective's level counts in a step from 0: (M,)."""
        found = self.recipe.coefficients(step, self.steps)
        return torch.tensor([found[n] for n in self.names], device=self.lam.device)

    def weights(self, step: int) -> Tensor:
        """The weights as they stand: coefficient times n lam; ones are the sum."""
        return self.coefficients(step) * self.size * self.lam

    def scale(self, G: Tensor, values: Tensor) -> Tensor:
        """Factors of the gradients before they are compared, with mean 1: (M,)."""
        how = self.recipe.scaling
        if how == "none":
            return torch.ones_like(self.lam)
        s = 1 / self.first if how == "init" else scales(G, how, values)
        return s / s.mean()

    def moved(self, A: Tensor, s: Tensor) -> None:
        """MoDo's step of lam on every simplex: A is J J'^T, s scales both."""
        A = A * s * s[:, None]
        for rows in self.groups:
            if len(rows) > 1:
                own, how = A[rows][:, rows], (self.recipe.gamma, self.recipe.rho)
                self.lam[rows] = modo(self.lam[rows], own, *how)

    def ruled(self, G: Tensor, s: Tensor, step: int) -> None:
        """lam by the recipe's aggregator on every simplex; 1/n each is the sum."""
        rule = AGGREGATORS[self.recipe.inside]
        if self.recipe.inside == "PCGrad":
            rule = partial(pcgrad, generator=generator(self.seed, step, "order"))
        G = G * s * s[:, None]
        for rows in self.groups:
            if len(rows) > 1:
                self.lam[rows] = rule(G[rows][:, rows])

    def named(self, G: Tensor, step: int) -> Tensor:
        """G itself. Raises FloatingPointError naming objectives that are not finite."""
        bad = [
            n for n, v in zip(self.names, G.diagonal().tolist()) if not math.isfinite(v)
        ]
        need(
            not bad,
            f"The gradient of {', '.join(bad)} is not finite at step {step}: lower lr, "
            "or look at its batch.",
            FloatingPointError,
        )
        return G

    # -- layers -----------------------------------------------------------------------

    def refresh(self, samples: Sequence[Sequence[Tensor]]) -> None:
        """Look at all layers, and choose those whose objectives conflict.

        samples: losses of the batch, or of its two halves for cosines without bias.
        """
        how = self.recipe.selection
        grams = layer_grams(samples[0], self.shared, *samples[1:])
        cosine = corrected_cosines if len(samples) > 1 else cosines
        between = pairs_between(self.names, how.pairs)
        for i, G in enumerate(grams.values()):
            new, old = conflict(cosine(G), between)[0], self.cosine[i]
            if not new.isnan():
                mean = how.memory * old + (1 - how.memory) * new
                self.cosine[i] = new if old.isnan() else mean
        known = dict(zip(self.shared, self.cosine.tolist()))
        if any(c == c for c in known.values()):
            chosen = conflicting_layers(known, how.threshold, how.least)
            for i, name in enumerate(self.shared):
                self.chosen[i] = name in chosen

    def look(self) -> list[str]:
        """The names of the layers whose gradients are compared."""
        return [n for n, chosen in zip(self.shared, self.chosen.tolist()) if chosen]

    def below(self, samples: Sequence[Losses]) -> list[list[Tensor]] | None:
        """What the lowest chosen layer reads, where all layers above are chosen too.

        samples: as of `update`; of `model.losses` they hold the encoder's states, one
        list a pass with one more state than blocks. Else None.
        """
        chosen = self.chosen.tolist()
        low = chosen.count(False)
        states = [getattr(losses, "states", None) for losses in samples]
        known = all(s and len(s[0]) == len(chosen) for s in states)
        if low == 0 or any(chosen[:low]) or not known:
            return None
        return [[hidden[low - 1] for hidden in passed] for passed in states]

    # -- the step ---------------------------------------------------------------------

    def update(
        self,
        samples: Sequence[Losses],
        heads: Heads,
        step: int,
        again: Callable[[], Sequence[Losses]] | None = None,
    ) -> Tensor:
        """One step of the recipe: every .grad filled, state moved.

        samples: {objective: loss}, once, or of two half batches where the recipe is
        `halved`; heads: parameters by objective; step: from 0; again: gives the losses
        of two half batches, where layers are looked at without bias. Returns the
        weights that were applied, (M,). Raises ValueError for a missing objective and
        where all gradients are zero, FloatingPointError for what is not finite.
        """
        lists = [self.ordered(losses, step) for losses in samples]
        self.remembered(lists[0])
        tops = [list(heads[name]) for name in self.names]
        how = self.recipe.selection
        if how and step % how.every == 0:
            unbiased = how.unbiased and len(lists) == 1 and again is not None
            halves = [self.ordered(x, step) for x in again()] if unbiased else lists
            self.refresh(halves if how.unbiased else halves[:1])
        if self.recipe.static:
            w = self.known(lists[0], step)
            weighted(lists[0], w, [p for g in self.shared.values() for p in g], tops)
            return w
        flat, below = [p for top in tops for p in top], self.below(samples)
        if self.lagged:
            return self.with_the_last(lists[0], flat, step, below)
        return self.compared(lists, flat, step, below)

    def ordered(self, losses: Losses, step: int) -> list[Tensor]:
        """The losses in the order of rows; all must be there and finite."""
        for name in self.names:
            choice("An objective of the recipe", name, losses)
            value = losses[name].item()
            need(
                math.isfinite(value),
                f"The loss of {name} is {value} at step {step}: lower lr, or look at "
                "its batch.",
                FloatingPointError,
            )
        return [losses[name] for name in self.names]

    def remembered(self, losses: Sequence[Tensor]) -> None:
        """Keep the first losses, which "init" divides by."""
        if bool(self.first.isnan().any()):
            self.first.copy_(values_of(losses))

    def known(self, losses: Sequence[Tensor], step: int) -> Tensor:
        """Static or learned weights; the latter get their own gradient here."""
        w = self.weights(step)
        if self.log_variance is not None:
            learned = (-self.log_variance.detach()).exp()
            values = values_of(losses)
            # of sum exp(-s) loss + s / 2
            self.log_variance.grad = 0.5 - learned * values
            w = w * learned
        return w

    def compared(
        self,
        lists: Sequence[Sequence[Tensor]],
        heads: list[Tensor],
        step: int,
        below: Sequence[Sequence[Tensor]] | None,
    ) -> Tensor:
        """Weights from this step's gradients, of one batch or of two halves."""
        values = values_of(lists[0])

        def weigh(G: Tensor) -> Tensor:
            s = self.scale(self.named(G, step), values)
            if self.recipe.inside == MODO:
                self.moved(G, s)
            else:
                self.ruled(G, s, step)
            return self.weights(step) * s

        how = {"look": self.look(), "elsewhere": self.elsewhere, "below": below}
        return aggregate(lists, self.shared, weigh, heads, **how)[0]

    @property
    def elsewhere(self) -> str:
        """What the layers get that do not decide."""
        chosen = self.recipe.selection
        return chosen.elsewhere if chosen else "weighted"

    def with_the_last(
        self,
        losses: Sequence[Tensor],
        heads: list[Tensor],
        step: int,
        below: Sequence[Sequence[Tensor]] | None,
    ) -> Tensor:
        """MoDo against the last step's gradients, whose batch was another one.

        The update is J_k' lam_k; then lam <- P(lam - gamma (J_k J_(k-1)' + rho) lam)
        over the layers that were looked at in both steps. Own variant: one Jacobian a
        step, and whole batches.
        """
        look = self.look()
        seen = {name: self.shared[name] for name in look}
        starts = () if below is None else below[0]
        J, tops, pulls = passes(losses, seen, heads, starts)
        G = sum(part @ part.T for part in J.values())
        s = self.scale(self.named(G, step), values_of(losses))
        w = self.weights(step) * s
        for name, group in seen.items():
            assign(group, cut(w @ J[name], group))
        assign(heads, tops)
        rest = [p for n, g in self.shared.items() if n not in seen for p in g]
        if below is None:
            assign_rest(rest, w, self.elsewhere, [losses])
        else:
            assign_below(rest, w, self.elsewhere, below, [pulls])
        before = self.swapped(J)
        if before is not None:
            self.moved(before, s)
        return w

    def swapped(self, J: Mapping[str, Tensor]) -> Tensor | None:
        """J_k J_(k-1)' over the layers in both; J_k takes its place. None at first."""
        found, at = None, 0
        for i, (name, group) in enumerate(self.shared.items()):
            place = slice(at, at + sum(p.numel() for p in group))
            at = place.stop
            if name in J:
                if bool(self.kept[i]):
                    part = J[name] @ self.last[:, place].T
                    found = part if found is None else found + part
                self.last[:, place] = J[name]
            self.kept[i] = name in J
        return found
