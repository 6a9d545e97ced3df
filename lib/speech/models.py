"""Trained models as small files: float16 weights with a card of how they were made.

One .npz holds the weights by name and the card as JSON; the same model gives the same
bytes. `load_encoder` and `load_recogniser` rebuild the module from the weights alone:
its sizes show in their shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lib.kit.checks import need
from lib.kit.manifest import LICENCE
from lib.speech.conformer import Conformer, Recogniser

FORMAT = 1  # of the file
CARD = "card"  # its name in the file


class Kept(NamedTuple):
    """What a file holds: the weights by name, float32, and the card."""

    state: dict[str, Tensor]
    card: dict[str, Any]


def save_model(
    path: str | Path, state: Mapping[str, Tensor], card: Mapping[str, Any]
) -> None:
    """Write weights as float16 and a card; the same model gives the same bytes.

    path: ends in .npz; state: of `state_dict()`; card: plain data, what made the model
    and what it can do. Raises ValueError for weights that float16 cannot hold.
    """
    need(str(path).endswith(".npz"), f"{Path(path).name} does not end in .npz.")
    arrays = {name: part.detach().cpu().half().numpy() for name, part in state.items()}
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    need(
        not bad,
        f"The weights {', '.join(bad[:3])} are not finite as float16; train with less "
        "lr.",
    )
    about = {"format": FORMAT, "licence": LICENCE} | dict(card)
    text = json.dumps(about, ensure_ascii=False, sort_keys=True).encode()
    np.savez_compressed(path, **arrays, **{CARD: np.frombuffer(text, np.uint8)})


def load_model(path: str | Path) -> Kept:
    """Read a file that `save_model` wrote.

    Raises ValueError for a file that cannot be read or is of another kind.
    """
    try:
        with open(path, "rb") as handle:  # numpy leaves it open on an error
            arrays = dict(np.load(handle, allow_pickle=False))
        card = json.loads(arrays.pop(CARD).tobytes())
        found = card["format"]
    except Exception as error:  # zip, numpy and json raise many kinds
        raise ValueError(
            f"{Path(path).name} cannot be read as a model ({type(error).__name__}); "
            "restore or build it again."
        ) from None
    need(
        found == FORMAT,
        f"{Path(path).name} has format {found}; this code reads {FORMAT}.",
    )
    return Kept({n: torch.from_numpy(a).float() for n, a in arrays.items()}, card)


def sizes_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes of the `Conformer` whose weights these are.

    Raises ValueError where they are of something else.
    """
    try:
        d, features = state["input.0.weight"].shape
        heads, distances = state["blocks.0.1.distance"].shape
        blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
        ff = state["blocks.0.0.up.weight"].shape[0] // d
        kernel = state["blocks.0.2.depthwise.weight"].shape[-1]
    except KeyError as error:
        raise ValueError(
            f"These are not the weights of a conformer: {error} is missing."
        ) from None
    sizes = {"features": features, "d": d, "blocks": len(blocks), "heads": heads}
    return sizes | {"ff": ff, "kernel": kernel, "clip": distances // 2}


def encoder_of(state: Mapping[str, Tensor], **options: Any) -> Conformer:
    """The encoder with these weights.

    state: of a `Conformer`; options: what does not show in them, dropout and block.
    Raises ValueError for other weights.
    """
    return _filled(Conformer(**(sizes_of(state) | options)), state)


def recogniser_of(state: Mapping[str, Tensor], **options: Any) -> Recogniser:
    """The recogniser with these weights; arguments as of `encoder_of`."""
    prefix = "encoder."
    inner = {n.removeprefix(prefix): t for n, t in state.items() if prefix in n}
    sizes = sizes_of(inner) | options
    need("out.weight" in state, "These weights have no output layer to recognise with.")
    symbols = state["out.weight"].shape[0] - 1
    model = Recogniser(Conformer(**sizes), symbols, "back.weight" in state)
    return _filled(model, state)


def _filled(model: nn.Module, state: Mapping[str, Tensor]) -> Any:
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ValueError(
            f"The weights do not fit the model: {str(error).splitlines()[-1].strip()}"
        ) from None
    return model


def load_encoder(path: str | Path, **options: Any) -> tuple[Conformer, dict[str, Any]]:
    """An encoder and its card, from a file of `save_model`. Errors as of both."""
    kept = load_model(path)
    return encoder_of(kept.state, **options), kept.card


def load_recogniser(
    path: str | Path, **options: Any
) -> tuple[Recogniser, dict[str, Any]]:
    """A recogniser and its card, from a file of `save_model`. Errors as of both."""
    kept = load_model(path)
    return recogniser_of(kept.state, **options), kept.card
