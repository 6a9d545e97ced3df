"""lib.ssm_init.theory against closed forms, scipy, mpmath and the published numbers."""

import subprocess
import sys

import mpmath
import numpy as np
import pytest
from scipy import integrate, signal
from scipy.linalg import expm, solve_continuous_lyapunov, toeplitz

from lib import hippo
from lib.ssm_init import theory as th


def rng(seed=0):
    return np.random.default_rng(seed)


def unit(v):
    return v / np.linalg.norm(v)


def test_import_is_light():
    code = (
        "import sys; import lib.ssm_init; "
        "heavy = {'torch', 'scipy.signal', 'pandas', 'mpmath'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- normal plus low rank (O4, O7, frequency law) -----------------------------------


@pytest.mark.parametrize(
    ("measure", "shift"), [("legs", 0.5), ("legt", 0), ("fout", 0)]
)
def test_o7_normal_plus_low_rank(measure, shift):
    N = 64
    A, B = hippo.transition(measure, N)
    Lambda, P, Bt, V = th.nplr(measure, N)
    np.testing.assert_allclose(V.conj().T @ V, np.eye(N), atol=1e-12)
    np.testing.assert_allclose(Lambda.real, -shift, atol=1e-12)
    size = np.abs(A).max()
    back = V @ (np.diag(Lambda) - P @ P.conj().T) @ V.conj().T
    np.testing.assert_allclose(back / size, A / size, atol=1e-12)
    np.testing.assert_allclose(V @ Bt, B, atol=1e-11)
    if measure == "legs":
        skew = A + np.outer(B, B) / 2 + np.eye(N) / 2
        assert np.abs(skew + skew.T).max() / size <= 1e-12
        assert abs(np.sum(np.abs(Bt) ** 2) / N**2 - 1) <= 1e-12
        assert 0.5 < np.abs(Bt).min() < 0.7
        assert abs(np.abs(Bt).max() - 40.8) < 0.1


def test_the_frequency_law():
    for N, top in ((16, 0.31627), (64, 0.31818), (256, 0.31830)):
        assert abs(th.poles("legs", N)[0].imag / N**2 - top) < 6e-6
        A = hippo.transition("legs", N)[0]
        norm = {16: 0.63685, 64: 0.63663, 256: 0.63662}[N]
        assert abs(np.linalg.norm(A, 2) / N**2 - norm) < 6e-6
    legs, inv = th.poles("legs", 64), th.poles("inv", 64)
    assert abs(inv[0].imag / legs[0].imag - 1 + 0.0152) < 5e-4
    legs, inv = th.poles("legs", 1024).imag, th.poles("inv", 1024).imag
    assert abs(inv[256] / legs[256] - 1 + 0.2215) < 2e-3


def test_the_resolvent_stays_below_two():
    for N, sup in ((16, 1.73), (64, 1.82)):
        A = hippo.transition("legs", N)[0]
        omega = np.concatenate([[0], np.geomspace(0.01, N**2, 300)])
        R = np.linalg.inv(1j * omega[:, None, None] * np.eye(N) - A)
        found = np.linalg.norm(R, 2, axis=(1, 2)).max()
        assert found <= 2
        assert abs(found - sup) < 0.02


# -- kernels (O8, O9, O21, O22) -----------------------------------------------------


def test_o8_half_and_whole_spectrum():
    Lambda, _, B, V = th.nplr("legs", 32)
    half, b, v = th.legs_half(32)
    C = rng().standard_normal(32)
    whole = th.kernel_vandermonde(Lambda, B, C @ V, 0.01, 300, pairs=False)
    K = th.kernel_vandermonde(half, b, C @ v, 0.01, 300)
    np.testing.assert_allclose(K, whole, atol=1e-14, rtol=0)
    Ab, Bb = th.discretize_diag(Lambda, B, 0.01)
    full = (C @ V * Bb) @ Ab[:, None] ** np.arange(300)
    assert np.abs(full.imag).max() < 1e-14


@pytest.mark.parametrize(
    ("measure", "N", "L"),
    [
        *(("legs", 8, 64), ("legs", 64, 1024), ("legs", 64, 1025)),
        *(("legt", 16, 128), ("fout", 16, 128)),
    ],
)
def test_o9_cauchy_is_the_recurrence(measure, N, L):
    Lambda, P, B, V = th.nplr(measure, N)
    C = rng().standard_normal(N)
    K = th.kernel_cauchy(Lambda, P, B, C @ V, 0.01, L)
    Ab, Bb = hippo.discretize(*hippo.transition(measure, N), 0.01, "bilinear")
    exact = hippo.kernel_recurrent(Ab, Bb, C, L)
    np.testing.assert_allclose(K, exact, atol=1e-12 * np.abs(exact).max(), rtol=0)


def test_o9_every_kernel_agrees_with_scipy():
    N, L, dt = 8, 200, 0.05
    half, b, v = th.legs_half(N)
    C = rng().standard_normal(N)
    Lambda, _, B, V = th.nplr("legs", N)
    A = (V * Lambda @ V.conj().T).real  # the normal part, dense and real
    Breal = hippo.transition("legs", N)[1]
    u = rng(1).standard_normal(L)
    for rule, scipys in (("zoh", "zoh"), ("bilinear", "bilinear")):
        K = th.kernel_vandermonde(half, b, C @ v, dt, L, rule)
        Ab, Bb = hippo.discretize(A, Breal, dt, rule)
        np.testing.assert_allclose(K, hippo.kernel_recurrent(Ab, Bb, C, L), atol=1e-12)
        no_rank = th.kernel_cauchy(Lambda, np.zeros(N), B, C @ V, dt, L)
        if rule == "bilinear":
            np.testing.assert_allclose(K, no_rank, atol=1e-12)
        y = hippo.lti_scan(A, Breal, u, dt, rule) @ C
        np.testing.assert_allclose(hippo.fft_convolve(K, u), y, atol=1e-12)
        system = (A, Breal[:, None], C[None], np.zeros((1, 1)))
        d = signal.cont2discrete(system, dt, scipys)
        h = signal.dlsim((*d[:4], dt), np.eye(L)[0])[1].ravel()
        if rule == "zoh":
            np.testing.assert_allclose(h[1:], K[:-1], atol=1e-12)
        else:
            np.testing.assert_allclose(h[1:], (K[1:] + K[:-1]) / 2, atol=1e-12)
            assert abs(h[0] - K[0] / 2) < 1e-12


def test_vandermonde_of_16384_steps():
    A, C = th.poles("inv", 64), rng().standard_normal(32)
    K = th.kernel_vandermonde(A, np.ones(32), C, 1e-3, 16384)
    two_lines = 2 * (
        (C * np.expm1(1e-3 * A) / A) @ np.exp(1e-3 * A[:, None] * np.arange(16384))
    )
    np.testing.assert_allclose(K, two_lines.real, atol=1e-13)


def test_vandermonde_channels_rules_and_zero_pole():
    A = np.array([[-0.5 + 2j, -1.0], [-0.1 + 3j, 0.0]])
    B, C, dt = np.ones((2, 2)), np.ones((2, 2)) * (1 - 0.5j), np.array([0.1, 0.2])
    l = np.arange(37)  # noqa: E741
    for rule in th.DIAGONAL_RULES:
        K = th.kernel_vandermonde(A, B, C, dt, 37, rule)
        Ab, Bb = th.discretize_diag(A, B, dt, rule)
        brute = 2 * np.sum((C * Bb)[..., None] * Ab[..., None] ** l, axis=1).real
        np.testing.assert_allclose(K, brute, atol=1e-13)
    assert abs(th.discretize_diag(A, B, dt)[1][1, 1] - 0.2) < 1e-15
    assert np.allclose(th.discretize_diag(A, B, dt, "mamba")[1], dt[:, None])


def test_o21_doubling_the_step_subsamples():
    A = th.poles("lin", 32)
    one, two = (th.discretize_diag(A, np.ones(16), dt)[0] for dt in (0.01, 0.02))
    np.testing.assert_allclose(two, one**2, atol=1e-12)
    K = [np.exp(A[:, None] * dt * np.arange(L)) for dt, L in ((0.01, 200), (0.02, 100))]
    np.testing.assert_allclose(K[1], K[0][:, ::2], atol=1e-12)
    Ab = [hippo.discretize(*hippo.transition("legs", 16), dt)[0] for dt in (0.01, 0.02)]
    np.testing.assert_allclose(Ab[1], Ab[0] @ Ab[0], atol=1e-12)


def test_o22_dss_softmax_is_its_closed_form():
    Lambda = th.poles("legs", 32)
    W = rng().standard_normal(16) + 1j * rng(1).standard_normal(16)
    K = th.kernel_dss(Lambda, W, 0.02, 256)
    closed = th.dss_closed_form(Lambda, W, 0.02, 256)
    assert np.abs(K - closed).max() <= 1e-13 * np.abs(K).max()
    grow = np.array([0.5 + 1j, 2.0 + 0.3j])  # growing poles stay finite
    K = th.kernel_dss(grow, W[:2], 0.1, 64)
    np.testing.assert_allclose(K, th.dss_closed_form(grow, W[:2], 0.1, 64), atol=1e-13)
    assert np.isfinite(th.kernel_dss(grow, W[:2], 1.0, 4096)).all()
    exp = th.kernel_dss(Lambda, W, 0.02, 64, "exp")
    plain = th.kernel_vandermonde(Lambda, np.ones(16), W, 0.02, 64, pairs=False)
    np.testing.assert_allclose(exp, plain, atol=1e-13)


# -- the exact gap (O10 - O14) ------------------------------------------------------


@pytest.mark.parametrize("N", [4, 16, 64])
def test_o10_allpass(N):
    A, B = hippo.transition("legs", N)
    s = np.array([0.3 + 1j, 2 - 5j, 1j * N, 0.7j * N**2, 0.01])
    direct = [1 - B @ np.linalg.solve(z * np.eye(N) - A, B) for z in s]
    np.testing.assert_allclose(th.allpass(s, N), direct, atol=1e-13, rtol=0)
    omega = np.geomspace(0.1, 1e5, 30)
    size = np.abs(th.allpass(1j * omega, N))
    np.testing.assert_allclose(size, omega / np.hypot(omega, N), rtol=1e-13)


@pytest.mark.parametrize("N", [4, 16, 64])
def test_o11_the_gap_is_exact(N):
    C = rng().standard_normal(N)
    omega = np.concatenate([[0], np.geomspace(0.1, N**2, 50)])
    G, G_D = th.gap(C, omega)
    A, B = hippo.transition("legs", N)
    Lambda, _, b, V = th.nplr("legs", N)
    scale = np.abs(G).max()
    np.testing.assert_allclose(th.transfer(A, B, C, 1j * omega), G, atol=1e-12 * scale)
    found = th.transfer(Lambda, b / 2, C @ V, 1j * omega)
    near = 1e-10 * np.abs(found).max()  # at a spike both are ill-conditioned in omega
    np.testing.assert_allclose(found, G_D, atol=near, rtol=0)
    np.testing.assert_allclose(
        found * (1 + th.allpass(1j * omega, N)), G, atol=1e-12 * np.abs(found).max()
    )
    assert abs(G_D[0] - G[0]) < 1e-14  # direct current is exact


def test_weak_convergence_at_one():
    exact = [0.0437, 0.0228, 0.0111, 0.00549, 0.00275, 0.00138]
    for N, expected in zip((16, 32, 64, 128, 256, 512), exact):
        G, G_D = th.gap(np.eye(N)[0], np.array([1.0]))
        found = abs(G_D[0] - G[0])
        assert abs(found - abs(G[0]) / N) < 0.05 * found
        assert abs(found / expected - 1) < 0.02


def test_o12_spikes_do_not_shrink():
    for m in (0, 1, 2):
        omega, height = th.spikes(256, m)
        found = th.measured_spike(256, m)
        assert abs(found[1] - height) < 1e-3
        assert abs(found[0] / omega - 1) < 1e-3
    assert abs(th.measured_spike(64, 0)[1] - 0.6367) < 1e-4
    assert abs(th.measured_spike(64, 2)[1] - 0.1280) < 1e-4
    assert abs(th.measured_spike(1024, 0)[1] - 0.6366) < 1e-4


def test_o13_the_l2_gap_tends_to_half():
    found = [th.l2_gap(np.eye(N)[0]) for N in (8, 16, 32, 64, 128)]
    np.testing.assert_allclose(found, [0.4921, 0.4980, 0.4995, 0.4999, 0.5], atol=6e-5)
    assert abs(found[-1] ** 2 - 0.25) < 1e-3
    assert abs(th.l2_gap(np.eye(128)[2]) - np.sqrt(5) / 2) < 1e-3


def test_o13_the_limit_is_half_of_the_first_value_of_the_kernel():
    B = hippo.transition("legs", 128)[1]
    for seed in range(3):
        C = np.zeros(128)
        C[:3] = rng(seed).standard_normal(3)
        assert abs(th.l2_gap(C) - abs(C @ B) / 2) < 0.01 * np.linalg.norm(C)
    C = np.eye(128)[0] - np.eye(128)[1] / np.sqrt(3)  # K(0) = 0: it does converge
    found = [th.l2_gap(C[:N]) for N in (32, 64, 128)]
    np.testing.assert_allclose(np.diff(np.log2(found)), -1, atol=0.01)


def test_o13_by_lyapunov_and_gramian():
    N = 16
    A, B = hippo.transition("legs", N)
    X = solve_continuous_lyapunov(A, -np.outer(B, B))
    np.testing.assert_allclose(th.legs_gramian(N), X, atol=1e-12)
    C = rng().standard_normal(N)
    normal = A + np.outer(B, B) / 2
    both = np.block([[A, np.zeros((N, N))], [np.zeros((N, N)), normal]])
    b = np.concatenate([B, B / 2])
    c = np.concatenate([C, -C])
    X = solve_continuous_lyapunov(both, -np.outer(b, b))
    assert abs(th.l2_gap(C) - np.sqrt(c @ X @ c)) < 1e-10


@pytest.mark.parametrize(
    ("N", "dt", "value"),
    [(256, 0.01, 0.0525), (512, 0.004, 0.0437), (256, 1e-3, 0.1746)],
)
def test_o14_sampled_error(N, dt, value):
    found, law = th.sampled_gap(N, dt)
    assert abs(found / law - 1) < 0.06
    assert abs(found / value - 1) < 0.02
    assert abs(th.sampled_gap(N, dt, 1)[0] / th.sampled_gap(N, dt, 1)[1] - 1) < 0.1


def test_the_step_response_converges_like_one_over_n():
    t = np.linspace(0, 12, 60001)
    for N, expected in ((16, 0.0253), (32, 0.0125), (64, 0.0063)):
        A, B, V = th.legs_half(N)  # the supremum moves to later times, about 2 log N
        step = (V[0] * B / A) @ np.expm1(A[:, None] * t)
        assert abs(np.abs(step.real + np.expm1(-t)).max() / expected - 1) < 0.01


def test_fout_needs_its_low_rank_part():
    A, B = hippo.transition("fout", 32)
    Lambda, _, b, V = th.nplr("fout", 32)
    t = np.arange(300) * 0.01 + 0.005  # three windows
    exact = hippo.state_kernel(A, B, t)[2]
    normal = (V[2] * b) @ np.exp(Lambda[:, None] * t)
    assert np.abs(normal.real[200:]).max() > 1  # it oscillates for ever
    assert np.abs(exact[210:]).max() < 0.05


def test_the_usual_plot_has_not_converged():
    assert 0.6 < th.sampled_gap(64, 1e-3)[0] < 0.72


# -- perturb, then diagonalise (O15, O16, table 2.8) --------------------------------


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.3])
def test_o15_the_bound_holds(eps):
    A, B = hippo.transition("legs", 32)
    C = unit(rng(3).standard_normal(32))
    out = th.ptd(A, unit(B), C, th.perturb(A, eps, rng(4)))
    off, _ = th.hinf_diff((A, unit(B), C), out[:3])
    assert 0 < off <= out[3]["bound"]
    assert abs(out[3]["bound"] / (4 * eps / (1 - 2 * eps)) - 1) < 1e-12
    assert out[3]["stable"]
    assert out[3]["max_real"] <= -0.5 + eps


@pytest.mark.parametrize("N", [32, 64])
def test_o16_condition_goes_like_one_over_eps(N):
    A, B = hippo.transition("legs", N)
    for seed, eps in enumerate((1e-4, 1e-3, 1e-2, 0.1, 1)):
        E = th.perturb(A, eps, rng(seed))
        assert abs(np.linalg.norm(E, 2) / eps - 1) < 1e-12
        report = th.ptd(A, B, B, E, "report")[3]
        assert 0.2 < report["condition"] * eps / np.linalg.norm(A, 2) < 20


def test_table_of_perturbations():
    A, B = hippo.transition("legs", 64)
    B, C = unit(B), unit(rng(0).standard_normal(64))
    assert abs(np.linalg.norm(A, 2) - 2607.7) < 0.1
    E = th.perturb(A, 1.0, rng(1))
    off = [th.hinf_diff((A, B, C), th.ptd(A, B, C, e * E)[:3])[0] for e in (0.01, 0.1)]
    assert 1e-6 < off[0] < 1e-5
    assert 1e-5 < off[1] < 1e-4
    kappa = [th.ptd(A, B, C, e * E)[3] for e in (1e-8, 1e-4, 1)]
    found = [report["condition"] for report in kappa]
    np.testing.assert_allclose(found, [5.5e11, 5.4e7, 1.3e4], rtol=0.7)
    residual = [report["residual"] for report in kappa]
    assert residual[0] > 1e2 * residual[1] > 1e4 * residual[2]  # backward error
    with pytest.raises(ValueError, match="moved an eigenvalue to real part"):
        th.ptd(A, B, C, 100 * E)
    clipped = th.ptd(A, B, C, 100 * E, "clip")
    assert clipped[0].real.max() == -1e-4
    assert not clipped[3]["stable"]


def test_hinf_finds_the_spike():
    N = 64
    A, B = hippo.transition("legs", N)
    Lambda, _, b, V = th.nplr("legs", N)
    C = np.eye(N)[0]
    off, omega = th.hinf_diff((A, B, C), (Lambda, b / 2, C @ V))
    assert abs(off - 0.6367) < 2e-3
    assert abs(omega - 1303.3) < 1


def test_optimised_perturbation_conditions_better_and_deviates_more():
    A, B = hippo.transition("legs", 32)
    C = np.eye(32)[0]
    E, history = th.optimise_perturbation(A, steps=120, rng=rng(0))
    assert history.condition.iloc[-1] < history.condition.iloc[0] / 8
    Lambda, Bt, Ct, report = th.ptd(A, B, C, E)
    assert report["stable"]
    random = th.ptd(A, B, C, th.perturb(A, report["eps"], rng(5)))
    assert report["condition"] < random[3]["condition"] / 5
    off = th.hinf_diff((A, B, C), (Lambda, Bt, Ct))[0]
    assert off > th.hinf_diff((A, B, C), random[:3])[0]


def test_optimised_perturbation_keeps_the_last_stable_one():
    A = hippo.transition("legs", 16)[0]
    options = {"gamma": 0, "steps": 25, "lr": 0.3, "eps": 0.4, "rng": rng(0)}
    E, history = th.optimise_perturbation(A, **options)
    assert history.max_real.iloc[-1] > 0
    assert np.linalg.eigvals(A + E).real.max() < 0


def test_r2_robustness():
    table = th.robustness_table().set_index("model")
    noise = ["m=0", "m=1", "m=2"]
    s4d = table.loc["S4D-LegS", noise].to_numpy(float)
    np.testing.assert_allclose(s4d, [0.0528, 0.0155, 0.0094], rtol=0.01)
    s4 = table.loc["S4", noise].to_numpy(float)
    np.testing.assert_allclose(s4, [0.000065, 0.000167, 0.000276], rtol=0.01)
    assert 780 < s4d[0] / s4[0] < 860
    for name in table.index[2:]:
        np.testing.assert_allclose(table.loc[name, noise].to_numpy(float), s4, rtol=0.1)


# -- conditioning (O5, O6, O17, O18) ------------------------------------------------


def test_o5_integer_eigenvectors_are_exact():
    N = 12
    V = th.integer_eigenvectors(N)
    A = th.integer_basis(N)[0].astype(int).tolist()
    for j in range(N):
        for i in range(N):
            product = sum(A[i][k] * V[k][j] for k in range(N))
            assert product == -(j + 1) * V[i][j]
    D = np.sqrt(2 * np.arange(N) + 1.0)
    legs = hippo.transition("legs", N)[0]
    np.testing.assert_allclose(
        legs * D / D[:, None], th.integer_basis(N)[0], atol=1e-12
    )
    for n, bits in ((16, 18.3), (32, 40.0), (64, 83.9), (128, 172.3)):
        largest = max(abs(v) for row in th.integer_eigenvectors(n) for v in row)
        assert abs(float(mpmath.log(largest, 2)) - bits) < 0.06


def test_o6_naive_diagonalisation_fails():
    found = {N: th.naive_diagonalisation(N) for N in (8, 16, 32)}
    assert found[8][0] < 1e-10
    assert 1e-9 < found[16][0] < 1e-3
    assert found[32][0] > 1
    assert abs(found[16][1] - 36.4) < 0.3
    assert found[32][2] > 1


def test_the_spectral_radius_lies():
    for dt, radius, growth in (
        (0.01, 0.99, 9.9e7),
        (1e-3, 0.999, 2.6),
        (0.1, 5.4, 1e9),
    ):
        rho, top = th.transient_growth(64, dt)
        assert abs(rho / radius - 1) < 0.01
        assert top > 0.97 * growth
        assert dt == 0.1 or top < 1.03 * growth
    assert th.transient_growth(64, 0.01, "bilinear")[1] < 1


def test_o17_condition_of_lin():
    kappa = [th.gram_condition(th.poles("lin", 2 * n)) for n in (4, 8, 16, 32, 64, 128)]
    np.testing.assert_allclose(kappa, [3.12, 4.45, 5.54, 6.31, 6.78, 7.05], atol=0.006)
    assert kappa[-1] > 7.0
    assert np.all(np.diff(kappa) > 0)
    assert kappa[-1] < np.exp(2)
    inv = [th.gram_condition(th.poles("inv", 2 * n)) for n in (4, 8, 16, 32, 64)]
    np.testing.assert_allclose(inv, [6.2, 24.8, 96, 321, 874], rtol=0.005)
    lams = th.poles("lin", 8)
    G = th.gram(lams)
    for i in range(4):
        for j in range(4):
            real = integrate.quad(
                lambda t, i=i, j=j: np.exp((lams[i].conj() + lams[j]) * t).real, 0, 60
            )[0]
            assert abs(G[i, j].real - real) < 1e-8


def test_o18_condition_of_real():
    found = [th.gram_condition(th.poles("real", 2 * n), 60) for n in (4, 8, 12)]
    np.testing.assert_allclose(found[:1], 45880, rtol=1e-3)
    np.testing.assert_allclose(found[1:], [5.639e10, 6.90e16], rtol=1e-3)


def test_gramian_conditions_of_legs():
    # B and C included: the Gramian of the HiPPO basis itself
    for N, expected in ((16, 188), (64, 2877)):
        found = np.linalg.cond(th.legs_gramian(N))
        assert abs(found / expected - 1) < 0.02


# -- scale and timescale (O23, O24, O25, 2.12) --------------------------------------


def test_o23_variance_at_init():
    N, dt = 64, 1e-3
    for kind in ("lin", "inv", "legs"):
        found = th.variance_at_init(th.poles(kind, N), np.ones(N // 2), dt)
        assert abs(found / (N * dt) - 1) < 0.01
    real = th.variance_at_init(th.poles("real", 2 * N), np.ones(N), dt) / 2
    harmonic = np.sum(1 / np.arange(1, N + 1)) / 2
    assert abs(real / (harmonic * dt) - 1) < 0.01
    A, g = th.poles("lin", 16), rng(0)  # by kernels with random C
    C = (g.standard_normal((4000, 8)) + 1j * g.standard_normal((4000, 8))) / np.sqrt(2)
    K = th.kernel_vandermonde(A, np.ones(8), C, 0.05, 400)
    found = np.mean(np.sum(K**2, axis=1))
    assert abs(found / th.variance_at_init(A, np.ones(8), 0.05) - 1) < 0.05


def test_o23_hippo_b_is_not_of_order_n_dt():
    # |B|^2 / 4 sums to N^2 / 4: the claim "N dt for every Re = -1/2" needs B = 1
    A, B, _ = th.legs_half(64)
    found = th.variance_at_init(A, B / 2, 1e-5)
    assert abs(found / (64**2 / 4 * 1e-5) - 1) < 0.01


def test_o24_step_projection_tail():
    u = (np.arange(1000) >= 400).astype(float)
    for N, rms in ((8, 0.1441), (16, 0.0972), (32, 0.0693)):
        x = hippo.legs_scan(u, N)[-1]
        found = hippo.history_error(x, u)
        assert abs(found - hippo.step_tail(0.4, N)) < 1e-3
        assert abs(found - rms) < 1e-3


def test_o25_toeplitz_variance():
    L = 300
    for seed in range(3):
        K = rng(seed).standard_normal(L)
        for rho in (0.3, 0.9):
            R = rho ** np.arange(L)
            top = th.largest_eigenvalue(R)
            assert abs(top - np.linalg.eigvalsh(toeplitz(R))[-1]) < 1e-6 * top
            assert top < (1 + rho) / (1 - rho)
            variance = th.output_variance(K, R)
            assert abs(variance - K @ toeplitz(R) @ K) < 1e-9 * variance
            assert variance <= top * (K @ K) * (1 + 1e-9)


def test_the_rule_for_the_step():
    L = 1024
    cases = {"white": np.eye(L)[0], "ar": 0.9 ** np.arange(L), "constant": np.ones(L)}
    expected = {"white": (1, 9.8e-4), "ar": (18.8, 0.0184), "constant": (1024, 1)}
    for name, R in cases.items():
        for dt, value in zip((L**-0.5, 1 / L), expected[name]):
            found = th.output_variance(np.full(L, dt), R)  # omega = 0, unit c
            assert abs(found / value - 1) < 0.01
        dt = th.delta_rule(L, th.largest_eigenvalue(R))
        assert th.output_variance(np.full(L, dt), R) <= 1 + 1e-6


def test_r3_delay_table():
    table = th.delay_table().set_index(["kind", "1/dt"])
    expected = {
        ("legt", 256): (0.0000, 0.011),
        ("legt", 64): (0.920, 0.979),
        ("fout", 128): (0.006, 0.020),
        ("legs", 64): (0.011, 0.247),
        ("legs", 128): (0.152, 0.340),
        ("diag_legs", 32): (0.131, 0.435),
        ("diag_inv", 32): (0.077, 0.371),
        ("diag_lin", 128): (0.115, 0.118),
        ("diag_lin", 256): (0.382, 0.382),
        ("diag_lin_re0", 64): (0.706, 0.716),
        ("diag_real", 128): (0.881, 0.964),
    }
    for cell, values in expected.items():
        np.testing.assert_allclose(table.loc[cell], values, atol=1.1e-3)
    assert table.loc[("lru", 128), "ls"] < table.loc[("lru", 128), "gd"]


def test_gradient_descent_in_closed_form():
    F = th.basis_features("diag_lin", 8, 1 / 32, 64)
    root, y = np.eye(64), np.eye(64)[10]
    C = np.zeros(8)
    rate = 1 / np.linalg.eigvalsh(F @ F.T)[-1]
    for _ in range(50):
        C -= rate * F @ (F.T @ C - y)
    found = th.fit_read_out(F, y, root, 50)
    assert abs(found[1] - np.sum((F.T @ C - y) ** 2)) < 1e-12
    best = np.linalg.lstsq(F.T, y)[1][0] if np.linalg.matrix_rank(F) == 8 else None
    assert best is None or abs(found[0] - best) < 1e-12


# -- ring, state, guess, tokens (O19, O26) ------------------------------------------


def test_o19_lru_norm():
    for ring, value in (((0, 0.9), 2.050), ((0.9, 0.99), 13.26), ((0.9, 0.999), 24.23)):
        square = rng(0).uniform(ring[0] ** 2, ring[1] ** 2, 400000)
        assert abs(th.lru_norm_gain(*ring) / value - 1) < 1e-3
        assert abs(np.mean(1 / (1 - square)) / th.lru_norm_gain(*ring) - 1) < 0.02


def test_o26_the_initial_state_is_recovered():
    T, N, g = 40, 6, rng(0)
    gates = g.uniform(0.7, 1, (T, N))
    B, C = g.standard_normal((T, N)), g.standard_normal((T, N))
    u, S0 = g.standard_normal(T), g.standard_normal(N)

    def run(x):
        y = []
        for t in range(T):
            x = gates[t] * x + B[t] * u[t]
            y.append(C[t] @ x)
        return np.array(y)

    design, size = th.state_effect(gates, C, T)
    np.testing.assert_allclose(run(S0), run(0 * S0) + design @ S0, atol=1e-12)
    found = th.recover_state(design, run(S0), run(0 * S0))
    np.testing.assert_allclose(found, S0, atol=1e-12)
    assert size[-1] < size[0] / 50
    with pytest.raises(ValueError, match="see 3 of 6"):
        th.recover_state(design[:3], run(S0)[:3], run(0 * S0)[:3])
    Ab = expm(0.1 * hippo.transition("legs", N)[0])
    design, _ = th.state_effect(Ab, C[0], T)
    np.testing.assert_allclose(design[2], C[0] @ Ab @ Ab @ Ab, atol=1e-12)


def test_o26_the_initial_guess():
    mu = np.ones(5)
    found = th.guess_monte_carlo(5, 20, mu, 100000, rng(0))
    for value, guess in zip(found, (False, True)):
        assert abs(value / th.guess_loss(5, 20, 5.0, guess) - 1) < 0.03
    gain = th.guess_loss(5, 20, 5.0, False) - th.guess_loss(5, 20, 5.0, True)
    assert abs(gain - 5 * 6 / 26) < 1e-12


def test_o26_tokens_decay_like_the_root():
    times = np.array([1e2, 1e4, 1e6])
    x, law = th.token_law(times)
    np.testing.assert_allclose(law, [0.947, 0.994, 0.9994], atol=1e-3)
    assert np.all(np.diff(x) < 0)


# -- wrong input --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: th.nplr("lagt", 4), "choose one of legs, legt, fout"),
        (lambda: th.nplr("fout", 5), "even N"),
        (lambda: th.poles("linn", 8), "Did you mean lin"),
        (lambda: th.poles("lin", 7), "take 6 or 8"),
        (lambda: th.poles("lin", 2.5), "even whole number"),
        (lambda: th.legs_half(0), "at least 2"),
        (lambda: th.discretize_diag([-1], [1], 0.0), "positive"),
        (lambda: th.discretize_diag([-1], [1], 0.1, "euler"), "The rule is 'euler'"),
        (lambda: th.kernel_vandermonde([-1], [1], [1], 0.1, 0), "at least 1"),
        (lambda: th.kernel_cauchy(*th.nplr("legs", 4)[:3], np.ones(4), -1, 8), "pos"),
        (lambda: th.kernel_dss([-1], [1], 0.1, 8, "soft"), "softmax"),
        (lambda: th.transfer(np.eye(2), np.ones(3), np.ones(3), [1]), "give A"),
        (lambda: th.allpass(1, -1), "N is -1"),
        (lambda: th.spikes(8, -1), "numbered from 0"),
        (lambda: th.measured_spike(8, 4), "spikes 0 to 3"),
        (lambda: th.l2_gap(np.ones(5)), "conjugate pairs"),
        (lambda: th.sampled_gap(8, 0), "positive step"),
        (lambda: th.gram([1j]), "damp"),
        (lambda: th.gram_condition([-1 + 1j], 30), "leave digits out"),
        (lambda: th.perturb(np.eye(2), 0, rng()), "positive norm"),
        (lambda: th.ptd(np.eye(2), [1], [1], np.eye(3)), "make them equal"),
        (lambda: th.optimise_perturbation(np.eye(2), target="x"), "The target"),
        (lambda: th.variance_at_init([1j], [1], 0.1), "do not decay"),
        (lambda: th.delta_rule(0, 1), "both are positive"),
        (lambda: th.output_variance(np.ones(3), np.ones(2)), "Shapes"),
        (lambda: th.largest_eigenvalue(np.ones((2, 2))), "give"),
        (lambda: th.basis_features("leg", 8, 0.1, 8), "Did you mean"),
        (lambda: th.fit_read_out(np.ones((2, 3)), np.ones(4), np.eye(4)), "length"),
        (lambda: th.delay_table(lag=600), "0 to 511"),
        (lambda: th.lru_norm_gain(0.9, 1), "ring"),
        (lambda: th.state_effect(np.ones((3, 2)), np.ones(2), 4), "N is 2, T is 4"),
        (lambda: th.guess_loss(0, 1, 1, True), "please"),
        (lambda: th.guess_monte_carlo(2, 3, np.ones(3), 5, rng()), "give \\(2,\\)"),
        (lambda: th.token_law([1.0], mu=1), "mu < 0"),
    ],
)
def test_wrong_input_gets_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
