"""Every initialisation of a state space model as plain arrays, drawn in float64.

`init_diag` gives H channels of a diagonal model in one convention: one pole of each
conjugate pair, kernel 2 Re(sum C Bb Ab^l), Bb and Ab by ZOH with step exp(log_dt).
`init_s5`, `init_lru`, `init_mamba` and `init_mamba2` keep their papers' own names and
shapes. `assert_mamba_init` looks at any port; `suggest_timescale` at the reader's data.
Sources: 2203.14343 (DSS), 2206.11893 (S4D), 2208.04933 (S5), 2303.06349 (LRU),
2310.01698 (PTD), 2312.00752 and 2405.21060 (Mamba), 2411.19455, 2405.02670, 2508.20441.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from inspect import signature

import numpy as np

from lib.hippo import transition
from lib.kit.checks import choice, need
from lib.ssm_init.theory import (
    POLES,
    _pairs,
    delta_rule,
    largest_eigenvalue,
    legs_half,
    nplr,
    perturb,
    poles,
    ptd,
    variance_at_init,
)

KINDS = (*POLES, "rand", "dfout", "lru", "dss", "legs_ptd")


def _normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Complex standard normal: each part of variance 1/2."""
    both = rng.standard_normal((*shape, 2)) * np.sqrt(0.5)
    return both[..., 0] + 1j * both[..., 1]


def _log_uniform(shape, dt_range: tuple[float, float], rng) -> np.ndarray:
    low, high = dt_range
    need(
        0 < low <= high,
        f"dt_range is {tuple(dt_range)}; give 0 < smallest <= largest step.",
    )
    return rng.uniform(np.log(low), np.log(high), shape)


# -- diagonal models ----------------------------------------------------------------


def init_diag(
    kind: str,
    N: int,
    H: int = 1,
    *,
    rng: np.random.Generator,
    dt_range: tuple[float, float] = (1e-3, 1e-1),
    half_B: bool = True,
    match_variance: bool = False,
    refuse_aliasing: bool = False,
    **options,
) -> dict:
    """H channels of a diagonal state space model, one pole of each conjugate pair.

    kind: one of KINDS; N: even real state size; H: channels; rng: numpy Generator;
    dt_range: of the log-uniform steps; half_B: for "legs", B = V*B / 2, which makes the
    kernel S4's limit; match_variance: scale C so that each channel's output variance
    under white noise is S4D-Lin's at the same N and step; refuse_aliasing: raise where
    dt |Im A| > pi. Options by kind: legs (unit_B), real (full), rand (real, imag),
    dfout (damping), lru (r_min, r_max, phase, gamma), dss (two_dt), legs_ptd (eps, E,
    unstable, read_out).
    Returns A, B, C (H, n) complex, D, log_dt (H,), kind, N and report (aliased modes,
    and legs_ptd's own); n = N/2, but N for real with full=True, and one more for every
    two real eigenvalues of legs_ptd. C is complex standard normal (dss: half of
    one whose parts have variance 1, as 2 Re stands for Re; legs_ptd: c V).
    Raises ValueError in a sentence.
    Source: 2206.11893 and its authors' code; each `_draw` function names its own.
    """
    choice("The initialisation", kind, KINDS)
    _pairs(N)
    need(H >= 1, f"H is {H}; give at least one channel.")
    log_dt = _log_uniform(H, dt_range, rng)
    draw = _DRAWS.get(kind, _draw_fixed)
    options |= {"legs": {"half_B": half_B}, "dss": {"dt_range": dt_range}}.get(kind, {})
    _known_options(kind, draw, options)
    dt = np.exp(log_dt)
    A, B, C, report = draw(kind, N, dt, rng, **options)
    C = _normal(A.shape, rng) if C is None else C
    if match_variance:
        C = C * _match(kind, N, A, B, dt, options)[:, None]
    if refuse_aliasing:
        check_timescale(A, dt)
    report = {"aliased": aliased(A, dt), **report}
    D = rng.standard_normal(H)
    named = {"A": A, "B": B, "C": C, "D": D, "log_dt": log_dt}
    return named | {"kind": kind, "N": N, "report": report}


def _known_options(kind: str, draw: Callable, options: dict) -> None:
    known = list(signature(draw).parameters)[4:]
    wrong = [name for name in options if name not in known]
    takes = ", ".join(name for name in known if name not in ("half_B", "dt_range"))
    need(not wrong, f"{kind!r} has no option {', '.join(wrong)}; it takes {takes}.")


def _match(kind, N, A, B, dt, options) -> np.ndarray:
    """The factor for C (H,) that gives a kind S4D-Lin's output variance."""
    need(
        kind != "legs_ptd" or options.get("read_out") == "normal",
        "match_variance needs independent entries of C: give read_out='normal'.",
    )
    H, lin = len(dt), poles("lin", N)
    wanted = variance_at_init(np.tile(lin, (H, 1)), np.ones((H, N // 2)), dt)
    size = {"dss": 0.5, "real": 0.5 if options.get("full") else 1.0}.get(kind, 1.0)
    return np.sqrt(wanted / (variance_at_init(A, B, dt) * size))


def _draw_fixed(kind, N, dt, rng, full: bool = False):
    """S4D-Inv, -Lin, -Real, Inv2, Quad (2206.11893): B = 1. `full` (real only): N real
    poles and a real C, as many parameters as N/2 complex ones; C halved for 2 Re."""
    need(not full or kind == "real", f"full is for 'real', not for {kind!r}.")
    A = np.tile(poles(kind, 2 * N if full else N), (len(dt), 1))
    C = rng.standard_normal(A.shape) / 2 + 0j if full else None
    return A, np.ones_like(A), C, {}


def _draw_legs(kind, N, dt, rng, half_B: bool = True, unit_B: bool = False):
    """S4D-LegS (2206.11893): V*B / 2, or V*B, or (`unit_B`) ones as the others have."""
    A, B, _ = legs_half(N)
    B = np.ones_like(B) if unit_B else B / 2 if half_B else B
    return np.tile(A, (len(dt), 1)), np.tile(B, (len(dt), 1)), None, {}


def _draw_rand(kind, N, dt, rng, real: str = "half", imag: str = "normal"):
    """Random ablations (2206.11893): real "half", "uniform" -U[0,1] or "normal"
    -exp(N(0,1)); imag "normal" exp(N(0,1)) or "uniform" U(0, N/2)."""
    choice("real", real, ("half", "uniform", "normal"))
    choice("imag", imag, ("normal", "uniform"))
    shape = (len(dt), N // 2)
    damp = {
        "half": lambda: np.full(shape, 0.5),
        "uniform": lambda: 1 - rng.uniform(size=shape),
        "normal": lambda: np.exp(rng.standard_normal(shape)),
    }[real]()
    if imag == "normal":
        omega = np.exp(rng.standard_normal(shape))
    else:
        omega = rng.uniform(0, N / 2, shape)
    return -damp + 1j * omega, np.ones(shape, complex), None, {}


def _draw_dfout(kind, N, dt, rng, damping: float | None = None):
    """S4D-DFouT (2508.20441): poles exp(-xi/2 + 2 pi i (n/N + h/(NH))) in discrete time
    on the half plane; xi = `damping`, default dt (Re A = -1/2); B = 1 through ZOH."""
    need(damping is None or damping > 0, f"damping is {damping}; give a positive one.")
    H, xi = len(dt), dt if damping is None else np.full(len(dt), float(damping))
    turn = np.arange(N // 2) / N + np.arange(H)[:, None] / (N * H)
    A = (-xi[:, None] / 2 + 2j * np.pi * turn) / dt[:, None]
    return A, np.ones_like(A), None, {}


def _ring(shape, rng, r_min: float, r_max: float, phase: float):
    need(
        0 <= r_min < r_max <= 1 and phase > 0,
        f"The ring is [{r_min}, {r_max}] with phase {phase}; give "
        "0 <= r_min < r_max <= 1 and a positive phase.",
    )
    u = 1 - rng.uniform(size=shape)  # (0, 1]
    square = r_max**2 - u * (r_max**2 - r_min**2)  # [r_min^2, r_max^2)
    nu = -np.log(np.maximum(square, 1e-300)) / 2
    return nu, phase * (1 - rng.uniform(size=shape))


def _draw_lru(
    kind,
    N,
    dt,
    rng,
    r_min: float = 0.9,
    r_max: float = 0.999,
    phase: float = np.pi,
    gamma: bool = True,
):
    """LRU (2303.06349) per channel: discrete poles on a ring, Bb = gamma (or 1)."""
    nu, theta = _ring((len(dt), N // 2), rng, r_min, r_max, phase)
    z = -nu + 1j * ((theta + np.pi) % (2 * np.pi) - np.pi)
    A = z / dt[:, None]
    scale = np.sqrt(-np.expm1(-2 * nu)) if gamma else 1.0
    return A, scale * A / np.expm1(z), None, {}


def _draw_dss(kind, N, dt, rng, dt_range, two_dt: bool = True):
    """DSS-exp (2203.14343): LegS poles, B = 1; `two_dt` draws a second step for the
    real parts, folded into A; W = C B has parts N(0,1), C = W / 2 as DSS takes Re."""
    A = np.tile(legs_half(N)[0], (len(dt), 1))
    if two_dt:
        other = np.exp(_log_uniform(len(dt), dt_range, rng))
        A = A.real * (other / dt)[:, None] + 1j * A.imag
    return A, np.ones_like(A), _normal(A.shape, rng) / np.sqrt(2), {}


def _draw_legs_ptd(
    kind,
    N,
    dt,
    rng,
    eps: float = 0.1,
    E: np.ndarray | None = None,
    unstable: str = "refuse",
    read_out: str = "hippo",
):
    """S4-PTD (2310.01698): A + E, E random of norm `eps` or given. read_out "hippo" is
    C = c V, c real normal; "normal" complex normal. Real eigenvalues count half."""
    choice("read_out", read_out, ("hippo", "normal"))
    A, B = transition("legs", N)
    E = perturb(A, eps, rng) if E is None else E
    c = rng.standard_normal((len(dt), N))
    Lambda, Bt, Ct, report = ptd(A, B, c, E, unstable)
    order = np.argsort(-Lambda.imag)
    keep = order[Lambda[order].imag >= 0]
    weight = np.where(Lambda[keep].imag > 0, 1.0, 0.5)
    rows = [np.tile(v, (len(dt), 1)) for v in (Lambda[keep], weight * Bt[keep])]
    return *rows, Ct[:, keep] if read_out == "hippo" else None, report


_DRAWS: dict[str, Callable] = {
    "legs": _draw_legs,
    "rand": _draw_rand,
    "dfout": _draw_dfout,
    "lru": _draw_lru,
    "dss": _draw_dss,
    "legs_ptd": _draw_legs_ptd,
}


def aliased(A: np.ndarray, dt: np.ndarray | float) -> int:
    """How many modes turn more than half a circle a step, |dt Im A| > pi.

    A: (n,) or (H, n); dt: number or (H,). Returns a count over all channels.
    Raises nothing of its own. Source: 2508.20441 (no aliasing below pi); Nyquist.
    """
    phase = np.abs(np.imag(A)) * np.asarray(dt, float)[..., None]
    return int(np.sum(phase > np.pi * (1 + 1e-12)))


def check_timescale(A: np.ndarray, dt: np.ndarray | float) -> None:
    """Refuse a timescale that folds modes under ZOH.

    A: (n,) or (H, n); dt: number or (H,). Returns nothing. Raises ValueError saying how
    many modes fold, the fastest and the step that would do. Source: as `aliased`.
    """
    folded = aliased(A, dt)
    phase = np.abs(np.imag(A)) * np.asarray(dt, float)[..., None]
    if folded:
        top = float(np.abs(np.imag(A)).max())
        raise ValueError(
            f"{folded} of {phase.size} modes are aliased: the fastest turns "
            f"{phase.max():.3g} rad a step, more than pi. Take every step below "
            f"pi / {top:.4g} = {np.pi / top:.2g}, or slower modes."
        )


# -- the other families -------------------------------------------------------------


def init_s5(
    P0: int,
    J: int,
    H: int,
    *,
    rng: np.random.Generator,
    dt_range: tuple[float, float] = (1e-3, 1e-1),
    C_init: str = "trunc",
) -> dict:
    """S5: one multi-input multi-output diagonal state from J blocks of LegS.

    P0: real state size; J: blocks, P0 / J even; H: channels; rng; dt_range: one
    log-uniform step a state; C_init: "trunc" (parts of variance 1/P0), "lecun"
    (1/(P0 H), what JAX makes of that shape) or "complex" (1/2, no V).
    Returns Lambda (P,) = P0/2 poles with negative imaginary parts, B = V*B (P, H),
    C = C V (H, P), D (H,), log_step (P, 1), V (P0, P); y = 2 Re(C x) + D u.
    Raises ValueError for sizes or C_init. Source: 2208.04933 and its authors' code.
    """
    choice("C_init", C_init, ("trunc", "lecun", "complex"))
    need(J >= 1 and P0 % J == 0, f"P0 is {P0}, J {J}; J blocks must divide P0.")
    half = _pairs(P0 // J)
    Lambda, _, _, V = nplr("legs", P0 // J)
    V = np.kron(np.eye(J), V[:, :half])
    real = _truncated((P0, H), 1 / P0, rng)
    P = half * J
    if C_init == "complex":
        C = _normal((H, P), rng)
    else:
        parts = _truncated((2, H, P0), 1 / P0 / (H if C_init == "lecun" else 1), rng)
        C = (parts[0] + 1j * parts[1]) @ V
    return {
        "Lambda": np.tile(Lambda[:half], J),
        "B": V.conj().T @ real,
        "C": C,
        "D": rng.standard_normal(H),
        "log_step": _log_uniform((P, 1), dt_range, rng),
        "V": V,
    }


def _truncated(shape, variance: float, rng: np.random.Generator) -> np.ndarray:
    """Normal, cut at two standard deviations and rescaled to the variance (LeCun)."""
    from scipy.special import ndtr, ndtri

    low = ndtr(-2.0)
    x = ndtri(low + (1 - 2 * low) * rng.uniform(size=shape))
    return x * np.sqrt(variance) / 0.87962566103423978


def init_lru(
    N: int,
    H: int,
    *,
    rng: np.random.Generator,
    r_min: float = 0.0,
    r_max: float = 1.0,
    phase: float = 2 * np.pi,
) -> dict:
    """LRU: complex poles uniform on a ring, normalised by gamma.

    N: complex states; H: channels; rng; r_min, r_max, phase: the ring.
    Returns nu_log, theta_log, gamma_log (N,), B (N, H), C (H, N), D (H,), Lambda (N,) =
    exp(-exp(nu_log) + i exp(theta_log)); y = Re(C x) + D u. Raises ValueError for a
    ring. Source: 2303.06349 (ring and gamma) and its reference re-implementation.
    """
    need(N >= 1 and H >= 1, f"N is {N}, H {H}; give at least 1 of each.")
    nu, theta = _ring(N, rng, r_min, r_max, phase)
    return {
        "nu_log": np.log(nu),
        "theta_log": np.log(theta),
        "gamma_log": np.log(-np.expm1(-2 * nu)) / 2,
        "B": _normal((N, H), rng) / np.sqrt(H),
        "C": _normal((H, N), rng) * np.sqrt(2 / N),
        "D": rng.standard_normal(H),
        "Lambda": np.exp(-nu + 1j * theta),
    }


def inv_softplus(x: np.ndarray) -> np.ndarray:
    """The inverse of softplus that keeps its digits, x + log(-expm1(-x)).

    x: (...) positive; float32 stays float32. Returns (...). Raises ValueError for
    x <= 0. Source: state-spaces/mamba; log(exp(x) - 1) loses two digits in float32.
    """
    x = np.asarray(x)
    need(bool(np.all(x > 0)), "softplus is positive; give positive values.")
    return x + np.log(-np.expm1(-x))


def _dt_bias(n: int, rng, dt_range, dt_floor: float) -> np.ndarray:
    return inv_softplus(np.maximum(np.exp(_log_uniform(n, dt_range, rng)), dt_floor))


def init_mamba(
    d_model: int,
    N: int = 16,
    *,
    rng: np.random.Generator,
    expand: int = 2,
    dt_rank: int | None = None,
    dt_range: tuple[float, float] = (1e-3, 1e-1),
    dt_floor: float = 1e-4,
    dt_scale: float = 1.0,
) -> dict:
    """Mamba: S4D-Real for every channel, and a bias that sets its timescale.

    d_model: width; N: states a channel; rng; expand: d_inner / d_model; dt_rank:
    default ceil(d_model / 16); dt_range, dt_floor, dt_scale: of the step.
    Returns A_log (d_inner, N) = log(1..N), D (d_inner,) = 1, dt_proj.weight (d_inner,
    dt_rank), dt_proj.bias (d_inner,), named as in the authors' module.
    Raises ValueError for sizes. Source: 2312.00752 and its authors' code.
    """
    need(d_model >= 1 and N >= 1, f"d_model is {d_model}, N {N}; give at least 1.")
    inner = expand * d_model
    rank = -(-d_model // 16) if dt_rank is None else dt_rank
    wide = dt_scale / np.sqrt(rank)
    return {
        "A_log": np.tile(np.log(np.arange(1.0, N + 1)), (inner, 1)),
        "D": np.ones(inner),
        "dt_proj.weight": rng.uniform(-wide, wide, (inner, rank)),
        "dt_proj.bias": _dt_bias(inner, rng, dt_range, dt_floor),
    }


def init_mamba2(
    d_model: int,
    headdim: int = 64,
    *,
    rng: np.random.Generator,
    expand: int = 2,
    A_range: tuple[float, float] = (1.0, 16.0),
    dt_range: tuple[float, float] = (1e-3, 1e-1),
    dt_floor: float = 1e-4,
) -> dict:
    """Mamba-2: one scalar A and one step a head.

    d_model: width; headdim: divides expand * d_model; rng; A_range: of the uniform A;
    dt_range, dt_floor: of the step. Returns A_log, dt_bias, D (heads,).
    Raises ValueError if heads do not fit. Source: 2405.21060 and its code.
    """
    inner = expand * d_model
    need(
        headdim >= 1 and inner % headdim == 0,
        f"headdim is {headdim}; it must divide {expand} * {d_model} = {inner}.",
    )
    need(0 < A_range[0] <= A_range[1], f"A_range is {A_range}; give 0 < low <= high.")
    heads = inner // headdim
    return {
        "A_log": np.log(rng.uniform(*A_range, heads)),
        "dt_bias": _dt_bias(heads, rng, dt_range, dt_floor),
        "D": np.ones(heads),
    }


def _values(parameter) -> np.ndarray:
    for word in ("detach", "float", "cpu"):
        if hasattr(parameter, word):
            parameter = getattr(parameter, word)()
    return np.asarray(parameter, float)


def _hold(condition: bool, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)


def _check_mixer(where: str, found: dict[str, np.ndarray], dt_range) -> None:
    """One Mamba mixer's A, step bias, step weight and D, or a sentence."""
    A = np.exp(found["A"])
    if A.ndim >= 2:
        off = np.abs(A - np.arange(1, A.shape[-1] + 1)).max()
        _hold(
            off < 1e-2 * A.shape[-1],
            f"{where}: exp(A_log) is {off:.3g} away from 1, 2, ..., {A.shape[-1]} "
            "(S4D-Real); it was re-initialised or trained.",
        )
    else:
        high = max(16, A.size) * 1.01
        _hold(
            A.min() > 0.99 and A.max() < high,
            f"{where}: exp(A_log) spans {A.min():.3g} to {A.max():.3g}, expected 1 to "
            f"{high / 1.01:.0f}, one scalar a head (Mamba-2).",
        )
    _hold(
        "bias" in found,
        f"{where} has no dt bias (dt_proj.bias, dt_bias): nothing sets its timescale.",
    )
    dt = np.logaddexp(0, found["bias"])
    low, high = 0.98 * dt_range[0], 1.02 * dt_range[1]  # bfloat16 rounds
    _hold(
        dt.min() >= low and dt.max() <= high,
        f"{where}: softplus(dt bias) spans {dt.min():.3g} to {dt.max():.3g}, expected "
        f"{dt_range[0]:g} to {dt_range[1]:g}; a hook that zeroes biases gives 0.693 "
        "and a memory of at most 1.45 steps.",
    )
    if "weight" in found:
        weight = found["weight"]
        rank = weight.shape[-1]
        _hold(
            np.abs(weight).max() <= 1.01 / np.sqrt(rank),
            f"{where}: dt_proj.weight reaches {np.abs(weight).max():.3g}, expected at "
            f"most dt_rank^-1/2 = {rank**-0.5:.3g}.",
        )
    if "D" in found:
        _hold(np.allclose(found["D"], 1), f"{where}: D is not 1 everywhere.")


_MAMBA = {
    "A": r"A_logs?",
    "bias": r"dt_proj\.bias|dt_projs_bias|dt_bias",
    "weight": r"dt_proj\.weight",
    "D": r"Ds?",
}


def assert_mamba_init(
    model, dt_range: tuple[float, float] = (1e-4, 1e-1)
) -> dict[str, np.ndarray]:
    """Check that a Mamba of any port still has its authors' initialisation.

    model: anything with named_parameters() (torch, transformers' Mamba and Mamba-2), or
    a mapping of names to arrays (as `init_mamba` returns); dt_range: of the steps
    (1e-4 is the floor). Mixers are found by a parameter that ends in A_log.
    Returns the steps softplus(bias) by mixer. Raises AssertionError with a sentence
    that names the mixer; also where there is none. Imports no torch.
    Source: state-spaces/mamba (README, troubleshooting); transformers issue 43717.
    """
    named = model.items() if isinstance(model, Mapping) else model.named_parameters()
    named = dict(named)
    mixers: dict[str, dict] = {}
    for name, parameter in named.items():
        for key, pattern in _MAMBA.items():
            hit = re.fullmatch(rf"(.*\.)?(?:{pattern})", name)
            if hit:
                mixers.setdefault(hit[1] or "", {})[key] = parameter
    mixers = {where: found for where, found in mixers.items() if "A" in found}
    _hold(
        mixers,
        f"No parameter ends in A_log among {len(named)}: this is not a Mamba, or its "
        "names are others.",
    )
    steps = {}
    for prefix, parts in mixers.items():
        where = prefix.rstrip(".") or "the model"
        found = {key: _values(value) for key, value in parts.items()}
        _check_mixer(where, found, dt_range)
        steps[where] = np.logaddexp(0, found["bias"])
    return steps


# -- data decide the rest -----------------------------------------------------------


def autocovariance(
    series: np.ndarray, length: int | None = None, centre: bool = True
) -> np.ndarray:
    """The sample autocovariance of one or more series, by FFT.

    series: (T,) or (batch, T); length: lags wanted, default T; centre: subtract the
    overall mean. Returns (length,), biased (divided by T), hence positive definite.
    Raises ValueError for shapes or values that are not finite. Source: textbook.
    """
    x = np.atleast_2d(np.asarray(series, float))
    length = x.shape[-1] if length is None else length
    need(
        x.ndim == 2 and x.shape[-1] >= 2 and 1 <= length <= x.shape[-1],
        f"The series has shape {np.shape(series)}, length is {length}; give (T,) or "
        "(batch, T) with 1 <= length <= T.",
    )
    need(bool(np.isfinite(x).all()), "The series holds NaN or infinity; clean it.")
    x = x - x.mean() if centre else x
    F = np.fft.rfft(x, 2 * x.shape[-1])
    R = np.fft.irfft(np.mean(np.abs(F) ** 2, axis=0))
    return R[:length] / x.shape[-1]


def suggest_timescale(
    series: np.ndarray,
    N: int = 64,
    kind: str = "lin",
    length: int | None = None,
    c: float = 1.0,
    centre: bool = True,
) -> dict:
    """A range of steps for the reader's own series, from its autocorrelation.

    series: (T,) or (batch, T); N, kind: of the poles (one of POLES); length: of the
    sequences that the model will see, default T; c: constant; centre: as in
    `autocovariance`. The longest step is c / sqrt(L lambda_max), which keeps undamped
    modes bounded; the shortest, c / L, is one window over the whole sequence.
    Returns lam_max (of the correlation, 1 is white, L is constant), variance,
    correlation (L,), dt_range, dt_alias = pi / max |Im A|, aliased (modes at the
    longest step) and modes. A single short series overestimates lam_max (by about
    log L for white noise): give a batch. Raises ValueError for a constant series.
    Source: 2411.19455 (scaling); range and constants derived here.
    """
    A = poles(kind, N)
    R = autocovariance(series, length, centre)
    need(bool(R[0] > 1e-300), "The series is constant; it has no autocorrelation.")
    correlation, L = R / R[0], len(R)
    lam_max = largest_eigenvalue(correlation)
    longest = delta_rule(L, lam_max, c)
    top = float(np.abs(A.imag).max())
    return {
        "lam_max": lam_max,
        "variance": float(R[0]),
        "correlation": correlation,
        "dt_range": (min(c / L, longest), longest),
        "dt_alias": np.pi / top if top else np.inf,
        "aliased": aliased(A, longest),
        "modes": len(A),
    }


def rescale_by_bound(
    C: np.ndarray,
    kernel: np.ndarray,
    std: np.ndarray,
    mean: np.ndarray | float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Rescale a read-out by the generalisation bound, C / sqrt(tau).

    C: (H, n); kernel: (H, L) sampled, sum for integral, lag 0 first; std, mean: (L,) or
    numbers, the input's by time, oldest first. tau = psi^2 with psi =
    sum |K_l| std(L-1-l) + |sum K_l mean(L-1-l)|, from the diagonal of the covariance
    only: it cannot see correlation. Returns the new C (H, n) and tau (H,).
    Raises ValueError for shapes or a kernel that is zero. Source: 2405.02670.
    """
    C, K = np.asarray(C), np.asarray(kernel, float)
    need(
        C.ndim == K.ndim == 2 and len(C) == len(K),
        f"C has shape {C.shape}, the kernel {K.shape}; give (H, n) and (H, L).",
    )
    std, mean = (np.broadcast_to(v, K.shape[1:])[::-1] for v in (std, mean))
    tau = (np.abs(K) @ std + np.abs(K @ mean)) ** 2
    need(bool(np.all(tau > 0)), "A kernel or the input is zero; there is no scale.")
    return C / np.sqrt(tau)[:, None], tau
