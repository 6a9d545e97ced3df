"""Every initialisation in one table: the line of code is the line that is run.

`CATALOGUE` names them with their formula and published accuracy; `catalogue` draws
each one by its own line and computes what follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lib.hippo import discretize, transition
from lib.kit.checks import need
from lib.ssm_init import inits
from lib.ssm_init.theory import (
    _pairs,
    discretize_diag,
    gram_condition,
    kernel_vandermonde,
    legs_gramian,
    variance_at_init,
)

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Entry:
    """One initialisation: its name, poles, line of code, and what a paper measured.

    published: of full-size models, Long Range Arena's Image task in percent where no
    other is named (2209.12951, 2508.20441 and the papers named), "-" for none;
    trained: its name in our own training table, "" for none.
    """

    name: str
    formula: str
    code: str
    published: str
    trained: str


CATALOGUE = (
    Entry("S4", "A_N - P P^T (LegS)", "transition('legs', N)", "88.65", "legs_dplr"),
    Entry(
        *("S4-PTD", "eig(A + E), |E| = 0.1", "init_diag('legs_ptd', N, 64, **o)"),
        *("-", "legs_ptd"),
    ),
    Entry("S4D-LegS", "eig(A_N)", "init_diag('legs', N, **o)", "88.19", "legs"),
    Entry(
        *("S4D-Inv", "-1/2 + i N/pi (N/(2n+1) - 1)", "init_diag('inv', N, **o)"),
        *("87.83", "inv"),
    ),
    Entry("S4D-Lin", "-1/2 + i pi n", "init_diag('lin', N, **o)", "87.93", "lin"),
    Entry(
        *("S4D-DFouT", "(-xi/2 + 2 pi i n/N) / dt", "init_diag('dfout', N, **o)"),
        *("88.48", "dfout"),
    ),
    Entry(
        *("DSS", "eig(A_N), own dt for Re", "init_diag('dss', N, **o)", "85.8", "dss"),
    ),
    Entry(
        *("random", "-e^u + i e^v, u, v normal"),
        *("init_diag('rand', N, **o, real='normal')", "-", "rand"),
    ),
    Entry("S4D-Real", "-(n + 1)", "init_diag('real', N, **o)", "-", "real"),
    Entry("S5", "eig(A_N), J blocks", "init_s5(6 * N, 6, 64, **o)", "88.00", ""),
    Entry("LRU", "ring r in [.9, .999]", "init_diag('lru', N, **o)", "89.0 (*)", "lru"),
    Entry("Mamba", "-(n + 1), n < 16", "init_mamba(32, **o)", "-", ""),
    Entry("Mamba-2", "-a, a ~ U(1, 16)", "init_mamba2(256, **o)", "-", ""),
)


def catalogue(
    N: int = 64, dt_range: tuple[float, float] = (1e-3, 1e-1), seed: int = 0
) -> pandas.DataFrame:
    """Draw every initialisation by its own line of code and look at it.

    N: even real state size; dt_range: of the steps; seed: of the draws. Returns a row
    each: name, poles (formula), code, slowest and fastest real part, largest imaginary
    part, memory (shortest and longest time constant in steps, 1 / (dt |Re|)), kappa of
    the basis's Gram matrix (inf beyond float64), variance of the output under white
    noise at the shortest step for a C of unit variance, published, trained. LRU's poles
    are discrete, so its step is 1. Raises ValueError for an odd N or a range.
    Source: each line's own.
    """
    import pandas as pd

    low, high = dt_range
    need(0 < low <= high, f"dt_range is {tuple(dt_range)}; give 0 < low <= high.")
    _pairs(N)
    rows = []
    for entry in CATALOGUE:
        rng = np.random.default_rng(seed)
        options = {"rng": rng, "dt_range": (low, low)}
        known = {name: getattr(inits, name) for name in _NAMES} | {"N": N, "o": options}
        drawn = eval(entry.code, known | {"transition": transition})
        A, kappa, variance = _look(entry.name, drawn, low)
        ends = np.abs(A.real).min(), np.abs(A.real).max()
        steps = (1.0, 1.0) if entry.name == "LRU" else (high, low)
        memory = f"{1 / (ends[1] * steps[0]):.3g} to {1 / (ends[0] * steps[1]):.3g}"
        rows.append(
            {
                "name": entry.name,
                "poles": entry.formula,
                "code": entry.code,
                "Re": f"{-ends[1]:.3g} to {-ends[0]:.3g}",
                "largest Im": float(np.abs(A.imag).max()),
                "memory (steps)": memory,
                "kappa": kappa,
                "variance": variance,
                "published": entry.published,
                "trained": entry.trained,
            }
        )
    return pd.DataFrame(rows)


_NAMES = ("init_diag", "init_s5", "init_mamba", "init_mamba2")


def _look(name: str, drawn, dt: float) -> tuple[np.ndarray, float, float]:
    """Poles (n,), condition of the Gram matrix and output variance of one draw."""
    if name == "S4":
        return _look_dense(*drawn, dt)
    if name == "S5":  # J equal blocks read H channels: the condition is one block's
        A = drawn["Lambda"]
        Ab, _ = discretize_diag(A, np.ones(len(A)), dt)
        Bb = np.expm1(dt * A)[:, None] / A[:, None] * drawn["B"]
        power = np.sum(np.abs(Bb) ** 2, axis=1) / (1 - np.abs(Ab) ** 2)
        return A, gram_condition(A[: len(A) // 6]), 2 * float(power.sum())
    if name.startswith("Mamba"):
        A = -np.exp(np.atleast_2d(drawn["A_log"])[0])
        poles, copies = (A, 1) if name == "Mamba" else (A[:1], 128)
        energy = dt**2 / -np.expm1(2 * dt * poles)  # B-bar = dt, real states
        return A + 0j, gram_condition(poles, digits=80), copies * float(energy.sum())
    A, B = drawn["A"][0], drawn["B"][0]
    if name == "LRU":  # discrete poles: sum_l conj(a)^l b^l = 1 / (1 - conj(a) b)
        A, a = A * dt, np.exp(A * dt)
        kappa = np.linalg.cond(1 / (1 - np.outer(a.conj(), a)))
        energy = np.abs(np.expm1(A) / A * dt * B) ** 2 / (1 - np.abs(a) ** 2)
        return A, float(kappa), 2 * float(energy.sum())
    if name == "S4-PTD":  # unit variance in HiPPO's coordinates: its own C, c V
        K = kernel_vandermonde(A, drawn["B"], drawn["C"], dt, int(8 / dt))
        return A, gram_condition(A), float(np.mean(np.sum(K**2, axis=-1)))
    digits = 40 + 2 * len(A) if name == "S4D-Real" else None
    kappa = gram_condition(A.real if digits else A, digits)
    kappa = kappa if 0 < kappa < 1e13 or digits else np.inf  # float64 cannot tell
    return A, kappa, float(variance_at_init(A, B, dt))


def _look_dense(A: np.ndarray, B: np.ndarray, dt: float):
    """The same for S4's dense pair: N real states, bilinear rule."""
    from scipy.linalg import solve_discrete_lyapunov

    N = len(B)
    Ab, Bb = discretize(A, B, dt, "bilinear")
    energy = np.trace(solve_discrete_lyapunov(Ab, np.outer(Bb, Bb)))
    return -np.arange(1.0, N + 1) + 0j, np.linalg.cond(legs_gramian(N)), float(energy)
