"""Tests of the notebook contract, of ./ci/new, and of every committed notebook."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import Box
from nbformat.v4 import new_output

from ci.tools import contract
from ci.tools.contract import problems
from ci.tools.notebooks import every_notebook

EVERY = every_notebook()


@pytest.mark.parametrize("notebook", EVERY, ids=[n.name for n in EVERY])
def test_a_committed_notebook_keeps_the_contract(notebook):
    assert problems(notebook.path) == []


# --- ./ci/new, through the wrappers that a user calls --------------------------------


@pytest.fixture(scope="module")
def started(box: Box) -> Box:
    """A copy in which the template was started as 15_toy, then run and recorded."""
    box.new = box.command(f"{box.root}/ci/new", "15_toy", cwd="/")
    assert box.new.returncode == 0, box.new.stderr
    ran = box.command(f"{box.root}/ci/run", "15", "--record", cwd="/")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return box


def test_new_writes_notebook_module_and_test(started):
    assert "wrote notebooks/15_toy.ipynb" in started.new.stdout
    assert "next: ./ci/lab to write it, ./ci/run 15 --record" in started.new.stdout
    plan = json.loads((started.notebooks / "map.json").read_text("utf-8"))
    assert "15_toy" in [entry["name"] for entry in plan[1]["notebooks"]]
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "ci/tests/test_toy.py")
    done = started.command(sys.executable, *words)
    assert done.returncode == 0, done.stdout
    for words in (["check"], ["format", "--check"]):
        places = ("lib/toy.py", "ci/tests/test_toy.py", "notebooks")
        done = started.command(sys.executable, "-m", "ruff", *words, *places)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("toy", "'toy' is not NN_name"),
        ("15_Toy", "'15_Toy' is not NN_name"),
        ("15-toy", "'15-toy' is not NN_name"),
        ("15_toy", "notebooks/15_toy.ipynb exists already; nothing changed"),
        ("15_other", "the number 15 belongs to 15_toy; free in this part: 16"),
        ("91_far", "map.json has no part 9; there are 0, 1, 2, 3, 4, 5"),
    ],
)
def test_new_refuses_in_a_sentence(started, name, sentence):
    done = started.command(sys.executable, "-m", "ci.tools.new", name)
    assert done.returncode != 0
    assert done.stderr.startswith("new: ")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


# --- one thing broken at a time ------------------------------------------------------


@pytest.fixture
def kept(started, monkeypatch):
    """The recorded template notebook; the contract looks at the copy's map."""
    plan = json.loads((started.notebooks / "map.json").read_text("utf-8"))
    monkeypatch.setattr(contract, "parts", lambda: plan)
    monkeypatch.setattr(contract, "NOTEBOOKS", started.notebooks)
    return nbformat.read(started.notebooks / "15_toy.ipynb", as_version=4)


def said(nb, tmp_path: Path) -> list[str]:
    path = tmp_path / "15_toy.ipynb"
    text = nbformat.writes(nb)
    path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    return problems(path)


def test_the_recorded_template_keeps_the_contract(started, kept, tmp_path):
    assert problems(started.notebooks / "15_toy.ipynb") == []
    assert said(kept, tmp_path) == []


def cell(nb, name):
    return next(c for c in nb.cells if c.id == name)


def source(name, old, new):
    """A change of one cell's source."""

    def change(nb):
        assert old in cell(nb, name).source
        cell(nb, name).source = cell(nb, name).source.replace(old, new)

    return change


def output(where, kind="stream", /, **words):
    """An additional output of one cell."""

    def change(nb):
        cell(nb, where).outputs.append(new_output(kind, **words))

    return change


def assign(place, value):
    """`value` put at the end of a path of keys below the notebook."""

    def change(nb):
        *way, last = place
        for key in way:
            nb = cell(nb, key[3:]) if str(key).startswith("id=") else nb[key]
        nb[last] = value

    return change


def drop_alt(nb):
    cell(nb, "figure").outputs[0].metadata = {}


def second_figure(nb):
    outputs = cell(nb, "figure").outputs
    outputs.append(copy.deepcopy(outputs[0]))


def rename_seed(nb):
    source("parameters", "seed: int", "sead: int")(nb)
    source("check", "seed=", "sead=")(nb)


def late_claim(nb):
    text = 'recorded = claims.identity("C3", "x", residual=0, tol=1, source="us")'
    cell(nb, "recorded").source = text


BROKEN = {
    "set-up changed": (
        source("setup", "import os", "import os, re"),
        "its set-up cell differs from ci/template/setup_cell.py",
    ),
    "no set-up": (assign(["id=setup", "metadata"], {}), "must be the one set-up cell"),
    "badge": (
        source("title", "**Question", "[Source](https://example.org)\n\n**Question"),
        "its badges do not lead to the public address",
    ),
    "no parameters tag": (
        assign(["id=parameters", "metadata"], {}),
        "it has 0 cells tagged `parameters`, but needs one.",
    ),
    "no help": (
        source("parameters", "  # length of the signal", ""),
        "parameter 'steps' has no help (a comment on its line).",
    ),
    "no seed": (
        rename_seed,
        "its parameters lack `seed`.",
    ),
    "default out of range": (
        source("parameters", "steps: int = 64", "steps: int = 1"),
        "parameter 'steps' is 1, but must be between 2 and 4096.",
    ),
    "no check": (
        source(
            "check", "kit.check(seed=(0, None), steps=(2, 4096), a=(0.0, 0.999))", ""
        ),
        "the cell after the parameters must call kit.check(...).",
    ),
    "counts": (
        assign(["id=figure", "execution_count"], 17),
        "execution counts are not 1 to 7",
    ),
    "not run": (
        assign(["id=recorded", "execution_count"], None),
        "execution counts are not 1 to 7",
    ),
    "stderr": (
        output("idea", name="stderr", text="hm"),
        "cell 'idea' writes to stderr: 'hm'.",
    ),
    "warning": (
        output("idea", name="stdout", text="x.py:1: FutureWarning: later"),
        "cell 'idea' prints a warning: 'x.py:1: FutureWarning: later'.",
    ),
    "error": (
        output("idea", "error", ename="KeyError", evalue="x", traceback=[]),
        "cell 'idea' ends in KeyError.",
    ),
    "path": (
        output("idea", name="stdout", text="/home/me/x"),
        "cell 'idea' holds an absolute path (/home/...).",
    ),
    "path in source": (
        source("idea", "# (steps,)", "# /Users/me"),
        "cell 'idea' holds an absolute path (/Users/...).",
    ),
    "no alt": (drop_alt, "the figure of cell 'figure' has no alt text: use kit.show."),
    "no digest": (
        assign(["id=figure", "outputs", 0, "data", "text/plain"], "<Figure>"),
        "the figure of cell 'figure' has no digest: use kit.show.",
    ),
    "two figures": (second_figure, "cell 'figure' shows 2 figures; one a cell."),
    "late claim": (
        late_claim,
        "cell 'recorded' tests a claim after the table was shown.",
    ),
    "claim not tested": (
        source("title", "| C2 |", "| C2 | x | y |\n| C3 |"),
        "promises the claims C1, C2, C3, but the table shows C1, C2.",
    ),
    "no claims table": (
        assign(["id=claims", "metadata"], {}),
        "it needs one cell tagged `claims`",
    ),
    "long cell": (
        source("idea", "u = ", "\n" * 22 + "u = "),
        "code cell 'idea' has 44 lines; 40 fit.",
    ),
    "long line": (
        source("idea", "# (steps,)", "# " + "x" * 80),
        "fit.",
    ),
    "recorded claim": (
        assign(["id=idea", "metadata", "tags"], ["recorded"]),
        "cell 'idea' is tagged recorded, but tests a claim.",
    ),
    "unknown tag": (
        assign(["id=idea", "metadata", "tags"], ["hidden"]),
        "cell 'idea' has the unknown tag 'hidden'.",
    ),
    "papermill's notes": (
        assign(["id=idea", "metadata", "papermill"], {"duration": 1.0}),
        "it is not in normal form",
    ),
    "an editor's notes": (
        assign(["metadata", "vscode"], {"x": 1}),
        "it is not in normal form",
    ),
    "size": (
        output("idea", "display_data", data={"image/svg+xml": "x" * 2_000_000}),
        "it has 2.1 MB, and 2 MB are allowed.",
    ),
    "no exercises": (
        source("exercises", "## Exercises", "Exercises"),
        "it has no section 'Exercises'.",
    ),
    "title": (
        source("title", "# 15 · Toy", "# 15 · Tool"),
        "its first line is '# 15 · Tool', but the front matter says '# 15 · Toy'.",
    ),
    "front matter": (
        assign(["metadata", "collection", "question"], ""),
        "its front matter lacks 'question' (metadata, key `collection`).",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_said_and_nothing_else(kept, tmp_path, name):
    change, sentence = BROKEN[name]
    change(kept)
    (found,) = said(kept, tmp_path)
    assert sentence in found


def test_a_notebook_off_the_map_is_said(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "parts", list)
    (found,) = said(kept, tmp_path)
    assert found == "it is not on the map: add it to notebooks/map.json."


@pytest.mark.parametrize("name", ["15_toy.huge.yaml", "15_toy.long.yml"])
def test_a_misnamed_profile_is_said(started, kept, tmp_path, name):
    profile = started.notebooks / "profiles" / name
    profile.write_text("steps: 3\n")
    (found,) = said(kept, tmp_path)
    profile.unlink()
    assert found == f"profiles/{name}: only long and full exist."


def test_an_expected_error_and_tolerance_tags_are_allowed(kept, tmp_path):
    cell(kept, "idea").metadata.tags = ["raises-exception", "nbval-rtol=1e-3"]
    output("idea", "error", ename="ValueError", evalue="x", traceback=[])(kept)
    assert said(kept, tmp_path) == []


def test_a_damaged_notebook_is_one_sentence(tmp_path):
    path = tmp_path / "15_toy.ipynb"
    path.write_text('{"cells": [')
    (found,) = problems(path)
    assert "15_toy.ipynb is not a readable notebook" in found


def test_an_empty_notebook_does_not_stop_the_contract(kept, tmp_path):
    kept.cells = kept.cells[:1]
    assert "its first code cell must be the one set-up cell (tag `setup`)." in said(
        kept, tmp_path
    )
