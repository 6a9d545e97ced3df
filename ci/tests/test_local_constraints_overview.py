"""Lists of trials, the tables made of them, and the models that ship."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from lib.kit.start import ROOT
from lib.kit.trials import FOLDER, Trial, folder_of, key_of, run_here
from lib.local_constraints import large, lists, overview, shipping
from lib.local_constraints.constraint import Arm
from lib.local_constraints.judging import adapting
from lib.local_constraints.learning import predictor
from lib.local_constraints.sources import CODES, world
from lib.local_constraints.study import MODEL, pretraining, starting
from lib.speech.batches import padded
from lib.speech.conformer import Conformer, Recogniser, without_dropout
from lib.speech.models import load_model
from lib.speech.synthesis import shipped

pytestmark = pytest.mark.usefixtures("one_thread")


# -- lists -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked():
    return lists.comparison("noise")


def test_the_comparison_is_all_arms_from_one_start_a_seed(asked):
    assert [s["seed"] for s in asked.starts] == [0, 1, 2]
    assert len(asked.arms) == 3 * len(lists.ARMS)
    starts = {key_of(starting, s): s["seed"] for s in asked.starts}
    assert all(starts[a["source"]] == a["seed"] for a in asked.arms)
    for seed in range(3):
        mine = [a["arm"] for a in asked.arms if a["seed"] == seed]
        assert mine == [a["arm"] for a in lists.ARMS.values()]


def test_every_model_is_asked_the_same(asked):
    keys = [key_of(pretraining, a) for a in asked.arms]
    keys += [key_of(starting, s) for s in asked.starts]
    assert sorted(s["source"] for s in asked.judged) == sorted(keys)
    assert len({json.dumps(s | {"source": ""}) for s in asked.judged}) == 1
    pairs = {}
    for s in asked.adapted:
        pairs.setdefault(s["source"], []).append((s["subset"], s["seed"], s["n"]))
    assert set(pairs) == {*keys, ""}
    assert set(map(tuple, pairs.values())) == {((0, 10, 4), (1, 11, 4), (2, 12, 4))}
    assert set(asked.names) == {*keys, ""}
    assert asked.names[""] == ("scratch", -1, 0.0, 0.0)


@pytest.mark.parametrize("sources", [3, 4])
def test_every_arm_can_spend_the_budget(asked, sources):
    spent = {
        Arm(a["arm"], a["K"], a["alpha"]).steps(lists.BUDGET, sources)
        for a in asked.arms
    }
    assert max(spent) == lists.BUDGET // sources


def test_an_arm_with_another_setting_repeats_no_other(asked):
    chosen = dict(lists.USUAL) | {lists.K1: {"alpha": 0.01, "lr": 1e-3}}
    other = lists.comparison("noise", chosen=chosen)
    assert other.starts == asked.starts
    apart = set(other.names) - set(asked.names)
    assert {other.names[key][:1] + other.names[key][2:] for key in apart} == {
        (lists.K1, 0.01, 1e-3)
    }
    assert len(apart) == 3
    # What is asked of all does not depend on it, so that curves can be compared.
    assert {s["alpha"] for s in other.judged} == {lists.ALPHA}


def test_the_grid_gives_every_arm_the_same_rates_on_a_seed_of_its_own():
    asked = lists.grid("noise")
    assert [s["seed"] for s in asked.starts] == [lists.TUNING_SEED]
    assert lists.TUNING_SEED not in lists.SEEDS
    rates = {}
    for arm, seed, alpha, lr in asked.names.values():
        assert seed == lists.TUNING_SEED
        if alpha == 0.02:
            rates.setdefault(arm, []).append(lr)
    assert list(rates) == list(lists.ARMS)
    assert all(found == [1e-3, 2e-3, 4e-3, 8e-3] for found in rates.values())
    assert len(asked.adapted) == 3 * len(asked.arms)


def test_best_is_the_lowest_mean_error():
    asked = lists.grid("noise")

    def per(s):
        arm, _, alpha, lr = asked.names[s["source"]]
        best_lr = 4e-3 if arm == lists.MIXING else 1e-3
        return 0.5 + 0.1 * (lr != best_lr) - 0.3 * (alpha == 0.01) + s["subset"] / 100

    adapted = [trial(adapting, s, {"per": per(s)}) for s in asked.adapted]
    found = lists.best(lists.Done([], adapted, [], [], asked.names))
    assert list(found) == list(lists.ARMS)
    assert found[lists.MIXING] == {"alpha": 0.02, "lr": 4e-3}
    assert found[lists.K1] == {"alpha": 0.01, "lr": 2e-3}
    assert found[lists.K2] == {"alpha": 0.02, "lr": 1e-3}


def test_defaults_by_name_leave_the_keys_alone(asked):
    named = lists.comparison("noise", seeds=range(3), utterances=500, d=128, blocks=3)
    assert named == asked
    tiny = lists.comparison("noise", seeds=(0,), d=16, steps=5)
    assert tiny.starts[0]["d"] == 16
    bare = [s for s in tiny.adapted if not s["source"]]
    assert all(s["d"] == 16 and s["steps"] == 5 for s in bare)
    assert not any("d" in s for s in tiny.adapted if s["source"])


def test_the_headroom_compares_each_kind_with_scratch():
    room = lists.headroom()
    assert [s.get("small", 0) for s in room.starts] == [0, 60, 0, 0]
    assert len(room.adapted) == 3 * (4 + 3)  # two kinds share random weights
    assert [kind for kind, *_ in room.names.values()] == [*lists.KINDS, "scratch"]
    assert not room.arms + room.judged


def test_an_unknown_arm_is_named():
    with pytest.raises(ValueError, match="no arm MAML; give some of: mixing"):
        lists.comparison("noise", chosen={"MAML": {"alpha": 0.1, "lr": 0.1}})


def test_the_control_has_the_outer_steps_and_batches_of_one_inner_step():
    control, K1 = (
        Arm(lists.ARMS[n]["arm"], lists.ARMS[n]["K"], 0.05)
        for n in (lists.PAIRED, "first order, K = 1")
    )
    assert control.kind == "mixing"
    assert (control.batches, control.gradients) == (K1.batches, K1.gradients)


def test_a_setting_or_corpora():
    with pytest.raises(ValueError, match="corpora are none; give one of both"):
        lists.comparison()
    with pytest.raises(ValueError, match="setting is noise and the corpora are a=b"):
        lists.comparison("noise", corpora=["a=b"])
    with pytest.raises(ValueError, match="A setting of starting is 'utterance'"):
        lists.comparison("noise", utterance=5)


# -- tables ----------------------------------------------------------------------------


def trial(function, settings, result):
    return Trial(settings, result, ROOT, key_of(function, settings), 1.0)


@pytest.fixture(scope="module")
def done():
    """A finished comparison with made-up results: K = 1 gains 0.1 * (1 + seed)."""
    few = {arm: lists.USUAL[arm] for arm in lists.FEW}
    asked = lists.comparison("noise", seeds=(0, 1), chosen=few)
    better = {"start": -0.05, "mixing": 0.0, "scratch": -0.2}

    def per(s):
        arm, seed, *_ = asked.names[s["source"]]
        return 0.5 + s["subset"] / 10 - better.get(arm, 0.1 * (1 + seed))

    log = {
        "step": [1, 2, 4],
        **{
            name: {"theta": [3.0, 2.0, 1.0], "phi": [2.0, 1.0, add], "ratio": [0.5] * 3}
            for name, add in (("quiet", 0.0), ("white", 1.0))
        },
    }
    cost = {"outer_steps": 4, "gradients": 24, "cpu_s": 9.0, "log": log}
    judged = {
        "sources": {"quiet": [3.0, 2.0, 1.5, 1.0], "white": [1.0, 1.0, 0.5, 0.0]},
        "after": [0, 3],
        "held_out": {"0.03": [3.0, 2.5], "0.1": [3.0, 4.0]},
        "curvature": {"quiet": 7.0, "white": 9.0, "loud": 20.0},
        "probe": 0.6,
    }
    return lists.Done(
        starts=[trial(starting, s, cost) for s in asked.starts],
        arms=[trial(pretraining, s, cost) for s in asked.arms],
        judged=[trial(lists.judging, s, judged) for s in asked.judged],
        adapted=[trial(adapting, s, {"per": per(s)}) for s in asked.adapted],
        names=asked.names,
    )


@pytest.fixture(scope="module")
def made(done):
    return overview.tables(done, "noise")


def test_the_tables_hold_what_was_measured(made):
    assert set(made) == set(overview.TABLES[2:])
    assert all(list(t.columns[:5]) == list(overview.WHO) for t in made.values())
    assert len(made["few_shot"]) == 3 * (2 * 3 + 1)
    adaptation = made["adaptation"]
    assert len(adaptation) == 6 * 2 * 2
    assert (
        adaptation[(adaptation.rate == 0.1) & (adaptation.steps == 3)].loss.eq(4).all()
    )
    row = made["models"].iloc[0]
    assert (row.arm, row.theta, row["after 3"]) == ("start", 2.0, 0.5)
    assert (row.lambda_max, row["held-out lambda_max"]) == (9.0, 20.0)
    assert (row["outer steps"], row.gradients, row.cpu_s) == (4, 24, 9.0)


def test_a_curve_is_in_gradients_and_a_mean_of_sources(made):
    curve = made["training"].query("arm == 'mixing' and seed == 0")
    assert curve.gradients.tolist() == [6.0, 12.0, 24.0]
    assert curve.theta.tolist() == [3.0, 2.0, 1.0]
    assert curve.phi.tolist() == [2.0, 1.0, 0.5]


def test_a_long_curve_is_shortened():
    n = 40
    part = {"theta": list(range(n)), "phi": [None] * n, "ratio": [1.0] * n}
    log = {"step": list(range(1, n + 1)), "one": part}
    rows = overview._curve({"log": log, "gradients": 80, "outer_steps": n})
    assert len(rows) == overview.POINTS
    assert rows[-1][0] == 80
    assert np.isnan(rows[0][2])  # None, as JSON keeps what is not finite
    mean = np.average([r[1] for r in rows], weights=np.diff([0, *(r[0] for r in rows)]))
    assert mean == pytest.approx((n - 1) / 2)


def test_effects_are_paired_and_one_a_seed(made):
    few = made["few_shot"]
    K1 = overview.effects(few, "per", lists.K1)
    assert pytest.approx([0.1, 0.2]) == K1
    start = overview.effects(few, "per", "start")
    assert pytest.approx([-0.05, -0.05]) == start
    bare = overview.effects(few, "per", "mixing", "scratch")
    assert pytest.approx([0.2, 0.2]) == bare
    # A fine-tuning that is missing from one arm is left out of both.
    gone = few.drop(few.query("arm == 'mixing' and subset == 0").index)
    worse = gone.assign(per=gone.per + 9.0 * (gone.subset == 0))
    again = overview.effects(worse, "per", lists.K1)
    assert pytest.approx(K1) == again
    held = overview.effects(made["adaptation"], "loss", lists.K1, rate=0.03, steps=3)
    assert held == [0.0, 0.0]


def test_effects_name_what_is_missing(made):
    few = made["few_shot"]
    with pytest.raises(ValueError, match="0 settings of the arm Reptile, K = 2"):
        overview.effects(few, "per", lists.REPTILE)
    with pytest.raises(ValueError, match="0 settings of the arm none"):
        overview.effects(few, "per", "mixing", "none")
    twice = pd.concat([few, few.assign(lr=0.5)])
    with pytest.raises(ValueError, match="2 settings of the arm first order, K = 1"):
        overview.effects(twice, "per", lists.K1)
    elsewhere = few.assign(seed=few.seed.where(few.arm != "start", 7))
    with pytest.raises(ValueError, match="no run in common"):
        overview.effects(elsewhere, "per", lists.K1, "start")


def test_the_room_pairs_each_kind_with_its_own_scratch():
    asked = lists.headroom()
    value = {"languages": 0.4, "noise": 0.6, "voices": 0.5}

    def per(s):
        return value[s["setting"]] + s["subset"] - 0.1 * bool(s["source"])

    adapted = [trial(adapting, s, {"per": per(s)}) for s in asked.adapted]
    found = overview.room(lists.Done([], adapted, [], [], asked.names))
    assert found.groupby("speech", sort=False).size().to_dict() == dict.fromkeys(
        lists.KINDS, 3
    )
    assert np.allclose(found["scratch"] - found["pre-trained"], 0.1)
    assert np.allclose(found.query("speech == 'noise'").scratch, [0.6, 1.6, 2.6])


def test_compared_tunes_then_compares(monkeypatch, done):
    best_lr = {arm: 1e-3 for arm in lists.ARMS} | {lists.K1: 4e-3}

    labelled = []

    def run(asked, workers):
        labelled.append({s["n"] for s in asked.adapted})

        def per(s):
            arm, _, _, lr = asked.names[s["source"]]
            return 0.5 + (lr != best_lr.get(arm))

        adapted = [trial(adapting, s, {"per": per(s)}) for s in asked.adapted]
        cost, judged = done.arms[0].result, done.judged[0].result
        return lists.Done(
            starts=[trial(starting, s, cost) for s in asked.starts],
            arms=[trial(pretraining, s, cost) for s in asked.arms],
            judged=[trial(lists.judging, s, judged) for s in asked.judged],
            adapted=adapted,
            names=asked.names,
        )

    monkeypatch.setattr(overview, "run", run)
    found = overview.compared("noise", others=["voices"], seeds=(0,))
    assert sorted(found) == sorted(overview.TABLES)
    assert len(found["tuning"]) == 3 * len(lists.GRID)
    assert labelled == [{12}, {12}, {12}, {4}]  # the headroom comes last
    models = found["models"]
    noise = models[models.setting == "noise"]
    assert noise.arm.tolist() == ["start", *lists.ARMS]
    assert noise.lr.tolist() == [0.0, *(best_lr[arm] for arm in lists.ARMS)]
    voices = models[models.setting == "voices"]
    assert voices.lr.tolist() == [0.0, 1e-3, 4e-3]  # as tuned on noise
    assert models.columns.is_unique


def test_the_gain_of_starts_is_the_mean_of_seeds(made):
    found = overview.gained(made["few_shot"])
    assert found.speech.tolist() == ["noise"] * 3
    assert np.allclose(found.scratch, [0.7, 0.8, 0.9])
    assert np.allclose(found["pre-trained"], [0.55, 0.65, 0.75])


# -- any size --------------------------------------------------------------------------


CORPORA = ["en=shipped:en", "de=shipped:de", "fr=shipped:fr"]


@pytest.fixture(scope="module")
def any_size(tmp_path_factory):
    """A start, an arm and fine-tunings on corpora by name, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("large")
        patch.setenv("COLLECTION_CACHE", str(folder))

        def trials(function, settings, **_):
            found = []
            for chosen in settings:
                key = key_of(function, chosen)
                place = folder / FOLDER / key
                place.mkdir(parents=True, exist_ok=True)
                run_here(function, place, chosen)
                kept = json.loads((place / "result.json").read_text("utf-8"))
                found.append(Trial(chosen, kept["result"], place, key, 1.0))
            return found

        patch.setattr(lists, "trials", trials)
        asked = lists.comparison(
            corpora=CORPORA,
            device="cpu",
            seeds=(0,),
            chosen={lists.K1: {"alpha": 0.01, "lr": 1e-3}},
            gradients=4,
            n=2,
            pairs=[(0, 1)],
            steps=2,
            V=32,
            frames=200,
            judged=2,
            sizes={"d": 16, "blocks": 1},
        )
        yield lists.run(asked)


def test_corpora_by_name_go_through_the_same_tables(any_size):
    done = any_size
    found = overview.tables(done, "fr")
    assert found["models"].arm.tolist() == ["start", "first order, K = 1"]
    assert found["models"]["outer steps"].tolist() == [2, 1]
    assert found["models"].theta.between(1, 6).all()
    assert sorted(found["few_shot"].arm) == ["first order, K = 1", "scratch", "start"]
    assert found["few_shot"].per.gt(0).all()
    assert len(found["adaptation"]) == 2 * 2 * len(large.AFTER)
    assert len(overview.gained(found["few_shot"])) == 1


def test_an_arm_goes_on_from_its_start_and_keeps_its_sizes(any_size):
    done = any_size
    start, arm = (
        torch.load(t.folder / MODEL, weights_only=True) for t in done.starts + done.arms
    )
    assert start["about"] == arm["about"]
    assert arm["about"]["V"] == 32
    assert arm["predictor"]["heads.shared.weight"].shape == (32, 16)
    moved = [
        n for n, p in arm["predictor"].items() if not p.equal(start["predictor"][n])
    ]
    assert len(moved) > 10
    assert len(done.arms[0].result["log"]["step"]) == 1
    with pytest.raises(ValueError, match=r"has seed 0, not 1; give the start"):
        large.begun(done.starts[0].folder, start["about"] | {"seed": 1}, 0.1)
    advice = large.begun(done.starts[0].folder, start["about"], 1e6)[2]
    assert "alpha is 1e+06" in advice
    assert large.begun(done.starts[0].folder, start["about"], 0.0)[2] == ""


def test_the_full_profile_asks_for_what_is_there():
    path = ROOT / "notebooks" / "profiles" / "34_local_constraints.full.yaml"
    full = yaml.safe_load(path.read_text("utf-8"))
    sizes = {name: full[name] for name in ("d", "blocks", "heads")}
    one = {"alpha": full["alpha"], "lr": full["lr"]}
    asked = lists.comparison(
        corpora=full["corpora"],
        device=full["device"],
        seeds=range(full["seeds"]),
        gradients=full["budget"],
        frames=full["batch"],
        n=full["n"],
        V=full["V"],
        sizes=sizes,
        chosen=dict.fromkeys(lists.ARMS, one),
    )
    assert asked.functions == lists.ANY_SIZE
    assert asked.starts[0]["V"] == 8192
    assert asked.adapted[-1]["sizes"] == sizes
    sources = len(full["corpora"]) - 1
    for a in asked.arms:
        assert Arm(a["arm"], a["K"], a["alpha"]).steps(a["gradients"], sources) > 0
    with torch.device("meta"):
        encoder = Conformer(80, **sizes)
    assert sum(p.numel() for p in encoder.parameters()) > 1e8


def test_a_batch_on_a_device_is_the_same_batch():
    parts = large.gathered(CORPORA)
    batch = padded(parts.sources["en"], range(3))
    labels = large.labelling("best_rq", parts, 16, 0)("en", batch.features)
    moved = large.onto(torch.device("cpu"), {"step": 3, "en": [(batch, labels)]}, None)
    assert moved["step"] == 3
    assert torch.equal(moved["en"][0][0].features, batch.features)
    assert torch.equal(moved["en"][0][1], labels)


@pytest.mark.parametrize("kind", ["best_rq", "kmeans"])
def test_labels_of_any_size(kind):
    parts = large.gathered(CORPORA)
    x = torch.from_numpy(parts.test[0].features)
    codes = large.labelling(kind, parts, 16, 0)("fr", x)
    assert codes.shape == x.shape[:1]
    assert 0 <= int(codes.min()) <= int(codes.max()) < 16
    assert int(codes.unique().numel()) > 3
    with pytest.raises(ValueError, match="labels is 'hubert'"):
        large.labelling("hubert", parts, 16, 0)


def test_corpora_that_cannot_be_gathered():
    for given in (
        [],
        ["en=shipped:en"],
        ["en", "de=shipped:de"],
        ["=x", "de=shipped:de"],
    ):
        with pytest.raises(ValueError, match="give two or more entries"):
            large.gathered(given)
    with pytest.raises(ValueError, match="one name"):
        large.gathered(["en=shipped:en", "en=shipped:de"])
    with pytest.raises(ValueError, match="The corpus is 'nowhere'"):
        large.gathered(["en=shipped:en", "de=nowhere"])


def test_some_frames_are_spread_over_a_corpus():
    corpus = shipped("en").select(split="unlabelled")
    found = large.some(corpus, 1000)
    assert 700 < len(found) < 1300
    assert len(large.some(corpus.take(range(3)), 10**6)) == corpus.lengths[:3].sum()


# -- phones ----------------------------------------------------------------------------


def test_overlap_is_the_share_of_frames_with_a_known_phone():
    few = {name: shipped(name).take(range(3)) for name in ("en", "de")}
    found = overview.overlap(few)
    assert np.allclose(np.diag(found), 1)
    frames = few["en"].all_alignments()
    known = {int(p) for p in few["de"].all_alignments()}
    spoken = [int(p) for p in frames if p > 0]
    assert found.loc["en", "de"] == pytest.approx(
        sum(p in known for p in spoken) / len(spoken)
    )
    assert found.loc["en", "de"] < 1
    with pytest.raises(ValueError, match="no alignment"):
        overview.overlap({"en": replace(few["en"], alignment=None)})


# -- what ships ------------------------------------------------------------------------


TINY = {"setting": "noise", "seed": 0, "gradients": 6, "utterances": 0, "frames": 200}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cache with a tiny start, as `starting` leaves it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("COLLECTION_CACHE", str(folder))
        asked = TINY | {"d": 16, "blocks": 1, "every": 9}
        key = key_of(starting, asked)
        (folder / FOLDER / key).mkdir(parents=True)
        run_here(starting, folder / FOLDER / key, asked)
        result = {"gradients": 6}
        yield Trial(asked, result, folder_of(key), key, 1.0)


def test_a_start_comes_back_from_its_file(place, tmp_path):
    path = tmp_path / "start.npz"
    shipping.write_start(path, place)
    model, labels, card = shipping.start_of(path)
    kept = torch.load(place.folder / MODEL, weights_only=True)["predictor"]
    state = model.state_dict()
    assert state.keys() == kept.keys()
    assert all(torch.allclose(state[n], kept[n], 1e-3, 1e-4) for n in kept)
    assert card["made by"]["setting"] == "noise"
    assert card["made by"]["sources"] == ["quiet", "white", "brown"]
    parts = world("noise", utterances=0)
    batch = padded(parts.sources["quiet"], range(4))
    _, own = shipping.asked(card["made by"])
    again = (labels("", batch.features) == own("quiet", batch.features)).double().mean()
    assert float(again) > 0.98  # the codebook is kept in half precision
    # The same model gives the same bytes.
    other = tmp_path / "again.npz"
    shipping.write_start(other, place)
    assert path.read_bytes() == other.read_bytes()


def test_a_recogniser_comes_back_from_its_file(place, tmp_path):
    symbols = len(world("noise", utterances=0).labelled.vocabulary) - 1
    model = Recogniser(Conformer(80, d=16, blocks=1), symbols)
    folder = tmp_path / "heard"
    folder.mkdir()
    torch.save({"model": model.state_dict()}, folder / "run.pt")
    heard = Trial({"n": 4}, {"per": 0.4}, folder, "key", 1.0)
    path = tmp_path / "heard.npz"
    shipping.write_recogniser(path, heard, place)
    _, card = load_model(path)
    assert len(card["symbols"]) == symbols
    assert card["phone error rate on new speakers"] == 0.4
    assert card["fine-tuned by"] == {"n": 4}


def test_the_shipped_models_fit_each_other():
    start = shipping.shipped_start()
    assert start.card["made by"]["setting"] == shipping.SETTING
    recogniser, card = shipping.shipped_recogniser()
    pair = card["fine-tuned by"]["subset"], card["fine-tuned by"]["seed"]
    assert pair == shipping.HEARS
    parts = world("noise", utterances=0)
    assert card["symbols"] == list(parts.labelled.vocabulary.symbols)
    batch = padded(parts.test, range(3))
    codes = start.labels("loud", batch.features)
    assert 0 <= int(codes.min()) <= int(codes.max()) < CODES
    with torch.no_grad(), without_dropout(recogniser):
        scores = recogniser(batch.features, batch.lengths)[0]
    assert scores.shape == (*batch.features.shape[:2], len(card["symbols"]) + 1)
    made = start.card["made by"]
    fresh = predictor(made["sources"], d=made["d"], blocks=made["blocks"])
    assert fresh.state_dict().keys() == start.model.state_dict().keys()


def test_the_files_are_in_the_manifest_and_small():
    manifest = json.loads((ROOT / "data" / "manifest.json").read_text("utf-8"))
    for name in (shipping.START, shipping.RECOGNISER):
        name = f"models/{name}.npz"
        assert manifest[name]["source"] == shipping.SOURCE
        assert manifest[name]["size"] < 1_600_000


def test_build_ships_both_models_of_the_trials(place, tmp_path, monkeypatch):
    wrote = []
    monkeypatch.setattr(shipping, "write_start", lambda *given: wrote.append(given))
    monkeypatch.setattr(
        shipping, "write_recogniser", lambda *given: wrote.append(given)
    )
    chosen = {"mixing": shipping.CHOSEN}
    wanted = lists.comparison("noise", seeds=(0,), chosen=chosen)
    monkeypatch.setattr(shipping, "comparison", lambda *_, **__: wanted)
    key = key_of(pretraining, wanted.arms[0])
    made = replace(place, key=key)
    monkeypatch.setattr(shipping, "trials", lambda function, asked: [made] * len(asked))
    monkeypatch.setattr(shipping, "ship", lambda *given: wrote.append(given))
    shipping.build(tmp_path)
    ((models, source, folder),) = wrote
    assert (source, folder) == (shipping.SOURCE, tmp_path)
    for name, write in models.items():
        write(name)
    assert wrote[1:] == [
        (shipping.START, made),
        (shipping.RECOGNISER, made, made),
    ]


def test_tables_can_be_recorded(made):
    """Plain columns, unique names, few rows: what `kit.save_table` takes."""
    for frame in made.values():
        assert frame.columns.is_unique
        assert all(isinstance(c, str) for c in frame.columns)
        assert not frame.isna().all(axis=None)
        assert isinstance(frame.index, pd.RangeIndex)
