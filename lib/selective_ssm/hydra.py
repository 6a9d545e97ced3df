"""Hydra: two scans as one quasiseparable matrix, with a diagonal of its own.

y = shift(SS(x)) + flip(shift(SS'(flip x))) + D x. The shift moves each scan one step
away from the diagonal, so that the diagonal is left to D alone; adding two plain scans
instead (the usual bidirectional Mamba) ties it to the off-diagonal factors.
Source: 2407.09941, whose abstract, summaries and authors' code (goombalab/hydra) were
read; the ranks and the tied diagonal are derived here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.kit.checks import count, need
from lib.scan import ssd
from lib.selective_ssm.maps import ssd_attention


class Direction(NamedTuple):
    """What one reading direction selects, in reading order of the sequence itself.

    delta: (batch, L, heads), positive; B, C: (batch, L, groups, N).
    """

    delta: Tensor
    B: Tensor
    C: Tensor

    def flip(self) -> Direction:
        return Direction(*(x.flip(1) for x in self))


def shift(y: Tensor) -> Tensor:
    """One step later, with a zero in front: y (batch, L, ...) to the same shape.

    Source: 2407.09941.
    """
    return torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], dim=1)


def hydra_mix(
    x: Tensor,
    A: Tensor,
    forward: Direction,
    backward: Direction,
    D: Tensor,
    backend: str = "auto",
) -> Tensor:
    """y = shift(SS(x)) + flip(shift(SS'(flip x))) + D x, by one call of `lib.scan.ssd`.

    x: (batch, L, heads, P); A: (heads,), shared by both directions; forward, backward:
    `Direction`s; D: (heads,), or (batch, L, heads) where it is selected too. Returns y
    like x. Raises ValueError for shapes. Source: 2407.09941 (authors' code).
    """
    need(
        D.shape in (A.shape, x.shape[:3]),
        f"D is {tuple(D.shape)}; give {tuple(A.shape)} or {tuple(x.shape[:3])}.",
    )
    both = [torch.cat(pair) for pair in zip(forward, backward.flip())]
    delta, B, C = both
    y = shift(ssd(torch.cat([x, x.flip(1)]), delta, A, B, C, backend=backend))
    ahead, back = y.chunk(2)
    return ahead + back.flip(1) + D[..., None] * x


def hydra_matrix(
    A: Tensor, forward: Direction, backward: Direction, D: Tensor
) -> Tensor:
    """The matrix of `hydra_mix`: (batch, heads, L, L), quasiseparable of order N.

    Arguments as there. Strictly below the diagonal stands the shifted forward scan, on
    it D alone, above it the backward scan. Raises ValueError for shapes. Source:
    2407.09941; written out here as the oracle.
    """
    lower, upper = _triangles(A, forward, backward)
    D = D if D.ndim == 3 else D.expand(forward.delta.shape)
    down = shift(lower.transpose(1, 2)).transpose(1, 2)  # rows move down by one
    up = shift(upper.flip(2, 3).transpose(1, 2)).transpose(1, 2).flip(2, 3)
    return down + up + torch.diag_embed(D.transpose(1, 2))


def added_matrix(A: Tensor, forward: Direction, backward: Direction) -> Tensor:
    """The matrix of two plain scans added, SS(x) + flip(SS'(flip x)).

    Arguments as `hydra_mix`. Returns (batch, heads, L, L); both scans write on the
    diagonal, C_t B_t delta_t twice. Raises ValueError for shapes. Source: 2407.09941
    names this rival; written out here.
    """
    lower, upper = _triangles(A, forward, backward)
    return lower + upper


def _triangles(A: Tensor, forward: Direction, backward: Direction) -> tuple:
    """Both scans' matrices in reading order, diagonals included."""
    lower = ssd_attention(forward.delta, A, forward.B, forward.C)
    ahead = backward.flip()
    upper = ssd_attention(ahead.delta, A, ahead.B, ahead.C)
    return lower, upper.flip(2, 3)


def tied_diagonal(M: Tensor) -> Tensor:
    """The inner diagonal that `added_matrix`'s off-diagonal entries dictate for N = 1.

    M: (..., L, L), L at least 3, nonzero beside the diagonal. With one state a causal
    scan has M[t,t] = M[t,t-1] M[t+1,t] / M[t+1,t-1]; the backward one mirrors it, and
    the two add up. Returns (..., L-2), positions 1 to L-2: equal to M's own diagonal
    for added scans, unrelated to it for Hydra. Raises ValueError for shapes. Source:
    derived here.
    """
    need(
        M.ndim >= 2 and M.shape[-1] == M.shape[-2] >= 3,
        f"M is {tuple(M.shape)}; give square matrices (..., L, L), L at least 3.",
    )

    def one(low: Tensor) -> Tensor:
        near, far = low.diagonal(-1, -2, -1), low.diagonal(-2, -2, -1)
        return near[..., :-1] * near[..., 1:] / far

    return one(M) + one(M.transpose(-1, -2))


class Hydra(nn.Module):
    """A Hydra layer: project, convolve both ways, mix, normalise, gate, project back.

    d_model: width; d_state: N; expand: inner width over width; headdim: P, dividing the
    inner width; conv: taps of the centred convolution, odd. One projection serves both
    directions; only B, C and the steps are doubled. Raises ValueError for sizes.
    Source: 2407.09941 (authors' code: sizes, order, shared A and bias, D selected).
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        expand: int = 2,
        headdim: int = 16,
        conv: int = 7,
    ):
        super().__init__()
        sizes = {"d_model": d_model, "d_state": d_state, "expand": expand}
        for name, size in (sizes | {"headdim": headdim, "conv": conv}).items():
            count(name, size)
        inner = expand * d_model
        need(conv % 2 == 1, f"conv is {conv}; a centred convolution needs an odd one.")
        need(inner % headdim == 0, f"headdim {headdim} does not divide {inner}.")
        self.heads, self.d_state = inner // headdim, d_state
        self.sizes = [inner, inner + 4 * d_state, 2 * self.heads]  # z, xBC, delta
        self.in_proj = nn.Linear(d_model, sum(self.sizes), bias=False)
        width = self.sizes[1]
        self.conv = nn.Conv1d(width, width, conv, padding=conv // 2, groups=width)
        step = torch.logspace(-3, -1, self.heads)
        self.delta_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.select_D = nn.Linear(inner, self.heads, bias=False)
        self.norm = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def select(self, u: Tensor) -> tuple:
        """u (batch, L, d_model) to z, x and what `hydra_mix` takes after x."""
        z, xBC, delta = self.in_proj(u).split(self.sizes, dim=-1)
        xBC = F.silu(self.conv(xBC.transpose(1, 2)).transpose(1, 2))
        x, *BC = xBC.split([self.sizes[0], *[self.d_state] * 4], dim=-1)
        B, C, B_back, C_back = (part[:, :, None] for part in BC)
        steps = F.softplus(delta.unflatten(-1, (2, -1)) + self.delta_bias)
        forward = Direction(steps[:, :, 0], B, C)
        backward = Direction(steps[:, :, 1], B_back, C_back)
        D = self.D + self.select_D(x)
        x = x.unflatten(-1, (self.heads, -1))
        return z, x, (-torch.exp(self.A_log), forward, backward, D)

    def forward(self, u: Tensor) -> Tensor:
        """u: (batch, L, d_model) to the same shape; every output sees every input."""
        need(
            u.ndim == 3 and u.shape[2] == self.in_proj.in_features,
            f"u is {tuple(u.shape)}; give (batch, L, {self.in_proj.in_features}).",
        )
        z, x, mixer = self.select(u)
        y = hydra_mix(x, *mixer).flatten(2)
        y = F.rms_norm(y, self.norm.shape, self.norm, eps=1e-5)
        return self.out_proj(y * F.silu(z))

    def matrix(self, u: Tensor) -> Tensor:
        """The mixing matrices (batch, heads, L, L) that this input selects."""
        return hydra_matrix(*self.select(u)[2])


def parameter_counts(
    d_model: int, d_state: int = 16, expand: int = 2, headdim: int = 16, conv: int = 7
) -> dict[str, int]:
    """Parameters of one Hydra layer and of two one-directional layers of its shape.

    Arguments as `Hydra`. Returns "hydra" (what the class holds) and "two scans": twice
    a layer with one direction's B, C and steps and a plain D. Raises ValueError for
    sizes. Source: counted here; the sharing is 2407.09941's (authors' code).
    """
    hydra = sum(
        p.numel() for p in Hydra(d_model, d_state, expand, headdim, conv).parameters()
    )
    inner = expand * d_model
    heads, width = inner // headdim, inner + 2 * d_state
    projections = d_model * (inner + width + heads) + inner * d_model
    one = projections + width * (conv + 1) + 3 * heads + inner
    return {"hydra": hydra, "two scans": 2 * one}
