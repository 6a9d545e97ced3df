"""Closed forms: the vote, its floor, the gate profile, the task graph, the conditions.

What the theorems of 2510.00399 bound with unnamed constants has a closed form for the
ideal models: linear attention counts votes, a perfect gate fails only where no clean
example is left. All functions are plain numpy in float64. Derived here unless stated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lib.kit.checks import choice, count, need
from lib.mamba_icl.world import LABELS


def _fraction(alpha: float) -> None:
    need(
        0 <= alpha < 1,
        f"The outlier fraction is {alpha:g}; give one in [0, 1): with outliers alone "
        "no example would carry the task.",
    )


def vote_error(
    alpha: float,
    l: int,  # noqa: E741 (the paper's letter)
    label: str = "flip",
    exact: bool = False,
) -> float:
    """Error of a majority vote in which all l examples count alike; a tie counts half.

    alpha: outlier fraction in [0, 1); l: examples; label: rule of the outliers (one
    target class is as good as a coin, since the patterns are fair coins); exact:
    round(alpha l) outliers instead of each with probability alpha. Returns a
    probability. Raises ValueError for a fraction or a rule. The limit of linear
    attention whose scores are +1 and -1.
    """
    _fraction(alpha)
    count("l", l)
    choice("The label rule", label, LABELS)
    n = np.arange(l + 1)
    chance = (n == round(alpha * l)) * 1.0 if exact else binomial(n, l, alpha)
    lost = (n > l / 2) + 0.5 * (n == l / 2)
    if label != "flip":  # of n outliers, Bin(n, 1/2) vote wrongly: (wrong, n)
        lost = lost @ binomial(n[:, None], n[None, :], 0.5)
    return float(chance @ lost)


def binomial(k: np.ndarray, n: np.ndarray | int, p: float) -> np.ndarray:
    """P(k successes of n): 0 where k > n; k and n broadcast, p in [0, 1)."""
    from scipy.special import gammaln, xlog1py, xlogy

    k, n = np.broadcast_arrays(k, n)
    few = np.minimum(k, n)
    ways = gammaln(n + 1) - gammaln(few + 1) - gammaln(n - few + 1)
    return np.exp(ways + xlogy(few, p) + xlog1py(n - few, -p)) * (k <= n)


def vote_error_normal(alpha: float, l: int) -> float:  # noqa: E741
    """Flipped labels in the normal approximation: the (1/2 - alpha)^-2 law of l.

    alpha: in (0, 1); l: examples. Returns Phi(-(1 - 2 alpha) sqrt(l) / (2 sqrt(alpha
    (1 - alpha)))). Raises ValueError for a fraction. Compare 2510.00399, Theorem 4 (d).
    """
    from scipy.special import ndtr

    _fraction(alpha)
    need(alpha > 0, "The normal approximation needs outliers: give alpha above 0.")
    spread = 2 * np.sqrt(alpha * (1 - alpha))
    return float(ndtr(-(1 - 2 * alpha) * np.sqrt(l) / spread))


def gate_floor(
    alpha: float,
    l: int,  # noqa: E741
    label: str = "flip",
    exact: bool = False,
    own_pattern: bool = False,
) -> float:
    """Error of a perfect gate: it fails only where no clean example is left.

    alpha, l, label, exact: as for `vote_error`. own_pattern: only examples with the
    query's pattern vote, as for a pair that the task graph does not hold. Returns
    alpha^l for flipped labels and half of it for coins and targets; with own_pattern
    (1 - (1 - alpha) / 2)^l instead of alpha^l. Raises ValueError for a fraction, a
    rule, or own_pattern with exact counts.
    """
    _fraction(alpha)
    choice("The label rule", label, LABELS)
    need(
        not (own_pattern and exact),
        "The floor for unseen pairs is for independent outliers: leave out exact.",
    )
    silent = 1 - (1 - alpha) / 2 if own_pattern else alpha
    none = float(round(alpha * l) == l) if exact else silent**l
    return none if label == "flip" and not own_pattern else none / 2


def gate_profile(
    sigma_clean: float,
    sigma_query: float,
    ranks: int,
    sigma_outlier: float = 0.0,
    alpha: float = 0.0,
) -> np.ndarray:
    """Mean gate of the j-th clean example before the query, j = 1 .. ranks.

    sigma_clean, sigma_query, sigma_outlier: mean sigma(w^T p) of clean examples, the
    query and outliers; alpha: outlier fraction. Returns (ranks,): sigma_c
    (1 - sigma_c)^(j-1) (1 - sigma_q), times what the outliers in between leave (1 for a
    perfect gate). Exact for independent tokens and long prompts; compare 2510.00399,
    Corollary 2.
    """
    j = np.arange(1, ranks + 1)
    between = (1 - alpha) / (1 - alpha * (1 - sigma_outlier))
    profile = sigma_clean * (1 - sigma_clean) ** (j - 1) * (1 - sigma_query)
    return profile * between**j


# -- the task graph -----------------------------------------------------------------


def task_graph_matrix(pairs: Sequence[Sequence[int]], M1: int) -> np.ndarray:
    """M = I - Adj / deg, the shape of the first gradient on W_B^T W_C: (M1, M1).

    pairs: training tasks (a, b); Adj counts how often two patterns meet in a task, deg
    is its row sum. For all pairs it is a multiple of the projector I - J / M1.
    """
    Adj = np.zeros((M1, M1))
    for a, b in pairs:
        Adj[a, b] += 1
        Adj[b, a] += 1
    degree = Adj.sum(1, keepdims=True)
    need(
        bool((degree > 0).all()), "A pattern stands in no task: its row has no degree."
    )
    return np.eye(M1) - Adj / degree


def projector(M1: int) -> np.ndarray:
    """I - J / M1, the projector onto differences of patterns."""
    return np.eye(M1) - np.full((M1, M1), 1 / M1)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of two matrices of one shape, taken as vectors."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def distances(pairs: Sequence[Sequence[int]], M1: int) -> np.ndarray:
    """Steps between two patterns in the task graph: (M1, M1); M1 where there is no way.

    pairs: training tasks (a, b), taken without direction.
    """
    far = np.full((M1, M1), M1)
    np.fill_diagonal(far, 0)
    for a, b in pairs:
        far[a, b] = far[b, a] = 1
    for k in range(M1):  # Floyd and Warshall
        far = np.minimum(far, far[:, [k]] + far[[k]])
    return far


def dose(kappa_a: float, lambdas: Sequence[float]) -> float:
    """kappa'_a sum_s lambda_s: all that a trained gate sees of a test outlier."""
    return float(kappa_a * np.sum(lambdas))


# -- the theorems' conditions -------------------------------------------------------


def conditions(
    *,
    l: int,  # noqa: E741
    M1: int,
    V: int,
    beta: float,
    kappa_a: float,
    p_a: float,
    eta: float,
    eps: float,
    L: float = 0.3,
) -> dict[str, float]:
    """The named part of every condition of Theorems 1 to 4, all constants set to 1.

    l: examples a prompt; M1, V, beta, kappa_a: the world; p_a: outlier fraction in
    training; eta: step; eps: error; L: least sum of a test outlier's coefficients.
    Returns numbers by name; the theorems know them only up to constants, so they are
    orders of size. Raises ValueError for p_a outside (0, 1) and eps outside (0, 1).
    Source: 2510.00399, Theorems 1 to 4.
    """
    need(0 < p_a < 1, f"p_a is {p_a}; the bounds need outliers, give it in (0, 1).")
    need(0 < eps < 1, f"eps is {eps}; give an error in (0, 1).")
    clean, log = 1 - p_a, np.log(1 / eps)
    B_T = max(eps**-2, M1 / clean) * log
    B_M = max(B_T, beta**-4 * V**2 * kappa_a**-2 * clean**-2 * log)
    T_M = M1 / (eta * clean * beta**2)
    top = V * beta * clean / (p_a * eps)
    return {
        "batch, linear": B_T,
        "batch, Mamba": B_M,
        "kappa_a at least": V * beta**-4,
        "kappa_a at most": top,
        "l at least": np.log(M1) / clean,
        "steps, Mamba": T_M,
        "steps, linear": T_M / l,
        "alpha below": min(1.0, p_a),
        "test kappa_a at most, Mamba": top / (kappa_a * L),
        "test kappa_a at most, linear": top * l / (kappa_a * L),
    }
