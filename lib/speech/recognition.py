"""Recognition: CTC fine-tuning, decoding a test set, error rates.

`fine_tune` runs the loop of `pretraining` on labelled utterances: with FINE_TUNE the
encoder is frozen at first (run without gradients, its dropout on) and then moves at a
lower rate; with SCRATCH everything moves from the start. Batches are those of
`lib.speech.batches`.
Source: 2006.11477 (freezing), 1904.08779 (masks); rates of the collection's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.kit.checks import count, need
from lib.speech.batches import Batch, spec_augment
from lib.speech.conformer import Recogniser, without_dropout
from lib.speech.ctc import ctc_loss, greedy, prefix_beam, transcripts
from lib.speech.pretraining import Loss, Recipe, train


@dataclass(frozen=True)
class Tuning:
    """How a recogniser is trained.

    recipe: optimiser and schedule, its rate the head's; encoder: factor on the
    encoder's rate; frozen: share of the steps without gradients for the encoder;
    share, span, bands: of the masks (see `spec_augment`), 0 for none; middle: weight
    of the middle output where there is one.
    """

    recipe: Recipe
    encoder: float = 0.3
    frozen: float = 0.3
    share: float = 0.1
    span: int = 4
    bands: int = 7
    middle: float = 0.3

    def __post_init__(self) -> None:
        for name in ("frozen", "middle"):
            share = getattr(self, name)
            need(0 <= share < 1, f"{name} is {share}; give a share from 0 to below 1.")


def _recipe(lr: float) -> Recipe:
    return Recipe(steps=300, lr=lr, warmup=0.1, decay="linear", hold=0.5)


FINE_TUNE = Tuning(_recipe(3e-3))
SCRATCH = Tuning(_recipe(2e-3), encoder=1.0, frozen=0.0)


def recognition_loss(
    outputs: Sequence[Tensor],
    lengths: Tensor,
    targets: Sequence[Sequence[int]],
    middle: float = 0.3,
) -> Tensor:
    """CTC a symbol, the mean over utterances; the middle output has its own weight.

    outputs: of a `Recogniser`, the end's and perhaps the middle's; middle: its weight,
    1 - middle being the end's. Raises ValueError as `ctc_loss`.
    """
    sizes = torch.tensor([len(y) for y in targets], device=outputs[0].device)
    parts = [(ctc_loss(o, lengths, targets) / sizes).mean() for o in outputs]
    if len(parts) == 1:
        return parts[0]
    return (1 - middle) * parts[0] + middle * parts[1]


def fine_tune(
    model: Recogniser,
    batches: Callable[[int], Batch],
    tuning: Tuning = FINE_TUNE,
    *,
    seed: int = 0,
    **options: Any,
) -> dict[str, list[float]]:
    """Train a recogniser with CTC, in place; the same seed gives the same bits.

    batches: the labelled batch of a step, of the step alone; tuning: FINE_TUNE,
    SCRATCH or your own; seed: of masks and dropout; options: path, every, settings and
    bar of `train`. Returns its history. Raises ValueError for transcripts that are
    empty or do not fit, and as `train`.
    """
    thaw = round(tuning.frozen * tuning.recipe.steps)

    def loss(given: tuple[Batch, bool], g: torch.Generator) -> Tensor:
        batch, frozen = given
        how = (tuning.share, tuning.span, tuning.bands)
        x = spec_augment(batch.features, batch.lengths, g, *how)
        outputs = model(x, batch.lengths, frozen=frozen)
        said = transcripts(batch.targets, batch.target_lengths)
        return recognition_loss(outputs, batch.lengths, said, tuning.middle)

    head = nn.ModuleList(part for n, part in model.named_children() if n != "encoder")
    return train(
        model,
        {"ctc": Loss(loss)},
        lambda step: (batches(step), step < thaw),
        tuning.recipe,
        groups={"encoder": (model.encoder, tuning.encoder), "head": (head, 1.0)},
        seed=seed,
        **options,
    )


# -- decoding and error rates -------------------------------------------------------


@torch.no_grad()
def recognise(
    model: Recogniser, batches: Iterable[Batch], width: int = 1
) -> list[list[int]]:
    """What a recogniser hears in every utterance, without dropout.

    batches: of padded utterances; width: of the prefix beam, 1 for the greedy path.
    Returns one list of symbols an utterance; the model's mode is left as it was.
    Raises ValueError for a width.
    """
    count("width", width)
    heard: list[list[int]] = []
    for batch in batches:
        with without_dropout(model):
            log_probs = model(batch.features, batch.lengths)[0]
        if width == 1:
            heard += greedy(log_probs, batch.lengths)
            continue
        rows = zip(log_probs, batch.lengths.tolist())
        heard += [prefix_beam(row[:T], width)[0][0] for row, T in rows]
    return heard


class ErrorRate(NamedTuple):
    """Errors over reference symbols, pooled: (sub + del + ins) / symbols."""

    rate: float
    substitutions: int
    deletions: int
    insertions: int
    symbols: int


def error_rate(
    references: Sequence[Sequence], hypotheses: Sequence[Sequence]
) -> ErrorRate:
    """The error rate of a test set by jiwer: of phones, words or symbols alike.

    references, hypotheses: for every utterance a sequence of words, phones or numbers;
    rates are pooled over utterances. Raises ValueError for an empty reference, an
    unequal number, a string where a sequence belongs, or a symbol with a blank in it.
    """
    import jiwer

    need(
        len(references) == len(hypotheses) > 0,
        f"There are {len(references)} references and {len(hypotheses)} hypotheses; "
        "give one each, at least one.",
    )
    for i, reference in enumerate(references):
        need(
            len(reference) > 0,
            f"The reference of utterance {i} is empty, so it has no error rate; leave "
            "it out.",
        )
    lines = [_line(row) for row in (*references, *hypotheses)]
    n = len(references)
    found = jiwer.process_words(lines[:n], lines[n:])
    errors = (found.substitutions, found.deletions, found.insertions)
    symbols = found.hits + found.substitutions + found.deletions
    return ErrorRate(sum(errors) / symbols, *errors, symbols)


def _line(row: Sequence) -> str:
    """A sequence as one line, its symbols apart."""
    need(
        not isinstance(row, str),
        f"An utterance is the string {row!r}; give a list of words or phones.",
    )
    words = [str(symbol) for symbol in row]
    bad = [word for word in words if word.split() != [word]]
    need(not bad, f"The symbol {bad[:1]} is empty or holds a blank; give single words.")
    return " ".join(words)
