"""Skip sets, CLaSp, SWIFT, heads and control against brute force and closed forms."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from lib.kit.cache import CacheError
from lib.language import (
    Decoder,
    Recipe,
    Sizes,
    Skip,
    Transformer,
    load_model,
    rounded,
    save_model,
)
from lib.self_speculative import (
    Adapter,
    AdaptiveThreshold,
    ClaspDrafter,
    CostAware,
    Eagle,
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
    best_exit,
    best_of_all,
    clasp,
    drifting,
    early,
    even,
    exit_speedup,
    judge_chosen,
    judge_head,
    kept_share,
    load_head,
    measured,
    middle,
    on_text,
    predicted,
    regret,
    save_head,
    score,
    score_layer_sets,
    search,
    serve,
    shipped_head,
    study,
    train_head,
)
from lib.self_speculative.clasp import cosine, on_token
from lib.self_speculative.command import main
from lib.self_speculative.heads import positions
from lib.self_speculative.skipping import bits_of, skip_of
from lib.self_speculative.swift import agreement, past_of_window
from lib.self_speculative.training import head_loss, read
from lib.speculative import (
    Budget,
    Fixed,
    NeuralTarget,
    Random,
    Session,
    Tree,
    Verdict,
    Warp,
    decode,
    lossless,
    speedup,
)

V, LAYERS = 11, 4
TIGHT = 1e-12
SUBLAYERS = Skip(frozenset({1, 3}), frozenset({2}))

pytestmark = pytest.mark.usefixtures("one_thread")


@functools.cache
def transformer(vocab=V, layers=LAYERS, seed=0, size=12):
    made = Transformer(Sizes(vocab, 16, layers, 2, max_len=64), seed).double()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim == 2:
                p *= size
    return made.requires_grad_(False)


TOKENS = torch.from_numpy(np.random.default_rng(0).integers(0, V, (2, 9)))


def session(target, tokens, warp=None):
    tokens = list(tokens)
    state = target.start(tokens)
    return Session(target, state, tokens, warp or Warp(), Random(0), len(tokens))


def first_law(drafter, tokens, target=None):
    """The law that a drafter's first token is drawn from, behind a text."""
    drafter.start(session(target or NeuralTarget(Decoder(transformer())), tokens))
    return drafter.propose(Budget(1)).q[0]


# -- skip sets ------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [SUBLAYERS, even(LAYERS, 2), early(LAYERS, 1), Skip()])
def test_a_set_is_scored_by_the_law_that_it_drafts_from(skip):
    (found,) = score(transformer(), TOKENS, [skip])
    p = torch.softmax(transformer()(TOKENS), dim=-1).numpy()
    for b, t in itertools.product(range(2), range(9)):
        law = first_law(SkipDrafter(skip), TOKENS[b, : t + 1].tolist())
        overlap = np.minimum(law, p[b, t]).sum()
        assert float(found.overlap[b, t]) == pytest.approx(overlap, abs=TIGHT)
        assert bool(found.agreement[b, t]) == (law.argmax() == p[b, t].argmax())
    if skip == Skip():
        assert float(found.overlap.min()) == pytest.approx(1, abs=TIGHT)
        assert bool(found.agreement.all())


def test_all_layer_sets_are_those_scored_one_by_one():
    table = score_layer_sets(transformer(), TOKENS)
    assert len(table) == len(set(table["layers"])) == 2**LAYERS - 2
    for row in table.itertuples():
        assert row.kept == len(row.layers)
        gone = Skip.layers(set(range(LAYERS)) - set(row.layers))
        (one,) = score(transformer(), TOKENS, [gone])
        assert row.overlap == pytest.approx(float(one.overlap.mean()), abs=TIGHT)
        assert row.agreement == float(one.agreement.double().mean())


def test_even_and_middle_sets():
    assert even(8, 3) == Skip.layers({1, 2, 3, 5, 6})  # 0, 4, 7 stay
    assert even(8, 1) == Skip.layers(range(1, 8))
    assert even(8, 8) == Skip()
    for layers in range(2, 13):
        for kept in range(2, layers + 1):
            gone = even(layers, kept).attention
            assert len(gone) == layers - kept
            assert not {0, layers - 1} & gone
    assert middle(8, 4) == Skip.layers({2, 3, 4, 5})
    assert middle(8, 3) == Skip.layers({2, 3, 4})
    assert middle(4, 0) == Skip()


def test_the_share_that_is_kept_counts_weights():
    sizes = transformer().sizes
    assert kept_share(Skip(), sizes) == 1
    total = transformer().parameters_total - 2 * LAYERS * 16 - 16  # without norms
    gone = sum(
        p.numel()
        for name, p in transformer().named_parameters()
        if name.startswith(("layers.1.qkv", "layers.1.out", "layers.3.qkv"))
        or name.startswith(("layers.3.out", "layers.2.up", "layers.2.down"))
    )
    assert kept_share(SUBLAYERS, sizes) == pytest.approx((total - gone) / total)
    share = kept_share(SUBLAYERS, sizes)
    best = max(speedup(0.8, gamma, share) for gamma in range(13))
    assert predicted(0.8, SUBLAYERS, sizes) == best


def test_bits_and_sets_are_the_same():
    for bits in itertools.product([False, True], repeat=6):
        assert bits_of(skip_of(bits), 3).tolist() == list(bits)


def test_the_search_finds_the_best_of_all_sub_layer_sets():
    """Two layers have 15 sets: enough steps see all; few never lose to the start."""
    weight = np.random.default_rng(1).normal(size=4)

    def value(skip):
        bits = bits_of(skip, 2)
        return float(bits @ weight + 0.5 * bits[0] * bits[3])

    every = [b for b in itertools.product([False, True], repeat=4) if not all(b)]
    top = max(value(skip_of(bits)) for bits in every)
    best, tried = search(value, 2, 100, seed=0)
    assert value(best) == top
    assert len({bits_of(skip, 2).tobytes() for skip, _ in tried}) == len(tried) == 15
    for seed in range(10):
        start = skip_of([True, False, False, True])
        best, tried = search(value, 2, 4, start=start, seed=seed)
        assert tried[0] == (start, value(start))
        assert value(best) == max(v for _, v in tried) >= value(start)
        assert len(tried) == 4


def test_measured_speed_is_an_objective():
    target = NeuralTarget(Decoder(transformer()))
    value = measured(target, [[1, 2], [3]], 6, lambda: Fixed(2), Warp(0.0))
    best, tried = search(value, LAYERS, 3, seed=0)
    assert len(tried) == 3
    assert all(speed > 0 for _, speed in tried)
    assert best in [skip for skip, _ in tried]


# -- exits ----------------------------------------------------------------------------


def test_the_price_of_a_round_that_goes_on_from_the_exit():
    """Counted by hand: gamma draft passes, one more token, and the rest for all."""
    a, gamma, share = 0.7, 3, 0.25
    tau = sum(a**i for i in range(gamma + 1))
    wide = 1 + 0.05 * gamma
    passes = gamma * share + share + (1 - share) * wide
    found = exit_speedup(a, gamma, share, lambda k: 0.95 + 0.05 * k)
    assert found == pytest.approx(tau / passes)
    assert exit_speedup(0.9, 0, 0.5) == 1
    exit, length, gain = best_exit([0.5, 0.7, 0.75])
    trials = {
        (e, g): exit_speedup(a, g, e / 4)
        for e, a in ((1, 0.5), (2, 0.7), (3, 0.75))
        for g in range(13)
    }
    assert gain == max(trials.values()) == trials[exit, length]
    assert best_exit([0.0, 0.0])[1] == 0
    with pytest.raises(ValueError, match="share of layers is 2"):
        exit_speedup(0.5, 1, 2)


# -- CLaSp ----------------------------------------------------------------------------


@pytest.mark.parametrize("skipped", [0, 1, 2, 3])
def test_the_dynamic_programme_is_no_better_than_trying_all(skipped):
    past, streams = on_text(transformer(), TOKENS[0])
    found, best = (how(past, streams, skipped) for how in (clasp, best_of_all))
    assert found.skipped.shape == best.skipped.shape == (9, LAYERS)
    assert (found.skipped.sum(1) == skipped).all()
    assert (best.skipped.sum(1) == skipped).all()
    assert (found.cosine <= best.cosine + TIGHT).all()
    if skipped in (0, LAYERS - 1):  # no choice, or (one layer kept) see below
        assert (best.cosine >= found.cosine - TIGHT).all()
    if skipped == 0:
        torch.testing.assert_close(found.cosine, torch.ones(9).double())


def by_hand(past, streams, skipped, token):
    """CLaSp's table for one token, with dictionaries and loops."""
    table = {0: (streams[token, 0], ())}
    n = len(streams)
    for number in range(LAYERS):
        after = {}
        for j in range(skipped + 1):
            options = []
            if j in table:
                x = torch.zeros(1, n, streams.shape[-1]).double()
                x[0, token] = table[j][0]
                ran = past.run(number, x)[0, token]
                options.append((ran, table[j][1]))
            if j - 1 in table:
                options.append((table[j - 1][0], (*table[j - 1][1], number)))
            if options:
                aim = streams[token, number + 1]
                after[j] = max(options, key=lambda o: float(cosine(o[0], aim)))
        table = after
    return table[skipped]


@pytest.mark.parametrize("skipped", [1, 2])
def test_the_dynamic_programme_by_hand(skipped):
    past, streams = on_text(transformer(), TOKENS[1])
    found = clasp(past, streams, skipped)
    for token in range(9):
        end, gone = by_hand(past, streams, skipped, token)
        assert found.skip(token) == Skip.layers(gone)
        own = float(cosine(end, streams[token, -1]))
        assert float(found.cosine[token]) == pytest.approx(own, abs=TIGHT)


def test_a_token_of_the_cache_and_of_the_text_choose_the_same():
    model = Decoder(transformer())
    text = TOKENS[0].tolist()
    past, streams = on_text(transformer(), TOKENS[0])
    cache = model.start([[*text, 0]])
    for row in (0, 3, 8):
        own = on_token(model, cache, row)
        one, all_of_them = (
            clasp(own, streams[row : row + 1], 2),
            clasp(past, streams, 2),
        )
        assert one.skip() == all_of_them.skip(row)
        torch.testing.assert_close(one.cosine[0], all_of_them.cosine[row])


def test_the_drafter_uses_the_last_verified_tokens_own_set():
    target, seen = StreamTarget(Decoder(transformer())), []

    class Watched(ClaspDrafter):
        def observe(self, tree, out, verdict):
            super().observe(tree, out, verdict)
            seen.append((list(self.session.tokens), self.skip))

    decode(target, Watched(2), lossless, Fixed(2), [3, 1, 4], 20, seed=1)
    for tokens, skip in seen:
        past, streams = on_text(transformer(), torch.tensor(tokens[:-1]))
        assert clasp(past, streams, 2).skip(len(tokens) - 2) == skip
    assert len({skip for _, skip in seen}) > 1
    rare = ClaspDrafter(2, every=100)
    decode(target, rare, lossless, Fixed(2), [3, 1, 4], 20, seed=1)
    assert rare.skip == even(LAYERS, 2)


def test_a_set_of_its_own_is_judged_as_that_set():
    """Hindsight and the set of the previous token, against `score` of single sets."""
    past, streams = on_text(transformer(), TOKENS[0])
    chosen = clasp(past, streams, 2)
    singles = score(transformer(), TOKENS[:1], [chosen.skip(t) for t in range(9)])
    for behind in (0, 1, 3):
        found = judge_chosen(past, streams, chosen, behind)
        expected = [float(singles[t - behind].overlap[0, t]) for t in range(behind, 9)]
        np.testing.assert_allclose(found.overlap[0], expected, rtol=0, atol=TIGHT)


# -- SWIFT ----------------------------------------------------------------------------


def test_a_window_of_the_cache_is_scored_like_the_text():
    model, text = Decoder(transformer()), TOKENS[0].tolist()
    cache = model.start([[*text, 0]])
    p = transformer()(TOKENS[:1])[0]
    past = past_of_window(model, cache, 4)
    x = model.embedding[TOKENS[0, -4:]][None]
    for skip in (Skip(), SUBLAYERS, even(LAYERS, 1)):
        (own,) = score(transformer(), TOKENS[:1], [skip])
        found = agreement(past, x, p[-4:].argmax(-1).tolist(), skip)
        assert found == float(own.agreement[0, -4:].double().mean())


def one_that_matters(number):
    """A model in which only one layer does anything worth mentioning."""
    made = Transformer(Sizes(V, 16, LAYERS, 2, max_len=64), 0).double()
    with torch.no_grad():
        for name, p in made.named_parameters():
            if p.ndim == 2:
                own = name.startswith((f"layers.{number}.", "embedding"))
                p *= 12 if own else 0.01
    return made.requires_grad_(False)


def test_swift_finds_the_layer_that_matters():
    model = one_that_matters(1)
    wrong = Skip.layers({1, 2})
    drafter = SwiftDrafter(wrong, window=12, every=1, patience=12, greedy=True, seed=0)
    prompts = TOKENS[:, :5].tolist() * 3
    target, cold = NeuralTarget(Decoder(model)), Warp(0.0)
    how = dict(warp=cold, seed=0)
    frozen = serve(target, SkipDrafter(wrong), lambda: Fixed(2), prompts, 40, **how)
    learnt = serve(target, drafter, lambda: Fixed(2), prompts, 40, **how)
    assert 1 not in drafter.skip.attention | drafter.skip.mlp
    assert not drafter.optimising
    assert learnt[-1].acceptance == 1 > frozen[-1].acceptance
    bits = bits_of(drafter.skip, LAYERS)
    assert bits.sum() == 4  # of the same size as at first


def test_swift_looks_again_when_acceptance_falls():
    drafter = SwiftDrafter(SUBLAYERS, patience=1, drop=0.2)
    drafter.optimising, drafter.level, drafter.mean = False, 0.9, 0.9
    for _ in range(5):
        drafter._watch(1.0)
    assert not drafter.optimising
    assert drafter.level > 0.9
    for _ in range(30):
        drafter._watch(0.2)
    assert drafter.optimising


# -- heads ----------------------------------------------------------------------------


def heads(model):
    return {
        "medusa": Medusa(model, 3),
        "recurrent": Recurrent(model, 3),
        "eagle": Eagle(model),
        "adapter": Adapter(model, 2),
        "masks": Masks(model, 2, 2),
    }


def shaken(head, size=0.05):
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for p in head.parameters():
            p += size * torch.randn(p.shape, generator=generator).to(p)
    return head


def test_untrained_heads_say_what_their_definition_says():
    model = transformer()
    streams, law = read(model, TOKENS)
    own = heads(model)
    for kind in ("medusa", "recurrent"):  # the model's own next token, again
        for i, (logits, where) in enumerate(own[kind].aimed(model, TOKENS, streams)):
            said = torch.softmax(logits, dim=-1)
            assert where.tolist() == list(range(i + 1, 9))
            torch.testing.assert_close(said, law[:, : 8 - i])
    ((logits, where),) = own["adapter"].aimed(model, TOKENS, streams)
    torch.testing.assert_close(logits, model.read(streams[1]))  # the bare exit
    assert where.tolist() == list(range(9))
    logits, where = own["masks"].aimed(model, TOKENS, streams)[0]
    assert where.tolist() == [0, 3, 6]
    for b, t in itertools.product(range(2), where.tolist()):  # without its middle
        expected = first_law(SkipDrafter(middle(4, 2)), TOKENS[b, : t + 1].tolist())
        said = torch.softmax(logits[b, t // 3].detach(), dim=-1)
        np.testing.assert_allclose(said.numpy(), expected, rtol=0, atol=TIGHT)


@pytest.mark.parametrize("kind", ["medusa", "recurrent", "eagle", "masks"])
def test_what_is_trained_is_what_is_drafted(kind):
    """Logits over a text are those of decoding, guess by guess, aimed where they say.

    Row r of guess i aims at the law after token where[r], so the draft behind tokens
    0 .. where[r] - i is asked for its guess i, given the text's own tokens as drafted.
    """
    model = transformer()
    head = shaken(heads(model)[kind]).requires_grad_(False)
    streams, _ = read(model, TOKENS)
    hidden = NeuralTarget(Decoder(model), hidden=True)
    for i, (logits, where) in enumerate(head.aimed(model, TOKENS, streams)):
        for row, place in enumerate(where.tolist()):
            text = TOKENS[0, : place + 1].tolist()
            known, drafted = text[: place + 1 - i], text[place + 1 - i :]
            make = MaskDrafter if kind == "masks" else HeadDrafter
            found = forced(make(head), hidden, known, drafted)
            expected = torch.softmax(logits[0, row], dim=-1)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_an_adapter_drafts_what_it_says_over_a_text(ahead):
    """The streams at the exit are exact, so any guess is the law over the text."""
    model = transformer()
    adapter = shaken(Adapter(model, 2)).requires_grad_(False)
    streams, _ = read(model, TOKENS)
    ((logits, _),) = adapter.aimed(model, TOKENS, streams)
    target, text = ExitTarget(Decoder(model), 2), TOKENS[0].tolist()
    for place in range(ahead, 9):
        known, drafted = text[: place + 1 - ahead], text[place + 1 - ahead : place + 1]
        found = forced(KangarooDrafter(adapter), target, known, drafted)
        expected = torch.softmax(logits[0, place], dim=-1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


def test_eagle_goes_on_from_its_own_features():
    """Three guesses against the layer run over all pairs anew, without a cache."""
    model = transformer()
    head = shaken(Eagle(model)).requires_grad_(False)
    known, drafted = TOKENS[0, :6].tolist(), TOKENS[0, 6:8].tolist()
    u = model.norm(model.streams(TOKENS[:1, :5])[-1])[0]
    tokens, features = known[1:], list(u)
    for ahead in range(3):
        e = model.embedding(torch.tensor(tokens))
        x = head.join(torch.cat([torch.stack(features), e], dim=-1))[None]
        f = head.layer(x, positions(model, x))[0, -1]
        expected = torch.softmax(model.embedding.weight @ f, dim=-1)
        target = NeuralTarget(Decoder(model), hidden=True)
        found = forced(HeadDrafter(head), target, known, drafted[:ahead])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)
        features.append(f)
        tokens = [*tokens, *drafted[ahead : ahead + 1]]


def forced(drafter, target, known, drafted):
    """The law of the guess behind `drafted`, when these are what the dice draw."""

    class Dice:
        def __init__(self):
            self.left = [*drafted, 0]

        def draw(self, law):
            return self.left.pop(0)

    own = session(target, known)
    own.dice = Dice()
    drafter.start(own)
    return drafter.propose(Budget(len(drafted) + 1)).q[-1]


def test_losses_by_hand():
    """Cross-entropy of guess i at t with the law after token t + i, in plain loops."""
    model = transformer()
    _, law = read(model, TOKENS)
    own = heads(model)
    medusa = shaken(own["medusa"])
    streams, _ = read(model, TOKENS)
    u = model.norm(streams[-1])
    total, weights = 0.0, 0.0
    for i in (1, 2, 3):
        terms = []
        for b, t in itertools.product(range(2), range(9 - i)):
            mixed = u[b, t] + functional.silu(medusa.mixes[i - 1] @ u[b, t])
            said = torch.log_softmax(medusa.embeddings[i - 1] @ mixed, dim=-1)
            terms.append(-(law[b, t + i] * said).sum())
        total += 0.8 ** (i - 1) * torch.stack(terms).mean()
        weights += 0.8 ** (i - 1)
    found = medusa.loss(model, TOKENS, streams, law)
    torch.testing.assert_close(found, total / weights)
    eagle = own["eagle"]
    guessed, true = eagle.features(model, TOKENS, streams)
    torch.testing.assert_close(true, u[:, 1:])
    said = torch.log_softmax(guessed @ model.embedding.weight.T, dim=-1)
    entropy = -(law[:, 1:] * said).sum(-1).mean()
    near = functional.smooth_l1_loss(guessed, true)
    found = eagle.loss(model, TOKENS, streams, law)
    torch.testing.assert_close(found, near + 0.1 * entropy)


RECIPE = Recipe(steps=6, batch=2, length=12, lr=1e-2, warmup=2, optimiser="adamw")
CYCLE = torch.tensor([0, 3, 1, 4, 2, 5, 9, 7] * 40)


@functools.cache
def counting():
    """A model that has learnt the cycle: the next token is a function of the last."""
    made = Transformer(Sizes(V, 16, 2, 2, max_len=64), 0)
    optimiser = torch.optim.AdamW(made.parameters(), lr=2e-2)
    for step in range(60):
        start = step % 8
        tokens = CYCLE[start : start + 17][None]
        loss = functional.cross_entropy(made(tokens[:, :-1])[0], tokens[0, 1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.05
    return made.requires_grad_(False)


@pytest.mark.parametrize("kind", ["medusa", "recurrent", "eagle"])
def test_trained_heads_look_as_far_ahead_as_they_say(kind):
    """On a cycle every place is known: an index off by one guesses nothing right."""
    model = counting()
    head = {
        "medusa": lambda: Medusa(model, 3),
        "recurrent": lambda: Recurrent(model, 3),
        "eagle": lambda: Eagle(model, classes=1.0),
    }[kind]()
    recipe = Recipe(steps=60, batch=4, length=16, lr=2e-2, warmup=5, optimiser="adamw")
    train_head(head, model, CYCLE, recipe)
    head.requires_grad_(False)
    assert judge_head(head, model, CYCLE, 16)["agreement"].min() > 0.95
    target = NeuralTarget(Decoder(model), hidden=True)
    drafter = HeadDrafter(head)
    prompt = CYCLE[:9].tolist()
    parts = (target, drafter, lossless, Fixed(3), prompt, 24)
    text, trace = decode(*parts, warp=Warp(0.0))
    assert text == CYCLE[9:33].tolist()
    assert trace.acceptance > 0.9


@pytest.mark.parametrize("kind", ["medusa", "recurrent", "eagle", "adapter", "masks"])
def test_training_lowers_the_loss_and_leaves_the_model_alone(kind):
    model = transformer(size=3)
    before = [p.clone() for p in model.parameters()]
    head = heads(model)[kind]
    text = TOKENS.flatten().repeat(20)
    history = train_head(head, model, text, Recipe(**RECIPE.__dict__ | {"steps": 12}))
    tokens = text[:36].view(3, 12)
    after, first = (
        head_loss(one, model, tokens, RECIPE).item()
        for one in (head, heads(model)[kind])
    )
    assert after < first
    assert len(history["loss"]) == len(history["cpu"]) == 12
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


class Killed(Exception):
    pass


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
@pytest.mark.parametrize("kind", ["medusa", "eagle", "adapter"])
def test_a_run_that_was_killed_ends_with_the_same_bits(kind, optimiser, tmp_path):
    model, text = transformer(size=3), TOKENS.flatten().repeat(20)
    recipe = Recipe(**RECIPE.__dict__ | {"optimiser": optimiser})
    whole, broken = heads(model)[kind], heads(model)[kind]
    train_head(whole, model, text, recipe)
    path = tmp_path / "state.pt"

    def kill(step, steps, loss):
        if step == 4:
            raise Killed

    how = dict(checkpoint=path, every=3)
    with pytest.raises(Killed):
        train_head(broken, model, text, recipe, on_step=kill, **how)
    again = heads(model)[kind]
    history = train_head(again, model, text, recipe, **how)
    assert len(history["loss"]) == 6
    for a, b in zip(whole.parameters(), again.parameters()):
        assert torch.equal(a, b)
    other = Recipe(**RECIPE.__dict__ | {"optimiser": optimiser, "lr": 0.5})
    with pytest.raises(ValueError, match="belongs to another run: lr was"):
        train_head(heads(model)[kind], model, text, other, **how)


def test_the_frozen_model_gets_no_gradient():
    model = Transformer(Sizes(V, 16, 3, 2, max_len=64), 0)  # not frozen by hand
    for kind, head in heads(model).items():
        head_loss(head, model, TOKENS, RECIPE).backward()
        assert all(p.grad is None for p in model.parameters()), kind
        assert all(p.requires_grad for p in model.parameters())
        assert any(bool(p.grad.any()) for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("text", "length", "sentence"),
    [
        (TOKENS[0], 9, "a window takes 10"),
        (CYCLE, 65, "exceed the context of 64"),
        (CYCLE + 5, 8, "has token 14; the model knows 0 to 10"),
    ],
)
def test_texts_that_do_not_fit(text, length, sentence):
    recipe = Recipe(**RECIPE.__dict__ | {"length": length})
    with pytest.raises(ValueError, match=sentence):
        train_head(Medusa(transformer()), transformer(), text, recipe)


def test_a_head_of_another_model_is_not_trained():
    with pytest.raises(ValueError, match="Train a head for this model"):
        train_head(Medusa(transformer(vocab=9)), transformer(), CYCLE, RECIPE)


# -- files ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["medusa", "recurrent", "eagle", "adapter", "masks"])
def test_heads_as_files(kind, tmp_path):
    model = transformer()
    head = rounded(shaken(heads(model)[kind]))
    path = tmp_path / "heads" / f"{kind}.safetensors"
    save_head(path, head, {"text": "none", "steps": 0})
    again, card = load_head(path, model)
    assert card["kind"] == kind
    assert card["steps"] == 0
    assert card["licence"]
    assert type(again) is type(head)
    assert again.about() == head.about()
    for a, b in zip(head.parameters(), again.parameters()):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
        assert not b.requires_grad
    first = path.read_bytes()
    save_head(path, head, {"steps": 0, "text": "none"})
    assert path.read_bytes() == first


def test_a_shipped_head_is_checked(tmp_path):
    model, name = transformer(), "heads/eagle.safetensors"
    (tmp_path / "manifest.json").write_text("{}")
    save_head(tmp_path / name, rounded(Eagle(model)), {"steps": 3})
    main(["enter", "--folder", str(tmp_path)])
    assert "## eagle.safetensors" in (tmp_path / "heads" / "README.md").read_text()
    head, card = shipped_head("eagle", model, tmp_path)
    assert head.kind == "eagle"
    assert card["steps"] == 3
    with pytest.raises(CacheError):
        shipped_head("medusa", model, tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CacheError):
        shipped_head("eagle", model, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(SystemExit, match="There is no head in heads/"):
        main(["enter", "--folder", str(tmp_path)])


def test_files_that_cannot_be_read(tmp_path):
    model = transformer()
    head = Medusa(model, 2)
    path = tmp_path / "head.safetensors"
    with pytest.raises(ValueError, match=r"end in \.safetensors"):
        save_head(tmp_path / "head.pt", head, {})
    save_head(path, head, {})
    with pytest.raises(ValueError, match="made for width 16 and 11 tokens"):
        load_head(path, transformer(vocab=9))
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as a head"):
        load_head(path, model)
    save_head(path, head, {"kind": "hydra"})
    with pytest.raises(ValueError, match="'hydra'; choose one of adapter"):
        load_head(path, model)
    save_head(path, head, {"made": {"heads": 3}})
    with pytest.raises(ValueError, match="does not fit its card"):
        load_head(path, model)
    save_head(path, head, {"format": 9})
    with pytest.raises(ValueError, match="has format 9"):
        load_head(path, model)
    with torch.no_grad():
        head.mixes[0][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"mixes.0 are not finite"):
        save_head(path, head, {})


def test_a_head_from_the_command_line(tmp_path):
    """Trained and written with a card; mistakes are sentences."""
    model = rounded(Transformer(Sizes(256, 16, 3, 2, max_len=32), 0))
    path, out = tmp_path / "model.safetensors", tmp_path / "head.safetensors"
    save_model(path, model, {})
    (tmp_path / "texts").mkdir()
    for name in "abcd":
        text = f"def {name}(x):\n    return x + 1\n" * 30
        (tmp_path / "texts" / f"{name}.py").write_text(text)
    words = ["train", "medusa", "--model", str(path), "--out", str(out), "--heads", "2"]
    words += ["--corpus", str(tmp_path / "texts"), "--tokenizer", "bytes"]
    words += ["--steps", "3", "--length", "16", "--batch", "2", "--device", "cpu"]
    main(words)
    head, card = load_head(out, load_model(path)[0])
    assert head.most == 2
    assert card["steps"] == 3
    assert len(card["held_out_overlap"]) == 2
    assert card["command"].startswith("python -m lib.self_speculative train medusa")
    for more, sentence in (
        (["--exit", "2"], "--exit mean nothing to medusa"),
        (["--heads", "0"], "heads is 0"),
        (["--out", "head.pt"], "end it in .safetensors"),
        (["--model", str(out)], "cannot be read as a language model"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            main([*words, *more])


def test_the_recipe_with_exits_and_without(tmp_path):
    """Every exit judged; the last one is the full model, and nothing is left behind."""
    how = {"seed": 1, "steps": 2, "d": 16, "layers": 3, "batch": 1, "length": 16}
    found = {
        flag: study.training(tmp_path, layerskip=flag, watched=2, **how)
        for flag in (True, False)
    }
    for one in found.values():
        assert len(one["by_exit"]) == 3
        assert len(one["overlap"]) == 2
        assert all(0 < share < 1 for share in one["overlap"])
        assert one["cpu"] > 0
    assert found[True]["by_exit"] != found[False]["by_exit"]
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="at least one window"):
        study.training(tmp_path, layerskip=True, watched=0, **how)


# -- control --------------------------------------------------------------------------


def outcome(drafted, accepted):
    return Tree([0] * drafted), Verdict(list(range(accepted)), 0, []), 0.0


def test_the_threshold_follows_acceptance():
    rule = AdaptiveThreshold(aim=0.5, threshold=0.4, move=0.1, keep=0.5, smooth=0.5)
    rule.update(*outcome(4, 0))  # A = 0.25 < 0.5: up by half of 0.1
    assert rule.acceptance == 0.25
    assert rule.threshold == pytest.approx(0.45)
    rule.update(*outcome(2, 2))  # A = 0.625
    assert rule.threshold == pytest.approx(0.40)
    for _ in range(200):
        rule.update(*outcome(0, 0))  # nothing was drafted: dare again
    assert rule.threshold == pytest.approx(0, abs=1e-9)
    assert rule.budget() == Budget(12, stop=rule.threshold, product=False)
    for _ in range(200):
        rule.update(*outcome(5, 0))
    assert rule.threshold == pytest.approx(1)


def test_thompson_counts_judged_tokens_and_forgets():
    rule = Thompson(8, forget=0.5)
    rule.update(*outcome(4, 2))
    assert (rule.yes, rule.no) == (2, 1)
    rule.update(*outcome(3, 3))
    assert (rule.yes, rule.no) == (4, 0.5)
    rule.update(*outcome(0, 0))
    assert (rule.yes, rule.no) == (2, 0.25)


def test_naive_lengths_are_geometric_in_what_is_believed():
    rule = Thompson(30, seed=1)
    rule.yes, rule.no = 7e6, 3e6  # sure of 0.7
    lengths = [rule.budget().depth for _ in range(3000)]
    assert np.mean(lengths) == pytest.approx(0.7 / 0.3, abs=0.15)


@pytest.mark.parametrize("a", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("draft", [0.05, 0.3])
def test_a_sure_cost_aware_rule_drafts_the_best_length(a, draft):
    """With known acceptance and the best rate its rule is the optimum's condition."""

    def cost(k):
        return 1 + 0.04 * (k - 1)

    rule = CostAware(16, draft=draft, cost=cost)
    rule.yes, rule.no = a * 1e9, (1 - a) * 1e9
    values = [speedup(a, g, draft, cost) for g in range(17)]
    rule.tokens, rule.paid = max(values), 1.0
    assert rule.budget().depth == int(np.argmax(values))


def test_regret_is_zero_for_the_best_fixed_length():
    stream = drifting([0.8, 0.8], 50)
    best = int(np.argmax([speedup(0.8, g, 0.1) for g in range(13)]))
    own = regret(Fixed(best), stream, 0.1)
    assert own.best == best
    assert own.lost == pytest.approx(np.zeros(100), abs=1e-9)
    assert own.rate == pytest.approx(own.best_rate) == speedup(0.8, best, 0.1)
    worse = regret(Fixed(0), stream, 0.1)
    assert (np.diff(worse.lost) > 0).all()
    assert worse.rate == pytest.approx(1)
    assert drifting([0.1, 0.9], 2).tolist() == [0.1, 0.1, 0.9, 0.9]


def test_a_stream_that_drifts_can_be_followed():
    """One who knows the level of each round beats every fixed length."""
    stream = drifting([0.95, 0.2], 100)
    lengths = {
        a: int(np.argmax([speedup(a, g, 0.1) for g in range(13)])) for a in (0.95, 0.2)
    }

    class Knowing:
        def __init__(self):
            self.left = list(stream)

        def budget(self):
            return Budget(lengths[self.left.pop(0)])

        def update(self, tree, verdict, seconds):
            pass

    own = regret(Knowing(), stream, 0.1)
    assert own.rate > own.best_rate
    assert own.lost[-1] < 0


def test_cost_aware_beats_naive_where_drafting_is_dear():
    """Means over seeds, margins far beyond their noise."""
    stream = np.full(300, 0.6)
    rates = {}
    for kind in (Thompson, lambda **how: CostAware(draft=0.3, **how)):
        own = [regret(kind(seed=k), stream, 0.3, seed=k) for k in range(5)]
        rates[kind] = np.mean([one.rate for one in own])
    naive, aware = rates.values()
    assert aware > naive + 0.02
    assert aware <= own[0].best_rate + 1e-9


@pytest.mark.parametrize(
    ("stream", "sentence"), [([], "No rounds"), ([0.5, 1.5], "between 0 and 1")]
)
def test_streams_that_are_none(stream, sentence):
    with pytest.raises(ValueError, match=sentence):
        regret(Fixed(1), stream, 0.1)
