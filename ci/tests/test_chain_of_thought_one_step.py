"""The one-step case with an MLP (2402.15607): data, layer, pruning, rivals."""

import math

import numpy as np
import pytest
import torch

from lib.chain_of_thought import Diverged, one_step


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained():
    seen = one_step.make_patterns(seed=0)
    theta, losses = one_step.train(seen, T=180, seed=0)
    return seen, theta, losses


def test_patterns_are_orthogonal_and_unseen_ones_have_the_sum_asked_for():
    seen = one_step.make_patterns(30, 6, 24, 3.0, seed=1)
    every = torch.cat([seen.relevant, seen.irrelevant])
    np.testing.assert_allclose(every @ every.T, 9 * np.eye(30), atol=1e-4)
    for norm, S1 in (("free", 0.7), ("kept", 0.7), ("kept", 1.3), ("free", 0.0)):
        new = one_step.unseen_patterns(seen, S1, norm)
        coefficients = new.relevant @ seen.relevant.T / 9  # (3, 6)
        np.testing.assert_allclose(coefficients.sum(1), S1, atol=1e-5)
        size = 3.0 if norm == "kept" else 3 * S1 / math.sqrt(2)
        np.testing.assert_allclose(new.relevant.norm(dim=1), size, atol=1e-4)
        assert new.irrelevant.shape == (12, 30)


def test_tasks_use_every_pattern_once_with_each_label():
    tasks = one_step.cycle_tasks(5)
    assert sorted(tasks[:, 0].tolist()) == sorted(tasks[:, 1].tolist()) == [*range(5)]
    every = one_step.all_tasks(4)
    assert len({tuple(pair) for pair in every.tolist()}) == 12
    assert (every[:, 0] != every[:, 1]).all()


def test_the_sampler_keeps_its_promises():
    seen = one_step.make_patterns(seed=2)
    tasks = torch.tensor([[1, 4]])
    P, z = one_step.sample(seen, tasks, 3000, 12, 0.6, gen(), kappa=0.5)
    assert P.shape == (3000, 13, 31)
    assert (P[:, -1, -1] == 0).all()
    which = (P[..., :-1] @ seen.relevant.T).argmax(-1)  # (B, l + 1)
    assert set(which[:, -1].tolist()) == {1, 4}
    assert (z == torch.where(which[:, -1] == 1, 1.0, -1.0)).all()
    context, y = which[:, :-1], P[:, :-1, -1]
    for j, share in ((1, 0.3), (4, 0.3), (0, 0.1), (5, 0.1)):
        assert abs(float((context == j).double().mean()) - share) < 0.01
    assert (y[context == 1] == 1).all()
    assert (y[context == 4] == -1).all()
    assert abs(float(y[context == 0].mean())) < 0.06
    rest = P[..., :-1] - seen.relevant[which]
    assert float(rest.norm(dim=-1).max()) <= 0.5 * 3 + 1e-4


def test_the_layer_is_the_papers_sum():
    g, P = gen(3), torch.randn(2, 6, 5, generator=gen(4))
    theta = {k: torch.randn(5, 5, generator=g) for k in ("W_Q", "W_K", "W_V")}
    theta |= {"W_O": torch.randn(7, 5, generator=g), "a": torch.randn(7, generator=g)}
    for b in range(2):
        query = theta["W_Q"] @ P[b, -1]
        scores = torch.stack([(theta["W_K"] @ p) @ query for p in P[b, :-1]])
        mixed = theta["W_V"] @ (torch.softmax(scores, 0) @ P[b, :-1])
        F = theta["a"] @ torch.relu(theta["W_O"] @ mixed)
        torch.testing.assert_close(one_step.forward(theta, P)[b], F)


def test_trained_on_a_cycle_it_solves_every_task(trained):
    seen, theta, losses = trained
    assert float(losses[0]) > 0.9
    assert float(losses[-10:].mean()) < 0.05
    data = one_step.sample(seen, one_step.all_tasks(6), 800, 20, 0.8, gen(1))
    wrong, hinge = one_step.errors(theta, *data)
    assert wrong < 0.02
    assert hinge < 0.1
    margin = data[1] * one_step.forward(theta, data[0])
    assert abs(wrong - float((margin <= 0).double().mean())) < 1e-12
    assert abs(hinge - float(torch.relu(1 - margin).mean())) < 1e-6


def test_the_same_seed_gives_the_same_bytes():
    seen = one_step.make_patterns(seed=0)
    runs = [one_step.train(seen, T=10, B=8, seed=3) for _ in range(2)]
    for name in runs[0][0]:
        assert runs[0][0][name].numpy().tobytes() == runs[1][0][name].numpy().tobytes()


def test_pruning_removes_the_rows_it_says(trained):
    seen, theta, _ = trained
    norms = theta["W_O"].norm(dim=1)
    for rule in ("small", "large", "random"):
        cut = one_step.prune(theta, 0.3, rule, seed=1)["W_O"]
        gone = cut.norm(dim=1) == 0
        assert int(gone.sum()) == 30
        torch.testing.assert_close(cut[~gone], theta["W_O"][~gone])
        if rule == "small":
            assert norms[gone].max() <= norms[~gone].min()
        if rule == "large":
            assert norms[gone].min() >= norms[~gone].max()
    data = one_step.sample(seen, one_step.all_tasks(6), 400, 20, 0.8, gen(2))
    everything = one_step.prune(theta, 1.0, "small")
    assert one_step.errors(everything, *data) == (1.0, 1.0)
    kept, small, large = (
        one_step.errors(one_step.prune(theta, share, rule), *data)[1]
        for share, rule in ((0.0, "small"), (0.2, "small"), (0.5, "large"))
    )
    assert small < kept + 0.02
    assert large > kept + 0.3


def test_neighbours_by_hand():
    x = torch.tensor([[0.0], [0.9], [1.2], [5.0], [1.0]])[None]  # the query last
    y = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [0.0]])[None]
    P = torch.cat([x, y], dim=-1)
    minus = torch.tensor([-1.0])
    assert one_step.neighbour_errors(P, minus, 1) == 0.0
    assert one_step.neighbour_errors(P, minus, 3) == 1.0  # 0.9: -1, 1.2 and 0: +1


def test_fitted_rivals_solve_a_separable_prompt():
    seen = one_step.make_patterns(seed=0)
    data = one_step.sample(seen, one_step.all_tasks(6), 12, 20, 1.0, gen(5), 0.1)
    assert one_step.fitted_errors(*data) == {"logistic": 0.0, "linear SVM": 0.0}
    P, z = data
    P = P.clone()
    P[:, :-1, -1] = z[:, None]  # one label only: nothing to fit
    assert set(one_step.fitted_errors(P, z).values()) == {0.0}


SENTENCES = [
    (lambda s: one_step.make_patterns(20, 6, 24), "more than d = 20 dimensions"),
    (lambda s: one_step.unseen_patterns(s, 2.0), "from 0 to sqrt 2"),
    (lambda s: one_step.unseen_patterns(s, 1.0, "none"), "choose one of free, kept"),
    (lambda s: one_step.prune({"W_O": torch.eye(3)}, 2.0, "small"), "from 0 to 1"),
    (lambda s: one_step.prune({"W_O": torch.eye(3)}, 0.5, "smal"), "Did you mean sma"),
    (lambda s: one_step.train(s, T=0), "T is 0"),
    (lambda s: one_step.train(s, T=2, eta=-1.0), "positive step size"),
    (lambda s: one_step.train(s, T=2, alpha=0.0), "above 0 and up to 1"),
    (lambda s: one_step.train(s, T=2, alpha=1.5), "above 0 and up to 1"),
    (
        lambda s: one_step.neighbour_errors(torch.zeros(1, 4, 2), torch.ones(1), 2),
        "odd",
    ),
]


@pytest.mark.parametrize(("call", "words"), SENTENCES)
def test_wrong_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(one_step.make_patterns(seed=0))


def test_divergence_is_named():
    with pytest.raises(Diverged, match="with eta = 1000: the hinge loss is"):
        one_step.train(one_step.make_patterns(seed=0), T=60, eta=1000.0)
