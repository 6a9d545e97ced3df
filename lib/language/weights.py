"""Models as files: bfloat16 weights in safetensors, with a card of how they were made.

The rounded weights, computed with in float32, are the model. The same model gives the
same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.kit.cache import shipped
from lib.kit.checks import choice, need
from lib.kit.manifest import DATA, LICENCE
from lib.language.transformer import Sizes, Transformer

FORMAT = 1  # of the card
CARD = "card"  # its name in the file's metadata
WHAT = "a language model"
SHIPPED = {
    "target": "language/target.safetensors",
    "draft": "language/draft.safetensors",
}


def rounded(model: Transformer) -> Transformer:
    """Round a model's weights to bfloat16 in place: what `save_model` will write."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16).to(p.dtype))
    return model


def write_rounded(path: str | Path, model: nn.Module, card: Mapping[str, Any]) -> None:
    """Write any model's weights as bfloat16, and a card beside them.

    path: ends in .safetensors; model; card: plain data. The same model and card give
    the same bytes. Raises ValueError for another ending and weights that are not
    finite.
    """
    from safetensors.torch import save_file

    path = Path(path)
    need(
        path.suffix == ".safetensors",
        f"{path.name} does not end in .safetensors; give such a name.",
    )
    state = {
        name: part.detach().cpu().to(torch.bfloat16).contiguous()
        for name, part in model.state_dict().items()
    }
    bad = [name for name, part in state.items() if not bool(part.isfinite().all())]
    need(
        not bad, f"The weights {', '.join(bad[:3])} are not finite; train with less lr."
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(card), ensure_ascii=False, sort_keys=True)
    save_file(state, path, metadata={CARD: text})


def read_rounded(
    path: str | Path, what: str, keys: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the card of a file of `write_rounded`.

    what: it should hold, for the message; keys: that its card must have, "format" is
    always one. Raises ValueError for a file that is missing, cannot be read, or is of
    another format.
    """
    from safetensors import safe_open

    name = Path(path).name
    need(Path(path).is_file(), f"There is no file {path}; give {what}'s file.")
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {})[CARD])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        missing = {"format", *keys} - set(card)
    except Exception as error:  # safetensors and json raise many kinds
        raise ValueError(
            f"{name} cannot be read as {what} ({type(error).__name__}); restore or "
            "train it again."
        ) from None
    need(
        not missing,
        f"{name} cannot be read as {what}: its card has no "
        f"{', '.join(sorted(missing))}.",
    )
    found = card["format"]
    need(found == FORMAT, f"{name} has format {found}; this code reads {FORMAT}.")
    return state, card


def filled(model: nn.Module, state: dict[str, Tensor], name: str) -> nn.Module:
    """A model with the weights of a file. Raises ValueError where they do not fit."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{name} does not fit its card: {str(error).splitlines()[-1].strip()}"
        ) from None
    return model.eval().requires_grad_(False)


def save_model(path: str | Path, model: Transformer, card: Mapping[str, Any]) -> None:
    """Write weights as bfloat16 and a card.

    path: ends in .safetensors; model; card: plain data, what made the model and what it
    can do. Raises ValueError as `write_rounded`.
    """
    about = {"format": FORMAT, "licence": LICENCE, "sizes": model.about()}
    write_rounded(path, model, about | dict(card))


def load_model(
    path: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[Transformer, dict[str, Any]]:
    """A model and its card, from a file of `save_model`.

    dtype: to compute in, float32 or float64. Raises ValueError for a file that is
    missing, cannot be read or is of another kind.
    """
    name, (state, card) = Path(path).name, read_rounded(path, WHAT, {"sizes"})
    try:
        sizes = Sizes(**card["sizes"])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be read as {WHAT}: its sizes are {card['sizes']} ({error})."
        ) from None
    return filled(Transformer(sizes), state, name).to(dtype), card


def shipped_model(
    name: str, dtype: torch.dtype = torch.float32, folder: Path = DATA
) -> tuple[Transformer, dict[str, Any]]:
    """A shipped model, "target" or "draft", and its card, after its checksum.

    Raises ValueError for another name, CacheError for a damaged file.
    """
    choice("A shipped model", name, SHIPPED)
    return load_model(shipped(SHIPPED[name], folder), dtype)
