"""Masked prediction on several sources, with or without local constraints.

The loop is `lib.speech.pretraining.train`: every source is one loss of weight 1 / M,
and only what happens inside that loss differs between the arms. All draws follow from
(seed, outer step, source, inner index).
Source: 2508.19990 (PTEC); recipe of the collection's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lib.kit import parallel
from lib.kit.checkpoints import mixed
from lib.kit.checks import choice, need
from lib.local_constraints.constraint import Arm, norm, source_loss
from lib.local_constraints.sources import CODES, Labels
from lib.speech.batches import Batch, Stream, padded
from lib.speech.conformer import Conformer
from lib.speech.corpus import Corpus
from lib.speech.masking import seeded
from lib.speech.pretraining import Loss, Predictor, Recipe, train

SHARED = "shared"
NOTES = ("theta", "phi", "norm_theta", "norm_phi")  # columns of Learner.log
Labelled = tuple[Batch, Tensor]  # a batch and the labels of its frames


def predictor(
    names: Sequence[str],
    *,
    d: int = 128,
    blocks: int = 3,
    heads: str = SHARED,
    features: int = 80,
    dropout: float = 0.1,
    seed: int = 0,
) -> Predictor:
    """A conformer with one head for all sources, or one for each.

    names: of the sources; d, blocks, features, dropout: of the encoder; heads:
    "shared" or "own"; seed: of the first weights. Raises ValueError for sizes.
    """
    choice("heads", heads, (SHARED, "own"))
    with seeded(seed, "weights"):
        encoder = Conformer(features, d=d, blocks=blocks, dropout=dropout)
        made = (SHARED,) if heads == SHARED else tuple(names)
        return Predictor(encoder, {name: CODES for name in made})


def with_head(model: Predictor, name: str) -> tuple[Predictor, str]:
    """A model and the head of a source, shared or its own.

    Where a source has none, a copy of the model whose new head is the mean of all.
    """
    if name in model.heads or SHARED in model.heads:
        return model, name if name in model.heads else SHARED
    model = deepcopy(model)
    heads = list(model.heads.values())
    mean = deepcopy(heads[0])
    with torch.no_grad():
        for part, *same in zip(mean.parameters(), *(h.parameters() for h in heads)):
            part.copy_(torch.stack(same).mean(0))
    model.heads[name] = mean
    return model, name


class Objective(nn.Module):
    """The loss of one batch as a module, for `functional_call`."""

    def __init__(self, model: Predictor) -> None:
        super().__init__()
        self.model = model

    def forward(self, given: Labelled, head: str, generator: torch.Generator) -> Tensor:
        """Cross-entropy over masked frames of a batch with labels (batch, T)."""
        batch, labels = given
        masked = self.model(batch.features, batch.lengths, generator)
        return self.model.loss(masked, labels, head)


class Learner(nn.Module):
    """A predictor under an arm, and what every outer step saw.

    model; names: of the sources; arm; steps: outer ones. log: (steps, M, 4), for each
    source the loss at theta, at the last point phi, and the norms of the gradients
    there, nan where the arm has none; a buffer, so that checkpoints keep it.
    """

    log: Tensor

    def __init__(
        self, model: Predictor, names: Sequence[str], arm: Arm, steps: int
    ) -> None:
        super().__init__()
        known = SHARED in model.heads or set(names) <= set(model.heads)
        need(known, f"The model has heads {', '.join(model.heads)}; give one a source.")
        self.objective, self.arm, self.names = Objective(model), arm, list(names)
        empty = torch.full((steps, len(self.names), len(NOTES)), math.nan)
        self.register_buffer("log", empty)

    def losses(self) -> dict[str, Loss]:
        """One loss a source, each with weight 1 / M, for `train`."""
        M = len(self.names)
        return {n: Loss(self._loss(i, n), 1 / M) for i, n in enumerate(self.names)}

    def _loss(self, place: int, name: str) -> Callable:
        _, head = with_head(self.objective.model, name)
        theta = dict(self.objective.named_parameters())

        def of(given: Mapping[str, Any], g: torch.Generator) -> Tensor:
            source = [
                self._inner(batch, head, (g.initial_seed(), 0 if self.arm.same else j))
                for j, batch in enumerate(given[name])
            ]
            found = source_loss(self.arm, source, theta)
            self._note(given["step"], place, found)
            return found.loss

        return of

    def _inner(self, batch: Labelled, head: str, numbers: tuple[int, int]) -> Callable:
        """The loss of one batch as a function of the parameters."""

        def loss(parameters: Mapping[str, Tensor]) -> Tensor:
            with seeded(*numbers) as own:
                if self.arm.kind == "mixing":
                    return self.objective(batch, head, own)
                return functional_call(
                    self.objective, dict(parameters), (batch, head, own)
                )

        return loss

    def _note(self, step: int, place: int, found: Any) -> None:
        row = self.log[step, place]
        row[0], row[1] = found.values[0], found.values[-1]
        if found.norms:
            row[2], row[3] = found.norms[0], found.norms[-1]
        if found.phi and self.arm.kind != "reptile":
            M = len(self.names)

            def outer(slopes: Sequence[Tensor | None]) -> None:
                row[3] = norm(slopes) * M  # the weight of a source is 1 / M
                if not found.norms:
                    row[2] = row[3]

            points = [p for p in found.phi.values() if p.requires_grad]
            torch.autograd.graph.register_multi_grad_hook(points, outer)


def learn(
    model: Predictor,
    corpora: Mapping[str, Corpus],
    labels: Labels,
    arm: Arm,
    gradients: int,
    *,
    lr: float = 1e-3,
    frames: int = 800,
    seed: int = 0,
    after: Callable[[int], None] | None = None,
    **options: Any,
) -> tuple[Learner, dict[str, list[float]]]:
    """Train a predictor on all sources by an arm until a budget of gradients is spent.

    model: changed in place; corpora: the sources; labels; arm; gradients: evaluations
    over all sources; lr: of AdamW outside; frames: of a batch; seed: of batches, masks
    and dropout; after, options: of `train` (path, every, settings, bar). All arms read
    the same batches in the same order, some in fewer outer steps. Returns the learner
    with its log, and `train`'s history. Raises ValueError for a budget that does not
    divide, and as `train`.
    """
    need(len(corpora) > 0, "There is no source; give at least one corpus.")
    steps = arm.steps(gradients, len(corpora))
    learner = Learner(model, list(corpora), arm, steps)
    settings = dict(options.pop("settings", {})) | {
        "arm": [arm.kind, arm.K, arm.alpha, arm.same],
        "frames": frames,
    }
    history = train(
        learner,
        learner.losses(),
        drawn(corpora, labels, arm, frames, seed),
        Recipe(steps=steps, lr=lr),
        seed=seed,
        after=after,
        settings=settings,
        **options,
    )
    return learner, history


def drawn(
    corpora: Mapping[str, Corpus], labels: Labels, arm: Arm, frames: int, seed: int
) -> Callable[[int], dict[str, Any]]:
    """The batches of an outer step: {"step": its number, source: its batches}.

    corpora, labels, arm, frames, seed: as in `learn`. Batch j of outer step t is number
    t (K + 1) + j of its source's stream, so equal budgets read equal data; of several
    processes each has batches of its own.
    """
    streams = {
        name: Stream(corpus.lengths, frames, mixed(seed, place))
        for place, (name, corpus) in enumerate(corpora.items())
    }

    def labelled(name: str, number: int) -> Labelled:
        batch = padded(corpora[name], streams[name].at(parallel.part(number)))
        return batch, labels(name, batch.features)

    def at(step: int) -> dict[str, Any]:
        given: dict[str, Any] = {"step": step}
        for name in corpora:
            if arm.same:
                given[name] = [labelled(name, step)] * arm.batches
            else:
                first = step * arm.batches
                given[name] = [labelled(name, first + j) for j in range(arm.batches)]
        return given

    return at
