"""Tests of sweeps: on a real scheduler with two workers, on our own, and on neither."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pandas as pd
import pytest
from conftest import Box, wait_for

from ci.tools import cluster, execute, sweep
from lib.kit.results import write_json

# Each execution leaves a mark in `begun`; seed 0 waits while `hold` is there.
CODE = """
import time
from pathlib import Path

home = Path({home!r})
(home / "begun" / f"{{seed}}.{{time.time_ns()}}").touch()
while seed == 0 and (home / "hold").exists():
    time.sleep(0.05)
if seed == 2:
    raise ValueError(f"two, in {{home}}/file.txt")
claims.trend("C2", "It grows", effects=[seed, seed + 1.0, seed + 2.0], source="us")
"""


def make_box(home: Path) -> Box:
    """A copy with one notebook whose executions can be counted and held up."""
    (home / "begun").mkdir(parents=True)
    box = Box(home / "box")
    box.home, box.hold = home, home / "hold"
    box.add("11_toy", CODE.format(home=str(home)))
    return box


def begun(box: Box) -> list[int]:
    """The seeds of all executions so far."""
    return sorted(int(p.name.split(".")[0]) for p in (box.home / "begun").iterdir())


def children(box: Box, word: str = "seed=0") -> list[int]:
    """The processes that execute a point, by a word of its folder."""
    return [n for n in box.processes("ci.tools.execute") if word in _command(n)]


def _command(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_bytes().decode()


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


# --- a scheduler that somebody else has started --------------------------------------


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory) -> Iterator[str]:
    """The address of a scheduler with two workers that know nothing of the copy."""
    place = tmp_path_factory.mktemp("scheduler")
    dask = [sys.executable, "-m", "dask"]
    common = ["--scheduler-file", "s.json", "--no-dashboard"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    started = []
    for words in (
        ["scheduler", "--port", "0", "--host", "127.0.0.1"],
        ["worker", "--nworkers", "2", "--nthreads", "1", "--host", "127.0.0.1"],
    ):
        with (place / f"{words[0]}.log").open("w") as log:
            process = subprocess.Popen(
                [*dask, *words, *common],
                cwd=place,
                env=environment,
                stdout=log,
                stderr=log,
            )
        started.append(process)
        wait_for(lambda: (place / "s.json").exists())
    ready = place / "worker.log"
    wait_for(lambda: ready.read_text().count("Registered to:") == 2)
    yield json.loads((place / "s.json").read_text())["address"]
    for process in reversed(started):
        process.terminate()
    for process in started:
        process.wait(20)


@pytest.fixture(scope="module")
def swept(scheduler, tmp_path_factory) -> Box:
    """A sweep of which a worker was killed while it held seed 0, and the same again."""
    box = make_box(tmp_path_factory.mktemp("swept"))
    box.hold.touch()
    words = ["--grid", "seed=0..3", "--cluster", scheduler, "--name", "n"]
    runner = box.start("11", *words)
    wait_for(lambda: len(begun(box)) == 4 and not children(box, "seed=3"))
    (child,) = children(box)
    box.worker = _parent(child)
    os.kill(box.worker, signal.SIGKILL)
    wait_for(lambda: begun(box).count(0) == 2)
    box.alone = [child] != children(box) and len(children(box)) == 1
    box.hold.unlink()
    box.shown = runner.communicate(timeout=60)[0]
    box.code, box.first = runner.returncode, begun(box)
    box.again = box.run("11", *words)
    return box


def test_a_killed_worker_loses_nothing_and_nothing_else_runs_twice(swept):
    assert swept.first == [0, 0, 1, 2, 3], swept.shown
    assert swept.alone  # its kernel had ended before another began
    assert "seed=0: its worker was lost, another begins it again" in swept.shown
    for seed in (0, 1, 3):
        assert f"11_toy--seed={seed}: done" in swept.shown
        assert swept.result("n", f"11_toy--seed={seed}")["ok"]


def test_a_failing_point_is_reported_with_its_cell_and_the_others_go_on(swept):
    assert swept.code == 1
    assert "3 passed, 1 failed" in swept.shown
    words = "FAILED 11_toy--seed=2, code cell 6 (`import time`): ValueError: two, in"
    assert words in swept.shown
    assert "partial copy: results/runs/n/11_toy--seed=2/11_toy.ipynb" in swept.shown


def test_the_same_command_runs_only_what_is_not_finished(swept):
    assert swept.again.returncode == 1
    assert begun(swept) == [0, 0, 1, 2, 2, 3]
    for seed in (0, 1, 3):
        assert f"11_toy--seed={seed}: unchanged" in swept.again.stdout


def test_the_table_has_a_row_a_point_and_claim(swept):
    folder = swept.runs / "n"
    frame = pd.read_parquet(folder / "sweep.parquet")
    pd.testing.assert_frame_equal(
        frame, pd.read_csv(folder / "sweep.csv").astype(frame.dtypes)
    )
    assert frame.seed.dtype == "int64"
    assert frame.seed.tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert frame.claim.dropna().tolist() == ["C1", "C2"] * 3
    trends = frame[frame.kind == "trend"].set_index("seed")
    assert trends.value.to_dict() == {0: 1.0, 1: 2.0, 3: 4.0}
    assert trends.verdict[3] == "seen"
    assert (trends.low < trends.value).all()
    failed = frame[~frame.ok]
    assert failed.cell.tolist() == [6]
    assert failed.error.tolist() == ["ValueError: two, in file.txt"]
    assert frame.hash.str.len().eq(64).all()
    given = [json.loads(text)["seed"] for text in frame.parameters]
    assert given == frame.seed.tolist()
    text = (folder / "sweep.csv").read_text(encoding="utf-8")
    assert str(swept.home) not in text
    assert os.uname().nodename not in text
    assert re.search(r"seed=3 +│ 1 +│ 0 +│ 1 holds, 1 seen", swept.shown)


def test_provenance_is_that_of_the_worker(swept):
    made = json.loads((swept.runs / "n" / "run.json").read_text())["11_toy--seed=1"]
    assert made["provenance"]["versions"]["numpy"]
    assert made["provenance"]["parameters"]["seed"] == 1
    assert "made" not in made


def test_ctrl_c_stops_the_points_and_leaves_the_workers(scheduler, tmp_path):
    box = make_box(tmp_path)
    box.hold.touch()
    words = ["--grid", "seed=0,1", "--cluster", scheduler, "--name", "n"]
    runner = box.start("11", *words)
    wait_for(lambda: begun(box) == [0, 1] and not children(box, "seed=1"))
    workers = [_parent(child) for child in children(box)]
    runner.send_signal(signal.SIGINT)
    shown = runner.communicate(timeout=20)[0]
    assert runner.returncode == 130, shown
    assert "Interrupted: 1 of 2 finished and are kept. The same command" in shown
    assert "11_toy--seed=0: stopped" in shown
    assert "Traceback" not in shown
    assert box.processes() == []
    assert [_alive(worker) for worker in workers] == [True]
    box.hold.unlink()
    again = box.run("11", *words)
    assert again.returncode == 0, again.stdout
    assert begun(box) == [0, 0, 1]


def _script(box: Box, before: str, *words: str) -> subprocess.CompletedProcess:
    """The command line after a few statements of Python."""
    code = f"import sys; from ci.tools import cluster, run; {before}; "
    code += f"sys.exit(run.main({list(words)!r}))"
    return box.command(sys.executable, "-c", code)


def test_a_worker_that_does_not_see_the_folder_is_refused(scheduler, tmp_path):
    box = make_box(tmp_path)
    words = ["11", "--cluster", scheduler]
    done = _script(box, "cluster.ROOT = '/nowhere/collection'", *words)
    assert done.returncode == 2, done.stderr
    assert "cannot take part: it does not see /nowhere/collection" in done.stderr
    assert not box.runs.exists()


def test_a_scheduler_that_does_not_answer_is_a_sentence(tmp_path):
    box = make_box(tmp_path)
    words = ["11", "--grid", "seed=0,1", "--cluster", "tcp://127.0.0.1:9"]
    done = _script(box, "cluster.PATIENCE = 1", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("run: no Dask scheduler answers at tcp://127.0.0.1:9")
    assert "Traceback" not in done.stderr
    assert not box.runs.exists()


def test_a_scheduler_that_ends_ends_the_run(tmp_path):
    box = make_box(tmp_path)
    words = ["scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", "s.json"]
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "dask", *words],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for((tmp_path / "s.json").exists)
    address = json.loads((tmp_path / "s.json").read_text())["address"]
    runner = box.start("11", "--cluster", address, "--name", "n")
    wait_for((box.runs / "n").exists)
    scheduler.kill()
    scheduler.wait()
    shown = runner.communicate(timeout=40)[0]
    assert "Dask: 0 workers yet; the points wait for one\n" in shown  # no dashboard
    assert runner.returncode == 1, shown
    assert "11_toy: the cluster lost it: the scheduler has ended" in shown
    assert "Traceback" not in shown


# --- a cluster of our own, or none ---------------------------------------------------


def test_a_local_cluster_has_a_dashboard_and_ends_with_ctrl_c(tmp_path):
    box = make_box(tmp_path)
    box.hold.touch()
    runner = box.start("11", "--grid", "seed=0,1", "--jobs", "2", "--name", "n")
    first = runner.stdout.readline()
    link = re.search(r"Dask: 2 workers on this machine; dashboard (\S+)", first)[1]
    with urllib.request.urlopen(link, timeout=20) as page:
        assert "bokeh" in page.read().decode().lower()
    wait_for(lambda: begun(box) == [0, 1] and not children(box, "seed=1"))
    for process in [runner.pid, *map(_parent, children(box))]:
        os.kill(process, signal.SIGINT)  # a terminal sends it to all of them
    shown = runner.communicate(timeout=20)[0]
    assert runner.returncode == 130, shown
    assert "11_toy--seed=1: done" in shown
    assert "11_toy--seed=0: stopped" in shown
    assert "lost" not in shown
    assert box.processes() == []


def test_without_dask_and_pyarrow_a_sweep_still_ends_in_a_table(tmp_path):
    box = make_box(tmp_path)
    before = "sys.modules |= dict.fromkeys(['distributed', 'pyarrow'])"
    done = _script(box, before, "11", "--grid", "seed=1", "--name", "n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(
        "the package distributed is not installed (./ci/setup"
    )
    assert "processes of this machine run the sweep.\n" in done.stdout
    assert "sweep.parquet is not written, because the package pyarrow" in done.stdout
    assert len(pd.read_csv(box.runs / "n" / "sweep.csv")) == 2
    assert not (box.runs / "n" / "sweep.parquet").exists()


def test_the_runner_imports_dask_only_for_a_sweep(tmp_path):
    code = "import ci.tools.run, sys; print({'dask', 'distributed'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


# --- parts ---------------------------------------------------------------------------


def test_a_point_that_this_run_has_finished_is_fresh(tmp_path):
    folder = tmp_path / "n" / "11_toy"
    result = {"ok": True, "key": "k" * 30, "run": "mine", "files": {}}
    write_json(folder / "result.json", result)
    write_json(execute.index_of(tmp_path, "k" * 30), {"folder": "n/11_toy"})
    spec = {"out": str(tmp_path), "folder": str(folder), "key": "k" * 30}
    told: list[str] = []

    def again(fresh: bool, run: str) -> object:
        given = spec | {"fresh": fresh, "run": run}
        return (execute._earlier(given) or {}).get("reused")

    assert again(fresh=True, run="mine") is False  # its worker died just afterwards
    assert again(fresh=True, run="another") is None
    assert again(fresh=False, run="another") is True
    execute.stopped.add("mine")
    given = spec | {"fresh": False, "run": "mine", "label": "x"}
    assert execute.attempt(given, told.append)["stopped"]
    execute.stopped.discard("mine")


def test_what_the_cluster_failed_is_a_sentence():
    killed = type("KilledWorker", (Exception,), {})("point-1", "tcp://10.0.0.1:1", 3)
    assert "every worker that tried it was lost" in cluster.lost_words(killed)
    assert "the scheduler has ended" in cluster.lost_words(CancelledError())
    assert cluster.lost_words(KeyError()) is None


@pytest.mark.parametrize("address", ["tcp://a.b:1", "tls://[::1]:8786"])
def test_an_address_may_be_a_name_or_a_number(address):
    cluster.check_address(address)


def test_columns_keep_their_types_and_names_apart():
    same = dict.fromkeys(("notebook", "profile"), "x")
    rows = [
        same | {"steps": 1, "mixed": 1, "ok": True, "cell": None, "value": "inf"},
        same | {"steps": 2, "mixed": "a", "ok": False, "cell": 3, "value": None},
    ]
    frame = sweep.table(rows)
    assert frame.columns[:4].tolist() == ["notebook", "profile", "steps", "mixed"]
    assert frame.steps.dtype == "int64"
    assert frame.mixed.tolist() == ["1", "a"]
    assert frame.value.tolist()[0] == float("inf")
    assert frame.cell.tolist()[1] == 3
    assert sweep.column_of("kind") == "parameter_kind"
    assert sweep.column_of("steps") == "steps"
    assert sweep._measured({"value": [1.0, 2.0]})["value"] is None


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        ("no file '/home/me/data/a.wav'", "no file 'a.wav'"),
        ("see https://example.org/a/b and 1/2", "see https://example.org/a/b and 1/2"),
        (None, None),
    ],
)
def test_an_error_in_the_table_names_no_folder(error, kept):
    assert sweep._unplaced(error) == kept
