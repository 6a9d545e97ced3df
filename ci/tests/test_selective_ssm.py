"""Mamba and Mamba-2 blocks, the language model, its decoding, tasks and training."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from lib.selective_ssm import blocks
from lib.selective_ssm.blocks import LayerState, Mamba, Mamba2, causal_conv
from lib.selective_ssm.decoding import distribution, sample
from lib.selective_ssm.models import LanguageModel, State
from lib.selective_ssm.tasks import (
    IGNORE,
    induction_heads,
    mqar,
    selective_copying,
    source_bytes,
    text_of,
    text_origin,
)
from lib.selective_ssm.training import (
    bits_per_byte,
    cross_entropy,
    ngram_bits,
    param_groups,
    recall_accuracy,
    recall_batches,
    text_batches,
    train,
)
from lib.ssm_init import assert_mamba_init

MAKE = {
    "mamba": lambda: Mamba(12, 4),
    "mamba, other sizes": lambda: Mamba(7, 3, expand=3, d_conv=3, dt_rank=2, bias=True),
    "mamba, one tap": lambda: Mamba(8, 4, d_conv=1, conv_bias=False),
    "mamba, fixed": lambda: Mamba(8, 4, selective=False),
    "mamba, delta only": lambda: Mamba(8, 4, selective="delta"),
    "mamba, B and C": lambda: Mamba(8, 4, selective=("C", "B")),
    "mamba2": lambda: Mamba2(12, 8, headdim=8),
    "mamba2, groups": lambda: Mamba2(8, 4, headdim=4, groups=2, d_conv=2, bias=True),
}


def make(name):
    torch.manual_seed(0)
    return MAKE[name]()


# -- blocks -------------------------------------------------------------------------


def loop_conv(block, x):
    """The convolution tap by tap, and its SiLU."""
    weight, bias = block.conv1d.weight[:, 0], block.conv1d.bias
    K, y = weight.shape[1], torch.zeros_like(x)
    for t, k in itertools.product(range(x.shape[1]), range(K)):
        if t - (K - 1 - k) >= 0:
            y[:, t] += weight[:, k] * x[:, t - (K - 1 - k)]
    return functional.silu(y if bias is None else y + bias)


def loop_mamba(block, x):
    """Algorithm 2 of 2312.00752, written down."""
    u, z = block.in_proj(x).chunk(2, -1)
    u = loop_conv(block, u)
    h, out = torch.zeros(len(x), *block.shape, dtype=x.dtype), []
    for t in range(x.shape[1]):
        delta, B, C = block.select(u[:, t])
        B, C = (
            v if name in ("B", "C") and name not in block.selective else v[:, None]
            for name, v in (("B", B), ("C", C))
        )
        delta = functional.softplus(delta + block.dt_proj.bias)[..., None]
        A = -torch.exp(block.A_log)
        h = torch.exp(delta * A) * h + delta * B * u[:, t, :, None]
        out.append((h * C).sum(-1) + block.D * u[:, t])
    return block.out_proj(torch.stack(out, 1) * functional.silu(z))


def loop_mamba2(block, x):
    """The recurrence of 2405.21060, head by head."""
    heads, P, N = block.shape
    inner, each = heads * P, heads // block.groups
    z, xBC, dt = block.in_proj(x).split([inner, block.channels, heads], -1)
    xBC = loop_conv(block, xBC)
    delta = functional.softplus(dt + block.dt_bias)
    y = torch.zeros_like(z)
    for head in range(heads):
        group, own = head // each, slice(head * P, (head + 1) * P)
        h = torch.zeros(len(x), P, N, dtype=x.dtype)
        for t in range(x.shape[1]):
            v = xBC[:, t, own]
            B, C = (
                xBC[:, t, inner + (k * block.groups + group) * N :][:, :N]
                for k in (0, 1)
            )
            d = delta[:, t, head, None, None]
            h = torch.exp(-d * block.A_log[head].exp()) * h
            h = h + d * v[..., None] * B[:, None]
            y[:, t, own] = (h * C[:, None]).sum(-1) + block.D[head] * v
    y = y * functional.silu(z)
    parts = y.split(inner // block.groups, -1)
    y = [p / torch.sqrt((p**2).mean(-1, keepdim=True) + block.norm.eps) for p in parts]
    return block.out_proj(torch.cat(y, -1) * block.norm.weight)


@pytest.mark.parametrize("name", MAKE)
def test_a_block_is_the_loop_with_its_gradients(name):
    block = make(name).double()
    with torch.no_grad():
        for p in block.parameters():
            p += 0.1 * torch.randn_like(p)
    d_model = block.out_proj.out_features
    x = torch.randn(2, 6, d_model, dtype=torch.float64, requires_grad=True)
    loop = loop_mamba if isinstance(block, Mamba) else loop_mamba2
    found, expected = block(x), loop(block, x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    wanted = [x, *(p for p in block.parameters() if p.requires_grad)]
    pair = [torch.autograd.grad(y.square().sum(), wanted) for y in (found, expected)]
    for a, b in zip(*pair, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("length", [1, 2, 17])
@pytest.mark.parametrize("name", MAKE)
def test_steps_and_pieces_equal_the_full_pass(name, length):
    block = make(name)
    x = torch.randn(3, length, block.out_proj.out_features)
    with torch.no_grad():
        full, last = block(x, return_state=True)
        torch.testing.assert_close(block(x), full, rtol=1e-5, atol=1e-6)
        state, steps = block.empty_state(3), []
        for one in x.unbind(1):
            y, state = block.step(one, state)
            steps.append(y)
        close = {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(torch.stack(steps, 1), full, **close)
        for a, b in zip(state, last, strict=True):
            torch.testing.assert_close(a, b, **close)
        state, pieces = None, []
        for piece in x.split(2, dim=1):
            y, state = block(piece, state, return_state=True)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), full, **close)
        torch.testing.assert_close(state.ssm, last.ssm, **close)


@pytest.mark.parametrize("backend", ["reference", "chunked", "associative"])
@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_every_backend_gives_the_same(name, backend):
    block = make(name)
    x = torch.randn(2, 33, 12)
    with torch.no_grad():
        expected = block(x)
        block.backend = backend
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 4, 5])
def test_the_fused_convolution_is_torchs(width):
    torch.manual_seed(0)
    x, past = torch.randn(2, 9, 6), torch.randn(2, width - 1, 6)
    weight, bias = torch.randn(6, width), torch.randn(6)
    for given in (None, past):
        own = causal_conv(x, weight, bias, given)
        plain = causal_conv(x, weight, bias, given, backend="reference")
        torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-5)
    assert causal_conv(x[:, :0], weight, bias, past).shape == (2, 0, 6)


def test_the_environment_decides_for_the_convolution_too(monkeypatch):
    x, weight = torch.randn(1, 4, 3), torch.randn(3, 4)
    monkeypatch.setenv("LIB_SCAN_BACKEND", "reference")
    assert not blocks._fused(x, weight, "auto")
    monkeypatch.delenv("LIB_SCAN_BACKEND")
    assert not blocks._fused(x.double(), weight.double(), "auto")


@pytest.mark.parametrize("name", MAKE)
def test_blocks_start_as_the_authors(name):
    steps = assert_mamba_init(make(name))["the model"]
    assert 1e-3 * 0.99 < steps.min() < steps.max() < 0.1 * 1.01
    again = make(name)
    for a, b in zip(make(name).parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_blocks_say_what_is_wrong():
    with pytest.raises(ValueError, match="d_model is 0; give a whole number"):
        Mamba(0)
    with pytest.raises(ValueError, match="d_conv is 0"):
        Mamba2(8, headdim=4, d_conv=0)
    with pytest.raises(ValueError, match=r"headdim is 5; it must divide 2 \* 8 = 16"):
        Mamba2(8, headdim=5)
    with pytest.raises(ValueError, match="groups is 3; it must divide the 4 heads"):
        Mamba2(8, headdim=4, groups=3)
    with pytest.raises(ValueError, match="token chooses is 'D'"):
        Mamba(8, selective=("B", "D"))


# -- the language model -------------------------------------------------------------

OPTIONS = {"mamba": {"d_state": 4}, "mamba2": {"d_state": 8, "headdim": 8}}


def language_model(block="mamba", vocab=11, **more):
    model = LanguageModel(vocab, 12, 2, block, seed=3, **OPTIONS[block] | more)
    with torch.no_grad():
        model.embedding.weight.normal_(std=0.3)  # logits that differ
    return model


def some_tokens(*shape, vocab=11, seed=0):
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", OPTIONS)
def test_token_by_token_equals_the_full_pass(block):
    model, tokens = language_model(block), some_tokens(3, 19)
    with torch.no_grad():
        full = model(tokens)
        all_at_once, last = model.prefill(tokens)
        begun, state = model.prefill(tokens[:, :5])
        rows = list(begun.unbind(1))
        for token in tokens[:, 5:].T:
            logits, state = model.step(token, state)
            rows.append(logits)
    torch.testing.assert_close(all_at_once, full, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.stack(rows, 1), full, rtol=1e-4, atol=1e-5)
    assert state.position == last.position == 19
    assert state.bytes == model.empty_state(3).bytes  # O(1) in the length


@pytest.mark.parametrize("block", OPTIONS)
def test_an_old_state_is_a_snapshot(block):
    model, tokens = language_model(block), some_tokens(2, 6)
    with torch.no_grad():
        _, snapshot = model.prefill(tokens)
        kept = snapshot.clone()
        first, _ = model.step(tokens[:, 0], snapshot)
        model.prefill(some_tokens(2, 9, seed=1), snapshot)
        again, _ = model.step(tokens[:, 0], snapshot)
    assert torch.equal(first, again)
    for old, new in zip(kept.layers, snapshot.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
        assert old.ssm.data_ptr() != new.ssm.data_ptr()
    kept.layers[0].ssm.zero_()
    assert snapshot.layers[0].ssm.abs().sum() > 0


def test_states_of_rows_go_on_like_their_rows():
    model, tokens = language_model(), some_tokens(3, 6)
    with torch.no_grad():
        _, state = model.prefill(tokens)
        logits, _ = model.step(tokens[:, 0], state)
        picked, _ = model.step(tokens[[2, 0, 2], 0], state.rows([2, 0, 2]))
    torch.testing.assert_close(picked, logits[[2, 0, 2]])
    assert state.rows([1]).batch == 1
    with pytest.raises(IndexError):
        state.rows([3])


def test_gradients_run_through_a_state_unless_detached():
    model, tokens = language_model(), some_tokens(1, 4)
    _, state = model.prefill(tokens)
    assert state.layers[0].ssm.requires_grad
    assert not state.detach().layers[0].ssm.requires_grad


@pytest.mark.parametrize("block", OPTIONS)
def test_a_seed_decides_what_is_generated(block):
    model, tokens = language_model(block), some_tokens(2, 4)
    kept = torch.random.get_rng_state()
    a = model.generate(tokens, 12, seed=1)
    assert torch.equal(a, model.generate(tokens, 12, seed=1))
    assert not torch.equal(a, model.generate(tokens, 12, seed=2))
    assert torch.equal(kept, torch.random.get_rng_state())
    assert a.shape == (2, 12)
    assert model.generate(tokens, 0).shape == (2, 0)


def test_greedy_generation_is_the_full_pass_each_time():
    model, tokens = language_model("mamba2"), some_tokens(2, 4)
    found = model.generate(tokens, 6, temperature=0)
    assert torch.equal(found, model.generate(tokens, 6, temperature=2.0, top_k=1))
    _, state = model.prefill(tokens[:, :2])
    assert torch.equal(
        found, model.generate(tokens[:, 2:], 6, temperature=0, state=state)
    )
    for k in range(6):
        best = model(torch.cat([tokens, found[:, :k]], 1))[:, -1].argmax(-1)
        assert torch.equal(best, found[:, k])


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    p = distribution(logits, 0.5)
    torch.testing.assert_close(p, torch.softmax(logits.double() / 0.5, -1))
    assert distribution(logits, top_k=2)[0].tolist()[:3:2] == [0.0, 0.0]
    assert distribution(logits, 0.0).tolist() == [[0, 0, 0, 1]]
    generator = torch.Generator().manual_seed(0)
    drawn = sample(logits.expand(20000, 4), generator)
    share = torch.bincount(drawn, minlength=4) / 20000
    torch.testing.assert_close(
        share.double(), distribution(logits)[0], atol=0.01, rtol=0
    )
    for wrong, words in ((-1.0, "temperature is -1"), (math.inf, "temperature is inf")):
        with pytest.raises(ValueError, match=words):
            distribution(logits, wrong)
    with pytest.raises(ValueError, match="top_k is 0"):
        distribution(logits, top_k=0)
    with pytest.raises(ValueError, match="NaN"):
        sample(logits * torch.nan, generator)


def test_weights_start_as_the_authors():
    model = LanguageModel(400, 64, 4, seed=0)
    assert_mamba_init(model)
    assert model.head.weight is model.embedding.weight
    assert abs(float(model.embedding.weight.detach().std()) - 0.02) < 1e-3
    bound = 1 / math.sqrt(128) / math.sqrt(4)  # kaiming_uniform(sqrt 5) / sqrt(n_layer)
    found = float(model.layers[3].mixer.out_proj.weight.detach().abs().max())
    assert 0.95 * bound < found <= bound
    assert_mamba_init(LanguageModel(9, 32, 2, "mamba2", seed=0))
    assert LanguageModel(9, 8, 1, tie=False).head.weight.shape == (9, 8)


def test_a_seed_decides_the_weights_and_leaves_torchs_own():
    kept = torch.random.get_rng_state()
    one, same, other = (LanguageModel(9, 8, 1, seed=s) for s in (0, 0, 1))
    assert torch.equal(kept, torch.random.get_rng_state())
    assert torch.equal(
        one(some_tokens(1, 5, vocab=9)), same(some_tokens(1, 5, vocab=9))
    )
    for name in ("A_log", "D"):
        other.layers[0].mixer.get_parameter(name)
    a, b = (m.layers[0].mixer.dt_proj.bias for m in (one, other))
    assert not torch.equal(a, b)


def test_the_model_says_what_is_wrong():
    model = language_model()
    with pytest.raises(ValueError, match="span 0 to 11; this model knows 0 to 10"):
        model(torch.tensor([[0, 11]]))
    with pytest.raises(ValueError, match="span -1"):
        model(torch.tensor([[-1]]))
    with pytest.raises(ValueError, match=r"tokens are float32 of shape \(1, 2\)"):
        model(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"give whole numbers of shape \(batch,\)"):
        model.step(some_tokens(1, 2), model.empty_state(1))
    with pytest.raises(ValueError, match="tokens are a list"):
        model([[1]])
    with pytest.raises(ValueError, match="no token to continue"):
        model.generate(some_tokens(1, 0), 3)
    with pytest.raises(ValueError, match="block is 'mamba3'"):
        LanguageModel(9, 8, 1, "mamba3")
    with pytest.raises(ValueError, match="'mamba' has no option headdim"):
        LanguageModel(9, 8, 1, headdim=4)
    with pytest.raises(ValueError, match="n_layer is 0"):
        LanguageModel(9, 8, 0)


def test_another_models_state_is_refused():
    model, tokens = language_model(), some_tokens(2, 3)
    other = LanguageModel(11, 12, 3, d_state=4).empty_state(2)
    with pytest.raises(ValueError, match="3 layers, this model has 2"):
        model.prefill(tokens, other)
    for wrong in (language_model("mamba2").empty_state(2), model.empty_state(3)):
        with pytest.raises(ValueError, match="belongs to another model, or"):
            model.step(tokens[:, 0], wrong)
    assert State((LayerState(torch.ones(1), torch.ones(1)),)).batch == 1


# -- tasks --------------------------------------------------------------------------


@pytest.mark.parametrize("filler", ["random", "blank"])
@pytest.mark.parametrize(("length", "pairs", "vocab"), [(16, 4, 16), (40, 3, 10)])
def test_every_question_of_mqar_has_its_answer(length, pairs, vocab, filler):
    tokens, targets = mqar(50, length, pairs, vocab, seed=1, filler=filler)
    assert tokens.shape == targets.shape == (50, length)
    for row, wanted in zip(tokens.tolist(), targets.tolist()):
        said = dict(zip(row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]))
        assert len(said) == len(set(said.values())) == pairs
        assert all(1 <= k < vocab // 2 <= v < vocab for k, v in said.items())
        asked = [t for t, value in enumerate(wanted) if value != IGNORE]
        assert sorted(row[t] for t in asked) == sorted(said)
        assert all(said[row[t]] == wanted[t] for t in asked)
        assert all(t >= 2 * pairs and t % 2 == 0 for t in asked)
        rest = [row[t] for t in range(2 * pairs, length) if t not in asked]
        assert all(0 <= t < vocab for t in rest)
        assert filler == "random" or set(rest) <= {0}
    again, other = (
        mqar(50, length, pairs, vocab, seed=s, filler=filler) for s in (1, 2)
    )
    assert torch.equal(tokens, again[0])
    assert not torch.equal(tokens, other[0])


def test_numbers_of_pairs_take_turns():
    draw = recall_batches(3, (1, 2, 4), seed=5, length=16, vocab=16)
    asked = [int((draw(step)[1] != IGNORE).sum()) for step in range(4)]
    assert asked == [3, 6, 12, 3]
    assert torch.equal(draw(2)[0], draw(2)[0])
    assert not torch.equal(draw(0)[0], draw(3)[0])


def test_the_gaps_follow_the_power_law():
    _, targets = mqar(4000, 64, 1, 16, power=0.01, filler="blank")
    places = (targets != IGNORE).nonzero()[:, 1]
    share = np.bincount((places - 2) // 2, minlength=31) / 4000
    weight = np.arange(1, 32) ** (0.01 - 1)
    np.testing.assert_allclose(share, weight / weight.sum(), atol=0.03)


def test_copying_and_induction_by_brute_force():
    tokens, targets = selective_copying(30, 20, 5, 9, seed=2)
    assert tokens.shape == (30, 25)
    for row, wanted in zip(tokens.tolist(), targets.tolist()):
        assert [t for t in row[:20] if t] == wanted[20:]
        assert row[20:] == [1] * 5
        assert set(wanted[:20]) == {IGNORE}
    tokens, targets = induction_heads(200, 12, 7, seed=2)
    for row, wanted in zip(tokens.tolist(), targets.tolist()):
        first = row.index(6)
        assert row.count(6) == 2
        assert row[-1] == 6
        assert wanted == [IGNORE] * 11 + [row[first + 1]]


def test_tasks_say_what_is_wrong():
    for words, match in (
        ({"length": 14}, r"length is 14; give an even one of at least 4 \* pairs = 16"),
        ({"length": 17}, "length is 17"),
        ({"vocab": 8}, "pairs is 4; 8 tokens have 3 keys"),
        ({"filler": "noise"}, "filler is 'noise'"),
    ):
        with pytest.raises(ValueError, match=match):
            mqar(2, **{"length": 32, "pairs": 4} | words)
    with pytest.raises(ValueError, match="memorize is 9, more than length 8"):
        selective_copying(1, 8, 9)
    with pytest.raises(ValueError, match="length is 2"):
        induction_heads(1, 2)
    with pytest.raises(ValueError, match="part is 'validation'"):
        source_bytes("validation")


def test_the_text_is_the_pinned_one():
    """A new scikit-learn in environment.yml changes this: record notebook 14 again."""
    import hashlib

    digests = {
        part: hashlib.sha256(bytes(source_bytes(part).tolist())).hexdigest()[:16]
        for part in ("train", "test")
    }
    sizes = {part: len(source_bytes(part)) for part in digests}
    assert (text_origin(), sizes, digests) == PINNED
    assert text_of(source_bytes("train", 60)).startswith("# Authors: The scikit-learn")


PINNED = (
    "scikit-learn 1.9.1",
    {"train": 423205, "test": 83080},
    {"train": "d2aca766daa92ff4", "test": "cf71fa1dc7f436a4"},
)


# -- training -----------------------------------------------------------------------


def test_what_shapes_time_is_not_decayed():
    model = LanguageModel(9, 8, 2, selective=("delta", "B"))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {
        g["name"]: [names[id(p)] for p in g["params"]] for g in param_groups(model)
    }
    assert sum(map(len, groups.values())) == len(names)
    ends = {name.partition("mixer.")[2] for name in groups["decayed"]}
    assert ends == {
        *("", "in_proj.weight", "conv1d.weight", "x_proj.weight", "dt_proj.weight"),
        "out_proj.weight",
    }
    decays = {g["name"]: g["weight_decay"] for g in param_groups(model)}
    assert decays == {"decayed": 0.1, "plain": 0.0}
    two = param_groups(Mamba2(8, headdim=4))
    assert {p.ndim for p in two[1]["params"]} == {1}
    frozen = Mamba(8, selective=False).dt_proj.weight
    assert not frozen.requires_grad
    with pytest.raises(ValueError, match="lr is 0"):
        param_groups(model, 0)


def recall_run(steps=6, checkpoint=None, on_step=None, **more):
    model = LanguageModel(8, 8, 1, d_state=4, seed=0)
    batches = recall_batches(4, seed=0, length=8, pairs=1, vocab=8)
    history = train(
        *(model, batches),
        **{"steps": steps, "checkpoint": checkpoint, "every": 2} | more,
        on_step=on_step,
    )
    return model, history


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    whole, history = recall_run()
    assert len(history["loss"]) == 6

    def kill(step, steps, loss):
        if step == 5:
            raise KeyboardInterrupt

    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        recall_run(checkpoint=path, on_step=kill)
    seen = []
    again, other = recall_run(checkpoint=path, on_step=lambda *a: seen.append(a[0]))
    assert seen == [5, 6]
    assert other == history
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="belongs to another run: steps was 6, is 7"):
        recall_run(7, path)


def test_training_says_what_is_wrong():
    for words, match in (
        ({"steps": 0}, "steps is 0"),
        ({"clip": 0}, "clip is 0"),
        ({"warmup": 1.0}, "warmup is 1.0"),
    ):
        with pytest.raises(ValueError, match=match):
            recall_run(**words)
    model = LanguageModel(8, 8, 1)
    with torch.no_grad():
        model.embedding.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        train(model, recall_batches(2, length=8, pairs=1, vocab=8), steps=1)
    tokens = some_tokens(1, 4, vocab=8)
    with pytest.raises(ValueError, match="ask for nothing"):
        recall_accuracy(model, tokens, torch.full_like(tokens, IGNORE))


def test_recall_of_one_pair_is_learnt():
    model = LanguageModel(8, 16, 1, d_state=8, seed=0)
    task = {"length": 8, "pairs": 1, "vocab": 8, "filler": "blank"}
    rows = mqar(200, seed=99, **task)
    before = recall_accuracy(model, *rows)
    train(model, recall_batches(32, **task), steps=60, lr=1e-2)
    assert before < 0.6
    assert recall_accuracy(model, *rows) > 0.95


def test_the_loss_counts_what_is_asked():
    logits, targets = torch.randn(2, 3, 5), torch.full((2, 3), IGNORE)
    targets[1, 2] = 4
    expected = -torch.log_softmax(logits[1, 2], -1)[4]
    torch.testing.assert_close(cross_entropy(logits, targets), expected)


# -- text ---------------------------------------------------------------------------


def naive_ngram(train, test, order, vocab):
    """Witten-Bell by dictionaries."""

    def p(c, h):
        after = [train[i + len(h)] for i in range(len(train) - len(h))]
        after = [a for i, a in enumerate(after) if train[i : i + len(h)] == h]
        below = p(c, h[1:]) if h else 1 / vocab
        t = len(set(after))
        return (after.count(c) + t * below) / (len(after) + t) if after else below

    asked = range(order, len(test))
    return -np.mean([math.log2(p(test[i], test[i - order : i])) for i in asked])


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_the_ngram_is_witten_and_bells(order):
    one, two = (some_tokens(n, vocab=4, seed=n) + 100 for n in (90, 40))
    found = ngram_bits(one, two, order, vocab=256)
    expected = naive_ngram(one.tolist(), two.tolist(), order, 256)
    assert abs(found - expected) < 1e-12
    unseen = ngram_bits(one, two + 60, order)
    assert unseen > found


def test_bits_per_byte_of_a_uniform_guess():
    class Uniform(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(()))

        def forward(self, tokens):
            return torch.zeros(*tokens.shape, 256) + self.p

    text = source_bytes("test", 1000)
    assert abs(bits_per_byte(Uniform(), text, 64) - 8) < 1e-5
    with pytest.raises(ValueError, match="has 1000 bytes; length is 1000"):
        bits_per_byte(Uniform(), text, 1000)


def test_bits_per_byte_is_the_mean_over_windows():
    model = LanguageModel(256, 8, 1, seed=0)
    text = source_bytes("test", 70)
    with torch.no_grad():
        losses = [
            functional.cross_entropy(model(w[None, :-1])[0], w[1:])
            for w in text[:66].split(33)
        ]
    expected = float(torch.stack(losses).mean()) / math.log(2)
    assert abs(bits_per_byte(model, text, 32) - expected) < 1e-5


def test_windows_are_of_the_text_and_of_the_step():
    text = torch.arange(100)
    batches = text_batches(text, 5, 10, seed=1)
    tokens, targets = batches(3)
    assert tokens.shape == (5, 10)
    assert torch.equal(tokens + 1, targets)
    assert torch.equal(tokens[:, 1:] - tokens[:, :-1], torch.ones(5, 9).long())
    assert torch.equal(tokens, batches(3)[0])
    assert not torch.equal(tokens, batches(4)[0])
    with pytest.raises(ValueError, match="has 100 bytes; length is 100"):
        text_batches(text, 5, 100)
