"""Heads and adapters as files: bfloat16 weights in safetensors, with a card.

The rounded weights are the head, as in `lib.language.weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lib.kit.cache import shipped
from lib.kit.checks import choice, need
from lib.kit.manifest import DATA, LICENCE, enter
from lib.language import Transformer
from lib.language.weights import FORMAT, filled, read_rounded, write_rounded
from lib.self_speculative.heads import Adapter, Eagle, Head, Medusa, Recurrent
from lib.self_speculative.masks import Masks
from lib.speech.assets import card_page

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
    and what it can do. Raises ValueError as `write_rounded`.
    """
    about = {"format": FORMAT, "licence": LICENCE, "kind": head.kind}
    about |= {"made": head.about(), "d": head.d, "vocab": head.vocab}
    write_rounded(path, head, about | dict(card))


def read_head(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the card of a head's file. Raises ValueError."""
    return read_rounded(path, "a head", {"kind", "made", "d", "vocab"})


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
    return filled(KINDS[kind](model, **made), state, name), card


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
