"""The public calls: one recurrence, h_t = a_t h_{t-1} + b_t, in three forms.

`forms` brings every call into the one form that backends take, `dispatch` chooses the
backend. All backends give the same numbers to rounding, and all gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib.kit.checks import choice, count, need
from lib.scan import chunked, dispatch, forms
from lib.scan.terms import RULES


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    discretization: str = "euler",
    channel_last: bool = False,
    chunk: int | None = None,
    check: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba's selective scan: h = e^(delta A) h + delta B u, y = C h + D u, gated by z.

    u, delta, z: (batch, channels, length), or (batch, length, channels) with
    channel_last; A: (channels, N), real or complex (then y = 2 Re(C h)); B, C: constant
    (channels, N), variable (batch, N, length), grouped (batch, groups, N, length), or
    with channel_last (batch, length, N), (batch, length, groups, N); D, delta_bias:
    (channels,); delta_softplus: softplus(delta + delta_bias) is the step.
    initial_state: (batch, channels, N). lengths: (batch,), rows are padded on the
    right: the padding, NaN or not, changes neither states nor gradients, and y is 0
    there; the last state is that at each row's end. reset: (batch, length), True where
    a packed sequence starts: the state before that step is 0 (at step 0 it discards the
    initial state). reverse: exactly flip, scan, flip (rows within their lengths), so
    that a reset then marks the last step, in reading order, of a packed sequence.
    discretization: "euler" as above, or "zoh": (e^(delta A) - 1) / A B u. chunk: steps
    a chunk, for the backend "chunked". check: raise for NaN and infinite inputs, which
    else spread to the outputs that depend on them. backend: see `backend_info`.

    Returns y in u's type and layout, with return_last_state also the state (batch,
    channels, N); states and sums are float32 for half precisions. Raises ValueError for
    shapes, types, devices, unknown words and a named backend that cannot serve, and
    TypeError for what is not a tensor. Source: 2312.00752, Algorithm 2.
    """
    choice("The discretization", discretization, RULES)
    if chunk is not None:
        count("chunk", chunk)
    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z}
    given |= {"delta_bias": delta_bias, "initial_state": initial_state}
    core, finish = forms.selective(
        given, delta_softplus, lengths, reset, reverse, channel_last, check
    )
    options = {} if discretization == "euler" else {"discretization": discretization}
    name = dispatch.pick(backend, "selective", core, discretization)
    if name == "chunked" and chunk is not None:
        options["chunk"] = chunk
    y, last = _run(name, "selective", core, options)
    return (finish(y), last) if return_last_state else finish(y)


def linear_scan(
    a: Tensor,
    b: Tensor,
    *,
    initial_state: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    check: bool = False,
    backend: str = "auto",
) -> Tensor:
    """All states of h_t = a_t h_{t-1} + b_t.

    a, b: (batch, length, ...), real or complex; dimensions of a after the second may
    be 1. initial_state: (batch, ...); reset, reverse, check, backend: see
    `selective_scan`. Returns (batch, length, ...) in the wider of the two types. Raises
    as `selective_scan`. Source: 1709.04057, 2208.04933.
    """
    given = {"a": a, "b": b, "initial_state": initial_state}
    core, finish = forms.linear(given, reset, reverse, check)
    name = dispatch.pick(backend, "linear", core)
    shape = core[1].shape
    core = forms.flat(core) if name in dispatch.FUSED else core
    return finish(_run(name, "linear", core).reshape(shape))


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
    *,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    chunk: int = chunked.CHUNK,
    check: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba-2's scan: one decay a head, h = e^(delta A) h + delta x B^T, y = h C + D x.

    x, z: (batch, length, heads, P); delta: (batch, length, heads); A, delta_bias:
    (heads,); B, C: (batch, length, groups, N), groups dividing heads; D: (heads,) or
    (heads, P); initial_state: (batch, heads, P, N); chunk: steps a matrix product, for
    the backend "chunked" (where a NaN spreads over its chunk). The others: see
    `selective_scan`. Returns y in x's type, with return_last_state also the state
    (batch, heads, P, N). Raises as `selective_scan`. Source: 2405.21060, section 6.
    """
    count("chunk", chunk)
    given = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z}
    given |= {"delta_bias": delta_bias, "initial_state": initial_state}
    core, finish = forms.ssd(given, delta_softplus, lengths, reset, check)
    name = dispatch.pick(backend, "ssd", core)
    options = {"chunk": chunk} if name == "chunked" else {}
    y, last = _run(name, "ssd", core, options)
    return (finish(y), last) if return_last_state else finish(y)


def step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    discretization: str = "euler",
) -> tuple[Tensor, Tensor]:
    """One token of `selective_scan`, for generation.

    state: (batch, channels, N); u, delta, z: (batch, channels); A: (channels, N); B, C:
    (batch, N) or (batch, groups, N) (constants: as many groups as channels); D,
    delta_bias: (channels,). Returns y (batch, channels) and the new state; the given
    one is left as it is. Raises as `selective_scan`. Source: 2312.00752.
    """
    time = {"u": (u, 2), "delta": (delta, 2), "z": (z, 2), "B": (B, 5), "C": (C, 5)}
    u, delta, z, B, C = (_one_step(name, x, n) for name, (x, n) in time.items())
    more = {"initial_state": state, "discretization": discretization}
    y, state = selective_scan(
        *(u, delta, A, B, C, D, z, delta_bias, delta_softplus),
        **more,
        return_last_state=True,
        channel_last=True,
        backend="reference",  # one step has nothing to fuse
    )
    return y[:, 0], state


def ssd_step(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """One token of `ssd`, for generation.

    state: (batch, heads, P, N); x, z: (batch, heads, P); delta: (batch, heads); A,
    delta_bias: (heads,); B, C: (batch, groups, N); D: (heads,) or (heads, P). Returns y
    (batch, heads, P) and the new state. Raises as `ssd`. Source: 2405.21060.
    """
    time = {"x": (x, 3), "delta": (delta, 2), "z": (z, 3), "B": (B, 3), "C": (C, 3)}
    x, delta, z, B, C = (_one_step(name, t, n) for name, (t, n) in time.items())
    y, state = ssd(
        *(x, delta, A, B, C, D, z, delta_bias, delta_softplus),
        initial_state=state,
        return_last_state=True,
        backend="reference",
    )
    return y[:, 0], state


def _one_step(name: str, x: Tensor | None, ndim: int) -> Tensor | None:
    """(batch, ...) as (batch, 1, ...): a sequence of one step."""
    known = (2, 3) if ndim == 5 else (ndim,)
    need(
        x is None or (isinstance(x, Tensor) and x.ndim in known),
        f"{name} is {_kind(x)}; one step of it has "
        f"{' or '.join(map(str, known))} dimensions, (batch, ...) without a length.",
    )
    return None if x is None else x.unsqueeze(1)


def _kind(x: object) -> str:
    return f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x)}"


def _run(name: str, call: str, core: tuple, options: dict | None = None):
    """A backend's function on core arguments, in their own precision."""
    if any(x is not None and x.numel() == 0 for x in core[:3]):
        name, options = "reference", {}  # no steps, rows, channels: nothing to gain
    function: Callable = getattr(dispatch.module(name), call)
    if name in dispatch.FUSED:
        core = forms.contiguous(core)
    with torch.autocast(core[0].device.type, enabled=False):
        return function(*core, **(options or {}))
