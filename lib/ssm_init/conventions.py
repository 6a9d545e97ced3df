"""One diagonal model in five code bases' parameters, converted exactly, and back.

Ours (`init_diag`): A, B, C (H, n), one pole of each pair with Im A >= 0, log_dt (H,),
kernel 2 Re(sum C Bb Ab^l). Conjugating A, B and C of a mode together changes nothing.
Sources: the code of state-spaces/s4 (v4), ag1988/dss, lindermanlab/S5, srush/
annotated-s4, state-spaces/mamba; scipy.signal's documentation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lib.kit.checks import choice, need


def half_plane(init: Mapping, sign: int = 1) -> tuple[np.ndarray, ...]:
    """A, B, C (H, n) of an initialisation with sign * Im A >= 0, by conjugating modes.
    Source: 2 Re z = 2 Re conj z."""
    turn = sign * np.imag(init["A"]) < 0
    return tuple(np.where(turn, np.conj(init[k]), init[k]) for k in ("A", "B", "C"))


def _ours(A, B, C, log_dt) -> dict[str, np.ndarray]:
    A, B, C = half_plane({"A": A, "B": B, "C": C})
    return {"A": A, "B": B, "C": C, "log_dt": np.asarray(log_dt, float)}


def _pair(x: np.ndarray) -> np.ndarray:
    return np.stack([np.real(x), np.imag(x)], axis=-1)


def _complex(x: np.ndarray) -> np.ndarray:
    return np.asarray(x)[..., 0] + 1j * np.asarray(x)[..., 1]


def to_state_spaces(init: Mapping) -> dict[str, np.ndarray]:
    """state-spaces/s4 v4, SSMKernelDiag: A = -exp(A_real) - i A_imag, Im A <= 0.
    Returns inv_dt (H, 1) (its exp transform), A_real, A_imag (H, n), B, C (1, H, n, 2).
    Their LegS has B = V*B; ours halves it unless half_B=False."""
    A, B, C = half_plane(init, -1)
    both = {"A_real": np.log(-A.real), "A_imag": -A.imag}
    both |= {"B": _pair(B)[None], "C": _pair(C)[None]}
    return both | {"inv_dt": np.asarray(init["log_dt"], float)[:, None]}


def from_state_spaces(params: Mapping, dt_transform: str = "exp", channel: int = 0):
    """Ours from state-spaces/s4: A and B (n_ssm, n) are tiled over H, one of C's
    channels is taken; dt_transform: "exp" or "softplus" of inv_dt. Returns A, B, C
    (H, n), log_dt (H,). Raises ValueError for the transform."""
    choice("dt_transform", dt_transform, ("exp", "softplus"))
    raw = np.asarray(params["inv_dt"], float)[:, 0]
    log_dt = raw if dt_transform == "exp" else np.log(np.logaddexp(0, raw))
    A = -np.exp(params["A_real"]) - 1j * np.asarray(params["A_imag"])
    copies = (len(raw) // len(A), 1)
    B = np.tile(_complex(params["B"])[0], copies)
    return _ours(np.tile(A, copies), B, _complex(params["C"])[channel], log_dt)


def to_dss(init: Mapping) -> dict[str, np.ndarray]:
    """ag1988/dss, "exp": K = Re sum W (e^{dt L} - 1) / L e^{dt L l}, Im L >= 0, without
    pairs, so W = 2 C B. Returns Lambda_log_neg_re, Lambda_im (H, n) (theirs share one
    row), W (1, H, n, 2), log_dt (H,)."""
    A, B, C = half_plane(init)
    both = {"Lambda_log_neg_re": np.log(-A.real), "Lambda_im": A.imag}
    return both | {"W": _pair(2 * B * C)[None], "log_dt": init["log_dt"]}


def from_dss(params: Mapping) -> dict[str, np.ndarray]:
    """Ours from DSS, with B = 1 (only C B enters). Shapes as in `to_dss`; log_dt may be
    (H, 2), the second for imaginary parts, and is then folded into A."""
    A = -np.exp(params["Lambda_log_neg_re"]) + 1j * np.asarray(params["Lambda_im"])
    W, log_dt = _complex(params["W"])[0], np.asarray(params["log_dt"], float)
    A = np.broadcast_to(A, W.shape)
    B = np.ones(W.shape, complex)
    if log_dt.ndim == 2:  # W multiplies (e^z - 1) / A with their A: move A into B
        re, im = np.exp(log_dt[:, :1] - log_dt[:, 1:]) * A.real, A.imag
        A, B, log_dt = re + 1j * im, (re + 1j * im) / A, log_dt[:, 1]
    return _ours(A, B, W / 2, log_dt)


def to_s5(init: Mapping) -> dict[str, np.ndarray]:
    """lindermanlab/S5 with conj_sym: H channels as one system of P = H n states, block
    diagonal, ascending Im Lambda <= 0 in each. Returns Lambda_re, Lambda_im (P,),
    B (P, H, 2), C (H, P, 2), log_step (P, 1)."""
    A, B, C = half_plane(init, -1)
    order = np.argsort(A.imag, axis=1, kind="stable")
    A, B, C = (np.take_along_axis(x, order, axis=1) for x in (A, B, C))
    own = np.eye(len(A))
    B = (B[..., None] * own[:, None]).reshape(-1, len(A))  # (P, H)
    C = (C[..., None] * own[:, None]).reshape(-1, len(A)).T
    step = np.repeat(np.asarray(init["log_dt"], float), A.shape[1])[:, None]
    parts = {"Lambda_re": A.real.ravel(), "Lambda_im": A.imag.ravel()}
    return parts | {"B": _pair(B), "C": _pair(C), "log_step": step}


def from_s5(params: Mapping) -> dict[str, np.ndarray]:
    """Ours from S5: every (output, input) path as a channel, H H of them, output first,
    with dt = 1 because S5 has a step a state: A and B are multiplied by it."""
    step = np.exp(np.asarray(params["log_step"], float)[:, 0])
    A = step * (np.asarray(params["Lambda_re"]) + 1j * np.asarray(params["Lambda_im"]))
    B, C = (step[:, None] * _complex(params["B"])).T, _complex(params["C"])
    shape = (len(C), len(B), len(A))
    A, B, C = (np.broadcast_to(x, shape) for x in (A, B, C[:, None]))
    flat = (x.reshape(-1, shape[2]) for x in (A, B, C))
    return _ours(*flat, np.zeros(shape[0] * shape[1]))


def _truncation(A: np.ndarray, P: np.ndarray, dt: np.ndarray, L: int) -> np.ndarray:
    """I - Ab^L (H, N, N) of diag(A) - P P* under the bilinear rule."""
    I = np.eye(A.shape[1])  # noqa: E741
    M = A[..., None] * I - P[..., None] * P.conj()[:, None]
    M = M * dt[:, None, None] / 2
    return I - np.linalg.matrix_power(np.linalg.solve(I - M, I + M), L)


def to_annotated(init: Mapping, L: int) -> dict[str, np.ndarray]:
    """srush/annotated-s4: the whole spectrum (no factor 2), bilinear, and a read-out
    trained as conj(C (I - Ab^L)), for one length L. init: may hold P (H, n).
    Returns Lambda_re, Lambda_im, P, B (H, 2n), C (H, 2n, 2), log_step (H, 1)."""
    named = {"A": init["A"], "P": np.zeros_like(init["A"]), **init}
    A, P, B, C = (np.concatenate([named[k], np.conj(named[k])], 1) for k in "APBC")
    log_dt = np.asarray(init["log_dt"], float)
    C = (C[:, None] @ _truncation(A, P, np.exp(log_dt), L))[:, 0].conj()
    parts = {"Lambda_re": A.real, "Lambda_im": A.imag, "P": P, "B": B}
    return parts | {"C": _pair(C), "log_step": log_dt[:, None]}


def from_annotated(params: Mapping, L: int) -> dict[str, np.ndarray]:
    """Ours (with P) from annotated-s4's parameters of length L, whose two halves are
    conjugates. Returns A, P, B, C (H, n), log_dt (H,)."""
    A = np.asarray(params["Lambda_re"]) + 1j * np.asarray(params["Lambda_im"])
    log_dt = np.asarray(params["log_step"], float)[:, 0]
    inverse = np.linalg.inv(_truncation(A, params["P"], np.exp(log_dt), L))
    C = (_complex(params["C"]).conj()[:, None] @ inverse)[:, 0]
    named = {"A": A, "P": params["P"], "B": params["B"], "C": C}
    n = A.shape[1] // 2
    return {key: x[:, :n] for key, x in named.items()} | {"log_dt": log_dt}


def to_scipy(init: Mapping, channel: int = 0, D: float = 0.0) -> tuple:
    """scipy.signal: real (A, B, C, D) of one channel for `cont2discrete((A, B, C, D),
    exp(log_dt))`, shapes (2n, 2n), (2n, 1), (1, 2n), (1, 1)."""
    A, B, C = (np.asarray(init[key])[channel] for key in ("A", "B", "C"))
    block = np.kron(np.diag(A.real), np.eye(2))
    block = block + np.kron(np.diag(A.imag), [[0, -1], [1, 0]])
    real_C = np.stack([2 * C.real, -2 * C.imag], axis=1).reshape(1, -1)
    return block, _pair(B).reshape(-1, 1), real_C, np.array([[D]])


def kernel_of_scipy(h: np.ndarray, method: str, D: float = 0.0) -> np.ndarray:
    """The S4 kernel from scipy's impulse response h (T,) (`dimpulse`, `dlsim`).
    "zoh": h = D, K_0, K_1, ... (dlsim reads before it updates), so T - 1 taps; D drops
    out. "bilinear": h_k = (K_k + K_{k-1}) / 2, since Tustin also changes C and D.
    Raises ValueError for another method."""
    choice("The method", method, ("zoh", "bilinear"))
    h = np.asarray(h, float)
    if method == "zoh":
        return h[1:]
    sign = (-1.0) ** np.arange(len(h))
    return 2 * sign * np.cumsum(sign * (h - D * (np.arange(len(h)) == 0)))


def negative_share(S_B: np.ndarray, S_C: np.ndarray) -> dict[str, float]:
    """How often mu < 0 in M = S_C' S_B, where S6 tokens shrink instead of growing.
    S_B, S_C: (N, d). Returns shares of the diagonal ("channels"), of M's eigenvalues by
    real part and of its symmetric part's, zeros left out; the last is exactly 1/2 for
    any independent rows (Sylvester). Raises ValueError for shapes or zeros.
    Source: 2410.03292."""
    S_B, S_C = np.asarray(S_B, float), np.asarray(S_C, float)
    need(
        S_B.shape == S_C.shape and S_B.ndim == 2 and S_B.any() and S_C.any(),
        f"S_B has shape {S_B.shape}, S_C {S_C.shape}; give (N, d) twice, not zero.",
    )
    swap = np.kron([[0, 0.5], [0.5, 0]], np.eye(len(S_B)))
    R = np.linalg.qr(np.concatenate([S_B, S_C]).T, mode="r")  # M + M' = 2 Q R swap R'Q'
    values = {
        "channels": np.sum(S_B * S_C, axis=0),
        "eigenvalues": np.linalg.eigvals(S_B @ S_C.T),
        "symmetric": np.linalg.eigvalsh(R @ swap @ R.T),
    }
    kept = {k: v.real[np.abs(v) > 1e-10 * np.abs(v).max()] for k, v in values.items()}
    return {name: float(np.mean(v < 0)) for name, v in kept.items()}


def mamba_mu(model) -> dict[str, dict[str, float]]:
    """`negative_share` of every Mamba mixer of a torch model, by name: x_proj.weight is
    (dt_rank + 2N, d_inner), dt_rank the width of dt_proj. Raises ValueError where there
    is none. Source: 2312.00752's code; 2410.03292."""
    named = {name: p.detach().float().cpu() for name, p in model.named_parameters()}
    found = [name for name in named if name.endswith("x_proj.weight")]
    need(bool(found), "No parameter ends in x_proj.weight: this is not a Mamba.")
    shares = {}
    for name in found:
        where = name.removesuffix("x_proj.weight")
        rank = named[where + "dt_proj.weight"].shape[1]
        S_B, S_C = np.split(named[name].numpy()[rank:], 2)
        shares[where.rstrip(".")] = negative_share(S_B, S_C)
    return shares
