"""Every lossless method emits the target's law, computed over all outcomes."""

from __future__ import annotations

import numpy as np
import pytest

from lib.speculative import (
    Budget,
    Confidence,
    Fixed,
    Heuristic,
    LookUp,
    ModelDrafter,
    NoDraft,
    Scripted,
    Staged,
    Tree,
    TreeDrafter,
    Warp,
    block_rule,
    certain_of_it,
    completed,
    decoded_law,
    distance,
    emitted,
    far,
    k_seq,
    lossless,
    match,
    mixed,
    near_best,
    relaxed,
    resampled_from_p,
    sorted_siblings,
    step_law,
    string_law,
    table_law,
    token_rule,
)

TIGHT = 1e-12
PROMPT = [1, 0]
WARPS = [
    Warp(),
    Warp(0.7),
    Warp(1.4, top_k=2),
    Warp(0.9, top_p=0.8),
    Warp(0.0),
]


def pair(V=3, seed=0):
    return table_law(V, seed), table_law(V, seed + 100)


def error(target, drafter, rule, depth, warp=None, nodes=10**9):
    """How far a round, completed by the target, is from the target's own law."""
    law = step_law(target, drafter, rule, PROMPT, Budget(depth, nodes), warp)
    assert sum(law.values()) == pytest.approx(1, abs=TIGHT)
    whole = completed(law, target, PROMPT, depth + 1, warp)
    return far(whole, string_law(target, PROMPT, depth + 1, warp))


@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("rule", [token_rule, block_rule, lossless])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_drawn_chain_keeps_the_law(rule, depth, warp):
    target, draft = pair()
    if warp.temperature == 0 and rule is block_rule:
        return  # the draft is then fixed: see the next tests
    if warp.temperature == 0 and rule is token_rule and depth:
        with pytest.raises(ValueError, match="Take `lossless`"):
            error(target, lambda: ModelDrafter(draft), rule, depth, warp)
        return
    assert error(target, lambda: ModelDrafter(draft), rule, depth, warp) < TIGHT


@pytest.mark.parametrize("rule", [token_rule, block_rule])
def test_three_drafted_tokens_keep_the_law(rule):
    target, draft = pair(seed=5)
    assert error(target, lambda: ModelDrafter(draft), rule, 3) < TIGHT


def test_a_draft_of_another_law_is_kept_too():
    target, draft = pair(4, seed=3)
    own = Warp(0.3, top_k=2)  # truncating q is allowed, if q is what was drawn from
    assert (
        error(target, lambda: ModelDrafter(draft, warp=own), token_rule, 2, Warp(1.2))
        < TIGHT
    )


@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("rule", [match, certain_of_it])
def test_a_fixed_chain_keeps_the_law(rule, warp):
    target, draft = pair(seed=1)
    assert (
        error(target, lambda: ModelDrafter(draft, greedy=True), rule, 2, warp) < TIGHT
    )


def fixed_tree():
    return Scripted(lambda tokens, budget: Tree([0, 2, 1, 0, 2], [-1, -1, 0, 0, 1]))


@pytest.mark.parametrize("warp", WARPS)
def test_a_fixed_tree_keeps_the_law(warp):
    target, _ = pair(seed=2)
    assert error(target, fixed_tree, match, 2, warp) < TIGHT


@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("widths", [(2,), (3,), (2, 1), (2, 2), (1, 3)])
def test_siblings_keep_the_law(widths, repeat):
    target, draft = pair(seed=4)
    assert (
        error(target, lambda: TreeDrafter(draft, widths, repeat), lossless, len(widths))
        < TIGHT
    )


@pytest.mark.parametrize("widths", [(1,), (2,), (3,), (2, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_k_seq_keeps_the_law(widths, seed):
    target, draft = pair(seed=seed)
    assert error(target, lambda: TreeDrafter(draft, widths), k_seq, len(widths)) < TIGHT


def test_siblings_without_replacement_take_all_of_a_small_vocabulary():
    target, draft = pair()
    law = step_law(
        target, lambda: TreeDrafter(draft, (3,), False), lossless, PROMPT, Budget(1)
    )
    assert all(len(text) == 2 for text, mass in law.items() if mass > 1e-15)


def staged(model, inner_seed=7):
    inner = table_law(model.vocab, inner_seed)
    return Staged(model, ModelDrafter(inner), lossless, Fixed(1))


def test_a_draft_that_is_drafted_keeps_the_law():
    target, draft = pair()
    assert error(target, lambda: staged(draft), lossless, 2) < TIGHT


def test_a_drafted_draft_emits_the_draft_models_law():
    target, draft = pair()
    laws = {}

    def once(dice):
        from lib.speculative import Session

        drafter = staged(draft)
        state = target.start(PROMPT)
        drafter.start(Session(target, state, list(PROMPT), Warp(), dice, 2))
        tree = drafter.propose(Budget(3))
        laws[tuple(tree.tokens)] = [row[t] for row, t in zip(tree.q, tree.tokens)]
        return tuple(tree.tokens)

    from lib.speculative import enumerated

    found = enumerated(once)
    assert far(found, string_law(draft, PROMPT, 3)) < TIGHT
    for text, masses in laws.items():
        assert np.prod(masses) == pytest.approx(found[text], abs=TIGHT)


# -- whole decodings ------------------------------------------------------------------


CONTROLLERS = {
    "fixed": lambda: Fixed(2),
    "unsure": lambda: Confidence(0.4, 3),
    "each": lambda: Confidence(0.5, 3, product=False),
    "heuristic": lambda: Heuristic(1, 1, 3),
}


@pytest.mark.parametrize("name", CONTROLLERS)
def test_many_rounds_keep_the_law(name):
    target, draft = pair(2, seed=8)
    law = decoded_law(
        target, lambda: ModelDrafter(draft), lossless, CONTROLLERS[name], PROMPT, 4
    )
    assert far(law, string_law(target, PROMPT, 4)) < TIGHT


@pytest.mark.parametrize("warp", [Warp(), Warp(0.0)])
def test_look_up_keeps_the_law(warp):
    target, _ = pair(2, seed=9)
    law = decoded_law(
        target,
        lambda: LookUp(2),
        lossless,
        lambda: Fixed(2),
        [0, 1, 0, 1],
        4,
        warp,
    )
    assert far(law, string_law(target, [0, 1, 0, 1], 4, warp)) < TIGHT


def test_a_drafted_draft_keeps_the_law_over_rounds():
    target, draft = pair(2, seed=8)
    law = decoded_law(
        target, lambda: staged(draft), lossless, lambda: Fixed(2), PROMPT, 4
    )
    assert far(law, string_law(target, PROMPT, 4)) < TIGHT


def test_no_draft_is_plain_decoding():
    target, _ = pair()
    law = decoded_law(target, NoDraft, lossless, lambda: Fixed(3), PROMPT, 3)
    assert far(law, string_law(target, PROMPT, 3)) < TIGHT


# -- how many tokens ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_block_rule_never_emits_fewer_tokens(seed):
    target, draft = pair(seed=seed)
    gain = []
    for depth in (1, 2, 3):
        both = [
            emitted(
                step_law(
                    target, lambda: ModelDrafter(draft), rule, PROMPT, Budget(depth)
                )
            )
            for rule in (token_rule, block_rule)
        ]
        gain.append(both[1] - both[0])
    assert gain[0] == pytest.approx(0, abs=TIGHT)
    assert min(gain) > -TIGHT
    assert gain[2] > 1e-3


def test_the_published_example_of_the_block_rule():
    from lib.speculative import LawTarget

    target = LawTarget(lambda context: np.array([1, 2]) / 3, 2, order=0)
    draft = LawTarget(lambda context: np.array([2, 1]) / 3, 2, order=0)
    found = [
        emitted(step_law(target, lambda: ModelDrafter(draft), rule, [0], Budget(2))) - 1
        for rule in (token_rule, block_rule)
    ]
    assert found == pytest.approx([10 / 9, 11 / 9], abs=TIGHT)  # 2403.10444, section 2


# -- what must fail -------------------------------------------------------------------


def test_drawing_from_p_after_a_rejection_is_seen():
    target, draft = pair(seed=2)
    assert error(target, lambda: ModelDrafter(draft), resampled_from_p, 1) > 0.02


def test_sorting_siblings_is_seen():
    from lib.speculative import LawTarget

    half = LawTarget(lambda context: np.array([0.5, 0.5]), 2, order=0)
    law = step_law(
        half, lambda: TreeDrafter(half, (2,)), sorted_siblings, [0], Budget(1)
    )
    first = {}
    for text, mass in law.items():
        first[text[0]] = first.get(text[0], 0) + mass
    assert first == pytest.approx({0: 0.75, 1: 0.25})


def test_a_law_that_was_not_drawn_from_is_seen():
    target, draft = pair(seed=3)

    class Raw(ModelDrafter):
        """Draws from warped laws and names the raw ones."""

        def propose(self, budget):
            tree = super().propose(budget)
            tree.q = [draft.law((*PROMPT, *tree.tokens[:k])) for k in range(len(tree))]
            return tree

    assert error(target, lambda: Raw(draft), token_rule, 1, Warp(0.5)) > 0.01


def test_relaxed_rules_are_as_far_away_as_they_say():
    target, draft = pair(4, seed=2)
    loose = relaxed(near_best(0.3))
    assert error(target, lambda: ModelDrafter(draft), loose, 1) > 0.01
    p, q = target.law(tuple(PROMPT)), draft.law(tuple(PROMPT))
    law = step_law(target, lambda: ModelDrafter(draft), mixed(0.6), PROMPT, Budget(1))
    first = np.zeros(4)
    for text, mass in law.items():
        first[text[0]] += mass
    assert first == pytest.approx(0.6 * p + 0.4 * q, abs=TIGHT)
    assert distance(first, p) == pytest.approx(0.4 * distance(p, q), abs=TIGHT)
