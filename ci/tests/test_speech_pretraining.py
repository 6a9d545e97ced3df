"""The training loop: same bits after an interruption, skipped losses, moving groups."""

import math

import pytest
import torch
from torch import nn

from lib.codebooks import EMACodebook, RandomProjection, gumbel_select
from lib.speech.conformer import Conformer, without_dropout
from lib.speech.masking import generator
from lib.speech.pretraining import (
    CosineHead,
    Loss,
    Masked,
    Predictor,
    Recipe,
    cross_entropy,
    follow,
    gradient_norm,
    normalised,
    train,
    unmoved,
)

LENGTHS = torch.tensor([12, 9, 5])
STEPS = Recipe(steps=6, lr=1e-2)


pytestmark = pytest.mark.usefixtures("one_thread")


def predictor(seed=0, heads=None, **options):
    torch.manual_seed(seed)
    sizes = {"features": 6, "d": 16, "blocks": 2, "heads": 2, "kernel": 3}
    heads = heads or {"anchor": 8, "own": 8}
    return Predictor(Conformer(**sizes), heads, p=0.2, span=3, **options)


def batch(step):
    """Three utterances of one of four batches: x and the lengths."""
    return torch.randn(3, 12, 6, generator=generator(step % 4)), LENGTHS


QUANTIZER = RandomProjection(6, 4, 8)
SECOND = RandomProjection(16, 4, 8, seed=1)


def losses(model, w1=0.0, w2=1.0, detached=False):
    """BEST-RQ as "anchor" and a loss with the model's own labels as "own"."""

    def anchor(given, g):
        masked, (x, _) = given
        return model.loss(masked, QUANTIZER(x), "anchor")

    def own(given, g):
        masked, (x, lengths) = given
        with without_dropout(model):
            z = normalised(model.encoder(x, lengths, depth=1)[-1], lengths)
        y = gumbel_select(SECOND.logits(z, 5.0), 0.5, generator=g)
        return model.loss(masked, y.detach() if detached else y, "own")

    return {"own": Loss(own, w1), "anchor": Loss(anchor, w2)}


def prepared(model):
    return lambda given, g: (model(*given, g), given)


def run(model, w1=0.0, w2=1.0, recipe=STEPS, **options):
    how = {"prepare": prepared(model), "seed": 3} | options
    return train(model, losses(model, w1, w2), batch, recipe, **how)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def equal(a, b):
    """Whether two histories are the same, nan included."""
    return a.keys() == b.keys() and all(
        torch.equal(torch.tensor(a[n]), torch.tensor(b[n]))
        or torch.allclose(torch.tensor(a[n]), torch.tensor(b[n]), 0, 0, equal_nan=True)
        for n in a
    )


# -- interruption (O19) -------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, stop):
    whole = predictor()
    history = run(whole, w1=0.5)
    path, calls = tmp_path / "run.pt", []

    class Stopped(Exception):
        pass

    def interrupt(done):
        calls.append(done)
        if done == stop and stop < 6:
            raise Stopped

    part = predictor()
    options = {"w1": 0.5, "path": path, "every": 2}
    if stop < 6:
        with pytest.raises(Stopped):
            run(part, after=interrupt, **options)
    else:
        run(part, after=interrupt, **options)
    torch.manual_seed(999)  # whatever the new process drew before
    # Without a checkpoint yet, the run starts again.
    resumed = predictor(seed=7 if path.exists() else 0)
    again = run(resumed, after=calls.append, **options)
    assert same(whole, resumed)
    assert equal(history, again)
    # From the last checkpoint on, and nothing after a finished run.
    left = [] if stop == 6 else list(range((stop - 1) // 2 * 2 + 1, 7))
    assert calls == list(range(1, stop + 1)) + left


def test_ema_state_comes_back_with_a_checkpoint(tmp_path):
    def fresh(seed):
        model = predictor(seed)
        model.book = EMACodebook(6, 8, seed=seed)
        return model

    def go(model, recipe, **options):
        def loss(given, g):
            x = given[0]
            labels = model.book(x)
            model.book.update(x, labels)
            return model.loss(model(*given, g), labels, "anchor")

        heads = {"l": Loss(loss)}
        return train(model, heads, batch, recipe, seed=1, **options)

    whole = fresh(0)
    go(whole, STEPS)
    part, path = fresh(0), tmp_path / "run.pt"

    def stop(done):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(part, STEPS, path=path, every=2, after=stop)
    resumed = fresh(4)
    go(resumed, STEPS, path=path, every=2)
    assert same(whole, resumed)


def test_another_runs_checkpoint_is_named(tmp_path):
    path = tmp_path / "run.pt"
    run(predictor(), path=path, settings={"data": "en"})
    with pytest.raises(ValueError, match="data was en, is de"):
        run(predictor(), path=path, settings={"data": "de"})
    with pytest.raises(ValueError, match="seed was 3, is 4"):
        run(predictor(), path=path, settings={"data": "en"}, seed=4)


def test_a_run_repeats_and_another_seed_differs():
    models = [predictor() for _ in range(3)]
    for model, seed in zip(models, (3, 3, 4)):
        run(model, seed=seed)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_training_leaves_the_global_generator_and_the_mode_alone():
    model = predictor().eval()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    run(model)
    assert torch.equal(torch.rand(2), expected)
    assert not model.training


# -- weights (O10, O11) -------------------------------------------------------------


def test_a_loss_of_weight_0_leaves_the_bits_of_the_run_without_it():
    both, alone = predictor(), predictor()
    history = run(both, w1=0.0)
    part = {"anchor": losses(alone)["anchor"]}
    train(alone, part, batch, STEPS, prepare=prepared(alone), seed=3)
    assert same(both, alone)
    assert all(math.isnan(value) for value in history["own"])


def test_a_skipped_loss_may_be_nan():
    model = predictor()

    def broken(given, g):
        return model.heads["own"].weight.sum() * math.nan

    parts = {"broken": Loss(broken, 0.0), "anchor": losses(model)["anchor"]}
    train(model, parts, batch, STEPS, prepare=prepared(model), seed=3)
    other = predictor()
    run(other)
    assert same(model, other)


def test_dropout_of_one_loss_does_not_move_the_draws_of_another():
    model, other = predictor(), predictor()

    def twice(given, g):
        model(*given[1], g)  # draws more
        return losses(model)["anchor"].of(given, g)

    two = {"own": Loss(twice, 1e-30), "anchor": losses(model)["anchor"]}
    a = train(model, two, batch, STEPS, prepare=prepared(model), seed=3)
    b = run(other)
    assert a["anchor"] == pytest.approx(b["anchor"], rel=1e-4)
    assert a["anchor"][0] == b["anchor"][0]


def test_a_weight_may_follow_a_schedule():
    def weight(step):
        return max(0.0, step - 2.0)

    model = predictor()
    parts = losses(model)
    parts["own"] = parts["own"]._replace(weight=weight)
    h = train(model, parts, batch, STEPS, prepare=prepared(model), seed=3)
    assert [math.isnan(v) for v in h["own"]] == [True] * 3 + [False] * 3
    for step in range(6):
        own = weight(step) * h["own"][step] if step > 2 else 0.0
        assert h["loss"][step] == pytest.approx(own + h["anchor"][step], rel=1e-6)


# -- every group moves (trap 2) ------------------------------------------------------


@pytest.mark.parametrize("learned", [False, True])
def test_every_parameter_moves_after_one_step(learned):
    model = predictor(learned=learned)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run(model, w1=1.0, recipe=Recipe(steps=1, weight_decay=0.0))
    assert unmoved(before, model) == []


def test_a_penalty_that_lost_its_gradient_shows_in_unmoved_parameters():
    model = predictor()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    parts = losses(model, 1.0)
    lost = parts["own"].of

    def item(given, g):
        return torch.tensor(lost(given, g).item())

    parts["own"] = Loss(item, 1.0)
    how = {"prepare": prepared(model), "seed": 3}
    train(model, parts, batch, Recipe(steps=1, weight_decay=0.0), **how)
    assert unmoved(before, model) == ["heads.own.weight", "heads.own.bias"]
    with pytest.raises(ValueError, match=r"look for \.item\(\)"):
        train(model, {"own": parts["own"]}, batch, STEPS, **how)


def test_groups_have_their_own_rates():
    model = predictor()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    groups = {"encoder": (model.encoder, 0.01), "heads": (model.heads, 1.0)}
    run(model, 1.0, recipe=Recipe(steps=1, lr=1e-3, weight_decay=0.0), groups=groups)
    now = {n: p.detach() for n, p in model.named_parameters()}
    moved = {n: float((now[n] - before[n]).abs().max()) for n in now}
    # Adam's first step is the rate itself wherever the gradient is not tiny.
    for name, value in moved.items():
        rate = 1e-5 if name.startswith("encoder") else 1e-3
        assert value == pytest.approx(rate, rel=0.02), name


def test_groups_must_hold_every_parameter_once():
    model = predictor()
    with pytest.raises(ValueError, match=r"missing: heads\.anchor\.bias"):
        run(model, groups={"encoder": (model.encoder, 1.0)})
    twice = {"all": (model, 1.0), "heads": (model.heads, 1.0)}
    with pytest.raises(ValueError, match=r"of the model once\.$"):
        run(model, groups=twice)


def test_gradient_norms_of_single_paths():
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    v = torch.ones(2, requires_grad=True)
    assert gradient_norm(w.square().sum() / 2, [w, v]) == pytest.approx(5)
    assert gradient_norm(w.sum(), [v]) == 0


def test_the_gradient_goes_through_the_labels_unless_they_are_detached():
    model = predictor()
    given = model(*batch(0), generator(1)), batch(0)
    given = given[0]._replace(hidden=[h.detach() for h in given[0].hidden]), given[1]
    through = losses(model, 1.0)["own"].of(given, generator(2))
    cut = losses(model, 1.0, detached=True)["own"].of(given, generator(2))
    assert torch.equal(through, cut)
    encoder = list(model.encoder.parameters())
    assert gradient_norm(through, encoder) > 0
    assert gradient_norm(cut, encoder) == 0


# -- what goes wrong ----------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    model = predictor()

    def broken(given, g):
        return model.heads["own"].weight.sum() * math.inf

    with pytest.raises(FloatingPointError, match="step 0: lower lr"):
        train(model, {"broken": Loss(broken)}, batch, STEPS)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoilt():
    model = predictor()

    def steep(given, g):  # sqrt has slope inf at 0
        return (model.heads["own"].weight.sum() * 0).sqrt()

    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(FloatingPointError, match="norm is nan at step 0"):
        train(model, {"steep": Loss(steep)}, batch, STEPS)
    assert len(unmoved(before, model)) == len(before)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Recipe(steps=0), "steps is 0"),
        (lambda: Recipe(lr=0.0), "lr is 0.0"),
        (lambda: Recipe(decay="cos"), "Did you mean cosine"),
        (lambda: Recipe(warmup=1.0), "warmup is 1.0"),
        (lambda: run(predictor(), 0.0, 0.0), "All losses have weight 0 at step 0"),
        (lambda: train(predictor(), {"loss": Loss(min)}, batch, STEPS), "named so"),
        (lambda: CosineHead(4, 3, tau=0.0), "positive temperature"),
        (lambda: cross_entropy(torch.ones(3, 4), torch.ones(2)), "one code or V"),
        (
            lambda: normalised(torch.ones(1, 3, 2), None, "channel"),
            "choose one of utterance, frame",
        ),
        (lambda: follow(nn.Linear(2, 2), nn.Linear(2, 2), 1.5), "decay is 1.5"),
        (
            lambda: predictor().loss(
                Masked([torch.ones(1, 2, 16)], torch.ones(1, 2).bool()),
                torch.zeros(1, 2).long(),
                "anchr",
            ),
            "Did you mean anchor",
        ),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# -- the schedule -------------------------------------------------------------------


def test_the_rate_rises_and_falls_as_the_recipe_says():
    cosine = Recipe(steps=100, lr=2.0, warmup=0.08)
    rates = [cosine.rate(step) for step in range(100)]
    assert rates[:8] == pytest.approx([2 * (i + 1) / 8 for i in range(8)])
    assert rates[8] == pytest.approx(2.0)
    assert rates[54] == pytest.approx(1.0)
    assert rates[8:] == sorted(rates[8:], reverse=True)
    assert 0 < rates[99] < 0.002
    linear = Recipe(steps=100, lr=2.0, warmup=0.1, decay="linear", hold=0.5)
    rates = [linear.rate(step) for step in range(100)]
    assert rates[10:51] == pytest.approx([2.0] * 41)
    assert rates[75] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.04)
    flat = Recipe(steps=10, lr=2.0, warmup=0.0, decay="none")
    assert {flat.rate(step) for step in range(10)} == {2.0}


# -- masked prediction --------------------------------------------------------------


def test_longer_padding_changes_no_loss():
    model = predictor().eval()
    x, lengths = batch(0)
    found = []
    for extra in (0, 7):
        padded = nn.functional.pad(x, (0, 0, 0, extra), value=3.0)
        masked = model(padded, lengths, generator(4))
        found.append(float(model.loss(masked, QUANTIZER(padded), "anchor").detach()))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_the_loss_is_the_mean_over_masked_frames_only():
    model = predictor().eval()
    x, lengths = batch(1)
    masked, labels = model(x, lengths, generator(4)), QUANTIZER(x)
    logits = model.heads["anchor"](masked.hidden[-1]).log_softmax(-1)
    values = [-logits[b, t, labels[b, t]] for b, t in masked.mask.nonzero().tolist()]
    assert 0 < len(values) < int(lengths.sum())
    expected = torch.stack(values).mean()
    torch.testing.assert_close(model.loss(masked, labels, "anchor"), expected)
    soft = nn.functional.one_hot(labels, 8).float()
    torch.testing.assert_close(model.loss(masked, soft, "anchor"), expected)
    torch.testing.assert_close(masked.frames(1), masked.hidden[1][masked.mask])


def test_a_batch_without_a_mask_costs_nothing():
    model = predictor()
    model.p = 0.0
    x, lengths = batch(0)
    loss = model.loss(model(x, lengths, generator(0)), QUANTIZER(x), "anchor")
    assert float(loss.detach()) == 0
    loss.backward()


def test_the_cosine_head_is_bounded_by_one_over_tau():
    torch.manual_seed(0)
    head, h = CosineHead(16, 9, d_c=5, tau=0.1), 100 * torch.randn(50, 16)
    logits = head(h)
    expected = nn.functional.cosine_similarity(head.A(h)[:, None], head.codes, dim=-1)
    torch.testing.assert_close(logits, 10 * expected)
    assert predictor(heads={"cos": CosineHead(16, 9)}).heads["cos"].codes.shape[0] == 9


def test_normalised_states_have_mean_0_and_variance_1_without_the_padding():
    h = 5 + 3 * torch.randn(3, 12, 4, generator=generator(0))
    z = normalised(h, LENGTHS)
    for i, T in enumerate(LENGTHS.tolist()):
        torch.testing.assert_close(z[i, :T].mean(0), torch.zeros(4), atol=1e-5, rtol=0)
        ones = torch.ones(4)
        assert torch.allclose(z[i, :T].std(0, correction=0), ones, atol=1e-3)
        assert not z[i, T:].any()
        torch.testing.assert_close(normalised(h[i : i + 1, :T], None)[0], z[i, :T])
    frame = normalised(h, LENGTHS, over="frame")
    torch.testing.assert_close(frame[0], nn.functional.layer_norm(h[0], (4,)))
    assert not frame[2, 5:].any()


def test_a_teacher_follows_its_student():
    a, b = nn.Linear(2, 3), nn.Linear(2, 3)
    expected = [0.9 * p + 0.1 * q for p, q in zip(a.parameters(), b.parameters())]
    follow(a, b, 0.9)
    for p, q in zip(a.parameters(), expected):
        torch.testing.assert_close(p.detach(), q.detach())


def test_it_learns_to_predict_labels_of_masked_frames():
    model = predictor(heads={"anchor": 8}, std=0.0)
    # A label that its own neighbours show: the sign pattern lasts for the utterance.
    centre = torch.randn(8, 6, generator=generator(1))

    def repeated(step):
        which = torch.randint(8, (6,), generator=generator(2, step))
        return centre[which][:, None].repeat(1, 12, 1), torch.full((6,), 12), which

    def loss(given, g):
        x, lengths, which = given
        labels = which[:, None].repeat(1, 12)
        return model.loss(model(x, lengths, g), labels, "anchor")

    h = train(model, {"l": Loss(loss)}, repeated, Recipe(steps=80, lr=3e-3))
    assert sum(h["l"][-10:]) < 0.7 * sum(h["l"][:10])
