"""Work in chunks, each by a fresh process, each cached: the same bytes from any number.

A chunk is a job of plain data. Its process starts from nothing, so espeak-ng has the
same state whoever runs beside it; its file is cached under a hash of the job, so that
what is finished is not made again, and a longer corpus reuses a shorter one's chunks.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lib.kit.cache import CacheError, cache_folder, cached
from lib.kit.checks import need
from lib.kit.processes import Workers, teller
from lib.kit.results import write_json
from lib.speech import features
from lib.speech.espeak import SpeechError, phones_of_words, speak

Progress = Callable[[int, int], None] | bool | None

FOLDER = "speech"  # inside the cache
HALF = 0.5  # the level of kept audio
INDEX = "speech/checksums.json"
KINDS = {"SpeechError": SpeechError, "ValueError": ValueError, "OSError": OSError}


# -- in the fresh process -------------------------------------------------------------


def spoken(request: Mapping) -> tuple[np.ndarray, dict]:
    """One utterance of the synthetic corpus: speech, then tilt, then noise.

    request: the fields of `synthesis.Request`. Returns samples at 16 kHz (samples,)
    float32 and the speech with its phones. Errors as of `espeak.speak`.
    """
    words = ("text", "language", "speaker", "rate", "pitch")
    speech = speak(**{name: request[name] for name in words})
    sound = features.resample(speech.samples / np.float32(32768), speech.rate)
    sound = features.tilted(sound, request["tilt"])
    rng = np.random.default_rng(request["noise_seed"])
    white = rng.standard_normal(len(sound), np.float32)
    noise = features.coloured(white, request["colour"])
    return features.add_noise(sound, noise, request["snr"]), speech


def _speak_all(job: Mapping) -> dict[str, np.ndarray]:
    """The arrays of a chunk of synthetic speech."""
    stack, heard = job["stack"], hashlib.sha256()
    frames, lengths, sounds = [], [], []
    align, phones, words = [], [], []
    number: dict[str, int] = {"": 0}
    for request in job["items"]:
        sound, speech = spoken(request)
        heard.update(speech.samples.tobytes() + speech.starts.tobytes())
        heard.update(" ".join(speech.phones).encode())
        frames.append(features.extract_features(sound, stack=stack).astype(np.float16))
        lengths.append(len(frames[-1]))
        labels = np.array([number.setdefault(p, len(number)) for p in speech.phones])
        align.append(
            features.frame_labels(
                speech.starts, labels, speech.rate, lengths[-1], stack
            )
        )
        # At half the level, or noise would push the loudest voices out of 16 bits.
        half = np.rint(sound * (HALF * 32768))
        sounds.append(np.clip(half, -32768, 32767).astype("<i2"))
        spelled = phones_of_words(request["text"], speech)
        phones.append([number[phone] for word in spelled for phone in word])
        words.append(np.repeat(np.arange(len(spelled)), [len(w) for w in spelled]))
    arrays = {
        "features": np.concatenate(frames),
        "lengths": np.array(lengths),
        "alignment": np.concatenate(align).astype(np.uint16),
        "targets": np.concatenate(phones).astype(np.uint16),
        "target_lengths": np.array([len(p) for p in phones]),
        "words": np.concatenate(words).astype(np.uint8),
        "symbols": np.array(list(number)),
        "heard": np.array(heard.hexdigest()),
    }
    if job.get("audio"):
        arrays |= {
            "audio": np.concatenate(sounds),
            "audio_lengths": np.array([len(sound) for sound in sounds]),
        }
    return arrays


def _read_all(job: Mapping) -> dict[str, np.ndarray]:
    """The arrays of a chunk of audio files; what cannot be read is named."""
    from lib.speech.readers import read

    frames, lengths, kept, reasons = [], [], [], []
    for index, path in enumerate(job["items"]):
        try:
            frames.append(
                features.extract_features(*read(path), job["stack"]).astype(np.float16)
            )
        except SpeechError as error:
            reasons.append(str(error))
            continue
        except ValueError as error:
            reasons.append(f"{Path(path).name}: {error}")
            continue
        lengths.append(len(frames[-1]))
        kept.append(index)
    width = features.MELS * job["stack"]
    return {
        "features": np.concatenate([np.zeros((0, width), np.float16), *frames]),
        "lengths": np.array(lengths, int),
        "kept": np.array(kept, int),
        "reasons": np.array(reasons, dtype=str),
    }


WORK = {"speech": _speak_all, "files": _read_all}


def work(path: str) -> None:
    """Do the job on standard input and write its arrays to a .npz file.

    An error leaves as one JSON line on standard output, for the process that waits.
    """
    job = json.load(sys.stdin)
    try:
        np.savez(path, **WORK[job["kind"]](job))
    except (SpeechError, ValueError, OSError) as error:
        name = next((name for name in KINDS if type(error).__name__ == name), "OSError")
        print(json.dumps({"kind": name, "text": str(error)}))
        raise SystemExit(3) from None


# -- in the process that waits --------------------------------------------------------


def name_of(job: Mapping) -> str:
    """The cached file of a job: a hash of all that it says."""
    text = json.dumps(job, sort_keys=True, ensure_ascii=False)
    return f"{FOLDER}/{hashlib.sha256(text.encode()).hexdigest()[:20]}.npz"


def _start(job: Mapping, path: Path, crew: Workers) -> None:
    """Run one job in a fresh process. Raises its error here."""
    words = ["-m", "lib.speech", "chunk", str(path)]
    status, said, complained = crew.ask(words, json.dumps(job))
    if not status:
        return
    try:
        error = json.loads(said.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last = (complained.strip().splitlines() or ["no message"])[-1]
        raise SpeechError(
            f"A process that makes a chunk ended with {status} ({last}); run again, "
            "finished chunks are kept."
        ) from None
    raise KINDS[error["kind"]](error["text"])


def make(
    jobs: Sequence[Mapping],
    workers: int | None = None,
    progress: Progress = None,
    what: str = "chunks",
) -> list[Path]:
    """Make all chunks that the cache does not hold; return their files in order.

    jobs: plain data with "kind", "items" and "stack"; workers: processes at a time
    (None: the cores, at most four); progress: True for a bar on stderr, or a function
    of (done, all). Raises the error of a chunk; what is finished stays. Killed and
    started again it goes on where it was.
    """
    crew = Workers(workers)

    def one(job: Mapping) -> Path:
        return cached(name_of(job), lambda path: _start(job, path, crew))

    tell = teller(len(jobs), what, "chunk", progress is True)
    if callable(progress):
        return crew.each(one, jobs, lambda done: progress(done, len(jobs)))
    return crew.each(one, jobs, tell)


def compare(sums: Mapping[str, str]) -> list[str]:
    """Note what chunks sound like, and warn of those that sounded otherwise before.

    sums: the checksum of espeak-ng's samples and events, by file name. The index lies
    in the cache and outlives its chunks. Returns the names that differ.
    """
    from filelock import FileLock

    path = cache_folder() / INDEX
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock")):
            known = _index(path)
            differ = [
                name for name in sums if known.get(name, sums[name]) != sums[name]
            ]
            if known.keys() < known.keys() | sums.keys() or differ:
                write_json(path, known | dict(sums))
    except OSError:  # a cache that is only readable
        return []
    if differ:
        warnings.warn(
            f"{len(differ)} of {len(sums)} chunks of speech sound different from the "
            "last time they were made: espeak-ng or the processor has changed.",
            stacklevel=3,
        )
    return differ


def _index(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one chunk. Raises CacheError where they cannot be read."""
    try:
        with path.open("rb") as handle:
            return dict(np.load(handle, allow_pickle=False))
    except Exception as error:
        raise CacheError(
            f"{path.name} cannot be read ({type(error).__name__}); delete it."
        ) from error


def refused(reasons: Sequence[str], total: int, tolerance: float, what: str) -> None:
    """Refuse a corpus of which too much is unusable.

    reasons: one sentence for each unusable utterance; total: of all; tolerance: the
    share that may be. Raises SpeechError with the first three reasons.
    """
    need(
        len(reasons) <= tolerance * total,
        f"{len(reasons)} of {total} utterances of {what} cannot be used, more than "
        f"{100 * tolerance:g} %: " + "; ".join(reasons[:3]) + ".",
        SpeechError,
    )
