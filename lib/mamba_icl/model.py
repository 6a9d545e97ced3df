"""One-layer Mamba as gated linear attention, and the attentions it is compared with.

Every arm is a function F(theta, P) of the prompts P (..., l + 1, d + 1): a sum over
the examples of weight times label times score,
F = sum_i G_i y_i (p_i^T W_B^T W_C p_query). The arms differ in the weights G. theta is
a dictionary of tensors W_B, W_C (..., N, d + 1) and, where the arm has one, w or g;
leading dimensions are independent runs, which train side by side.
Source: 2510.00399, equations (1) to (3).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lib import scan
from lib.kit.checks import choice, need

Theta = dict[str, Tensor]
REACH = 3.0  # scale of the arms whose weights sum to one, so that they reach margin 1


# -- scores and gates ---------------------------------------------------------------


def scores(theta: Theta, P: Tensor) -> Tensor:
    """p_i^T W_B^T W_C p_query of every row: P (..., l + 1, d + 1) to (..., l + 1)."""
    seen = P[..., -1, :] @ theta["W_C"].mT @ theta["W_B"]  # (..., d + 1)
    return (P * seen[..., None, :]).sum(-1)


def preactivation(w: Tensor, P: Tensor) -> Tensor:
    """a_i = w^T p_i: w (..., d + 1), P (..., B, l + 1, d + 1) to (..., B, l + 1)."""
    return (P @ w[..., None, :, None])[..., 0]


def gates(w: Tensor, P: Tensor) -> Tensor:
    """G_{i,l+1}(w) = sigma(a_i) prod_{j>i} (1 - sigma(a_j)), in logarithms.

    w: (..., d + 1); P: (..., B, l + 1, d + 1). Returns (..., B, l + 1), no overflow for
    any w. Source: 2510.00399, after equation (3).
    """
    a = preactivation(w, P)
    keep = functional.logsigmoid(-a)  # log(1 - sigma)
    later = keep.flip(-1).cumsum(-1).flip(-1) - keep  # sum over j > i
    return (functional.logsigmoid(a) + later).exp()


def gate_gradient(w: Tensor, P: Tensor) -> Tensor:
    """dG_i/dw = G_i ((1 - sigma_i) p_i - sum_{j>i} sigma_j p_j).

    w: (d + 1,); P: (B, l + 1, d + 1). Returns (B, l + 1, d + 1). Derived here.
    """
    sigma = torch.sigmoid(preactivation(w, P))[..., None]
    pull = sigma * P
    later = pull.flip(-2).cumsum(-2).flip(-2) - pull
    return gates(w, P)[..., None] * ((1 - sigma) * P - later)


# -- the arms -----------------------------------------------------------------------


def mamba(theta: Theta, P: Tensor) -> Tensor:
    """One-layer Mamba, equation (3): a gate of its own for every example."""
    return (gates(theta["w"], P) * P[..., -1] * scores(theta, P)).sum(-1)


def linear(theta: Theta, P: Tensor) -> Tensor:
    """Linear attention, the paper's linear transformer: G = 1."""
    return (P[..., -1] * scores(theta, P)).sum(-1)


def fixed_decay(theta: Theta, P: Tensor) -> Tensor:
    """RetNet's form: G_i = gamma^(l + 1 - i), gamma = sigmoid(g) trained, no input."""
    back = torch.arange(P.shape[-2] - 1, -1, -1, dtype=P.dtype, device=P.device)
    weight = torch.exp(back * functional.logsigmoid(theta["g"])[..., None])  # (.., l+1)
    return (weight[..., None, :] * P[..., -1] * scores(theta, P)).sum(-1)


def normalised(theta: Theta, P: Tensor) -> Tensor:
    """Normalised linear attention with phi = elu + 1 (2006.16236), scaled by REACH."""
    key = 1 + functional.elu(P[..., :-1, :] @ theta["W_B"][..., None, :, :].mT)
    query = 1 + functional.elu(P[..., -1, :] @ theta["W_C"].mT)
    weight = (key @ query[..., None])[..., 0]
    return REACH * (weight * P[..., :-1, -1]).sum(-1) / weight.sum(-1)


def softmax(theta: Theta, P: Tensor) -> Tensor:
    """Softmax attention over the examples, scaled by REACH."""
    weight = torch.softmax(scores(theta, P)[..., :-1], -1)
    return REACH * (weight * P[..., :-1, -1]).sum(-1)


ARMS: dict[str, Callable[[Theta, Tensor], Tensor]] = {
    "mamba": mamba,
    "linear": linear,
    "fixed decay": fixed_decay,
    "normalised": normalised,
    "softmax": softmax,
}


def initial(
    arm: str,
    d: int,
    *,
    generator: torch.Generator,
    runs: tuple[int, ...] = (),
    delta: float = 0.2,
    gamma: float = 0.9,
    dtype: torch.dtype = torch.float32,
) -> Theta:
    """The paper's start: W_B = W_C = diag(delta, ..., delta, 0), w ~ N(0, I / (d + 1)).

    arm: one of ARMS; d: input dimension, so N = d + 1; runs: leading dimensions;
    delta: in (0, 0.2] in the paper; gamma: start of the fixed decay. Returns theta.
    Raises ValueError for an unknown arm and a delta that is not positive.
    Source: 2510.00399, section 3 (there N = l + 1, which has no d diagonal entries).
    """
    choice("arm", arm, ARMS)
    need(delta > 0, f"delta is {delta}; at 0 the gradient of W_B and W_C vanishes.")
    place = {"dtype": dtype, "device": generator.device}
    diagonal = torch.full((d + 1,), float(delta), **place)
    diagonal[-1] = 0  # the label's row and column
    W = torch.diag(diagonal).expand(*runs, d + 1, d + 1)
    theta = {"W_B": W.clone(), "W_C": W.clone()}
    w = torch.randn(*runs, d + 1, generator=generator, **place) / (d + 1) ** 0.5
    if arm == "mamba":
        theta["w"] = w
    if arm == "fixed decay":
        start = torch.logit(torch.tensor(gamma, dtype=torch.float64))
        theta["g"] = torch.full(runs, float(start), **place)
    return theta


# -- the scan behind the attention --------------------------------------------------


def zoh_scan(W: Tensor, theta: Theta, P: Tensor, rule: str = "zoh") -> Tensor:
    """Equation (1) step by step, all channels; returns the last one of every o_i.

    W: (d + 1, d + 1), the rows w_j of the steps Delta_j = softplus(w_j^T u), its last
    row being w; theta: W_B, W_C (N, d + 1); P: (B, L, d + 1), the tokens u_i. rule:
    "zoh", exact for A = -I, or "euler", Mamba's own kernel. Returns (B, L).
    Raises ValueError for another rule. Source: 2510.00399, equation (1).
    """
    choice("rule", rule, ("zoh", "euler"))
    h, out = 0, []
    for u in P.unbind(-2):  # u: (B, d + 1)
        delta = functional.softplus(u @ W.T)[..., None]  # (B, d + 1, 1)
        gain = delta if rule == "euler" else 1 - torch.exp(-delta)
        B, C = u @ theta["W_B"].T, u @ theta["W_C"].T  # (B, N)
        h = torch.exp(-delta) * h + gain * u[..., None] * B[:, None]
        out.append((h * C[:, None]).sum(-1)[..., -1])
    return torch.stack(out, -1)


def collection_scan(W: Tensor, theta: Theta, P: Tensor, rule: str = "zoh") -> Tensor:
    """`zoh_scan` by the collection's `selective_scan`: the same arguments and result.

    The query's label is 0, so the last value is F. Source: 2312.00752, Algorithm 2.
    """
    B, C = P @ theta["W_B"].T, P @ theta["W_C"].T  # (B, L, N)
    A = -torch.ones(W.shape[0], B.shape[-1], dtype=P.dtype, device=P.device)
    options = {"delta_softplus": True, "discretization": rule, "channel_last": True}
    return scan.selective_scan(P, P @ W.T, A, B, C, **options)[..., -1]


def recurrent(theta: Theta, P: Tensor) -> Tensor:
    """Mamba with a state of N numbers: s <- (1 - sigma) s + sigma y W_B p; O(l) time.

    theta: W_B, W_C (N, d + 1), w (d + 1,); P: (B, l + 1, d + 1). Returns F (B,).
    Derived here from equation (3).
    """
    s = 0
    for p in P.unbind(-2):
        sigma = torch.sigmoid(p @ theta["w"])[..., None]
        s = (1 - sigma) * s + sigma * p[..., -1:] * (p @ theta["W_B"].T)
    return (s * (P[..., -1, :] @ theta["W_C"].T)).sum(-1)
