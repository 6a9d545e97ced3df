"""Self-drafters lose nothing: laws, texts, caches and refusals, in float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from lib.language import Decoder, Sizes, Skip, Transformer
from lib.self_speculative import (
    Adapter,
    AdaptiveThreshold,
    ClaspDrafter,
    CostAware,
    Eagle,
    ExitDrafter,
    ExitTarget,
    HeadDrafter,
    KangarooDrafter,
    MaskDrafter,
    Masks,
    Medusa,
    Recurrent,
    SkipDrafter,
    StreamTarget,
    SwiftDrafter,
    Thompson,
    early,
    even,
    features,
)
from lib.speculative import (
    Budget,
    Confidence,
    Either,
    Fixed,
    LookUp,
    ModelDrafter,
    NeuralTarget,
    NoDraft,
    Random,
    Session,
    Staged,
    Tree,
    Warp,
    completed,
    decode,
    decode_batch,
    decoded_law,
    far,
    lossless,
    plain,
    step_law,
    string_law,
    table_law,
)

V, LAYERS = 11, 4
PROMPT = [3, 1, 4, 1, 5]
TIGHT = 1e-12

pytestmark = pytest.mark.usefixtures("one_thread")


@functools.cache
def transformer(vocab=V, layers=LAYERS, max_len=64, seed=0, size=12, behind=None):
    """Random weights, far from uniform; layers behind `behind` matter little."""
    made = Transformer(Sizes(vocab, 16, layers, 2, max_len=max_len), seed).double()
    with torch.no_grad():
        for name, p in made.named_parameters():
            if p.ndim == 2:
                p *= size
            number = name.split(".")[1] if name.startswith("layers") else "0"
            if behind is not None and int(number) >= behind and p.ndim == 2:
                p *= 0.4
    return made.requires_grad_(False)


@functools.cache
def decoder(**how):
    return Decoder(transformer(**how))


def shaken(head, size=0.05):
    """A head whose zeros are gone: its guesses differ from the model's."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for p in head.parameters():
            p += size * torch.randn(p.shape, generator=generator).to(p)
    return head


@functools.cache
def head(kind, **how):
    model = transformer(**how)
    made = {
        "medusa": lambda: Medusa(model, 3),
        "recurrent": lambda: Recurrent(model, 2),
        "eagle": lambda: Eagle(model),
        "adapter": lambda: Adapter(model, 2),
        "masks": lambda: Masks(model, 2, 2),
    }[kind]()
    return shaken(made).requires_grad_(False)


SUBLAYERS = Skip(frozenset({1, 3}), frozenset({2}))

# name: (target, drafter), both made for the decoder of `how`
PAIRS = {
    "sub-layers": (NeuralTarget, lambda **how: SkipDrafter(SUBLAYERS)),
    "even": (NeuralTarget, lambda **how: SkipDrafter(even(LAYERS, 3))),
    "one layer left": (NeuralTarget, lambda **how: SkipDrafter(even(LAYERS, 1))),
    "likeliest": (NeuralTarget, lambda **how: SkipDrafter(SUBLAYERS, greedy=True)),
    "exit": (lambda m: ExitTarget(m, 2), lambda **how: ExitDrafter(2)),
    "exit, read again": (NeuralTarget, lambda **how: ExitDrafter(3)),
    "exit or look-up": (
        lambda m: ExitTarget(m, 1),
        lambda **how: Either(LookUp(3, 2), ExitDrafter(1)),
    ),
    "clasp": (StreamTarget, lambda **how: ClaspDrafter(2)),
    "swift": (
        NeuralTarget,
        lambda **how: SwiftDrafter(SUBLAYERS, window=4, every=1, patience=3),
    ),
    "kangaroo": (
        lambda m: ExitTarget(m, 2),
        lambda **how: KangarooDrafter(head("adapter", **how)),
    ),
    "medusa": (
        lambda m: NeuralTarget(m, hidden=True),
        lambda **how: HeadDrafter(head("medusa", **how)),
    ),
    "blockwise": (
        lambda m: NeuralTarget(m, hidden=True),
        lambda **how: HeadDrafter(head("medusa", **how), greedy=True),
    ),
    "recurrent": (
        lambda m: NeuralTarget(m, hidden=True),
        lambda **how: HeadDrafter(head("recurrent", **how)),
    ),
    "eagle": (
        lambda m: NeuralTarget(m, hidden=True),
        lambda **how: HeadDrafter(head("eagle", **how)),
    ),
    "masks": (NeuralTarget, lambda **how: MaskDrafter(head("masks", **how))),
}


def pair(name, **how):
    target, drafter = PAIRS[name]
    return target(decoder(**how)), drafter(**how)


# -- the law, over all outcomes of chance ---------------------------------------------


@pytest.mark.parametrize("warp", [Warp(), Warp(0.7, top_k=2)])
@pytest.mark.parametrize("name", PAIRS)
def test_a_round_keeps_the_law(name, warp):
    how, prompt = dict(vocab=3, max_len=16), [1, 0, 2]
    target = PAIRS[name][0](decoder(**how))
    law = step_law(
        target,
        lambda: PAIRS[name][1](**how),
        lossless,
        prompt,
        Budget(2),
        warp,
    )
    exact = string_law(NeuralTarget(decoder(**how)), prompt, 3, warp)
    assert far(completed(law, target, prompt, 3, warp), exact) < TIGHT
    if name not in ("likeliest", "blockwise") or warp.top_k is None:
        assert max(map(len, law)) == 3  # two drafted tokens can pass


class Misnamed:
    """Draws from its law and names the uniform one: a mistake."""

    def __init__(self, inner):
        self.inner = inner

    def start(self, session):
        self.inner.start(session)

    def propose(self, budget):
        tree = self.inner.propose(budget)
        tree.q = [np.full(len(law), 1 / len(law)) for law in tree.q]
        return tree


@pytest.mark.parametrize("name", ["sub-layers", "kangaroo", "medusa", "masks"])
def test_a_law_that_was_not_drawn_from_is_seen(name):
    how, prompt = dict(vocab=3, max_len=16), [1, 0, 2]
    target = PAIRS[name][0](decoder(**how))
    wrong = step_law(
        target,
        lambda: Misnamed(PAIRS[name][1](**how)),
        lossless,
        prompt,
        Budget(2),
    )
    exact = string_law(target, prompt, 3)
    assert far(completed(wrong, target, prompt, 3), exact) > 0.01


@pytest.mark.parametrize("name", PAIRS)
def test_a_whole_decoding_keeps_the_law(name):
    """Over all rounds, so that what drafters learn from verdicts is in it."""
    how, prompt = dict(vocab=2, max_len=16), [1, 0]
    target = PAIRS[name][0](decoder(**how))
    found = decoded_law(
        target, lambda: PAIRS[name][1](**how), lossless, lambda: Fixed(1), prompt, 4
    )
    exact = string_law(NeuralTarget(decoder(**how)), prompt, 4)
    assert far(found, exact) < TIGHT


@pytest.mark.parametrize("name", ["sub-layers", "exit", "medusa", "kangaroo"])
def test_lengths_that_learn_keep_the_law(name):
    how, prompt = dict(vocab=2, max_len=16), [1, 0]
    for controller in (
        lambda: Confidence(0.6, 2, product=False),
        lambda: AdaptiveThreshold(most=2),
        lambda: Thompson(2),
        lambda: CostAware(2),
    ):
        target = PAIRS[name][0](decoder(**how))
        make = functools.partial(PAIRS[name][1], **how)
        found = decoded_law(target, make, lossless, controller, prompt, 3)
        assert far(found, string_law(target, prompt, 3)) < TIGHT


# -- greedy texts ---------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1, 2, 5])
@pytest.mark.parametrize("name", PAIRS)
def test_greedy_text_is_that_of_plain_decoding(name, gamma):
    cold = Warp(0.0)
    for prompt in (PROMPT, [7], [2] * 7):
        target, drafter = pair(name)
        expected, _ = plain(NeuralTarget(decoder()), prompt, 31, warp=cold)
        found, trace = decode(
            target, drafter, lossless, Fixed(gamma), prompt, 31, warp=cold
        )
        assert found == expected
        assert trace.emitted == 31
        assert max(step.drafted for step in trace.steps) <= gamma


@pytest.mark.parametrize("name", PAIRS)
def test_greedy_text_with_a_draft_that_stops_and_an_end_token(name):
    cold = Warp(0.0)
    expected, _ = plain(NeuralTarget(decoder()), PROMPT, 30, warp=cold)
    eos = expected[7]
    short = expected[: expected.index(eos) + 1]
    target, drafter = pair(name)
    parts = (target, drafter, lossless, Confidence(0.4, 4, product=False), PROMPT, 30)
    assert decode(*parts, warp=cold)[0] == expected
    assert decode(*parts, warp=cold, eos=eos)[0] == short


@pytest.mark.parametrize("name", PAIRS)
def test_the_context_can_be_filled_to_its_last_token(name):
    how, cold = dict(max_len=16), Warp(0.0)
    target, drafter = pair(name, **how)
    text, _ = decode(target, drafter, lossless, Fixed(6), [1, 2], 14, warp=cold)
    assert text == plain(NeuralTarget(decoder(**how)), [1, 2], 14, warp=cold)[0]
    with pytest.raises(ValueError, match="longer than the context of 16"):
        decode(target, drafter, lossless, Fixed(6), [1] * 17, 1)


# -- caches ---------------------------------------------------------------------------


def assert_like_fresh(target, state, tokens):
    """The committed rows are those of reading the text at once."""
    fresh = target.start(tokens)
    assert target.rows(state) == len(tokens) - 1
    for found, expected in zip(state.held(0), fresh.held(0)):
        torch.testing.assert_close(found, expected, rtol=0, atol=TIGHT)


def assert_own_like_fresh(drafter, tokens):
    """A head's own cache has the rows that hearing the whole text gives it."""
    if isinstance(drafter, HeadDrafter) and drafter.head.kind == "eagle":
        model, own = drafter.model, drafter.state.cache
        with torch.inference_mode():
            fresh = drafter.head.begin(model, len(tokens))
            x = features(model, tokens[:-1])
            drafter.head.hear(model, fresh, x, torch.tensor(tokens[1:]))
        fresh = fresh.cache
    elif isinstance(drafter, KangarooDrafter):
        own, fresh = drafter.cache, drafter.own.cache(1, len(tokens))
        x = features(drafter.model, tokens[:-1], drafter.adapter.exit)
        with torch.inference_mode():
            drafter.own.extend(fresh, None, x=x[None], skip=Skip(mlp=frozenset({0})))
        fresh.rows = [len(tokens) - 1]
    else:
        return
    assert own.rows == fresh.rows == [len(tokens) - 1]
    for found, expected in zip(own.held(0), fresh.held(0)):
        torch.testing.assert_close(found, expected, rtol=0, atol=TIGHT)


class Watching:
    """Checks all caches before every draft and behind it."""

    def __init__(self, inner):
        self.inner, self.seen = inner, set()

    def start(self, session):
        self.session = session
        self.inner.start(session)

    def propose(self, budget):
        tokens = self.session.tokens
        assert_like_fresh(self.session.target, self.session.state, tokens)
        tree = self.inner.propose(budget)
        if len(tree):
            assert_own_like_fresh(self.inner, tokens)
        return tree

    def observe(self, tree, out, verdict):
        self.seen.add((len(tree), len(verdict.path)))
        self.inner.observe(tree, out, verdict)


@pytest.mark.parametrize("gamma", [1, 3])
@pytest.mark.parametrize("name", PAIRS)
def test_caches_are_those_of_a_fresh_prefill(name, gamma):
    seen = set()
    for seed in range(6):
        how = dict(behind=2) if seed % 2 else {}
        target, drafter = pair(name, **how)
        watching = Watching(drafter)
        warp = Warp((2.0, 1.0, 0.3)[seed // 2])
        parts = (target, watching, lossless, Fixed(gamma), PROMPT[: 1 + seed % 5])
        decode(*parts, 25, warp=warp, seed=seed)
        seen |= watching.seen
    # rejected whole, accepted whole
    most = max(drafted for drafted, _ in seen)
    assert most == gamma
    assert {(gamma, 0), (gamma, gamma)} <= seen


# -- one pass in two parts ------------------------------------------------------------


@pytest.mark.parametrize("given", [0, 1, 2, 3])
def test_verification_from_the_exit_is_the_full_pass(given):
    """However many of the streams at the exit the draft has handed on."""
    model = decoder()
    full, parts = NeuralTarget(model), ExitTarget(model, 2)
    one, two = full.start(PROMPT), parts.start(PROMPT)
    tokens = [7, 2]
    left = [
        model.extend(two, torch.tensor([[token]]), behind=k, stop=2).hidden[0]
        for k, token in enumerate([PROMPT[-1], *tokens][:given])
    ]
    extra = torch.cat(left) if left else None
    expected = full.forward(one, PROMPT[-1], Tree(tokens))
    found = parts.forward(two, PROMPT[-1], Tree(tokens, extra=extra))
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=TIGHT)
    full.commit(one, [0, 1])
    parts.commit(two, [0, 1])
    for a, b in zip(one.held(0), two.held(0)):
        torch.testing.assert_close(a, b, rtol=0, atol=TIGHT)
    streams = features(model, [*PROMPT, *tokens], 2)[len(PROMPT) - 1 :]
    torch.testing.assert_close(found.hidden, streams, rtol=0, atol=TIGHT)


def test_an_exit_drafts_like_the_skip_set_of_the_layers_behind_it():
    model = decoder()
    for seed in range(5):
        trees = []
        for drafter in (ExitDrafter(2), SkipDrafter(early(LAYERS, 2))):
            target = NeuralTarget(model)
            own = session(target, seed=seed)
            drafter.start(own)
            trees.append(drafter.propose(Budget(5)))
        assert trees[0].tokens == trees[1].tokens
        np.testing.assert_allclose(trees[0].q, trees[1].q, rtol=0, atol=TIGHT)


def test_a_draft_that_skips_nothing_is_the_full_model():
    target = NeuralTarget(decoder())
    for warp in (Warp(), Warp(0.6, 5), Warp(0.0)):
        parts = (target, SkipDrafter(Skip()), lossless, Fixed(3), PROMPT, 40)
        _, trace = decode(*parts, warp=warp)
        assert trace.acceptance == 1
        assert trace.tau == 4


def test_blockwise_decoding_runs_the_model_once_a_round(monkeypatch):
    """A pass judges the proposals and makes the next: 1811.03115, section 4."""
    target, drafter = pair("blockwise")
    calls = []
    plain_pass = Decoder.extend

    def counted(self, *args, **how):
        calls.append(self.sizes.layers)
        return plain_pass(self, *args, **how)

    monkeypatch.setattr(Decoder, "extend", counted)
    _, trace = decode(target, drafter, lossless, Fixed(3), PROMPT, 20, warp=Warp(0.0))
    assert len(calls) == 2 + trace.passes  # the prompt, and the prompt's streams


@pytest.mark.parametrize("name", ["sub-layers", "exit, read again"])
def test_a_self_drafter_inside_a_staged_draft(name):
    inner = pair(name)[1]
    staged = Staged(NeuralTarget(decoder()), inner, lossless, Fixed(2))
    target = NeuralTarget(decoder(seed=3))
    cold = Warp(0.0)
    found, _ = decode(target, staged, lossless, Fixed(3), PROMPT, 25, warp=cold)
    assert found == plain(target, PROMPT, 25, warp=cold)[0]


# -- bad input ------------------------------------------------------------------------


def session(target, tokens=PROMPT, seed=0):
    state = target.start(list(tokens), 32)
    return Session(target, state, list(tokens), Warp(), Random(seed), len(tokens))


def exits(exit):
    return ExitTarget(decoder(), exit)


def hidden():
    return NeuralTarget(decoder(), hidden=True)


REFUSED = {
    "skips all": (
        lambda: NeuralTarget(decoder()),
        lambda: SkipDrafter(Skip.layers(range(LAYERS))),
        "leaves out every sub-layer",
    ),
    "skips a missing layer": (
        lambda: NeuralTarget(decoder()),
        lambda: SkipDrafter(Skip.layers([4])),
        r"Layers \[4\] are to be skipped; the model has 0 to 3",
    ),
    "exit 0": (
        lambda: NeuralTarget(decoder()),
        lambda: ExitDrafter(0),
        "exit is 0",
    ),
    "exit behind all": (
        lambda: NeuralTarget(decoder()),
        lambda: ExitDrafter(4),
        "give 1 to 3",
    ),
    "other exit": (lambda: exits(1), lambda: ExitDrafter(2), "both the same exit"),
    "no layers": (
        lambda: table_law(V),
        lambda: SkipDrafter(even(4, 2)),
        "LawTarget has none",
    ),
    "clasp without streams": (
        lambda: NeuralTarget(decoder()),
        lambda: ClaspDrafter(2),
        "give a StreamTarget",
    ),
    "clasp skips all": (
        lambda: StreamTarget(decoder()),
        lambda: ClaspDrafter(4),
        "4 layers are to be skipped of 4",
    ),
    "kangaroo without exit": (
        lambda: NeuralTarget(decoder()),
        lambda: KangarooDrafter(head("adapter")),
        "give an ExitTarget",
    ),
    "kangaroo, other exit": (
        lambda: exits(3),
        lambda: KangarooDrafter(head("adapter")),
        "both the same exit",
    ),
    "head without streams": (
        lambda: NeuralTarget(decoder()),
        lambda: HeadDrafter(head("medusa")),
        "hidden=True",
    ),
    "head at an exit": (
        lambda: exits(2),
        lambda: HeadDrafter(head("medusa")),
        "hidden=True",
    ),
    "head of all streams": (
        lambda: StreamTarget(decoder()),
        lambda: HeadDrafter(head("eagle")),
        "hidden=True",
    ),
    "adapter as head": (
        hidden,
        lambda: HeadDrafter(head("adapter")),
        "drafts with KangarooDrafter",
    ),
    "head of other tokens": (
        hidden,
        lambda: HeadDrafter(head("medusa", vocab=9)),
        "width 16, 9 tokens and exit 4; the model has width 16, 11 tokens",
    ),
    "head of a deeper model": (
        hidden,
        lambda: HeadDrafter(head("eagle", layers=5)),
        "exit 5",
    ),
    "masks of other tokens": (
        lambda: NeuralTarget(decoder()),
        lambda: MaskDrafter(head("masks", vocab=9)),
        "9 tokens",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_gets_a_sentence(name):
    target, drafter, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        decode(target(), drafter(), lossless, Fixed(2), PROMPT, 4)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: even(4, 5), "5 layers are to be kept; the model has 4"),
        (lambda: even(4, 0), "kept is 0"),
        (lambda: early(4, 4), "give 1 to 3"),
        (lambda: ExitTarget(decoder(), 4), "give 1 to 3"),
        (lambda: ClaspDrafter(0), "skipped is 0"),
        (lambda: SwiftDrafter(Skip(), window=0), "window is 0"),
        (lambda: SwiftDrafter(Skip(), drop=0.0), "drop is 0.0"),
        (lambda: Medusa(transformer(), 0), "heads is 0"),
        (lambda: Recurrent(transformer(), 0), "unroll is 0"),
        (lambda: Eagle(transformer(), 0.0, 0.0), "not both 0"),
        (lambda: Adapter(transformer(), 4), "give 1 to 3"),
        (lambda: Masks(transformer(), 0), "masks is 0"),
        (lambda: Masks(transformer(), 2, 4), "keep at least one"),
        (lambda: AdaptiveThreshold(aim=2.0), "aim is 2.0"),
        (lambda: Thompson(0), "most is 0"),
        (lambda: Thompson(3, forget=0.0), "forget is 0.0"),
        (lambda: CostAware(draft=-1.0), "draft is -1.0"),
    ],
)
def test_bad_numbers_get_a_sentence(made, sentence):
    with pytest.raises(ValueError, match=sentence):
        made()


def test_a_tree_goes_to_another_target():
    target = exits(2)
    tree = Tree([1, 2], [-1, -1])
    with pytest.raises(ValueError, match="reads chains"):
        target.forward(target.start(PROMPT), PROMPT[-1], tree)


def test_a_batch_and_a_staged_head_are_refused():
    with pytest.raises(ValueError, match="of one text"):
        decode_batch(
            decoder(), lambda: SkipDrafter(SUBLAYERS), lossless, lambda: Fixed(1),
            [PROMPT], 3,
        )  # fmt: skip
    staged = Staged(hidden(), HeadDrafter(head("medusa")), lossless, Fixed(2))
    with pytest.raises(ValueError, match="inside a `Staged` draft"):
        decode(NeuralTarget(decoder(seed=3)), staged, lossless, Fixed(2), PROMPT, 4)


def test_the_other_drafters_work_on_these_targets():
    """Targets with streams or exits read any chain, and plain decoding."""
    cold = Warp(0.0)
    expected, _ = plain(NeuralTarget(decoder()), PROMPT, 20, warp=cold)
    draft = NeuralTarget(decoder(behind=2))
    for target in (exits(2), StreamTarget(decoder())):
        assert plain(target, PROMPT, 20, warp=cold)[0] == expected
        for drafter in (NoDraft(), LookUp(), ModelDrafter(draft)):
            parts = (target, drafter, lossless, Fixed(3), PROMPT, 20)
            assert decode(*parts, warp=cold)[0] == expected


def test_nothing_is_drafted_where_nothing_may_be():
    for name in PAIRS:
        target, drafter = pair(name)
        drafter.start(session(target))
        assert len(drafter.propose(Budget(0))) == 0
