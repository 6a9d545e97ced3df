"""Chain of thought: prompts, the softmax layer, votes and their exact errors."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lib.chain_of_thought as cot
from lib.chain_of_thought import votes

WORKED, EASY = cot.WORKED_EXAMPLE, cot.WITH_CONDITION_1


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def ideal(d_X, size=10.0):
    """Attention that finds the right columns exactly."""
    theta = cot.init_theta(d_X)
    eye = size * torch.eye(2 * d_X)
    return theta | {"W_K": eye, "W_Q": eye.clone()}


# -- worlds and prompts -------------------------------------------------------------


@pytest.mark.parametrize("inside", [1.0, 0.4, 0.0])
def test_patterns_and_codes_are_orthonormal_and_test_patterns_have_norm_one(inside):
    world = cot.make_world(32, 16, 3, 8, inside=inside, seed=3)
    basis = torch.cat([world.mu, world.codes]).double()
    np.testing.assert_allclose(basis @ basis.T, np.eye(19), atol=1e-6)
    gram = (world.tsr @ world.tsr.T).numpy()
    np.testing.assert_allclose(gram, np.eye(8), atol=1e-6)
    in_span = (world.tsr @ world.mu.T).square().sum(1)
    np.testing.assert_allclose(in_span, inside, atol=1e-6)
    assert float((world.tsr @ world.codes.T).abs().max()) < 1e-6


def test_training_chains_follow_one_permutation_a_step_and_share_the_query():
    world = cot.make_world(16, 8, 3, 4)
    ids, truth = cot.training_chains(world, 50, 40, 0.3, gen())
    assert ids.shape == (50, 40, 4)
    assert ((ids[..., 0] == truth[:, :1]).sum(1) == 12).all()
    for b, k in itertools.product(range(50), range(3)):
        f = {}
        for start, end in torch.cat([ids[b], truth[b : b + 1]])[:, k : k + 2].tolist():
            assert f.setdefault(start, end) == end
        assert len(set(f.values())) == len(f)


def test_every_training_pattern_is_equally_likely_in_every_step():
    world = cot.make_world(16, 8, 2, 4)
    ids, truth = cot.training_chains(world, 4000, 10, 0.5, gen(1))
    for part in (ids[..., 0], ids[..., 1], ids[..., 2], truth[:, 2]):
        share = torch.bincount(part.ravel(), minlength=8) / part.numel()
        assert float((share - 1 / 8).abs().max()) < 0.02


def test_noisy_chains_follow_the_step_matrices():
    world = cot.make_world(24, 20, 2, 10)
    ids, truth = cot.noisy_chains(world, WORKED, 3000, 20, 1.0, gen(2))
    assert (ids[..., 0] == truth[:, :1]).all()
    # Both starts keep their state in step 1 with .6 and leave it in step 2 with .6, .8.
    stays = (ids[..., 1] == ids[..., 0]).double().mean()
    assert abs(float(stays) - 0.6) < 0.01
    assert (truth[:, 1] == truth[:, 0]).all()
    assert (truth[:, 2] != truth[:, 0]).all()
    right = (ids[..., 2] == truth[:, 2:]).double().mean(1)
    assert abs(float(right.mean()) - (0.44 + 0.64) / 2) < 0.01
    assert abs(float(right.std()) - math.sqrt(0.1**2 + 0.2424 / 20)) < 0.01
    ids, truth = cot.noisy_chains(world, WORKED, 3000, 20, 0.4, gen(3))
    own = ids[..., 0] == truth[:, :1]
    assert (own.sum(1) == 8).all()
    others = torch.bincount((ids[..., 0] - truth[:, :1])[~own] % 10, minlength=10)
    assert int(others[0]) == 0
    assert float((others[1:] / others.sum() - 1 / 9).abs().max()) < 0.01


def test_a_prompt_column_by_column():
    world = cot.make_world(12, 6, 2, 3)
    mu, c = world.mu, world.codes
    ids, truth = torch.tensor([[[0, 1, 2], [3, 4, 5]]]), torch.tensor([[5, 3, 0]])
    chains = cot.Chains(ids, truth)
    zero = torch.zeros(12)
    context = [(mu[0] + c[0], mu[1]), (mu[1] + c[1], mu[2])]
    context += [(mu[3] + c[0], mu[4]), (mu[4] + c[1], mu[5])]
    first = [(mu[5] + c[0], zero)]
    second = [(mu[5] + c[0], mu[3]), (mu[3] + c[1], zero)]
    for k, query in ((1, first), (2, second)):
        P, z = cot.training_prompts(world, chains, k)
        wanted = torch.stack([torch.cat(column) for column in context + query])
        torch.testing.assert_close(P[0], wanted)
        torch.testing.assert_close(z[0], mu[truth[0, k]])
    icl = cot.icl_context(world, mu[ids])
    columns = [(mu[0] + c[0], mu[2]), (c[1], zero), (mu[3] + c[0], mu[5]), (c[1], zero)]
    torch.testing.assert_close(icl[0], torch.stack([torch.cat(x) for x in columns]))


def test_noise_is_bounded_and_has_the_norm_asked_for():
    world = cot.make_world(32, 20, 2, 10)
    ids = torch.arange(10).repeat(500)
    off = cot.vectors(world.tsr, ids, 0.3, gen()) - world.tsr[ids]
    assert abs(float(off.square().sum(1).mean().sqrt()) - 0.3) < 0.005
    assert float(off.abs().max()) <= 0.3 * math.sqrt(3 / 32) + 1e-6
    torch.testing.assert_close(cot.vectors(world.tsr, ids, 0.0, None), world.tsr[ids])


# -- the layer ----------------------------------------------------------------------


def test_the_layer_is_the_papers_sum():
    g = gen(5)
    P = torch.randn(3, 7, 10, generator=g, dtype=torch.float64)
    theta = {
        "W_K": torch.randn(4, 10, generator=g, dtype=torch.float64),
        "W_Q": torch.randn(4, 10, generator=g, dtype=torch.float64),
        "W_V": torch.randn(5, 10, generator=g, dtype=torch.float64),
    }
    for b in range(3):
        query = theta["W_Q"] @ P[b, -1]
        scores = [math.exp(float((theta["W_K"] @ p) @ query)) for p in P[b, :-1]]
        F = sum(s / sum(scores) * theta["W_V"] @ p for s, p in zip(scores, P[b]))
        torch.testing.assert_close(cot.forward(theta, P)[b], F)
    mixed = P[:, [3, 1, 5, 0, 2, 4, 6]]  # the order of the columns does not matter
    torch.testing.assert_close(cot.forward(theta, P), cot.forward(theta, mixed))


def test_the_layer_passes_gradcheck():
    P = torch.randn(2, 5, 6, generator=gen(), dtype=torch.float64)
    theta = cot.init_theta(3, 0.5, torch.float64)
    weights = [W.clone().requires_grad_(True) for W in theta.values()]

    def loss(*W):
        return cot.forward(dict(zip(theta, W)), P)

    assert torch.autograd.gradcheck(loss, weights)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_attention_groups_sum_to_one_without_the_querys_own_columns(k):
    world = cot.make_world(16, 8, 3, 4)
    chains = cot.training_chains(world, 30, 6, 0.5, gen())
    theta = cot.init_theta(16, 0.7)
    P, _ = cot.training_prompts(world, chains, k)
    past = cot.attention(theta, P)[:, 18:].sum(1).mean()
    groups = cot.attention_groups(theta, world, chains, k)
    assert abs(float(groups.sum() + past) - 1) < 1e-6
    assert (past == 0) == (k == 1)
    # By hand: the same sums, column by column.
    weights, hand = cot.attention(theta, P), dict.fromkeys(cot.GROUPS, 0.0)
    for b, i, step in itertools.product(range(30), range(6), range(3)):
        same = bool(chains.ids[b, i, step] == chains.truth[b, k - 1])
        name = f"{'same' if same else 'diff'}/{'same' if step == k - 1 else 'diff'}"
        hand[name] += float(weights[b, 3 * i + step]) / 30
    np.testing.assert_allclose(groups, list(hand.values()), atol=1e-5)


def test_rotating_the_world_changes_nothing():
    world = cot.make_world(12, 6, 2, 3)
    Q = torch.linalg.qr(torch.randn(12, 12, generator=gen()))[0]
    turned = cot.World(world.mu @ Q, world.codes @ Q, world.tsr @ Q)
    options = {"T": 30, "B": 8, "l_tr": 6, "every": 30}
    _, one = cot.train(world, **options)
    _, two = cot.train(turned, **options)
    torch.testing.assert_close(one.loss, two.loss, atol=1e-4, rtol=1e-4)


def test_training_learns_the_step_and_then_the_pattern():
    world = cot.make_world(24, 10, 2, 5)
    theta, history = cot.train(world, T=200, eta=4.0, B=32, every=10)
    diff_same = history.groups[:, 2]
    assert history.steps[0] == 0
    assert history.steps[-1] == 200
    assert float(diff_same.max()) > 0.4
    assert float(diff_same[-1]) < 0.15
    assert float(history.groups[-1, 0]) > 0.85
    assert float(history.loss[-20:].mean()) < 0.02 < 0.2 < float(history.loss[0])
    assert not any(W.requires_grad for W in theta.values())
    torch.testing.assert_close(theta["W_V"], cot.init_theta(24)["W_V"])


def test_what_is_learned_can_be_chosen():
    world = cot.make_world(12, 6, 2, 3)
    options = {"T": 20, "B": 8, "l_tr": 6, "every": 20}
    theta, _ = cot.train(world, learn=("W_Q", "W_V"), **options)
    start = cot.init_theta(12)
    torch.testing.assert_close(theta["W_K"], start["W_K"])
    assert float((theta["W_V"] - start["W_V"]).abs().max()) > 1e-4


def test_the_same_seed_gives_the_same_bytes():
    world, again = (cot.make_world(12, 6, 2, 3, seed=4) for _ in range(2))
    options = {"T": 25, "B": 8, "l_tr": 6, "every": 5}
    (one, h), (two, k) = cot.train(world, **options), cot.train(again, **options)
    for name in one:
        assert one[name].numpy().tobytes() == two[name].numpy().tobytes()
    assert h.loss.numpy().tobytes() == k.loss.numpy().tobytes()
    assert h.groups.numpy().tobytes() == k.groups.numpy().tobytes()
    world = cot.make_world(16, 8, 2, 4)
    start = cot.init_theta(16)
    found = [cot.errors(start, world, EASY, 5, 1.0, prompts=40) for _ in range(2)]
    assert found[0] == found[1]
    world = again
    other, _ = cot.train(world, **options, seed=1)
    assert (other["W_Q"] != one["W_Q"]).any()


# -- inference ----------------------------------------------------------------------


def test_nearest_is_the_argmin_over_patterns():
    patterns, F = torch.randn(6, 4, generator=gen(1)), torch.randn(9, 4)
    wanted = torch.cdist(F, patterns).argmin(1)
    assert (cot.nearest(patterns, F) == wanted).all()


def test_ideal_attention_decodes_a_plurality_vote():
    world = cot.make_world(24, 20, 2, 10)
    chains = cot.noisy_chains(world, WORKED, 300, 15, 0.6, gen(4))
    y, query = world.tsr[chains.ids], world.tsr[chains.truth[:, 0]]
    said = cot.cot_infer(ideal(24), world, y, query)
    here = chains.truth[:, 0]
    for k in (1, 2):
        for b in range(300):
            voter = chains.ids[b, :, k - 1] == here[b]
            votes_ = torch.bincount(chains.ids[b, voter, k], minlength=10)
            assert votes_[said[b, k - 1]] == votes_.max()
        here = said[:, k - 1]
    final = cot.icl_infer(ideal(24), world, y, query)
    for b in range(300):
        own = chains.ids[b, :, 0] == chains.truth[b, 0]
        votes_ = torch.bincount(chains.ids[b, own, 2], minlength=10)
        assert votes_[final[b]] == votes_.max()


@pytest.mark.parametrize("K", [1, 2, 3])
def test_without_noise_one_right_example_is_enough(K):
    world = cot.make_world(24, 20, K, 10)
    certain = [[[1.0, 0.0], [0.0, 1.0]]] * K
    e = cot.errors(ideal(24), world, certain, 1, 1.0, prompts=50, noise=0.0)
    assert e == dict.fromkeys(("cot", "cot_last", "icl", "cot_vote", "icl_vote"), 0.0)


def test_errors_do_not_depend_on_what_is_held_at_once_beyond_chance():
    world = cot.make_world(24, 20, 2, 10)
    options = {"prompts": 1500, "noise": 0.0, "seed": 1}
    e = cot.errors(ideal(24), world, EASY, 9, 1.0, **options)
    assert 0 < e["cot_last"] <= 2 * e["cot"]  # a mean over two steps, one of them last
    few = cot.errors(ideal(24), world, EASY, 9, 1.0, columns=900, **options)
    exact = cot.cot_vote_error(EASY, 9, 1.0), cot.icl_vote_error(EASY, 9, 1.0)
    for found in (e, few):
        assert abs(found["cot"] - exact[0]) < votes.half_width(exact[0], 1500)
        assert abs(found["icl"] - exact[1]) < votes.half_width(exact[1], 1500)
        assert abs(found["icl"] - found["icl_vote"]) < 0.03


def test_plurality_by_hand():
    said = torch.tensor([[0, 1, 1, 2], [2, 2, 0, 0], [1, 1, 1, 1]])
    voter = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]).bool()
    assert cot.plurality(said, voter, 3, gen()).tolist() == [1, 2, -1]
    tie = torch.tensor([[0, 2]]).expand(4000, 2)
    found = cot.plurality(tie, torch.ones(4000, 2).bool(), 3, gen())
    assert set(found.tolist()) == {0, 2}
    assert abs(float((found == 0).double().mean()) - 0.5) < 0.04


# -- step matrices and constants ----------------------------------------------------


def test_the_worked_example():
    facts = cot.task_facts(WORKED)
    np.testing.assert_allclose(facts.B, [[0.56, 0.44], [0.64, 0.36]], atol=1e-15)
    assert facts.paths.tolist() == [[0, 0, 1], [1, 1, 0]]
    found = facts.tau, facts.tau_o, facts.rho, facts.rho_o
    np.testing.assert_allclose(found, [0.36, 0.56, 0.2, -0.12], atol=1e-12)
    assert not facts.condition_1
    assert cot.task_facts(EASY).condition_1


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 4), st.integers(1, 4), st.integers(0, 10**6))
def test_the_constants_against_enumeration(S, K, seed):
    rng = np.random.default_rng(seed)
    A = rng.dirichlet(np.ones(S), (K, S))
    facts = cot.task_facts(A)
    product = np.eye(S)
    for A_k in A:
        product = product @ A_k
    np.testing.assert_allclose(facts.B, product, atol=1e-12)
    most = []
    for s in range(S):
        paths = itertools.product(range(S), repeat=K)
        most.append(
            max(
                math.prod(A[k, i, j] for k, (i, j) in enumerate(zip((s, *p), p)))
                for p in paths
            )
        )
        z = s
        for k in range(K):
            z = int(A[k, z].argmax())
            assert facts.paths[s, k + 1] == z
    assert abs(facts.tau - min(most)) < 1e-12
    assert abs(facts.tau_o - product.max(1).min()) < 1e-12
    right = all(product[s].argmax() == facts.paths[s, -1] for s in range(S))
    assert facts.condition_1 == right


def test_condition_1_of_the_explorers_family_starts_at_three_quarters():
    for a, wanted in ((0.6, False), (0.74, False), (0.76, True), (0.9, True)):
        A = [[[a, 1 - a], [1 - a, a]], WORKED[1]]
        assert cot.task_facts(A).condition_1 is wanted


def test_a_symmetric_task_has_the_product_of_its_gaps():
    facts = cot.task_facts(cot.symmetric_task(3, [0.6, 0.5, 0.2]))
    assert abs(facts.rho_o - 0.06) < 1e-12
    assert abs(facts.rho - 0.2) < 1e-12
    assert abs(facts.tau - 0.8 * 0.75 * 0.6) < 1e-12
    assert facts.condition_1


# -- exact votes --------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_majority_is_the_binomial_sum(p):
    for n in range(8):
        law = votes.binomial(n, p)
        assert abs(law.sum() - 1) < 1e-12
        hand = sum(law[k] * (0.5 if 2 * k == n else 2 * k > n) for k in range(n + 1))
        wanted = hand if n else 0.0
        assert abs(float(cot.majority(n, p)) - wanted) < 1e-12
    assert abs(float(cot.majority(1, p)) - p) < 1e-15


def brute(A, start, starts):
    """Mean error over the steps, by all paths of all examples (ties by a coin)."""
    A = np.array(A)
    K, z = len(A), cot.task_facts(A).paths[start]

    def follow(k, v, share, paths):
        if k == K:
            return 0.0
        said = [p[k + 1] for p in paths if p[k] == v]
        if not said:
            return share * (K - k) / K
        ones = sum(said)
        wins = {0: 2 * ones <= len(said), 1: 2 * ones >= len(said)}
        wins = [w for w, ok in wins.items() if ok]
        error = sum(share / len(wins) * (w != z[k + 1]) / K for w in wins)
        return error + sum(follow(k + 1, w, share / len(wins), paths) for w in wins)

    total = 0.0
    for steps in itertools.product(
        itertools.product((0, 1), repeat=K), repeat=len(starts)
    ):
        paths = [(s, *p) for s, p in zip(starts, steps)]
        share = math.prod(A[k, p[k], p[k + 1]] for p in paths for k in range(K))
        total += follow(0, start, share, paths)
    return total


@pytest.mark.parametrize(("K", "n"), [(1, 5), (2, 4), (3, 3)])
def test_the_chained_vote_against_all_paths(K, n):
    A = np.random.default_rng(K).dirichlet(np.ones(2), (K, 2))
    for own in range(1, n + 1):
        for start in (0, 1):
            starts = [start] * own + [1 - start] * (n - own)
            paths = cot.task_facts(A).paths
            found = votes._chained(A, start, own, n, paths[start])
            assert abs(found - brute(A, start, starts)) < 1e-12


def test_one_vote_by_hand():
    A = [[[0.7, 0.3], [0.4, 0.6]]]
    three = [p**3 + 3 * p * p * (1 - p) for p in (0.7, 0.6)]
    assert abs(cot.cot_vote_error(A, 3, 1.0) - (1 - np.mean(three))) < 1e-12
    assert abs(cot.icl_vote_error(A, 3, 1.0) - (1 - np.mean(three))) < 1e-12
    assert abs(cot.icl_vote_error(A, 1, 1.0) - 0.35) < 1e-12


@pytest.mark.parametrize("share", [0.4, 0.75, 1.0])
def test_two_steps_agree_with_the_general_chain(share):
    A, n = np.array(WORKED), 16
    own, paths = round(share * n), cot.task_facts(A).paths
    law = votes.binomial(n - own, 1 / 9)
    full = sum(
        law[m] / 2 * votes._chained(A, s, own, own + m, paths[s])
        for s in (0, 1)
        for m in range(len(law))
    )
    assert abs(full - cot.cot_vote_error(A, n, share)) < 1e-12


@pytest.mark.parametrize(
    ("A", "n", "share"),
    [(WORKED, 20, 0.4), (EASY, 9, 1.0), (cot.symmetric_task(3, 0.4), 15, 0.8)],
)
def test_exact_errors_against_sampled_votes(A, n, share):
    world, many = cot.make_world(24, 20, len(A), 10), 6000
    chains = cot.noisy_chains(world, A, many, n, share, gen(7))
    voted = cot.plurality_cot(chains, 10, gen(8)) != chains.truth[:, 1:]
    exact = cot.cot_vote_error(A, n, share)
    assert abs(float(voted.double().mean()) - exact) < votes.half_width(exact, many)
    own = chains.ids[..., 0] == chains.truth[:, :1]
    final = cot.plurality(chains.ids[..., -1], own, 10, gen(9))
    exact = cot.icl_vote_error(A, n, share)
    found = float((final != chains.truth[:, -1]).double().mean())
    assert abs(found - exact) < votes.half_width(exact, many)


def test_the_limits_of_many_examples():
    assert abs(cot.icl_vote_error(WORKED, 4001, 1.0) - 0.5) < 1e-6
    assert cot.icl_vote_error(EASY, 2001, 1.0) < 1e-9
    assert cot.cot_vote_error(WORKED, 2001, 1.0) < 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(0, 10**6))
def test_the_chernoff_bound_bounds(K, n, seed):
    rng = np.random.default_rng(seed)
    A = rng.dirichlet(np.ones(2), (K, 2))
    share = float(rng.choice([0.5, 1.0]))
    exact = cot.cot_vote_error(A, n, share, patterns=4)
    assert exact <= cot.chernoff_bound(A, n, share) + 1e-12


def test_the_rate_of_one_vote_is_chernoffs():
    p = 0.7
    rate = cot.vote_rates([[[p, 1 - p], [1 - p, p]]])
    np.testing.assert_allclose(rate, -math.log(2 * math.sqrt(p * (1 - p))), atol=1e-12)
    assert np.isinf(cot.vote_rates([[[1.0, 0.0], [0.0, 1.0]]])).all()


def test_the_rate_is_the_decay_of_the_exact_error():
    n = 600
    pair = [cot.cot_vote_error(WORKED, m, 1.0) for m in (n, 2 * n)]
    slope = -math.log(math.sqrt(2) * pair[1] / pair[0]) / n
    assert abs(slope / cot.vote_rates(WORKED).min() - 1) < 0.02


def test_examples_needed_and_exponents():
    assert cot.examples_needed(lambda n: 1 / n, 0.01) == 100
    assert abs(cot.exponent([1, 2, 4], [3, 12, 48]) - 2) < 1e-12
    one = cot.examples_needed(lambda n: cot.icl_vote_error(EASY, n, 1.0), 0.01)
    assert cot.icl_vote_error(EASY, one, 1.0) <= 0.01
    assert cot.icl_vote_error(EASY, one - 3, 1.0) > 0.01


# -- wrong input --------------------------------------------------------------------

A_TIE = [[[0.5, 0.5], [0.2, 0.8]]]
SENTENCES = [
    (lambda: cot.make_world(20, 20, 2, 10), "more than d_X = 20 dimensions"),
    (lambda: cot.make_world(24, 16, 2, 8, inside=0.5), "8 new directions"),
    (lambda: cot.make_world(40, 10, 2, 8), "give at most 5"),
    (lambda: cot.make_world(40, 10, 0, 4), "whole number of at least 1"),
    (lambda: cot.make_world(40, 10, 2, 4, inside=1.5), "share from 0 to 1"),
    (lambda: cot.task_facts([[[0.6, 0.5], [0.2, 0.8]]]), "which sums to 1.1"),
    (lambda: cot.task_facts([[[1.2, -0.2], [0.2, 0.8]]]), "probabilities that sum"),
    (lambda: cot.task_facts(A_TIE), "equally likely"),
    (lambda: cot.task_facts([[[1.0]], WORKED[0]]), "of one size"),
    (lambda: cot.task_facts([]), "give K square ones"),
    (lambda: cot.cot_vote_error(EASY, 10, 0.0), "above 0 and up to 1"),
    (lambda: cot.icl_vote_error(EASY, 10, 1.1), "above 0 and up to 1"),
    (lambda: cot.cot_vote_error(EASY, 0, 1.0), "l_ts is 0"),
    (lambda: cot.cot_vote_error([np.eye(3)], 5, 1.0), "two states, not 3"),
    (lambda: cot.symmetric_task(2, 0.0), "gap above 0"),
    (lambda: cot.symmetric_task(2, [0.5]), "each of 2 steps"),
    (lambda: cot.examples_needed(lambda n: 0.5, 0.1, 100), "stays there"),
    (lambda: cot.examples_needed(lambda n: 0.5, 0.0), "between 0 and 1"),
    (lambda: cot.exponent([1.0], [2.0]), "two or more positive"),
    (lambda: cot.init_theta(4, 0.0), "positive start"),
    (lambda: cot.vectors(torch.eye(2), torch.tensor([0]), -1.0, None), "0 or more"),
]


@pytest.mark.parametrize(("call", "words"), SENTENCES)
def test_wrong_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 0.0}, "above 0 and up to 1"),
        ({"alpha": 0.01}, "give at least 51 examples"),
        ({"eta": 0.0}, "positive step size"),
        ({"T": 0}, "T is 0"),
        ({"learn": ("W_O",)}, "choose one of W_K, W_Q, W_V"),
    ],
)
def test_wrong_training_settings_get_a_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        cot.train(cot.make_world(12, 6, 2, 3), **{"T": 2, **options})


def test_wrong_test_settings_get_a_sentence():
    world = cot.make_world(24, 20, 2, 10)
    for A, words in ((EASY[:1], "2 codes"), ([np.eye(3)] * 2, "blocks of 3 states")):
        with pytest.raises(ValueError, match=words):
            cot.noisy_chains(world, A, 2, 5, 1.0, gen())
    with pytest.raises(ValueError, match="there are 2 codes"):
        cot.query_columns(world, torch.zeros(1, 3, 24))
    with pytest.raises(ValueError, match="steps 1 to 2"):
        cot.training_prompts(world, cot.training_chains(world, 1, 4, 0.5, gen()), 3)


@pytest.mark.parametrize(("eta", "words"), [(100.0, "rose from"), (1e30, "is nan")])
def test_divergence_is_named(eta, words):
    world = cot.make_world(32, 20, 2, 10)
    with pytest.raises(cot.Diverged, match=f"with eta = .*{words}.*Take a smaller"):
        cot.train(world, T=100, eta=eta, every=100)
