"""Step matrices and votes: what an ideal chain of thought does, exactly.

A model whose attention finds the columns of the same step and the same pattern takes a
plurality vote among them. For blocks of two states the error of that vote is computed
here without sampling, for any number of steps, together with the Chernoff bound and the
rates that say how many examples it needs.
Sources: 2410.02167 (slides) for A_k, B, tau, rho and Condition 1; the exact errors, the
bound and the rates are derived here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lib.kit.checks import count, need

WORKED_EXAMPLE = (((0.6, 0.4), (0.4, 0.6)), ((0.4, 0.6), (0.8, 0.2)))
WITH_CONDITION_1 = (((0.8, 0.2), (0.2, 0.8)), ((0.2, 0.8), (0.8, 0.2)))


def symmetric_task(K: int, rho: float | Sequence[float]) -> list[list[list[float]]]:
    """K matrices of two states that keep the state with probability (1 + rho_k) / 2.

    rho: the gap of every step, one number or K. Then rho_o is the product of the gaps
    and Condition 1 holds. Raises ValueError for a gap outside (0, 1]. Source: ours.
    """
    count("K", K)
    gaps = np.broadcast_to(np.asarray(rho, float), (K,)) if np.ndim(rho) == 0 else rho
    need(
        len(gaps) == K and all(0 < gap <= 1 for gap in gaps),
        f"rho is {rho}; give a gap above 0 and up to 1, or one for each of {K} steps.",
    )
    keep = [(1 + float(gap)) / 2 for gap in gaps]
    return [[[p, 1 - p], [1 - p, p]] for p in keep]


def step_matrices(A: Sequence) -> np.ndarray:
    """The step matrices A_1 .. A_K as one array (K, S, S), checked.

    Row i of A_k is the law of the step-k output given state i. Raises ValueError where
    the shapes differ, a row does not sum to 1 or is negative, or a row's maximum (the
    correct output) is not unique. Source: 2410.02167 (slides).
    """
    shapes = {np.shape(A_k) for A_k in A}
    need(
        len(shapes) == 1 and len(s := next(iter(shapes))) == 2 and s[0] == s[1] > 1,
        f"the step matrices have shapes {sorted(shapes)}; give K square ones of one "
        "size, two states or more.",
    )
    A = np.array(A, float)
    for k, i in np.ndindex(A.shape[:2]):
        row = A[k, i]
        said = f"row {i + 1} of step matrix {k + 1} is {row.round(6).tolist()}"
        need(
            bool(row.min() >= 0) and abs(row.sum() - 1) < 1e-9,
            f"{said}, which sums to {row.sum():.6g}; give probabilities that sum to 1.",
        )
        need(
            np.sum(row >= row.max() - 1e-12) == 1,
            f"{said}: two outputs are equally likely, so none is the correct one; give "
            "a row with one maximum.",
        )
    return A


@dataclass(frozen=True)
class TaskFacts:
    """What the theorems ask of a task, for S states and K steps.

    B: (S, S) product of the step matrices; paths: (S, K+1) correct states z_0 .. z_K;
    tau, tau_o, rho, rho_o: the slides' constants; condition_1: rho_o > 0.
    """

    B: np.ndarray
    paths: np.ndarray
    tau: float
    tau_o: float
    rho: float
    rho_o: float
    condition_1: bool


def _gap(row: np.ndarray, correct: int) -> float:
    """Correct entry minus the best incorrect one."""
    return float(row[correct] - np.delete(row, correct).max())


def task_facts(A: Sequence) -> TaskFacts:
    """B, the correct paths, tau, tau_o, rho, rho_o and Condition 1 of a task.

    A: see `step_matrices`. tau: smallest (over starts) probability of the most probable
    K-step path; tau_o: of the most probable output; rho, rho_o: smallest gap between
    the correct and the best incorrect entry, in A and in B (negative where Condition 1
    fails: the correct output is not the most probable in every row of B). "Correct" is
    the maximum of each step's row. Source: 2410.02167 (slides).
    """
    A = step_matrices(A)
    K, S = len(A), len(A[0])
    B = np.linalg.multi_dot([*A]) if K > 1 else A[0]
    paths = np.zeros((S, K + 1), int)
    paths[:, 0] = np.arange(S)
    best = np.ones(S)  # of the most probable path from each state, backwards
    for A_k in A[::-1]:
        best = (A_k * best).max(axis=1)
    for k in range(K):
        paths[:, k + 1] = A[k][paths[:, k]].argmax(axis=1)
    rho = min(_gap(row, int(row.argmax())) for A_k in A for row in A_k)
    rho_o = min(_gap(B[s], paths[s, -1]) for s in range(S))
    tau, tau_o = float(best.min()), float(B.max(axis=1).min())
    return TaskFacts(B, paths, tau, tau_o, rho, rho_o, rho_o > 1e-12)


# -- exact errors, two states -------------------------------------------------------


def binomial(n: int, p: float) -> np.ndarray:
    """Probabilities of 0 .. n successes, (n + 1,). Source: the definition."""
    from scipy.special import gammaln, xlog1py, xlogy

    k = np.arange(n + 1)
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return np.exp(ways + xlogy(k, p) + xlog1py(n - k, -p))


def majority(n: int | np.ndarray, p: float) -> np.ndarray:
    """Probability that n voters, each right with probability p, elect the right one.

    n: numbers of voters, any shape; a tie is decided by a fair coin, and without voters
    nothing is elected (0). Source: the definition (a binomial tail).
    """
    from scipy.special import bdtr, bdtrc

    n = np.asarray(n)
    half = n // 2
    below = np.where(half > 0, bdtr(np.maximum(half - 1, 0), n, p), 0.0)
    even = (bdtr(half, n, p) - below) / 2  # the tie's share, for even n
    return np.where(n == 0, 0.0, bdtrc(half, n, p) + np.where(n % 2 == 0, even, 0.0))


def _own(l_ts: int, alpha: float) -> int:
    count("l_ts", l_ts)
    need(0 < alpha <= 1, f"alpha is {alpha}; give a fraction above 0 and up to 1.")
    return round(alpha * l_ts)


def _two(A: Sequence) -> np.ndarray:
    A = step_matrices(A)
    need(
        A.shape[1] == 2,
        f"the exact vote is for blocks of two states, not {A.shape[1]}; sample it with "
        "plurality_cot instead.",
    )
    return A


def cot_vote_error(A: Sequence, l_ts: int, alpha: float, patterns: int = 10) -> float:
    """Exact error of the chained plurality vote, (1/K) sum_k P(v_k != z_k).

    A: step matrices of two states; l_ts: examples, of which round(alpha l_ts) start at
    the query's pattern, the others anywhere else among `patterns` TSR patterns, so that
    some start at the block's other state. Ties: a fair coin; a vote without voters is
    lost, and so are the following ones. Mean over both starts. Raises ValueError for
    other sizes. Source: derived here (a Markov chain: state, number of its voters).
    """
    A, own = _two(A), _own(l_ts, alpha)
    count("patterns", patterns, 2)
    paths, partner = task_facts(A).paths, 1 / (patterns - 1)
    if len(A) == 2:
        found = [_two_steps(A, s, own, l_ts - own, partner, paths[s]) for s in (0, 1)]
        return float(np.mean(found))
    law = binomial(l_ts - own, partner)  # how many partners there are
    return float(
        sum(
            law[m] / 2 * _chained(A, s, own, own + int(m), paths[s])
            for s in (0, 1)
            for m in np.flatnonzero(law > 1e-12 * law.max())
        )
    )


def _two_steps(
    A: np.ndarray, start: int, own: int, rest: int, partner: float, path: np.ndarray
) -> float:
    """As `_chained` for K = 2, where partners need no count of their own (thinning)."""
    votes, count_0 = binomial(own, A[0, start, 0]), np.arange(own + 1)
    wins = np.where(2 * count_0 == own, 0.5, 2 * count_0 > own) * (own > 0)
    laws = votes * wins, (votes * (own > 0) * (1 - wins))[::-1]
    right = [majority(own, A[0, start, path[1]]), 0.0]
    for v in (0, 1):
        joined = np.convolve(laws[v], binomial(rest, partner * A[0, 1 - start, v]))
        right[1] += joined @ majority(np.arange(len(joined)), A[1, v, path[2]])
    return float(1 - np.mean(right))


def _chained(A: np.ndarray, start: int, own: int, N: int, path: np.ndarray) -> float:
    """Mean error over the steps, N examples in the block, `own` of them at `start`."""
    law = np.zeros((2, N + 1))  # P(v_{k-1} = v and n examples are in state v)
    law[start, own] = 1.0
    error = 0.0
    for k, A_k in enumerate(A):
        last, following = k == len(A) - 1, np.zeros((2, N + 1))
        right = 0.0
        for v in (0, 1):
            share = majority(np.arange(N + 1), A_k[v, path[k + 1]])
            right += law[v] @ share
            for n in () if last else np.flatnonzero(law[v] > 1e-15):
                following += law[v, n] * _step(A_k, v, int(n), N)
        error += (1 - right) / len(A)
        law = following
    return float(error)


def _step(A_k: np.ndarray, v: int, n: int, N: int) -> np.ndarray:
    """Law of the elected state and its next voters, from n of N examples in state v."""
    votes, rest = binomial(n, A_k[v, 0]), binomial(N - n, A_k[1 - v, 0])
    count_0 = np.arange(n + 1)
    wins = np.where(2 * count_0 == n, 0.5, 2 * count_0 > n) * (n > 0)
    loses = (1 - wins) * (n > 0)
    to_0, to_1 = np.convolve(votes * wins, rest), np.convolve(votes * loses, rest)
    return np.stack([to_0, to_1[::-1]])  # state 1 holds whoever is not in state 0


def icl_vote_error(A: Sequence, l_ts: int, alpha: float) -> float:
    """Exact error of one plurality vote over the final outputs, P(v != z_K).

    A, l_ts, alpha: see `cot_vote_error`. The voters are the round(alpha l_ts) examples
    that start at the query's pattern; each says the correct z_K with its probability in
    B. Mean over both starts. Raises ValueError. Source: derived here (a binomial tail).
    """
    facts, own = task_facts(_two(A)), _own(l_ts, alpha)
    shares = [facts.B[s, facts.paths[s, -1]] for s in (0, 1)]
    return float(1 - np.mean([majority(own, p) for p in shares]))


# -- how many examples --------------------------------------------------------------


def vote_rates(A: Sequence) -> np.ndarray:
    """Decay rates of the votes on the correct path, an example of the query's pattern.

    A: see `step_matrices`. With q = P(an example stands at z_{k-1} after k-1 steps) and
    the row p of A_k there, P(vote k fails) <= sum_j (1 - q (sqrt p_z - sqrt p_j)^2)^n.
    Returns (S, K): -log of the largest base, by start and step. The smallest of them is
    the rate at which the whole error falls. Source: derived here (Chernoff; Cramer).
    """
    A = step_matrices(A)
    paths, reach = task_facts(A).paths, np.eye(A.shape[1])
    rates = np.zeros((A.shape[1], len(A)))
    for k, A_k in enumerate(A):
        for s, path in enumerate(paths):
            row, z = A_k[path[k]], path[k + 1]
            gap = (np.sqrt(row[z]) - np.sqrt(np.delete(row, z).max())) ** 2
            with np.errstate(divide="ignore"):  # a certain vote: an infinite rate
                rates[s, k] = -np.log1p(-reach[s, path[k]] * gap)
        reach = reach @ A_k
    return rates


def chernoff_bound(A: Sequence, l_ts: int, alpha: float) -> float:
    """A bound on `cot_vote_error` that holds for every l, mean over steps and starts.

    A, l_ts, alpha: as there, any number of states. v_k can only be wrong if one of the
    votes 1 .. k on the correct path fails; each failure is bounded as in `vote_rates`,
    and examples from other starts only help. Source: derived here.
    """
    A, own = step_matrices(A), _own(l_ts, alpha)
    rivals = A.shape[1] - 1
    fails = rivals * np.exp(-own * vote_rates(A))  # (S, K)
    return float(np.minimum(fails.cumsum(axis=1), 1).mean())


def examples_needed(
    error: Callable[[int], float], target: float, most: int = 100_000
) -> int:
    """The smallest l at which an error that falls with l reaches the target.

    error: of l >= 1, falling up to small steps from rounding; most: where to give up.
    Returns l. Raises ValueError for a target or where `most` examples are not enough.
    Source: bisection on doubled lengths.
    """
    need(0 < target < 1, f"target is {target}; give an error between 0 and 1.")
    high = 2
    while error(high) > target:
        high *= 2
        need(
            high <= most,
            f"the error is still {error(high // 2):.3g} with {high // 2} examples, "
            f"above {target:g}: without Condition 1 it stays there; else raise most.",
        )
    low = high // 2
    while high - low > max(1, high // 500):
        middle = (low + high) // 2
        low, high = (middle, high) if error(middle) > target else (low, middle)
    return high


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The least-squares slope of log y over log x, for two points or more.

    Raises ValueError for other shapes or values that have no logarithm.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    need(
        x.shape == y.shape and x.size > 1 and bool(min(x.min(), y.min()) > 0),
        "an exponent needs two or more positive numbers x, and as many y.",
    )
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def half_width(error: float, prompts: int, sigmas: float = 4.0) -> float:
    """So many standard deviations of an error rate measured on `prompts` prompts."""
    count("prompts", prompts)
    return sigmas * math.sqrt(max(error * (1 - error), 1 / prompts) / prompts)
