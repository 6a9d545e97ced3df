"""One training loop for all recipes.

A step reads like the recipe: batches, every objective's loss, `Balance.update`, clip,
AdamW. One loop for all, and not `lib.speech.pretraining.train`, which sums weighted
losses before one backward pass: most recipes need a gradient an objective, and a
comparison should differ in the recipe alone. All draws follow from (seed, step, name of
the objective), so recipes are paired and a killed run goes on to the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib.kit import parallel
from lib.kit.checkpoints import resume, save
from lib.kit.checks import count, need
from lib.multi_objective.conflict import conflict, cosines, gains, stationarity
from lib.multi_objective.gradients import layer_grams
from lib.objective_soup.balance import Balance
from lib.objective_soup.model import Soup, losses
from lib.objective_soup.recipes import Recipe
from lib.objective_soup.world import Batches, Feed, World, halves


@dataclass(frozen=True)
class Fit:
    """AdamW and its schedule, the same for every recipe.

    steps; lr: at the top; warmup: steps of rising rate, at most a tenth of all; floor:
    the share of lr at the end of the linear decay; clip: norms of the encoder's and of
    the heads' gradients, each on its own; weight_decay, betas; batch: utterances of a
    language; alike: of like length, see `Order`. Raises ValueError.
    """

    steps: int = 1000
    lr: float = 5e-3
    warmup: int = 30
    floor: float = 0.05
    clip: float = 5.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    batch: int = 8
    alike: bool = False

    def __post_init__(self) -> None:
        count("steps", self.steps)
        count("batch", self.batch)
        need(self.lr > 0, f"lr is {self.lr}; give a positive learning rate.")
        need(self.clip > 0, f"clip is {self.clip}; give a positive norm.")

    def rate(self, step: int) -> float:
        """The learning rate of a step from 0."""
        warm = max(1, min(self.warmup, self.steps // 10))
        up = min(1.0, (step + 1) / warm)
        return self.lr * up * (1 - (1 - self.floor) * step / self.steps)


class Run(nn.Module):
    """What a checkpoint holds: the model and what its recipe carries along."""

    def __init__(self, model: Soup, balance: Balance) -> None:
        super().__init__()
        self.model, self.balance = model, balance


def train(
    model: Soup,
    world: World,
    recipe: Recipe,
    fit: Fit | None = None,
    *,
    seed: int = 0,
    look: int = 0,
    after: Callable[[int], None] | None = None,
    path: str | None = None,
    every: int = 100,
    settings: dict[str, Any] | None = None,
    bar: bool = False,
) -> dict[str, list]:
    """Train the model by a recipe, in place.

    world; recipe; fit: steps and rates; seed: of batches, masks and dropout; look:
    steps between two looks at all gradients of a batch, 0 for none; after: called with
    the number of steps done; path, every: the checkpoint, and how often it is written;
    settings: what else makes this run this run; bar: show progress and time left.
    Returns lists with an entry a step: "loss" (the plain sum), "losses" and "weights"
    by objective, "etas", "norms" of encoder and heads, "chosen" layers, and "looks".
    Raises ValueError for an objective without a head or a foreign checkpoint,
    FloatingPointError for what is not finite.
    """
    fit = fit or Fit()
    count("every", every)
    place = next(model.parameters()).device
    granularity = recipe.selection.granularity if recipe.selection else "block"
    balance = Balance(recipe, model.layers(granularity), fit.steps, seed)
    run = Run(model, balance)
    optimiser = _optimiser(model, balance, fit)
    feed = Feed(world, fit.batch, seed, place, fit.alike)
    heads = {n: p for n, p in model.heads().items() if n in balance.names}
    history: dict[str, list] = {n: [] for n in HISTORY}
    key = {"recipe": repr(recipe), "fit": repr(asdict(fit)), "look": look}
    key |= {"seed": parallel.named(seed)} | (settings or {})
    first = resume(path, run, optimiser, key, history)
    first = parallel.share(first, run, optimiser, history)
    training = model.training
    model.train()
    for step in _counted(first, fit.steps, bar):
        own = parallel.part(step)  # the step itself where one process trains
        batches = feed.at(own, balance.names)
        samples = _samples(model, batches, recipe, seed, own)
        optimiser.zero_grad()
        began, seen = time.process_time(), None
        with parallel.averaging(model.parameters()):
            if look and step % look == 0:
                seen = looked(balance, samples), time.process_time() - began
            w = balance.update(
                samples,
                heads,
                step,
                lambda b=batches, s=own: _two(model, b, recipe, seed, s),
            )
        norms = _clipped(model, balance, fit.clip, step)
        for group in optimiser.param_groups:
            group["lr"] = fit.rate(step)
        optimiser.step()
        _noted(history, balance, samples, w, norms, step)
        if seen is not None:
            about = {"step": step, "cpu_s": seen[1]}
            history["looks"].append(about | told(seen[0], w))
        if after:
            after(step + 1)
        if (step + 1) % every == 0 or step + 1 == fit.steps:
            save(path, run, optimiser, key, history)
    model.train(training)
    return history


HISTORY = ("loss", "losses", "weights", "etas", "norms", "chosen", "looks")


def _optimiser(model: Soup, balance: Balance, fit: Fit) -> torch.optim.AdamW:
    """AdamW over the encoder, the heads and learned variances, which do not decay."""
    encoder = list(model.encoder.parameters())
    heads = [p for own in model.heads().values() for p in own]
    groups = [{"params": encoder}, {"params": heads}]
    own = list(balance.parameters())
    if own:
        groups.append({"params": own, "weight_decay": 0.0})
    how = {"betas": fit.betas, "weight_decay": fit.weight_decay}
    return torch.optim.AdamW(groups, lr=fit.lr, fused=True, **how)


def _counted(first: int, steps: int, bar: bool) -> Iterable[int]:
    """The steps still to do, with a progress bar if asked."""
    if not bar:
        return range(first, steps)
    from tqdm.auto import tqdm

    return tqdm(range(first, steps), initial=first, total=steps, unit="step")


def _samples(
    model: Soup, batches: Batches, recipe: Recipe, seed: int, step: int
) -> list[dict[str, Tensor]]:
    """The losses of a step: of the batch, or of its halves."""
    if recipe.halved:
        return _two(model, batches, recipe, seed, step)
    return [losses(model, batches, recipe.names, seed, step)]


def _two(
    model: Soup, batches: Batches, recipe: Recipe, seed: int, step: int
) -> list[dict[str, Tensor]]:
    """The losses of both halves of the batches, with draws of their own."""
    return [
        losses(model, half, recipe.names, seed, step, "half", k)
        for k, half in enumerate(halves(batches))
    ]


def _clipped(model: Soup, balance: Balance, clip: float, step: int) -> list[float]:
    """Clip encoder and heads, each on its own; the norms before."""
    heads = [p for own in model.heads().values() for p in own]
    norms = [
        float(nn.utils.clip_grad_norm_(some, clip))
        for some in (list(model.encoder.parameters()), heads)
    ]
    need(
        all(map(math.isfinite, norms)),
        f"The gradient's norm is {norms[0]} (encoder) and {norms[1]} (heads) at step "
        f"{step}, objectives {', '.join(balance.names)}: lower lr.",
        FloatingPointError,
    )
    return norms


def _noted(
    history: dict[str, list],
    balance: Balance,
    samples: Sequence[dict[str, Tensor]],
    w: Tensor,
    norms: list[float],
    step: int,
) -> None:
    """Enter a step into the history."""
    own = {
        n: sum(float(losses[n].detach()) for losses in samples) / len(samples)
        for n in balance.names
    }
    place = samples[0][balance.names[0]].device
    values = list(parallel.mean(own, place).values())
    history["loss"].append(sum(values))
    history["losses"].append(values)
    history["weights"].append(w.tolist())
    etas = balance.recipe.schedule.at(step, balance.steps)
    history["etas"].append(list(etas.values()))
    history["norms"].append(norms)
    history["chosen"].append([int(c) for c in balance.chosen.tolist()])


def looked(balance: Balance, samples: Sequence[dict[str, Tensor]]) -> Tensor:
    """The Gram matrix of a batch's gradients over all layers: (M, M). Nothing moves."""
    means = [
        torch.stack([losses[n] for losses in samples]).mean(0) for n in balance.names
    ]
    return sum(layer_grams(means, balance.shared).values()).detach()


def told(G: Tensor, w: Tensor) -> dict[str, Any]:
    """What a batch's Gram matrix says, of raw gradients, before AdamW.

    "conflict": the share of pairs with a negative cosine; "harmed": the share of
    objectives with <g_i, d> < 0 for the step's direction d; "stationarity": the length
    of MGDA's direction; "sizes": the gradients' lengths. Nan for a single objective.
    """
    sizes = G.diagonal().clamp_min(0).sqrt().tolist()
    if len(sizes) == 1:
        nothing = dict.fromkeys(("conflict", "harmed", "stationarity"), math.nan)
        return nothing | {"sizes": sizes}
    return {
        "conflict": float(conflict(cosines(G))[1]),
        "harmed": float((gains(G, w.to(G)) < 0).double().mean()),
        "stationarity": float(stationarity(G)),
        "sizes": sizes,
    }
