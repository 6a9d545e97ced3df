"""lib.icl_regression: closed forms, the transformer's probes, random features."""

import numpy as np
import pytest
import torch

from lib import icl_regression as icl
from lib.icl_regression import closed_forms as cf
from lib.icl_regression import random_features as rf
from lib.icl_regression import transformer as tf

MANY = 200_000


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def sampled(size, n, d, **world):
    return icl.sample_prompts(size, n, d, gen(), dtype=torch.float64, **world)


def risk(w, p):
    return float((icl.predict(w, p.x_q) - p.y_q).square().mean())


# -- one step (oracle 12) -------------------------------------------------------------


def test_the_specifications_numbers():
    assert cf.gd_loss(5, 10) == pytest.approx(1.875)
    m = np.ones(5) / 5**0.5
    for norm, published in ((1, 2.218), (2, 3.094)):  # the specification's prototype
        step = cf.step_moments(cf.task_moment(5, norm * m), 10)
        assert cf.best_preconditioner(step)[1] == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize("noise", [0.0, 0.6])
@pytest.mark.parametrize("debiased", [False, True])
def test_best_step_against_its_formula(noise, debiased):
    d, n, tau = 4, 9, 0.8
    step = cf.step_moments(cf.task_moment(d, 0.0, tau), n, noise, debiased=debiased)
    eta, found = cf.best_step(step)
    s = noise**2 / tau**2
    k = n + d + s if debiased else n + d + 1 + s
    assert eta == pytest.approx(n / k)
    left = 1 - (n - 1 if debiased else n) / k
    assert found == pytest.approx(noise**2 + d * tau**2 * left)
    if not debiased:
        assert found == pytest.approx(cf.gd_loss(d, n, noise, tau))


@pytest.mark.parametrize("debiased", [False, True])
def test_step_risk_against_monte_carlo(debiased):
    d, n, noise = 3, 8, 0.5
    lam = np.array([2.0, 1.0, 0.4])
    p = sampled(MANY, n, d, noise=noise, mean=0.5, root=torch.tensor(lam**0.5).diag())
    C = cf.task_moment(d, 0.5)
    step = cf.step_moments(C, n, noise, np.diag(lam), debiased)
    b = icl.gd(p, 1, 1.0, debiased=debiased)
    np.testing.assert_allclose(
        (b.T @ b / MANY).numpy(), step.second, rtol=0.05, atol=0.05
    )
    np.testing.assert_allclose((p.w.T @ b / MANY).numpy(), step.cross, atol=0.03)
    A, best = cf.best_preconditioner(step)
    assert best == pytest.approx(risk(b @ torch.tensor(A).T, p), rel=0.03)
    assert cf.step_risk(step, 0.3) == pytest.approx(risk(0.3 * b, p), rel=0.03)
    eta, scalar = cf.best_step(step)
    assert best <= scalar <= cf.step_risk(step, 0.9 * eta)
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert best <= cf.step_risk(step, A + 0.05 * rng.standard_normal((d, d)))


def test_descent_from_the_mean_for_every_mean():
    for norm in (0.0, 3.0):
        m = torch.tensor([norm, 0, 0, 0]).double()
        p = sampled(MANY, 6, 4, mean=m)
        found = risk(icl.gd(p, 1, 6 / 11, m), p)
        assert found == pytest.approx(cf.gd_loss(4, 6), rel=0.03)


def test_no_mean_makes_labels_only_descent():
    step = cf.step_moments(cf.task_moment(4), 7, 0.3)
    A, found = cf.best_preconditioner(step)
    eta, scalar = cf.best_step(step)
    np.testing.assert_allclose(A, eta * np.eye(4), atol=1e-12)
    assert found == pytest.approx(scalar, rel=1e-12)
    assert found == pytest.approx(cf.gd_loss(4, 7, 0.3), rel=1e-12)


def test_isotropic_preconditioner_formula():
    d, n, noise, tau = 4, 10, 0.4, 0.7
    lam = np.array([3.0, 1.0, 0.5, 0.2])
    step = cf.step_moments(
        cf.task_moment(d, 0.0, tau), n, noise, np.diag(lam), debiased=True
    )
    want = 1 / (lam + (lam.sum() + noise**2 / tau**2) / n)
    np.testing.assert_allclose(
        cf.best_preconditioner(step)[0], np.diag(want), atol=1e-12
    )


# -- every head -----------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3, 6])
def test_nodes_integrate_degree_five(d):
    x, w = cf.gaussian_nodes(d)
    assert len(x) == 2 * d * d + 1
    moments = {(0,): 1, (2,): 1, (4,): 3}
    for (power,), want in moments.items():
        assert w @ x[:, 0] ** power == pytest.approx(want)
    assert abs(w @ x[:, 0]) < 1e-12
    assert abs(w @ (x[:, 0] ** 3 * x[:, -1] ** 2)) < 1e-12
    if d > 1:
        assert w @ (x[:, 0] ** 2 * x[:, 1] ** 2) == pytest.approx(1)
        assert abs(w @ (x[:, 0] ** 3 * x[:, 1])) < 1e-12


def test_gram_moments_against_monte_carlo():
    d, n, m, noise = 2, 6, np.array([1.0, -0.5]), 0.4
    p = sampled(MANY, n, d, mean=torch.tensor(m), noise=noise, tau=0.8)
    g = icl.gram(p).flatten(1).numpy()
    moments = cf.gram_moments(d, n, m, noise, 0.8)
    np.testing.assert_allclose(g.T @ g / MANY, moments.second, rtol=0.06, atol=0.06)
    np.testing.assert_allclose(
        p.w.numpy().T @ g / MANY, moments.cross, rtol=0.05, atol=0.03
    )
    np.testing.assert_allclose(g.mean(0), cf._mean_gram(moments), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("d", "n", "norm"), [(5, 10, 1.0), (5, 10, 2.0), (3, 4, 1.5)])
def test_floor_of_all_heads(d, n, norm):
    m = norm * np.ones(d) / d**0.5
    floor = cf.lsa_floor(cf.gram_moments(d, n, m))
    assert floor == pytest.approx(
        cf.gd_loss(d, n) + 2 * norm**2 / (n * d + 2), rel=1e-9
    )
    labels = cf.best_preconditioner(cf.step_moments(cf.task_moment(d, m), n))[1]
    assert cf.gd_loss(d, n) < floor < labels


def test_floor_without_a_mean_is_descent():
    for noise in (0.0, 0.7):
        floor = cf.lsa_floor(cf.gram_moments(4, 6, 0.0, noise))
        assert floor == pytest.approx(cf.gd_loss(4, 6, noise), rel=1e-9)


def test_floor_is_reached_by_d_plus_one_heads():
    d, n, m = 3, 6, np.array([1.0, 0, 0])
    moments = cf.gram_moments(d, n, m)
    phi = np.linalg.lstsq(moments.second, moments.cross.T, rcond=1e-12)[0]
    phi = phi.reshape(d + 1, d + 1, d)  # value, key, output
    K = np.zeros((d + 1, d + 1, d + 1))
    K[:, :, :d] = phi
    found = cf.lsa_risk(moments, K, np.eye(d + 1))
    assert found == pytest.approx(cf.lsa_floor(moments), rel=1e-9)


def test_risk_of_weights_against_monte_carlo():
    d, n, m = 3, 7, torch.tensor([1.0, 0.5, -1.0]).double()
    p = sampled(MANY, n, d, mean=m, noise=0.3)
    w = icl.start_heads((), 2, d, gen(4), scale=0.2, dtype=torch.float64)
    w["u"] = torch.tensor([0.5, 0.1, 0.0]).double()
    exact = cf.lsa_risk(
        cf.gram_moments(d, n, m.numpy(), 0.3), *(w[k].numpy() for k in "Kvu")
    )
    found = float((icl.linear_attention(w, p) - p.y_q).square().mean())
    assert exact == pytest.approx(found, rel=0.03)


def test_guess_at_the_mean_is_descent():
    d, n, m = 4, 9, np.array([1.0, 2.0, 0.0, -1.0])
    w = icl.descent_head(d, n / (n + d + 1), torch.tensor(m))
    exact = cf.lsa_risk(cf.gram_moments(d, n, m), *(w[k].numpy() for k in "Kvu"))
    assert exact == pytest.approx(cf.gd_loss(d, n), rel=1e-10)


def test_softmax_remainder_bounds_the_difference():
    rng = np.random.default_rng(0)
    for _ in range(50):
        s, y = rng.standard_normal((2, 6)) * rng.uniform(0.1, 5)
        for omega in (0.01, 0.3, 2.0):
            up, down = (np.exp(k * omega * s - np.max(k * omega * s)) for k in (1, -1))
            real = y @ (up / up.sum() - down / down.sum())
            first = 2 * omega * np.mean((y - y.mean()) * (s - s.mean()))
            assert abs(real - first) <= cf.softmax_remainder(omega, s, y) + 1e-12


def test_heads_for_tasks_and_weights_that_do_it():
    assert cf.heads_for_tasks(np.eye(3)) == 4
    assert cf.heads_for_tasks(np.array([[1, 1], [1, 1]])) == 2  # alike: shared
    # three heads, two tasks: mu solves the three first-order conditions
    omega = 1e-3 * np.array([[1.0, 0.2], [-0.4, 1.0], [-0.6, -1.1]])  # (H, N)
    mu = np.linalg.inv(np.column_stack([np.ones(3), omega]))[1:].T  # (H, N)
    supports = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    p = icl.sample_tasks(30, 9, supports, gen(), dtype=torch.float64)
    K = torch.tensor(omega @ supports.numpy()).diag_embed()
    found = icl.softmax_tasks({"K": K, "v": torch.tensor(mu)}, p)
    x = p.x - p.x.mean(1, keepdim=True)
    for k in range(2):
        step = (x.mT @ p.y[k][..., None])[..., 0] / p.n
        want = (step * supports[k] * p.x_q).sum(-1)
        torch.testing.assert_close(found[k], want, rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cf.gd_loss(3, 4, tau=0), "nothing to learn"),
        (lambda: cf.step_moments(np.eye(2), 0), "n is 0"),
        (lambda: cf.step_moments(np.eye(2), 1, debiased=True), "at least 2"),
        (lambda: cf.step_moments(np.eye(2), 5, noise=-1), "0 or more"),
        (lambda: cf.step_moments(np.eye(2), 5, cov=np.eye(3)), "one size"),
        (lambda: cf.heads_for_tasks(np.array([[2]])), "zeros and ones"),
        (
            lambda: cf.lsa_risk(
                cf.gram_moments(2, 3), np.ones((1, 2, 2)), np.ones((1, 3))
            ),
            r"give \(H, 3, 3\)",
        ),
        (lambda: rf.fit(torch.eye(2), torch.ones(2), -1), "0 or more"),
        (lambda: rf.descend(torch.eye(2), torch.ones(2), 0, 3), "positive"),
        (lambda: rf.random_heads(0, 2, 2, gen()), "heads is 0"),
        (lambda: rf.random_heads(2, 2, 2, gen(), torch.eye(2)), "centre is"),
        (lambda: tf.start_transformer((), 2, gen(), width=5, heads=2), "multiple"),
        (lambda: tf.probe(torch.ones(2, 3), torch.ones(2, 1)), "at least 4"),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# -- transformer and probes -----------------------------------------------------------


def test_transformer_shapes_and_symmetry():
    w = tf.start_transformer((2,), 3, gen(1), width=8, heads=2, layers=3)
    p = icl.sample_prompts((2, 5), 6, 3, gen(2))
    states = tf.hidden_states(w, p)
    assert [tuple(z.shape) for z in states] == [(2, 5, 7, 8)] * 4
    order = torch.randperm(6, generator=gen(3))
    turned = p._replace(x=p.x[:, :, order], y=p.y[:, :, order])
    torch.testing.assert_close(
        tf.transformer(w, p), tf.transformer(w, turned), rtol=1e-4, atol=1e-5
    )


def test_transformer_does_not_see_the_answer():
    w = tf.start_transformer((), 3, gen(1))
    p = icl.sample_prompts(5, 6, 3, gen(2))
    assert torch.equal(
        tf.transformer(w, p), tf.transformer(w, p._replace(y_q=p.y_q + 1))
    )


def test_models_of_a_batch_are_alone():
    w = tf.start_transformer((2,), 3, gen(1), layers=2)
    p = icl.sample_prompts((2, 5), 6, 3, gen(2))
    one = {name: value[1] for name, value in w.items()}
    alone = icl.Prompts(*(x[1] for x in p))
    torch.testing.assert_close(
        tf.transformer(w, p)[1], tf.transformer(one, alone), rtol=1e-4, atol=1e-5
    )


def test_attention_inside_is_torchs_own():
    w = tf.start_transformer((), 2, gen(1), width=8, heads=2, layers=1)
    w["down"] = torch.zeros_like(w["down"])  # attention alone
    p = icl.sample_prompts(4, 5, 2, gen(2))
    before, after = tf.hidden_states(w, p)
    h = tf.unit(before)
    q, k, v = (torch.einsum("bti,hio->bhto", h, w[name][0]) for name in ("Q", "K", "V"))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    want = before + mixed.transpose(1, 2).flatten(2) @ w["O"][0]
    torch.testing.assert_close(after, want, rtol=1e-4, atol=1e-5)


def test_probe_finds_what_is_there_and_not_what_is_not():
    g = gen(5)
    z = torch.randn(2000, 6, generator=g)
    linear = z @ torch.randn(6, 2, generator=g)
    assert float(tf.probe(z, linear)) > 0.99
    noise = torch.randn(2000, 2, generator=g)
    assert abs(float(tf.probe(z, noise))) < 0.05
    bent = z[:, :1].abs()
    assert float(tf.probe(z, bent)) < 0.05
    assert float(tf.probe(z, bent, hidden=128, generator=gen(6))) > 0.5


def test_probe_layers_stacks_the_summaries():
    w = tf.start_transformer((2,), 2, gen(1), width=8, layers=2)
    p = icl.sample_prompts((2, 40), 6, 2, gen(2))
    found = tf.probe_layers(tf.hidden_states(w, p), p.w)
    assert found.shape == (3, 2)


# -- random features ------------------------------------------------------------------


def rfa_case(N=60, M=5, dq=2, dk=3, n=4):
    g = gen(7)
    q = torch.randn(N, dq, generator=g, dtype=torch.float64)
    k = torch.randn(N, n, dk, generator=g, dtype=torch.float64)
    return q, k, rf.random_heads(M, dq, dk, g), g


def test_features_by_loops():
    q, k, W, g = rfa_case(N=3)
    Phi = rf.attention_features(q, k, W)
    v = torch.randn(5, 4, generator=g, dtype=torch.float64)
    one = torch.ones(1).double()
    for r in range(3):
        want = 0
        for m in range(5):
            for i in range(4):
                a, b = torch.cat([q[r], one]), torch.cat([k[r, i], one])
                want = want + torch.relu(a @ W[m] @ b) * (v[m] @ b) / 4
        torch.testing.assert_close(Phi[r] @ v.flatten(), want)


def test_features_ignore_the_order_of_keys():
    q, k, W, _ = rfa_case()
    torch.testing.assert_close(
        rf.attention_features(q, k, W), rf.attention_features(q, k.flip(1), W)
    )


def test_a_target_in_the_span_is_found():
    q, k, W, g = rfa_case()
    Phi = rf.attention_features(q, k, W)
    v = torch.randn(Phi.shape[1], generator=g, dtype=torch.float64)
    y = Phi @ v
    found = rf.fit(Phi[:40], y[:40])
    torch.testing.assert_close(Phi[40:] @ found, y[40:], rtol=0, atol=1e-8)


@pytest.mark.parametrize("N", [10, 80])
def test_ridge_is_stationary(N):
    q, k, W, g = rfa_case(N)
    Phi = rf.attention_features(q, k, W)
    y = torch.randn(N, generator=g, dtype=torch.float64)
    v = rf.fit(Phi, y, 0.1)
    slope = Phi.T @ (Phi @ v - y) / N + 0.1 * v
    assert slope.abs().max() < 1e-10


def test_descent_falls_at_its_rate():
    q, k, W, g = rfa_case(80)
    Phi = rf.attention_features(q, k, W)
    y = torch.randn(80, generator=g, dtype=torch.float64)
    values, kappa = rf.descend(Phi, y, 0.05, 400)
    v = rf.fit(Phi, y, 0.05)
    least = (Phi @ v - y).square().mean() + 0.05 * v.square().sum()
    gap = ((values - least) / (values[0] - least)).numpy()
    assert (gap <= (1 - 1 / kappa) ** (2 * np.arange(401)) + 1e-12).all()
    assert gap[-1] < 1e-3
    assert values[0] == pytest.approx(float(y.square().mean()))


def test_a_centre_moves_the_heads():
    centre = torch.full((3, 4), 5.0, dtype=torch.float64)
    W = rf.random_heads(4000, 2, 3, gen(1), centre)
    np.testing.assert_allclose(W.mean(0), centre, atol=0.05)
    np.testing.assert_allclose(W.var(0), 1 / 3, atol=0.05)


def test_network_features_see_the_order():
    q, k, _, _ = rfa_case()
    a = rf.mlp_features(q, k, 20, gen(1))
    assert a.shape == (60, 20)
    assert not torch.allclose(a, rf.mlp_features(q, k.flip(1), 20, gen(1)))
