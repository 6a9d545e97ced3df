"""Kernels of state space layers and their convolution, against the two-line reference.

H = 64 channels, N = 64 (n = 32 conjugate pairs), float32, lengths up to 16384. The
reference is the two-line Vandermonde kernel of the public minimal S4D (2206.11893),
which materialises (H, n, L). Every method is compared with an independent float64
computation before anything is timed. Memory is what one call adds at its peak, in
units of one (H, L) float32 array.
"""

from __future__ import annotations

from collections.abc import Callable
from math import nan

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ci.tools.bench import BenchmarkError, Options, Target, compare, peak_memory
from lib.ssm_init.inits import init_diag
from lib.ssm_init.layers import S4, S4D, convolve, init_dplr, kernel_dplr
from lib.ssm_init.theory import kernel_cauchy, kernel_dss, kernel_vandermonde

PEERS: tuple[str, ...] = ()
H, N, BATCH = 64, 64, 4
LENGTHS = (256, 1024, 4096, 16384)
CHANNELS = (0, 21, 42, 63)  # those compared with float64: enough, and quick
PASSES = ("forward", "forward+backward")
REFERENCE, DIRECT = "two lines", "two lines (torch.fft)"
# The reference takes phases of thousands of turns in float32, and so do its powers.
TOLERANCE = {REFERENCE: 1e-3, "recurrence, diagonal": 1e-3, "recurrence, dense": 1e-2}

_POWERS = "derived here: 2 sqrt(L) exponentials a pole instead of L"
_MEMORY = "O(N + L) if nothing is materialised (2206.11893)"
_FFT = "the same three transforms; a real backward pass saves a third (derived here)"
TARGETS = [
    *(
        Target("kernel", {"method": "S4D", "pass": p, "L": L}, "ratio", None, most, s)
        for p in PASSES
        for L, most, s in ((256, 0.25, _POWERS), (16384, 0.02, _POWERS))
    ),
    *(
        Target("kernel", {"method": "S4D", "pass": p, "L": 16384}, "memory", None, m, s)
        for p, m, s in zip(PASSES, (8, 16), (_MEMORY, _MEMORY))
    ),
    *(
        Target(
            "convolution",
            {"method": "ours", "pass": p, "L": 16384},
            "ratio",
            at_most=most,
            source=_FFT,
        )
        for p, most in zip(PASSES, (1.1, 0.8))
    ),
]


# --- kernels -------------------------------------------------------------------------


def two_lines(log_dt: Tensor, A_re: Tensor, A_im: Tensor, C: Tensor, L: int) -> Tensor:
    """The reference: S4D's kernel as the public minimal code has it, B = 1.

    log_dt: (H,); A_re, A_im: (H, n), the real part as -e^A_re; C: (H, n, 2); L: length.
    Returns (H, L), after (H, n, L) complex. Source: 2206.11893.
    """
    A = -torch.exp(A_re) + 1j * A_im
    dtA = A * torch.exp(log_dt)[:, None]
    C = torch.view_as_complex(C) * (torch.exp(dtA) - 1.0) / A
    K = dtA[..., None] * torch.arange(L)
    return 2 * torch.einsum("hn,hnl->hl", C, torch.exp(K)).real


def diagonal_recurrence(layer: S4D, L: int) -> Tensor:
    """The kernel as the response to an impulse, x = Ab x, step by step in complex64."""
    Ab, x, C = (part.to(torch.complex64) for part in layer.system())
    K = []
    for _ in range(L):
        K.append(2 * torch.sum(C * x, dim=-1).real)
        x = Ab * x
    return torch.stack(K, dim=-1)


def dense_recurrence(layer: S4, L: int) -> Tensor:
    """S4's kernel with its dense matrix Ab (H, N, N), step by step in complex64."""
    Ab, x, C = (part.to(torch.complex64) for part in layer.system())
    K = []
    for _ in range(L):
        K.append(torch.sum(C * x, dim=-1).real)
        x = (Ab @ x[..., None])[..., 0]
    return torch.stack(K, dim=-1)


def _cauchy(layer: S4, truncated: Tensor) -> Callable[[int], Tensor]:
    """S4's kernel as its authors train it: C (I - Ab^L) is the parameter."""

    def call(L: int) -> Tensor:
        P, B = (torch.view_as_complex(x.double()) for x in (layer.P, layer.B))
        C, dt = torch.view_as_complex(truncated.double()), torch.exp(layer.log_dt)
        return kernel_dplr(layer.poles(), P, B, C, dt.double(), L).float()

    return call


def _layers() -> dict[str, S4D]:
    rng = np.random.default_rng(0)
    return {
        "lin": S4D(init_diag("lin", N, H, rng=rng)),
        "dss": S4D(init_diag("dss", N, H, rng=rng), rule="dss"),
        "legs": S4(init_dplr(N, H, rng=rng)),
    }


def _truncated(layer: S4, L: int) -> Tensor:
    with torch.no_grad():
        Ab, _, C = layer.system()
        C = C - (C[:, None] @ torch.linalg.matrix_power(Ab, L))[:, 0]
        C = torch.view_as_real(C[:, : N // 2]).float().contiguous()
    return C.requires_grad_()


# Name: the layer, the longest length it runs at, and the kernel it makes.
METHODS: dict[str, tuple[str, int]] = {
    REFERENCE: ("lin", 16384),
    "S4D": ("lin", 16384),
    "DSS softmax": ("dss", 16384),
    "S4, Cauchy": ("legs", 16384),
    "S4, Cauchy and C (I - Ab^L)": ("legs", 1024),
    "recurrence, diagonal": ("lin", 4096),
    "recurrence, dense": ("legs", 256),
}


def _method(name: str, L: int) -> tuple[Callable[[int], Tensor], list[Tensor], S4D]:
    """A method's kernel by length, its trained parameters and its layer."""
    layer = _layers()[METHODS[name][0]]
    trained = [p for key, p in layer.named_parameters() if key != "D"]
    if name == REFERENCE:
        trained = [layer.log_dt, layer.A_re_raw, layer.A_im, layer.C]
        return (lambda length: two_lines(*trained, length)), trained, layer
    if name == "S4, Cauchy":
        C = _truncated(layer, L)
        trained = [p for p in trained if p is not layer.C] + [C]
        return _cauchy(layer, C), trained, layer
    if name.startswith("recurrence"):
        step = dense_recurrence if "dense" in name else diagonal_recurrence
        return (lambda length: step(layer, length)), trained, layer
    return layer.kernel, trained, layer


def prepare(name: str, L: int, backward: bool, warm: int = 0) -> Callable[[], object]:
    """One method at one length, as a call without arguments.

    name: of METHODS; L: length; backward: with the gradients of all trained parameters;
    warm: a length to call it with once before (0: not at all). The call returns what it
    made.
    """
    make, trained, _ = _method(name, L)

    def call(length: int = L) -> object:
        if not backward:
            with torch.no_grad():
                return make(length)
        return torch.autograd.grad(make(length).sum(), trained)

    if warm:
        call(warm)
    return call


def exact(layer: S4D, L: int) -> np.ndarray:
    """The kernels of CHANNELS in float64, without the code that is measured."""
    with torch.no_grad():
        A = layer.poles().numpy()
        B, C = (torch.view_as_complex(x.double()).numpy() for x in (layer.B, layer.C))
        dt = torch.exp(layer.log_dt.double()).numpy()
    rows = []
    for h in CHANNELS:
        if isinstance(layer, S4):
            P = torch.view_as_complex(layer.P.detach().double()).numpy()[h]
            whole = [np.concatenate([x, x.conj()]) for x in (A[h], P, B[h], C[h])]
            rows.append(kernel_cauchy(*whole, dt[h], L))
        elif layer.rule == "dss":
            rows.append(kernel_dss(A[h], 2 * B[h] * C[h], dt[h], L))
        else:
            rows.append(kernel_vandermonde(A[h], B[h], C[h], dt[h], L))
    return np.stack(rows)


def _error(found: Tensor, truth: np.ndarray, name: str, L: int) -> float:
    """The largest deviation relative to the largest value; raises where it is large."""
    error = float(np.abs(found.numpy() - truth).max() / np.abs(truth).max())
    allowed = TOLERANCE.get(name, 1e-4)
    if not error <= allowed:
        raise BenchmarkError(
            f"{name} at L = {L} is off by {error:.2g} of the largest value, more than "
            f"{allowed:g}: nothing was timed."
        )
    return error


def check_kernels(lengths: tuple[int, ...], options: Options) -> dict:
    """The error of every method at every length. Raises BenchmarkError if one is off.

    At the shortest length the gradients of C are compared with the reference's too.
    """
    errors = {}
    for L in lengths:
        options.say(f"kernels agree? L = {L}")
        truth = {}
        for name, (key, longest) in METHODS.items():
            if longest < L:
                continue
            make, _, layer = _method(name, L)
            if key not in truth:
                truth[key] = exact(layer, L)
            with torch.no_grad():
                found = make(L)[list(CHANNELS)]
            errors[name, L] = _error(found, truth[key], name, L)
    L, slopes = min(lengths), {}
    for name, (key, _) in METHODS.items():
        if key == "lin":
            make, _, layer = _method(name, L)
            slope = torch.autograd.grad(make(L).cos().sum(), layer.C)[0]
            slopes[name] = slope.double()
            truth = slopes[REFERENCE].numpy()
            _error(slope, truth, f"{name} (gradient of C)", L)
    return errors


def kernel_table(lengths: tuple[int, ...], options: Options) -> pd.DataFrame:
    """Time, memory and error of every kernel, a row a method, pass and length."""
    errors = check_kernels(lengths, options)
    frames = []
    for L in lengths:
        for kind in PASSES:
            options.say(f"kernels, {kind}, L = {L}")
            backward = kind != "forward"
            calls = {
                name: prepare(name, L, backward)
                if longest >= L
                else f"not run: L > {longest}"
                for name, (_, longest) in METHODS.items()
            }
            spent = {"min_time": 0.01, "rounds": 2} if options.quick else {}
            frame = compare(
                calls, clock=options.clock, limit=5.0, reference=REFERENCE, **spent
            )
            frame.insert(1, "pass", kind)
            frame.insert(2, "L", L)
            options.say(f"memory of kernels, {kind}, L = {L}")
            memory = [_memory(name, L, backward, options) for name in METHODS]
            frame.insert(6, "memory", memory)
            error = [errors.get((name, L), nan) for name in METHODS]
            frame.insert(7, "error", error)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _memory(name: str, L: int, backward: bool, options: Options) -> float:
    """Peak extra memory in (H, L) float32 arrays; short ones drown in all the rest.

    Each costs a process that imports torch, so a quick run measures two methods.
    """
    short, wanted = 4096, METHODS
    if options.quick:
        short, wanted = 1024, (REFERENCE, "S4D")
    if name not in wanted or not short <= L <= METHODS[name][1]:
        return nan
    named = {"name": name, "L": L, "backward": backward, "warm": 64}
    return peak_memory("ci.benchmarks.ssm_kernels:prepare", named) / (4 * H * L)


# --- convolution ---------------------------------------------------------------------
# All of them take K (H, L) and u (batch, L, H) and return a contiguous (batch, L, H).


def two_line_convolution(K: Tensor, u: Tensor) -> Tensor:
    """The reference: K (H, L) and u (batch, L, H) by torch.fft, autograd's backward."""
    n = 2 * K.shape[-1]
    spectrum = torch.fft.rfft(K, n) * torch.fft.rfft(u.mT, n)
    return torch.fft.irfft(spectrum, n)[..., : n // 2].mT.contiguous()


def direct_convolution(K: Tensor, u: Tensor) -> Tensor:
    """The sum itself, as a depthwise conv1d with a kernel as long as the input."""
    padded = torch.nn.functional.pad(u.mT, (K.shape[-1] - 1, 0))
    weight = K.flip(-1)[:, None]
    return torch.nn.functional.conv1d(padded, weight, groups=len(K)).mT.contiguous()


def scipy_convolution(K: Tensor, u: Tensor) -> Tensor:
    """scipy.signal.fftconvolve on the same arrays (it has no backward pass)."""
    from scipy.signal import fftconvolve

    full = fftconvolve(u.mT.detach().numpy(), K.detach().numpy()[None], axes=-1)
    return torch.from_numpy(full[..., : K.shape[-1]]).mT.contiguous()


# Name: the function, and the longest length of the forward and of both passes.
CONVOLUTIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int, int]] = {
    DIRECT: (two_line_convolution, 16384, 16384),
    "ours": (convolve, 16384, 16384),
    "conv1d": (direct_convolution, 4096, 1024),
    "scipy.signal.fftconvolve": (scipy_convolution, 16384, 0),
}


def _convolution(make: Callable, K: Tensor, u: Tensor, backward: bool) -> Callable:
    def call() -> object:
        if not backward:
            with torch.no_grad():
                return make(K, u)
        return torch.autograd.grad(make(K, u).sum(), (K, u))

    return call


def convolution_table(lengths: tuple[int, ...], options: Options) -> pd.DataFrame:
    """Time and error of every convolution, a row a method, pass and length."""
    frames = []
    for L in lengths:
        torch.manual_seed(0)
        K = (torch.randn(H, L) / L**0.5).requires_grad_()
        u = torch.randn(BATCH, L, H, requires_grad=True)
        truth = scipy_convolution(K.double(), u.double()).numpy()
        errors = {
            name: _error(make(K, u).detach(), truth, name, L)
            for name, (make, longest, _) in CONVOLUTIONS.items()
            if longest >= L
        }
        for kind in PASSES:
            options.say(f"convolution, {kind}, L = {L}")
            calls: dict[str, Callable | str] = {}
            for name, (make, *longest) in CONVOLUTIONS.items():
                backward = kind != "forward"
                if longest[backward] >= L:
                    calls[name] = _convolution(make, K, u, backward)
                else:
                    longer = f"not run: L > {longest[backward]}"
                    calls[name] = longer if longest[backward] else "has no backward"
            spent = {"min_time": 0.01, "rounds": 2} if options.quick else {}
            frame = compare(calls, clock=options.clock, reference=DIRECT, **spent)
            frame.insert(1, "pass", kind)
            frame.insert(2, "L", L)
            frame.insert(6, "error", [errors.get(name, nan) for name in calls])
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def run(options: Options) -> dict[str, pd.DataFrame]:
    """Measure everything; the tables "kernel" and "convolution".

    options: threads, quick (lengths 256 and 1024 only). Raises BenchmarkError where a
    method disagrees with the float64 computation.
    """
    lengths = LENGTHS[:2] if options.quick else LENGTHS
    return {
        "kernel": kernel_table(lengths, options),
        "convolution": convolution_table(lengths, options),
    }
