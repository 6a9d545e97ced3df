"""Batches of utterances of like length, reproducible from (seed, step), and masks.

Nothing is remembered between steps: the batch of a step follows from the seed, so that
a run which was killed goes on with the batches it would have had.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lib.kit.checks import count, need
from lib.speech.corpus import Corpus
from lib.speech.features import MELS

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """Padded utterances as tensors.

    features: (batch, frames, 40 * stack) float32, zero where padded; lengths: (batch,);
    targets: (batch, symbols) int64, zero where padded; target_lengths: (batch,);
    alignment: (batch, frames) int64, -1 where padded, or None; indices: (batch,) of the
    corpus, a numpy array.
    """

    features: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor
    target_lengths: torch.Tensor
    alignment: torch.Tensor | None
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on another device."""
        names = ("features", "lengths", "targets", "target_lengths", "alignment")
        moved = {name: getattr(self, name) for name in names}
        return replace(
            self, **{n: t if t is None else t.to(device) for n, t in moved.items()}
        )


def bucketed(lengths: np.ndarray, frames: int, seed: int, epoch: int) -> list:
    """Cut all utterances into batches of like length, in random order.

    lengths: (utterances,) frames of each; frames: the most that a padded batch holds (a
    longer utterance is a batch of its own); seed, epoch: of the order. Returns arrays
    of indices, each utterance in exactly one. Raises ValueError.
    """
    lengths = np.asarray(lengths)
    count("The frames of a batch", frames)
    need(len(lengths) > 0, "There are no utterances to make batches of.")
    need(int(lengths.min()) > 0, "An utterance has no frames; leave it out.")
    rng = np.random.default_rng([seed, epoch])
    # A little noise, so that not always the same utterances meet.
    near = lengths * rng.uniform(0.9, 1.1, len(lengths))
    batches = _cut(lengths, np.argsort(near, kind="stable"), frames)
    return [batches[i] for i in rng.permutation(len(batches))]


def _cut(lengths: np.ndarray, order: np.ndarray, frames: int) -> list[np.ndarray]:
    """Utterances in an order, cut where a padded batch would hold too many frames."""
    batches, first, longest = [], 0, 0
    for at, index in enumerate(order):
        longest = max(longest, int(lengths[index]))
        if at > first and longest * (at + 1 - first) > frames:
            batches.append(order[first:at])
            first, longest = at, int(lengths[index])
    return [*batches, order[first:]] if len(order) else []


class Stream:
    """Endless batches: step k has the same utterances in every run with one seed.

    lengths: (utterances,) frames; frames: of a padded batch; seed. `at(step)` gives the
    indices, `epoch(step)` the pass over the data. Raises ValueError as `bucketed`.
    """

    def __init__(self, lengths: np.ndarray, frames: int, seed: int) -> None:
        self.lengths, self.frames, self.seed = np.asarray(lengths), frames, seed
        self._ends = [0]  # the first step of each epoch, and of the one after the last
        self._current: tuple[int, list] = (-1, [])

    def _batches(self, epoch: int) -> list:
        if self._current[0] != epoch:
            found = bucketed(self.lengths, self.frames, self.seed, epoch)
            self._current = (epoch, found)
        return self._current[1]

    def epoch(self, step: int) -> int:
        """The pass over the data to which a step from 0 belongs."""
        count("The step", step, 0)
        while self._ends[-1] <= step:
            number = len(self._batches(len(self._ends) - 1))
            self._ends.append(self._ends[-1] + number)
        return int(np.searchsorted(self._ends, step, side="right")) - 1

    def at(self, step: int) -> np.ndarray:
        """The indices of one step from 0, in a batch of like lengths."""
        epoch = self.epoch(step)
        return self._batches(epoch)[step - self._ends[epoch]]


def padded(
    corpus: Corpus, indices: np.ndarray | None = None, device: str = "cpu"
) -> Batch:
    """Some utterances as one padded batch.

    corpus; indices: (batch,), None for all; device: a torch device. Raises ValueError
    for no utterances, IndexError outside.
    """
    import torch

    indices = np.arange(len(corpus)) if indices is None else np.asarray(indices)
    need(len(indices) > 0, "A batch needs at least one utterance.")
    chosen = [corpus[int(index)] for index in indices]
    lengths = np.array([len(u.features) for u in chosen])
    sizes = np.array([len(u.target) for u in chosen])
    shape = (len(chosen), int(lengths.max()))
    features = np.zeros((*shape, corpus.features.shape[1]), np.float32)
    targets = np.zeros((len(chosen), int(sizes.max())), np.int64)
    alignment = None if corpus.alignment is None else np.full(shape, -1, np.int64)
    for row, utterance in enumerate(chosen):
        features[row, : lengths[row]] = utterance.features
        targets[row, : sizes[row]] = utterance.target
        if alignment is not None:
            alignment[row, : lengths[row]] = utterance.alignment
    arrays = (features, lengths, targets, sizes)
    tensors = [torch.from_numpy(array).to(device) for array in arrays]
    times = None if alignment is None else torch.from_numpy(alignment).to(device)
    return Batch(*tensors, times, indices)


def epoch_of(
    corpus: Corpus, frames: int, seed: int = 0, epoch: int = 0, device: str = "cpu"
) -> Iterator[Batch]:
    """All utterances once, in batches of like length (arguments of `bucketed`)."""
    for indices in bucketed(corpus.lengths, frames, seed, epoch):
        yield padded(corpus, indices, device)


def in_order(
    corpus: Corpus, frames: int = 4000, device: str = "cpu"
) -> Iterator[Batch]:
    """All utterances once, in the corpus's order: for tests and decoding.

    frames: the most that a padded batch holds. Raises ValueError for a bad number.
    """
    count("The frames of a batch", frames)
    for indices in _cut(corpus.lengths, np.arange(len(corpus)), frames):
        yield padded(corpus, indices, device)


def spec_augment(
    features: torch.Tensor,
    lengths: torch.Tensor,
    generator: torch.Generator,
    share: float = 0.1,
    span: int = 4,
    bands: int = 7,
) -> torch.Tensor:
    """Hide stretches of time and one stretch of bands in each utterance, by zeros.

    features: (batch, frames, 40 * stack), normalised, so that zero is the mean;
    lengths: (batch,); generator: on the CPU; share: of the frames to hide, in spans of
    `span`, overlaps allowed; bands: one mask of less than so many mel bands (0: none).
    Returns a new tensor; padding is left alone, and an utterance's masks depend neither
    on padding nor on the device. Raises ValueError. Source: SpecAugment, 1904.08779.
    """
    import torch

    need(0 <= share < 1, f"The share is {share}; give a number from 0 to below 1.")
    count("The span", span)
    count("The number of bands", bands, 0)
    need(bands <= MELS, f"bands is {bands}; there are {MELS}.")
    keep = torch.ones(features.shape, dtype=torch.bool)
    for row, length in enumerate(lengths.tolist()):
        number = round(share * length / span)
        starts = torch.rand(number, generator=generator)
        for start in (starts * max(length - span + 1, 1)).long().tolist():
            keep[row, start : min(start + span, length)] = False
        width, low = torch.rand(2, generator=generator).tolist()
        width = int(width * bands)
        low = int(low * (MELS - width + 1))
        per_band = keep[row, :length].unflatten(-1, (-1, MELS))
        per_band[..., low : low + width] = False
    return features * keep.to(features.device)
