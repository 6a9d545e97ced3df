"""What all answers to "where do the labels come from" share.

A `Task` is the speech, the encoder, the mask, the batches and the number of steps; an
`Arm` adds the losses. Every draw follows from the task's seed and a name, so that two
arms share first weights, masks and batches in everything that they both have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lib.codebooks import RandomProjection
from lib.kit import parallel
from lib.kit.checks import count
from lib.speech.batches import Batch, Stream, in_order, padded
from lib.speech.conformer import Conformer, without_dropout
from lib.speech.corpus import Corpus
from lib.speech.masking import generator, seeded
from lib.speech.pretraining import Loss, Masked, Predictor, Recipe, train
from lib.speech.quality import frames

SAMPLE = 1000  # utterances of which codes are fitted, at most
POOL_FRAMES = 4000  # of a padded batch where nothing is learned


class Step(NamedTuple):
    """What the losses of one step see: the batch, the step from 0, the masked pass."""

    batch: Batch
    number: int
    masked: Masked


@dataclass(frozen=True)
class Task:
    """Pre-training without its labels.

    pool: unlabelled speech; steps: of the optimiser; seed; V: codes; sizes: of the
    `Conformer`; p, span: of the mask; frames: of a padded batch; device. Raises
    ValueError for numbers.
    """

    pool: Corpus
    steps: int
    seed: int = 0
    V: int = 64
    sizes: Mapping[str, Any] = field(default_factory=dict)
    p: float = 0.1
    span: int = 5
    frames: int = 1000
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "V", "frames"):
            count(name, getattr(self, name))

    def number(self, *words: str | int) -> int:
        """A seed of one purpose."""
        return generator(self.seed, *words).initial_seed()

    def predictor(self, heads: Mapping[str, int | None]) -> Predictor:
        """An encoder with linear heads, each drawn by its name.

        heads: {name: outputs}, None for as many as the encoder has channels.
        """
        features = self.pool.features.shape[1]
        with seeded(self.seed, "encoder"):
            encoder = Conformer(**({"features": features} | dict(self.sizes)))
        made = {}
        for name, outputs in heads.items():
            with seeded(self.seed, "head", name):
                made[name] = nn.Linear(encoder.d, outputs or encoder.d)
        return Predictor(encoder, made, self.p, self.span).to(self.device)

    def projection(self, name: str, d: int, d_c: int = 16) -> RandomProjection:
        """BEST-RQ's quantizer of vectors of d values, drawn by its name."""
        seed = self.number("quantizer", name)
        return RandomProjection(d, d_c, self.V, seed).to(self.device)

    @cached_property
    def _stream(self) -> Stream:
        return Stream(self.pool.lengths, self.frames, self.seed)

    def batch(self, step: int) -> tuple[Batch, int]:
        """The batch of a step from 0, each process having its own, and the step."""
        number = parallel.part(step)
        return padded(self.pool, self._stream.at(number), self.device), step

    def some(self, utterances: int, name: str = "sample") -> Corpus:
        """Utterances of the pool drawn by a name, all where there are not so many."""
        rng = np.random.default_rng(self.number(name))
        chosen = rng.permutation(len(self.pool))[:utterances]
        return self.pool.take(np.sort(chosen))

    def inputs(self) -> Tensor:
        """Frames of the input to fit codes to: (n, features)."""
        frames = torch.from_numpy(self.some(SAMPLE).all_features())
        return frames.to(self.device)


class Arm(NamedTuple):
    """A task with an answer.

    model: a `Predictor` with all that the arm trains or keeps; losses: of a `Step`;
    labels: what is predicted, of a batch of the pool, (batch, T) codes, or None where
    the targets are no codes; after: called with the number of steps done; paths: of a
    `Step` and a generator, the losses whose gradients are worth a look.
    """

    model: Predictor
    losses: dict[str, Loss]
    labels: Callable[[Batch], Tensor] | None
    after: Callable[[int], None] | None = None
    paths: Callable[[Step, torch.Generator], dict[str, Tensor]] | None = None


def pretrain(task: Task, arm: Arm, lr: float = 2e-3, **options: Any) -> dict:
    """Train an arm's model in place; the same task and arm give the same bits.

    options: path, every, settings, bar of `lib.speech.pretraining.train`, and `after`,
    called after the arm's own. Returns its history. Raises as it does.
    """
    also = options.pop("after", None)

    def prepare(given: tuple[Batch, int], g: torch.Generator) -> Step:
        batch, number = given
        return Step(batch, number, arm.model(batch.features, batch.lengths, g))

    def after(done: int) -> None:
        for each in (arm.after, also):
            if each:
                each(done)

    return train(
        *(arm.model, arm.losses, task.batch, Recipe(task.steps, lr)),
        **({"prepare": prepare, "after": after, "seed": task.seed} | options),
    )


def states(encoder: Conformer, batch: Batch, layer: int) -> Tensor:
    """States after `layer` blocks of the unmasked input, without dropout.

    Returns (batch, T, d), with a gradient where gradients are on.
    """
    with without_dropout(encoder):
        return encoder(batch.features, batch.lengths, depth=layer)[-1]


@torch.no_grad()
def pool_states(encoder: Conformer, corpus: Corpus, layer: int) -> Tensor:
    """States of all frames of a corpus, in its order: (frames, d)."""
    device = str(next(encoder.parameters()).device)
    batches = in_order(corpus, POOL_FRAMES, device)
    return torch.cat([frames(states(encoder, b, layer), b.lengths) for b in batches])


class Table(nn.Module):
    """The labels of all frames of a corpus, computed once and looked up by batch.

    corpus: whose batches will ask; label: of a batch, gives (batch, T) codes; None for
    zeros to be filled. A checkpoint holds them.
    """

    values: Tensor
    starts: Tensor

    def __init__(
        self, corpus: Corpus, label: Callable[[Batch], Tensor] | None, device: str
    ) -> None:
        super().__init__()
        self.corpus = corpus
        lengths = torch.from_numpy(corpus.lengths)
        zeros = torch.zeros(int(lengths.sum()), dtype=torch.int32, device=device)
        self.register_buffer("values", zeros)
        self.register_buffer("starts", (lengths.cumsum(0) - lengths).to(device))
        if label:
            self.fill(label)

    @torch.no_grad()
    def fill(self, label: Callable[[Batch], Tensor]) -> None:
        """Label every frame anew, in place."""
        batches = in_order(self.corpus, POOL_FRAMES, str(self.values.device))
        parts = [frames(label(batch), batch.lengths) for batch in batches]
        self.values.copy_(torch.cat(parts))

    def forward(self, batch: Batch) -> Tensor:
        """The labels of a batch of this corpus: (batch, T), any number where padded."""
        indices = torch.from_numpy(np.asarray(batch.indices)).to(self.starts.device)
        T = batch.features.shape[1]
        rows = self.starts[indices][:, None] + torch.arange(T, device=indices.device)
        return self.values[rows.clamp(max=len(self.values) - 1)].long()
