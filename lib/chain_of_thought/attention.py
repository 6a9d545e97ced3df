"""The one-layer softmax model: its attention, its training, its inference.

f(P) = sum_i W_V p~_i softmax_i((W_K p~_i)' W_Q p~_query), the sum over all columns but
the query's own. Parameters are a dictionary {"W_K", "W_Q", "W_V"}; W_V is fixed to the
output half unless it is named in `learn`.
Source: 2410.02167, read through the authors' slides; the start W_K = W_Q = delta I and
the fixed W_V are this collection's choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib.chain_of_thought.world import (
    Chains,
    World,
    cot_context,
    icl_context,
    noisy_chains,
    query_columns,
    training_chains,
    vectors,
)
from lib.kit.checks import choice, count, need

GROUPS = ("same/same", "same/diff", "diff/same", "diff/diff")  # pattern/step
Theta = dict[str, Tensor]


class Diverged(FloatingPointError):
    """Training left the region in which it learns; the sentence names rate and step."""


def init_theta(
    d_X: int, delta: float = 0.2, dtype: torch.dtype = torch.float32
) -> Theta:
    """W_K = W_Q = delta I, (2 d_X, 2 d_X), and W_V = (0, I), (d_X, 2 d_X).

    Raises ValueError for sizes. Source: ours; 2410.02167's own start was not seen.
    """
    count("d_X", d_X)
    need(delta > 0, f"delta is {delta}; give a positive start, 0 has no gradient.")
    eye = torch.eye(2 * d_X, dtype=dtype)
    return {"W_K": delta * eye, "W_Q": delta * eye.clone(), "W_V": eye[d_X:].clone()}


def attention(theta: Theta, P: Tensor) -> Tensor:
    """Softmax weights of the last column (the query) over all columns before it.

    P: (B, n+1, 2 d_X) with codes. Returns (B, n). Source: 2410.02167 (slides).
    """
    # (W_K p_i)' W_Q p_query, the two products of the query first: n times cheaper.
    asked = P[:, -1] @ theta["W_Q"].T @ theta["W_K"]  # (B, 2 d_X)
    return torch.softmax((P[:, :-1] @ asked[..., None])[..., 0], dim=-1)


def forward(theta: Theta, P: Tensor) -> Tensor:
    """The model's output f(P).

    P: (B, n+1, 2 d_X), the query last. Returns (B, d_X). Source: 2410.02167 (slides).
    """
    mixed = (attention(theta, P)[:, None] @ P[:, :-1])[:, 0]  # (B, 2 d_X)
    return mixed @ theta["W_V"].T


# -- training -----------------------------------------------------------------------


def training_prompts(world: World, chains: Chains, k: int) -> tuple[Tensor, Tensor]:
    """Prompts (E_1, .., E_l, Q_k) and labels z_k.

    k: the step that is asked for, 1 to K. Returns P (B, l K + k, 2 d_X) and z (B, d_X).
    Raises ValueError for k. Source: 2410.02167 (slides).
    """
    K = len(world.codes)
    need(1 <= k <= K, f"k is {k}; the chain has steps 1 to {K}.")
    y, z = world.mu[chains.ids], world.mu[chains.truth]
    P = torch.cat([cot_context(world, y), query_columns(world, z[:, :k])], dim=1)
    return P, z[:, k]


def attention_groups(theta: Theta, world: World, chains: Chains, k: int) -> Tensor:
    """Attention on same or different patterns and steps, mean over the prompts.

    Groups in the order of GROUPS. A column's pattern is its input's, y_{i,k'-1}, its
    step k'. The query's own k-1 earlier columns belong to no group, so the four sum to
    1 minus their share. Returns (4,). Source: 2410.02167 (slides), attention figure.
    """
    P, _ = training_prompts(world, chains, k)
    l_ts, K = chains.ids.shape[1], len(world.codes)
    with torch.no_grad():
        weights = attention(theta, P)[:, : l_ts * K].reshape(-1, l_ts, K)
    pattern = chains.ids[..., :-1] == chains.truth[:, None, None, k - 1]
    step = (torch.arange(K) + 1 == k).expand_as(pattern)
    chosen = [pattern & step, pattern & ~step, ~pattern & step, ~pattern & ~step]
    return torch.stack([(weights * group.to(P)).sum((1, 2)).mean() for group in chosen])


class History(NamedTuple):
    """Training as a table: loss (T,), recorded steps (n,), groups (n, 4)."""

    loss: Tensor
    steps: list[int]
    groups: Tensor


def train(
    world: World,
    *,
    T: int = 600,
    eta: float = 2.0,
    B: int = 64,
    l_tr: int = 20,
    alpha: float = 0.5,
    delta: float = 0.2,
    learn: Sequence[str] = ("W_K", "W_Q"),
    seed: int = 0,
    every: int = 20,
) -> tuple[Theta, History]:
    """SGD on 1/2 ||z_k - f(P)||^2 over fresh prompts; step k runs through 1 .. K.

    T: iterations; eta: step size; B: batch; world, l_tr, alpha, delta: see
    `training_chains`, `init_theta`; learn: what is trained; every: iterations between
    two looks at the attention. Returns the parameters and the history. Raises
    `Diverged` with a sentence, ValueError for settings. Source: 2410.02167 (slides).
    """
    for name, size in {"T": T, "B": B, "every": every}.items():
        count(name, size)
    need(eta > 0, f"eta is {eta}; give a positive step size.")
    K = len(world.codes)
    g, other = (torch.Generator().manual_seed(seed + part) for part in (0, 10**6))
    held = training_chains(world, 128, l_tr, alpha, other)  # to look at
    theta = init_theta(world.mu.shape[1], delta)
    theta = {name: W.to(world.mu.device) for name, W in theta.items()}
    for name in learn:
        choice("learn", name, theta)
        theta[name].requires_grad_(True)
    losses, looks = [], {}
    for t in range(T):
        if t % every == 0:
            looks[t] = _all_groups(theta, world, held)
        chains = training_chains(world, B, l_tr, alpha, g)
        P, z = training_prompts(world, chains, t % K + 1)
        loss = (z - forward(theta, P)).square().sum(-1).mean() / 2
        gradients = torch.autograd.grad(loss, [theta[name] for name in learn])
        with torch.no_grad():
            for name, gradient in zip(learn, gradients, strict=True):
                theta[name] -= eta * gradient
        losses.append(loss.item())
        _watch(losses, eta, K)
    looks[T] = _all_groups(theta, world, held)
    history = History(torch.tensor(losses), list(looks), torch.stack([*looks.values()]))
    return {name: W.detach() for name, W in theta.items()}, history


def _all_groups(theta: Theta, world: World, chains: Chains) -> Tensor:
    """`attention_groups`, mean over the steps: (4,), on the CPU."""
    K = len(world.codes)
    looks = [attention_groups(theta, world, chains, k + 1) for k in range(K)]
    return torch.stack(looks).mean(0).cpu()


def _watch(losses: list[float], eta: float, K: int) -> None:
    """Raise `Diverged` where the loss is no number, or stays above where it began."""
    t, now = len(losses), losses[-1]
    said = f"training diverged at step {t} with eta = {eta:g}: the loss "
    advice = "Take a smaller eta, such as "
    if not math.isfinite(now):
        raise Diverged(f"{said}is {now}. {advice}{eta / 10:g}.")
    if t >= 40 * K and t % (10 * K) == 0:
        first, late = (
            sum(part) / len(part) for part in (losses[:K], losses[-10 * K :])
        )
        if late > 1.05 * first:
            raise Diverged(
                f"{said}rose from {first:.3g} to {late:.3g}. {advice}{eta / 10:g}."
            )


# -- inference ----------------------------------------------------------------------


def nearest(patterns: Tensor, F: Tensor) -> Tensor:
    """Greedy decoding: the number of the pattern u that minimises ||F - u||^2.

    patterns: (n, d_X); F: (B, d_X). Returns (B,). Source: 2410.02167 (slides).
    """
    return (patterns.square().sum(-1) - 2 * F @ patterns.T).argmin(dim=-1)


def cot_infer(theta: Theta, world: World, y: Tensor, query: Tensor) -> Tensor:
    """Chain of thought: decode a step, append it, ask for the next.

    y: (B, l, K+1, d_X) examples; query: (B, d_X). Returns v (B, K), the TSR numbers of
    all steps. Source: 2410.02167 (slides), CoT inference.
    """
    context, z, v = cot_context(world, y), query[:, None], []
    for _ in world.codes:
        P = torch.cat([context, query_columns(world, z)], dim=1)
        v.append(nearest(world.tsr, forward(theta, P)))
        z = torch.cat([z, world.tsr[v[-1]][:, None]], dim=1)
    return torch.stack(v, dim=1)


def icl_infer(theta: Theta, world: World, y: Tensor, query: Tensor) -> Tensor:
    """In-context learning: inputs and final outputs only, one step.

    y, query: see `cot_infer`. Returns v (B,). Source: 2410.02167 (slides), ICL.
    """
    context = icl_context(world, y)
    P = torch.cat([context, query_columns(world, query[:, None])], dim=1)
    return nearest(world.tsr, forward(theta, P))


def plurality(
    said: Tensor, voter: Tensor, n: int, generator: torch.Generator
) -> Tensor:
    """The output that most voters say; ties by lot, -1 where nobody votes.

    said: (B, l) outputs below n; voter: (B, l) bool. Returns (B,). Source: 2410.02167's
    mechanism (slides), idealised.
    """
    votes = torch.zeros(len(said), n).scatter_add_(1, said, voter.float())
    lot = torch.rand(votes.shape, generator=generator)
    return torch.where(voter.any(1), (votes + 0.5 * lot).argmax(1), -1)


def plurality_cot(chains: Chains, n: int, generator: torch.Generator) -> Tensor:
    """Chained votes among the same-step, same-pattern columns.

    chains: examples; n: number of patterns. Returns v (B, K). Source: `plurality`.
    """
    here, v = chains.truth[:, :1], []
    for k in range(1, chains.ids.shape[-1]):
        voter = chains.ids[..., k - 1] == here
        v.append(plurality(chains.ids[..., k], voter, n, generator))
        here = v[-1][:, None]
    return torch.stack(v, dim=1)


def errors(
    theta: Theta,
    world: World,
    A: Sequence,
    l_ts: int,
    alpha: float,
    *,
    prompts: int = 1000,
    noise: float = 0.1,
    seed: int = 0,
    columns: int = 10_000,
) -> dict[str, float]:
    """Errors of CoT, ICL and the sampled votes on fresh test prompts.

    A, l_ts, alpha: see `noisy_chains`; noise: see `vectors`; columns: of all prompts
    that are held at once. Returns {"cot", "cot_last", "icl", "cot_vote", "icl_vote"}:
    cot is the mean over the steps of 1(v_k != z_k), cot_last 1(v_K != z_K) and icl
    1(v != z_K). Raises ValueError. Source: 2410.02167 (slides) for cot and icl (the
    slide prints "=", which must be "not equal").
    """
    count("prompts", prompts)
    K, n, device = len(world.codes), len(world.tsr), world.mu.device
    g = torch.Generator().manual_seed(seed)
    wrong = dict.fromkeys(("cot", "cot_last", "icl", "cot_vote", "icl_vote"), 0.0)
    most = max(1, columns // (l_ts * K))
    for first in range(0, prompts, most):
        B = min(most, prompts - first)
        ids, truth = chains = noisy_chains(world, A, B, l_ts, alpha, g)
        y = vectors(world.tsr, ids.to(device), noise, g)
        query = vectors(world.tsr, truth[:, 0].to(device), noise, g)
        own = ids[..., 0] == truth[:, :1]
        steps = cot_infer(theta, world, y, query).cpu() != truth[:, 1:]
        found = {
            "cot": steps,
            "cot_last": steps[:, -1],
            "icl": icl_infer(theta, world, y, query).cpu() != truth[:, -1],
            "cot_vote": plurality_cot(chains, n, g) != truth[:, 1:],
            "icl_vote": plurality(ids[..., -1], own, n, g) != truth[:, -1],
        }
        for name, miss in found.items():
            wrong[name] += float(miss.double().mean()) * B / prompts
    return wrong
