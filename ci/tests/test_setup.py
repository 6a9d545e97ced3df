"""Tests of ./ci/setup: a script that an old Python must still be able to read."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
from conftest import Box

from lib.kit.start import ROOT

SETUP = ROOT / "ci" / "setup"


def load(root: Path = ROOT):
    """The script as a module; `root` takes the place of its own root."""
    loader = SourceFileLoader("ci_setup", str(root / "ci" / "setup"))
    spec = importlib.util.spec_from_loader("ci_setup", loader)
    module = importlib.util.module_from_spec(spec)
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = kept
    return module


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A collection of which only the set-up and its files are there."""
    (tmp_path / "ci").mkdir()
    shutil.copy(SETUP, tmp_path / "ci" / "setup")
    (tmp_path / "ci" / "constraints.txt").write_text("# none\n")
    _environment(tmp_path, "pip")
    return tmp_path


def _environment(root: Path, *packages: str) -> None:
    lines = "\n".join(f"      - {name}" for name in packages)
    text = f"name: x\ndependencies:\n  - python=3.11\n  - pip:\n{lines}\n"
    (root / "environment.yml").write_text(text)


def call(root: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(root / "ci" / "setup"), *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PIP_NO_INDEX": "1"} | variables,
        timeout=120,
    )


def test_an_old_python_can_read_it():
    ast.parse(SETUP.read_text(encoding="utf-8"), feature_version=(3, 6))


def test_too_old_a_python_is_told_what_to_do(monkeypatch, capsys):
    setup = load()
    monkeypatch.setattr(setup.sys, "version_info", (3, 8, 1))
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        setup.find_python()
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "this is Python 3.8, and the collection needs 3.11 or newer." in said


def test_an_old_python_takes_a_newer_neighbour_that_works(monkeypatch, tmp_path):
    setup = load()
    stub = tmp_path / "python3.11"  # what a version manager leaves for what it lacks
    stub.write_text("#!/bin/sh\nexit 127\n")
    stub.chmod(0o755)
    found = {"python3.11": str(stub), "python3.12": sys.executable}
    monkeypatch.setattr(setup.sys, "version_info", (3, 8, 1))
    monkeypatch.setattr(setup.shutil, "which", found.get)
    assert setup.find_python() == sys.executable


def test_the_pip_section_is_read_without_comments_and_neighbours(small, monkeypatch):
    text = """name: x
dependencies:
  - python=3.11
  - pip:
      # -- what a notebook imports
      - a==1  # why

      - b[c]==2
  - nodejs
"""
    (small / "environment.yml").write_text(text)
    setup = load(small)
    assert setup.pip_section() == ["a==1", "b[c]==2"]


def test_the_real_pip_section_is_what_yaml_reads():
    import yaml

    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = (item["pip"] for item in content["dependencies"] if isinstance(item, dict))
    assert load().pip_section() == pip
    assert all("==" in line for line in pip)


def test_an_environment_without_pip_section_is_said(small, capsys):
    (small / "environment.yml").write_text("name: x\n")
    with pytest.raises(SystemExit):
        load(small).pip_section()
    assert "environment.yml has no pip section" in capsys.readouterr().err


def test_a_package_that_cannot_be_had_is_named_then_it_goes_on(small):
    _environment(small, "definitely-not-a-package-xyz==1")
    done = call(small)
    assert done.returncode == 1
    said = "the package definitely-not-a-package-xyz==1 could not be had"
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (small / ".venv" / "collection-stamp.json").exists()
    # The list is mended; the half-made environment is taken up, not made again.
    mark = small / ".venv" / "mark"
    mark.touch()
    _environment(small, "pip")
    done = call(small)
    assert done.returncode == 0, done.stderr
    assert ".venv is ready" in done.stderr
    assert mark.exists()
    began = time.monotonic()
    again = call(small)
    assert "setup: .venv is up to date." in again.stderr
    assert time.monotonic() - began < 1
    assert call(small, "--quiet").stderr == ""
    # Another constraint, or a stamp cut short: the packages are looked at again.
    (small / "ci" / "constraints.txt").write_text("# other\n")
    assert "installing" in call(small).stderr
    (small / ".venv" / "collection-stamp.json").write_text('{"hash"')
    assert "installing" in call(small).stderr


def test_a_damaged_environment_is_made_again(small, monkeypatch):
    setup = load(small)
    (small / ".venv" / "bin").mkdir(parents=True)
    (small / ".venv" / "bin" / "python").symlink_to("/no/such/python")
    called = []
    monkeypatch.setattr(setup, "make_venv", lambda base: called.append(base))
    monkeypatch.setattr(setup, "run_pip", lambda *words: called.append("pip"))
    setup.install([], quiet=True)
    assert called == [sys.executable, "pip"]


def test_a_folder_that_is_not_ours_is_said(small, monkeypatch, capsys):
    setup = load(small)
    monkeypatch.setattr(setup, "ROOT", "/proc")
    with pytest.raises(SystemExit):
        setup.Lock()
    assert "/proc cannot be written" in capsys.readouterr().err


# --- the public address --------------------------------------------------------------

URL = "https://github.com/somebody/collection"


@pytest.fixture(scope="module")
def published(box: Box) -> Box:
    box.add("11_hippo")
    box.add("12_ssm_init")
    assert box.command(sys.executable, "-m", "ci.tools.publish", "").returncode == 0
    box.kept = _texts(box)
    return box


def _texts(box: Box) -> dict[str, bytes]:
    places = [*box.notebooks.glob("*.ipynb"), box.root / "pyproject.toml"]
    return {place.name: place.read_bytes() for place in places}


def _contract(box: Box) -> str:
    code = (
        "from ci.tools.contract import problems\n"
        "from ci.tools.notebooks import every_notebook\n"
        "for n in every_notebook(): print(*problems(n.path), sep='\\n')"
    )
    return box.command(sys.executable, "-c", code).stdout


def test_the_public_address_is_written_everywhere_and_taken_back(published):
    box = published
    done = box.command(f"{box.root}/ci/setup", "--public", URL, cwd="/")
    assert done.returncode == 0, done.stderr
    project = tomllib.loads((box.root / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["urls"]["Repository"] == URL
    for name in ("11_hippo", "12_ssm_init"):
        nb = json.loads((box.notebooks / f"{name}.ipynb").read_text("utf-8"))
        text = "".join(nb["cells"][0]["source"])
        colab = "https://colab.research.google.com/github/somebody/collection/blob/main"
        assert f"{colab}/notebooks/{name}.ipynb" in text
        binder = "https://mybinder.org/v2/gh/somebody/collection/main?urlpath=lab/tree"
        assert f"{binder}/notebooks/{name}.ipynb" in text
        assert f'or "{URL}"' in "".join(nb["cells"][1]["source"])
    assert "badges" not in _contract(box)
    assert "set-up" not in _contract(box)
    done = box.command(f"{box.root}/ci/setup", "--public", "", cwd="/")
    assert done.returncode == 0, done.stderr
    assert _texts(box) == box.kept


def test_the_contract_sees_an_address_that_is_not_everywhere(published):
    path = published.root / "pyproject.toml"
    kept = path.read_text("utf-8")
    path.write_text(kept.replace('Repository = ""', f'Repository = "{URL}"'))
    said = _contract(published)
    path.write_text(kept)
    assert said.count("its badges do not lead to the public address") == 2
    assert said.count("its set-up cell differs") == 2


@pytest.mark.parametrize("url", ["example.org/x", 'https://x"; import os', "--upload"])
def test_what_git_cannot_clone_is_refused(published, url):
    done = published.command(f"{published.root}/ci/setup", f"--public={url}")
    assert done.returncode != 0
    assert "is not an address that git can clone" in done.stderr
    assert _texts(published) == published.kept


def test_binder_installs_what_environment_yml_lists(tmp_path):
    stub = tmp_path / "python"  # pip shows its words and list, and installs nothing
    stub.write_text(
        "#!/bin/bash\n"
        f'[ "$1" = - ] && exec "{sys.executable}" "$@"\n'
        'echo "$@"; while [ "$1" != -r ]; do shift; done; cat "$2"\n'
    )
    stub.chmod(0o755)
    done = subprocess.run(
        [ROOT / ".binder" / "postBuild"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    words, *wanted = done.stdout.splitlines()
    assert f"-c {ROOT}/ci/constraints.txt" in words
    assert wanted == load().pip_section()
