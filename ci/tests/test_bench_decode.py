"""ci.benchmarks.decode: what is raced does the same work."""

import numpy as np
import pytest

from ci.benchmarks import decode as bench
from ci.tools.bench import BenchmarkError, Options
from lib import speculative as sp

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def setting():
    return bench.Setting(quick=True)


def test_prompts_for_tuning_are_others_than_those_judged(setting):
    for work in ("free", "copy"):
        judged = {tuple(p) for p in setting.asked[work, "judge"]}
        assert not judged & {tuple(p) for p in setting.asked[work, "tune"]}


def test_every_method_writes_plain_decodings_greedy_text(setting):
    cold = sp.Warp(0.0)
    some = bench.methods(setting, dict.fromkeys(bench.offers(setting), 2), cold)
    prompts = setting.asked["copy", "judge"]
    runs = sp.compared(some, setting.target, prompts, 10, warp=cold)
    bench.same_texts(setting, "copy", runs)
    wrong = runs.copy()
    last = wrong.index[-1]
    text = wrong.at[last, "text"]
    wrong.at[last, "text"] = (*text[:-1], (text[-1] + 1) % setting.target.vocab)
    with pytest.raises(BenchmarkError, match="another greedy text"):
        bench.same_texts(setting, "copy", wrong)


def test_transformers_writes_the_same_text_in_all_its_modes(setting):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from lib.language import as_llama

    model, small = (as_llama(setting.models[n]) for n in ("target", "draft"))
    prompt = setting.asked["free", "judge"][0]
    expected, _ = sp.plain(setting.target, prompt, 8, warp=sp.Warp(0.0))
    for kind in ("plain", "draft", "look-up"):
        assert bench.theirs(model, small, 2, kind)(prompt, 8) == expected


def test_the_best_is_chosen_in_tuning_and_plain_is_not_a_method():
    import pandas as pd

    rows = [
        ("free", 1.0, "plain", 1.0, 1.0),
        ("free", 1.0, "a", 0.8, 0.95),
        ("free", 1.0, "b", 0.9, 0.9),
        ("copy", 1.0, "plain", 1.0, 1.0),
        ("copy", 1.0, "a", 0.9, 2.0),
        ("copy", 1.0, "b", 1.5, 1.4),
    ]
    table = pd.DataFrame(rows, columns=["workload", "T", "method", "tuned", "ratio"])
    table = table.assign(low=0.0, high=3.0, distinct=1.0, tau=1.0)
    best = bench.best_table(table).set_index("workload")
    assert best["method"].to_dict() == {"free": "b", "copy": "b"}


def test_texts_that_loop_are_left_out_for_all_methods():
    import pandas as pd

    rows = [("plain", 0, 0.9), ("a", 0, 0.1), ("plain", 1, 0.2), ("a", 1, 0.8)]
    runs = pd.DataFrame(rows, columns=["method", "prompt", "distinct"])
    assert bench.without_loops(runs)["prompt"].tolist() == [0, 0]


def test_a_length_is_chosen_by_the_median_over_the_tuning_prompts(monkeypatch):
    import types

    import pandas as pd

    names, asked = ("a", "b"), {("free", "tune"): []}
    some = types.SimpleNamespace(gammas=(1, 3), asked=asked, target=None, new=1)
    monkeypatch.setattr(bench, "offers", lambda s: dict.fromkeys(names))
    monkeypatch.setattr(
        bench, "methods", lambda s, g, w: [sp.Method(n) for n in names if g[n]]
    )
    turn = iter([{"a": 1.2, "b": 1.1}, {"a": 1.1, "b": 1.3}])
    figures = ["tau", "acceptance", "drafted", "target_tokens"]

    def compared(*parts, **how):
        now = {"plain": 1.0} | next(turn)
        rows = [
            {"method": m, "prompt": n, "ratio": x + n * (m != "plain"), "distinct": d}
            for m, x in now.items()
            for n, d in ((0, 0.9), (1, 0.1), (2, 0.1))
        ]
        return pd.DataFrame(rows).assign(**dict.fromkeys(figures, 1.0))

    monkeypatch.setattr(sp, "compared", compared)
    found = bench.tuned(some, "free", sp.Warp(0.0), None)
    # The second figure is of prompt 0 alone, whose text does not loop.
    assert found == {"a": (1, 2.2, 1.2), "b": (3, 2.3, 1.3)}


def test_a_race_takes_turns():
    seen, ticks = [], iter(np.arange(100.0))
    calls = {
        name: lambda prompt, new, name=name: seen.append(name) for name in ("a", "b")
    }
    spent = bench.raced(calls, [[0], [0]], 3, lambda: float(next(ticks)))
    assert seen == ["a", "b", "b", "a"]
    assert spent["a"].tolist() == [1.0, 1.0]


def test_costs_and_predictions_have_a_row_a_size():
    costs = bench.costs_table(Options(threads=1, quick=True))
    assert costs["k"].tolist() == list(bench.WIDTHS)
    assert costs["c"].iloc[0] == 1
