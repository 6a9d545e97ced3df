"""lib.bl_just.own: BL-JUST on a folder of recordings, as its user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import speak_into

from lib.bl_just import Budget, bl_just, command, spent
from lib.bl_just.own import all_audio, jointly
from lib.kit.start import ROOT
from lib.speech import command as speech
from lib.speech import recipes, trained
from lib.speech.recipes import Run
from lib.speech.synthesis import shipped

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {"d": 16, "blocks": 1}
HOW = {"explore": 3, "V": 8, "sizes": SIZES}


@pytest.fixture(scope="module")
def corpus():
    return shipped("en").take(range(12))


@pytest.fixture(scope="module")
def pool():
    return shipped("de").take(range(6))  # other letters, which nobody reads


@pytest.fixture(scope="module")
def whole(corpus, pool, tmp_path_factory):
    """A run without a break, and its file."""
    path = tmp_path_factory.mktemp("own") / "whole.pt"
    return jointly(corpus, [pool], Run(8, path=path, every=1), **HOW), path


def weights(made):
    return made.model.state_dict()


def test_the_gradients_are_those_of_the_arm(whole):
    made, _ = whole
    stages = bl_just(Budget(7, 8), 1.0)
    rows = [
        {n: made.history[f"{stage.name}, {n}"] for n in ("ssl", "ctc")}
        for stage in stages
    ]
    assert spent(rows) == Budget(7, 8)
    first = rows[0]
    assert [np.isnan(x) for x in first["ctc"]] == [True] * 3 + [False] * 4
    assert not any(np.isnan(first["ssl"]))


def test_what_it_writes_is_a_recogniser_that_transcribes(whole, corpus):
    made, path = whole
    assert [p.name for p in path.parent.iterdir()] == ["whole.pt"]
    found = trained.load(path, "recogniser")
    assert (found.kind, found.stack, len(found.vocabulary)) == (
        "recogniser",
        corpus.stack,
        len(corpus.vocabulary),
    )
    heard = recipes.transcribed(found, corpus.take(range(2)), beam=1)
    assert heard == recipes.transcribed(made, corpus.take(range(2)), beam=1)


@pytest.mark.parametrize("last", [4, 9])  # in the first stage, in the final one
def test_a_run_that_was_killed_ends_in_the_same_bits(
    last, whole, corpus, pool, tmp_path, monkeypatch
):
    from lib.bl_just import model as network

    made, _ = whole
    how, seen = Run(8, path=tmp_path / "m.pt", every=1), []
    true = network.padded

    def broken(*args):
        seen.append(1)
        if len(seen) > last + 4:  # the joint steps have two batches
            raise KeyboardInterrupt
        return true(*args)

    monkeypatch.setattr(network, "padded", broken)
    with pytest.raises(KeyboardInterrupt):
        jointly(corpus, [pool], how, **HOW)
    monkeypatch.undo()
    assert list(tmp_path.glob("m.pt.*.checkpoint"))
    again = jointly(corpus, [pool], how, **HOW)
    for name, value in weights(made).items():
        assert torch.equal(weights(again)[name], value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]
    with pytest.raises(ValueError, match=r"gamma was 1\.0, is 2\.0"):
        jointly(corpus, [pool], how, gamma=2.0, **HOW)


def test_the_pool_is_heard_and_its_texts_are_not(corpus, pool, whole):
    audio = all_audio(corpus, pool)
    assert len(audio) == 18
    assert audio.target_lengths.sum() == 0
    assert audio.features.shape[0] == corpus.lengths.sum() + pool.lengths.sum()
    alone = jointly(corpus, (), Run(8), **HOW)
    one, other = weights(alone), weights(whole[0])
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_what_cannot_be_trained_is_said(corpus, pool):
    with pytest.raises(ValueError, match="prepare all with the same stack"):
        jointly(corpus, [pool.with_stack(1)], Run(8), **HOW)
    with pytest.raises(ValueError, match="steps is 1; give a whole number of at least"):
        jointly(corpus, (), Run(1), **HOW)
    with pytest.raises(ValueError, match="gamma is -1"):
        jointly(corpus, (), Run(8), gamma=-1.0, **HOW)


# -- the command line -----------------------------------------------------------------


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Eight recordings, of which a manifest has the texts of six."""
    root = tmp_path_factory.mktemp("recordings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLECTION_CACHE", str(root / "cache"))
        rows = speak_into(root, 8)
        (root / "more").mkdir()
        for row in rows[6:]:
            (root / row["audio"]).rename(root / "more" / Path(row["audio"]).name)
        lines = [json.dumps(row) for row in rows[:6]]
        (root / "manifest.jsonl").write_text("\n".join(lines))
        yield root


TINY = ["--explore", "2", "--steps", "4", "--codes", "8", "--channels", "16"]
TINY += ["--blocks", "1", "--workers", "1"]


def run(*words) -> None:
    command.main([str(word) for word in words])


def test_a_folder_becomes_a_recogniser_and_texts(there, capsys):
    out = there / "words.pt"
    own = ["train", there / "manifest.jsonl", "--out", out, "--held-out", "0.34"]
    run(*own, "--pool", there / "more", *TINY)
    told = capsys.readouterr().err
    assert "more: 2 recordings" in told
    assert "both levels, step 3 of 4: held-out CER" in told
    assert "CTC alone, step 2 of 2: held-out CER" in told
    assert f"wrote {out}" in told
    speech.main(["transcribe", str(there / "more"), "--model", str(out)])
    assert len(capsys.readouterr().out.splitlines()) == 2
    run(*own, "--pool", there / "more", *TINY)
    assert "was finished before; delete it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--labels", "none"], "train: --labels is 'none'; choose one of"),
        (["--units", "letters"], "train: --units is 'letters'"),
        (["--steps", "1"], "train: steps is 1"),
        (["--pool", "no/such/folder"], "no/such/folder"),
    ],
)
def test_a_mistake_is_a_sentence(there, more, sentence):
    with pytest.raises(SystemExit) as raised:
        run("train", there / "manifest.jsonl", "--out", there / "x.pt", *TINY, *more)
    assert sentence in str(raised.value)
    assert not Path(there / "x.pt").exists()


def test_two_processes_write_one_model(there):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    out = there / "two.pt"
    words = ["train", there / "manifest.jsonl", "--out", out, *TINY, "--processes", 2]
    command_line = [sys.executable, "-m", "lib.bl_just", *map(str, words)]
    done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"wrote {out}") == 1
    assert done.stderr.count("CTC alone, step 2 of 2: held-out CER") == 1
    assert trained.load(out, "recogniser").vocabulary
    assert sorted(p.name for p in there.glob("*two.pt*")) == ["two.pt"]


def test_build_is_still_there(monkeypatch):
    built = []
    monkeypatch.setattr("lib.bl_just.shipping.build", lambda: built.append(1))
    run("build")
    assert built == [1]
