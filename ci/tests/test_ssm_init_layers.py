"""lib.ssm_init.layers and .training against loops, closed forms and restarts."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from lib.ssm_init import kernel_cauchy, kernel_dss, kernel_vandermonde, poles
from lib.ssm_init import layers as ly
from lib.ssm_init import training as tr
from lib.ssm_init.data import Arrays

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def made(kind="lin", N=8, H=3, seed=0, dt=(1e-2, 1e-1), B=None):
    """An initialisation by hand, as init_diag returns it."""
    g = np.random.default_rng(seed)
    A = np.tile(poles(kind, N), (H, 1))

    def normal():
        return g.standard_normal(A.shape) + 1j * g.standard_normal(A.shape)

    return {
        "A": A,
        "B": np.ones_like(A) if B is None else normal(),
        "C": normal() / np.sqrt(2),
        "D": g.standard_normal(H),
        "log_dt": g.uniform(*np.log(dt), H),
    }


def arguments(init, dtype=DOUBLE):
    """The five tensors of `kernel` under real="exp"."""
    layer = ly.S4D(init, dtype=dtype)
    names = ("A_re_raw", "A_im", "B", "C", "log_dt")
    return tuple(getattr(layer, name).detach().clone() for name in names)


def loop_kernel(A, B, C, dt, L, rule):
    """The naive recurrence in complex128, differentiable, one step at a time."""
    z = A * dt[:, None]
    if rule == "bilinear":
        Ab, Bb = (1 + z / 2) / (1 - z / 2), dt[:, None] * B / (1 - z / 2)
    else:
        Ab, Bb = torch.exp(z), (torch.exp(z) - 1) / A * B
    if rule == "dss":
        Bb = Bb / (torch.exp(L * z) - 1)
        Bb = Bb / dt[:, None] * dt[:, None]
    x, taps = Bb, []
    for _ in range(L):
        taps.append(2 * (C * x).sum(-1).real)
        x = Ab * x
    return torch.stack(taps, dim=-1)


def loop_arguments(args):
    raw, im, B, C, log_dt = args
    A = torch.complex(-torch.exp(raw), im)
    return A, torch.view_as_complex(B), torch.view_as_complex(C), torch.exp(log_dt)


# -- kernels ------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ly.RULES)
@pytest.mark.parametrize("L", [1, 2, 7, 64, 101])
def test_kernel_and_its_gradients_are_the_loops(rule, L):
    init = made(B="random") | {"A": made()["A"] - 0.1}
    fast = [a.requires_grad_() for a in arguments(init)]
    slow = [a.requires_grad_() for a in arguments(init)]
    K = ly.kernel(*fast, L, rule)
    want = loop_kernel(*loop_arguments(slow), L, rule)
    torch.testing.assert_close(K, want, rtol=1e-12, atol=1e-13)
    g = torch.randn_like(K)
    K.backward(g)
    want.backward(g)
    for a, b in zip(fast, slow):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rule", ly.RULES)
def test_o29_gradcheck(rule):
    init = made(N=4, H=2, B="random")
    args = [a.requires_grad_() for a in arguments(init)]
    for L in (1, 5, 9):
        assert torch.autograd.gradcheck(lambda *a, L=L: ly.kernel(*a, L, rule), args)


@pytest.mark.parametrize("real", ly.REALS)
def test_o29_gradcheck_of_every_parametrisation(real):
    init = made(N=4, H=2)
    layer = ly.S4D(init, real=real, dtype=DOUBLE)
    raw = layer.A_re_raw.detach().requires_grad_()
    rest = arguments(init)[1:]
    assert torch.autograd.gradcheck(lambda r: ly.kernel(r, *rest, 6, real=real), [raw])


def test_gradcheck_of_the_convolution():
    K = torch.randn(2, 5, dtype=DOUBLE, requires_grad=True)
    u = torch.randn(3, 5, 2, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(ly.convolve, [K, u])


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_kernel_is_the_numpy_one(rule):
    init = made("legs", 64, 4, B="random")
    K = ly.kernel(*arguments(init), 500, rule).numpy()
    dt = np.exp(init["log_dt"])
    want = kernel_vandermonde(init["A"], init["B"], init["C"], dt, 500, rule)
    np.testing.assert_allclose(K, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("growing", [False, True])
def test_dss_is_the_softmax_even_where_poles_grow(growing):
    init = made(N=8, H=2, dt=(0.5, 0.6))
    if growing:
        init["A"] = init["A"] * np.where(np.arange(4) % 2, -1, 1) + 0j
    parts = [torch.tensor(init["A"].real), *arguments(made(N=8, H=2))[1:]]
    parts[1:] = [
        torch.tensor(init["A"].imag),
        *[torch.view_as_real(torch.tensor(init[k])) for k in ("B", "C")],
        torch.tensor(init["log_dt"]),
    ]
    L = 3000  # e^(0.5 * 0.5 * 3000) would overflow
    parts = [p.requires_grad_() for p in parts]
    K = ly.kernel(*parts, L, "dss", real="none")
    for h in range(2):
        dt = np.exp(init["log_dt"][h])
        want = 2 * kernel_dss(init["A"][h], init["C"][h] * init["B"][h], dt, L)
        np.testing.assert_allclose(K[h].detach().numpy(), want, rtol=0, atol=1e-11)
    K.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in parts)


def test_o8_half_spectrum_is_the_full_conjugate_one():
    init = made("lin", 16, 2)
    K = ly.kernel(*arguments(init), 50).numpy()
    for h in range(2):
        full = [np.concatenate([v[h], v[h].conj()]) for v in map(init.get, "ABC")]
        A, B, C = full
        dt = np.exp(init["log_dt"][h])
        powers = np.exp(dt * A[:, None] * np.arange(50))
        want = (C * B * np.expm1(dt * A) / A) @ powers
        assert np.abs(want.imag).max() < 1e-14
        np.testing.assert_allclose(K[h], want.real, rtol=0, atol=1e-14)


def test_the_limit_at_a_zero_pole_keeps_value_and_gradient():
    init = made(N=4, H=2)
    rest = arguments(init)[1:]
    im = torch.zeros(2, 2, dtype=DOUBLE, requires_grad=True)
    raw = torch.zeros(2, 2, dtype=DOUBLE, requires_grad=True)
    K = ly.kernel(raw, im, *rest[1:], 6, real="none")
    C, dt = torch.view_as_complex(rest[2]), torch.exp(rest[3])
    want = (2 * C.sum(-1).real * dt)[:, None].expand(2, 6)  # an integrator
    torch.testing.assert_close(K, want)
    both = [raw, im]
    assert torch.autograd.gradcheck(
        lambda r, i: ly.kernel(r, i, *rest[1:], 6, real="none"), both
    )


def test_bilinear_with_a_step_that_annihilates_a_pole():
    init = made("real", 4, 1, dt=(1, 1))
    raw, im, B, C, log_dt = arguments(init)
    log_dt = torch.full_like(log_dt, math.log(2.0))  # z = -2: Ab = 0
    K = ly.kernel(-torch.ones_like(raw), im, B, C, log_dt, 4, "bilinear", real="none")
    assert torch.isfinite(K).all()
    assert K[0, 1:].abs().max() < 1e-29


@pytest.mark.parametrize("kind", ["lin", "inv", "real"])
def test_float32_at_16384_steps(kind):
    init = made(kind, 64, 4, dt=(1e-3, 1e-1))
    args = arguments(init, torch.float32)
    wide = [a.double() for a in args]
    L = 16384
    for rule in ("zoh", "bilinear"):
        K, want = ly.kernel(*args, L, rule), ly.kernel(*wide, L, rule)
        assert K.dtype == torch.float32
        error = (K - want).abs().amax(-1) / want.abs().amax(-1)
        assert error.max() < 2e-6


def test_the_naive_float32_phase_is_worse():
    init = made("inv", 64, 1, dt=(1e-2, 1e-2))
    raw, im, B, C, log_dt = arguments(init, torch.float32)
    A = torch.complex(-torch.exp(raw), im) * torch.exp(log_dt)[:, None]
    phase = torch.exp(A[..., None] * torch.arange(4096))
    want = torch.exp(A.to(torch.complex128)[..., None] * torch.arange(4096))
    assert (phase - want).abs().max() > 1e-5
    K = ly.kernel(raw, im, B, C, log_dt, 4096)
    exact = ly.kernel(*[x.double() for x in (raw, im, B, C, log_dt)], 4096)
    assert (K - exact).abs().max() / exact.abs().max() < 2e-6


def test_twice_the_step_subsamples_the_poles():
    layer = ly.S4D(made("lin", 8, 2), dtype=DOUBLE)
    Ab, _, _ = layer.system()
    twice, _, _ = layer.system(rate=2.0)
    torch.testing.assert_close(twice, Ab**2, rtol=1e-12, atol=0)
    u = torch.randn(2, 9, 2, dtype=DOUBLE)
    slow = ly.S4D(made("lin", 8, 2) | {"log_dt": made("lin", 8, 2)["log_dt"]})
    slow = slow.double()
    with torch.no_grad():
        slow.load_state_dict(layer.state_dict())
        slow.log_dt += math.log(2)
    torch.testing.assert_close(layer(u, rate=2.0), slow(u))


def test_bandlimit_drops_the_fast_modes():
    init = made("lin", 8, 2, dt=(0.25, 0.25))  # modes at 0, pi/4, pi/2, 3 pi/4
    layer = ly.S4D(init, bandlimit=0.6, dtype=DOUBLE)
    init["C"] = init["C"] * np.array([1, 1, 1, 0])
    torch.testing.assert_close(layer.kernel(9), ly.S4D(init, dtype=DOUBLE).kernel(9))


# -- the layer ----------------------------------------------------------------------


def run_steps(layer, u):
    x, system, ys = layer.initial_state(len(u)), layer.system(u.shape[1]), []
    for k in range(u.shape[1]):
        y, x = layer.step(u[:, k], x, system)
        ys.append(y)
    return torch.stack(ys, dim=1)


@pytest.mark.parametrize("rule", ly.RULES)
@pytest.mark.parametrize("L", [1, 13, 40])
def test_convolution_is_the_recurrence(rule, L):
    init = made(B="random") | {"A": made()["A"] - 0.1}
    layer = ly.S4D(init, rule=rule, initial_state=True, dtype=DOUBLE)
    with torch.no_grad():
        layer.S0.normal_()
    u = torch.randn(2, L, 3, dtype=DOUBLE)
    y = layer(u)
    torch.testing.assert_close(y, run_steps(layer, u), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(layer(u, last=True), y[:, -1:], rtol=1e-11, atol=1e-12)
    g = torch.randn_like(y)
    names, ps = zip(*layer.named_parameters())
    fast = torch.autograd.grad(y, ps, g)
    slow = torch.autograd.grad(run_steps(layer, u), ps, g)
    for name, a, b in zip(names, fast, slow):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=name)


def test_convolution_does_not_wrap_around():
    layer = ly.S4D(made(), dtype=DOUBLE)
    u = torch.zeros(1, 12, 3, dtype=DOUBLE)
    u[:, -1] = 1
    assert layer(u)[:, :-1].abs().max() < 1e-14


def test_the_initial_state_enters_linearly():
    layer = ly.S4D(made(), initial_state=True, dtype=DOUBLE)
    u = torch.randn(1, 9, 3, dtype=DOUBLE)
    a, b = torch.randn(2, *layer.S0.shape, dtype=DOUBLE)

    def out(S0):
        with torch.no_grad():
            layer.S0.copy_(S0)
            return layer(u)

    zero = out(torch.zeros_like(a))
    torch.testing.assert_close(
        out(2 * a - 3 * b) - zero, 2 * (out(a) - zero) - 3 * (out(b) - zero)
    )
    torch.testing.assert_close(zero, ly.S4D(made(), dtype=DOUBLE)(u))
    before = {k: v.clone() for k, v in layer.state_dict().items() if k != "S0"}
    (grad,) = torch.autograd.grad(layer(u).square().sum(), [layer.S0])
    assert grad.abs().max() > 0
    assert all(torch.equal(v, layer.state_dict()[k]) for k, v in before.items())


def test_half_precision_around_the_layer():
    layer = ly.S4D(made())
    u = torch.randn(2, 10, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(u), layer(u.float()))
        low = layer(u.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(u), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("real", ly.REALS)
def test_every_parametrisation_round_trips(real):
    A = -np.geomspace(2e-4, 300, 50)
    raw = ly.raw_real_part(A, real)
    back = ly.real_part(torch.tensor(raw), real).numpy()
    np.testing.assert_allclose(back, A, rtol=1e-12)
    raw32 = torch.tensor(raw, dtype=torch.float32)
    np.testing.assert_allclose(ly.real_part(raw32, real), A, rtol=2e-5)


def test_no_damping_at_the_start():
    zero = np.zeros((1, 2))
    for real in ("exp", "softplus", "clip"):
        with pytest.raises(ValueError, match="A real part is 0, which"):
            ly.raw_real_part(zero, real)
    assert (ly.raw_real_part(zero, "none") == 0).all()
    raw = torch.tensor(ly.raw_real_part(zero, "relu"), requires_grad=True)
    ly.real_part(raw, "relu").sum().backward()
    assert (raw.grad == -1).all()  # alive
    assert ly.real_part(raw, "relu").tolist()[0] == pytest.approx([-1e-4] * 2, rel=0.02)
    init = made() | {"A": made()["A"].imag * 1j}
    K = ly.S4D(init, real="none", dtype=DOUBLE).kernel(4000)
    assert K[:, -400:].abs().max() > 0.2 * K[:, :400].abs().max()


def test_channels_and_states_of_two_are_not_taken_for_pairs():
    init = made(N=4, H=2)
    K = ly.S4D(init, dtype=DOUBLE).kernel(5)
    want = loop_kernel(*loop_arguments(arguments(init)), 5, "zoh")
    torch.testing.assert_close(K, want)


def broken(**change):
    return lambda: ly.S4D(made() | change)


def without(key):
    return lambda: ly.S4D({k: v for k, v in made().items() if k != key})


WRONG = {
    "rule": (lambda: ly.S4D(made(), rule="euler"), "The rule is 'euler'; choose one"),
    "real": (lambda: ly.S4D(made(), real="abs"), "parametrisation of Re A is 'abs'"),
    "growing": (broken(A=-made()["A"]), "a growing mode, which 'exp' cannot hold"),
    "clip": (
        lambda: ly.raw_real_part(np.array([-5e-5]), "clip"),
        "'clip' stops at -0.0001",
    ),
    "lacks": (without("log_dt"), "The initialisation lacks log_dt"),
    "shapes": (broken(D=np.ones(2)), "give A, B, C (H, n), D and log_dt (H,)"),
    "length": (lambda: ly.S4D(made()).kernel(0), "The length is 0"),
    "rate": (lambda: ly.S4D(made()).kernel(3, rate=0), "rate is 0"),
    "input": (lambda: ly.S4D(made())(torch.ones(2, 5)), "give (batch, length, 3)"),
    "dss": (lambda: ly.S4D(made(), rule="dss").system(), "depends on the length"),
    "step": (
        lambda: ly.S4D(made()).step(torch.ones(2, 4), ly.S4D(made()).initial_state(2)),
        "The sample has shape (2, 4)",
    ),
    "kernel shapes": (
        lambda: ly.kernel(*arguments(made())[:4], torch.zeros(2), 5),
        "give one step for each of 3 channels",
    ),
    "kernel pairs": (
        lambda: ly.kernel(*arguments(made())[:3], *arguments(made(N=6))[3:], 5),
        "give A (H, n) twice",
    ),
    "convolve": (
        lambda: ly.convolve(torch.ones(3, 4), torch.ones(1, 5, 3)),
        "give (H, L) and (batch, L, H)",
    ),
    "read-out": (lambda: small(readout="first"), "The read-out is 'first'"),
    "sizes": (lambda: small(n_layers=0), "give at least 1 each"),
    "ssm_lr": (lambda: ly.param_groups(small(), ssm_lr=0.01), "at most 1e-3"),
    "lr": (lambda: ly.param_groups(small(), lr=0), "lr is 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name):
    call, sentence = WRONG[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert sentence in str(caught.value)


# -- S4 -----------------------------------------------------------------------------


@pytest.mark.parametrize(("N", "L"), [(8, 64), (16, 33), (4, 1), (4, 2)])
def test_the_cauchy_kernel_is_numpys_and_the_recurrence(N, L):
    g = np.random.default_rng(0)
    init = ly.init_dplr(N, 3, rng=g, dt_range=(1e-2, 1e-1))
    layer = ly.S4(init, dtype=DOUBLE)
    K = layer.kernel(L)
    full = [np.concatenate([init[k], init[k].conj()], -1) for k in "APBC"]
    for h in range(3):
        A, P, B, C = (v[h] for v in full)
        want = kernel_cauchy(A, P, B, C, np.exp(init["log_dt"][h]), L)
        np.testing.assert_allclose(K[h].detach(), want, atol=1e-12, rtol=0)
    u = torch.randn(2, L, 3, dtype=DOUBLE)
    torch.testing.assert_close(layer(u), run_steps(layer, u), rtol=1e-10, atol=1e-11)


def test_the_pairs_of_the_dplr_form_are_hippo():
    layer = ly.S4(ly.init_dplr(8, 1, rng=np.random.default_rng(0)), dtype=DOUBLE)
    A, P = layer.poles()[0], torch.view_as_complex(layer.P)[0]
    A, P = torch.cat([A, A.conj()]), torch.cat([P, P.conj()])
    found = torch.linalg.eigvals(torch.diag(A) - torch.outer(P, P.conj()))
    want = torch.arange(1.0, 9.0, dtype=DOUBLE)  # LegS is triangular: -1 ... -8
    torch.testing.assert_close(
        -found.real.sort().values.flip(0), want, rtol=1e-6, atol=1e-6
    )


def test_o29_gradcheck_of_the_cauchy_kernel():
    init = ly.init_dplr(4, 2, rng=np.random.default_rng(0), dt_range=(0.05, 0.2))
    layer = ly.S4(init, dtype=DOUBLE)
    names = ("A_re_raw", "A_im", "P", "B", "C", "log_dt")
    args = [getattr(layer, n).detach().requires_grad_() for n in names]

    def of(*values):
        for name, value in zip(names, values):
            del layer._parameters[name]
            layer._parameters[name] = value
        return layer.kernel(6)

    assert torch.autograd.gradcheck(of, args)


def test_s4_without_its_low_rank_part_is_said():
    with pytest.raises(ValueError, match=r"has no P \(H, n\)"):
        ly.S4(made())


# -- the classifier -----------------------------------------------------------------


def small(readout="last", n_layers=2, seed=0, **options):
    layer = options.pop("layer", lambda: ly.S4D(made(H=4)))
    torch.manual_seed(seed)
    return ly.Classifier(1, 4, n_layers, 3, readout, layer=layer, **options)


@pytest.mark.parametrize("readout", ly.READOUTS)
@pytest.mark.parametrize("prenorm", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_classifier_reads_the_whole_sequence(readout, prenorm, bidirectional):
    model = small(readout, prenorm=prenorm, bidirectional=bidirectional)
    x = torch.randn(2, 11, 1, requires_grad=True)
    y = model(x)
    assert y.shape == (2, 3)
    (grad,) = torch.autograd.grad(y[0].square().sum(), [x])
    assert (grad[0].abs().sum(-1) > 0).all()
    assert (grad[1] == 0).all()


def test_the_last_step_alone_is_the_last_of_all():
    model = small(layer=lambda: ly.S4D(made(H=4), dtype=DOUBLE)).double()
    x = torch.randn(2, 11, 1, dtype=DOUBLE)
    z = model.encoder(x)
    for block in model.blocks:
        z = block(z)
    torch.testing.assert_close(model(x), model.decoder(model.norm(z[:, -1])))


def test_parameter_groups_hold_every_parameter_once():
    model = small(layer=lambda: ly.S4D(made(H=4), train_B=False, initial_state=True))
    groups = {g["name"]: g for g in ly.param_groups(model, 4e-3, 1e-3, 0.1)}
    held = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    layer = model.blocks[0].layer
    assert {id(p) for p in groups["ssm"]["params"]} >= {
        id(p) for p in (layer.A_re_raw, layer.A_im, layer.log_dt, layer.S0)
    }
    assert (groups["ssm"]["lr"], groups["ssm"]["weight_decay"]) == (1e-3, 0)
    assert any(p is layer.C for p in groups["decayed"]["params"])
    assert groups["decayed"]["weight_decay"] == 0.1
    assert groups["plain"]["weight_decay"] == 0
    assert not any(p is layer.B for g in groups.values() for p in g["params"])


# -- training -----------------------------------------------------------------------


def toy(rows=60, L=12, seed=0):
    """Three classes told apart by where the bump sits."""
    g = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    x = 0.1 * g.standard_normal((rows, L, 1))
    x[np.arange(rows), 2 + 3 * y, 0] += 1
    return Arrays(x, y)


SHORT = {"epochs": 4, "batch": 16, "lr": 1e-2, "seed": 5}


def test_a_tiny_run_learns():
    model, data = small(), toy()
    steps = []
    history = tr.train(
        model,
        data,
        epochs=25,
        batch=16,
        lr=2e-2,
        validation=data,
        on_step=lambda *words: steps.append(words),
    )
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert history["accuracy"][-1] > 0.9
    assert history["accuracy"][-1] == tr.accuracy(model, data, batch=7)
    assert steps[-1][:2] == (100, 100)


class Killed(Exception):
    """What the test throws into a run."""


@pytest.mark.parametrize("after", [1, 6, 15])  # steps; 4 make an epoch
def test_a_killed_run_ends_with_the_same_bits(tmp_path, after):
    data = toy()
    whole = small(dropout=0.2)
    want = tr.train(whole, data, **SHORT, validation=data)

    def kill(step, steps, loss):
        if step == after:
            raise Killed

    path = tmp_path / "runs" / "toy.pt"
    with pytest.raises(Killed):
        tr.train(
            small(dropout=0.2),
            data,
            **SHORT,
            on_step=kill,
            checkpoint=path,
            validation=data,
        )
    assert path.exists() == (after >= 4)
    torch.manual_seed(99)  # what happened between does not matter
    model = small(dropout=0.2, seed=7 if after >= 4 else 0)  # weights come from there
    got = tr.train(model, data, **SHORT, checkpoint=path, validation=data)
    assert got == want
    for name, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert [p.name for p in path.parent.iterdir()] == ["toy.pt"]
    again = small(dropout=0.2, seed=8)
    assert tr.train(again, data, **SHORT, checkpoint=path, validation=data) == want


def test_a_resumed_run_in_a_fresh_process_is_the_same(tmp_path):
    code = (
        "import sys; sys.path[:0] = ['ci/tests']\n"
        "import torch; torch.set_num_threads(1)\n"
        "import test_ssm_init_layers as t\n"
        "def kill(step, steps, loss):\n"
        "    if step == 6: import os; os._exit(3)\n"
        "t.tr.train(t.small(), t.toy(), **t.SHORT, on_step=kill,"
        " checkpoint=sys.argv[1])"
    )
    path = tmp_path / "toy.pt"
    done = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60)
    assert done.returncode == 3
    whole, model = small(), small(seed=3)
    want = tr.train(whole, toy(), **SHORT)
    assert tr.train(model, toy(), **SHORT, checkpoint=path) == want
    for name, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_checkpoint_of_something_else_is_said(tmp_path):
    path, data = tmp_path / "toy.pt", toy()
    tr.train(small(), data, epochs=1, batch=16, checkpoint=path)
    with pytest.raises(ValueError, match=r"epochs was 1, is 2\. Delete it"):
        tr.train(small(), data, epochs=2, batch=16, checkpoint=path)
    with pytest.raises(ValueError, match="holds another model"):
        tr.train(small(n_layers=1), data, epochs=1, batch=16, checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        tr.train(small(), data, epochs=1, batch=16, checkpoint=path)


def test_wrong_settings_and_a_broken_loss_are_said():
    with pytest.raises(ValueError, match="epochs is 0"):
        tr.train(small(), toy(), epochs=0)
    with pytest.raises(ValueError, match="clip is 0"):
        tr.train(small(), toy(), clip=0)
    with pytest.raises(ValueError, match="is empty; there is nothing"):
        tr.train(small(), toy(0))
    with pytest.raises(ValueError, match="there is no accuracy"):
        tr.accuracy(small(), toy(0))
    data = toy()
    data.x[3] = float("nan")
    with pytest.raises(FloatingPointError, match="The loss is nan at step"):
        tr.train(small(), data, epochs=1)


def test_the_schedule():
    factors = [tr.schedule(k, 40, 10) for k in range(40)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    assert factors[10] == 1
    assert np.all(np.diff(factors[10:]) < 0)
    assert 0 < factors[-1] < 0.01
    assert tr.schedule(0, 5, 0) == 1


def test_drift_of_poles_and_steps():
    model = small()
    before = tr.snapshot(model)
    still = tr.drift(before, tr.snapshot(model))
    assert (still["move"] == 0).all()
    with torch.no_grad():
        model.blocks[1].layer.log_dt += 0.1
        model.blocks[1].layer.A_im *= 1.5
    moved = tr.drift(before, tr.snapshot(model)).set_index(["layer", "quantity"])
    assert (moved.loc[0, "move"] == 0).all()
    assert moved.loc[(1, "dt"), "move"] == pytest.approx(math.expm1(0.1), rel=1e-4)
    assert moved.loc[(1, "Im A"), "move"] == pytest.approx(0.5, rel=1e-4)
    assert moved.loc[(1, "Im A"), "rank_correlation"] == pytest.approx(1)
    assert math.isnan(moved.loc[(1, "Re A"), "rank_correlation"])  # all were -1/2
    with pytest.raises(ValueError, match="different models"):
        tr.drift(before, before[:1])
    with pytest.raises(ValueError, match="holds no S4D layer"):
        tr.snapshot(torch.nn.Linear(2, 2))


# -- digits -------------------------------------------------------------------------

TINY = {"epochs": 1, "N": 4, "H": 4, "n_layers": 1, "batch": 200}


def test_digits_by_init_is_repeatable_and_fair(tmp_path):
    seen = []
    frame = tr.digits_by_init(
        ["lin", "real_matched"],
        [0, 1],
        readouts=("last", "mean"),
        folder=tmp_path,
        on_run=lambda row, model, start: seen.append((row, model, start)),
        **TINY,
    )
    assert len(frame) == len(seen) == 8
    assert list(frame.columns) == [
        *("kind", "readout", "length", "seed", "lr", "epochs"),
        *("parameters", "loss", "accuracy"),
    ]
    assert len(list(tmp_path.iterdir())) == 8
    again = tr.digits_by_init(["lin"], [1], readouts=("mean",), **TINY)
    old = frame.query("kind == 'lin' and seed == 1 and readout == 'mean'")
    assert again.iloc[0].to_dict() == old.iloc[0].to_dict()
    encoders = [
        tr.digit_classifier(kind, 3, N=4, H=4).encoder.weight for kind in ("lin", "inv")
    ]
    assert torch.equal(*encoders)


def test_tuning_never_sees_the_test_part():
    tuned = tr.tune(["lin", "real"], (1e-3, 1e-2), **TINY)
    assert len(tuned) == 4
    assert ((tuned["accuracy"] * 280).round(6) % 1 == 0).all()
    best = tr.best_rate(tuned)
    assert set(best) == {"lin", "real"}
    assert set(best.values()) <= {1e-3, 1e-2}
    frame = tr.digits_by_init(["lin", "real"], [0], lr=best, **TINY)
    assert dict(zip(frame["kind"], frame["lr"])) == best


@pytest.mark.parametrize("kind", tr.VARIANTS)
def test_every_variant_runs(kind):
    model = tr.digit_classifier(kind, 0, N=8, H=4)
    loss = model(torch.randn(3, 16, 1)).square().sum()
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(torch.isfinite(g).all() for g in grads)


def test_options_reach_the_layer_and_the_initialisation():
    options = {"layer": {"real": "none", "rule": "bilinear"}, "dt_range": (0.1, 0.2)}
    model = tr.digit_classifier("lin", 0, N=8, H=4, **options)
    layer = model.blocks[0].layer
    assert (layer.real, layer.rule) == ("none", "bilinear")
    assert torch.exp(layer.log_dt.detach()).min() >= 0.1


def test_real_models_stay_real_and_are_counted_so():
    model = tr.digit_classifier("real_matched", 0, N=8, H=4, n_layers=1)
    other = tr.digit_classifier("lin", 0, N=8, H=4, n_layers=1)
    count = tr.free_parameters(other)
    assert (
        tr.free_parameters(model) == count == sum(p.numel() for p in other.parameters())
    )
    fixed = tr.digit_classifier("real_fixed", 0, N=8, H=4, n_layers=1)
    assert tr.free_parameters(fixed) == count - 16
    data = Arrays(np.random.default_rng(0).standard_normal((40, 9, 1)), [0, 1] * 20)
    for net in (model, fixed):
        tr.train(net, data, epochs=2, batch=10)
        assert not net.blocks[0].layer.A_im.any()
    assert not model.blocks[0].layer.C[..., 1].any()
    free = tr.digit_classifier("real", 0, N=8, H=4, n_layers=1)
    tr.train(free, data, epochs=2, batch=10)
    assert free.blocks[0].layer.A_im.any()  # a complex C pulls the poles off the axis


def test_tones_are_added_to_every_channel():
    x = torch.zeros(2, 50, 3)
    noisy = tr.tones([0.3, 1.0], 0.1)(x)
    k = np.arange(50)
    want = 0.1 * (np.cos(0.3 * k) + np.cos(k))
    np.testing.assert_allclose(noisy[1, :, 2], want, atol=1e-6)
    heard = []
    tr.accuracy(small(), toy(), change=lambda v: heard.append(v.shape) or v)
    assert sum(shape[0] for shape in heard) == 60
    with pytest.raises(ValueError, match="theta is empty"):
        tr.tones([])


def test_an_unknown_kind_is_said():
    with pytest.raises(ValueError, match="The initialisation is 'lim'"):
        tr.digits_by_init(["lim"], [0])


def test_import_is_light():
    code = (
        "import sys; import lib.ssm_init.training; "
        "heavy = {'scipy.signal', 'sklearn', 'pandas', 'datasets'} & set(sys.modules); "
        "assert not heavy, heavy"
    )  # torch is what this module is about
    subprocess.run([sys.executable, "-c", code], check=True)
