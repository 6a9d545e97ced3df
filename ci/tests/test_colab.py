"""The set-up cell where there is no collection: Colab, or one downloaded notebook."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Box

from ci.tools.notebooks import setup_cell

SHOW = "\nprint('kit from', kit.__file__)"


@pytest.fixture(scope="module")
def address(box: Box) -> str:
    """The URL of a local git repository with the working files."""
    box.add("11_hippo")
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@example.org")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        done = box.command(*git, *words)
        assert done.returncode == 0, done.stderr
    return f"file://{box.root}"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder as Colab gives it: empty, with Colab's own module on the path."""
    marker = tmp_path / "modules" / "google" / "colab"
    marker.mkdir(parents=True)
    (marker / "__init__.py").touch()
    (tmp_path / "content").mkdir()
    return tmp_path / "content"


def cell(folder: Path, url: str = "", source: str = "") -> subprocess.CompletedProcess:
    """Run the set-up cell in a folder, as a kernel there would."""
    environment = os.environ | {
        "PYTHONPATH": str(folder.parent / "modules"),
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
    }
    environment.pop("COLLECTION_URL", None)
    if url:
        environment["COLLECTION_URL"] = url
    return subprocess.run(
        [sys.executable, "-c", (source or setup_cell("")) + SHOW],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_it_clones_imports_and_starts_and_does_so_once(address, bare):
    done = cell(bare, address)
    assert done.returncode == 0, done.stderr
    assert f"kit from {bare}/collection/lib/kit" in done.stdout
    assert "Cloning into" in done.stderr
    assert not (bare / "collection.part").exists()
    again = cell(bare)  # the address is not needed any more
    assert again.returncode == 0, again.stderr
    assert "Cloning" not in again.stderr
    assert f"kit from {bare}/collection/lib/kit" in again.stdout


def test_an_interrupted_clone_is_begun_again(address, bare):
    (bare / "collection.part" / "lib").mkdir(parents=True)
    (bare / "collection.part" / "half").touch()
    done = cell(bare, address)
    assert done.returncode == 0, done.stderr
    assert not (bare / "collection" / "half").exists()


def test_without_an_address_it_asks_for_one(bare):
    done = cell(bare)
    assert done.returncode != 0
    assert "The collection is not here, and no public address is set." in done.stderr
    assert list(bare.iterdir()) == []


def test_an_address_that_does_not_answer_is_a_sentence(bare):
    done = cell(bare, f"file://{bare}/nothing")
    assert "RuntimeError: git could not clone file://" in done.stderr
    assert not (bare / "collection").exists()


def test_a_published_cell_knows_its_address(address, bare):
    done = cell(bare, source=setup_cell(address))
    assert done.returncode == 0, done.stderr
    assert f"kit from {bare}/collection/lib/kit" in done.stdout


def test_inside_the_collection_its_own_kit_is_taken(box):
    words = setup_cell("") + SHOW
    done = subprocess.run(
        [sys.executable, "-c", words],
        cwd=box.notebooks,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"kit from {box.root}/lib/kit" in done.stdout, done.stderr


def test_only_what_is_missing_is_installed(monkeypatch):
    start = importlib.import_module("lib.kit.start")  # `kit.start` is the function
    called = []

    class Done:
        returncode = 0

    monkeypatch.setattr(start, "missing_packages", lambda: ["pooch"])
    monkeypatch.setattr(
        start.subprocess, "run", lambda c, **_: called.append(c) or Done
    )
    start.start(install_missing=True)
    assert called[0][-1] == "pooch"
    assert "--upgrade" not in called[0]
    called.clear()
    start.start()
    assert not called
