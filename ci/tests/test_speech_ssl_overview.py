"""What notebook 32 shows: lists, tables, paired effects, trials of any size."""

import dataclasses
import itertools
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import soundfile
import torch

from lib.kit.trials import Trial, plain
from lib.speech.conformer import Conformer
from lib.speech.corpus import joined
from lib.speech.synthesis import clip, shipped
from lib.speech_ssl import (
    ARMS,
    adaptation,
    corpus_of,
    large,
    lists,
    overview,
    pool_states,
    study,
)

TINY = {"d": 16, "blocks": 2, "heads": 2, "kernel": 3}
FIRST = {"sizes": TINY, "V": 16, "frames": 300, "points": 2}

pytestmark = pytest.mark.usefixtures("one_thread")


# -- lists --------------------------------------------------------------------------


def test_a_setting_names_only_what_is_asked():
    """So that the long profile finds the trials that other lists have run."""
    found = lists.pretrainings(["best_rq", "birq"], [0, 1], 600)
    assert found == [
        {"arm": arm, "seed": seed, "steps": 600}
        for seed in (0, 1)
        for arm in ("best_rq", "birq")
    ]
    assert lists.pretrainings(["kmeans"], [0], 5, V=8)[0]["V"] == 8
    assert lists.adaptations(["", "key"], 4, [(0, 3)]) == [
        {"source": source, "n": 4, "subset": 0, "seed": 3} for source in ("", "key")
    ]
    asked = {"V": 64, "lr": 1e-3, "sizes": None}
    assert lists.differing(asked, {"V": 64, "lr": 2e-3, "sizes": None}) == {"lr": 1e-3}


def test_all_named_sources_are_arms():
    assert set(lists.SOURCES) <= set(ARMS)
    assert {arm for pair in lists.COMPARED for arm in pair[:2]} <= set(lists.SOURCES)
    names = [lists.name_of(arm) for arm in lists.SOURCES]
    assert len(set(names)) == len(names)
    assert lists.name_of("data2vec") == "data2vec"


# -- tables -------------------------------------------------------------------------


def pre(arm, seed, steps=600, own=(0.3, 0.01, 20.0), probe=0.5):
    """A finished pre-training with made-up numbers."""
    label = dict(zip(("pnmi", "bias", "perplexity"), own)) | {"used": 30}
    result = {
        "history": {"step": [1, 2], "loss": [4.0, 3.0], "own": [None, 2.0]},
        "trace": {"step": [1, 2], "perplexity": [None, own[2]]},
        "own": label if arm != "data2vec" else None,
        "anchor": {"pnmi": 0.2, "bias": 0.02, "perplexity": 9.0, "used": 12},
        "layers": [{"layer": "input", "probe": 0.1, "pnmi": 0.1}]
        + [{"layer": k, "probe": probe - 0.1 * (1 - k), "pnmi": 0.4} for k in (0, 1)],
        "seconds": {"labels": 1.0, "training": 9.0, "watching": 5.0},
        "memory": 100.0,
    }
    settings = {"arm": arm, "seed": seed, "steps": steps}
    return Trial(settings, result, None, f"{arm}-{seed}-{steps}", 0.0)


def tune(source, per, subset, n=4):
    settings = {"source": source, "n": n, "subset": subset, "seed": subset}
    result = {"per": per, "wer": 2 * per, "seconds": {"all": 3.0, "training": 2.0}}
    result["heard"] = [{"id": "a", "text": "two cats", "heard": f"{subset}"}] * 3
    return Trial(settings, result, None, "x", 0.0)


@pytest.fixture(scope="module")
def made():
    """Tables of two arms, three seeds and two subsets, and of scratch."""
    rng = np.random.default_rng(0)
    done = [pre(arm, seed) for seed in range(3) for arm in ("best_rq", "birq")]
    done.append(pre("best_rq", 0, steps=900))
    tuned = [
        tune(key, float(per), subset)
        for key in ("", *(t.key for t in done))
        for subset, per in enumerate(rng.uniform(0.2, 0.6, 2))
    ]
    return overview.tables(done, tuned), {
        (t.settings["source"], t.settings["subset"]): t.result["per"] for t in tuned
    }


def test_tables_hold_every_trial(made):
    found, _ = made
    assert len(found["arms"]) == 7
    assert len(found["layers"]) == 21
    assert set(found["layers"]["layer"]) == {"input", "0", "1"}
    assert len(found["errors"]) == 16
    row = found["arms"].iloc[0]
    assert (row["loss"], row["cpu s"], row["probe"]) == (3.0, 10.0, 0.5)
    assert (row["own perplexity"], row["anchor used"]) == (20.0, 12.0)
    first = found["history"].iloc[0]
    assert (first["at"], first["loss"]) == (1.0, 4.0)
    assert math.isnan(first["own"])
    scratch = found["errors"][found["errors"].arm == lists.SCRATCH]
    assert set(scratch.seed) == set(scratch.steps) == {-1}
    assert set(found["heard"].heard) == {str(overview.SHOWN)}


def test_an_arm_without_codes_or_layers_has_nan():
    trial = pre("data2vec", 0)
    trial.result["layers"] = []
    row = overview.tables([trial], [])["arms"].iloc[0]
    assert math.isnan(row["own pnmi"])
    assert math.isnan(row["probe"])


def test_effects_are_paired_and_one_a_pre_training_seed(made):
    found, per = made
    less = overview.gain(found["errors"], "birq", "best_rq", 4, 600)
    by_hand = [
        np.mean([per[f"best_rq-{s}-600", k] - per[f"birq-{s}-600", k] for k in (0, 1)])
        for s in range(3)
    ]
    assert less == pytest.approx(by_hand)
    twice = overview.gain(found["errors"], "birq", "best_rq", 4, 600, what="wer")
    assert twice == pytest.approx(2 * less)
    over = overview.gain(found["errors"], "birq", lists.SCRATCH, 4, 600)
    by_hand = [
        np.mean([per["", k] - per[f"birq-{s}-600", k] for k in (0, 1)])
        for s in range(3)
    ]
    assert over == pytest.approx(by_hand)


def test_a_longer_run_is_compared_on_the_seeds_that_both_have(made):
    found, per = made
    less = overview.gain(found["errors"], "birq", "best_rq", 4, 600, 900)
    by_hand = np.mean([per["best_rq-0-900", k] - per["birq-0-600", k] for k in (0, 1)])
    assert less == pytest.approx([by_hand])


def test_values_stand_in_the_order_of_the_seeds(made):
    arms = made[0]["arms"].sample(frac=1, random_state=1)
    arms = arms.assign(probe=arms.seed / 10)
    assert overview.value(arms, "birq", "probe", 600) == pytest.approx([0, 0.1, 0.2])
    assert overview.ran(arms, "best_rq", 900)
    assert not overview.ran(arms, "birq", 900)


def test_differences_are_of_seeds_that_both_have(made):
    arms = made[0]["arms"].sample(frac=1, random_state=1)
    arms = arms.assign(probe=arms.seed / 10 + (arms.arm == "birq") * arms.seed)
    less = overview.ahead(arms, "birq", "best_rq", "probe", 600, 600)
    assert less == pytest.approx([0, 1, 2])
    less = overview.ahead(arms, "birq", "best_rq", "probe", 600, 900)
    assert less == pytest.approx([0.0])
    arms = arms.assign(probe=math.nan)
    assert len(overview.ahead(arms, "birq", "best_rq", "probe", 600, 600)) == 0


def test_the_board_has_means_over_all_fine_tunings(made):
    found, per = made
    board = overview.board(found["arms"], found["errors"], 4)
    assert list(board["PER"]) == sorted(board["PER"])
    assert len(board) == 4
    line = board[(board.arm == "birq")].iloc[0]
    each = [p for (key, _), p in per.items() if key.startswith("birq")]
    assert line["PER"] == pytest.approx(np.mean(each))
    assert line["median"] == pytest.approx(np.median(each))
    assert line["WER"] == pytest.approx(2 * np.mean(each))
    assert line["PNMI"] == pytest.approx(0.18)  # of the anchor
    line = board[(board.arm == "best_rq") & (board.steps == 600)].iloc[0]
    assert line["PNMI"] == pytest.approx(0.29)
    scratch = board[board.arm == lists.SCRATCH].iloc[0]
    assert scratch["CPU-s"] == 0
    assert math.isnan(scratch["probe"])


BAD = [
    (lambda t: lists.pretrainings(["best-rq"], [0], 1), "Did you mean best_rq"),
    (lambda t: overview.rates(t["errors"], "birq", 5, 600), "no fine-tuning of birq"),
    (lambda t: overview.value(t["arms"], "birq", "probe", 7), "no pre-training of"),
    (
        lambda t: overview.compare(["birq"], [0], 1, 0, 1, [], [], corpus="libri:x"),
        "The corpus is 'libri:x'",
    ),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input_gets_a_sentence(made, call, words):
    with pytest.raises(ValueError, match=words):
        call(made[0])


# -- the comparison -----------------------------------------------------------------


class Runs:
    """`trials` in this process, each in a folder of its own, none twice."""

    def __init__(self, root):
        self.root, self.asked, self.kept = root, [], {}

    def __call__(self, function, settings, *, workers=None):
        self.asked.append((function, list(settings)))
        return [self.one(function, dict(s)) for s in settings]

    def one(self, function, settings):
        name = json.dumps([function.__module__, function.__name__, settings])
        if name not in self.kept:
            folder = self.root / f"{len(self.kept)}"
            folder.mkdir()
            result = plain(function(folder, **settings))
            self.kept[name] = Trial(settings, result, folder, folder.name, 0.0)
        return self.kept[name]


def test_the_comparison_asks_for_the_trials_of_the_spoken_corpus(monkeypatch):
    """Nothing but these keys: that is how the cache knows them."""

    def fake(function, settings, *, workers=None):
        asked.append((function, list(settings)))
        if function is study.pretraining:
            return [pre(s["arm"], s["seed"], s["steps"]) for s in settings]
        return [tune(s["source"], 0.5, s["subset"], s["n"]) for s in settings]

    asked = []
    monkeypatch.setattr(overview, "trials", fake)
    found = overview.compare(
        ["best_rq", "birq"], [0, 1], 600, 1040, 4, [2], ["best_rq"], [(0, 0), (1, 1)]
    )
    (first, before), (second, after) = asked
    assert (first, second) == (study.pretraining, adaptation.adapting)
    assert all(set(s) == {"arm", "seed", "steps"} for s in before)
    assert [(s["arm"], s["steps"]) for s in before[4:]] == [("best_rq", 1040)] * 2
    assert all(set(s) == {"source", "n", "subset", "seed"} for s in after)
    assert [s["n"] for s in after] == [4] * 14 + [2] * 6
    assert {s["source"] for s in after[14:]} == {"", "best_rq-0-600", "best_rq-1-600"}
    assert len(found["arms"]) == 6
    asked.clear()
    overview.compare(
        ["birq", "dinosr"], [0], 600, 1040, 4, [2], ["birq"], [(0, 0)], [3]
    )
    (_, before), (_, after) = asked
    names = [(s["arm"], s["seed"], s["steps"]) for s in before]
    assert names == [
        ("birq", 0, 600),
        ("dinosr", 0, 600),
        ("best_rq", 0, 1040),
        ("birq", 3, 600),
    ]
    assert [s["source"] for s in after if s["n"] == 2] == ["", "birq-0-600"]


@pytest.fixture
def small(monkeypatch):
    """A few utterances in place of every corpus by name."""
    speech = corpus_of({"kind": "shipped", "language": "en"})
    parts = {"unlabelled": 30, "labelled": 8, "test": 6}
    few = joined([speech.select(n, split=split) for split, n in parts.items()])
    for module in (study, large):
        monkeypatch.setattr(module, "corpus_of", lambda name: few)


@pytest.mark.usefixtures("small")
def test_the_comparison_at_another_size(tmp_path, monkeypatch):
    """What the full profile asks for, with small stand-ins for all of it."""
    runs = Runs(tmp_path)
    monkeypatch.setattr(overview, "trials", runs)
    found = overview.compare(
        *(["best_rq", "birq"], [0], 3, 4, 2, [3], ["best_rq"], [(0, 0), (1, 1)]),
        corpus="shipped:en",
        common={"device": "cpu"},
        first=FIRST,
        second={"steps": 2},
    )
    assert {f.__module__ for f, _ in runs.asked} == {large.__name__}
    arms = found["arms"]
    assert list(zip(arms.arm, arms.steps)) == [
        ("best_rq", 3),
        ("birq", 3),
        ("best_rq", 4),
    ]
    assert arms.probe.between(0.02, 1).all()
    assert len(found["errors"]) == 2 * 4 + 2 * 2
    assert len(overview.board(arms, found["errors"], 2)) == 4


@pytest.mark.usefixtures("small")
def test_it_is_the_same_training_as_on_the_spoken_corpus(tmp_path):
    """One task, two functions: `study` and `large` end with the same weights."""
    how = FIRST | {"arm": "birq", "seed": 1, "steps": 3}
    states = []
    for name, function, corpus in (
        ("a", study.pretraining, {"kind": "shipped", "language": "en"}),
        ("b", large.pretraining, "shipped:en"),
    ):
        (tmp_path / name).mkdir()
        result = function(tmp_path / name, corpus=corpus, **how)
        assert {p.name for p in (tmp_path / name).iterdir()} == {"encoder.pt"}
        states.append(torch.load(tmp_path / name / "encoder.pt", weights_only=True))
        assert result["utterances"] == 30
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder of recordings with texts, whose phones nobody knows."""
    root = tmp_path_factory.mktemp("recordings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLECTION_CACHE", str(root / "cache"))
        texts = ["two black cats", "she says that", "five white birds", "seek"]
        rows = []
        for i in range(20):
            sound, rate = clip(("en-m3-30dB", "en-f2-30dB")[i % 2])
            place = 3000 * (i // 2)
            soundfile.write(root / f"{i}.wav", sound[place : place + 20_000], rate)
            row = {"audio": f"{i}.wav", "text": texts[i % 4], "language": "en"}
            rows.append(row | {"split": "test" if i < 4 else "train"})
        lines = [json.dumps(row) for row in rows]
        (root / "manifest.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        yield root


def test_recordings_go_through_both_trials(recordings, tmp_path, monkeypatch):
    """No alignment: no probe and no PNMI, but losses and error rates."""
    monkeypatch.setattr(overview, "trials", Runs(tmp_path))
    found = overview.compare(
        *(["kmeans", "birq_detached"], [0], 3, 0, 1, [], [], [(0, 0)]),
        corpus=f"folder:{recordings / 'manifest.jsonl'}",
        common={"device": "cpu"},
        first=FIRST,
        second={"steps": 2},
    )
    assert len(found["layers"]) == 0
    assert found["arms"][["probe", "own pnmi"]].isna().all(axis=None)
    assert np.isfinite(found["arms"].loss).all()
    errors = found["errors"]
    assert list(errors.arm) == [lists.SCRATCH, "kmeans", "birq_detached"]
    assert np.isfinite(errors[["per", "wer"]]).all(axis=None)


def test_words_of_characters_have_an_error_rate_and_phones_none():
    speech = shipped("en").select(4, split="test")
    heard = [u.target.tolist() for u in speech]
    assert large.errors_of(speech, heard)["per"] == 0
    assert math.isnan(large.errors_of(speech, heard)["wer"])


def test_many_labelled_utterances_come_in_batches():
    labelled = shipped("en").select(split="labelled")
    whole = large.batches_of(labelled.take(range(6)), 300, 0, "cpu")
    assert len(whole(0)) == len(whole(1)) == 6
    some = large.batches_of(labelled, 300, 0, "cpu")
    assert max(len(some(step)) for step in range(4)) < 10


# -- looking inside -----------------------------------------------------------------


def test_all_layers_are_those_of_single_passes():
    corpus = corpus_of({"kind": "shipped", "language": "en"}).select(5, split="test")
    torch.manual_seed(0)
    encoder = Conformer(**TINY).train()
    found = overview.all_layers(encoder, corpus)
    assert len(found) == 3
    for layer, h in enumerate(found):
        torch.testing.assert_close(h, pool_states(encoder, corpus, layer))
    assert encoder.training


def test_a_code_map_is_a_distribution_in_the_order_of_phones():
    rng = np.random.default_rng(0)
    phones, codes = rng.integers(0, 5, 400), rng.integers(0, 8, 400)
    codes[codes == 3] = 2
    share = overview.code_map(phones, codes, 6, 8)
    assert share.shape == (6, 7)
    assert share.sum(0) == pytest.approx(np.ones(7))
    assert (np.diff(share.argmax(0)) >= 0).all()
    perfect = overview.code_map(phones, (phones + 2) % 5, 5, 5)
    assert perfect == pytest.approx(np.eye(5))


def test_codes_have_colours_of_their_own():
    found = overview.shades(np.arange(64))
    assert found.shape == (64, 3)
    assert found.min() >= 0
    assert found.max() <= 1
    assert len(np.unique(found.round(6), axis=0)) == 64
    near = [np.abs(a - b).max() for a, b in itertools.pairwise(found)]
    assert min(near) > 0.1


def test_a_strip_writes_each_stretch_once():
    fig, ax = plt.subplots()
    codes = np.array([1, 1, 2, 2, 2, 0, 1])
    words = np.array(["", "a", "b"])
    overview.strip(ax, codes, 0.04 * np.arange(8), "phone", words)
    texts = [(t.get_text(), t.get_position()[0]) for t in ax.texts]
    assert [t for t, _ in texts] == ["a", "b", "a"]
    assert [x for _, x in texts] == pytest.approx([0.04, 0.14, 0.26])
    plt.close(fig)


def test_every_arm_has_a_colour():
    assert len({overview.arm_color(arm) for arm in lists.SOURCES}) == 4
    assert overview.arm_color("data2vec") == overview.arm_color("other")


def test_a_source_is_plain_text():
    for source in lists.SOURCES.values():
        assert all(isinstance(v, str) and v for v in dataclasses.astuple(source))
