"""The Triton kernels: what one program computes. `lib.scan.gpu` launches them.

The selective scan walks through time with its states in registers. A program is one
warp and holds 16 states a thread: a tuple of NR tiles (BD channels, LANES states),
where tile j holds the states j LANES, j LANES + 1, ... The states that one thread holds
cost no shuffle to add up; those of a channel that lie on neighbouring lanes (LANES)
cost log2(LANES), which the backward gladly pays, since its sums over channels, dB and
dC, become as much shorter. Channels of a program share their B and C.

Mamba-2 takes a chunk of Q steps at once as a (Q, Q) matrix for the tensor cores; a
program is one head, or a part of its channels, and hands its state on from chunk to
chunk.

Nothing is added atomically: what other programs must add up is written out and summed
by torch, in one order. Triton is imported by `load`, not with this module.
Sources: 2312.00752 (Algorithm 2, recomputation), 2405.21060 (section 6); own design.
"""

# ruff: noqa: RUF005 (Triton does not read `(*tuple, item)`)

from __future__ import annotations

from types import SimpleNamespace

tl = None  # triton.language, once `load` has run
_terms, _kernels = [], []
LOG2E = 1.4426950408889634  # exp2 is one instruction, exp is two
LN2 = 0.6931471805599453


def term(function):
    """Marks what kernels call."""
    _terms.append(function.__name__)
    return function


def kernel(function):
    """Marks what is launched."""
    _kernels.append(function.__name__)
    return function


def load() -> SimpleNamespace:
    """The kernels by name. Imports triton; raises ImportError where it is missing."""
    import triton

    here = globals()
    if here["tl"] is None:
        for name in ("LOG2E", "LN2"):
            here[name] = triton.language.constexpr(here[name])
        # The interpreter takes milliseconds for a call of one jitted function by
        # another; a plain function does as well.
        plain = _terms if triton.knobs.runtime.interpret else []
        for name in (*_terms, *_kernels):
            here[name] = here[name] if name in plain else triton.jit(here[name])
        here["tl"] = triton.language
    return SimpleNamespace(**{name: here[name] for name in _kernels})


# -- terms --------------------------------------------------------------------------


@term
def softplus(x):
    """log(1 + e^x) to the last digit: max(x, 0) + 2 artanh(e / (2 + e)), e = e^-|x|."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e / (2.0 + e)  # at most 1/3, so that eight terms of the series do
    q = s * s
    p = 1.0 / 15.0
    p = p * q + 1.0 / 13.0
    p = p * q + 1.0 / 11.0
    p = p * q + 1.0 / 9.0
    p = p * q + 1.0 / 7.0
    p = p * q + 1.0 / 5.0
    p = p * q + 1.0 / 3.0
    return tl.maximum(x, 0.0) + 2.0 * s * (p * q + 1.0)


@term
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@term
def read(p, at, mask):
    """Numbers from memory as float32, 0 where masked."""
    return tl.load(p + at, mask=mask, other=0.0).to(tl.float32)


@term
def write(p, at, x, mask):
    tl.store(p + at, x.to(p.dtype.element_ty), mask=mask)


@term
def is_reset(reset, at, mask):
    return tl.load(reset + at, mask=mask, other=0) != 0


# -- selective scan: what a program holds -------------------------------------------


@term
def place(d, G, blocks, BD: tl.constexpr):
    """Row, group and channels of this program; a block of channels has one group."""
    at = tl.program_id(0)
    row, at = at // (G * blocks), at % (G * blocks)
    group, block = at // blocks, at % blocks
    inside = block * BD + tl.arange(0, BD)
    live = inside < d // G
    return row.to(tl.int64), group, block, group * (d // G) + inside, live


@term
def tiles(
    p, at, live, per_d, per_n, N: tl.constexpr, LANES: tl.constexpr, NR: tl.constexpr
):
    """The states of these channels from p, or zeros where there is no p."""
    out = ()
    for j in tl.static_range(NR):
        n = j * LANES + tl.arange(0, LANES)
        if p is None:
            x = tl.zeros((at.shape[0], LANES), tl.float32)
        else:
            where = at[:, None] * per_d + n[None, :] * per_n
            x = read(p, where, live[:, None] & (n < N)[None, :])
        out = out + (x,)
    return out


@term
def keep(
    p, h, at, live, per_d, per_n, N: tl.constexpr, LANES: tl.constexpr, NR: tl.constexpr
):
    """Write states: the reverse of `tiles`."""
    for j in tl.static_range(NR):
        n = j * LANES + tl.arange(0, LANES)
        where = at[:, None] * per_d + n[None, :] * per_n
        write(p, where, h[j], live[:, None] & (n < N)[None, :])


@term
def shared(p, at, there, N: tl.constexpr, LANES: tl.constexpr, NR: tl.constexpr):
    """B or C of one step: what all channels of the program have in common."""
    out = ()
    for j in tl.static_range(NR):
        n = j * LANES + tl.arange(0, LANES)
        mask = there if N == LANES * NR else (n < N) & there
        out = out + (read(p, at * N + n, mask)[None, :],)
    return out


@term
def step_size(raw, mask, SOFTPLUS: tl.constexpr):
    """delta; 0 outside of the sequence, where the state shall stay as it is."""
    return tl.where(mask, softplus(raw) if SOFTPLUS else raw, 0.0)


@term
def advance(h, A, delta, x, B, cut, NR: tl.constexpr):
    """One step: the decay a = e^(delta A), a h, and the new state a h + x B.

    A: times log2 e; cut: whether a sequence starts here, or None.
    """
    decay = ()
    kept = ()
    new = ()
    for j in tl.static_range(NR):
        before = h[j]
        if cut is not None:
            before = tl.where(cut, 0.0, before)
        a = tl.exp2(delta[:, None] * A[j])
        decay = decay + (a,)
        kept = kept + (a * before,)
        new = new + (a * before + x[:, None] * B[j],)
    return decay, kept, new


@term
def in_ln2(A, NR: tl.constexpr):
    out = ()
    for j in tl.static_range(NR):
        out = out + (A[j] * LOG2E,)
    return out


# -- selective scan: forward --------------------------------------------------------


@term
def inputs(u, delta, z, B, C, reset, row, t, L, d, G, group, at, live, N, LANES, NR):
    """All that one step reads; loaded a step ahead of its use."""
    there = t < L
    step = row * L + t
    cut = there
    if reset is not None:
        cut = is_reset(reset, step, there)
    gate = tl.zeros((at.shape[0],), tl.float32)
    if z is not None:
        gate = read(z, step * d + at, live & there)
    return (
        read(u, step * d + at, live & there),
        read(delta, step * d + at, live & there),
        gate,
        shared(B, step * G + group, there, N, LANES, NR),
        shared(C, step * G + group, there, N, LANES, NR),
        cut,
    )


@kernel
def scan_forward(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    h0,
    reset,
    y,
    last,
    check,
    L,
    d,
    G,
    blocks,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    EVERY: tl.constexpr,
    BD: tl.constexpr,
    LANES: tl.constexpr,
    NR: tl.constexpr,
):
    """y, the last state, and the state before every EVERY-th step (check, or None)."""
    row, group, _block, at, live = place(d, G, blocks, BD)
    rates = in_ln2(tiles(A, at, live, N, 1, N, LANES, NR), NR)
    state = row * d * N
    h = tiles(h0 if h0 is None else h0 + state, at, live, N, 1, N, LANES, NR)
    skip, offset = tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32)
    if D is not None:
        skip = read(D, at, live)
    if bias is not None:
        offset = read(bias, at, live)
    chunks = tl.cdiv(L, EVERY)
    now = inputs(
        u, delta, z, B, C, reset, row, 0, L, d, G, group, at, live, N, LANES, NR
    )
    for k in range(chunks):
        if check is not None:
            place_k = check + (row * chunks + k) * d * N
            keep(place_k, h, at, live, 1, d, N, LANES, NR)
        for t in range(k * EVERY, tl.minimum(k * EVERY + EVERY, L)):
            u_t, raw, gate, B_t, C_t, cut = now
            now = inputs(
                *(u, delta, z, B, C, reset),
                *(row, t + 1, L, d, G, group, at, live, N, LANES, NR),
            )
            delta_t = step_size(raw + offset, live, SOFTPLUS)
            cut = cut if reset is not None else None
            _, _, h = advance(h, rates, delta_t, delta_t * u_t, B_t, cut, NR)
            out = tl.zeros((BD, LANES), tl.float32)
            for j in tl.static_range(NR):
                out += C_t[j] * h[j]
            out = tl.sum(out, 1) + skip * u_t
            if z is not None:
                out = out * gate * sigmoid(gate)
            write(y, (row * L + t) * d + at, out, live)
    keep(last + state, h, at, live, N, 1, N, LANES, NR)


# -- selective scan: backward -------------------------------------------------------


@term
def rerun(
    h,
    rates,
    u,
    delta,
    B,
    reset,
    offset,
    row,
    t,
    L,
    d,
    G,
    group,
    at,
    live,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    LANES: tl.constexpr,
    NR: tl.constexpr,
):
    """One step of the forward, as `advance`; beyond the end the state stays."""
    there = live & (t < L)
    step = (row * L + t) * d + at
    delta_t = step_size(read(delta, step, there) + offset, there, SOFTPLUS)
    B_t = shared(B, (row * L + t) * G + group, t < L, N, LANES, NR)
    cut = None
    if reset is not None:
        cut = is_reset(reset, row * L + t, t < L)
    return advance(h, rates, delta_t, delta_t * read(u, step, there), B_t, cut, NR)


@kernel
def scan_backward(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    reset,
    check,
    gy,
    glast,
    du,
    ddelta,
    dA,
    dB,
    dC,
    dD,
    dz,
    dbias,
    dh0,
    scratch,
    rows,
    L,
    d,
    G,
    blocks,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    EVERY: tl.constexpr,
    STEPS: tl.constexpr,
    BD: tl.constexpr,
    LANES: tl.constexpr,
    NR: tl.constexpr,
):
    """All gradients, from the last chunk of EVERY steps to the first.

    A chunk is run again from its checkpoint, keeping the state before every STEPS-th
    step in scratch; then, from its last STEPS steps to its first, these are run once
    more, a and a h kept in registers, and walked back:
        g_t = C_t w_t + a_{t+1} g_{t+1}, w = gy silu(z),
        dC = sum_d w h, dB = sum_d g delta u, du = delta sum_n g B + D w,
        q = g a h_{t-1}, dA = sum_t q delta, ddelta = u sum_n g B + sum_n q A.
    dA, dD, dbias are one row's, dB, dC one block's: torch adds them up.
    """
    row, group, block, at, live = place(d, G, blocks, BD)
    rates = in_ln2(tiles(A, at, live, N, 1, N, LANES, NR), NR)
    state = row * d * N
    g = tiles(glast if glast is None else glast + state, at, live, N, 1, N, LANES, NR)
    grad_A = tiles(None, at, live, N, 1, N, LANES, NR)
    skip, offset = tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32)
    grad_D, grad_bias = tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32)
    if D is not None:
        skip = read(D, at, live)
    if bias is not None:
        offset = read(bias, at, live)
    chunks = tl.cdiv(L, EVERY)
    scratch += row * (EVERY // STEPS) * d * N
    for k in range(chunks):
        first = (chunks - 1 - k) * EVERY
        parts = tl.cdiv(tl.minimum(EVERY, L - first), STEPS)
        h = tiles(
            check + (row * chunks + chunks - 1 - k) * d * N,
            *(at, live, 1, d, N, LANES, NR),
        )
        # Run the chunk again: the state before each of its parts.
        for part in range(parts):
            keep(scratch + part * d * N, h, at, live, 1, d, N, LANES, NR)
            for t in range(first + part * STEPS, first + part * STEPS + STEPS):
                _, _, h = rerun(
                    *(h, rates, u, delta, B, reset, offset),
                    *(row, t, L, d, G, group, at, live, N, SOFTPLUS, LANES, NR),
                )
        tl.debug_barrier()
        # Its parts, from the last: forward once more, keeping all, then back.
        for p in range(parts):
            part = parts - 1 - p
            h = tiles(scratch + part * d * N, at, live, 1, d, N, LANES, NR)
            decays = ()
            kept = ()
            for i in tl.static_range(STEPS):
                t = first + part * STEPS + i
                decay, ah, h = rerun(
                    *(h, rates, u, delta, B, reset, offset),
                    *(row, t, L, d, G, group, at, live, N, SOFTPLUS, LANES, NR),
                )
                decays = decays + (decay,)
                kept = kept + (ah,)
            for i in tl.static_range(STEPS - 1, -1, -1):
                t = first + part * STEPS + i
                there = live & (t < L)
                step = (row * L + t) * d + at
                raw = read(delta, step, there) + offset
                delta_t = step_size(raw, there, SOFTPLUS)
                u_t = read(u, step, there)
                w = read(gy, step, there)
                both = (row * L + t) * G + group
                B_t = shared(B, both, t < L, N, LANES, NR)
                C_t = shared(C, both, t < L, N, LANES, NR)
                if z is not None:
                    out = tl.zeros((BD, LANES), tl.float32)
                    for j in tl.static_range(NR):
                        h_j = kept[i][j] + (delta_t * u_t)[:, None] * B_t[j]
                        out += C_t[j] * h_j
                    gate = read(z, step, there)
                    open_ = sigmoid(gate)
                    slope = open_ * (1.0 + gate * (1.0 - open_))
                    out = tl.sum(out, 1) + skip * u_t
                    write(dz, step, w * out * slope, there)
                    w = w * gate * open_
                dx = tl.zeros((BD, LANES), tl.float32)
                dlog = tl.zeros((BD, LANES), tl.float32)
                new_g = ()
                new_A = ()
                to = ((block * rows + row) * L + t) * G + group
                for j in tl.static_range(NR):
                    x = (delta_t * u_t)[:, None]
                    h_j = kept[i][j] + x * B_t[j]
                    g_j = g[j] + C_t[j] * w[:, None]
                    n = j * LANES + tl.arange(0, LANES)
                    there_n = (n < N) & (t < L)
                    write(dC, to * N + n, tl.sum(w[:, None] * h_j, 0), there_n)
                    write(dB, to * N + n, tl.sum(g_j * x, 0), there_n)
                    q = g_j * kept[i][j]
                    dx += g_j * B_t[j]
                    dlog += q * rates[j]
                    new_A = new_A + (grad_A[j] + q * delta_t[:, None],)
                    before = decays[i][j] * g_j
                    if reset is not None:
                        cut = is_reset(reset, row * L + t, t < L)
                        before = tl.where(cut, 0.0, before)
                    new_g = new_g + (before,)
                g = new_g
                grad_A = new_A
                dx_t = tl.sum(dx, 1)
                write(du, step, delta_t * dx_t + skip * w, there)
                slope = u_t * dx_t + LN2 * tl.sum(dlog, 1)
                if SOFTPLUS:
                    slope = slope * sigmoid(raw)
                slope = tl.where(there, slope, 0.0)
                write(ddelta, step, slope, there)
                grad_D += w * u_t
                grad_bias += slope
        tl.debug_barrier()
    keep(dA + state, grad_A, at, live, N, 1, N, LANES, NR)
    if dh0 is not None:
        keep(dh0 + state, g, at, live, N, 1, N, LANES, NR)
    if D is not None:
        write(dD, row * d + at, grad_D, live)
    if bias is not None:
        write(dbias, row * d + at, grad_bias, live)


# -- linear recurrence --------------------------------------------------------------


@kernel
def linear_forward(
    a,
    b,
    h0,
    reset,
    h,
    L,
    M,
    blocks,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """All states of h_t = a_t h_{t-1} + b_t for one row and BLOCK of its M lanes.

    The inputs of STEPS steps are loaded before the first of them is taken.
    """
    row = (tl.program_id(0) // blocks).to(tl.int64)
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    live = at < M
    state = tl.zeros((BLOCK,), tl.float32)
    if h0 is not None:
        state = read(h0, row * M + at, live)
    for first in range(0, L, STEPS):
        decays = ()
        drives = ()
        for i in tl.static_range(STEPS):
            there = live & (first + i < L)
            step = (row * L + first + i) * M + at
            decays = decays + (read(a, step, there),)
            drives = drives + (read(b, step, there),)
        for i in tl.static_range(STEPS):
            t = first + i
            if reset is not None:
                cut = is_reset(reset, row * L + t, t < L)
                state = tl.where(cut, 0.0, state)
            state = decays[i] * state + drives[i]
            write(h, (row * L + t) * M + at, state, live & (t < L))


@kernel
def linear_backward(
    a,
    h0,
    reset,
    h,
    gh,
    da,
    db,
    dh0,
    L,
    M,
    blocks,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """g_t = gh_t + a_{t+1} g_{t+1}: db = g, da = g h_{t-1}, dh0 = a_0 g_0."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    live = at < M
    start = tl.zeros((BLOCK,), tl.float32)
    if h0 is not None:
        start = read(h0, row * M + at, live)
    carry = tl.zeros((BLOCK,), tl.float32)
    for done in range(0, L, STEPS):
        decays = ()
        grads = ()
        befores = ()
        for i in tl.static_range(STEPS):
            t = L - 1 - done - i
            step = (row * L + t) * M + at
            decays = decays + (read(a, step, live & (t >= 0)),)
            grads = grads + (read(gh, step, live & (t >= 0)),)
            before = read(h, step - M, live & (t > 0))
            befores = befores + (tl.where(t == 0, start, before),)
        for i in tl.static_range(STEPS):
            t = L - 1 - done - i
            there = live & (t >= 0)
            step = (row * L + t) * M + at
            g = grads[i] + carry
            after = decays[i] * g
            before = befores[i]
            if reset is not None:
                cut = is_reset(reset, row * L + t, t >= 0)
                after = tl.where(cut, 0.0, after)
                before = tl.where(cut, 0.0, before)
            carry = tl.where(t >= 0, after, carry)
            write(db, step, g, there)
            write(da, step, g * before, there)
    if dh0 is not None:
        write(dh0, row * M + at, carry, live)


# -- Mamba-2 ------------------------------------------------------------------------


@term
def segments(log_a, sequence, Q: tl.constexpr):
    """Decay from after step j to step i of a chunk, (Q, Q): 0 above the diagonal.

    What does not lie between j and i is masked before the cumulative sum: a difference
    of two long sums loses the digits of a short one. Source: 2405.21060, listing 1.
    sequence: number of the packed sequence of each step; none reaches into another.
    """
    at = tl.arange(0, Q)
    i, j = at[:, None], at[None, :]
    sums = tl.cumsum(tl.where(i > j, log_a[:, None], 0.0), 0)
    near = (i >= j) & (sequence[:, None] == sequence[None, :])
    return tl.where(near, tl.exp2(tl.where(near, sums, 0.0) * LOG2E), 0.0)


@term
def last_of(x, Q: tl.constexpr):
    """The last row of a (Q, ...) tile."""
    at = tl.arange(0, Q)
    return tl.sum(tl.where((at == Q - 1)[:, None], x, 0.0), 0)


@term
def columns(p, rows, there, j: tl.constexpr, N: tl.constexpr, BN: tl.constexpr):
    """The j-th BN states of B or C in a chunk's steps, (Q, BN)."""
    n = j * BN + tl.arange(0, BN)
    mask = there[:, None] & (n < N)[None, :]
    return read(p, rows[:, None] * N + n[None, :], mask)


@kernel
def ssd_forward(
    x,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    h0,
    reset,
    y,
    last,
    L,
    H,
    G,
    P: tl.constexpr,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    Q: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    NR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y and the last state, for BP of the P channels of one head.

    States come in NR tiles of BN, so that the operands of a product stay small.

    With X = delta x, S the decays between steps and h (P, N) the state before a chunk:
        y = ((C B^T) * S) X + reach C h^T,  h' = reach_Q h + (to_end X)^T B.
    """
    blocks: tl.constexpr = (P + BP - 1) // BP
    row = (tl.program_id(0) // (H * blocks)).to(tl.int64)
    head = tl.program_id(0) // blocks % H
    group = head // (H // G)
    at = tl.arange(0, Q)
    p = tl.program_id(0) % blocks * BP + tl.arange(0, BP)
    state = (row * H + head) * P * N
    h = tiles(h0 if h0 is None else h0 + state, p, p < P, N, 1, N, BN, NR)
    rate = tl.load(A + head)
    for k in range(tl.cdiv(L, Q)):
        there = k * Q + at < L
        start = row * L + k * Q  # 64 bits once, and 32 for each number of a tile
        raw = read(delta + start * H, at * H + head, there)
        if bias is not None:
            raw += tl.load(bias + head)
        delta_t = step_size(raw, there, SOFTPLUS)
        sequence = tl.zeros((Q,), tl.int32)
        if reset is not None:
            sequence = tl.cumsum(is_reset(reset + start, at, there).to(tl.int32), 0)
        S = segments(delta_t * rate, sequence, Q)
        reach = tl.exp2(tl.cumsum(delta_t * rate, 0) * LOG2E)
        reach = tl.where(sequence == 0, reach, 0.0)
        to_p = (at * H + head)[:, None] * P + p[None, :]
        mask_p = there[:, None] & (p < P)[None, :]
        x_t = read(x + start * H * P, to_p, mask_p)
        X = delta_t[:, None] * x_t
        B_k, C_k = B + start * G * N, C + start * G * N
        M = tl.zeros((Q, Q), tl.float32)
        carried = tl.zeros((Q, BP), tl.float32)
        for j in tl.static_range(NR):
            B_j = columns(B_k, at * G + group, there, j, N, BN)
            C_j = columns(C_k, at * G + group, there, j, N, BN)
            M += tl.dot(C_j, tl.trans(B_j), input_precision=PRECISION)
            carried += tl.dot(C_j, tl.trans(h[j]), input_precision=PRECISION)
        out = tl.dot(M * S, X, input_precision=PRECISION) + reach[:, None] * carried
        end = tl.trans(X * last_of(S, Q)[:, None])
        kept = tl.sum(tl.where(at == Q - 1, reach, 0.0), 0)
        new = ()
        for j in tl.static_range(NR):
            B_j = columns(B_k, at * G + group, there, j, N, BN)
            h_j = kept * h[j] + tl.dot(end, B_j, input_precision=PRECISION)
            new = new + (h_j,)
        h = new
        if D is not None:
            out += read(D, head * P + p, p < P)[None, :] * x_t
        if z is not None:
            gate = read(z + start * H * P, to_p, mask_p)
            out = out * gate * sigmoid(gate)
        write(y + start * H * P, to_p, out, mask_p)
    keep(last + state, h, p, p < P, N, 1, N, BN, NR)
