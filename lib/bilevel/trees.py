"""Arithmetic on parameters: a tensor, or dictionaries, lists and tuples of tensors.

`torch.func.grad` takes and returns such trees; these few functions are what gradient
steps need beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lib.kit.checks import need

Tree = Any  # Tensor | dict[str, Tree] | list[Tree] | tuple[Tree, ...]
Loss = Callable[[Tree], Tensor]


def mapped(fn: Callable[..., Tensor], *trees: Tree) -> Tree:
    """Apply a function to the tensors at the same place of several trees.

    fn: of one tensor a tree; trees: of the same form. Returns a tree of that form.
    Raises TypeError for anything else than tensors, dictionaries, lists and tuples.
    """
    first = trees[0]
    if isinstance(first, Tensor):
        return fn(*trees)
    if isinstance(first, Mapping):
        return {key: mapped(fn, *(tree[key] for tree in trees)) for key in first}
    need(
        isinstance(first, list | tuple),
        f"the parameters hold a {type(first).__name__}; give tensors, or dictionaries, "
        "lists and tuples of tensors.",
        TypeError,
    )
    return type(first)(mapped(fn, *parts) for parts in zip(*trees, strict=True))


def descend(x: Tree, gradient: Tree, step: float | Tensor) -> Tree:
    """One gradient step, x - step * gradient.

    x, gradient: trees of one form; step: a number, or a tensor that broadcasts.
    """
    return mapped(lambda p, d: p - step * d, x, gradient)


def plus(x: Tree, y: Tree, scale: float | Tensor = 1.0) -> Tree:
    """x + scale * y, for trees of one form."""
    return mapped(lambda p, d: p + scale * d, x, y)


def minus(x: Tree, y: Tree) -> Tree:
    """x - y, for trees of one form."""
    return mapped(lambda p, d: p - d, x, y)


def scaled(x: Tree, scale: float | Tensor) -> Tree:
    """scale * x, for a tree."""
    return mapped(lambda p: scale * p, x)


def dot(x: Tree, y: Tree) -> Tensor:
    """The inner product of two trees of one form, a scalar tensor."""
    if isinstance(x, Tensor):
        return (x * y).sum()
    pairs = ((x[k], y[k]) for k in x) if isinstance(x, Mapping) else zip(x, y)
    return sum(dot(*pair) for pair in pairs)


def detached(x: Tree) -> Tree:
    """The same values without their history."""
    return mapped(lambda p: p.detach(), x)


def average(trees: Sequence[Tree]) -> Tree:
    """The mean of trees of one form, summed in the order in which they are given.

    Raises ValueError for none at all.
    """
    need(len(trees) > 0, "there is nothing to average; give at least one source.")
    total = trees[0]
    for tree in trees[1:]:
        total = plus(total, tree)
    return mapped(lambda p: p / len(trees), total)
