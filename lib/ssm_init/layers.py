"""Trainable state space layers: a kernel to train with, a recurrence to run with.

Sequences are (batch, length, channels), parameters (H, n): H channels, one pole of each
of n conjugate pairs, complex numbers as trailing real pairs (autograd, checkpoints and
mixed precision all understand those). Discrete systems are x_k = Ab x_{k-1} + Bb u_k,
y_k = 2 Re(C x_k) + D u_k. The few exponentials of a kernel are taken in float64, so
that a phase of thousands of turns keeps its digits; only sums over states run in the
parameters' own precision.
Sources: 2111.00396 (S4), 2203.14343 (DSS), 2206.11893 (S4D), 2604.01168 (S0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lib.kit.checks import choice, need
from lib.ssm_init.inits import init_diag
from lib.ssm_init.theory import nplr

RULES = ("zoh", "bilinear", "dss")
REALS = ("exp", "softplus", "relu", "clip", "none")
READOUTS = ("last", "mean")
FLOOR = 1e-4  # what "relu" and "clip" keep between a pole and the imaginary axis


# -- parametrisations ---------------------------------------------------------------


def real_part(raw: Tensor, real: str = "exp") -> Tensor:
    """The real part of the poles from its trained parameter.

    raw: (...); real: "exp" -e^a, "softplus", "relu" -relu(a) - 1e-4, "clip" min(a,
    -1e-4), "none" a. Returns (...). Raises ValueError for another name.
    Source: 2206.11893 and its authors' code ("clip": 2208.04933).
    """
    choice("The parametrisation of Re A", real, REALS)
    if real == "exp":
        return -torch.exp(raw)
    if real == "softplus":
        return -nn.functional.softplus(raw, threshold=40)  # 20 loses 2e-9
    if real == "relu":
        return -torch.relu(raw) - FLOOR
    return raw.clamp(max=-FLOOR) if real == "clip" else raw


def raw_real_part(A_re: np.ndarray, real: str = "exp") -> np.ndarray:
    """The inverse of `real_part`, to start from given poles.

    A_re: (...) real parts; real: as in `real_part`. Returns (...).
    Raises ValueError where no parameter gives that: "exp" and "softplus" never reach 0
    (log 0), "clip" would freeze there, and only "none" allows growth. "relu" takes 0 as
    -1e-4, its floor, and stays a hair (1e-6) away from it, because on the floor its
    gradient is 0 for good. Source: 2206.11893; Re = 0: 2411.19455.
    """
    choice("The parametrisation of Re A", real, REALS)
    A_re = np.asarray(A_re, float)
    top = float(A_re.max())
    need(
        real == "none" or top <= 0,
        f"The largest real part is {top:.3g}, a growing mode, which {real!r} cannot "
        "hold; take real='none' or move the pole to the left.",
    )
    need(
        real in ("none", "relu") or top < 0,
        f"A real part is 0, which {real!r} cannot reach or leave; take real='none', or "
        f"real='relu' (that is -{FLOOR:g}), or a pole below 0.",
    )
    if real == "exp":
        return np.log(-A_re)
    if real == "softplus":
        return -A_re + np.log(-np.expm1(A_re))
    if real == "relu":
        return np.maximum(-A_re - FLOOR, 1e-6)
    need(
        real == "none" or top < -FLOOR,
        f"The largest real part is {top:.3g}; 'clip' stops at -{FLOOR:g} and has no "
        "gradient there. Take real='none' or 'exp'.",
    )
    return A_re


# -- kernels ------------------------------------------------------------------------


def _wide(x: Tensor) -> Tensor:
    """A real tensor as float64 (MPS has none: as it is)."""
    return x if x.device.type == "mps" else x.double()


def _pair(x: Tensor) -> Tensor:
    """Real pairs (..., 2) as one complex128 tensor (...)."""
    return torch.view_as_complex(_wide(x).contiguous())


def _phi(z: Tensor) -> Tensor:
    """(e^z - 1) / z with its value and gradient at z = 0."""
    near = z.abs() < 1e-4
    safe = torch.where(near, torch.ones_like(z), z)
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4))
    return torch.where(near, series, torch.expm1(safe) / safe)


def discretize(
    A: Tensor, B: Tensor, dt: Tensor, rule: str = "zoh", length: int | None = None
) -> tuple[Tensor, Tensor]:
    """One step of a diagonal system: the logarithm of Ab, and Bb.

    A, B: (..., n) complex; dt: (...,), a step for each channel; rule: "zoh",
    "bilinear", or "dss" (ZOH divided by the sum of the row, which needs `length`).
    Returns log Ab and Bb (..., n). Raises ValueError for an unknown rule.
    Source: 2111.00396 (bilinear), 2206.11893 (ZOH), 2203.14343 (DSS softmax).
    """
    choice("The rule", rule, RULES)
    dt = dt[..., None]
    z = A * dt
    if rule == "bilinear":
        Ab = (1 + z / 2) / (1 - z / 2)
        Ab = torch.where(Ab == 0, torch.full_like(Ab, 1e-30), Ab)  # z = -2: log 0
        return torch.log(Ab), dt * B / (1 - z / 2)
    if rule == "zoh":
        return z, dt * B * _phi(z)
    need(length is not None, "The rule 'dss' depends on the length of the sequence.")
    need(bool(torch.all(A != 0)), "The rule 'dss' divides by the poles; none may be 0.")
    return z, B * _phi(z) / (A * length * _phi(length * z))


def power_sum(log_ab: Tensor, weight: Tensor, L: int, dtype: torch.dtype) -> Tensor:
    """The sum 2 Re sum_n weight_n Ab_n^l for l = 0 .. L-1, from about 2 sqrt(L) powers.

    log_ab, weight: (..., n) complex; L: length; dtype: of the result. With l = m a + b
    it is one real matrix product of the powers m a and b; nothing of size n L is kept.
    Returns (..., L). Raises ValueError for a length below 1.
    Source: 2206.11893 (the sum); the two levels are folklore.
    """
    need(
        isinstance(L, int) and L >= 1, f"The length is {L!r}; give a whole number >= 1."
    )
    m = int(np.ceil(np.sqrt(L)))
    steps = torch.arange(m, device=log_ab.device, dtype=log_ab.real.dtype)
    tall = m * steps[: -(-L // m)]
    high = torch.exp(log_ab[..., None] * tall) * (2 * weight)[..., None]
    low = torch.exp(log_ab[..., None] * steps)
    high = torch.cat([high.real, -high.imag], dim=-2).to(dtype)  # (..., 2n, L/m)
    low = torch.cat([low.real, low.imag], dim=-2).to(dtype)  # (..., 2n, m)
    return (high.mT @ low).flatten(-2)[..., :L]


def kernel(
    A_re_raw: Tensor,
    A_im: Tensor,
    B: Tensor,
    C: Tensor,
    log_dt: Tensor,
    L: int,
    rule: str = "zoh",
    *,
    real: str = "exp",
    rate: float = 1.0,
    bandlimit: float | None = None,
) -> Tensor:
    """The convolution kernel of H diagonal channels, differentiable in everything.

    A_re_raw, A_im: (H, n) poles; B, C: (H, n, 2) real pairs; log_dt: (H,); L: length;
    rule: one of RULES; real: one of REALS; rate: multiplies every step (2 for data at
    half the sampling rate); bandlimit: drop modes of more than bandlimit / 2 turns a
    step. Returns (H, L) in the parameters' type. Raises ValueError for unknown names,
    shapes, a length below 1. Source: 2206.11893 (S4D), 2203.14343 (DSS).
    """
    shape = tuple(A_re_raw.shape)
    need(
        A_im.shape == shape and B.shape == C.shape == (*shape, 2),
        f"A has shapes {shape} and {tuple(A_im.shape)}, B {tuple(B.shape)}, C "
        f"{tuple(C.shape)}; give A (H, n) twice, B and C (H, n, 2).",
    )
    need(
        log_dt.shape == shape[:1],
        f"log_dt has shape {tuple(log_dt.shape)}; give one step for each of "
        f"{shape[0]} channels.",
    )
    need(rate > 0, f"rate is {rate}; give a positive factor of the step.")
    with torch.autocast(A_im.device.type, enabled=False):
        A = torch.complex(real_part(_wide(A_re_raw), real), _wide(A_im))
        dt = rate * torch.exp(_wide(log_dt))
        log_ab, Bb = discretize(A, _pair(B), dt, rule, L)
        weight = Bb * _pair(C)
        if bandlimit is not None:
            weight = weight * (log_ab.imag.abs() / np.pi < bandlimit)
        if rule == "dss" and bool((A.real > 0).any()):
            return _dss_growing(A * dt[:, None], A, _pair(B) * _pair(C), L, log_dt)
        return power_sum(log_ab, weight, L, log_dt.dtype)


def _dss_growing(z: Tensor, A: Tensor, W: Tensor, L: int, like: Tensor) -> Tensor:
    """DSS where some poles grow: their rows are those of -z, run backwards in time."""
    grows = z.real > 0
    z = torch.where(grows, -z, z)
    weight = W * _phi(z) / (A * L * _phi(L * z))
    decaying = power_sum(z, weight * ~grows, L, like.dtype)
    return decaying + power_sum(z, weight * grows, L, like.dtype).flip(-1)


def kernel_dplr(
    A: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int
) -> Tensor:
    """S4's kernel of diag(A) - P P* under the bilinear rule, from its spectrum.

    A, P, B, C: (H, n) complex128, one of each conjugate pair, C truncated to the length
    as C (I - Ab^L); dt: (H,); L: length. Returns (H, L) float64: irfft over the roots
    of unity z of C R B - C R P (1+z) / (2 + (1+z) P* R P) P* R B with R = 2 /
    (2 (1-z) / dt - (1+z) A), a form of Woodbury's identity that is regular at z = -1.
    Raises ValueError for a length below 1. Source: 2111.00396, Algorithm 1.
    """
    need(L >= 1, f"The length is {L!r}; give a whole number >= 1.")
    turn = torch.arange(L // 2 + 1, device=A.device, dtype=dt.dtype) / L
    z = torch.exp(-2j * np.pi * turn)
    g = 2 * (1 - z) / dt[:, None]
    R = 2 / (g[:, None] - (1 + z) * A[..., None])  # (H, n, L/2 + 1)
    S = 2 / (g[:, None] - (1 + z) * A.conj()[..., None])  # of the conjugate poles

    def between(X: Tensor, Y: Tensor) -> Tensor:
        XY = (X * Y)[:, None]
        return (XY @ R + XY.conj() @ S)[:, 0]

    low = between(C, P) * between(P.conj(), B) * (1 + z)
    spectrum = between(C, B) - low / (2 + (1 + z) * between(P.conj(), P))
    return torch.fft.irfft(spectrum, L)


def convolve(K: Tensor, u: Tensor) -> Tensor:
    """Causal convolution y_k = sum_{l<=k} K_l u_{k-l} along time, by FFT of length 2L.

    K: (H, L); u: (batch, L, H). Returns (batch, L, H). Raises ValueError where lengths
    or channels differ. Source: 2111.00396 (2L, else the end wraps into the beginning).
    """
    need(
        u.ndim == 3 and tuple(K.shape) == (u.shape[2], u.shape[1]),
        f"The kernel has shape {tuple(K.shape)}, the input {tuple(u.shape)}; give "
        "(H, L) and (batch, L, H).",
    )
    return _Convolution.apply(K, u)


def _parts(u: Tensor) -> list[Tensor]:
    """A batch in pieces: long sequences one by one, whose spectra outgrow a cache."""
    alone = u.device.type == "cpu" and u[0].numel() >= 2**16
    return list(u.split(1 if alone else len(u)))


class _Convolution(torch.autograd.Function):
    """`convolve` with its own gradient: autograd's rule for real FFTs takes complex
    ones of full length, which costs a third of a training step."""

    @staticmethod
    def forward(ctx, K: Tensor, u: Tensor) -> Tensor:
        n = 2 * K.shape[-1]
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        K, spectra = torch.fft.rfft(K, n), []
        for part, out in zip(_parts(u), _parts(y)):
            spectra.append(torch.fft.rfft(part.mT, n))
            out.copy_(torch.fft.irfft(spectra[-1] * K, n)[..., : n // 2].mT)
        ctx.save_for_backward(K, *spectra)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        K, *spectra = ctx.saved_tensors
        n, to_K = 2 * grad.shape[1], torch.zeros_like(K)
        to_u = torch.empty_like(grad, memory_format=torch.contiguous_format)
        for part, out, u in zip(_parts(grad), _parts(to_u), spectra, strict=True):
            G = torch.fft.rfft(part.mT, n)
            to_K += (u.conj() * G).sum(dim=0)
            out.copy_(torch.fft.irfft(G.mul_(K.conj()), n)[..., : n // 2].mT)
        return torch.fft.irfft(to_K, n)[..., : n // 2], to_u


# -- layers -------------------------------------------------------------------------


def _pair_parameter(x: np.ndarray, dtype: torch.dtype) -> nn.Parameter:
    x = np.ascontiguousarray(np.asarray(x, complex))
    return nn.Parameter(torch.view_as_real(torch.from_numpy(x)).to(dtype))


def _parameter(x: np.ndarray, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.tensor(np.asarray(x, float), dtype=dtype))


def _check_init(init: Mapping) -> None:
    lacks = [key for key in ("A", "B", "C", "D", "log_dt") if key not in init]
    need(
        not lacks,
        f"The initialisation lacks {', '.join(lacks)}; give what init_diag returns.",
    )
    shapes = {key: np.shape(init[key]) for key in ("A", "B", "C", "D", "log_dt")}
    H = shapes["A"][0] if len(shapes["A"]) == 2 else None
    need(
        shapes["A"] == shapes["B"] == shapes["C"]
        and shapes["D"] == shapes["log_dt"] == (H,),
        f"The initialisation has shapes {shapes}; give A, B, C (H, n), D and log_dt "
        "(H,).",
    )


class S4D(nn.Module):
    """H independent diagonal state space models, each with its own feed-through.

    init: what `init_diag` returns (A, B, C (H, n) complex; D, log_dt (H,)); rule: one
    of RULES; real: one of REALS; train_B, train_im: False keeps B, Im A as they are
    (with a complex C even S4D-Real's poles leave the real axis in training);
    initial_state: a trainable x_{-1} (S0), zero at first; bandlimit: see `kernel`;
    dtype: of the parameters, float32 or float64. Raises ValueError for a malformed
    init. Source: 2206.11893 (S4D); 2604.01168 (S0).
    """

    def __init__(
        self,
        init: Mapping,
        *,
        rule: str = "zoh",
        real: str = "exp",
        train_B: bool = True,
        train_im: bool = True,
        initial_state: bool = False,
        bandlimit: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        choice("The rule", rule, RULES)
        _check_init(init)
        A = np.asarray(init["A"], complex)
        self.rule, self.real, self.bandlimit = rule, real, bandlimit
        self.A_re_raw = _parameter(raw_real_part(A.real, real), dtype)
        self.A_im = _parameter(A.imag, dtype).requires_grad_(train_im)
        self.B = _pair_parameter(init["B"], dtype).requires_grad_(train_B)
        self.C = _pair_parameter(init["C"], dtype)
        self.D = _parameter(init["D"], dtype)
        self.log_dt = _parameter(init["log_dt"], dtype)
        self.S0 = _pair_parameter(np.zeros_like(A), dtype) if initial_state else None

    def poles(self) -> Tensor:
        """The continuous poles A (H, n), complex128 (complex64 on MPS)."""
        A_re = real_part(_wide(self.A_re_raw), self.real)
        return torch.complex(A_re, _wide(self.A_im))

    def kernel(self, L: int, rate: float = 1.0) -> Tensor:
        """The convolution kernel (H, L), without D. L: length; rate: see `kernel`."""
        named = {"real": self.real, "rate": rate, "bandlimit": self.bandlimit}
        parts = (self.A_re_raw, self.A_im, self.B, self.C, self.log_dt)
        return kernel(*parts, L, self.rule, **named)

    def system(self, length: int | None = None, rate: float = 1.0) -> tuple:
        """Ab, Bb, C (H, n), complex128, for `step`; length: only for the rule "dss"."""
        dt = rate * torch.exp(_wide(self.log_dt))
        log_ab, Bb = discretize(self.poles(), _pair(self.B), dt, self.rule, length)
        C = _pair(self.C)
        if self.bandlimit is not None:
            C = C * (log_ab.imag.abs() / np.pi < self.bandlimit)
        return torch.exp(log_ab), Bb, C

    def from_state(self, L: int, rate: float = 1.0) -> Tensor:
        """What the initial state alone gives: 2 Re C Ab^{l+1} S0, (H, L)."""
        with torch.autocast(self.A_im.device.type, enabled=False):
            dt = rate * torch.exp(_wide(self.log_dt))
            A, B = self.poles(), _pair(self.B)
            log_ab, _ = discretize(A, B, dt, self.rule, L)
            _, _, C = self.system(L, rate)
            weight = C * _pair(self.S0) * torch.exp(log_ab)
            return power_sum(log_ab, weight, L, self.log_dt.dtype)

    def forward(self, u: Tensor, rate: float = 1.0, last: bool = False) -> Tensor:
        """The whole sequence at once: u (batch, L, H) -> y (batch, L, H).

        rate: see `kernel`; last: only the last step, (batch, 1, H), one inner product
        instead of a convolution. Raises ValueError for shapes.
        """
        H = len(self.D)
        need(
            u.ndim == 3 and u.shape[-1] == H,
            f"The input has shape {tuple(u.shape)}; give (batch, length, {H}).",
        )
        with torch.autocast(u.device.type, enabled=False):
            v = u.to(self.D.dtype)
            K, after = self.kernel(u.shape[1], rate), slice(-1 if last else 0, None)
            if last:
                y = torch.einsum("blh,hl->bh", v, K.flip(-1))[:, None]
            else:
                y = convolve(K, v)
            y = y + v[:, after] * self.D
            if self.S0 is not None:
                y = y + self.from_state(u.shape[1], rate).mT[after]
        return y.to(u.dtype)

    def initial_state(self, batch: int) -> Tensor:
        """The state before the first sample: (batch, H, n) complex, S0 or zero."""
        start = torch.zeros_like(self.C) if self.S0 is None else self.S0
        return _pair(start).expand(batch, *start.shape[:-1])

    def step(
        self, u: Tensor, x: Tensor, system: tuple | None = None
    ) -> tuple[Tensor, Tensor]:
        """One sample: u (batch, H), state x (batch, H, n) -> y (batch, H), new state.

        system: what `system` returns, computed once for many steps (required for the
        rule "dss"). Raises ValueError for shapes. Source: 2111.00396.
        """
        Ab, Bb, C = system or self.system()
        need(
            x.shape[1:] == Ab.shape and u.shape == x.shape[:2],
            f"The sample has shape {tuple(u.shape)}, the state {tuple(x.shape)}; give "
            f"(batch, {len(Ab)}) and (batch, {len(Ab)}, {Ab.shape[1]}).",
        )
        x = Ab * x + Bb * u[..., None]
        y = 2 * torch.sum(C * x, dim=-1).real
        return y.to(u.dtype) + u * self.D, x


class S4(S4D):
    """The original S4: diagonal plus rank one, bilinear, by the Cauchy kernel.

    init: what `init_dplr` returns (as for S4D, with P (H, n)); real, dtype: as for S4D.
    C itself is trained (the authors train C (I - Ab^L)), so one set of parameters
    serves every length and `step`. States are (batch, H, 2n), the whole spectrum.
    Raises ValueError for a malformed init. Source: 2111.00396.
    """

    def __init__(
        self, init: Mapping, *, real: str = "exp", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(init, rule="bilinear", real=real, dtype=dtype)
        need(
            "P" in init and np.shape(init["P"]) == np.shape(init["A"]),
            "The initialisation has no P (H, n); give what init_dplr returns.",
        )
        self.P = _pair_parameter(init["P"], dtype)

    def system(self, length: int | None = None, rate: float = 1.0) -> tuple:
        """Dense Ab (H, 2n, 2n), Bb and C (H, 2n), complex128, for `step`."""
        half = (self.poles(), _pair(self.P), _pair(self.B), _pair(self.C))
        A, P, B, C = (torch.cat([x, x.conj()], dim=-1) for x in half)
        step = rate * torch.exp(_wide(self.log_dt))[:, None, None]
        M = step / 2 * (torch.diag_embed(A) - P[..., None] * P.conj()[:, None])
        I = torch.eye(A.shape[1], dtype=A.dtype, device=A.device)  # noqa: E741
        right = torch.cat([I + M, step * B[..., None]], dim=-1)
        both = torch.linalg.solve(I - M, right)
        return both[..., :-1], both[..., -1], C

    def kernel(self, L: int, rate: float = 1.0) -> Tensor:
        """The convolution kernel (H, L), without D. L: length; rate: see `kernel`."""
        Ab, _, C = self.system(rate=rate)
        C = C - (C[:, None] @ torch.linalg.matrix_power(Ab, L))[:, 0]
        A, P, B = self.poles(), _pair(self.P), _pair(self.B)
        dt = rate * torch.exp(_wide(self.log_dt))
        K = kernel_dplr(A, P, B, C[:, : A.shape[1]], dt, L)
        return K.to(self.log_dt.dtype)

    def initial_state(self, batch: int) -> Tensor:
        """The state before the first sample, zero: (batch, H, 2n) complex."""
        return super().initial_state(batch).repeat(1, 1, 2)

    def step(
        self, u: Tensor, x: Tensor, system: tuple | None = None
    ) -> tuple[Tensor, Tensor]:
        """One sample: u (batch, H), state x (batch, H, 2n) -> y (batch, H), new x."""
        Ab, Bb, C = system or self.system()
        x = torch.einsum("hij,bhj->bhi", Ab, x) + Bb * u[..., None]
        return torch.sum(C * x, dim=-1).real.to(u.dtype) + u * self.D, x


def init_dplr(
    N: int,
    H: int,
    *,
    rng: np.random.Generator,
    dt_range: tuple[float, float] = (1e-3, 1e-1),
) -> dict:
    """S4-LegS for H channels: HiPPO-LegS as a normal matrix minus one of rank one.

    N: even real state size; H: channels; rng; dt_range: of the log-uniform steps.
    Returns what `init_diag` does with P (H, N/2), B not halved. Raises ValueError for
    an odd N.
    Source: 2111.00396, Theorem 1.
    """
    init = init_diag("legs", N, H, rng=rng, dt_range=dt_range, half_B=False)
    P = nplr("legs", N)[1][: -N // 2 - 1 : -1, 0]
    return init | {"P": np.tile(P, (H, 1))}


class Block(nn.Module):
    """A residual block: norm, sequence layer, GELU, a gated linear unit, add.

    layer: called as `S4D.forward` is; d_model: channels;
    dropout: fraction; prenorm: the norm before the layer, else after the addition;
    backward: a second layer that reads from the end. Source: 2206.11893.
    """

    def __init__(
        self,
        layer: nn.Module,
        d_model: int,
        dropout: float = 0.0,
        prenorm: bool = True,
        backward: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.layer, self.backward_layer = layer, backward
        self.norm, self.prenorm = nn.LayerNorm(d_model), prenorm
        self.mix = nn.Linear(d_model, 2 * d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rate: float = 1.0, last: bool = False) -> Tensor:
        """x (batch, L, d_model) -> the same shape, or its last step (batch, 1, ...)."""
        z = self.norm(x) if self.prenorm else x
        if self.backward_layer is None:
            y = self.layer(z, rate, last)
        else:
            y = self.layer(z, rate) + self.backward_layer(z.flip(1), rate).flip(1)
            y = y[:, -1:] if last else y
        x = x[:, -1:] if last else x
        y = self.dropout(nn.functional.gelu(y))
        x = x + self.dropout(nn.functional.glu(self.mix(y), dim=-1))
        return x if self.prenorm else self.norm(x)


class Classifier(nn.Module):
    """Encoder, residual blocks, a read-out in time, and a linear decoder.

    d_input: input channels; d_model: width; n_layers: blocks; n_classes; readout:
    "last" step or "mean" over time; layer: called once for each sequence layer, for
    example `lambda: S4D(init_diag("lin", 32, d_model, rng=rng))`; dropout, prenorm: of
    the blocks; bidirectional: two layers a block. Linear maps draw from torch's global
    generator: seed it before. Raises ValueError for sizes or read-out.
    Source: 2206.11893; 2111.00396.
    """

    def __init__(
        self,
        d_input: int,
        d_model: int,
        n_layers: int,
        n_classes: int,
        readout: str = "last",
        *,
        layer: Callable[[], nn.Module],
        dropout: float = 0.0,
        prenorm: bool = True,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        choice("The read-out", readout, READOUTS)
        need(
            min(d_input, d_model, n_layers, n_classes) >= 1,
            f"d_input, d_model, n_layers, n_classes are {d_input}, {d_model}, "
            f"{n_layers}, {n_classes}; give at least 1 each.",
        )
        self.readout = readout
        self.encoder = nn.Linear(d_input, d_model)
        blocks = [
            Block(
                layer(), d_model, dropout, prenorm, layer() if bidirectional else None
            )
            for _ in range(n_layers)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(d_model) if prenorm else nn.Identity()
        self.decoder = nn.Linear(d_model, n_classes)

    def forward(self, x: Tensor, rate: float = 1.0) -> Tensor:
        """x (batch, L, d_input) -> logits (batch, n_classes); rate: see `kernel`."""
        x = self.encoder(x)
        for k, block in enumerate(self.blocks, start=1):
            x = block(x, rate, self.readout == "last" and k == len(self.blocks))
        return self.decoder(self.norm(x).mean(dim=1))  # of one step for "last"


SSM_NAMES = ("A_re_raw", "A_im", "B", "P", "log_dt", "S0")


def param_groups(
    model: nn.Module,
    lr: float = 4e-3,
    ssm_lr: float = 1e-3,
    weight_decay: float = 0.01,
) -> list[dict]:
    """Optimiser groups: the recurrences' own parameters apart, slow and not decayed.

    model: holds S4D (or S4) layers; lr, weight_decay: of all else (C among it; biases,
    norms and D are not decayed); ssm_lr: of A, B, P, log_dt and S0, at most 1e-3.
    Returns three groups for AdamW, named "decayed", "plain" and "ssm". Raises
    ValueError for rates. Source: state-spaces/s4 (lr 1e-3, weight decay 0).
    """
    need(lr > 0 and weight_decay >= 0, f"lr is {lr}, weight_decay {weight_decay}.")
    need(
        0 < ssm_lr <= 1e-3,
        f"ssm_lr is {ssm_lr}; A, B and log_dt want a positive rate of at most 1e-3.",
    )
    named: dict[str, list] = {"decayed": [], "plain": [], "ssm": []}
    for module in model.modules():
        own = SSM_NAMES if isinstance(module, S4D) else ()
        for name, p in module.named_parameters(recurse=False):
            if p.requires_grad:
                decayed = p.ndim >= 2
                key = "ssm" if name in own else "decayed" if decayed else "plain"
                named[key].append(p)
    rates = {"decayed": (lr, weight_decay), "plain": (lr, 0.0), "ssm": (ssm_lr, 0.0)}
    return [
        {"params": named[key], "lr": rates[key][0], "weight_decay": rates[key][1]}
        | {"name": key}
        for key in named
        if named[key]
    ]
