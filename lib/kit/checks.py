"""Bad input gets a sentence: the checks that every module of `lib` uses."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

import numpy as np


def need(condition: bool, sentence: str, error: type[Exception] = ValueError) -> None:
    """Raise an error that says what was given, what was expected and what to do.

    condition: what must hold; sentence: the whole message; error: its type.
    """
    if not condition:
        raise error(sentence)


def nearest(given: object, known: Iterable[object]) -> str:
    """A question with the one or two known words like a given one, or nothing."""
    words = [word for word in known if isinstance(word, str)]
    near = get_close_matches(str(given), words, n=2, cutoff=0.4)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def choice(name: str, given: object, known: Iterable[str]) -> None:
    """Check a word against the known ones. Raises ValueError with the nearest."""
    words = [str(word) for word in known]
    if given in words:
        return
    listed = ", ".join(words)
    raise ValueError(
        f"{name} is {given!r}; choose one of {listed}.{nearest(given, words)}"
    )


def count(name: str, given: object, least: int = 1) -> None:
    """Check a whole number. Raises ValueError below `least` or for another type."""
    whole = isinstance(given, (int, np.integer)) and not isinstance(given, bool)
    need(
        whole and given >= least,
        f"{name} is {given!r}; give a whole number of at least {least}.",
    )
