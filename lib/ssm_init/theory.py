"""What an initialisation is worth, computed exactly: kernels, gaps, conditioning.

Continuous systems are x' = A x + B u, y = C x with A either dense (N, N) or diagonal
(n,), given as its poles. Diagonal models store one pole of each conjugate pair, so that
their kernel is 2 Re(sum_n C_n B_n e^{lambda_n t}). Discrete kernels follow `lib.hippo`:
K_l = C Ab^l Bb. Everything here is float64 or complex128 and needs no torch, except
`optimise_perturbation`, which imports it when called.
Sources: 2111.00396 (S4), 2203.14343 (DSS), 2206.11893 (S4D), 2310.01698 (PTD),
2303.06349 (LRU), 2411.19455 (autocorrelation), 2604.01168 (S0 tuning), 2512.04268
(initial guess), 2410.03292 (token dynamics); "derived here" where they do not say it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import comb
from typing import TYPE_CHECKING

import numpy as np

from lib.hippo import discretize, fft_convolve, krylov, transition
from lib.kit.checks import choice, need

if TYPE_CHECKING:
    import pandas

LOW_RANK = ("legs", "legt", "fout")
POLES = ("legs", "inv", "lin", "real", "inv2", "quad")
DIAGONAL_RULES = ("zoh", "bilinear", "mamba")
DELAY_KINDS = (
    *("legt", "fout", "legs", "diag_legs", "diag_inv", "diag_lin"),
    *("diag_lin_re0", "diag_real", "lru"),
)

System = tuple[np.ndarray, np.ndarray, np.ndarray]


def _pairs(N: int) -> int:
    need(
        isinstance(N, (int, np.integer)) and N >= 2,
        f"The state size N is {N!r}; give an even whole number of at least 2.",
    )
    need(
        N % 2 == 0,
        f"N is {N}; conjugate pairs need an even N, take {N - 1} or {N + 1}.",
    )
    return N // 2


# -- normal plus low rank -----------------------------------------------------------


def nplr(measure: str, N: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A HiPPO pair as normal plus low rank, A = V (diag(Lambda) - P P*) V*.

    measure: "legs" (rank 1), "legt" (rank 2) or "fout" (rank 1); N: state size.
    Returns Lambda (N,), P (N, rank), B (N,) in the eigenbasis, V (N, N) unitary, by a
    Hermitian `eigh` of the skew part: ascending imaginary parts, nothing clipped.
    Real parts are exactly -1/2 (LegS) or 0. Raises ValueError for another measure or N.
    Source: 2111.00396; FouT 2206.12037.
    """
    choice("The measure", measure, LOW_RANK)
    A, B = transition(measure, N)
    shift = -0.5 if measure == "legs" else 0.0
    even = np.arange(N) % 2 == 0
    P = {
        "legs": (B / np.sqrt(2))[:, None],
        "legt": np.stack([B * ~even, B * even], axis=1),
        "fout": (B / np.sqrt(2))[:, None],
    }[measure]
    skew = A + P @ P.T
    skew = (skew - skew.T) / 2  # the symmetric part is shift * I, to rounding
    omega, V = np.linalg.eigh(-1j * skew)
    back = V.conj().T
    return shift + 1j * omega, back @ P, back @ B, V


def legs_half(N: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The upper half of S4D-LegS: poles of A + P P', with their B and eigenvectors.

    N: even. Returns poles (N/2,) with positive imaginary parts, descending; V* B (N/2,)
    *not* halved; V (N, N/2), so that C V is the read-out. Raises ValueError for odd N.
    Source: 2206.11893 (S4D-LegS).
    """
    n = _pairs(N)
    Lambda, _, B, V = nplr("legs", N)
    return Lambda[: -n - 1 : -1], B[: -n - 1 : -1], V[:, : -n - 1 : -1]


def poles(kind: str, N: int) -> np.ndarray:
    """The poles of one diagonal initialisation, one of each conjugate pair.

    kind: one of POLES; N: even real state size. Returns (N/2,) complex: -1/2 + i omega,
    or -(n+1) for "real". Raises ValueError for an unknown kind or odd N.
    Source: 2206.11893 (Inv2 and Quad: its authors' code).
    """
    choice("The kind of poles", kind, POLES)
    n = np.arange(_pairs(N))
    if kind == "legs":
        return legs_half(N)[0]
    if kind == "real":
        return -(n + 1.0) + 0j
    omega = {
        "inv": N / np.pi * (N / (2 * n + 1) - 1),
        "inv2": N / np.pi * (N / (n + 1) - 1),
        "lin": np.pi * n,
        "quad": (1 + 2 * n) ** 2 / np.pi,
    }[kind]
    return -0.5 + 1j * omega


# -- kernels ------------------------------------------------------------------------


def discretize_diag(
    A: np.ndarray, B: np.ndarray, dt: np.ndarray | float, rule: str = "zoh"
) -> tuple[np.ndarray, np.ndarray]:
    """One step of a diagonal system, x_k = Ab x_{k-1} + Bb u_k.

    A, B: (..., n) complex; dt: number or (...,), one a channel; rule: "zoh",
    "bilinear" or "mamba" (ZOH for A, Euler for B). Returns Ab, Bb (..., n).
    Raises ValueError for an unknown rule or dt <= 0. Source: 2206.11893; 2312.00752.
    """
    choice("The rule", rule, DIAGONAL_RULES)
    dt = np.asarray(dt, float)
    need(bool(np.all(dt > 0)), f"dt is {dt}; every step must be positive.")
    A, B = np.asarray(A, complex), np.asarray(B, complex)
    step = dt[..., None] if dt.ndim else dt
    z = A * step
    if rule == "bilinear":
        return (1 + z / 2) / (1 - z / 2), step * B / (1 - z / 2)
    if rule == "mamba":
        return np.exp(z), step * B
    ratio = np.ones_like(z)  # expm1(z) / z, 1 at z = 0
    np.divide(np.expm1(z), z, out=ratio, where=z != 0)
    return np.exp(z), step * ratio * B


def kernel_vandermonde(
    A: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    dt: np.ndarray | float,
    L: int,
    rule: str = "zoh",
    pairs: bool = True,
) -> np.ndarray:
    """The kernel of a diagonal system, K_l = 2 Re sum_n C_n Bb_n Ab_n^l.

    A, B, C: (..., n) complex; dt: number or (...,); L: length; rule: as in
    `discretize_diag`; pairs: True for one pole of each pair (2 Re), False for the whole
    spectrum (Re). Returns (..., L), by two levels of powers: n exponentials for about
    2 sqrt(L) lags and one matrix product. Raises ValueError for rule, dt or L.
    Source: 2206.11893 (in two lines); the two levels are folklore.
    """
    need(L >= 1, f"The length L is {L}; give at least 1.")
    Ab, Bb = discretize_diag(A, B, dt, rule)
    small = int(np.ceil(np.sqrt(L)))
    if rule == "bilinear":
        log = np.log(Ab)
    else:
        dt = np.asarray(dt, float)
        log = np.asarray(A, complex) * (dt[..., None] if dt.ndim else dt)
    low = np.exp(log[..., None] * np.arange(small))  # (..., n, small)
    high = np.exp(log[..., None] * small * np.arange(-(-L // small)))
    K = np.swapaxes((C * Bb)[..., None] * high, -1, -2) @ low  # (..., high, small)
    return (1 + pairs) * K.real.reshape(*K.shape[:-2], -1)[..., :L]


def kernel_cauchy(
    Lambda: np.ndarray,
    P: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    dt: float,
    L: int,
) -> np.ndarray:
    """S4's kernel of A = diag(Lambda) - P P* by its generating function (bilinear).

    Lambda, B, C: (N,) complex, the whole spectrum, C in the eigenbasis (C V); P: (N,)
    or (N, rank); dt: step; L: length. Returns (L,) = Re ifft of
    sum C R B - C R P (1+z) (2 I + (1+z) P* R P)^{-1} P* R B at the roots of unity,
    R = 2 / (2(1-z)/dt - (1+z) Lambda) and C taken as C (I - Ab^L). This form of the
    Woodbury identity is regular at z = -1, where the usual 2/(1+z) is not; a zero pole
    (FouT) moves the circle to radius e^{-1/L}.
    Raises ValueError for dt or L. Source: 2111.00396, Algorithm 1.
    """
    need(dt > 0 and L >= 1, f"dt is {dt} and L {L}; give positive numbers.")
    radius = 1.0 if np.abs(Lambda).min() > 1e-9 else np.exp(-1 / L)
    P = np.asarray(P).reshape(len(Lambda), -1)
    A, I = np.diag(Lambda) - P @ P.conj().T, np.eye(len(Lambda))  # noqa: E741
    Ab = np.linalg.solve(I - dt / 2 * A, I + dt / 2 * A)
    C = C - C @ np.linalg.matrix_power(radius * Ab, L)
    z = radius * np.exp(-2j * np.pi * np.arange(L) / L)[:, None]
    R = 2 / (2 / dt * (1 - z) - (1 + z) * Lambda)  # (L, N)
    right = np.concatenate([B[:, None], P], axis=1)  # (N, 1 + rank)
    CR = (C * R) @ right
    PR = np.einsum("nr,ln,nk->lrk", P.conj(), R, right)
    inner = 2 * np.eye(P.shape[1]) + (1 + z)[:, :, None] * PR[:, :, 1:]
    solved = np.linalg.solve(inner, (1 + z)[:, :, None] * PR[:, :, :1])[:, :, 0]
    K = np.fft.ifft(CR[:, 0] - np.sum(CR[:, 1:] * solved, axis=1)).real
    return K / radius ** np.arange(L)


def kernel_dss(
    Lambda: np.ndarray, W: np.ndarray, dt: float, L: int, form: str = "softmax"
) -> np.ndarray:
    """The kernel of a diagonal state space (DSS), which depends on its own length.

    Lambda, W: (n,) complex; dt: step; L: length; form: "softmax", where each pole's row
    e^{dt Lambda l} is divided by its sum, or "exp", plain ZOH. No conjugation: the
    kernel is Re sum_n. Returns (L,). Rows of growing poles are computed from their
    largest entry, so nothing overflows. Raises ValueError for an unknown form.
    Source: 2203.14343 (DSS softmax and DSS exp).
    """
    choice("The form", form, ("softmax", "exp"))
    z = dt * np.asarray(Lambda, complex)[:, None]
    if form == "exp":
        rows = np.expm1(z) / Lambda[:, None] * np.exp(z * np.arange(L))
    else:
        rows = np.exp(z * np.arange(L) - np.maximum(z.real, 0) * (L - 1))
        rows = rows / rows.sum(axis=1, keepdims=True) / Lambda[:, None]
    return (W @ rows).real


def dss_closed_form(Lambda: np.ndarray, W: np.ndarray, dt: float, L: int) -> np.ndarray:
    """DSS softmax without the softmax: W (e^z - 1) e^{zl} / (Lambda (e^{Lz} - 1)).

    Lambda, W: (n,) complex; dt: step, z = dt Lambda; L: length. Returns (L,).
    Raises nothing of its own. Source: 2203.14343 (a geometric sum).
    """
    z = dt * np.asarray(Lambda, complex)
    scale = W * np.expm1(z) / (Lambda * np.expm1(L * z))
    return (scale @ np.exp(z[:, None] * np.arange(L))).real


# -- transfer functions and the exact gap -------------------------------------------


def transfer(A: np.ndarray, B: np.ndarray, C: np.ndarray, s: np.ndarray) -> np.ndarray:
    """The transfer function G(s) = C (s - A)^{-1} B.

    A: (N, N), or (N,) for the poles of a diagonal system (whole spectrum); B, C: (N,);
    s: complex (T,). Returns (T,). A dense A is brought to Schur form once, then solved
    by substitution for all s together. Raises ValueError for shapes.
    Source: textbook; Schur form for backward stability.
    """
    A, B, C = np.asarray(A), np.asarray(B), np.asarray(C)
    s = np.atleast_1d(np.asarray(s, complex))
    need(
        A.ndim in (1, 2) and B.shape == C.shape == A.shape[:1],
        f"A {A.shape}, B {B.shape}, C {C.shape}; give A (N, N) or (N,), B and C (N,).",
    )
    if A.ndim == 1:
        return np.sum(C * B / (s[:, None] - A), axis=1)
    from scipy.linalg import schur

    T, Q = schur(A.astype(complex), output="complex")
    b, c = Q.conj().T @ B, C @ Q
    x = np.empty((len(b), len(s)), complex)
    for k in range(len(b) - 1, -1, -1):
        x[k] = (b[k] + T[k, k + 1 :] @ x[k + 1 :]) / (s - T[k, k])
    return c @ x


def allpass(s: np.ndarray, N: int) -> np.ndarray:
    """The product E_N(s) = prod_{k=1}^N (s + 1 - k) / (s + k) that rules the gap.

    s: complex (...); N: state size. Returns (...) = 1 - B'(s - A)^{-1}B for LegS;
    |E_N(i omega)| = |omega| / sqrt(omega^2 + N^2). Raises ValueError for N < 0.
    Source: derived here from A + A' = -I - BB'; compare 2310.01698, Lemma 1.
    """
    need(N >= 0, f"N is {N}; give the state size.")
    s = np.asarray(s, complex)
    E = np.ones_like(s)
    for k in range(1, N + 1):
        E = E * (s + 1 - k) / (s + k)
    return E


def legs_states(s: np.ndarray, N: int) -> np.ndarray:
    """The LegS states (s - A)^{-1}B in closed form, r_n E_n(s) / (s + n + 1).

    s: complex (T,); N: state size. Returns (N, T): no matrix, hence no conditioning.
    Raises nothing of its own. Source: derived here (forward substitution).
    """
    s = np.atleast_1d(np.asarray(s, complex))
    X, E = np.empty((N, len(s)), complex), np.ones_like(s)
    for n in range(N):
        X[n] = np.sqrt(2 * n + 1) * E / (s + n + 1)
        E = E * (s - n) / (s + n + 1)
    return X


def gap(C: np.ndarray, omega: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """S4-LegS and S4D-LegS on the frequency axis, exactly: G and G / (1 + E_N).

    C: (N,) read-out in HiPPO coordinates; omega: (T,) rad per time unit.
    Returns G (T,), G_D (T,) complex, with B halved in S4D as the theory needs.
    Raises nothing of its own. Source: 2310.01698, Lemma 1; this form derived here.
    """
    C = np.asarray(C)
    s = 1j * np.atleast_1d(np.asarray(omega, float))
    G = C @ legs_states(s, len(C))
    return G, G / (1 + allpass(s, len(C)))


def spikes(N: int, m: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where S4D-LegS resonates and how high, to leading order, for C = e_0.

    N: state size; m: number of the spike, 0 is the fastest. Returns omega
    N^2 / ((2m+1) pi) and the height 2 / ((2m+1) pi), which does not depend on N.
    Raises ValueError for m < 0. Source: derived here; 2310.01698, Theorem 2.
    """
    odd = 2 * np.asarray(m) + 1
    need(bool(np.all(odd > 0)), f"m is {m}; spikes are numbered from 0.")
    return N**2 / (odd * np.pi), 2 / (odd * np.pi)


def measured_spike(N: int, m: int) -> tuple[float, float]:
    """The m-th spike of |G_D - G| for C = e_0, found on a fine grid round its pole.

    N: even state size; m: 0 .. N/2 - 1. Returns omega and height.
    Raises ValueError for odd N or no such spike. Source: derived here.
    """
    n = _pairs(N)
    need(0 <= m < n, f"m is {m}; N = {N} has spikes 0 to {n - 1}.")
    centre = legs_half(N)[0][m].imag
    omega = centre + np.linspace(-1, 1, 2001)
    G, G_D = gap(np.eye(N)[0], omega)
    at = int(np.argmax(np.abs(G_D - G)))
    return float(omega[at]), float(np.abs(G_D - G)[at])


def legs_gramian(N: int) -> np.ndarray:
    """The controllability Gramian of LegS, integral of e^{tA}BB'e^{tA'}: tridiagonal.

    N: state size. Returns (N, N): 1/2 on the diagonal, (n+1)/2 / sqrt((2n+1)(2n+3))
    beside it. Raises nothing of its own.
    Source: derived here (integral of s P_n P_m over [0, 1]).
    """
    n = np.arange(N - 1)
    side = (n + 1) / (2 * np.sqrt((2 * n + 1) * (2 * n + 3)))
    return np.eye(N) / 2 + np.diag(side, 1) + np.diag(side, -1)


def l2_gap(C: np.ndarray) -> float:
    """The L2 distance of the S4D-LegS kernel from S4's, from Gramians, no time grid.

    C: (N,) read-out in HiPPO coordinates, N even. Returns sqrt of
    C X C' - 2 Re sum_j w_j G(-lambda_j) + w* Gram w, w = C V V*B / 2. For fixed C it
    tends to |C B| / 2 as N grows: 1/2 for e_0, and 0 only if the kernel starts at 0.
    Raises ValueError for odd N. Source: derived here (Cauchy Gram matrix).
    """
    C = np.asarray(C, float)
    _pairs(len(C))
    Lambda, _, B, V = nplr("legs", len(C))
    w = (C @ V) * B / 2
    cross = np.sum(w * (C @ legs_states(-Lambda, len(C))))
    own = w.conj() @ gram(Lambda) @ w
    square = C @ legs_gramian(len(C)) @ C - 2 * cross.real + own.real
    return float(np.sqrt(max(square, 0)))


def sampled_gap(N: int, dt: float, n: int = 0) -> tuple[float, float]:
    """The relative L2 error of S4D-LegS's *sampled* kernel (ZOH), and its law.

    N: even state size; dt: step; n: read-out e_n. Returns measured and predicted
    sqrt(2n+1) sqrt(2) / (N sqrt(dt)); the law needs N^2 dt / pi^2 of at least about 4,
    below 1 the error is about 0.7: holding the input filters spikes above Nyquist.
    Raises ValueError for odd N or dt <= 0. Source: derived here.
    """
    from scipy.special import eval_legendre

    need(dt > 0, f"dt is {dt}; give a positive step.")
    L = int(np.ceil(20 / dt))
    y = 2 * np.exp(-dt * np.arange(L + 1)) - 1
    below = eval_legendre(n - 1, y) if n else -np.ones_like(y)
    F = (eval_legendre(n + 1, y) - below) / (2 * np.sqrt(2 * n + 1))
    exact = F[:-1] - F[1:]  # integral of the kernel over each step
    Lambda, B, V = legs_half(N)
    K = kernel_vandermonde(Lambda, B / 2, V[n], dt, L)
    error = np.linalg.norm(K - exact) / np.linalg.norm(exact)
    return float(error), float(np.sqrt((4 * n + 2) / dt) / N)


# -- conditioning -------------------------------------------------------------------


def gram(lams: np.ndarray) -> np.ndarray:
    """The Gram matrix of the basis kernels e^{lambda t} on [0, infinity).

    lams: (n,) complex, negative real parts. Returns (n, n),
    G_ij = -1 / (conj(lambda_i) + lambda_j). Raises ValueError for an undamped pole.
    Source: Cauchy matrix; 2411.19455 (conditioning of the Gram matrix).
    """
    lams = np.asarray(lams, complex)
    need(bool(np.all(lams.real < 0)), "Some real parts are >= 0; damp every pole.")
    return -1 / (lams.conj()[:, None] + lams)


def gram_condition(lams: np.ndarray, digits: int | None = None) -> float:
    """The condition number of `gram`: how hard it is to learn C by gradient descent.

    lams: (n,) complex; digits: decimal digits of mpmath arithmetic for ill-conditioned
    real poles (about 4 + 1.6 n), default float64. Returns a float.
    Raises ValueError for complex poles with digits, or an undamped pole.
    Source: 2411.19455; kappa of S4D-Lin below e^2 derived here.
    """
    if digits is None:
        power = np.linalg.eigvalsh(gram(lams))
        return float(power[-1] / power[0])
    import mpmath

    need(not np.any(np.imag(lams)), "The poles are complex; leave digits out.")
    with mpmath.workdps(digits):
        x = [-mpmath.mpf(float(v)) for v in np.real(lams)]
        G = mpmath.matrix([[1 / (a + b) for b in x] for a in x])
        power = mpmath.eigsy(G, eigvals_only=True)
        return float(max(power) / min(power))


def integer_eigenvectors(N: int) -> list[list[int]]:
    """The eigenvectors of LegS in exact integers, (-1)^{i-j} binom(i+j, i-j).

    N: state size. Returns V[i][j], column j for eigenvalue -(j+1) of D^{-1} A D with
    D = diag(sqrt(2i+1)), whose entries are integers too: -(2k+1) below the diagonal.
    The largest entry is about 2^{4N/3}, why nobody can use them.
    Raises nothing of its own. Source: 2111.00396 (with its sign).
    """
    return [
        [(-1) ** (i - j) * comb(i + j, i - j) if i >= j else 0 for j in range(N)]
        for i in range(N)
    ]


def integer_basis(N: int) -> tuple[np.ndarray, np.ndarray]:
    """LegS in the coordinates of its integer eigenvectors, D^{-1} A D with its V.

    N: state size. Returns the integer matrix (N, N) and V (N, N), both as float64.
    Raises OverflowError when V exceeds float64 (N of about 768).
    Source: 2111.00396.
    """
    i, j = np.arange(N)[:, None], np.arange(N)
    A = -np.tril(np.ones((N, 1)) * (2 * j + 1.0), -1) - np.diag(j + 1.0)
    return A + 0 * i, np.array([[float(v) for v in r] for r in integer_eigenvectors(N)])


def naive_diagonalisation(N: int) -> tuple[float, float, float]:
    """How wrong LegS becomes when it is diagonalised directly, in float64.

    N: state size. Returns the relative residual ||V L V^{-1} - A|| / ||A||, log2 of the
    condition number as float64 sees it (mpmath sees more), and the largest eigenvalue
    error after a fixed orthogonal rotation, which takes the triangle away.
    From N = 24 on all digits are noise: compare orders of magnitude only.
    Raises nothing: a singular V gives infinity. Source: 2111.00396.
    """
    A = transition("legs", N)[0]
    Lambda, V = np.linalg.eig(A)
    try:
        with np.errstate(all="ignore"):
            wrong = np.linalg.norm(V * Lambda @ np.linalg.inv(V) - A)
        residual = float(wrong / np.linalg.norm(A))
    except np.linalg.LinAlgError:
        residual = np.inf
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((N, N)))[0]
    found = np.linalg.eigvals(Q @ A @ Q.T)
    off = np.abs(found[:, None] + np.arange(1, N + 1)).min(axis=1).max()
    return residual, float(np.log2(np.linalg.cond(V))), float(off)


def transient_growth(
    N: int, dt: float, rule: str = "euler", steps: int = 80
) -> tuple[float, float]:
    """What the spectral radius hides: the largest power of a discretised LegS.

    N: state size; dt: step; rule: of `lib.hippo.discretize`; steps: powers looked at.
    Returns the spectral radius of Ab and max_k ||Ab^k||_2, k = 1 .. steps.
    Raises ValueError for an unknown rule or dt <= 0. Source: derived here (LegS is not
    normal; bilinear contracts because its numerical abscissa is -1/2).
    """
    A, B = transition("legs", N)
    Ab, power, top = discretize(A, B, dt, rule)[0], np.eye(N), 0.0
    for _ in range(steps):
        power = Ab @ power
        top = max(top, float(np.linalg.norm(power, 2)))
    return float(np.abs(np.linalg.eigvals(Ab)).max()), top


# -- perturb, then diagonalise ------------------------------------------------------


def perturb(A: np.ndarray, eps: float, rng: np.random.Generator) -> np.ndarray:
    """A random real Gaussian (Ginibre) perturbation of spectral norm eps.

    A: (N, N), for its shape; eps: absolute size; rng: numpy Generator.
    Returns E (N, N). Raises ValueError for eps <= 0. Source: 2310.01698, Theorem 4.
    """
    need(eps > 0, f"eps is {eps}; give the positive norm of the perturbation.")
    E = rng.standard_normal(np.shape(A))
    return eps * E / np.linalg.norm(E, 2)


def ptd_bound(eps: float, B: np.ndarray, C: np.ndarray) -> float:
    """The largest change of the transfer function that ||E|| = eps can make.

    eps: norm of E; B, C: (N,). Returns 4 eps ||B|| ||C|| / (1 - 2 eps), infinity from
    eps = 1/2 on. Raises nothing. Source: derived here, from ||(i omega - A)^{-1}|| <= 2
    for LegS; compare 2310.01698, Theorem 3.
    """
    if eps >= 0.5:
        return np.inf
    size = np.linalg.norm(B) * np.linalg.norm(C)
    return float(4 * eps * size / (1 - 2 * eps))


def ptd(
    A: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    E: np.ndarray,
    unstable: str = "refuse",
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
    """Perturb, then diagonalise: A + E = V diag(Lambda) V^{-1}.

    A, E: (N, N); B: (N,); C: (N,) or (M, N); unstable: "refuse" an eigenvalue on the
    right, "clip" real parts at -1e-4 (S5's way) or "report" only.
    Returns Lambda (N,), V^{-1}B (N,), C V, and a report: eps, condition of V, residual
    (relative, of V Lambda V^{-1} against A + E), max_real, stable, bound.
    Raises ValueError for an unstable system when refused, or shapes.
    Source: 2310.01698 (the definition of PTD).
    """
    choice("unstable", unstable, ("refuse", "clip", "report"))
    A, E = np.asarray(A, float), np.asarray(E, float)
    need(A.shape == E.shape, f"A has shape {A.shape}, E {E.shape}; make them equal.")
    Lambda, V = np.linalg.eig(A + E)
    Lambda, V = Lambda.astype(complex), V.astype(complex)
    eps, top = float(np.linalg.norm(E, 2)), float(Lambda.real.max())
    wrong = np.linalg.norm(V * Lambda @ np.linalg.inv(V) - A - E, 2)
    report = {
        "eps": eps,
        "condition": float(np.linalg.cond(V)),
        "residual": float(wrong / np.linalg.norm(A, 2)),
        "max_real": top,
        "stable": top < 0,
        "bound": ptd_bound(eps, B, C),
    }
    need(
        top < 0 or unstable != "refuse",
        f"The perturbation of norm {eps:.3g} moved an eigenvalue to real part "
        f"{top:.3g}; take a smaller one (below 1/2 is always safe for LegS) or "
        "unstable='clip'.",
    )
    if unstable == "clip":
        Lambda = np.minimum(Lambda.real, -1e-4) + 1j * Lambda.imag
    return Lambda, np.linalg.solve(V, B), C @ V, report


def optimise_perturbation(
    A: np.ndarray,
    gamma: float = 1.0,
    steps: int = 200,
    lr: float = 3e-3,
    eps: float = 0.1,
    rng: np.random.Generator | None = None,
    target: str = "log",
) -> tuple[np.ndarray, pandas.DataFrame]:
    """Choose E by Adam on log kappa(V) + gamma ||E||, starting from a random one.

    A: (N, N); gamma: price of the norm; steps, lr: of Adam; eps: starting norm; rng:
    numpy Generator, default seed 0; target: "log" or "kappa" (the paper's).
    Returns the last *stable* E (N, N), the start if none was, and a table
    step, condition, norm, max_real.
    Raises ValueError for an unknown target. Imports torch. Source: 2310.01698
    (kappa is invariant to the phases of the columns, so `eig` may be differentiated).
    """
    import pandas as pd
    import torch

    choice("The target", target, ("log", "kappa"))
    start = perturb(A, eps, rng or np.random.default_rng(0))
    E = torch.tensor(start, requires_grad=True)
    fixed, adam = torch.tensor(np.asarray(A, float)), torch.optim.Adam([E], lr)
    best, rows = start, []
    for step in range(steps + 1):
        Lambda, V = torch.linalg.eig(fixed + E)
        kappa, norm = torch.linalg.cond(V), torch.linalg.matrix_norm(E, 2)
        top = float(Lambda.detach().real.max())
        rows.append((step, float(kappa.detach()), float(norm.detach()), top))
        best = E.detach().numpy().copy() if top < 0 else best
        adam.zero_grad()
        ((kappa.log() if target == "log" else kappa) + gamma * norm).backward()
        adam.step()
    return best, pd.DataFrame(rows, columns=["step", "condition", "norm", "max_real"])


def hinf_diff(
    one: System, two: System, wmax: float | None = None, points: int = 400
) -> tuple[float, float]:
    """The largest distance of two transfer functions on the frequency axis.

    one, two: (A, B, C), A dense (N, N) or poles (N,); wmax: default twice the fastest
    |Im lambda|; points: of the logarithmic grid, which is refined within +-2 of every
    Im lambda, where spikes of half-width 1/2 stand. Real systems: omega >= 0 only.
    Returns sup |G_1 - G_2| and the frequency. Raises ValueError for shapes.
    Source: derived here (a grid alone misses the spikes).
    """
    lams = [np.linalg.eigvals(A) if np.ndim(A) == 2 else A for A, _, _ in (one, two)]
    centres = np.unique(np.abs(np.concatenate(lams).imag).round(6))
    wmax = 2 * centres.max() + 10 if wmax is None else wmax
    local = (centres[:, None] + np.linspace(-2, 2, 81)).ravel()
    omega = np.concatenate([[0], np.geomspace(1e-3, wmax, points), local])
    omega = np.unique(omega[(omega >= 0) & (omega <= wmax)])
    off = np.abs(transfer(*one, 1j * omega) - transfer(*two, 1j * omega))
    return float(off.max()), float(omega[off.argmax()])


# -- scale and timescale ------------------------------------------------------------


def variance_at_init(
    A: np.ndarray, B: np.ndarray, dt: np.ndarray | float, rule: str = "zoh"
) -> np.ndarray:
    """The output variance under white noise when C is complex normal, E|C|^2 = 1.

    A, B: (..., n), one pole of each pair; dt: number or (...,); rule: as in
    `discretize_diag`. Returns (...) = 2 sum_n |Bb|^2 / (1 - |Ab|^2): about N dt where
    Re is -1/2 and B = 1, half the harmonic number H_N dt for N real poles.
    Raises ValueError for a pole that does not decay. Source: derived here.
    """
    Ab, Bb = discretize_diag(A, B, dt, rule)
    size = np.abs(Ab)
    need(bool(np.all(size < 1)), "Some poles do not decay; the variance is infinite.")
    return 2 * np.sum(np.abs(Bb) ** 2 / ((1 - size) * (1 + size)), axis=-1)


def delta_rule(L: int, lam_max: float, c: float = 1.0) -> float:
    """The largest step that keeps the last output bounded when Re lambda = 0.

    L: length; lam_max: largest eigenvalue of the (L, L) input autocorrelation, between
    1 (white, unit variance) and L (constant); c: constant. Returns
    c / sqrt(L lam_max). Raises ValueError for values out of range.
    Source: 2411.19455 (the scaling); the constant is ours.
    """
    need(L >= 1 and lam_max > 0, f"L is {L}, lam_max {lam_max}; both are positive.")
    return float(c / np.sqrt(L * lam_max))


def output_variance(K: np.ndarray, autocovariance: np.ndarray) -> float:
    """The variance of the last output, K' R K, for a stationary input.

    K: (L,) kernel; autocovariance: (L,) by lag, R its Toeplitz matrix. Returns a float,
    at most lambda_max(R) ||K||^2. Raises ValueError for shapes.
    Source: 2411.19455; textbook.
    """
    from scipy.linalg import matmul_toeplitz

    K, R = np.asarray(K, float), np.asarray(autocovariance, float)
    need(K.shape == R.shape and K.ndim == 1, f"Shapes {K.shape}, {R.shape}; give (L,).")
    return float(K @ matmul_toeplitz(R, K))


def largest_eigenvalue(autocovariance: np.ndarray) -> float:
    """The largest eigenvalue of the Toeplitz matrix of an autocovariance.

    autocovariance: (L,) by lag. Returns a float; Lanczos with FFT products above 256
    lags. Raises ValueError for an empty one. Source: 2411.19455 (lambda_max).
    """
    from scipy.linalg import eigvalsh, matmul_toeplitz, toeplitz

    R = np.asarray(autocovariance, float)
    L = len(R)
    need(R.ndim == 1 and L >= 1, f"The autocovariance has shape {R.shape}; give (L,).")
    if L <= 256:
        return float(eigvalsh(toeplitz(R), subset_by_index=[L - 1, L - 1])[0])
    from scipy.sparse.linalg import LinearOperator, eigsh

    product = LinearOperator((L, L), matvec=lambda v: matmul_toeplitz(R, v.ravel()))
    start = np.cos(np.arange(L)) + 1.0
    return float(eigsh(product, 1, which="LA", v0=start, tol=1e-8)[0][0])


# -- experiments without training ---------------------------------------------------


def _sine_models(N: int, dt: float, L: int, eps: Iterable[float], seed: int):
    """Bilinear kernels of C = e_0 for S4, S4D-LegS and perturbed ones, by name."""
    A, B = transition("legs", N)
    C = np.eye(N)[0]
    yield "S4", C @ krylov(*discretize(A, B, dt, "bilinear"), L)
    Lambda, b, V = legs_half(N)
    yield "S4D-LegS", kernel_vandermonde(Lambda, b / 2, V[0], dt, L, "bilinear")
    rng = np.random.default_rng(seed)
    for size in eps:
        Lambda, b, c, _ = ptd(A, B, C, perturb(A, size, rng), "report")
        K = kernel_vandermonde(Lambda, b, c, dt, L, "bilinear", pairs=False)
        yield f"PTD {size:g}", K


def robustness_table(
    N: int = 64,
    dt: float = 1e-3,
    L: int = 16384,
    eps: Sequence[float] = (0.01, 0.1, 1.0, 3.0),
    seed: int = 0,
) -> pandas.DataFrame:
    """What a small sinusoid at S4D's own frequencies does to models of one kernel.

    N: even state size; dt: step; L: samples; eps: norms of random perturbations; seed:
    of those. The noise is 0.1 cos(theta_m k), theta_m = 2 atan(omega_m dt / 2) at the
    pole; the clean input sin(2 pi 0.5 t); no training. Returns a row a model: RMS
    response to the noise for m = 0, 1, 2 (second half: the transient, 2 / dt steps, is
    gone) and RMS deviation from S4 on the clean input.
    Raises ValueError for odd N. Source: 2310.01698 (sCIFAR noise test); derived here.
    """
    import pandas as pd

    omega = legs_half(N)[0][:3].imag
    k = np.arange(L)
    noise = 0.1 * np.cos(2 * np.arctan(omega * dt / 2)[:, None] * k)
    clean = np.sin(2 * np.pi * 0.5 * dt * k)
    rows, exact = [], None
    for name, K in _sine_models(N, dt, L, eps, seed):
        y = fft_convolve(K, np.concatenate([noise, clean[None]]))
        exact = y[-1].copy() if exact is None else exact
        hum = np.sqrt(np.mean(y[:3, L // 2 :] ** 2, axis=1))
        rows.append((name, *hum, np.sqrt(np.mean((y[3] - exact) ** 2))))
    columns = ["model", "m=0", "m=1", "m=2", "clean error"]
    return pd.DataFrame(rows, columns=columns)


def basis_features(
    kind: str, N: int, dt: float, L: int, rng: np.random.Generator | None = None
) -> np.ndarray:
    """The N real basis kernels that a read-out C combines, sampled with a step dt.

    kind: one of DELAY_KINDS ("legs" is S4, "diag_legs" S4D-LegS); N: even; dt: step;
    L: length; rng: for the poles of "lru" on the ring [.9, .999], which ignores dt.
    Returns (N, L): dense HiPPO pairs by the bilinear rule (as S4), diagonal ones by ZOH
    with B = 1, as real and imaginary parts; N real poles for "diag_real".
    Raises ValueError for an unknown kind or odd N. Source: table R3 of the notebook.
    """
    choice("The basis", kind, DELAY_KINDS)
    n = _pairs(N)
    if kind in LOW_RANK:
        return krylov(*discretize(*transition(kind, N), dt, "bilinear"), L)
    if kind == "lru":
        rng = rng or np.random.default_rng(0)
        size = np.sqrt(rng.uniform(0.9**2, 0.999**2, n))
        A, dt = np.log(size) + 2j * np.pi * rng.uniform(size=n), 1.0
        coefficient = np.ones(n)
    else:
        name = kind.removeprefix("diag_")
        A = poles(name.removesuffix("_re0"), 2 * N if name == "real" else N)
        A = 1j * A.imag if name.endswith("_re0") else A
        coefficient = discretize_diag(A, np.ones(len(A)), dt)[1]
    rows = coefficient[:, None] * np.exp(dt * A[:, None] * np.arange(L))
    if kind == "diag_real":
        return rows.real
    return np.concatenate([rows.real, rows.imag])


def fit_read_out(
    features: np.ndarray,
    target: np.ndarray,
    root: np.ndarray,
    steps: int = 2000,
    rcond: float = 10**-6.5,
) -> tuple[float, float]:
    """How well C alone can fit a kernel: at once, and by gradient descent.

    features: (N, L); target: (L,) kernel; root: (L, L), a square root of the input's
    autocovariance, so that the loss is ||root (features' C - target)||^2; steps: of
    descent at rate 1 / lambda_max from 0; rcond: singular values of
    root features' below rcond times the largest count as 0 (1e-13 for its square).
    Returns the loss of least squares and of descent, both relative to C = 0.
    Raises ValueError for shapes. Source: derived here; 2411.19455 (conditioning).
    """
    need(features.shape[1:] == target.shape, "Features and target differ in length.")
    X, y = root @ features.T, root @ target
    U, s, _ = np.linalg.svd(X, full_matrices=False)
    along, total = (U.T @ y) ** 2, y @ y
    best = total - np.sum(along[s > rcond * s[0]])
    left = (1 - (s / s[0]) ** 2) ** (2 * steps)  # descent, exactly, mode by mode
    return float(best / total), float((total - np.sum(along * (1 - left))) / total)


def delay_table(
    kinds: Sequence[str] = DELAY_KINDS,
    steps_per_unit: Sequence[float] = (512, 256, 128, 64, 32),
    N: int = 64,
    L: int = 512,
    lag: int = 128,
    cutoff: float = 0.2,
    descent: int = 2000,
    seed: int = 0,
) -> pandas.DataFrame:
    """Copying the input `lag` steps ago, with only C fitted, by basis and timescale.

    kinds: of DELAY_KINDS; steps_per_unit: 1 / dt; N: real state size; L: length; lag:
    of the copy; cutoff: of the band-limited input, fraction of Nyquist; descent: steps;
    seed: of the LRU ring. Returns a row a cell: kind, 1/dt, ls and gd, the mean squared
    error of least squares and of gradient descent (1 is doing nothing). Deterministic.
    Raises ValueError for an unknown kind. Source: table R3; 2206.12037 (delay task).
    """
    import pandas as pd
    from scipy.linalg import toeplitz

    need(0 <= lag < L, f"lag is {lag}; give 0 to {L - 1}.")
    power, V = np.linalg.eigh(toeplitz(np.sinc(cutoff * np.arange(L))))
    root = np.sqrt(np.maximum(power, 0))[:, None] * V.T
    rows = []
    for kind in kinds:
        for window in steps_per_unit if kind != "lru" else [128]:
            rng = np.random.default_rng(seed)
            F = basis_features(kind, N, 1 / window, L, rng)
            rows.append((kind, window, *fit_read_out(F, np.eye(L)[lag], root, descent)))
    return pd.DataFrame(rows, columns=["kind", "1/dt", "ls", "gd"])


# -- the ring, the initial state, the initial guess, the tokens ----------------------


def lru_norm_gain(r_min: float, r_max: float) -> float:
    """E||x||^2 / E||B u||^2 of an LRU without gamma, white input, poles on a ring.

    r_min, r_max: 0 <= r_min < r_max < 1. Returns
    log((1 - r_min^2) / (1 - r_max^2)) / (r_max^2 - r_min^2), 1 with gamma.
    Raises ValueError for another ring. Source: 2303.06349, Proposition 3.
    """
    need(
        0 <= r_min < r_max < 1,
        f"The ring is [{r_min}, {r_max}]; give 0 <= r_min < r_max < 1.",
    )
    wide = r_max**2 - r_min**2
    return float(np.log((1 - r_min**2) / (1 - r_max**2)) / wide)


def state_effect(
    Ab: np.ndarray, C: np.ndarray, T: int
) -> tuple[np.ndarray, np.ndarray]:
    """What an initial state adds to the outputs of a frozen linear recurrence.

    Ab: (T, N) diagonal gates, (N,) or a constant matrix (N, N); C: (N,) or (T, N);
    T: steps. Returns the design (T, N), y_t = y_t(S0 = 0) + design_t S0, and the norm
    of its rows, which decays with the gates. Raises ValueError for shapes.
    Source: 2604.01168 (the effect of S0 at T is S0 times the product of the gates).
    """
    Ab, C = np.asarray(Ab), np.asarray(C)
    N = C.shape[-1]
    need(
        Ab.shape in ((T, N), (N,), (N, N)) and C.shape in ((N,), (T, N)),
        f"Ab has shape {Ab.shape}, C {C.shape}; N is {N}, T is {T}.",
    )
    gates = np.broadcast_to(Ab, (T, *Ab.shape)) if Ab.shape != (T, N) else Ab
    row, rows = np.eye(N, dtype=Ab.dtype), []
    for t in range(T):
        row = gates[t] @ row if gates.ndim == 3 else gates[t][:, None] * row
        rows.append((C[t] if C.ndim == 2 else C) @ row)
    design = np.array(rows)
    return design, np.linalg.norm(design, axis=1)


def recover_state(design: np.ndarray, y: np.ndarray, y_zero: np.ndarray) -> np.ndarray:
    """The initial state behind observed outputs, by least squares.

    design: (T, N) of `state_effect`; y: (T,) outputs; y_zero: (T,) outputs from a zero
    state. Returns S0 (N,), exact when design has rank N.
    Raises ValueError if the outputs do not determine it. Source: 2604.01168; affinity
    derived here.
    """
    S0, _, rank, _ = np.linalg.lstsq(design, y - y_zero, rcond=None)
    need(
        rank == design.shape[1],
        f"The outputs see {rank} of {design.shape[1]} state directions; give more.",
    )
    return S0


def guess_loss(d: int, n: int, mean_square: float, guess: bool) -> float:
    """The in-context loss of one gradient step in linear regression, optimal rate.

    d: dimension; n: examples; mean_square: ||mu||^2 of the prior mean; guess: True if
    the query slot starts at mu' x_q, False at 0. Returns (d [+ ||mu||^2]) (d+1) /
    (n+d+1). Raises ValueError for sizes. Source: 2512.04268 (y_q-LSA); formula derived
    here for x and w - mu standard normal, no noise, rate n / (n+d+1).
    """
    need(d >= 1 and n >= 1 and mean_square >= 0, "d, n >= 1 and ||mu||^2 >= 0 please.")
    return (d + (0 if guess else mean_square)) * (d + 1) / (n + d + 1)


def guess_monte_carlo(
    d: int, n: int, mu: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """`guess_loss` by simulation: start at 0, and start at the prior mean.

    d: dimension; n: examples; mu: (d,); draws: prompts; rng: numpy Generator.
    Returns both mean squared errors. Raises ValueError for the shape of mu.
    Source: 2512.04268; the check of `guess_loss`.
    """
    mu = np.asarray(mu, float)
    need(mu.shape == (d,), f"mu has shape {mu.shape}; give ({d},).")
    x, q = rng.standard_normal((draws, n, d)), rng.standard_normal((draws, d))
    w = mu + rng.standard_normal((draws, d))
    losses = []
    for start in (np.zeros(d), mu):
        off = w - start  # one step of size n / (n + d + 1) on the mean squared error
        step = np.einsum("bni,bn->bi", x, np.einsum("bni,bi->bn", x, off))
        rest = np.einsum("bi,bi->b", off - step / (n + d + 1), q)
        losses.append(float(np.mean(rest**2)))
    return losses[0], losses[1]


def token_law(
    times: np.ndarray, mu: float = -1.0, start: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """The first token of a deep S6 stack, x' = mu softplus(x) x^3, and its decay law.

    times: (T,) increasing, positive depths; mu: S_C' S_B, negative; start: x(0) > 0.
    Returns x (T,) and x sqrt(2 |mu| ln2 t), which tends to 1: decay like t^{-1/2}.
    Raises ValueError for mu >= 0, where x diverges. Source: 2410.03292; the constant
    derived here (softplus(0) = ln 2).
    """
    from scipy.integrate import solve_ivp

    times = np.asarray(times, float)
    need(mu < 0 < start, f"mu is {mu}, start {start}; the law is for mu < 0 < start.")

    def slope(log, x):  # in log(1 + t), where the law is smooth
        return mu * np.logaddexp(0, x) * x**3 * np.exp(log)

    log = np.log1p(times)
    found = solve_ivp(
        slope, (0, log[-1]), [start], "LSODA", log, rtol=1e-10, atol=1e-14
    )
    return found.y[0], found.y[0] * np.sqrt(-2 * mu * np.log(2) * times)
