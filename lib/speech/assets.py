"""The trained models that lie in data/models: written, listed on a page, entered.

Three notebooks ship models; what they have in common when they make their files again
stands here, the trials behind each in its own `shipping`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from lib.kit.manifest import DATA, enter
from lib.speech.models import load_model

FOLDER = "models"  # inside DATA
PAGE = "README.md"  # of the cards
HEAD = "# Model cards\n\nGenerated from the files; loaded by `lib.speech.models`."


def file_of(name: str, folder: Path = DATA) -> Path:
    """Where a shipped model lies. For one with its checksum see `kit.shipped`."""
    return folder / FOLDER / f"{name}.npz"


def ship(
    models: Mapping[str, Callable[[Path], None]], source: str, folder: Path = DATA
) -> None:
    """Write models, list every card on one page, and enter the files in the manifest.

    models: by name, what writes the file of a path (`models.save_model`); source: the
    command that does all this; folder: data/, or another that holds a manifest.json.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    for name, write in models.items():
        write(file_of(name, folder))
    write_page(folder / FOLDER)
    enter(folder, [f"{FOLDER}/{name}.npz" for name in models], source)


def write_page(folder: Path) -> None:
    """The cards of all models in a folder as its README."""
    cards = {path.name: load_model(path).card for path in folder.glob("*.npz")}
    (folder / PAGE).write_text(f"{HEAD}\n\n{card_page(cards)}", encoding="utf-8")


def card_page(cards: Mapping[str, Mapping[str, Any]]) -> str:
    """Cards as one Markdown page, a section a file.

    cards: by file name, of `load_model`. Mappings inside a card become lines of their
    own names.
    """
    parts = []
    for name, card in sorted(cards.items()):
        lines = [f"## {name}", ""]
        lines += [str(card["what"]), ""] if "what" in card else []
        rest = {k: v for k, v in card.items() if k not in ("what", "format")}
        lines += [f"- {key}: {_plain(value)}" for key, value in sorted(rest.items())]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(inner) for inner in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def command(package: str, words: list[str]) -> None:
    """`python -m lib.PACKAGE build`: from the trials of its `shipping`.

    They run where they are not cached. Ends with the usage for other words.
    """
    if words != ["build"]:
        raise SystemExit(f"Usage: python -m lib.{package} build")
    import_module(f"lib.{package}.shipping").build()
