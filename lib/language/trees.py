"""The shape of what one pass reads: a chain or a tree of drafted tokens.

A pass reads the last committed token and n drafted nodes behind it. Parents come before
children and are numbered as in a `Tree` of nodes: node i stands in row i + 1, and
parent -1 is the last committed token, row 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.kit.checks import count, need


@dataclass(frozen=True)
class Layout:
    """Who sees whom among the rows behind the committed ones.

    depth: (n,) or (batch, n) int64, distance from the last committed token, which has
    0; visible: (n, m) or (batch, n, m) bool, m >= n: whether row i sees column j, the
    last n of m columns being the rows themselves.
    """

    depth: Tensor
    visible: Tensor

    def __post_init__(self) -> None:
        n = self.depth.shape[-1]
        need(
            self.visible.shape[:-1] == self.depth.shape and self.visible.shape[-1] >= n,
            f"The mask has shape {tuple(self.visible.shape)} for depths of shape "
            f"{tuple(self.depth.shape)}; give (..., n, m) with m >= n.",
        )


def topological(parents: Sequence[int]) -> list[int]:
    """The parents as a list. Raises ValueError where one does not precede its child.

    parents: (nodes,) of node i a number in -1 .. i - 1.
    """
    parents = [int(parent) for parent in parents]
    for node, parent in enumerate(parents):
        need(
            -1 <= parent < node,
            f"Node {node} has parent {parent}; a parent stands before its child: give "
            f"-1 (the last committed token) to {node - 1}.",
        )
    return parents


def tree(parents: Sequence[int]) -> Layout:
    """The layout of a tree behind the last committed token, which is row 0.

    parents: (nodes,), see `topological`. Returns depths (nodes + 1,) and the ancestor
    relation (nodes + 1, nodes + 1): anc[i] = anc[parent[i]] | e_i. Raises ValueError.
    Source: 2305.09781 (tree attention); specification, section 1.
    """
    parents = topological(parents)
    n = len(parents) + 1
    visible, depth = torch.eye(n, dtype=torch.bool), torch.zeros(n, dtype=torch.int64)
    visible[:, 0] = True
    for node, parent in enumerate(parents):
        visible[node + 1] |= visible[parent + 1]
        depth[node + 1] = depth[parent + 1] + 1
    return Layout(depth, visible)


def chain(nodes: int) -> Layout:
    """The layout of a tree with one branch. nodes: drafted tokens, 0 or more."""
    count("The number of nodes", nodes, 0)
    return tree(range(-1, nodes - 1))


def path_to(parents: Sequence[int], node: int) -> list[int]:
    """The nodes from the root's child to a node: what a verifier accepts.

    parents: (nodes,); node: its number, -1 for the last committed token (no nodes).
    """
    path = []
    while node >= 0:
        path.append(node)
        node = int(parents[node])
    return path[::-1]


def leaves(parents: Sequence[int]) -> list[int]:
    """The nodes without children. parents: (nodes,)."""
    inner = {int(parent) for parent in parents}
    return [node for node in range(len(parents)) if node not in inner]


def padded(layouts: Sequence[Layout]) -> Layout:
    """Layouts of several sequences as one, (batch, n): short ones get hidden rows.

    layouts: with as many columns as rows. A hidden row sees itself only, and no other
    row sees it; whoever reads the pass ignores its logits. Raises ValueError for none.
    """
    need(len(layouts) > 0, "No layouts were given.")
    n = max(one.depth.shape[0] for one in layouts)
    depth = torch.zeros(len(layouts), n, dtype=torch.int64)
    visible = torch.eye(n, dtype=torch.bool).repeat(len(layouts), 1, 1)
    for b, one in enumerate(layouts):
        own = one.depth.shape[0]
        depth[b, :own] = one.depth
        visible[b, :own, :own] = one.visible
    return Layout(depth, visible)
