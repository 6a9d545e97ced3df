"""Trees as such: which nodes are worth drafting, whoever proposes them.

A node is worth the probability that its whole path is accepted. If a draft's shares are
calibrated these are products along paths, a tree emits one token more than their sum,
and the best tree of n nodes holds the n largest. Sources: 2406.17276 (OPT-Tree),
2402.12374 (Sequoia).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lib.kit.checks import count, need
from lib.language.trees import topological
from lib.speculative.harness import Budget, Tree
from lib.speculative.laws import residual

Offers = Callable[[tuple[int, ...]], Sequence[tuple[int, float]]]


class Grown(NamedTuple):
    """A tree with what its nodes are worth.

    tokens: (n,); parents: (n,), as of `Tree`; values: (n,) products of shares.
    """

    tokens: list[int]
    parents: list[int]
    values: list[float]

    @property
    def worth(self) -> float:
        """Expected accepted tokens; a pass emits one more."""
        return float(sum(self.values))

    @property
    def tree(self) -> Tree:
        """The draft that it is: fixed, no chance in it."""
        return Tree(self.tokens, self.parents)


def path_values(parents: Sequence[int], shares: Sequence[float]) -> np.ndarray:
    """The product of shares on each node's path: (n,).

    parents: (n,); shares: (n,) of a node given its parent. The sum is the expected
    accepted length if the shares are the target's own probabilities. Raises ValueError.
    Source: 2406.17276.
    """
    parents = topological(parents)
    need(
        len(shares) == len(parents),
        f"{len(shares)} shares were given for {len(parents)} nodes; give one for each.",
    )
    values = np.ones(len(parents) + 1)
    for node, (parent, share) in enumerate(zip(parents, shares)):
        values[node + 1] = values[parent + 1] * share
    return values[1:]


def best_first(
    offers: Offers, nodes: int, depth: int = 10**9, least: float = 0.0
) -> Grown:
    """The rooted tree of the `nodes` largest path products, with a heap.

    offers: called with a path (tuple of tokens), returns what may follow it and with
    which share, the largest first; nodes, depth: at most; least: of a product. A
    child's product is at most its parent's and at most its elder sibling's, so the
    largest that is not taken yet always has its parent in the tree. Of equals the one
    found first is taken. Raises ValueError. Source: 2406.17276; optimality derived.
    """
    count("nodes", nodes, 0)
    count("depth", depth, 0)
    grown, heap, turn = Grown([], [], []), [], itertools.count()

    def push(path: tuple[int, ...], parent: int, kids: Sequence, rank: int) -> None:
        if rank < len(kids) and kids[rank][1] > 0:
            value = kids[rank][1] * (grown.values[parent] if parent >= 0 else 1.0)
            heapq.heappush(heap, (-value, next(turn), path, parent, kids, rank))

    if nodes and depth:
        push((), -1, offers(()), 0)
    while heap and len(grown.tokens) < nodes and -heap[0][0] >= least:
        negative, _, path, parent, kids, rank = heapq.heappop(heap)
        grown.tokens.append(kids[rank][0])
        grown.parents.append(parent)
        grown.values.append(-negative)
        push(path, parent, kids, rank + 1)
        if len(path) + 1 < depth and len(grown.tokens) < nodes:
            own = (*path, kids[rank][0])
            push(own, len(grown.tokens) - 1, offers(own), 0)
    return grown


def rooted_trees(
    offers: Offers, nodes: int, depth: int, in_order: bool = False
) -> Iterator[Grown]:
    """All trees of `nodes` nodes: what an optimum has to be compared with.

    offers: see `best_first`; in_order: a sibling only behind its elders. Their number
    explodes: for 8 nodes and few offers.
    """

    def follow(grown: Grown, frontier: list[tuple]) -> Iterator[Grown]:
        if len(grown.tokens) == nodes:
            yield grown
            return
        for place, (path, parent, rank) in enumerate(frontier):
            token, share = offers(path)[rank]
            value = share * (grown.values[parent] if parent >= 0 else 1.0)
            more = Grown(
                [*grown.tokens, token], [*grown.parents, parent], [*grown.values, value]
            )
            rest = frontier[place + 1 :]
            if in_order and rank + 1 < len(offers(path)):
                rest = [*rest, (path, parent, rank + 1)]
            rest = [*rest, *below((*path, token), len(grown.tokens))]
            yield from follow(more, rest)

    def below(path: tuple[int, ...], parent: int) -> list[tuple]:
        if len(path) >= depth:
            return []
        kids = len(offers(path))
        return [
            (path, parent, rank) for rank in range(min(kids, 1 if in_order else kids))
        ]

    yield from follow(Grown([], [], []), below((), -1))


def accepted_in(tree: Tree, p: np.ndarray) -> float:
    """Expected accepted nodes of one draft, over the dice of `lossless` alone.

    tree: fixed or drawn; p: (n + 1, V), the target's laws after the last committed
    token and after each node. The mean over drafts has less noise than counting.
    Source: 2305.09781, 2402.12374; as `theory.siblings_accept`, for whole trees.
    """
    reach = np.ones(len(tree) + 1)  # how often the test comes to each node and passes
    for row, kids in enumerate(tree.children()):
        law, none = p[row], 1.0
        for kid in kids:
            token = tree.tokens[kid]
            if tree.q is None:
                reach[kid + 1] = reach[row] * law[token]
            else:
                passes = min(1.0, float(law[token]) / float(tree.q[kid][token]))
                reach[kid + 1] = reach[row] * none * passes
                none *= 1 - passes
                law = residual(law, tree.q[kid])
    return float(reach[1:].sum())


# -- fixed shapes ---------------------------------------------------------------------


def line(nodes: int) -> list[int]:
    """The parents of a chain."""
    count("nodes", nodes, 0)
    return list(range(-1, nodes - 1))


def binary(nodes: int) -> list[int]:
    """The parents of a tree with two children a node, filled level by level."""
    count("nodes", nodes, 0)
    return [node // 2 - 1 for node in range(nodes)]


def merged(paths: Iterable[Sequence[int]]) -> Tree:
    """The fixed tree of some texts, each common beginning once.

    paths: tokens behind the last committed one; earlier ones get the lower numbers.
    """
    places: dict[tuple[int, ...], int] = {(): -1}
    tokens, parents = [], []
    for path in paths:
        for end in range(1, len(path) + 1):
            key = tuple(path[:end])
            if key not in places:
                places[key] = len(tokens)
                tokens.append(key[-1])
                parents.append(places[key[:-1]])
    return Tree(tokens, parents)


def within_budget(paths: Iterable[Sequence[int]], budget: Budget) -> Tree:
    """`merged`, no deeper and no larger than a budget; later paths give way."""
    depth = max(budget.depth, 0)
    tree = merged(path[:depth] for path in paths)
    keep = max(budget.nodes, 0)
    if len(tree) <= keep:
        return tree
    return Tree(tree.tokens[:keep], tree.parents[:keep])  # parents stand before
