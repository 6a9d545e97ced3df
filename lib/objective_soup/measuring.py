"""What a soup can do, and where its objectives conflict.

`evaluated` decodes a part of the world: error rates by jiwer, BLEU and chrF by
sacrebleu, and the losses, which are steadier. `conflict_map` compares the gradients of
two independent sets of batches, so that noise does not hide the cosines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.kit.checks import choice, count, need
from lib.multi_objective.conflict import (
    conflict,
    corrected_cosines,
    cosines,
    stationarity,
)
from lib.multi_objective.gradients import jacobians
from lib.objective_soup.balance import pairs_between
from lib.objective_soup.model import Encoded, Soup, losses
from lib.objective_soup.world import Audio, Feed, World, with_english
from lib.speech.batches import in_order
from lib.speech.conformer import without_dropout
from lib.speech.corpus import Corpus
from lib.speech.ctc import greedy
from lib.speech.recognition import error_rate

MASKS = 3  # of each utterance, in the self-supervised test loss
KINDS = ("asr x asr", "st x st", "asr x st", "supervised x ssl")


def bleu(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """BLEU and chrF of a test set in percent, and the share of exact sentences.

    references, hypotheses: words joined by blanks. Raises ValueError for unequal
    numbers, ImportError with what to install.
    """
    need(
        len(references) == len(hypotheses) > 0,
        f"There are {len(references)} references and {len(hypotheses)} hypotheses; "
        "give one each, at least one.",
    )
    metrics = sacrebleu()
    how = {"tokenize": "none", "force": True}
    pairs = list(hypotheses), [list(references)]
    exact = np.mean([a == b for a, b in zip(references, hypotheses)])
    return {
        "bleu": float(metrics.corpus_bleu(*pairs, **how).score),
        "chrf": float(metrics.corpus_chrf(*pairs).score),
        "exact": float(exact),
    }


def sacrebleu() -> Any:
    """The package that counts BLEU. Raises ImportError with what to install."""
    try:
        import sacrebleu
    except ImportError:
        raise ImportError(
            "Translations are judged by sacrebleu, which is not installed: "
            "pip install sacrebleu==2.6.0."
        ) from None
    return sacrebleu


def evaluated(
    model: Soup,
    world: World,
    part: str = "test",
    names: Sequence[str] | None = None,
    frames: int = 4000,
) -> dict[str, Any]:
    """What a model makes of a part of the world, without dropout.

    part: "test", "validation" or "train"; names: of the objectives that are judged,
    None for all; frames: of a padded batch. Returns {objective: numbers}: of asr "wer",
    "symbols" (the error rate of characters where these are written), "ctc"; of st
    "bleu", "chrf", "exact", "ce"; of ssl "loss"; and "heard", {objective: texts}.
    Raises ValueError for a word, ImportError without sacrebleu.
    """
    choice("part", part, ("test", "validation", "train"))
    names = world.objectives if names is None else tuple(names)
    found: dict[str, Any] = {"heard": {}}
    with torch.no_grad(), without_dropout(model):
        for name in names:
            choice("The objective", name, world.objectives)
            task, _, language = name.partition("_")
            if task == "ssl":
                found[name] = {"loss": _audio_loss(model, world, part)}
                continue
            corpus = getattr(world, part)[language]
            texts, loss = _decoded(model, world, corpus, name, frames)
            found["heard"][name] = texts
            found[name] = _judged(world, corpus, name, texts) | loss
    return found


def _decoded(
    model: Soup, world: World, corpus: Corpus, name: str, frames: int
) -> tuple[list[str], dict[str, float]]:
    """The texts that one objective's head writes, and its mean loss."""
    task, _, language = name.partition("_")
    texts, total = [], 0.0
    place = str(next(model.parameters()).device)
    longest = 2 * _longest(world, corpus, task)
    for speech in in_order(corpus, frames, place):
        batch = with_english(world, corpus, language, speech)
        value = losses(model, {language: batch}, [name], 0)[name]
        total += float(value) * len(speech) / len(corpus)
        seen = model.encode(speech.features, speech.lengths)
        texts += written(model, world, name, seen, longest)
    return texts, {"ctc" if task == "asr" else "ce": total}


def _longest(world: World, corpus: Corpus, task: str) -> int:
    """The symbols of the longest target."""
    if task == "asr":
        return int(corpus.target_lengths.max())
    split = world.english.split
    return max(len(split(text)) for text in corpus.column("translation"))


def written(
    model: Soup, world: World, name: str, seen: Encoded, longest: int = 40
) -> list[str]:
    """What one objective's head makes of encoded speech, by the likeliest symbols.

    name: of an asr or st objective; seen: of `Soup.encode`; longest: symbols of a
    translation. Returns a text an utterance.
    """
    task, _, language = name.partition("_")
    if task == "asr":
        said = greedy(model.recognisers[language](seen.h).log_softmax(-1), seen.lengths)
        return [world.words[language].decode(row) for row in said]
    said = model.decoders[language].greedy(seen, longest)
    return [world.english.decode(row) for row in said]


def _judged(
    world: World, corpus: Corpus, name: str, texts: Sequence[str]
) -> dict[str, float]:
    """Error rates of recognition, BLEU and its company of translation."""
    task, _, language = name.partition("_")
    if task == "st":
        return bleu(list(corpus.column("translation")), texts)
    truth = list(corpus.column("text"))
    split = world.words[language].split
    rates = {"wer": error_rate([t.split() for t in truth], [t.split() for t in texts])}
    rows = [[s for s in split(t) if s.strip()] for t in (*truth, *texts)]
    rates["symbols"] = error_rate(rows[: len(truth)], rows[len(truth) :])
    return {which: rate.rate for which, rate in rates.items()}


def _audio_loss(model: Soup, world: World, part: str) -> float:
    """The self-supervised loss; the same masks are drawn for all models."""
    place = str(next(model.parameters()).device)
    total = weight = 0.0
    for language, corpus in getattr(world, part).items():
        for number, speech in enumerate(in_order(corpus, device=place)):
            if len(speech) < 2:  # CPC needs another utterance
                continue
            batch = {"ssl": Audio(speech.features, speech.lengths)}
            for k in range(MASKS):
                value = losses(model, batch, ["ssl"], k, number, language)["ssl"]
                total += float(value) * len(speech)
                weight += len(speech)
    return total / weight


def summary(found: Mapping[str, Any]) -> dict[str, float]:
    """Means over languages of `evaluated`: "wer", "ctc", "bleu", "chrf", "exact", "ce",
    and "ssl"."""
    rows: dict[str, list[float]] = {}
    for name, numbers in found.items():
        if name == "heard":
            continue
        for key, value in numbers.items():
            rows.setdefault("ssl" if name == "ssl" else key, []).append(value)
    return {key: float(np.mean(values)) for key, values in rows.items()}


# -- conflict -------------------------------------------------------------------------


def mean_jacobians(
    model: Soup,
    feed: Feed,
    layers: Mapping[str, Sequence[Tensor]],
    steps: Sequence[int],
    seed: int = 0,
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Mean gradients of every objective by layer over some batches, dropout off.

    feed; layers; steps: which batches; seed: of the masks. Returns the single batches'
    Gram matrices by layer, and {layer: J (M, P)}. Rows as `world.objectives`.
    """
    names, grams, mean = feed.world.objectives, [], None
    for step in steps:
        with without_dropout(model):
            found = losses(model, feed.at(step, names), names, seed, step, "map")
        J = jacobians([found[n] for n in names], layers)
        grams.append({name: part @ part.T for name, part in J.items()})
        if mean is None:
            mean = {name: part / len(steps) for name, part in J.items()}
        else:
            for name, part in J.items():
                mean[name] += part / len(steps)
    return grams, mean


def conflict_map(
    model: Soup,
    world: World,
    *,
    batches: int = 12,
    batch: int = 8,
    granularity: str = "block",
    seed: int = 0,
) -> dict[str, Any]:
    """Cosines between all objectives by layer, corrected for noise.

    Two independent averages of so many batches (a batch of each language), dropout off.
    Returns "names", "layers" ({layer: (M, M) cosines}, "all" for the encoder), "means"
    ({layer: {kind: mean cosine}}, see KINDS), "conflict" (share of pairs below 0,
    corrected), "raw" (the same of single batches, their mean), "stationarity" and
    "sizes" of the mean gradients. Nan where noise hides a gradient. Raises ValueError
    for words, or fewer than one batch.
    """
    count("batches", batches)
    place = next(model.parameters()).device
    feed = Feed(world, batch, seed, place)
    layers, names = model.layers(granularity), list(world.objectives)
    halves = [range(batches), range(batches, 2 * batches)]
    (grams, first), (more, last) = (
        mean_jacobians(model, feed, layers, steps, seed) for steps in halves
    )
    A = {name: first[name] @ last[name].T for name in layers}
    A["all"] = sum(A.values())
    C = {name: corrected_cosines(part) for name, part in A.items()}
    G = sum((J + last[n]) @ (J + last[n]).T / 4 for n, J in first.items())
    raw = [float(conflict(cosines(sum(g.values())))[1]) for g in grams + more]
    return {
        "names": names,
        "layers": {name: part.tolist() for name, part in C.items()},
        "means": {name: kinds_of(part, names) for name, part in C.items()},
        "conflict": float(conflict(C["all"])[1]),
        "raw": float(np.mean(raw)),
        "stationarity": float(stationarity(G)),
        "sizes": G.diagonal().sqrt().tolist(),
    }


def kinds_of(C: Tensor, names: Sequence[str]) -> dict[str, float]:
    """The mean cosine of every kind of pair in KINDS: C (M, M), rows by names.

    "same language" too: recognition and translation of one language. Kinds without a
    pair are left out.
    """
    masks = {k: _kind(names, k) for k in KINDS}
    masks["same language"] = torch.tensor(
        [
            [a != b and a.partition("_")[2] == b.partition("_")[2] != "" for b in names]
            for a in names
        ]
    )
    return {
        kind: float(conflict(C, mask)[0])
        for kind, mask in masks.items()
        if bool(mask.triu(1).any())
    }


def _kind(names: Sequence[str], kind: str) -> Tensor:
    if kind in ("asr x st", "supervised x ssl"):
        return pairs_between(names, kind)
    task = kind.partition(" ")[0]
    own = torch.tensor([n.partition("_")[0] == task for n in names])
    return own & own[:, None]
