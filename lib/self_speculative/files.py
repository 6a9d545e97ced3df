"""Heads and adapters as files: bfloat16 weights in safetensors, with a card.

The rounded weights are the head, as in `lib.language.weights`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.kit.cache import shipped
from lib.kit.checks import choice, need
from lib.kit.manifest import DATA, LICENCE, enter
from lib.language import Transformer
from lib.language.weights import CARD
from lib.self_speculative.heads import Adapter, Eagle, Head, Medusa, Recurrent
from lib.self_speculative.masks import Masks
from lib.speech.assets import card_page

FORMAT = 1  # of the card
FOLDER, PAGE = "heads", "README.md"
SHIPPED = {
    "adapter": "heads/adapter.safetensors",
    "eagle": "heads/eagle.safetensors",
    "masks": "heads/masks.safetensors",
    "medusa": "heads/medusa.safetensors",
    "recurrent": "heads/recurrent.safetensors",
}
HEAD = (
    "# Heads for data/language/target.safetensors\n\nGenerated from the files; read by "
    "`lib.self_speculative`."
)
KINDS = {part.kind: part for part in (Adapter, Eagle, Masks, Medusa, Recurrent)}


def save_head(path: str | Path, head: Head, card: Mapping[str, Any]) -> None:
    """Write a head's weights as bfloat16 and a card.

    path: ends in .safetensors; head; card: plain data, what made it, on which model,
    and what it can do. Raises ValueError for another ending and weights that are not
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
        for name, part in head.state_dict().items()
    }
    bad = [name for name, part in state.items() if not bool(part.isfinite().all())]
    need(
        not bad, f"The weights {', '.join(bad[:3])} are not finite; train with less lr."
    )
    about = {"format": FORMAT, "licence": LICENCE, "kind": head.kind}
    about |= {"made": head.about(), "d": head.d, "vocab": head.vocab}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(about | dict(card), ensure_ascii=False, sort_keys=True)
    save_file(state, path, metadata={CARD: text})


def read_head(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the card of a head's file. Raises ValueError."""
    from safetensors import safe_open

    name = Path(path).name
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {})[CARD])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        missing = {"format", "kind", "made", "d", "vocab"} - set(card)
    except Exception as error:  # safetensors and json raise many kinds
        raise ValueError(
            f"{name} cannot be read as a head ({type(error).__name__}); restore or "
            "train it again."
        ) from None
    need(
        not missing,
        f"{name} cannot be read as a head: its card has no "
        f"{', '.join(sorted(missing))}.",
    )
    found = card["format"]
    need(found == FORMAT, f"{name} has format {found}; this code reads {FORMAT}.")
    return state, card


def load_head(path: str | Path, model: Transformer) -> tuple[Head, dict[str, Any]]:
    """A head for a model and its card, from a file of `save_head`.

    model: gives width, tokens and dtype. Raises ValueError for a file that cannot be
    read, is of another kind, or was made for another model.
    """
    name, (state, card) = Path(path).name, read_head(path)
    kind, made, own = card["kind"], card["made"], (card["d"], card["vocab"])
    choice(f"The kind of {name}", kind, KINDS)
    need(
        own == (model.sizes.d, model.sizes.vocab),
        f"{name} was made for width {own[0]} and {own[1]} tokens; the model has width "
        f"{model.sizes.d} and {model.sizes.vocab} tokens. Train a head for this model.",
    )
    head = KINDS[kind](model, **made)
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{name} does not fit its card: {str(error).splitlines()[-1].strip()}"
        ) from None
    return head.eval().requires_grad_(False), card


def shipped_head(
    kind: str, model: Transformer, folder: Path = DATA
) -> tuple[Head, dict[str, Any]]:
    """A shipped head for the shipped target, and its card, after its checksum.

    kind: "adapter", "eagle", "masks", "medusa" or "recurrent". Raises CacheError for
    one that is not shipped or a damaged file, ValueError for another kind or model.
    """
    choice("A shipped head", kind, SHIPPED)
    return load_head(shipped(SHIPPED[kind], folder), model)


def enter_all(folder: Path = DATA) -> None:
    """Enter every file of heads/ in the manifest, and list the cards.

    folder: holds manifest.json. Raises ValueError for a file that is no head.
    """
    where = folder / FOLDER
    cards = {p.name: read_head(p)[1] for p in sorted(where.glob("*.safetensors"))}
    need(bool(cards), f"There is no head in {FOLDER}/; train some.")
    text = f"{HEAD}\n\n{card_page(cards)}".rstrip() + "\n"
    (where / PAGE).write_text(text, encoding="utf-8")
    for name, card in cards.items():
        enter(folder, [f"{FOLDER}/{name}"], card.get("command", ""))
