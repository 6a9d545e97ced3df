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
    some = bench.methods(setting, dict.fromkeys(bench.offers(setting), 2))
    prompts = setting.asked["copy", "judge"]
    runs = sp.compared(some, setting.target, prompts, 10, warp=sp.Warp(0.0))
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
