"""Every backend of lib.scan against numpy loops and the float64 reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scan_cases import (
    DOUBLE,
    agree,
    gradients,
    linear_oracle,
    relative,
    selective_case,
    selective_oracle,
    ssd_case,
    ssd_oracle,
    wide,
)
from scipy.signal import lfilter

from lib.scan import (
    associative,
    chunked,
    dispatch,
    linear_scan,
    reference,
    selective_scan,
    ssd,
    terms,
)

PLAIN = ("reference", "associative", "chunked")
ALL = (*PLAIN, *(["cpu"] if dispatch.absent("cpu") is None else []))
LENGTHS = (1, 2, 5, 16, 17, 33)
FLOAT, BF16 = torch.float32, torch.bfloat16


def sweep(examples):
    """Settings of a property: few examples, the same ones every time."""
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=slow,
    )


pytestmark = pytest.mark.usefixtures("one_thread")


@st.composite
def selective_cases(draw, dtype=DOUBLE, complex_too=True):
    groups = draw(st.integers(1, 3))
    return selective_case(
        draw(st.integers(1, 3)),
        draw(st.sampled_from(LENGTHS)),
        groups * draw(st.integers(1, 3)),
        draw(st.sampled_from((1, 3, 4, 7, 16))),
        groups,
        draw(st.integers(0, 999)),
        softplus=draw(st.booleans()),
        complex_A=complex_too and draw(st.booleans()),
        extras=draw(st.booleans()),
        reset=draw(st.booleans()),
        dtype=dtype,
    )


@st.composite
def ssd_cases(draw, dtype=DOUBLE):
    groups = draw(st.integers(1, 2))
    return ssd_case(
        draw(st.integers(1, 2)),
        draw(st.sampled_from(LENGTHS)),
        groups * draw(st.integers(1, 3)),
        draw(st.sampled_from((1, 3, 8))),
        draw(st.sampled_from((1, 5, 16))),
        groups,
        draw(st.integers(0, 999)),
        softplus=draw(st.booleans()),
        extras=draw(st.booleans()),
        wide_D=draw(st.booleans()),
        reset=draw(st.booleans()),
        dtype=dtype,
    )


def run_selective(backend, **options):
    """The public call with the arguments of a case."""

    def run(*case):
        named = {"initial_state": case[9], "reset": case[10], "channel_last": True}
        named |= {"return_last_state": True, "backend": backend}
        return selective_scan(*case[:9], **named, **options)

    return run


def run_ssd(backend, **options):
    def run(*case):
        named = {"initial_state": case[9], "reset": case[10], "backend": backend}
        return ssd(*case[:9], **named, return_last_state=True, **options)

    return run


def served(backend, call, x, A, B):
    """Whether a backend takes a case; the plain ones take all."""
    return backend in PLAIN or dispatch.refusal(backend, call, x, A, B, "euler") is None


# -- selective ----------------------------------------------------------------------


@sweep(25)
@given(case=selective_cases(), rule=st.sampled_from(terms.RULES))
def test_selective_in_float64(case, rule):
    y, last = selective_oracle(case, rule)
    want = gradients(run_selective("reference", discretization=rule), case)
    agree(want | {"y": y, "last": last}, want, 1e-12)
    for backend in PLAIN[1:]:
        got = gradients(run_selective(backend, discretization=rule), case)
        agree(got, want, 1e-11)


@pytest.mark.parametrize(("dtype", "tol"), [(FLOAT, 1e-5), (BF16, 1.5e-2)])
@pytest.mark.parametrize("backend", ALL)
def test_selective_in_lower_precision(backend, dtype, tol):
    @sweep(15)
    @given(case=selective_cases(dtype=dtype, complex_too=False))
    def check(case):
        if not served(backend, "selective", case["u"], case["A"], case["B"]):
            return
        got = gradients(run_selective(backend), case)
        assert got["y"].dtype == dtype
        assert got["last"].dtype == FLOAT
        agree(got, gradients(reference.selective, wide(case)), tol)

    check()


EXTREMES = [
    {"delta": (1e-6, 50.0), "decay": (1e-3, 1e3)},
    {"delta": (10.0, 50.0), "decay": (1e2, 1e3)},
    {"delta": (1e-6, 1e-5), "decay": (1e-3, 1e-2)},
]


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("ranges", EXTREMES)
@pytest.mark.parametrize("backend", ALL)
def test_extreme_steps_and_decays(backend, ranges, softplus):
    case = selective_case(2, 65, 5, 4, seed=3, softplus=softplus, dtype=FLOAT, **ranges)
    got = gradients(run_selective(backend), case)
    assert all(torch.isfinite(x).all() for x in got.values())
    agree(got, gradients(reference.selective, wide(case)), 3e-5)


@pytest.mark.parametrize("ranges", EXTREMES)
@pytest.mark.parametrize("backend", PLAIN)
def test_extreme_steps_under_exact_zoh(backend, ranges):
    case = selective_case(2, 20, 5, 4, seed=3, dtype=FLOAT, **ranges)
    got = gradients(run_selective(backend, discretization="zoh"), case)

    def exact(*case):
        return reference.selective(*case, discretization="zoh")

    agree(got, gradients(exact, wide(case)), 3e-5)


@pytest.mark.parametrize("backend", PLAIN)
def test_zoh_at_a_zero_pole_integrates(backend):
    case = selective_case(extras=False)
    case["A"] = torch.zeros_like(case["A"])
    got = gradients(run_selective(backend, discretization="zoh"), case)
    want = gradients(run_selective(backend), case)
    assert relative(got["y"], want["y"]) < 1e-14  # both are delta B u
    nudged = case | {"A": case["A"] + 1e-9}
    agree(got, gradients(run_selective(backend, discretization="zoh"), nudged), 1e-8)


@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE])
def test_the_zoh_gain_and_its_derivatives_around_zero(dtype):
    A = torch.cat([torch.logspace(-9, 1, 200), -torch.logspace(-9, 2, 200)]).to(dtype)
    delta = torch.ones_like(A).requires_grad_()
    gain = terms.zoh_gain(delta, A.requires_grad_())
    by_delta, by_A = torch.autograd.grad(gain.sum(), (delta, A))
    x = np.asarray(A.detach(), np.longdouble)
    factorials = [np.longdouble(math.factorial(k + 1)) for k in range(12, -1, -1)]
    value = np.polyval([1 / f for f in factorials], x)
    slope = np.polyval([k / f for k, f in zip(range(12, 0, -1), factorials)], x)
    near = np.abs(x) < 0.3
    value = np.where(near, value, np.expm1(x) / x)
    slope = np.where(near, slope, (np.exp(x) * x - np.expm1(x)) / x**2)
    eps = torch.finfo(dtype).eps
    worst = 1e-4 if dtype == FLOAT else 1e-11
    assert np.max(np.abs(gain.detach().numpy() / value - 1)) < 4 * eps
    assert np.max(np.abs(by_A.numpy() / slope - 1)) < worst
    assert np.max(np.abs(by_delta.numpy() - np.exp(x)) / (1 + np.exp(x))) < 4 * eps


@pytest.mark.parametrize("rule", terms.RULES)
@pytest.mark.parametrize("module", [reference, associative, chunked])
def test_all_derivatives_of_selective_are_right_twice(module, rule):
    for complex_A in (False, True):
        case = selective_case(
            1, 3, 2, 1, softplus=True, complex_A=complex_A, reset=True, delta=(0.1, 1)
        )
        case["reset"] = torch.tensor([[False, True, False]])
        names = [n for n, x in case.items() if n not in ("delta_softplus", "reset")]
        leaves = [case[name].clone().requires_grad_() for name in names]

        def run(*leaves, case=case, names=names):
            made = case | dict(zip(names, leaves))
            y, last = module.selective(*made.values(), discretization=rule)
            return y, torch.view_as_real(last) if last.is_complex() else last

        assert torch.autograd.gradcheck(run, leaves)
        assert torch.autograd.gradgradcheck(run, leaves)


def gradient_of_a_gradient(run, case):
    """The gradient, by u, delta and A, of a norm of the gradient by B."""
    names = ("u", "delta", "A", "B")
    leaves = {name: case[name].clone().requires_grad_() for name in names}
    y, last = run(*(case | leaves).values())
    loss = y.float().square().sum() + last.square().sum()
    (first,) = torch.autograd.grad(loss, leaves["B"], create_graph=True)
    by = [leaves[name] for name in names[:3]]
    return dict(zip(names, torch.autograd.grad(first.square().sum(), by)))


@pytest.mark.parametrize("backend", ALL)
def test_second_derivatives_through_the_public_call(backend):
    case = selective_case(2, 9, 4, 4, softplus=True, reset=True, dtype=FLOAT)
    want = gradient_of_a_gradient(reference.selective, wide(case))
    agree(gradient_of_a_gradient(run_selective(backend), case), want, 1e-5)


# -- ssd ----------------------------------------------------------------------------


@sweep(20)
@given(case=ssd_cases(), chunk=st.sampled_from((1, 4, 16, 64)))
def test_ssd_in_float64(case, chunk):
    y, last = ssd_oracle(case)
    want = gradients(run_ssd("reference"), case)
    agree(want | {"y": y, "last": last}, want, 1e-12)
    agree(gradients(run_ssd("associative"), case), want, 1e-11)
    agree(gradients(run_ssd("chunked", chunk=chunk), case), want, 1e-11)


@pytest.mark.parametrize(("dtype", "tol"), [(FLOAT, 1e-5), (BF16, 1.5e-2)])
@pytest.mark.parametrize("backend", ALL)
def test_ssd_in_lower_precision(backend, dtype, tol):
    @sweep(10)
    @given(case=ssd_cases(dtype=dtype))
    def check(case):
        if not served(backend, "ssd", case["x"], case["A"], case["B"]):
            return
        got = gradients(run_ssd(backend), case)
        assert got["y"].dtype == dtype
        agree(got, gradients(reference.ssd, wide(case)), tol)

    check()


@pytest.mark.parametrize("ranges", EXTREMES)
@pytest.mark.parametrize("backend", ALL)
def test_ssd_with_extreme_steps_and_decays(backend, ranges):
    case = ssd_case(2, 130, 4, 3, 5, seed=1, dtype=FLOAT, **ranges)
    if not served(backend, "ssd", case["x"], case["A"], case["B"]):
        pytest.skip("no kernel for this call")
    got = gradients(run_ssd(backend), case)
    assert all(torch.isfinite(x).all() for x in got.values())
    agree(got, gradients(reference.ssd, wide(case)), 3e-5)


@pytest.mark.parametrize("module", [reference, associative, chunked])
def test_all_derivatives_of_ssd_are_right_twice(module):
    case = ssd_case(1, 3, 2, 2, 1, 1, softplus=True, delta=(0.1, 1))
    case["reset"] = torch.tensor([[False, True, False]])
    names = [n for n in case if n not in ("delta_softplus", "reset")]
    leaves = [case[name].clone().requires_grad_() for name in names]
    options = {"chunk": 2} if module is chunked else {}

    def run(*leaves):
        return module.ssd(*(case | dict(zip(names, leaves))).values(), **options)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_a_segment_sum_keeps_short_sums_among_long_ones():
    log_a = -torch.rand(256, dtype=DOUBLE).exp() * 16
    got = chunked.segment_sum(log_a.float())
    want = chunked.segment_sum(log_a)
    assert torch.all(got[torch.ones(256, 256).triu(1) > 0] == -torch.inf)
    short = torch.arange(255)  # one step each, after thousands of decay
    one = (got[short + 1, short] / want[short + 1, short] - 1).abs().max()
    assert one < 1e-6


# -- linear -------------------------------------------------------------------------


def linear_inputs(seed, batch, length, shape, kind, reset, start, dtype=DOUBLE):
    g = np.random.default_rng(seed)

    def draw(*sizes):
        x = g.standard_normal(sizes)
        return x + 1j * g.standard_normal(sizes) if kind == "complex" else x

    a, b = draw(batch, length, *shape) / 2, draw(batch, length, *shape)
    a = a[..., :1] if kind == "broadcast" else a
    h0 = draw(batch, *shape) if start else None
    cut = g.random((batch, length)) < 0.2 if reset else None
    out = dtype.to_complex() if kind == "complex" else dtype
    to = (None if x is None else torch.from_numpy(x).to(out) for x in (a, b, h0))
    return (*to, None if cut is None else torch.from_numpy(cut))


@sweep(30)
@given(
    seed=st.integers(0, 999),
    length=st.sampled_from(LENGTHS),
    shape=st.sampled_from(((1,), (3,), (2, 5), (8, 4))),
    kind=st.sampled_from(("real", "complex", "broadcast")),
    reset=st.booleans(),
    start=st.booleans(),
    reverse=st.booleans(),
)
def test_linear_in_float64(seed, length, shape, kind, reset, start, reverse):
    a, b, h0, cut = linear_inputs(seed, 2, length, shape, kind, reset, start)
    want = linear_oracle(a, b, h0, cut, reverse)
    grads = {}
    for backend in PLAIN:

        def run(a, b, h0, backend=backend):
            options = {"initial_state": h0, "reset": cut, "reverse": reverse}
            h = linear_scan(a, b, backend=backend, **options)
            return h, h[:, -1]

        grads[backend] = gradients(run, {"a": a, "b": b, "h0": h0})
        assert relative(grads[backend]["y"], want) < 1e-12
        agree(grads[backend], grads["reference"], 1e-11)


@pytest.mark.parametrize("kind", ["real", "broadcast"])
@pytest.mark.parametrize("backend", ALL)
def test_linear_in_float32(backend, kind):
    a, b, h0, cut = linear_inputs(1, 3, 37, (5, 3), kind, True, True, FLOAT)
    if not served(backend, "linear", b, a, b):
        pytest.skip("no kernel for this call")

    def run(a, b, h0, backend=backend):
        h = linear_scan(a, b, initial_state=h0, reset=cut, backend=backend)
        return h, h[:, -1]

    got = gradients(run, {"a": a, "b": b, "h0": h0})
    case = {"a": a.double(), "b": b.double(), "h0": h0.double()}
    agree(got, gradients(lambda *x: run(*x, backend="reference"), case), 1e-5)


@pytest.mark.parametrize("backend", ALL)
def test_linear_with_a_constant_decay_is_scipys_filter(backend):
    b = np.random.default_rng(0).standard_normal((2, 100, 3))
    want = lfilter([1.0], [1.0, -0.9], b, axis=1)
    dtype = DOUBLE if backend in PLAIN else FLOAT
    b = torch.from_numpy(b).to(dtype)
    a = torch.full_like(b, 0.9)
    if not served(backend, "linear", b, a, b):
        pytest.skip("no kernel for this call")
    h = linear_scan(a, b, backend=backend)
    assert relative(h, want) < (1e-13 if dtype == DOUBLE else 1e-6)


@pytest.mark.parametrize("backend", PLAIN)
def test_linear_in_half_precision_sums_in_float32(backend):
    b = torch.ones(1, 1000, 1, dtype=BF16)
    h = linear_scan(torch.ones_like(b), b, backend=backend)
    assert h.dtype == BF16
    assert h[0, -1, 0] == 1000  # bfloat16 itself stops counting at 256


@pytest.mark.parametrize("module", [reference, associative, chunked])
def test_all_derivatives_of_linear_are_right_twice(module):
    a, b, h0, cut = linear_inputs(0, 1, 5, (2,), "complex", True, True)
    leaves = [x.requires_grad_() for x in (a, b, h0)]

    def run(a, b, h0):
        return torch.view_as_real(module.linear(a, b, h0, cut))

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)
