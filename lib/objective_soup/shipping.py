"""The two models of 42 that lie in data/: from trials to files, and back.

`python -m lib.objective_soup build` asks `lib.kit.trials` for their trials, which costs
nothing where they are cached and minutes where they are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lib.kit import cache
from lib.kit.manifest import DATA
from lib.kit.trials import trials
from lib.objective_soup.model import Soup, load_soup, save_soup
from lib.objective_soup.study import MODEL, training
from lib.speech.assets import ship

START, END = "objective_soup_start", "objective_soup_end"
SOURCE = "python -m lib.objective_soup build"
WHAT = (
    "A conformer encoder with heads that recognise synthetic English, German and "
    "French speech and translate it into English, trained on the plain sum of their "
    "losses and a self-supervised one: for the notebooks, of no use for real speech."
)
SETTINGS: dict[str, dict[str, Any]] = {
    START: {"method": "sum", "seed": 0, "steps": 400, "lr": 7e-3},
    END: {"method": "sum", "seed": 9, "steps": 2000, "lr": 6e-3},
}


def shipped_start() -> tuple[Soup, dict[str, Any]]:
    """The model that live steps begin from, and its card.

    Raises CacheError for a file that is missing or damaged.
    """
    return load_soup(cache.shipped(f"models/{START}.npz"))


def shipped_soup() -> tuple[Soup, dict[str, Any]]:
    """A trained model, and its card. Errors as above."""
    return load_soup(cache.shipped(f"models/{END}.npz"))


def build(folder: Path = DATA) -> None:
    """Write both models, the page of all, and enter them in the manifest.

    folder: data/, or another that holds a manifest.json. Errors as of `trials`.
    """
    done = dict(zip(SETTINGS, trials(training, list(SETTINGS.values()))))

    def writer(name: str):
        soup, card = load_soup(done[name].folder / MODEL)
        del card["soup"], card["format"]
        about = {"what": WHAT}
        return lambda path: save_soup(path, soup, card | about)

    ship({name: writer(name) for name in SETTINGS}, SOURCE, folder)
