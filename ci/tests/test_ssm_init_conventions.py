"""lib.ssm_init.conventions: round trips, and kernels by each code's own formula."""

import numpy as np
import pytest
import torch

from lib.ssm_init import conventions as cv
from lib.ssm_init.inits import init_diag, init_s5
from lib.ssm_init.layers import init_dplr
from lib.ssm_init.theory import kernel_vandermonde

L = 40


def made(kind="legs", H=3, N=8, **options):
    rng = np.random.default_rng(0)
    return init_diag(kind, N, H, rng=rng, dt_range=(1e-2, 1e-1), **options)


def kernel(init, rule="zoh"):
    parts = (init["A"], init["B"], init["C"], np.exp(init["log_dt"]))
    return kernel_vandermonde(*parts, L, rule)


def complex_of(x):
    return x[..., 0] + 1j * x[..., 1]


def same(one, two):
    """The same modes in any order, as products C B beside their poles."""
    for a, b in zip(one["A"], two["A"]):
        np.testing.assert_allclose(np.sort_complex(a), np.sort_complex(b), rtol=1e-13)
    np.testing.assert_allclose(kernel(one), kernel(two), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(one["log_dt"], two["log_dt"], rtol=1e-14)


def test_conjugating_a_mode_changes_nothing():
    init = made("lin")
    low = dict(zip(("A", "B", "C"), cv.half_plane(init, -1)))
    assert (low["A"].imag <= 0).all()
    assert (low["A"].imag < 0).any()
    low["log_dt"] = init["log_dt"]
    np.testing.assert_allclose(kernel(low), kernel(init), rtol=1e-13)


@pytest.mark.parametrize("kind", ["legs", "inv", "rand"])
def test_state_spaces(kind):
    init = made(kind)
    params = cv.to_state_spaces(init)
    assert {k: v.shape for k, v in params.items()} == {
        **{"A_real": (3, 4), "A_imag": (3, 4), "inv_dt": (3, 1)},
        **{"B": (1, 3, 4, 2), "C": (1, 3, 4, 2)},
    }
    assert (params["A_imag"] >= 0).all()
    same(cv.from_state_spaces(params), init)
    # SSMKernelDiag._get_params and forward, written out
    A = -np.exp(params["A_real"]) - 1j * params["A_imag"]
    dtA = np.exp(params["inv_dt"]) * A
    C = complex_of(params["B"])[0] * complex_of(params["C"])[0]
    C = C * (np.exp(dtA) - 1) / A
    K = 2 * np.einsum("hn,hnl->hl", C, np.exp(dtA[..., None] * np.arange(L))).real
    np.testing.assert_allclose(K, kernel(init), rtol=1e-9, atol=1e-12)


def test_state_spaces_shared_poles_channels_and_softplus():
    params = cv.to_state_spaces(made("lin", H=4))
    shared = params | {
        "A_real": params["A_real"][:1],
        "A_imag": params["A_imag"][:1],
        "B": params["B"][:, :1],
        "C": np.concatenate([params["C"], 2 * params["C"]]),
    }
    one, two = (cv.from_state_spaces(shared, channel=k) for k in (0, 1))
    same(one, made("lin", H=4))
    np.testing.assert_allclose(kernel(two), 2 * kernel(one), rtol=1e-13)
    dt = np.exp(params["inv_dt"])
    soft = params | {"inv_dt": np.log(np.expm1(dt))}
    got = cv.from_state_spaces(soft, "softplus")
    np.testing.assert_allclose(np.exp(got["log_dt"]), dt[:, 0], rtol=1e-12)
    with pytest.raises(ValueError, match="dt_transform is 'sigmoid'; choose one of"):
        cv.from_state_spaces(params, "sigmoid")


def test_state_spaces_keeps_the_whole_B():
    half, whole = made("legs"), made("legs", half_B=False)
    parts = [complex_of(cv.to_state_spaces(x)["B"]) for x in (half, whole)]
    np.testing.assert_allclose(2 * parts[0], parts[1])


def test_dss():
    init = made("legs")
    params = cv.to_dss(init)
    assert params["W"].shape == (1, 3, 4, 2)
    same(cv.from_dss(params), init)
    Lambda = -np.exp(params["Lambda_log_neg_re"]) + 1j * params["Lambda_im"]
    z = np.exp(params["log_dt"])[:, None] * Lambda
    W = complex_of(params["W"])[0] * (np.exp(z) - 1) / Lambda
    K = np.einsum("hn,hnl->hl", W, np.exp(z[..., None] * np.arange(L))).real
    np.testing.assert_allclose(K, kernel(init), rtol=1e-9, atol=1e-12)


def test_dss_with_two_steps_and_shared_poles():
    params = cv.to_dss(made("lin"))
    params = {k: v[:1] if k.startswith("Lambda") else v for k, v in params.items()}
    both = np.stack([params["log_dt"], params["log_dt"] + 0.3], axis=1)
    Lambda = -np.exp(params["Lambda_log_neg_re"]) + 1j * params["Lambda_im"]
    dt = np.exp(both)
    z = dt[:, :1] * Lambda.real + 1j * dt[:, 1:] * Lambda.imag
    W = complex_of(params["W"])[0] * (np.exp(z) - 1) / Lambda
    K = np.einsum("hn,hnl->hl", W, np.exp(z[..., None] * np.arange(L))).real
    got = kernel(cv.from_dss(params | {"log_dt": both}))
    np.testing.assert_allclose(got, K, rtol=1e-9, atol=1e-12)


def test_s5_as_one_block_diagonal_system():
    init = made("legs")
    params = cv.to_s5(init)
    assert params["Lambda_im"].shape == (12,)
    assert (params["Lambda_im"] < 0).all()
    assert (np.diff(params["Lambda_im"].reshape(3, 4), axis=1) > 0).all()
    back = cv.from_s5(params)
    paths = kernel(back).reshape(3, 3, L)  # (output, input, L)
    np.testing.assert_allclose(paths[[0, 1, 2], [0, 1, 2]], kernel(init), rtol=1e-10)
    assert not paths[0, 1].any()
    # apply_ssm, written out, on noise
    u = np.random.default_rng(1).standard_normal((L, 3))
    y = s5_output(params, u)
    for h in range(3):
        want = np.convolve(kernel(init)[h], u[:, h])[:L]
        np.testing.assert_allclose(y[:, h], want, rtol=1e-9, atol=1e-11)


def s5_output(params, u):
    """discretize_zoh and apply_ssm with conj_sym, as a loop."""
    Lambda = params["Lambda_re"] + 1j * params["Lambda_im"]
    bar = np.exp(Lambda * np.exp(params["log_step"][:, 0]))
    B = ((bar - 1) / Lambda)[:, None] * complex_of(params["B"])
    x, y = np.zeros(len(bar)), []
    for row in u:
        x = bar * x + B @ row
        y.append(2 * (complex_of(params["C"]) @ x).real)
    return np.array(y)


def test_a_dense_s5_by_paths():
    made_s5 = init_s5(8, 2, 3, rng=np.random.default_rng(0))
    params = {
        **{"Lambda_re": made_s5["Lambda"].real, "Lambda_im": made_s5["Lambda"].imag},
        **{"B": cv._pair(made_s5["B"]), "C": cv._pair(made_s5["C"])},
        **{"log_step": made_s5["log_step"]},
    }
    assert (params["Lambda_im"] < 0).all()
    paths = kernel(cv.from_s5(params)).reshape(3, 3, L)
    u = np.random.default_rng(1).standard_normal((L, 3))
    want = sum(
        np.stack([np.convolve(paths[i, j], u[:, j])[:L] for i in range(3)], axis=1)
        for j in range(3)
    )
    np.testing.assert_allclose(s5_output(params, u), want, rtol=1e-9, atol=1e-11)


def annotated_kernel(params, h):
    """annotated-s4's kernel_DPLR, written out for an odd length (no node at -1)."""
    step, n = np.exp(params["log_step"][h, 0]), 39
    Lambda = params["Lambda_re"][h] + 1j * params["Lambda_im"][h]
    P, B, C = params["P"][h], params["B"][h], complex_of(params["C"][h])
    omega = np.exp(-2j * np.pi * np.arange(n) / n)
    g = 2 / step * (1 - omega) / (1 + omega)
    R = 1 / (g[:, None] - Lambda)
    k00, k01 = R @ (C.conj() * B), R @ (C.conj() * P)
    k10, k11 = R @ (P.conj() * B), R @ (P.conj() * P)
    spectrum = 2 / (1 + omega) * (k00 - k01 * k10 / (1 + k11))
    return np.fft.ifft(spectrum).real


@pytest.mark.parametrize("low_rank", [False, True])
def test_annotated_s4(low_rank):
    rng = np.random.default_rng(0)
    init = init_dplr(8, 2, rng=rng, dt_range=(1e-2, 1e-1)) if low_rank else made(H=2)
    params = cv.to_annotated(init, 39)
    assert params["C"].shape == (2, 8, 2)
    back = cv.from_annotated(params, 39)
    for key in ("A", "B", "C"):
        np.testing.assert_allclose(back[key], init[key], rtol=1e-8, atol=1e-10)
    if low_rank:
        from lib.ssm_init.layers import S4

        with torch.no_grad():
            want = S4(init, dtype=torch.float64).kernel(39).numpy()
    else:
        want = kernel(init, "bilinear")[:, :39]
    for h in range(2):
        got = annotated_kernel(params, h)
        np.testing.assert_allclose(got, want[h], rtol=1e-8, atol=1e-11)
    # another length reads other taps: C-tilde belongs to its length
    other = cv.from_annotated(params, 20)
    assert np.abs(other["C"] - init["C"]).max() > 1e-3


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_scipy(method):
    from scipy.signal import cont2discrete, dimpulse

    init = made("legs")
    dt = float(np.exp(init["log_dt"][1]))
    system = cont2discrete(cv.to_scipy(init, 1, D=0.7), dt, method)
    h = dimpulse(system, n=L)[1][0][:, 0]
    K = cv.kernel_of_scipy(h, method, D=0.7)
    np.testing.assert_allclose(K, kernel(init, method)[1][: len(K)], atol=1e-11)
    if method == "zoh":
        assert h[0] == pytest.approx(0.7)
    else:
        assert h[0] == pytest.approx(0.7 + kernel(init, method)[1, 0] / 2)
    with pytest.raises(ValueError, match="The method is 'tustin'; choose one of zoh"):
        cv.kernel_of_scipy(h, "tustin")


# -- token dynamics -----------------------------------------------------------------


def test_random_projections_shrink_half_of_the_channels():
    rng = np.random.default_rng(0)
    shares = [cv.negative_share(*rng.standard_normal((2, 16, 256))) for _ in range(20)]
    for name in ("channels", "eigenvalues"):
        values = [share[name] for share in shares]
        assert abs(np.mean(values) - 0.5) < 0.05
    assert {share["symmetric"] for share in shares} == {0.5}  # Sylvester's law


def test_opposite_projections_shrink_all():
    S_B = np.random.default_rng(0).standard_normal((4, 12))
    every = {"channels": 1.0, "eigenvalues": 1.0, "symmetric": 1.0}
    assert cv.negative_share(S_B, -S_B) == every
    assert cv.negative_share(S_B, S_B) == dict.fromkeys(every, 0.0)
    M = (-S_B).T @ S_B
    assert np.linalg.eigvalsh(M + M.T).max() < 1e-10
    with pytest.raises(ValueError, match=r"S_B has shape \(4, 12\), S_C \(3, 12\)"):
        cv.negative_share(S_B, S_B[:3])


def test_symmetric_part_with_fewer_channels_than_rows():
    S_B, S_C = np.random.default_rng(0).standard_normal((2, 5, 3))
    M = S_C.T @ S_B
    want = np.mean(np.linalg.eigvalsh(M + M.T) < 0)
    assert cv.negative_share(S_B, S_C)["symmetric"] == pytest.approx(want)


class Mixer(torch.nn.Module):
    """The two projections of a Mamba mixer, dt_rank 3, N = 4, d_inner = 10."""

    def __init__(self):
        super().__init__()
        self.x_proj = torch.nn.Linear(10, 3 + 8, bias=False)
        self.dt_proj = torch.nn.Linear(3, 10)


def test_mamba_mu_reads_x_proj():
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"a": Mixer(), "b": Mixer()})
    with torch.no_grad():
        rows = model["b"].x_proj.weight
        rows[7:] = -rows[3:7]
    shares = cv.mamba_mu(model)
    assert list(shares) == ["a", "b"]
    assert shares["b"]["channels"] == shares["b"]["eigenvalues"] == 1
    assert 0 < shares["a"]["channels"] < 1
    with pytest.raises(ValueError, match="this is not a Mamba"):
        cv.mamba_mu(torch.nn.Linear(2, 2))
