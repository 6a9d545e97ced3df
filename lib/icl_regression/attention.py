"""Attention that answers regression prompts: linear, softmax, and stacks of layers.

Tokens are e = (x; y), p = d + 1 numbers; the query is e_q = (x_q; y_q), with y_q = 0 or
an initial guess. Weights are dictionaries of tensors with leading dimensions (seeds,
arms), so that many models answer one batch of prompts at once.
Sources: 2512.04268 (linear heads, y_q), 2503.12734 (softmax heads), 2212.07677 (layers
as steps; recalled), 2211.15661 (deeper stacks); read through abstracts and second-hand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.icl_regression.prompts import Prompts, gram, predict, tokens
from lib.kit.checks import count, need

Weights = dict[str, Tensor]


def query(prompts: Prompts, u: Tensor | None = None) -> Tensor:
    """The query token e_q = (x_q; y_q) with y_q = u'x_q, or 0.

    prompts: any; u: (..., d) initial guess. Returns (..., B, d + 1).
    Source: 2512.04268.
    """
    x_q = prompts.x_q
    zero = torch.zeros_like(x_q[..., 0])
    guess = zero if u is None else predict(u[..., None, :], x_q)
    x_q, guess = torch.broadcast_tensors(x_q, guess[..., None])
    return torch.cat([x_q, guess[..., :1]], dim=-1)


def linear_attention(weights: Weights, prompts: Prompts) -> Tensor:
    """yhat = y_q + sum_h (1/n) sum_i (v_h'e_i) (e_i'K_h e_q), linear self-attention.

    weights: "K" (..., H, p, p) key-query, "v" (..., H, p) value read-out, and perhaps
    "u" (..., d), the initial guess y_q = u'x_q; prompts: (..., B, n, d). Returns
    (..., B). Source: 2512.04268 (read second-hand; the query is no key).
    """
    e_q = query(prompts, weights.get("u"))
    keys = torch.einsum("...hij,...bj->...bhi", weights["K"], e_q)
    reads = torch.einsum("...hi,...bij->...bhj", weights["v"], gram(prompts))
    return e_q[..., -1] + (reads * keys).sum((-2, -1))


def linear_rule(weights: Weights, prompts: Prompts) -> Tensor:
    """The weight vector that linear heads read off a context: yhat = x_q'(u + phi(G)).

    weights, prompts: of `linear_attention`. With y_q = u'x_q the answer is linear in
    x_q and in G, phi_c = sum_ab (sum_h v_ha [K_h (I; u')]_bc) G_ab: one matrix product
    for all prompts, however many heads. Returns (..., B, d).
    Source: derived here.
    """
    K, v = weights["K"], weights["v"]
    u = weights.get("u", torch.zeros_like(K[..., 0, 0, :-1]))
    lifted = K[..., :-1] + K[..., -1:] * u[..., None, None, :]  # (..., H, p, d)
    phi = torch.einsum("...ha,...hbc->...abc", v, lifted)
    G, phi = gram(prompts).flatten(-2), phi.flatten(-3, -2)
    return u[..., None, :] + torch.einsum("...bi,...ic->...bc", G, phi)


def softmax_attention(weights: Weights, prompts: Prompts) -> Tensor:
    """yhat = sum_h sum_l softmax_l(e_l'K_h e_q) v_h'e_l, softmax heads.

    weights: "K" (..., H, p, p), "v" (..., H, p); prompts: (..., B, n, d). Returns
    (..., B). Source: 2503.12734 (read second-hand).
    """
    e = tokens(prompts)
    keys = torch.einsum("...hij,...bj->...bhi", weights["K"], query(prompts))
    share = torch.softmax(keys @ e.mT, dim=-1)  # (..., B, H, n)
    return (share @ e * weights["v"][..., None, :, :]).sum((-2, -1))


def softmax_tasks(weights: Weights, prompts: Prompts) -> Tensor:
    """Softmax heads that share their attention between several labels.

    weights: "K" (..., H, d, d) between inputs, "v" (..., H, N), what each head's mean
    label is worth to each task; prompts: of `sample_tasks`. Returns answers
    (..., N, B). Source: 2503.12734 (superposition of tasks over heads; abstract).
    """
    keys = torch.einsum("...hij,...bj->...bhi", weights["K"], prompts.x_q)
    share = torch.softmax(keys @ prompts.x.mT, dim=-1)  # (..., B, H, n)
    means = torch.einsum("...bhn,...kbn->...kbh", share, prompts.y)
    return torch.einsum("...kbh,...hk->...kb", means, weights["v"])


def descent_head(
    d: int, eta: float, start: Tensor | None = None, dtype=torch.float64
) -> Weights:
    """Weights of one linear head that takes one step of descent from a start.

    d: inputs; eta: step size; start: w_0 (d,), also the initial guess. Returns weights
    of `linear_attention` for which yhat = w_1'x_q. Source: 2512.04268 (yq-LSA; the
    weights derived here).
    """
    count("d", d)
    start = torch.zeros(d) if start is None else start
    start = start.to(dtype)
    K = torch.zeros(1, d + 1, d + 1, dtype=dtype)
    K[0, :d, :d] = eta * torch.eye(d, dtype=dtype)
    v = torch.cat([-start, torch.ones(1, dtype=dtype)])[None]  # y_i - w_0'x_i
    return {"K": K, "v": v, "u": start}


def twin_heads(d: int, omega: float, mu: float, dtype=torch.float64) -> Weights:
    """Two softmax heads +-omega I with read-outs +-mu: debiased descent as omega -> 0.

    d; omega; mu: the limit's step size is 2 mu omega. Returns weights of
    `softmax_attention`. Source: 2503.12734 (emergent pattern).
    """
    count("d", d)
    K = torch.zeros(2, d + 1, d + 1, dtype=dtype)
    K[0, :d, :d] = omega * torch.eye(d, dtype=dtype)
    v = torch.zeros(2, d + 1, dtype=dtype)
    v[0, d] = mu
    return {"K": K - K.flip(0), "v": v - v.flip(0)}


# -- stacks ---------------------------------------------------------------------------


def linear_stack(weights: Weights, prompts: Prompts) -> Tensor:
    """A stack of linear layers: every token, the query too, reads the context.

    weights: "K", "V" (..., L, p, p); each layer adds V_l G_l K_l e to every token e,
    with G_l the context's Gram matrix at that layer. prompts: (..., B, n, d). Returns
    yhat = -(last entry of the query), (..., B). Source: 2211.15661's question on the
    layers of 2512.04268.
    """
    Z = torch.cat([tokens(prompts), query(prompts)[..., None, :]], dim=-2)
    for K, V in zip(weights["K"].unbind(-3), weights["V"].unbind(-3), strict=True):
        context = Z[..., :-1, :]
        G = context.mT @ context / prompts.n  # (..., B, p, p)
        Z = Z + Z @ (V[..., None, :, :] @ G @ K[..., None, :, :]).mT
    return -Z[..., -1, -1]


def stack_rule(weights: Weights, prompts: Prompts) -> Tensor:
    """The weight vector that a linear stack has found: it answers w'x_q.

    weights, prompts: of `linear_stack`. A layer multiplies all tokens by one matrix, so
    the context enters through its Gram matrix alone and n tokens need not be kept.
    Returns (..., B, d) with `linear_stack` = w'x_q. Source: derived here.
    """
    G = gram(prompts)
    p = G.shape[-1]
    eye = torch.eye(p, dtype=G.dtype, device=G.device)
    product = eye.expand_as(G)
    for K, V in zip(weights["K"].unbind(-3), weights["V"].unbind(-3), strict=True):
        layer = eye + V[..., None, :, :] @ G @ K[..., None, :, :]
        G = layer @ G @ layer.mT
        product = layer @ product
    return -product[..., -1, :-1]


def descent_stack(
    d: int, layers: int, eta: float, gamma: float = 0.0, dtype=torch.float64
) -> Weights:
    """Weights of a linear stack that takes one step of descent a layer.

    d; layers; eta: step size; gamma: 0 for plain descent, else each layer also
    replaces x by (I - gamma S) x, which flattens the spectrum of S (GD++). The last
    entry of a token carries its residual y - w'x, the query's -w'x_q. Returns weights
    of `linear_stack`. Raises ValueError for counts. Source: 2212.07677 (a linear layer
    as one step, and GD++; recalled); these weights are checked in notebook 23.
    """
    count("d", d)
    count("layers", layers)
    K = torch.zeros(layers, d + 1, d + 1, dtype=dtype)
    K[:, :d, :d] = torch.eye(d, dtype=dtype)
    V = torch.zeros_like(K)
    V[:, :d, :d] = -gamma * torch.eye(d, dtype=dtype)
    V[:, d, d] = -eta
    return {"K": K, "V": V}


# -- starts for training --------------------------------------------------------------


def start_heads(
    lead: tuple[int, ...],
    heads: int,
    d: int,
    generator: torch.Generator,
    scale: float = 0.1,
    dtype: torch.dtype = torch.float32,
) -> Weights:
    """Random K and v for `linear_attention` or `softmax_attention`.

    lead: leading dimensions; heads; d; generator; scale: standard deviation. Returns
    {"K": (*lead, H, p, p), "v": (*lead, H, p)}. Raises ValueError for counts.
    """
    count("heads", heads)
    need(scale > 0, f"scale is {scale}; from zero weights no gradient flows.")
    draw = {"generator": generator, "dtype": dtype, "device": generator.device}
    p = d + 1
    return {
        "K": scale * torch.randn(*lead, heads, p, p, **draw),
        "v": scale * torch.randn(*lead, heads, p, **draw),
    }


def start_stack(
    lead: tuple[int, ...],
    layers: int,
    d: int,
    generator: torch.Generator,
    scale: float = 0.1,
    dtype: torch.dtype = torch.float32,
) -> Weights:
    """Random K and V for `linear_stack`, scaled so that deeper stacks start as calmly.

    lead; layers; d; generator; scale: standard deviation of one layer. Returns
    {"K": (*lead, L, p, p), "V": the same}. Raises ValueError for counts.
    """
    count("layers", layers)
    draw = {"generator": generator, "dtype": dtype, "device": generator.device}
    p = d + 1
    return {
        name: scale * torch.randn(*lead, layers, p, p, **draw) for name in ("K", "V")
    }
