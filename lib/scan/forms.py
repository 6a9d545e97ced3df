"""From what a caller has to what a backend takes: checks, layout, padding, order, type.

A backend sees one form only (see `terms`): channel-last, forward in time, no padding.
Right padding becomes steps of length 0 with zero inputs, which leave the state as it
is; a reversed scan becomes flipped inputs and outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lib.kit.checks import need
from lib.scan import terms

Given = Mapping[str, Tensor | None]
OPTIONAL = ("D", "z", "delta_bias", "initial_state")
HALF = (torch.bfloat16, torch.float16)
NEVER = -1e4  # its softplus is 0 in every precision


# -- checks -------------------------------------------------------------------------


def shaped(name: str, x: Tensor | None, meaning: str, *sizes: int) -> None:
    """Check a shape, with a sentence that says what its dimensions mean."""
    if x is not None and x.shape != sizes:
        given = tuple(x.shape)
        need(False, f"{name} has shape {given}; expected {meaning} = {sizes}.")


def _tensor(name: str, x: object, like: Tensor, complex_too: bool) -> None:
    """Check one argument's kind and device; sentences are only made where needed."""
    if not isinstance(x, Tensor):
        kind = "missing" if x is None else f"a {type(x).__name__}"
        need(False, f"{name} is {kind}; give a tensor.", TypeError)
    if isinstance(like, Tensor) and x.device != like.device:
        need(False, f"{name} is on {x.device}, not on {like.device}; move it there.")
    if not (x.is_floating_point() or (x.is_complex() and complex_too)):
        also = " or a complex one" if complex_too else ""
        need(
            False,
            f"{name} has type {x.dtype}; give a real floating point tensor{also}.",
        )


def tensors(given: Given, complex_too: Sequence[str]) -> tuple[torch.dtype, bool]:
    """Check kinds, devices and precisions; the real type to compute in, and if complex.

    The first tensor decides. float64 stands alone; half precisions and float32 mix.
    """
    like = next(iter(given.values()))
    there = {n: x for n, x in given.items() if x is not None or n not in OPTIONAL}
    for name, x in there.items():
        _tensor(name, x, like, name in complex_too)
    double = [x.dtype in (torch.float64, torch.complex128) for x in there.values()]
    if any(double) and not all(double):
        types = ", ".join(f"{name} {x.dtype}" for name, x in there.items())
        need(False, f"Precisions are mixed: {types}. Convert all to float64 or none.")
    real = torch.float64 if all(double) else torch.float32
    return real, any(x.is_complex() for x in there.values())


def finite(given: Given) -> None:
    """Raise ValueError for the first tensor that holds NaN or an infinite number."""
    for name, x in given.items():
        bad = 0 if x is None else int((~torch.isfinite(x)).sum())
        need(
            bad == 0,
            f"{name} holds {bad} values that are NaN or infinite; find where they come "
            "from (without check=True they spread to all that depends on them).",
        )


def _grouped(name: str, B: Tensor, sizes: tuple, channel_last: bool) -> Tensor:
    """A variable B or C as (batch, length, groups, N), a constant one as it is."""
    batch, length, channels, N = sizes
    if B.ndim == 2:
        shaped(name, B, "a constant (channels, N)", channels, N)
    elif B.ndim == 3 and channel_last:
        shaped(name, B, "(batch, length, N)", batch, length, N)
    elif B.ndim == 3:
        shaped(name, B, "(batch, N, length)", batch, N, length)
    else:
        need(
            B.ndim == 4,
            f"{name} has shape {tuple(B.shape)}; give it constant (channels, N), "
            "variable in 3 dimensions or grouped in 4.",
        )
        G = B.shape[2 if channel_last else 1]
        need(
            G > 0 and channels % G == 0,
            f"{name} has {G} groups, which do not divide {channels} channels.",
        )
        if channel_last:
            shaped(name, B, "(batch, length, groups, N)", batch, length, G, N)
        else:
            shaped(name, B, "(batch, groups, N, length)", batch, G, N, length)
    if B.ndim == 2:
        return B
    B = B if channel_last else B.movedim(-1, 1)
    return B if B.ndim == 4 else B[:, :, None]


# -- which steps, and in which order ------------------------------------------------


class Steps:
    """The steps of each row that count, in the order in which they are taken.

    Called with a (batch, length, ...) tensor: padding replaced, order reversed if so
    asked. `back` undoes the order and puts 0 into the padding.
    """

    def __init__(
        self, like: Tensor, length: int, lengths: object = None, reverse: bool = False
    ) -> None:
        self.reverse, self.valid, self.index = reverse, None, None
        if lengths is None:
            return
        ends = _lengths(like, length, lengths)[:, None]
        at = torch.arange(length, device=like.device)
        self.valid = at < ends  # (batch, length)
        if reverse:  # each row within its own length; this is its own inverse
            self.index = torch.where(self.valid, ends - 1 - at, at)

    def __call__(self, x: Tensor, padding: float | Tensor = 0.0) -> Tensor:
        return self._turned(self._masked(x, padding))

    def back(self, y: Tensor) -> Tensor:
        return self._turned(self._masked(y, 0.0))

    def _masked(self, x: Tensor, padding: float | Tensor) -> Tensor:
        if self.valid is None:
            return x
        # `where` also keeps a NaN in the padding out of the gradients.
        padding = torch.as_tensor(padding, dtype=x.dtype, device=x.device)
        return torch.where(terms.trailing(self.valid, x), x, padding)

    def _turned(self, x: Tensor) -> Tensor:
        if self.index is not None:
            return x.gather(1, terms.trailing(self.index, x).expand_as(x))
        return x.flip(1) if self.reverse else x


def _lengths(like: Tensor, length: int, lengths: object) -> Tensor:
    """Lengths of rows as a checked tensor (batch,)."""
    ends = torch.as_tensor(lengths)
    need(
        not (ends.is_floating_point() or ends.is_complex() or ends.dtype == torch.bool),
        f"lengths has type {ends.dtype}; give whole numbers.",
    )
    need(
        ends.device.type == "cpu" or ends.device == like.device,
        f"lengths is on {ends.device}, the sequences on {like.device}; move it.",
    )
    shaped("lengths", ends, "(batch,)", like.shape[0])
    need(
        ends.numel() == 0 or (int(ends.min()) >= 0 and int(ends.max()) <= length),
        f"lengths are {ends.tolist()[:8]}; give numbers from 0 to {length}, the length "
        "of the padded sequences.",
    )
    return ends.to(like.device)


def _reset(reset: Tensor | None, like: Tensor, batch: int, length: int) -> None:
    if reset is None:
        return
    need(
        isinstance(reset, Tensor) and reset.dtype == torch.bool,
        "reset is not a boolean tensor; give True where a sequence starts.",
    )
    shaped("reset", reset, "(batch, length)", batch, length)
    need(
        reset.device == like.device,
        f"reset is on {reset.device}, the sequences on {like.device}; move it.",
    )


def _delta(
    delta: Tensor, bias: Tensor | None, softplus: bool, steps: Steps
) -> tuple[Tensor, Tensor | None]:
    """delta with steps of 0 in the padding, and the bias still to be added."""
    if steps.valid is None:
        return steps(delta), bias
    if softplus:
        return steps(delta, NEVER if bias is None else NEVER - bias.detach()), bias
    return steps(delta if bias is None else delta + bias), None


# -- the two forms ------------------------------------------------------------------


def _one_type(real: torch.dtype, u: Tensor, *others: Tensor | None) -> list:
    """u, delta and z in one type: bfloat16 if all are, else the type to compute in."""
    every = [x for x in (u, *others) if x is not None]
    half = all(x.dtype == torch.bfloat16 for x in every)
    to = torch.bfloat16 if half else real
    return [None if x is None else x.to(to) for x in (u, *others)]


def _to(dtype: torch.dtype, *every: Tensor | None) -> list:
    return [None if x is None else x.to(dtype) for x in every]


def selective(
    given: Given,
    softplus: bool,
    lengths: object,
    reset: Tensor | None,
    reverse: bool,
    channel_last: bool,
    check: bool,
) -> tuple[tuple, Callable[[Tensor], Tensor]]:
    """The eleven core arguments, and what turns the core's y into the caller's.

    given: the tensors of `api.selective_scan` by name.
    """
    real, is_complex = tensors(given, ("A", "B", "C", "initial_state"))
    u, delta, A, B, C, D, z, bias, h0 = given.values()
    batch, length, channels, N = sizes = _sizes(u, A, channel_last)
    form = "(batch, length, channels)" if channel_last else "(batch, channels, length)"
    for name in ("delta", "z"):
        shaped(name, given[name], f"{form}, as u,", *u.shape)
    for name in ("D", "delta_bias"):
        shaped(name, given[name], "(channels,)", channels)
    shaped("initial_state", h0, "(batch, channels, N)", batch, channels, N)
    need(
        A.is_complex() or not is_complex,
        "A is real, but B, C or initial_state is complex; make A complex too.",
    )
    B, C = (_grouped(n, x, sizes, channel_last) for n, x in (("B", B), ("C", C)))
    _reset(reset, u, batch, length)
    steps = Steps(u, length, lengths, reverse)
    u_type = u.dtype
    if not channel_last:
        u, delta, z = (None if x is None else x.mT for x in (u, delta, z))
    delta, bias = _delta(delta, bias, softplus, steps)
    u, z = steps(u), None if z is None else steps(z)
    B, C = (x if x.ndim == 2 else steps(x) for x in (B, C))
    if check:
        finite(dict(zip(given, (u, delta, A, B, C, D, z, bias, h0))))
    u, delta, z = _one_type(real, u, delta, z)
    A, B, C, h0 = _to(real.to_complex() if is_complex else real, A, B, C, h0)
    D, bias = _to(real, D, bias)
    B, C = (x.expand(batch, length, -1, -1) if x.ndim == 2 else x for x in (B, C))
    reset = None if reset is None else steps(reset, False)

    def finish(y: Tensor) -> Tensor:
        y = steps.back(y).to(u_type)
        return y if channel_last else y.mT

    return (u, delta, A, B, C, D, z, bias, softplus, h0, reset), finish


def _sizes(u: Tensor, A: Tensor, channel_last: bool) -> tuple[int, int, int, int]:
    """batch, length, channels, N of a selective scan."""
    form = "(batch, length, channels)" if channel_last else "(batch, channels, length)"
    need(u.ndim == 3, f"u has shape {tuple(u.shape)}; expected {form}.")
    batch, length, channels = u.shape if channel_last else u.mT.shape
    need(
        A.ndim == 2 and A.shape[0] == channels,
        f"A has shape {tuple(A.shape)}; expected (channels, N) = ({channels}, N), as "
        f"u has shape {tuple(u.shape)} = {form}.",
    )
    return batch, length, channels, A.shape[1]


def ssd(
    given: Given,
    softplus: bool,
    lengths: object,
    reset: Tensor | None,
    check: bool,
) -> tuple[tuple, Callable[[Tensor], Tensor]]:
    """The eleven core arguments of an SSD, and what finishes its y.

    given: the tensors of `api.ssd` by name.
    """
    real, _ = tensors(given, ())
    x, delta, A, B, C, D, z, bias, h0 = given.values()
    batch, length, heads, width, N = _ssd_sizes(x, B)
    shaped("delta", delta, "(batch, length, heads)", batch, length, heads)
    shaped("z", z, "(batch, length, heads, P), as x,", *x.shape)
    shaped("C", C, "(batch, length, groups, N), as B,", *B.shape)
    shaped("A", A, "(heads,)", heads)
    shaped("delta_bias", bias, "(heads,)", heads)
    shaped("initial_state", h0, "(batch, heads, P, N)", batch, heads, width, N)
    if D is not None and D.ndim == 2:
        shaped("D", D, "(heads, P)", heads, width)
    else:
        shaped("D", D, "(heads,)", heads)
    _reset(reset, x, batch, length)
    steps = Steps(x, length, lengths)
    x_type = x.dtype
    delta, bias = _delta(delta, bias, softplus, steps)
    x, B, C = steps(x), steps(B), steps(C)
    z = None if z is None else steps(z)
    if check:
        finite(dict(zip(given, (x, delta, A, B, C, D, z, bias, h0))))
    x, delta, z = _one_type(real, x, delta, z)
    A, B, C, D, bias, h0 = _to(real, A, B, C, D, bias, h0)
    reset = None if reset is None else steps(reset, False)
    core = (x, delta, A, B, C, D, z, bias, softplus, h0, reset)
    return core, lambda y: steps.back(y).to(x_type)


def _ssd_sizes(x: Tensor, B: Tensor) -> tuple[int, int, int, int, int]:
    """batch, length, heads, P, N of an SSD."""
    need(
        x.ndim == 4,
        f"x has shape {tuple(x.shape)}; expected (batch, length, heads, P).",
    )
    batch, length, heads, width = x.shape
    need(
        B.ndim == 4 and B.shape[:2] == x.shape[:2],
        f"B has shape {tuple(B.shape)}; expected (batch, length, groups, N) = "
        f"({batch}, {length}, groups, N).",
    )
    need(
        B.shape[2] > 0 and heads % B.shape[2] == 0,
        f"B has {B.shape[2]} groups, which do not divide {heads} heads.",
    )
    return batch, length, heads, width, B.shape[3]


def linear(
    given: Given, reset: Tensor | None, reverse: bool, check: bool
) -> tuple[tuple, Callable[[Tensor], Tensor]]:
    """a, b, h0, reset of a linear recurrence, and what finishes its states."""
    real, is_complex = tensors(given, ("a", "b", "initial_state"))
    a, b, h0 = given.values()
    need(
        b.ndim >= 2,
        f"b has shape {tuple(b.shape)}; expected (batch, length, ...).",
    )
    need(
        a.ndim == b.ndim
        and a.shape[:2] == b.shape[:2]
        and all(m in (1, n) for m, n in zip(a.shape, b.shape)),
        f"a has shape {tuple(a.shape)}; expected that of b, {tuple(b.shape)}, where "
        "dimensions after the second may be 1.",
    )
    state = (b.shape[0], *b.shape[2:])
    shaped("initial_state", h0, "that of b without its length", *state)
    _reset(reset, b, *b.shape[:2])
    if check:
        finite(given)
    steps = Steps(b, b.shape[1], None, reverse)
    out = torch.promote_types(a.dtype, b.dtype)
    a, b, h0 = _to(real.to_complex() if is_complex else real, a, b, h0)
    out = out if out in HALF and not is_complex else a.dtype
    reset = None if reset is None else steps(reset)
    return (steps(a), steps(b), h0, reset), lambda h: steps.back(h).to(out)


# -- for the fused kernels ----------------------------------------------------------


def flat(core: tuple) -> tuple:
    """Arguments of a linear scan as (batch, length, channels) and (batch, channels)."""
    a, b, h0, reset = core
    channels = math.prod(b.shape[2:])
    h0 = None if h0 is None else h0.reshape(b.shape[0], channels)
    a, b = (x.reshape(*b.shape[:2], channels) for x in (a.expand(b.shape), b))
    return a, b, h0, reset


def contiguous(core: tuple) -> list:
    """Core arguments as kernels want them; B and C with equally many groups."""
    core = list(core)
    if len(core) == 11:  # not those of a linear scan
        groups = math.lcm(core[3].shape[2], core[4].shape[2])
        core[3:5] = (terms.per_channel(x, groups) for x in core[3:5])
    return [x.contiguous() if isinstance(x, Tensor) else x for x in core]
