"""In-context linear regression: prompts, tokens, and the rivals that solve one prompt.

A prompt shows n pairs (x_i, y_i) of one hidden task w and asks for y at x_q:
w ~ N(m, tau^2 I), x ~ N(0, Sigma), y = w'x + sigma e. Every function works on leading
dimensions, so that several seeds or settings are one call.
Sources: 2211.15661 and 2512.04268 (abstracts; the set-up read second-hand).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lib.kit.checks import count, need


class Prompts(NamedTuple):
    """x (..., B, n, d), y (..., B, n), x_q (..., B, d), y_q (..., B), w (..., B, d)."""

    x: Tensor
    y: Tensor
    x_q: Tensor
    y_q: Tensor
    w: Tensor

    @property
    def n(self) -> int:
        """Examples in the context."""
        return self.x.shape[-2]


def sample_prompts(
    size: int | tuple[int, ...],
    n: int,
    d: int,
    generator: torch.Generator,
    *,
    mean: Tensor | float = 0.0,
    tau: float = 1.0,
    noise: Tensor | float = 0.0,
    root: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Prompts:
    """Fresh prompts, each with its own task.

    size: B or (..., B); n: examples; d: inputs; generator: draws all, on its device;
    mean: m, broadcast to (..., B, d); tau: spread of the tasks; noise: sigma of every
    label, the query's too, broadcast to (..., B); root: (d, d) with root root' = Sigma;
    dtype. Returns `Prompts`. Raises ValueError for sizes or spreads.
    Source: 2512.04268, 2503.12734 (set-up, read second-hand).
    """
    size = (size,) if isinstance(size, int) else tuple(size)
    for name, given in (("size", min(size)), ("n", n), ("d", d)):
        count(name, given)
    noise = torch.as_tensor(noise, dtype=dtype, device=generator.device)
    need(
        tau >= 0 and bool((noise >= 0).all()),
        f"tau is {tau}, noise {noise.min().item():g}; spreads are 0 or more.",
    )
    draw = {"generator": generator, "dtype": dtype, "device": generator.device}
    x = torch.randn(*size, n + 1, d, **draw)
    w = mean + tau * torch.randn(*size, d, **draw)
    if root is not None:
        need(root.shape == (d, d), f"root is {tuple(root.shape)}; give ({d}, {d}).")
        x = x @ root.to(x).T
    y = (x @ w[..., None])[..., 0]
    y = y + noise[..., None] * torch.randn(*size, n + 1, **draw)
    return Prompts(x[..., :n, :], y[..., :n], x[..., n, :], y[..., n], w)


def sample_tasks(
    size: int | tuple[int, ...],
    n: int,
    supports: Tensor,
    generator: torch.Generator,
    *,
    tau: float = 1.0,
    noise: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Prompts:
    """Prompts that carry several labels at once, each reading its own inputs.

    size: B or (..., B); n: examples; supports: (N, d) of 0 and 1, the inputs of each
    task; generator; tau, noise: as in `sample_prompts`; dtype. Returns `Prompts` with
    one more dimension for the tasks: y (..., N, B, n), y_q (..., N, B), w (..., N, B,
    d). Raises ValueError for the supports. Source: 2503.12734 (several tasks; abstract
    and authors' code).
    """
    need(supports.ndim == 2, f"supports is {tuple(supports.shape)}; give (N, d).")
    size = (size,) if isinstance(size, int) else tuple(size)
    N, d = supports.shape
    base = sample_prompts(size, n, d, generator, tau=tau, dtype=dtype)
    draw = {"generator": generator, "dtype": dtype, "device": generator.device}
    lead = (*size[:-1], N, size[-1])
    w = tau * torch.randn(*lead, d, **draw) * supports.to(base.x)[:, None, :]
    x = torch.cat([base.x, base.x_q[..., None, :]], dim=-2)
    y = (x.unsqueeze(-4) @ w[..., None])[..., 0]
    y = y + noise * torch.randn(y.shape, **draw)
    return Prompts(base.x, y[..., :n], base.x_q, y[..., n], w)


def tokens(prompts: Prompts) -> Tensor:
    """The context as tokens e_i = (x_i; y_i).

    prompts: any. Returns (..., B, n, d + 1). Source: 2512.04268, 2503.12734.
    """
    return torch.cat([prompts.x, prompts.y[..., None]], dim=-1)


def gram(prompts: Prompts) -> Tensor:
    """G = (1/n) sum_i e_i e_i', all that linear attention sees of a context.

    prompts: any. Returns (..., B, d + 1, d + 1). Source: derived here.
    """
    e = tokens(prompts)
    return e.mT @ e / prompts.n


def predict(w: Tensor, x_q: Tensor) -> Tensor:
    """A linear rule's answers w'x_q: (..., d) twice, to (...). Source: definition."""
    return (w * x_q).sum(-1)


# -- rivals: a context in, a weight vector out ----------------------------------------


def gd(
    prompts: Prompts,
    steps: int,
    eta: float,
    start: Tensor | float = 0.0,
    debiased: bool = False,
) -> Tensor:
    """Gradient descent on the context's half mean squared error.

    prompts: any; steps: 0 or more; eta: step size; start: w_0, broadcast to (..., B,
    d); debiased: centre the inputs first. Returns w_steps (..., B, d). Raises
    ValueError for steps. Source: 2211.15661; debiased: 2503.12734 (in one step,
    (eta/n) sum_l y_l (x_l - xbar)).
    """
    count("steps", steps, 0)
    x = prompts.x - prompts.x.mean(-2, keepdim=True) if debiased else prompts.x
    w = torch.zeros_like(prompts.w) + start
    for _ in range(steps):
        residual = prompts.y - (x @ w[..., None])[..., 0]
        w = w + eta / prompts.n * (x.mT @ residual[..., None])[..., 0]
    return w


def ridge(prompts: Prompts, lam: Tensor | float, start: Tensor | float = 0.0) -> Tensor:
    """argmin_w |y - Xw|^2 + lam |w - start|^2; lam = sigma^2 / tau^2 is Bayes.

    prompts: any; lam: positive, broadcast to (..., B); start: the prior mean. Returns
    (..., B, d). Raises ValueError for lam. Source: 2211.15661.
    """
    lam = torch.as_tensor(lam, dtype=prompts.x.dtype, device=prompts.x.device)
    need(bool((lam > 0).all()), "lam is 0 or less: give a positive one, or use ols.")
    x, d = prompts.x, prompts.x.shape[-1]
    start = torch.zeros_like(prompts.w) + start
    residual = prompts.y[..., None] - x @ start[..., None]
    A = x.mT @ x + lam[..., None, None] * torch.eye(d, dtype=x.dtype, device=x.device)
    return start + torch.linalg.solve(A, x.mT @ residual)[..., 0]


def ols(prompts: Prompts) -> Tensor:
    """Least squares, the shortest solution where n < d.

    prompts: any. Returns (..., B, d). Source: 2211.15661; textbook.
    """
    return (torch.linalg.pinv(prompts.x) @ prompts.y[..., None])[..., 0]


def sherman_morrison(prompts: Prompts, lam: float) -> Tensor:
    """Ridge regression example by example: n rank-one updates, no inverse.

    prompts: any; lam: positive. Returns (..., B, d), equal to `ridge`. Raises
    ValueError for lam. Source: 2211.15661 (its construction; updates are textbook).
    """
    need(lam > 0, f"lam is {lam}; give a positive one.")
    x, d = prompts.x, prompts.x.shape[-1]
    P = torch.eye(d, dtype=x.dtype, device=x.device).expand(*x.shape[:-2], d, d) / lam
    w = torch.zeros_like(prompts.w)
    for x_i, y_i in zip(x.unbind(-2), prompts.y.unbind(-1), strict=True):
        Px = (P @ x_i[..., None])[..., 0]
        gain = Px / (1 + predict(Px, x_i))[..., None]
        P = P - gain[..., :, None] * Px[..., None, :]
        w = w + gain * (y_i - predict(w, x_i))[..., None]
    return w


# -- distances between learners -------------------------------------------------------


def spd(a: Tensor, b: Tensor) -> Tensor:
    """Squared prediction difference, averaged over prompts: (..., B) twice, to (...).

    Raises ValueError for shapes. Source: 2211.15661 (recalled, unverified).
    """
    need(
        a.shape[-1] == b.shape[-1],
        f"predictions of {a.shape[-1]} and of {b.shape[-1]} prompts do not compare: "
        "ask both learners on the same prompts.",
    )
    return (a - b).square().mean(-1)


def ilwd(x_q: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Implicit linear weight difference: how far apart the best linear fits lie.

    x_q: (..., B, Q, d) queries on each context, Q >= d; a, b: (..., B, Q) answers of
    two learners. Returns the mean squared distance of the two fitted weight vectors,
    (...). Raises ValueError for too few queries. Source: 2211.15661 (recalled,
    unverified).
    """
    Q, d = x_q.shape[-2:]
    need(d <= Q, f"{Q} queries a context cannot fix {d} weights: give at least {d}.")
    fit = torch.linalg.pinv(x_q) @ (a - b)[..., None]
    return fit[..., 0].square().sum(-1).mean(-1)
