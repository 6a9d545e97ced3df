"""Tests of the real corpora's readers, on tiny local data sets in their layouts."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lib.speech import chunks, readers
from lib.speech.corpus import Corpus
from lib.speech.espeak import SpeechError
from lib.speech.features import extract_features
from lib.speech.readers import (
    Entry,
    Listing,
    aishell,
    covost,
    folder,
    librispeech,
    prepare,
    read,
    records,
)
from lib.speech.vocabulary import Vocabulary


def sound(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=int(seconds * rate)) / 20).astype(np.float32)


def write(path: Path, audio: np.ndarray, rate: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate)


@pytest.fixture
def libri(tmp_path) -> Path:
    here = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121123"
    for i in range(3):
        write(here / f"84-121123-000{i}.flac", sound(1.0 + i / 2, seed=i))
    lines = ["84-121123-0000 GO DO", "84-121123-0001 IT'S SO", "84-121123-0002 HELLO"]
    (here / "84-121123.trans.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "LibriSpeech"


@pytest.fixture
def shell(tmp_path) -> Path:
    root = tmp_path / "data_aishell"
    for i in range(3):
        write(root / "wav" / "dev" / "S0724" / f"BAC009S0724W012{i}.wav", sound(1))
    (root / "transcript").mkdir()
    (root / "transcript" / "aishell_transcript_v0.8.txt").write_text(
        "BAC009S0724W0120 广州 市 房地产\nBAC009S0724W0121 你 好\n", "utf-8"
    )
    return root


@pytest.fixture
def voices(tmp_path) -> tuple[Path, Path]:
    root = tmp_path / "cv" / "fr"
    for i, rate in enumerate((48_000, 32_000, 44_100)):
        write(root / "clips" / f"common_voice_fr_{i}.mp3", sound(1.2, rate), rate)
    rows = [f'c{i}\tcommon_voice_fr_{i}.mp3\tDit-il "oui" {i}' for i in range(3)]
    (root / "validated.tsv").write_text(
        "\n".join(["client_id\tpath\tsentence", *rows]) + "\n", "utf-8"
    )
    table = tmp_path / "covost_v2.fr_en.tsv"
    split = ("train", "train", "test")
    rows = [f'common_voice_fr_{i}.mp3\tHe says "{i}"\t{split[i]}' for i in range(3)]
    rows.append("common_voice_fr_9.mp3\tGone\ttrain")
    table.write_text("\n".join(["path\ttranslation\tsplit", *rows]), "utf-8")
    return root, table


@pytest.fixture
def manifest(tmp_path) -> Path:
    """Mixed rates, channels and lengths in one folder."""
    kinds = [("a.wav", 8000, 1), ("b.flac", 44_100, 2), ("c.ogg", 16_000, 1)]
    rows = []
    for i, (name, rate, channels) in enumerate(kinds):
        audio = sound(0.8 + 0.3 * i, rate, i)
        audio = np.stack([audio, 0 * audio], 1) if channels == 2 else audio
        write(tmp_path / "any" / name, audio, rate)
        rows.append({"audio": name, "text": f"word {'abc'[i]}", "language": "en"})
    path = tmp_path / "any" / "manifest.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


# --- what is there -------------------------------------------------------------------


def test_librispeech(libri):
    listing = librispeech(libri, "dev-clean")
    assert len(listing) == 3
    assert not listing.skipped
    found = list(records(listing))
    assert [r.id for r in found] == [f"84-121123-000{i}" for i in range(3)]
    assert [r.text for r in found] == ["GO DO", "IT'S SO", "HELLO"]
    assert {(r.language, r.speaker, r.rate) for r in found} == {("en", "84", 16_000)}
    np.testing.assert_allclose(found[1].audio, sound(1.5, seed=1), atol=1e-4)


def test_librispeech_names_files_without_a_line(libri):
    write(libri / "dev-clean/84/121123/84-121123-0009.flac", sound(1))
    listing = librispeech(libri, "dev-clean")
    assert listing.skipped == (
        "84-121123-0009.flac has no line in 84-121123.trans.txt",
    )
    with pytest.raises(SpeechError, match=r"1 of 4 utterances of LibriSpeech dev-cl"):
        next(records(listing))


def test_aishell_counts_files_without_a_transcript(shell):
    listing = aishell(shell, "dev")
    assert [e.id for e in listing.entries] == ["BAC009S0724W0120", "BAC009S0724W0121"]
    assert listing.entries[0].speaker == "S0724"
    assert listing.skipped == ("BAC009S0724W0122.wav has no transcript",)
    assert len(list(records(listing, tolerance=0.5))) == 2


def test_covost_joins_clips_sentences_and_translations(voices):
    listing = covost(*voices, "train", "fr")
    assert [e.text for e in listing.entries] == ['Dit-il "oui" 0', 'Dit-il "oui" 1']
    assert [e.translation for e in listing.entries] == ['He says "0"', 'He says "1"']
    assert [e.speaker for e in listing.entries] == ["c0", "c1"]
    assert listing.skipped == ("common_voice_fr_9.mp3 is not in validated.tsv",)
    (last,) = records(covost(*voices, "test", "fr"))
    assert last.rate == 16_000
    assert len(last.audio) == pytest.approx(1.2 * 16_000, abs=2400)  # MP3 pads


def test_a_folder_of_mixed_rates_channels_and_lengths(manifest):
    listing = folder(manifest)
    own = list(records(listing, rate=None))
    assert [r.rate for r in own] == [8000, 44_100, 16_000]
    assert [r.id for r in own] == ["a.wav", "b.flac", "c.ogg"]
    same = list(records(listing))
    assert {r.rate for r in same} == {16_000}
    for i, record in enumerate(same):
        assert record.audio.ndim == 1
        assert record.audio.dtype == np.float32
        assert len(record.audio) == pytest.approx((0.8 + 0.3 * i) * 16_000, abs=2)
    # Two channels are averaged.
    np.testing.assert_allclose(own[1].audio, sound(1.1, 44_100, 1) / 2, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: librispeech(p / "no"), "is no folder; give the folder"),
        (lambda p: librispeech(p, "dev-other"), "LibriSpeech dev-other was looked for"),
        (lambda p: aishell(p / "no"), "AISHELL-1 was looked for"),
        (lambda p: aishell(p), "transcript_v0.8.txt cannot be read"),
        (lambda p: covost(p / "no", p / "x.tsv"), "Common Voice was looked for"),
        (lambda p: covost(p, p / "x.tsv"), "validated.tsv cannot be read"),
        (lambda p: folder(p / "no.jsonl"), "no.jsonl cannot be read"),
        (lambda p: folder(p / "bad.jsonl"), r"Line 2 of bad\.jsonl is not of the form"),
        (lambda p: folder(p / "list.jsonl"), r"Line 1 of list\.jsonl"),
        (lambda p: folder(p / "empty.jsonl"), "no utterance with a transcript"),
        (lambda p: folder(p / "latin.jsonl"), r"UnicodeDecodeError.*in UTF-8"),
    ],
)
def test_a_corpus_that_is_not_there_gets_a_sentence(tmp_path, call, words):
    (tmp_path / "bad.jsonl").write_text('{"audio": "a.wav"}\n{"file": "b.wav"}\n')
    (tmp_path / "list.jsonl").write_text("[1, 2]\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "latin.jsonl").write_bytes(b'{"audio": "\xe9.wav"}')
    with pytest.raises(SpeechError, match=words):
        call(tmp_path)


def test_a_table_without_its_columns_gets_a_sentence(voices):
    root, table = voices
    table.write_text("path\ttext\n")
    with pytest.raises(SpeechError, match=r"no column translation, split; it has path"):
        covost(root, table)


def test_another_split_gets_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="choose one of train, dev, test"):
        aishell(tmp_path, "valid")


# --- the audio -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as audio"),
        (b"RIFF broken", "cannot be read as audio"),
        (None, "does not exist"),
    ],
)
def test_broken_audio_gets_a_sentence(tmp_path, content, words):
    path = tmp_path / "x.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpeechError, match=r"x\.wav " + words):
        read(path)


def test_empty_audio_and_nan_get_a_sentence(tmp_path):
    write(tmp_path / "empty.wav", np.zeros(0))
    with pytest.raises(SpeechError, match="holds no samples"):
        read(tmp_path / "empty.wav")
    soundfile.write(tmp_path / "nan.wav", np.full(9, np.nan), 8000, subtype="FLOAT")
    with pytest.raises(SpeechError, match="holds nan"):
        read(tmp_path / "nan.wav")


def many(path: Path, number: int, broken: int) -> Listing:
    """A listing of one file many times, of which some do not exist."""
    write(path / "a.wav", sound(0.5))
    names = ["gone.wav"] * broken + ["a.wav"] * (number - broken)
    entries = [Entry(str(i), path / n, "a b", "en") for i, n in enumerate(names)]
    return Listing("many", tuple(entries))


def test_one_broken_file_in_a_hundred_is_passed_over(tmp_path):
    assert len(list(records(many(tmp_path, 100, 1)))) == 99
    with pytest.raises(SpeechError, match=r"2 of 100 .* gone\.wav does not exist"):
        list(records(many(tmp_path, 100, 2)))


def test_an_empty_transcript_counts_as_broken(tmp_path):
    listing = many(tmp_path, 3, 0)
    empty = replace(listing.entries[1], text=" ")
    listing = replace(listing, entries=(listing.entries[0], empty))
    with pytest.raises(SpeechError, match=r"1 of 2 .* 1 has no words"):
        list(records(listing))


# --- features of all -----------------------------------------------------------------


def test_a_prepared_corpus_is_like_any_other(libri, cache, tmp_path):
    corpus = prepare(librispeech(libri, "dev-clean"))
    assert [u.text for u in corpus] == ["go do", "it's so", "hello"]
    assert corpus.vocabulary.units == "characters"
    assert corpus.alignment is None
    for i, utterance in enumerate(corpus):
        assert corpus.vocabulary.decode(utterance.target) == utterance.text
        audio, rate = read(librispeech(libri, "dev-clean").entries[i].path)
        expected = extract_features(audio, rate)
        np.testing.assert_allclose(utterance.features, expected, atol=5e-3)
        assert (utterance.speaker, utterance.split) == ("84", "dev-clean")
    assert corpus.slack().tolist() == [
        len(u.features) - len(u.target) - (u.text == "hello") for u in corpus
    ]
    corpus.save(tmp_path / "x.npz")
    assert Corpus.load(tmp_path / "x.npz").checksum() == corpus.checksum()


def test_chinese_is_prepared_in_characters(shell, cache):
    corpus = prepare(aishell(shell, "dev"), tolerance=0.5)
    assert corpus.column("text").tolist() == ["广州市房地产", "你好"]
    assert len(corpus.vocabulary) == 9
    assert corpus.info["unusable"] == 1


def test_translations_come_along(voices, cache):
    corpus = prepare(covost(*voices, "train", "fr"), tolerance=0.5)
    assert corpus.column("text").tolist() == ["dit il oui 0", "dit il oui 1"]
    assert corpus.column("translation")[1] == 'He says "1"'


def test_any_number_of_workers_and_any_chunk_gives_the_same(manifest, cache):
    first = prepare(folder(manifest), workers=1, chunk=3)
    again = prepare(folder(manifest), workers=2, chunk=2)
    assert first.checksum() == again.checksum()


def test_what_is_prepared_is_not_read_again_unless_it_changes(
    manifest, cache, monkeypatch
):
    first = prepare(folder(manifest), chunk=1)
    start, begun = chunks._start, []

    def counted(job, *rest):
        begun.append(job)
        start(job, *rest)

    monkeypatch.setattr(chunks, "_start", counted)
    assert prepare(folder(manifest), chunk=1).checksum() == first.checksum()
    assert not begun
    write(manifest.parent / "a.wav", sound(2.0, 8000), 8000)
    assert prepare(folder(manifest), chunk=1).checksum() != first.checksum()
    assert len(begun) == 1


def test_an_interrupted_preparation_goes_on(manifest, cache, monkeypatch):
    start, begun = chunks._start, []

    def twice(job, *rest):
        if len(begun) == 2:
            raise KeyboardInterrupt
        begun.append(job)
        start(job, *rest)

    monkeypatch.setattr(chunks, "_start", twice)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder(manifest), chunk=1, workers=1)
    monkeypatch.setattr(
        chunks, "_start", lambda job, *r: (begun.append(1), start(job, *r))
    )
    assert len(prepare(folder(manifest), chunk=1, workers=1)) == 3
    assert len(begun) == 3


def test_broken_files_are_counted_and_too_many_refused(manifest, cache):
    (manifest.parent / "b.flac").write_bytes(b"broken")
    with pytest.raises(
        SpeechError, match=r"1 of 3 utterances .* more than 1 %: b\.flac cannot be"
    ):
        prepare(folder(manifest))
    corpus = prepare(folder(manifest), tolerance=0.5)
    assert corpus.column("id").tolist() == ["a.wav", "c.ogg"]
    assert corpus.info["unusable"] == 1


def test_nothing_left_is_refused_whatever_the_tolerance(tmp_path, cache):
    silent = many(tmp_path, 2, 0)
    silent = replace(
        silent, entries=tuple(replace(e, text="!") for e in silent.entries)
    )
    with pytest.raises(SpeechError, match="2 of 2 utterances of many"):
        prepare(silent, tolerance=1.0)
    with pytest.raises(SpeechError, match=r"2 of 2 .* gone\.wav does not exist"):
        prepare(many(tmp_path, 2, 2), tolerance=1.0)


def test_a_text_longer_than_its_sound_is_refused(manifest, cache):
    rows = [json.loads(line) for line in manifest.read_text().split("\n") if line]
    rows[0]["text"] = "a" * 40
    manifest.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SpeechError, match=r"a\.wav has 20 frames, and CTC needs 79"):
        prepare(folder(manifest))
    assert len(prepare(folder(manifest), tolerance=0.5)) == 2


def test_audio_without_text_serves_pre_training(manifest, cache):
    rows = [json.loads(line) for line in manifest.read_text().split("\n") if line]
    for row in rows:
        del row["text"]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SpeechError, match=r"a\.wav has no words"):
        prepare(folder(manifest))
    corpus = prepare(folder(manifest), labelled=False)
    assert len(corpus) == 3
    assert corpus.target_lengths.tolist() == [0, 0, 0]


def test_a_vocabulary_of_training_serves_the_test(manifest, cache):
    letters = Vocabulary.of(["word abc"])
    assert prepare(folder(manifest), letters).vocabulary == letters
    with pytest.raises(ValueError, match=r"'a'.*Vocabulary"):
        prepare(folder(manifest), Vocabulary.of(["word "]))


def test_a_large_corpus_stays_on_disk(manifest, cache, monkeypatch):
    small = prepare(folder(manifest), chunk=1)
    monkeypatch.setattr(readers, "LARGE", 1000)
    large = prepare(folder(manifest), chunk=1)
    assert isinstance(large.features, np.memmap)
    assert large.checksum() == small.checksum()
    assert isinstance(large.take([2, 0]).features, np.memmap)
    assert os.path.getsize(large.features.filename) < 100_000
