"""One step with an MLP: a softmax layer and ReLU neurons that classify in context.

F = a' ReLU(W_O sum_{i<=l} W_V p_i softmax_i((W_K p_i)' W_Q p_query)), with columns
p_i = (x_i; y_i), the query's label entry 0, trained with the hinge loss.
Source: 2402.15607, read through the authors' slides. Sizes of the start, the label
embedding (one entry, q = 1), the unit norm of the unseen patterns and beta are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.chain_of_thought.attention import Diverged
from lib.kit.checks import choice, count, need

Theta = dict[str, Tensor]


@dataclass(frozen=True)
class Patterns:
    """Relevant (M1, d) and irrelevant (M2, d) patterns of norm beta."""

    relevant: Tensor
    irrelevant: Tensor


def make_patterns(
    d: int = 30, M1: int = 6, M2: int = 24, beta: float = 3.0, seed: int = 0
) -> Patterns:
    """Orthogonal in-domain patterns (IDR, IDI) of norm beta.

    Returns `Patterns`. Raises ValueError for more patterns than dimensions. Source:
    2402.15607 (slides); M1 = 6 and M2 = 24 are the paper's, second-hand.
    """
    for name, size in {"d": d, "M1": M1, "M2": M2}.items():
        count(name, size, 2)
    need(
        d >= M1 + M2,
        f"{M1} relevant and {M2} irrelevant patterns are more than d = {d} dimensions "
        "can hold at right angles; give fewer patterns or a larger d.",
    )
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0].T
    return Patterns((beta * Q[:M1]).float(), (beta * Q[M1 : M1 + M2]).float())


def unseen_patterns(seen: Patterns, S1: float = 1.2, norm: str = "free") -> Patterns:
    """Out-of-domain patterns (ODR, ODI) made from pairs of the seen ones.

    S1: sum of the two coefficients of mu'_j = k_1 mu_{2j} + k_2 mu_{2j+1}; norm:
    "free", k_1 = k_2 = S1 / 2, so the norm is S1 beta / sqrt 2; or "kept", k_1^2 +
    k_2^2 = 1, so it stays beta whatever the sum. Irrelevant ones: 1 / sqrt 2 each.
    Returns `Patterns` of half as many. Raises ValueError for S1 or the word. Source:
    2402.15607 (slides), Theorem 2: S1 >= 1; its coefficients were not seen.
    """
    choice("norm", norm, ("free", "kept"))
    need(
        0 <= S1 <= math.sqrt(2),
        f"S1 is {S1}; give a sum from 0 to sqrt 2, the largest for a norm of beta.",
    )
    half = math.sqrt(2 - S1**2) if norm == "kept" else 0.0
    k_1, k_2 = (S1 + half) / 2, (S1 - half) / 2
    mu, nu = seen.relevant, seen.irrelevant
    even, odd = len(mu) // 2 * 2, len(nu) // 2 * 2
    return Patterns(
        k_1 * mu[:even:2] + k_2 * mu[1:even:2],
        (nu[:odd:2] + nu[1:odd:2]) / math.sqrt(2),
    )


def cycle_tasks(M1: int) -> Tensor:
    """M1 training tasks (a, b): a means +1, b means -1; each pattern once each way.

    Returns (M1, 2). Source: 2402.15607 (slides): M1 tasks of M1 (M1 - 1) are enough.
    """
    a = torch.arange(M1)
    return torch.stack([a, (a + 1) % M1], dim=1)


def all_tasks(M1: int) -> Tensor:
    """All ordered pairs of different patterns, (M1 (M1 - 1), 2)."""
    a = torch.arange(M1)
    pairs = torch.cartesian_prod(a, a)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def sample(
    patterns: Patterns,
    tasks: Tensor,
    B: int,
    l_ts: int,
    alpha: float,
    generator: torch.Generator,
    kappa: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Prompts of random tasks and the query's label.

    tasks: (n, 2); alpha: each of the task's two patterns appears with probability
    alpha / 2, the others share 1 - alpha and have coin labels; kappa: largest share of
    an irrelevant pattern. Returns P (B, l+1, d+1), the query last with label entry 0,
    and z (B,) of -1 and 1. Raises ValueError for alpha. Source: 2402.15607 (slides).
    """
    need(0 < alpha <= 1, f"alpha is {alpha}; give a fraction above 0 and up to 1.")
    count("l_ts", l_ts)
    mu, nu, g = patterns.relevant, patterns.irrelevant, generator
    pair = tasks[torch.randint(len(tasks), (B,), generator=g)]  # (B, 2)
    side = torch.randint(2, (B, l_ts + 1), generator=g)  # 0: a, 1: b
    coin = torch.randint(2, (B, l_ts + 1), generator=g)
    other = torch.rand(B, l_ts + 1, generator=g) >= alpha
    other[:, -1] = False
    other &= len(mu) > 2
    shift = torch.rand(B, l_ts + 1, len(mu), generator=g)
    shift.scatter_(2, pair[:, None].expand(-1, l_ts + 1, -1), -1.0)  # neither a nor b
    ids = torch.where(other, shift.argmax(-1), pair.gather(1, side))
    label = 1.0 - 2 * torch.where(other, coin, side)
    k = torch.randint(len(nu), (B, l_ts + 1), generator=g)
    size = kappa * (2 * torch.rand(B, l_ts + 1, 1, generator=g) - 1)
    x = mu[ids] + size * nu[k]
    z = label[:, -1].clone()
    label[:, -1] = 0
    return torch.cat([x, label[..., None]], dim=-1), z


def forward(theta: Theta, P: Tensor) -> Tensor:
    """The classifier's score, (B,). P: (B, l+1, d+1). Source: 2402.15607 (slides)."""
    asked = P[:, -1] @ theta["W_Q"].T @ theta["W_K"]
    weights = torch.softmax((P[:, :-1] @ asked[..., None])[..., 0], dim=-1)
    mixed = (weights[:, None] @ P[:, :-1])[:, 0] @ theta["W_V"].T
    return torch.relu(mixed @ theta["W_O"].T) @ theta["a"]


def train(
    patterns: Patterns,
    *,
    T: int = 250,
    eta: float = 0.5,
    B: int = 64,
    l_tr: int = 20,
    alpha: float = 0.8,
    neurons: int = 100,
    delta: float = 0.1,
    delta_O: float = 0.02,
    seed: int = 0,
) -> tuple[Theta, Tensor]:
    """SGD on the hinge loss max(0, 1 - z F) over fresh prompts of the cycle of tasks.

    T: iterations; eta: step size; B: batch; neurons: rows of W_O; delta, delta_O: the
    start W_Q = W_K = W_V = delta I and W_O = delta_O times Gaussian; a = +-1 over
    sqrt(neurons) is fixed. Returns the parameters and the losses (T,). Raises
    `Diverged` with a sentence, ValueError for settings. Source: 2402.15607 (slides).
    """
    for name, size in {"T": T, "B": B, "neurons": neurons}.items():
        count(name, size)
    need(eta > 0, f"eta is {eta}; give a positive step size.")
    d = patterns.relevant.shape[1] + 1
    g = torch.Generator().manual_seed(seed)
    eye = delta * torch.eye(d)
    theta = {name: eye.clone() for name in ("W_Q", "W_K", "W_V")}
    theta["W_O"] = delta_O * torch.randn(neurons, d, generator=g)
    for W in theta.values():
        W.requires_grad_(True)
    learned = list(theta.values())
    signs = 1.0 - 2 * (torch.arange(neurons) % 2)
    theta["a"] = signs / math.sqrt(neurons)
    tasks, losses = cycle_tasks(len(patterns.relevant)), []
    for t in range(T):
        P, z = sample(patterns, tasks, B, l_tr, alpha, g)
        loss = torch.relu(1 - z * forward(theta, P)).mean()
        gradients = torch.autograd.grad(loss, learned)
        with torch.no_grad():
            for W, gradient in zip(learned, gradients, strict=True):
                W -= eta * gradient
        losses.append(loss.item())
        need(
            losses[-1] < 10,  # a constant answer has 1; nan fails as well
            f"training diverged at step {t + 1} with eta = {eta:g}: the hinge loss is "
            f"{losses[-1]:.3g}. Take a smaller eta, such as {eta / 10:g}.",
            Diverged,
        )
    return {name: W.detach() for name, W in theta.items()}, torch.tensor(losses)


def errors(theta: Theta, P: Tensor, z: Tensor) -> tuple[float, float]:
    """Share of wrong signs, and the mean hinge loss. P: (B, l+1, d+1); z: (B,)."""
    with torch.no_grad():
        margin = z * forward(theta, P)
    return float((margin <= 0).double().mean()), float(torch.relu(1 - margin).mean())


def prune(theta: Theta, share: float, rule: str, seed: int = 0) -> Theta:
    """Set a share of the neurons (rows of W_O) to zero.

    rule: "small" (least norm first), "large" (greatest first) or "random". Returns new
    parameters. Raises ValueError for a share outside 0 .. 1 or another rule. Source:
    2402.15607 (slides), Theorem 3.
    """
    choice("rule", rule, ("small", "large", "random"))
    need(0 <= share <= 1, f"share is {share}; give a share of neurons from 0 to 1.")
    W = theta["W_O"]
    g = torch.Generator().manual_seed(seed)
    lot = torch.rand(len(W), generator=g)
    order = {"small": W.norm(dim=1), "large": -W.norm(dim=1), "random": lot}[rule]
    kept = W.clone()
    kept[order.argsort()[: round(share * len(W))]] = 0
    return {**theta, "W_O": kept}


def neighbour_errors(P: Tensor, z: Tensor, k: int) -> float:
    """Error of the k nearest neighbours among each prompt's own examples.

    P: (B, l+1, d+1); z: (B,); k: odd. Raises ValueError for k. Source: 2402.15607
    (slides), baselines.
    """
    need(k % 2 == 1 and k < P.shape[1], f"k is {k}; give an odd k below the examples.")
    far = (P[:, :-1, :-1] - P[:, -1:, :-1]).norm(dim=-1)
    near = far.topk(k, dim=1, largest=False).indices
    said = P[:, :-1, -1].gather(1, near).sum(1)
    return float((said * z <= 0).double().mean())


def fitted_errors(P: Tensor, z: Tensor) -> dict[str, float]:
    """Errors of linear classifiers that are fitted to each prompt's own examples.

    P: (B, l+1, d+1); z: (B,). Logistic regression and a linear support vector machine,
    scikit-learn's defaults; a prompt whose labels all agree is answered with that
    label. Returns one error a name. Source: 2402.15607 (slides), baselines.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    models = {"logistic": LogisticRegression(), "linear SVM": SVC(kernel="linear")}
    wrong = dict.fromkeys(models, 0.0)
    for p, truth in zip(P.double().numpy(), z.numpy(), strict=True):
        x, y, query = p[:-1, :-1], p[:-1, -1], p[-1:, :-1]
        for name, model in models.items():
            one = len(np.unique(y)) == 1
            said = y[0] if one else model.fit(x, y).predict(query)[0]
            wrong[name] += float(said != truth) / len(z)
    return wrong
