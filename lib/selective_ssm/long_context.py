"""Beyond the training length: global channels forget, and filtered steps remember.

What a channel still knows of its first token after L steps is e^{A sum delta}. The sum
grows with L, whatever the tokens are; a channel whose memory just reached across the
training length is therefore empty at eight times that length. LongMamba changes no
weight: in such *global* channels it sets small steps to 0, which neither decay the
state nor write to it, until the sum is what it was in training.

Source: 2504.16053. Read: the abstract, and the authors' code (GATECH-EIC/LongMamba) for
the rule: a channel is global if e^{A sum delta} over training lengths exceeds a
threshold; thresholds for delta come from the sorted training steps, the largest of them
clamped, stretched linearly to the new length; steps not larger become 0. Variants in
that code take the steps, or one factor, from the sequence at hand: `keep_largest`,
`rescale`.
Not read: the paper's tables and its averaging over calibration texts (so a caller
averages `calibrate` over its own). The needle and the closed form for exponential steps
are built here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.kit.checks import count, need
from lib.scan import selective_scan


def memory(delta: Tensor, A: Tensor) -> Tensor:
    """What is left of the state before the sequence: e^{A sum delta}.

    delta: (batch, channels, L); A: (channels, N), or (channels,) for Mamba-2's heads;
    real and negative. Returns (batch, channels, N) or (batch, channels), in (0, 1].
    Raises ValueError for shapes. Source: 2504.16053 (authors' code: the product of all
    decays).
    """
    _fits(delta, A)
    total = delta.sum(-1)
    return torch.exp(A * (total[..., None] if A.ndim == 2 else total))


def receptive_field(delta: Tensor, A: Tensor, level: float = 0.01) -> Tensor:
    """How many steps back a token still weighs `level` at the end of the sequence.

    delta, A: as `memory`; level: in (0, 1). Returns whole numbers (batch, channels, N)
    or (batch, channels): the number of trailing steps whose decays multiply to at least
    level, L if all do. Raises ValueError for shapes or another level. Source: the name
    is 2504.16053's; this measure is ours.
    """
    _fits(delta, A)
    need(0 < level < 1, f"level is {level}; give a share between 0 and 1.")
    sums = delta.flip(-1).cumsum(-1)  # over the last 1, 2, ... steps
    sums = sums[:, :, None] if A.ndim == 2 else sums
    return (A[..., None] * sums >= np.log(level)).sum(-1)


def global_channels(delta: Tensor, A: Tensor, threshold: float = 0.01) -> Tensor:
    """Which channels remember the start of a training sequence.

    delta, A: as `memory`, at the training length; threshold: of the memory, averaged
    over the batch and (if there are N) over the states. Returns a mask (channels,).
    Raises ValueError for shapes. Source: 2504.16053 (authors' code, one decay a head);
    the average over states is ours.
    """
    left = memory(delta, A).mean(0)
    return (left.mean(-1) if A.ndim == 2 else left) > threshold


def calibrate(delta: Tensor, length: int, clamp: float = 0.0) -> Tensor:
    """The step below which a channel ignores tokens in sequences of a new length.

    delta: (batch, channels, L), steps at the training length; length: the new one;
    clamp: the share of largest steps, in [0, 1), cut down to the smallest of them.
    Returns thresholds (channels,), averaged over the batch: sort a row's steps
    downwards, stretch the curve linearly to `length` points, go down it until the sum
    exceeds the row's own, and take the next value. 0 for lengths up to L. One outlier
    becomes many when stretched and spends the whole sum: hence the clamp, which in turn
    leaves about its own share of steps unfiltered. Raises ValueError for shapes or
    numbers. Source: 2504.16053 (authors' code, shares of 0.05 to 0.2; why, is ours).
    """
    need(delta.ndim == 3, f"delta is {tuple(delta.shape)}; give (batch, channels, L).")
    count("length", length)
    need(0 <= clamp < 1, f"clamp is {clamp}; give a share from 0 up to but not 1.")
    if length <= delta.shape[2]:
        return delta.new_zeros(delta.shape[1])
    falling = delta.sort(-1, descending=True).values
    cut = max(1, int(clamp * delta.shape[2])) - 1
    delta, falling = (x.minimum(falling[..., cut, None]) for x in (delta, falling))
    curve = F.interpolate(falling, size=length, mode="linear", align_corners=False)
    enough = curve.cumsum(-1) > delta.sum(-1, keepdim=True)
    place = torch.where(enough.any(-1), enough.int().argmax(-1) + 1, length - 1)
    return curve.gather(-1, place.clamp(max=length - 1)[..., None])[..., 0].mean(0)


def filter_steps(delta: Tensor, threshold: Tensor, channels: Tensor) -> Tensor:
    """LongMamba's step: delta where it exceeds the threshold, else 0, if global.

    delta: (batch, channels, L); threshold: (channels,), from `calibrate`; channels:
    mask (channels,), from `global_channels`; the others keep all steps. Returns delta's
    shape. Raises ValueError for shapes. Source: 2504.16053 (authors' code).
    """
    need(
        delta.ndim == 3 and threshold.shape == channels.shape == delta.shape[1:2],
        f"delta is {tuple(delta.shape)}, threshold {tuple(threshold.shape)}, channels "
        f"{tuple(channels.shape)}; give (batch, channels, L) and (channels,) twice.",
    )
    small = delta <= threshold[:, None]
    return delta.masked_fill(small & channels[:, None], 0)


def keep_largest(delta: Tensor, budget: Tensor) -> Tensor:
    """The largest steps of each row, as many as sum up to the budget; the rest 0.

    delta: (batch, channels, L); budget: (channels,), the sum seen in training. Returns
    delta's shape. Its sums never exceed the budget, so `memory` never falls below what
    training knew. Raises ValueError for shapes. Source: 2504.16053 (a variant in the
    authors' code).
    """
    _budget(delta, budget)
    order = delta.argsort(-1, descending=True)
    fits = delta.gather(-1, order).cumsum(-1) <= budget[:, None]
    return delta * torch.zeros_like(fits).scatter(-1, order, fits)


def rescale(delta: Tensor, budget: Tensor) -> Tensor:
    """All steps times one factor a row, so that they sum to the budget at most.

    delta, budget: as `keep_largest`. Returns delta's shape: the same memory, but every
    token is written more weakly, important ones too. The factor stays 1 where the sum
    is within the budget. Raises ValueError for shapes. Source: 2504.16053 (a variant in
    the authors' code); never enlarging is ours.
    """
    _budget(delta, budget)
    factor = budget[:, None] / delta.sum(-1, keepdim=True)
    return delta * factor.clamp(max=1)


def kept_share(stretch: float) -> float:
    """The share p of steps that filtering keeps if they are exponentially distributed.

    stretch: new length over training length, 1 or more. Returns p in (0, 1], from
    p (1 - ln p) = 1 / stretch: the largest share p of exponential variables holds the
    share p (1 - ln p) of their sum. The threshold is -ln p times their mean. Raises
    ValueError for stretch < 1. Source: derived here, the oracle of `calibrate`.
    """
    from scipy.special import lambertw

    need(stretch >= 1, f"stretch is {stretch}; give new over training length, 1 or up.")
    if stretch == 1:
        return 1.0
    # v = 1 - ln p solves v e^{-v} = e^{-1} / stretch, on the branch with v >= 1
    v = -lambertw(-np.exp(-1) / stretch, -1).real
    return float(np.exp(1 - v))


class Needle(NamedTuple):
    """One thing to remember, then a long haystack: arguments of a one-state scan.

    u, delta: (batch, channels, L); A: (channels, 1); B, C: (batch, 1, L).
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor


def needle(
    length: int, steps: Tensor, rng: np.random.Generator, trained: int, batch: int = 8
) -> Needle:
    """A selective SSM that writes its first token and should still read it at the end.

    length: L; steps: (channels,), mean steps of the haystack; rng: of the exponential
    steps; trained: a length at which channel c keeps e^{-steps_c trained}, since
    A = -1. The first token has u = 1 and delta = 1, the others u = 0: what
    `recalled` returns is memory and nothing else. Raises ValueError for sizes. Source:
    our construction for 2504.16053.
    """
    count("length", length, 2)
    count("trained", trained)
    need(
        steps.ndim == 1 and bool((steps > 0).all()) and bool((steps < 1).all()),
        "steps must be (channels,), each between 0 and 1: small beside the needle's.",
    )
    shape = (batch, len(steps), length)
    delta = torch.as_tensor(rng.exponential(size=shape)).to(steps) * steps[:, None]
    delta[..., 0] = 1
    u = torch.zeros_like(delta)
    u[..., 0] = 1
    ones = delta.new_ones(batch, 1, length)
    return Needle(u, delta, -delta.new_ones(len(steps), 1), ones, ones)


def recalled(case: Needle, delta: Tensor | None = None) -> Tensor:
    """What the scan reads of the needle at the end: (batch, channels), 1 if all.

    case: from `needle`; delta: other steps for it, filtered ones. The needle's own step
    must survive, or nothing is read. Source: our construction for 2504.16053.
    """
    delta = case.delta if delta is None else delta
    return selective_scan(case.u, delta, *case[2:])[..., -1]


def _fits(delta: Tensor, A: Tensor) -> None:
    need(
        delta.ndim == 3 and A.ndim in (1, 2) and A.shape[0] == delta.shape[1],
        f"delta is {tuple(delta.shape)}, A {tuple(A.shape)}; give (batch, channels, L) "
        "and (channels,) or (channels, N).",
    )
    need(
        not A.is_complex() and bool((A < 0).all()),
        "A has entries that are complex or not negative; only decays forget.",
    )


def _budget(delta: Tensor, budget: Tensor) -> None:
    need(
        delta.ndim == 3 and budget.shape == delta.shape[1:2],
        f"delta is {tuple(delta.shape)}, budget {tuple(budget.shape)}; give "
        "(batch, channels, L) and (channels,).",
    )
