"""Two processes are one run with the mean gradient, and resume; both ways to start."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import wait_for
from torch import nn

from lib.kit import launching, parallel
from lib.kit.start import ROOT
from lib.speech.pretraining import Loss, Recipe, train
from lib.speech.recipes import checkpoint_of

WORKER = """
import sys
import torch
from torch import nn
from lib.kit import parallel
from lib.kit.launching import together
from lib.speech.pretraining import Loss, Recipe, train

def work(out, steps, path, stop):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)

    def loss(batch, g):
        return (model(batch) - torch.randn(2, generator=g)).square().mean()

    def batches(step):
        if step == stop:
            raise SystemExit(7)
        own = torch.Generator().manual_seed(parallel.part(step))
        return torch.randn(4, 3, generator=own)

    with parallel.session():
        keep = path if parallel.first() and path else None
        done = train(model, {"one": Loss(loss)}, batches, Recipe(steps=steps, lr=0.1),
                     seed=5, path=keep, every=1)
        torch.save({"model": model.state_dict(), "history": done},
                   f"{out}.{parallel.rank()}")

out, steps, path, stop, processes = sys.argv[1:]
together(work, out, int(steps), path, int(stop), processes=int(processes))
"""
WAYS = {  # how two processes begin: the launcher of torch, or accelerate's, from inside
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "accelerate": [],
}


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("parallel") / "worker.py"
    path.write_text(WORKER)
    return path


@pytest.fixture(scope="module", params=list(WAYS))
def way(request):
    if request.param == "accelerate":
        pytest.importorskip("accelerate", reason="accelerate is not installed")
    return request.param


@pytest.fixture(scope="module")
def whole(script, way):
    """What both processes of an unbroken run end with."""
    assert together(way, script, script.parent / way) == 0
    return results(script.parent / way)


def together(way, script, out, steps=4, path="", stop=-1):
    inside = 2 if way == "accelerate" else 1
    words = [str(x) for x in (script, out, steps, path, stop, inside)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *WAYS[way], *words]
    return subprocess.run(command, env=environment, capture_output=True).returncode


def results(out, processes=2):
    return [torch.load(f"{out}.{r}", weights_only=True) for r in range(processes)]


def by_hand(steps=4, processes=2):
    """The same run in one process: the mean loss over the processes' batches."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)

    def batches(step):
        numbers = range(step * processes, (step + 1) * processes)
        made = [torch.Generator().manual_seed(k) for k in numbers]
        return [torch.randn(4, 3, generator=g) for g in made], numbers

    def loss(given, g):
        from lib.speech.masking import seeded

        parts = []
        for batch, number in zip(*given):
            with seeded(5, number, "one") as own:
                target = torch.randn(2, generator=own)
            parts.append((model(batch) - target).square().mean())
        return sum(parts) / processes

    done = train(
        model, {"one": Loss(loss)}, batches, Recipe(steps=steps, lr=0.1), seed=5
    )
    return model.state_dict(), done


def test_two_processes_are_one_run_with_the_mean_gradient(whole):
    one, other = whole
    weights, history = by_hand()
    for name, value in weights.items():
        assert torch.equal(one["model"][name], other["model"][name])
        assert torch.allclose(one["model"][name], value, atol=1e-6)
    assert one["history"] == other["history"]
    assert one["history"]["loss"] == pytest.approx(history["loss"], abs=1e-6)


def test_a_run_of_two_goes_on_from_the_first_checkpoint(way, script, whole, tmp_path):
    path = tmp_path / "run.pt"
    assert together(way, script, tmp_path / "broken", path=path, stop=2) != 0
    assert path.exists()
    assert together(way, script, tmp_path / "resumed", path=path) == 0
    for resumed, end in zip(results(tmp_path / "resumed"), whole):
        assert len(resumed["history"]["loss"]) == 4
        for name, value in end["model"].items():
            assert torch.equal(resumed["model"][name], value)
    # One process alone does not take over what two began.
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="seed was 5 with 2 processes, is 5"):
        train(
            model,
            {"one": Loss(lambda batch, g: model(batch).sum())},
            lambda step: torch.zeros(1, 3),
            Recipe(steps=4, lr=0.1),
            seed=5,
            path=str(path),
        )


def test_alone_nothing_changes(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with parallel.session():
        assert (parallel.size(), parallel.rank(), parallel.first()) == (1, 0, True)
        assert parallel.part(7) == 7
        model = nn.Linear(2, 1)
        model.weight.grad = torch.ones(1, 2)
        parallel.average(model.parameters())
        assert model.weight.grad.tolist() == [[1, 1]]
        assert model.bias.grad is None
        assert parallel.mean({"a": 1.5}) == {"a": 1.5}
        assert parallel.share(3, model, None, {}) == 3


def test_what_a_process_says_is_told_once(tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    command = [sys.executable, "-m", "lib.speech", "pretrain", "shipped:en"]
    command += ["--out", str(tmp_path / "m.pt"), "--labels", "none", "--processes", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("--labels is 'none'; choose one of") == 1
    assert "Traceback" not in done.stderr
    with pytest.raises(ValueError, match="processes is 0; give a whole number"):
        launching.together(print, processes=0)


def test_ctrl_c_ends_all_processes_and_the_same_command_goes_on(tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    out, log = tmp_path / "m.pt", tmp_path / "log"
    command = [sys.executable, "-m", "lib.speech", "pretrain", "shipped:en"]
    command += ["--out", str(out), "--processes", "2", "--d", "8", "--blocks", "1"]
    command += ["--steps", "20000", "--every", "5", "--workers", "1"]
    with log.open("w") as told:
        running = subprocess.Popen(
            command, cwd=ROOT, stdout=told, stderr=told, start_new_session=True
        )
        wait_for(lambda: checkpoint_of(out).exists(), 120)
        os.killpg(running.pid, signal.SIGINT)  # a terminal sends it to all of them
        assert running.wait(timeout=60) == 130
    said = log.read_text()
    assert said.count("interrupted; the same command goes on where it was") == 1
    assert "Traceback" not in said
    assert checkpoint_of(out).exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)


def test_one_process_is_a_call_and_several_need_accelerate(monkeypatch):
    seen = []
    launching.together(seen.append, 3, processes=1)
    assert seen == [3]
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ModuleNotFoundError, match="install the hub group"):
        launching.together(seen.append, 3, processes=2)
