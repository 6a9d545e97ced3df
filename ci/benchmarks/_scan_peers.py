"""The ways to compute a scan that ./ci/bench scan compares, each behind one interface.

A case is a dictionary of float32 arrays, channel-last: u, delta (b, L, d), A (d, N),
B, C (b, L, N) and w (b, L, d), the gradient of y. A maker takes a case, puts it into
the layout that its method likes best (this is not timed) and returns a `Scan`. What has
a package is called from there; the others follow the published algorithm. Peers are
imported inside functions: most are not in the collection's own environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.scan import selective_scan, ssd

NAMES = ("u", "delta", "A", "B", "C")
BLOCK = 16  # steps that torch.compile sees at once
KEPT = 64  # steps between the states that JAX keeps, with checkpoints
Case = dict[str, np.ndarray]


class Scan(NamedTuple):
    """One method on one case.

    forward: () -> results (y,); both: () -> (y, gradients of u, delta, A, B, C); read:
    results as channel-last arrays.
    """

    forward: Callable[[], tuple]
    both: Callable[[], tuple]
    read: Callable[[tuple], list[np.ndarray]]


def case(b: int, L: int, d: int, N: int = 16, seed: int = 0) -> Case:
    """A case as trained models have it: A near -1 .. -N, steps 0.001 to 0.1."""
    rng = np.random.default_rng(seed)
    step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), d))
    made = {
        "u": rng.standard_normal((b, L, d)),
        "delta": step * np.exp(0.3 * rng.standard_normal((b, L, d))),
        "A": -np.arange(1, N + 1) * np.exp(0.1 * rng.standard_normal((d, N))),
        "B": rng.standard_normal((b, L, N)),
        "C": rng.standard_normal((b, L, N)),
        "w": rng.standard_normal((b, L, d)),
    }
    return {name: x.astype(np.float32) for name, x in made.items()}


def exact(case: Case) -> list[np.ndarray]:
    """y and the five gradients in float64, by the adjoint recurrence itself."""
    u, delta, A, B, C, w = (case[k].astype(np.float64) for k in (*NAMES, "w"))
    L, x = u.shape[1], delta * u
    a = np.exp(delta[..., None] * A)
    h = np.zeros((len(u), L + 1, *A.shape))
    for t in range(L):
        h[:, t + 1] = a[:, t] * h[:, t] + x[:, t, :, None] * B[:, t, None]
    g = np.zeros_like(h)  # of the state after step t, at t
    for t in range(L - 1, -1, -1):
        later = a[:, t + 1] * g[:, t + 1] if t + 1 < L else 0
        g[:, t] = C[:, t, None] * w[:, t, :, None] + later
    h, before, g = h[:, 1:], h[:, :-1], g[:, :-1]
    y = np.einsum("btdn,btn->btd", h, C)
    q, dx = g * a * before, np.einsum("btdn,btn->btd", g, B)
    return [
        y,
        delta * dx,
        u * dx + np.einsum("btdn,dn->btd", q, A),
        np.einsum("btdn,btd->dn", q, delta),
        np.einsum("btdn,btd->btn", g, x),
        np.einsum("btdn,btd->btn", h, w),
    ]


# --- torch ---------------------------------------------------------------------------

Function = Callable[..., Any]


def torch_scan(function: Function, first: bool = False) -> Callable[[Case], Scan]:
    """The maker of a torch function of (u, delta, A, B, C) that autograd derives.

    first: it takes channels, or states, before the length.
    """

    def turned(name: str, x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous() if first and name != "A" else x

    def make(case: Case) -> Scan:
        given = {k: turned(k, torch.from_numpy(x)) for k, x in case.items()}
        w = given.pop("w")
        leaves = [x.clone().requires_grad_() for x in given.values()]

        def forward() -> tuple:
            with torch.no_grad():
                return (function(*leaves),)

        def both() -> tuple:
            y = function(*leaves)
            return y.detach(), *torch.autograd.grad(y, leaves, w)

        def read(results: tuple) -> list[np.ndarray]:
            names = ("y", *NAMES)
            return [turned(k, x).numpy() for k, x in zip(names, results)]

        return Scan(forward, both, read)

    return make


def ours(backend: str) -> Callable[[Case], Scan]:
    """lib.scan, channel-last, by one of its backends."""

    def function(*given: Tensor) -> Tensor:
        return selective_scan(*given, channel_last=True, backend=backend)

    return torch_scan(function)


def mamba_ssm(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """mamba_ssm's reference, as published: every step indexes what was materialised.

    Channels first. Autograd answers each index with zeros of the whole length, so that
    the backward pass is quadratic. Source: 2312.00752, its code.
    """
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    drive = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    h, ys = A.new_zeros(len(u), *A.shape), []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + drive[:, :, t]
        ys.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    return torch.stack(ys, dim=2)


def _terms(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    decay = torch.exp(delta[..., None] * A)
    return decay, (delta * u)[..., None] * B[:, :, None]


def unbind(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The loop that autograd derives in linear time: sequences taken apart at once."""
    decay, drive = _terms(u, delta, A, B)
    h, ys = A.new_zeros(len(u), *A.shape), []
    for a_t, x_t, C_t in zip(decay.unbind(1), drive.unbind(1), C.unbind(1)):
        h = a_t * h + x_t
        ys.append((h @ C_t[..., None])[..., 0])
    return torch.stack(ys, dim=1)


def lean(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The loop that keeps least: decays are computed step by step, too."""
    x = delta * u
    h, ys = A.new_zeros(len(u), *A.shape), []
    for d_t, x_t, B_t, C_t in zip(*(s.unbind(1) for s in (delta, x, B, C))):
        h = torch.exp(d_t[..., None] * A) * h + x_t[..., None] * B_t[:, None]
        ys.append((h @ C_t[..., None])[..., 0])
    return torch.stack(ys, dim=1)


def pscan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """mamba.py's parallel scan (package mambapy), with its own backward."""
    from mambapy.pscan import pscan as scan

    h = scan(*_terms(u, delta, A, B))
    return (h @ C[..., None])[..., 0]


def _join(earlier: tuple, later: tuple) -> tuple:
    return later[0] * earlier[0], later[0] * earlier[1] + later[1]


def associative(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """torch's own associative_scan, the only mode that runs on a CPU."""
    from torch._higher_order_ops import associative_scan

    _, h = associative_scan(_join, _terms(u, delta, A, B), 1, combine_mode="generic")
    return (h @ C[..., None])[..., 0]


def associative_compiled(case: Case) -> Scan:
    """torch's associative_scan, compiled as a whole for this shape."""
    return torch_scan(torch.compile(associative, dynamic=False))(case)


def _block(h: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor):
    ys = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        h = decay * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1))
    return h, torch.stack(ys, dim=1)


def compiled_block(case: Case) -> Scan:
    """A block of 16 steps under torch.compile, called again and again."""
    block = torch.compile(_block, dynamic=False)

    def function(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        # A state that asks for a gradient, like all later ones: compiled once.
        h, ys = torch.zeros(len(u), *A.shape, requires_grad=torch.is_grad_enabled()), []
        for part in zip(*(x.split(BLOCK, dim=1) for x in (u, delta, B, C))):
            h, y = block(h, part[0], part[1], A, part[2], part[3])
            ys.append(y)
        return torch.cat(ys, dim=1)

    return torch_scan(function)(case)


def transformers_slow(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> Tensor:
    """The path transformers takes without its CUDA kernels. Channels first."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    return mamba_selective_scan(u, delta, A, B, C)


def heinsen(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Two prefix sums of complex logarithms. Source: 2311.06281."""
    log_a = (delta[..., None] * A).cumsum(1)
    drive = (delta * u)[..., None] * B[:, :, None]
    log_b = torch.log(torch.complex(drive, torch.zeros_like(drive)))
    log_h = log_a + torch.logcumsumexp(log_b - log_a, dim=1)
    return (torch.exp(log_h).real @ C[..., None])[..., 0]


# --- JAX -----------------------------------------------------------------------------


def _jax_step(h, now, A):
    import jax.numpy as jnp

    d, x, B, C = now
    h = jnp.exp(d[..., None] * A) * h + x[..., None] * B[:, None]
    return h, (h * C[:, None]).sum(-1)


def _jax_loop(u, delta, A, B, C):
    import jax
    import jax.numpy as jnp

    h = jnp.zeros((u.shape[1], *A.shape), u.dtype)
    over = (delta, delta * u, B, C)
    return jax.lax.scan(lambda h, now: _jax_step(h, now, A), h, over)[1]


def _jax_checkpoint(u, delta, A, B, C):
    import jax
    import jax.numpy as jnp

    def part(h, now):
        return jax.lax.scan(lambda h, t: _jax_step(h, t, A), h, now)

    over = (delta, delta * u, B, C)
    over = tuple(x.reshape(-1, min(KEPT, len(x)), *x.shape[1:]) for x in over)
    h = jnp.zeros((u.shape[1], *A.shape), u.dtype)
    return jax.lax.scan(jax.checkpoint(part), h, over)[1].reshape(u.shape)


def _jax_associative(u, delta, A, B, C):
    import jax
    import jax.numpy as jnp

    decay = jnp.exp(delta[..., None] * A)
    drive = (delta * u)[..., None] * B[:, :, None]
    _, h = jax.lax.associative_scan(_join, (decay, drive))
    return (h * C[:, :, None]).sum(-1)


def _jax_scan(function: Function) -> Callable[[Case], Scan]:
    """The maker of a JAX function of time-major arrays; jit, with its gradient."""

    def turned(name: str, x):
        return x if name == "A" else x.swapaxes(0, 1)

    def make(case: Case) -> Scan:
        import jax
        import jax.numpy as jnp

        given = {k: jnp.asarray(np.ascontiguousarray(turned(k, case[k]))) for k in case}
        w = given.pop("w")
        leaves = tuple(given.values())

        def loss(leaves, w):
            y = function(*leaves)
            return (y * w).sum(), y

        run = jax.jit(lambda leaves: function(*leaves))
        derive = jax.jit(jax.value_and_grad(loss, has_aux=True))

        def forward() -> tuple:
            return (run(leaves).block_until_ready(),)

        def both() -> tuple:
            (_, y), grads = jax.block_until_ready(derive(leaves, w))
            return y, *grads

        def read(results: tuple) -> list[np.ndarray]:
            return [np.asarray(turned(k, x)) for k, x in zip(("y", *NAMES), results)]

        return Scan(forward, both, read)

    return make


# --- numba ---------------------------------------------------------------------------

_kernels: dict[bool, tuple[Callable, Callable]] = {}
LANES, CHUNK = 64, 16


def _numba_kernels(parallel: bool) -> tuple[Callable, Callable]:
    """Forward and backward, fused, as one would write them for numba.

    64 channels at a time, so that the innermost loops are vectors; the exponential is a
    polynomial, because numba has no vector library for it.
    """
    if parallel in _kernels:
        return _kernels[parallel]
    from numba import njit, prange

    f32, i32 = np.float32, np.int32
    options = {"fastmath": True, "error_model": "numpy", "boundscheck": False}
    c = [f32(x) for x in (1.3341533e-3, 9.665627e-3, 0.05550474, 0.24022365, 0.6931472)]
    c0, c1, c2, c3, c4 = c
    one, half, low, bias, shift = f32(1), f32(0.5), f32(-126), i32(127), i32(23)

    @njit(inline="always", **options)
    def power(p):  # 2^p
        p = max(p, low)
        n = np.floor(p + half)
        r = p - n
        q = ((((c0 * r + c1) * r + c2) * r + c3) * r + c4) * r + one
        return q * i32((i32(n) + bias) << shift).view(f32)

    @njit(parallel=parallel, **options)
    def forward(u, delta, A, B, C, y, check):
        b, L, d = u.shape
        N = A.shape[0]
        for i in prange(b):
            h, a = np.empty((2, N, LANES), f32)
            acc, x, dt = np.empty((3, LANES), f32)
            for start in range(0, d, LANES):
                h[:] = 0
                a[:] = A[:, start : start + LANES]
                for t in range(L):
                    if len(check) and t % CHUNK == 0:
                        check[i, t // CHUNK, start // LANES] = h
                    for j in range(LANES):
                        dt[j] = delta[i, t, start + j]
                        x[j] = dt[j] * u[i, t, start + j]
                        acc[j] = 0
                    for n in range(N):
                        B_n, C_n = B[i, t, n], C[i, t, n]
                        for j in range(LANES):
                            v = power(dt[j] * a[n, j]) * h[n, j] + x[j] * B_n
                            h[n, j] = v
                            acc[j] += C_n * v
                    for j in range(LANES):
                        y[i, t, start + j] = acc[j]

    @njit(parallel=parallel, **options)
    def backward(u, delta, A, B, C, check, w, du, ddelta, dA, dB, dC):
        b, L, d = u.shape
        N = A.shape[0]
        for i in prange(b):
            g, a, sums = np.empty((3, N, LANES), f32)
            decay = np.empty((CHUNK, N, LANES), f32)
            hs = np.empty((CHUNK + 1, N, LANES), f32)
            x, dt, wt, dx, dd = np.empty((5, LANES), f32)
            for start in range(0, d, LANES):
                g[:] = 0
                sums[:] = 0
                a[:] = A[:, start : start + LANES]
                for chunk in range((L + CHUNK - 1) // CHUNK - 1, -1, -1):
                    t0 = chunk * CHUNK
                    steps = min(CHUNK, L - t0)
                    hs[0] = check[i, chunk, start // LANES]
                    for k in range(steps):
                        for j in range(LANES):
                            dt[j] = delta[i, t0 + k, start + j]
                            x[j] = dt[j] * u[i, t0 + k, start + j]
                        for n in range(N):
                            B_n = B[i, t0 + k, n]
                            for j in range(LANES):
                                e = power(dt[j] * a[n, j])
                                decay[k, n, j] = e
                                hs[k + 1, n, j] = e * hs[k, n, j] + x[j] * B_n
                    for k in range(steps - 1, -1, -1):
                        t = t0 + k
                        for j in range(LANES):
                            dt[j], wt[j] = delta[i, t, start + j], w[i, t, start + j]
                            x[j] = dt[j] * u[i, t, start + j]
                            dx[j] = dd[j] = 0
                        for n in range(N):
                            B_n, C_n, s_B, s_C = B[i, t, n], C[i, t, n], f32(0), f32(0)
                            for j in range(LANES):
                                v = g[n, j] + C_n * wt[j]
                                s_C += wt[j] * hs[k + 1, n, j]
                                s_B += v * x[j]
                                dx[j] += v * B_n
                                v *= decay[k, n, j]
                                g[n, j] = v
                                r = v * hs[k, n, j]
                                sums[n, j] += r * dt[j]
                                dd[j] += r * a[n, j]
                            dB[i, t, n] += s_B
                            dC[i, t, n] += s_C
                        for j in range(LANES):
                            du[i, t, start + j] = dt[j] * dx[j]
                            v = dd[j] * f32(np.log(2))
                            ddelta[i, t, start + j] = v + u[i, t, start + j] * dx[j]
                dA[i, :, start : start + LANES] = sums

    _kernels[parallel] = forward, backward
    return forward, backward


def numba(case: Case) -> Scan:
    """The same fused design in numba; channels must come in 64s."""
    run, derive = _numba_kernels(os.environ.get("NUMBA_NUM_THREADS", "1") != "1")
    u, delta, A, B, C, w = (case[k] for k in (*NAMES, "w"))
    (b, L, d), N = u.shape, A.shape[1]
    scaled = np.ascontiguousarray(A.T * np.float32(np.log2(np.e)))
    none = np.empty((0, 0, 0, 0, 0), np.float32)

    def forward() -> tuple:
        y = np.empty_like(u)
        run(u, delta, scaled, B, C, y, none)
        return (y,)

    def both() -> tuple:
        y = np.empty_like(u)
        check = np.empty((b, -(-L // CHUNK), d // LANES, N, LANES), np.float32)
        run(u, delta, scaled, B, C, y, check)
        du, ddelta, dA = np.empty_like(u), np.empty_like(u), np.empty((b, N, d), "f4")
        dB, dC = np.zeros_like(B), np.zeros_like(C)
        derive(u, delta, scaled, B, C, check, w, du, ddelta, dA, dB, dC)
        return y, du, ddelta, dA.sum(0).T, dB, dC

    return Scan(forward, both, list)


# --- which there are -----------------------------------------------------------------


class Method(NamedTuple):
    """A method, and where it runs.

    make: its maker; needs: a module; linear: False where the backward pass is quadratic
    in the length (it then runs at the shortest only); wide: False where the widest case
    would take minutes to compile; short: True for the shortest case only; compiles:
    its first call at each shape is no measure; tolerance: of its largest value.
    """

    make: Callable[[Case], Scan]
    needs: str = "torch"
    linear: bool = True
    wide: bool = True
    short: bool = False
    compiles: bool = False
    tolerance: float = 1e-4


OURS = "ours: cpu"
METHODS = {
    OURS: Method(ours("cpu")),
    "ours: reference": Method(ours("reference")),
    "ours: associative": Method(ours("associative")),
    "ours: chunked": Method(ours("chunked")),
    "mamba_ssm's reference": Method(torch_scan(mamba_ssm, True), linear=False),
    "transformers' slow path": Method(
        torch_scan(transformers_slow, True), "transformers", linear=False
    ),
    "unbind loop": Method(torch_scan(unbind)),
    "lean loop": Method(torch_scan(lean)),
    "mamba.py's pscan": Method(torch_scan(pscan), "mambapy"),
    "torch associative_scan": Method(torch_scan(associative)),
    "torch associative_scan, compiled": Method(
        associative_compiled, wide=False, short=True, compiles=True
    ),
    "torch.compile, 16 steps": Method(compiled_block, wide=False, compiles=True),
    "JAX scan": Method(_jax_scan(_jax_loop), "jax", compiles=True),
    "JAX scan, checkpoints": Method(_jax_scan(_jax_checkpoint), "jax", compiles=True),
    "JAX associative_scan": Method(
        _jax_scan(_jax_associative), "jax", wide=False, compiles=True
    ),
    "numba": Method(numba, "numba", compiles=True),
    "heinsen": Method(torch_scan(heinsen), short=True, tolerance=1e-2),
}


# --- Mamba-2 -------------------------------------------------------------------------


def ssd_case(b: int, L: int, H: int, P: int, N: int, seed: int = 0) -> Case:
    """x (b, L, H, P), delta (b, L, H), A (H,), B, C (b, L, 1, N) and the gradient w."""
    rng = np.random.default_rng(seed)
    step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), H))
    made = {
        "u": rng.standard_normal((b, L, H, P)),
        "delta": step * np.exp(0.3 * rng.standard_normal((b, L, H))),
        "A": -rng.uniform(1, 16, H),
        "B": rng.standard_normal((b, L, 1, N)),
        "C": rng.standard_normal((b, L, 1, N)),
        "w": rng.standard_normal((b, L, H, P)),
    }
    return {name: x.astype(np.float32) for name, x in made.items()}


def ours_ssd(backend: str, **options: int) -> Callable[[Case], Scan]:
    """lib.scan's ssd by one of its backends."""
    return torch_scan(lambda *given: ssd(*given, backend=backend, **options))


def transformers_ssd(chunk: int) -> Callable[[Case], Scan]:
    """Mamba-2's chunked path of transformers (its default chunk is 256)."""

    def function(*given: Tensor) -> Tensor:
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

        return mamba2_chunk_scan(*given, chunk)

    return torch_scan(function)


def _segment_sum(x: Tensor) -> Tensor:
    T = x.shape[-1]
    x = x[..., None].expand(*x.shape, T)
    lower = torch.ones(T, T, dtype=torch.bool).tril(-1)
    sums = x.masked_fill(~lower, 0).cumsum(-2)
    return sums.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -torch.inf)


def ssd_minimal(chunk: int) -> Callable[[Case], Scan]:
    """The authors' minimal Mamba-2, einsum by einsum. Source: 2405.21060, listing 1."""

    def function(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        heads = x.shape[2]
        B, C = (t.expand(-1, -1, heads, -1) for t in (B, C))
        parts = (x * delta[..., None], A * delta, B, C)
        X, A, B, C = (t.unflatten(1, (-1, chunk)) for t in parts)
        A = A.permute(0, 3, 1, 2)  # (b, h, c, l)
        sums = A.cumsum(-1)
        inside = torch.exp(_segment_sum(A))
        y = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, inside, X)
        to_end = torch.exp(sums[..., -1:] - sums)
        states = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, to_end, X)
        states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
        last = torch.nn.functional.pad(sums[..., -1], (1, 0))
        across = torch.exp(_segment_sum(last))
        states = torch.einsum("bhzc,bchpn->bzhpn", across, states)[:, :-1]
        y = y + torch.einsum("bclhn,bchpn,bhcl->bclhp", C, states, torch.exp(sums))
        return y.flatten(1, 2)

    return torch_scan(function)


SSD = {
    OURS: Method(ours_ssd("cpu")),
    "ours: chunked, Q = 64": Method(ours_ssd("chunked")),
    "ours: chunked, Q = 32": Method(ours_ssd("chunked", chunk=32)),
    "ours: reference": Method(ours_ssd("reference")),
    "transformers, Q = 256": Method(transformers_ssd(256), "transformers"),
    "transformers, Q = 64": Method(transformers_ssd(64), "transformers"),
    "ssd_minimal, Q = 64": Method(ssd_minimal(64)),
    "ssd_minimal, Q = 256": Method(ssd_minimal(256)),
}
