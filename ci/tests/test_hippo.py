"""lib.hippo against closed forms, scipy, brute force and published numbers."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import legendre as npl
from scipy import signal
from scipy.linalg import expm, solve_discrete_lyapunov

from lib import hippo

SETTINGS = settings(max_examples=20, deadline=None, derandomize=True)
LTI = [(m, rule) for m in hippo.MEASURES for rule in ("zoh", "bilinear", "backward")]


def rng(seed=0):
    return np.random.default_rng(seed)


def held_projection(u, N, power=1.0):
    """Brute force: Gauss quadrature of numpy's own Legendre series on every cell."""
    L = u.shape[-1]
    edges = (np.arange(L + 1) / L) ** power
    y, w = npl.leggauss(N // 2 + 2)
    half = np.diff(edges)[:, None] / 2
    s = edges[:-1, None] + half * (y + 1)
    P = npl.legvander(2 * s - 1, N - 1)  # (L, nodes, N)
    return np.einsum("k,kq,kqn->n", u, half * w, P) * np.sqrt(2 * np.arange(N) + 1)


def test_import_is_light():
    code = (
        "import sys; import lib.hippo; "
        "heavy = {'scipy.signal', 'sklearn', 'pandas', 'torch'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- bases --------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["legs", "lagt"])
def test_o1_closed_form_kernels(measure):
    A, B = hippo.transition(measure, 16)
    for t in (np.linspace(0, 6, 301), np.array([0, 0.013, 0.4, 1.7, 5.0])):
        K = hippo.state_kernel(A, B, t)
        np.testing.assert_allclose(
            K, hippo.basis_kernel(measure, 16, t), rtol=0, atol=1e-12
        )
        np.testing.assert_allclose(K[:, 2], expm(t[2] * A) @ B, rtol=0, atol=1e-12)


def test_o1_kernel_by_brute_force():
    t = np.linspace(0, 4, 41)
    P = npl.legvander(2 * np.exp(-t) - 1, 7)
    expected = (np.sqrt(2 * np.arange(8) + 1) * P).T * np.exp(-t)
    np.testing.assert_allclose(hippo.basis_kernel("legs", 8, t), expected, atol=1e-14)


@pytest.mark.parametrize("N", [1, 4, 16, 64, 256])
def test_o2_constants_are_a_fixed_point(N):
    A, B = hippo.transition("legs", N)
    assert np.abs(A[:, 0] + B).max() <= 1e-14
    assert abs(np.linalg.norm(B) - N) <= 1e-12
    np.testing.assert_allclose(A + A.T, -np.eye(N) - np.outer(B, B), atol=1e-12)


def test_o3_window_bases():
    t = np.arange(1, 801) / 400  # two windows, step 1/400
    error = {}
    for measure in ("legt", "fout"):
        for N in (32, 64, 128):
            K = hippo.state_kernel(*hippo.transition(measure, N), t)
            D = K - hippo.basis_kernel(measure, N, t)
            error[measure, N] = np.sqrt(np.sum(D**2, axis=1) / 400)
    legt = [error["legt", N][0] for N in (32, 64, 128)]
    np.testing.assert_allclose(legt, [0.077, 0.054, 0.039], rtol=0.03)
    slope = np.polyfit(np.log([32, 64, 128]), np.log(legt), 1)[0]
    assert abs(slope + 0.5) < 0.05
    for n in (0, 2, 3):
        fout = [error["fout", N][n] for N in (32, 64, 128)]
        assert fout[0] > fout[1] > fout[2]
    assert error["fout", 32][1] == 0  # s_0 is dead


def test_o4_norms_and_spectrum():
    N = 256
    A, B = hippo.transition("legs", N)
    abscissa = np.linalg.eigvalsh((A + A.T) / 2)
    assert abs(abscissa[0] / (-(1 + N**2) / 2) - 1) < 1e-12
    np.testing.assert_allclose(abscissa[1:], -0.5, atol=1e-9)
    assert abs(np.linalg.norm(A, 2) / N**2 - 2 / np.pi) < 1e-3
    skew = A + np.eye(N) / 2 + np.outer(B, B) / 2
    np.testing.assert_allclose(skew, -skew.T, atol=1e-10)
    top = np.linalg.eigvalsh(-1j * skew)[-1]
    assert abs(top / N**2 - 1 / np.pi) < 1e-3


def test_signs_of_every_entry():
    A, B = hippo.transition("legs", 3)
    r3, r5 = np.sqrt(3), np.sqrt(5)
    np.testing.assert_allclose(A, [[-1, 0, 0], [-r3, -2, 0], [-r5, -r3 * r5, -3]])
    A, B = hippo.transition("legt", 3)
    expected = [[-1, r3, -r5], [-r3, -3, r3 * r5], [-r5, -r3 * r5, -5]]
    np.testing.assert_allclose(A, expected)
    np.testing.assert_allclose(hippo.transition("lmu", 2)[0], [[-1, -1], [3, -3]])
    np.testing.assert_allclose(hippo.transition("lmu", 2)[1], [1, -3])
    np.testing.assert_allclose(hippo.transition("lagt", 2)[0], [[-0.5, 0], [-1, -0.5]])
    A, B = hippo.transition("fout", 4)
    q, w = 2 * np.sqrt(2), 2 * np.pi
    expected = [[-2, 0, -q, 0], [0, 0, 0, 0], [-q, 0, -4, -w], [0, 0, w, 0]]
    np.testing.assert_allclose(A, expected)
    np.testing.assert_allclose(B, [2, 0, q, 0])


@pytest.mark.parametrize("measure", hippo.MEASURES)
def test_every_measure_is_dissipative_and_stable(measure):
    A, B = hippo.transition(measure, 24)
    assert np.linalg.eigvals(A).real.max() < 1e-9
    if measure == "lmu":  # the same system as LegT, in other coordinates
        T = (-1.0) ** np.arange(24) * np.sqrt(2 * np.arange(24) + 1)
        legt, b = hippo.transition("legt", 24)
        np.testing.assert_allclose(A, T[:, None] * legt / T, atol=1e-10)
        np.testing.assert_allclose(B, T * b)
    else:
        assert np.linalg.eigvalsh(A + A.T).max() < 1e-9  # so ||e^{tA}|| <= 1


def test_wrong_sign_of_a_shows():
    """A flipped below the diagonal is caught by O1, O2, the scan and the windows."""
    A, B = hippo.transition("legs", 8)
    wrong = np.where(np.tril(np.ones((8, 8)), -1) > 0, -A, A)
    assert np.abs(wrong[:, 0] + B).max() > 1
    t = np.linspace(0, 2, 9)
    K = hippo.state_kernel(wrong, B, t)
    assert np.abs(K - hippo.basis_kernel("legs", 8, t)).max() > 1


# -- discretisation -----------------------------------------------------------------


@pytest.mark.parametrize("measure", hippo.MEASURES)
@pytest.mark.parametrize(
    ("rule", "method", "alpha"),
    [
        ("euler", "euler", 0.5),
        ("backward", "backward_diff", 0.5),
        ("bilinear", "bilinear", 0.5),
        ("gbt", "gbt", 0.3),
        ("zoh", "zoh", 0.5),
    ],
)
def test_discretize_is_scipys(measure, rule, method, alpha):
    A, B = hippo.transition(measure, 12)
    system = (A, B[:, None], np.ones((1, 12)), np.zeros((1, 1)))
    extra = {"alpha": alpha} if method == "gbt" else {}
    Ad, Bd, *_ = signal.cont2discrete(system, 0.03, method, **extra)
    Ab, Bb = hippo.discretize(A, B, 0.03, rule, alpha)
    np.testing.assert_allclose(Ab, Ad, atol=1e-12)
    np.testing.assert_allclose(Bb, Bd[:, 0], atol=1e-12)


def test_zoh_of_a_singular_matrix_and_against_the_formula():
    A, B = hippo.transition("legs", 8)
    Ab, Bb = hippo.discretize(A, B, 0.1)
    expected = np.linalg.solve(A, (expm(0.1 * A) - np.eye(8)) @ B)
    np.testing.assert_allclose(Bb, expected, atol=1e-13)
    half = hippo.discretize(A, B, 0.05)[0]
    np.testing.assert_allclose(half @ half, Ab, atol=1e-13)
    A, B = hippo.transition("fout", 8)
    assert np.linalg.matrix_rank(A) == 7
    assert np.isfinite(hippo.discretize(A, B, 0.1)[1]).all()


# -- online compression -------------------------------------------------------------


@pytest.mark.parametrize("N", [1, 2, 16, 32, 64, 128])
def test_stretch_is_the_matrix_exponential(N):
    A, _ = hippo.transition("legs", N)
    ratios = np.array([0.0, 0.5, 0.9, 0.999, 1.0])
    M = hippo.stretch_matrix(N, ratios)
    for ratio, m in zip(ratios, M, strict=True):
        exact = expm(-A * np.log(ratio)) if ratio else np.zeros((N, N))
        np.testing.assert_allclose(m, exact, atol=2e-13)
        assert np.linalg.norm(m, 2) <= np.sqrt(ratio) + 1e-12  # a contraction


@pytest.mark.parametrize(("N", "L", "tol"), [(8, 50, 1e-13), (32, 1000, 1e-11)])
@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_hold_is_the_exact_projection(N, L, tol, power):
    u = rng().standard_normal(L)
    state = hippo.legs_scan(u, N, power=power)[-1]
    np.testing.assert_allclose(state, held_projection(u, N, power), atol=tol)


@pytest.mark.parametrize(("N", "L"), [(64, 1000), (64, 4000), (128, 1000)])
def test_hold_stays_exact_where_diagonalising_fails(N, L):
    u = rng(1).standard_normal(L)
    states = hippo.legs_scan(u, N)
    assert np.abs(states[-1] - held_projection(u, N)).max() < 1e-10
    assert np.abs(states[99] - held_projection(u[:100], N)).max() < 1e-10
    e0 = np.eye(N)[0]
    np.testing.assert_allclose(states[0], e0 * u[0], atol=1e-12)


def test_eig_ruins_the_hold_but_expm_does_not():
    """The step's norm is sqrt(k/(k+1)) < 1: only the eigenvectors are dangerous."""
    N, L = 32, 100
    u, A, e0 = rng(2).standard_normal(L), hippo.transition("legs", N)[0], np.eye(N)[0]
    lam, V = np.linalg.eig(A)
    dense, eig = e0 * u[0], e0 * u[0]
    for k in range(1, L):
        step = np.log((k + 1) / k)
        dense = e0 * u[k] + expm(step * A) @ (dense - e0 * u[k])
        turned = np.exp(step * lam) * np.linalg.solve(V, eig - e0 * u[k])
        eig = e0 * u[k] + (V @ turned).real
    exact = held_projection(u, N)
    assert np.abs(dense - exact).max() < 1e-12
    assert np.abs(eig - exact).max() > 1


def test_authors_zoh_sees_a_silent_sample_first():
    """Their clock runs log((t+1)/t) from t = 1: the hold of [0, u], half a step off."""
    N, u = 12, rng(3).standard_normal(40)
    A, B = hippo.transition("legs", N)
    x = np.zeros(N)
    for t, value in enumerate(u, start=1):
        M = expm(A * np.log((t + 1) / t))
        x = M @ x + np.linalg.solve(A, M @ B - B) * value
    expected = hippo.legs_scan(np.concatenate([[0], u]), N)[-1]
    np.testing.assert_allclose(x, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "alpha", "clock"), [("bilinear", 0.5, 1), ("backward", 1, 1)]
)
def test_steps_are_the_generalised_bilinear_rule(rule, alpha, clock):
    N, u = 10, rng(4).standard_normal(30)
    A, B = hippo.transition("legs", N)
    x = np.eye(N)[0] * u[0]
    for k in range(1, 30):
        Ab, Bb = hippo.discretize(A, B, 1 / (k + clock), "gbt", alpha)
        x = Ab @ x + Bb * u[k]
    np.testing.assert_allclose(hippo.legs_scan(u, N, rule)[-1], x, atol=1e-12)


@pytest.mark.parametrize("rule", hippo.SCALED_RULES)
def test_scaled_matrix_is_the_scan(rule):
    u = rng(5).standard_normal((3, 90))
    for power in (1.0, 1.7):
        W = hippo.compression_matrix("scaled_legs", 9, 90, rule, power=power)
        states = hippo.legs_scan(u, 9, rule, power)
        assert states.shape == (3, 90, 9)
        scale = np.abs(states[:, -1]).max()
        np.testing.assert_allclose(u @ W.T, states[:, -1], atol=1e-11 * max(scale, 1))


@pytest.mark.parametrize(("measure", "rule"), LTI)
def test_lti_matrix_is_the_scan(measure, rule):
    u = rng(6).standard_normal((2, 77))
    W = hippo.compression_matrix(measure, 8, 77, rule, window=40)
    states = hippo.lti_scan(*hippo.transition(measure, 8), u, 1 / 40, rule)
    assert states.shape == (2, 77, 8)
    np.testing.assert_allclose(u @ W.T, states[:, -1], atol=1e-12)
    single = hippo.lti_scan(*hippo.transition(measure, 8), u[0], 1 / 40, rule)
    np.testing.assert_allclose(single, states[0], atol=1e-13)


@SETTINGS
@given(
    N=st.integers(1, 20),
    L=st.integers(1, 60),
    rule=st.sampled_from(["hold", "midpoint", "bilinear", "backward"]),
    seed=st.integers(0, 1000),
)
def test_linear_and_constant_preserving(N, L, rule, seed):
    u, v = rng(seed).standard_normal((2, L))
    scan = lambda z: hippo.legs_scan(z, N, rule)  # noqa: E731
    np.testing.assert_allclose(scan(2 * u - v), 2 * scan(u) - scan(v), atol=1e-10)
    constant = np.zeros((L, N))
    constant[:, 0] = 3
    np.testing.assert_allclose(scan(np.full(L, 3.0)), constant, atol=1e-12)


@SETTINGS
@given(N=st.integers(1, 40), L=st.integers(1, 30), m=st.integers(1, 7))
def test_timescale_equivariance(N, L, m):
    """A signal played m times slower leaves the same state, only under the hold."""
    u = rng(N + L).standard_normal(L)
    slow = hippo.legs_scan(np.repeat(u, m), N)
    np.testing.assert_allclose(slow[m - 1 :: m], hippo.legs_scan(u, N), atol=1e-10)


def test_bilinear_is_not_equivariant_and_windows_must_be_stretched():
    u = rng(7).standard_normal(50)
    fast, slow = (hippo.legs_scan(z, 16, "bilinear")[-1] for z in (u, u.repeat(4)))
    assert np.abs(fast - slow).max() > 1e-2
    A, B = hippo.transition("legt", 16)
    fast, slow = (
        hippo.lti_scan(A, B, u, 1 / 20),
        hippo.lti_scan(A, B, u.repeat(4), 1 / 80),
    )
    np.testing.assert_allclose(slow[3::4], fast, atol=1e-11)
    same_dt = hippo.lti_scan(A, B, u.repeat(4), 1 / 20)
    assert np.abs(same_dt[3::4] - fast).max() > 1e-1


def test_lti_legs_is_a_stretch_by_a_constant_factor():
    """Pitfall 16: the two LegS differ only in the clock."""
    A, B = hippo.transition("legs", 20)
    Ab, Bb = hippo.discretize(A, B, 0.02)
    M = hippo.stretch_matrix(20, np.exp(-0.02))
    np.testing.assert_allclose(Ab, M, atol=1e-13)
    np.testing.assert_allclose(Bb, np.eye(20)[0] - M[:, 0], atol=1e-13)


# -- laws ---------------------------------------------------------------------------

MID = (np.arange(1000) + 0.5) / 1000
R1 = {
    "step": (MID >= 0.4) * 1.0,
    "kink": np.abs(MID - 0.4),
    "sine": np.sin(6 * np.pi * MID),
}


@pytest.mark.parametrize(
    ("name", "rule", "expected"),
    [
        ("step", "hold", [0.1441, 0.0972, 0.0693, 0.0492]),
        ("step", "bilinear", [0.1441, 0.0972, 0.0693, 0.0492]),
        ("kink", "hold", [0.00904, 0.00367, 0.00126, 0.00044]),
        ("sine", "hold", [0.3826, 0.00029, 0.00007, None]),
        ("sine", "bilinear", [0.3826, 0.0039, 0.0039, 0.0039]),
        ("sine", "backward", [0.3829, 0.0235, 0.0234, 0.0234]),
    ],
)
def test_r1_reconstruction_errors(name, rule, expected):
    u = R1[name]
    for N, value in zip((8, 16, 32, 64), expected, strict=True):
        W = hippo.compression_matrix("scaled_legs", N, 1000, rule)
        error = hippo.history_error(W @ u, u)
        if value:
            rounding = 0.5 * 10.0 ** -len(str(value).partition(".")[2])
            assert abs(error - value) < max(0.02 * value, 1.01 * rounding), (N, error)


def test_bilinear_floor_is_a_late_clock():
    """Floor = ||f'(s) (1 - s)|| / 2L: 1/t is read half a sample late, for every N."""
    predicted = np.sqrt(np.mean((6 * np.pi * np.cos(6 * np.pi * MID) * (1 - MID)) ** 2))
    for L in (500, 1000, 2000):
        u = np.sin(6 * np.pi * (np.arange(L) + 0.5) / L)
        floor = {}
        for rule in ("bilinear", "midpoint", "backward"):
            W = hippo.compression_matrix("scaled_legs", 24, L, rule)
            floor[rule] = hippo.history_error(W @ u, u)
        assert abs(floor["bilinear"] / (predicted / (2 * L)) - 1) < 0.03
        assert floor["midpoint"] < floor["bilinear"] / 15
        assert 5 < floor["backward"] / floor["bilinear"] < 7


def test_o24_step_law():
    for N in (8, 16, 32, 64):
        x = hippo.legs_scan(R1["step"], N)[-1]
        np.testing.assert_allclose(x, hippo.step_coefficients(0.4, N), atol=1e-10)
        error = hippo.history_error(x, R1["step"])
        assert abs(error - hippo.step_tail(0.4, N)) < 1e-3
    # the specification's tails stop after about 20000 terms: below the exact ones
    quoted = np.array([0.14408, 0.09714, 0.06923, 0.04913])
    exact = np.array([hippo.step_tail(0.4, N) for N in (8, 16, 32, 64)])
    assert np.all((exact > quoted) & (exact < quoted + 1e-4))


@pytest.mark.parametrize("c", [0.1, 0.4, 0.5, 0.83])
def test_slopes_and_constants(c):
    N = np.unique(np.geomspace(32, 512, 60).astype(int))
    step = np.array([hippo.step_tail(c, n) for n in N])
    kink = np.array([hippo.kink_tail(c, n) for n in N])
    assert abs(np.polyfit(np.log(N), np.log(step), 1)[0] + 0.5) < 0.01
    assert abs(np.polyfit(np.log(N), np.log(kink), 1)[0] + 1.5) < 0.01
    limit = (c * (1 - c)) ** 0.25 / np.sqrt(np.pi * N)
    np.testing.assert_allclose(step, limit, rtol=0.04)
    limit = (4 * c * (1 - c)) ** 0.75 / np.sqrt(6 * np.pi * N**3.0)
    np.testing.assert_allclose(kink, limit, rtol=0.1)


def test_spectral_convergence_of_a_sine():
    def tail(N):
        c = hippo.legendre_projection(lambda s: np.sin(6 * np.pi * s), N)
        return np.sqrt(max(0.5 - np.sum(c**2), 0))

    assert tail(8) > 0.3
    assert tail(16) < 4e-4
    assert tail(24) < 1e-7


def test_closed_forms_against_quadrature():
    for c in (0.2, 0.4, 0.77):
        jump = hippo.legendre_projection(lambda s, c=c: (s >= c) * 1.0, 40, [c])
        np.testing.assert_allclose(hippo.step_coefficients(c, 40), jump, atol=1e-13)
        kink = hippo.legendre_projection(lambda s, c=c: np.abs(s - c), 40, [c])
        np.testing.assert_allclose(hippo.kink_coefficients(c, 40), kink, atol=1e-13)
    r, y = np.sqrt(2 * np.arange(1, 9) + 1), -0.2  # the specification's formula
    P = npl.legvander(np.array([y]), 9)[0]
    expected = r * (P[:8] - P[2:]) / (2 * r**2)
    np.testing.assert_allclose(
        hippo.step_coefficients(0.4, 9)[1:], expected, atol=1e-15
    )
    for N in (1, 2, 3):
        assert hippo.kink_coefficients(0.3, N).shape == (N,)
    samples = rng().standard_normal((2, 30))
    both = hippo.legendre_projection(samples, 5)
    np.testing.assert_allclose(both[1], held_projection(samples[1], 5), atol=1e-14)


# -- reconstruction -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "N", "window", "reach", "tol"),
    [
        ("legt", 32, 500, 1.0, 1e-3),
        ("lmu", 32, 500, 1.0, 1e-3),
        ("fout", 64, 500, 1.0, 1e-3),
        ("legs", 32, 500, 1.5, 0.1),
        ("legs", 64, 500, 1.5, 0.01),
    ],
)
def test_reconstruct_the_recent_past(measure, N, window, reach, tol):
    k = np.arange(4000)
    slow = lambda z: np.sin(2 * np.pi * z / 500 * 2)  # noqa: E731  # two waves
    x = hippo.lti_scan(*hippo.transition(measure, N), slow(k), 1 / window)[-1]
    lag = np.linspace(0.05, 0.95, 50) * reach
    past = hippo.reconstruct(x, measure, lag)
    truth = slow(4000 - 0.5 - lag * window)  # the sample k is held over (k, k + 1)
    assert np.sqrt(np.mean((past - truth) ** 2)) < tol


def test_lagt_reconstructs_a_bump():
    lag = np.linspace(0, 10, 501)
    u = np.exp(-((lag - 4) ** 2))[::-1]  # one bump, four time constants ago
    x = hippo.lti_scan(*hippo.transition("lagt", 96), u, 1 / 50)[-1]
    past = hippo.reconstruct(x, "lagt", lag + 0.01)[::-1]
    assert np.sqrt(np.mean((past - u) ** 2)) < 2e-3


def test_scaled_legs_reconstructs_the_whole_history():
    x = hippo.legs_scan(np.stack([R1["sine"], R1["kink"]]), 32)[:, -1]
    past = hippo.reconstruct(x, "scaled_legs", 1 - MID)
    assert np.abs(past[0] - R1["sine"])[50:-50].max() < 1e-4
    for power in (0.5, 2.0):
        x = hippo.legs_scan(R1["sine"], 40, power=power)[-1]
        lag = np.linspace(0, 0.8, 30)
        past = hippo.reconstruct(x, "scaled_legs", lag, power)
        assert np.abs(past - np.sin(6 * np.pi * (1 - lag))).max() < 2e-2


# -- memory -------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["legs", "legt", "fout", "lmu"])
@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_capacity_is_the_number_of_live_states(measure, rule):
    N = 24
    system = hippo.discretize(*hippo.transition(measure, N), 1 / 100, rule)
    r = hippo.memory_lti(*system, 6000)
    assert r.min() >= 0
    assert r.max() <= 1 + 1e-9
    assert abs(r.sum() - (N - (measure == "fout"))) < 1e-6  # s_0 of FouT is dead


def test_capacity_of_scaled_legs_and_simple_maps():
    for W, capacity in [
        (hippo.compression_matrix("scaled_legs", 32, 500), 32),
        (hippo.last_samples(7, 40), 7),
        (hippo.dct_matrix(9, 40), 9),
    ]:
        assert abs(hippo.memory(W).sum() - capacity) < 1e-9
    r = hippo.memory(hippo.last_samples(7, 40))
    np.testing.assert_allclose(r, np.arange(40) < 7, atol=1e-12)
    coarse = hippo.memory(hippo.leaky_averages(32, 64), rtol=1e-2).sum()
    assert coarse < 6.5 < 9.5 < hippo.memory(hippo.leaky_averages(32, 64)).sum() < 14


@SETTINGS
@given(N=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_capacity_of_random_systems(N, seed):
    system = hippo.random_recurrence(N, rng(seed), radius=0.9)
    P = solve_discrete_lyapunov(system[0], np.outer(system[1], system[1]))
    if np.linalg.cond(P) > 1e8:
        return
    r = hippo.memory_lti(*system, 400)
    assert abs(r.sum() - N) < 1e-6
    K = hippo.krylov(*system, 400)
    direct = np.einsum("nl,nl->l", K, np.linalg.solve(P, K))
    np.testing.assert_allclose(r, direct, atol=1e-6)
    past = hippo.memory(K[:, ::-1])
    np.testing.assert_allclose(past, r, atol=1e-6)


@pytest.mark.parametrize("cutoff", [1.0, 0.3])
@pytest.mark.parametrize("kind", ["legt", "random"])
def test_memory_by_monte_carlo(cutoff, kind):
    L, N = 80, 10
    W = hippo.compression_matrix("legt", N, L, window=40)
    if kind == "random":  # its out-of-band modes ring on from the signal's onset
        W = hippo.krylov(*hippo.random_recurrence(N, rng(1)), L)[:, ::-1]
    u = hippo.band_limited_noise((20_000, L), cutoff, rng(8))
    assert abs(u.std() - 1) < 0.02
    X = u @ W.T
    fit = X @ np.linalg.lstsq(X, u, rcond=None)[0]
    measured = 1 - np.mean((u - fit) ** 2, axis=0) / np.mean(u**2, axis=0)
    theory = hippo.memory(W, hippo.band_limited(L, cutoff))
    np.testing.assert_allclose(measured[::-1], theory, atol=0.02)
    if cutoff == 1:
        np.testing.assert_allclose(theory, hippo.memory(W), atol=1e-9)
    if kind == "legt":
        assert theory[:38].min() > 3 * theory[45:].max()  # the cliff at one window
    elif cutoff < 1:
        assert theory[-1] > 0.9 > 0.5 > theory[40:70].max()


# -- O9: recurrence and convolution -------------------------------------------------


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("measure", ["legs", "legt", "fout"])
def test_o9_recurrence_convolution_scipy(measure):
    N, L, dt = 16, 200, 0.01
    A, B = hippo.transition(measure, N)
    C, u = rng(9).standard_normal((2, N)), rng(10).standard_normal(L)
    for rule in ("zoh", "bilinear"):
        Ab, Bb = hippo.discretize(A, B, dt, rule)
        K = hippo.kernel_recurrent(Ab, Bb, C, L)
        assert relative(C @ hippo.krylov(Ab, Bb, L), K) < 1e-12
        states = hippo.lti_scan(A, B, u, dt, rule)
        y = hippo.fft_convolve(K, u)
        assert y.shape == (2, L)
        assert relative(y, C @ states.T) < 1e-12
        assert relative(y[0], np.convolve(K[0], u)[:L]) < 1e-12
        impulse, t = np.eye(L)[:, :1], np.arange(L) * dt
        system = (A, B[:, None], C[:1], np.zeros((1, 1)))
        Ad, Bd, Cd, Dd, _ = signal.cont2discrete(system, dt, rule)
        h = signal.dlsim((Ad, Bd, Cd, Dd, dt), impulse, t)[1][:, 0]
        if rule == "zoh":
            assert h[0] == 0
            assert relative(h[1:], K[0, :-1]) < 1e-12
        else:
            assert abs(h[0] - K[0, 0] / 2) < 1e-12 * np.abs(K).max()
            assert relative(h[1:], (K[0, 1:] + K[0, :-1]) / 2) < 1e-12


@SETTINGS
@given(L=st.integers(1, 50), seed=st.integers(0, 1000))
def test_fft_convolution_is_causal(L, seed):
    K, u = rng(seed).standard_normal((2, L))
    expected = np.convolve(K, u)[:L]
    np.testing.assert_allclose(hippo.fft_convolve(K, u), expected, atol=1e-11)


# -- digits -------------------------------------------------------------------------


def test_digit_sequences():
    u, labels = hippo.digit_sequences(64)
    big, _ = hippo.digit_sequences(256)
    assert u.shape == (1797, 64)
    assert big.shape == (1797, 256)
    assert labels.shape == (1797,)
    assert set(labels) == set(range(10))
    assert np.isfinite(u).all()
    assert abs(u.mean()) < 1e-12
    assert np.ptp(u) == 1
    np.testing.assert_array_equal(
        big.reshape(-1, 16, 16)[:, ::2, 1::2].reshape(-1, 64), u
    )


def test_splits_are_stratified_and_disjoint():
    _, labels = hippo.digit_sequences()
    train, test = hippo.digit_split(labels, 3)
    assert (len(train), len(test)) == (1400, 397)
    assert not set(train) & set(test)
    assert np.abs(np.bincount(labels[test]) - 39.7).max() < 3
    again, other = hippo.digit_split(labels, 3)[1], hippo.digit_split(labels, 4)[1]
    assert np.array_equal(test, again)
    assert not np.array_equal(test, other)


def test_digit_table():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the fits converge
        table = hippo.digit_table(Ns=(8, 64), seeds=(0, 1), methods=hippo.DIGIT_METHODS)
        table = table.set_index(["method", "N", "seed"])
    assert list(table.columns) == ["length", "accuracy"]
    assert len(table) == 40
    mean = table.accuracy.groupby(["method", "N"]).mean()
    assert mean["scaled_legs", 64] > 0.93
    assert mean["legt", 64] > 0.93
    assert 0.7 < mean["scaled_legs", 8] < mean["pca", 8]
    assert mean["last", 8] < mean["scaled_legs", 8] - 0.1
    again = hippo.digit_table(Ns=(8,), seeds=(1,), methods=("random_orthogonal",))
    assert again.accuracy[0] == table.accuracy["random_orthogonal", 8, 1]


def test_the_mean_of_the_pixels_is_inert():
    u, labels = hippo.digit_sequences()
    W = hippo.compression_matrix("fout", 8, 64)  # has a dead state, too
    shifted = hippo.digit_accuracy((u + 5) @ W.T, labels, 0)
    assert abs(shifted - hippo.digit_accuracy(u @ W.T, labels, 0)) < 0.006


def test_nothing_leaks_from_the_test_digits():
    u, labels = hippo.digit_sequences()
    train, test = hippo.digit_split(labels, 0)
    spoilt = u.copy()
    spoilt[test[0]] = 1e6 * rng(13).standard_normal(64)
    clean = hippo.digit_accuracy(u[:, 20:30], labels, 0)
    assert abs(hippo.digit_accuracy(spoilt[:, 20:30], labels, 0) - clean) < 1.5 / 397
    for method in hippo.DIGIT_METHODS:
        W = hippo.digit_compressor(method, 8, u, train, 0)
        np.testing.assert_array_equal(
            W, hippo.digit_compressor(method, 8, spoilt, train, 0)
        )


def test_baselines():
    W = hippo.leaky_averages(5, 1000)
    np.testing.assert_allclose(W[0].sum(), 1)
    assert np.all(np.diff(W, axis=1) >= 0)  # newest weighs most
    np.testing.assert_allclose(
        hippo.dct_matrix(6, 20) @ hippo.dct_matrix(6, 20).T, np.eye(6), atol=1e-14
    )
    u = rng(11).standard_normal((50, 12))
    V = hippo.pca_matrix(u, 3)
    np.testing.assert_allclose(V @ V.T, np.eye(3), atol=1e-13)
    for kind in ("orthogonal", "gaussian"):
        Ab, _ = hippo.random_recurrence(9, rng(12), 0.95, kind)
        assert abs(np.abs(np.linalg.eigvals(Ab)).max() - 0.95) < 1e-12
    u, _ = hippo.digit_sequences()
    quarter = hippo.digit_compressor("legt:0.25", 8, u, np.arange(10), 0)
    expected = hippo.compression_matrix("legt", 8, 64, window=16)
    np.testing.assert_array_equal(quarter, expected)


# -- wrong inputs -------------------------------------------------------------------

A4, B4 = hippo.transition("legs", 4)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: hippo.transition("legz", 4), "'legz'; choose one of legs, legt"),
        (lambda: hippo.transition("fout", 5), "N is 5; FouT .* even N"),
        (lambda: hippo.transition("legs", 0), "N is 0; give a whole number"),
        (lambda: hippo.transition("legs", 2.5), "N is 2.5; give a whole number"),
        (lambda: hippo.basis_kernel("legs", 4, [-1.0]), "negative"),
        (lambda: hippo.basis_kernel("legs", 4, 1.0), r"shape \(\); give one axis"),
        (lambda: hippo.state_kernel(A4, B4[:3], [0.0]), r"A \(N, N\) and B \(N,\)"),
        (lambda: hippo.discretize(A4, B4, 0.1, "tustin"), "choose one of euler"),
        (lambda: hippo.discretize(A4, B4, 0.0), "dt is 0.0; give a positive"),
        (lambda: hippo.stretch_matrix(4, 1.5), "between 0 and 1"),
        (lambda: hippo.legs_scan(np.ones(5), 4, "zoh"), "choose one of hold"),
        (lambda: hippo.legs_scan(1.0, 4), r"give \(length,\) or \(batch, length\)"),
        (lambda: hippo.legs_scan(np.ones(5), 4, power=0), "power is 0; give"),
        (lambda: hippo.compression_matrix("legs", 4, 9, window=-1), "window is -1"),
        (lambda: hippo.compression_matrix("legs", 4, 0), "L is 0; give"),
        (lambda: hippo.reconstruct(B4, "legt", [1.2]), "reaches back to lag 1"),
        (lambda: hippo.reconstruct(B4, "scaled", [0.2]), "choose one of scaled_legs"),
        (lambda: hippo.legendre_projection(np.sin, 4, [2.0]), r"points in \(0, 1\)"),
        (lambda: hippo.step_coefficients(1.0, 4), "break is at 1.0"),
        (lambda: hippo.memory(B4), r"give \(N, L\)"),
        (lambda: hippo.memory(A4, np.zeros(4)), r"R\[0\] > 0"),
        (
            lambda: hippo.memory_lti(2 * np.eye(4), B4, 9),
            "radius is 2; make the system",
        ),
        (lambda: hippo.band_limited(9, 0.0), "cut-off is 0.0"),
        (lambda: hippo.band_limited_noise((2, 9), 1.1, rng()), "cut-off is 1.1"),
        (lambda: hippo.kernel_recurrent(A4, B4, np.ones(3), 5), "last axis is N=4"),
        (lambda: hippo.fft_convolve(np.ones(3), np.ones(4)), "3 taps, the signal 4"),
        (lambda: hippo.random_recurrence(3, rng(), 1.0), "radius is 1.0"),
        (lambda: hippo.random_recurrence(3, rng(), kind="sparse"), "'sparse'"),
        (lambda: hippo.last_samples(9, 8), "cannot be longer"),
        (lambda: hippo.dct_matrix(9, 8), "only 8 cosine"),
        (lambda: hippo.pca_matrix(np.ones((3, 5)), 4), "N is 4"),
        (lambda: hippo.digit_sequences(65), "give 64 or 256"),
        (lambda: hippo.digit_accuracy(A4, np.ones(3), 0), "4 feature rows, 3 labels"),
        (lambda: hippo.digit_table(methods=["legg"]), "The method is 'legg'"),
    ],
)
def test_wrong_inputs_are_told_in_sentences(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_every_public_function_says_what_it_does():
    public = [f for n, f in vars(hippo).items() if callable(f) and n[0].islower()]
    own = [f for f in public if getattr(f, "__module__", "") == "lib.hippo"]
    assert len(own) > 25
    for function in own:
        for word in ("Returns", "Source:"):
            assert word in (function.__doc__ or ""), (function.__name__, word)
        assert "return" in function.__annotations__, function.__name__
