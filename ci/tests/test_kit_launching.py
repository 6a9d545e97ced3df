"""Two processes train what one trains: the rooms of notebooks 32, 33, 34 and 42."""

import json
import os
import signal
import subprocess
import sys
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import wait_for
from parallel_rooms import CASES, ROOMS, inner, trained

from lib.bl_just.study import exploring, training
from lib.kit.launching import data_parallel, devices
from lib.kit.processes import child_environment
from lib.kit.start import ROOT
from lib.kit.trials import FOLDER, RESULT, key_of, trials
from lib.objective_soup import training as soup_training
from lib.objective_soup.world import Feed

pytestmark = pytest.mark.usefixtures("one_thread")
pytest.importorskip("accelerate", reason="accelerate is not installed")

HERE = Path(__file__).parent
ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module", params=["same", "own"])
def mode(request):
    return request.param


@pytest.fixture(scope="module")
def both(mode, tmp_path_factory):
    """What two processes ended with, and how they drew."""
    out = tmp_path_factory.mktemp("rooms") / mode
    words = [sys.executable, str(HERE / "parallel_rooms.py"), str(out), mode]
    path = os.pathsep.join([str(ROOT), str(HERE)])
    done = subprocess.run(
        words,
        env=os.environ | ALONE | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return mode, [torch.load(f"{out}.{r}", weights_only=False) for r in range(2)]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_both_processes_end_with_one_model(both, case):
    mode, (one, other) = both
    one, other = one[" ".join(case)], other[" ".join(case)]
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name]), name
    assert one["history"] == other["history"]
    alone = trained(*case)
    alike = [
        torch.equal(value, alone["weights"][name])
        for name, value in one["weights"].items()
    ]
    # Each has seen something else than one alone; DinoSR's codes count members twice.
    if mode == "own" or case[1] == "dinosr":
        assert not all(alike)
        return
    assert all(alike)
    mine, theirs = (np.array(x["history"], float) for x in (one, alone))
    assert mine == pytest.approx(theirs, rel=1e-6)


def test_own_steps_and_rows_are_of_all_processes(both):
    _, (one, other) = both
    assert one["inner"] == other["inner"]
    for name, value in inner().items():  # the mean loss of both
        assert one["inner"][name] == pytest.approx(value, rel=1e-6), name
    assert one["rows"] == other["rows"] == [0, 1, 10, 11, 12]


@pytest.mark.parametrize("name", ROOMS["objective_soup"][1])
def test_a_soup_of_two_is_one_of_the_mean_losses(both, name, monkeypatch):
    """The same from one process that has both batches in every step."""
    mode, (one, _) = both
    if mode == "same":
        pytest.skip("both processes have one batch")
    at, samples, two = Feed.at, soup_training._samples, soup_training._two

    def mean(rows):
        return [{n: (a[n] + b[n]) / 2 for n in a} for a, b in zip(*rows)]

    monkeypatch.setattr(
        Feed, "at", lambda own, k, names: [at(own, 2 * k + r, names) for r in range(2)]
    )
    for word, function in (("_samples", samples), ("_two", two)):

        def both_of(model, batches, recipe, seed, step, function=function):
            if not isinstance(batches, list):  # asked by the other of these
                return two(model, batches, recipe, seed, step)
            numbers = range(2 * step, 2 * step + 2)
            rows = [
                function(model, batch, recipe, seed, number)
                for batch, number in zip(batches, numbers)
            ]
            return mean(rows)

        monkeypatch.setattr(soup_training, word, both_of)
    alone = trained("objective_soup", name)
    found = one[f"objective_soup {name}"]["history"]
    assert found == pytest.approx(alone["history"], rel=2e-4)


# -- trials ---------------------------------------------------------------------------

SMALL = {"size": {"d": 16, "blocks": 1, "heads": 2, "kernel": 3}, "V": 8, "every": 2}
SMALL |= {"pool": 0, "test": 4, "seed": 1, "processes": 2}
ARM = {"arm": "bl_just", "n": 2, "N_ssl": 40, "N_ctc": 80}
ARM |= {"options": {"explore": 20, "shared": 20}}


def test_a_trial_of_two_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLECTION_CACHE", str(tmp_path))
    place = tmp_path / FOLDER
    asked = {"steps": 40, "marks": [20], **SMALL}
    (source,) = trials(exploring, [asked], bar=False)
    arm = ARM | SMALL | {"source": source.key}
    folder = place / key_of(training, arm)
    folder.mkdir()
    words = [sys.executable, "-m", "lib.kit.trials", "lib.bl_just.study", "training"]
    with (tmp_path / "asked.json").open("w+") as text:
        json.dump(arm, text)
        text.seek(0)
        running = subprocess.Popen(
            [*words, str(folder)],
            stdin=text,
            cwd=ROOT,
            env=child_environment(native=True),  # as `trials` runs it
            start_new_session=True,
        )
        made = []  # the first is what the exploration left, the third its own second

        def later():
            now = folder / "first.pt"
            if now.exists() and now.stat().st_mtime_ns not in made:
                made.append(now.stat().st_mtime_ns)
            return len(made) > 2

        wait_for(later, 120)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    assert not (folder / RESULT).exists()
    assert (place / f".{folder.name}.1").exists()
    (resumed,) = trials(training, [arm], bar=False)
    weights = torch.load(folder / "recogniser.pt", weights_only=True)
    (folder / RESULT).unlink()
    (folder / "pulls.json").unlink(missing_ok=True)
    (whole,) = trials(training, [arm], bar=False)
    again = torch.load(folder / "recogniser.pt", weights_only=True)
    assert all(torch.equal(p, again[name]) for name, p in weights.items())
    mine, theirs = ({**t.result, "seconds": 0} for t in (resumed, whole))
    assert mine == theirs
    assert mine["shared"] == 20
    assert sorted(p.name for p in place.iterdir()) == sorted([source.key, whole.key])
    alone = {k: v for k, v in arm.items() if k != "processes"}
    with pytest.raises(RuntimeError, match="explored in another way: seed was 1 with"):
        trials(training, [alone], bar=False)


def test_processes_are_a_setting_of_the_trial(tmp_path):
    seen = []

    @data_parallel
    def trial(folder, *, a, processes=1):
        """Says where."""
        seen.append((folder, a, processes))
        return {"a": a}

    assert trial(tmp_path, a=3) == trial(tmp_path, a=3, processes=1) == {"a": 3}
    assert seen == 2 * [(tmp_path, 3, 1)]
    assert (trial.__name__, trial.__doc__) == ("trial", "Says where.")
    assert signature(training).parameters["processes"].default == 1
    assert key_of(exploring, {"processes": 2}) != key_of(exploring, {})


def test_as_many_processes_as_gpus(monkeypatch):
    assert devices(3) == 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices() == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert devices() == 8
    with pytest.raises(ValueError, match="processes is -1"):
        devices(-1)
