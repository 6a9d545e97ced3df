"""Random cases for lib.scan, an independent float64 oracle, and how to compare.

A case is a dictionary with the eleven arguments of a backend's `selective` (or `ssd`),
in that order, so that `backend.selective(*case.values())` runs it. The oracles are
explicit numpy loops that share no code with lib.scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

DOUBLE = torch.float64
REAL_IN = ("u", "x", "delta", "z", "B", "C")  # what may be in half precision


def _log_uniform(g: np.random.Generator, low: float, high: float, shape: tuple):
    return np.exp(g.uniform(math.log(low), math.log(high), shape))


def _raw(delta: np.ndarray, softplus: bool) -> np.ndarray:
    """What gives `delta` once the softplus is applied."""
    return delta + np.log(-np.expm1(-delta)) if softplus else delta


def _resets(g: np.random.Generator, batch: int, length: int) -> np.ndarray:
    return g.random((batch, length)) < 0.2


def selective_case(
    batch: int = 2,
    length: int = 13,
    channels: int = 5,
    states: int = 3,
    groups: int = 1,
    seed: int = 0,
    *,
    delta: tuple[float, float] = (1e-3, 1e-1),
    decay: tuple[float, float] = (1.0, 16.0),
    softplus: bool = False,
    complex_A: bool = False,
    extras: bool = True,
    reset: bool = False,
    dtype: torch.dtype = DOUBLE,
) -> dict:
    """Arguments of `selective`, drawn at random.

    delta, decay: ranges of the steps and of -Re A (log-uniform); extras: also D, z,
    delta_bias and initial_state; reset: packed sequences; dtype: of u, delta, z, B, C
    (A, D, delta_bias and the state are float32 where that is a half precision).
    """
    g = np.random.default_rng(seed)
    draw = g.standard_normal
    bias = draw(channels) / 4
    raw = _raw(_log_uniform(g, *delta, (batch, length, channels)), softplus)
    A = -_log_uniform(g, *decay, (channels, states))
    B, C = (draw((batch, length, groups, states)) for _ in "BC")
    h0 = draw((batch, channels, states))
    if complex_A:
        A = A + 1j * draw(A.shape) * 8
        B, C, h0 = (x + 1j * draw(x.shape) for x in (B, C, h0))
    case = {
        "u": draw((batch, length, channels)),
        "delta": raw - bias if extras else raw,
        "A": A,
        "B": B,
        "C": C,
        "D": draw(channels) if extras else None,
        "z": draw((batch, length, channels)) if extras else None,
        "delta_bias": bias if extras else None,
        "delta_softplus": softplus,
        "initial_state": h0 if extras else None,
        "reset": _resets(g, batch, length) if reset else None,
    }
    return cast(case, dtype)


def ssd_case(
    batch: int = 2,
    length: int = 13,
    heads: int = 4,
    width: int = 3,
    states: int = 5,
    groups: int = 2,
    seed: int = 0,
    *,
    delta: tuple[float, float] = (1e-3, 1e-1),
    decay: tuple[float, float] = (1.0, 16.0),
    softplus: bool = False,
    extras: bool = True,
    wide_D: bool = False,
    reset: bool = False,
    dtype: torch.dtype = DOUBLE,
) -> dict:
    """Arguments of `ssd`, drawn at random; wide_D: D is (heads, width)."""
    g = np.random.default_rng(seed)
    draw = g.standard_normal
    bias = draw(heads) / 4
    raw = _raw(_log_uniform(g, *delta, (batch, length, heads)), softplus)
    shape = (batch, length, heads, width)
    case = {
        "x": draw(shape),
        "delta": raw - bias if extras else raw,
        "A": -_log_uniform(g, *decay, (heads,)),
        "B": draw((batch, length, groups, states)),
        "C": draw((batch, length, groups, states)),
        "D": draw((heads, width) if wide_D else heads) if extras else None,
        "z": draw(shape) if extras else None,
        "delta_bias": bias if extras else None,
        "delta_softplus": softplus,
        "initial_state": draw((batch, heads, width, states)) if extras else None,
        "reset": _resets(g, batch, length) if reset else None,
    }
    return cast(case, dtype)


def cast(case: Mapping, dtype: torch.dtype) -> dict:
    """The case as tensors of a precision; half precisions keep parameters float32."""

    def one(name: str, x):
        if x is None or isinstance(x, bool):
            return x
        x = torch.as_tensor(x)
        if x.dtype == torch.bool:
            return x
        half = dtype in (torch.bfloat16, torch.float16)
        real = torch.float32 if half and name not in REAL_IN else dtype
        if x.is_complex():
            return x.to(torch.complex64 if half else dtype.to_complex())
        return x.to(real)

    return {name: one(name, x) for name, x in case.items()}


def wide(case: Mapping) -> dict:
    """The same values in float64 (complex128), for the oracle."""
    return cast(case, DOUBLE)


# -- oracles ------------------------------------------------------------------------


def _numpy(case: Mapping) -> dict:
    return {
        name: x.detach().numpy() if isinstance(x, Tensor) else x
        for name, x in wide(case).items()
    }


def _gain(delta: np.ndarray, A: np.ndarray, rule: str) -> np.ndarray:
    z = delta * A
    if rule == "euler":
        return delta + 0 * z
    with np.errstate(all="ignore"):
        return np.where(z == 0, delta + 0 * z, np.expm1(z) / np.where(A == 0, 1, A))


def _order(length: int, row: int, lengths, reverse: bool) -> list[int]:
    order = list(range(length if lengths is None else int(lengths[row])))
    return order[::-1] if reverse else order


def _silu(z: np.ndarray) -> np.ndarray:
    return z / (1 + np.exp(-z))


def selective_oracle(
    case: Mapping, rule: str = "euler", lengths=None, reverse: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """y (batch, length, channels) and the last state, step by step in float64."""
    k = _numpy(case)
    batch, L, d = k["u"].shape
    N = k["A"].shape[1]
    y = np.zeros((batch, L, d))
    last = np.zeros((batch, d, N), k["A"].dtype)
    for b in range(batch):
        h = last[b] if k["initial_state"] is None else k["initial_state"][b]
        for t in _order(L, b, lengths, reverse):
            delta = k["delta"][b, t] + (
                0 if k["delta_bias"] is None else k["delta_bias"]
            )
            delta = np.logaddexp(0, delta) if k["delta_softplus"] else delta
            delta, u = delta[:, None], k["u"][b, t]
            B, C = (np.repeat(k[n][b, t], d // k[n].shape[2], axis=0) for n in "BC")
            if k["reset"] is not None and k["reset"][b, t]:
                h = np.zeros_like(h)
            h = np.exp(delta * k["A"]) * h
            h = h + _gain(delta, k["A"], rule) * B * u[:, None]
            out = (C * h).sum(-1)
            out = 2 * out.real if np.iscomplexobj(out) else out
            out = out if k["D"] is None else out + k["D"] * u
            y[b, t] = out if k["z"] is None else out * _silu(k["z"][b, t])
        last[b] = h
    return y, last


def ssd_oracle(case: Mapping, lengths=None) -> tuple[np.ndarray, np.ndarray]:
    """y (batch, length, heads, P) and the state (batch, heads, P, N) in float64."""
    k = _numpy(case)
    batch, L, H, P = k["x"].shape
    y = np.zeros((batch, L, H, P))
    last = np.zeros((batch, H, P, k["B"].shape[3]))
    for b in range(batch):
        h = last[b] if k["initial_state"] is None else k["initial_state"][b]
        for t in _order(L, b, lengths, False):
            delta = k["delta"][b, t] + (
                0 if k["delta_bias"] is None else k["delta_bias"]
            )
            delta = np.logaddexp(0, delta) if k["delta_softplus"] else delta
            B, C = (np.repeat(k[n][b, t], H // k[n].shape[2], axis=0) for n in "BC")
            if k["reset"] is not None and k["reset"][b, t]:
                h = np.zeros_like(h)
            x = k["x"][b, t]
            h = np.exp(delta * k["A"])[:, None, None] * h
            h = h + (delta[:, None] * x)[..., None] * B[:, None]
            out = (h * C[:, None]).sum(-1)
            if k["D"] is not None:
                out = out + k["D"].reshape(H, -1) * x
            y[b, t] = out if k["z"] is None else out * _silu(k["z"][b, t])
        last[b] = h
    return y, last


def linear_oracle(a, b, h0=None, reset=None, reverse: bool = False) -> np.ndarray:
    """All states of h_t = a_t h_{t-1} + b_t, step by step."""
    a, b = np.broadcast_arrays(np.asarray(a), np.asarray(b))
    out = np.zeros(b.shape, np.result_type(a, b, 0.0))
    for row in range(b.shape[0]):
        h = 0.0 if h0 is None else np.asarray(h0)[row]
        for t in _order(b.shape[1], row, None, reverse):
            h = 0.0 if reset is not None and bool(reset[row, t]) else h
            h = a[row, t] * h + b[row, t]
            out[row, t] = h
    return out


# -- comparing ----------------------------------------------------------------------


def gradients(run: Callable[..., tuple], case: Mapping, seed: int = 0) -> dict:
    """y, last, and the gradient of a fixed random functional of both by each argument.

    run: takes the case's arguments by position, returns (y, last).
    """
    leaves = {
        name: x.detach().clone().requires_grad_(x.dtype != torch.bool)
        if isinstance(x, Tensor)
        else x
        for name, x in case.items()
    }
    y, last = run(*leaves.values())
    g = np.random.default_rng(seed)
    loss = 0.0
    for out in (y, last):
        weight = torch.from_numpy(g.standard_normal(out.shape)).to(out.real.dtype)
        loss = loss + (out.real * weight).sum()
        if out.is_complex():
            loss = loss + (out.imag * weight.flip(-1)).sum()
    loss.backward()
    grads = {
        f"d{name}": torch.zeros_like(x) if x.grad is None else x.grad
        for name, x in leaves.items()
        if isinstance(x, Tensor) and x.requires_grad
    }
    return {"y": y.detach(), "last": last.detach()} | grads


def relative(got, want) -> float:
    """Largest absolute difference over the largest wanted magnitude."""
    got, want = (
        x.detach().resolve_conj().to("cpu").numpy()
        if isinstance(x, Tensor) and x.dtype != torch.bfloat16
        else x.detach().double().to("cpu").numpy()
        if isinstance(x, Tensor)
        else np.asarray(x)
        for x in (got, want)
    )
    assert got.shape == want.shape, (got.shape, want.shape)
    if want.size == 0:
        return 0.0
    top = float(np.abs(want).max())
    error = float(np.abs(got - want).max())
    return error / top if top else error


def agree(got: Mapping, want: Mapping, tol: float) -> None:
    """Check what `gradients` returned, entry by entry, by `relative`."""
    assert got.keys() == want.keys()
    for name in want:
        error = relative(got[name], want[name])
        assert error <= tol, f"{name} differs by {error:.3g} > {tol:.3g}"
