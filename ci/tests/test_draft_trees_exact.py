"""Every tree drafter keeps the target's law, computed over all outcomes."""

from __future__ import annotations

import numpy as np
import pytest

from lib.draft_trees import (
    Adaptive,
    Datastore,
    DatastoreTree,
    Lookahead,
    OptTree,
    Ouroboros,
    ShapeDrafter,
    SpeculativeJacobi,
    accepted_in,
    best_shape,
    binary,
    sibling_shares,
    worth_of,
)
from lib.speculative import (
    Budget,
    Fixed,
    LawTarget,
    ModelDrafter,
    Random,
    Session,
    Staged,
    Tree,
    Warp,
    completed,
    decoded_law,
    emitted,
    enumerated,
    far,
    lossless,
    match,
    siblings,
    sorted_siblings,
    step_law,
    string_law,
    table_law,
    token_rule,
)

TIGHT = 1e-12
PROMPT = [1, 0, 1, 1, 0, 1]
WARPS = [
    Warp(),
    Warp(0.7),
    Warp(1.4, top_k=2),
    Warp(0.9, top_p=0.8),
    Warp(0.0),
]
TEXT = np.random.default_rng(3).integers(0, 3, 200)
STORE = Datastore(TEXT, 3, 2)


def draft():
    return table_law(3, 100)


ROUND = {  # a drafter, its rule and its depth
    "OPT-Tree": (lambda: OptTree(draft(), 5), match, 3),
    "OPT-Tree, price": (lambda: OptTree(draft(), 6, 0.5), match, 2),
    "binary, drawn": (lambda: ShapeDrafter(draft(), binary(6)), siblings, 2),
    "binary, likeliest": (lambda: ShapeDrafter(draft(), binary(6), False), match, 2),
    "Sequoia": (
        lambda: ShapeDrafter(draft(), best_shape((0.5, 0.3, 0.1), 5, 2).parents),
        siblings,
        2,
    ),
    "uneven": (lambda: ShapeDrafter(draft(), [-1, -1, -1, 1]), siblings, 2),
    "window": (lambda: SpeculativeJacobi(2), token_rule, 2),
    "Lookahead": (lambda: Lookahead(2, 3, 2), match, 3),
    "Ouroboros": (lambda: Ouroboros(draft(), 1, 2, 2), match, 3),
    "datastore": (lambda: DatastoreTree(STORE, 5, 3), match, 3),
    "adaptive": (lambda: Adaptive(nodes=5, explore=0.5), match, 3),
}


@pytest.mark.parametrize("warp", WARPS, ids=str)
@pytest.mark.parametrize("name", ROUND)
def test_a_round_keeps_the_law(name, warp):
    make, rule, depth = ROUND[name]
    if warp.temperature == 0:
        rule = lossless  # a greedy target's tree is fixed
    target = table_law(3, 0)
    law = step_law(target, make, rule, PROMPT, Budget(depth), warp)
    assert sum(law.values()) == pytest.approx(1, abs=TIGHT)
    whole = completed(law, target, PROMPT, depth + 1, warp)
    assert far(whole, string_law(target, PROMPT, depth + 1, warp)) < TIGHT
    if warp == Warp():
        assert max(map(len, law)) > 1  # something was accepted


@pytest.mark.parametrize("warp", [Warp(0.5), Warp(1.3, top_k=2)])
def test_a_draft_of_another_temperature_keeps_the_law(warp):
    target = table_law(3, 1)
    for make in (
        lambda: OptTree(draft(), 4, warp=warp),
        lambda: ShapeDrafter(draft(), [-1, -1, 0], warp=warp),
    ):
        law = step_law(target, make, lossless, PROMPT, Budget(2))
        whole = completed(law, target, PROMPT, 3)
        assert far(whole, string_law(target, PROMPT, 3)) < TIGHT


SMALL = [0, 1, 0, 0]  # a prompt of two symbols


def small():
    return table_law(2, 8)


MANY = {
    "OPT-Tree": lambda: OptTree(table_law(2, 9), 4),
    "Sequoia": lambda: ShapeDrafter(table_law(2, 9), [-1, -1, 0]),
    "window of 1": lambda: SpeculativeJacobi(1),
    "window of 2": lambda: SpeculativeJacobi(2),
    "Lookahead": lambda: Lookahead(2, 3, 2),
    "Ouroboros": lambda: Ouroboros(table_law(2, 9), 1, 2, 2),
    "datastore": lambda: DatastoreTree(Datastore(TEXT % 2, 2, 3), 4, 2),
    "adaptive": lambda: Adaptive(nodes=4, explore=1.0, likely=1),
}


@pytest.mark.parametrize("warp", [Warp(), Warp(0.6), Warp(0.0)], ids=str)
@pytest.mark.parametrize("name", MANY)
def test_many_rounds_keep_the_law(name, warp):
    """What is learnt from the text, or drawn anew, changes nothing."""
    target, most = small(), 3 if name == "window of 2" else 4
    law = decoded_law(target, MANY[name], lossless, lambda: Fixed(2), SMALL, most, warp)
    assert far(law, string_law(target, SMALL, most, warp)) < TIGHT


@pytest.mark.parametrize("inner", ["Lookahead", "adaptive", "OPT-Tree"])
def test_a_tree_may_draft_for_the_draft(inner):
    target = small()

    def make():
        return Staged(table_law(2, 5), MANY[inner](), lossless, Fixed(1))

    law = decoded_law(target, make, lossless, lambda: Fixed(2), SMALL, 3)
    assert far(law, string_law(target, SMALL, 3)) < TIGHT


# -- how many tokens ------------------------------------------------------------------


def same_everywhere(p):
    return LawTarget(lambda context: np.asarray(p), len(p), order=0)


@pytest.mark.parametrize("nodes", [1, 3, 6])
def test_a_drawn_shape_emits_what_sequoia_predicts(nodes):
    """Laws that do not depend on the text: the shares are exact, and so is F."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.3, 0.2, 0.5])

    def accepted_at(j):
        """P(the j-th of j + 1 siblings passes), enumerated."""
        both = []
        for k in (j + 1, j):
            make = lambda k=k: ShapeDrafter(same_everywhere(q), [-1] * k)  # noqa: E731
            law = step_law(same_everywhere(p), make, siblings, [0], Budget(1))
            both.append(emitted(law) - 1)
        return both[0] - both[1]

    shares = [accepted_at(j) for j in range(3)]
    assert sum(shares) == pytest.approx(1, abs=TIGHT)  # all three tokens
    found = sibling_shares([(p, q)] * 4000, 3)
    assert found == pytest.approx(shares, abs=0.03)
    shape = best_shape(shares, nodes, 3)
    law = step_law(
        same_everywhere(p),
        lambda: ShapeDrafter(same_everywhere(q), shape.parents),
        siblings,
        [0],
        Budget(3),
    )
    assert emitted(law) - 1 == pytest.approx(shape.worth, abs=1e-12)
    assert worth_of(shape.parents, shares) == pytest.approx(shape.worth, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_more_nodes_never_emit_fewer_tokens(seed):
    target = table_law(3, seed)
    taus = [
        emitted(
            step_law(target, lambda n=n: OptTree(draft(), n), match, PROMPT, Budget(3))
        )
        for n in range(1, 8)
    ]
    assert np.diff(taus).min() > -TIGHT


def test_the_window_draws_each_place_from_the_law_it_names():
    """Under all outcomes: place i holds x as often as its law says."""
    target = table_law(3, 2)
    seen = {}

    def once(dice):
        drafter = SpeculativeJacobi(2)
        state = target.start(PROMPT)
        drafter.start(Session(target, state, list(PROMPT), Warp(), dice, len(PROMPT)))
        tree = drafter.propose(Budget(2))
        out = target.forward(state, PROMPT[-1], tree)
        verdict = token_rule(tree, Warp()(out.logits), dice)
        before = (*tree.tokens, len(verdict.path), verdict.token)
        drafter.observe(tree, out, verdict)
        seen[before] = [law.copy() for law in drafter.laws]
        return (before, *drafter.tokens)

    joint = enumerated(once)
    for before, laws in seen.items():
        mass = sum(m for key, m in joint.items() if key[0] == before)
        for place in range(2):
            for token in range(3):
                own = sum(
                    m
                    for key, m in joint.items()
                    if key[0] == before and key[1 + place] == token
                )
                assert own == pytest.approx(mass * laws[place][token], abs=TIGHT)


@pytest.mark.parametrize("name", ["OPT-Tree", "binary, drawn", "window", "Ouroboros"])
def test_the_worth_of_one_draft_is_enumerated(name):
    """Over the dice of the verification alone, for drafts of some seeds."""
    target, (make, rule, depth) = table_law(3, 0), ROUND[name]
    for seed in range(4):
        state, drafter = target.start(PROMPT), make()
        parts = (target, state, list(PROMPT), Warp(), Random(seed), len(PROMPT))
        drafter.start(Session(*parts))
        tree = drafter.propose(Budget(depth))
        p = Warp()(target.forward(state, PROMPT[-1], tree).logits)
        law = enumerated(lambda dice, t=tree, p=p: len(rule(t, p, dice).path))
        mean = sum(length * mass for length, mass in law.items())
        assert accepted_in(tree, p) == pytest.approx(mean, abs=TIGHT)


# -- what must fail -------------------------------------------------------------------


def first_token_error(make, rule, target):
    law = step_law(target, make, rule, PROMPT, Budget(1))
    whole = completed(law, target, PROMPT, 2)
    return far(whole, string_law(target, PROMPT, 2))


def test_sorting_drawn_siblings_is_seen():
    target = table_law(3, 4)
    right = first_token_error(lambda: ShapeDrafter(draft(), [-1, -1]), siblings, target)
    wrong = first_token_error(
        lambda: ShapeDrafter(draft(), [-1, -1]), sorted_siblings, target
    )
    assert right < TIGHT
    assert wrong > 1e-3


def test_naming_the_new_law_for_an_old_draw_is_seen():
    """Speculative Jacobi must keep the law that a token was drawn from."""

    class Renamed(SpeculativeJacobi):
        def propose(self, budget):
            tree = super().propose(budget)
            law = np.array([0.6, 0.3, 0.1])
            return Tree(tree.tokens, q=[law] * len(tree), drawn="iid")

    target = table_law(3, 4)
    assert first_token_error(lambda: SpeculativeJacobi(1), token_rule, target) < TIGHT
    assert first_token_error(lambda: Renamed(1), token_rule, target) > 1e-2


def test_dropping_a_node_after_its_token_was_seen_is_seen():
    """Trap 12: an unlikely sibling must stay in the drawn tree."""

    class Picky(ShapeDrafter):
        def propose(self, budget):
            tree = super().propose(budget)
            keep = [n for n, t in enumerate(tree.tokens) if tree.q[n][t] > 0.3]
            parts = ([tree.tokens[n] for n in keep], [-1] * len(keep))
            return Tree(*parts, [tree.q[n] for n in keep], "without")

    target = table_law(3, 4)
    wrong = first_token_error(lambda: Picky(draft(), [-1, -1]), siblings, target)
    assert wrong > 1e-3


def test_a_model_chain_is_the_line_shape():
    target = table_law(3, 0)
    budget = Budget(2)
    laws = [
        step_law(target, make, siblings, PROMPT, budget)
        for make in (
            lambda: ShapeDrafter(draft(), [-1, 0]),
            lambda: ModelDrafter(draft()),
        )
    ]
    assert far(*laws) < TIGHT
