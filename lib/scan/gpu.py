"""The fused kernels for graphics processors: launches, and their place in autograd.

What is computed stands in `triton_kernels`. Partial sums are written out and added by
torch, in an order that shapes alone decide, so results are equal bit by bit from run to
run. Triton is imported with the first call; under TRITON_INTERPRET=1, set before that,
the kernels run in numpy on a processor, for tests.
A program takes a row and a block of channels and walks through time alone: with few
rows and channels (an H100 has 528 places for warps to issue from) the device is not
full. Splitting time between programs would fill it; this is not done yet.
Sources: 2312.00752 (scan, recomputation), 2405.21060 (scalar A); own design.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import nullcontext

import torch
from torch import Tensor

from lib.scan import chunked, gradients, reference, triton_kernels
from lib.scan.gradients import NAMES

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MOST_STATES = 256
MOST_IN_HEAD = 128  # of Mamba-2's
IN_THREAD = 16  # states that a thread holds
FORWARD, BACKWARD = 16, 4  # of these, at most so many of one channel
EVERY = 64  # steps between two checkpoints
STEPS = 2  # steps that the backward holds in registers
CHUNK, TILE = 32, 32  # steps that Mamba-2 takes at once; sides of its state's tiles
LINEAR_BLOCK, LINEAR_STEPS = 128, 8  # lanes of a program, steps loaded together


def _launch(
    name: str, programs: int, like: Tensor, *given: Tensor | int | None, **constants
) -> None:
    """Start a kernel on the device of `like`.

    Fusing products and sums is said aloud, because Triton's default is about to change.
    """
    there = torch.cuda.device(like.device) if like.is_cuda else nullcontext()
    with there:
        kernel = getattr(triton_kernels.load(), name)
        kernel[(programs,)](*given, **constants, enable_fp_fusion=True)


# -- what it can do -----------------------------------------------------------------


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable() -> str | None:
    """None when kernels can run here, else a sentence why not. Imports no Triton."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; run ./ci/setup --extra gpu."
    if not (_interpreted() or torch.cuda.is_available()):
        return (
            "There is no CUDA device (TRITON_INTERPRET=1 runs the kernels without one, "
            "slowly)."
        )
    return None


def unsupported(
    u: Tensor, A: Tensor, B: Tensor, discretization: str = "euler"
) -> str | None:
    """None when the kernels compute this, else a sentence that says what they do not.

    u: (batch, length, channels), A: (channels, N), B: (batch, length, groups, N); or
    those of `ssd`: (batch, length, heads, P), (heads,).
    """
    if u.device.type != ("cpu" if _interpreted() else "cuda"):
        return f"The Triton kernel runs on a CUDA device; u is on {u.device}."
    if A.is_complex() or B.is_complex():
        return "The Triton kernel takes real A, B and C; these are complex."
    if discretization != "euler":
        return f"The Triton kernel discretizes by 'euler', not by {discretization!r}."
    for name, x in (("u", u), ("B", B)):
        if x.dtype not in FLOATS:
            return (
                "The Triton kernel takes float32, bfloat16 and float16; "
                f"{name} is {x.dtype}."
            )
    if A.dtype != torch.float32:
        return f"The Triton kernel takes A in float32; it is {A.dtype}."
    most = MOST_IN_HEAD if A.ndim == 1 else MOST_STATES
    if not 1 <= B.shape[-1] <= most:
        return f"The Triton kernel holds 1 to {most} states; these are {B.shape[-1]}."
    return None


# -- selective scan -----------------------------------------------------------------


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

    u, delta, z: (batch, length, channels) float32, bfloat16 or float16; A: (channels,
    N) float32; B, C: (batch, length, groups, N); D, delta_bias: (channels,); dt = delta
    + delta_bias, or its softplus; initial_state: (batch, channels, N); reset: (batch,
    length), True where the state before the step is 0. Returns y like u and the last
    state (float32); differentiable, twice too (slowly, by the reference). Raises
    ImportError without Triton. Source: 2312.00752 (eq. 2).
    """
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return gradients.scan(_SELECTIVE, delta_softplus, reset, given)


def _power(n: int) -> int:
    """The least power of 2 from n on."""
    return 1 << (n - 1).bit_length()


def _shape(channels: int, N: int, in_thread: int) -> dict[str, int]:
    """How a warp's 32 threads hold 512 states: `in_thread` of a channel in each.

    channels: of a group. With few states a thread holds several channels, with many the
    states of a channel go to several lanes.
    """
    states = _power(N)
    of_channel = min(states, in_thread)
    block = max(1, min(128, 32 * IN_THREAD // states, _power(channels)))
    return {"BD": block, "LANES": states // of_channel, "NR": of_channel}


def _ready(given: tuple, reset: Tensor | None) -> tuple[dict, Tensor | None]:
    """Tensors as the kernels read them, by name."""
    t = dict(zip(NAMES, given))
    for name in ("A", "D", "bias", "h0"):
        t[name] = None if t[name] is None else t[name].float()
    t = {name: None if x is None else x.contiguous() for name, x in t.items()}
    return t, None if reset is None else reset.contiguous().view(torch.uint8)


def _forward(softplus, reset, given, keep):
    t, cuts = _ready(given, reset)
    u, (batch, length, d), G, N = t["u"], t["u"].shape, *t["B"].shape[2:]
    y = torch.empty_like(u)
    last = u.new_empty(batch, d, N, dtype=torch.float32)
    chunks = -(-length // EVERY)
    check = last.new_empty(batch, chunks, N, d) if keep else None
    shape = _shape(d // G, N, FORWARD)
    blocks = -(-(d // G) // shape["BD"])
    _launch(
        *("scan_forward", batch * G * blocks, u),
        *t.values(),
        *(cuts, y, last, check, length, d, G, blocks),
        **shape,
        N=N,
        SOFTPLUS=softplus,
        EVERY=EVERY,
        num_warps=1,
    )
    return y, last, check


def _backward(softplus, reset, given, check, gy, glast):
    t, cuts = _ready(given, reset)
    u, (batch, length, d), G, N = t["u"], t["u"].shape, *t["B"].shape[2:]
    shape = _shape(d // G, N, BACKWARD)
    blocks = -(-(d // G) // shape["BD"])
    new = check.new_empty
    per_block, per_row = (blocks, *t["B"].shape), (batch, d)
    out = {
        "u": torch.empty_like(u),
        "delta": torch.empty_like(t["delta"]),
        "A": new(batch, d, N),
        "B": new(per_block),
        "C": new(per_block),
        "D": None if t["D"] is None else new(per_row),
        "z": None if t["z"] is None else torch.empty_like(t["z"]),
        "bias": None if t["bias"] is None else new(per_row),
        "h0": None if t["h0"] is None else new(batch, d, N),
    }
    inputs = [x for name, x in t.items() if name != "h0"]
    glast = None if glast is None else glast.float().contiguous()
    _launch(
        *("scan_backward", batch * G * blocks, u),
        *inputs,
        *(cuts, check, gy.contiguous(), glast),
        *out.values(),
        *(new(batch, EVERY // STEPS, N, d), batch, length, d, G, blocks),
        **shape,
        N=N,
        SOFTPLUS=softplus,
        EVERY=EVERY,
        STEPS=STEPS,
        num_warps=1,
    )
    for name in ("A", "B", "C", "D", "bias"):
        out[name] = None if out[name] is None else out[name].sum(0)
    return [None if x is None else g.to(x.dtype) for x, g in zip(given, out.values())]


_SELECTIVE = gradients.Kernel(reference.selective, _forward, _backward)


# -- Mamba-2 ------------------------------------------------------------------------


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
    last state. The forward is one kernel, in chunks of 32 steps; its matrix products
    keep float32's digits (three TF32 products) unless x is in half precision. The
    backward is not a kernel yet: gradients go through `lib.scan.chunked` in plain
    torch, which is run again for them. Raises ImportError without Triton.
    Source: 2405.21060 (section 6).
    """
    given = (x, delta, A, B, C, D, z, delta_bias, initial_state)
    return gradients.scan(_SSD, delta_softplus, reset, given)


def _ssd_forward(softplus, reset, given, keep):
    t, cuts = _ready(given, reset)
    x, (batch, length, H, P), G, N = t["u"], t["u"].shape, *t["B"].shape[2:]
    if t["D"] is not None:
        t["D"] = t["D"].reshape(H, -1).expand(H, P).contiguous()
    y = torch.empty_like(x)
    last = x.new_empty(batch, H, P, N, dtype=torch.float32)
    block, tile = min(TILE, _tile(P)), min(TILE, _tile(N))
    _launch(
        *("ssd_forward", batch * H * -(-P // block), x),
        *t.values(),
        *(cuts, y, last, length, H, G),
        **{"P": P, "N": N, "SOFTPLUS": softplus, "Q": min(CHUNK, _tile(length))},
        **{"BP": block, "BN": tile, "NR": -(-N // tile)},
        PRECISION="tf32x3" if x.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=1,
    )
    return y, last, None


def _ssd_backward(softplus, reset, given, kept, gy, glast):
    return gradients.by_torch(chunked.ssd, softplus, reset, given, gy, glast)


_SSD = gradients.Kernel(reference.ssd, _ssd_forward, _ssd_backward)


def _tile(n: int) -> int:
    """The side of a matrix for tensor cores: a power of 2, at least 16."""
    return max(16, _power(n))


# -- linear recurrence --------------------------------------------------------------


def linear(
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
) -> Tensor:
    """All states of h_t = a_t h_{t-1} + b_t.

    a, b: (batch, length, ...) float32, of one shape; initial_state: (batch, ...);
    reset: (batch, length) bool. Returns (batch, length, ...); differentiable, twice
    too, because its gradient is this recurrence run backwards. Raises ImportError
    without Triton. Source: 1709.04057.
    """
    shape = b.shape
    a, b = a.reshape(*shape[:2], -1), b.reshape(*shape[:2], -1)
    h0 = None if initial_state is None else initial_state.reshape(shape[0], -1)
    return _Linear.apply(a, b, h0, reset).reshape(shape)


def _launch_linear(name: str, b: Tensor, *tensors: Tensor | None) -> None:
    batch, length, lanes = b.shape
    block = min(LINEAR_BLOCK, max(32, _power(lanes)))
    blocks = -(-lanes // block)
    _launch(
        *(name, batch * blocks, b),
        *(None if x is None else x.contiguous() for x in tensors),
        *(length, lanes, blocks),
        BLOCK=block,
        STEPS=LINEAR_STEPS,
        num_warps=block // 32,
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, h0, reset):
        h = torch.empty_like(b, memory_format=torch.contiguous_format)
        cuts = None if reset is None else reset.contiguous().view(torch.uint8)
        _launch_linear("linear_forward", b, a, b, h0, cuts, h)
        ctx.save_for_backward(a, h0, reset, h)
        return h

    @staticmethod
    def backward(ctx, gh):
        a, h0, reset, h = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *gradients.of_linear(linear, a, h0, reset, h, gh), None
        da, db = torch.empty_like(h), torch.empty_like(h)
        dh0 = None if h0 is None else h.new_empty(h0.shape)
        cuts = None if reset is None else reset.contiguous().view(torch.uint8)
        _launch_linear("linear_backward", h, a, h0, cuts, h, gh, da, db, dh0)
        return da, db, dh0, None
