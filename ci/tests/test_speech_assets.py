"""lib.speech.assets: shipped models, their page and the manifest agree."""

import json
import subprocess
import sys

import pytest

from lib.kit.manifest import DATA
from lib.kit.start import ROOT
from lib.speech import assets
from lib.speech.conformer import Conformer
from lib.speech.models import load_encoder, save_model

PACKAGES = ("bl_just", "local_constraints", "speech_ssl")


def writer(card):
    state = Conformer(d=8, blocks=1, heads=2).state_dict()
    return lambda path: save_model(path, state, card)


def test_models_page_and_manifest_agree(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text('{"other": {"size": 1}}')
    made = {"one": writer({"what": "First."}), "two": writer({"pair": (1, 2)})}
    assets.ship(made, "a command", tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == [f"models/{n}.npz" for n in made]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert list(manifest) == ["models/one.npz", "models/two.npz", "other"]
    for name in made:
        path = assets.file_of(name, tmp_path)
        assert manifest[f"models/{name}.npz"]["size"] == path.stat().st_size
        model, card = load_encoder(path)
        assert model.d == 8
    assert card["pair"] == [1, 2]  # plain, as JSON reads it again
    page = (tmp_path / "models" / "README.md").read_text("utf-8")
    assert page.index("## one.npz") < page.index("First.") < page.index("## two.npz")


def test_a_second_build_keeps_the_others_on_the_page(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    assets.ship({"one": writer({})}, "a", tmp_path)
    assets.ship({"two": writer({})}, "b", tmp_path)
    page = (tmp_path / "models" / "README.md").read_text("utf-8")
    assert page.index("## one.npz") < page.index("## two.npz")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [entry["source"] for entry in manifest.values()] == ["a", "b"]


def test_the_page_in_data_is_that_of_its_files(tmp_path):
    for path in (DATA / assets.FOLDER).glob("*.npz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assets.write_page(tmp_path)
    kept = DATA / assets.FOLDER / assets.PAGE
    assert (tmp_path / assets.PAGE).read_text("utf-8") == kept.read_text("utf-8")


@pytest.mark.parametrize("package", PACKAGES)
def test_build_is_the_only_word(package, monkeypatch):
    for words in ([], ["run"], ["build", "more"]):
        with pytest.raises(SystemExit, match=f"python -m lib.{package} build"):
            assets.command(package, words)
    built = []
    monkeypatch.setattr(f"lib.{package}.shipping.build", lambda: built.append(1))
    assets.command(package, ["build"])
    assert built == [1]


def test_from_the_shell():
    asked = [sys.executable, "-m", "lib.local_constraints", "bild"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "Usage: python -m lib.local_constraints build"
