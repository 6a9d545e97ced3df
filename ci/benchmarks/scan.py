"""Selective scan and SSD on a CPU, forward and backward, against a dozen peers.

N = 16 states, float32, channel-last for ours (`backend="cpu"`; the slower backends of
lib.scan run too), each peer in the layout that it likes best. A method's `ratio` is its
time over ours: 50 means that ours is 50 times faster, and targets are lower bounds.
Only in the tables floor, memory and first_call is small good, and targets are upper
bounds: there `floor` is what the arithmetic alone takes on this machine (13 operations
a state forward, 35 with the backward pass; an exponential by its polynomial and three
multiply-adds in registers are timed next to ours, which multiplies less where it can
look powers up), `tensors` is the peak of what a call adds in arrays as large as u, and
`seconds` is processor time of the first call, children included, from empty caches (but
after a first gradient, for which torch loads modules whoever asks).
One thread is timed by its processor time and two by the wall clock.

Some targets lie beyond what a machine can do. `floor allows` says what the ratio to a
peer would be for a kernel that takes no more than its floor: the measured ratio times
ours over the floor of the same shape and pass (both in the table floor). The floor of
Mamba-2 is the fewest multiply-adds of any chunk length at the speed of torch's matrix
products here; that of a block is its bare matrix products, forward and backward, plus
the scan's floor. `--check` fails where a target is missed by more than half of the
smaller of the two numbers, target and what the floor allows.

Every result is compared with a float64 computation that shares no code with what is
timed: on a small case before anything is timed (what compiles for a shape: on its
warm-up), and again at every shape. Where a backward pass is quadratic in the length it
runs at L = 256 only; what takes seconds is called once, and says so.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from math import nan
from typing import Any

import numpy as np
import pandas as pd
import torch

from ci.benchmarks import _scan_peers as peers
from ci.benchmarks._scan_peers import METHODS, OURS, SSD, Method, Scan
from ci.tools.bench import (
    NOT_INSTALLED,
    OVER,
    BenchmarkError,
    Options,
    Target,
    compare,
    installed,
    judge,
    peak_memory,
)
from lib.kit.start import ROOT
from lib.scan import build, cpu
from lib.selective_ssm.blocks import Mamba
from lib.selective_ssm.products import linear

PEERS = ("mambapy==1.2.0", "jax==0.10.2", "numba==0.68.1", "transformers==5.23.0")
N = 16
SHAPES = ((4, 256, 256), (4, 1024, 256), (4, 1024, 1024))  # batch, length, channels
SHORT, MAIN, WIDE = SHAPES
SMALL = (2, 48, 64)  # where results are compared before anything is timed
SSD_SHAPE = (4, 1024, 8, 64, 64)  # batch, length, heads, P, N
MEMORY_SHAPE = (4, 2048, 256)
D_MODEL = 128
PASSES = ("forward", "forward+backward")
TABLES = ("forward", "backward")
LIMIT = (1.0, 2.0)  # seconds; what takes longer is called once
FORWARD_WORK, BOTH_WORK = 13, 35  # vector operations a state (spec, sections 2.5, 2.7)
SLOW = {"mamba_ssm's reference", "transformers' slow path"}
MIXER = "transformers' MambaMixer"


def label(shape: tuple[int, ...]) -> str:
    """A shape as the tables name it: 4x1024x256."""
    return "x".join(map(str, shape))


# --- targets -------------------------------------------------------------------------

_ISSUE = "issue 5, speed"
_SPEC = "scan-kernels.md, section 5"


def _at_least(table: str, method: str, shape: tuple, value: float, source: str):
    row = {"method": method, "shape": label(shape)}
    return Target(table, row, "ratio", at_least=value, source=source)


def _row(table: str, column: str, value: float, source: str, **row: str) -> Target:
    row = {"method": OURS} | row
    return Target(table, row, column, at_most=value, source=source)


_FIRST = (("forward", 15.0), ("forward+backward", 60.0))
TARGETS = [
    _at_least("forward", "mamba_ssm's reference", MAIN, 50, _ISSUE),
    _at_least("forward", "transformers' slow path", MAIN, 50, _ISSUE),
    _at_least("forward", "unbind loop", MAIN, 50, _ISSUE),
    _at_least("forward", "mamba.py's pscan", MAIN, 90, _ISSUE),
    _at_least("forward", "torch associative_scan", MAIN, 120, _SPEC),
    _at_least("forward", "torch associative_scan, compiled", SHORT, 35, _SPEC),
    _at_least("forward", "torch.compile, 16 steps", MAIN, 8, _ISSUE),
    _at_least("forward", "JAX scan", MAIN, 9, _ISSUE),
    _at_least("backward", "mamba_ssm's reference", SHORT, 900, _ISSUE),
    _at_least("backward", "transformers' slow path", SHORT, 900, _SPEC),
    _at_least("backward", "unbind loop", MAIN, 50, _ISSUE),
    _at_least("backward", "mamba.py's pscan", MAIN, 80, _ISSUE),
    _at_least("backward", "torch associative_scan", MAIN, 110, _ISSUE),
    _at_least("backward", "torch associative_scan, compiled", SHORT, 40, _SPEC),
    _at_least("backward", "torch.compile, 16 steps", MAIN, 8, _SPEC),
    _at_least("backward", "JAX scan", MAIN, 25, _ISSUE),
    *(
        Target(
            "ssd",
            {"method": "transformers, Q = 256", "pass": p},
            "ratio",
            at_least=14,
            source=_SPEC,
        )
        for p in PASSES
    ),
    *(
        Target("block", {"method": MIXER, "pass": p}, "ratio", at_least=least, source=s)
        for p, least, s in zip(PASSES, (10, 200), (_SPEC, _ISSUE))
    ),
    *(
        _row("floor", "ratio", most, _ISSUE, **{"pass": p, "shape": label(MAIN)})
        for p, most in zip(PASSES, (1.25, 1.6))
    ),
    *(
        _row("memory", "tensors", most, s, **{"pass": p})
        for p, most, s in zip(PASSES, (1.1, 6), (_SPEC, _ISSUE))
    ),
    _row("first_call", "seconds", 1.0, _ISSUE, **{"pass": "forward+backward"}),
    *(
        Target(
            "first_call",
            {"method": "torch.compile, 16 steps", "pass": p},
            "ratio",
            at_least=least,
            source=_SPEC,
        )
        for p, least in _FIRST
    ),
]


def floor_allows(target: Target, measured: float, floor: pd.DataFrame) -> float:
    """A ratio to a peer, were ours as fast as its floor; nan where there is none.

    target: at least a ratio; measured: what was; floor: the table.
    """
    methods = dict.fromkeys(TABLES, OURS) | {"ssd": OURS_SSD, "block": OURS_BLOCK}
    if target.table not in methods or not len(floor):
        return nan
    passes = dict(zip(TABLES, PASSES))
    row = {"method": methods[target.table], "pass": passes.get(target.table)}
    row = row | {k: v for k, v in target.row.items() if k in ("pass", "shape")}
    for key, value in row.items():
        floor = floor[floor[key] == value]
    return measured * float(floor["ratio"].iloc[0]) if len(floor) else nan


def judged(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """`judge` with the column "floor allows", and verdicts that heed it."""
    frame = judge(TARGETS, tables)
    allows = [
        floor_allows(target, measured, tables["floor"])
        for target, measured in zip(TARGETS, frame["measured"])
    ]
    frame.insert(3, "floor allows", allows)
    for i, target in enumerate(TARGETS):
        measured, at_floor = frame["measured"][i], frame["floor allows"][i]
        near = at_floor <= OVER * measured < OVER * (target.at_least or 0)
        if near and frame.loc[i, "verdict"] != "met":
            frame.loc[i, "verdict"] = "missed"
    return frame


# --- do they agree? ------------------------------------------------------------------


def deviation(scan: Scan, results: tuple, truth: list[np.ndarray]) -> float:
    """The largest deviation of any result, relative to its own largest value."""
    pairs = zip(scan.read(results), truth)
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)


def agree(name: str, method: Method, scan: Scan, results: tuple, truth: list) -> float:
    """The deviation; raises BenchmarkError where it is more than the method may."""
    found = deviation(scan, results, truth)
    if not found <= method.tolerance:
        raise BenchmarkError(
            f"{name} is off by {found:.2g} of the largest value of a result, more than "
            f"{method.tolerance:g}: nothing of this run counts."
        )
    return found


def check_small(methods: dict[str, Method], case: peers.Case, truth: list) -> None:
    """Compare y and all gradients of what needs no compiler for a shape."""
    for name, method in methods.items():
        if not method.compiles and installed(method.needs):
            scan = method.make(case)
            agree(name, method, scan, scan.both(), truth)


def exact_ssd(case: peers.Case) -> list[np.ndarray]:
    """y and gradients of Mamba-2 in float64: a Mamba-1 scan with tied A and steps."""
    b, L, H, P = case["u"].shape
    shape, n = (b, L, H * P), case["B"].shape[-1]
    wide = {k: case[k].reshape(shape) for k in "uw"}
    wide["delta"] = np.repeat(case["delta"], P, axis=2)
    wide["A"] = np.repeat(case["A"], P)[:, None].repeat(n, axis=1)
    wide |= {k: case[k][:, :, 0] for k in "BC"}
    y, du, ddelta, dA, dB, dC = _exact(wide)
    heads = (b, L, H, P)
    ddelta, dA = ddelta.reshape(heads).sum(-1), dA.sum(1).reshape(H, P).sum(1)
    y, du, dB, dC = y.reshape(heads), du.reshape(heads), dB[:, :, None], dC[:, :, None]
    return [y, du, ddelta, dA, dB, dC]


def _exact(case: peers.Case) -> list[np.ndarray]:
    """`exact`, one sequence after another, for the memory."""
    parts = []
    for i in range(len(case["u"])):
        one = {k: x if k == "A" else x[i : i + 1] for k, x in case.items()}
        parts.append(peers.exact(one))
    y, du, ddelta, dA, dB, dC = zip(*parts)
    joined = [np.concatenate(x) for x in (y, du, ddelta, dB, dC)]
    return [*joined[:3], sum(dA), *joined[3:]]


# --- times ---------------------------------------------------------------------------


def _first_kept(call: Callable, kept: dict[str, Any], name: str) -> Callable:
    """The same call, whose first result stays to be looked at."""

    def wrapped() -> None:
        results = call()
        kept.setdefault(name, results)

    return wrapped


def _skipped(method: Method, shape: tuple, backward: bool) -> str:
    """Why a method does not run here, or an empty text."""
    if not installed(method.needs):
        return NOT_INSTALLED
    if shape != SHORT and method.short:
        return f"not run: L > {SHORT[1]}"
    if shape != SHORT and backward and not method.linear:
        return f"not run: quadratic in L, L > {SHORT[1]}"
    if shape == WIDE and not method.wide:
        return "not run: minutes to compile"
    return ""


def timed(
    methods: dict[str, Method],
    case: peers.Case,
    truth: list[np.ndarray],
    backward: bool,
    options: Options,
    skip: Callable[[str, Method], str],
) -> pd.DataFrame:
    """Times, ratios to ours, errors. skip: (name, method) -> why not, or nothing."""
    calls: dict[str, Callable | str] = {}
    scans, kept = {}, {}
    for name, method in methods.items():
        if reason := skip(name, method):
            calls[name] = reason
            continue
        scan = scans[name] = method.make(case)
        call = scan.both if backward else scan.forward
        if method.compiles:
            options.say(f"compiles: {name}")
            try:
                kept[name] = call()
            except Exception as error:  # any of a compiler's own
                calls[name] = f"does not run: {type(error).__name__}"
                continue
            agree(name, method, scan, kept[name], truth)
        calls[name] = _first_kept(call, kept, name)
    spent = {"min_time": 0.02, "rounds": 2} if options.quick else {}
    limit = LIMIT[backward]
    frame = compare(calls, clock=options.clock, limit=limit, reference=OURS, **spent)
    frame["error"] = [
        agree(name, methods[name], scans[name], kept[name], truth)
        if name in kept
        else nan
        for name in calls
    ]
    return frame


def scan_tables(shapes: tuple, options: Options) -> dict[str, pd.DataFrame]:
    """The tables forward and backward, a row a method and shape."""
    small = peers.case(*SMALL, N)
    options.say("do the methods agree?")
    check_small(METHODS, small, peers.exact(small))
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for shape in shapes:
        options.say(f"float64, {label(shape)}")
        case = peers.case(*shape, N)
        truth = _exact(case)
        for table, backward in zip(TABLES, (False, True)):
            options.say(f"{PASSES[backward]}, {label(shape)}")

            def skip(name: str, method: Method) -> str:
                late = options.quick and method.compiles and name != "JAX scan"
                reason = _skipped(method, shape, backward)  # noqa: B023
                return reason or ("not in a quick run" if late else "")

            frame = timed(METHODS, case, truth, backward, options, skip)
            frame.insert(1, "shape", label(shape))
            frames[table].append(frame)
    return {name: pd.concat(found, ignore_index=True) for name, found in frames.items()}


def ssd_table(options: Options) -> pd.DataFrame:
    """Mamba-2's scan, a row a method and pass."""
    small = peers.ssd_case(2, 512, 2, 8, 4)
    check_small(SSD, small, exact_ssd(small))
    b, L, *rest = SSD_SHAPE
    case = peers.ssd_case(b, L // 4 if options.quick else L, *rest)
    options.say("float64, Mamba-2")
    truth, frames = exact_ssd(case), []
    for backward, kind in enumerate(PASSES):
        options.say(f"Mamba-2, {kind}")
        frame = timed(
            SSD,
            case,
            truth,
            bool(backward),
            options,
            lambda _, method: "" if installed(method.needs) else NOT_INSTALLED,
        )
        frame.insert(1, "pass", kind)
        frame.insert(2, "shape", label((*case["u"].shape, SSD_SHAPE[-1])))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


# --- the floor -----------------------------------------------------------------------

FLOOR_COLUMNS = ["method", "pass", "shape", "ms", "floor", "ratio"]
OURS_SSD, OURS_BLOCK = f"{OURS}, Mamba-2", f"{OURS}, block"
SQUARE = 512  # rows and columns of the product that tells the speed of products


def fewest_products(shape: tuple[int, ...], backward: bool) -> int:
    """Multiply-adds of Mamba-2 at the chunk length Q that needs the fewest.

    shape: batch, length, heads, P, N, one group. A token and head: 2 N P for the state
    (written, read), N P / Q for its decay, and half of a Q x Q matrix inside the chunk;
    with the backward pass 7 N P, 3 N P / Q and the same matrix again, its gradient, and
    those of what it was made from. Source: 2405.21060, counted here.
    """
    b, L, H, P, n = shape
    state, decay, shared, own = (7, 3, 4, 3) if backward else (2, 1, 1, 1)

    def products(Q: int) -> float:
        return n * P * (state + decay / Q) + Q / 2 * (shared * n / H + own * P)

    return round(b * L * H * min(map(products, range(1, L + 1))))


def _floor_row(method: str, shape: tuple, kind: str, ms: float, floor: float) -> list:
    return [method, kind, label(shape), ms, floor, ms / floor]


def _scan_floor(shape: tuple[int, ...], rounds: int, clock: str) -> list[list]:
    """Of the arithmetic of a scan: two rows, forward and with the backward pass."""
    scan = METHODS[OURS].make(peers.case(*shape, N))
    library = build.library("scan.c", "HEADS=0")
    library.floor_exp.restype = ctypes.c_float
    library.floor_exp.argtypes = (ctypes.c_long, ctypes.c_void_p)
    steps = torch.full((N,), 0.01)
    calls = dict(zip(PASSES, (scan.forward, scan.both)))
    calls["floor"] = partial(
        library.floor_exp, int(np.prod(shape)) * N, steps.data_ptr()
    )
    ms = compare(calls, rounds, clock=clock).set_index("method")["ms"]
    return [
        _floor_row(OURS, shape, kind, ms[kind], ms["floor"] * work / FORWARD_WORK)
        for kind, work in zip(PASSES, (FORWARD_WORK, BOTH_WORK))
    ]


def _ssd_floor(shape: tuple[int, ...], rounds: int, clock: str) -> list[list]:
    """Of the multiply-adds of Mamba-2, at the speed of a matrix product."""
    scan = SSD[OURS].make(peers.ssd_case(*shape))
    x = torch.randn(SQUARE, SQUARE)
    calls = dict(zip(PASSES, (scan.forward, scan.both))) | {"product": lambda: x @ x}
    ms = compare(calls, rounds, clock=clock).set_index("method")["ms"]
    each = ms["product"] / SQUARE**3
    return [
        _floor_row(OURS_SSD, shape, kind, ms[kind], each * fewest_products(shape, back))
        for kind, back in zip(PASSES, (False, True))
    ]


def block_products(block: Mamba, tokens: int) -> tuple[Callable, Callable]:
    """A block's matrix products alone: forward, and with those of the backward pass."""
    weights = [m.weight.detach() for m in block.children() if hasattr(m, "in_features")]
    given = [(w, torch.randn(tokens, w.shape[1])) for w in weights]
    back = [torch.randn(tokens, w.shape[0]) for w in weights]

    def forward() -> list:
        return [linear(x, w) for w, x in given]

    def both() -> list:
        pairs = zip(back, given)
        return [forward(), [(linear(g, w.T), linear(g.T, x.T)) for g, (w, x) in pairs]]

    return forward, both


def _block_floor(scans: list[list], rounds: int, clock: str) -> list[list]:
    """Of a block's matrix products and its scan. scans: rows of the scan's floor."""
    block, x, w = _block_case()
    calls = {kind: partial(call, block, x, w) for kind, call in BLOCK_CALLS.items()}
    names = [f"products, {kind}" for kind in PASSES]
    calls |= zip(names, block_products(block, x.shape[0] * x.shape[1]))
    ms = compare(calls, rounds, clock=clock).set_index("method")["ms"]
    return [
        _floor_row(OURS_BLOCK, tuple(x.shape), kind, ms[kind], ms[name] + row[4])
        for kind, name, row in zip(PASSES, names, scans)
    ]


def floor_table(shapes: tuple, options: Options) -> pd.DataFrame:
    """Our times over those of the arithmetic alone, measured side by side.

    The rows of Mamba-2 and of a block follow where the shortest shape is among them.
    """
    rows: list[list] = []
    how = (3 if options.quick else 9, options.clock)
    for shape in shapes if options.threads == 1 else ():
        options.say(f"floor, {label(shape)}")
        found = _scan_floor(shape, *how)
        rows += found
        if shape == SHORT:
            options.say("floor, Mamba-2 and block")
            b, L, *rest = SSD_SHAPE
            ssd_shape = (b, L // 4 if options.quick else L, *rest)
            rows += _ssd_floor(ssd_shape, *how) + _block_floor(found, *how)
    return pd.DataFrame(rows, columns=FLOOR_COLUMNS)


# --- memory --------------------------------------------------------------------------

MEMORY_COLUMNS = ["method", "pass", "shape", "tensors", "note"]
MEASURED = (
    *(OURS, "mamba_ssm's reference", "unbind loop", "lean loop"),
    *("mamba.py's pscan", "torch associative_scan", "numba"),
)


def prepare(name: str, shape: list[int], backward: bool, warm: int = 0) -> Callable:
    """One method on a case of a shape, as a call without arguments.

    warm: the length to call it with before (0: not at all).
    """
    b, L, d = shape
    method = METHODS[name]
    if warm:
        scan = method.make(peers.case(b, warm, d, N))
        _ = scan.both() if backward else scan.forward()
    scan = method.make(peers.case(b, L, d, N))
    return scan.both if backward else scan.forward


def memory_table(options: Options) -> pd.DataFrame:
    """The peak of what one call adds, in arrays as large as u."""
    rows = []
    for name in MEASURED if options.threads == 1 else ():
        if options.quick and name != OURS:
            continue
        method = METHODS[name]
        for backward, kind in enumerate(PASSES):
            found = [name, kind, label(MEMORY_SHAPE)]
            if reason := _skipped(method, MEMORY_SHAPE, bool(backward)):
                rows.append([*found, nan, reason])
                continue
            options.say(f"memory, {kind}: {name}")
            given = {"name": name, "shape": MEMORY_SHAPE, "backward": bool(backward)}
            peak = peak_memory("ci.benchmarks.scan:prepare", given | {"warm": 16})
            rows.append([*found, peak / (4 * int(np.prod(MEMORY_SHAPE))), ""])
    return pd.DataFrame(rows, columns=MEMORY_COLUMNS)


# --- the first call ------------------------------------------------------------------

FIRST_COLUMNS = ["method", "pass", "seconds", "wall", "ratio", "note"]
COMPILING = (
    *(OURS, "torch.compile, 16 steps", "JAX scan", "JAX scan, checkpoints"),
    *("JAX associative_scan", "numba"),
)


def _spent() -> float:
    """Processor seconds of this process and of its children that have ended."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(x.ru_utime + x.ru_stime for x in map(resource.getrusage, whose))


def spend(name: str, kind: str) -> None:
    """The fresh process of `first_cost`: what the first call takes over the second."""
    call = prepare(name, list(SHORT), kind == PASSES[1])
    x = torch.ones(1, requires_grad=True)
    torch.autograd.grad(2 * x, x, torch.ones(1))  # torch loads sympy for its first
    marks = [(_spent(), time.perf_counter())]
    for _ in range(2):
        call()
        marks.append((_spent(), time.perf_counter()))
    first, second = ([b - a for a, b in zip(*marks[i : i + 2])] for i in (0, 1))
    extra = [max(0.0, a - b) for a, b in zip(first, second)]
    print(json.dumps({"seconds": extra[0], "wall": extra[1]}))


def first_cost(name: str, kind: str) -> dict[str, float]:
    """Seconds that the first call of a method adds, in a process with empty caches."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"LIB_SCAN_CACHE": folder, "TORCHINDUCTOR_CACHE_DIR": folder}
        # One thread, so that its compilers are children that end, and are counted.
        environment = os.environ | places | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        code = "import sys; from ci.benchmarks.scan import spend; spend(*sys.argv[1:])"
        words = [sys.executable, "-c", code, name, kind]
        done = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BenchmarkError(f"the first call of {name} failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def first_table(options: Options) -> pd.DataFrame:
    """Processor seconds of the first call beyond those of the second."""
    rows = []
    for kind in PASSES if options.threads == 1 else ():
        base = nan
        for name in COMPILING:
            found = [name, kind]
            if not installed(METHODS[name].needs):
                rows.append([*found, nan, nan, nan, NOT_INSTALLED])
            elif options.quick and name != OURS:
                rows.append([*found, nan, nan, nan, "not in a quick run"])
            else:
                options.say(f"first call, {kind}: {name}")
                cost = first_cost(name, kind)
                seconds, wall = cost["seconds"], cost["wall"]
                base = seconds if name == OURS else base
                rows.append([*found, seconds, wall, seconds / base, ""])
    return pd.DataFrame(rows, columns=FIRST_COLUMNS)


# --- a whole block -------------------------------------------------------------------


def _mixer() -> torch.nn.Module:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = MambaConfig(hidden_size=D_MODEL, state_size=N, num_hidden_layers=1)
    return MambaMixer(config, 0)


def _block_case() -> tuple[Mamba, torch.Tensor, torch.Tensor]:
    """Our block of d_model 128, its input (4, 256, 128) and the gradient of y."""
    b, L, _ = SHORT
    torch.manual_seed(0)
    block = Mamba(D_MODEL, N, backend="cpu")
    return block, torch.randn(b, L, D_MODEL), torch.randn(b, L, D_MODEL)


def _block_forward(module: torch.nn.Module, x: torch.Tensor, _: torch.Tensor) -> tuple:
    with torch.no_grad():
        return (module(x),)


def _block_both(module: torch.nn.Module, x: torch.Tensor, w: torch.Tensor) -> tuple:
    given = x.clone().requires_grad_()
    y, named = module(given), dict(sorted(module.named_parameters()))
    return y.detach(), *torch.autograd.grad(y, [given, *named.values()], w)


BLOCK_CALLS = dict(zip(PASSES, (_block_forward, _block_both)))


def block_table(options: Options) -> pd.DataFrame:
    """A Mamba block of d_model 128, L = 256: ours, and transformers' with its weights.

    Forward and backward give the gradients of the input and of every parameter.
    """
    block, x, w = _block_case()
    modules: dict[str, torch.nn.Module] = {OURS: block}
    if installed("transformers"):
        modules[MIXER] = _mixer().train()
        modules[MIXER].load_state_dict(block.state_dict())
    frames = []
    for kind, function in BLOCK_CALLS.items():
        options.say(f"block, {kind}")
        kept: dict[str, Any] = {}
        calls: dict[str, Callable | str] = {MIXER: NOT_INSTALLED}
        for name, module in modules.items():
            calls[name] = _first_kept(partial(function, module, x, w), kept, name)
        spent = {"min_time": 0.02, "rounds": 2} if options.quick else {}
        frame = compare(calls, clock=options.clock, limit=6, reference=OURS, **spent)
        pairs = zip(kept[OURS], kept.get(MIXER, kept[OURS]))
        error = max(float((p - q).abs().max() / q.abs().max()) for p, q in pairs)
        if not error <= 1e-4:
            raise BenchmarkError(
                f"our block and transformers' differ by {error:.2g} of the largest "
                f"value ({kind}): nothing of this run counts."
            )
        frame.insert(1, "pass", kind)
        frame.insert(2, "shape", label(tuple(x.shape)))
        frame["error"] = [nan if name == OURS else error for name in frame["method"]]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def run(options: Options) -> dict[str, pd.DataFrame]:
    """Measure everything: forward, backward, ssd, block, floor, memory, first_call.

    options: threads (with more than one: the middle shape only, and no floor, memory
    and first call), quick (the smallest shape, few of what compiles). Raises
    BenchmarkError without our kernel, and where a method disagrees with float64.
    """
    if why := cpu.unavailable():
        raise BenchmarkError(f"ours cannot run here: {why}")
    torch.set_num_threads(options.threads)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it says that it is slow
    shapes = SHAPES if options.threads == 1 else (MAIN,)
    shapes = (SHORT,) if options.quick else shapes
    return {
        **scan_tables(shapes, options),
        "ssd": ssd_table(options),
        "block": block_table(options),
        "floor": floor_table(shapes, options),
        "memory": memory_table(options),
        "first_call": first_table(options),
    }
