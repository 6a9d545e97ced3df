"""What notebook 33 shows: the pair's closed forms, tables of trials, shipped models."""

import inspect
import json
import math

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.bl_just import lists, overview, pictures, shipping, study
from lib.bl_just.pair import Pair, walk
from lib.bl_just.parts import speech
from lib.bl_just.schedules import Budget, bl_just, fixed_sum, pretrained
from lib.bl_just.study import exploring, stages_of, training
from lib.codebooks import RandomProjection
from lib.kit.figures import digest
from lib.kit.start import ROOT
from lib.kit.trials import Trial
from lib.speech.models import load_recogniser

pytestmark = pytest.mark.usefixtures("one_thread")


# -- the pair -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    return Pair.draw(3, d=8, n=3, noise=0.4, worlds=50)


def test_slopes_are_autograds(pair):
    theta = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    for level, slope in zip((pair.f, pair.g), pair.slopes(theta)):
        (wanted,) = torch.autograd.grad(level(theta).sum(), theta)
        torch.testing.assert_close(slope, wanted)


@pytest.mark.parametrize("gamma", [0.01, 1.0, 30.0])
def test_a_point_of_the_front_has_no_slope(pair, gamma):
    df, dg = pair.slopes(pair.weighted(gamma))
    assert float((df + gamma * dg).abs().max()) < 1e-10


def test_tuning_fits_the_labels_and_moves_nothing_else(pair):
    start = torch.randn(50, 8, dtype=torch.float64)
    end = pair.tuned(start)
    assert float(pair.f(end).max()) < 1e-20
    unseen = torch.linalg.svd(pair.A).Vh[3:]  # (5, 8), not in the rows of A
    assert float(((end - start) @ unseen.T).abs().max()) < 1e-12


def test_the_swapped_problem_obeys_its_kkt_conditions(pair):
    end = pair.swapped
    assert float(pair.f(end).max()) < 1e-20
    dg = pair.slopes(end)[1]
    unseen = torch.linalg.svd(pair.A).Vh[3:]
    assert float((dg @ unseen.T).abs().max()) < 1e-10


def test_the_limits_of_gamma(pair):
    near = pair.tuned(pair.weighted(1e-7))
    assert float((near - pair.swapped).abs().max()) < 1e-4
    far = pair.tuned(pair.weighted(1e7))
    alone = pair.tuned(pair.b.expand_as(pair.truth))
    assert float((far - alone).abs().max()) < 1e-4


def test_a_risk_is_the_mean_error_of_many_worlds():
    many = Pair.draw(5, d=6, n=2, noise=0.7, worlds=100_000)
    b = many.b.expand_as(many.truth)
    for end, gamma, found in (
        ("PT + FT", 1.0, many.tuned(b)),
        ("weighted sum", 0.3, many.weighted(0.3)),
        ("BL-JUST", 0.3, many.tuned(many.weighted(0.3))),
    ):
        assert many.risk(end, gamma) == pytest.approx(many.error(found), rel=0.02)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.floats(0.0, 3.0),
    st.floats(0.5, 20.0),
    st.floats(1.0, 1000.0),
)
def test_a_large_gamma_never_hurts_where_the_lower_level_is_right(
    seed, n, noise, share, spread
):
    some = Pair.draw(seed, d=7, n=n, noise=noise, worlds=1, spread=spread)
    gamma = max(share * noise**2, 1e-6)
    plain = some.risk("PT + FT")
    assert some.risk("BL-JUST", gamma) <= plain * (1 + 1e-9)
    best = some.risk("weighted sum", max(noise**2, 1e-9))
    assert best <= some.risk("weighted sum", gamma) * (1 + 1e-6)
    assert best <= some.risk("BL-JUST", gamma) * (1 + 1e-6)


def test_a_gamma_far_below_the_noise_can_hurt():
    some = Pair.draw(0, d=12, n=8, noise=3.0, worlds=1)
    assert some.risk("BL-JUST", 1e-3) > 1.02 * some.risk("PT + FT")


def test_a_walk_is_gradient_descent_with_the_stages_weights(pair):
    (stage,) = fixed_sum(Budget(2, 1), 4.0)
    path = walk(pair, [stage])
    theta = torch.zeros(50, 8, dtype=torch.float64)
    assert (stage.ctc[0], stage.ctc[1]) == (0.0, 0.25)
    assert torch.equal(path[0], theta)
    for upper in (0.0, 0.25):
        df, dg = pair.slopes(theta)
        theta = theta - pair.step * (upper * df + dg)
    torch.testing.assert_close(path[-1], theta)


def test_walks_end_where_the_closed_forms_say(pair):
    b = pair.b.expand_as(pair.truth)
    for stages, wanted in (
        (fixed_sum(Budget(800, 800), 0.5), pair.weighted(0.5)),
        (pretrained(Budget(800, 800)), pair.tuned(b)),
        (
            bl_just(Budget(900, 1600), 0.5, explore=100, shared=800),
            pair.tuned(pair.weighted(0.5)),
        ),
    ):
        path = walk(pair, stages)
        assert len(path) == 1 + sum(stage.steps for stage in stages)
        assert float((path[-1] - wanted).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Pair.draw(0, d=4, n=4), "fewer labels than parameters"),
        (lambda: Pair.draw(0, spread=0.5), "at least 1"),
        (lambda: Pair.draw(0).risk("pt"), "The end|end is 'pt'"),
    ],
)
def test_a_bad_pair_gets_a_sentence(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# -- tables -------------------------------------------------------------------------

END = {"ssl": 3.0, "ctc": 1.0, "ctc_labelled": 0.1}


def stage_row(name, steps, turn=0, points=4, **values):
    none = [None] * points
    row = {"stage": name, "steps": steps, "turn": turn, "norm": [1.0] * points}
    return row | {"ssl": none, "ctc": none, "gamma": none} | values


def result_of(s):
    """What a trial might find: the better the larger its arm's number."""
    order = ["supervised", "fixed_sum", "bl_just", "self_training", "pt_ft"]
    gamma = s.get("options", {}).get("gamma", 1.0)
    per = 0.5 - 0.05 * order.index(s["arm"]) - 0.001 * s["n"] + 0.01 * s["seed"]
    per += 0.001 * s["tune"] + (0.002 * gamma if s["arm"] == "bl_just" else 0)
    first = stage_row("first", 8, 4, ssl=[3.0] * 4, ctc=[None, None, 2.0, 2.0])
    curves = [first, stage_row("final", 4, ctc=[1.0] * 4, gamma=[0.0] * 4)]
    return {
        "per": per,
        "wer": 2 * per,
        "end": END,
        "counted": {"ssl": 600, "ctc": 300, "pseudo": 0},
        "curves": curves,
        "pulls": [[2, 0.5, 0.4, 0.1], [9, 0.5, 0.4, 0.2]],
        "pseudo": {"per": 0.3} if s["arm"] == "self_training" else None,
        "seconds": {"first": 3.0, "final": 1.0},
        "shared": 450 if "source" in s else 0,
    }


def key_of(s):
    return json.dumps(s, sort_keys=True)


@pytest.fixture
def studied(monkeypatch):
    """A study without training: every trial is answered at once, and noted."""
    asked = []

    def run(settings, workers=None, bar=True):
        asked.append(list(settings))
        return [Trial(s, result_of(s), None, key_of(s), 1.0) for s in settings]

    def explorations(seeds, where, **how):
        found = [{"seed": seed, **where} for seed in seeds]
        result = {"seconds": {"first": 60.0}}
        return [Trial(s, result, None, f"key {key_of(s)}", 1.0) for s in found]

    monkeypatch.setattr(lists, "run", run)
    monkeypatch.setattr(lists, "explorations", explorations)
    return overview.study(pairs=2, bar=False), asked


def test_a_study_runs_its_lists_in_order(studied):
    _, asked = studied
    noisy = lists.SPEECH["noisy"]
    assert len(asked) == 4
    pilot, tuned, comparison, sweep = asked
    assert {(r["arm"], tuple(r["snr"])) for r in pilot} == {
        (arm, snr) for arm in lists.PILOT for snr in ((10, 30), (0, 15))
    }
    source = tuned[4]["source"]
    assert tuned == lists.grid(noisy, source) + lists.second(noisy, source)
    assert {r["seed"] for r in pilot + tuned} == {lists.TUNING_SEED}
    assert {r["seed"] for r in comparison + sweep} == {0, 1, 2}
    assert {r["n"] for r in sweep} == {16}
    assert {r["n"] for r in comparison} == {4, 16, 64}


def test_the_best_of_both_rounds_goes_into_the_comparison(studied):
    found, asked = studied
    own = found.chosen["bl_just"]["options"]
    assert own["gamma"] == 0.3  # the least PER of all by construction
    rows = [r for r in asked[2] if r["arm"] == "bl_just" and r["n"] == 4]
    assert all(r["options"] == own for r in rows)
    assert {r["options"]["gamma"] for r in asked[3]} == {0.0, 0.1, 1.0, 3.0}


def test_a_study_names_its_runs(studied):
    runs = studied[0].runs
    names = set(runs[runs["list"] == "comparison"]["name"])
    assert names == {*overview.NAMES.values(), *lists.ABLATIONS}
    swept = set(runs[runs["list"] == "sweep"]["name"])
    assert swept == {"gamma 0", "gamma 0.1", "gamma 1", "gamma 3"}
    at = runs[(runs["name"] == "no exploration")]
    assert set(at["n"]) == {16}
    assert len(at) == 6
    assert set(runs[runs["name"] == "fixed sum"]["n"]) == {16}


def test_only_the_middle_n_has_more_fine_tunings(studied):
    asked = studied[1][2]
    tunes = {n: [r["tune"] for r in asked if r["n"] == n] for n in (4, 16, 64)}
    assert set(tunes[16]) == {0, 1, 2, 10, 11, 12}
    assert set(tunes[4]) == set(tunes[64]) == {0, 1, 2}


def test_every_n_counts_alike_whatever_its_fine_tunings(studied):
    runs = studied[0].runs.copy()
    worse = (runs["name"] == "PT + FT") & (runs["n"] == 16) & (runs["tune"] >= 10)
    assert worse.sum() == 3  # the second fine-tuning of each seed
    runs.loc[worse, "per"] += 0.6
    gap = overview.effects(runs, "PT + FT", "supervised")
    assert gap == pytest.approx([0.2 - 0.6 / 2 / 3] * 3)  # half of one n of three


def test_an_arm_pays_its_part_of_a_shared_exploration(studied):
    runs = studied[0].runs
    assert set(runs[runs["name"] == "supervised"]["cpu"]) == {4.0}
    assert set(runs[runs["name"] == "PT + FT"]["cpu"]) == {4.0 + 60 * 450 / 600}


def test_effects_are_paired_and_one_a_seed(studied):
    runs = studied[0].runs
    gap = overview.effects(runs, "PT + FT", "supervised")
    assert gap == pytest.approx([0.2] * 3)
    assert overview.effects(runs, "PT + FT", "supervised", "wer") == pytest.approx(
        [0.4] * 3
    )
    only = overview.effects(runs, "BL-JUST", "fixed sum", "per", [16])
    assert only == pytest.approx([0.05 - 0.002 * 0.3] * 3)
    assert overview.effects(runs, "BL-JUST", "gamma 3") == pytest.approx(
        [0.002 * 2.7] * 3
    )


def test_effects_see_the_seeds_apart(studied):
    runs = studied[0].runs.copy()
    worse = (runs["name"] == "PT + FT") & (runs["seed"] == 1)
    runs.loc[worse, "per"] += 0.3
    gap = overview.effects(runs, "PT + FT", "supervised")
    assert gap == pytest.approx([0.2, -0.1, 0.2])
    table = overview.against(runs).set_index(["name", "n"])
    assert table.loc[("supervised", 4), "difference"] == pytest.approx(0.1)
    assert table.loc[("supervised", 4), "low"] < 0


@pytest.mark.parametrize(
    ("names", "ns", "said"),
    [
        (("BL-JUST", "PTFT"), None, "other is 'PTFT'"),
        (("BLJUST", "PT + FT"), None, "Did you mean BL-JUST"),
        (("BL-JUST", "fixed sum"), [4], "no n in common"),
    ],
)
def test_effects_of_what_was_not_run_get_a_sentence(studied, names, ns, said):
    with pytest.raises(ValueError, match=said):
        overview.effects(studied[0].runs, *names, "per", ns)


def test_means_have_intervals_over_seeds(studied):
    found = overview.means(studied[0].runs, "per", ["PT + FT"]).set_index("n")
    each = [0.3 - 0.016 + 0.01 * s + 0.001 * (s + 5) for s in range(3)]
    assert found.loc[16, "mean"] == pytest.approx(np.mean(each))
    half = 4.302652729911275 * np.std(each, ddof=1) / math.sqrt(3)
    assert found.loc[16, "high"] == pytest.approx(np.mean(each) + half)


def test_a_curve_knows_its_phases():
    s = {"arm": "bl_just", "n": 16, "seed": 0, "tune": 0}
    rows = overview.curve(result_of(s)["curves"])
    assert [r["step"] for r in rows] == [1, 3, 5, 7, 8.5, 9.5, 10.5, 11.5]
    assert [r["stage"] for r in rows] == ["exploration"] * 2 + ["joint"] * 2 + [
        "final"
    ] * 4
    assert rows[2]["ctc"] == 2.0
    assert math.isnan(rows[0]["ctc"])
    assert math.isnan(rows[0]["pseudo"])


def test_curves_are_means_at_one_n(studied):
    curves = studied[0].curves
    assert set(curves["name"]) >= {"BL-JUST", "no exploration", "gamma 3"}
    own = curves[curves["name"] == "BL-JUST"]
    assert len(own) == 8
    assert len(studied[0].pulls) == 2 * len(
        studied[0].runs.query("list in ('comparison', 'sweep')")
    )


def test_a_study_refuses_what_it_cannot_judge():
    with pytest.raises(ValueError, match="tuned on seed 9"):
        overview.study(seeds=(9, 0, 1))
    with pytest.raises(ValueError, match="must be one of"):
        overview.study(ns=(4, 64))
    with pytest.raises(ValueError, match="speech is 'loud'"):
        overview.study("loud")


def test_settings_read_as_a_phrase():
    said = overview.words({"keep": 0.9, "options": {"lr": 3e-3, "encoder": 1}})
    assert said == "keep 0.9, lr 0.003, encoder 1"
    assert overview.words({}) == "default"


# -- the settings of other sizes ----------------------------------------------------


def test_what_is_usual_is_not_asked_for():
    usual = {"N_ssl": 600, "N_ctc": 300, "V": 64, "every": 50, "test": 150}
    usual |= {"size": {"d": 128, "blocks": 3, "heads": 4}, "device": "cpu"}
    assert lists.where_of("noisy", **usual) == lists.SPEECH["noisy"]
    found = lists.where_of("quiet", V=8, size={"d": 16, "blocks": 3})
    assert found == {**lists.SPEECH["quiet"], "V": 8, "size": {"d": 16}}


def test_the_long_profile_takes_the_chosen_speech():
    path = ROOT / "notebooks" / "profiles" / "33_bl_just.long.yaml"
    chosen = yaml.safe_load(path.read_text("utf-8"))
    assert chosen["speech"] == lists.CHOSEN
    assert tuple(chosen["seeds"]) == lists.SEEDS
    assert {0.0, 1.0} < set(chosen["gammas"]) <= set(lists.GAMMAS)


def test_the_full_profile_asks_for_trials_that_exist(tmp_path, monkeypatch):
    path = ROOT / "notebooks" / "profiles" / "33_bl_just.full.yaml"
    p = yaml.safe_load(path.read_text("utf-8"))
    size = {name: p[name] for name in ("N_ssl", "N_ctc", "V", "every")}
    size["size"] = {"d": p["width"], "blocks": p["blocks"], "heads": p["heads"]}
    seen = []
    monkeypatch.setattr(
        lists, "trials", lambda function, asked, **how: seen.extend(asked) or []
    )
    where = lists.where_of(p["speech"], **size, device="cuda")
    lists.explorations(p["seeds"], where)
    for row in seen:
        bound = inspect.signature(exploring).bind(tmp_path, **row).arguments
        assert all(m % row["every"] == 0 and m < row["steps"] for m in row["marks"])
        assert bound["where"] == {"root": p["speech"]}
    keys = dict.fromkeys(p["seeds"], "key")
    tuned = lists.grid(where, "key", p["middle"]) + lists.second(where, "key")
    chosen = {row["arm"]: {"options": row["options"]} for row in tuned[::-1]}
    asked = tuned + lists.comparison(where, keys, chosen, p["ns"], p["middle"])
    for row in asked + lists.sweep(where, keys, chosen, p["middle"], p["gammas"]):
        inspect.signature(training).bind(tmp_path, **row)
        assert row["n"] * (1 + row["subset"]) <= 28_539
        options = dict(row["options"])
        for name in ("explore", "shared"):  # a thousandth of the steps
            if name in options:
                options[name] //= 1000
        budget = Budget(0 if row["arm"] == "supervised" else 400, 200)
        turn = getattr(stages_of(row["arm"], budget, **options)[0].recipe, "turn", 0)
        assert ("source" in row) == (turn > 0)
        assert 1000 * turn in (0, row["N_ssl"], *seen[0]["marks"])


# -- shipped models -----------------------------------------------------------------

SIZE = {"d": 16, "blocks": 1, "heads": 2, "kernel": 3}
SMALL = {"size": SIZE, "V": 8, "every": 2, "pool": 0, "test": 4}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A finished exploration and a finished arm, of a few steps each."""
    parts = speech(pool=0, test=4)
    few = parts._replace(pool=parts.pool.take(range(20)))
    monkeypatch.setattr(study, "speech", lambda **where: few)
    s = {"seed": 1, "steps": 6, "marks": [4], **SMALL}
    (tmp_path / "first").mkdir()
    result = exploring(tmp_path / "first", **s)
    first = Trial(s, result, tmp_path / "first", "first", 1.0)
    s = {"arm": "supervised", "seed": 1, "n": 2, "N_ctc": 2, **SMALL}
    (tmp_path / "arm").mkdir()
    result = training(tmp_path / "arm", **s)
    return first, Trial(s, result, tmp_path / "arm", "arm", 1.0)


def test_an_explored_model_comes_back(tiny, tmp_path):
    first, _ = tiny
    path = tmp_path / "explored.npz"
    shipping.write_explored(path, first, 4)
    kept = torch.load(first.folder / "at_4.pt", weights_only=True)["model"]
    found = shipping.load_explored(path, 80)
    own = found.model.state_dict()
    names = [n for n in own if n.startswith("predictor.")]
    assert len(names) > 10
    for name in names:
        assert torch.equal(own[name], kept[name].half().float()), name
    assert found.model.recogniser.encoder is found.model.predictor.encoder
    assert own["recogniser.out.weight"].shape == (81, 16)
    x = torch.randn(2, 5, 80)
    drawn = RandomProjection(80, V=8, seed=1)
    assert torch.equal(found.label(x), drawn(x))
    assert len(found.card["loss"]) == 4
    assert found.card["settings"]["seed"] == 1


def test_an_explored_model_of_another_quantizer_is_refused(tiny, tmp_path, monkeypatch):
    path = tmp_path / "explored.npz"
    shipping.write_explored(path, tiny[0], 4)
    real = shipping.RandomProjection
    other = lambda d, V, seed: real(d, V=V, seed=seed + 1)  # noqa: E731
    monkeypatch.setattr(shipping, "RandomProjection", other)
    with pytest.raises(ValueError, match="another quantizer"):
        shipping.load_explored(path, 80)


def test_a_recogniser_comes_back_and_is_no_explored_model(tiny, tmp_path):
    path = tmp_path / "recogniser.npz"
    shipping.write_recogniser(path, tiny[1])
    model, card = load_recogniser(path)
    kept = torch.load(tiny[1].folder / "recogniser.pt", weights_only=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name].float())
    assert card["per"] == tiny[1].result["per"]
    with pytest.raises(ValueError, match="holds no explored model"):
        shipping.load_explored(path, 80)


def test_the_build_takes_seed_0_of_the_comparison(tiny, tmp_path, monkeypatch):
    first, arm = tiny
    asked = []

    def run(settings, **how):
        asked.append(settings)
        answer = [Trial(s, result_of(s), None, key_of(s), 1.0) for s in settings]
        return answer if len(settings) > 1 else [arm]

    monkeypatch.setattr(lists, "run", run)
    monkeypatch.setattr(lists, "explorations", lambda seeds, *a, **how: [first] * 2)
    monkeypatch.setattr(lists, "SHARES", (2, 4))
    (tmp_path / "manifest.json").write_text("{}")
    shipping.build(tmp_path)
    names = {f"models/bl_just_{name}.npz" for name in ("explored", "recogniser")}
    assert set(json.loads((tmp_path / "manifest.json").read_text())) == names
    (row,) = asked[-1]
    assert (row["arm"], row["seed"], row["n"], row["subset"]) == ("bl_just", 0, 16, 0)
    assert row["options"]["gamma"] == 0.3  # of the second round, as in a study
    assert shipping.load_explored(tmp_path / "models/bl_just_explored.npz", 3)


# -- figures ------------------------------------------------------------------------


def test_strips_show_one_word_a_stretch():
    rows = {"phones": ["", "a", "a", "b", "b", "b"], "codes": list("112223")}
    fig = pictures.strips(np.zeros((6, 80), np.float32), rows, "a b")
    said = [[t.get_text() for t in ax.texts] for ax in fig.axes]
    assert said == [[], ["a", "b"], ["1", "2", "3"]]


def test_a_plan_shows_both_levels_of_an_arm():
    budget = Budget(600, 300)
    fig = pictures.plans({"sum": fixed_sum(budget), "two": pretrained(budget)})
    reach = [
        [c.get_paths()[0].vertices[:, 1] for c in ax.collections] for ax in fig.axes
    ]
    # Masked prediction, CTC, pseudo-labels; of the sum every second step has CTC.
    assert [(y.min(), y.max()) for y in reach[0][:2]] == [(0, 1), (-0.5, 0)]
    assert [y.max() for y in reach[1]] == [1, 0, 0, 0, 0, -1]  # two stages
    assert [y.min() for y in reach[1]] == [0, 0, 0, 0, -1, -1]


def test_the_figures_of_a_study(studied):
    found = studied[0]
    runs = found.runs
    text = digest(pictures.over_labels(runs))
    assert all(name in text for name in pictures.SHADES)
    judged = runs[runs["list"] == "comparison"]
    fig = pictures.differences(judged, ["supervised", "fixed sum"], [4, 16])
    dots = [sum(line.get_marker() == "o" for line in ax.lines) for ax in fig.axes]
    assert dots == [1, 2]  # the fixed sum was run at 16 only
    fig = pictures.over_gamma(runs)
    ticks = [label.get_text() for label in fig.axes[0].get_xticklabels()]
    assert ticks == ["0", "0.1", "0.3", "1", "3"]
    fig = pictures.trajectory(found.curves, runs, "BL-JUST")
    labels = [line.get_label() for line in fig.axes[0].lines]
    assert labels == ["ssl", "ctc"]


def test_the_phases_stand_side_by_side():
    joint = {"ssl": [3.0, 2.9], "ctc": [5.0, 4.0]}
    fig = pictures.phases([4.0, 3.5], 450, joint, {"ctc": [2.0]}, [0.5, 1.0])
    assert [len(ax.lines) for ax in fig.axes] == [1, 2, 1, 0, 1, 1]


def test_the_pairs_picture_shows_every_phase(pair):
    stages = bl_just(Budget(20, 10), 1.0, 10, 5, warm=0.0)
    path = walk(pair, stages)
    fig = pictures.pair_picture(pair, path, stages, {"BL-JUST": 1.0}, "x")
    labels = [t.get_text() for t in fig.axes[0].get_legend().get_texts()]
    assert labels == ["front", "exploration", "joint", "tuning"]
