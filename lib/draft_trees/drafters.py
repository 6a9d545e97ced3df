"""Small models that draft trees: one of the likeliest paths, one of a given shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lib.draft_trees.shapes import Grown
from lib.kit.checks import count, need
from lib.language.trees import topological
from lib.speculative.drafters import NOTHING, Reader
from lib.speculative.harness import Budget, Out, Session, Target, Tree, Verdict
from lib.speculative.laws import Warp, without


def drafting_warp(own: Warp | None, session: Session) -> Warp:
    """What a tree is drafted with: a greedy target still needs several candidates.

    own: of the drafter, None for the session's, or for the plain law if that is greedy.
    """
    if own is not None:
        return own
    return Warp() if session.warp.temperature == 0 else session.warp


class OptTree:
    """The n likeliest paths of a draft model, grown level by level.

    model; nodes: n, or what the budget allows if that is less; price: of a pass of the
    draft in tokens: growing stops after a level that gains less; width: children looked
    at under a node, None for all; warp: of the draft. A pass of the model a level;
    `passes` counts them. A fixed tree: `match`. EAGLE-2's dynamic tree is this rule on
    path probabilities (2406.16858). Raises ValueError. Source: 2406.17276.
    """

    def __init__(
        self,
        model: Target,
        nodes: int = 16,
        price: float = 0.0,
        width: int | None = None,
        warp: Warp | None = None,
    ) -> None:
        count("nodes", nodes)
        need(price >= 0, f"The price of a draft pass is {price}; give 0 or more.")
        if width is not None:
            count("width", width)
        self.model, self.nodes, self.price = model, nodes, price
        self.width, self.own, self.passes = width, warp, 0

    def start(self, session: Session) -> None:
        """Read the prompt. Raises ValueError for another vocabulary."""
        self.reader, self.session = Reader(self.model, session), session
        self.warp = drafting_warp(self.own, session)

    def propose(self, budget: Budget) -> Tree:
        """The best tree of `nodes` nodes and `depth` levels."""
        room = self.reader.room  # every node takes a row until the draft is done
        nodes, depth = min(self.nodes, budget.nodes, room), min(budget.depth, room)
        if nodes <= 0 or depth <= 0:
            return NOTHING
        *before, last = self.reader.catch_up()
        if before:
            self.reader.law(before)
        grown, level = Grown([], [], []), [-1]
        for _ in range(depth):
            logits = self.model.forward(self.reader.state, last, grown.tree).logits
            self.passes += 1
            worth = grown.worth
            laws = self.warp(logits[[node + 1 for node in level]])
            grown, level = self._widened(grown, level, laws, nodes)
            if not level or grown.worth - worth < self.price:
                break
        return grown.tree

    def _widened(
        self, grown: Grown, level: list[int], laws: np.ndarray, nodes: int
    ) -> tuple[Grown, list[int]]:
        """The `nodes` best of a tree and of its last level's children, of laws."""
        above = [grown.values[node] if node >= 0 else 1.0 for node in level]
        values = laws * np.array(above)[:, None]
        most = min(self.width or nodes, nodes, values.shape[1])
        best = np.argsort(-values, axis=1, kind="stable")[:, :most]
        entries = list(zip(grown.values, grown.tokens, grown.parents))
        for node, own, row in zip(level, best, values):
            entries += [(float(row[t]), int(t), node) for t in own if row[t] > 0]
        # The sort is stable, so of equals a parent stands before its child.
        order = sorted(range(len(entries)), key=lambda k: -entries[k][0])[:nodes]
        kept = sorted(order)
        place = {-1: -1} | {old: new for new, old in enumerate(kept)}
        parts = [entries[old] for old in kept]
        known = len(grown.tokens)
        return Grown(
            [token for _, token, _ in parts],
            [place[parent] for *_, parent in parts],
            [value for value, *_ in parts],
        ), [new for new, old in enumerate(kept) if old >= known]

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Nothing to learn."""


class ShapeDrafter:
    """A model draws siblings without replacement along a given shape (Sequoia).

    model; parents: of the shape, as of `best_shape`; drawn: else the likeliest tokens
    are taken, a fixed tree, as always for a greedy target; warp: of the draft. A pass
    of the model a level; `passes` counts them. Where a law has fewer tokens than the
    shape has siblings the rest is left out. Source: 2402.12374.
    """

    def __init__(
        self,
        model: Target,
        parents: Sequence[int],
        drawn: bool = True,
        warp: Warp | None = None,
    ) -> None:
        self.model, self.parents = model, topological(parents)
        self.drawn, self.own, self.passes = drawn, warp, 0
        self.depth = Tree(self.parents, self.parents).depths()

    def start(self, session: Session) -> None:
        """Read the prompt. Raises ValueError for another vocabulary."""
        self.reader, self.session = Reader(self.model, session), session
        self.warp = drafting_warp(self.own, session)
        self.fixed = not self.drawn or session.warp.temperature == 0

    def propose(self, budget: Budget) -> Tree:
        """The shape, cut to depth and nodes (the first ones of its numbering)."""
        room = self.reader.room
        depth, most = min(budget.depth, room), min(budget.nodes, room)
        kept = [n for n in range(len(self.parents)) if self.depth[n] <= depth]
        kept = kept[: max(most, 0)]
        if not kept:
            return NOTHING
        *before, last = self.reader.catch_up()
        if before:
            self.reader.law(before)
        tree = Tree([], [], None if self.fixed else [], "fixed")
        tree.drawn = "fixed" if self.fixed else "without"
        under: dict[int, list[int]] = {}
        for node in kept:
            under.setdefault(self.parents[node], []).append(node)
        level = [(-1, -1)]  # of the shape, of the tree
        while any(own in under for own, _ in level):
            logits = self.model.forward(self.reader.state, last, tree).logits
            self.passes += 1
            following = []
            for own, node in level:
                if own in under:
                    law = self.warp(logits[node + 1])
                    following += zip(
                        under[own], self._born(tree, node, under[own], law)
                    )
            level = following
        return tree

    def _born(self, tree: Tree, node: int, kids: list[int], law: np.ndarray) -> list:
        """Put children under a node, as many as asked and possible."""
        begin, best = len(tree), np.argsort(-law, kind="stable")
        for rank in range(min(len(kids), np.count_nonzero(law))):
            token = int(best[rank]) if self.fixed else self.session.dice.draw(law)
            tree.tokens.append(token)
            tree.parents.append(node)
            if not self.fixed:
                tree.q.append(law)
                law = without(law, token)
        return list(range(begin, len(tree)))

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Nothing to learn."""
