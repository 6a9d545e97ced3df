"""The public calls of lib.scan: layouts, padding, packing, order, backends, errors."""

import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import (
    DOUBLE,
    agree,
    gradients,
    relative,
    selective_case,
    selective_oracle,
    ssd_case,
    ssd_oracle,
)

from lib.kit.start import ROOT
from lib.scan import (
    BACKENDS,
    backend_info,
    dispatch,
    linear_scan,
    selective_scan,
    ssd,
    ssd_step,
    step,
)

PLAIN = ("reference", "associative", "chunked")
CPU = ["cpu"] if dispatch.absent("cpu") is None else []
ALL = (*PLAIN, *CPU)
FLOAT, BF16 = torch.float32, torch.bfloat16
TIMED = ("u", "delta", "z", "B", "C", "x")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def forgetful(monkeypatch):
    """Dispatch as in a fresh process, with nothing set in the environment."""
    monkeypatch.setattr(dispatch, "_said", [])
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.delenv("LIB_SCAN_KERNEL", raising=False)
    return monkeypatch


def kind(backend):
    """A precision that the backend takes, and how closely it then agrees."""
    return (DOUBLE, 1e-11) if backend in PLAIN else (FLOAT, 1e-5)


def scan(case, call=selective_scan, **options):
    """The public call with the arguments of a case; y and the last state."""
    case = dict(case)
    options = {"initial_state": case["initial_state"]} | options
    options = {"reset": case["reset"], "return_last_state": True} | options
    if call is selective_scan:
        options = {"channel_last": True} | options
    arguments = [x for n, x in case.items() if n not in ("initial_state", "reset")]
    return call(*arguments, **options)


def runs(call=selective_scan, **options):
    """The same as a function of a case's values, for `gradients`."""

    def run(*values):
        names = list(selective_case() if call is selective_scan else ssd_case())
        return scan(dict(zip(names, values)), call, **options)

    return run


def part(case, rows=slice(None), steps=slice(None)):
    """Some rows and some steps of a case."""

    def cut(name, x):
        if not isinstance(x, torch.Tensor):
            return x
        x = x[rows] if name in (*TIMED, "reset", "initial_state") else x
        return x[:, steps] if name in (*TIMED, "reset") else x

    return {name: cut(name, x) for name, x in case.items()}


# -- layouts ------------------------------------------------------------------------


def channels_first(case):
    turned = {n: case[n].transpose(1, 2) for n in ("u", "delta", "z")}
    turned |= {n: case[n].permute(0, 2, 3, 1) for n in "BC"}
    return case | turned


@pytest.mark.parametrize("backend", ALL)
def test_both_layouts_and_any_strides_agree(backend):
    dtype, tol = kind(backend)
    case = selective_case(3, 9, 6, 4, 2, dtype=dtype, reset=True)
    want = gradients(runs(backend=backend), case)

    def run(*values):
        case = channels_first(dict(zip(selective_case(), values)))
        y, last = scan(case, channel_last=False, backend=backend)
        return y.mT, last

    agree(gradients(run, case), want, tol)
    strided = {
        n: torch.stack([x, x], -1)[..., 0] if isinstance(x, torch.Tensor) else x
        for n, x in case.items()
    }
    assert relative(scan(strided, backend=backend)[0], want["y"]) <= tol


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("constant", ["B", "C", "BC"])
def test_constant_inputs_are_variable_ones_that_do_not_vary(backend, constant):
    dtype, tol = kind(backend)
    case = selective_case(2, 7, 4, 3, 2, dtype=dtype)
    for name in constant:
        case[name] = torch.randn(4, 3, dtype=dtype)
    widened = {n: case[n].expand(2, 7, 4, 3) for n in constant}
    got = gradients(runs(backend=backend), case)
    want = gradients(runs(backend="reference"), case | widened)
    for name in constant:
        want[f"d{name}"] = want[f"d{name}"].sum((0, 1))
    agree(got, want, tol)
    turned = channels_first(case | widened) | {n: case[n] for n in constant}
    y, _ = scan(turned, channel_last=False, backend=backend)
    assert relative(y.mT, want["y"]) <= tol


@pytest.mark.parametrize("backend", ALL)
def test_ungrouped_inputs_and_unequal_groups(backend):
    dtype, tol = kind(backend)
    case = selective_case(2, 7, 6, 3, 1, dtype=dtype)
    want = scan(case, backend="reference")
    flat = case | {n: case[n][:, :, 0] for n in "BC"}
    assert relative(scan(flat, backend=backend)[0], want[0]) <= tol
    case["B"], case["C"] = (
        torch.randn(2, 7, groups, 3, dtype=dtype) for groups in (2, 3)
    )
    want = gradients(runs(backend="reference"), case)
    assert relative(want["y"], selective_oracle(case)[0]) < 1e-6
    agree(gradients(runs(backend=backend), case), want, tol)


def test_the_form_of_mamba_ssm_is_served():
    case = channels_first(selective_case(extras=False) | {"z": torch.zeros(2, 13, 5)})
    y = selective_scan(case["u"], case["delta"], case["A"], case["B"], case["C"])
    assert relative(y.mT, selective_oracle(selective_case(extras=False))[0]) < 1e-12
    assert y.shape == case["u"].shape


# -- order, padding, packing --------------------------------------------------------


@pytest.mark.parametrize("backend", ALL)
def test_two_halves_with_the_state_handed_over_are_the_whole(backend):
    dtype, tol = kind(backend)
    case = selective_case(2, 23, 5, 4, dtype=dtype, reset=True)

    def halves(*values):
        whole = dict(zip(case, values))
        first, state = scan(part(whole, steps=slice(10)), backend=backend)
        rest = part(whole, steps=slice(10, None)) | {"initial_state": state}
        second, state = scan(rest, backend=backend)
        return torch.cat([first, second], 1), state

    agree(gradients(halves, case), gradients(runs(backend=backend), case), tol)


@pytest.mark.parametrize("backend", PLAIN)
def test_two_halves_of_ssd_are_the_whole(backend):
    case = ssd_case(2, 23, reset=True)
    y, last = scan(case, ssd, backend=backend, chunk=8)
    first, state = scan(part(case, steps=slice(9)), ssd, backend=backend)
    rest = part(case, steps=slice(9, None)) | {"initial_state": state}
    second, state = scan(rest, ssd, backend=backend)
    assert relative(torch.cat([first, second], 1), y) < 1e-12
    assert relative(state, last) < 1e-12


@pytest.mark.parametrize("rule", ["euler", "zoh"])
@pytest.mark.parametrize("complex_A", [False, True])
def test_steps_are_the_scan(complex_A, rule):
    case = selective_case(2, 8, 6, 3, 2, complex_A=complex_A, softplus=True)
    y, last = scan(case, discretization=rule)
    state = case["initial_state"]
    for t in range(8):
        one = {n: case[n][:, t] for n in ("u", "delta", "z", "B", "C")}
        named = {n: case[n] for n in ("A", "D", "delta_bias", "delta_softplus")}
        y_t, state = step(state, **one, **named, discretization=rule)
        assert relative(y_t, y[:, t]) < 1e-11
    assert relative(state, last) < 1e-12


def test_ssd_steps_are_the_ssd_and_one_group_needs_no_dimension():
    case = ssd_case(2, 8, softplus=True, wide_D=True)
    y, last = scan(case, ssd)
    state = case["initial_state"]
    for t in range(8):
        one = {n: case[n][:, t] for n in ("x", "delta", "z", "B", "C")}
        named = {n: case[n] for n in ("A", "D", "delta_bias", "delta_softplus")}
        y_t, state = ssd_step(state, **one, **named)
        assert relative(y_t, y[:, t]) < 1e-11
    assert relative(state, last) < 1e-12
    h, u, B = torch.zeros(2, 5, 3), torch.randn(2, 5), torch.randn(2, 3)
    assert step(h, u, u.abs(), -torch.ones(5, 3), B, B)[0].shape == (2, 5)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=3, max_size=3),
    reverse=st.booleans(),
    softplus=st.booleans(),
    extras=st.booleans(),
)
@pytest.mark.parametrize("backend", ALL)
def test_padded_rows_are_rows_on_their_own(backend, lengths, reverse, softplus, extras):
    dtype, tol = kind(backend)
    case = selective_case(
        3, 9, 4, 4, 2, softplus=softplus, extras=extras, reset=True, dtype=dtype
    )
    ends = torch.tensor(lengths)
    padding = torch.arange(9) >= ends[:, None]
    for name in ("u", "delta", "z", "B", "C"):
        if case[name] is not None:
            case[name][padding] = torch.nan
    case["reset"] |= padding
    options = {"reverse": reverse, "backend": backend}
    got = gradients(runs(lengths=ends, **options), case)
    y, last = selective_oracle(case, lengths=lengths, reverse=reverse)
    assert relative(got["y"], y) <= tol
    assert relative(got["last"], last) <= tol
    assert all(torch.isfinite(x).all() for x in got.values())

    def rows(*values):
        whole = dict(zip(case, values))
        outs = []
        for b, end in enumerate(lengths):
            row = part(whole, slice(b, b + 1), slice(end))
            y, last = scan(row, **options)
            outs.append((torch.nn.functional.pad(y, (0, 0, 0, 9 - end)), last))
        return tuple(torch.cat(x) for x in zip(*outs))

    agree(got, gradients(rows, case), tol)


def test_a_gradient_that_is_nan_in_the_padding_does_no_harm():
    case = selective_case(2, 6, softplus=True)
    u = case["u"].requires_grad_()
    y, _ = scan(case, lengths=[4, 6])
    weight = torch.ones_like(y)
    weight[0, 4:] = torch.nan
    y.backward(weight)
    assert torch.isfinite(u.grad).all()
    assert torch.all(u.grad[0, 4:] == 0)


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("wide_D", [False, True])
def test_padded_rows_of_ssd(backend, wide_D):
    case = ssd_case(3, 9, softplus=True, reset=True, wide_D=wide_D)
    lengths = [4, 0, 9]
    y, last = ssd_oracle(case, lengths)
    padding = torch.arange(9) >= torch.tensor(lengths)[:, None]
    for name in ("x", "delta", "z", "B", "C"):
        case[name][padding] = torch.nan
    got = gradients(runs(ssd, lengths=lengths, backend=backend, chunk=4), case)
    assert relative(got["y"], y) < 1e-12
    assert relative(got["last"], last) < 1e-12
    assert all(torch.isfinite(x).all() for x in got.values())


@pytest.mark.parametrize("bias", [-20.0, 20.0, 3e4])
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("dtype", [BF16, FLOAT])
def test_padding_does_not_touch_the_state_whatever_the_bias(dtype, softplus, bias):
    case = selective_case(2, 5, 4, 4, softplus=softplus, dtype=dtype)
    case["delta_bias"] = torch.full((4,), bias + 0.123)
    case["delta"] = case["delta"] - bias
    _, last = scan(case, lengths=[3, 0])
    _, short = scan(part(case, slice(0, 1), slice(3)))
    assert relative(last[:1], short) < 1e-6
    assert torch.equal(last[1], case["initial_state"][1])


@pytest.mark.parametrize("backend", ALL)
def test_a_packed_row_is_its_sequences(backend):
    dtype, tol = kind(backend)
    case = selective_case(1, 12, 4, 4, dtype=dtype)
    starts, ends = (0, 5, 6), (5, 6, 12)
    case["reset"] = torch.zeros(1, 12, dtype=torch.bool)
    case["reset"][0, list(starts)] = True

    def apart(*values):
        whole = dict(zip(case, values)) | {"reset": None}
        whole["initial_state"] = None  # a reset at step 0 discards it
        pieces = [part(whole, steps=slice(*ends)) for ends in zip(starts, ends)]
        outs = [scan(piece, backend=backend) for piece in pieces]
        return torch.cat([y for y, _ in outs], 1), outs[-1][1]

    agree(gradients(runs(backend=backend), case), gradients(apart, case), tol)


@pytest.mark.parametrize("backend", ["reference", "associative", *CPU])
def test_nan_in_one_packed_sequence_stays_there(backend):
    dtype, _ = kind(backend)
    case = selective_case(1, 12, 4, 4, dtype=dtype)
    case["reset"] = torch.arange(12)[None] == 6
    case["u"][0, 2] = torch.nan
    y, _ = scan(case, backend=backend)
    assert torch.isfinite(y[0, :2]).all()
    assert torch.isnan(y[0, 2:6]).all()
    assert torch.isfinite(y[0, 6:]).all()


@pytest.mark.parametrize("backend", ALL)
def test_reversed_is_flipped(backend):
    dtype, tol = kind(backend)
    case = selective_case(2, 11, 4, 4, dtype=dtype, reset=True)

    def flipped(*values):
        whole = dict(zip(case, values))
        turned = {n: x.flip(1) for n, x in whole.items() if n in (*TIMED, "reset")}
        y, last = scan(whole | turned, backend=backend)
        return y.flip(1), last

    got = gradients(runs(reverse=True, backend=backend), case)
    agree(got, gradients(flipped, case), tol)
    assert relative(got["y"], selective_oracle(case, reverse=True)[0]) <= tol


@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 17, 100])
def test_chunk_sizes_agree(chunk):
    case = selective_case(2, 17, reset=True)
    want = gradients(runs(backend="reference"), case)
    agree(gradients(runs(backend="chunked", chunk=chunk), case), want, 1e-11)
    case = ssd_case(2, 17, reset=True)
    want = gradients(runs(ssd, backend="reference"), case)
    agree(gradients(runs(ssd, backend="chunked", chunk=chunk), case), want, 1e-11)


@pytest.mark.parametrize("backend", PLAIN)
def test_ssd_is_a_selective_scan_with_tied_decays(backend):
    case = ssd_case(2, 9, 4, 3, 5, 2, softplus=True, reset=True, wide_D=True)
    y, last = scan(case, ssd, backend=backend)
    tied = {n: case[n].flatten(2) for n in ("x", "z")}
    tied["delta"] = case["delta"].repeat_interleave(3, 2)
    tied["A"] = case["A"].repeat_interleave(3)[:, None].expand(12, 5)
    tied["D"] = case["D"].flatten()
    tied["delta_bias"] = case["delta_bias"].repeat_interleave(3)
    tied["initial_state"] = case["initial_state"].flatten(1, 2)
    y2, last2 = scan(case | tied, backend=backend)
    assert relative(y2.unflatten(2, (4, 3)), y) < 1e-12
    assert relative(last2.unflatten(1, (4, 3)), last) < 1e-12


@pytest.mark.parametrize("empty", ["batch", "length", "channels", "states"])
@pytest.mark.parametrize("backend", ["auto", *ALL])
def test_nothing_in_nothing_out(backend, empty):
    if backend == "cpu" and empty == "states":
        backend = "auto"  # named, it says that it holds 1 to 256 states
    sizes = {"batch": 2, "length": 3, "channels": 4, "states": 4} | {empty: 0}
    case = selective_case(**sizes, dtype=FLOAT)
    y, last = scan(case, backend=backend)
    assert y.shape == case["u"].shape
    assert last.shape == case["initial_state"].shape
    if empty == "length":
        assert torch.equal(last, case["initial_state"])
    x = torch.zeros(2, 0, 3)
    assert (
        linear_scan(x, x, backend=backend if backend in PLAIN else "auto").numel() == 0
    )


# -- types --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [BF16, torch.float16, FLOAT, DOUBLE])
def test_y_keeps_its_type_and_the_state_is_wide(dtype):
    case = selective_case(dtype=dtype)
    y, last = scan(case)
    assert y.dtype == dtype
    assert last.dtype == (DOUBLE if dtype == DOUBLE else FLOAT)
    assert relative(y, selective_oracle(case)[0]) < 1e-2
    assert scan(selective_case(dtype=dtype, complex_A=True))[0].dtype == dtype


def test_half_and_single_precision_mix_as_under_autocast():
    case = selective_case(dtype=BF16)
    want = scan(case)
    mixed = case | {"delta": case["delta"].float(), "B": case["B"].float()}
    got = scan(mixed)
    assert got[0].dtype == BF16
    assert relative(got[0], want[0]) < 1e-2
    assert relative(got[1], want[1]) < 1e-5


def test_autocast_does_not_reach_the_scan():
    case = ssd_case(dtype=FLOAT)
    want = scan(case, ssd, backend="chunked")[0]
    with torch.autocast("cpu", dtype=BF16):
        assert torch.equal(scan(case, ssd, backend="chunked")[0], want)


@pytest.mark.parametrize("backend", ALL)
def test_a_nan_reaches_what_depends_on_it(backend):
    dtype, _ = kind(backend)
    for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"):
        case = selective_case(2, 9, 4, 4, dtype=dtype, softplus=True)
        bad = case[name]
        bad[(0,) * bad.ndim] = torch.nan  # row, step or channel 0
        y, last = scan(case, backend=backend)
        assert torch.isnan(y[0, 0]).any(), name
        carried = name not in ("C", "D", "z")
        assert bool(torch.isnan(last[0]).any()) == carried, name
    x = {n: ssd_case(dtype=dtype)[n] for n in ("x", "delta", "A", "B", "C")}
    x["x"][0, 5, 0, 0] = torch.nan
    assert torch.isnan(ssd(**x, backend=backend)[0, 5:, 0, 0]).all()


def test_gradients_have_the_types_of_their_arguments():
    case = selective_case(dtype=BF16, softplus=True, reset=True)
    got = gradients(runs(), case)
    for name, x in case.items():
        if isinstance(x, torch.Tensor) and x.dtype != torch.bool:
            assert got[f"d{name}"].dtype == x.dtype


# -- choosing a backend -------------------------------------------------------------


def test_an_import_neither_builds_nor_imports_a_kernel():
    code = "import sys, lib.scan; print(*sys.modules, sep='\\n')"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    heavy = {"lib.scan.cpu", "lib.scan.build", "lib.scan.gpu", "triton", "transformers"}
    assert not heavy & set(done.stdout.split())


def test_backend_info_names_all_and_says_why_not(forgetful):
    info = backend_info()
    assert set(info) == set(BACKENDS)
    assert all(info[name] == "available" for name in PLAIN)
    assert info["auto"] == "has not fallen back"
    scan(selective_case())  # float64
    assert "float64" in backend_info()["auto"]
    forgetful.setenv(dispatch.VARIABLE, "reference")
    assert backend_info()["auto"] == "LIB_SCAN_BACKEND=reference"


def test_a_fallback_is_logged_once_and_prints_nothing(forgetful, caplog, capfd):
    with caplog.at_level(logging.INFO, "lib.scan"):
        for _ in range(3):
            scan(selective_case())
            scan(selective_case(complex_A=True, dtype=FLOAT))
    assert len(caplog.records) == 2
    assert all("\n" not in record.message for record in caplog.records)
    assert capfd.readouterr() == ("", "")


class Broken:
    """A kernel module that could not be built."""

    @staticmethod
    def unavailable(call="selective"):
        return "There is no C compiler; install gcc."


def broken(forgetful):
    module = type(dispatch)("broken")
    module.unavailable = Broken.unavailable
    module.selective = module.ssd = None
    forgetful.setattr(dispatch, "_module", lambda name: module)


def test_a_kernel_that_cannot_be_built_warns_once_where_it_is_called(forgetful):
    broken(forgetful)
    case = selective_case(dtype=FLOAT)
    with pytest.warns(UserWarning, match="install gcc") as caught:
        y, _ = scan(case)
    assert [warning.filename for warning in caught] == [__file__]
    scan(case)  # a second warning would be an error here
    assert relative(y, selective_oracle(case)[0]) < 1e-5
    assert "install gcc" in backend_info()["cpu"]
    with pytest.raises(ValueError, match="install gcc"):
        scan(case, backend="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scan(selective_case())  # float64 is no fault of the compiler


@pytest.mark.parametrize(
    ("name", "value"), [("LIB_SCAN_BACKEND", "chunked"), ("LIB_SCAN_KERNEL", "0")]
)
def test_what_was_chosen_is_not_warned_of(forgetful, name, value):
    broken(forgetful)
    forgetful.setenv(name, value)
    scan(selective_case(dtype=FLOAT))


def test_the_environment_chooses_for_auto_only(forgetful):
    chosen = []
    module = dispatch.module
    forgetful.setattr(dispatch, "module", lambda n: chosen.append(n) or module(n))
    case = selective_case(dtype=FLOAT)
    forgetful.setenv(dispatch.VARIABLE, "associative")
    scan(case)
    scan(case, backend="reference")
    forgetful.setenv(dispatch.VARIABLE, "cpu")
    scan(selective_case())  # float64: not for this kernel
    assert chosen == ["associative", "reference", "chunked"]
    forgetful.setenv(dispatch.VARIABLE, "gpu")
    with pytest.raises(ValueError, match="LIB_SCAN_BACKEND is 'gpu'; choose one of"):
        scan(case)


@pytest.mark.skipif(not CPU, reason="the C kernel cannot be built here")
def test_auto_takes_the_kernel_where_it_serves(forgetful):
    chosen = []
    module = dispatch.module
    forgetful.setattr(dispatch, "module", lambda n: chosen.append(n) or module(n))
    case = selective_case(dtype=FLOAT)
    scan(case)
    scan(selective_case(dtype=BF16))
    scan(case, discretization="zoh")
    scan(case | {"C": torch.randn(5, 3)})  # constant: each channel has its own
    scan(selective_case(50, 60, 20, 30, 10, dtype=FLOAT))  # and many states
    assert chosen == ["cpu", "cpu", "chunked", "chunked", "reference"]
    assert "come in groups of 2" in backend_info()["auto"]


def test_a_missing_module_is_a_sentence(forgetful):
    forgetful.delattr("lib.scan.gpu", raising=False)  # another test may have it
    forgetful.setitem(sys.modules, "lib.scan.gpu", None)
    assert dispatch.absent("triton").startswith("The backend 'triton' cannot be imp")
    with pytest.raises(ValueError, match="takes tensors on cuda, not on cpu"):
        scan(selective_case(dtype=FLOAT), backend="triton")


# -- sentences ----------------------------------------------------------------------

GOOD = selective_case(2, 7, 4, 3, 2, reset=True)
BAD = [
    ("u", torch.zeros(2, 7), r"u has shape \(2, 7\); expected \(batch, length"),
    ("u", [1.0], "u is a list; give a tensor"),
    ("A", torch.zeros(3, 3), r"A has shape \(3, 3\); expected \(channels, N\) = \(4"),
    ("A", None, "A is missing; give a tensor"),
    ("delta", torch.zeros(2, 4, 7), r"delta has shape \(2, 4, 7\).*= \(2, 7, 4\)"),
    ("z", torch.zeros(2, 7, 3), r"z has shape .*as u, = \(2, 7, 4\)"),
    ("B", torch.zeros(2, 7, 4), r"B has shape .*\(batch, length, N\) = \(2, 7, 3\)"),
    ("B", torch.zeros(4, 4), r"B has shape .*a constant \(channels, N\) = \(4, 3\)"),
    ("C", torch.zeros(2, 7, 3, 3), "C has 3 groups, which do not divide 4 channels"),
    ("C", torch.zeros(2, 6, 2, 3), r"C has shape .*groups, N\) = \(2, 7, 2, 3\)"),
    ("C", torch.zeros(3), "C has shape .*constant .* variable .* grouped"),
    ("D", torch.zeros(3), r"D has shape \(3,\); expected \(channels,\) = \(4,\)"),
    ("delta_bias", torch.zeros(1), "delta_bias has shape"),
    ("initial_state", torch.zeros(2, 3, 4), r"initial_state .*N\) = \(2, 4, 3\)"),
    ("reset", torch.zeros(2, 7), "reset is not a boolean tensor"),
    ("reset", torch.zeros(7, dtype=torch.bool), r"reset has shape .*= \(2, 7\)"),
    ("D", torch.zeros(4, dtype=torch.int64), "D has type torch.int64; give a real"),
    ("D", torch.zeros(4, dtype=FLOAT), "Precisions are mixed: .*D torch.float32"),
    ("D", torch.zeros(4, device="meta"), "D is on meta, not on cpu; move"),
    ("u", torch.zeros(2, 7, 4, dtype=torch.complex128), "u has type torch.complex128"),
    ("B", torch.zeros(4, 3, dtype=torch.complex128), "A is real, but B, C or init"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), BAD)
def test_a_wrong_argument_is_named(name, value, sentence):
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        named = "mixed" in sentence
        value = value if named else value.to(DOUBLE)
    with pytest.raises((ValueError, TypeError), match=sentence):
        scan(GOOD | {name: value})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backend": "cuda"}, "The backend is 'cuda'; choose one of auto, reference"),
        ({"backend": "cpu"}, "takes real float32 or bfloat16, not torch.float64"),
        ({"discretization": "bilinear"}, "The discretization is 'bilinear'; choose"),
        ({"chunk": 0}, "chunk is 0; give a whole number of at least 1"),
        ({"chunk": 2.0}, "chunk is 2.0"),
        ({"lengths": [1, 8]}, r"lengths are \[1, 8\]; give numbers from 0 to 7"),
        ({"lengths": [-1, 7]}, "lengths are"),
        ({"lengths": [1]}, r"lengths has shape \(1,\); expected \(batch,\) = \(2,\)"),
        ({"lengths": [1.0, 2.0]}, "lengths has type .*; give whole numbers"),
    ],
)
def test_a_wrong_option_is_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        scan(GOOD, **options)


SSD = ssd_case(2, 7, 4, 3, 5, 2)
SSD_BAD = [
    ("x", torch.zeros(2, 7, 4), r"x has shape .*\(batch, length, heads, P\)"),
    ("delta", torch.zeros(2, 7, 3), r"delta has shape .*= \(2, 7, 4\)"),
    ("A", torch.zeros(4, 5), r"A has shape .*\(heads,\) = \(4,\)"),
    ("B", torch.zeros(2, 7, 5), r"B has shape .*= \(2, 7, groups, N\)"),
    ("B", torch.zeros(2, 7, 3, 5), "B has 3 groups, which do not divide 4 heads"),
    ("C", torch.zeros(2, 7, 1, 5), "C has shape .*, as B,"),
    ("D", torch.zeros(4, 4), r"D has shape .*\(heads, P\) = \(4, 3\)"),
    ("D", torch.zeros(3), r"D has shape .*\(heads,\) = \(4,\)"),
    ("z", torch.zeros(2, 7, 4), "z has shape .*as x,"),
    ("A", torch.zeros(4) * 1j, "A has type torch.complex128; give a real"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), SSD_BAD)
def test_a_wrong_argument_of_ssd_is_named(name, value, sentence):
    value = value.to(torch.complex128 if value.is_complex() else DOUBLE)
    with pytest.raises(ValueError, match=sentence):
        scan(SSD | {name: value}, ssd)
    with pytest.raises(ValueError, match="chunk is 0"):
        scan(SSD, ssd, chunk=0)


def test_a_wrong_argument_of_the_other_calls_is_named():
    x = torch.zeros(2, 5, 3)
    for a, b, options, sentence in (
        (x[:, :4], x, {}, r"a has shape \(2, 4, 3\); expected that of b, \(2, 5, 3\)"),
        (x[0, 0], x[0, 0], {}, r"b has shape \(3,\); expected \(batch, length"),
        (x, x.long(), {}, "b has type torch.int64"),
        (x, x.double(), {}, "Precisions are mixed"),
        (x, x, {"initial_state": x}, r"initial_state .*= \(2, 3\)"),
        (x, x, {"backend": "fast"}, "The backend is 'fast'"),
        (x / 0, x, {"check": True}, "a holds 30 values that are NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=sentence):
            linear_scan(a, b, **options)
    h, u = torch.zeros(2, 4, 3), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"B is of shape \(3,\); one step of it has 2"):
        step(h, u, u, h[0], h[0, 0], h[0, 0])
    with pytest.raises(ValueError, match=r"x is of shape \(2, 4\); one step of it has"):
        ssd_step(h, u, u, u[0], h, h)


def test_check_finds_nan_but_not_in_the_padding():
    case = selective_case(2, 7)
    case["delta"][0, 5:] = torch.nan
    scan(case, lengths=[5, 7], check=True)
    with pytest.raises(ValueError, match="delta holds 10 values that are NaN"):
        scan(case, check=True)
    case = ssd_case(2, 7)
    case["initial_state"][0, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="initial_state holds 1 values"):
        scan(case, ssd, check=True)
