"""lib.kit.processes: fresh processes, in order, and none that outlives the caller."""

import os
import time

import pytest

from lib.kit.processes import Workers, child_environment, teller, workers_default
from lib.kit.start import ROOT, fixed_environment

ECHO = ["-c", "import sys; print(sys.stdin.read().upper())"]
SLEEP = ["-c", "import time; time.sleep(60)"]


def test_a_process_answers_with_status_output_and_complaints():
    crew = Workers(1)
    assert crew.ask(ECHO, "größe") == (0, "GRÖSSE\n", "")
    status, said, complained = crew.ask(["-c", "raise SystemExit('no')"], "")
    assert (status, said, complained.strip()) == (1, "", "no")
    assert not crew.running


def test_a_process_that_does_not_read_is_no_error():
    text = "x" * (1 << 20)  # more than a pipe holds
    assert Workers(1).ask(["-c", "raise SystemExit(3)"], text)[0] == 3


def test_answers_come_in_the_order_of_the_jobs():
    told = []
    slow = lambda job: (time.sleep(0.05 * (3 - job)), job * job)[1]  # noqa: E731
    assert Workers(3).each(slow, [0, 1, 2], told.append) == [0, 1, 4]
    assert told == [1, 2, 3]
    assert Workers(2).each(slow, []) == []


def test_no_more_than_the_number_run_together():
    now, most = [0], [0]

    def one(job):
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.02)
        now[0] -= 1

    Workers(2).each(one, range(8))
    assert most[0] == 2


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_error_kills_what_runs_and_begins_nothing(error):
    crew, begun, ended = Workers(2), [], []

    def one(job):
        begun.append(job)
        if job == 0:
            while not crew.running:  # until the other has its process
                time.sleep(0.01)
            raise error
        ended.append(crew.ask(SLEEP, "")[0])

    start = time.monotonic()
    with pytest.raises(type(error)):
        crew.each(one, range(5))
    assert time.monotonic() - start < 30  # of 60 that it would have slept
    assert begun == [0, 1]
    assert ended != [0]
    assert not crew.running


def test_nothing_begins_after_the_stop():
    crew = Workers(1)
    crew.stopped.set()
    assert crew.ask(SLEEP, "")[0] != 0  # killed at once
    assert crew.each(lambda job: job, [1]) == [None]


def test_native_leaves_out_what_fixes_numbers(monkeypatch):
    for name, value in fixed_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KEPT", "yes")
    fixed, native = child_environment(), child_environment(native=True)
    for found in (fixed, native):
        assert found["KEPT"] == "yes"
        assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "1"
        assert found["PYTHONHASHSEED"] == "0"
        assert found["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    assert fixed["MKL_CBWR"] == "COMPATIBLE"
    assert "MKL_CBWR" not in native


def test_the_number_of_workers_is_checked():
    assert 1 <= Workers().number == workers_default() <= 4
    with pytest.raises(ValueError, match="number of workers"):
        Workers(0)


def test_a_bar_closes_and_no_bar_says_nothing(capfd):
    tell = teller(2, "things", "thing")
    for done in (1, 2):
        tell(done)
    assert "things" in capfd.readouterr().err
    for silent in (teller(2, "things", "thing", bar=False), teller(0, "none", "no")):
        silent(1)
    assert capfd.readouterr().err == ""
