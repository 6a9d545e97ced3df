"""Closed forms of in-context regression: what each family of predictors can reach.

Risks are E (y_q - yhat)^2 with a noisy query, sigma^2 included; x ~ N(0, Sigma),
w ~ N(m, tau^2 I), y = w'x + sigma e, n examples. Everything is float64 and derived
here (Gaussian moments up to the fourth); known forms are special cases.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lib.kit.checks import count, need


class Step(NamedTuple):
    """Moments of b = (1/n) sum y x (or centred): what decides every one-step rule.

    second: E[b b'], cross: E[w b'], C: E[w w'], cov: Sigma, noise: sigma.
    """

    second: np.ndarray
    cross: np.ndarray
    C: np.ndarray
    cov: np.ndarray
    noise: float


def task_moment(d: int, mean: np.ndarray | float = 0.0, tau: float = 1.0) -> np.ndarray:
    """C = E[w w'] = tau^2 I + m m', (d, d). mean: m, broadcast to (d,).

    Source: definition.
    """
    count("d", d)
    m = np.broadcast_to(np.asarray(mean, float), (d,))
    return tau**2 * np.eye(d) + np.outer(m, m)


def step_moments(
    C: np.ndarray,
    n: int,
    noise: float = 0.0,
    cov: np.ndarray | None = None,
    debiased: bool = False,
) -> Step:
    """The moments of b = (1/n) sum_i y_i x_i, or of its centred version.

    C: (d, d) E[w w']; n: examples; noise: sigma; cov: Sigma (else I); debiased: with
    x_i - xbar in place of x_i, as two softmax heads have it. Returns `Step`. Raises
    ValueError for shapes, n or noise. Source: derived here (Wishart moments).
    """
    count("n", n, 2 if debiased else 1)
    C = np.asarray(C, float)
    d = len(C)
    cov = np.eye(d) if cov is None else np.asarray(cov, float)
    need(
        C.shape == cov.shape == (d, d),
        f"C is {C.shape}, cov {cov.shape}; give two square matrices of one size.",
    )
    need(noise >= 0, f"noise is {noise}; give 0 or more.")
    k = n - 1 if debiased else n  # degrees of freedom of the scatter matrix
    scatter = k * (k + 1) * cov @ C @ cov + k * np.trace(cov @ C) * cov
    return Step(
        second=(scatter + k * noise**2 * cov) / n**2,
        cross=k / n * C @ cov,
        C=C,
        cov=cov,
        noise=noise,
    )


def step_risk(step: Step, A: np.ndarray | float) -> float:
    """Risk of the one-step rule yhat = x_q' A b.

    step: of `step_moments`; A: (d, d) or a step size. Returns a number.
    Source: derived here.
    """
    d = len(step.C)
    A = A * np.eye(d) if np.ndim(A) == 0 else np.asarray(A, float)
    error = step.C - A @ step.cross.T - step.cross @ A.T + A @ step.second @ A.T
    return float(step.noise**2 + np.trace(step.cov @ error))


def best_step(step: Step) -> tuple[float, float]:
    """The best step size eta* of plain descent, and its risk.

    step: of `step_moments`. For Sigma = I and C = tau^2 I, eta* = n/(n+d+1+sigma^2/
    tau^2), and n/(n+d+sigma^2/tau^2) where b is debiased. Source: derived here.
    """
    eta = np.trace(step.cov @ step.cross) / np.trace(step.cov @ step.second)
    return float(eta), step_risk(step, float(eta))


def best_preconditioner(step: Step) -> tuple[np.ndarray, float]:
    """The best matrix A of one preconditioned step x_q' A b, and its risk.

    step: of `step_moments`. Returns ((d, d), risk). With C = I + m m' it is the best
    labels-only linear attention, tr C - tr(C E^-1 C) for Sigma = I and no noise.
    Source: 2512.04268 and 2503.12734 (preconditioned descent; forms derived here).
    """
    A = np.linalg.solve(step.second.T, step.cross.T).T
    return A, step_risk(step, A)


def gd_loss(d: int, n: int, noise: float = 0.0, tau: float = 1.0) -> float:
    """Risk of the best single step of descent that starts at the prior mean.

    d, n, noise, tau: see the module. Returns sigma^2 + tau^2 d (d+1+s)/(n+d+1+s), with
    s = sigma^2/tau^2: d(d+1)/(n+d+1) without noise, for every prior mean. Raises
    ValueError for tau. Source: derived here.
    """
    need(tau > 0, f"tau is {tau}; without spread there is nothing to learn.")
    s = noise**2 / tau**2
    return float(noise**2 + tau**2 * d * (d + 1 + s) / (n + d + 1 + s))


# -- every linear attention at once ---------------------------------------------------


class GramMoments(NamedTuple):
    """Moments of G = (1/n) sum e e' with e = (x; y) and of the task.

    second: E[vec G vec G'] (p^2, p^2), cross: E[w vec G'] (d, p^2), C: E[w w'], mean:
    m, noise: sigma; p = d + 1.
    """

    second: np.ndarray
    cross: np.ndarray
    C: np.ndarray
    mean: np.ndarray
    noise: float


def gaussian_nodes(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights that integrate polynomials of degree 5 over N(0, I) exactly.

    d: dimension. Returns (2 d^2 + 1, d) and (2 d^2 + 1,); weights may be negative.
    Raises ValueError for d. Source: Stroud 1971 (a fifth-degree formula; checked by
    moments in the tests).
    """
    count("d", d)
    eye = np.eye(d)
    axes = np.sqrt(d + 2) * np.concatenate([eye, -eye])
    i, j = np.triu_indices(d, 1)
    pairs = [a * eye[i] + b * eye[j] for a in (1, -1) for b in (1, -1)]
    pairs = np.sqrt((d + 2) / 2) * np.concatenate(pairs)
    nodes = np.concatenate([np.zeros((1, d)), axes, pairs])
    weights = np.concatenate(
        [
            [2 / (d + 2)],
            np.full(2 * d, (4 - d) / (2 * (d + 2) ** 2)),
            np.full(len(pairs), 1 / (d + 2) ** 2),
        ]
    )
    return nodes, weights


def gram_moments(
    d: int,
    n: int,
    mean: np.ndarray | float = 0.0,
    noise: float = 0.0,
    tau: float = 1.0,
) -> GramMoments:
    """Exact moments of G, from the fourth-order moments of Gaussian tokens.

    d, n, mean, noise, tau: see the module (Sigma = I). Given w the tokens are Gaussian
    with covariance Gamma(w), so that E[G_ab G_cd | w] = Gamma_ab Gamma_cd +
    (Gamma_ac Gamma_bd + Gamma_ad Gamma_bc) / n: a polynomial of degree 4 in w, which
    `gaussian_nodes` integrates exactly. Returns `GramMoments`. Raises ValueError for
    sizes. Source: derived here.
    """
    count("n", n)
    nodes, weights = gaussian_nodes(d)
    m = np.array(np.broadcast_to(np.asarray(mean, float), (d,)))
    W, p = m + tau * nodes, d + 1
    root = np.zeros((len(W), p, p))  # Gamma = root root'
    root[:, :d, :d] = np.eye(d)
    root[:, d, :d], root[:, d, d] = W, noise
    Gamma = root @ root.transpose(0, 2, 1)
    g = Gamma.reshape(len(W), p * p)
    second = np.einsum("q,qi,qj->ij", weights, g, g)
    for places in ("qac,qbd->abcd", "qad,qbc->abcd"):
        second += (
            np.einsum(
                places, weights[:, None, None] * Gamma, Gamma, optimize=True
            ).reshape(p * p, p * p)
            / n
        )
    cross = np.einsum("q,qi,qj->ij", weights, W, g)
    return GramMoments(second, cross, task_moment(d, m, tau), m, noise)


def lsa_floor(moments: GramMoments) -> float:
    """The least risk of linear self-attention with y_q = 0 and any number of heads.

    moments: of `gram_moments`. H heads answer x_q' phi(G) with phi linear in G, and
    d + 1 heads (one for each coordinate of the value) reach every such phi; so the
    best linear guess of w from G bounds all of them. Returns the risk.
    Source: derived here; 2512.04268 proves an upper bound on useful heads.
    """
    coefficients = np.linalg.lstsq(moments.second, moments.cross.T, rcond=1e-12)[0]
    gain = np.trace(moments.cross @ coefficients)
    return float(moments.noise**2 + np.trace(moments.C) - gain)


def lsa_risk(
    moments: GramMoments, K: np.ndarray, v: np.ndarray, u: np.ndarray | None = None
) -> float:
    """Exact risk of given weights: no prompt is drawn.

    moments: of `gram_moments`; K: (H, p, p) key-query; v: (H, p) value read-out;
    u: (d,) initial guess y_q = u'x_q (else 0). Returns the risk of
    yhat = y_q + sum_h v_h' G K_h e_q. Raises ValueError for shapes.
    Source: 2512.04268 (the model, read second-hand); risk derived here.
    """
    K, v = np.asarray(K, float), np.asarray(v, float)
    d = len(moments.C)
    p = d + 1
    need(
        K.shape == (len(K), p, p) and v.shape == (len(K), p),
        f"K is {K.shape}, v {v.shape}; give (H, {p}, {p}) and (H, {p}).",
    )
    u = np.zeros(d) if u is None else np.asarray(u, float)
    lift = np.concatenate([np.eye(d), u[None]])  # e_q = lift x_q
    phi = np.einsum("ha,hbc,cj->jab", v, K, lift).reshape(d, p * p)
    mu = np.outer(u, moments.mean)
    target = moments.C - mu - mu.T + np.outer(u, u)  # E[(w - u)(w - u)']
    cross = moments.cross - np.outer(u, _mean_gram(moments))
    error = target - phi @ cross.T - cross @ phi.T + phi @ moments.second @ phi.T
    return float(moments.noise**2 + np.trace(error))


def _mean_gram(moments: GramMoments) -> np.ndarray:
    """vec E[G], from E[w w'] and m."""
    d = len(moments.C)
    G = np.eye(d + 1)
    G[d, :d] = G[:d, d] = moments.mean
    G[d, d] = np.trace(moments.C) + moments.noise**2
    return G.ravel()


# -- two softmax heads ----------------------------------------------------------------


def softmax_remainder(omega: np.ndarray, s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A bound on what two heads +-omega lack of debiased descent.

    omega: (...,) sizes; s: (n,) scores x_l'x_q; y: (n,). Returns (...,), a bound on
    |E_omega y - E_-omega y - 2 omega cov(y, s)| = |omega^3/3 kappa_4(y,s,s,s)| at some
    tilt below omega, by kappa_4 <= 7/16 range(y) range(s)^3. Loose by design.
    Source: derived here.
    """
    spread = np.ptp(np.asarray(s, float)) ** 3 * np.ptp(np.asarray(y, float))
    return np.abs(np.asarray(omega, float)) ** 3 / 3 * 7 / 16 * spread


def heads_for_tasks(supports: np.ndarray) -> int:
    """Heads that serve several tasks at first order, each on its own inputs.

    supports: (N, d) of 0 and 1, the inputs of each task. One head needs a scale for
    each group of inputs that tasks use alike; the read-outs must sum to zero and hit
    one group each. Returns 1 + the rank of the groups' indicator matrix.
    Raises ValueError for a shape. Source: derived here.
    """
    supports = np.asarray(supports)
    need(
        supports.ndim == 2 and bool(np.isin(supports, (0, 1)).all()),
        "supports must be a matrix of zeros and ones, a row for each task.",
    )
    return 1 + int(np.linalg.matrix_rank(supports.astype(float)))
