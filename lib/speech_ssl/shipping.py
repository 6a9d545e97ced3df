"""The trained models of 32 that lie in data/: from trials to files, and back.

`python -m lib.speech_ssl build` asks `lib.kit.trials` for the trials below, which costs
nothing where they are cached and minutes where they are not, and writes their weights
as float16 with cards.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from lib.kit import cache
from lib.kit.checks import choice
from lib.kit.manifest import DATA
from lib.kit.trials import Trial, trials
from lib.speech.assets import ship
from lib.speech.conformer import Conformer, Recogniser
from lib.speech.models import load_encoder, load_recogniser, save_model
from lib.speech_ssl.adaptation import RECOGNISER, adapting
from lib.speech_ssl.runs import ENCODER, corpus_of
from lib.speech_ssl.study import pretraining

SOURCE = "python -m lib.speech_ssl build"
# What is shipped: the pre-training of each encoder, and of the recogniser both stages.
SHIPPED: dict[str, dict[str, Any]] = {
    "best_rq": {"arm": "best_rq", "seed": 0, "steps": 600},
    "kmeans": {"arm": "kmeans", "seed": 0, "steps": 600},
}
HEARS = {"source": "kmeans", "n": 8, "subset": 0, "seed": 0, "keep": True}

FILES = {
    "best_rq": lambda: cache.shipped("models/speech_ssl_best_rq.npz"),
    "kmeans": lambda: cache.shipped("models/speech_ssl_kmeans.npz"),
    "recogniser": lambda: cache.shipped("models/speech_ssl_recogniser.npz"),
}


def shipped_encoder(name: str) -> tuple[Conformer, dict[str, Any]]:
    """An encoder that comes with the collection, and its card.

    name: an arm of SHIPPED. Raises ValueError for another, CacheError for a file that
    is missing or damaged.
    """
    choice("The encoder", name, SHIPPED)
    return load_encoder(FILES[name]())


def shipped_recogniser() -> tuple[Recogniser, dict[str, Any]]:
    """The recogniser that comes with the collection, and its card with the symbols."""
    return load_recogniser(FILES["recogniser"]())


def card_of(trial: Trial) -> dict[str, Any]:
    """The card of a pre-trained encoder: what made it, and what was measured."""
    settings, result = trial.settings, trial.result
    top = result["layers"][-1]
    return {
        "what": "A conformer encoder of 40 ms frames, pre-trained without labels on "
        "synthetic English speech: for the notebooks, of no use for real speech.",
        "made by": settings,
        "corpus": {"utterances": result["utterances"], "sha256": result["corpus"]},
        "phones known by a linear probe": top["probe"],
        "pnmi of its labels": result["own"] and result["own"]["pnmi"],
    }


def recogniser_card(trial: Trial, encoder: Trial) -> dict[str, Any]:
    """The card of a fine-tuned recogniser, with the symbols that it writes."""
    symbols = corpus_of(trial.settings.get("corpus")).vocabulary.symbols
    errors = {"phones": trial.result["per"], "words": trial.result["wer"]}
    return card_of(encoder) | {
        "what": "A recogniser of phones: the encoder below, fine-tuned with CTC on few "
        "utterances of synthetic English speech; of no use for real speech.",
        "fine-tuned by": trial.settings,
        "error rates on new speakers": errors,
        "symbols": list(symbols),
    }


def build(folder: Path = DATA) -> None:
    """Write the shipped models, their page, and enter them in the manifest.

    folder: data/, or another that holds a manifest.json. Errors as of `trials`.
    """
    done = dict(zip(SHIPPED, trials(pretraining, list(SHIPPED.values()))))
    encoder = done[HEARS["source"]]
    (heard,) = trials(adapting, [HEARS | {"source": encoder.key}])
    models = {
        f"speech_ssl_{name}": partial(_write, trial.folder / ENCODER, card_of(trial))
        for name, trial in done.items()
    }
    models["speech_ssl_recogniser"] = partial(
        _write, heard.folder / RECOGNISER, recogniser_card(heard, encoder)
    )
    ship(models, SOURCE, folder)


def _write(weights: Path, card: dict[str, Any], path: Path) -> None:
    save_model(path, torch.load(weights, weights_only=True), card)
