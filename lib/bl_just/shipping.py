"""The models of 33 that lie in data/models: from finished trials to files, and back.

`python -m lib.bl_just build` asks for seed 0 of the recorded comparison, which costs
nothing where its trials are cached, and writes two files: the explored model, from
which the notebook starts a joint phase, and the recogniser that BL-JUST makes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib.bl_just import lists
from lib.bl_just.model import Joint
from lib.bl_just.records import thinned
from lib.codebooks import RandomProjection
from lib.kit import cache
from lib.kit.checks import need
from lib.kit.manifest import DATA
from lib.kit.trials import Trial
from lib.speech.assets import ship
from lib.speech.conformer import Recogniser
from lib.speech.models import load_model, load_recogniser, save_model, sizes_of

SOURCE = "python -m lib.bl_just build"
N = 16  # labelled utterances of the recogniser
WHAT = "English of the collection's grammar, spoken by espeak-ng; of no use for others."


def explored_file() -> Path:
    """The explored model of data/. Raises CacheError where it is missing or damaged."""
    return cache.shipped("models/bl_just_explored.npz")


def recogniser_file() -> Path:
    """The recogniser of data/. Raises CacheError where it is missing or damaged."""
    return cache.shipped("models/bl_just_recogniser.npz")


class Explored(NamedTuple):
    """A model after exploration: phi is as it was drawn.

    model; label: the quantizer whose codes the lower level predicts; card: how it was
    made, with the curve of its loss.
    """

    model: Joint
    label: Callable[[Tensor], Tensor]
    card: dict[str, Any]


def load_explored(path: Path, symbols: int, tune: int = 0) -> Explored:
    """The explored model of a file.

    path: of `write_explored`; symbols: of the new CTC head, without the blank; tune:
    its seed. Raises ValueError for another file, and where this code would draw
    another quantizer than the one that made the labels.
    """
    state, card = load_model(path)
    need("quantizer" in card, f"{path.name} holds no explored model of this notebook.")
    made = card["quantizer"]
    prefix = "predictor.encoder."
    inner = {n.removeprefix(prefix): t for n, t in state.items() if prefix in n}
    size = sizes_of(inner)
    label = RandomProjection(size["features"], V=made["V"], seed=made["seed"])
    for name in ("A", "C"):
        need(
            torch.equal(
                getattr(label, name).half().float(), state[f"quantizer.{name}"]
            ),
            f"{path.name} was made with another quantizer than this code draws for "
            f"seed {made['seed']}; build it again.",
        )
    model = Joint(symbols, made["V"], made["seed"], tune, size)
    own = {n: t for n, t in state.items() if n.startswith("predictor.")}
    model.predictor.load_state_dict(
        {n.removeprefix("predictor."): t for n, t in own.items()}
    )
    return Explored(model, label, card)


def shipped_explored(symbols: int, tune: int = 0) -> Explored:
    """The explored model of data/; arguments and errors as of both functions above."""
    return load_explored(explored_file(), symbols, tune)


def shipped_recogniser() -> tuple[Recogniser, dict[str, Any]]:
    """The recogniser of data/ and its card. Errors as of `recogniser_file`."""
    return load_recogniser(recogniser_file())


# -- making them --------------------------------------------------------------------


def write_explored(path: Path, exploration: Trial, steps: int) -> None:
    """The model of a finished exploration after some steps, with card and quantizer.

    path: ends in .npz; exploration; steps: one of its marks. Raises ValueError for
    labels that come from no random projection.
    """
    s = exploration.settings
    need(s.get("labels", "best_rq") == "best_rq", "Only BEST-RQ's labels are shipped.")
    kept = torch.load(exploration.folder / f"at_{steps}.pt", weights_only=True)
    state = {n: t for n, t in kept["model"].items() if n.startswith("predictor.")}
    V, seed = s.get("V", 64), s["seed"]
    features = state["predictor.encoder.input.0.weight"].shape[1]
    drawn = RandomProjection(features, V=V, seed=seed)
    state |= {"quantizer.A": drawn.A, "quantizer.C": drawn.C}
    card = {
        "what": f"Encoder and head of masked prediction after exploration. {WHAT}",
        "steps": steps,
        "of": s.get("steps", 600),
        "quantizer": {"kind": "random projection", "V": V, "seed": seed},
        "settings": s,
        "loss": thinned(kept["history"]["ssl"][:steps], 45),
        "cpu seconds of all steps": exploration.result["seconds"]["first"],
    }
    save_model(path, state, card)


def write_recogniser(path: Path, trial: Trial) -> None:
    """The recogniser of a finished `training`, with its error rates."""
    state = torch.load(trial.folder / "recogniser.pt", weights_only=True)
    card = {
        "what": f"A recogniser of phones with CTC. {WHAT}",
        "settings": trial.settings,
        **{name: trial.result[name] for name in ("per", "wer", "counted", "end")},
    }
    save_model(path, state, card)


def build(folder: Path = DATA, seed: int = 0, **how: Any) -> None:
    """Write both models, the page of all, and enter them in the manifest.

    folder: data/; seed: of the comparison; how: of `trials`.
    """
    where = lists.where_of(lists.CHOSEN)
    first = lists.explorations([lists.TUNING_SEED, seed], where, **how)
    tuned = lists.grid(where, first[0].key, N) + lists.second(where, first[0].key, N)
    chosen = lists.best(lists.run(tuned, **how))
    asked = lists.comparison(
        where, {seed: first[1].key}, {"bl_just": chosen["bl_just"]}, ns=(N,)
    )[:1]
    (trained,) = lists.run(asked, **how)
    models = {
        "bl_just_explored": lambda path: write_explored(
            path, first[1], lists.SHARES[-1]
        ),
        "bl_just_recogniser": lambda path: write_recogniser(path, trained),
    }
    ship(models, SOURCE, folder)
