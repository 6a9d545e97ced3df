"""Connectionist temporal classification: the loss, its checks, and three decoders.

Symbols are whole numbers from 1, the blank is 0. Log-probabilities are (T, V + 1) or
(batch, T, V + 1). A transcript y needs len(y) frames and one more between equal
neighbours; where it does not fit its probability is 0 and the loss infinite, which
`zero_infinity` would hide: `ctc_loss` refuses it with both numbers instead.
Source: Graves et al., ICML 2006 (CTC); 1408.2873 (prefix beam).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lib.kit.checks import count, need

BLANK = 0


def frames_needed(target: Sequence[int]) -> int:
    """The fewest frames for a transcript: its length plus its equal neighbours."""
    return len(target) + sum(a == b for a, b in pairwise(target))


def unfit(lengths: Tensor | Sequence[int], targets: Sequence[Sequence[int]]) -> list:
    """Utterances whose transcript does not fit: (number, frames needed, frames).

    lengths: frames of every utterance; targets: their symbols. Count and print these
    before training. Raises ValueError where the two differ in number.
    """
    need(
        len(lengths) == len(targets),
        f"There are {len(lengths)} utterances and {len(targets)} transcripts; give one "
        "each.",
    )
    rows = [
        (i, frames_needed(y), int(T)) for i, (T, y) in enumerate(zip(lengths, targets))
    ]
    return [row for row in rows if row[1] > row[2]]


def transcripts(targets: Tensor, target_lengths: Tensor) -> list[list[int]]:
    """Padded transcripts (batch, symbols) as lists without the padding."""
    rows = zip(targets.tolist(), target_lengths.tolist())
    return [row[:size] for row, size in rows]


def check_targets(
    lengths: Tensor | Sequence[int], targets: Sequence[Sequence[int]], symbols: int
) -> None:
    """Raise ValueError for an empty transcript, a wrong symbol, or too few frames.

    lengths: frames of every utterance; targets: their symbols; symbols: how many there
    are without the blank.
    """
    misfits = unfit(lengths, targets)
    for i, y in enumerate(targets):
        need(
            len(y) > 0,
            f"The transcript of utterance {i} is empty; leave the utterance out.",
        )
        need(
            min(y) >= 1 and max(y) <= symbols,
            f"The transcript of utterance {i} runs from {min(y)} to {max(y)}; symbols "
            f"are 1 to {symbols}, 0 is the blank.",
        )
    if misfits:
        i, wanted, T = misfits[0]
        repeats = wanted - len(targets[i])
        raise ValueError(
            f"{len(misfits)} of {len(targets)} transcripts do not fit: utterance {i} "
            f"needs {wanted} frames ({len(targets[i])} symbols and {repeats} repeats) "
            f"and has {T}. Leave it out, or subsample less."
        )


def ctc_loss(
    log_probs: Tensor, lengths: Tensor | None, targets: Sequence[Sequence[int]]
) -> Tensor:
    """-log p(y | x) of every utterance, summed over all alignments.

    log_probs: (batch, T, V + 1); lengths: (batch,) frames, None for all T; targets:
    symbols of every utterance. Returns (batch,). Raises ValueError as `check_targets`.
    """
    batch, T, classes = log_probs.shape
    frames = [T] * batch if lengths is None else lengths.tolist()
    check_targets(frames, targets, classes - 1)
    flat = torch.tensor([symbol for y in targets for symbol in y])
    return functional.ctc_loss(
        log_probs.transpose(0, 1),
        flat.to(log_probs.device),
        torch.tensor(frames),
        torch.tensor([len(y) for y in targets]),
        blank=BLANK,
        reduction="none",
    )


# -- decoding -----------------------------------------------------------------------


def collapse(path: Sequence[int]) -> list[int]:
    """What an alignment says: equal neighbours merged, then blanks removed."""
    merged = [s for i, s in enumerate(path) if i == 0 or s != path[i - 1]]
    return [int(s) for s in merged if s != BLANK]


def greedy(log_probs: Tensor, lengths: Tensor | None = None) -> list[list[int]]:
    """The most probable alignment of every utterance, collapsed.

    log_probs: (batch, T, V + 1); lengths: (batch,) frames, None for all T. Returns one
    list of symbols an utterance.
    """
    best = log_probs.argmax(-1)
    changes = torch.ones_like(best, dtype=torch.bool)
    changes[:, 1:] = best[:, 1:] != best[:, :-1]
    keep = changes & (best != BLANK)
    if lengths is not None:
        keep &= torch.arange(best.shape[1], device=best.device) < lengths[:, None]
    rows, where = best.cpu().numpy(), keep.cpu().numpy()
    return [row[some].tolist() for row, some in zip(rows, where)]


def prefix_beam(log_probs: Tensor, width: int = 8) -> list[tuple[list[int], float]]:
    """The most probable transcripts of one utterance, each over all its alignments.

    log_probs: (T, V + 1); width: prefixes kept a frame. Returns at most `width` pairs
    (symbols, log probability), best first: wide enough the exact posterior, else a
    lower bound of it. Raises ValueError for a shape or width. Source: 1408.2873,
    algorithm 1, without a language model.
    """
    count("width", width)
    need(
        log_probs.dim() == 2,
        f"log_probs has shape {tuple(log_probs.shape)}; give one utterance (T, V + 1).",
    )
    beam: list[tuple[int, ...]] = [()]
    blank, symbol = np.zeros(1), np.full(1, -np.inf)  # log p by what the path ends in
    for frame in log_probs.detach().double().cpu().numpy():
        last = np.array([prefix[-1] if prefix else BLANK for prefix in beam])
        both, rows = np.logaddexp(blank, symbol), np.arange(len(beam))
        grow = both[:, None] + frame
        grow[rows, last] = blank + frame[last]  # a repeat needs a blank between
        grow[:, BLANK] = -np.inf
        blank, symbol = both + frame[BLANK], symbol + frame[last]
        place = {prefix: i for i, prefix in enumerate(beam)}
        for i, prefix in enumerate(beam):  # a prefix that another one grows into
            parent = place.get(prefix[:-1]) if prefix else None
            if parent is not None:
                symbol[i] = np.logaddexp(symbol[i], grow[parent, last[i]])
                grow[parent, last[i]] = -np.inf
        scores = np.append(np.logaddexp(blank, symbol), grow)
        best = np.argsort(-scores, kind="stable")[:width]
        best = best[scores[best] > -np.inf]
        old, (source, new) = best < len(beam), divmod(best - len(beam), len(frame))
        source = np.where(old, best, source)
        grown = zip(old, source, new)
        beam = [beam[j] if stays else (*beam[j], int(s)) for stays, j, s in grown]
        blank = np.where(old, blank[source], -np.inf)
        symbol = np.where(old, symbol[source], scores[best])
    return [(list(p), float(v)) for p, v in zip(beam, np.logaddexp(blank, symbol))]


class Lexicon:
    """Words and their pronunciations, for the nearest word sequence to some phones.

    words: of every word a list of pronunciations, each a list or tuple of phones.
    Raises ValueError for a word without a phone, or with a string for a pronunciation.
    """

    def __init__(self, words: Mapping[str, Collection[Sequence]]) -> None:
        entries = [(word, phones) for word, many in words.items() for phones in many]
        need(bool(entries), "The lexicon is empty; give words with pronunciations.")
        for word, phones in entries:
            need(
                not isinstance(phones, str | int) and len(phones) > 0,
                f"A pronunciation of {word!r} is {phones!r}; give a list of phones.",
            )
        self.words = [word for word, _ in entries]
        self.ends = np.array([len(phones) for _, phones in entries])
        known = {phone for _, phones in entries for phone in phones}
        self.number = {phone: i for i, phone in enumerate(sorted(known, key=str))}
        self.phones = np.full((len(entries), self.ends.max()), -1)
        for row, (_, phones) in zip(self.phones, entries):
            row[: len(phones)] = [self.number[phone] for phone in phones]

    def decode(self, phones: Sequence) -> tuple[list[str], int]:
        """The word sequence nearest in edit distance of phones, and the distance.

        phones: a sequence of the lexicon's phones, unknown ones never match. Of equally
        near words the first in the lexicon; no word at all only where that is nearer.
        Dynamic programming over (phones read, word, phones of the word).
        """
        W, P = self.phones.shape
        steps, rows = np.arange(P + 1), np.arange(W)
        # Of every word with p of its phones done: the cost, and where the word began.
        cost, began = np.tile(steps, (W, 1)), np.zeros((W, P + 1), int)
        # Of the first j phones: the least cost, the last word and where it began.
        best, way = [0], [(-1, 0)]
        for j, phone in enumerate(phones, 1):
            differs = self.phones != self.number.get(phone, -2)
            cost, began = _read(cost, began, differs, steps)
            ends = cost[rows, self.ends]
            word = int(ends.argmin())
            best.append(int(ends[word]))
            way.append((word, int(began[word, self.ends[word]])))
            fresh = best[j] + steps < cost  # a next word that begins here
            cost = np.where(fresh, best[j] + steps, cost)
            began = np.where(fresh, j, began)
        if best[-1] > len(phones):
            return [], len(phones)
        words, j = [], len(best) - 1
        while j > 0:
            word, j = way[j]
            words.append(self.words[word])
        return words[::-1], best[-1]


def _read(
    cost: np.ndarray, began: np.ndarray, differs: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One phone read: one too many, one of the word, or one after skipped phones."""
    new, start = cost + 1, began.copy()
    match = cost[:, :-1] + differs
    better = match < new[:, 1:]
    new[:, 1:] = np.where(better, match, new[:, 1:])
    start[:, 1:] = np.where(better, began[:, :-1], start[:, 1:])
    level = new - steps  # skipping phones of the word costs 1 each
    least = np.minimum.accumulate(level, axis=1)
    fresh = np.ones_like(level, bool)
    fresh[:, 1:] = level[:, 1:] < least[:, :-1]
    source = np.maximum.accumulate(np.where(fresh, steps, 0), axis=1)
    return least + steps, np.take_along_axis(start, source, axis=1)
