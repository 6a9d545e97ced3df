"""lib.icl_regression: prompts, rivals, attention and training against oracles."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import icl_regression as icl
from lib.icl_regression import attention, training
from lib.icl_regression import closed_forms as cf

SETTINGS = settings(max_examples=15, deadline=None, derandomize=True)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def prompts(B=20, n=7, d=3, seed=0, **world):
    return icl.sample_prompts(B, n, d, gen(seed), dtype=torch.float64, **world)


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def random_weights(lead=(), heads=2, d=3, seed=1):
    w = icl.start_heads(lead, heads, d, gen(seed), scale=0.3, dtype=torch.float64)
    w["u"] = torch.randn(*lead, d, generator=gen(seed + 1), dtype=torch.float64)
    return w


def test_import_is_light():
    code = (
        "import sys; import lib.icl_regression; "
        "heavy = {'scipy', 'sklearn', 'pandas', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- prompts --------------------------------------------------------------------------


def test_labels_are_linear_without_noise():
    p = prompts()
    close((p.x @ p.w[..., None])[..., 0], p.y)
    close(icl.predict(p.w, p.x_q), p.y_q)
    assert p.n == 7


def test_world_has_the_asked_moments():
    root = torch.tensor([[1.0, 0.0], [0.5, 2.0]], dtype=torch.float64)
    mean = torch.tensor([3.0, -1.0], dtype=torch.float64)
    p = icl.sample_prompts(
        40_000, 1, 2, gen(), mean=mean, tau=0.5, noise=0.7, root=root,
        dtype=torch.float64,
    )  # fmt: skip
    np.testing.assert_allclose(p.w.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(torch.cov(p.w.T), 0.25 * np.eye(2), atol=0.02)
    np.testing.assert_allclose(torch.cov(p.x_q.T), root @ root.T, atol=0.1)
    left = p.y_q - icl.predict(p.w, p.x_q)
    assert abs(float(left.std()) - 0.7) < 0.01


def test_noise_and_mean_may_differ_between_models():
    noise = torch.tensor([0.0, 2.0])[:, None]
    mean = torch.tensor([0.0, 9.0])[:, None, None]
    p = icl.sample_prompts((2, 500), 3, 2, gen(), mean=mean, noise=noise)
    left = p.y_q - icl.predict(p.w, p.x_q)
    assert left[0].abs().max() < 1e-4
    assert left[1].std() > 1.5
    assert p.w[1].mean() > 8


def test_the_same_seed_gives_the_same_bytes():
    a, b = prompts(noise=0.3), prompts(noise=0.3)
    assert all(bytes(x.numpy()) == bytes(y.numpy()) for x, y in zip(a, b))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: icl.sample_prompts(0, 5, 2, gen()), "size is 0"),
        (lambda: icl.sample_prompts(4, 0, 2, gen()), "n is 0"),
        (lambda: icl.sample_prompts(4, 5, 2, gen(), noise=-1.0), "0 or more"),
        (lambda: icl.sample_prompts(4, 5, 2, gen(), root=torch.eye(3)), r"give \(2, 2"),
        (lambda: icl.sample_tasks(4, 5, torch.ones(3), gen()), r"give \(N, d\)"),
        (lambda: icl.ridge(prompts(), 0.0), "use ols"),
        (lambda: icl.sherman_morrison(prompts(), -1.0), "positive"),
        (lambda: icl.gd(prompts(), -1, 0.1), "steps is -1"),
        (lambda: icl.spd(torch.ones(3), torch.ones(4)), "same prompts"),
        (
            lambda: icl.ilwd(torch.ones(2, 2, 3), torch.ones(2, 2), torch.ones(2, 2)),
            "at least 3",
        ),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_gram_is_the_mean_outer_product():
    p = prompts()
    e = icl.tokens(p)
    brute = sum(e[:, i, :, None] * e[:, i, None, :] for i in range(p.n)) / p.n
    close(icl.gram(p), brute)


# -- rivals ---------------------------------------------------------------------------


def test_descent_follows_autograd():
    p = prompts(noise=0.2)
    w = torch.zeros_like(p.w).requires_grad_()
    for _ in range(3):
        loss = (p.y - (p.x @ w[..., None])[..., 0]).square().mean(-1).sum() / 2
        (slope,) = torch.autograd.grad(loss, w)
        w = (w - 0.3 * slope).detach().requires_grad_()
    close(icl.gd(p, 3, 0.3), w.detach())


def test_descent_from_a_start_is_descent_on_residuals():
    p = prompts(noise=0.2)
    start = torch.tensor([1.0, -2.0, 0.5]).double()
    moved = p._replace(y=p.y - p.x @ start)
    close(icl.gd(p, 4, 0.2, start), start + icl.gd(moved, 4, 0.2))


def test_many_steps_reach_least_squares():
    p = prompts(n=30, noise=0.2)
    close(icl.gd(p, 3000, 0.3), icl.ols(p), atol=1e-8)


def test_debiased_descent_by_hand():
    p = prompts(noise=0.2)
    hand = ((p.x - p.x.mean(1, keepdim=True)) * p.y[..., None]).mean(1)
    close(icl.gd(p, 1, 1.0, debiased=True), hand)


@SETTINGS
@given(st.integers(1, 9), st.integers(1, 5), st.floats(0.01, 10))
def test_rank_one_updates_are_ridge(n, d, lam):
    p = prompts(4, n, d, noise=0.5)
    close(icl.sherman_morrison(p, lam), icl.ridge(p, lam), atol=1e-9)
    x, y = p.x[0].numpy(), p.y[0].numpy()
    brute = np.linalg.inv(x.T @ x + lam * np.eye(d)) @ (x.T @ y)
    np.testing.assert_allclose(icl.ridge(p, lam)[0], brute, atol=1e-9)


def test_ridge_limits_and_prior_mean():
    p = prompts(n=9, noise=0.2)
    close(icl.ridge(p, 1e-10), icl.ols(p), atol=1e-7)
    start = torch.tensor([1.0, 2.0, 3.0]).double()
    close(icl.ridge(p, 1e12, start), start.expand_as(p.w), atol=1e-8)


def test_bayes_beats_the_other_rivals():
    p = icl.sample_prompts(20_000, 6, 3, gen(), noise=0.8, dtype=torch.float64)

    def risk(w):
        return float((icl.predict(w, p.x_q) - p.y_q).square().mean())

    bayes = risk(icl.ridge(p, 0.64))
    others = [icl.ridge(p, 0.1), icl.ridge(p, 4.0), icl.ols(p), icl.gd(p, 2, 0.4)]
    assert all(bayes < risk(w) for w in others)


def test_ilwd_of_linear_learners_is_the_distance_of_their_weights():
    p = prompts()
    a, b = icl.ridge(p, 0.5), icl.gd(p, 1, 0.5)
    q = torch.randn(20, 6, 3, generator=gen(5), dtype=torch.float64)
    said = icl.ilwd(q, (q @ a[..., None])[..., 0], (q @ b[..., None])[..., 0])
    close(said, (a - b).square().sum(-1).mean())
    zero = icl.spd(icl.predict(a, p.x_q), icl.predict(a, p.x_q))
    assert zero == 0


# -- attention ------------------------------------------------------------------------


def test_linear_attention_by_loops():
    p, w = prompts(B=3, noise=0.1), random_weights()
    e = icl.tokens(p)
    for b in range(3):
        y0 = w["u"] @ p.x_q[b]
        e_q = torch.cat([p.x_q[b], y0[None]])
        want = y0 + sum(
            (w["v"][h] @ e[b, i]) * (e[b, i] @ w["K"][h] @ e_q) / p.n
            for h in range(2)
            for i in range(p.n)
        )
        close(icl.linear_attention(w, p)[b], want)


def test_linear_rule_answers_as_the_heads_do():
    p, w = prompts(noise=0.1), random_weights()
    close(icl.predict(icl.linear_rule(w, p), p.x_q), icl.linear_attention(w, p))
    del w["u"]
    close(icl.predict(icl.linear_rule(w, p), p.x_q), icl.linear_attention(w, p))


def test_models_in_a_batch_do_not_meet():
    p = icl.sample_prompts((2, 5), 7, 3, gen(), dtype=torch.float64)
    w = random_weights((4, 2))
    every = icl.linear_attention(w, p)
    rule = icl.predict(icl.linear_rule(w, p), p.x_q)
    assert every.shape == rule.shape == (4, 2, 5)
    one = {name: value[3, 1] for name, value in w.items()}
    alone = icl.Prompts(*(x[1] for x in p))
    close(every[3, 1], icl.linear_attention(one, alone))
    close(rule[3, 1], every[3, 1])
    soft = icl.softmax_attention(w, p)
    close(soft[3, 1], icl.softmax_attention(one, alone))


def test_softmax_attention_by_loops():
    p, w = prompts(B=3), random_weights()
    e = icl.tokens(p)
    for b in range(3):
        e_q = torch.cat([p.x_q[b], torch.zeros(1).double()])
        want = 0
        for h in range(2):
            share = torch.softmax(e[b] @ w["K"][h] @ e_q, 0)
            want = want + (share * (e[b] @ w["v"][h])).sum()
        close(icl.softmax_attention(w, p)[b], want)


def test_softmax_tasks_are_softmax_heads_for_one_task():
    p = icl.sample_tasks(6, 7, torch.ones(1, 3), gen(), dtype=torch.float64)
    w = random_weights()
    w["K"][:, 3], w["v"][:, :3] = 0, 0  # scores from inputs, values from labels
    one = icl.Prompts(p.x, p.y[0], p.x_q, p.y_q[0], p.w[0])
    shared = {"K": w["K"][:, :3, :3], "v": w["v"][:, 3:]}
    close(icl.softmax_tasks(shared, p)[0], icl.softmax_attention(w, one))


def test_tasks_read_their_own_inputs():
    supports = torch.tensor([[1.0, 1, 0], [0, 0, 1]])
    p = icl.sample_tasks((2, 5), 7, supports, gen(), dtype=torch.float64)
    assert p.y.shape == (2, 2, 5, 7)
    assert (p.w[:, 0, :, 2] == 0).all()
    assert (p.w[:, 1, :, :2] == 0).all()
    close((p.x[:, None] @ p.w[..., None])[..., 0], p.y)
    close((p.x_q[:, None] * p.w).sum(-1), p.y_q)


@SETTINGS
@given(st.integers(1, 5), st.floats(0.05, 1.0))
def test_hand_written_layers_are_steps(layers, eta):
    p = prompts(noise=0.3)
    w = icl.descent_stack(3, layers, eta)
    want = icl.gd(p, layers, eta)
    scale = 1 + float(want.abs().max())
    close(icl.linear_stack(w, p) / scale, icl.predict(want, p.x_q) / scale)
    close(icl.stack_rule(w, p) / scale, want / scale)


def test_reshaping_layers_are_descent_on_reshaped_inputs():
    p, eta, gamma = prompts(noise=0.3), 0.4, 0.2
    x, r, turn = p.x, p.y, torch.eye(3).double()
    found = torch.zeros_like(p.w)
    for _ in range(3):
        S, b = x.mT @ x / p.n, (x.mT @ r[..., None])[..., 0] / p.n
        r = r - eta * (x @ b[..., None])[..., 0]
        found = found + eta * (turn @ b[..., None])[..., 0]  # turn x_q = query now
        change = torch.eye(3).double() - gamma * S
        x, turn = x @ change, turn @ change
    w = icl.descent_stack(3, 3, eta, gamma)
    close(icl.stack_rule(w, p), found)
    close(icl.linear_stack(w, p), icl.predict(found, p.x_q))


def test_free_stack_is_its_rule():
    p = prompts(noise=0.3)
    w = icl.start_stack((), 3, 3, gen(2), scale=0.2, dtype=torch.float64)
    close(icl.linear_stack(w, p), icl.predict(icl.stack_rule(w, p), p.x_q))


def test_one_head_with_a_guess_is_descent_from_it():
    p = prompts(noise=0.3, mean=1.0)
    start = torch.tensor([1.0, 1.0, 1.0]).double()
    w = icl.descent_head(3, 0.7, start)
    close(icl.linear_attention(w, p), icl.predict(icl.gd(p, 1, 0.7, start), p.x_q))


def test_twin_heads_tend_to_debiased_descent():
    p = prompts(n=12, noise=0.3)
    want = icl.predict(icl.gd(p, 1, 0.8, debiased=True), p.x_q)
    errors = []
    for omega in (0.04, 0.02, 0.01):
        found = icl.softmax_attention(icl.twin_heads(3, omega, 0.4 / omega), p)
        errors.append(float((found - want).norm() / want.norm()))
    assert errors[-1] < 1e-3
    ratios = np.array(errors[:-1]) / errors[1:]
    np.testing.assert_allclose(ratios, 4, rtol=0.02)


def test_attention_ignores_the_order_of_examples():
    p, w = prompts(), random_weights()
    order = torch.randperm(p.n, generator=gen(3))
    turned = p._replace(x=p.x[:, order], y=p.y[:, order])
    for model in (icl.linear_attention, icl.softmax_attention):
        close(model(w, p), model(w, turned))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: icl.start_heads((), 0, 3, gen()), "heads is 0"),
        (lambda: icl.start_heads((), 1, 3, gen(), scale=0), "no gradient"),
        (lambda: icl.start_stack((), 0, 3, gen()), "layers is 0"),
        (lambda: icl.descent_stack(3, 0, 0.1), "layers is 0"),
        (lambda: icl.descent_head(0, 0.1), "d is 0"),
    ],
)
def test_bad_weights_get_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# -- training -------------------------------------------------------------------------


def train_heads(lead=(2,), steps=30, **options):
    w = icl.start_heads(lead, 1, 2, gen(1))
    g = gen(2)
    losses = icl.train(
        icl.linear_attention,
        w,
        lambda step: icl.sample_prompts((*lead, 64), 8, 2, g),
        steps=steps,
        lr=0.05,
        **options,
    )
    return w, losses


def test_training_learns_one_step():
    w, losses = train_heads(steps=400)
    moments = cf.gram_moments(2, 8)
    for k in range(2):
        K, v = (w[name][k].double().numpy() for name in "Kv")
        assert cf.lsa_risk(moments, K, v) < 1.03 * cf.gd_loss(2, 8)
    assert losses.shape == (400, 2)
    assert not w["K"].requires_grad


def test_training_repeats_to_the_byte():
    (a, x), (b, y) = train_heads(), train_heads()
    assert bytes(x.numpy()) == bytes(y.numpy())
    assert all(bytes(a[k].numpy()) == bytes(b[k].numpy()) for k in a)


def test_models_train_as_if_alone():
    p = icl.sample_prompts(64, 8, 2, gen(3))
    both = icl.start_heads((2,), 1, 2, gen(1))
    one = {name: w[1].clone() for name, w in both.items()}
    for weights in (both, one):
        icl.train(
            icl.linear_attention, weights, lambda _: p, steps=20, lr=0.05, clip=1.0
        )
    for name in one:
        torch.testing.assert_close(both[name][1], one[name], rtol=1e-4, atol=1e-5)


def test_frozen_weights_stay():
    w = icl.start_heads((2,), 2, 2, gen(1))
    before = {name: value.clone() for name, value in w.items()}
    mask = torch.tensor([1.0, 0.0])
    icl.train(
        icl.linear_attention, w, lambda s: icl.sample_prompts((2, 16), 5, 2, gen(s)),
        steps=3, lr=0.1, frozen={"K": mask[:, None, None], "v": torch.zeros(1)},
    )  # fmt: skip
    assert torch.equal(w["v"], before["v"])
    assert torch.equal(w["K"][:, 1], before["K"][:, 1])
    assert not torch.equal(w["K"][:, 0], before["K"][:, 0])


def test_divergence_is_named():
    w = icl.start_stack((1, 2), 4, 3, gen(), scale=1e12)
    with pytest.raises(icl.Divergence, match=r"model \(0, 0\) .* step 0 .*smaller"):
        icl.train(
            icl.linear_stack, w, lambda s: icl.sample_prompts((1, 2, 4), 5, 3, gen(s)),
            steps=2, lr=0.1,
        )  # fmt: skip
    with pytest.raises(FloatingPointError, match="loss of model is not finite"):
        training.check_finite(torch.tensor(float("nan")), 7, 0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"decay": "linaer"}, "Did you mean linear"),
    ],
)
def test_bad_settings_get_a_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        train_heads(**options)


def test_rate_warms_up_and_ends_low():
    rates = [training.rate(s, 100, 0.1) for s in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) < 0.1
    assert rates[-1] == pytest.approx(0.001)
    assert training.rate(50, 100, 1.0, "cosine") == pytest.approx(0.5)


def test_each_model_is_clipped_by_its_own_norm():
    a = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    b = torch.tensor([[[12.0]], [[0.0]]])
    training.clip_each([a, b], 1, 1.0)
    np.testing.assert_allclose(a[0], np.array([3, 4]) / 13, rtol=1e-6)
    np.testing.assert_allclose(a[1], [0.3, 0.4], rtol=1e-6)
    assert float(b[0]) == pytest.approx(12 / 13)


def test_query_token_carries_the_guess():
    p = prompts(B=4)
    u = torch.tensor([1.0, 0.0, 2.0]).double()
    e_q = attention.query(p, u)
    close(e_q[:, :3], p.x_q)
    close(e_q[:, 3], p.x_q @ u)
    assert (attention.query(p)[:, 3] == 0).all()
