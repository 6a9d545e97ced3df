"""Where chance comes from: a generator, or every possibility with its probability.

Drafters, verifiers and the loop ask a `Dice` for all their draws. The same code then
runs under `Random`, and under `enumerated`, which follows every outcome and so returns
the exact law of what the code does: no second implementation stands between a method
and its proof.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar

import numpy as np

from lib.kit.checks import need

Result = TypeVar("Result", bound=Hashable)


class Dice(Protocol):
    """What may be asked of chance."""

    def draw(self, law: np.ndarray) -> int:
        """A token of a law (V,)."""

    def accept(self, p: float, q: float) -> bool:
        """Whether a token that was drawn with q passes for p: chance min(1, p / q)."""

    def chance(self, p: float) -> bool:
        """Whether something of probability p happens."""


class Random:
    """Dice of a seed. last: the uniform number of the last test, for who looks on."""

    def __init__(self, seed: int | np.random.Generator = 0) -> None:
        self.uniform = np.random.default_rng(seed).random
        self.last = 0.0

    def draw(self, law: np.ndarray) -> int:
        mass = law.cumsum()
        place = int(mass.searchsorted(self.uniform() * mass[-1], side="right"))
        # The product can round up to the whole mass; then the last possible token.
        return place if place < len(law) else int(law.nonzero()[0][-1])

    def accept(self, p: float, q: float) -> bool:
        self.last = self.uniform()
        return self.last * q <= p  # never p / q: q can be tiny

    def chance(self, p: float) -> bool:
        self.last = self.uniform()
        return self.last < p


class _Followed:
    """Dice that follow a script of choices, and open a new branch behind its end."""

    def __init__(self, script: list[tuple[int, list[tuple[int, float]]]]) -> None:
        self.script, self.place, self.weight, self.last = script, 0, 1.0, float("nan")

    def _next(self, outcomes: list[tuple[int, float]]) -> int:
        if self.place == len(self.script):
            self.script.append((0, outcomes))
        number, known = self.script[self.place]
        need(
            known == outcomes,
            "The program asks other questions when it is run again; make all it does "
            "follow from its dice.",
            RuntimeError,
        )
        self.place += 1
        value, probability = known[number]
        self.weight *= probability
        return value

    def draw(self, law: np.ndarray) -> int:
        law = np.asarray(law)
        total = float(law.sum())
        possible = np.flatnonzero(law).tolist()
        return self._next([(x, float(law[x]) / total) for x in possible])

    def accept(self, p: float, q: float) -> bool:
        return self.chance(min(1.0, p / q))

    def chance(self, p: float) -> bool:
        both = [(1, float(p)), (0, 1.0 - float(p))]
        return bool(self._next([one for one in both if one[1] > 0]))


def enumerated(
    program: Callable[[Dice], Result], most: int = 2_000_000
) -> dict[Result, float]:
    """The exact law of what a program returns, over all it asks of its dice.

    program: called with dice, returns what can be a key; whatever it does must follow
    from the dice; most: runs. Returns {result: probability}. Raises RuntimeError for
    more runs, or a program that has another source of chance.
    """
    law: dict[Result, float] = {}
    script: list[tuple[int, list[tuple[int, float]]]] = []
    for _ in range(most):
        dice = _Followed(script)
        result = program(dice)
        law[result] = law.get(result, 0.0) + dice.weight
        while script and script[-1][0] + 1 == len(script[-1][1]):
            script.pop()
        if not script:
            return law
        number, outcomes = script[-1]
        script[-1] = (number + 1, outcomes)
    raise RuntimeError(
        f"More than {most} outcomes; enumerate something smaller, or raise `most`."
    )


def far(found: dict, expected: dict) -> float:
    """The largest difference between two laws, as of `enumerated`."""
    both = found.keys() | expected.keys()
    return max(abs(found.get(k, 0.0) - expected.get(k, 0.0)) for k in both)
