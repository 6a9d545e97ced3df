"""The trials of 34 at any size: sources that are corpora by their names, on a device.

`study` and `judging` stay as the recorded comparison ran them; these take real speech
too, more codes, a larger encoder and a GPU. Training is theirs, so an arm is the same
arm; a model is judged where it was trained, on a few utterances, on the CPU.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.codebooks import KMeans, RandomProjection
from lib.kit.checkpoints import mixed
from lib.kit.checks import choice, need
from lib.kit.launching import data_parallel
from lib.local_constraints.constraint import Arm, step_advice
from lib.local_constraints.learning import SHARED, learn
from lib.local_constraints.measures import adaptation, curvature
from lib.local_constraints.sources import Labels, World
from lib.local_constraints.study import MODEL, summary
from lib.speech.batches import Batch, Stream, in_order, padded
from lib.speech.conformer import Conformer, Recogniser
from lib.speech.corpus import Corpus
from lib.speech.masking import seeded
from lib.speech.pretraining import Predictor
from lib.speech.recipes import device_of
from lib.speech.recognition import FINE_TUNE, SCRATCH, error_rate, fine_tune, recognise
from lib.speech.recordings import corpus_of

AFTER = (0, 1, 3, 10, 30)  # SGD steps on the held-out speech
RATES = (0.03, 0.1)


def gathered(corpora: Sequence[str]) -> World:
    """The sources and the held-out speech of corpora by name.

    corpora: "name=corpus", e.g. "en=librispeech:/data/LibriSpeech", with a corpus as
    `lib.speech.recordings.corpus_of` takes it; the last is held out. Raises ValueError
    for fewer than two or an entry of another form, SpeechError where one is missing.
    """
    pairs = [entry.partition("=") for entry in corpora]
    need(
        len(pairs) > 1 and all(name and where for name, _, where in pairs),
        f"The corpora are {', '.join(corpora) or 'none'}; give two or more entries "
        "such as en=librispeech:/data/LibriSpeech, the held-out one last.",
    )
    whole = {name: corpus_of(where) for name, _, where in pairs}
    need(len(whole) == len(pairs), "Two of the corpora have one name.")
    *names, held_out = whole
    own = whole[held_out]
    return World(
        sources={name: whole[name].select(split="unlabelled") for name in names},
        unseen={name: whole[name].select(split="test") for name in names},
        held_out=held_out,
        adapt=own.select(split="unlabelled"),
        labelled=own.select(split="labelled"),
        test=own.select(split="test"),
    )


def labelling(kind: str, parts: World, V: int, seed: int) -> Labels:
    """One codebook of V codes for all sources: "best_rq" or "kmeans".

    parts: the sources; seed. Raises ValueError for another kind.
    """
    choice("labels", kind, ("best_rq", "kmeans"))
    d = next(iter(parts.sources.values())).features.shape[1]
    quantizer: Any = RandomProjection(d, V=V, seed=seed)
    if kind == "kmeans":
        share = 20 * V // len(parts.sources)
        pool = [some(corpus, share) for corpus in parts.sources.values()]
        rows = torch.from_numpy(np.concatenate(pool))
        quantizer = KMeans(V, iterations=15, seed=seed, start="rows").fit(rows)
    return lambda name, x: quantizer(x)


def some(corpus: Corpus, frames: int) -> np.ndarray:
    """About so many frames of a corpus, from utterances spread over it: (n, d)."""
    number = max(1, round(len(corpus) * frames / int(corpus.lengths.sum())))
    chosen = np.linspace(0, len(corpus) - 1, min(number, len(corpus))).astype(int)
    return corpus.take(np.unique(chosen)).all_features()


@data_parallel
def pretraining(
    folder: Path,
    *,
    corpora: Sequence[str],
    seed: int,
    gradients: int,
    source: str = "",
    arm: str = "mixing",
    K: int = 0,
    alpha: float = 0.0,
    device: str = "auto",
    processes: int = 1,  # for `data_parallel`
    lr: float = 1e-3,
    labels: str = "best_rq",
    V: int = 64,
    frames: int = 800,
    sizes: Mapping[str, Any] | None = None,
    judged: int = 40,
    every: int = 200,
) -> dict[str, Any]:
    """One arm on corpora by name, from random weights or from another's end; judged.

    folder: gets predictor.pt; corpora: of `gathered`; source: key of another of these
    trials, "" for random weights; seed, gradients, arm, K, alpha, lr: as of
    `study.pretraining`; device; labels, V, frames, sizes (arguments of `Conformer`):
    taken from the source where there is one; judged: utterances of each part that is
    asked; every: steps between checkpoints; processes: each with batches of its own,
    one model. Returns what `study.pretraining` and `judging.judging` do, the probe
    aside. Raises ValueError, SpeechError.
    """
    began, parts = time.process_time(), gathered(corpora)
    about: dict[str, Any] = {"corpora": list(corpora), "seed": seed, "labels": labels}
    about |= {"V": V, "frames": frames, "sizes": dict(sizes or {})}
    advice, state = "", None
    if source:
        state, about, advice = begun(folder.parent / source, about, alpha * (K > 0))
    first = next(iter(parts.sources.values()))
    with seeded(mixed(seed, 1), "weights"):
        encoder = Conformer(**({"features": first.features.shape[1]} | about["sizes"]))
        model = Predictor(encoder, {SHARED: about["V"]})
    if state:
        model.load_state_dict(state)
    quantizer = labelling(about["labels"], parts, about["V"], about["seed"])
    place = device_of(device)
    learner, _ = learn(
        model.to(place),
        parts.sources,
        quantizer,
        Arm(arm, K, alpha),
        gradients,
        lr=lr,
        frames=about["frames"],
        seed=mixed(seed, 4 if source else 2),
        prepare=partial(onto, place),
        path=folder / "run.pt",
        every=every,
        settings={"about": json.dumps(about), "source": source},
    )
    spent = time.process_time() - began
    model.cpu()
    torch.save({"predictor": model.state_dict(), "about": about}, folder / MODEL)
    steps = len(learner.log)
    return {
        "outer_steps": steps,
        "gradients": gradients,
        "cpu_s": spent,
        "log": summary(learner),
        "advice": advice,
        **asked(model, parts, quantizer, judged, alpha or 0.05),
    }


def begun(
    place: Path, about: Mapping[str, Any], alpha: float
) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Weights and settings of the trial that another starts from, and advice on alpha.

    place: its folder; about: of the other, for seed and corpora. Raises ValueError
    where these differ.
    """
    kept = torch.load(place / MODEL, weights_only=True)
    found = kept["about"]
    for name in ("corpora", "seed"):
        need(
            found[name] == about[name],
            f"The start {place.name} has {name} {found[name]}, not {about[name]}; give "
            "the start that belongs to this arm.",
        )
    result = json.loads((place / "result.json").read_text("utf-8"))["result"]
    curves = [result["curvature"][n] for n in result["sources"]]
    return kept["predictor"], found, step_advice(alpha, max(curves)) if alpha else ""


def onto(place: torch.device, given: Mapping[str, Any], _: Any) -> dict[str, Any]:
    """The batches of an outer step on a device."""
    return {
        name: value
        if name == "step"
        else [(batch.to(place), labels.to(place)) for batch, labels in value]
        for name, value in given.items()
    }


def asked(
    model: Predictor, parts: World, labels: Labels, number: int, alpha: float
) -> dict[str, Any]:
    """What `judging.judging` asks, on a few utterances, without the probe."""

    def few(corpus: Corpus) -> Corpus:
        return corpus.take(np.arange(min(number, len(corpus))))

    test, adapt = few(parts.test), parts.adapt
    held = {
        f"{rate:g}": adaptation(
            model, adapt, test, labels, parts.held_out, rate=rate, after=AFTER
        )
        for rate in RATES
    }
    own = {
        name: adaptation(
            model,
            corpus,
            few(parts.unseen[name]),
            labels,
            name,
            rate=alpha,
            after=(0, 1, 2, 3),
        )
        for name, corpus in parts.sources.items()
    }
    every = parts.sources | {parts.held_out: parts.adapt}
    curves = {n: curvature(model, corpus, labels, n) for n, corpus in every.items()}
    return {
        "sources": own,
        "held_out": held,
        "after": list(AFTER),
        "curvature": curves,
        "probe": None,
    }


def adapting(
    folder: Path,
    *,
    corpora: Sequence[str],
    source: str,
    n: int,
    subset: int,
    seed: int,
    steps: int = 300,
    frames: int = 1000,
    device: str = "auto",
    sizes: Mapping[str, Any] | None = None,
    every: int = 100,
) -> dict[str, Any]:
    """Few-shot CTC on the held-out corpus, as `judging.adapting`, on a device.

    corpora: of `gathered`; source: key of `pretraining`, "" for random weights of
    `sizes`; frames: of a batch of the n utterances; the rest as there. "per" is the
    error rate of the corpus's symbols, characters where it is real. Raises ValueError,
    SpeechError.
    """
    began, place, parts = time.process_time(), device_of(device), gathered(corpora)
    state: dict[str, Tensor] = {}
    if source:
        kept = torch.load(folder.parent / source / MODEL, weights_only=True)
        prefix, sizes = "encoder.", kept["about"]["sizes"]
        whole = kept["predictor"].items()
        state = {k.removeprefix(prefix): t for k, t in whole if k.startswith(prefix)}
    with seeded(mixed(seed, 5), "weights"):
        wide = {"features": parts.labelled.features.shape[1]}
        encoder = Conformer(**(wide | dict(sizes or {})))
    if state:
        encoder.load_state_dict(state)
    with seeded(seed, "head"):
        model = Recogniser(encoder, len(parts.labelled.vocabulary) - 1).to(place)
    tuning = FINE_TUNE if source else SCRATCH
    tuning = replace(tuning, recipe=replace(tuning.recipe, steps=steps))
    pool = parts.labelled.labelled(n, subset)
    stream = Stream(pool.lengths, frames, mixed(seed, 7))

    def batch(step: int) -> Batch:
        return padded(pool, stream.at(step)).to(place)

    history = fine_tune(
        model,
        batch,
        tuning,
        seed=mixed(seed, 6),
        path=folder / "run.pt",
        every=every,
        settings={"source": source, "n": n, "subset": subset},
    )
    heard = recognise(model, in_order(parts.test, device=str(place)))
    said = [list(parts.test[i].target) for i in range(len(parts.test))]
    rate = error_rate(said, heard)
    return {
        "per": rate.rate,
        "symbols": rate.symbols,
        "ctc": float(np.mean(history["ctc"][-10:])),
        "cpu_s": time.process_time() - began,
    }
