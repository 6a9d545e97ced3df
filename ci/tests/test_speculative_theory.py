"""Closed forms against simulation, linear programmes and enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.speculative import (
    Budget,
    LawTarget,
    ModelDrafter,
    Tree,
    TreeDrafter,
    Warp,
    best_acceptance,
    best_gamma,
    block_rule,
    block_rule_accepts,
    ceiling,
    curve,
    distance,
    emitted,
    expected_tokens,
    far,
    k_seq,
    k_seq_acceptance,
    k_seq_rate,
    lossless,
    one_hot,
    overlap,
    recursive_acceptance,
    residual,
    siblings_accept,
    speedup,
    step_law,
    token_rule,
    token_rule_accepts,
    without,
)
from lib.speculative.dice import Random, enumerated


def laws(V=4, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(V, spread), size=2)


def pair(p, q):
    return [
        LawTarget(lambda context, law=law: law, len(law), order=0) for law in (p, q)
    ]


# -- one candidate --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_acceptance_is_one_minus_total_variation(seed):
    p, q = laws(5, seed)
    target, draft = pair(p, q)
    law = step_law(target, lambda: ModelDrafter(draft), lossless, [0], Budget(1))
    accepted = emitted(law) - 1
    assert accepted == pytest.approx(1 - distance(p, q), abs=1e-12)
    assert overlap(p, q) == pytest.approx(1 - distance(p, q), abs=1e-12)
    assert np.maximum(p - q, 0).sum() == pytest.approx(distance(p, q), abs=1e-12)


def test_a_certain_draft_is_accepted_with_its_mass():
    p, q = laws(5, 3)
    target, draft = pair(p, q)
    law = step_law(
        target, lambda: ModelDrafter(draft, greedy=True), lossless, [0], Budget(1)
    )
    assert emitted(law) - 1 == pytest.approx(p[q.argmax()], abs=1e-12)


@pytest.mark.parametrize("gamma", [0, 1, 2, 3])
def test_expected_tokens_where_acceptance_does_not_depend_on_the_text(gamma):
    p, q = laws(3, 1)
    target, draft = pair(p, q)
    law = step_law(target, lambda: ModelDrafter(draft), lossless, [0], Budget(gamma))
    a = float(overlap(p, q))
    assert emitted(law) == pytest.approx(expected_tokens(a, gamma), abs=1e-12)


def test_expected_tokens_at_the_edges():
    assert expected_tokens(1.0, 4) == 5
    assert expected_tokens(0.0, 4) == 1
    assert expected_tokens(0.8, 4) == pytest.approx(3.3616)
    with pytest.raises(ValueError, match="0 to 1"):
        expected_tokens(1.2, 4)


def test_the_walltime_model():
    assert speedup(0.8, 4, 0.0) == pytest.approx(3.3616)
    assert best_gamma(0.3, 0.5) == 0  # no gain where the draft costs more than it wins
    assert best_gamma(0.9, 0.05) > best_gamma(0.6, 0.05)
    cost = curve([1, 2, 4], [1.0, 1.1, 1.5])
    assert cost(3) == pytest.approx(1.3)
    assert cost(9) == 1.5
    assert speedup(0.8, 3, 0.1, cost) == pytest.approx(2.952 / 1.8)
    with pytest.raises(ValueError, match="rising"):
        curve([2, 1], [1.0, 1.0])


@given(st.floats(0, 1), st.integers(0, 12))
def test_mixed_difficulty_raises_the_mean(a, gamma):
    """Jensen: E over contexts of E[tau] is at least E[tau] of the mean acceptance."""
    low, high = a / 2, (1 + a) / 2
    mean = (expected_tokens(low, gamma) + expected_tokens(high, gamma)) / 2
    assert mean >= expected_tokens((low + high) / 2, gamma) - 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_what_one_draft_is_worth_is_what_the_rules_do(seed):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(4), 4), rng.dirichlet(np.ones(4), 3)
    tokens = [int(rng.choice(4, p=row)) for row in q]
    tree = Tree(tokens, q=q, drawn="iid")
    for rule, closed in (
        (token_rule, token_rule_accepts),
        (block_rule, block_rule_accepts),
    ):
        law = enumerated(lambda dice, rule=rule: len(rule(tree, p, dice).path))
        mean = sum(length * mass for length, mass in law.items())
        assert closed(tokens, p, q) == pytest.approx(mean, abs=1e-12)
    parents = Tree(tokens, [-1] * 3, q, "iid")
    law = enumerated(lambda dice: len(lossless(parents, p, dice).path))
    assert siblings_accept(tokens, p[0], q) == pytest.approx(law[1], abs=1e-12)
    assert token_rule_accepts([], p[:1], []) == 0


# -- many candidates ------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_k_seq_lies_between_its_bound_and_the_optimum(seed, k):
    p, q = laws(4, seed, 0.7)
    found, best = k_seq_acceptance(p, q, k), best_acceptance(p, q, k)
    assert found <= best + 1e-9
    assert found >= (1 - np.exp(-1)) * best - 1e-9  # 2310.15141, theorem 4.2
    assert best <= ceiling(p, q, k) + 1e-9
    assert recursive_acceptance(p, q, k) <= best + 1e-9
    if k == 1:
        assert found == pytest.approx(overlap(p, q), abs=1e-9)
        assert best == pytest.approx(overlap(p, q), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [2, 3])
def test_acceptance_of_siblings_is_that_of_the_code(seed, k):
    p, q = laws(4, seed)
    target, draft = pair(p, q)

    def accepted(rule, repeat):
        law = step_law(
            target, lambda: TreeDrafter(draft, (k,), repeat), rule, [0], Budget(1)
        )
        return emitted(law) - 1

    assert accepted(k_seq, True) == pytest.approx(k_seq_acceptance(p, q, k), abs=1e-12)
    for repeat in (True, False):
        assert accepted(lossless, repeat) == pytest.approx(
            recursive_acceptance(p, q, k, repeat), abs=1e-12
        )


def test_without_replacement_all_candidates_cover_all():
    p, q = laws(4, 2)
    assert recursive_acceptance(p, q, 4, False) == pytest.approx(1, abs=1e-12)


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_the_rate_of_k_seq_never_lets_a_token_outrun_p(seed, k):
    p, q = laws(5, seed, 0.5)
    rho = k_seq_rate(p, q, k)
    assert 1 <= rho <= k
    taken = np.minimum(q, p / rho)
    beta = taken.sum()
    emitted_mass = taken / beta * (1 - (1 - beta) ** k)
    assert (emitted_mass <= p + 1e-9).all()


def test_a_programme_that_is_too_large_gets_a_sentence():
    p, q = laws(6, 0)
    with pytest.raises(ValueError, match="use less"):
        best_acceptance(p, q, 4)


# -- laws -----------------------------------------------------------------------------


def test_residual_and_what_is_left():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
    assert residual(p, q) == pytest.approx([1, 0, 0])
    assert residual(p, p) == pytest.approx(p)
    assert without(p, 0) == pytest.approx([0, 0.6, 0.4])
    assert without(one_hot(p), 0) == pytest.approx([1, 0, 0])


@given(st.integers(0, 10_000), st.floats(0.2, 3), st.integers(1, 8), st.floats(0.1, 1))
@settings(max_examples=60, deadline=None)
def test_warps_keep_laws_and_order(seed, temperature, top_k, top_p):
    logits = np.random.default_rng(seed).normal(size=(3, 6)) * 4
    plain = Warp(temperature)(logits)
    law = Warp(temperature, top_k, top_p)(logits)
    assert law.sum(-1) == pytest.approx(1, abs=1e-12)
    assert ((law > 0).sum(-1) <= top_k).all()
    kept = law > 0
    for row in range(3):
        # What is kept is the likeliest, in unchanged proportions.
        assert plain[row][kept[row]].min() >= plain[row][~kept[row]].max(initial=0)
        share = law[row][kept[row]] / plain[row][kept[row]]
        assert share == pytest.approx(share[0], rel=1e-9)


def test_top_p_keeps_the_token_that_crosses():
    logits = np.log([0.5, 0.3, 0.2])
    assert (Warp(top_p=0.5)(logits) > 0).tolist() == [True, False, False]
    assert (Warp(top_p=0.51)(logits) > 0).tolist() == [True, True, False]


def test_extreme_logits_and_temperatures():
    logits = np.array([[1e4, -1e4, 0.0], [-np.inf, 0.0, -np.inf]])
    assert Warp(1e-3)(logits) == pytest.approx(np.array([[1, 0, 0], [0, 1, 0]]))
    ties = Warp(0.0)(np.array([1.0, 3.0, 3.0]))
    assert ties.tolist() == [0, 1, 0]  # the lowest index of equals
    with pytest.raises(FloatingPointError, match="NaN"):
        Warp()(np.array([0.0, np.nan]))
    with pytest.raises(FloatingPointError, match="NaN"):
        Warp(0.0)(np.array([0.0, np.nan]))


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_bad_warps_get_a_sentence(given, word):
    with pytest.raises(ValueError, match=word):
        Warp(**given)


# -- dice -----------------------------------------------------------------------------


def test_random_dice_draw_the_law():
    dice, law = Random(0), np.array([0.1, 0.0, 0.6, 0.3])
    counts = np.bincount([dice.draw(law) for _ in range(20_000)], minlength=4) / 20_000
    assert counts == pytest.approx(law, abs=0.02)
    assert counts[1] == 0


def test_the_last_possible_token_is_drawn_where_rounding_runs_over():
    class One(Random):
        def __init__(self):
            self.uniform, self.last = (lambda: 1.0), 0.0

    assert One().draw(np.array([0.3, 0.7, 0.0])) == 1


def test_enumeration_against_a_hand_count():
    def program(dice):
        first = dice.draw(np.array([0.25, 0.75]))
        return (first, dice.chance(0.4)) if first else (first, None)

    found = enumerated(program)
    expected = {(0, None): 0.25, (1, True): 0.3, (1, False): 0.45}
    assert far(found, expected) < 1e-15


def test_a_program_with_another_source_of_chance_is_told():
    rng = np.random.default_rng(0)
    with pytest.raises(RuntimeError, match="follow from its dice"):
        enumerated(lambda dice: dice.draw(rng.dirichlet(np.ones(3))))
    with pytest.raises(RuntimeError, match="outcomes"):
        enumerated(lambda dice: dice.draw(np.ones(4) / 4), most=2)
