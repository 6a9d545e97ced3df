"""Sequoia: the best shape of a drawn tree, and its size for the machine at hand.

What the j-th sibling adds is measured once, as a share acc[j]; the shape then follows
from a dynamic programme, and its size from the measured price of a pass. Nodes are
counted as everywhere in the harness, without the last committed token; depth 1 is its
children. Source: 2402.12374.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lib.kit.checks import count, need
from lib.speculative.dice import Dice, Random
from lib.speculative.harness import Tree
from lib.speculative.laws import residual, without


class Shape(NamedTuple):
    """A tree without tokens.

    parents: (n,), level by level; worth: expected accepted tokens.
    """

    parents: tuple[int, ...]
    worth: float

    @property
    def depth(self) -> int:
        """Levels below the last committed token: passes of the draft model."""
        return max(Tree(self.parents, self.parents).depths(), default=0)


# -- what a sibling is worth ----------------------------------------------------------


def sibling_shares(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    siblings: int,
    *,
    drawn: bool = True,
    dice: Dice | None = None,
) -> np.ndarray:
    """How often the j-th sibling is the accepted one: acc (siblings,).

    pairs: laws (p, q), each (V,), at places like those to come; siblings: of a node;
    drawn: without replacement, with the recursive test, else the likeliest of q and
    drawing from p; dice: of the siblings, None for seed 0. The dice of the tests are
    summed out. Raises ValueError without pairs. Source: 2402.12374.
    """
    count("siblings", siblings)
    dice, total, seen = dice or Random(0), np.zeros(siblings), 0
    for p, q in pairs:
        total += (_drawn_shares if drawn else _fixed_shares)(p, q, siblings, dice)
        seen += 1
    need(seen > 0, "No pair of laws was given; give p and q at some places.")
    return total / seen


def _fixed_shares(p: np.ndarray, q: np.ndarray, k: int, dice: Dice) -> np.ndarray:
    best = np.argsort(-q, kind="stable")[:k]
    return np.pad(p[best], (0, k - len(best)))


def _drawn_shares(p: np.ndarray, q: np.ndarray, k: int, dice: Dice) -> np.ndarray:
    shares, none = np.zeros(k), 1.0
    for j in range(k):
        token = dice.draw(q)
        passes = min(1.0, float(p[token]) / float(q[token]))
        shares[j] = none * passes
        none *= 1 - passes
        if none == 0 or np.count_nonzero(q) == 1:
            break
        p, q = residual(p, q), without(q, token)
    return shares


# -- the shape ------------------------------------------------------------------------


def best_shape(shares: Sequence[float], nodes: int, depth: int | None = None) -> Shape:
    """The tree of at most `nodes` nodes and `depth` levels with the largest worth.

    T(n, d) is the best worth of a subtree of n nodes, its root's 1 included:
    T(n, d) = 1 + C(n - 1, d - 1, 0), and C(n, d, j), the best of the siblings from j
    on, is max_i acc[j] T(i, d) + C(n - i, d, j + 1). shares: acc (k,), any order;
    depth: None for no limit. Raises ValueError. Source: 2402.12374.
    """
    acc = _shares(shares)
    count("nodes", nodes, 0)
    depth = nodes if depth is None else min(depth, nodes)
    count("depth", depth, 0)
    levels = _levels(acc, nodes, depth)
    return _traced(levels, nodes) if depth else Shape((), 0.0)


def _levels(acc: np.ndarray, nodes: int, depth: int) -> list[tuple]:
    """For depths 1, 2, ...: C(., d, .) (k + 1, nodes + 1), and the sizes it chooses."""
    best, levels = np.zeros((len(acc) + 1, nodes + 1)), []
    for _ in range(depth):
        best, taken = _one_level_more(acc, best[0], nodes)
        levels.append((best, taken))
    return levels


def _one_level_more(
    acc: np.ndarray, inner: np.ndarray, nodes: int
) -> tuple[np.ndarray, np.ndarray]:
    """C(., d, .) (k + 1, nodes + 1) from C(., d - 1, 0), and the sizes it chooses."""
    own = np.concatenate([[0.0], 1 + inner[:nodes]])  # T(i, d), nothing for i = 0
    best = np.zeros((len(acc) + 1, nodes + 1))
    taken = np.zeros((len(acc), nodes + 1), int)
    for j in range(len(acc) - 1, -1, -1):
        for n in range(1, nodes + 1):
            sizes = acc[j] * own[1 : n + 1] + best[j + 1, n - 1 :: -1][:n]
            at = int(sizes.argmax())
            best[j, n], taken[j, n] = sizes[at], at + 1
    return best, taken


def _traced(levels: list[tuple], nodes: int) -> Shape:
    """The shape, level by level, by following what was chosen."""
    parents: list[int] = []
    level = [(-1, nodes)]  # a node, and how many may stand below it
    for _, taken in reversed(levels):
        following = []
        for parent, left in level:
            for sizes in taken:
                if left == 0:
                    break
                size = int(sizes[left])
                following.append((len(parents), size - 1))
                parents.append(parent)
                left -= size
        level = following
    return Shape(tuple(parents), float(levels[-1][0][0, nodes]))


def worth_of(parents: Sequence[int], shares: Sequence[float]) -> float:
    """Expected accepted tokens of a shape: the sum of products of shares on its paths.

    parents: (n,); shares: acc (k,); a sibling beyond the k-th is worth nothing.
    """
    acc, born = _shares(shares), {}
    values: list[float] = []
    for parent in parents:
        rank = born[parent] = born.get(parent, -1) + 1
        above = 1.0 if parent < 0 else values[parent]
        values.append(above * (float(acc[rank]) if rank < len(acc) else 0.0))
    return float(sum(values))


def _shares(shares: Sequence[float]) -> np.ndarray:
    acc = np.asarray(shares, np.float64)
    need(
        acc.ndim == 1 and len(acc) > 0 and acc.min() >= 0 and acc.sum() <= 1 + 1e-9,
        f"The siblings' shares are {acc.round(3).tolist()}; give at least one, none "
        "below 0, at most 1 in all.",
    )
    return np.trim_zeros(acc, "b")


# -- the size -------------------------------------------------------------------------


def best_size(
    shares: Sequence[float],
    cost: Callable[[int], float],
    draft: float,
    *,
    sizes: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64),
    depths: Sequence[int] = range(1, 13),
) -> tuple[Shape, float]:
    """The shape with the most tokens for its price: (1 + worth) / (c(n + 1) + d c_d).

    shares: acc; cost: c(k), seconds of a target's pass over k tokens over those of one;
    draft: c_d, those of a draft pass, one a level; sizes, depths: tried. Returns the
    shape and its tokens for the price of a plain pass. Raises ValueError. Source:
    2402.12374 (hardware-aware choice).
    """
    need(len(sizes) > 0 and len(depths) > 0, "Give at least one size and one depth.")
    need(draft >= 0, f"A draft pass costs {draft}; give 0 or more.")
    best, pays = Shape((), 0.0), 1 / cost(1)  # plain decoding
    levels = _levels(_shares(shares), max(sizes), max(depths))
    for nodes in sizes:
        for depth in depths:
            shape = _traced(levels[:depth], nodes)
            price = cost(len(shape.parents) + 1) + shape.depth * draft
            if (1 + shape.worth) / price > pays + 1e-12:
                best, pays = shape, (1 + shape.worth) / price
    return best, float(pays)
