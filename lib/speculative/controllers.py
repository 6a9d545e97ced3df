"""How much is drafted: a fixed length, until the draft is unsure, or by experience.

Lengths follow from the past and from what the draft says before it draws, never from
the drawn token itself, so every controller keeps the law.
"""

from __future__ import annotations

from dataclasses import dataclass

from lib.kit.checks import count, need
from lib.speculative.harness import Budget, Tree, Verdict


class Fixed:
    """Always the same. gamma: depth; nodes: of a tree, None for no limit."""

    def __init__(self, gamma: int, nodes: int | None = None) -> None:
        count("gamma", gamma, 0)
        self.own = Budget(gamma) if nodes is None else Budget(gamma, nodes)

    def budget(self) -> Budget:
        """The same budget."""
        return self.own

    def update(self, tree: Tree, verdict: Verdict, seconds: float) -> None:
        """Nothing to learn."""


class Confidence:
    """Draft until the drafter is unsure.

    threshold: of its largest probability, times that of the draft so far if `product`;
    most: tokens at most; least of all 0. Source: 2404.18911 (without the product).
    """

    def __init__(self, threshold: float, most: int = 8, product: bool = True) -> None:
        need(0 <= threshold <= 1, f"threshold is {threshold}; give 0 to 1.")
        count("most", most, 0)
        self.own = Budget(most, stop=threshold, product=product)

    def budget(self) -> Budget:
        """The same budget."""
        return self.own

    def update(self, tree: Tree, verdict: Verdict, seconds: float) -> None:
        """Nothing to learn."""


@dataclass
class Heuristic:
    """Two tokens more after a draft that was accepted whole, else one fewer.

    gamma: at first; least, most: of all lengths. Source: transformers' "heuristic"
    schedule of assisted generation.
    """

    gamma: int = 5
    least: int = 1
    most: int = 20

    def __post_init__(self) -> None:
        count("least", self.least)
        count("gamma", self.gamma, self.least)
        count("most", self.most, self.gamma)

    def budget(self) -> Budget:
        """As many tokens as experience says."""
        return Budget(self.gamma)

    def update(self, tree: Tree, verdict: Verdict, seconds: float) -> None:
        """Longer after success, shorter after failure; no change without a draft."""
        if len(tree) == 0:
            return
        whole = len(verdict.path) == len(tree)
        step = 2 if whole else -1
        self.gamma = min(max(self.gamma + step, self.least), self.most)
