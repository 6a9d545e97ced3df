"""lib.objective_soup: parallel speech, its batches, and the model (O-24)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.objective_soup import (
    CPC,
    Audio,
    Decoder,
    Encoded,
    Feed,
    Order,
    Sizes,
    Soup,
    check_meanings,
    halves,
    load_soup,
    losses,
    save_soup,
    shipped_world,
    side_by_side,
    world_of,
)
from lib.objective_soup.world import END, IGNORED, Examples, different, shortened
from lib.speech.conformer import without_dropout
from lib.speech.ctc import frames_needed
from lib.speech.grammar import parse, sentence
from lib.speech.masking import generator
from lib.speech.synthesis import plan

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Sizes(d=16, blocks=2, heads=2, layers=2)
PARTS = ("train", "pool", "validation", "test")


@pytest.fixture(scope="module")
def world():
    return shipped_world()


@pytest.fixture(scope="module")
def model(world):
    return Soup(world, SMALL)


# -- the world ----------------------------------------------------------------------


def test_objectives_are_named_and_counted(world):
    names = ("asr_en", "asr_de", "asr_fr", "st_de", "st_fr", "ssl")
    assert world.objectives == names
    assert len(shipped_world(("en", "de", "fr", "zh")).objectives) == 8
    assert shipped_world(("fr",)).objectives == ("asr_fr", "st_fr", "ssl")


def test_languages_say_the_same_meanings_each_in_its_own_words(world):
    for part in PARTS:
        first, *others = getattr(world, part).values()
        for corpus in others:
            same = corpus.column("translation") == first.column("translation")
            assert same.all()
    for language, corpus in world.test.items():
        said = set()
        for text, english in zip(corpus.column("text"), corpus.column("translation")):
            meaning = parse(text, language)
            assert sentence(meaning, "en") == english
            said.add(meaning)
        assert len(said) == len(corpus)


def test_held_out_meanings_are_said_nowhere_else(world):
    check_meanings(world)
    seen = {t for c in world.pool.values() for t in c.column("translation")}
    for part in ("test", "validation"):
        for corpus in getattr(world, part).values():
            assert not seen & set(corpus.column("translation"))
    leaking = replace(world, pool=world.pool | {"de": world.test["fr"]})
    with pytest.raises(ValueError, match="is said in test and in pool; hold out"):
        check_meanings(leaking)


def test_targets_are_the_words_and_fit_the_frames(world):
    for language, corpus in world.train.items():
        for i in range(0, len(corpus), 9):
            said = corpus[i]
            assert world.words[language].decode(said.target) == said.text
            frames = math.ceil(len(said.features) / SMALL.stack)
            assert frames >= frames_needed(said.target.tolist())
    assert len(world.words["en"]) == 25
    assert world.words["fr"].units == "words"


def test_a_bare_object_keeps_its_noun_and_its_place():
    asked = plan(("en", "de", "fr", "zh"), unlabelled=30, labelled=4, test=4)
    for request in asked:
        short = shortened(request)
        words, whole = short.text.split(), request.text.split()
        assert 0 < len(whole) - len(words) <= 4
        left = iter(whole)
        assert all(word in left for word in words)  # in the order of the sentence
        assert len(short.translation.split()) == len(request.translation.split()) - 2
    first = shortened(asked[0])
    assert first.translation.split()[:2] == asked[0].translation.split()[:2]


def test_short_sentences_are_chosen_alike_in_all_languages_and_held_out():
    numbers = {"test": 30, "labelled": 20, "unlabelled": 300}
    asked = plan(("de", "fr"), **{n: 2 * k for n, k in numbers.items()}, width=3)
    chosen = different(map(shortened, asked), numbers)
    said = {
        (language, split): [
            r.translation for r in chosen if (r.language, r.split) == (language, split)
        ]
        for language in ("de", "fr")
        for split in numbers
    }
    for split, number in numbers.items():
        assert said["de", split] == said["fr", split]
        assert len(set(said["de", split])) == number
    assert len({t for row in said.values() for t in row}) == sum(numbers.values())
    short = [shortened(r) for r in plan("de", unlabelled=9, labelled=0, test=0)]
    with pytest.raises(ValueError, match="20 test meanings were asked for in de"):
        different(short, {"test": 20})


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"languages": ("en", "es")}, "A language is 'es'; choose one of en, de"),
        ({"languages": ("de", "de")}, "name each once"),
        ({"languages": ()}, "No language is named"),
        ({"speech": "sung"}, "choose one of shipped, spoken, real"),
        ({"corpora": ["de=x"]}, "speech is 'shipped'; make it \"real\""),
        ({"labelled": 3}, "leave these out"),
        ({"speech": "real"}, "The corpora are none; give entries such as"),
        ({"speech": "spoken", "labelled": 9, "pool": 3}, "9 are labelled of a pool"),
    ],
)
def test_a_world_that_cannot_be_gets_a_sentence(asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        world_of(**({"speech": "shipped"} | asked))


# -- batches ------------------------------------------------------------------------


@pytest.mark.parametrize("alike", [False, True])
def test_an_epoch_takes_every_utterance_once(alike):
    lengths = np.random.default_rng(0).integers(20, 90, 41)
    order = Order(lengths, 8, seed=3, alike=alike)
    epochs = [np.concatenate([order.at(5 * e + k) for k in range(5)]) for e in (0, 1)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 40
    assert (epochs[0] != epochs[1]).any()
    again = Order(lengths, 8, seed=3, alike=alike)
    assert (again.at(7) == order.at(7)).all()  # from the step alone
    spread = [np.ptp(lengths[order.at(k)]) for k in range(5)]
    assert (np.mean(spread) < 25) == alike


def test_a_batch_is_the_same_whatever_else_is_asked_for(world):
    feed = Feed(world, 4, seed=5)
    whole = feed.at(3, world.objectives)
    assert set(whole) == {"en", "de", "fr", "ssl"}
    alone = Feed(world, 4, seed=5).at(3, ["st_de"])
    assert set(alone) == {"de"}
    assert torch.equal(alone["de"].speech.features, whole["de"].speech.features)
    assert len(whole["ssl"].lengths) == 12
    assert whole["en"].english is None
    english, corpus = whole["de"].english, world.train["de"]
    for row, i in zip(english.tolist(), whole["de"].speech.indices):
        words = [n for n in row if n != IGNORED]
        assert words[-1] == END
        text = world.english.decode(words[:-1])
        assert text == corpus.column("translation")[i]
    other = Feed(world, 4, seed=6).at(3, ["st_de"])["de"].speech.indices
    assert (other != whole["de"].speech.indices).any()


def test_halves_share_no_utterance_and_leave_none_out(world):
    whole = Feed(world, 4).at(0, world.objectives)
    even, odd = halves(whole)
    for name in ("en", "de"):
        parts = [set(half[name].speech.indices.tolist()) for half in (even, odd)]
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] == set(whole[name].speech.indices.tolist())
    assert torch.equal(odd["ssl"].features, whole["ssl"].features[1::2])
    with pytest.raises(ValueError, match="holds one utterance; it has no halves"):
        halves(Feed(world, 1).at(0, ["asr_de"]))
    with pytest.raises(ValueError, match="shall hold 99 utterances and there are 80"):
        Feed(world, 99)


# -- the decoder --------------------------------------------------------------------


@pytest.fixture
def decoder():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Decoder(16, 9, heads=2, layers=2).eval()


@pytest.fixture
def seen():
    g = torch.Generator().manual_seed(2)
    return Encoded(torch.randn(3, 7, 16, generator=g), torch.tensor([7, 4, 5]))


def test_the_decoder_cannot_see_what_it_must_predict(decoder, seen):
    g = torch.Generator().manual_seed(0)
    written = torch.randint(0, 10, (3, 6), generator=g)
    before = decoder(written, seen)
    for place in range(6):
        changed = written.clone()
        changed[:, place] = (changed[:, place] + 1) % 10
        after = decoder(changed, seen)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place:], before[:, place:], atol=1e-3)


def test_the_decoder_reads_no_frame_past_the_end(decoder, seen):
    written = torch.zeros(3, 2, dtype=torch.long)
    other = seen.h.clone()
    other[1, 4:] = 100.0
    same = decoder(written, Encoded(other, seen.lengths))
    torch.testing.assert_close(same, decoder(written, seen))


def test_greedy_is_the_likeliest_word_again_and_again(decoder, seen):
    found = decoder.greedy(seen, longest=8)
    for row in range(3):
        own = Encoded(seen.h[row : row + 1, : seen.lengths[row]], seen.lengths[[row]])
        written = [END]
        while len(written) <= 8:
            word = int(decoder(torch.tensor([written]), own)[0, -1].argmax())
            if word == END:
                break
            written.append(word)
        assert found[row] == written[1:]
    with torch.no_grad():
        decoder.out.bias[END] += 100  # ends at once
    assert decoder.greedy(seen) == [[], [], []]
    with pytest.raises(ValueError, match="longest is 0; give a whole number"):
        decoder.greedy(seen, longest=0)


def test_its_loss_is_the_mean_log_probability_of_words_and_ends(decoder, seen):
    english = torch.tensor([[3, 4, END], [5, END, IGNORED], [1, 2, END]])
    total = count = 0
    for row, target in enumerate(english.tolist()):
        target = [n for n in target if n != IGNORED]
        own = Encoded(seen.h[row : row + 1, : seen.lengths[row]], seen.lengths[[row]])
        logits = decoder(torch.tensor([[END, *target[:-1]]]), own)[0]
        total -= logits.log_softmax(-1)[range(len(target)), target].sum().item()
        count += len(target)
    assert decoder.loss(seen, english).item() == pytest.approx(total / count, rel=1e-5)


# -- the model ----------------------------------------------------------------------


def test_frames_stand_side_by_side():
    x = torch.arange(10.0).view(1, 5, 2)
    y, lengths = side_by_side(x, torch.tensor([5]), 2)
    assert y.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 0]]]
    assert lengths.tolist() == [3]


def widened(batches):
    """The same batches with four frames and three words of padding more."""
    found = {}
    for name, batch in batches.items():
        if name == "ssl":
            x = torch.nn.functional.pad(batch.features, (0, 0, 0, 4))
            found[name] = Audio(x, batch.lengths)
            continue
        speech, english = batch
        x = torch.nn.functional.pad(speech.features, (0, 0, 0, 4))
        targets = torch.nn.functional.pad(speech.targets, (0, 3))
        if english is not None:
            english = torch.nn.functional.pad(english, (0, 3), value=IGNORED)
        found[name] = Examples(replace(speech, features=x, targets=targets), english)
    return found


@pytest.mark.parametrize("ssl", ["best_rq", "cpc"])
def test_padding_changes_no_loss(world, ssl):
    model = Soup(world, SMALL, ssl)
    batches = Feed(world, 3).at(0, world.objectives)
    with without_dropout(model):
        found = losses(model, batches, world.objectives, 1)
        same = losses(model, widened(batches), world.objectives, 1)
    for name, value in found.items():
        torch.testing.assert_close(same[name], value, rtol=1e-5, atol=1e-6)


def test_a_loss_is_the_same_alone_and_in_company(world, model):
    batches = Feed(world, 3).at(0, world.objectives)
    found = losses(model, batches, world.objectives, 4, 2)
    assert list(found) == list(world.objectives)
    for name, value in found.items():
        alone = losses(model, batches, [name], 4, 2)[name]
        assert torch.equal(alone, value)  # dropout and masks too
        other = losses(model, batches, [name], 4, 3)[name]
        assert not torch.equal(other, value)


def test_a_loss_reaches_the_encoder_and_its_own_head_alone(world, model):
    batches = Feed(world, 3).at(0, world.objectives)
    heads = model.heads()
    assert set(heads) == set(world.objectives)
    for name, value in losses(model, batches, world.objectives, 0).items():
        for other, own in heads.items():
            slopes = torch.autograd.grad(
                value, own, retain_graph=True, allow_unused=True
            )
            assert all((s is not None) == (other == name) for s in slopes)


@pytest.mark.parametrize(
    ("granularity", "first", "number"),
    [("block", "front end", 3), ("module", "block 1 attention", 11), ("tensor", "", 0)],
)
def test_layers_hold_every_parameter_of_the_encoder_once(
    model, granularity, first, number
):
    layers = model.layers(granularity)
    found = [id(p) for group in layers.values() for p in group]
    assert sorted(found) == sorted(id(p) for p in model.encoder.parameters())
    assert len(layers) == (number or len(found))
    assert first in layers or granularity == "tensor"


def test_weights_of_a_head_do_not_depend_on_the_other_languages(world):
    small = Soup(shipped_world(("de",)), SMALL, seed=3)
    large = Soup(world, SMALL, seed=3)
    for name, p in small.state_dict().items():
        assert torch.equal(p, large.state_dict()[name])


def test_cpc_against_a_world_where_the_answer_is_known():
    """Every utterance holds one direction: only its own frames can be taken for it."""
    d, K, tau = 4, 3, 0.1
    head = CPC(Sizes(d=d, features=d, stack=1), context=2, future=K, tau=tau)
    head.next = torch.nn.Identity()
    x = torch.eye(d)[:, None].expand(-1, 9, -1).contiguous()
    value = head.loss(lambda x: [x], Audio(x, torch.full((d,), 9)), generator(0))
    expected = math.log(K + (d - 1) * K * math.exp(-1 / tau))
    assert value.item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="two utterances of 5 frames"):
        head.loss(lambda x: [x], Audio(x, torch.full((d,), 4)), generator(0))


def test_a_file_gives_the_model_back(world, model, tmp_path):
    save_soup(tmp_path / "soup.npz", model, {"what": "a test"})
    again, card = load_soup(tmp_path / "soup.npz")
    assert card["what"] == "a test"
    assert again.symbols == model.symbols
    assert again.sizes == SMALL
    for name, p in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], p, rtol=1e-3, atol=1e-4)
    assert (tmp_path / "soup.npz").stat().st_size < 200_000


def test_what_a_model_does_not_have_gets_a_sentence(world, model, tmp_path):
    batches = Feed(world, 2).at(0, ["asr_de"])
    with pytest.raises(ValueError, match="The objective is 'asr_zh'; choose one of"):
        losses(model, batches, ["asr_zh"], 0)
    with pytest.raises(ValueError, match="There is no batch for st_fr"):
        losses(model, batches, ["st_fr"], 0)
    with pytest.raises(ValueError, match="ssl is 'hubert'; choose one of best_rq"):
        Soup(world, SMALL, "hubert")
    with pytest.raises(ValueError, match="granularity is 'row'"):
        model.layers("row")
