"""lib.objective_soup: the loop, what is measured, and the trials of the comparison."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lib.kit.sources import behind
from lib.kit.trials import FOLDER, Trial, key_of, run_here
from lib.multi_objective import corrected_cosines
from lib.objective_soup import (
    Balance,
    Feed,
    Fit,
    Selection,
    Sizes,
    Soup,
    bleu,
    conflict_map,
    evaluated,
    kinds_of,
    lists,
    load_soup,
    losses,
    measuring,
    overview,
    plain_sum,
    recipe_of,
    selected,
    shipped_world,
    study,
    summary,
    told,
    train,
    uncertainty,
    vm,
    world_of,
)
from lib.speech.conformer import without_dropout

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {"d": 8, "blocks": 1, "heads": 2}
SIZES = Sizes(**TINY)
ASKED = {"steps": 3, "fit": {"batch": 2}, "look": 2, "model": TINY, "every": 1}
ASKED |= {"speech": "shipped", "languages": ["en", "de"]}


@pytest.fixture(scope="module")
def world():
    return shipped_world(("en", "de"))


@pytest.fixture
def judge():
    """The package that counts BLEU, which some environments lack."""
    return pytest.importorskip("sacrebleu")


class KilledError(Exception):
    pass


# -- the loop -----------------------------------------------------------------------


def test_the_rate_rises_and_falls_to_its_floor():
    fit = Fit(steps=1000, lr=0.01)
    assert fit.rate(0) == pytest.approx(0.01 / 30)
    assert fit.rate(29) == pytest.approx(0.01 * (1 - 0.95 * 0.029))
    assert fit.rate(1000) == pytest.approx(0.0005)
    assert Fit(steps=5).rate(0) == 5e-3  # warm-up is a tenth at most
    for wrong, sentence in (({"lr": 0.0}, "lr is 0.0"), ({"clip": 0.0}, "clip is 0.0")):
        with pytest.raises(ValueError, match=sentence):
            Fit(**wrong)


KILLED = {
    "lagged": lambda names: vm(names, gamma=0.1),
    "halves": lambda names: vm(names, gamma=0.1, sample="halves"),
    "uncertainty": uncertainty,
    "selected": lambda names: selected(
        names, Selection(every=2, unbiased=True), gamma=0.1
    ),
}


@pytest.mark.parametrize("kind", KILLED)
def test_a_run_that_was_killed_goes_on_to_the_same_bits(world, tmp_path, kind):
    recipe, fit = KILLED[kind](world.objectives), Fit(steps=4, batch=2)
    how = {"seed": 3, "look": 2, "every": 1}
    whole = Soup(world, SIZES)
    history = train(whole, world, recipe, fit, **how)

    def die(done):
        if done == 3:
            raise KilledError

    path = str(tmp_path / "run.pt")
    with pytest.raises(KilledError):
        train(Soup(world, SIZES), world, recipe, fit, after=die, path=path, **how)
    again = Soup(world, SIZES, seed=9)
    other = train(again, world, recipe, fit, path=path, **how)
    for name, p in whole.state_dict().items():
        if not name.startswith("ssl.label"):
            assert torch.equal(p, again.state_dict()[name]), name
    for name in ("losses", "weights", "norms", "chosen", "etas"):
        assert history[name] == other[name]
    with pytest.raises(ValueError, match="belongs to another run: recipe was"):
        train(again, world, plain_sum(world.objectives), fit, path=path, **how)


def test_modo_without_steps_trains_the_static_control(world):
    """Losses and norms: Adam makes steps of rounding where a gradient is zero (keys'
    biases), so that the parameters themselves may differ there."""
    found = []
    for how in ({"gamma": 0.0, "rho": 0.0}, {"inside": "uniform"}):
        recipe = vm(world.objectives, **how)
        found.append(train(Soup(world, SIZES), world, recipe, Fit(steps=5, batch=2)))
    dynamic, static = found
    assert dynamic["weights"] == static["weights"]
    for name in ("losses", "norms"):
        np.testing.assert_allclose(dynamic[name], static[name], rtol=1e-4)
    unlike = train(
        Soup(world, SIZES), world, vm(world.objectives, gamma=1.0), Fit(5, batch=2)
    )
    assert np.abs(np.subtract(unlike["weights"], static["weights"])).max() > 0.01


def test_a_look_moves_nothing_and_the_history_is_complete(world):
    recipe, fit = plain_sum(world.objectives, 0.3), Fit(steps=4, batch=2)
    with_looks, without = Soup(world, SIZES), Soup(world, SIZES)
    history = train(with_looks, world, recipe, fit, look=3)
    train(without, world, recipe, fit)
    for name, p in without.state_dict().items():
        assert torch.equal(p, with_looks.state_dict()[name])
    assert [row["step"] for row in history["looks"]] == [0, 3]
    assert np.array(history["losses"]).shape == (4, 4)
    assert history["weights"][-1] == pytest.approx([1, 1, 0.3, 1])  # asr, ssl, st
    assert history["loss"] == pytest.approx(np.sum(history["losses"], 1).tolist())
    sizes = history["looks"][0]["sizes"]
    batch = Feed(world, 2).at(0, recipe.names)
    fresh = Soup(world, SIZES)
    found = losses(fresh, batch, recipe.names, 0, 0)
    for name, size in zip(recipe.names, sizes):
        slopes = torch.autograd.grad(
            found[name],
            list(fresh.encoder.parameters()),
            retain_graph=True,
            allow_unused=True,
        )
        own = sum(float(s.square().sum()) for s in slopes if s is not None) ** 0.5
        assert size == pytest.approx(own, rel=1e-4)


def test_what_a_look_tells():
    G = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 4.0, 0.0], [0.0, 0.0, 9.0]])
    found = told(G, torch.ones(3))
    assert found["conflict"] == pytest.approx(1 / 3)
    assert found["harmed"] == 0.0
    assert told(G, torch.tensor([0.0, 1.0, 1.0]))["harmed"] == pytest.approx(1 / 3)
    assert found["sizes"] == [1, 2, 3]
    assert 0 < found["stationarity"] < 1
    assert np.isnan(told(G[:1, :1], torch.ones(1))["conflict"])


# -- measuring ----------------------------------------------------------------------


def test_bleu_counts_words_and_exact_sentences(judge):
    truth = ["two black cats see five white birds now"] * 2
    assert bleu(truth, truth) == pytest.approx({"bleu": 100, "chrf": 100, "exact": 1})
    worse = bleu(truth, [truth[0], "five white birds see two black cats now"])
    assert 0 < worse["bleu"] < 100
    assert worse["exact"] == 0.5
    assert bleu(["a"], [""])["bleu"] == 0
    with pytest.raises(ValueError, match="There are 1 references and 0 hypotheses"):
        bleu(["a"], [])


def test_a_missing_judge_is_named_before_the_training(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"pip install sacrebleu==2\.6\.0"):
        study.training(tmp_path, method="sum", seed=0, **ASKED)
    assert not list(tmp_path.iterdir())


def test_evaluation_of_known_texts(world, monkeypatch, judge):
    model = Soup(world, SIZES)
    said = {n: list(c.column("text")) for n, c in world.test.items()}
    english = list(world.test["de"].column("translation"))
    texts = {"asr_en": said["en"], "asr_de": ["zwei", *said["de"][1:]]}
    texts["st_de"] = english
    longest = {name: [] for name in texts}

    def fake(model, world, name, seen, most):
        longest[name].append(most)
        done = sum(longest.get(f"{name} n", []))
        longest.setdefault(f"{name} n", []).append(len(seen.h))
        return texts[name][done : done + len(seen.h)]

    monkeypatch.setattr(measuring, "written", fake)
    found = evaluated(model, world, frames=1000)
    assert found["asr_en"]["wer"] == 0
    words = sum(len(text.split()) for text in said["de"])
    missing = len(said["de"][0].split()) - ("zwei" in said["de"][0])
    assert found["asr_de"]["wer"] == pytest.approx(missing / words)
    assert found["asr_de"]["symbols"] == found["asr_de"]["wer"]
    assert found["st_de"]["bleu"] == pytest.approx(100)
    assert found["heard"] == texts
    assert len(longest["st_de"]) > 1  # in several batches
    mean = summary(found)
    assert mean["wer"] == pytest.approx(found["asr_de"]["wer"] / 2)
    assert set(mean) == {
        *("wer", "symbols", "ctc", "bleu", "chrf", "exact", "ce", "ssl")
    }
    assert model.training
    with pytest.raises(ValueError, match="part is 'dev'; choose one of"):
        evaluated(model, world, "dev")


def test_the_losses_of_a_test_set_do_not_depend_on_its_batches(world, judge):
    model = Soup(world, SIZES)
    few, many = (
        evaluated(model, world, "validation", ["asr_de", "st_de"], frames)
        for frames in (500, 9000)
    )
    assert few["asr_de"]["ctc"] == pytest.approx(many["asr_de"]["ctc"], rel=1e-4)
    assert few["heard"] == many["heard"]


def test_a_conflict_map_is_the_cosine_of_mean_gradients(world):
    model, names = Soup(world, SIZES), world.objectives
    found = conflict_map(model, world, batches=2, batch=3, seed=4)
    feed, rows = Feed(world, 3, seed=4), []
    for steps in ((0, 1), (2, 3)):
        with without_dropout(model):
            total = [
                losses(model, feed.at(k, names), names, 4, k, "map") for k in steps
            ]
        rows.append(
            {
                layer: torch.stack(
                    [
                        torch.cat(
                            [
                                (torch.zeros_like(p) if s is None else s).flatten()
                                for p, s in zip(group, slopes)
                            ]
                        )
                        for slopes in (
                            torch.autograd.grad(
                                sum(t[n] for t in total) / 2,
                                group,
                                retain_graph=True,
                                allow_unused=True,
                            )
                            for n in names
                        )
                    ]
                )
                for layer, group in model.layers().items()
            }
        )
    first, last = rows
    whole = 0
    for layer in model.layers():
        A = first[layer] @ last[layer].T
        whole = whole + A
        C = torch.tensor(found["layers"][layer])
        torch.testing.assert_close(
            C, corrected_cosines(A), rtol=1e-3, atol=1e-3, equal_nan=True
        )
    C = torch.tensor(found["layers"]["all"])
    torch.testing.assert_close(
        C, corrected_cosines(whole), rtol=1e-3, atol=1e-3, equal_nan=True
    )
    assert set(found["means"]) == {"front end", "block 1", "all"}
    assert 0 <= found["raw"] <= 1
    assert found["stationarity"] <= min(found["sizes"])
    assert model.training


def test_kinds_of_pairs_are_averaged():
    names = ["asr_en", "asr_de", "st_de", "ssl"]
    C = torch.tensor(
        [[1, 0.1, 0.2, 0.3], [0.1, 1, 0.4, 0.5], [0.2, 0.4, 1, 0.6], [0.3, 0.5, 0.6, 1]]
    )
    found = kinds_of(C, names)
    wanted = {"asr x asr": 0.1, "asr x st": 0.3, "same language": 0.4}
    assert found == pytest.approx(wanted | {"supervised x ssl": 1.4 / 3})


# -- trials -------------------------------------------------------------------------


def run(folder, function, key, **settings):
    """One trial in this process, under a key of our choice."""
    place = folder / FOLDER / key
    place.mkdir(parents=True, exist_ok=True)
    run_here(function, place, settings)
    return json.loads((place / "result.json").read_text())["result"]


@pytest.mark.parametrize(
    ("method", "options", "names"),
    [
        ("VM", {"gamma": 0.1}, ["asr_de", "asr_en", "ssl", "st_de"]),
        ("two-stage", {"first": 1e-3}, ["asr_de", "asr_en", "st_de"]),
        ("single", {"task": "st_de"}, ["st_de"]),
    ],
)
def test_a_training_leaves_a_model_and_numbers(cache, judge, method, options, names):
    result = run(
        *(cache, study.training, "one"), method=method, seed=1, options=options, **ASKED
    )
    last = result["history"][-1]
    assert last["names"] == names
    assert last["step"] == [1, 2, 3]
    assert len(result["history"]) == (2 if method == "two-stage" else 1)
    assert set(result["weights"]) == set(names)
    judged = set(names) | ({"ssl"} if method == "two-stage" else set())
    assert set(result["test"]) == judged | {"mean"}
    assert result["cpu_s"] > 0
    assert result["memory"] > 50
    folder = cache / FOLDER / "one"
    assert sorted(p.name for p in folder.iterdir()) == [
        *("heard.json", "result.json", "soup.npz")
    ]
    model, card = load_soup(folder / "soup.npz")
    assert card["method"] == method
    again = evaluated(model, world_of("shipped", ["en", "de"]), names=["st_de"])
    assert again["st_de"]["ce"] == pytest.approx(
        result["test"]["st_de"]["ce"], rel=0.01
    )


def test_a_training_that_was_killed_gives_the_same_result(cache, judge, monkeypatch):
    settings = {"method": "two-stage", "seed": 0, **ASKED}
    whole = run(cache, study.training, "whole", **settings)
    original = study.train

    def dying(model, world, recipe, *given, after, **how):
        def count(done):
            after(done)
            if done == 2 and recipe.names != ("ssl",):
                raise KilledError

        return original(model, world, recipe, *given, after=count, **how)

    with monkeypatch.context() as patch:
        patch.setattr(study, "train", dying)
        with pytest.raises(KilledError):
            run(cache, study.training, "again", **settings)
    again = run(cache, study.training, "again", **settings)
    assert again["test"] == whole["test"]
    for one, two in zip(whole["history"], again["history"]):
        assert one["losses"] == two["losses"]


def test_conflict_along_a_training_and_of_its_end(cache, judge):
    asked = {"speech": "shipped", "languages": ["en", "de"], "batches": 1}
    found = run(
        *(cache, study.conflict, "way"),
        **{"seed": 0, "steps": 2, "marks": [0, 2], "model": TINY, "every": 1},
        **asked,
    )
    assert [m["step"] for m in found["maps"]] == [0, 2]
    assert found["maps"][0]["layers"] != found["maps"][1]["layers"]
    assert found["test"]["ce"] > 0
    run(cache, study.training, "end", method="sum", seed=0, **ASKED)
    source = run(cache, study.conflict, "map", seed=0, source="end", **asked)
    assert [m["step"] for m in source["maps"]] == [3]
    with pytest.raises(ValueError, match=r"The marks \[9\] lie outside"):
        run(cache, study.conflict, "bad", seed=0, steps=2, marks=[9], **asked)


def test_a_cosine_that_noise_hides_is_kept_as_nothing(tmp_path, judge, monkeypatch):
    hidden = {"layers": {"all": [[1.0, float("nan")], [float("nan"), 1.0]]}}
    monkeypatch.setattr(study, "conflict_map", lambda *_, **__: hidden)
    how = {name: ASKED[name] for name in ("model", "speech", "languages")}
    found = study.conflict(tmp_path, seed=0, marks=[0], steps=1, **how)
    assert found["maps"][0]["layers"]["all"] == [[1.0, None], [None, 1.0]]


def test_costs_of_every_variant(tmp_path):
    found = study.costs(
        tmp_path, rounds=2, model=TINY, batch=2, speech="shipped", languages=["de"]
    )
    assert set(found["ratio"]) == {
        *("plain sum", "all layers", "all layers, halves", "MGDA"),
        *("only front end", "only block 1"),
    }
    assert found["ratio"]["plain sum"] == 1
    assert all(len(row) == 2 for row in found["milliseconds"].values())
    floats, M = found["floats"], 3
    assert floats["only front end"] + floats["only block 1"] == floats["all layers"]
    encoder = sum(
        p.numel() for p in Soup(shipped_world(("de",)), SIZES).encoder.parameters()
    )
    assert floats["all layers"] == M * encoder


def test_a_trial_with_an_unknown_setting_gets_a_sentence(cache, judge):
    for wrong, sentence in [
        ({"method": "VMM"}, "method is 'VMM'; choose one of single, sum"),
        ({"model": {"width": 3}}, "A size of the model is 'width'"),
        ({"languages": ["en", "xx"]}, "A language is 'xx'"),
        ({"options": {"ssl": -1}}, "The weight of ssl is -1"),
    ]:
        settings = {"method": "sum", "seed": 0, **ASKED} | wrong
        with pytest.raises(ValueError, match=sentence):
            run(cache, study.training, "bad", **settings)


def test_what_only_shows_is_no_part_of_a_trial():
    files = behind("lib.objective_soup.study")
    assert not [name for name in files if name.endswith(("lists.py", "overview.py"))]
    assert "lib/objective_soup/__init__.py" not in files
    key = key_of(study.training, lists.one("sum", 0))
    assert key.startswith("objective_soup.study.training-")


# -- real corpora -------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """LibriSpeech, CoVoST 2 and AISHELL-1 in their own form, of noise."""
    import soundfile

    root, rng = tmp_path_factory.mktemp("corpora"), np.random.default_rng(0)

    def sound(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.1, 24000), 16000)

    texts = ["a cat", "two dogs", "no bird"]
    for part, n in (("train-clean-100", 40), ("test-clean", 6)):
        place = root / "LibriSpeech" / part / "7" / "1"
        for i in range(n):
            sound(place / f"7-1-{i:04d}.flac")
        lines = [f"7-1-{i:04d} {texts[i % 3].upper()}" for i in range(n)]
        (place / "7-1.trans.txt").write_text("\n".join(lines))
    german = ["eine Katze", "zwei Hunde!", "kein Vogel"]
    rows, table = ["client_id\tpath\tsentence"], ["path\ttranslation\tsplit"]
    for i in range(46):
        sound(root / "cv" / "clips" / f"de_{i}.wav")
        rows.append(f"s{i % 4}\tde_{i}.wav\t{german[i % 3]}")
        table.append(
            f"de_{i}.wav\t{texts[i % 3].title()}.\t{'train' if i < 40 else 'test'}"
        )
    (root / "cv" / "validated.tsv").write_text("\n".join(rows))
    (root / "covost_v2.de_en.tsv").write_text("\n".join(table))
    lines = []
    for part, n in (("train", 40), ("test", 6)):
        for i in range(n):
            name = f"{part}{i:03d}"
            sound(root / "data_aishell" / "wav" / part / "S1" / f"{name}.wav")
            lines.append(f"{name} 一 只 猫")
    (root / "data_aishell" / "transcript").mkdir()
    place = root / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt"
    place.write_text("\n".join(lines), encoding="utf-8")
    return [
        f"en=librispeech:{root}/LibriSpeech:train-clean-100+test-clean",
        f"de=covost:{root}/cv:{root}/covost_v2.de_en.tsv:train+test:de",
        f"zh=aishell:{root}/data_aishell:train+test",
    ]


def test_real_corpora_by_their_names(cache, recorded, judge):
    world = world_of("real", corpora=recorded, labelled=0.5, validation=0.1)
    assert world.objectives == ("asr_en", "asr_de", "asr_zh", "st_de", "ssl")
    assert {n: len(c) for n, c in world.train.items()} == dict.fromkeys(
        ("en", "de", "zh"), 18
    )
    assert [len(c) for c in world.pool.values()] == [36] * 3
    assert [len(c) for c in world.validation.values()] == [4] * 3
    assert set(world.test["de"].column("translation")) <= {
        "a cat",
        "two dogs",
        "no bird",
    }
    asked = ASKED | {"speech": "real", "corpora": recorded, "labelled": 0.5}
    asked |= {"validation": 0.1, "steps": 2, "fit": {"batch": 2, "alike": True}}
    asked.pop("languages")
    result = run(
        *(cache, study.training, "real"), method="VM", seed=0, device="auto", **asked
    )
    assert result["utterances"] == {"en": 18, "de": 18, "zh": 18}
    assert {"symbols", "wer"} <= set(result["test"]["asr_zh"])
    assert "bleu" in result["test"]["st_de"]
    with pytest.raises(ValueError, match="Two of the corpora are called de"):
        world_of("real", corpora=[recorded[1], recorded[1]])


# -- lists and tables ---------------------------------------------------------------


def test_every_setting_of_the_lists_is_one_that_trials_take(world):
    tuning = lists.tuning()
    assert {len(row) for row in tuning.values()} == {3}  # equal tuning for all
    chosen = {
        name: {"lr": 3e-3, "options": row[0].get("options", {})}
        for name, row in tuning.items()
    }
    everything = [tuning, lists.comparison(chosen), lists.front(chosen)]
    everything += [lists.few_labels(chosen), lists.singles(chosen)]
    names = shipped_world().objectives
    for named in everything:
        for row in named.values():
            keys = [json.dumps(s, sort_keys=True) for s in row]
            assert len(set(keys)) == len(keys)
            for settings in row:
                options = dict(settings.get("options", {}))
                stages = study.staged(settings["method"], names, 1e-3, options)
                assert stages
    static = lists.one("VM-UAS static", 0, {"VM-UAS": {"options": {"gamma": 0.01}}})
    assert static["options"] == {"inside": "uniform"}
    usa = lists.one("VM-USA", 0, {"VM-UAS": {"lr": 1e-3, "options": {"gamma": 0.01}}})
    assert usa["options"] == {"gamma": 0.01, "order": "USA"}
    assert usa["lr"] == 1e-3
    with pytest.raises(ValueError, match="Did you mean"):
        lists.one("VM-UAX", 0)


def trial(seed, ctc, wer=0.1, lr=1e-3, **options):
    mean = {"ctc": ctc, "ce": 0.5, "wer": wer, "bleu": 50.0}
    result = {"test": {"mean": mean}, "validation": {"mean": mean}, "cpu_s": 9.0}
    settings = {"method": "sum", "seed": seed, "lr": lr, "options": options}
    return Trial(settings, result, None, f"{seed} {ctc}", 1.0)


def test_the_best_of_a_tuning_is_taken_on_validation():
    done = {"sum": [trial(9, 0.3, lr=1e-3, ssl=0.3), trial(9, 0.2, lr=2e-3, ssl=1.0)]}
    assert lists.best(done) == {"sum": {"lr": 2e-3, "options": {"ssl": 1.0}}}


def test_lists_run_seed_by_seed_and_come_back_under_their_names(monkeypatch):
    asked = {"a": [{"seed": 0}, {"seed": 1}], "b": [{"seed": 0, "x": 2}]}
    seen = []

    def fake(function, settings, **how):
        seen.extend(settings)
        return [SimpleNamespace(settings=s) for s in settings]

    monkeypatch.setattr(lists, "trials", fake)
    done = lists.run(asked)
    assert seen == [{"seed": 0}, {"seed": 0, "x": 2}, {"seed": 1}]
    assert [t.settings for t in done["a"]] == asked["a"]
    assert done["b"][0].settings == {"seed": 0, "x": 2}


def test_the_whole_comparison_asks_for_what_its_parts_name(monkeypatch):
    asked = []

    def fake(function, settings, **how):
        asked.extend((function.__name__, json.dumps(s)) for s in settings)
        mean = {"ctc": 1.0, "ce": 1.0}
        result = {"validation": {"mean": mean}}
        return [Trial({"lr": 1e-3} | s, result, None, "", 1.0) for s in settings]

    monkeypatch.setattr(lists, "trials", fake)
    monkeypatch.setattr(
        lists,
        "run",
        lambda named, function=study.training, **how: {
            name: fake(function, row) for name, row in named.items()
        },
    )
    done = lists.everything(speech="shipped")
    assert set(done) == {"tuning", *lists.PARTS}
    sizes = {name: len(row) for name, row in done["comparison"].items()}
    assert {sizes[name] for name in lists.CORE} == {5}
    assert set(sizes) == set(lists.CORE)
    ablations = {name: len(row) for name, row in done["ablations"].items()}
    assert set(ablations.values()) == {3}
    assert set(lists.OTHERS) < set(ablations)
    assert not set(ablations) & set(lists.EXTRA)
    assert set(done["front"]) == set(lists.WEIGHTS)
    assert [t.settings["seed"] for t in done["conflict"][16]] == [0, 1, 2, 3, 4, 5]
    assert all('"speech": "shipped"' in settings for _, settings in asked)
    tuned = [json.loads(s) for name, s in asked if name == "training"]
    assert max(s["steps"] for s in tuned) == 4000  # twice as long
    asked.clear()
    some = lists.everything(parts=["front"], chosen=lists.untuned(1e-3), steps=8)
    assert set(some) == {"front"}
    assert {json.loads(s)["lr"] for _, s in asked} == {1e-3}
    assert {json.loads(s)["steps"] for _, s in asked} == {4}
    with pytest.raises(ValueError, match="Did you mean front"):
        lists.everything(parts=["fronts"], chosen={})
    first, static = (lists.one(arm, 0) for arm in ("VM-UAS", "VM-UAS static"))
    assert lists.seconds(static) < lists.seconds(first)


def scores_of(**arms):
    """Rows of a part: word error rates of an arm by seed."""
    rows = [
        {"arm": arm, "seed": seed, "wer": wer, "cpu_s": 9.0}
        | dict.fromkeys(("bleu", "chrf", "exact", "ctc", "ce", "ssl"), 1.0)
        for arm, by_seed in arms.items()
        for seed, wer in by_seed.items()
    ]
    return pd.DataFrame(rows)


def test_differences_pair_the_seeds():
    from scipy.stats import ttest_1samp

    scores = scores_of(sum={0: 10, 1: 11, 2: 12, 3: 99}, VS={2: 20, 1: 14, 0: 12})
    found = overview.effects(scores, "wer", "VS")
    assert found == pytest.approx([2, 3, 8])
    mean, wide = overview.interval(found)
    low, high = ttest_1samp(found, 0).confidence_interval(0.95)
    assert (mean - wide, mean + wide) == pytest.approx((low, high))
    table = overview.table(scores[scores.seed < 3])
    assert table.loc["sum", "wer"] == pytest.approx(11)
    assert table.loc["sum", "wer sd"] == pytest.approx(1)
    assert table.loc["VS", "seeds"] == 3
    row = overview.differences(scores).loc["VS"]
    assert row["wer"] == pytest.approx(mean)
    assert row["± wer"] == pytest.approx(wide)
    with pytest.raises(ValueError, match="share no seed"):
        overview.effects(scores_of(sum={0: 1.0}, VS={1: 1.0}), "wer", "VS")


def test_tables_of_a_whole_comparison(tmp_path, judge):
    """Every frame from trials as they come out of the functions."""

    def run(function, number, **settings):
        result = json.loads(json.dumps(function(tmp_path / str(number), **settings)))
        return Trial(settings, result, tmp_path, str(number), 1.0)

    for number in range(4):
        (tmp_path / str(number)).mkdir()
    chosen, weighed = {"chosen": {"every": 1}}, {"ssl": 0.3}
    plain = run(study.training, 0, method="sum", seed=0, options=weighed, **ASKED)
    some = run(study.training, 1, method="selected", seed=0, options=chosen, **ASKED)
    asked = {name: ASKED[name] for name in ("steps", "model", "speech", "languages")}
    marks = {"seed": 3, "marks": [0, 3], "batches": 1}
    mapped = run(study.conflict, 2, **marks, **asked)
    del asked["steps"]
    cost = run(study.costs, 3, rounds=2, batch=2, **asked)
    frames = overview.tables(
        {
            "comparison": {"sum": [plain], "selected layers": [some]},
            "conflict": {8: [mapped]},
            "costs": {"costs": [cost]},
        }
    )
    assert tuple(frames) == overview.TABLES
    scores = frames["scores"].set_index("arm")
    assert scores.loc["sum", "wer"] == 100 * plain.result["test"]["mean"]["wer"]
    assert scores.loc["sum", "asr_share"] == pytest.approx(2 / 3.3)
    mean = plain.result["test"]["mean"]
    assert scores.loc["sum", "ssl"] == mean["ssl"]  # the loss, not the weight
    assert scores.loc["sum", "weight"] == 0.3
    names = plain.result["history"][0]["names"]
    assert set(frames["objectives"].objective) == set(names)
    paths = frames["paths"]
    assert set(paths[paths.arm == "sum"].weight) == {1.0, 0.3}
    assert len(paths[paths.arm == "sum"]) == 3 * len(names)
    maps = frames["maps"]
    C = mapped.result["maps"][1]["layers"]["all"]
    pair = maps[(maps.step == 3) & (maps.layer == "all")].iloc[0]
    i, j = names.index(pair.one), names.index(pair.other)
    assert pair.cosine == pytest.approx(C[i][j], abs=1e-3)
    assert len(maps) == 2 * 3 * 6  # marks, layers with "all", pairs
    assert set(frames["selected"].share) <= {0.0, 1.0}
    assert frames["costs"].set_index("variant").loc["plain sum", "ratio"] == 1.0


def test_shipped_models_hear_and_translate(world):
    """The models of data/: what their cards say of other speech holds roughly here."""
    from lib.objective_soup import shipping

    for load, wer in ((shipping.shipped_start, 0.6), (shipping.shipped_soup, 0.4)):
        soup, card = load()
        assert set(card["mean"]) >= {"wer", "bleu"}
        numbers = evaluated(soup, shipped_world(), "validation", ["asr_de"])["asr_de"]
        assert numbers["wer"] < wer, card["steps"]


def test_the_balance_of_a_model_holds_what_a_step_needs(world):
    model = Soup(world, SIZES)
    balance = Balance(vm(world.objectives), model.layers(), 9)
    P = sum(p.numel() for p in model.encoder.parameters())
    assert balance.last.shape == (len(world.objectives), P)
    still = Balance(vm(world.objectives, inside="uniform"), model.layers(), 9)
    assert still.last.numel() == 0


@pytest.mark.parametrize("method", ["VS", "balanced"])
@pytest.mark.parametrize("elsewhere", ["weighted", "uniform"])
def test_the_pass_below_the_chosen_layers_gives_the_same_gradients(
    world, method, elsewhere
):
    """From the states that the chosen layers read, or once more from the losses."""
    names, feed = world.objectives, Feed(world, 4, 0)
    chosen = {"every": 99, "elsewhere": elsewhere}
    own = {"inside": "CAGrad"} if method == "balanced" else {"sample": "lagged"}
    recipe = recipe_of("VS", names, **own, selection=Selection(**chosen))
    found = []
    for states in (True, False):
        model = Soup(world, SIZES)
        balance = Balance(recipe, model.layers(), 9)
        balance.chosen[0] = False
        for step in (1, 2):
            parts = losses(model, feed.at(step, names), names, 0, step)
            assert balance.below([parts]) is not None
            w = balance.update([parts if states else dict(parts)], model.heads(), step)
        found.append([w, *(p.grad for p in model.parameters())])
    assert Balance(recipe, model.layers("module"), 9).below([parts]) is None
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
