"""Closed forms: acceptance, tokens a pass, the price of a round, many candidates.

Sources: 2211.17192 (section 3), 2310.15141 (SpecTr), 2403.10444; specification, 4.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from lib.kit.checks import count, need
from lib.speculative.laws import overlap, residual

# -- one candidate, several tokens ----------------------------------------------------


def expected_tokens(a: float, gamma: int) -> float:
    """E[tau] = (1 - a^(gamma + 1)) / (1 - a): tokens a pass if acceptance is i.i.d.

    a: probability that a drafted token passes; gamma: drafted tokens. Source:
    2211.17192, equation 1.
    """
    need(0 <= a <= 1, f"The acceptance is {a}; give 0 to 1.")
    count("gamma", gamma, 0)
    return float(gamma + 1 if a == 1 else (1 - a ** (gamma + 1)) / (1 - a))


def speedup(
    a: float, gamma: int, draft: float, cost: Callable[[int], float] | None = None
) -> float:
    """S(gamma) = E[tau] / (gamma c_d + c(gamma + 1)): the walltime model.

    a, gamma: see `expected_tokens`; draft: seconds of a draft step over those of a
    target pass over one token; cost: c(k), seconds of a pass over k tokens over those
    of one, None for 1, which is the paper's case. Source: 2211.17192, theorem 3.8.
    """
    passed = 1.0 if cost is None else cost(gamma + 1)
    return expected_tokens(a, gamma) / (gamma * draft + passed)


def best_gamma(
    a: float,
    draft: float,
    cost: Callable[[int], float] | None = None,
    most: int = 16,
) -> int:
    """The draft length with the largest `speedup`, 0 among them, by trying all."""
    return int(np.argmax([speedup(a, g, draft, cost) for g in range(most + 1)]))


def curve(sizes: Sequence[int], ratios: Sequence[float]) -> Callable[[int], float]:
    """c(k) between measured points, straight lines; flat before and after.

    sizes: rising numbers of tokens; ratios: seconds over those of one token.
    """
    need(
        len(sizes) == len(ratios) > 0 and list(sizes) == sorted(set(sizes)),
        "Give as many ratios as sizes, and rising sizes.",
    )
    return lambda k: float(np.interp(k, sizes, ratios))


# -- what one drawn draft is worth, over the dice of its verification ------------------


def token_rule_accepts(
    tokens: Sequence[int], p: Sequence[np.ndarray], q: Sequence[np.ndarray]
) -> float:
    """Expected accepted tokens of a drawn chain under the token rule.

    tokens: (n,); p: n + 1 laws (V,); q: n laws. The mean over drafts has less noise
    than counting. Source: 2211.17192, algorithm 1.
    """
    passed = [min(1.0, p[i][x] / q[i][x]) for i, x in enumerate(tokens)]
    return float(np.cumprod(passed).sum()) if passed else 0.0


def block_rule_accepts(
    tokens: Sequence[int], p: Sequence[np.ndarray], q: Sequence[np.ndarray]
) -> float:
    """Expected accepted tokens of a drawn chain under the block rule.

    tokens: (n,); p: n + 1 laws (V,); q: n laws. Source: 2403.10444.
    """
    w, passes = 1.0, []
    for i, x in enumerate(tokens):
        w = min(1.0, w * float(p[i][x]) / float(q[i][x]))
        if i + 1 == len(tokens):
            passes.append(w)
        else:
            mass = float(np.maximum(w * p[i + 1] - q[i + 1], 0.0).sum())
            below = mass + 1.0 - w
            passes.append(mass / below if below > 0 else 1.0)
    accepted, later = 0.0, 1.0  # later: no longer prefix passes
    for length in range(len(passes), 0, -1):
        accepted += length * passes[length - 1] * later
        later *= 1 - passes[length - 1]
    return accepted


def siblings_accept(
    tokens: Sequence[int], p: np.ndarray, laws: Sequence[np.ndarray]
) -> float:
    """The probability that one of some drawn siblings passes.

    tokens: (k,); p: (V,); laws: k laws, each that its token was drawn from. Source:
    2305.09781, 2402.12374.
    """
    none = 1.0
    for token, q in zip(tokens, laws):
        none *= 1 - min(1.0, float(p[token]) / float(q[token]))
        p = residual(p, q)
    return 1 - none


# -- many candidates for one token ----------------------------------------------------


def k_seq_rate(p: np.ndarray, q: np.ndarray, k: int) -> float:
    """rho of k_seq: the smallest in [1, k] with 1 - (1 - beta)^k <= rho beta.

    beta(rho) = sum_x min(q, p / rho) is what one candidate accepts. p, q: (V,); k:
    candidates. At a smaller rho the accepted tokens would outrun p. Source: 2310.15141
    (by bisection; the condition is monotone in rho).
    """
    count("k", k)

    def fits(rho: float) -> bool:
        beta = overlap(p / rho, q)
        return 1 - (1 - min(beta, 1.0)) ** k <= rho * beta + 1e-15

    if fits(1.0):
        return 1.0
    low, high = 1.0, float(k)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def k_seq_acceptance(p: np.ndarray, q: np.ndarray, k: int) -> float:
    """1 - (1 - beta)^k: how often one of k candidates passes. p, q: (V,)."""
    beta = min(float(overlap(p / k_seq_rate(p, q, k), q)), 1.0)
    return 1 - (1 - beta) ** k


def recursive_acceptance(
    p: np.ndarray, q: np.ndarray, k: int, replace: bool = True
) -> float:
    """How often one of k siblings passes when each is tested with the last's residual.

    p, q: (V,); k: siblings; replace: whether a drawn token may be drawn again. Exact:
    without replacement the expectation over drawn orders is summed. Source: 2305.09781,
    2402.12374.
    """
    left, p, q = 1.0, np.array(p, np.float64), np.array(q, np.float64)
    if replace:
        for _ in range(k):
            left *= 1 - float(overlap(p, q))
            rest = np.maximum(p - q, 0)
            if rest.sum() <= 0:
                return 1.0
            p = rest / rest.sum()
        return 1 - left
    return 1 - _all_fail(p, q, k)


def _all_fail(p: np.ndarray, q: np.ndarray, k: int) -> float:
    """The probability that k siblings without replacement all fail."""
    rest = np.maximum(p - q, 0)
    if k == 0:
        return 1.0
    if rest.sum() <= 0:
        return 0.0
    after = rest / rest.sum()
    total = 0.0
    for x in np.flatnonzero(q):
        fails = max(float(q[x] - p[x]), 0.0)  # q(x) (1 - min(1, p / q))
        if fails > 0:
            left = q.copy()
            left[x] = 0
            if left.sum() > 0:
                total += fails * _all_fail(after, left / left.sum(), k - 1)
            else:
                total += fails
    return total


def best_acceptance(p: np.ndarray, q: np.ndarray, k: int) -> float:
    """The largest probability that any lossless rule emits one of k i.i.d. candidates.

    A linear programme over joint laws of the candidates and the emitted token; V^k
    variables times V: for V <= 5, k <= 4. p, q: (V,). Source: 2310.15141
    (optimal transport with membership cost).
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    V = len(p)
    need(V**k <= 700, f"V = {V} and k = {k} make a programme of {V**k} sets; use less.")
    sets: dict[frozenset[int], float] = {}
    for drawn in itertools.product(range(V), repeat=k):
        key = frozenset(drawn)
        sets[key] = sets.get(key, 0.0) + float(np.prod(q[list(drawn)]))
    pairs = [(row, y) for row, key in enumerate(sets) for y in sorted(key)]
    rows = [row for row, _ in pairs] + [len(sets) + y for _, y in pairs]
    columns = list(range(len(pairs))) * 2
    table = coo_array((np.ones(len(rows)), (rows, columns)))
    limits = np.concatenate([list(sets.values()), p])
    done = linprog(-np.ones(len(pairs)), A_ub=table.tocsr(), b_ub=limits)
    need(done.success, f"The linear programme failed: {done.message}.", RuntimeError)
    return -float(done.fun)


def ceiling(p: np.ndarray, q: np.ndarray, k: int) -> float:
    """sum_x min(p, 1 - (1 - q)^k): no rule for k i.i.d. candidates accepts more."""
    return float(overlap(p, 1 - (1 - np.asarray(q)) ** k))
