"""A small softmax transformer on regression prompts, and probes of what it carries.

Tokens (x; y; flag) are embedded, mixed by softmax attention and small networks, and the
answer is read at the query. Probes ask whether the hidden states of a layer hold a
vector that an algorithm would compute: the weights w, or X'y / n.
Source: 2211.15661 (abstract; the control below is ours).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lib.icl_regression.prompts import Prompts
from lib.kit.checks import count, need

Weights = dict[str, Tensor]


def start_transformer(
    lead: tuple[int, ...],
    d: int,
    generator: torch.Generator,
    *,
    width: int = 24,
    heads: int = 2,
    layers: int = 2,
) -> Weights:
    """Random weights: every matrix with variance 1 over its inputs.

    lead: leading dimensions (seeds); d: inputs; generator; width: of the residual
    stream; heads; layers. Returns "embed", "read" and, stacked over layers, "Q", "K",
    "V" (*lead, L, heads, width, width/heads), "O", "up", "down". Raises ValueError for
    counts that do not divide.
    """
    for name, given in (("heads", heads), ("layers", layers), ("width", width)):
        count(name, given)
    need(width % heads == 0, f"width {width} is not a multiple of {heads} heads.")

    def draw(*shape: int, gain: float = 1.0) -> Tensor:
        w = torch.randn(*lead, *shape, generator=generator, device=generator.device)
        return gain / math.sqrt(shape[-2]) * w

    weights = {name: draw(layers, heads, width, width // heads) for name in "QKV"}
    weights |= {
        "embed": draw(d + 2, width),
        "O": draw(layers, width, width, gain=0.5),
        "up": draw(layers, width, 2 * width),
        "down": draw(layers, 2 * width, width, gain=0.5),
        "read": draw(width, 1),
    }
    return weights


def unit(z: Tensor) -> Tensor:
    """Root-mean-square normalisation over the last dimension, any shape."""
    return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-5)


def linear(z: Tensor, w: Tensor) -> Tensor:
    """z (..., B, T, i) times w (..., i, o), each model with its own."""
    return torch.einsum("...bti,...io->...bto", z, w)


def hidden_states(weights: Weights, prompts: Prompts) -> list[Tensor]:
    """The residual stream after the embedding and after every layer.

    weights: of `start_transformer`; prompts: (*lead, B, n, d). Returns layers + 1
    tensors (*lead, B, n + 1, width); the query is last. Every token sees every token.
    Source: 2211.15661 (a standard transformer; ours is not causal).
    """
    blank = torch.zeros_like(prompts.y_q)[..., None]
    x = torch.cat([prompts.x, prompts.x_q[..., None, :]], dim=-2)
    y = torch.cat([prompts.y, blank], dim=-1)
    flag = torch.cat([torch.zeros_like(prompts.y), blank + 1], dim=-1)
    z = linear(torch.cat([x, torch.stack([y, flag], -1)], -1), weights["embed"])
    states = [z]
    names = ("Q", "K", "V", "O", "up", "down")
    each = [weights[k].unbind(-4 if k in "QKV" else -3) for k in names]
    for Q, K, V, out, up, down in zip(*each, strict=True):
        h = unit(z)
        q, k, v = (torch.einsum("...bti,...hio->...bhto", h, w) for w in (Q, K, V))
        share = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
        z = z + linear((share @ v).transpose(-3, -2).flatten(-2), out)
        z = z + linear(functional.gelu(linear(unit(z), up)), down)
        states.append(z)
    return states


def transformer(weights: Weights, prompts: Prompts) -> Tensor:
    """The answer at the query, (*lead, B).

    weights: of `start_transformer`; prompts: (*lead, B, n, d). Source: 2211.15661.
    """
    query = hidden_states(weights, prompts)[-1][..., -1:, :]
    return linear(unit(query), weights["read"])[..., 0, 0]


def summary(state: Tensor) -> Tensor:
    """What a probe may see of a layer: the mean over the context, and the query.

    state: (..., B, n + 1, width). Returns (..., B, 2 width).
    """
    return torch.cat([state[..., :-1, :].mean(-2), state[..., -1, :]], dim=-1)


def probe(
    seen: Tensor,
    target: Tensor,
    *,
    hidden: int = 0,
    lam: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """R^2 of a probe on prompts that it was not fitted to.

    seen: (..., B, k); target: (..., B, d); hidden: 0 for a linear probe, else as many
    random ReLU features (a non-linear probe); lam: ridge penalty on the mean; generator
    for the features. The first half of the prompts fits, the second half is judged.
    Returns (...), 1 - squared error over variance. Raises ValueError for few prompts.
    Source: 2211.15661 (probes; this kind is ours).
    """
    half = seen.shape[-2] // 2
    need(half >= 2, f"{seen.shape[-2]} prompts cannot be halved: give at least 4.")
    seen = (seen - seen.mean(-2, keepdim=True)) / (seen.std(-2, keepdim=True) + 1e-6)
    if hidden:
        k = seen.shape[-1]
        w = torch.randn(k, hidden, generator=generator, device=seen.device)
        bias = torch.randn(hidden, generator=generator, device=seen.device)
        wide = functional.relu(seen @ w.to(seen) / math.sqrt(k) + bias.to(seen))
        seen = torch.cat([seen, wide], dim=-1)
    seen = torch.cat([seen, torch.ones_like(seen[..., :1])], dim=-1).double()
    target = target.double()
    A, b = seen[..., :half, :], target[..., :half, :]
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    coef = torch.linalg.solve(A.mT @ A + lam * half * eye, A.mT @ b)
    judged = target[..., half:, :]
    missed = (seen[..., half:, :] @ coef - judged).square().sum((-2, -1))
    spread = (judged - judged.mean(-2, keepdim=True)).square().sum((-2, -1))
    return 1 - missed / spread


def probe_layers(
    states: Sequence[Tensor], target: Tensor, *, hidden: int = 0, seed: int = 0
) -> Tensor:
    """`probe` of every layer's `summary`.

    states: of `hidden_states`; target: (..., B, d); hidden, seed: of the probe. Returns
    (layers + 1, ...). Source: 2211.15661.
    """
    rows = []
    for state in states:
        g = torch.Generator(device=state.device).manual_seed(seed)
        rows.append(probe(summary(state), target, hidden=hidden, generator=g))
    return torch.stack(rows)
