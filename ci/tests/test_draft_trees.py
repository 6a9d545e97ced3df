"""Shapes, the programme that finds them, fixed points, pools: against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lib.draft_trees import (
    Adaptive,
    Datastore,
    DatastoreTree,
    Lookahead,
    OptTree,
    Ouroboros,
    Phrases,
    ShapeDrafter,
    SpeculativeJacobi,
    Trigrams,
    agreed,
    best_first,
    best_shape,
    best_size,
    binary,
    jacobi,
    line,
    merged,
    path_values,
    places,
    rooted_trees,
    sibling_shares,
    window_paths,
    window_sees,
    within_budget,
    worth_of,
)
from lib.language import tree as layout_of
from lib.speculative import (
    Budget,
    Fixed,
    LawTarget,
    NoDraft,
    Random,
    Scripted,
    Session,
    Tree,
    Warp,
    check_tree,
    decode,
    emitted,
    lossless,
    match,
    plain,
    recursive_acceptance,
    step_law,
    table_law,
)

PROMPT = [1, 0]
SHARES = [(0.6, 0.15, 0.08, 0.04), (0.5, 0.5), (0.9,), (0.4, 0.3, 0.2)]


def ranked(law):
    """Offers for `best_first` from a function of paths."""

    def offers(path):
        p = law(path)
        return [(int(t), float(p[t])) for t in np.argsort(-p, kind="stable")]

    return offers


def toy_law(seed, V=3):
    target = table_law(V, seed)
    return lambda path: target.law((*PROMPT, *path))


# -- values and the best tree ---------------------------------------------------------


def test_values_are_products_along_paths():
    values = path_values([-1, 0, 0, -1, 3], [0.5, 0.4, 0.1, 0.25, 0.8])
    assert values == pytest.approx([0.5, 0.2, 0.05, 0.25, 0.2])
    with pytest.raises(ValueError, match="give one for each"):
        path_values([-1, 0], [0.5])
    with pytest.raises(ValueError, match="stands before its child"):
        path_values([0], [0.5])


@pytest.mark.parametrize("seed", range(4))
def test_a_calibrated_tree_emits_one_token_more_than_its_values(seed):
    """The draft is the target: enumerated E[tau] = 1 + sum of path products."""
    law = toy_law(seed)
    grown = best_first(ranked(law), 6, 3)
    target = table_law(3, seed)
    found = step_law(
        target, lambda: Scripted(lambda *_: grown.tree), match, PROMPT, Budget(3)
    )
    assert emitted(found) == pytest.approx(1 + grown.worth, abs=1e-12)
    assert grown.values == pytest.approx(
        path_values(
            grown.parents,
            [
                law(path[:-1])[path[-1]]
                for path, node in places(grown.tree).items()
                if node >= 0
            ],
        )
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("nodes", "depth"), [(1, 1), (3, 2), (4, 3), (5, 2)])
def test_best_first_is_the_best_of_all_rooted_trees(nodes, depth, seed):
    offers = ranked(toy_law(seed))
    every = list(rooted_trees(offers, nodes, depth))
    worths = [grown.worth for grown in every]
    found = best_first(offers, nodes, depth)
    assert found.worth == pytest.approx(max(worths), abs=1e-12)
    assert len({frozenset(places(grown.tree)) for grown in every}) == len(every)
    check_tree(found.tree, Budget(depth, nodes), 3)


def test_best_first_grows_and_stops():
    offers = ranked(toy_law(0))
    worths = [best_first(offers, n, 4).worth for n in range(9)]
    assert worths[0] == 0
    assert np.diff(worths).min() > 0
    assert np.diff(worths, 2).max() <= 1e-12  # each node is worth at most the last
    least = best_first(offers, 100, 4, least=0.1).values
    assert min(least) >= 0.1
    assert len(best_first(lambda path: [(0, 1.0), (1, 0.0)], 5, 3).tokens) == 3
    with pytest.raises(ValueError, match="nodes is -1"):
        best_first(offers, -1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("nodes", "depth"), [(1, 3), (4, 2), (7, 4), (20, 3)])
def test_level_by_level_is_the_heaps_tree(nodes, depth, seed):
    """OPT-Tree asks a model once a level and must find what the heap finds."""
    draft = table_law(4, seed)
    drafter = OptTree(draft, nodes)
    drafter.start(session(draft))
    tree = drafter.propose(Budget(depth))
    check_tree(tree, Budget(depth, nodes), 4)
    expected = best_first(ranked(lambda p: draft.law((*PROMPT, *p))), nodes, depth)
    assert set(places(tree)) == set(places(expected.tree))
    assert drafter.passes <= depth


def session(target, tokens=PROMPT, warp=None, dice=None):
    tokens = list(tokens)
    state = target.start(tokens)
    return Session(
        target, state, tokens, warp or Warp(), dice or Random(0), len(tokens)
    )


def test_opt_tree_stops_when_a_level_gains_less_than_its_price():
    draft = table_law(4, 1)
    sizes = []
    for price in (0.0, 0.2, 0.5, 10.0):
        drafter = OptTree(draft, 12, price)
        drafter.start(session(draft))
        tree = drafter.propose(Budget(8))
        sizes.append((max(tree.depths()), drafter.passes))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == (1, 1)
    # One pass a level, and the last one showed that it was not worth it.
    assert all(depth <= passes for depth, passes in sizes)


def test_a_narrow_tree_is_a_chain():
    draft = table_law(4, 1)
    drafter = OptTree(draft, 5, width=1)
    drafter.start(session(draft))
    assert drafter.propose(Budget(9)).chain


# -- Sequoia --------------------------------------------------------------------------


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize(("nodes", "depth"), [(2, 1), (3, 2), (4, 4), (5, 3), (6, 2)])
def test_the_programme_is_the_best_of_all_shapes_and_the_heap(shares, nodes, depth):
    def offers(path):
        return list(enumerate(shares))

    found = best_shape(shares, nodes, depth)
    every = [
        g.worth
        for n in range(1, nodes + 1)
        for g in rooted_trees(offers, n, depth, in_order=True)
    ]
    assert found.worth == pytest.approx(max(every), abs=1e-12)
    heap = best_first(offers, nodes, depth)
    assert found.worth == pytest.approx(heap.worth, abs=1e-12)
    assert worth_of(found.parents, shares) == pytest.approx(found.worth, abs=1e-12)
    assert found.depth <= depth
    assert len(found.parents) <= nodes


def test_eight_nodes_against_all_1430_shapes():
    shares = (0.5, 0.2, 0.15, 0.05, 0.04, 0.03, 0.02, 0.01)
    every = list(rooted_trees(lambda p: list(enumerate(shares)), 8, 8, in_order=True))
    assert len(every) == 1430  # Catalan
    found = best_shape(shares, 8)
    assert found.worth == pytest.approx(max(g.worth for g in every), abs=1e-12)


@pytest.mark.parametrize("shares", [(0.1, 0.6, 0.2), (0.0, 0.5, 0.4), (0.2, 0.0, 0.7)])
def test_rising_shares_defeat_the_heap_and_not_the_programme(shares):
    def offers(path):
        return list(enumerate(shares))

    found = best_shape(shares, 6, 3)
    every = [
        g.worth for n in range(1, 7) for g in rooted_trees(offers, n, 3, in_order=True)
    ]
    assert found.worth == pytest.approx(max(every), abs=1e-12)
    assert worth_of(found.parents, shares) == pytest.approx(found.worth, abs=1e-12)


def test_the_specifications_numbers():
    shares = SHARES[0]
    tree = [1 + best_shape(shares, n - 1).worth for n in (4, 8, 16, 32, 64)]
    chain = [1 + worth_of(line(n - 1), shares) for n in (4, 8, 16, 32, 64)]
    assert np.round(tree, 2) == pytest.approx([2.18, 2.64, 3.10, 3.53, 3.93])
    assert np.round(chain, 2) == pytest.approx([2.18, 2.46, 2.50, 2.50, 2.50])


def test_shares_that_are_nothing_draft_nothing():
    assert best_shape((0.0, 0.0), 5).parents == ()
    assert best_shape((0.6, 0.0), 3).parents == (-1, 0, 1)
    assert best_shape((0.6,), 0) == ((), 0.0)
    for shares in ((), (-0.1,), (0.7, 0.7)):
        with pytest.raises(ValueError, match="siblings' shares"):
            best_shape(shares, 4)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_sibling_shares_are_the_closed_form(k):
    """Their sum is the acceptance of k siblings without replacement."""
    rng = np.random.default_rng(k)
    p, q = rng.dirichlet(np.ones(4), 2)
    found = sibling_shares([(p, q)] * 4000, k)
    exact = [recursive_acceptance(p, q, j, False) for j in range(k + 1)]
    assert found == pytest.approx(np.diff(exact), abs=0.03)
    fixed = sibling_shares([(p, q)], k, drawn=False)
    assert fixed == pytest.approx(p[np.argsort(-q)[:k]])


def test_a_draft_that_is_the_target_is_accepted_first():
    p = np.array([0.5, 0.3, 0.2])
    assert sibling_shares([(p, p)] * 5, 3) == pytest.approx([1, 0, 0])
    with pytest.raises(ValueError, match="No pair of laws"):
        sibling_shares([], 3)


def test_the_size_follows_from_the_price():
    shares = SHARES[0]
    small, _ = best_size(shares, lambda k: 1 + 0.15 * (k - 1), 0.15)
    large, pays = best_size(shares, lambda k: 1.0, 0.02)
    none, one = best_size(shares, lambda k: float(k), 0.5)
    assert 0 < len(small.parents) < len(large.parents)
    assert (none.parents, one) == ((), 1.0)
    trials = [
        (1 + best_shape(shares, n, d).worth)
        / (1 + 0.02 * best_shape(shares, n, d).depth)
        for n in (16, 32, 64)
        for d in range(1, 13)
    ]
    assert pays == pytest.approx(max(trials))
    with pytest.raises(ValueError, match="at least one size"):
        best_size(shares, lambda k: 1.0, 0.1, sizes=())
    with pytest.raises(ValueError, match="give 0 or more"):
        best_size(shares, lambda k: 1.0, -0.1)


# -- shapes that are given ------------------------------------------------------------


def test_fixed_shapes():
    assert line(3) == [-1, 0, 1]
    assert binary(6) == [-1, -1, 0, 0, 1, 1]
    assert Tree([0] * 6, binary(6)).depths() == [1, 1, 2, 2, 2, 2]


def test_texts_share_their_beginnings():
    tree = merged([[1, 2, 3], [1, 2, 4], [5], [1, 2]])
    assert tree.tokens == [1, 2, 3, 4, 5]
    assert tree.parents == [-1, 0, 1, 1, -1]
    cut = within_budget([[1, 2, 3], [1, 2, 4], [5]], Budget(2, 2))
    assert (cut.tokens, cut.parents) == ([1, 2], [-1, 0])
    assert len(within_budget([[1]], Budget(0))) == 0
    assert set(places(tree)) == {
        (), (1,), (1, 2), (1, 2, 3), (1, 2, 4), (5,)
    }  # fmt: skip


def test_a_shape_beyond_the_budget_is_cut_and_a_script_is_refused():
    draft = table_law(4, 0)
    drafter = ShapeDrafter(draft, binary(14))
    for budget in (Budget(3), Budget(2), Budget(9, 5), Budget(1, 1), Budget(0)):
        drafter.start(session(draft))
        check_tree(drafter.propose(budget), budget, 4)
    with pytest.raises(ValueError, match="the budget allows 5"):
        check_tree(Tree([0] * 14, binary(14)), Budget(9, 5), 4)


def test_a_small_support_leaves_siblings_out():
    draft = LawTarget(lambda context: np.array([0.7, 0.3, 0.0, 0.0]), 4, order=0)
    for drawn in (True, False):
        drafter = ShapeDrafter(draft, [-1, -1, -1, 2, 0], drawn)
        drafter.start(session(draft))
        tree = drafter.propose(Budget(4))
        assert len(tree) == 3  # the third sibling and its child are gone
        check_tree(tree, Budget(4), 4)
        assert tree.drawn == ("without" if drawn else "fixed")


# -- Jacobi ---------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, None])
@pytest.mark.parametrize("block", [1, 2, 5, 8, 24, None])
def test_the_fixed_point_is_the_greedy_text(block, order):
    target = table_law(3, 4, 0.3, order=order)
    expected, _ = plain(target, PROMPT, 24, warp=Warp(0.0))
    found = jacobi(target, PROMPT, 24, block)
    assert found.tokens == expected
    w = min(block or 24, 24)
    assert [len(one[0]) for one in found.sweeps] == [
        min(w, 24 - at) for at in range(0, 24, w)
    ]
    for sweeps in found.sweeps:
        assert len(sweeps) - 1 <= len(sweeps[0])  # at most w passes
        right = agreed(sweeps)
        assert all(same >= j for j, same in enumerate(right))
    assert found.passes <= 24


def test_any_guess_leads_to_the_same_text():
    target = table_law(5, 1, order=2)
    texts = {tuple(jacobi(target, PROMPT, 15, 6, guess=g).tokens) for g in range(5)}
    assert len(texts) == 1
    assert jacobi(target, PROMPT, 0).passes == 0


def test_a_copy_of_the_last_token_takes_one_pass_a_block():
    target = LawTarget(lambda context: np.eye(4)[context[-1]], 4, order=1)
    assert jacobi(target, [2], 12, 4).passes == 3  # the guess is the fixed point


def test_a_text_that_ignores_its_past_takes_two_passes_and_a_count_takes_all():
    free = LawTarget(lambda context: np.array([0.1, 0.6, 0.3]), 3, order=0)
    assert jacobi(free, [0], 10).passes == 2  # the second finds nothing to change
    count_up = LawTarget(
        lambda context: np.eye(16)[(context[-1] + 1) % 16], 16, order=1
    )
    assert jacobi(count_up, [0], 10).passes == 10


def test_jacobi_refuses():
    target = table_law(3, 0)
    with pytest.raises(ValueError, match="block is 0"):
        jacobi(target, PROMPT, 5, 0)
    with pytest.raises(ValueError, match="guess is 3; V is 3"):
        jacobi(target, PROMPT, 5, guess=3)
    with pytest.raises(ValueError, match="prompt is empty"):
        jacobi(target, [], 5)


def test_speculative_jacobi_accepts_what_does_not_depend_on_the_rest():
    free = LawTarget(lambda context: np.array([0.1, 0.6, 0.3]), 3, order=0)
    parts = (free, SpeculativeJacobi(6), lossless, Fixed(6), PROMPT, 50)
    steps = decode(*parts)[1].steps
    assert {step.accepted for step in steps[1:-1]} == {6}  # p_new = p_old
    near = table_law(4, 2, 5.0, order=1)  # laws that differ little
    parts = (near, SpeculativeJacobi(6), lossless, Fixed(6), PROMPT, 40)
    assert np.mean([decode(*parts, seed=s)[1].tau for s in range(10)]) > 2


# -- Lookahead ------------------------------------------------------------------------


@pytest.mark.parametrize(("levels", "width"), [(1, 1), (1, 4), (3, 1), (2, 3), (3, 5)])
def test_the_window_is_a_tree(levels, width):
    """The rule of who sees whom is the ancestor relation of the columns' paths."""
    rows = np.arange(levels * width).reshape(levels, width)  # all tokens differ
    tree = merged(window_paths(rows.tolist()))
    order = np.argsort(tree.tokens)  # node of token r W + j
    seen = layout_of(tree.parents).visible.numpy()[1:, 1:][np.ix_(order, order)]
    assert (seen == window_sees(levels, width)).all()
    depth = np.array(tree.depths())[order].reshape(levels, width)
    assert (depth == np.add.outer(np.arange(levels), np.arange(width)) + 1).all()


class Separate(Lookahead):
    """Lookahead whose window is read by calls of its own, one for each column."""

    def observe(self, tree, out, verdict):
        target, text = self.session.target, self.before
        new = []
        for path in self.paths:
            state = target.start(text)
            new.append(
                int(target.forward(state, text[-1], Tree(path)).logits[-1].argmax())
            )
        fits = all(tuple(path) in places(tree) for path in self.paths)
        super().observe(tree, out, verdict)
        assert not fits or self.rows[-1] == new

    def propose(self, budget):
        self.before = list(self.session.tokens)
        return super().propose(budget)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_merged_pass_is_separate_passes(temperature):
    target = table_law(5, 3, 0.3, order=2)
    drafter = Separate(3, 4, 3)
    text, _ = decode(
        *(target, drafter, lossless, Fixed(drafter.depth), [1, 0, 2], 30),
        warp=Warp(temperature),
    )
    assert len(text) == 30
    assert drafter.hits[0] > 0


def test_lookahead_learns_a_loop():
    turn = LawTarget(lambda context: np.eye(7)[(context[-1] + 1) % 7], 7, order=1)
    drafter = Lookahead(4, 4, 2)
    text, trace = decode(turn, drafter, lossless, Fixed(drafter.depth), [0], 56)
    assert text == [(k + 1) % 7 for k in range(56)]
    assert trace.tau > 2.5
    assert max(step.drafted for step in trace.steps) <= 3 * (4 + 2)


def test_a_pool_forgets_the_oldest():
    pool = Phrases(2)
    for phrase in ([1], [2], [1], [3]):
        pool.add(0, phrase)
    assert pool.after(0, 5) == [(3,), (1,)]
    assert pool.after(0, 1) == [(3,)]
    assert pool.after(9, 5) == []
    pool.add(4, [])
    assert len(pool) == 2
    pool = Phrases()
    pool.learn([5, 6, 7, 8], 2, 1)
    assert pool.known == {6: {(7, 8): True}}
    pool.learn([5, 6, 7, 8], 2, 99)
    assert set(pool.known) == {5, 6}


# -- Ouroboros ------------------------------------------------------------------------


def test_a_warm_pool_is_used_by_the_next_prompt():
    target, draft = table_law(6, 1, 0.2, order=2), table_law(6, 1, 0.2, order=1)
    cold, passes = Warp(0.0), []
    pool = Phrases()
    for shared in (None, pool, pool):
        drafter = Ouroboros(draft, 1, 4, 3, shared)
        _, trace = decode(
            *(target, drafter, lossless, Fixed(drafter.depth), [1, 0, 3], 40),
            warp=cold,
        )
        passes.append(trace.passes)
    assert passes[0] == passes[1] >= passes[2]
    assert passes[2] < 40


def test_discarded_runs_that_the_target_agrees_with_are_kept():
    pool = Phrases()
    drafter = Ouroboros(table_law(6), 4, 3, 2, pool)
    drafter.session = session(table_law(6), [0])
    drafter.seen = 1
    tree = Tree([5, 2, 3, 4, 1], [-1, 0, 1, 2, 3])
    logits = np.zeros((6, 6))
    for row, token in enumerate((1, 2, 3, 0, 1, 0)):
        logits[row, token] = 1.0  # the target disagrees with 5 and with 4
    from lib.speculative import Out, Verdict

    drafter.observe(tree, Out(logits), Verdict([], 1, []))
    assert pool.known == {5: {(2, 3): True}, 4: {(1,): True}}


# -- counted text ---------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_datastore_counts(order):
    text = np.random.default_rng(0).integers(0, 4, 300).tolist()
    store = Datastore(text, 4, order, least=2)
    for context in itertools.product(range(4), repeat=2):
        found = store.after(context, 4)
        for k in range(min(order, 2), 0, -1):
            tail = list(context[-k:])
            counts = np.zeros(4)
            for at in range(len(text) - k):
                if text[at : at + k] == tail:
                    counts[text[at + k]] += 1
            best = np.argsort(-counts, kind="stable")
            expected = [
                (t, (counts[t] - 0.5) / counts.sum()) for t in best if counts[t] >= 2
            ]
            if expected:
                break
        assert [t for t, _ in found] == [t for t, _ in expected]
        assert [s for _, s in found] == pytest.approx([s for _, s in expected])
    assert store.after([], 3) == []
    assert store.bytes > 0


def test_a_datastores_tree_is_the_best_first_one():
    text = np.random.default_rng(1).integers(0, 4, 300).tolist()
    store, target = Datastore(text, 4, 2), table_law(4, 0)
    drafter = DatastoreTree(store, 7, 3)
    drafter.start(session(target))
    tree = drafter.propose(Budget(3))
    check_tree(tree, Budget(3, 7), 4)
    every = [
        g.worth
        for g in rooted_trees(lambda path: store.after([*PROMPT, *path], 3), 3, 3)
    ]
    small = best_first(lambda path: store.after([*PROMPT, *path], 3), 3, 3)
    assert small.worth == pytest.approx(max(every), abs=1e-12)


def test_trigrams_learn_and_explore():
    table = Trigrams()
    table.learn([1, 2, 3, 1, 2, 3, 1, 2, 0], 9)
    assert table.after(1, 2, 5) == [(3, 2 / 3), (0, 1 / 3)]
    assert table.after(0, 0, 5) == []
    for _ in range(9):
        table.drafted(1, 2, 3)
    assert [t for t, _ in table.after(1, 2, 5, explore=0.5)] == [0, 3]
    assert all(score <= 1 for _, score in table.after(1, 2, 5, explore=99))


@pytest.mark.parametrize("likely", [0, 2])
def test_an_adaptive_table_learns_the_text_it_sees(likely):
    turn = LawTarget(lambda context: np.eye(7)[(context[-1] + 1) % 7], 7, order=1)
    drafter = Adaptive(nodes=6, likely=likely)
    _, trace = decode(turn, drafter, lossless, Fixed(6), [0], 56)
    assert trace.steps[0].accepted == 0
    assert trace.steps[-2].accepted == 6
    counted = sum(sum(row.values()) for row in drafter.table.counts.values())
    # Without the target's own candidates every trigram of the text, once.
    assert (counted == 55) == (likely == 0)


# -- refusals -------------------------------------------------------------------------


REFUSED = {
    "OptTree, nodes": (lambda: OptTree(table_law(3), 0), "nodes is 0"),
    "OptTree, price": (lambda: OptTree(table_law(3), 4, -1.0), "price of a draft"),
    "OptTree, width": (lambda: OptTree(table_law(3), 4, width=0), "width is 0"),
    "shape": (lambda: ShapeDrafter(table_law(3), [-1, 3]), "before its child"),
    "window": (lambda: SpeculativeJacobi(0), "window is 0"),
    "lookahead, window": (lambda: Lookahead(0), "window is 0"),
    "lookahead, length": (lambda: Lookahead(3, 1), "length is 1"),
    "lookahead, guesses": (lambda: Lookahead(3, 3, 0), "guesses is 0"),
    "pool": (lambda: Phrases(0), "each is 0"),
    "ouroboros": (lambda: Ouroboros(table_law(3), 2, 0), "length is 0"),
    "datastore, bits": (lambda: Datastore([0, 1], 256, 9), "needs 80 bits"),
    "datastore, text": (lambda: Datastore([0, 5], 4, 1), "all of 0 to 3"),
    "store, nodes": (
        lambda: DatastoreTree(Datastore([0, 1, 0], 2, 1), 0),
        "nodes is 0",
    ),
    "adaptive": (lambda: Adaptive(explore=-1), "explore is -1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_gets_a_sentence(name):
    make, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        make()


def test_other_vocabularies_are_refused():
    target = table_law(4, 0)
    store = Datastore([0, 1, 2, 0, 1], 3, 1)
    for drafter in (
        OptTree(table_law(3)),
        ShapeDrafter(table_law(3), [-1]),
        Ouroboros(table_law(3)),
        DatastoreTree(store),
    ):
        with pytest.raises(ValueError, match="3 tokens"):
            drafter.start(session(target))


def test_nothing_is_drafted_where_nothing_may_be():
    target = table_law(4, 0)
    expected, _ = plain(target, PROMPT, 6, seed=3)
    same, _ = decode(target, NoDraft(), lossless, Fixed(0), PROMPT, 6, seed=3)
    assert same == expected
    for make in (
        lambda: OptTree(target),
        lambda: ShapeDrafter(target, [-1]),
        lambda: Lookahead(3, 3),
        lambda: Ouroboros(target),
        lambda: Adaptive(),
    ):
        text, trace = decode(target, make(), lossless, Fixed(0), PROMPT, 6, seed=3)
        assert text == expected
        assert trace.tau == 1
