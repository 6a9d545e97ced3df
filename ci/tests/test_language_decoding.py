"""lib.language: the transformer, its cache, and passes over chains and trees."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lib.language import Cache, Decoder, Sizes, Skip, Transformer, continued, trees
from lib.language.decoding import CACHED, FEW, product, streamed
from lib.language.transformer import turned, turns

V, CONTEXT = 37, 64
TOL = 1e-12
PARENTS = [-1, 0, 0, -1, 3, 1, 4, 2]  # two roots, branches at several depths

pytestmark = pytest.mark.usefixtures("one_thread")


def small(seed: int = 0, layers: int = 3, **sizes) -> Transformer:
    """A tiny float64 model whose weights are large enough to matter."""
    sizes = dict(vocab=V, d=24, layers=layers, heads=2, max_len=CONTEXT) | sizes
    model = Transformer(Sizes(**sizes), seed).double().requires_grad_(False)
    for p in model.parameters():
        p.mul_(8 if p.ndim == 2 else 1)
    return model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return small()


@pytest.fixture(scope="module", params=["small", "large"])
def decoder(model, request) -> Decoder:
    """Read as a small model is, and as one whose weights do not fit into a cache."""
    found = Decoder(model)
    found.product = streamed if request.param == "large" else product
    return found


def words(number: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, V, number).tolist()


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def same_cache(cache: Cache, decoder: Decoder, texts: list[list[int]]) -> float:
    """The largest difference from caches that read each text from its start."""
    worst = 0.0
    for b, text in enumerate(texts):
        assert cache.rows[b] == len(text) - 1
        fresh = decoder.start([text])
        for mine, theirs in zip(cache.held(b), fresh.held()):
            worst = max(worst, gap(mine, theirs) if len(text) > 1 else 0.0)
    return worst


# -- products -------------------------------------------------------------------------


@pytest.mark.parametrize("rows", range(1, FEW + 3))
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_both_products_are_the_sum_over_the_width(rows, kind):
    made = torch.Generator().manual_seed(rows)
    wide = torch.randn(rows, 3 * 24, generator=made).to(kind)
    weight = torch.randn(17, 24, generator=made).to(kind)
    more = torch.randn(rows, 17, generator=made).to(kind)
    apart = wide[:, ::3]  # not contiguous
    exact = torch.einsum("nd,ed->ne", apart.double(), weight.double())
    tol = 1e-12 if kind == torch.float64 else 40 * torch.finfo(kind).eps
    for way in (product, streamed):
        assert gap(way(apart, weight), exact) < tol
        assert gap(way(apart, weight, more), exact + more) < tol
        batch = way(apart.reshape(1, rows, 24), weight)
        assert batch.shape == (1, rows, 17)
        assert batch.is_contiguous()
        assert gap(batch[0], exact) < tol


def test_a_large_model_is_streamed_and_a_small_one_is_not():
    with torch.device("meta"):
        large = Transformer(Sizes(vocab=V, d=256, layers=2, heads=2), 0)
    held = sum(p.nbytes for p in large.parameters())
    assert held > CACHED
    assert Decoder(small()).product is product
    assert Decoder(large.to_empty(device="cpu")).product is streamed


# -- the model ------------------------------------------------------------------------


def test_rope_is_the_direct_formula():
    x = torch.randn(5, 8, dtype=torch.float64)
    y = turned(x, turns(5, 8, 100.0, torch.float64))
    for t in range(5):
        for j in range(4):
            angle = t * 100.0 ** (-2 * j / 8)
            a, b = x[t, 2 * j], x[t, 2 * j + 1]
            expected = (
                a * math.cos(angle) - b * math.sin(angle),
                a * math.sin(angle) + b * math.cos(angle),
            )
            assert y[t, 2 * j] == pytest.approx(float(expected[0]), abs=TOL)
            assert y[t, 2 * j + 1] == pytest.approx(float(expected[1]), abs=TOL)


def test_rope_makes_scores_depend_on_distance_only():
    q, k = torch.randn(2, 8, dtype=torch.float64)
    turn = turns(30, 8, 100.0, torch.float64)
    scores = [turned(q, turn[t + 7]) @ turned(k, turn[t]) for t in range(20)]
    assert max(scores) - min(scores) < TOL


def test_a_layer_is_its_formula(model):
    """Attention and MLP written out, without SDPA, heads by a loop."""
    layer, x = model.layers[1], torch.randn(1, 6, 24, dtype=torch.float64)
    turn = turns(6, 12, 10000.0, torch.float64)

    def norm(y, weight):
        return y / (y.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    qkv = norm(x[0], layer.attention_norm.weight) @ layer.qkv.weight.T
    out = []
    for head in range(2):
        part = slice(12 * head, 12 * head + 12)
        q, k = (turned(qkv[:, o : o + 24][:, part], turn) for o in (0, 24))
        scores = (q @ k.T / math.sqrt(12)).masked_fill(
            torch.ones(6, 6).triu(1).bool(), -torch.inf
        )
        out.append(scores.softmax(-1) @ qkv[:, 48:][:, part])
    y = x[0] + torch.cat(out, 1) @ layer.out.weight.T
    gate, value = (norm(y, layer.mlp_norm.weight) @ layer.up.weight.T).chunk(2, -1)
    y = y + (gate * torch.sigmoid(gate) * value) @ layer.down.weight.T
    assert gap(layer(x, turn)[0], y) < TOL


def test_a_text_is_not_seen_ahead(model):
    a, b = torch.tensor([words(9)]), torch.tensor([words(9)])
    b[0, 5:] = (b[0, 5:] + 1) % V
    assert gap(model(a)[:, :5], model(b)[:, :5]) < TOL
    assert gap(model(a)[:, 5:], model(b)[:, 5:]) > 1e-3


def test_a_layer_that_is_left_out_changes_that_sequence_only(model):
    tokens = torch.tensor([words(7), words(7, 1)])
    keep = torch.ones(3, 2)
    keep[1, 0] = 0
    dropped, full = model.streams(tokens, keep), model.streams(tokens)
    assert torch.equal(dropped[1][0], dropped[0][0])
    assert gap(dropped[2][1], full[2][1]) < TOL
    assert gap(dropped[2][0], full[2][0]) > 1e-3


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_stream():
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = Transformer(Sizes(d=16)), Transformer(Sizes(d=16)), small(1)
    assert torch.rand(1) == before
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert a.parameters_total > 1024 * 16
    assert not torch.equal(c.embedding.weight, small(2).embedding.weight)


# -- caches ---------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [1, 2, 7, 16])
def test_a_pass_is_the_full_model(model, decoder, prompt):
    text = words(prompt + 5)
    cache = decoder.start([text[:prompt]], room=3)
    out = decoder.extend(cache, torch.tensor([text[prompt - 1 :]]))
    expected = model(torch.tensor([text]))[:, prompt - 1 :]
    assert gap(out.logits, expected) < TOL
    assert cache.rows == [prompt - 1]


@pytest.mark.parametrize("seed", range(6))
def test_after_any_chain_of_commits_the_cache_is_a_fresh_one(decoder, seed):
    rng = np.random.default_rng(seed)
    text = words(int(rng.integers(1, 8)), seed)
    cache = decoder.start([text], room=1)
    for k in range(8):
        n = int(rng.integers(0, 6))
        drafted = words(n, 100 * seed + k)
        decoder.extend(cache, torch.tensor([[text[-1], *drafted]]))
        accepted = [0, n][k] if k < 2 else int(rng.integers(0, n + 1))
        cache.commit(range(accepted))
        text = [*text, *drafted[:accepted], int(rng.integers(0, V))]
        assert same_cache(cache, decoder, [text]) < TOL


@pytest.mark.parametrize("seed", range(6))
def test_after_any_tree_of_commits_the_cache_is_a_fresh_one(decoder, seed):
    rng = np.random.default_rng(seed)
    text = words(3, seed)
    cache = decoder.start([text], room=1)
    for _ in range(6):
        n = int(rng.integers(1, 9))
        parents = [int(rng.integers(-1, node)) for node in range(n)]
        drafted = rng.integers(0, V, n).tolist()
        layout = trees.tree(parents)
        decoder.extend(cache, torch.tensor([[text[-1], *drafted]]), layout)
        path = trees.path_to(parents, int(rng.integers(-1, n)))
        cache.commit(path)
        text = [*text, *(drafted[node] for node in path), int(rng.integers(0, V))]
        assert same_cache(cache, decoder, [text]) < TOL


def test_a_cache_grows_by_doubling_up_to_the_context(decoder):
    cache = decoder.start([words(5)], room=1)
    assert cache.room == 6
    cache.ensure(4)
    assert cache.room == 12
    assert cache.bytes == 2 * 3 * 2 * 12 * 12 * 8
    cache.ensure(CONTEXT - 4)
    assert cache.room == CONTEXT
    with pytest.raises(ValueError, match=f"longer than the context of {CONTEXT}"):
        cache.ensure(CONTEXT - 3)


def test_rolling_back_reads_on_as_before(model, decoder):
    text = words(12)
    cache = decoder.start([text])
    cache.crop(6)
    out = decoder.extend(cache, torch.tensor([text[6:9]]))
    assert gap(out.logits, model(torch.tensor([text[:9]]))[:, 6:]) < TOL
    with pytest.raises(ValueError, match="the cache has 6"):
        cache.crop(7)


def test_a_path_that_no_pass_wrote_is_refused(decoder):
    cache = decoder.start([words(4)], room=2)
    with pytest.raises(ValueError, match="does not lead from the root"):
        cache.commit([1, 0])
    with pytest.raises(ValueError, match="does not lead from the root"):
        cache.commit([50])


# -- trees ----------------------------------------------------------------------------


def test_the_mask_is_the_closure_of_the_parents():
    layout = trees.tree(PARENTS)
    for node in range(len(PARENTS)):
        path = trees.path_to(PARENTS, node)
        seen = torch.zeros(len(PARENTS) + 1, dtype=torch.bool)
        seen[[0, *(k + 1 for k in path)]] = True
        assert torch.equal(layout.visible[node + 1], seen)
        assert layout.depth[node + 1] == len(path)
    assert trees.leaves(PARENTS) == [5, 6, 7]
    assert torch.equal(trees.chain(3).visible, torch.ones(4, 4).tril().bool())


@pytest.mark.parametrize("prompt", [1, 6])
def test_a_tree_pass_is_the_chains_along_its_paths(model, decoder, prompt):
    text, drafted = words(prompt), words(len(PARENTS), 9)
    cache = decoder.start([text])
    tokens = torch.tensor([[text[-1], *drafted]])
    out = decoder.extend(cache, tokens, trees.tree(PARENTS))
    for leaf in trees.leaves(PARENTS):
        path = trees.path_to(PARENTS, leaf)
        chain = torch.tensor([text + [drafted[node] for node in path]])
        rows = [0, *(node + 1 for node in path)]
        assert gap(out.logits[0, rows], model(chain)[0, prompt - 1 :]) < TOL


def test_siblings_in_another_order_give_the_same_logits_in_that_order(decoder):
    text = words(5)
    tokens, parents = [1, 2, 3, 4], [-1, -1, 0, 1]
    other, theirs = [2, 1, 4, 3], [-1, -1, 0, 1]
    cache = decoder.start([text])
    a = decoder.extend(cache, torch.tensor([[text[-1], *tokens]]), trees.tree(parents))
    b = decoder.extend(cache, torch.tensor([[text[-1], *other]]), trees.tree(theirs))
    assert gap(a.logits[0, [0, 1, 2, 3, 4]], b.logits[0, [0, 2, 1, 4, 3]]) < TOL


def test_a_tree_may_grow_level_by_level(decoder):
    """Columns of earlier passes stand first in the mask: `behind`."""
    text, drafted = words(6), words(len(PARENTS), 3)
    whole = trees.tree(PARENTS)
    cache = decoder.start([text])
    tokens = torch.tensor([[text[-1], *drafted]])
    expected = decoder.extend(cache, tokens, whole).logits
    parts, begin = [], 0
    for end in (1, 4, 9):
        part = trees.Layout(whole.depth[begin:end], whole.visible[begin:end, :end])
        now = decoder.extend(cache, tokens[:, begin:end], part, behind=begin)
        parts.append(now.logits)
        begin = end
    assert gap(torch.cat(parts, 1), expected) < TOL


@pytest.mark.parametrize("parents", [[0], [-1, 1], [-1, -2]])
def test_a_parent_stands_before_its_child(parents):
    with pytest.raises(ValueError, match="a parent stands before its child"):
        trees.tree(parents)


# -- ragged batches -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_ragged_batch_is_its_separate_runs(model, decoder, seed):
    rng = np.random.default_rng(seed)
    texts = [words(int(rng.integers(1, 9)), 10 * seed + b) for b in range(3)]
    cache = decoder.start(texts, room=1)
    for _ in range(4):
        drafts = [words(int(rng.integers(0, 5)), int(rng.integers(999))) for _ in texts]
        longest = max(map(len, drafts))
        rows = [
            [text[-1], *draft, *[0] * (longest - len(draft))]
            for text, draft in zip(texts, drafts)
        ]
        out = decoder.extend(cache, torch.tensor(rows))
        for b, (text, draft) in enumerate(zip(texts, drafts)):
            own = model(torch.tensor([text + draft]))[0, len(text) - 1 :]
            assert gap(out.logits[b, : len(draft) + 1], own) < TOL
            accepted = int(rng.integers(0, len(draft) + 1))
            cache.commit(range(accepted), b)
            texts[b] = [*text, *draft[:accepted], int(rng.integers(0, V))]
        assert same_cache(cache, decoder, texts) < TOL
    cache.take([2, 0])
    assert same_cache(cache, decoder, [texts[2], texts[0]]) < TOL


def test_every_sequence_may_have_a_tree_of_its_own(model, decoder):
    texts, shapes = [words(3), words(6, 1)], [[-1, -1, 0], [-1, 0, 1, 0, -1]]
    drafts = [words(3, 2), words(5, 3)]
    cache = decoder.start(texts)
    rows = [[t[-1], *d, *[0] * (5 - len(d))] for t, d in zip(texts, drafts)]
    layout = trees.padded([trees.tree(parents) for parents in shapes])
    out = decoder.extend(cache, torch.tensor(rows), layout)
    for b, parents in enumerate(shapes):
        for leaf in trees.leaves(parents):
            path = trees.path_to(parents, leaf)
            text = texts[b] + [drafts[b][node] for node in path]
            own = model(torch.tensor([text]))[0, len(texts[b]) - 1 :]
            assert gap(out.logits[b, [0, *(k + 1 for k in path)]], own) < TOL
    assert bool(out.logits.isfinite().all())


# -- early exits and skipped layers ---------------------------------------------------


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_an_early_exit_and_its_continuation_are_the_full_pass(model, decoder, stop):
    text = words(9)
    cache = decoder.start([text[:5]])
    early = decoder.extend(cache, torch.tensor([text[4:]]), stop=stop)
    late = decoder.extend(cache, None, start=stop, x=early.hidden)
    assert gap(late.logits, model(torch.tensor([text]))[:, 4:]) < TOL
    if stop:
        exits = model.read(model.streams(torch.tensor([text]))[stop - 1])
        assert gap(early.logits, exits[:, 4:]) < TOL
    cache.commit(range(4))
    assert same_cache(cache, decoder, [[*text, 0]]) < TOL


def test_a_self_draft_token_by_token_is_verified_from_its_activations(model, decoder):
    """LayerSkip: the first layers draft, the rest run once on the stack."""
    text = words(6)
    cache = decoder.start([text])
    drafted, stack, token = [], [], text[-1]
    for k in range(4):
        early = decoder.extend(cache, torch.tensor([[token]]), behind=k, stop=2)
        stack.append(early.hidden)
        token = int(early.logits[0, -1].argmax())
        drafted.append(token)
    out = decoder.extend(cache, None, start=2, x=torch.cat(stack, 1))
    expected = model(torch.tensor([text + drafted[:3]]))[:, 5:]
    assert gap(out.logits, expected) < TOL


def test_nothing_skipped_is_the_full_model_and_all_skipped_is_the_head(model, decoder):
    text = torch.tensor([words(5)])
    full = decoder.extend(decoder.cache(), text, skip=Skip(), streams=True)
    assert gap(full.logits, model(text)) < TOL
    assert len(full.streams) == 4
    assert all(gap(a, b) < TOL for a, b in zip(full.streams[1:], model.streams(text)))
    bare = decoder.extend(decoder.cache(), text, skip=Skip.layers(range(3)))
    assert gap(bare.logits, model.read(model.embedding(text))) < TOL


def test_a_skipped_half_is_as_if_it_wrote_nothing(model, decoder):
    changed = small()
    changed.layers[1].out.weight.zero_()
    changed.layers[2].down.weight.zero_()
    text = torch.tensor([words(8)])
    skip = Skip(frozenset({1}), frozenset({2}))
    out = decoder.extend(decoder.cache(), text, skip=skip)
    assert gap(out.logits, changed(text)) < TOL


# -- plain decoding -------------------------------------------------------------------


def test_greedy_decoding_is_the_argmax_of_the_full_model(model, decoder):
    texts = [words(3), words(8, 1), words(1, 2)]
    for text, new in zip(texts, continued(decoder, texts, 10)):
        for k, token in enumerate(new):
            whole = torch.tensor([text + new[:k]])
            assert token == int(model(whole)[0, -1].argmax())


def test_a_sampled_text_does_not_depend_on_its_batch_below_it(decoder):
    texts = [words(3), words(8, 1)]
    both = continued(decoder, texts, 12, temperature=1.0, seed=4)
    assert both[0] == continued(decoder, texts[:1], 12, temperature=1.0, seed=4)[0]
    assert both[0] != continued(decoder, texts[:1], 12, temperature=1.0, seed=5)[0]
    assert continued(decoder, texts, 0) == [[], []]


def test_sampled_tokens_follow_the_law(decoder, model):
    text = words(4)
    drawn = continued(decoder, [text] * 3000, 1, temperature=2.0)
    found = torch.bincount(torch.tensor(drawn)[:, 0], minlength=V) / 3000
    law = torch.softmax(model(torch.tensor([text]))[0, -1] / 2, -1)
    assert float((found - law).abs().sum()) / 2 < 0.1


# -- bad input gets a sentence --------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "words_of_it"),
    [
        ([], "The prompt is empty"),
        ([0] * (CONTEXT + 1), f"the context of this model is {CONTEXT}"),
        ([V], "is it of another tokenizer"),
        ([-1], "is it of another tokenizer"),
    ],
)
def test_a_prompt_that_cannot_be_read(decoder, prompt, words_of_it):
    with pytest.raises(ValueError, match=words_of_it):
        decoder.start([prompt])


def test_a_draft_beyond_the_context(decoder):
    cache = decoder.start([words(CONTEXT - 2)])
    decoder.extend(cache, torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="draft less"):
        decoder.extend(cache, torch.zeros(1, 4, dtype=torch.int64))


def test_other_mistakes_of_a_pass(decoder, model):
    cache = decoder.start([words(4)])
    one = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="No prompts"):
        decoder.start([])
    with pytest.raises(ValueError, match="the model has 3"):
        decoder.extend(cache, one, stop=4)
    with pytest.raises(ValueError, match="Give tokens, or x"):
        decoder.extend(cache, None)
    with pytest.raises(ValueError, match="for a cache of 1"):
        decoder.extend(cache, one.expand(2, 1))
    with pytest.raises(ValueError, match="The layout is of 3 rows"):
        decoder.extend(cache, one, trees.chain(2))
    with pytest.raises(ValueError, match="temperature is -1"):
        continued(decoder, [[1]], 2, temperature=-1)
    with pytest.raises(ValueError, match="span 0 to 99"):
        model(torch.tensor([[0, 99]]))
    with pytest.raises(ValueError, match="shape \\(2,\\)"):
        model(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="RoPE turns pairs"):
        Sizes(d=10, heads=2)
    with pytest.raises(ValueError, match="No layouts"):
        trees.padded([])
