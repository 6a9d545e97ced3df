"""Tree drafters on small transformers in float64: strings, passes, caches, batches."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from lib.draft_trees import (
    Adaptive,
    Datastore,
    DatastoreTree,
    Lookahead,
    OptTree,
    Ouroboros,
    ShapeDrafter,
    SpeculativeJacobi,
    binary,
    jacobi,
    merged,
    window_paths,
)
from lib.language import Decoder, Sizes, Transformer, path_to
from lib.speculative import (
    Budget,
    Fixed,
    NeuralTarget,
    Random,
    Session,
    Tree,
    Warp,
    check_tree,
    decode,
    decode_batch,
    lossless,
    match,
    plain,
)

V = 11
PROMPT = [3, 1, 4, 1, 5]
TIGHT = 1e-12


@functools.cache
def model(noise=0.0, layers=3):
    made = Transformer(Sizes(V, 16, layers, 2, max_len=96), 0).double()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for p in made.parameters():
            if p.ndim == 2:
                p *= 12  # far from uniform
                p += noise * torch.randn(p.shape, generator=generator)
    return NeuralTarget(Decoder(made.requires_grad_(False)))


def draft():
    """Agrees with the target often, and not always."""
    return model(0.05)


TEXT = np.random.default_rng(0).integers(0, V, 500)
STORE = Datastore(TEXT, V, 2, 1)
DRAFTERS = {
    "OPT-Tree": lambda: OptTree(draft(), 8),
    "OPT-Tree, price": lambda: OptTree(draft(), 8, 0.3, 3),
    "binary": lambda: ShapeDrafter(draft(), binary(6)),
    "binary, fixed": lambda: ShapeDrafter(draft(), binary(6), False),
    "window": lambda: SpeculativeJacobi(4),
    "Lookahead": lambda: Lookahead(3, 4, 3),
    "Ouroboros": lambda: Ouroboros(draft(), 2, 3, 3),
    "datastore": lambda: DatastoreTree(STORE, 8),
    "adaptive": lambda: Adaptive(nodes=8, explore=0.5, likely=2),
}


# -- greedy text ----------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAFTERS)
def test_greedy_text_is_that_of_plain_decoding(name):
    cold = Warp(0.0)
    for prompt, depth in ((PROMPT, 7), ([7], 3), ([2] * 7, 1)):
        expected, _ = plain(model(), prompt, 41, warp=cold)
        parts = (model(), DRAFTERS[name](), lossless, Fixed(depth))
        found, trace = decode(*parts, prompt, 41, warp=cold)
        assert found == expected
        assert trace.emitted == 41


@pytest.mark.parametrize("block", [1, 4, 7, 30])
def test_jacobi_gives_the_greedy_text(block):
    expected, _ = plain(model(), PROMPT, 30, warp=Warp(0.0))
    found = jacobi(model(), PROMPT, 30, block)
    assert found.tokens == expected
    assert found.passes <= 30


def test_a_text_may_fill_the_context():
    """Trees shrink where the context ends: 5 + 91 = 96 tokens."""
    cold = Warp(0.0)
    expected, _ = plain(model(), PROMPT, 91, warp=cold)
    for name in ("OPT-Tree", "binary", "Lookahead", "Ouroboros"):
        parts = (model(), DRAFTERS[name](), lossless, Fixed(7))
        assert decode(*parts, PROMPT, 91, warp=cold)[0] == expected
    assert jacobi(model(), PROMPT, 91, 16).tokens == expected


# -- one pass over a tree -------------------------------------------------------------


class Watching:
    """Checks every tree, its pass, and the caches of both sides."""

    def __init__(self, inner):
        self.inner, self.sizes = inner, set()

    def start(self, session):
        self.session = session
        self.inner.start(session)

    def propose(self, budget):
        target, text = self.session.target, self.session.tokens
        fresh = target.start(text)
        assert target.rows(self.session.state) == len(text) - 1
        alike(self.session.state, fresh)
        reader = getattr(self.inner, "reader", None)
        if reader is not None and reader.read:
            alike(reader.state, reader.model.start([*reader.read, 0]))
        self.text = list(text)
        tree = self.inner.propose(budget)
        check_tree(tree, budget, V)
        return tree

    def observe(self, tree, out, verdict):
        """The tree's pass is the chains' passes along all its paths."""
        target = self.session.target
        parents = range(-1, len(tree) - 1) if tree.parents is None else tree.parents
        state = target.start(self.text)
        for node in range(len(tree)):
            path = [tree.tokens[k] for k in path_to(parents, node)]
            alone = target.forward(state, self.text[-1], Tree(path)).logits[-1]
            np.testing.assert_allclose(out.logits[node + 1], alone, atol=1e-11)
        self.sizes.add((len(tree), len(verdict.path)))
        self.inner.observe(tree, out, verdict)


def alike(state, fresh):
    for found, expected in zip(state.held(0), fresh.held(0)):
        torch.testing.assert_close(found, expected, rtol=0, atol=TIGHT)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", DRAFTERS)
def test_a_trees_pass_is_that_of_its_chains_and_caches_are_fresh(name, temperature):
    watched = Watching(DRAFTERS[name]())
    parts = (model(), watched, lossless, Fixed(5), PROMPT, 25)
    decode(*parts, warp=Warp(temperature), seed=1)
    accepted = {path for _, path in watched.sizes}
    assert len(accepted) > 1 or name in ("datastore", "window")


@pytest.mark.parametrize(("levels", "width"), [(2, 4), (3, 3)])
def test_the_merged_window_is_separate_calls(levels, width):
    """Window and phrases in one pass give what each gives alone."""
    rng = np.random.default_rng(levels)
    rows = rng.integers(0, V, (levels, width)).tolist()
    phrases = rng.integers(0, V, (4, levels)).tolist()
    target = model()
    state = target.start(PROMPT)
    both = merged([*phrases, *window_paths(rows)])
    whole = target.forward(state, PROMPT[-1], both).logits
    for paths in (phrases, window_paths(rows)):
        alone = merged(paths)
        part = target.forward(state, PROMPT[-1], alone).logits
        for path, node in of(alone).items():
            np.testing.assert_allclose(
                part[node + 1], whole[of(both)[path] + 1], atol=1e-11
            )


def of(tree):
    from lib.draft_trees import places

    return places(tree)


def test_siblings_may_be_permuted():
    target, state = model(), model().start(PROMPT)
    tree = Tree([1, 2, 3, 4, 5], [-1, -1, 0, 0, 1])
    other = Tree([2, 1, 5, 4, 3], [-1, -1, 0, 1, 1])
    logits = [target.forward(state, PROMPT[-1], t).logits for t in (tree, other)]
    order = [0, 2, 1, 5, 4, 3]
    np.testing.assert_allclose(logits[0], logits[1][order], atol=1e-11)


# -- laws and batches -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["OPT-Tree", "binary", "window", "Lookahead"])
def test_the_first_token_has_the_targets_law(name):
    """200 runs against the exact law: chi-square."""
    from scipy.stats import chisquare

    warp, runs, drafter = Warp(1.0, top_k=3), 200, DRAFTERS[name]
    state = model().start(PROMPT)
    p = warp(model().forward(state, PROMPT[-1], Tree()).logits)[0]
    counts = np.zeros(V)
    dice = Random(5)
    for _ in range(runs):
        own = drafter()
        own.start(Session(model(), state, list(PROMPT), warp, dice, len(PROMPT)))
        tree = own.propose(Budget(2, 6))
        out = model().forward(state, PROMPT[-1], tree)
        verdict = lossless(tree, warp(out.logits), dice)
        first = tree.tokens[verdict.path[0]] if verdict.path else verdict.token
        counts[first] += 1
    assert counts[p == 0].sum() == 0
    assert chisquare(counts[p > 0], p[p > 0] * runs).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", DRAFTERS)
def test_a_batch_is_its_texts_alone(name, temperature):
    prompts = [PROMPT, [7], [2, 9, 2, 9, 2, 9, 2]]
    warp = Warp(temperature)
    texts, traces, passes = decode_batch(
        *(model().model, DRAFTERS[name], lossless, lambda: Fixed(5), prompts, 20),
        warp=warp,
    )
    for seed, (prompt, text, trace) in enumerate(zip(prompts, texts, traces)):
        alone, own = decode(
            *(model(), DRAFTERS[name](), lossless, Fixed(5), prompt, 20),
            warp=warp,
            seed=seed,
        )
        assert text == alone
        assert [s.drafted for s in trace.steps] == [s.drafted for s in own.steps]
    assert passes == max(trace.passes for trace in traces)


def test_a_tree_of_the_target_itself_emits_its_depth_when_greedy():
    parts = (model(), OptTree(model(), 40, width=2), match, Fixed(3), PROMPT, 40)
    trace = decode(*parts, warp=Warp(0.0))[1]
    assert all(step.accepted >= 1 for step in trace.steps[:-1])
    assert trace.tau > 2.5
