"""The two trials of 32 at any size: a corpus by its name, on a device.

`study.pretraining` and `adaptation.adapting` for the recorded comparison stay as they
are; these take real speech too, whose phones nobody knows, and a GPU. On several GPUs
pre-training is data-parallel, with frames of a batch on each; fine-tuning, on few
utterances, has one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.kit.launching import data_parallel
from lib.speech.batches import Batch, Stream, in_order, padded
from lib.speech.conformer import Conformer, Recogniser
from lib.speech.corpus import Corpus
from lib.speech.masking import seeded
from lib.speech.models import encoder_of
from lib.speech.recipes import device_of
from lib.speech.recognition import (
    FINE_TUNE,
    SCRATCH,
    error_rate,
    fine_tune,
    recognise,
)
from lib.speech.recordings import corpus_of
from lib.speech_ssl.adaptation import FULL, SHOWN
from lib.speech_ssl.arms import make
from lib.speech_ssl.judging import JUDGED, Watch, layers, quality_of
from lib.speech_ssl.runs import ENCODER, peak_memory, thinned
from lib.speech_ssl.task import Arm, Task, pretrain


@data_parallel
def pretraining(
    folder: Path,
    *,
    corpus: str,
    arm: str,
    seed: int,
    steps: int,
    device: str = "auto",
    processes: int = 1,  # for `data_parallel`
    lr: float = 2e-3,
    options: Mapping[str, Any] | None = None,
    sizes: Mapping[str, Any] | None = None,
    V: int = 64,
    frames: int = 1000,
    points: int = 10,
) -> dict[str, Any]:
    """Pre-train an encoder with one arm on a corpus by its name.

    corpus: see `lib.speech.recordings.corpus_of`; device; processes: each with batches
    of its own, one model; the rest as of `study.pretraining`, and so is the result;
    labels and layers are judged where the corpus has an alignment, else "layers" is
    empty. Raises ValueError for settings,
    SpeechError where the corpus is not there.
    """
    speech, place = corpus_of(corpus), str(device_of(device))
    pool = speech.select(split="unlabelled")
    task = Task(pool, steps, seed, V, dict(sizes or {}), frames=frames, device=place)
    begun = time.process_time()
    made = make(task, arm, options)
    watch = made.model.watch = Watch(task, made, points).to(place)
    labelled = time.process_time() - begun
    watch.start()
    path, how = folder / "run.pt", {"arm": arm, "options": dict(options or {})}
    history = pretrain(
        task, made, lr, after=watch.look, path=str(path), every=500, settings=how
    )
    found = judged(task, made, speech)
    torch.save(made.model.encoder.cpu().state_dict(), folder / ENCODER)
    path.unlink()
    training, watching = watch.seconds.tolist()
    return {
        "history": thinned(history),
        "trace": watch.table(),
        **found,
        "seconds": {"labels": labelled, "training": training, "watching": watching},
        "memory": peak_memory(),
        "parameters": sum(p.numel() for p in made.model.encoder.parameters()),
        "utterances": len(pool),
        "corpus": corpus,
    }


def judged(task: Task, arm: Arm, speech: Corpus) -> dict[str, Any]:
    """What labels and layers know about phones, where the phones are known.

    Returns "anchor", "own" (None where unknown) and "layers" (empty where unknown).
    """
    if speech.alignment is None:
        return {"anchor": None, "own": None, "layers": []}
    some = task.pool.take(np.arange(min(JUDGED, len(task.pool))))
    asked = {"anchor": getattr(arm.model, "anchor_labels", None), "own": arm.labels}
    found: dict[str, Any] = {
        name: label and quality_of(label, some, task.device)._asdict()
        for name, label in asked.items()
    }
    test = speech.select(split="test")
    return found | {"layers": layers(task, arm.model.encoder, test)}


def adapting(
    folder: Path,
    *,
    corpus: str,
    source: str,
    n: int,
    subset: int,
    seed: int,
    device: str = "auto",
    steps: int = 300,
    frames: int = 1000,
    sizes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fine-tune an encoder with CTC on n utterances of a corpus by its name.

    Arguments as of `adaptation.adapting`, and so is the result: "per" is the error
    rate of the corpus's symbols (characters of a real one), "wer" that of the words
    that they spell. Raises ValueError for settings, SpeechError for the corpus.
    """
    speech, place = corpus_of(corpus), device_of(device)
    if source:
        state = torch.load(folder.parent / source / ENCODER, weights_only=True)
        encoder = encoder_of(state)
    else:
        with seeded(seed, "encoder"):
            values = {"features": speech.features.shape[1]}
            encoder = Conformer(**(values | dict(sizes or {})))
    with seeded(seed, "output"):
        model = Recogniser(encoder, len(speech.vocabulary) - 1).to(place)
    chosen = FINE_TUNE if source else SCRATCH
    tuning = replace(chosen, recipe=replace(chosen.recipe, steps=steps))
    begun = time.process_time()
    batches = batches_of(speech.labelled(n, subset), frames, seed, str(place))
    history = fine_tune(model, batches, tuning, seed=seed)
    trained = time.process_time() - begun
    test = speech.select(split="test")
    heard = recognise(model, in_order(test, device=str(place)))
    return {
        **errors_of(test, heard),
        "history": thinned(history),
        "seconds": {"training": trained, "all": time.process_time() - begun},
    }


def batches_of(
    labelled: Corpus, frames: int, seed: int, device: str
) -> Callable[[int], Batch]:
    """All labelled utterances in every step, or where they are many some."""
    if len(labelled) <= FULL:
        whole = padded(labelled, None, device)
        return lambda step: whole
    stream = Stream(labelled.lengths, frames, seed)
    return lambda step: padded(labelled, stream.at(step), device)


def errors_of(test: Corpus, heard: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Error rates of what was heard in a test set, and the first utterances.

    "per" counts symbols; "wer" the words of characters, and nan for phones, which need
    a lexicon to be words.
    """
    vocabulary = test.vocabulary
    said = [vocabulary.decode(u.target) for u in test]
    guess = [vocabulary.decode(h) for h in heard]
    errors = error_rate([u.target.tolist() for u in test], heard)
    words = float("nan")
    if vocabulary.units == "characters":
        words = error_rate(*([t.split() for t in row] for row in (said, guess))).rate
    shown = [{"id": u.id, "text": t, "heard": g} for u, t, g in zip(test, said, guess)][
        :SHOWN
    ]
    return {"per": errors.rate, "wer": words, "heard": shown}
