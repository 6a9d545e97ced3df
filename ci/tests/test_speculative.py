"""The loop, caches, batches and refusals, on small transformers in float64."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch

from lib.kit.start import ROOT
from lib.language import Decoder, Sizes, Table, Transformer
from lib.speculative import (
    Blockwise,
    Budget,
    Confidence,
    Either,
    Fixed,
    Heuristic,
    LookUp,
    ModelDrafter,
    NeuralTarget,
    NoDraft,
    Random,
    Scripted,
    Session,
    Staged,
    TableDrafter,
    Tree,
    TreeDrafter,
    Warp,
    block_rule,
    check_tree,
    decode,
    decode_batch,
    k_seq,
    lossless,
    match,
    same_tokens,
    table_law,
    token_rule,
)
from lib.speculative.measuring import (
    Method,
    compared,
    costs,
    distinct,
    first_difference,
    margin,
    overview,
    plain,
)

V = 11
PROMPT = [3, 1, 4, 1, 5]


@functools.cache
def model(seed=0, layers=3, max_len=64, vocab=V):
    made = Transformer(Sizes(vocab, 16, layers, 2, max_len=max_len), seed).double()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim == 2:
                p *= 12  # far from uniform
    return NeuralTarget(Decoder(made.requires_grad_(False)))


def close_draft():
    """A draft that agrees with the target often, and not always."""
    made = Transformer(Sizes(V, 16, 3, 2, max_len=64), 0).double()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for p in made.parameters():
            if p.ndim == 2:
                p *= 12
                p += 0.05 * torch.randn(p.shape, generator=generator)
    return NeuralTarget(Decoder(made.requires_grad_(False)))


TEXT = np.random.default_rng(0).integers(0, V, 500)
TABLE = Table(TEXT, V, 3)
DRAFTERS = {
    "nothing": NoDraft,
    "model": lambda: ModelDrafter(close_draft()),
    "likeliest": lambda: ModelDrafter(close_draft(), greedy=True),
    "table": lambda: TableDrafter(TABLE),
    "blockwise": lambda: Blockwise(*(Table(TEXT, V, 2, ahead=k) for k in (1, 2, 3))),
    "look-up": lambda: LookUp(3),
    "either": lambda: Either(LookUp(3, 2), TableDrafter(TABLE)),
    "staged": lambda: Staged(
        close_draft(), ModelDrafter(model(5, 1)), lossless, Fixed(2)
    ),
    "staged look-up": lambda: Staged(close_draft(), LookUp(2), lossless, Fixed(2)),
    "tree": lambda: TreeDrafter(close_draft(), (3, 2)),
    "without": lambda: TreeDrafter(close_draft(), (3, 2, 1), False),
    "fixed tree": lambda: Scripted(
        lambda tokens, budget: (
            Tree([2, 7, 1, 3, 9], [-1, -1, 0, 0, 2])
            if budget.depth >= 3 and budget.nodes >= 5
            else Tree()
        )
    ),
}


# -- greedy text ----------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1, 2, 5])
@pytest.mark.parametrize("name", DRAFTERS)
def test_greedy_text_is_that_of_plain_decoding(name, gamma):
    cold = Warp(0.0)
    for prompt in (PROMPT, [7], [2, 2, 2, 2, 2, 2, 2]):
        expected, _ = plain(model(), prompt, 41, warp=cold)
        parts = (model(), DRAFTERS[name](), lossless, Fixed(gamma))
        found, trace = decode(*parts, prompt, 41, warp=cold)
        assert found == expected
        assert trace.emitted == 41
        assert trace.passes == len(trace.steps) <= 41


def test_a_draft_that_is_the_target_is_always_accepted():
    for warp in (Warp(), Warp(0.6, 5), Warp(0.0)):
        parts = (model(), ModelDrafter(model()), lossless, Fixed(3))
        text, trace = decode(*parts, PROMPT, 40, warp=warp)
        assert trace.acceptance == 1
        assert trace.tau == 4
        assert len(text) == 40


def test_without_a_draft_the_texts_are_those_of_plain_decoding():
    for seed in range(3):
        expected, _ = plain(model(), PROMPT, 30, seed=seed)
        found, trace = decode(
            model(), NoDraft(), lossless, Fixed(4), PROMPT, 30, seed=seed
        )
        assert found == expected
        assert trace.tau == 1
        assert np.isnan(trace.acceptance)


@pytest.mark.parametrize("rule", [token_rule, block_rule, lossless])
def test_the_first_tokens_have_the_targets_law(rule):
    """600 runs against the exact law: chi-square."""
    from scipy.stats import chisquare

    warp = Warp(1.0, top_k=3)
    law = {}
    for a in range(V):
        state = model().start(PROMPT)
        p = warp(model().forward(state, PROMPT[-1], Tree()).logits)[0]
        if p[a] == 0:
            continue
        text = [*PROMPT, a]
        q = warp(model().forward(model().start(text), a, Tree()).logits)[0]
        law |= {(a, b): p[a] * q[b] for b in range(V) if q[b] > 0}
    draft, runs = close_draft(), 600
    counts = dict.fromkeys(law, 0)
    for seed in range(runs):
        text, _ = decode(
            *(model(), ModelDrafter(draft), rule, Fixed(2), PROMPT, 2),
            warp=warp,
            seed=seed,
        )
        counts[tuple(text)] += 1
    expected = np.array([law[key] for key in counts]) * runs
    assert chisquare(list(counts.values()), expected).pvalue > 1e-3


# -- caches ---------------------------------------------------------------------------


def assert_like_fresh(target, state, tokens):
    """The committed rows are those of reading the text at once."""
    fresh = target.start(tokens)
    assert target.rows(state) == target.rows(fresh) == len(tokens) - 1
    for found, expected in zip(state.held(0), fresh.held(0)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["model", "tree", "without", "fixed tree", "look-up"])
@pytest.mark.parametrize("gamma", [1, 3])
def test_caches_are_those_of_a_fresh_prefill(name, gamma):
    seen = set()

    class Watching:
        def __init__(self, inner):
            self.inner = inner

        def start(self, session):
            self.session = session
            self.inner.start(session)

        def propose(self, budget):
            assert_like_fresh(model(), self.session.state, self.session.tokens)
            tree = self.inner.propose(budget)
            reader = getattr(self.inner, "reader", None)
            if reader is not None and len(reader.read) > 0:
                own = close_draft()
                fresh = own.start([*reader.read, 0])
                for found, expected in zip(reader.state.held(0), fresh.held(0)):
                    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
            return tree

        def observe(self, tree, out, verdict):
            seen.add((len(tree), len(verdict.path)))
            self.inner.observe(tree, out, verdict)

    for seed in range(4):
        watching = Watching(DRAFTERS[name]())
        decode(model(), watching, lossless, Fixed(gamma), PROMPT, 25, seed=seed)
    if name == "model":  # rejected whole, accepted whole
        assert {(gamma, 0), (gamma, gamma)} <= seen


def test_the_context_can_be_filled_to_its_last_token():
    small = model(0, 2, max_len=16)
    for gamma in (3, 20):
        text, _ = decode(
            small,
            ModelDrafter(model(1, 1, max_len=12)),
            lossless,
            Fixed(gamma),
            [1],
            15,
        )
        assert len(text) == 15
    with pytest.raises(ValueError, match=r"longer than the context of 16"):
        decode(small, NoDraft(), lossless, Fixed(1), [1], 16)


GROWTH = """
import resource
import torch
from lib.language import Decoder, Sizes, Transformer
from lib.speculative import Fixed, ModelDrafter, NeuralTarget, Warp, decode, lossless

torch.set_num_threads(1)


def target(seed):
    made = Transformer(Sizes(16, 16, 1, 2, max_len=10_200), seed)
    return NeuralTarget(Decoder(made.requires_grad_(False)))


peaks = []


def clock():
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return 0.0


parts = (target(0), ModelDrafter(target(0)), lossless, Fixed(8), [1, 2, 3])
text, trace = decode(*parts, 10_000, warp=Warp(1.5), clock=clock)
print(len(text), trace.passes, peaks[len(peaks) // 10], peaks[-1])
"""


def test_memory_stays_flat_over_ten_thousand_tokens():
    """The caches lie there from the start: no round may add to the peak."""
    pytest.importorskip("resource", reason="no resource usage on Windows")
    run = subprocess.run(
        [sys.executable, "-c", GROWTH],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    tokens, passes, early, late = map(int, run.stdout.split())
    assert tokens == 10_000
    assert passes < 2000
    unit = 1024**2 if sys.platform == "darwin" else 1024  # of ru_maxrss, in a MB
    assert (late - early) / unit < 8


def test_memory_does_not_grow_with_what_is_rejected():
    """The cache holds the context, however often drafts were written and dropped."""
    target = model()
    state = target.start(PROMPT, 8)
    tree = Tree([1, 2, 3])
    target.forward(state, PROMPT[-1], tree)
    held = state.bytes
    for _ in range(500):
        target.forward(state, PROMPT[-1], tree)
    assert state.bytes == held
    assert target.rows(state) == len(PROMPT) - 1


# -- ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nothing", "likeliest", "model", "look-up", "tree"])
def test_a_text_ends_with_its_end_token(name):
    cold = Warp(0.0)
    expected, _ = plain(model(), PROMPT, 30, warp=cold)
    eos = expected[7]
    short = expected[: expected.index(eos) + 1]
    parts = (model(), DRAFTERS[name](), lossless, Fixed(4), PROMPT, 30)
    found, trace = decode(*parts, warp=cold, eos=eos)
    assert found == short
    assert trace.emitted == len(short)
    assert plain(model(), PROMPT, 30, warp=cold, eos=eos)[0] == short


def test_no_token_and_one_token():
    assert decode(model(), NoDraft(), lossless, Fixed(2), PROMPT, 0)[0] == []
    text, trace = decode(
        model(), ModelDrafter(close_draft()), lossless, Fixed(9), PROMPT, 1
    )
    assert len(text) == 1
    assert trace.steps[0].drafted == 0  # a pass gives one token by itself


# -- drafters -------------------------------------------------------------------------


def session(tokens, target=None):
    target = target or model()
    return Session(target, None, list(tokens), Warp(), Random(0), len(tokens))


def test_look_up_copies_the_latest_longest_match():
    drafter = LookUp(3)
    drafter.start(session([1, 2, 3, 4, 2, 3, 5, 9, 2, 3]))
    assert drafter.propose(Budget(3)).tokens == [5, 9, 2]  # "2 3" stood last before 5
    drafter.start(session([1, 2, 1, 2]))
    assert drafter.propose(Budget(5)).tokens == [1, 2, 1, 2, 1]  # into what it copies
    drafter.start(session([1, 2, 3]))
    assert len(drafter.propose(Budget(5))) == 0
    strict = LookUp(4, 2)
    strict.start(session([1, 2, 3, 9, 3]))
    assert len(strict.propose(Budget(2))) == 0


def test_look_up_learns_what_is_committed():
    drafter, own = LookUp(2), session([1, 2])
    drafter.start(own)
    own.tokens += [3, 1, 2]
    drafter.observe(Tree(), None, None)
    assert drafter.propose(Budget(2)).tokens == [3, 1]


def test_a_draft_stops_where_it_is_unsure():
    sure = Confidence(0.2, 6)
    parts = (model(), ModelDrafter(close_draft()), lossless)
    _, trace = decode(*parts, sure, PROMPT, 40, seed=2)
    lengths = {step.drafted for step in trace.steps}
    assert len(lengths) > 1
    assert max(lengths) <= 6
    _, always = decode(*parts, Confidence(0.0, 6), PROMPT, 40, seed=2)
    assert {step.drafted for step in always.steps[:-2]} == {6}


def test_the_heuristic_grows_and_shrinks():
    own = Heuristic(2, 1, 4)
    verdicts = [([0, 1], 4), ([0, 1, 2, 3], 4), ([0], 3)]
    for path, after in verdicts:
        tree = Tree([0] * own.budget().depth)
        own.update(tree, type("V", (), {"path": path})(), 0.0)
        assert own.gamma == after
    own.update(Tree(), None, 0.0)
    assert own.gamma == 3


def test_a_staged_draft_counts_its_passes():
    inner = Staged(model(), ModelDrafter(model()), lossless, Fixed(3))
    _, trace = decode(model(), inner, lossless, Fixed(4), PROMPT, 40)
    assert trace.acceptance == 1  # the draft is the target
    assert inner.passes == sum(1 for step in trace.steps if step.drafted)


# -- batches --------------------------------------------------------------------------


PROMPTS = [PROMPT, [7], [2, 9, 2, 9, 2, 9, 2], [0, 1]]


@pytest.mark.parametrize("warp", [Warp(), Warp(0.0)])
@pytest.mark.parametrize("name", DRAFTERS)
def test_texts_of_a_batch_are_those_of_separate_runs(name, warp):
    texts, traces, passes = decode_batch(
        model().model,
        DRAFTERS[name],
        lossless,
        lambda: Fixed(3),
        PROMPTS,
        20,
        warp=warp,
        eos=5,
    )
    for seed, (prompt, text, trace) in enumerate(zip(PROMPTS, texts, traces)):
        parts = (model(), DRAFTERS[name](), lossless, Fixed(3), prompt, 20)
        alone, own = decode(*parts, warp=warp, seed=seed, eos=5)
        assert text == alone
        assert [s[:4] for s in trace.steps] == [s[:4] for s in own.steps]
    assert passes == max(trace.passes for trace in traces)


def test_a_batch_needs_a_seed_for_each_prompt():
    with pytest.raises(ValueError, match="2 seeds were given for 4 prompts"):
        decode_batch(
            model().model, NoDraft, lossless, lambda: Fixed(1), PROMPTS, 3, seeds=[1, 2]
        )
    with pytest.raises(ValueError, match="No prompts"):
        decode_batch(model().model, NoDraft, lossless, lambda: Fixed(1), [], 3)


# -- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (dict(prompt=[]), "The prompt is empty"),
        (dict(prompt=[V]), "knows 0 to 10"),
        (dict(most=-1), "most is -1"),
        (dict(most=100), "longer than the context of 64"),
        (dict(drafter=ModelDrafter(model(vocab=9))), "draft knows 9 tokens"),
        (dict(drafter=TableDrafter(Table([0, 1] * 9, 4, 2))), "table counts 4 tokens"),
    ],
)
def test_bad_input_gets_a_sentence(given, sentence):
    usual = dict(drafter=NoDraft(), prompt=PROMPT, most=5) | given
    with pytest.raises(ValueError, match=sentence):
        decode(
            model(),
            usual["drafter"],
            lossless,
            Fixed(2),
            usual["prompt"],
            usual["most"],
        )


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        (Tree([1] * 9), "budget allows 4"),
        (Tree([1, 2, 3, 4], [-1, 0, 1, 2]), "3|4 deep"),
        (Tree([1, 2], [-1, 1]), "not in order"),
        (Tree([1, 2], [-1]), "not in order"),
        (Tree([99]), "token \\[99\\]"),
        (Tree([1, 1], [-1, -1]), "same token"),
        (Tree([1], q=[np.eye(V)[2]], drawn="iid"), "not the law"),
        (Tree([1], drawn="iid"), "lacks q"),
        (Tree([1], q=[np.eye(V)[1]]), "has q"),
        (Tree([1], drawn="sorted"), "drawn is 'sorted'"),
    ],
)
def test_trees_that_no_honest_drafter_makes(tree, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_tree(tree, Budget(3, 4), V)


def test_rules_say_which_draft_they_read():
    p = np.full((3, V), 1 / V)
    with pytest.raises(ValueError, match="block_rule reads a chain"):
        block_rule(Tree([1, 2]), p, Random(0))
    law = np.full(V, 1 / V)
    two = Tree([1, 2], [-1, -1], [law, law], "without")
    with pytest.raises(ValueError, match="a tree"):
        token_rule(two, p, Random(0))
    with pytest.raises(ValueError, match="independently"):
        k_seq(two, p, Random(0))
    assert match(Tree(), p[:1], Random(0)).path == []


def test_equal_sizes_are_not_equal_tokenizers():
    tables = (b"", b"a", b"b"), (b"", b"b", b"a")
    with pytest.raises(ValueError, match="first at token"):
        same_tokens(table_law(3), table_law(3), tables)
    same_tokens(table_law(3), table_law(3), (tables[0], tables[0]))


# -- measuring ------------------------------------------------------------------------


def test_methods_are_compared_in_turns():
    methods = [
        Method("draft", lambda: ModelDrafter(close_draft()), lambda: Fixed(2)),
        Method("look-up", LookUp, lambda: Fixed(2), parameters=7, bytes=9),
    ]
    seen = []
    runs = compared(
        methods,
        model(),
        [PROMPT, [7]],
        12,
        warp=Warp(0.0),
        on_step=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(k, 6) for k in range(1, 7)]
    assert len(runs) == 6
    assert runs.groupby("prompt")["text"].nunique().tolist() == [1, 1]
    plain_rows = runs[runs["method"] == "plain"]
    assert (plain_rows["ratio"] == 1).all()
    table = overview(runs, methods)
    assert table.index.tolist()[0] == "plain"
    assert table.loc["look-up", "parameters"] == 7
    assert table.loc["draft", "tau"] >= 1
    assert (table["low"] <= table["high"]).all()
    with pytest.raises(ValueError, match="different names"):
        compared([methods[0], methods[0]], model(), [PROMPT], 3)


def test_traces_add_up():
    parts = (model(), ModelDrafter(close_draft()), lossless, Fixed(3), PROMPT, 31)
    text, trace = decode(*parts, seed=3, keep=True)
    own = trace.summary()
    assert own["tau"] == pytest.approx(31 / trace.passes)
    drafted = sum(step.drafted for step in trace.steps)
    assert own["drafted"] == pytest.approx(drafted / 31)
    assert own["target_tokens"] == pytest.approx((drafted + trace.passes) / 31)
    assert own["seconds"] * 31 == pytest.approx(trace.seconds)
    spelled = []
    for tree, verdict in trace.rounds:
        spelled += [tree.tokens[node] for node in verdict.path] + [verdict.token]
        kinds = [event.kind for event in verdict.events]
        assert kinds.count("accepted") == len(verdict.path)
        assert kinds[-1] == ("bonus" if len(verdict.path) == len(tree) else "resampled")
        for event in verdict.events[:-1]:
            assert (event.u * event.q <= event.p) == (event.kind == "accepted")
    assert spelled == text


def test_small_measures():
    assert distinct([1, 2, 3, 4]) == 1
    assert distinct([1, 1, 1, 1, 1]) == pytest.approx(1 / 3)
    assert distinct([1, 2]) == 1
    assert margin(np.array([1.0, 5.0, 4.5])) == pytest.approx(0.5)
    times = costs(model(), 16, (1, 2, 3), 3)
    assert set(times) == {1, 2, 3}
    assert all(value > 0 for value in times.values())
    assert first_difference(model(), PROMPT, [1, 2], [1, 2]) is None
    found = first_difference(model(), PROMPT, [1, 2], [1, 3])
    assert found["place"] == 1
    assert found["margin"] > 0
