"""From a folder of recordings to texts: recipes, names of corpora, the command line."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import speak_into, wait_for

from lib.kit.start import ROOT
from lib.speech import command, espeak, recipes, recordings, trained
from lib.speech.corpus import Corpus
from lib.speech.espeak import SpeechError
from lib.speech.models import save_model
from lib.speech.readers import Entry, Listing
from lib.speech.recipes import Run
from lib.speech.synthesis import shipped
from lib.speech.vocabulary import Vocabulary

pytestmark = pytest.mark.usefixtures("one_thread")
RATES = (8000, 16_000, 22_050, 44_100)
TINY = ["--d", "16", "--blocks", "2", "--workers", "1", "--device", "cpu"]
SIZES = {"d": 16, "blocks": 2}


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Iterator[Path]:
    """A folder of twelve spoken recordings of mixed rates, and a cache of its own."""
    root = tmp_path_factory.mktemp("recordings")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLECTION_CACHE", str(root / "cache"))
        rows = speak_into(root, 12, RATES)
        rows = [row | {"text": f"{row['text']}!"} for row in rows]
        rows[3]["split"] = rows[7]["split"] = "test"
        write(root / "manifest.jsonl", rows)
        yield root


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", "utf-8")
    return path


def rows_of(root: Path) -> list[dict]:
    lines = (root / "manifest.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row | {"audio": str(root / row["audio"])} for row in rows]


def run(*words: object) -> None:
    command.main([str(word) for word in words])


def fails(*words: object) -> str:
    with pytest.raises(SystemExit) as raised:
        run(*words)
    return str(raised.value)


@pytest.fixture(scope="module")
def models(there) -> Path:
    """An encoder and a recogniser of characters, made by the commands."""
    out, tiny = there / "models", [*TINY, "--steps", 6, "--every", 2]
    run("pretrain", there, "--out", out / "model.pt", *tiny)
    made = ["--from", out / "model.pt", "--out", out / "recogniser.pt"]
    run("finetune", there / "manifest.jsonl", *made, *tiny)
    return out


@pytest.fixture
def corpus(there) -> Corpus:
    return recordings.corpus_from(recordings.listing_of(there), workers=1)


# --- the whole path ------------------------------------------------------------------


def test_recordings_become_an_encoder_a_recogniser_and_texts(there, models, capsys):
    assert sorted(p.name for p in models.iterdir()) == ["model.pt", "recogniser.pt"]
    made = trained.load(models / "recogniser.pt", "recogniser")
    assert (made.kind, made.stack, made.vocabulary.units) == (
        "recogniser",
        2,
        "characters",
    )
    assert len(made.history["loss"]) == 6
    assert made.sizes == {"features": 80, "d": 16, "blocks": 2}
    known = {"model": models / "recogniser.pt"}
    arguments = [word for k, v in known.items() for word in (f"--{k}", v)]
    run("transcribe", there / "manifest.jsonl", "--json", *arguments)
    said, told = capsys.readouterr()
    rows = [json.loads(line) for line in said.splitlines()]
    assert [row["audio"] for row in rows] == [f"wav/{i:02d}.wav" for i in range(12)]
    assert all(row["reference"] and "!" not in row["reference"] for row in rows)
    assert "test: CER" in told
    assert "test: WER" in told
    run("transcribe", there / "wav/00.wav", there / "wav", *arguments, "--beam", 1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13
    assert lines[0].split("\t")[0] == str(there / "wav/00.wav")


def test_what_is_told_on_the_way(there, tmp_path, capsys):
    out = tmp_path / "new" / "model.pt"
    run("pretrain", there, "--out", out, *TINY, "--steps", 5, "--labels", "kmeans")
    told = capsys.readouterr().err
    assert "12 recordings, 0.6 minutes" in told
    assert "step 3: held-out loss" in told
    assert "codes in use (perplexity" in told
    assert "loss=" in told
    assert f"wrote {out} after" in told
    words = ["finetune", there, "--from", out, "--out", tmp_path / "r.pt"]
    run(*words, *TINY, "--steps", 120)
    told = capsys.readouterr().err
    assert "step 120: held-out CER" in told
    assert told.count("CER") == 6
    rates = [line for line in told.splitlines() if line.startswith("CER")]
    assert float(rates[0].split()[1]) < 95  # it learnt something from ten utterances


def test_a_finished_run_is_not_repeated_and_not_written_over(there, models, capsys):
    words = ["pretrain", there, "--out", models / "model.pt", *TINY, "--every", 2]
    before = (models / "model.pt").read_bytes()
    run(*words, "--steps", 6)
    assert "was finished before" in capsys.readouterr().err
    assert "steps was 6, is 7. Give another name" in fails(*words, "--steps", 7)
    assert (models / "model.pt").read_bytes() == before


def test_without_pre_training_and_with_another_corpus_to_test(there, tmp_path, capsys):
    test = write(tmp_path / "test.jsonl", rows_of(there)[:3])
    words = ["finetune", there, "--out", tmp_path / "r.pt", "--test", test]
    run(*words, *TINY, "--steps", 2)
    assert "3 recordings" in capsys.readouterr().err
    made = trained.load(tmp_path / "r.pt")
    assert made.run["from"] == "nothing"
    assert made.run["corpus"].startswith("12 utterances")


# --- interruptions -------------------------------------------------------------------


def test_killed_and_started_again_it_ends_with_the_same_bytes(there, models, tmp_path):
    words = ["finetune", there, "--from", models / "model.pt", *TINY, "--every", 4]
    words = [str(word) for word in (*words, "--steps", 80, "--out")]
    killed, whole = tmp_path / "killed.pt", tmp_path / "whole.pt"
    child = subprocess.Popen(
        [sys.executable, "-m", "lib.speech", *words, str(killed)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    checkpoint = recipes.checkpoint_of(killed)
    wait_for(checkpoint.exists, 120)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert checkpoint.exists()
    assert not killed.exists()
    run(*words, killed)
    run(*words, whole)
    assert killed.read_bytes() == whole.read_bytes()
    assert [p.name for p in tmp_path.iterdir() if "killed" in p.name] == ["killed.pt"]


def test_ctrl_c_says_how_to_go_on_and_changes_nothing(
    there, models, tmp_path, monkeypatch, capsys
):
    words = ["pretrain", there, *TINY, "--steps", 6, "--every", 2]
    padded, calls = recipes.padded, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return padded(*given)

    out = tmp_path / "model.pt"
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "padded", interrupted)
        assert fails(*words, "--out", out) == "130"
    assert "the same command goes on where it was" in capsys.readouterr().err
    assert not out.exists()
    run(*words, "--out", out)
    assert "going on from" in capsys.readouterr().err
    assert out.read_bytes() == (models / "model.pt").read_bytes()
    assert not recipes.checkpoint_of(out).exists()


def test_a_checkpoint_of_another_run_or_damaged_gets_a_sentence(
    there, tmp_path, monkeypatch
):
    out = tmp_path / "model.pt"
    words = ["pretrain", there, "--out", out, *TINY, "--every", 1]

    def interrupted(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recipes.Run, "written", interrupted)
        fails(*words, "--steps", 1)
    checkpoint = recipes.checkpoint_of(out)
    assert "belongs to another run: steps was 1, is 3" in fails(*words, "--steps", 3)
    with pytest.raises(ValueError, match="checkpoint of a run that has not finished"):
        trained.load(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert "cannot be read (" in fails(*words, "--steps", 1)


# --- the functions that notebooks call -----------------------------------------------


def test_functions_give_what_the_commands_give(there, models):
    given = recordings.corpus_from(
        recordings.listing_of(there), labelled=False, workers=1
    )
    train, watch = recordings.held_out(given)
    assert (len(train), len(watch)) == (10, 2)
    how = Run(6, device="cpu")
    made = recipes.pretrained(train, how=how, sizes=SIZES)
    theirs = trained.load(models / "model.pt")
    assert trained.digest(made.model) == trained.digest(theirs.model)
    assert made.history == theirs.history
    again = recipes.recogniser(train, made, how)
    theirs = trained.load(models / "recogniser.pt")
    assert trained.digest(again.model) == trained.digest(theirs.model)
    texts = recipes.transcribed(theirs, watch, beam=1)
    assert texts == recipes.transcribed(again, watch, beam=1)
    assert {*recipes.error_rates(watch, texts)} == {"CER", "WER"}


def test_watching_changes_nothing(corpus):
    train, watch = recordings.held_out(corpus)
    said: list[str] = []
    watching = Run(5, device="cpu", watch=watch, tell=said.append)
    seen = recipes.pretrained(train, how=watching, sizes=SIZES)
    blind = recipes.pretrained(train, how=Run(5, device="cpu"), sizes=SIZES)
    assert len(said) == 5
    assert trained.digest(seen.model) == trained.digest(blind.model)


def test_k_means_labels_are_the_nearest_codes(corpus):
    quantizer = recipes.quantizer_of(corpus, "kmeans", V=8)
    x = torch.from_numpy(corpus.all_features())
    away = torch.cdist(x.double(), quantizer.C.double())
    assert torch.equal(quantizer(x), away.argmin(1))
    assert quantizer(x).unique().numel() == 8


def test_long_recordings_are_cut_into_pieces_of_like_length(corpus):
    cut, which = recipes.pieces(corpus, 20)
    assert cut.lengths.max() <= 20
    assert cut.lengths.min() >= 10
    for i, utterance in enumerate(corpus):
        mine = [cut[int(j)].features for j in np.flatnonzero(which == i)]
        np.testing.assert_array_equal(np.concatenate(mine), utterance.features)
    short, which = recipes.pieces(corpus)
    assert short.lengths.tolist() == corpus.lengths.tolist()
    assert which.tolist() == list(range(12))
    fine = recipes.pieces(corpus.with_stack(1), 20)[0]
    assert len(fine) == len(cut)
    assert fine.lengths.max() <= 40
    assert fine.lengths.sum() == 2 * corpus.lengths.sum()


def test_what_is_heard_in_pieces_is_put_together(corpus, models, monkeypatch):
    made = trained.load(models / "recogniser.pt")
    small = len(recipes.pieces(corpus, 40)[0])
    cut, a = recipes.pieces, made.vocabulary.encode("a")[0]
    monkeypatch.setattr(recipes, "pieces", lambda c: cut(c, 40))

    def heard(model, batches, beam):
        return [[a + i % 2] for batch in batches for i in batch.indices]

    monkeypatch.setattr(recipes, "recognise", heard)
    found = recipes.transcribed(made, corpus)
    b = made.vocabulary.symbols[a]  # numbers count from 1
    assert "".join(found).replace(" ", "") == (small // 2) * f"a{b}" + small % 2 * "a"
    assert found[0].startswith(f"a {b}")


def test_phones_are_written_as_the_nearest_known_words(there, tmp_path, capsys):
    words = ["finetune", there, "--out", tmp_path / "r.pt", "--units", "phones"]
    run(*words, *TINY, "--steps", 2)
    made = trained.load(tmp_path / "r.pt")
    assert made.vocabulary.units == "phones"
    assert made.words["cats"] == [["k", "æ", "t", "s"]]
    corpus = recordings.corpus_from(recordings.listing_of(there), "phones", workers=1)
    assert corpus[0].words[-1] == len(corpus[0].text.split()) - 1
    heard = recipes.transcribed(made, corpus)
    assert {word for text in heard for word in text.split()} <= {*made.words}


def test_words_are_symbols_too(there):
    corpus = recordings.corpus_from(recordings.listing_of(there), "words", workers=1)
    for utterance in corpus:
        assert corpus.vocabulary.decode(utterance.target) == utterance.text
    made = recipes.recogniser(corpus, None, Run(1, device="cpu"), sizes=SIZES)
    assert all(isinstance(text, str) for text in recipes.transcribed(made, corpus))


def test_error_rates_are_of_normalised_texts_with_blanks_as_characters(corpus):
    few = corpus.take([0, 1])
    texts = np.array(["Two cats!", ""], dtype=object)
    few = replace(few, columns={**few.columns, "text": texts})
    found = recipes.error_rates(few, ["twocats", "what"])
    assert (found["CER"].deletions, found["CER"].symbols) == (1, 8)
    assert found["WER"].rate == 1.0
    chinese = replace(few, columns={**few.columns, "text": np.array(["你 好", "两"])})
    assert {*recipes.error_rates(chinese, ["你好", ""])} == {"CER"}
    none = replace(few, columns={**few.columns, "text": np.array(["", ""])})
    assert recipes.error_rates(none, ["a", "b"]) == {}


def test_texts_too_dense_for_40_ms_take_20_ms(there, tmp_path, capsys):
    rows = [row | {"text": 2 * row["text"]} for row in rows_of(there)]
    path = write(tmp_path / "dense.jsonl", rows)
    run("finetune", path, "--out", tmp_path / "r.pt", *TINY, "--steps", 1)
    told = capsys.readouterr().err
    assert "texts have more characters than their frames of 40 ms can hold" in told
    assert trained.load(tmp_path / "r.pt").stack == 1
    # An encoder of 40 ms cannot be helped so.
    made = recordings.corpus_from(recordings.listing_of(path), workers=1)
    assert made.stack == 1
    run("pretrain", there, "--out", tmp_path / "m.pt", *TINY, "--steps", 1)
    words = ["finetune", path, "--from", tmp_path / "m.pt", "--out", tmp_path / "s.pt"]
    told = fails(*words, *TINY)
    assert "utterances of dense.jsonl cannot be used, more than 10 %" in told
    assert "take frames of 20 ms (stack 1), or larger units" in told
    assert "pre-train with --stack 1" in fails(*words, "--stack", 1)


# --- bad input -----------------------------------------------------------------------


def test_what_cannot_be_used_is_named_and_left_out(there, tmp_path, capsys):
    rows = rows_of(there)
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16_000)
    rows[0]["audio"] = str(tmp_path / "broken.wav")
    rows[1]["audio"] = str(tmp_path / "short.wav")
    rows[2]["text"] = "..."
    rows[4]["text"] = "a" * 200
    path = write(tmp_path / "some.jsonl", rows)
    words = ["finetune", path, "--out", tmp_path / "r.pt", *TINY, "--steps", 1]
    told = fails(*words, "--stack", 2)
    assert "3 of 12 utterances of some.jsonl cannot be used, more than 10 %" in told
    run(*words, "--stack", 2, "--tolerance", 0.5)
    told = capsys.readouterr().err
    assert "8 recordings" in told
    assert "4 left out:" in told
    assert "broken.wav cannot be read as audio" in told
    assert "short.wav: The audio has 100 samples" in told
    assert "has no words" in told
    assert "frames of 40 ms for 200 characters, which need 399" in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist; give a folder, a manifest, or one of shipped:en"),
        ("", "has no utterance with a transcript"),
        ('{"text": "a"}', "Line 1 of m.jsonl is not of the form"),
        ('{"audio": "gone.wav", "text": "a"}', "gone.wav does not exist"),
        ('{"audio": "gone.wav", "text": " "}', "gone.wav has no words"),
    ],
)
def test_a_bad_manifest_gets_a_sentence(tmp_path, cache, content, words):
    path = tmp_path / "m.jsonl"
    if content is not None:
        path.write_text(content)
    assert words in fails("finetune", path, "--out", tmp_path / "r.pt", *TINY)


def test_a_folder_without_audio_gets_a_sentence(tmp_path, cache):
    (tmp_path / "notes.txt").write_text("none")
    told = fails("pretrain", tmp_path, "--out", tmp_path / "m.pt", *TINY)
    assert told.startswith("pretrain: There is no audio in")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrain", "--labels", "kmean"], "Did you mean kmeans?"),
        (["pretrain", "--steps", 0], "steps is 0"),
        (["pretrain", "--held-out", 1], "The share held out is 1.0"),
        (["pretrain", "--device", "cuda:99"], "cannot be used here"),
        (["pretrain", "--codes", 5000, "--labels", "kmeans"], "for 5000 codes"),
        (["finetune", "--units", "letters"], "choose one of phones, characters, words"),
        (["finetune", "--from", "no.pt"], "There is no model file no.pt"),
        (["finetune", "--tolerance", 0.1, "--stack", 3], "The stack is 3"),
    ],
)
def test_a_bad_option_gets_a_sentence(there, tmp_path, words, said):
    command, *options = words
    given = ["--out", tmp_path / "m.pt", *TINY, *options]
    assert said in fails(command, there, *given)


def test_a_bad_model_file_gets_a_sentence(there, models, tmp_path):
    def told(path: Path) -> str:
        return fails("transcribe", there, "--model", path)

    assert "model.pt holds the encoder that `pretrain` writes; a recogniser is" in told(
        models / "model.pt"
    )
    bad = tmp_path / "bad.pt"
    whole = (models / "recogniser.pt").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        bad.write_bytes(content)
        assert "bad.pt cannot be read as a model file" in told(bad)
    torch.save({"weights": 1}, bad)
    assert "bad.pt is no model file of this collection" in told(bad)
    saved = torch.load(models / "recogniser.pt", weights_only=True)
    saved["frames"]["hop"] = 200
    torch.save(saved, bad)
    assert "bad.pt was made with other features" in told(bad)
    np.savez(tmp_path / "corpus.npz", x=np.zeros(3))
    assert "corpus.npz cannot be read as a model" in told(tmp_path / "corpus.npz")


def test_an_encoder_that_ships_can_be_fine_tuned(models, corpus, tmp_path):
    for kind in ("model", "recogniser"):
        mine = trained.load(models / f"{kind}.pt")
        save_model(tmp_path / "small.npz", mine.model.state_dict(), {"what": "tiny"})
        small = trained.load(tmp_path / "small.npz", "encoder")
        assert small.kind == "encoder"
        assert small.run["what"] == "tiny"
        for a, b in zip(small.encoder.parameters(), mine.encoder.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    made = recipes.recogniser(corpus, small, Run(1, device="cpu"))
    assert made.sizes["d"] == 16


def test_texts_of_another_language_get_a_sentence(there, models, corpus, capsys):
    known = recipes.letters_of(trained.load(models / "recogniser.pt"))
    russian = np.array(["две кошки"] * len(corpus), dtype=object)
    other = replace(corpus, columns={**corpus.columns, "text": russian})
    with pytest.raises(ValueError, match="it learns another language"):
        recipes.unknown_letters(known, other)
    some = np.array(["drei schöne rote hunde sehen"] * len(corpus), dtype=object)
    other = replace(corpus, columns={**corpus.columns, "text": some})
    assert "unknown to the recogniser (ö); they" in recipes.unknown_letters(
        known, other
    )
    assert recipes.unknown_letters(known, corpus) == ""
    path = write(there / "ru.jsonl", [r | {"text": "две"} for r in rows_of(there)])
    words = ["finetune", there, "--test", path, "--out", there / "ru.pt", *TINY]
    assert "it learns another language" in fails(*words)
    told = fails("transcribe", path, "--model", models / "recogniser.pt")
    assert "it learns another language" in told


def test_phones_without_a_language_or_espeak_get_a_sentence(
    there, tmp_path, monkeypatch
):
    rows = [{k: v for k, v in r.items() if k != "language"} for r in rows_of(there)]
    path = write(tmp_path / "m.jsonl", rows)
    words = ["finetune", path, "--out", tmp_path / "m.pt", *TINY, "--units", "phones"]
    assert 'put "language" into the manifest or give --language' in fails(*words)

    def none():
        raise SpeechError("espeak-ng cannot be loaded on this platform.")

    recordings._phones.cache_clear()
    espeak._engine.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(espeak, "_library", none)
        told = fails(*words, "--language", "en")
        assert "Phones come from espeak-ng: espeak-ng cannot be loaded" in told
        assert "take --units characters" in told
        assert "cannot be loaded" in fails(
            "pretrain", "spoken:en:4", "--out", tmp_path / "s.pt", *TINY
        )
    run(*words, "--language", "en", "--steps", 1)


def test_wrong_corpora_get_a_sentence(corpus, models):
    made = trained.load(models / "recogniser.pt")
    start = trained.load(models / "model.pt")
    fine = corpus.with_stack(1)
    with pytest.raises(ValueError, match="frames of 40 ms and the corpus has 20 ms"):
        recipes.recogniser(fine, start)
    with pytest.raises(ValueError, match="frames of 40 ms and the corpus has 20 ms"):
        recipes.transcribed(made, fine)
    with pytest.raises(ValueError, match="is an encoder, which writes nothing"):
        recipes.transcribed(start, corpus)
    with pytest.raises(ValueError, match="1 texts for 12 utterances"):
        recipes.error_rates(corpus, ["a"])
    with pytest.raises(ValueError, match=r"12 texts are empty: wav/00\.wav"):
        recipes.check_texts(recipes.pieces(corpus)[0])
    tight = replace(corpus, lengths=corpus.lengths // 4)
    with pytest.raises(ValueError, match=r"12 of 12 texts do not fit.*wav/00.wav has"):
        recipes.check_texts(tight)
    long = replace(corpus, lengths=corpus.lengths * 100)
    with pytest.raises(ValueError, match="12 recordings with texts are longer than 2"):
        recipes.check_texts(long)
    with pytest.raises(ValueError, match="give a whole number"):
        recipes.pieces(corpus, 0)


# --- corpora by name -----------------------------------------------------------------


def test_synthetic_corpora_by_name(there):
    assert recordings.corpus_of("shipped:en").checksum() == shipped("en").checksum()
    assert {*recordings.corpus_of("shipped:de,fr").column("language")} == {"de", "fr"}
    assert len(recordings.corpus_of("shipped")) == len(shipped())
    assert recordings.corpus_of("shipped:en", stack=1).stack == 1


def test_a_real_corpus_has_the_parts_of_the_synthetic_one(there):
    name = f"folder:{there / 'manifest.jsonl'}"
    corpus = recordings.corpus_of(name, labelled=0.3, workers=1)
    assert {*corpus.column("split")} == {"unlabelled", "labelled", "test"}
    test = corpus.select(split="test")
    assert sorted(test.column("id")) == ["wav/03.wav", "wav/07.wav"]
    assert len(corpus.select(split="labelled")) == 3
    assert len(corpus.labelled(1, 2)) == 1
    again = recordings.corpus_of(name, labelled=0.3, workers=1)
    assert again.checksum() == corpus.checksum()


def test_without_a_test_split_whole_speakers_are_held_out(corpus):
    columns = {**corpus.columns, "split": np.array([""] * 12, dtype=object)}
    who = np.array([f"s{i % 4}" for i in range(12)], dtype=object)
    parts = recordings.with_parts(replace(corpus, columns=columns | {"speaker": who}))
    test = set(parts.select(split="test").column("speaker"))
    assert len(test) == 1
    rest = parts.select(split=("labelled", "unlabelled"))
    assert len(rest) == 9
    assert not test & {*rest.column("speaker")}
    nameless = replace(corpus, columns=columns | {"speaker": np.array([""] * 12)})
    assert len(recordings.with_parts(nameless).select(split="test")) == 1


def libri(root: Path) -> str:
    for subset in ("train-clean-100", "test-clean"):
        here = root / subset / "84" / "1"
        here.mkdir(parents=True)
        soundfile.write(here / "84-1-0000.flac", np.zeros(16_000) + 0.1, 16_000)
        (here / "84-1.trans.txt").write_text("84-1-0000 GO DO\n")
    return f"librispeech:{root}:train-clean-100+test-clean"


def test_librispeech_by_name_joins_subsets(tmp_path, cache):
    corpus = recordings.corpus_of(libri(tmp_path), labelled=0.0, workers=1)
    assert sorted(corpus.column("split")) == ["test", "unlabelled"]
    assert corpus.vocabulary == Vocabulary(tuple(" dgo"), "characters")
    listing = recordings.listing_of(f"librispeech:{tmp_path}")
    assert [entry.split for entry in listing.entries] == ["train-clean-100"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wavs", "The corpus is 'wavs'; give one of shipped:en"),
        ("folder:", "The corpus is 'folder:'"),
        ("spoken:en:many", "The corpus is 'spoken:en:many'; give spoken:en:2000"),
        ("spoken:es:2", "choose one of en, de, fr, zh"),
        ("librispeech:a:b:c", "The corpus is 'librispeech:a:b:c'; give librispeech:"),
        ("covost:a", "The corpus is 'covost:a'; give covost:/data/cv/fr:"),
    ],
)
def test_a_wrong_name_gets_a_sentence(name, words):
    with pytest.raises(ValueError, match=words):
        recordings.corpus_of(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("librispeech:/no/such", "LibriSpeech was looked for in"),
        ("aishell:/no/such", "AISHELL-1 was looked for in"),
        ("covost:/no/such:/no/table.tsv", "Common Voice was looked for"),
        ("folder:/no/such", "does not exist"),
    ],
)
def test_a_name_of_what_is_not_there_gets_a_sentence(name, words):
    with pytest.raises(SpeechError, match=words):
        recordings.corpus_of(name)


def test_held_out_utterances_are_drawn_where_no_split_names_them(corpus):
    columns = {**corpus.columns, "split": np.array([""] * 12, dtype=object)}
    plain = replace(corpus, columns=columns)
    train, held = recordings.held_out(plain, 0.25)
    assert (len(train), len(held)) == (9, 3)
    assert not {*train.column("id")} & {*held.column("id")}
    assert recordings.held_out(plain, 0)[1] is None
    with pytest.raises(ValueError, match="give 0 to below 1"):
        recordings.held_out(plain, 1)
    test = replace(plain, columns=columns | {"split": np.array(["test"] * 12)})
    with pytest.raises(ValueError, match="All 12 recordings are held out"):
        recordings.held_out(test)


def test_a_manifest_in_a_folder_is_found_and_files_without_one(there):
    assert len(recordings.listing_of(there)) == 12
    bare = recordings.listing_of(there / "wav")
    assert [entry.id for entry in bare.entries[:2]] == ["00.wav", "01.wav"]
    both = recordings.together([bare, Listing("x", (Entry("a", there, "", ""),))])
    assert (both.name, len(both)) == ("wav and x", 13)
