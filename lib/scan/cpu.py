"""The fused kernels for the processor: forward and backward in one pass, in C.

The C files are the documentation of what is computed: `scan.c` (selective scan and
Mamba-2), `lanes.c` (linear recurrence, causal convolution), `vec.h` (vectors and the
exponential), `threads.h`. This module hands them pointers and joins them to autograd.
Work is cut by shape alone and partial sums are added in a fixed order, so results are
equal bit by bit from run to run and for any number of threads.
Sources: 2312.00752 (scan, recomputation), 2405.21060 (scalar A); own design.
"""

from __future__ import annotations

import ctypes
import math
from functools import partial

import torch
from torch import Tensor

from lib.kit.checks import need
from lib.scan import build, gradients, reference
from lib.scan.gradients import NAMES

FLOATS = (torch.float32, torch.bfloat16)
MOST_STATES = 256
SMALL = 1 << 16  # fewer state updates than this are not worth waking a thread


# -- what it can do -----------------------------------------------------------------


def unavailable(call: str = "selective") -> str | None:
    """None when a kernel is built or can be built here, else a sentence why not.

    call: "selective", "ssd" (one file), "linear" or "conv" (another).
    """
    try:
        if call in ("linear", "conv"):
            build.library("lanes.c")
        else:
            _kernel(False, 16)  # the one most calls need, so it is built once
    except build.BuildError as error:
        return str(error)
    return None


def unsupported(
    u: Tensor, A: Tensor, B: Tensor, discretization: str = "euler"
) -> str | None:
    """None when the kernels compute this, else a sentence that says what they do not.

    u: (batch, length, channels); A: (channels, N), or (heads,); B: (..., N).
    """
    if u.device.type != "cpu":
        return f"The CPU kernel runs on the processor; u is on {u.device}."
    if A.is_complex() or B.is_complex():
        return "The CPU kernel takes real A, B and C; these are complex."
    if discretization != "euler":
        return f"The CPU kernel discretizes by 'euler', not by {discretization!r}."
    for name, x in (("u", u), ("B", B)):
        if x.dtype not in FLOATS:
            return f"The CPU kernel takes float32 and bfloat16; {name} is {x.dtype}."
    if A.dtype != torch.float32:
        return f"The CPU kernel takes A in float32; it is {A.dtype}."
    if not 1 <= B.shape[-1] <= MOST_STATES:
        return (
            f"The CPU kernel holds 1 to {MOST_STATES} states for each channel; these "
            f"are {B.shape[-1]}."
        )
    return None


# -- selective scan and Mamba-2 -----------------------------------------------------


def selective(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The selective scan h = exp(dt A) h + dt u B, y = (C h + D u) silu(z).

    u, delta, z: (batch, length, channels) float32 or bfloat16; A: (channels, N)
    float32; B, C: (batch, length, groups, N); D, delta_bias: (channels,); dt = delta +
    delta_bias, or its softplus; initial_state: (batch, channels, N); reset: (batch,
    length), True where the state before the step is 0. Returns y like u and the last
    state (float32); differentiable, twice too (slowly, by the reference).
    Source: 2312.00752 (eq. 2).
    """
    B, C = _same_groups(B, C)
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return gradients.scan(_SELECTIVE, delta_softplus, reset, given)


def ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mamba-2: the selective scan with one decay for a head of P channels.

    x, z: (batch, length, heads, P); delta: (batch, length, heads); A, delta_bias:
    (heads,); B, C: (batch, length, groups, N); D: (heads,) or (heads, P);
    initial_state: (batch, heads, P, N); the rest as in `selective`. Returns y and the
    last state.
    Source: 2405.21060 (eq. 1), computed as a recurrence.
    """
    B, C = _same_groups(B, C)
    given = (x, delta, A, B, C, D, z, delta_bias, initial_state)
    return gradients.scan(_SSD, delta_softplus, reset, given)


def step(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest
) -> tuple[Tensor, Tensor]:
    """One step of `selective`, for decoding: every sequence has length 1, no gradient.

    u, delta: (batch, 1, channels); the rest as in `selective`. Returns y and the state.
    """
    with torch.no_grad():
        return selective(u, delta, A, B, C, *rest)


class _Job(ctypes.Structure):
    """The struct `job` of scan.c: numbers, then pointers."""

    _NUMBERS = (
        *("b", "L", "d", "N", "G", "P"),
        *("softplus", "half_u", "half_delta", "half_z", "half_BC"),
    )
    _POINTERS = (
        *("u", "delta", "z", "B", "C", "A", "D", "bias", "h0", "reset"),
        *("y", "last", "check", "gy", "glast", "du", "ddelta", "dz"),
        *("dA", "dB", "dC", "dD", "dbias", "dh0"),
        *("part_B", "part_C", "part_A", "part_D", "part_bias"),
    )
    _fields_ = tuple(
        [(name, ctypes.c_long) for name in _NUMBERS]
        + [(name, ctypes.c_void_p) for name in _POINTERS]
    )

    def point(self, **tensors: Tensor | None) -> None:
        for name, x in tensors.items():
            setattr(self, name, None if x is None else x.data_ptr())


def _states(N: int) -> int:
    """How many states the forward loop holds: few padded ones, but long groups."""
    return min((8, 4), key=lambda s: -(-N // s) * s * (1 + 2 / s))


def _kernel(heads: bool, N: int) -> ctypes.CDLL:
    steps = 16 if N <= 16 else 20 if N <= 64 else 32  # checkpoints: N / steps of u
    library = build.library(
        *("scan.c", f"NS={_states(N)}", f"HEADS={int(heads)}", f"T={steps}")
    )
    library.check_floats.restype = ctypes.c_long
    return library


def _run(function, job: ctypes.Structure, work: int) -> None:
    threads = torch.get_num_threads() if work >= SMALL else 1
    if function(ctypes.byref(job), threads):
        raise MemoryError("The CPU kernel found no memory for its workspace.")


def _prepare(softplus: bool, reset: Tensor | None, given: tuple) -> tuple:
    """The tensors as the kernel reads them, by name, and the job that points there."""
    t = dict(zip(NAMES, given))
    for name in ("A", "D", "bias", "h0"):
        t[name] = None if t[name] is None else t[name].float()
    if t["B"].dtype != t["C"].dtype:
        t["B"], t["C"] = t["B"].float(), t["C"].float()
    if t["D"] is not None:
        wide = t["u"].shape[2:]  # (channels,), or (heads, P) where D may be (heads,)
        t["D"] = t["D"].reshape(*t["D"].shape, *[1] * (len(wide) - t["D"].ndim))
        t["D"] = t["D"].expand(wide)
    t = {name: None if x is None else x.contiguous() for name, x in t.items()}
    t["reset"] = None if reset is None else reset.contiguous()
    u, B = t["u"], t["B"]
    job = _Job(
        *(u.shape[0], u.shape[1], u.shape[2:].numel(), B.shape[3], B.shape[2]),
        *(u.shape[-1], softplus, u.dtype != torch.float32),
        t["delta"].dtype != torch.float32,
        t["z"] is not None and t["z"].dtype != torch.float32,
        B.dtype != torch.float32,
    )
    job.point(**t)
    return t, job


def _forward(
    heads: bool, softplus: bool, reset: Tensor | None, given: tuple, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, the last state and, if they are to be kept, the checkpoints."""
    t, job = _prepare(softplus, reset, given)
    u, B = t["u"], t["B"]
    kernel = _kernel(heads, B.shape[3])
    y = torch.empty_like(u)
    last = torch.empty(u.shape[0], *u.shape[2:], B.shape[3])
    check = torch.empty(kernel.check_floats(ctypes.byref(job))) if keep else None
    job.point(y=y, last=last, check=check)
    _run(kernel.forward, job, u.numel() * B.shape[3])
    return y, last, check


def _backward(
    heads: bool,
    softplus: bool,
    reset: Tensor | None,
    given: tuple,
    check: Tensor,
    gy: Tensor,
    glast: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients in the order of NAMES, None where nothing was given."""
    t, job = _prepare(softplus, reset, given)
    gy = gy.to(t["u"].dtype).contiguous()
    glast = None if glast is None else glast.float().contiguous()
    out = {
        name: None
        if x is None
        else torch.empty(x.shape, dtype=torch.float32 if name in "BC" else x.dtype)
        for name, x in t.items()
        if name != "reset"
    }
    job.point(gy=gy, glast=glast, check=check)
    job.point(**{f"d{name}": x for name, x in out.items()})
    N = t["B"].shape[3]
    _run(_kernel(heads, N).backward, job, t["u"].numel() * N)
    if out["D"] is not None and given[5].ndim < out["D"].ndim:
        out["D"] = out["D"].sum(-1)
    return tuple(
        None if x is None else g.to(x.dtype) for x, g in zip(given, out.values())
    )


_SELECTIVE, _SSD = (
    gradients.Kernel(plain, partial(_forward, heads), partial(_backward, heads))
    for plain, heads in ((reference.selective, False), (reference.ssd, True))
)


def _same_groups(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """B and C in as many groups (a constant one has a group for each channel)."""
    if B.shape[2] == C.shape[2]:
        return B, C
    G = math.lcm(B.shape[2], C.shape[2])
    return tuple(x.repeat_interleave(G // x.shape[2], dim=2) for x in (B, C))


# -- linear recurrence --------------------------------------------------------------


class _Lanes(ctypes.Structure):
    """The struct `job` of lanes.c."""

    _POINTERS = (
        *("a", "x", "h0", "reset", "w", "bias", "y", "gy"),
        *("da", "dx", "dh0", "dw", "dbias", "part_w", "part_bias"),
    )
    _fields_ = tuple(
        [(name, ctypes.c_long) for name in ("b", "L", "d", "half", "silu")]
        + [(name, ctypes.c_void_p) for name in _POINTERS]
    )
    point = _Job.point


def _lanes(x: Tensor, silu: bool = False, **tensors: Tensor | None) -> _Lanes:
    job = _Lanes(*x.shape, x.dtype != torch.float32, silu)
    job.point(x=x, **tensors)
    return job


def linear(
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
) -> Tensor:
    """All states of h_t = a_t h_{t-1} + b_t.

    a, b: (batch, length, channels) float32; initial_state: (batch, channels); reset:
    (batch, length) bool. Returns (batch, length, channels); differentiable, twice too,
    because its gradient is this recurrence run backwards. Source: 1709.04057.
    """
    a, b = a.contiguous(), b.contiguous()
    h0 = None if initial_state is None else initial_state.contiguous()
    return _Linear.apply(a, b, h0, None if reset is None else reset.contiguous())


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, h0, reset):
        h = torch.empty_like(b)
        job = _lanes(b, a=a, h0=h0, reset=reset, y=h)
        _run(build.library("lanes.c").linear, job, b.numel())
        ctx.save_for_backward(a, h0, reset, h)
        return h

    @staticmethod
    def backward(ctx, gh):
        a, h0, reset, h = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *gradients.of_linear(linear, a, h0, reset, h, gh), None
        gh, da, db = gh.contiguous(), torch.empty_like(a), torch.empty_like(a)
        dh0 = None if h0 is None else torch.empty_like(h0)
        job = _lanes(h, a=a, h0=h0, reset=reset, y=h, gy=gh, da=da, dh0=dh0)
        job.point(dx=db)
        _run(build.library("lanes.c").linear_backward, job, h.numel())
        return da, db, dh0, None


# -- causal convolution -------------------------------------------------------------

TAPS = 4


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    silu: bool = True,
    initial: Tensor | None = None,
) -> Tensor:
    """A causal depthwise convolution, with its SiLU.

    x: (batch, length, channels) float32 or bfloat16; weight: (channels, K), K from 2 to
    4, the last tap meets the present; bias: (channels,); initial: (batch, K - 1,
    channels), the inputs before the first. Returns y like x; differentiable once.
    Raises ValueError for another K. Source: 2312.00752 (section 3.4).
    """
    K = weight.shape[1]
    need(
        2 <= K <= TAPS,
        f"The convolution has {K} taps; this kernel takes 2 to {TAPS}.",
    )
    weight = torch.nn.functional.pad(weight.float(), (TAPS - K, 0)).contiguous()
    if initial is not None:
        initial = torch.nn.functional.pad(initial.float(), (0, 0, TAPS - K, 0))
    bias = None if bias is None else bias.float().contiguous()
    return _Conv.apply(x.contiguous(), weight, bias, initial, silu)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, initial, silu):
        y = torch.empty_like(x)
        job = _lanes(x, silu, w=weight, bias=bias, h0=initial, y=y)
        _run(build.library("lanes.c").conv, job, 8 * x.numel())
        ctx.save_for_backward(x, weight, bias, initial)
        ctx.silu = silu
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gy):
        x, weight, bias, initial = ctx.saved_tensors
        gy = gy.to(x.dtype).contiguous()
        out = [
            None if given is None else torch.empty_like(given)
            for given in (x, weight, bias, initial)
        ]
        job = _lanes(x, ctx.silu, w=weight, bias=bias, h0=initial, gy=gy)
        job.point(**dict(zip(("dx", "dw", "dbias", "dh0"), out)))
        _run(build.library("lanes.c").conv_backward, job, 8 * x.numel())
        return *out, None
