"""Depth as time: what becomes of the tokens of a deep selective SSM.

Let every layer add a little of its S6 core's output; then token l of a sequence obeys
dx_l/dt = sum_{j<=l} (S_C x_l)'(S_B x_j) e^{-a (D_{j+1} + ... + D_l)} D_j x_j with steps
D_j = Delta(x_j) = softplus(S_delta x_j). That right-hand side is a selective scan.
Source: 2410.03292. Read: abstract, summaries (all tokens go to zero like t^-1/2, or all
diverge, slowly or in finite time; a figure's caption on eigenvalue signs), the authors'
code for the re-ordering; the equation through the collection's specification. Every
regime below is derived here, and so are its constants: mu = S_C' S_B = 0 leaves tokens
at rest, and in one dimension x_l'/x_l has the sign of mu, so no token changes sign.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lib.kit.checks import count, need

LN2 = np.log(2.0)
REGIMES = ("convergent", "slow", "fast", "still")


def softplus(x: np.ndarray) -> np.ndarray:
    """ln(1 + e^x) without overflow: any shape to the same. Source: the definition."""
    return np.logaddexp(0, x)


def velocity(
    x: np.ndarray,
    S_B: np.ndarray,
    S_C: np.ndarray,
    S_delta: np.ndarray,
    a: float = 1.0,
) -> np.ndarray:
    """dx/dt for every token, by the scan's own recurrence.

    x: (L, D) tokens; S_B, S_C: (N, D); S_delta: (D,), one step a token, or (D, D), one
    a channel; a: decay, 0 or more. Returns (L, D). Raises ValueError for shapes or a
    negative a. Source: 2410.03292's equation (through the specification); equal to
    `lib.scan.ssd` (one step a token) and `lib.scan.selective_scan` (one a channel).
    """
    x, S_B, S_C, S_delta = (np.asarray(v, float) for v in (x, S_B, S_C, S_delta))
    D = x.shape[-1] if x.ndim == 2 else -1
    need(
        S_B.shape == S_C.shape == (len(S_B), D) and S_delta.shape in ((D,), (D, D)),
        f"x is {x.shape}, S_B {S_B.shape}, S_C {S_C.shape}, S_delta {S_delta.shape}; "
        "give (L, D), twice (N, D), and (D,) or (D, D).",
    )
    need(a >= 0, f"a is {a}; the decay e^(-a Delta) needs a of 0 or more.")
    step = softplus(x @ S_delta.T).reshape(len(x), -1)  # (L, 1 or D)
    B, C = x @ S_B.T, x @ S_C.T  # (L, N)
    state, out = np.zeros((B.shape[1], D)), np.empty_like(x)
    for t in range(len(x)):
        state = np.exp(-a * step[t]) * state + np.outer(B[t], step[t] * x[t])
        out[t] = C[t] @ state
    return out


class Flow(NamedTuple):
    """Tokens over depth: times (T,), tokens (T, L, D), and where they left the screen.

    escape: the time at which a token passed the limit, or infinity.
    """

    times: np.ndarray
    tokens: np.ndarray
    escape: float


def simulate(
    x: np.ndarray,
    times: np.ndarray,
    S_B: np.ndarray,
    S_C: np.ndarray,
    S_delta: np.ndarray,
    a: float = 1.0,
    limit: float = 1e3,
    rtol: float = 1e-9,
) -> Flow:
    """Tokens along the depth, until the last time or until one passes the limit.

    x: (L, D) at time 0; times: (T,) increasing from 0 or later; S_B, S_C, S_delta, a:
    see `velocity`; limit: largest |coordinate| followed; rtol: of the solver (scipy's
    LSODA in ln(1 + t), where power laws are smooth). Returns a `Flow` with the times
    that were reached. Raises ValueError for times or starts. Source: 2410.03292's
    equation.
    """
    from scipy.integrate import solve_ivp

    x, times = np.asarray(x, float), np.asarray(times, float)
    need(
        times.ndim == 1 and len(times) > 0 and times[0] >= 0,
        "times is empty or starts before 0; give increasing depths from 0 on.",
    )
    need(bool(np.all(np.diff(times) > 0)), "times does not increase; sort it.")
    need(bool(np.abs(x).max() < limit), f"x starts beyond the limit of {limit}.")
    velocity(x, S_B, S_C, S_delta, a)  # shapes are checked before the solver starts

    def slope(log, flat):
        moved = velocity(flat.reshape(x.shape), S_B, S_C, S_delta, a)
        return moved.ravel() * np.exp(log)

    def inside(_, flat):
        return limit - np.abs(flat).max()

    inside.terminal = True
    with np.errstate(over="ignore", invalid="ignore"):  # a rejected trial step
        found = solve_ivp(
            slope,
            (0.0, np.log1p(times[-1])),
            x.ravel(),
            "LSODA",
            t_eval=np.log1p(times),
            events=inside,
            rtol=rtol,
            atol=1e-14,
        )
    need(found.status >= 0, f"The solver stopped: {found.message}", RuntimeError)
    left = found.t_events[0]
    escape = float(np.expm1(left[0])) if len(left) else np.inf
    tokens = np.reshape(found.y, (x.size, -1)).T.reshape(-1, *x.shape)
    return Flow(times[: len(tokens)], tokens, escape)


# -- one dimension ------------------------------------------------------------------


def regime(x: np.ndarray, mu: float, s: float = 1.0) -> str:
    """What becomes of scalar tokens: "convergent", "slow", "fast" or "still".

    x: (L,) at time 0; mu: S_C' S_B; s: S_delta, so that Delta = softplus(s x). mu < 0:
    all tokens go to 0. mu > 0: one token with s x >= 0, x not 0, is enough for a
    blow-up in finite time ("fast"); without one, |x| grows for ever, under some e^{ct}
    ("slow"). "still" if mu is 0 or all tokens are. Raises ValueError for shapes.

    Derived here, for any a >= 0. Token l obeys (ln|x_l|)' = mu g_l with g_l at least
    Delta(x_l) x_l^2. If s x_l >= 0, then Delta is ln 2 at least, and |x_l|' at least
    mu ln2 |x_l|^3, which blows up. If s x_l < 0 for all, Delta(x) x^2 is bounded, hence
    g_l. If mu < 0, |x_l| falls and Delta has a positive minimum, so |x_l| lies under
    (2 |mu| Delta_min t)^{-1/2}. Source: 2410.03292 states the three regimes; which
    condition on x and S_delta it gives was not seen.
    """
    x = np.asarray(x, float)
    need(x.ndim == 1 and len(x) > 0, f"x is {x.shape}; give scalar tokens (L,).")
    if mu == 0 or not x.any():
        return "still"
    if mu < 0:
        return "convergent"
    return "fast" if bool((s * x[x != 0] >= 0).any()) else "slow"


def decay_constants(L: int, mu: float = -1.0, a: float = 1.0) -> np.ndarray:
    """The constants c_l of |x_l| sqrt(t) -> c_l as t grows, mu < 0 and a > 0.

    Returns (L,): c_1 = K, c_l = K sqrt(1 - 2^-a) for l > 1, K = (2 |mu| ln 2)^{-1/2}.
    Near 0 every step is ln 2 and every decay q = 2^-a; inserting x_l = c_l t^{-1/2}
    leaves sum_{j<=l} q^{l-j} c_j^2 = K^2. The approach is slow: errors fall like
    t^{-(1-q)} or t^{-1/2}. Raises ValueError for mu >= 0, a <= 0 or L < 1. Source:
    derived here; the rate t^-1/2 is 2410.03292's, the first constant `token_law`'s.
    """
    count("L", L)
    need(mu < 0 < a, f"mu is {mu}, a {a}; the law is for mu < 0 < a.")
    K = 1 / np.sqrt(-2 * mu * LN2)
    c = np.full(L, K * np.sqrt(1 - 2.0**-a))
    c[0] = K
    return c


def travel_time(start: float, stop: float, mu: float, s: float = 1.0) -> float:
    """The exact time a lone token takes, integral of dx / (mu softplus(s x) x^3).

    start, stop: of one sign, not 0; stop may be infinite; mu: not 0; s: S_delta.
    Returns the time: negative if the token moves the other way, infinite where it never
    arrives. Raises ValueError otherwise. Source: derived here (first token of
    2410.03292's equation).
    """
    from scipy.integrate import quad

    need(
        start * stop > 0 and mu != 0,
        f"start is {start}, stop {stop}, mu {mu}; a token keeps its sign, give two "
        "numbers of one sign and mu other than 0.",
    )
    sign = np.sign(start)
    low, high = abs(start), abs(stop)
    if np.isinf(high) and s * sign < 0:
        return float(np.sign(mu) * np.inf)

    def pace(y):  # y = 1/|x|: smooth at 0, where |x| is infinite
        return y / softplus(s * sign / y) if y > 0 else 0.0

    total = quad(pace, 0.0 if np.isinf(high) else 1 / high, 1 / low, epsabs=1e-13)[0]
    return float(total / mu)


def blow_up_time(x: float, mu: float = 1.0, s: float = 1.0) -> float:
    """When a lone token, or a sequence's first, becomes infinite.

    x: at time 0; mu: S_C' S_B; s: S_delta. Returns a time of at most
    1 / (3 mu |s| |x|^3) and of at most 1 / (2 mu ln2 x^2), or infinity where `regime`
    is not "fast". For later tokens it is an upper bound: earlier ones only help.
    Source: derived here.
    """
    if regime(np.array([x]), mu, s) != "fast":
        return np.inf
    return travel_time(x, np.copysign(np.inf, x), mu, s)


# -- many dimensions ----------------------------------------------------------------


def first_token_regime(x: np.ndarray, M: np.ndarray, S_delta: np.ndarray) -> str:
    """The regime of the first token in D dimensions, one step a token.

    x: (D,); M = S_C' S_B: (D, D); S_delta: (D,). The token's velocity is a multiple of
    itself, so it keeps its direction u = x/|x|, and r = |x| obeys
    r' = (u'Mu) softplus(s r) r^3 with s = S_delta u: one dimension again. Only M's
    symmetric part counts. Returns a word of REGIMES. Raises ValueError for shapes.
    Source: derived here.
    """
    x, M, S_delta = (np.asarray(v, float) for v in (x, M, S_delta))
    need(
        x.ndim == 1 and M.shape == (len(x), len(x)) and S_delta.shape == x.shape,
        f"x is {x.shape}, M {M.shape}, S_delta {S_delta.shape}; give (D,), (D, D), "
        "(D,).",
    )
    r = np.linalg.norm(x)
    if r == 0:
        return "still"
    u = x / r
    return regime(np.array([r]), float(u @ M @ u), float(S_delta @ u))


def eigen_regime(M: np.ndarray) -> str:
    """What the eigenvalues of a symmetric M = S_C' S_B decide, one step a token.

    M: (D, D), symmetric. Returns "convergent" (all negative: every token goes to 0 like
    t^-1/2), "divergent" (all positive: every nonzero token grows without bound) or
    "mixed" (the start decides, see `first_token_regime`; zero eigenvalues too). Proof
    for a definite M = +-Q: z = Q^{1/2} x turns it into +-1, and (|z_l|^2)' is +-2 times
    a sum of squares with positive weights, Delta |z_l|^4 among them. Raises ValueError
    for another shape or an asymmetric M. Source: derived here; a caption of 2410.03292
    reports simulations: both positive or one positive diverge, both negative converge.
    """
    M = np.asarray(M, float)
    need(
        M.ndim == 2 and M.shape == M.T.shape and np.allclose(M, M.T),
        f"M is {M.shape} or asymmetric; give a symmetric (D, D): the proof needs it.",
    )
    values = np.linalg.eigvalsh(M)
    small = 1e-12 * np.abs(values).max(initial=0)
    if (values > small).all():
        return "divergent"
    return "convergent" if (values < -small).all() else "mixed"


# -- the re-ordering ----------------------------------------------------------------


def soft_order(scores: np.ndarray, tau: float = 1.0) -> np.ndarray:
    """A soft permutation that puts the most important token last.

    scores: (L,), importance (the authors' code: a learned linear map of Delta's
    projection); tau: temperature, positive. Returns P (L, L), rows summing to 1:
    P[i, j] = softmax_j(-|sorted_i - scores_j| / tau), scores sorted upwards; P @ x are
    the re-ordered tokens, and tau -> 0 gives the sorting permutation of distinct
    scores. Raises ValueError for tau <= 0 or shapes. Source: 2410.03292's refinement
    (authors' code, increasing importance), by SoftSort (2006.16038; the authors' copy).
    """
    scores = np.asarray(scores, float)
    need(scores.ndim == 1 and scores.size > 0, f"scores is {scores.shape}; give (L,).")
    need(tau > 0, f"tau is {tau}; the temperature must be positive.")
    logits = -np.abs(np.sort(scores)[:, None] - scores) / tau
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
