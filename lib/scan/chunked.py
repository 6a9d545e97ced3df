"""The recurrence in chunks: parallel inside or across chunks, a carry between them.

Mamba-2's decay is one number a head, so that a chunk of Q steps is a masked (Q, Q)
matrix and the scan becomes matrix products (`ssd`). Mamba-1 decays differently in each
channel and state: that matrix would be needed channels x N times, Q times the work of
the recurrence. `linear` and `selective` therefore walk through a chunk step by step,
all chunks at once, and then hand the state from chunk to chunk: with Q = sqrt(length),
2 Q rounds instead of Q^2 for twice the work.

Decays are multiplied, or their logarithms summed over the steps between; nothing is
divided by a decay, so nothing overflows (e^-cumsum does, at |A| delta = 0.4) unless a
mode grows so fast that its powers overflow within a chunk.
Source: 2405.21060, section 6 and listing 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.scan import terms

CHUNK = 64  # of `ssd`: 32 to 64 was fastest on CPUs, 64 to 256 is on GPUs


def _split(x: Tensor, chunk: int, value: float = 0.0) -> Tensor:
    """(batch, length, ...) as (batch, chunks, chunk, ...), padded at the end."""
    pad = -x.shape[1] % chunk
    x = F.pad(x, [0, 0] * (x.ndim - 2) + [0, pad], value=value) if pad else x
    return x.unflatten(1, (-1, chunk))


# -- any decay ----------------------------------------------------------------------


def linear(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """All states of h_t = a_t h_{t-1} + b_t. a, b: (batch, length, ...)."""
    length = b.shape[1]
    chunk = min(chunk or math.isqrt(length - 1) + 1, length)
    cut = None if reset is None else _split(terms.trailing(reset, b), chunk, False)
    own, reach = _inside(_split(a, chunk, 1.0), _split(b, chunk), cut)
    seen = None if cut is None else cut.cumsum(2) > 0  # a reset lies in between
    before = _carry(own[:, :, -1], reach[:, :, -1], h0, seen)
    carried = reach * before[:, :, None]
    carried = carried if seen is None else carried.masked_fill(seen, 0)
    return (own + carried).flatten(1, 2)[:, :length]


def _inside(a: Tensor, b: Tensor, cut: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each chunk from a zero state, and the decay from its start to each step."""
    h, decay = torch.zeros_like(b[:, :, 0]), torch.ones_like(a[:, :, 0])
    states, decays = [], []
    cuts = [None] * b.shape[2] if cut is None else cut.unbind(2)
    for a_q, b_q, cut_q in zip(a.unbind(2), b.unbind(2), cuts):
        h = h if cut_q is None else h.masked_fill(cut_q, 0)
        h, decay = a_q * h + b_q, a_q * decay
        states.append(h)
        decays.append(decay)
    return torch.stack(states, dim=2), torch.stack(decays, dim=2)


def _carry(
    own: Tensor, reach: Tensor, h0: Tensor | None, seen: Tensor | None
) -> Tensor:
    """The state before each chunk, (batch, chunks, ...)."""
    h = torch.zeros_like(own[:, 0]) if h0 is None else h0
    before = []
    cuts = [None] * own.shape[1] if seen is None else seen[:, :, -1].unbind(1)
    for own_k, reach_k, cut in zip(own.unbind(1), reach.unbind(1), cuts):
        before.append(h)
        kept = reach_k * h
        h = own_k + (kept if cut is None else kept.masked_fill(cut, 0))
    return torch.stack(before, dim=1)


def selective(
    *case, discretization: str = "euler", chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """y (batch, length, channels) and the last state; as `reference.selective`."""

    def scan(a: Tensor, b: Tensor, h0: Tensor | None, reset: Tensor | None) -> Tensor:
        return linear(a, b, h0, reset, chunk)

    return terms.selective_by(scan, case, discretization)


# -- one decay a head ---------------------------------------------------------------


def segment_sum(log_a: Tensor, reset: Tensor | None = None) -> Tensor:
    """Log decay from after step j to step i, (..., Q, Q); -inf above the diagonal.

    log_a: (..., Q); reset: (..., Q). What does not lie between j and i is masked before
    the cumulative sum: a difference of two long sums would lose the digits of a short
    one. A reset between j and i cuts them off. Source: 2405.21060, listing 1.
    """
    Q = log_a.shape[-1]
    ones = torch.ones(Q, Q, dtype=torch.bool, device=log_a.device)
    later = log_a[..., None].expand(*log_a.shape, Q)  # [k, j] is log_a of k
    sums = later.masked_fill(~ones.tril(-1), 0).cumsum(-2)
    far = ~ones.tril()
    if reset is not None:
        sequence = reset.cumsum(-1)
        far = far | (sequence[..., :, None] != sequence[..., None, :])
    return sums.masked_fill(far, -torch.inf)


def ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    reset: Tensor | None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """y (batch, length, heads, P) and the state at the end; as `reference.ssd`."""
    batch, length, heads, width = x.shape
    chunk, group = min(chunk, length), (B.shape[2], heads // B.shape[2])
    delta = terms.steps(delta, delta_bias, delta_softplus, A)
    X = _split(delta[..., None] * x.to(delta.dtype), chunk)  # (batch, K, Q, heads, P)
    log_a = _split(delta * A, chunk).mT  # (batch, K, heads, Q)
    B, C = _split(B, chunk).transpose(2, 3), _split(C, chunk).transpose(2, 3)
    cut = None if reset is None else _split(reset, chunk, False)[:, :, None]
    X = X.transpose(2, 3).unflatten(2, group)  # (batch, K, G, R, Q, P)
    own, end = _chunk_outputs(X, log_a.unflatten(2, group), B, C, cut)
    reach = log_a.cumsum(-1).exp()  # from before the chunk to each step
    reach = reach if cut is None else reach.masked_fill(cut.cumsum(-1) > 0, 0)
    reach = reach.unflatten(2, group)[..., None]  # (batch, K, G, R, Q, 1)
    h0 = terms.start(initial_state, (batch, heads, width, B.shape[-1]), A)
    before, last = _hand_over(end, reach[..., -1:, :], h0.unflatten(1, group))
    y = own + reach * (C[:, :, :, None] @ before.mT)
    y = y.flatten(2, 3).transpose(2, 3).flatten(1, 2)[:, :length]
    return terms.gate(y, x, D, z), last.flatten(1, 2)


def _chunk_outputs(
    X: Tensor, log_a: Tensor, B: Tensor, C: Tensor, cut: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What a chunk gives from a zero state: outputs (..., Q, P), its end (..., P, N).

    B, C: (batch, K, G, Q, N): C B^T is computed once for the R heads of a group.
    """
    decay = segment_sum(log_a, None if cut is None else cut[:, :, :, None]).exp()
    y = ((C @ B.mT)[:, :, :, None] * decay) @ X
    to_end = decay[..., -1, :, None]  # (batch, K, G, R, Q, 1)
    return y, (to_end * X).mT @ B[:, :, :, None]


def _hand_over(end: Tensor, reach: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk, (batch, K, G, R, P, N), and after the last."""
    before = []
    for end_k, reach_k in zip(end.unbind(1), reach.unbind(1)):
        before.append(h)
        h = reach_k * h + end_k
    return torch.stack(before, dim=1), h
