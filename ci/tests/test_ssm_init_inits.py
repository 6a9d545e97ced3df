"""lib.ssm_init.inits: shapes, distributions, conventions, sentences."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from lib import hippo, ssm_init
from lib.ssm_init import inits
from lib.ssm_init import theory as th


def rng(seed=0):
    return np.random.default_rng(seed)


# -- diagonal models ----------------------------------------------------------------


@pytest.mark.parametrize("kind", inits.KINDS)
def test_every_kind_has_the_same_shapes_and_is_reproducible(kind):
    made = inits.init_diag(kind, 16, 5, rng=rng())
    again = inits.init_diag(kind, 16, 5, rng=rng())
    n = made["A"].shape[1]
    assert n == 8 or kind == "legs_ptd"
    for key in "ABC":
        assert made[key].shape == (5, n)
        assert made[key].dtype == complex
    for key in ("D", "log_dt"):
        assert made[key].shape == (5,)
        assert made[key].dtype == float
    for key in "ABCD":
        np.testing.assert_array_equal(made[key], again[key])
        assert np.isfinite(made[key]).all()
    assert (made["kind"], made["N"]) == (kind, 16)
    assert np.all(made["A"].real < 0)
    dt = np.exp(made["log_dt"])
    assert np.all((dt >= 1e-3) & (dt <= 1e-1))
    assert made["report"]["aliased"] == inits.aliased(made["A"], dt)
    K = th.kernel_vandermonde(made["A"], made["B"], made["C"], dt, 50)
    assert K.shape == (5, 50)


def test_c_is_complex_standard_normal_and_dt_log_uniform():
    made = inits.init_diag("lin", 64, 2000, rng=rng())
    for part in (made["C"].real, made["C"].imag):
        assert abs(part.mean()) < 0.01
        assert abs(part.var() - 0.5) < 0.01
    low, high = np.log(1e-3), np.log(1e-1)
    test = stats.kstest(made["log_dt"], "uniform", (low, high - low))
    assert test.pvalue > 0.01
    dt = np.exp(made["log_dt"])
    assert abs(dt.mean() / ((0.1 - 1e-3) / np.log(100)) - 1) < 0.05
    assert abs(np.median(dt) / 0.01 - 1) < 0.1


def test_formulas():
    a = {k: inits.init_diag(k, 8, rng=rng())["A"][0] for k in ("inv", "lin", "real")}
    np.testing.assert_allclose(a["lin"], -0.5 + 1j * np.pi * np.arange(4))
    np.testing.assert_allclose(a["real"], [-1, -2, -3, -4])
    omega = [8 / np.pi * (8 / k - 1) for k in (1, 3, 5, 7)]
    np.testing.assert_allclose(a["inv"], -0.5 + 1j * np.array(omega))
    quad = inits.init_diag("quad", 8, rng=rng())["A"][0].imag
    np.testing.assert_allclose(quad, np.array([1, 9, 25, 49]) / np.pi)
    inv2 = inits.init_diag("inv2", 8, rng=rng())["A"][0].imag
    np.testing.assert_allclose(inv2, [8 / np.pi * (8 / k - 1) for k in (1, 2, 3, 4)])


def test_legs_needs_half_of_b():
    N = 256
    for half, value in ((True, 1), (False, 2)):
        made = inits.init_diag("legs", N, rng=rng(), half_B=half)
        v = th.legs_half(N)[2][0]  # read-out e_0, whose kernel is e^{-t}
        K = th.kernel_vandermonde(made["A"][0], made["B"][0], v, 0.05, 60) / 0.05
        exact = value * np.exp(-0.05 * (np.arange(60) + 0.5))
        assert np.linalg.norm(K - exact) / np.linalg.norm(exact) < 0.05
    unit = inits.init_diag("legs", 8, rng=rng(), unit_B=True)
    assert np.all(unit["B"] == 1)


def test_real_with_as_many_parameters():
    made = inits.init_diag("real", 16, 4000, rng=rng(), full=True, dt_range=(1e-3,) * 2)
    assert made["A"].shape == (4000, 16)
    assert not made["C"].imag.any()
    K = th.kernel_vandermonde(
        made["A"][:64], made["B"][:64], made["C"][:64], 1e-3, 9000
    )
    expected = 1e-3 * np.sum(1 / np.arange(1, 17)) / 2
    assert abs(np.mean(np.sum(K**2, axis=1)) / expected - 1) < 0.35
    second = np.mean(made["C"].real ** 2)
    assert abs(second - 0.25) < 0.01


@pytest.mark.parametrize("kind", ["real", "legs", "inv", "lru", "dfout", "dss", "rand"])
def test_matched_variance(kind):
    made = inits.init_diag(
        kind, 16, 3000, rng=rng(), match_variance=True, dt_range=(0.02, 0.02)
    )
    Ab, Bb = th.discretize_diag(made["A"], made["B"], 0.02)
    variance = np.sum(np.abs(made["C"] * Bb) ** 2 * 2 / (1 - np.abs(Ab) ** 2), axis=1)
    lin = th.variance_at_init(th.poles("lin", 16), np.ones(8), 0.02)
    assert abs(variance.mean() / lin - 1) < 0.1


def test_matched_variance_of_n_real_poles():
    made = inits.init_diag(
        *("real", 16, 3000), rng=rng(), match_variance=True, full=True
    )
    dt = np.exp(made["log_dt"])
    Ab, Bb = th.discretize_diag(made["A"], made["B"], dt)
    power = np.sum(4 * (made["C"] * Bb).real ** 2 / (1 - Ab.real**2), axis=1)
    lin = np.tile(th.poles("lin", 16), (3000, 1))
    wanted = th.variance_at_init(lin, np.ones((3000, 8)), dt)
    assert abs(np.mean(power / wanted) - 1) < 0.06


def test_lru_ring_per_channel():
    made = inits.init_diag("lru", 64, 200, rng=rng(), r_min=0.5, r_max=0.9, phase=1.0)
    Ab, Bb = th.discretize_diag(made["A"], made["B"], np.exp(made["log_dt"]))
    square = np.abs(Ab.ravel()) ** 2
    assert stats.kstest(square, "uniform", (0.25, 0.56)).pvalue > 0.01
    assert np.angle(Ab).min() >= 0
    assert np.angle(Ab).max() <= 1
    np.testing.assert_allclose(np.abs(Bb), np.sqrt(1 - np.abs(Ab) ** 2), rtol=1e-9)
    assert made["report"]["aliased"] == 0


def test_dfout_covers_the_half_circle_without_aliasing():
    made = inits.init_diag("dfout", 32, 4, rng=rng(), damping=0.01)
    Ab, _ = th.discretize_diag(made["A"], made["B"], np.exp(made["log_dt"]))
    np.testing.assert_allclose(np.abs(Ab), np.exp(-0.005), rtol=1e-12)
    turn = np.sort(np.angle(Ab).ravel())
    np.testing.assert_allclose(turn, np.pi * np.arange(64) / 64, atol=1e-9)
    assert made["report"]["aliased"] == 0


def test_dss_has_two_steps_and_no_conjugates():
    made = inits.init_diag("dss", 16, 50, rng=rng(), dt_range=(1e-3, 1e-1))
    damp = -made["A"].real * np.exp(made["log_dt"])[:, None] * 2
    assert np.allclose(damp, damp[:, :1])
    assert damp.min() >= 1e-3 - 1e-12
    assert damp.max() <= 0.1 + 1e-12
    one = inits.init_diag("dss", 16, rng=rng(), two_dt=False)
    W, dt = 2 * one["C"][0], float(np.exp(one["log_dt"][0]))
    K = th.kernel_vandermonde(one["A"], one["B"], one["C"], np.array([dt]), 64)[0]
    np.testing.assert_allclose(
        K, th.kernel_dss(one["A"][0], W, dt, 64, "exp"), atol=1e-12
    )
    wide = inits.init_diag("dss", 16, 4000, rng=rng())["C"]
    assert abs((2 * wide.real).var() - 1) < 0.02


def test_random_options():
    for real in ("half", "uniform", "normal"):
        for imag in ("normal", "uniform"):
            A = inits.init_diag("rand", 8, 9, rng=rng(), real=real, imag=imag)["A"]
            assert np.all(A.real < 0)
            assert np.all(A.imag >= 0)


def test_ptd_is_close_to_s4_and_counts_real_eigenvalues():
    N = 32
    E = th.perturb(np.eye(N), 0.1, rng(1))
    made = inits.init_diag("legs_ptd", N, 3, rng=rng(), E=E, dt_range=(0.01, 0.01))
    A, B = hippo.transition("legs", N)
    g = rng()
    g.uniform(size=3)  # the steps are drawn first
    c = g.standard_normal((3, N))
    dt = np.exp(made["log_dt"])
    K = th.kernel_vandermonde(made["A"], made["B"], made["C"], dt, 200)
    system = hippo.discretize(A + E, B, 0.01)
    exact = hippo.kernel_recurrent(*system, c, 200)
    np.testing.assert_allclose(K, exact, atol=1e-8)
    s4 = hippo.kernel_recurrent(*hippo.discretize(A, B, 0.01), c, 200)
    assert np.linalg.norm(K - s4) < 0.1 * np.linalg.norm(s4)
    assert made["report"]["stable"]
    reals = np.sum(made["A"][0].imag == 0)
    assert made["A"].shape[1] == N // 2 + reals // 2


def test_kernels_converge_to_the_same_s4_for_hippo_inits():
    # the same read-out through S4 (dense), its NPLR and a small perturbation
    N, dt, L = 16, 0.01, 128
    A, B = hippo.transition("legs", N)
    Lambda, P, Bt, V = th.nplr("legs", N)
    C = rng().standard_normal(N)
    cauchy = th.kernel_cauchy(Lambda, P, Bt, C @ V, dt, L)
    exact = hippo.kernel_recurrent(*hippo.discretize(A, B, dt, "bilinear"), C, L)
    poles, b, c, _ = th.ptd(A, B, C, th.perturb(A, 1e-4, rng(1)))
    near = th.kernel_vandermonde(poles, b, c, dt, L, "bilinear", pairs=False)
    np.testing.assert_allclose(cauchy, exact, atol=1e-12)
    np.testing.assert_allclose(near, exact, atol=1e-2 * np.abs(exact).max())


def test_aliasing_is_counted_and_refused():
    A = np.array([-0.5 + 100j, -0.5 + 10j])
    assert inits.aliased(A, 0.1) == 1
    assert inits.aliased(np.stack([A, A]), np.array([0.1, 1.0])) == 3
    inits.check_timescale(A, 0.01)
    with pytest.raises(ValueError, match=r"1 of 2 modes are aliased.*0\.031"):
        inits.check_timescale(A, 0.1)
    inv = inits.init_diag("inv", 64, 8, rng=rng(), dt_range=(0.1, 0.1))
    assert inv["report"]["aliased"] > 8
    assert abs(0.1 * inv["A"].imag.max() - 128) < 1  # spec: 130, from N^2 / pi


@pytest.mark.parametrize(
    ("words", "options", "sentence"),
    [
        (("leg", 8), {}, "Did you mean legs"),
        (("lin", 9), {}, "take 8 or 10"),
        (("lin", 0), {}, "at least 2"),
        (("lin", 8, 0), {}, "at least one channel"),
        (("lin", 8), {"dt_range": (0.1, 0.01)}, "smallest <= largest"),
        (("lin", 8), {"damping": 1}, "no option damping; it takes full"),
        (("legs", 8), {"full": True}, "no option full; it takes unit_B"),
        (("lin", 8), {"full": True}, "for 'real'"),
        (("rand", 8), {"real": "x"}, "real is 'x'"),
        (("lru", 8), {"r_max": 1.5}, "The ring"),
        (("dfout", 8), {"damping": -1}, "positive"),
        (("legs_ptd", 64), {"eps": 100.0}, "moved an eigenvalue"),
        (("legs_ptd", 8), {"E": np.eye(3)}, "make them equal"),
        (("legs_ptd", 8), {"match_variance": True}, "read_out='normal'"),
        (("inv", 64), {"dt_range": (0.1, 0.1), "refuse_aliasing": True}, "aliased"),
    ],
)
def test_wrong_input_gets_a_sentence(words, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        inits.init_diag(*words, rng=rng(), **options)


# -- S5, LRU ------------------------------------------------------------------------


def test_s5_is_the_block_diagonal_normal_system():
    made = inits.init_s5(32, 4, 6, rng=rng())
    assert made["Lambda"].shape == (16,)
    assert made["B"].shape == (16, 6)
    assert made["C"].shape == (6, 16)
    assert made["log_step"].shape == (16, 1)
    assert np.all(made["Lambda"].imag < 0)
    V = made["V"]
    A, b = hippo.transition("legs", 8)
    dense = np.kron(np.eye(4), A + np.outer(b, b) / 2)
    Breal = 2 * (V @ made["B"]).real  # V*B, unrolled: half a unitary matrix
    C = rng(1).standard_normal((6, 32))
    s = 0.3 + 2.0j
    whole = C @ np.linalg.solve(s * np.eye(32) - dense, Breal)
    Ct, Bt, Lambda = C @ V, made["B"], made["Lambda"]
    half = (Ct / (s - Lambda)) @ Bt + (Ct.conj() / (s - Lambda.conj())) @ Bt.conj()
    np.testing.assert_allclose(whole, half, atol=1e-12)


def test_s5_scales():
    big = inits.init_s5(64, 1, 512, rng=rng())
    assert abs(64 * np.mean(np.abs(big["B"]) ** 2) - 1) < 0.05  # V*B, unitary rows
    for name, value in (("trunc", 2 / 64), ("lecun", 2 / 64 / 512), ("complex", 1)):
        C = inits.init_s5(64, 1, 512, rng=rng(), C_init=name)["C"]
        assert abs(np.mean(np.abs(C) ** 2) / value - 1) < 0.05
    for words in ((30, 4, 2), (12, 4, 2)):
        with pytest.raises(ValueError, match=r"divide|even"):
            inits.init_s5(*words, rng=rng())


def test_o19_lru_by_simulation():
    for ring in ((0.0, 0.9), (0.9, 0.99)):
        made = inits.init_lru(20000, 4, rng=rng(), r_min=ring[0], r_max=ring[1])
        square = np.abs(made["Lambda"]) ** 2
        low, high = ring[0] ** 2, ring[1] ** 2
        assert stats.kstest(square, "uniform", (low, high - low)).pvalue > 0.01
        ratio = np.mean(1 / (1 - square))
        assert abs(ratio / th.lru_norm_gain(*ring) - 1) < 0.02
        flat = np.exp(2 * made["gamma_log"]) / (1 - square)
        np.testing.assert_allclose(flat, 1, rtol=1e-9)
    assert abs(4 * np.mean(np.abs(made["B"]) ** 2) - 1) < 0.02
    assert abs(20000 * np.mean(np.abs(made["C"]) ** 2) / 2 - 1) < 0.02
    lam = np.exp(-np.exp(made["nu_log"]) + 1j * np.exp(made["theta_log"]))
    np.testing.assert_allclose(lam, made["Lambda"], rtol=1e-12)


def test_o19_lru_state_norm_by_white_noise():
    made = inits.init_lru(256, 1, rng=rng(), r_min=0.5, r_max=0.9)
    u = rng(1).standard_normal((64, 400))
    x = np.zeros((64, 256), complex)
    for t in range(400):
        x = made["Lambda"] * x + u[:, t, None] * made["B"][:, 0]
    plain = np.mean(np.sum(np.abs(x) ** 2, axis=1))
    expected = np.sum(np.abs(made["B"][:, 0]) ** 2 / (1 - np.abs(made["Lambda"]) ** 2))
    assert abs(plain / expected - 1) < 0.15


# -- Mamba --------------------------------------------------------------------------


def test_o20_inverse_softplus():
    dt = np.geomspace(1e-4, 10, 500)
    np.testing.assert_allclose(np.logaddexp(0, inits.inv_softplus(dt)), dt, rtol=1e-12)
    short = inits.inv_softplus(dt.astype(np.float32))
    assert short.dtype == np.float32
    again = nn.functional.softplus(torch.tensor(short)).double().numpy()
    assert np.abs(again / dt.astype(np.float32).astype(float) - 1).max() < 1e-6
    naive = np.log(np.exp(dt.astype(np.float32)) - 1)
    lost = np.abs(np.logaddexp(0, naive.astype(float)) / dt - 1)
    assert lost[(dt > 1e-3) & (dt < 0.1)].max() > 2e-5
    with pytest.raises(ValueError, match="positive"):
        inits.inv_softplus(np.array([0.0]))


def test_o20_mamba_timescales():
    made = inits.init_mamba(4096, rng=rng())
    assert made["A_log"].shape == (8192, 16)
    assert made["dt_proj.weight"].shape == (8192, 256)
    assert 0.99 / 16 < np.abs(made["dt_proj.weight"]).max() <= 1 / 16
    dt = np.logaddexp(0, made["dt_proj.bias"])
    assert abs(dt.mean() / 0.0215 - 1) < 0.03
    tau = 1 / (dt[:, None] * np.exp(made["A_log"]))
    assert tau.min() > 0.625 - 1e-9
    assert tau.max() < 1000 + 1e-6
    quantiles = np.quantile(tau, [0.01, 0.25, 0.5, 0.75, 0.99])
    np.testing.assert_allclose(quantiles, [0.83, 4.4, 14.7, 46.6, 491], rtol=0.05)
    two = inits.init_mamba2(64 * 4096, rng=rng())
    tau = np.exp(-two["A_log"]) / np.logaddexp(0, two["dt_bias"])
    quantiles = np.quantile(tau, [0.01, 0.25, 0.5, 0.75, 0.99])
    np.testing.assert_allclose(quantiles, [0.85, 4.3, 14.2, 44.7, 371], rtol=0.09)
    with pytest.raises(ValueError, match="must divide"):
        inits.init_mamba2(10, 64, rng=rng())
    with pytest.raises(ValueError, match="at least 1"):
        inits.init_mamba(0, rng=rng())


class Port(nn.Module):
    """A port with transformers' names: backbone.layers.<i>.mixer.<parameter>."""

    def __init__(self, layers=2, two=False):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.embedding = nn.Embedding(10, 64)
        blocks = []
        for i in range(layers):
            mixer, block = nn.Module(), nn.Module()
            made = (inits.init_mamba2 if two else inits.init_mamba)(64, rng=rng(i))
            made = {k: torch.tensor(v).float() for k, v in made.items()}
            mixer.A_log, mixer.D = nn.Parameter(made["A_log"]), nn.Parameter(made["D"])
            if two:
                mixer.dt_bias = nn.Parameter(made["dt_bias"])
            else:
                mixer.dt_proj = nn.Linear(4, 128)
                mixer.dt_proj.weight.data = made["dt_proj.weight"]
                mixer.dt_proj.bias.data = made["dt_proj.bias"]
            mixer.in_proj = nn.Linear(64, 256, bias=False)
            block.mixer = mixer
            blocks.append(block)
        self.backbone.layers = nn.ModuleList(blocks)


@pytest.mark.parametrize("two", [False, True])
def test_assert_mamba_init_on_a_port(two):
    model = Port(two=two)
    steps = inits.assert_mamba_init(model)
    assert list(steps) == [f"backbone.layers.{i}.mixer" for i in range(2)]
    inits.assert_mamba_init(model.to(torch.bfloat16))
    mixer = Port(two=two).backbone.layers[0].mixer
    assert list(inits.assert_mamba_init(mixer)) == ["the model"]


def test_assert_mamba_init_names_what_is_wrong():
    def zero(module):
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    model = Port()
    model.apply(zero)
    sentence = r"backbone\.layers\.0\.mixer: softplus\(dt bias\) spans 0.693"
    with pytest.raises(AssertionError, match=sentence):
        inits.assert_mamba_init(model)
    for name, value, sentence in (
        ("A_log", 0.0, "layers.1.mixer: exp"),
        ("D", 0.0, "D is not 1"),
        ("dt_proj.weight", 3.0, "dt_rank"),
    ):
        model = Port()
        model.get_parameter(f"backbone.layers.1.mixer.{name}").data.fill_(value)
        with pytest.raises(AssertionError, match=sentence):
            inits.assert_mamba_init(model)
    model = Port(two=True)
    model.backbone.layers[1].mixer.A_log.data.fill_(9.0)
    with pytest.raises(
        AssertionError, match=r"layers\.1\.mixer: exp.*one scalar a head"
    ):
        inits.assert_mamba_init(model)
    del model.backbone.layers[0].mixer.dt_bias
    with pytest.raises(AssertionError, match="has no dt bias"):
        inits.assert_mamba_init(model)
    with pytest.raises(AssertionError, match="No parameter ends in A_log"):
        inits.assert_mamba_init(nn.Linear(2, 2))


# -- timescale and rescaling --------------------------------------------------------


def test_autocovariance():
    x = rng().standard_normal((3, 40))
    R = inits.autocovariance(x, 10, centre=False)
    brute = [np.mean([np.sum(r[: 40 - k] * r[k:]) for r in x]) / 40 for k in range(10)]
    np.testing.assert_allclose(R, brute, atol=1e-14)
    assert abs(inits.autocovariance(x)[0] - x.var()) < 1e-14


def test_suggested_timescale_on_known_series():
    white = rng().standard_normal((256, 512))
    found = inits.suggest_timescale(white)
    assert 1 <= found["lam_max"] < 1.6
    assert abs(found["dt_range"][1] - 1 / np.sqrt(512 * found["lam_max"])) < 1e-12
    assert found["dt_range"][0] == 1 / 512
    slow = np.repeat(rng().standard_normal((256, 1)), 512, axis=1)
    found = inits.suggest_timescale(slow, length=64)
    assert found["lam_max"] > 50
    assert found["dt_range"][1] < 1.15 / 64
    ar = white.copy()
    for t in range(1, 512):
        ar[:, t] += 0.9 * ar[:, t - 1]
    found = inits.suggest_timescale(ar, kind="inv")
    assert 14 < found["lam_max"] < 24
    assert found["modes"] == 32
    assert found["aliased"] > 0
    assert abs(found["dt_alias"] * th.poles("inv", 64).imag.max() - np.pi) < 1e-12
    assert inits.suggest_timescale(ar, kind="real")["dt_alias"] == np.inf


@pytest.mark.parametrize(
    ("series", "options", "sentence"),
    [
        (np.ones(50), {}, "constant"),
        (np.array([1.0, np.nan, 2.0]), {}, "NaN"),
        (np.arange(9.0), {"length": 10}, "length is 10"),
        (np.arange(9.0), {"kind": "legz"}, "Did you mean legs"),
        (np.arange(9.0), {"N": 7}, "even N"),
    ],
)
def test_suggest_timescale_refuses_in_a_sentence(series, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        inits.suggest_timescale(series, **options)


def test_rescaling_by_the_bound_flattens_the_output():
    L, dt = 200, 5e-3
    made = inits.init_diag("lin", 64, 64, rng=rng(1), dt_range=(dt, dt))
    K = th.kernel_vandermonde(made["A"], made["B"], made["C"], dt, L)
    t, raw, after = np.arange(L) * dt, [], []
    for b in (1, 0.1, 0.01):
        cov = np.exp(-(((t[:, None] - t) / b) ** 2)) / b / np.sqrt(np.pi)
        std = np.sqrt(np.diag(cov))
        C, tau = inits.rescale_by_bound(made["C"], K, std)
        new = th.kernel_vandermonde(made["A"], made["B"], C, dt, L)
        raw.append(np.sqrt(np.einsum("hl,lm,hm->h", K, cov, K)).mean())
        after.append(np.sqrt(np.einsum("hl,lm,hm->h", new, cov, new)).mean())
        np.testing.assert_allclose(
            new, K / np.sqrt(tau)[:, None], rtol=1e-9, atol=1e-15
        )
    assert max(raw) / min(raw) > 5
    assert max(after) / min(after) < 1.8


def test_rescaling_arguments():
    K = np.array([[1.0, -2.0]])
    C, tau = inits.rescale_by_bound(np.ones((1, 3)), K, 2.0, np.array([1.0, 3.0]))
    assert tau[0] == (2 + 4 + abs(3 - 2)) ** 2  # the newest sample meets lag 0
    np.testing.assert_allclose(C, 1 / 7)
    with pytest.raises(ValueError, match="give"):
        inits.rescale_by_bound(np.ones(3), K, 1.0)
    with pytest.raises(ValueError, match="no scale"):
        inits.rescale_by_bound(np.ones((1, 3)), 0 * K, 1.0)


def test_the_package_gathers_public_names():
    for module in (inits, th):
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__
            if own and not name.startswith("_"):
                assert getattr(ssm_init, name) is value
    assert set(ssm_init.__all__) >= {"KINDS", "init_diag", "nplr", "assert_mamba_init"}
