"""Random-feature attention: frozen query-key weights, trainable values.

f(q, k_1..k_n) = sum_m (1/n) sum_i relu(q~'W_m k~_i) v_m'k~_i with q~ = (q; 1), k~ =
(k; 1) is linear in the values v, so training it is a least squares problem: convex, one
solve. What the panel shows is derived and measured here.
Source: 2307.11353 (abstract: many heads, frozen random query and key matrices,
trainable values; permutation invariance; a non-zero mean of W can help).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.kit.checks import count, need


def with_one(z: Tensor) -> Tensor:
    """(z; 1): any (..., k) to (..., k + 1)."""
    return torch.cat([z, torch.ones_like(z[..., :1])], dim=-1)


def random_heads(
    heads: int,
    d_q: int,
    d_k: int,
    generator: torch.Generator,
    centre: Tensor | None = None,
) -> Tensor:
    """Frozen query-key matrices W_m ~ N(centre, 1/(d_q + 1)).

    heads: M; d_q, d_k: sizes of query and keys; generator; centre: (d_q + 1, d_k + 1)
    mean, else 0. Returns (M, d_q + 1, d_k + 1), float64. Raises ValueError for counts
    or a shape. Source: 2307.11353 (zero and non-zero mean; the scale is ours).
    """
    count("heads", heads)
    shape = (d_q + 1, d_k + 1)
    W = torch.randn(heads, *shape, generator=generator, dtype=torch.float64)
    W = W / shape[0] ** 0.5
    if centre is not None:
        need(
            tuple(centre.shape) == shape,
            f"centre is {tuple(centre.shape)}; the heads are {shape}.",
        )
        W = W + centre.to(W)
    return W


def attention_features(q: Tensor, k: Tensor, W: Tensor) -> Tensor:
    """Phi with f = Phi v: (1/n) sum_i relu(q~'W_m k~_i) k~_i for every head.

    q: (N, d_q); k: (N, n, d_k); W: (M, d_q + 1, d_k + 1). Returns (N, M (d_k + 1)).
    Source: 2307.11353 (through summaries).
    """
    q, k = with_one(q.to(W)), with_one(k.to(W))
    score = torch.relu(torch.einsum("Na,mab,Nib->Nmi", q, W, k))
    return (score @ k / k.shape[-2]).flatten(1)


def mlp_features(q: Tensor, k: Tensor, width: int, generator: torch.Generator):
    """Features of the rival: a random two-layer network on the whole input.

    q: (N, d_q); k: (N, n, d_k); width: features; generator. Returns (N, width),
    relu(U (q; k_1; ..; k_n; 1)). Source: 2307.11353 (its comparison).
    """
    count("width", width)
    z = with_one(torch.cat([q, k.flatten(1)], dim=-1)).double()
    U = torch.randn(z.shape[-1], width, generator=generator, dtype=z.dtype)
    return torch.relu(z @ U / z.shape[-1] ** 0.5)


def fit(Phi: Tensor, y: Tensor, lam: float = 0.0) -> Tensor:
    """The values v that minimise |Phi v - y|^2 / N + lam |v|^2.

    Phi: (N, F); y: (N,); lam: 0 takes the shortest least-squares solution. Returns
    (F,). Raises ValueError for a negative lam. Source: textbook.
    """
    need(lam >= 0, f"lam is {lam}; give 0 or more.")
    if lam == 0:
        return torch.linalg.lstsq(Phi, y[:, None], driver="gelsd").solution[:, 0]
    N, F = Phi.shape
    if F <= N:
        eye = torch.eye(F, dtype=Phi.dtype)
        return torch.linalg.solve(Phi.T @ Phi + N * lam * eye, Phi.T @ y)
    eye = torch.eye(N, dtype=Phi.dtype)
    return Phi.T @ torch.linalg.solve(Phi @ Phi.T + N * lam * eye, y)


def descend(Phi: Tensor, y: Tensor, lam: float, steps: int) -> tuple[Tensor, float]:
    """Gradient descent on the same objective, with the largest safe step 1/L.

    Phi: (N, F); y: (N,); lam: positive; steps. Returns the objective's value before
    every step and after the last, (steps + 1,), and the condition number kappa: the
    gap to the minimum falls at least like (1 - 1/kappa)^2t. Raises ValueError for lam.
    Source: textbook.
    """
    count("steps", steps)
    need(lam > 0, f"lam is {lam}; a rate needs a positive one.")
    N = len(Phi)
    H = 2 * (Phi.T @ Phi / N + lam * torch.eye(Phi.shape[1], dtype=Phi.dtype))
    c = 2 * Phi.T @ y / N
    spectrum = torch.linalg.eigvalsh(H)
    v, values = torch.zeros_like(c), []
    for _ in range(steps + 1):
        values.append(0.5 * v @ H @ v - c @ v + y.square().mean())
        v = v - (H @ v - c) / spectrum[-1]
    return torch.stack(values), float(spectrum[-1] / spectrum[0])
