"""The matrix behind a selective scan: hidden attention, and how low its ranks are.

A scan is linear in u once delta, B and C are known, y = alpha u, with
alpha[t, s] = C_t exp(A (delta_{s+1} + ... + delta_t)) delta_s B_s below the diagonal.
Written as products, that is attention without a softmax; written as blocks, it is a
matrix whose lower-left corners have rank N at most. Sources: 2403.01590 (hidden
attention; abstract and summaries read, the formula follows from the recurrence),
2405.21060 (SSD, semiseparable matrices; through the collection's specification).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.kit.checks import need
from lib.scan.chunked import segment_sum


def segment_sums(x: Tensor) -> Tensor:
    """Sums over (s, t], x_{s+1} + ... + x_t, for every t and s; -inf above s = t.

    x: (..., L). Returns (..., L, L). Every entry is summed from its own terms: the
    difference of two cumulative sums would lose the digits that they share. Raises
    ValueError for a number. Source: 2405.21060 (segsum); derived here.
    """
    need(x.ndim >= 1, "x is a single number; give one step size a position, (..., L).")
    return segment_sum(x)


def _grouped(name: str, B: Tensor, delta: Tensor, channels: int) -> Tensor:
    """B or C as (batch, channels, N, L)."""
    B = B[:, None] if B.ndim == 3 else B
    batch, length = delta.shape[0], delta.shape[-1]
    fits = B.ndim == 4 and (B.shape[0], B.shape[-1]) == (batch, length)
    need(
        fits and B.shape[1] > 0 and channels % B.shape[1] == 0,
        f"{name} does not fit delta {tuple(delta.shape)}; give (batch, N, L) or "
        "(batch, groups, N, L), groups dividing the channels.",
    )
    return B.repeat_interleave(channels // B.shape[1], dim=1)


def hidden_attention(
    delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None
) -> Tensor:
    """The matrix of `lib.scan.selective_scan`: one (L, L) map a channel.

    delta: (batch, channels, L), positive, after bias and softplus; A: (channels, N),
    real, or complex (then 2 Re is taken); B, C: (batch, N, L) or (batch, groups, N, L);
    D: (channels,), added on the diagonal. Returns alpha (batch, channels, L, L): alpha
    @ u is the scan; a gate scales its rows. Memory grows with L^2: a microscope, not a
    layer. Raises ValueError for shapes. Source: 2403.01590 (as in the module).
    """
    need(
        delta.ndim == 3 and A.ndim == 2 and A.shape[0] == delta.shape[1],
        f"delta is {tuple(delta.shape)}, A {tuple(A.shape)}; give (batch, channels, L) "
        "and (channels, N).",
    )
    channels, N = A.shape
    B, C = (_grouped(n, x, delta, channels) for n, x in (("B", B), ("C", C)))
    need(
        B.shape[2] == C.shape[2] == N,
        f"B has {B.shape[2]} states, C {C.shape[2]}, A {N}; they must agree.",
    )
    sums = segment_sums(delta)
    causal = torch.isfinite(sums)
    alpha = 0
    for n in range(N):  # one state at a time, or memory would be N times as large
        decay = torch.exp(A[:, n, None, None] * sums.masked_fill(~causal, 0))
        written = (delta * B[:, :, n])[:, :, None, :]
        term = C[:, :, n, :, None] * decay.masked_fill(~causal, 0) * written
        alpha = alpha + (2 * term.real if term.is_complex() else term)
    return alpha if D is None else alpha + torch.diag_embed(_skip(D, delta, 1))


def ssd_attention(
    delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None
) -> Tensor:
    """The matrix of `lib.scan.ssd`, L o (C B^T) diag(delta): one (L, L) map a head.

    delta: (batch, L, heads), positive; A: (heads,); B, C: (batch, L, groups, N), groups
    dividing heads; D: (heads,). Returns (batch, heads, L, L): the causal mask L is
    exp(A * segment sums), the rest is linear attention. Raises ValueError for shapes.
    Source: 2405.21060 (through the collection's specification).
    """
    need(
        delta.ndim == 3 and A.shape == delta.shape[2:] and B.shape == C.shape,
        f"delta is {tuple(delta.shape)}, A {tuple(A.shape)}, B {tuple(B.shape)}, C "
        f"{tuple(C.shape)}; give (batch, L, heads), (heads,) and twice "
        "(batch, L, groups, N).",
    )
    steps = delta.transpose(1, 2)  # (batch, heads, L)
    B, C = (
        _grouped(n, x.permute(0, 2, 3, 1), steps, len(A)) if x.ndim == 4 else x
        for n, x in (("B", B), ("C", C))
    )
    need(B.ndim == 4, f"B and C have {B.ndim} dimensions; give (batch, L, groups, N).")
    sums = segment_sums(steps)
    causal = torch.isfinite(sums)
    mask = torch.exp(A[:, None, None] * sums.masked_fill(~causal, 0))
    scores = C.transpose(2, 3) @ (B * steps[:, :, None])  # (batch, heads, L, L)
    alpha = mask.masked_fill(~causal, 0) * scores
    return alpha if D is None else alpha + torch.diag_embed(_skip(D, steps, 1))


def _skip(D: Tensor, delta: Tensor, dim: int) -> Tensor:
    need(
        D.shape == (delta.shape[dim],),
        f"D is {tuple(D.shape)}; give one number a channel or head, "
        f"({delta.shape[dim]},).",
    )
    return D[:, None].expand(delta.shape)


def block_ranks(M: Tensor, part: str = "lower", rtol: float = 1e-10) -> Tensor:
    """The rank of every largest block on one side of the diagonal.

    M: (..., L, L); part: "semi" blocks M[k:, :k+1] that touch the diagonal, "lower"
    M[k:, :k] and "upper" M[:k, k:] that do not; rtol: a singular value below rtol times
    the largest of M counts as 0. Returns (..., L) ranks, (..., L-1) for the last two.
    Raises ValueError for another part or shape. Source: 2405.21060 (N-semiseparable:
    "semi" ranks at most N), 2407.09941 (quasiseparable: the other two).
    """
    need(
        part in ("semi", "lower", "upper"),
        f"The part is {part!r}; choose one of semi, lower, upper.",
    )
    need(
        M.ndim >= 2 and M.shape[-1] == M.shape[-2] > (part != "semi"),
        f"M is {tuple(M.shape)}; give square matrices (..., L, L), L at least 2.",
    )
    floor = rtol * torch.linalg.matrix_norm(M, 2)[..., None]
    M = M.transpose(-1, -2) if part == "upper" else M
    wide = part == "semi"
    blocks = [M[..., k:, : k + wide] for k in range(1 - wide, M.shape[-1])]
    return torch.stack([(torch.linalg.svdvals(b) > floor).sum(-1) for b in blocks], -1)


def semiseparable_rank(M: Tensor, rtol: float = 1e-10) -> int:
    """The smallest N for which lower triangular M is N-semiseparable.

    M: (..., L, L); rtol: see `block_ranks`. Returns the largest rank over all blocks
    and matrices: N at most for a scan with N states, N + 1 once D stands on the
    diagonal. Raises ValueError as `block_ranks`. Source: 2405.21060 (through the
    collection's specification).
    """
    return int(block_ranks(M, "semi", rtol).max())
