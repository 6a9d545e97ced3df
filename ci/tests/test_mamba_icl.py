"""The pattern world, the arms of 2510.00399, and their closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lib.mamba_icl import measure, model, theory
from lib.mamba_icl.model import ARMS, gates, initial, scores
from lib.mamba_icl.world import (
    COMBOS,
    PatternWorld,
    all_tasks,
    check_uniform,
    generator,
    sample_prompts,
    task_list,
)

DOUBLE = {"dtype": torch.float64}


@pytest.fixture(scope="module")
def world():
    return PatternWorld(d=16, M1=4, M2=5, V=3, seed=3, **DOUBLE)


def draw(world, shape=(40,), l=12, seed=0, **rules):  # noqa: E741
    return sample_prompts(world, shape, l, generator=generator(seed), **rules)


def random_theta(d, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    make = {"generator": g, **DOUBLE}
    theta = {k: torch.randn(d + 1, d + 1, **make) / d**0.5 for k in ("W_B", "W_C")}
    W = scale * torch.randn(d + 1, d + 1, **make) / d**0.5
    return theta | {"w": W[-1], "g": torch.tensor(1.5, **DOUBLE)}, W


# -- world --------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [None, 1.0])
def test_patterns_are_orthogonal_with_their_norms(norm):
    world = PatternWorld(beta=3.0, outlier_norm=norm, seed=1, **DOUBLE)
    rows = torch.cat([world.mu, world.nu, world.v, world.u])
    sizes = [9.0] * 16 + [(norm or 3.0) ** 2] * 14
    assert torch.allclose(rows @ rows.T, torch.diag(torch.tensor(sizes, **DOUBLE)))
    assert [len(x) for x in (world.mu, world.nu, world.v, world.u)] == [6, 10, 3, 11]


def test_the_same_seed_gives_the_same_bytes():
    one, two = (PatternWorld(seed=5) for _ in range(2))
    assert one.mu.numpy().tobytes() == two.mu.numpy().tobytes()
    a, b = (draw(w, frac=0.4).P for w in (one, two))
    assert a.numpy().tobytes() == b.numpy().tobytes()
    assert not torch.equal(one.mu, PatternWorld(seed=6).mu)


@pytest.mark.parametrize("outliers", ["train", "combos", "combos+u", "u"])
@pytest.mark.parametrize("label", ["coin", "flip", "target+", "target-"])
def test_a_prompt_is_what_its_definition_says(world, outliers, label):
    p = draw(world, (50,), frac=0.5, label=label, outliers=outliers, K=0.3)
    x, y = p.P[..., :-1], p.P[..., -1]
    relevant = x @ world.mu.T / world.beta**2
    assert torch.allclose(relevant, functional.one_hot(p.pattern, 4).double())
    assert (x @ world.nu.T / world.beta**2).abs().max() <= 0.3
    for k, e in enumerate((x[:, :-1] @ world.v.T, x[:, :-1] @ world.u.T)):
        size = e.abs().amax(-1)
        assert (size[~p.outlier] < 1e-9).all()
        carries = (outliers != "u") if k == 0 else outliers.endswith("u")
        assert ((size[p.outlier] > 0.1) == carries).all()
    assert (x[:, -1] @ torch.cat([world.v, world.u]).T).abs().max() < 1e-9
    assert (y[:, -1] == 0).all()
    true = torch.where(p.same, p.z[:, None], -p.z[:, None])
    given = y[:, :-1]
    assert torch.equal(given[~p.outlier], true[~p.outlier])
    wrong = given[p.outlier]
    if label == "coin":
        assert abs(float((wrong * true[p.outlier]).mean())) < 0.2
    else:
        want = {"flip": -true[p.outlier], "target+": 1.0 + 0 * wrong}
        assert torch.equal(wrong, want.get(label, -1.0 + 0 * wrong))


def test_each_prompt_has_two_patterns_and_balanced_labels(world):
    p = draw(world, (4000,), frac=0.3)
    assert max(len(set(row.tolist())) for row in p.pattern) == 2
    assert abs(float(p.z.mean())) < 0.06
    assert abs(float(p.same.double().mean()) - 0.5) < 0.02
    counts = torch.bincount(p.pattern.flatten(), minlength=4) / p.pattern.numel()
    assert (counts - 0.25).abs().max() < 0.02
    for j in range(4):  # every pattern has both labels equally often
        assert abs(float(p.z[p.pattern[:, -1] == j].mean())) < 0.12


def test_combinations_have_the_published_sums(world):
    found = world.directions("combos") @ world.v.T / world.v.square().sum(1)
    assert torch.allclose(found.sum(1), torch.tensor([0.9, 0.5, 0.3], **DOUBLE))
    assert np.allclose(found, COMBOS)
    own = torch.ones(2, 16)
    assert torch.equal(world.directions(own), own.double())


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.9])
def test_outliers_stand_where_they_should(world, alpha):
    n = round(alpha * 12)
    places = {
        w: draw(world, frac=alpha, placement=w).outlier
        for w in ("exact", "far", "close")
    }
    for mask in places.values():
        assert (mask.sum(1) == n).all()
    assert places["far"][:, :n].all()
    assert places["close"][:, 12 - n :].all()
    free = draw(world, (3000,), frac=alpha).outlier
    assert abs(float(free.double().mean()) - alpha) < 0.02


def test_each_run_can_have_its_own_fraction(world):
    p = draw(world, (2, 500), frac=torch.tensor([[0.0], [0.7]]))
    assert not p.outlier[0].any()
    assert abs(float(p.outlier[1].double().mean()) - 0.7) < 0.03
    assert p.first().P.shape == (500, 13, 17)


def test_relabelling_changes_only_the_labels_of_outliers(world):
    p = draw(world, frac=0.5, label="flip")
    q = p.relabelled("target+")
    assert torch.equal(q.P[..., :-1], p.P[..., :-1])
    assert torch.equal(q.P[:, :-1, -1][~p.outlier], p.P[:, :-1, -1][~p.outlier])
    assert (q.P[:, :-1, -1][p.outlier] == 1).all()
    assert torch.equal(q.relabelled("flip").P, p.P)
    with pytest.raises(ValueError, match="needs a generator"):
        p.relabelled("coin")


@pytest.mark.parametrize("M1", [3, 4, 5, 6, 7])
def test_task_graphs(M1):
    cycle, every = task_list("cycle", M1), task_list("all", M1)
    check_uniform(cycle, M1)
    assert len(every) == M1 * (M1 - 1) == len(set(every))
    if M1 % 2:
        some = task_list("tournament", M1)
        check_uniform(some, M1)
        assert len(some) == M1 * (M1 - 1) // 2
        assert not {(b, a) for a, b in some} & set(some)
        assert {frozenset(p) for p in some} == {frozenset(p) for p in every}
    else:
        with pytest.raises(ValueError, match="Give an odd M1"):
            task_list("tournament", M1)
    assert all_tasks(M1) == every


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"M1": 20, "M2": 10}, "cannot be orthogonal in d = 30"),
        ({"M1": 1}, "M1 is 1"),
        ({"V": 0}, "V is 0"),
        ({"beta": 0.0}, "positive norm"),
        ({"tasks": "circle"}, "Did you mean cycle"),
        ({"tasks": [(0, 1), (1, 2)]}, "violate the uniformity condition"),
        ({"tasks": [(0, 0)]}, "two different patterns"),
        ({"tasks": [(0, 9)]}, "between 0 and 5"),
        ({"tasks": []}, "list of tasks is empty"),
    ],
)
def test_a_wrong_world_gets_a_sentence(change, words):
    with pytest.raises(ValueError, match=words):
        PatternWorld(**change)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"frac": 1.0}, r"outlier fraction is 1; give one in \[0, 1\)"),
        ({"frac": -0.1}, "outlier fraction"),
        ({"label": "flop"}, "Did you mean flip"),
        ({"placement": "near"}, "placement is 'near'"),
        ({"outliers": "test"}, "outliers is 'test'"),
        ({"l": 0}, "l is 0"),
    ],
)
def test_wrong_prompts_get_a_sentence(world, rules, words):
    with pytest.raises(ValueError, match=words):
        draw(world, **rules)


def test_directions_that_do_not_exist():
    full = PatternWorld(d=12, M1=4, M2=6, V=2)
    with pytest.raises(ValueError, match="no free direction"):
        full.directions("u")
    with pytest.raises(ValueError, match="of 3 outliers, not 2"):
        full.directions("combos")


# -- the scan and the gates ---------------------------------------------------------


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_the_scan_is_gated_attention(world, scale):
    theta, W = random_theta(16, 1, scale)
    P = draw(world, frac=0.4).P
    F = model.mamba(theta, P)
    for found in (
        model.zoh_scan(W, theta, P)[:, -1],
        model.collection_scan(W, theta, P)[:, -1],
        model.recurrent(theta, P),
    ):
        assert torch.allclose(found, F, rtol=1e-11, atol=1e-12)


def test_every_prefix_of_the_scan_is_a_prompt(world):
    theta, W = random_theta(16, 2)
    P = draw(world, frac=0.4).P
    out = model.zoh_scan(W, theta, P)
    for t in (1, 5, 9):  # the token at t keeps its label, which only adds its own term
        part = (
            gates(theta["w"], P[:, : t + 1])
            * P[:, : t + 1, -1]
            * scores(theta, P[:, : t + 1])
        ).sum(-1)
        assert torch.allclose(out[:, t], part, rtol=1e-11, atol=1e-12)


def test_euler_puts_softplus_in_front(world):
    theta, W = random_theta(16, 3)
    P = draw(world, frac=0.4).P
    a = P @ theta["w"]
    keep = (1 - torch.sigmoid(a)).flip(1).cumprod(1).flip(1) / (1 - torch.sigmoid(a))
    F = (functional.softplus(a) * keep * P[..., -1] * scores(theta, P)).sum(1)
    for found in (
        model.zoh_scan(W, theta, P, "euler"),
        model.collection_scan(W, theta, P, "euler"),
    ):
        assert torch.allclose(found[:, -1], F, rtol=1e-11, atol=1e-12)
    assert not torch.allclose(F, model.mamba(theta, P), rtol=1e-2)
    with pytest.raises(ValueError, match="rule is 'bilinear'"):
        model.zoh_scan(W, theta, P, "bilinear")


@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 0.5, 3.0, 50.0]))
@settings(max_examples=30, deadline=None)
def test_gates_are_a_share_of_one(seed, scale):
    g = torch.Generator().manual_seed(seed)
    P = torch.randn(3, 15, 7, generator=g, **DOUBLE)
    w = scale * torch.randn(7, generator=g, **DOUBLE)
    G = gates(w, P)
    left = torch.exp(functional.logsigmoid(-(P @ w)).sum(1))
    assert (G >= 0).all()
    assert torch.allclose(G.sum(1), 1 - left, atol=1e-12)


@pytest.mark.parametrize("l", [1, 200, 2000])
def test_long_prompts_and_large_w_do_not_overflow(world, l):  # noqa: E741
    theta, _ = random_theta(16, 4, scale=50.0)
    P = draw(world, (3,), l, frac=0.4).P
    F = model.mamba(theta, P)
    assert F.isfinite().all()
    assert torch.allclose(F, model.recurrent(theta, P), rtol=1e-9, atol=1e-10)
    w = theta["w"].clone().requires_grad_()
    assert torch.autograd.grad(gates(w, P).sum(), w)[0].isfinite().all()


def test_gates_at_zero_and_far_away(world):
    P = draw(world).P
    w = torch.zeros(17, **DOUBLE)
    halves = 0.5 ** torch.arange(13, 0, -1).double()
    assert torch.allclose(gates(w, P)[0], halves, rtol=1e-14, atol=0)
    shifted = torch.cat([P, torch.ones_like(P[..., :1])], -1)
    w = functional.pad(w, (0, 1), value=-800.0)
    assert gates(w, shifted).max() < 1e-300


def test_gate_gradient_is_autograd_s(world):
    theta, _ = random_theta(16, 5)
    P = draw(world, (4,), frac=0.5).P
    slow = torch.autograd.functional.jacobian(lambda w: gates(w, P), theta["w"])
    assert torch.allclose(model.gate_gradient(theta["w"], P), slow, atol=1e-12)


@pytest.mark.parametrize("arm", list(ARMS))
def test_gradients_of_every_arm(arm):
    small = PatternWorld(d=6, M1=2, M2=1, V=3, **DOUBLE)
    P = draw(small, (3,), 4, frac=0.3).P
    theta, _ = random_theta(6, 6)
    names = ["W_B", "W_C", *(["w"] if arm == "mamba" else [])]
    names += ["g"] if arm == "fixed decay" else []
    values = [theta[n].clone().requires_grad_() for n in names]

    def F(*given):
        return ARMS[arm](dict(zip(names, given)), P)

    assert torch.autograd.gradcheck(F, values)


def test_closed_gradients_of_the_matrices(world):
    theta, _ = random_theta(16, 7)
    P = draw(world, (1,), frac=0.4).P
    theta = {k: v.clone().requires_grad_() for k, v in theta.items()}
    dB, dC = torch.autograd.grad(
        model.mamba(theta, P).sum(), [theta["W_B"], theta["W_C"]]
    )
    weight = (gates(theta["w"], P) * P[..., -1])[0]
    query, context = P[0, -1], weight @ P[0]
    assert torch.allclose(dB, torch.outer(theta["W_C"] @ query, context))
    assert torch.allclose(dC, torch.outer(theta["W_B"] @ context, query))


def test_order_matters_to_mamba_and_fixed_decay_only(world):
    theta, _ = random_theta(16, 8)
    P = draw(world, frac=0.4).P
    turned = torch.cat([P[:, :-1].flip(1), P[:, -1:]], 1)
    for arm, F in ARMS.items():
        same = torch.allclose(F(theta, P), F(theta, turned))
        assert same == (arm in ("linear", "normalised", "softmax"))


def test_arms_by_hand(world):
    theta, _ = random_theta(16, 9)
    P = draw(world, (1,), 3).P
    p, q = P[0, :-1], P[0, -1]
    s = torch.stack([x @ theta["W_B"].T @ theta["W_C"] @ q for x in p])
    y = p[:, -1]
    gamma = torch.sigmoid(theta["g"])
    share = torch.exp(s) / torch.exp(s).sum()
    phi_q = 1 + functional.elu(theta["W_C"] @ q)
    kernel = torch.stack([(1 + functional.elu(theta["W_B"] @ x)) @ phi_q for x in p])
    wanted = {
        "linear": (y * s).sum(),
        "fixed decay": (gamma ** torch.tensor([3, 2, 1]) * y * s).sum(),
        "softmax": model.REACH * (share * y).sum(),
        "normalised": model.REACH * (kernel * y).sum() / kernel.sum(),
    }
    for arm, value in wanted.items():
        assert torch.allclose(ARMS[arm](theta, P)[0], value)


def test_runs_side_by_side_are_single_runs(world):
    P = draw(world, (3, 5), frac=0.3).P
    thetas = [random_theta(16, seed)[0] for seed in range(3)]
    stacked = {k: torch.stack([t[k] for t in thetas]) for k in thetas[0]}
    for F in ARMS.values():
        single = torch.stack([F(t, p) for t, p in zip(thetas, P)])
        assert torch.allclose(F(stacked, P), single)


def test_the_start_is_the_paper_s():
    g = generator(0)
    theta = initial("mamba", 30, generator=g, runs=(400,), delta=0.1)
    diagonal = torch.tensor([0.1] * 30 + [0.0])
    assert torch.equal(theta["W_B"][3], torch.diag(diagonal))
    assert torch.equal(theta["W_C"], theta["W_B"])
    assert theta["W_B"].data_ptr() != theta["W_C"].data_ptr()
    assert abs(float(theta["w"].var()) * 31 - 1) < 0.05
    assert set(initial("linear", 4, generator=g)) == {"W_B", "W_C"}
    assert torch.isclose(
        torch.sigmoid(initial("fixed decay", 4, generator=g)["g"]), torch.tensor(0.9)
    )
    with pytest.raises(ValueError, match="gradient of W_B and W_C vanishes"):
        initial("mamba", 4, generator=g, delta=0.0)
    with pytest.raises(ValueError, match="Did you mean mamba"):
        initial("mumba", 4, generator=g)


def test_equal_doses_have_equal_gates(world):
    w = torch.linalg.lstsq(world.v, -2.3 * torch.ones(3, 1).double()).solution[:, 0]
    values = [
        torch.sigmoid(w @ (world.mu[1] + k * torch.tensor(r, **DOUBLE) @ world.v))
        for k, r in ((2.0, [0.9, 0, 0]), (6.0, [0.3, 0, 0]), (3.0, [0.4, 0.7, -0.5]))
    ]
    assert max(abs(float(v - values[0])) for v in values) < 1e-12
    assert theory.dose(6.0, [0.3]) == pytest.approx(theory.dose(3.0, [0.4, 0.7, -0.5]))


# -- closed forms -------------------------------------------------------------------


def brute_vote(alpha, l, label):  # noqa: E741
    total = 0.0
    for kinds in itertools.product((0, 1), repeat=l):
        n = sum(kinds)
        chance = alpha**n * (1 - alpha) ** (l - n)
        for coins in itertools.product((-1, 1), repeat=n):
            margin = l - n + (-n if label == "flip" else sum(coins))
            total += chance * 0.5**n * ((margin < 0) + 0.5 * (margin == 0))
    return total


@pytest.mark.parametrize("label", ["flip", "coin", "target+"])
@pytest.mark.parametrize("l", [1, 2, 5, 6])
def test_vote_formula_by_enumeration(l, label):  # noqa: E741
    for alpha in (0.0, 0.2, 0.5, 0.8):
        found = theory.vote_error(alpha, l, label)
        assert found == pytest.approx(brute_vote(alpha, l, label), abs=1e-12)


@pytest.mark.parametrize("label", ["flip", "coin", "target+", "target-"])
@pytest.mark.parametrize("placement", ["iid", "exact"])
def test_vote_formula_by_sampling(label, placement):
    world = PatternWorld(**DOUBLE)
    p = sample_prompts(
        world,
        (20_000,),
        10,
        generator=generator(1),
        frac=0.6,
        label=label,
        placement=placement,
    )
    ideal = measure.with_scores(world, 2 * np.eye(6) - 1)
    F = model.linear(ideal, p.P).round(decimals=6)  # ties are exact in exact sums
    found = float(measure.error_rate(F, p.z))
    exact = placement == "exact"
    assert found == pytest.approx(theory.vote_error(0.6, 10, label, exact), abs=0.012)


def test_published_table_of_the_specification():
    flip = [theory.vote_error(a, 20) for a in (0.2, 0.3, 0.4, 0.45, 0.5, 0.6, 0.9)]
    assert np.allclose(
        flip, [0.0016, 0.0326, 0.1861, 0.3290, 0.5, 0.8139, 1], atol=6e-5
    )
    coin = [theory.vote_error(a, 20, "coin") for a in (0.3, 0.5, 0.6, 0.8, 0.9)]
    assert np.allclose(coin, [0.0001, 0.0089, 0.0326, 0.1861, 0.3290], atol=6e-5)


def test_the_normal_form_approaches_the_vote():
    for alpha in (0.3, 0.45, 0.6):
        for n, tol in ((25, 5e-3), (101, 1.5e-3), (401, 5e-4)):
            found = theory.vote_error_normal(alpha, n)
            assert found == pytest.approx(theory.vote_error(alpha, n), abs=tol)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.9])
def test_binomial_probabilities(p):
    for n in (0, 1, 7, 60):
        found = theory.binomial(np.arange(n + 3), n, p)
        exact = [
            math.comb(n, k) * p**k * (1 - p) ** max(n - k, 0) for k in range(n + 3)
        ]
        assert np.allclose(found, exact, rtol=1e-11, atol=1e-15)


def test_floors():
    assert theory.gate_floor(0.8, 20) == pytest.approx(0.8**20)
    assert theory.gate_floor(0.8, 20, "coin") == pytest.approx(0.8**20 / 2)
    assert theory.gate_floor(0.8, 20, exact=True) == 0
    assert theory.gate_floor(0.9, 4, exact=True) == 1  # round(3.6) = 4
    assert theory.gate_floor(0.0, 3, own_pattern=True) == pytest.approx(1 / 16)
    assert theory.vote_error(0.3, 1) == theory.gate_floor(0.3, 1)


@pytest.mark.parametrize("own_pattern", [False, True])
@pytest.mark.parametrize("label", ["flip", "coin"])
def test_floors_by_a_perfect_gate(label, own_pattern):
    world = PatternWorld(**DOUBLE)
    p = sample_prompts(
        world, (40_000,), 6, generator=generator(2), frac=0.7, label=label
    )
    S = np.eye(6) if own_pattern else 2 * np.eye(6) - 1
    s = scores(measure.with_scores(world, S), p.P)[:, :-1].round(decimals=6)
    weight = torch.where(p.outlier, 1e-4, 1.0)  # a gate that is closed, but not shut
    if own_pattern:  # outliers are lost entirely, a silent prompt is a coin
        weight = weight * ~p.outlier
    F = (weight * p.P[:, :-1, -1] * s).sum(1)
    if own_pattern:
        want = theory.gate_floor(0.7, 6, "coin", own_pattern=True)
    else:
        silent = 0.7**6
        lost = brute_vote(1 - 1e-12, 6, label)  # the outliers' vote decides then
        want = silent * lost
        assert theory.gate_floor(0.7, 6, label) == pytest.approx(want, abs=1e-9)
    assert float(measure.error_rate(F, p.z)) == pytest.approx(want, abs=0.01)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: theory.vote_error(1.0, 5), "outlier fraction is 1"),
        (lambda: theory.gate_floor(1.2, 5), "outlier fraction is 1.2"),
        (lambda: theory.vote_error(0.5, 5, "flop"), "Did you mean flip"),
        (lambda: theory.vote_error(0.5, 0), "l is 0"),
        (lambda: theory.vote_error_normal(0.0, 5), "needs outliers"),
        (lambda: theory.gate_floor(0.5, 5, exact=True, own_pattern=True), "leave out"),
        (lambda: theory.task_graph_matrix([(0, 1)], 3), "stands in no task"),
    ],
)
def test_closed_forms_refuse(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_gate_profile_by_sampling():
    g, ranks = np.random.default_rng(0), 5
    sigma_c, sigma_q, sigma_o, alpha = 0.3, 0.25, 0.05, 0.4
    out = g.random((200_000, 40)) < alpha
    sigma = np.where(out, sigma_o, sigma_c)
    keep = np.cumprod((1 - sigma)[:, ::-1], 1)[:, ::-1] / (1 - sigma)
    G = sigma * keep * (1 - sigma_q)
    rank = np.cumsum(~out[:, ::-1], 1)[:, ::-1] * ~out
    found = [G[rank == j].mean() for j in range(1, ranks + 1)]
    closed = theory.gate_profile(sigma_c, sigma_q, ranks, sigma_o, alpha)
    assert np.allclose(found, closed, rtol=0.01)
    assert np.allclose(theory.gate_profile(0.3, 0.25, 3), [0.225, 0.1575, 0.11025])


@pytest.mark.parametrize("M1", [3, 6, 9])
def test_all_tasks_make_the_projector(M1):
    M = theory.task_graph_matrix(all_tasks(M1), M1)
    assert np.allclose(M, theory.projector(M1) * M1 / (M1 - 1))
    assert theory.cosine(M, theory.projector(M1)) == pytest.approx(1)
    assert measure.cross_ratio(M) == pytest.approx(-1 / (M1 - 1))


def test_a_cycle_squared_is_positive_at_distance_two():
    M = theory.task_graph_matrix(task_list("cycle", 6), 6)
    assert np.allclose(M[0], [1, -0.5, 0, 0, 0, -0.5])
    assert np.allclose((M @ M)[0] / 1.5, [1, -2 / 3, 1 / 6, 0, 1 / 6, -2 / 3])
    far = theory.distances(task_list("cycle", 6), 6)
    assert far[0].tolist() == [0, 1, 2, 3, 2, 1]
    assert theory.distances([(0, 1), (2, 3)], 4)[0, 2] == 4  # no way


def test_first_gradient_is_the_task_graph():
    world = PatternWorld(seed=1)
    found = measure.first_gradient("linear", world, 200_000, seed=1)
    assert measure.cross_ratio(found["mu"]) == pytest.approx(-0.2, abs=0.01)
    size = np.trace(found["mu"]) / 6
    assert np.abs(found["nu"]).max() / size < 0.02
    assert np.abs(found["v"]).max() / size < 0.05
    assert float(found["pull"]) == 1


def test_first_gradient_of_a_cycle_and_of_mamba():
    world = PatternWorld(tasks="cycle", seed=2)
    found = measure.first_gradient("linear", world, 50_000, seed=2)["mu"]
    M = theory.task_graph_matrix(world.tasks, 6)
    assert np.allclose(found / np.trace(found) * 6, M, atol=0.04)
    gated = measure.first_gradient("mamba", PatternWorld(seed=2), 50_000, seed=2)
    assert 1.0 < float(gated["pull"]) < 1.2
    expected = -float(gated["pull"]) / 5
    assert measure.cross_ratio(gated["mu"]) == pytest.approx(expected, abs=0.02)
    with pytest.raises(ValueError, match="multiple of 100"):
        measure.first_gradient("mamba", world, 50)


def test_conditions_are_the_theorems():
    c = theory.conditions(
        l=20, M1=6, V=3, beta=3.0, kappa_a=2.0, p_a=0.6, eta=0.3, eps=0.1
    )
    log = math.log(10)
    assert c["batch, linear"] == pytest.approx(100 * log)
    assert c["batch, Mamba"] == pytest.approx(100 * log)
    assert c["kappa_a at least"] == pytest.approx(3 / 81)
    assert c["kappa_a at most"] == pytest.approx(3 * 3 * 0.4 / 0.6 / 0.1)
    assert c["l at least"] == pytest.approx(math.log(6) / 0.4)
    assert c["steps, Mamba"] == pytest.approx(6 / (0.3 * 0.4 * 9))
    assert c["steps, Mamba"] / c["steps, linear"] == pytest.approx(20)
    with pytest.raises(ValueError, match="p_a is 1"):
        theory.conditions(
            l=20, M1=6, V=3, beta=3.0, kappa_a=2.0, p_a=1.0, eta=0.3, eps=0.1
        )
