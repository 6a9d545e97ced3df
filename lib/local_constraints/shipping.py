"""The two models of 34 that lie in data/: from trials to files, and back.

`python -m lib.local_constraints build` asks `lib.kit.trials` for their trials, which
costs nothing where they are cached and minutes where they are not.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib.codebooks import KMeans
from lib.kit import cache
from lib.kit.manifest import DATA
from lib.kit.trials import Trial, trials
from lib.local_constraints.judging import adapting
from lib.local_constraints.learning import predictor
from lib.local_constraints.lists import MIXING, PAIRS, comparison
from lib.local_constraints.sources import CODES, Labels
from lib.local_constraints.study import MODEL, asked, pretraining, starting
from lib.speech.assets import ship
from lib.speech.conformer import Recogniser
from lib.speech.models import load_model, load_recogniser, save_model
from lib.speech.pretraining import Predictor

START, RECOGNISER = "local_constraints_start", "local_constraints_recogniser"
SETTING = "noise"
HEARS = PAIRS[2]  # labelled subset and fine-tuning seed of the recogniser
CHOSEN = {"alpha": 0.0}  # of its mixing arm, which goes on at the default rate
LABELS = "labels.codes"  # beside the weights of the predictor
SOURCE = "python -m lib.local_constraints build"


class Start(NamedTuple):
    """The common start of all arms: its model, the labels it was taught, its card."""

    model: Predictor
    labels: Labels
    card: dict[str, Any]


def shipped_start() -> Start:
    """The start of seed 0. Raises CacheError for a file that is missing or damaged."""
    return start_of(cache.shipped("models/local_constraints_start.npz"))


def shipped_recogniser() -> tuple[Recogniser, dict[str, Any]]:
    """A recogniser of loud speech, and its card with the symbols. Errors as above."""
    return load_recogniser(cache.shipped("models/local_constraints_recogniser.npz"))


def start_of(path: Path) -> Start:
    """A start from its file. Raises ValueError for a file of another kind."""
    state, card = load_model(path)
    codes = state.pop(LABELS)
    made = card["made by"]
    model = predictor(made["sources"], **{n: made[n] for n in ("d", "blocks", "heads")})
    model.load_state_dict(state)
    quantizer = KMeans(len(codes))
    quantizer.codes = codes
    return Start(model, lambda name, x: quantizer(x), card)


def codes_of(labels: Labels) -> Tensor:
    """The codebook behind `labels_of("kmeans")`: (CODES, features)."""
    return inspect.getclosurevars(labels).nonlocals["quantizer"].codes


def build(folder: Path = DATA) -> None:
    """Write both models, the page of all, and enter them in the manifest.

    folder: data/, or another that holds a manifest.json. Errors as of `trials`.
    """
    wanted = comparison(SETTING, seeds=(0,), chosen={MIXING: CHOSEN})
    (start,) = trials(starting, wanted.starts)
    (arm,) = trials(pretraining, wanted.arms)
    subset, tune = HEARS
    (chosen,) = [
        s
        for s in wanted.adapted
        if (s["source"], s["subset"], s["seed"]) == (arm.key, subset, tune)
    ]
    (heard,) = trials(adapting, [chosen])
    models = {
        START: lambda path: write_start(path, start),
        RECOGNISER: lambda path: write_recogniser(path, heard, start),
    }
    ship(models, SOURCE, folder)


def write_start(path: Path, start: Trial) -> None:
    """The start of a trial as a file.

    path: ends in .npz; start: of `starting` with k-means labels.
    """
    kept = torch.load(start.folder / MODEL, weights_only=True)
    about = kept["about"]
    _, labels = asked(about)
    state = kept["predictor"] | {LABELS: codes_of(labels)}
    card = {
        "what": "A conformer encoder with a head that predicts masked k-means labels, "
        "pre-trained without transcripts on synthetic speech in three kinds of noise: "
        "for the notebooks, of no use for real speech.",
        "made by": about | {"gradients": start.result["gradients"]},
        "codes": CODES,
    }
    save_model(path, state, card)


def write_recogniser(path: Path, heard: Trial, start: Trial) -> None:
    """The recogniser of a trial as a file.

    path: ends in .npz; heard: of `adapting`; start: behind its encoder.
    """
    kept = torch.load(start.folder / MODEL, weights_only=True)
    parts, _ = asked(kept["about"] | {"labels": "best_rq"})  # no labels are needed
    state = torch.load(heard.folder / "run.pt", weights_only=True)["model"]
    card = {
        "what": "A recogniser of phones in loud noise: an encoder pre-trained on other "
        "noise, fine-tuned with CTC on four utterances of synthetic English speech; of "
        "no use for real speech.",
        "pre-trained by": kept["about"],
        "fine-tuned by": heard.settings,
        "phone error rate on new speakers": heard.result["per"],
        "symbols": list(parts.labelled.vocabulary.symbols),
    }
    save_model(path, state, card)
