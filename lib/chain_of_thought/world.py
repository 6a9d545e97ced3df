"""Patterns, positional codes, tasks and prompts of chain-of-thought learning.

A `World` holds M orthonormal training patterns (TRR), K positional codes orthogonal to
them, and M' test patterns (TSR) that are mixtures of training patterns. A chain
y_{i,0} .. y_{i,K} of pattern numbers becomes the K columns (y_{i,k-1}; y_{i,k}) of a
prompt, plus the code of step k in the input half.
Source: 2410.02167, read through the authors' slides (sizes, the mixtures and the place
of the codes are ours).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lib.chain_of_thought.votes import step_matrices
from lib.kit.checks import count, need


@dataclass(frozen=True)
class World:
    """What the prompts are made of; all rows have norm 1.

    mu: (M, d_X) TRR patterns; codes: (K, d_X); tsr: (M', d_X) test patterns.
    """

    mu: Tensor
    codes: Tensor
    tsr: Tensor

    def to(self, device: str) -> World:
        """The same world on another device."""
        return World(self.mu.to(device), self.codes.to(device), self.tsr.to(device))


class Chains(NamedTuple):
    """Examples and queries as pattern numbers.

    ids: (B, l, K+1), the start and the K outputs of every example; truth: (B, K+1), the
    query's start z_0 and its correct outputs z_1 .. z_K.
    """

    ids: Tensor
    truth: Tensor


def make_world(
    d_X: int = 32,
    M: int = 20,
    K: int = 2,
    M_test: int = 10,
    *,
    inside: float = 1.0,
    seed: int = 0,
) -> World:
    """Random orthonormal patterns and codes, and test patterns made from pairs.

    d_X: dimension; M: TRR patterns; K: steps, each with a code; M_test: TSR patterns
    sqrt(inside) (mu_j + mu_{j+M'}) / sqrt 2 + sqrt(1 - inside) u_j, u_j new directions.
    Returns a `World`. Raises ValueError for more patterns than dimensions or other
    sizes. Source: 2410.02167 (slides): TSR correlate with TRR patterns.
    """
    for name, size in {"d_X": d_X, "M": M, "K": K, "M_test": M_test}.items():
        count(name, size, 2 if name.startswith("M") else 1)
    need(0 <= inside <= 1, f"inside is {inside}; give a share from 0 to 1.")
    new = M_test if inside < 1 else 0
    need(
        M + K + new <= d_X,
        f"{M} training patterns, {K} positional codes and {new} new directions are "
        f"more than d_X = {d_X} dimensions can hold at right angles; give fewer "
        "patterns or a larger d_X.",
    )
    need(
        2 * M_test <= M,
        f"M_test is {M_test}; each test pattern mixes two of the M = {M} training "
        f"patterns, so give at most {M // 2}.",
    )
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d_X, d_X, generator=g, dtype=torch.float64))[
        0
    ].T
    mu, codes, spare = basis[:M], basis[M : M + K], basis[M + K : M + K + new]
    tsr = (mu[:M_test] + mu[M_test : 2 * M_test]) / math.sqrt(2)
    if new:
        tsr = math.sqrt(inside) * tsr + math.sqrt(1 - inside) * spare
    return World(mu.float(), codes.float(), tsr.float())


# -- chains -------------------------------------------------------------------------


def _starts(B: int, l_ts: int, alpha: float, n: int, g: torch.Generator) -> Tensor:
    """Starts (B, l_ts + 1): the query's, round(alpha l_ts) times again, then others."""
    need(0 < alpha <= 1, f"alpha is {alpha}; give a fraction above 0 and up to 1.")
    count("l_ts", l_ts)
    own = round(alpha * l_ts)
    need(
        own > 0,
        f"with alpha = {alpha} none of {l_ts} examples has the query's pattern; give "
        f"at least {math.ceil(0.5 / alpha + 1e-9)} examples.",
    )
    query = torch.randint(n, (B, 1), generator=g)
    step = torch.randint(1, n, (B, l_ts - own), generator=g)
    return torch.cat([query.expand(B, own + 1), (query + step) % n], dim=1)


def training_chains(
    world: World, B: int, l_tr: int, alpha: float, generator: torch.Generator
) -> Chains:
    """Chains of fresh random tasks: f_1 .. f_K are permutations of the TRR patterns.

    B: prompts; l_tr: examples a prompt, round(alpha l_tr) with the query's pattern.
    Returns `Chains`. Raises ValueError for alpha outside (0, 1] or no such example.
    Source: 2410.02167 (slides), Theorem 1: all patterns equally likely in every step.
    """
    M, K = len(world.mu), len(world.codes)
    here = _starts(B, l_tr, alpha, M, generator)
    path = [here]
    for _ in range(K):
        f = torch.rand(B, M, generator=generator).argsort(dim=1)
        path.append(f.gather(1, path[-1]))
    path = torch.stack(path, dim=-1)  # (B, l_tr+1, K+1)
    return Chains(path[:, 1:], path[:, 0])


def noisy_chains(
    world: World,
    A: Sequence,
    B: int,
    l_ts: int,
    alpha: float,
    generator: torch.Generator,
) -> Chains:
    """Noisy examples: the TSR patterns fall into random blocks that follow A_1 .. A_K.

    A: K step matrices (S, S) whose rows sum to 1; M' must be a multiple of S; B, l_ts,
    alpha: see `training_chains`. An example's step k draws from its row of A_k; the
    query's correct output is the row's maximum. Returns `Chains` of TSR numbers. Raises
    ValueError for matrices or sizes. Source: 2410.02167 (slides), step matrices A_k^f.
    """
    A = step_matrices(A)
    K, S, n = len(A), len(A[0]), len(world.tsr)
    need(
        len(world.codes) == K,
        f"{K} step matrices were given, but the world has {len(world.codes)} codes.",
    )
    need(n % S == 0, f"{n} test patterns do not fall into blocks of {S} states.")
    name = torch.rand(B, n, generator=generator).argsort(dim=1)  # place -> pattern
    place = _starts(B, l_ts, alpha, n, generator)
    path, truth = [place], [place[:, 0]]
    for A_k in torch.as_tensor(A):
        state = path[-1] % S
        draw = torch.rand(B, l_ts + 1, 1, generator=generator, dtype=A_k.dtype)
        following = (draw > A_k.cumsum(1)[state][..., :-1]).sum(-1)
        path.append(path[-1] - state + following)
        state = truth[-1] % S
        truth.append(truth[-1] - state + A_k.argmax(1)[state])
    ids, truth = torch.stack(path, -1)[:, 1:], torch.stack(truth, -1)
    ids = name[:, None].expand(B, l_ts, n).gather(2, ids)
    return Chains(ids, name.gather(1, truth))


# -- prompts ------------------------------------------------------------------------


def vectors(
    patterns: Tensor, ids: Tensor, noise: float, generator: torch.Generator | None
) -> Tensor:
    """The patterns of the given numbers plus bounded noise: (..., d_X).

    patterns: (n, d_X); ids: any shape; noise: root mean square norm of the noise, which
    is uniform in every coordinate. Raises ValueError for a negative noise. Source:
    2410.02167 (slides): TSR patterns plus bounded noise.
    """
    need(noise >= 0, f"noise is {noise}; give the noise's norm, 0 or more.")
    out = patterns[ids]
    if noise:
        draw = torch.rand(out.shape, generator=generator, dtype=out.dtype).to(
            out.device
        )
        out = out + (2 * draw - 1) * (noise * math.sqrt(3 / out.shape[-1]))
    return out


def with_codes(columns: Tensor, codes: Tensor) -> Tensor:
    """Add c_k to the input half of every step's column: p~_i = p_i + c_{i mod K}.

    columns: (B, n, K or fewer, 2 d_X), steps on the third axis; codes: (K, d_X).
    Returns (B, n * steps, 2 d_X). Source: 2410.02167 (slides), periodic code.
    """
    B, n, steps, width = columns.shape
    added = torch.nn.functional.pad(codes[:steps], (0, width // 2))
    return (columns + added).reshape(B, n * steps, width)


def cot_context(world: World, y: Tensor) -> Tensor:
    """Columns (y_{i,k-1}; y_{i,k}) of all examples and steps, with their codes.

    y: (B, l, K+1, d_X). Returns (B, l K, 2 d_X). Source: 2410.02167 (slides), E_i.
    """
    return with_codes(torch.cat([y[:, :, :-1], y[:, :, 1:]], -1), world.codes)


def icl_context(world: World, y: Tensor) -> Tensor:
    """Columns (x_i; y_{i,K}) at each first step, zeros (and codes) at the others.

    y: (B, l, K+1, d_X). Returns (B, l K, 2 d_X). Source: 2410.02167 (slides), ICL.
    """
    first = torch.cat([y[:, :, 0], y[:, :, -1]], -1)[:, :, None]
    zeros = torch.zeros_like(first).expand(-1, -1, len(world.codes) - 1, -1)
    return with_codes(torch.cat([first, zeros], 2), world.codes)


def query_columns(world: World, z: Tensor) -> Tensor:
    """The query's chain so far, Q_k: columns (z_{j-1}; z_j), the last one (z_{k-1}; 0).

    z: (B, k, d_X), z_0 .. z_{k-1}. Returns (B, k, 2 d_X). Raises ValueError for more
    steps than codes. Source: 2410.02167 (slides), Q_k.
    """
    need(
        z.shape[1] <= len(world.codes),
        f"the query has {z.shape[1]} steps, but there are {len(world.codes)} codes.",
    )
    following = torch.cat([z[:, 1:], torch.zeros_like(z[:, :1])], 1)
    return with_codes(torch.cat([z, following], -1)[:, None], world.codes)
