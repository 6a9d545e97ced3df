"""Tests of ./ci/bench: the helpers and the command. None of them asserts a time."""

from __future__ import annotations

import ast
import gc
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import Box

from ci.tools import bench
from ci.tools.bench import BenchmarkError, Target, compare, failures, judge
from ci.tools.hashing import sources
from lib.kit import results
from lib.kit.start import ROOT

TINY = '''
"""Counting, against counting.

More words.
"""
import os
import pandas as pd
from ci.tools.bench import NOT_INSTALLED, Target, compare, installed
from lib.kit.checks import need

PEERS = ()
TARGETS = [
    Target("count", {"method": "ours"}, "least", at_most=BOUND, source="derived here"),
    Target("count", {"method": "absent"}, "ms", at_most=1.0, source="nobody"),
]

def run(options):
    absent = len if installed("no_such_peer") else NOT_INSTALLED
    calls = {"ours": lambda: sum(range(99)), "absent": absent}
    options.say("counting")
    frame = compare(calls, 2, 1e-4, options.clock, reference="ours")
    frame["least"] = 3.0
    frame["asked"] = os.environ["OMP_NUM_THREADS"]
    return {"count": frame}
'''


class Clock:
    """A clock that only the candidates move."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, *seconds: float):
        left = list(seconds)

        def call() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


# --- compare -------------------------------------------------------------------------


def test_candidates_take_turns():
    clock = Clock()
    calls = {"a": clock.candidate("a", 1.0), "b": clock.candidate("b", 2.0)}
    compare(calls, rounds=3, min_time=0.5, clock=clock)
    assert clock.log == ["a", "b"] + ["a", "b"] * 3  # the warm-up, then three rounds


def test_a_quick_candidate_fills_its_turn():
    clock = Clock()
    frame = compare(
        {"a": clock.candidate("a", 0.25)}, rounds=2, min_time=1.0, clock=clock
    )
    assert frame["calls"].tolist() == [2 + 2 * 4]  # a warm-up, one to count, two turns


def test_minimum_median_and_ratio_without_the_warm_up():
    clock = Clock()
    calls = {
        "ours": clock.candidate("ours", 9.0, 3.0, 1.0, 2.0),
        "peer": clock.candidate("peer", 4.0),
    }
    frame = compare(calls, 3, 0.5, clock, reference="peer").set_index("method")
    assert frame.loc["ours", ["ms", "median", "ratio"]].tolist() == [1e3, 2e3, 0.25]
    assert frame.loc["peer", ["ms", "median", "ratio"]].tolist() == [4e3, 4e3, 1.0]
    assert list(frame) == ["ms", "median", "ratio", "calls", "note"]


def test_what_takes_too_long_is_called_once_and_says_so():
    clock = Clock()
    calls = {"a": clock.candidate("a", 1.0), "slow": clock.candidate("slow", 60.0)}
    frame = compare(calls, 4, 0.5, clock, limit=10.0, reference="a")
    assert clock.log.count("slow") == 1
    slow = frame.set_index("method").loc["slow"]
    assert (slow["ms"], slow["ratio"]) == (60e3, 60.0)
    assert slow["note"] == "called once: over 10 s"


def test_a_missing_peer_is_named_and_skipped():
    clock = Clock()
    calls = {"a": clock.candidate("a", 1.0), "jax": bench.NOT_INSTALLED}
    row = compare(calls, 1, 0.5, clock, reference="a").set_index("method").loc["jax"]
    assert row["note"] == "not installed"
    assert row["calls"] == 0
    assert math.isnan(row["ms"])
    assert math.isnan(row["ratio"])


def test_without_a_reference_there_are_no_ratios():
    assert compare({"a": int}, 1, 0.0, "wall")["ratio"].isna().all()


@pytest.mark.parametrize("named", [{"clock": "sun"}, {"reference": "b"}])
def test_an_unknown_clock_or_reference_is_a_sentence(named):
    with pytest.raises(BenchmarkError, match=r"'(sun|b)'"):
        compare({"a": int}, **named)


def test_the_collector_rests_meanwhile_and_comes_back():
    seen = []

    def fails() -> None:
        seen.append(gc.isenabled())
        raise KeyError

    with pytest.raises(KeyError):
        compare({"a": fails})
    assert seen == [False]
    assert gc.isenabled()


def test_installed_does_not_import():
    assert bench.installed("this") is True  # importing it prints a poem
    assert "this" not in sys.modules
    assert not bench.installed("no_such_peer")
    assert not bench.installed("no_such_peer.part")


# --- fresh processes -----------------------------------------------------------------


@pytest.fixture
def made(tmp_path, monkeypatch) -> None:
    (tmp_path / "made_calls.py").write_text(
        "import time\n"
        "def block(size):\n"
        "    return lambda: bytearray(size)\n"
        "def lazy(seconds):\n"
        "    done = []\n"
        "    return lambda: done or done.append(time.sleep(seconds))\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_what_the_call_took(made):
    size = 32 << 20
    found = bench.peak_memory("made_calls:block", {"size": size})
    if math.isnan(found):
        pytest.skip("this system does not say how much memory a process took")
    assert found == pytest.approx(size, rel=0.1)


def test_the_first_call_is_apart_from_the_second(made):
    found = bench.first_call("made_calls:lazy", {"seconds": 0.05})
    assert sorted(found) == ["first", "prepare", "second"]
    assert found["first"] >= 0.05


def test_a_process_that_fails_says_why(made):
    with pytest.raises(BenchmarkError, match=r"made_calls:nothing failed .* 'nothing'"):
        bench.first_call("made_calls:nothing")


# --- targets -------------------------------------------------------------------------


def tables(value: float) -> dict[str, pd.DataFrame]:
    rows = {"method": ["a", "a", "b"], "threads": [1, 2, 1], "x": [value, -1.0, 7.0]}
    return {"t": pd.DataFrame(rows)}


@pytest.mark.parametrize(
    ("bounds", "value", "verdict"),
    [
        ({"at_most": 2.0}, 2.0, "met"),
        ({"at_most": 2.0}, 4.0, "missed"),
        ({"at_most": 2.0}, 4.1, "missed by more than half"),
        ({"at_least": 2.0}, 2.0, "met"),
        ({"at_least": 2.0}, 1.0, "missed"),
        ({"at_least": 2.0}, 0.9, "missed by more than half"),
        ({"at_least": 2.0}, 0.0, "missed by more than half"),
        ({"at_most": 2.0}, math.nan, "not measured"),
        ({"at_least": 2.0}, math.nan, "not measured"),
    ],
)
def test_a_target_is_judged(bounds, value, verdict, capsys):
    judged = judge([Target("t", {"method": "a"}, "x", **bounds)], tables(value))
    assert judged["verdict"].tolist() == [verdict]
    fails = verdict == "missed by more than half"
    assert len(failures(judged)) == fails
    assert bench.report(judged) == fails
    said = capsys.readouterr().out
    assert ("t (a) x is" in said) == fails
    assert ("none missed by half" in said) != fails


def test_a_row_that_was_not_run_is_not_measured():
    target = Target("t", {"method": "a", "threads": 8}, "x", at_most=1.0)
    assert judge([target], tables(1.0))["verdict"].tolist() == ["not measured"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target("t", {"method": "a"}, "y", at_most=1.0), "column 'y'"),
        (Target("u", {"method": "a"}, "x", at_most=1.0), "table 'u'"),
        (Target("t", {}, "x", at_most=1.0), "fits 2 rows"),
        (Target("t", {"method": "a"}, "x"), "needs one bound"),
    ],
)
def test_a_target_that_names_no_number_is_a_mistake(target, words):
    with pytest.raises(BenchmarkError, match=words):
        judge([target], tables(1.0))


# --- environments --------------------------------------------------------------------


def test_without_peers_the_collection_s_own_python_serves():
    assert bench.peer_python("x", ()) == sys.executable


def test_a_peer_that_cannot_be_had_is_left_out(tmp_path, monkeypatch, capsys):
    tried = []

    def run(words, **_):
        tried.append(words)
        return subprocess.CompletedProcess(words, int("nowhere==1" in words))

    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "setup").write_text((ROOT / "ci" / "setup").read_text())
    (tmp_path / "environment.yml").write_text((ROOT / "environment.yml").read_text())
    (tmp_path / ".venv-bench-x").mkdir()
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench.subprocess, "run", run)
    python = bench.peer_python("x", ("nowhere==1", "NumPy==9"))
    assert Path(python).is_relative_to(tmp_path / ".venv-bench-x")
    assert [words[-1] for words in tried[-2:]] == ["nowhere==1", "NumPy==9"]
    assert "nowhere==1 could not be installed" in capsys.readouterr().err
    pins = (tmp_path / ".venv-bench-x" / "constraints.txt").read_text()
    assert "torch==" in pins
    assert "numpy==" not in pins  # the peer's own pin decides
    assert not (tmp_path / ".venv-bench-x" / "collection-stamp.json").exists()


def test_threads_are_set_for_every_library():
    found = bench.thread_environment(2)
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "2"
    assert found["OMP_WAIT_POLICY"] == "PASSIVE"
    assert bench.Options(1).clock == "cpu"
    assert bench.Options(2).clock == "wall"


# --- the command ---------------------------------------------------------------------


def call(box: Box, *words: str) -> subprocess.CompletedProcess:
    return box.command(sys.executable, "-m", "ci.tools.bench", *words)


def add(box: Box, name: str = "tiny", bound: float = 2.0) -> None:
    text = TINY.replace("BOUND", str(bound)).lstrip()
    (box.root / "ci" / "benchmarks" / f"{name}.py").write_text(text)


def test_an_unknown_name_is_a_sentence_with_the_nearest(box):
    done = call(box, "ssm_kernel")
    assert done.returncode == 2
    assert "there is no benchmark 'ssm_kernel'" in done.stderr
    assert "Did you mean ssm_kernels?" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name one of: "),
        (("ssm_kernels", "--threads", "0"), "at least 1"),
        (("ssm_kernels", "--quick", "--record"), "a quick run is not recorded"),
    ],
)
def test_a_mistake_is_a_sentence(words, said, capsys):
    assert bench.main(list(words)) == 2
    assert said in capsys.readouterr().err


def test_a_recorded_benchmark_can_be_shown(box, shown, monkeypatch):
    add(box)
    done = call(box, "tiny", "--record", "--check", "--threads", "2", "1")
    assert done.returncode == 0, done.stderr
    assert "not installed" in done.stdout
    assert "1 of 2 targets measured, none missed by half." in done.stdout
    assert "recorded results/bench.tiny.json" in done.stdout
    assert "counting" in done.stderr
    path = box.root / "results" / "bench.tiny.json"
    origin = json.loads(path.read_text("utf-8"))["provenance"]
    assert {"hash", "processor", "cores", "date", "versions"} <= set(origin)
    assert origin["parameters"] == {"threads": "1, 2"}
    assert str(box.root) not in path.read_text("utf-8")

    monkeypatch.setattr(results, "RESULTS", box.root / "results")
    found = results.show_benchmark("tiny")
    assert "./ci/bench tiny --record" in str(shown)
    frame = found.table("count")
    assert frame["threads"].tolist() == [1, 1, 2, 2]
    assert frame["asked"].tolist() == ["1", "1", "2", "2"]
    assert frame["clock"].tolist() == ["cpu", "cpu", "wall", "wall"]
    assert frame["method"].tolist() == ["ours", "absent"] * 2
    assert set(found.tables) == {"count", "targets"}

    monkeypatch.setattr(bench, "ROOT", box.root)
    monkeypatch.setattr(bench, "BENCHMARKS", box.root / "ci" / "benchmarks")
    line = f"tiny: Counting, against counting. (recorded on {origin['date']})"
    assert line in bench.list_benchmarks()
    add(box, bound=2.5)
    assert f"{line[:-1]}, stale (older than its code))" in bench.list_benchmarks()


def test_a_target_missed_by_more_than_half_fails_the_check_only(box):
    add(box, "far", bound=1.0)
    done = call(box, "far", "--check")
    assert done.returncode == 1
    assert "count (ours) least is 3; the target is at most 1" in done.stdout
    assert call(box, "far").returncode == 0


def test_methods_that_disagree_stop_with_a_sentence(box):
    text = TINY.replace("BOUND", "1.0").lstrip()
    text = text.replace("options.say", "raise BenchmarkError")
    text = text.replace("import NOT", "import BenchmarkError, NOT")
    (box.root / "ci" / "benchmarks" / "off.py").write_text(text)
    done = call(box, "off", "--record")
    assert done.returncode == 1
    assert "bench: counting" in done.stderr
    assert "off failed with 1 thread; its words are above." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (box.root / "results" / "bench.off.json").exists()


def test_list_names_every_benchmark(capsys):
    assert bench.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert "ssm_kernels: Kernels of state space layers" in said
    assert "__init__" not in said


def test_the_hash_follows_code_but_not_comments(box, monkeypatch):
    add(box, "hashed")
    path = box.root / "ci" / "benchmarks" / "hashed.py"
    monkeypatch.setattr(bench, "BENCHMARKS", path.parent)
    before = bench.bench_hash("hashed")
    path.write_text(path.read_text() + "\n# a remark\n")
    assert bench.bench_hash("hashed") == before
    path.write_text(path.read_text() + "\nx = 1\n")
    assert bench.bench_hash("hashed") != before


def test_the_hash_of_a_benchmark_covers_the_peers_it_shares():
    source = ast.parse("from ci.benchmarks import _scan_peers as peers")
    assert "ci/benchmarks/_scan_peers.py" in sources([source])
