"""Fine-tuning and decoding a recogniser, and error rates by jiwer."""

import pytest
import torch
from conftest import edit_distance
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.speech.batches import Batch
from lib.speech.conformer import Conformer, Recogniser
from lib.speech.ctc import transcripts
from lib.speech.masking import generator
from lib.speech.pretraining import Recipe
from lib.speech.recognition import (
    FINE_TUNE,
    SCRATCH,
    Tuning,
    error_rate,
    fine_tune,
    recognise,
    recognition_loss,
)

CODES = torch.randn(4, 40, generator=generator(9))


def made(rows, targets):
    """A batch of frames (T, 40) and symbol lists."""
    pad = torch.nn.utils.rnn.pad_sequence
    sizes = [torch.tensor([len(part) for part in side]) for side in (rows, targets)]
    symbols = pad([torch.tensor(y) for y in targets], True)
    return Batch(pad(rows, True), sizes[0], symbols, sizes[1], None, None)


def spoken(n=4, seed=0):
    """Utterances that speak each symbol for three frames, a little noisy."""
    targets, rows = [], []
    for i in range(n):
        g = generator(seed, i)
        y = torch.randint(1, 4, (3 + i % 3,), generator=g)
        x = CODES[y].repeat_interleave(3, 0)
        x = torch.cat([CODES[:1], x, CODES[:1]])
        rows.append(x + 0.1 * torch.randn(x.shape, generator=g))
        targets.append(y.tolist())
    return made(rows, targets)


def said(batch):
    return transcripts(batch.targets, batch.target_lengths)


def model(seed=0, conditioned=False):
    torch.manual_seed(seed)
    sizes = {"features": 40, "d": 16, "blocks": 2, "heads": 2, "kernel": 3}
    return Recogniser(Conformer(**sizes), 3, conditioned)


def quick(steps=10, **options):
    recipe = Recipe(steps=steps, lr=1e-2, warmup=0.1, decay="linear")
    return Tuning(recipe, **({"bands": 5, "span": 2} | options))


pytestmark = pytest.mark.usefixtures("one_thread")


def clones(module):
    return {n: p.detach().clone() for n, p in module.named_parameters()}


# -- the recipes --------------------------------------------------------------------


def test_the_recipes_are_those_of_the_specification():
    for tuning, lr, encoder, frozen in (
        (FINE_TUNE, 3e-3, 0.3, 0.3),
        (SCRATCH, 2e-3, 1.0, 0.0),
    ):
        assert (tuning.recipe.lr, tuning.encoder, tuning.frozen) == (
            lr,
            encoder,
            frozen,
        )
        assert (tuning.recipe.steps, tuning.recipe.decay) == (300, "linear")
        assert (tuning.share, tuning.span, tuning.bands) == (0.1, 4, 7)


def test_a_frozen_encoder_does_not_move_and_then_does():
    recogniser, batch = model(), spoken()
    start, seen = clones(recogniser), []

    def watch(done):
        now = clones(recogniser)
        still = all(
            torch.equal(now[n], start[n]) for n in now if n.startswith("encoder")
        )
        seen.append((still, torch.equal(now["out.weight"], start["out.weight"])))

    fine_tune(recogniser, lambda step: batch, quick(10, frozen=0.3), after=watch)
    assert seen == [(True, False)] * 3 + [(False, False)] * 7


def test_from_scratch_everything_moves_at_once():
    recogniser, batch = model(conditioned=True), spoken()
    start = clones(recogniser)
    fine_tune(recogniser, lambda step: batch, quick(1, frozen=0.0, encoder=1.0))
    now = clones(recogniser)
    assert [n for n in now if torch.equal(now[n], start[n])] == []


def test_an_interrupted_fine_tuning_ends_with_the_same_bits(tmp_path):
    batch, path = spoken(), tmp_path / "run.pt"
    whole, part, resumed = model(), model(), model(5)

    def stop(done):
        if done == 6:
            raise KeyboardInterrupt

    a = fine_tune(whole, lambda step: batch, quick(), seed=2)
    options = {"seed": 2, "path": path, "every": 2}
    with pytest.raises(KeyboardInterrupt):
        fine_tune(part, lambda step: batch, quick(), after=stop, **options)
    b = fine_tune(resumed, lambda step: batch, quick(), **options)
    assert a == b
    first, second = clones(whole), clones(resumed)
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_it_learns_to_read_a_toy_language():
    recogniser, batch = model(), spoken(12)
    tuning = quick(150, frozen=0.0, encoder=1.0, share=0.0, bands=0)
    history = fine_tune(recogniser, lambda step: batch, tuning)
    assert history["ctc"][-1] < 0.3 < history["ctc"][0]
    new = spoken(8, seed=77)
    heard = recognise(recogniser, [new])
    assert error_rate(said(new), heard).rate < 0.2
    beam = recognise(recogniser, [new], width=4)
    assert error_rate(said(new), beam).rate < 0.2


def test_transcripts_that_do_not_fit_are_named():
    batch = spoken()
    rows = [x[:T] for x, T in zip(batch.features, batch.lengths)]
    long = made(rows, [[1, 1] * 9, *said(batch)[1:]])
    with pytest.raises(ValueError, match="utterance 0 needs 35 frames"):
        fine_tune(model(), lambda step: long, quick())
    empty = made(rows, [[], *said(batch)[1:]])
    with pytest.raises(ValueError, match="utterance 0 is empty; leave"):
        fine_tune(model(), lambda step: empty, quick())


@torch.no_grad()
def test_the_middle_output_has_its_share_of_the_loss():
    batch, recogniser = spoken(), model(conditioned=True).eval()
    outputs, y = recogniser(batch.features, batch.lengths), said(batch)
    end, middle = (
        float(recognition_loss([part], batch.lengths, y)) for part in outputs
    )
    both = float(recognition_loss(outputs, batch.lengths, y, 0.25))
    assert both == pytest.approx(0.75 * end + 0.25 * middle)
    assert end != pytest.approx(middle, rel=1e-3)


def test_the_loss_counts_every_utterance_alike():
    rows = [torch.randn(n, 4, generator=generator(n)).log_softmax(-1) for n in (9, 4)]
    y = [[1, 2, 3, 3], [2]]
    alone = [float(recognition_loss([r[None]], None, [t])) for r, t in zip(rows, y)]
    both = torch.nn.utils.rnn.pad_sequence(rows, True)
    loss = recognition_loss([both], torch.tensor([9, 4]), y)
    assert float(loss) == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_recognition_has_no_dropout_and_leaves_the_mode():
    batch, recogniser = spoken(), model().train()
    first = recognise(recogniser, [batch])
    assert first == recognise(recogniser, [batch])
    assert recogniser.training
    rows = zip(batch.features, batch.lengths, said(batch))
    alone = [made([x[:T]], [y]) for x, T, y in rows]
    assert recognise(recogniser, alone) == first


@pytest.mark.parametrize("name", ["frozen", "middle"])
def test_wrong_shares_are_named(name):
    with pytest.raises(ValueError, match=f"{name} is 1.0; give a share"):
        quick(**{name: 1.0})


# -- error rates --------------------------------------------------------------------


symbols = st.lists(st.integers(1, 5), max_size=8)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(symbols.filter(bool), symbols), min_size=1, max_size=4))
def test_the_rate_is_the_pooled_edit_distance(pairs):
    references, hypotheses = ([list(y) for y in side] for side in zip(*pairs))
    found = error_rate(references, hypotheses)
    errors = sum(edit_distance(a, b) for a, b in pairs)
    assert found.symbols == sum(len(a) for a, _ in pairs)
    assert found.substitutions + found.deletions + found.insertions == errors
    assert found.rate == pytest.approx(errors / found.symbols)


def test_words_and_phones_are_counted_alike():
    found = error_rate([["two", "black", "cats"], ["ʃ"]], [["two", "cats"], ["s", "t"]])
    assert found == (0.75, 1, 1, 1, 4)


BAD = [
    ([[]], [["a"]], "reference of utterance 0 is empty"),
    ([["a"]], [], "1 references and 0 hypotheses"),
    ([], [], "at least one"),
    (["a b"], ["a b"], "give a list of words or phones"),
    ([["a b"]], [["a"]], "holds a blank"),
    ([["a"]], [[""]], "is empty or holds a blank"),
]


@pytest.mark.parametrize(("references", "hypotheses", "words"), BAD)
def test_bad_input_gets_a_sentence(references, hypotheses, words):
    with pytest.raises(ValueError, match=words):
        error_rate(references, hypotheses)
