"""Tests of kit.start: packages, seeds, devices, and a quick, quiet import."""

import importlib
import json
import os
import platform
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch

from lib.kit.start import (
    ROOT,
    device,
    fixed_environment,
    missing_packages,
    notebook_packages,
    seed_everything,
    start,
    wide_features,
)

# `lib.kit.start` read as an attribute is the function that the kit exports.
module = importlib.import_module("lib.kit.start")

# --- packages ------------------------------------------------------------------------

ENVIRONMENT = """
name: x
dependencies:
  - python=3.11
  - pip:
      # -- what a notebook imports (as on Colab)
      - numpy==2.4.6
      - no-such-package-anywhere==1.0
      - pytest
      # -- what runs and checks them
      - another-absent-package==2.0
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    path = tmp_path / "environment.yml"
    path.write_text(ENVIRONMENT)
    return path


def test_only_what_notebooks_import_counts(environment: Path):
    names = ["numpy", "no-such-package-anywhere", "pytest"]
    assert notebook_packages(environment) == names
    assert missing_packages(environment) == ["no-such-package-anywhere"]


def test_the_real_list_is_read():
    names = notebook_packages()
    assert {"torch", "numpy", "ipywidgets", "filelock", "pooch"} <= set(names)
    assert not {"papermill", "python", "pip"} & set(names)
    assert all("=" not in name for name in names)


class Pip:
    """Stands for subprocess.run and keeps the commands."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.commands = code, []

    def __call__(self, command: list[str]) -> SimpleNamespace:
        self.commands.append(command)
        return SimpleNamespace(returncode=self.code)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


def test_nothing_is_installed_where_nothing_is_missing(
    pip: Pip, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "missing_packages", list)
    start(install_missing=True)
    assert pip.commands == []


def test_nothing_is_installed_unless_asked(pip: Pip, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "missing_packages", lambda: ["no-such-package"])
    start()
    assert pip.commands == []


def test_only_what_is_missing_is_installed(pip: Pip, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "missing_packages", lambda: ["a-package", "another"])
    start(install_missing=True)
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-2:] == ["a-package", "another"]
    assert "--upgrade" not in command
    pip.code = 1
    with pytest.raises(RuntimeError, match="pip could not install a-package, another"):
        start(install_missing=True)


def test_start_sets_the_style():
    with mpl.rc_context({"savefig.facecolor": "red", "image.cmap": "jet"}):
        start()
        assert mpl.rcParams["savefig.facecolor"] == "white"
        assert mpl.rcParams["image.cmap"] == "cividis"


# --- seeds and devices ---------------------------------------------------------------


def draws(seed: int) -> list[float]:
    own = seed_everything(seed)
    return [
        random.random(),
        float(np.random.rand()),  # noqa: NPY002
        float(torch.rand(())),
        float(own.random()),
    ]


def test_seed_everything_is_reproducible():
    kept = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    try:
        assert draws(3) == draws(3)
        assert all(a != b for a, b in zip(draws(3), draws(4), strict=True))
        assert draws(3)[3] == np.random.default_rng(3).random()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    finally:
        torch.use_deterministic_algorithms(False)
        if kept is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_device():
    assert device("cpu") == torch.device("cpu")
    assert device().type in ("cpu", "cuda", "mps")


def test_auto_takes_the_best_there_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device("auto").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device("auto").type == "cpu"


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", ""])
def test_a_device_that_is_not_there(name: str):
    with pytest.raises(RuntimeError) as caught:
        device(name)
    text = str(caught.value)
    assert text.startswith(f"the device {name!r} cannot be used here (")
    assert text.endswith("): take 'auto', 'cpu', 'cuda' or 'mps'.")
    assert "\n" not in text


# --- the environment of a run --------------------------------------------------------


def test_fixed_environment_has_what_the_design_lists():
    fixed = fixed_environment()
    expected = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Haswell",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
    assert expected.items() <= fixed.items()
    assert all(isinstance(value, str) for value in fixed.values())
    if platform.machine() in ("x86_64", "AMD64"):
        assert fixed.get("NPY_DISABLE_CPU_FEATURES", "").split() == wide_features()


def test_numpy_obeys_and_stays_silent():
    code = (
        "from lib.kit.start import wide_features; import os; "
        "print(wide_features(), 'NPY_DISABLE_CPU_FEATURES' in os.environ)"
    )
    fixed = fixed_environment()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | fixed,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.split("] ")[0] == "["


# --- importing -----------------------------------------------------------------------

IMPORT = """
import json, socket, sys, time

def refuse(*_, **__):
    raise AssertionError("the import touches the network")

socket.socket.connect = refuse
socket.getaddrinfo = refuse
begun = time.perf_counter()
import lib.kit
seconds = time.perf_counter() - begun
print(json.dumps([seconds, sorted({m.partition(".")[0] for m in sys.modules})]))
"""


def test_importing_the_kit_is_quick_and_light():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr == ""
    seconds, loaded = json.loads(done.stdout)
    assert seconds < 2
    assert "numpy" in loaded
    heavy = {"torch", "matplotlib", "pandas", "scipy", "IPython", "ipywidgets", "pooch"}
    assert heavy & set(loaded) == set()


def test_the_root_is_the_collections():
    assert (ROOT / "environment.yml").is_file()
    assert (ROOT / "lib" / "kit").is_dir()
