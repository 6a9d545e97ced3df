"""The fused CPU kernels: right, repeatable bit by bit, and safe to build anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scan_cases as cases
import torch

from lib.scan import backend_info, build, cpu, dispatch, linear_scan, reference

ROOT = Path(__file__).resolve().parents[2]
FORWARD, BACKWARD = 5e-7, 2e-6  # max error / max; torch itself in float32: 3.4e-7
WHY_NOT = cpu.unavailable()
needs_kernel = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

SELECTIVE = {
    "plain": {"extras": False},
    "all": {"softplus": True, "reset": True},
    "one step": {"length": 1, "reset": True},
    "one channel, one state": {"channels": 1, "states": 1, "batch": 1},
    "whole chunks": {"length": 32, "channels": 32, "states": 16},
    "odd": {"length": 37, "channels": 37, "states": 17, "softplus": True},
    "groups": {"channels": 60, "groups": 3, "states": 5, "reset": True},
    "a group a channel": {"channels": 5, "groups": 5, "states": 2},
    "many states": {"length": 20, "channels": 18, "states": 130},
    "many ranges": {"channels": 600, "length": 19, "states": 4, "softplus": True},
    "every N": {"states": 12, "length": 50},
    "long steps": {"delta": (1.0, 50.0), "decay": (1.0, 1e3), "length": 40},
    "tiny steps": {"delta": (1e-6, 1e-4), "decay": (1e-3, 1.0), "softplus": True},
    "growing": {"decay": (1e-3, 1e-2), "delta": (0.1, 10.0)},
}
SSD = {
    "plain": {"extras": False},
    "all": {"softplus": True, "reset": True, "wide_D": True},
    "one step": {"length": 1, "heads": 1, "groups": 1, "width": 1, "states": 1},
    "wide": {"width": 37, "states": 17, "length": 35, "reset": True},
    "ranges": {"heads": 24, "width": 64, "states": 8, "softplus": True},
    "states": {"width": 16, "states": 64, "length": 40, "groups": 1},
}


def _f32(case: dict) -> dict:
    return cases.cast(case, torch.float32)


def _compare(run, oracle, case: dict) -> None:
    got, want = cases.gradients(run, case), cases.gradients(oracle, cases.wide(case))
    for name in want:
        error = cases.relative(got[name], want[name])
        limit = FORWARD if name == "y" else BACKWARD
        assert error <= limit, f"{name} differs by {error:.2g}"


# -- values and gradients -----------------------------------------------------------


@needs_kernel
@pytest.mark.parametrize("name", SELECTIVE)
def test_selective_agrees_with_float64(name):
    case = _f32(cases.selective_case(**SELECTIVE[name]))
    if name == "growing":
        case["A"] = -case["A"]
    y, last = cpu.selective(*case.values())
    want_y, want_last = cases.selective_oracle(case)
    assert cases.relative(y, want_y) <= FORWARD
    assert cases.relative(last, want_last) <= BACKWARD
    _compare(cpu.selective, reference.selective, case)


@needs_kernel
@pytest.mark.parametrize("name", SSD)
def test_ssd_agrees_with_float64(name):
    case = _f32(cases.ssd_case(**SSD[name]))
    y, last = cpu.ssd(*case.values())
    want_y, want_last = cases.ssd_oracle(case)
    assert cases.relative(y, want_y) <= FORWARD
    assert cases.relative(last, want_last) <= BACKWARD
    _compare(cpu.ssd, reference.ssd, case)


@needs_kernel
@pytest.mark.parametrize("states", range(1, 21))
def test_every_number_of_states_is_padded_rightly(states):
    case = _f32(cases.selective_case(states=states, length=17, channels=19))
    assert cases.relative(
        cpu.selective(*case.values())[0], cases.selective_oracle(case)[0]
    ) <= (FORWARD)


@needs_kernel
@pytest.mark.parametrize("half", ["all", "u", "delta", "z", "BC"])
def test_bfloat16_is_read_and_rounded_as_torch_does(half):
    case = _f32(
        cases.selective_case(
            softplus=True, channels=35, length=20, states=8, reset=True
        )
    )
    for name in ("u", "delta", "z", "B", "C"):
        if half == "all" or name in half:
            case[name] = case[name].bfloat16()
    exact = _f32(case)
    got = cases.gradients(cpu.selective, case)
    want = cases.gradients(cpu.selective, exact)
    assert got["y"].dtype == case["u"].dtype
    assert got["last"].dtype == torch.float32
    assert torch.equal(got["last"], want["last"])
    assert torch.equal(got["y"], want["y"].to(case["u"].dtype))
    for name, x in case.items():
        if f"d{name}" in got:
            assert got[f"d{name}"].dtype == x.dtype
            assert cases.relative(got[f"d{name}"], want[f"d{name}"].double()) < 1e-2


@needs_kernel
def test_empty_shapes_pass_through():
    for shape in ({"batch": 0}, {"length": 0}):
        case = _f32(cases.selective_case(**shape))
        got = cases.gradients(cpu.selective, case)
        assert got["y"].shape == case["u"].shape
        assert torch.equal(got["last"], case["initial_state"])
        assert not got["dA"].any()


@needs_kernel
def test_last_state_and_tensors_given_twice_have_their_gradients():
    case = _f32(cases.selective_case(extras=False))
    for names in (("u", "delta"), ("B", "C")):
        twice = case | {names[1]: case[names[0]].abs()}
        grads = []
        for run, c in (
            (cpu.selective, twice),
            (reference.selective, cases.wide(twice)),
        ):
            x = c[names[1]].clone().requires_grad_()
            c = c | {names[0]: x, names[1]: x}
            grads.append(torch.autograd.grad(run(*c.values())[1].sum(), x)[0])
        assert cases.relative(*grads) <= BACKWARD


@needs_kernel
def test_B_and_C_may_come_in_different_groups():
    case = _f32(cases.selective_case(channels=12, groups=4))
    case["C"] = case["C"][:, :, :2].contiguous()
    _compare(cpu.selective, reference.selective, case)


# -- the recurrence and the convolution ---------------------------------------------


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


@needs_kernel
@pytest.mark.parametrize("shape", [(2, 9, 5), (3, 2, 1), (3, 40, 300)])
@pytest.mark.parametrize("extras", [False, True])
def test_linear_agrees_with_float64(shape, extras):
    a, b = torch.sigmoid(_draw(*shape)), _draw(*shape, seed=1)
    h0 = _draw(shape[0], shape[2], seed=2) if extras else None
    reset = _draw(*shape[:2], seed=3) > 1 if extras else None
    assert (
        cases.relative(
            cpu.linear(a, b, h0, reset),
            cases.linear_oracle(*map(_numpy, (a, b, h0, reset))),
        )
        <= FORWARD
    )
    grads = []
    for run, to in ((cpu.linear, torch.float32), (reference.linear, torch.float64)):
        leaves = [None if x is None else x.to(to).requires_grad_() for x in (a, b, h0)]
        h = run(*leaves, reset)
        inputs = [x for x in leaves if x is not None]
        loss = (h * _draw(*shape, seed=4).to(to)).sum()
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), inputs)
        grads.append((*first, *second))
    for got, want in zip(*grads):
        assert cases.relative(got, want) <= BACKWARD


def _numpy(x):
    return None if x is None else x.double().numpy() if x.dtype != torch.bool else x


@needs_kernel
@pytest.mark.parametrize("K", [2, 3, 4])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shape", [(2, 7, 5), (3, 2, 1), (2, 30, 290)])
def test_convolution_agrees_with_torch(K, silu, shape):
    given = (_draw(*shape), _draw(shape[2], K, seed=1), _draw(shape[2], seed=2))
    given = (*given, _draw(shape[0], K - 1, shape[2], seed=3))

    def want(x, weight, bias, initial):
        x = torch.cat([initial, x], dim=1).mT
        y = torch.nn.functional.conv1d(x, weight[:, None], bias, groups=x.shape[1]).mT
        return torch.nn.functional.silu(y) if silu else y

    def got(x, weight, bias, initial):
        return cpu.causal_conv(x, weight, bias, silu, initial)

    results = []
    for run, to in ((got, torch.float32), (want, torch.float64)):
        leaves = [x.to(to).requires_grad_() for x in given]
        y = run(*leaves)
        results.append((y, *torch.autograd.grad((y * y).sum(), leaves)))
    for x, exact in zip(*results):
        assert cases.relative(x, exact) <= 1e-6
    bare = cpu.causal_conv(given[0], given[1], None, silu)
    zero = torch.zeros_like
    assert torch.equal(bare, got(*given[:2], zero(given[2]), zero(given[3])))
    with pytest.raises(ValueError, match="2 to 4"):
        cpu.causal_conv(given[0], _draw(shape[2], 5))


# -- the exponential, and what is not a number --------------------------------------


def _powers(product: torch.Tensor) -> torch.Tensor:
    """exp of each number, as the scan takes it: one step from a state of 1."""
    n = len(product)
    zero, one = torch.zeros(1, 1, n), torch.ones(1, 1, 1, 1)
    return cpu.selective(
        *(zero, product.reshape(1, 1, n), torch.ones(n, 1), one, one),
        initial_state=torch.ones(1, n, 1),
    )[1].flatten()


@needs_kernel
def test_the_exponential_is_exact_where_it_must_be():
    x = torch.tensor([0.0, -0.0, -1e3, -5e4, -1e9, 200.0, 1e9, float("nan"), -1e-9])
    got = _powers(x)
    assert got[:7].tolist() == [1, 1, 0, 0, 0, float("inf"), float("inf")]
    assert got[7].isnan()
    assert got[8] == 1
    x = torch.linspace(-86, 88, 40001)
    error = (_powers(x).double() / torch.exp(x.double()) - 1).abs()
    exponent = x.abs() * 2**-23  # rounded twice: by log2(e), and as a product
    assert (error - exponent).max() < 2.5e-7
    slow = torch.linspace(-0.3, 0, 10001)[:-1]  # the rate of a slow decay, too
    rate = (1 - _powers(slow).double()) / -torch.expm1(slow.double()) - 1
    assert (rate.abs() * -slow.double()).max() < 2e-7


@needs_kernel
def test_nan_stays_in_its_channel_and_its_sequence():
    case = _f32(cases.selective_case(channels=40, length=30, states=4, softplus=True))
    clean = cpu.selective(*case.values())
    case["delta"][0, 7, 3] = float("nan")
    case["u"][1, 20, 17] = float("nan")
    y, last = cpu.selective(*case.values())
    bad = torch.zeros(2, 30, 40, dtype=torch.bool)
    bad[0, 7:, 3] = bad[1, 20:, 17] = True
    assert torch.equal(y.isnan(), bad)
    assert torch.equal(y[~bad], clean[0][~bad])
    assert torch.equal(last.isnan().any(-1), bad[:, -1])
    case["reset"] = torch.zeros(2, 30, dtype=torch.bool)
    case["reset"][:, 25] = True
    y = cpu.selective(*case.values())[0]
    assert torch.equal(y.isnan(), bad & (torch.arange(30) < 25)[:, None])


# -- repeatable, and twice differentiable -------------------------------------------


@needs_kernel
def test_bitwise_equal_from_run_to_run_and_across_threads():
    threads = torch.get_num_threads()
    selective = _f32(cases.selective_case(3, 70, 200, 16, softplus=True, reset=True))
    ssd = _f32(cases.ssd_case(2, 50, 8, 33, 16, softplus=True))
    try:
        for run, case in ((cpu.selective, selective), (cpu.ssd, ssd)):
            torch.set_num_threads(1)
            first = cases.gradients(run, case)
            for n in (2, 1, 3, 2, 5):
                torch.set_num_threads(n)
                again = cases.gradients(run, case)
                assert all(torch.equal(first[name], again[name]) for name in first)
    finally:
        torch.set_num_threads(threads)


@needs_kernel
@pytest.mark.parametrize("heads", [False, True])
def test_double_backward_agrees_with_the_reference(heads):
    if heads:
        case, run, slow = cases.ssd_case(softplus=True), cpu.ssd, reference.ssd
    else:
        case = cases.selective_case(softplus=True, reset=True)
        run, slow = cpu.selective, reference.selective
    case, results = _f32(case), []
    for f, c in ((run, case), (slow, cases.wide(case))):
        c = {
            name: x.clone().requires_grad_()
            if isinstance(x, torch.Tensor) and x.is_floating_point()
            else x
            for name, x in c.items()
        }
        leaves = [x for x in c.values() if getattr(x, "requires_grad", False)]
        y, last = f(*c.values())
        loss = (y**2).sum() + (last**2).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        hessian = torch.autograd.grad(sum((g.sin()).sum() for g in first), leaves)
        results.append((*first, *hessian))
    for got, want in zip(*results):
        assert cases.relative(got, want) <= 1e-5


@needs_kernel
def test_the_threads_survive_a_fork():
    script = """
import os, sys, torch
sys.path.insert(0, "ci/tests")
import scan_cases as cases
from lib.scan import cpu
case = cases.cast(cases.selective_case(4, 64, 128, 16), torch.float32)
torch.set_num_threads(2)
first = cpu.selective(*case.values())[0]
child = os.fork()
if not child:
    os._exit(0 if torch.equal(first, cpu.selective(*case.values())[0]) else 3)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(first, cpu.selective(*case.values())[0])
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


@needs_kernel
def test_training_keeps_little_memory():
    batch, length, channels, N = 2, 160, 64, 16
    case = _f32(cases.selective_case(batch, length, channels, N, extras=False))
    kept = []
    u = case["u"].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x) or x, lambda x: x
    ):
        cpu.selective(*case.values())
    given = {x.data_ptr() for x in case.values() if isinstance(x, torch.Tensor)}
    extra = [x for x in kept if x.data_ptr() not in given]
    assert sum(x.numel() for x in extra) <= u.numel()  # the checkpoints: N / 16 of u


# -- building -----------------------------------------------------------------------

# `build` alone, without torch: it starts at once.
RUN = """
import sys
sys.path.insert(0, "lib/scan")
import build
print(build.library("scan.c", "NS=4").check_floats is not None)
"""


def _python(script: str = RUN, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def _answer(script: str = RUN, **environment: str) -> str:
    process = _python(script, **environment)
    out = process.communicate(timeout=120)[0].strip()
    assert process.returncode == 0
    return out


@needs_kernel
def test_two_processes_may_build_at_once_and_damage_is_repaired(tmp_path):
    where = {"LIB_SCAN_CACHE": str(tmp_path / "new")}
    both = [_python(**where) for _ in range(2)]
    assert [p.communicate(timeout=120)[0].strip() for p in both] == ["True", "True"]
    built = sorted((tmp_path / "new").iterdir())
    assert len(built) == 1
    assert built[0].suffix == ".so"
    whole = built[0].read_bytes()
    built[0].write_bytes(whole[: len(whole) // 2])
    assert _answer(**where) == "True"
    assert sorted((tmp_path / "new").glob("*.so"))[0].read_bytes() == whole


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has loaded nothing yet, with an empty cache."""
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setenv("LIB_SCAN_CACHE", str(tmp_path))
    return monkeypatch


def test_it_can_be_switched_off(fresh):
    fresh.setenv("LIB_SCAN_KERNEL", "0")
    assert "LIB_SCAN_KERNEL=0" in cpu.unavailable()


def test_without_a_compiler_it_says_so(fresh, tmp_path):
    fresh.delenv("CC", raising=False)
    fresh.setenv("PATH", str(tmp_path))
    assert "install gcc or clang" in cpu.unavailable()
    fresh.setenv("CC", "no-such-compiler -O2")
    assert "'no-such-compiler'" in cpu.unavailable()


@needs_kernel
def test_asking_whether_it_builds_builds_what_is_used_first(fresh, tmp_path):
    fresh.setenv("LIB_SCAN_CACHE", str(tmp_path))
    assert cpu.unavailable() is None
    x = torch.ones(1, 3, 4)
    cpu.selective(x, x, -torch.ones(4, 16), *torch.ones(2, 1, 3, 1, 16))
    assert len(list(tmp_path.glob("*.so"))) == 1


@needs_kernel
def test_the_first_line_of_a_compile_error_is_told(fresh):
    fresh.setenv("LIB_SCAN_MARCH", "pdp11")
    assert "failed on scan.c: " in cpu.unavailable()
    assert "pdp11" in cpu.unavailable()


@needs_kernel
def test_one_file_that_fails_leaves_the_other_kernels_alone(fresh):
    load = build._load

    def broken(source, defines):
        if source == "lanes.c":
            raise build.BuildError("cc failed on lanes.c: error: no.")
        return load(source, defines)

    fresh.setattr(build, "_load", broken)
    fresh.setattr(dispatch, "_said", [])
    fresh.delenv(dispatch.VARIABLE, raising=False)
    a, b = torch.sigmoid(_draw(2, 9, 5)), _draw(2, 9, 5, seed=1)
    with pytest.warns(UserWarning, match=r"failed on lanes.c: .* Plain torch serves"):
        h = linear_scan(a, b)
    assert torch.equal(h, linear_scan(a, b, backend="chunked"))
    assert "lanes.c" in backend_info()["auto"]
    with pytest.raises(ValueError, match=r"failed on lanes.c"):
        linear_scan(a, b, backend="cpu")
    assert dispatch.absent("cpu") is None
    assert "lanes.c" in dispatch.absent("cpu", "conv")


@needs_kernel
def test_a_folder_that_cannot_be_written_is_named_or_replaced(fresh, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    fresh.setenv("LIB_SCAN_CACHE", str(blocked / "deeper"))
    assert str(blocked) in cpu.unavailable()
    fresh.delenv("LIB_SCAN_CACHE")
    fresh.setenv("XDG_CACHE_HOME", str(blocked))
    spare = tmp_path / "spare"
    spare.mkdir()
    fresh.setattr(build, "private_folder", lambda: spare)
    assert cpu.unavailable() is None
    assert list(spare.glob("*.so"))


@needs_kernel
def test_another_instruction_set_is_another_library_with_the_same_answers(fresh):
    if build._march() != "-march=native":
        pytest.skip("only x86-64 has these names")
    case = _f32(cases.selective_case(softplus=True, channels=37, states=16, length=40))
    for march in ("x86-64-v3", "x86-64"):
        fresh.setenv("LIB_SCAN_MARCH", march)
        _compare(cpu.selective, reference.selective, case)


def test_what_is_not_supported_is_said():
    u, A, B = torch.zeros(1, 2, 3), torch.zeros(3, 4), torch.zeros(1, 2, 1, 4)
    assert cpu.unsupported(u, A, B) is None
    assert cpu.unsupported(u.bfloat16(), A, B.bfloat16(), "euler") is None
    for given, word in (
        ((u, A.to(torch.complex64), B), "real"),
        ((u, A, B, "zoh"), "'zoh'"),
        ((u.double(), A, B), "float64"),
        ((u, A.double(), B), "float64"),
        ((u, A, torch.zeros(1, 2, 1, 257)), "256"),
        ((u.to("meta"), A, B), "meta"),
    ):
        assert word in cpu.unsupported(*given)
