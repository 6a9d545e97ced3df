"""Tests of ./ci/run: what it refuses, reuses, keeps and stops."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import Box, wait_for

from ci.tools import execute, hashing, notebooks, run
from ci.tools.notebooks import Notebook, UsageError, select
from lib.kit.parameters import ParameterError
from lib.kit.start import ROOT

EXPLORER = """
import matplotlib.pyplot as plt

def draw(power):
    fig, ax = plt.subplots()
    ax.plot([x**power for x in range(5)])
    return fig

kit.explorer(draw, "The power {power} of five numbers, as a curve", power=[1, 2, 3])
"""


# --- refused before anything starts --------------------------------------------------


@pytest.fixture
def refused(box: Box, tmp_path: Path, monkeypatch, capsys):
    """Call the command line in this process; no kernel may start."""
    for name in ("11_hippo", "12_ssm_init", "21_mamba_icl", "13_scan_kernels"):
        box.add(name)
    monkeypatch.setattr(notebooks, "NOTEBOOKS", box.notebooks)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def never(*_):
        raise AssertionError("a kernel was about to start")

    monkeypatch.setattr(execute, "run_point", never)

    def call(*words: str) -> str:
        try:
            code = run.main([*words, "--out", str(tmp_path / "out")])
        except SystemExit as stop:  # argparse
            code = stop.code
        assert code == 2
        shown = capsys.readouterr()
        assert not (tmp_path / "out").exists()
        return shown.err

    yield call
    for path in box.notebooks.glob("*.ipynb"):
        path.unlink()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["11"], ["11_hippo"]),
        (["1"], ["11_hippo", "12_ssm_init", "13_scan_kernels"]),
        (["12_ssm_init"], ["12_ssm_init"]),
        (["notebooks/12_ssm_init.ipynb"], ["12_ssm_init"]),
        (["mamba_icl"], ["21_mamba_icl"]),
        (["scan"], ["13_scan_kernels"]),
        (["12", "1"], ["12_ssm_init", "11_hippo", "13_scan_kernels"]),
        ([], ["11_hippo", "12_ssm_init", "13_scan_kernels", "21_mamba_icl"]),
    ],
)
def test_select_by_number_part_name_and_module(refused, words, names):
    assert [n.name for n in select(words)] == names


def test_an_unknown_notebook_is_refused_with_the_nearest_names(refused):
    assert "no notebook 'hipo'. Did you mean hippo" in refused("hipo")
    with pytest.raises(UsageError, match="There are: 11_hippo, 12_ssm_init"):
        select(["99"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-p", "step=3"], "no parameter 'step'. Did you mean steps"),
        (["-p", "steps=many"], "'steps' was given as 'many', but must be of type int"),
        (["-p", "steps=2.5"], "must be of type int"),
        (["-p", "steps=10"], "'steps' is 10, but must be between 1 and 9"),
        (["-p", "rate=nan"], "'rate' is nan, but must"),
        (["-p", "init=legz"], "must be one of 'legs', 'lin'. Did you mean legs"),
        (["-p", "sizes=[1,x]"], "must be of type list[int]"),
        (["-p", "steps"], "'steps' is not NAME=VALUE"),
        (["-p", "steps=1", "-p", "steps=2"], "'steps' is given twice"),
        (["-p", "seed=1", "--grid", "seed=0..2"], "'seed' is given twice"),
        (["--grid", "seed=4..0"], "the range 4..0 is empty"),
        (["--grid", "seed="], "a grid axis is empty"),
        (["--grid", "seed=0..1", "steps=1,99"], "'steps' is 99, but must"),
        (["--grid", "seed=0..1", "12"], "'12' is not NAME=VALUE"),
        (["--record", "-p", "seed=1"], "leave out -p and --grid"),
        (["--record", "--grid", "seed=1"], "leave out -p and --grid"),
        (["--profile", "long"], "11_hippo has no profile 'long': there is no"),
        (["--profile", "lang"], "invalid choice: 'lang'"),
        (["--jobs", "0"], "--jobs is 0, but must be at least 1"),
        (["--timeout", "0"], "--timeout is 0, but must be at least 1"),
        (["--cluster", "host:8786"], "--cluster is 'host:8786', but the address"),
        (["--cluster", "tcp://host"], "is tcp://HOST:PORT"),
        (["--cluster", "http://host:8786"], "as `dask scheduler` prints it"),
        (["--name", "a/b"], "--name is 'a/b'; use letters"),
        (["--name", ".."], "--name is '..'; use letters"),
    ],
)
def test_a_mistake_is_refused_in_a_sentence(refused, words, sentence):
    assert sentence in refused("11", *words)


def test_a_profile_with_a_wrong_value_is_refused(box, refused):
    profile = box.notebooks / "profiles" / "11_hippo.long.yaml"
    profile.write_text("steps: 3\nsize: 4\n")
    assert "profiles/11_hippo.long.yaml: 11_hippo has no parameter 'size'" in refused(
        "--profile", "long"
    )
    profile.write_text("steps: [3\n")
    assert "profiles/11_hippo.long.yaml" in refused("11", "--profile", "long")
    profile.unlink()
    assert "no notebook has a profile 'long' yet" in refused("--profile", "long")


def test_a_damaged_notebook_is_named(box, refused):
    (box.notebooks / "11_hippo.ipynb").write_text("{")
    assert "11_hippo.ipynb is not a readable notebook" in refused("11")


def test_a_parameters_cell_with_a_mistake_is_named(box, refused):
    path = box.notebooks / "11_hippo.ipynb"
    path.write_text(path.read_text().replace("seed: int = 0", "seed: int = = 0"))
    assert "11_hippo, cell 'parameters': " in refused("11")


@pytest.mark.parametrize("place", ["/proc/x", "file/below"])
def test_an_unwritable_folder_is_refused(refused, tmp_path, capsys, place):
    (tmp_path / "file").touch()
    assert run.main(["11", "--out", str(tmp_path / place)]) == 2
    words = capsys.readouterr().err
    assert "the results cannot be written: " in words
    assert "--out FOLDER takes another place" in words


def test_list_shows_parameters_rules_and_help(refused, capsys):
    assert run.main(["--list", "11"]) == 0
    shown = capsys.readouterr().out
    assert "steps: int = 4  how many  (1, 9)" in shown
    assert "21_mamba_icl" not in shown


def _points(*words: str) -> list[run.Point]:
    return run.make_points(run.parser().parse_args([*words]))


def test_values_take_the_types_of_the_parameters(refused):
    words = ["steps=3", "rate=1", "init=lin", "sizes=[3, 4]", "seed=7"]
    (point,) = _points("11", *(w for word in words for w in ("-p", word)))
    assert point.values == {
        "steps": 3,
        "rate": 1.0,
        "init": "lin",
        "sizes": [3, 4],
        "seed": 7,
    }


def test_a_grid_is_every_combination_in_a_folder_of_its_own(refused):
    grid = ["--grid", "seed=0..2", "init=legs,lin", "--grid", "sizes=[1,2],[3]"]
    points = _points("11", *grid)
    assert len(points) == len({p.label for p in points}) == 3 * 2 * 2
    assert {tuple(p.values["sizes"]) for p in points} == {(1, 2), (3,)}
    assert {p.values["seed"] for p in points} == {0, 1, 2}
    assert run.grid_values("-1..1") == ["-1", "0", "1"]
    assert run.grid_values("0.5,1e-3") == ["0.5", "1e-3"]
    assert run.grid_values("1,2,1") == ["1", "2"]


# --- the key -------------------------------------------------------------------------


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_key_changes_with_what_counts_and_only_then(tmp_path):
    box = Box(tmp_path)
    toy, used = box.root / "lib" / "toy.py", box.root / "lib" / "used.py"
    used.write_text('"""Used."""\n\nfrom lib.kit import shipped\n')
    toy.write_text('def f():\n    import lib.used\n\n    return """a\n\nb"""\n')
    (box.root / "lib" / "other.py").write_text("x = 1\n")
    path = box.add("15_toy", 'from lib import toy\nx = kit.shipped("voice.npz")\nx = 1')
    manifest = box.root / "data" / "manifest.json"
    manifest.write_text('{"voice.npz": {"sha256": "0"}, "rest": {"sha256": "0"}}')

    def key(**values) -> str:
        return hashing.run_key(Notebook(path), values, "default", box.root)

    first = key()
    same = [
        (toy, "def f():\n", "# why\n\n\ndef f():  # how\n"),
        (path, "x = 1", "x = 1  # one"),
        (path, "how many", "how very many"),
        (box.root / "lib" / "other.py", "x = 1", "x = 2"),
        (manifest, '"rest": {"sha256": "0"', '"rest": {"sha256": "1"'),
    ]
    for place, old, new in same:
        _replace(place, old, new)
        assert key() == first, place
    assert key(seed=0) == first  # the default, said aloud
    assert key(seed=1) != first
    known = {first}
    other = [
        (toy, 'b"""', 'c"""'),
        (toy, "a\n\n", "a\n"),  # a blank line inside a string is no blank line
        (used, "Used.", "Useful."),
        (path, "x = 1  # one", "x = 2"),
        (path, "steps: int = 4", "steps: int = 5"),
        (manifest, '"voice.npz": {"sha256": "0"', '"voice.npz": {"sha256": "1"'),
        (box.root / "ci" / "constraints.txt", "filelock==", "filelock==1"),
        (box.root / "lib" / "kit" / "start.py", "AVX2", "AVX3"),
    ]
    for place, old, new in other:
        _replace(place, old, new)
        assert key() not in known, (place, old)
        known.add(key())
    (box.root / "lib" / "room").mkdir()
    (box.root / "lib" / "room" / "__init__.py").touch()
    (box.root / "lib" / "room" / "loop.c").write_text("int x;")
    used.write_text("import lib.room\n")
    before = key()
    (box.root / "lib" / "room" / "loop.c").write_text("int y;")
    assert key() != before
    toy.write_text("def f(:\n")  # the run will report it; the key must not stumble
    assert key() not in known


def test_shipped_files_that_are_looked_up_count_too():
    manifest = {"a.bin": {}, "b.bin": {}, "c.bin": {}}

    def named(text: str) -> set[str]:
        return hashing.named_data(ast.parse(text), manifest)

    assert named('shipped("a.bin"); x = "b.bin"') == {"a.bin"}
    assert named('KNOWN = {"x": "b.bin"}\nkit.shipped(KNOWN["x"])') == {"b.bin"}
    assert named('shipped("a.bin"); shipped(f"{x}.bin"); y = "c.bin"') == {
        "a.bin",
        "c.bin",
    }
    assert named('y = "c.bin"; shipped()') == {"c.bin"}


def test_the_code_hash_follows_only_the_packages_that_the_code_imports(tmp_path):
    box = Box(tmp_path)
    path = box.add("15_toy", "import sklearn.linear_model\nfrom scipy import signal")
    pins = box.root / "ci" / "constraints.txt"

    def hashes() -> tuple[str, str]:
        notebook = Notebook(path)
        return (
            hashing.code_hash(notebook, {}, box.root),
            hashing.run_key(notebook, {}, "default", box.root),
        )

    seen = [hashes()]
    for line in ("babel==", "scikit-learn==", "scipy==", "numpy=="):  # kit's: numpy
        _replace(pins, f"\n{line}", f"\n{line}9")
        seen.append(hashes())
    code, key = zip(*seen)
    assert code[0] == code[1]  # nothing imports babel
    assert len(set(code)) == 4
    assert len(set(key)) == 5  # but a run is made again for any package


def test_a_cell_that_shows_earlier_results_is_code_behind_none(tmp_path):
    box = Box(tmp_path)
    path = box.add("15_toy", "x = 1")

    def hashes() -> tuple[str, str]:
        notebook = Notebook(path)
        return (
            hashing.code_hash(notebook, {}, box.root),
            hashing.run_key(notebook, {}, "default", box.root),
        )

    code, key = hashes()
    nb = nbformat.read(path, 4)
    shown = nbformat.v4.new_code_cell("print(2)", id="shown")
    shown.metadata["tags"] = ["recorded"]
    nb.cells.append(shown)
    nbformat.write(nb, path)
    assert hashes()[0] == code  # the result is what it was
    assert hashes()[1] != key  # but the page is not
    nb.cells[-1].metadata["tags"] = []
    nbformat.write(nb, path)
    assert hashes()[0] != code


# --- a run, recorded and repeated ----------------------------------------------------


def _snapshot(box: Box) -> dict[str, bytes]:
    kept = [*box.notebooks.glob("*.ipynb"), *(box.root / "results").glob("*.json")]
    return {path.name: path.read_bytes() for path in [*kept, box.root / "README.md"]}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Box:
    """A copy with one notebook, run and recorded twice under the names a and b."""
    box = Box(tmp_path_factory.mktemp("recorded"))
    box.add("15_toy", EXPLORER)
    first = box.run("--record", "--fresh", "--name", "a")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "recorded notebooks/15_toy.ipynb" in first.stdout
    result = box.root / "results" / "15_toy.default.json"
    result.write_text(re.sub(r'"date": "[^"]*"', '"date": "2001-01-01"', _text(result)))
    box.before = _snapshot(box)
    box.again = box.run("--record", "--fresh", "--name", "b")
    return box


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_recording_twice_changes_no_byte(recorded):
    assert recorded.again.returncode == 0
    assert "recorded" not in recorded.again.stdout.replace("recorded/", "")
    assert _snapshot(recorded) == recorded.before


def test_two_fresh_runs_give_the_same_claims(recorded):
    first, second = (recorded.runs / name / "claims.json" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert json.loads(_text(first))["15_toy"][0]["verdict"] == "holds"


def test_a_run_leaves_copy_claims_and_provenance(recorded):
    folder = recorded.runs / "a" / "15_toy"
    executed = nbformat.read(folder / "15_toy.ipynb", as_version=4)
    assert all(c.execution_count for c in executed.cells if c.cell_type == "code")
    result = recorded.result("a", "15_toy")
    assert result["ok"]
    assert result["provenance"]["parameters"]["steps"] == 4
    assert result["provenance"]["versions"]["numpy"]
    text = _text(recorded.root / "results" / "15_toy.default.json")
    assert str(recorded.root) not in text
    assert "15_toy" in recorded.again.stdout
    assert "1 of 1" in recorded.again.stdout


def test_a_recorded_notebook_holds_nothing_volatile(recorded):
    path = recorded.notebooks / "15_toy.ipynb"
    nb = nbformat.read(path, as_version=4)
    assert "papermill" not in _text(path)
    assert "T0" not in str([c.metadata for c in nb.cells])
    assert set(nb.metadata) == {"collection", "kernelspec", "language_info", "widgets"}
    assert [c.id for c in nb.cells][:3] == ["title", "setup", "parameters"]
    state = nb.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    assert list(state) == [f"w{k:04d}" for k in range(len(state))]
    shown = next(c for c in nb.cells if c.id == "own").outputs[0].data
    view = shown["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] in state
    assert not re.search(r"\b[0-9a-f]{32}\b", json.dumps(state))


def test_what_is_unchanged_is_not_run_again(recorded):
    done = recorded.run("15", "--name", "c")
    assert "15_toy: unchanged" in done.stdout
    assert recorded.result("c", "15_toy")["reused"]
    assert (recorded.runs / "c" / "15_toy" / "15_toy.ipynb").exists()


def test_a_result_older_than_its_code_is_stale(recorded):
    path = recorded.notebooks / "15_toy.ipynb"
    kept = _text(path)
    _replace(path, "range(5)", "range(6)")
    lines = _stale(recorded)
    assert "15_toy.default.json is stale (older than its code): ./ci/run 15" in lines
    assert _stale(recorded, "{'15_toy'}") == lines
    assert _stale(recorded, "{'11_hippo'}") == ""  # a run tells of its own notebooks
    path.write_text(kept, encoding="utf-8")
    assert _stale(recorded) == ""


def _stale(box: Box, names: str = "None") -> str:
    code = "from ci.tools.run import stale_lines as f; "
    code += f"print('\\n'.join(f({names})))"
    return box.command(sys.executable, "-c", code).stdout.strip()


@pytest.mark.parametrize("harm", ["index", "result", "copy", "claims", "folder"])
def test_a_damaged_earlier_run_is_not_trusted(recorded, tmp_path, harm):
    out = tmp_path / "runs"
    shutil.copytree(recorded.runs, out)
    key = recorded.result("b", "15_toy")["key"]
    folder = execute.find_finished(out, key)
    assert folder == out / "b" / "15_toy"
    if harm == "folder":
        shutil.rmtree(folder)
    else:
        path = {
            "index": execute.index_of(out, key),
            "result": folder / "result.json",
            "copy": folder / "15_toy.ipynb",
            "claims": folder / "out" / "15_toy" / "claims.json",
        }[harm]
        path.write_bytes(path.read_bytes()[:-20])
    assert execute.find_finished(out, key) is None


def test_papermill_alone_stops_at_the_check(recorded, tmp_path):
    words = ["notebooks/15_toy.ipynb", str(tmp_path / "x.ipynb"), "-p", "stebs", "3"]
    done = recorded.command(sys.executable, "-m", "papermill", *words)
    assert done.returncode != 0
    assert "ParameterError" in done.stderr
    assert "no parameter 'stebs'" in done.stderr
    executed = nbformat.read(tmp_path / "x.ipynb", as_version=4)
    assert next(c for c in executed.cells if c.id == "own").execution_count is None


# --- failures, interruption and company ----------------------------------------------


def test_a_failure_names_notebook_cell_and_error_and_the_others_go_on(tmp_path):
    box = Box(tmp_path)
    box.add("11_raise", "y = 1\ny / 0")
    box.add(
        "12_claim",
        'claims.theorem("C2", "One is two", measured=1, expected=2, rtol=0.1, '
        'source="us")',
    )
    box.add("13_die", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    box.add("14_slow", "import time\ntime.sleep(60)")
    box.add("15_good")
    broken = box.root / "lib" / "broken.py"
    broken.write_text("def f(:\n")
    box.add("16_broken", "from lib import broken")
    done = box.run("--name", "f", "--timeout", "9")
    assert done.returncode == 1
    shown = done.stdout
    assert "2 passed" not in shown
    assert "1 passed, 5 failed" in shown
    assert "11_raise, code cell 5 (`y = 1`): ZeroDivisionError: division" in shown
    assert "12_claim, code cell 6 (`claims.show()`): ClaimError" in shown
    assert "13_die, code cell 5 (`import os, signal`): the kernel died" in shown
    assert "the cell took longer than the 9 s that --timeout gives" in shown
    assert "16_broken, code cell 5 (`from lib import broken`): SyntaxError" in shown
    assert "15_good: done" in shown
    partial = nbformat.read(box.runs / "f" / "11_raise" / "11_raise.ipynb", 4)
    own = next(c for c in partial.cells if c.id == "own")
    assert own.outputs[-1].ename == "ZeroDivisionError"
    for name in ("12_claim", "13_die", "14_slow"):
        assert f"partial copy: results/runs/f/{name}/{name}.ipynb" in shown
        assert (box.runs / "f" / name / f"{name}.ipynb").exists()
    assert re.search(r"12_claim .*FAILED .*1 of 1 .*0 of 1", shown)
    claims = json.loads(_text(box.runs / "f" / "claims.json"))
    assert [c["verdict"] for c in claims["12_claim"]] == ["holds", "FAILED"]
    assert box.processes() == []
    assert "15_good: unchanged" in box.run("15").stdout


@pytest.fixture
def pair(tmp_path) -> Box:
    """A quick notebook, and one that waits while the file `hold` is there."""
    box = Box(tmp_path)
    box.hold = tmp_path / "hold"
    box.hold.touch()
    box.add("11_quick")
    box.add(
        "12_wait",
        f"""
        import time
        from pathlib import Path

        while Path({str(box.hold)!r}).exists():
            time.sleep(0.05)
        """,
    )
    return box


def _at_work(box: Box) -> bool:
    """Whether the waiting notebook is in its own cell, and the quick one finished."""
    progress = box.runs / "n" / "12_wait" / "progress.json"
    quick = box.runs / "n" / "11_quick" / "result.json"
    return quick.exists() and progress.exists() and '"cell": 5' in _text(progress)


def test_kill_9_leaves_no_process_and_the_next_run_goes_on(pair):
    runner = pair.start("--name", "n", "--jobs", "2")
    wait_for(lambda: _at_work(pair) and any((pair.runs / ".finished").glob("*.json")))
    runner.kill()
    runner.communicate()
    wait_for(lambda: not pair.processes(), 10)
    assert (pair.runs / "n" / "12_wait" / "12_wait.ipynb").exists()
    pair.hold.unlink()
    again = pair.run("--name", "n")
    assert again.returncode == 0, again.stdout
    assert "11_quick: unchanged" in again.stdout
    assert "12_wait: done" in again.stdout


def test_ctrl_c_keeps_what_is_finished_and_stops_the_kernels(pair):
    runner = pair.start("--name", "n", "--jobs", "2")
    wait_for(lambda: _at_work(pair))
    runner.send_signal(signal.SIGINT)
    shown = runner.communicate(timeout=15)[0]
    assert runner.returncode == 130, shown
    assert "Interrupted: 1 of 2 finished and are kept. The same command goes" in shown
    assert "12_wait: stopped" in shown
    assert "Traceback" not in shown
    assert pair.processes() == []
    partial = nbformat.read(pair.runs / "n" / "12_wait" / "12_wait.ipynb", 4)
    assert next(c for c in partial.cells if c.id == "claim").execution_count == 4
    assert "11_quick: unchanged" in pair.run("11").stdout


def test_a_killed_child_is_a_sentence_and_its_kernel_goes(pair):
    runner = pair.start("12", "--name", "n")
    wait_for(lambda: (pair.runs / "n" / "12_wait" / "progress.json").exists())
    for child in pair.processes("ci.tools.execute"):
        os.kill(child, signal.SIGKILL)
    shown = runner.communicate(timeout=15)[0]
    assert runner.returncode == 1
    assert "the process ended with code -9 before it could say why" in shown
    wait_for(lambda: not pair.processes(), 10)


def test_two_runs_at_once_execute_once(pair):
    first = pair.start("12", "--name", "n")
    wait_for(lambda: (pair.runs / "n" / "12_wait" / "progress.json").exists())
    second = pair.start("12", "--name", "m")
    wait_for(lambda: (pair.runs / "m").exists())
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.5)
    pair.hold.unlink()
    shown = [process.communicate(timeout=30)[0] for process in (first, second)]
    assert "12_wait: done" in shown[0]
    assert "12_wait: unchanged" in shown[1]
    assert (first.returncode, second.returncode) == (0, 0)


def test_one_who_waits_for_another_run_can_be_interrupted(pair):
    first = pair.start("12", "--name", "n")
    wait_for(lambda: (pair.runs / "n" / "12_wait" / "progress.json").exists())
    second = pair.start("12", "--name", "m")
    wait_for(lambda: (pair.runs / "m").exists())
    second.send_signal(signal.SIGINT)
    shown = second.communicate(timeout=5)[0]
    assert second.returncode == 130, shown
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=15)
    assert first.returncode == 130


# --- progress and words --------------------------------------------------------------


def test_progress_says_which_cell_is_at_work(tmp_path):
    from rich.console import Console

    path = tmp_path / "progress.json"
    path.write_text('{"cell": 3, "of": 7}')
    notebook = Notebook(ROOT / "notebooks" / "11_hippo.ipynb")
    points = [
        run.Point(notebook, {}, "default", label, "", "", folder=tmp_path)
        for label in ("11_hippo", "12_ssm", "13_scan", "14_sel")
    ]
    points[0].state, points[0].started = "running", run.time.monotonic() - 65
    points[1].result = {"ok": True}
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    console.print(run._view(points))
    console.file.close()
    shown = console.export_text()
    assert re.search(r"11_hippo +running +cell 3 of 7 +1:05", shown)
    assert "12_ssm" not in shown
    assert "... and 2 waiting" in shown


def test_trouble_outside_the_notebook_is_a_sentence():
    import errno
    from concurrent.futures import Future

    future: Future = Future()
    future.set_exception(OSError(errno.ENOSPC, "No space left on device"))
    assert "the disk is full: free some space" in run._settled(future)["error"]
    future = Future()
    future.set_exception(KeyError("x"))
    assert "the runner failed (KeyError" in run._settled(future)["error"]


def test_parameter_errors_name_the_notebook(refused):
    with pytest.raises(ParameterError, match="12_ssm_init has no parameter"):
        _points("12", "-p", "sed=1")
