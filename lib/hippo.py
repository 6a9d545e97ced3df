"""Online function approximation: HiPPO bases, their memories, and what they are for.

A state of N numbers summarises a signal. `transition` gives the (A, B) whose state is a
known projection, `discretize` and the two scans run it, `compression_matrix` is the
same run as one (N, L) matrix, `reconstruct` turns a state back into the past, `memory`
says what is left of every past sample. All arrays are float64. Discrete systems follow
the S4 convention x_k = Ab x_{k-1} + Bb u_k with x_{-1} = 0, so kernel K_l = C Ab^l Bb;
signals carry time on their last axis.

Measures: "legs", "legt", "fout", "lagt", "lmu" are time-invariant pairs (A, B);
"scaled_legs" is LegS divided by time, x' = (A x + B u) / t, which remembers everything.
Sources: 2008.07669 (HiPPO), 2206.12037 (How to Train Your HiPPO), 2111.00396 (S4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lib.kit.checks import choice, count, need

if TYPE_CHECKING:
    import pandas

MEASURES = ("legs", "legt", "fout", "lagt", "lmu")
WINDOWED = ("legt", "fout", "lmu")  # they forget what is older than one window
RULES = ("euler", "backward", "bilinear", "gbt", "zoh")
SCALED_RULES = ("hold", "midpoint", "bilinear", "backward", "forward")
DIGIT_NAMES = {
    "scaled_legs": "scaled LegS",
    "legt": "LegT",
    "fout": "FouT",
    "legs": "LegS",
    "dct": "DCT (batch)",
    "pca": "PCA (batch)",
    "random_orthogonal": "random rotation",
    "random_gaussian": "random Gaussian",
    "leaky": "leaky averages",
    "last": "last N samples",
}
DIGIT_METHODS = tuple(DIGIT_NAMES)


def _root(N: int) -> np.ndarray:
    return np.sqrt(2 * np.arange(N) + 1.0)  # r_n, the norm of P_n(2s - 1) is 1 / r_n


def _legendre(N: int, y: np.ndarray) -> np.ndarray:
    """P_0 .. P_{N-1} at y: (N, *y.shape), by the three-term recurrence."""
    P = np.empty((N, *np.shape(y)))
    P[0] = 1
    if N > 1:
        P[1] = y
    for n in range(1, N - 1):
        P[n + 1] = ((2 * n + 1) * y * P[n] - n * P[n - 1]) / (n + 1)
    return P


def _antiderivative(N: int, y: np.ndarray) -> np.ndarray:
    """Integral of P_n from -1 to y, (P_{n+1} - P_{n-1}) / (2n+1): (N, *y.shape)."""
    P = _legendre(N + 2, y)
    below = np.concatenate([-np.ones_like(P[:1]), P[: N - 1]])  # "P_{-1}" = -1: y + 1
    return (P[1 : N + 1] - below) / (2 * np.arange(N) + 1.0).reshape(-1, *[1] * y.ndim)


# -- bases --------------------------------------------------------------------------


def transition(measure: str, N: int) -> tuple[np.ndarray, np.ndarray]:
    """The pair (A, B) of x' = A x + B u for one measure, windows being [0, 1].

    measure: one of MEASURES; N: state size (even for "fout", ordered c_0, s_0, c_1,
    ..., where s_0 is dead). Divide A and B by theta for a window of theta seconds.
    Returns A (N, N), B (N,). Raises ValueError for an unknown measure or a bad N.
    Source: 2008.07669 and its authors' code; 2206.12037 for FouT; "lmu" is the
    Legendre Memory Unit (Voelker et al., NeurIPS 2019), LegT in other coordinates.
    """
    choice("The measure", measure, MEASURES)
    count("The state size N", N)
    r, n = _root(N), np.arange(N)
    i, j = n[:, None], n[None, :]
    sign = (-1.0) ** (i - j)
    if measure == "legs":
        return -np.tril(np.outer(r, r), -1) - np.diag(n + 1.0), r
    if measure == "legt":
        return -np.outer(r, r) * np.where(j <= i, 1.0, sign), r
    if measure == "lagt":
        return np.eye(N) / 2 - np.tril(np.ones((N, N))), np.ones(N)
    if measure == "lmu":
        A = (2 * i + 1) * np.where(i < j, -1.0, -sign)
        return A, (2 * n + 1) * (-1.0) ** n
    need(N % 2 == 0, f"N is {N}; FouT stores cosine-sine pairs, give an even N.")
    turn = 2 * np.pi * np.arange(N // 2)
    b = np.where(n % 2 == 0, np.sqrt(2), 0.0)
    b[0] = 1
    S = np.zeros((N, N))
    S[n[1::2], n[::2]], S[n[::2], n[1::2]] = turn, -turn
    return S - 2 * np.outer(b, b), 2 * b


def basis_kernel(measure: str, N: int, t: np.ndarray) -> np.ndarray:
    """The kernels e^{tA}B tends to, in closed form: exact for "legs" and "lagt".

    measure: one of MEASURES; N: how many kernels; t: lags (T,) in time units, t >= 0.
    Returns (N, T). LegS r_n e^{-t} P_n(2e^{-t} - 1); LegT r_n P_n(1 - 2t), FouT
    1, 0, sqrt2 cos 2pi kt, sqrt2 sin 2pi kt and LMU (2n+1) P_n(2t - 1) on [0, 1], zero
    after, which the finite N reaches only in the limit; LagT e^{-t/2} L_n(t).
    Raises ValueError for an unknown measure, a bad N or a negative lag.
    Source: 2206.12037 (orthogonal SSMs); checked against `state_kernel`.
    """
    choice("The measure", measure, MEASURES)
    t = np.asarray(t, float)
    inside = (t <= 1) if measure in WINDOWED else np.exp(-t * (measure == "legs"))
    D = _dual(measure, N, np.minimum(t, 1) if measure in WINDOWED else t)
    return D * inside * ((2 * np.arange(N) + 1.0)[:, None] if measure == "lmu" else 1)


def _dual(measure: str, N: int, lag: np.ndarray, power: float = 1.0) -> np.ndarray:
    """The functions that a state multiplies to give back the past: (N, T)."""
    count("The number of basis functions N", N)
    need(np.ndim(lag) == 1, f"The lags have shape {np.shape(lag)}; give one axis (T,).")
    need(np.all(lag >= 0), "Some lags are negative; the future is not in the state.")
    if measure in (*WINDOWED, "scaled_legs"):
        need(np.all(lag <= 1), f"{measure} reaches back to lag 1; some are larger.")
    r = _root(N)[:, None]
    if measure in ("legs", "legt", "scaled_legs"):
        y = {"legs": np.exp(-lag), "legt": 1 - lag}.get(measure, (1 - lag) ** power)
        return r * _legendre(N, 2 * y - 1)
    if measure == "lmu":
        return _legendre(N, 2 * lag - 1)
    if measure == "fout":
        k = 2 * np.pi * np.arange((N + 1) // 2)[:, None] * lag
        D = np.sqrt(2) * np.stack([np.cos(k), np.sin(k)], axis=1)
        D[0, 0] = 1
        return D.reshape(-1, len(lag))[:N]
    from scipy.special import eval_laguerre

    return np.exp(-lag / 2) * eval_laguerre(np.arange(N)[:, None], lag)


def krylov(Ab: np.ndarray, Bb: np.ndarray, L: int) -> np.ndarray:
    """The impulse response of the state, Ab^l Bb for l = 0 .. L-1, by doubling.

    Ab: (N, N); Bb: (N,); L: length. Returns (N, L) after about log2(L) products
    [K, Ab^m K]; stable where the powers of Ab stay bounded. Raises ValueError for
    shapes. Source: doubling of a Krylov sequence, folklore.
    """
    Ab, Bb = _system(Ab, Bb)
    count("The length L", L)
    K = Bb[:, None]
    while K.shape[1] < L:
        K = np.concatenate([K, Ab @ K], axis=1)
        Ab = Ab @ Ab if K.shape[1] < L else Ab
    return K[:, :L]


def _system(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    A, B = np.asarray(A, float), np.asarray(B, float)
    need(
        A.ndim == 2 and A.shape[0] == A.shape[1] and B.shape == A.shape[:1],
        f"A has shape {A.shape} and B {B.shape}; give A (N, N) and B (N,).",
    )
    return A, B


def state_kernel(A: np.ndarray, B: np.ndarray, t: np.ndarray) -> np.ndarray:
    """What the state remembers of an impulse t ago, e^{tA}B.

    A: (N, N); B: (N,); t: lags (T,) in time units. Returns (N, T): on a uniform grid by
    powers of one matrix exponential, otherwise by one exponential a lag.
    Raises ValueError for shapes. Source: 2206.12037, definition of a basis.
    """
    from scipy.linalg import expm

    A, B = _system(A, B)
    t = np.asarray(t, float)
    need(t.ndim == 1, f"The lags have shape {t.shape}; give one axis (T,).")
    if len(t) > 2 and np.allclose(np.diff(t, 2), 0, atol=1e-12 * np.abs(t).max()):
        dt = (t[-1] - t[0]) / (len(t) - 1)
        return krylov(expm(dt * A), expm(t[0] * A) @ B, len(t))
    return np.stack([expm(s * A) @ B for s in t], axis=1)


def discretize(
    A: np.ndarray, B: np.ndarray, dt: float, rule: str = "zoh", alpha: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """One step of x' = A x + B u as x_k = Ab x_{k-1} + Bb u_k (S4 convention).

    A: (N, N); B: (N,); dt: step in time units (1 / dt is the window in steps); rule:
    one of RULES; alpha: only for "gbt" (0 Euler, 1/2 bilinear, 1 backward). "zoh" holds
    u for a step; it exponentiates the augmented matrix, so a singular A (FouT) is fine.
    Returns Ab (N, N), Bb (N,). Raises ValueError for an unknown rule, dt <= 0, shapes.
    Source: 2008.07669; 2111.00396 (bilinear).
    """
    choice("The rule", rule, RULES)
    need(dt > 0, f"dt is {dt}; give a positive step, 1 / (window in steps).")
    A, B = _system(A, B)
    N = len(B)
    if rule == "zoh":
        from scipy.linalg import expm

        E = expm(dt * np.block([[A, B[:, None]], [np.zeros((1, N + 1))]]))
        return E[:N, :N], E[:N, N]
    alpha = {"euler": 0.0, "backward": 1.0, "bilinear": 0.5}.get(rule, alpha)
    I = np.eye(N)  # noqa: E741
    right = np.column_stack([I + (1 - alpha) * dt * A, dt * B])
    both = np.linalg.solve(I - alpha * dt * A, right)
    return both[:, :N], both[:, N]


# -- online compression -------------------------------------------------------------


def stretch_matrix(N: int, ratio: float | np.ndarray) -> np.ndarray:
    """e^{A log(1 / ratio)} for LegS: the same past, seen from a longer interval.

    N: state size; ratio: old length / new length in [0, 1], a number or (T,).
    Returns (N, N) or (T, N, N), lower triangular. It maps the Legendre coefficients of
    f on [0, ratio] to those of f, continued by zero, on [0, 1]; the overlap integrals
    come from Gauss-Legendre quadrature and are exact, so no power of e^{A} is ever
    formed and the norm stays <= sqrt(ratio) at any N.
    Raises ValueError for a ratio outside [0, 1].
    Source: derived here (scaled LegS, 2008.07669, is autonomous in log t).
    """
    count("The state size N", N)
    ratio = np.asarray(ratio, float)
    need(
        np.all((ratio >= 0) & (ratio <= 1)),
        f"The ratio is {ratio}; give old length / new length, between 0 and 1.",
    )
    y = np.polynomial.legendre.leggauss(N)[0]  # exact to degree 2N - 1
    r = _root(N)[:, None]
    old = r * _legendre(N, y)  # (N old, N nodes)
    old /= np.sum(old**2, axis=0)  # Christoffel's weights: orthogonal to 1e-14
    new = r * np.moveaxis(_legendre(N, ratio[..., None] * (y + 1) - 1), 0, -2)
    return np.tril(ratio[..., None, None] * (new @ old.T))


def _stretches(N: int, L: int, rule: str, power: float) -> Iterator[np.ndarray]:
    """M_0 .. M_{L-1} of x <- e_0 u + M_k (x - e_0 u), M_0 = 0, made in stacks."""
    A, I = transition("legs", N)[0], np.eye(N)  # noqa: E741
    alpha = {"forward": 0.0, "backward": 1.0}.get(rule, 0.5)
    for start in range(0, L, 64):
        k = np.arange(start, min(start + 64, L))
        if rule == "hold":
            yield from stretch_matrix(N, (k / (k + 1)) ** power)
            continue
        clock = k + (0.5 if rule == "midpoint" else 1.0)
        c = (power / clock)[:, None, None]
        M = np.linalg.solve(I - alpha * c * A, I + (1 - alpha) * c * A)
        M[k == 0] = 0
        yield from M


def legs_scan(
    u: np.ndarray, N: int, rule: str = "hold", power: float = 1.0
) -> np.ndarray:
    """Scaled LegS over a signal: Legendre coefficients of the whole history so far.

    u: (..., L); N: state size; rule: "hold" is exact for the held (piecewise constant)
    signal, "midpoint" is bilinear with 1/t taken in the middle of the step, "bilinear",
    "backward" and "forward" take it at the end, as the authors' code does; power: p in
    x' = (p/t)(A x + B u), whose measure p s^(p-1)/t^p favours the recent past if p > 1.
    Returns states (..., L, N); the first is e_0 u_0. As A e_0 = -B, every rule reads
    x <- e_0 u + M (x - e_0 u). Raises ValueError for a bad rule, N or power.
    Source: 2008.07669; the hold and `power` derived here.
    """
    u = _signal(u)
    _scaled(N, rule, power)
    states = np.empty((*u.shape, N))
    x = np.zeros((*u.shape[:-1], N))
    for k, M in enumerate(_stretches(N, u.shape[-1], rule, power)):
        x[..., 0] -= u[..., k]
        x = x @ M.T
        x[..., 0] += u[..., k]
        states[..., k, :] = x
    return states


def _signal(u: np.ndarray) -> np.ndarray:
    u = np.asarray(u, float)
    need(
        u.ndim >= 1 and u.shape[-1] >= 1,
        f"The signal has shape {u.shape}; give (length,) or (batch, length).",
    )
    return u


def _scaled(N: int, rule: str, power: float) -> None:
    count("The state size N", N)
    choice("The rule of scaled LegS", rule, SCALED_RULES)
    need(power > 0, f"power is {power}; give a positive number, 1 for plain LegS.")


def lti_scan(
    A: np.ndarray, B: np.ndarray, u: np.ndarray, dt: float, rule: str = "zoh"
) -> np.ndarray:
    """A time-invariant state over a signal, from a zero state.

    A: (N, N); B: (N,); u: (..., L); dt: step, so that 1 / dt steps are one window
    (LegT, FouT) or one time constant (LegS); rule: one of RULES.
    Returns states (..., L, N). Raises ValueError as `discretize` does.
    Source: 2206.12037 (1 / dt is the timescale).
    """
    u = _signal(u)
    Ab, Bb = discretize(A, B, dt, rule)
    states = u[..., None] * Bb
    for k in range(1, u.shape[-1]):
        states[..., k, :] += states[..., k - 1, :] @ Ab.T
    return states


def compression_matrix(
    measure: str,
    N: int,
    L: int,
    rule: str | None = None,
    window: float | None = None,
    power: float = 1.0,
) -> np.ndarray:
    """The linear map from L samples to the last state: a data set in one product.

    measure: "scaled_legs" or one of MEASURES; N: state size; L: samples; rule: default
    "hold" for scaled LegS, "zoh" otherwise; window: 1 / dt in steps, default L, not
    used by scaled LegS; power: see `legs_scan`, only scaled LegS.
    Returns W (N, L), last_state = W @ u, column L-1 being the newest sample. Scaled
    LegS under "hold" is closed form (integrals of P_n over the samples' cells), every
    time-invariant measure a Krylov matrix; the other rules take one product a sample.
    Raises ValueError for unknown names and non-positive sizes. Source: derived here.
    """
    choice("The measure", measure, ("scaled_legs", *MEASURES))
    count("The length L", L)
    if measure != "scaled_legs":
        window = L if window is None else window
        need(window > 0, f"window is {window}; give a positive number of steps.")
        system = discretize(*transition(measure, N), 1 / window, rule or "zoh")
        return krylov(*system, L)[:, ::-1]
    rule = rule or "hold"
    _scaled(N, rule, power)
    if rule == "hold":
        edges = 2 * (np.arange(L + 1) / L) ** power - 1
        return _root(N)[:, None] * np.diff(_antiderivative(N, edges), axis=1) / 2
    W = np.empty((N, L))
    after = np.eye(N)  # what becomes of a state between sample k and the end
    for k, M in reversed(list(enumerate(_stretches(N, L, rule, power)))):
        W[:, k] = after @ (np.eye(N)[0] - M[:, 0])
        after = after @ M
    return W


def reconstruct(
    x: np.ndarray, measure: str, lag: np.ndarray, power: float = 1.0
) -> np.ndarray:
    """The past that a state stands for, u(now - lag).

    x: (..., N); measure: "scaled_legs" or one of MEASURES; lag: (T,), 0 is now; the
    unit is the whole history for "scaled_legs" (1 is the first sample), else 1 / dt
    steps; "legt", "fout", "lmu" and "scaled_legs" need lag <= 1; power: as in
    `legs_scan`.
    Returns (..., T). Raises ValueError for an unknown measure or lags out of range.
    Source: 2008.07669 (u = sum_n x_n g_n); 2206.12037.
    """
    choice("The measure", measure, ("scaled_legs", *MEASURES))
    x = np.asarray(x, float)
    return x @ _dual(measure, x.shape[-1], np.asarray(lag, float), power)


def history_error(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """RMS difference between a scaled LegS state's past and the samples themselves.

    x: (..., N), the state after u; u: (..., L), samples taken mid-step. Returns (...).
    Raises ValueError for an empty signal. Source: the error of figure R1 in the
    notebook.
    """
    u = _signal(u)
    lag = 1 - (np.arange(u.shape[-1]) + 0.5) / u.shape[-1]
    return np.sqrt(np.mean((reconstruct(x, "scaled_legs", lag) - u) ** 2, axis=-1))


# -- exact projections --------------------------------------------------------------


def legendre_projection(
    f: Callable[[np.ndarray], np.ndarray] | np.ndarray,
    N: int,
    breaks: Sequence[float] = (),
) -> np.ndarray:
    """Coefficients in the orthonormal Legendre basis r_n P_n(2s - 1) of [0, 1].

    f: samples (..., L), held each for 1 / L (integrated exactly), or a function of an
    array s in [0, 1], smooth between breaks; N: how many; breaks: jumps and kinks of f.
    Returns (..., N) or (N,). Raises ValueError for a bad N or breaks outside (0, 1).
    Source: 2008.07669; a batch computation, the oracle of every online one.
    """
    count("The number of coefficients N", N)
    if not callable(f):
        f = _signal(f)
        return f @ compression_matrix("scaled_legs", N, f.shape[-1]).T
    edges = np.unique([0.0, *breaks, 1.0])
    need(edges[0] == 0 and edges[-1] == 1, f"Breaks {breaks}; give points in (0, 1).")
    y, w = np.polynomial.legendre.leggauss(N + 64)
    half = np.diff(edges)[:, None] / 2
    s = (edges[:-1, None] + half * (y + 1)).ravel()
    return _root(N) * (_legendre(N, 2 * s - 1) @ (f(s) * (half * w).ravel()))


def step_coefficients(c: float, N: int) -> np.ndarray:
    """Legendre coefficients of a jump, f(s) = 1 for s >= c and 0 before, on [0, 1].

    c: where, in (0, 1); N: how many. Returns (N,),
    c_n = r_n [P_{n-1}(y) - P_{n+1}(y)] / (2(2n+1)), y = 2c - 1.
    Raises ValueError for another c.
    Source: derived here from (2n+1) P_n = P'_{n+1} - P'_{n-1}.
    """
    _inside(c)
    F = _antiderivative(N, np.array([2.0 * c - 1, 1.0]))
    return _root(N) * (F[:, 1] - F[:, 0]) / 2


def step_tail(c: float, N: int) -> float:
    """L2 error of the best N-term Legendre approximation of a jump at c.

    c: in (0, 1); N: terms kept. Returns sqrt(1 - c - sum_{n<N} c_n^2), a difference of
    numbers of order 1 that stays accurate because the result is only of order N^-1/2:
    it tends to (c(1-c))^(1/4) / sqrt(pi N). Raises ValueError for c.
    Source: derived here (Parseval; Laplace's asymptotics of P_n for the constant).
    """
    return float(np.sqrt(1 - c - np.sum(step_coefficients(c, N) ** 2)))


def kink_coefficients(c: float, N: int) -> np.ndarray:
    """Legendre coefficients of a kink, f(s) = |s - c| on [0, 1].

    c: in (0, 1); N: how many. Returns (N,): 2 r_n times the double antiderivative of
    P_n(2s - 1) at c for n >= 2, as f'' = 2 delta(s - c). Raises ValueError for c.
    Source: derived here.
    """
    _inside(c)
    F = _antiderivative(N + 1, np.array(2.0 * c - 1))
    first = [(c * c + (1 - c) ** 2) / 2, 1 / 6 + 2 * c**3 / 3 - c * c]
    n = np.arange(2, N)
    twice = (F[3 : N + 1] - F[1 : N - 1]) / (4 * (2 * n + 1)) if N > 2 else []
    return _root(N) * np.concatenate([first, 2 * np.asarray(twice)])[:N]


def kink_tail(c: float, N: int) -> float:
    """L2 error of the best N-term Legendre approximation of |s - c|, order N^-3/2.

    c: in (0, 1); N: terms kept. Returns sqrt(||f||^2 - sum_{n<N} c_n^2), six digits up
    to N of about 1000; tends to (4c(1-c))^(3/4) / sqrt(6 pi N^3).
    Raises ValueError for another c. Source: derived here.
    """
    norm = (c**3 + (1 - c) ** 3) / 3
    return float(np.sqrt(norm - np.sum(kink_coefficients(c, N) ** 2)))


def _inside(c: float) -> None:
    need(0 < c < 1, f"The break is at {c}; give a point inside (0, 1).")


# -- what a state remembers ---------------------------------------------------------


def memory(
    W: np.ndarray, autocovariance: np.ndarray | None = None, rtol: float = 1e-6
) -> np.ndarray:
    """How much of each past sample the best linear read-out finds in the state, by lag.

    W: (N, L), a `compression_matrix`; autocovariance: (L,) of the stationary input by
    lag, default white noise; rtol: read-out precision: directions of the state weaker
    than rtol times the strongest count as lost.
    Returns r (L,), r[l] = 1 - normalised squared error at lag l, between 0 and 1. White
    noise: the leverage scores of W, which sum to its rank, at most N.
    The past begins at lag L - 1: a band-limited signal has an onset there, which modes
    outside its band remember. For a long past without one, let W decay within L.
    Raises ValueError for shapes or a zero variance.
    Source: memory capacity, Jaeger 2001 (GMD report 152); finite past, derived here.
    """
    W = np.asarray(W, float)
    need(W.ndim == 2, f"W has shape {W.shape}; give (N, L) as compression_matrix does.")
    S = np.eye(W.shape[1])
    if autocovariance is not None:
        from scipy.linalg import toeplitz

        R = np.asarray(autocovariance, float)
        need(
            R.shape == W.shape[1:] and R[0] > 0,
            f"The autocovariance has shape {R.shape}; give ({W.shape[1]},), R[0] > 0.",
        )
        power, V = np.linalg.eigh(toeplitz(R / R[0]))
        power[power < 1e-13 * power[-1]] = 0  # rounding, 1e-8 after the root
        S = (V * np.sqrt(power)) @ V.T  # the square root of R
    Z = W @ S
    size = np.linalg.norm(Z, axis=1)
    Z = Z[size > 1e-14 * size.max()]
    _, s, V = np.linalg.svd(
        Z / np.linalg.norm(Z, axis=1, keepdims=True), full_matrices=False
    )
    return np.sum((V[s > rtol * s[0]] @ S) ** 2, axis=0)[::-1]


def memory_lti(
    Ab: np.ndarray, Bb: np.ndarray, lags: int, rtol: float = 1e-10
) -> np.ndarray:
    """`memory` of a stable discrete system under white noise, with an infinite past.

    Ab: (N, N), spectral radius < 1; Bb: (N,); lags: how many; rtol: as in `memory`.
    Returns r (lags,), r[l] = K_l' P^-1 K_l with K_l = Ab^l Bb, P = Ab P Ab' + Bb Bb';
    its sum over all lags is N for a controllable system (trace of P^-1 P). P is only
    used through a square root, so its condition number is never squared.
    Raises ValueError for shapes or an unstable system. Source: Jaeger 2001.
    """
    Ab, Bb = _system(Ab, Bb)
    alive = np.abs(krylov(Ab, Bb, len(Bb))).max(axis=1) > 0  # not FouT's s_0
    Ab, Bb = Ab[np.ix_(alive, alive)], Bb[alive]
    radius = np.abs(np.linalg.eigvals(Ab)).max()
    need(radius < 1, f"The spectral radius is {radius:.4g}; make the system stable.")
    F, S = Ab, Bb[:, None]  # P = S S', doubled: S <- [S, Ab^m S], squeezed by QR
    while np.abs(F).max() > 1e-18:
        S = np.linalg.qr(np.concatenate([S, F @ S], axis=1).T, mode="r").T
        F = F @ F
    size = np.linalg.norm(S, axis=1)[:, None]
    U, s, _ = np.linalg.svd(S / size)
    keep = s > rtol * s[0]
    white = (U[:, keep] / s[keep]).T @ (krylov(Ab, Bb, lags) / size)
    return np.sum(white**2, axis=0)


def band_limited(L: int, cutoff: float) -> np.ndarray:
    """Autocovariance of unit-variance noise that is flat below a cut-off, zero above.

    L: how many lags; cutoff: fraction of the Nyquist frequency, in (0, 1]; 1 is white.
    Returns (L,) = sinc(cutoff lag). Raises ValueError for a cut-off out of range.
    Source: Fourier transform of a box, derived here.
    """
    need(0 < cutoff <= 1, f"The cut-off is {cutoff}; give a fraction of Nyquist.")
    return np.sinc(cutoff * np.arange(L))


def band_limited_noise(
    shape: tuple[int, ...], cutoff: float, rng: np.random.Generator
) -> np.ndarray:
    """Gaussian noise of unit variance with the autocovariance of `band_limited`.

    shape: (..., L); cutoff: fraction of Nyquist in (0, 1]; rng: numpy Generator.
    Returns `shape`; drawn at eight times the length and cut, so it is not periodic.
    Raises ValueError for a cut-off out of range. Source: derived here.
    """
    band_limited(1, cutoff)
    M = 8 * shape[-1]
    F = np.fft.rfft(rng.standard_normal((*shape[:-1], M)))
    top = min(round((cutoff * M - 1) / 2), M // 2)  # bins 0 .. top, 1 + 2 top of M
    F[..., max(top, 0) + 1 :] = 0
    kept = min((1 + 2 * max(top, 0)) / M, 1)
    return np.fft.irfft(F, M)[..., : shape[-1]] / np.sqrt(kept)


# -- recurrence and convolution -----------------------------------------------------


def kernel_recurrent(
    Ab: np.ndarray, Bb: np.ndarray, C: np.ndarray, L: int
) -> np.ndarray:
    """The convolution kernel of a discrete system, K_l = C Ab^l Bb, step by step.

    Ab: (N, N); Bb: (N,); C: (N,) or (H, N); L: length. Returns (L,) or (H, L).
    Raises ValueError for shapes. scipy relations: `dlsim` reads out before the update,
    h_{k+1} = K_k under "zoh"; Tustin gives h_k = (K_k + K_{k-1}) / 2, h_0 = K_0 / 2.
    Source: 2111.00396 (the SSM as a convolution).
    """
    Ab, x = _system(Ab, Bb)
    C = np.asarray(C, float)
    need(C.shape[-1] == len(x), f"C has shape {C.shape}; its last axis is N={len(x)}.")
    K = np.empty((*C.shape[:-1], L))
    for k in range(L):
        K[..., k] = C @ x
        x = Ab @ x
    return K


def fft_convolve(K: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Causal convolution y_k = sum_{l<=k} K_l u_{k-l} by FFT of twice the length.

    K: (..., L) kernel; u: (..., L) signal; leading axes broadcast. Returns (..., L).
    Raises ValueError if the lengths differ. Source: 2111.00396.
    """
    K, u = _signal(K), _signal(u)
    L = u.shape[-1]
    need(
        K.shape[-1] == L, f"The kernel has {K.shape[-1]} taps, the signal {L} samples."
    )
    return np.fft.irfft(np.fft.rfft(K, 2 * L) * np.fft.rfft(u, 2 * L), 2 * L)[..., :L]


# -- digits as sequences ------------------------------------------------------------


def random_recurrence(
    N: int, rng: np.random.Generator, radius: float = 0.99, kind: str = "orthogonal"
) -> tuple[np.ndarray, np.ndarray]:
    """A random stable recurrence: the memory that nobody designed.

    N: state size; rng: numpy Generator; radius: spectral radius in (0, 1); kind:
    "orthogonal" (a random rotation times radius) or "gaussian" (independent entries).
    Returns Ab (N, N), Bb (N,) of unit expected norm. Raises ValueError for
    another kind or radius. Source: the echo-state baseline (Jaeger 2001).
    """
    choice("The kind of recurrence", kind, ("orthogonal", "gaussian"))
    need(0 < radius < 1, f"The radius is {radius}; give a number between 0 and 1.")
    G = rng.standard_normal((N, N))
    if kind == "orthogonal":
        Q, R = np.linalg.qr(G)
        Ab = radius * Q * np.sign(np.diag(R))
    else:
        Ab = radius * G / np.abs(np.linalg.eigvals(G)).max()
    return Ab, rng.standard_normal(N) / np.sqrt(N)


def leaky_averages(N: int, L: int) -> np.ndarray:
    """N exponential averages whose time constants run from 1 to L steps, log-spaced.

    N: how many; L: samples. Returns W (N, L) as `compression_matrix` does.
    Raises nothing of its own. Source: a baseline of this collection.
    """
    decay = np.exp(-1 / np.geomspace(1, L, N))[:, None]
    return (1 - decay) * decay ** np.arange(L)[::-1]


def last_samples(N: int, L: int) -> np.ndarray:
    """A buffer of the last N samples. N, L: sizes, N <= L. Returns W (N, L).

    Raises ValueError if N > L. Source: a baseline of this collection.
    """
    need(N <= L, f"N is {N} and L is {L}; a buffer cannot be longer than the signal.")
    return np.eye(L)[L - N :]


def dct_matrix(N: int, L: int) -> np.ndarray:
    """The first N rows of the orthonormal cosine transform (type II) of L samples.

    N, L: sizes, N <= L. Returns W (N, L), a batch transform. Raises ValueError if
    N > L. Source: Ahmed, Natarajan and Rao 1974.
    """
    need(N <= L, f"N is {N}; {L} samples have only {L} cosine coefficients.")
    n, k = np.arange(N)[:, None], np.arange(L)
    W = np.sqrt(2 / L) * np.cos(np.pi * n * (2 * k + 1) / (2 * L))
    W[0] /= np.sqrt(2)
    return W


def pca_matrix(u: np.ndarray, N: int) -> np.ndarray:
    """The N leading principal directions of a set of signals, fitted in batch.

    u: (batch, L), training signals only; N <= L. Returns W (N, L).
    Raises ValueError if N exceeds L or the batch. Source: textbook.
    """
    need(min(u.shape) >= N, f"N is {N}; {u.shape} signals have {min(u.shape)} at most.")
    return np.linalg.svd(u - u.mean(axis=0), full_matrices=False)[2][:N]


def digit_sequences(length: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1797 handwritten digits as one-channel sequences, row by row.

    length: 64 (8 x 8 raster) or 256 (each pixel doubled to 2 x 2).
    Returns u (1797, length) = grey / 16 minus its overall mean, labels (1797,). The
    mean shifts every feature by a constant, which `digit_accuracy` removes: nothing
    leaks.
    Raises ValueError for another length. Source: scikit-learn's load_digits.
    """
    need(length in (64, 256), f"length is {length}; give 64 or 256 steps.")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    if length == 256:
        images = images.repeat(2, axis=1).repeat(2, axis=2)
    return (images - images.mean()).reshape(len(images), -1), labels


def digit_split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stratified row numbers: 397 test digits, the rest (1400) to train on.

    labels: (1797,); seed: of the split. Returns train (1400,), test (397,).
    Source: scikit-learn's train_test_split.
    """
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    return train_test_split(rows, test_size=397, stratify=labels, random_state=seed)


def digit_accuracy(
    features: np.ndarray, labels: np.ndarray, seed: int, C: float = 1.0
) -> float:
    """Test accuracy of a logistic read-out of last states, one split.

    features: (1797, N); labels: (1797,); seed: of `digit_split`; C: inverse penalty.
    Features are standardised with the training statistics. Returns a fraction.
    Raises ValueError if rows and labels differ in number. Source: a linear probe.
    """
    from sklearn.linear_model import LogisticRegression

    need(
        len(features) == len(labels),
        f"There are {len(features)} feature rows, {len(labels)} labels; give as many.",
    )
    train, test = digit_split(labels, seed)
    mean, std = features[train].mean(axis=0), features[train].std(axis=0)
    std = np.where(std > 1e-12 * std.max(), std, np.inf)  # a dead state says nothing
    z = (features - mean) / std
    model = LogisticRegression(C=C, max_iter=2000, tol=1e-4)
    return float(model.fit(z[train], labels[train]).score(z[test], labels[test]))


def digit_compressor(
    method: str, N: int, u: np.ndarray, train: np.ndarray, seed: int
) -> np.ndarray:
    """The (N, L) map of one method in the digits table.

    method: one of DIGIT_METHODS, or a time-invariant measure with its window as a
    fraction of the length, "legt:0.25"; N: state size; u: (batch, L); train: rows that
    PCA may see; seed: of the random recurrences. Returns W (N, L).
    Default windows: the whole sequence (LegT, FouT), half of it (LegS).
    Raises ValueError for an unknown method. Source: this collection.
    """
    L = u.shape[-1]
    name, _, part = method.partition(":")
    choice("The method", name, (*DIGIT_METHODS, "lagt", "lmu"))
    if name == "scaled_legs":
        return compression_matrix(name, N, L)
    if name in MEASURES:
        share = float(part or (0.5 if name == "legs" else 1.0))
        return compression_matrix(name, N, L, window=L * share)
    if name.startswith("random_"):
        kind = name.removeprefix("random_")
        system = random_recurrence(N, np.random.default_rng(seed), kind=kind)
        return krylov(*system, L)[:, ::-1]
    if name == "pca":
        return pca_matrix(u[train], N)
    return {"leaky": leaky_averages, "last": last_samples, "dct": dct_matrix}[name](
        N, L
    )


def digit_table(
    lengths: Iterable[int] = (64,),
    Ns: Iterable[int] = (8, 16, 32),
    seeds: Iterable[int] = range(5),
    methods: Iterable[str] = DIGIT_METHODS,
) -> pandas.DataFrame:
    """Accuracy of a linear read-out of the compressed digit, for every combination.

    lengths: 64 and / or 256 steps; Ns: state sizes; seeds: splits (and random
    recurrences); methods: see `digit_compressor`.
    Returns one row a fit: length, N, method, seed, accuracy. About 25 ms a fit.
    Raises ValueError for unknown methods or lengths. Source: this collection.
    """
    import pandas as pd

    seeds, methods, Ns = list(seeds), list(methods), list(Ns)
    rows = []
    for length in lengths:
        u, labels = digit_sequences(length)
        for N, method, seed in ((n, m, s) for n in Ns for m in methods for s in seeds):
            train, _ = digit_split(labels, seed)
            W = digit_compressor(method, N, u, train, seed)
            accuracy = digit_accuracy(u @ W.T, labels, seed)
            rows.append((length, N, method, seed, accuracy))
    return pd.DataFrame(rows, columns=["length", "N", "method", "seed", "accuracy"])


# -- exercises ----------------------------------------------------------------------


def coefficients_for_jump(c: float = 0.5, rms: float = 0.02) -> int:
    """The smallest N whose Legendre series of a jump at c has an L2 error below rms.

    c: in (0, 1); rms: error bound, positive. Returns N. Raises ValueError for another
    c. Source: exercise 1 of notebook 11, by `step_tail`.
    """
    N = 1
    while step_tail(c, N) >= rms:
        N += 1
    return N


def capacity_of_rotation(N: int = 20, radius: float = 0.99, seed: int = 0) -> float:
    """What the recoverable shares of a random rotation sum to, over a long past.

    N: state size; radius: spectral radius; seed: of the rotation. Returns the sum over
    2000 lags. Raises ValueError as `memory_lti`. Source: exercise 3 of notebook 11.
    """
    system = random_recurrence(N, np.random.default_rng(seed), radius)
    return float(memory_lti(*system, 2000).sum())
