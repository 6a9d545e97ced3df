"""Real corpora through one protocol: what is there, the audio, and a prepared corpus.

A reader lists a corpus without opening its audio (`librispeech`, `aishell`, `covost`,
`folder`); `records` opens one utterance after the other; `prepare` computes features
of all, in chunks that are kept, and gives the same `Corpus` as synthetic speech.
Broken files are counted, and more than one in a hundred is refused.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lib.kit.cache import cached
from lib.kit.checks import choice, count, need
from lib.speech import chunks
from lib.speech.corpus import COLUMNS, Corpus, compact
from lib.speech.espeak import SpeechError
from lib.speech.features import MELS, RATE, resample
from lib.speech.synthesis import TOLERANCE, fitting
from lib.speech.vocabulary import Vocabulary, normalised

CHUNK = 500  # files of one process
LARGE = 1 << 30  # bytes of features that are kept on disk instead of in memory


@dataclass(frozen=True)
class Entry:
    """One utterance of a real corpus, its audio not yet opened."""

    id: str
    path: Path
    text: str
    language: str
    speaker: str = ""
    split: str = ""
    translation: str = ""


@dataclass(frozen=True)
class Listing:
    """The utterances of a real corpus, and a sentence for each that has no text."""

    name: str
    entries: tuple[Entry, ...]
    skipped: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(frozen=True)
class Record:
    """One utterance with its sound: audio (samples,) float32 at `rate`, one channel."""

    id: str
    audio: np.ndarray
    rate: int
    text: str
    language: str
    speaker: str


# -- what is there --------------------------------------------------------------------


def _folder(path: str | Path, what: str) -> Path:
    path = Path(path).expanduser()
    need(
        path.is_dir(),
        f"{what} was looked for in {path}, which is no folder; give the folder that "
        "its archive unpacks to.",
        SpeechError,
    )
    return path


def _listing(name: str, entries: Sequence[Entry], skipped: Sequence[str]) -> Listing:
    need(
        len(entries) > 0,
        f"{name} has no utterance with a transcript here"
        + (f": {skipped[0]}." if skipped else "; check the folder and the split."),
        SpeechError,
    )
    return Listing(name, tuple(entries), tuple(skipped))


def _lines(path: Path) -> list[str]:
    """The lines of a transcript file. Raises SpeechError where it cannot be read."""
    try:
        return path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpeechError(
            f"{path} cannot be read ({type(error).__name__}): it should hold the "
            "transcripts, in UTF-8."
        ) from None


def librispeech(root: str | Path, subset: str = "train-clean-100") -> Listing:
    """LibriSpeech: <subset>/<speaker>/<chapter>/*.flac beside *.trans.txt.

    root: the folder LibriSpeech; subset: e.g. "dev-clean". Returns a `Listing` in
    order of the ids. Raises SpeechError for a missing folder or no transcripts.
    """
    place = _folder(_folder(root, "LibriSpeech") / subset, f"LibriSpeech {subset}")
    entries, skipped = [], []
    for transcripts in sorted(place.glob("*/*/*.trans.txt")):
        here = transcripts.parent
        texts = dict(
            line.split(" ", 1) for line in _lines(transcripts) if " " in line.strip()
        )
        for path in sorted(here.glob("*.flac")):
            if path.stem not in texts:
                skipped.append(f"{path.name} has no line in {transcripts.name}")
        for name, text in texts.items():
            path = here / f"{name}.flac"
            entries.append(Entry(name, path, text, "en", here.parent.name, subset))
    return _listing(f"LibriSpeech {subset}", entries, skipped)


def aishell(root: str | Path, split: str = "train") -> Listing:
    """AISHELL-1: wav/<split>/<speaker>/*.wav and one file of transcripts.

    root: the folder data_aishell; split: train, dev or test. Files without a transcript
    are named in `skipped`. Returns a `Listing`. Raises ValueError for another split,
    SpeechError for missing folders.
    """
    choice("The split of AISHELL-1", split, ("train", "dev", "test"))
    root = _folder(root, "AISHELL-1")
    lines = _lines(root / "transcript" / "aishell_transcript_v0.8.txt")
    texts = dict(line.split(None, 1) for line in lines if len(line.split()) > 1)
    entries, skipped = [], []
    for path in sorted((_folder(root / "wav" / split, "AISHELL-1")).glob("*/*.wav")):
        if text := texts.get(path.stem):
            entries.append(Entry(path.stem, path, text, "zh", path.parent.name, split))
        else:
            skipped.append(f"{path.name} has no transcript")
    return _listing(f"AISHELL-1 {split}", entries, skipped)


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a tab-separated file with a header, quotes being letters."""
    rows = csv.DictReader(_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = [name for name in columns if name not in (rows.fieldnames or ())]
    need(
        not missing,
        f"{path.name} has no column {', '.join(missing)}; it has "
        f"{', '.join(rows.fieldnames or ['none'])}.",
        SpeechError,
    )
    return list(rows)


def covost(
    clips: str | Path, table: str | Path, split: str = "train", language: str = "fr"
) -> Listing:
    """CoVoST 2: clips of Common Voice with sentence and translation.

    clips: the folder of Common Voice with clips/ and validated.tsv; table: the file
    covost_v2.<source>_<target>.tsv (path, translation, split); split: of that table;
    language: the source's code. Clips that validated.tsv lacks are named in `skipped`.
    Raises SpeechError for missing files or columns.
    """
    root = _folder(clips, "Common Voice")
    voices = {
        row["path"]: row
        for row in _table(root / "validated.tsv", ("client_id", "path", "sentence"))
    }
    entries, skipped = [], []
    for row in _table(Path(table), ("path", "translation", "split")):
        if row["split"] != split:
            continue
        name, voice = row["path"], voices.get(row["path"])
        if voice is None:
            skipped.append(f"{name} is not in validated.tsv")
            continue
        about = (name.rsplit(".", 1)[0], root / "clips" / name, voice["sentence"])
        said = (language, voice["client_id"], split, row["translation"])
        entries.append(Entry(*about, *said))
    return _listing(f"CoVoST 2 {language} {split}", entries, skipped)


def folder(manifest: str | Path) -> Listing:
    """Any audio files with a manifest: one JSON object a line.

    manifest: lines with "audio" (a path, from the manifest's folder), and if known
    "text", "language", "speaker", "split", "translation", "id". Returns a `Listing`.
    Raises SpeechError for a file that cannot be read or a line that is no such object.
    """
    manifest = Path(manifest).expanduser()
    entries = []
    for number, line in enumerate(_lines(manifest), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            path = manifest.parent / row["audio"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise SpeechError(
                f"Line {number} of {manifest.name} is not of the form "
                '{"audio": "a.wav", "text": "words", "language": "en", "speaker": "x"}.'
            ) from None
        rest = ("text", "language", "speaker", "split", "translation")
        words = {name: str(row.get(name) or "") for name in rest}
        entries.append(Entry(str(row.get("id") or Path(row["audio"])), path, **words))
    return _listing(manifest.name, entries, [])


# -- the audio ------------------------------------------------------------------------


def read(path: str | Path) -> tuple[np.ndarray, int]:
    """The sound of one file, channels averaged.

    path: any format that soundfile reads (WAV, FLAC, MP3, Ogg). Returns samples
    (samples,) float32 and the rate. Raises SpeechError for a file that is missing,
    damaged, empty or holds nan.
    """
    import soundfile

    name = Path(path).name
    need(Path(path).is_file(), f"{name} does not exist", SpeechError)
    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise SpeechError(f"{name} cannot be read as audio ({error})") from None
    need(len(audio) > 0, f"{name} holds no samples", SpeechError)
    need(bool(np.isfinite(audio).all()), f"{name} holds nan", SpeechError)
    return audio.mean(axis=1), int(rate)


def records(
    listing: Listing, rate: int | None = RATE, tolerance: float = TOLERANCE
) -> Iterator[Record]:
    """The utterances of a listing with their sound, one after the other.

    rate: to resample to, None for each file's own; tolerance: the share of broken files
    and empty transcripts that is passed over. Raises SpeechError beyond it, as soon as
    that is certain, with the first three reasons.
    """
    reasons, total = list(listing.skipped), len(listing) + len(listing.skipped)
    chunks.refused(reasons, total, tolerance, listing.name)
    for entry in listing.entries:
        try:
            need(bool(entry.text.strip()), f"{entry.id} has no words", SpeechError)
            audio, own = read(entry.path)
        except SpeechError as error:
            reasons.append(str(error))
            chunks.refused(reasons, total, tolerance, listing.name)
            continue
        audio = audio if rate is None else resample(audio, own, rate)
        about = (entry.text, entry.language, entry.speaker)
        yield Record(entry.id, audio, rate or own, *about)


# -- features of all ------------------------------------------------------------------


def _jobs(paths: Sequence[Path], stack: int, chunk: int) -> list[dict]:
    """Chunks of files; what a file is changes with its size and time."""
    stamps = []
    for path in paths:
        there = path.stat() if path.is_file() else None
        stamps.append([there.st_size, there.st_mtime_ns] if there else None)
    names = [str(path.resolve()) for path in paths]
    return [
        {
            "kind": "files",
            "stack": stack,
            "items": names[at : at + chunk],
            "stamps": stamps[at : at + chunk],
        }
        for at in range(0, len(paths), chunk)
    ]


def prepare(
    listing: Listing,
    vocabulary: Vocabulary | None = None,
    labelled: bool = True,
    stack: int = 2,
    workers: int | None = None,
    progress: chunks.Progress = None,
    tolerance: float = TOLERANCE,
    chunk: int = CHUNK,
) -> Corpus:
    """Features of a real corpus, cached in chunks; the transcripts as characters.

    listing: of a reader; vocabulary: of characters, None for those of these texts;
    labelled: False takes utterances without text too; stack: 2 (40 ms) or 1 (20 ms);
    workers, progress: as of `synthesise`; tolerance: the share of utterances that may
    be broken, without words, or too short for their text; chunk: files of one process.
    Killed and started again it goes on where it was; files that changed are read
    again. Features over 1 GiB stay on disk. Raises SpeechError beyond the tolerance,
    ValueError for a character that the vocabulary lacks.
    """
    count("The chunk", chunk)
    reasons, total = list(listing.skipped), len(listing) + len(listing.skipped)
    entries = []
    for entry in listing.entries:
        entry = replace(entry, text=normalised(entry.text))
        if entry.text or not labelled:
            entries.append(entry)
        else:
            reasons.append(f"{entry.id} has no words")
    # A share of 1 allows for everything, but not for nothing.
    allowed = tolerance if entries else 0.0
    chunks.refused(reasons, total, allowed, listing.name)
    jobs = _jobs([entry.path for entry in entries], stack, chunk)
    paths = chunks.make(jobs, workers, progress, listing.name)
    kept = []
    for at, path in enumerate(paths):
        part = chunks.load(path)
        kept += [entries[at * chunk + int(index)] for index in part["kept"]]
        reasons += [str(reason) for reason in part["reasons"]]
    chunks.refused(reasons, total, tolerance if kept else 0.0, listing.name)
    info = {"source": listing.name, "unusable": len(reasons)}
    frames, lengths = _frames(paths, stack)
    corpus = _written(kept, frames, lengths, vocabulary, stack, info)
    return fitting(corpus, tolerance)


def _written(entries, frames, lengths, vocabulary, stack, info) -> Corpus:
    """A corpus of entries whose texts are normalised, and of their frames."""
    vocabulary = vocabulary or Vocabulary.of(entry.text for entry in entries)
    targets = [vocabulary.encode(entry.text) for entry in entries]
    return compact(
        frames,
        lengths=lengths,
        targets=np.concatenate(targets).astype(np.uint16),
        target_lengths=np.array([len(target) for target in targets]),
        vocabulary=vocabulary,
        columns={n: [getattr(entry, n) for entry in entries] for n in COLUMNS},
        stack=stack,
        info=info,
    )


def _frames(paths: Sequence[Path], stack: int) -> tuple[np.ndarray, np.ndarray]:
    """The frames of all chunks in one array, on disk if they are many; the lengths."""
    lengths = np.concatenate([chunks.load(path)["lengths"] for path in paths])
    shape = (int(lengths.sum()), MELS * stack)

    def fill(frames: np.ndarray) -> None:
        at = 0
        for path in paths:
            part = chunks.load(path)["features"]
            frames[at : at + len(part)] = part
            at += len(part)

    def build(path: Path) -> None:
        frames = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        fill(frames)
        frames.flush()

    if 2 * shape[0] * shape[1] > LARGE:
        name = chunks.name_of({"chunks": [path.name for path in paths]})
        return np.load(cached(f"{name}.npy", build), mmap_mode="r"), lengths
    frames = np.empty(shape, np.float16)
    fill(frames)
    return frames, lengths
