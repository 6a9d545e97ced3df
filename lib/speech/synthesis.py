"""The synthetic corpus: who says what, how, in which noise; and the shipped part of it.

`plan` writes down every utterance, `synthesise` speaks the plan. Utterance i of a
language and split is the same whatever else is asked for, so that the shipped file is
the beginning of every larger corpus with its seed. Test meanings are drawn first and
are the same in all languages; test speakers speak nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from lib.kit import cache
from lib.kit.checks import choice, count, need
from lib.kit.manifest import DATA, enter
from lib.speech import chunks
from lib.speech.corpus import Corpus, compact, joined
from lib.speech.espeak import SPEAKERS, version
from lib.speech.features import RATE
from lib.speech.grammar import LANGUAGES, draw_meanings, known, sentence
from lib.speech.vocabulary import Vocabulary, phone_vocabulary

VERSION = 1  # of the recipe: raise it when the same plan gives other bytes
CHUNK = 100  # utterances of one fresh process
SPLITS = ("test", "labelled", "unlabelled")
LABELLED = ("m3", "f2")
TEST_SPEAKERS = 20
RESERVED = {"test": 400, "labelled": 400}  # meanings set aside before any other
TOLERANCE = 0.01  # the share of utterances that may be unusable
PARALLEL_SPEAKERS = ("", "m1", "m3", "m7", "f1", "f2", "f4", "f5")


@dataclass(frozen=True)
class Conditions:
    """How an utterance may sound: ranges that are drawn from uniformly.

    rate: words per minute; pitch: espeak-ng's 0 to 99; tilt: second tap of [1, tilt];
    colour: pole of the noise, 0 white; snr: dB over the utterance.
    """

    rate: tuple[int, int] = (140, 210)
    pitch: tuple[int, int] = (20, 80)
    tilt: tuple[float, float] = (-0.5, 0.5)
    colour: tuple[float, float] = (0.0, 0.95)
    snr: tuple[float, float] = (10.0, 30.0)


# For many objectives on one encoder: eight voices, a narrow pitch, one kind of noise.
NARROW = Conditions((175, 235), (35, 65), (0.0, 0.0), (0.0, 0.0), (20.0, 20.0))


@dataclass(frozen=True)
class Request:
    """One utterance to make: what is said, by whom, how, and the noise around it."""

    id: str
    text: str
    language: str
    split: str
    translation: str
    speaker: str
    rate: int
    pitch: int
    tilt: float
    colour: float
    snr: float
    noise_seed: int


def split_speakers() -> dict[str, tuple[str, ...]]:
    """The speakers of each split: 66 in training, two of them labelled, 20 in test.

    Returns {"test": 20, "labelled": LABELLED, "unlabelled": 66 names}, by a shuffle
    with a fixed seed that leaves the labelled speakers on the training side.
    """
    others = [name for name in SPEAKERS if name not in LABELLED]
    order = np.random.default_rng(20250915).permutation(len(others))
    shuffled = [others[i] for i in order]
    test = tuple(sorted(shuffled[:TEST_SPEAKERS]))
    training = tuple(sorted((*shuffled[TEST_SPEAKERS:], *LABELLED)))
    return {"test": test, "labelled": LABELLED, "unlabelled": training}


def _meanings(split: str, number: int, width: int, seed: int) -> list[tuple[int, ...]]:
    """The first meanings of a split: test before labelled before unlabelled."""
    taken: list[tuple[int, ...]] = []
    for index, name in enumerate(SPLITS):
        need(
            name != split or number <= RESERVED.get(name, number),
            f"{number} {split} utterances were asked for; a language has "
            f"{RESERVED.get(name)}.",
        )
        asked = number if name == split else RESERVED.get(name, 0)
        drawn = draw_meanings(asked, width, (seed, width, index), taken)
        if name == split:
            return drawn
        taken += drawn
    raise AssertionError(split)


def _draw(rng: np.random.Generator, span: tuple, whole: bool = False) -> float | int:
    low, high = span
    return int(rng.integers(low, high + 1)) if whole else float(rng.uniform(low, high))


def plan(
    languages: str | Sequence[str] = "en",
    unlabelled: int = 2000,
    labelled: int = 40,
    test: int = 150,
    seed: int = 0,
    width: int = 4,
    conditions: Conditions | None = None,
    speakers: Mapping[str, Sequence[str]] | None = None,
) -> list[Request]:
    """Every utterance of a corpus, language by language, split by split.

    languages: one or some of en, de, fr, zh, who say the same meanings; unlabelled,
    labelled, test: utterances of each language; seed, width: of the meanings;
    conditions: ranges of rate, pitch, tilt and noise; speakers: of each split (None:
    `split_speakers`). Labelled and test speakers take turns, the others are drawn.
    Raises ValueError for an unknown language, too many utterances, or a test speaker
    who speaks in training too.
    """
    languages = (languages,) if isinstance(languages, str) else tuple(languages)
    for language in languages:
        known(language)
    numbers = {"test": test, "labelled": labelled, "unlabelled": unlabelled}
    speakers = dict(split_speakers() if speakers is None else speakers)
    need(set(speakers) == set(SPLITS), f"Give speakers for {', '.join(SPLITS)}.")
    both = set(speakers["test"]) & {*speakers["labelled"], *speakers["unlabelled"]}
    need(
        not both,
        f"{', '.join(sorted(both))} would speak in test and in training; give other "
        "test speakers.",
    )
    for name, number in numbers.items():
        count(f"The number of {name} utterances", number, 0)
        need(number == 0 or len(speakers[name]) > 0, f"No one speaks the {name} part.")
    meanings = {name: _meanings(name, n, width, seed) for name, n in numbers.items()}
    return [
        _request(language, name, i, meaning, seed, conditions, speakers[name])
        for language in languages
        for name in SPLITS
        for i, meaning in enumerate(meanings[name])
    ]


def _request(language, split, i, meaning, seed, conditions, speakers) -> Request:
    """Utterance i of one language and split."""
    ranges = conditions or Conditions()
    place = (LANGUAGES.index(language), SPLITS.index(split), i)
    rng = np.random.default_rng([seed, *place])
    turn = int(rng.integers(len(speakers))) if split == "unlabelled" else i
    return Request(
        id=f"{language}-{split}-{i:05d}",
        text=sentence(meaning, language),
        language=language,
        split=split,
        translation=sentence(meaning, "en"),
        speaker=speakers[turn % len(speakers)],
        rate=_draw(rng, ranges.rate, whole=True),
        pitch=_draw(rng, ranges.pitch, whole=True),
        tilt=_draw(rng, ranges.tilt),
        colour=_draw(rng, ranges.colour),
        snr=_draw(rng, ranges.snr),
        noise_seed=int(rng.integers(2**31)),
    )


def _jobs(requests: Sequence[Request], stack: int, audio: bool) -> list[dict]:
    """Chunks of a plan: up to 100 of one language and split, in order."""
    groups: dict[tuple[str, str], list[Request]] = {}
    for request in requests:
        groups.setdefault((request.language, request.split), []).append(request)
    about = {"kind": "speech", "recipe": VERSION, "stack": stack, "audio": audio}
    about["espeak"] = version()
    return [
        about | {"items": [asdict(request) for request in group[at : at + CHUNK]]}
        for group in groups.values()
        for at in range(0, len(group), CHUNK)
    ]


def synthesise(
    requests: Sequence[Request],
    stack: int = 2,
    workers: int | None = None,
    progress: chunks.Progress = None,
    vocabulary: Vocabulary | None = None,
) -> Corpus:
    """Speak a plan: features, transcripts and the phone of every frame.

    requests: of `plan`; stack: 2 (40 ms) or 1 (20 ms); workers: processes (None: the
    cores, at most four); progress: True for a bar, or a function of (done, all chunks);
    vocabulary: None for `phone_vocabulary()`. Any number of workers gives the same
    corpus; finished chunks come from the cache. Returns it grouped by language and
    split. Raises SpeechError where there is no espeak-ng or over 1 % of the utterances
    have too few frames for CTC, ValueError for a bad request or an unknown phone.
    """
    need(len(requests) > 0, "The plan is empty; ask for at least one utterance.")
    jobs = _jobs(requests, stack, audio=False)
    paths = chunks.make(jobs, workers, progress, "speech")
    parts = [chunks.load(path) for path in paths]
    chunks.compare({path.name: str(part["heard"]) for path, part in zip(paths, parts)})
    vocabulary = vocabulary or phone_vocabulary()
    corpora = [_part(job, part, vocabulary) for job, part in zip(jobs, parts)]
    sums = [str(part["heard"])[:12] for part in parts]
    info = {"espeak": version(), "recipe": VERSION, "heard": sums}
    return fitting(replace(joined(corpora), info=info))


def _part(job: Mapping, part: Mapping[str, np.ndarray], vocabulary) -> Corpus:
    """The corpus of one chunk, its phones numbered by the vocabulary."""
    symbols = [str(symbol) for symbol in part["symbols"]]
    table = np.concatenate([[0], vocabulary.encode(symbols[1:])]).astype(np.uint16)
    names = ("id", "text", "language", "speaker", "split", "translation")
    return compact(
        part["features"],
        lengths=part["lengths"],
        targets=table[part["targets"]],
        target_lengths=part["target_lengths"],
        vocabulary=vocabulary,
        columns={n: [item[n] for item in job["items"]] for n in names},
        alignment=table[part["alignment"]],
        words=part["words"],
        stack=job["stack"],
    )


def fitting(corpus: Corpus, tolerance: float = TOLERANCE) -> Corpus:
    """The utterances whose frames suffice for CTC; refused if too few do.

    tolerance: the share that may be left out. Raises SpeechError beyond it, with the
    numbers of the first.
    """
    slack = corpus.slack()
    reasons = [
        f"{corpus.columns['id'][i]} has {corpus.lengths[i]} frames, and CTC needs "
        f"{corpus.lengths[i] - slack[i]} for its {corpus.target_lengths[i]} symbols"
        for i in np.flatnonzero(slack < 0)
    ]
    chunks.refused(reasons, len(corpus), tolerance, "the corpus")
    return corpus.take(slack >= 0) if reasons else corpus


# -- what data/ ships -----------------------------------------------------------------

SHIPPED = "speech.npz"
CLIPS = "speech"  # the folder of the audio
CLIP_MEANING = (4, 0, 0, 0, 1, 3, 1, 2)  # she says that two black cats seek ...
LOUD, FAINT = 30.0, 10.0  # dB of speech above noise


def shipped_plan() -> list[Request]:
    """What the shipped file holds: English to pre-train on, all four to compare."""
    english = plan("en", unlabelled=360, labelled=40, test=80)
    return english + plan(LANGUAGES[1:], unlabelled=80, labelled=24, test=40)


def clip_plan() -> list[Request]:
    """The utterances that ship as audio too, all of one meaning.

    English by both labelled speakers in little and in much noise, the other languages
    by the first in little and by the second in much.
    """
    ways = [(LABELLED[0], LOUD), (LABELLED[1], FAINT)]
    crossed = [(LABELLED[0], FAINT), (LABELLED[1], LOUD)]
    return [
        Request(
            id=f"{language}-{speaker}-{int(snr)}dB",
            text=sentence(CLIP_MEANING, language),
            language=language,
            split="clip",
            translation=sentence(CLIP_MEANING, "en"),
            speaker=speaker,
            rate=165,
            pitch=50,
            tilt=0.0,
            colour=0.5,
            snr=snr,
            noise_seed=LANGUAGES.index(language),
        )
        for language in LANGUAGES
        for speaker, snr in ways + (crossed if language == "en" else [])
    ]


def shipped(language: str | Sequence[str] | None = None) -> Corpus:
    """The corpus that comes with the collection, or some of its languages.

    Splits "unlabelled", "labelled", "test" and "clip" (one meaning, whose audio `clip`
    gives). Raises ValueError for an unknown language, CacheError for a damaged file.
    """
    # The name stands here in full: the hash of a result finds its data by it.
    corpus = Corpus.load(cache.shipped("speech.npz"))
    if language is None:
        return corpus
    languages = (language,) if isinstance(language, str) else tuple(language)
    for name in languages:
        known(name)
    return corpus.select(language=languages)


def clip(name: str) -> tuple[np.ndarray, int]:
    """One shipped utterance as audio.

    name: its id, e.g. "en-m3-30dB". Returns samples (samples,) float32 and the rate.
    Raises ValueError for an unknown name, CacheError for a damaged file.
    """
    choice("The clip", name, [request.id for request in clip_plan()])
    from lib.speech.readers import read

    return read(cache.shipped(f"{CLIPS}/{name}.flac"))


def spoken_audio(
    requests: Sequence[Request], workers: int | None = None
) -> list[np.ndarray]:
    """The sound of a few utterances, to listen to: one (samples,) float32 each, 16 kHz.

    Half as loud as what the features are made of, which leaves room for the noise.
    requests: of `plan`, of one language and split, from its first utterance on if they
    shall sound exactly as in the corpus. Errors as of `synthesise`.
    """
    sounds: list[np.ndarray] = []
    for path in chunks.make(_jobs(requests, 2, audio=True), workers):
        part = chunks.load(path)
        ends = np.cumsum(part["audio_lengths"])
        sounds += np.split(part["audio"].astype(np.float32) / 32768, ends[:-1])
    return sounds


def build_shipped(folder: Path = DATA) -> None:
    """Make the shipped corpus and its audio again, and enter them in the manifest.

    folder: data/, or another that holds a manifest.json. Prints what it wrote, and says
    so when espeak-ng sounds different from the file that was there. Errors as of
    `synthesise`.
    """
    import soundfile

    before = _heard(folder / SHIPPED)
    (folder / CLIPS).mkdir(exist_ok=True)
    clips = {}
    for request, sound in zip(clip_plan(), spoken_audio(clip_plan())):
        name = f"{CLIPS}/{request.id}.flac"
        soundfile.write(folder / name, sound, RATE, subtype="PCM_16")
        clips[name] = cache.checksum(folder / name)
    corpus = joined([synthesise(shipped_plan()), synthesise(clip_plan())])
    first, second = corpus.info["joined"]
    heard = first["heard"] + second["heard"]
    if before not in (None, heard):
        print("espeak-ng sounds different here from the file that was shipped.")
    # The checksums of the audio stand inside, so that one checksum covers all.
    corpus = replace(corpus, info=first | {"heard": heard, "clips": clips})
    corpus.save(folder / SHIPPED, bits=8)
    source = f"python -m lib.speech build (espeak-ng {version()})"
    enter(folder, [SHIPPED, *clips], source)


def _heard(path: Path) -> list[str] | None:
    try:
        return list(Corpus.load(path).info["heard"])
    except (ValueError, KeyError):
        return None
