"""Gradients of several losses in one network: rows, Gram matrices, one update.

`layers` names groups of *shared* parameters: {"block.0": [p, q], ...}. Heads belong to
one objective each and get the plain gradient of the sum of losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.kit.checks import choice, need
from lib.multi_objective.grams import gram

Layers = Mapping[str, Sequence[Tensor]]
ELSEWHERE = ("weighted", "uniform", "frozen")


class Passes(NamedTuple):
    """What one backward pass a loss finds.

    J: {layer: (M, P of the layer)}; tops: the sum of the losses' gradients for every
    head; pulls: of every loss, its gradients with respect to some activations, None
    where it does not depend on one.
    """

    J: dict[str, Tensor]
    tops: list[Tensor]
    pulls: list[list[Tensor | None]]


def layers_of(module: nn.Module, depth: int | None = 1) -> dict[str, list[Tensor]]:
    """The trainable parameters of a module in groups, by the first parts of their name.

    module; depth: how many parts name a group ("blocks.0.ff.weight" has four); None
    puts every tensor in a group of its own. Returns a dictionary in the module's order.
    Raises ValueError where nothing can be trained.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            key = ".".join(name.split(".")[:depth])
            groups.setdefault(key, []).append(p)
    need(bool(groups), "the module has no trainable parameter; unfreeze some.")
    return groups


def rows(losses: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[list[Tensor]]:
    """The gradient of every loss with respect to every input: M backward passes.

    losses: M scalars; inputs: tensors of their graphs, which are kept. Returns M lists
    as long as inputs; zeros where a loss does not depend on an input. No pass goes
    deeper than the lowest input. Raises ValueError for losses that are no scalars or
    have no graph.
    """
    _check_losses(losses)
    return [_gradient(loss, inputs) for loss in losses]


def flat(gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    """The matrix J (M, P) of M lists of gradients."""
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in gradients])


def jacobians(losses: Sequence[Tensor], layers: Layers) -> dict[str, Tensor]:
    """The gradients of M losses in every layer: {name: J (M, P of the layer)}.

    losses: M scalars, graphs are kept; layers: named groups of tensors. M backward
    passes, each row written into its place. Raises ValueError as `rows`.
    """
    return passes(losses, layers).J


def layer_grams(
    losses: Sequence[Tensor], layers: Layers, second: Sequence[Tensor] | None = None
) -> dict[str, Tensor]:
    """The Gram matrix of every layer's gradients; their sum is the network's.

    losses: M scalars; layers: named groups of tensors; second: the same losses on an
    independent batch, then J J'^T (see `corrected_cosines`). Returns {name: (M, M)}.
    Raises ValueError as `rows`.
    """
    first = jacobians(losses, layers)
    other = first if second is None else jacobians(second, layers)
    return {name: gram(J, other[name]) for name, J in first.items()}


def assign(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Write gradients into .grad, whatever was there.

    parameters, gradients: of equal length and shapes; None makes an optimiser leave the
    parameter alone. A helper that writes only where .grad is not None writes *nothing*
    after `zero_grad()`, whose default is None. Raises ValueError for lengths or shapes.
    """
    need(
        len(parameters) == len(gradients)
        and all(g is None or g.shape == p.shape for p, g in zip(parameters, gradients)),
        "the gradients do not fit the parameters; give one of each shape, in order.",
    )
    for p, g in zip(parameters, gradients):
        p.grad = None if g is None else g.detach().to(p)


def aggregate(
    samples: Sequence[Sequence[Tensor]],
    layers: Layers,
    weigh: Callable[[Tensor], Tensor],
    heads: Sequence[Tensor] = (),
    look: Sequence[str] | None = None,
    elsewhere: str = "weighted",
    below: Sequence[Sequence[Tensor]] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights from the gradients of some layers, an update of all; fills every .grad.

    samples: one list of M losses, or two of independent batches (`weigh` then gets J
    J'^T, the update the mean of both); layers: named groups of all shared parameters;
    weigh: (M, M) -> (M,), such as `lambda G: M * mgda(G)`, where ones are the plain
    sum; heads: parameters that get the sum's gradient; look: names of the layers whose
    gradients are compared, None for all; elsewhere: the other layers get the "weighted"
    sum, a "uniform" one with the same total, or are "frozen" (.grad is None); below:
    of every sample, the activations through which alone the losses depend on all other
    layers: the last pass then starts there and not at the losses.
    Returns the weights and {name: Gram matrix} of the layers looked at. M backward
    passes as far down as `look` reaches, then one for the rest. Raises ValueError for
    words, samples and losses. Source: 2508.09228 (second-hand); the form is ours.
    """
    look, heads = _looked_at(samples, layers, look, elsewhere), list(heads)
    seen = {name: layers[name] for name in look}
    starts = below or [()] * len(samples)
    found = [passes(x, seen, heads, start) for x, start in zip(samples, starts)]
    first, last = found[0], found[-1]
    grams = {name: gram(first.J[name], last.J[name]) for name in look}
    w = weigh(sum(grams.values())).detach()
    for name, group in seen.items():
        J = first.J[name] if len(found) == 1 else (first.J[name] + last.J[name]) / 2
        assign(group, cut(w.to(J) @ J, group))
    assign(heads, [(p + q) / 2 for p, q in zip(first.tops, last.tops)])
    rest = [p for n in layers if n not in seen for p in layers[n]]
    if below is None:
        assign_rest(rest, w, elsewhere, samples)
    else:
        assign_below(rest, w, elsewhere, below, [f.pulls for f in found])
    return w, grams


def passes(
    losses: Sequence[Tensor],
    layers: Layers,
    heads: Sequence[Tensor] = (),
    below: Sequence[Tensor] = (),
) -> Passes:
    """One backward pass a loss: J of every layer, the heads' sums, pulls on `below`.

    losses: M scalars, graphs are kept; layers: named groups of tensors; heads: tensors;
    below: activations. A loss's row is copied into J at once, so that no more than J
    and one gradient are held. Raises ValueError as `rows`.
    """
    _check_losses(losses)
    inputs = [*_all(layers), *heads, *below]
    blocks = {
        name: group[0].new_empty(len(losses), sum(p.numel() for p in group))
        for name, group in layers.items()
    }
    tops, pulls = [torch.zeros_like(p) for p in heads], []
    for i, loss in enumerate(losses):
        found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
        pulls.append(list(found[len(inputs) - len(below) :]))
        slopes = iter(filled(found[: len(inputs) - len(below)], inputs))
        for name, group in layers.items():
            blocks[name][i] = torch.cat([next(slopes).reshape(-1) for _ in group])
        for top in tops:
            top += next(slopes)
    return Passes(blocks, tops, pulls)


def assign_rest(
    rest: Sequence[Tensor],
    w: Tensor,
    elsewhere: str,
    samples: Sequence[Sequence[Tensor]],
) -> None:
    """The gradients of layers that were not looked at: one more backward pass.

    rest: their parameters; w: (M,) weights; elsewhere: as in `aggregate`; samples: one
    list of M losses, or more, whose mean counts.
    """
    if not rest or elsewhere == "frozen":
        return assign(rest, [None] * len(rest))
    spread = _spread(w, elsewhere)
    total = sum(spread @ torch.stack(list(losses)).to(w) for losses in samples)
    assign(rest, _gradient(total / len(samples), rest))


def assign_below(
    rest: Sequence[Tensor],
    w: Tensor,
    elsewhere: str,
    below: Sequence[Sequence[Tensor]],
    pulls: Sequence[Sequence[Sequence[Tensor | None]]],
) -> None:
    """The same as `assign_rest` from where the passes of all losses have stopped.

    below, pulls: of every sample, the activations and what `passes` found there.
    """
    if not rest or elsewhere == "frozen":
        return assign(rest, [None] * len(rest))
    share = (_spread(w, elsewhere) / len(below)).tolist()
    ends, starts = [], []
    for activations, found in zip(below, pulls):
        for j, activation in enumerate(activations):
            parts = [c * row[j] for c, row in zip(share, found) if row[j] is not None]
            if parts:
                ends.append(activation)
                starts.append(sum(parts))
    slopes = torch.autograd.grad(
        ends, rest, starts, retain_graph=True, allow_unused=True
    )
    assign(rest, filled(slopes, rest))


def aggregate_features(
    losses: Sequence[Tensor],
    features: Sequence[Tensor],
    layers: Layers,
    weigh: Callable[[Tensor], Tensor],
    heads: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Weights from the gradients of a shared representation; fills every .grad.

    losses: M scalars; features: the tensors through which alone they depend on the
    layers; layers, weigh, heads: as in `aggregate`. Returns the weights and the Gram
    matrix (M, M). One pass through the heads for each loss and one through the encoder:
    cheap, an upper bound of the conflict measure (MGDA-UB). Objectives with separate
    features (one batch a language) never conflict here. Raises ValueError as `rows`.
    Source: 1810.04650, MGDA-UB.
    """
    features, shared = list(features), _all(layers)
    J, tops, _ = passes(losses, {"features": features}, list(heads))
    G = gram(J["features"])
    w = weigh(G).detach()
    pull = cut(w.to(J["features"]) @ J["features"], features)
    slopes = torch.autograd.grad(features, shared, pull, allow_unused=True)
    assign(shared, filled(slopes, shared))
    assign(list(heads), tops)
    return w, G


def filled(slopes: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Gradients with zeros where there is none, in the shapes of some tensors."""
    return [torch.zeros_like(p) if g is None else g for g, p in zip(slopes, like)]


def cut(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A vector in pieces of the shapes of some tensors."""
    parts = vector.split([p.numel() for p in like])
    return [part.view_as(p) for part, p in zip(parts, like)]


def _all(layers: Layers) -> list[Tensor]:
    return [p for group in layers.values() for p in group]


def _spread(w: Tensor, elsewhere: str) -> Tensor:
    """The weights of layers that were not looked at."""
    return torch.full_like(w, w.mean()) if elsewhere == "uniform" else w


def _check_losses(losses: Sequence[Tensor]) -> None:
    for i, loss in enumerate(losses):
        need(
            loss.ndim == 0,
            f"loss {i} has shape {tuple(loss.shape)}; give scalars, one an objective.",
        )
        need(
            loss.requires_grad,
            f"loss {i} depends on no trainable tensor; it was detached, or computed "
            "under no_grad.",
        )


def _gradient(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    slopes = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    return filled(slopes, inputs)


def _looked_at(
    samples: Sequence[Sequence[Tensor]],
    layers: Layers,
    look: Sequence[str] | None,
    elsewhere: str,
) -> list[str]:
    """The names of the layers to look at, after the checks of `aggregate`."""
    choice("elsewhere", elsewhere, ELSEWHERE)
    sizes = [len(losses) for losses in samples]
    need(
        len(sizes) in (1, 2) and len(set(sizes)) == 1,
        f"samples holds lists of {sizes} losses; give one list of M losses, or two of "
        "independent batches.",
    )
    look = list(layers) if look is None else list(dict.fromkeys(look))
    need(bool(look), "look names no layer; name at least one, or give None for all.")
    for name in look:
        choice("look", name, layers)
    return look
