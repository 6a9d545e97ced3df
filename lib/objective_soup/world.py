"""The speech of a soup: parallel languages, their words, and the batches of a step.

Every language says the same meanings. Recognition writes down the words that are
spoken, translation the English words of the same meaning; masked prediction reads the
audio alone. Test meanings are said in no other part of any language.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.kit.checkpoints import mixed
from lib.kit.checks import choice, count, need
from lib.speech.batches import Batch, padded
from lib.speech.corpus import Corpus
from lib.speech.grammar import LANGUAGES, ordered, parse
from lib.speech.recordings import corpus_of
from lib.speech.synthesis import (
    NARROW,
    Request,
    plan,
    shipped,
    split_speakers,
    synthesise,
)
from lib.speech.vocabulary import Vocabulary, normalised

USUAL = ("en", "de", "fr")
TARGET = "en"  # of all translations
END, IGNORED = 0, -100  # closes a translation; pads one
SNR = (5.0, 20.0)  # dB
DROPPED = ("number2", "colour2")  # slots that a bare object lacks
VOICES = {"unlabelled": 24, "labelled": 12, "test": 12}  # training, validation, test
PARTS = ("train", "pool", "validation", "test")


@dataclass(frozen=True)
class World:
    """The corpora of every language, by part, and the symbols that are written.

    train: with targets; pool: audio for the self-supervised objective; validation,
    test: with targets; each {language: corpus}. words: the symbols of recognition;
    english: those of translation; translated: languages that have translations.
    """

    train: Mapping[str, Corpus]
    pool: Mapping[str, Corpus]
    validation: Mapping[str, Corpus]
    test: Mapping[str, Corpus]
    words: Mapping[str, Vocabulary]
    english: Vocabulary
    translated: tuple[str, ...]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, in order."""
        return tuple(self.train)

    @property
    def objectives(self) -> tuple[str, ...]:
        """asr_<language> of all, st_<language> of the translated, ssl."""
        recognised = [f"asr_{language}" for language in self.languages]
        translated = [f"st_{language}" for language in self.translated]
        return (*recognised, *translated, "ssl")


# -- where it comes from --------------------------------------------------------------


def shipped_world(languages: Sequence[str] = USUAL) -> World:
    """The speech that comes with the collection: 80 training utterances a language.

    languages: some of en, de, fr, zh. 24 utterances validate, 40 test. Raises
    ValueError for an unknown or repeated language.
    """
    corpus = _of(languages, lambda wanted: shipped(wanted))
    numbers = {"unlabelled": 80, "labelled": 24, "test": 40}
    parts = {
        language: {
            split: corpus.select(n, language=language, split=split)
            for split, n in numbers.items()
        }
        for language in languages
    }
    return _assembled(parts, 80)


def spoken_world(
    languages: Sequence[str] = USUAL,
    labelled: int = 600,
    pool: int = 600,
    validation: int = 120,
    test: int = 120,
    seed: int = 0,
    width: int = 4,
    bare: bool = True,
) -> World:
    """Speech made for a long run: 24 voices train, 12 others validate, 12 others test.

    languages: some of en, de, fr, zh; labelled: utterances with targets in each; pool:
    of the audio, the labelled among them; validation, test; seed, width: of the
    meanings; bare: the object is a noun alone, 6 to 8 words, in place of 8 to 10. SNR 5
    to 20 dB. Raises ValueError for languages and numbers, SpeechError where there is no
    espeak-ng.
    """
    for name, number in (("labelled", labelled), ("test", test)):
        count(name, number)
    need(labelled <= pool, f"{labelled} are labelled of a pool of {pool}; widen it.")
    names = split_speakers()
    training = VOICES["unlabelled"]
    speakers = {
        "unlabelled": names["unlabelled"][:training],
        "labelled": names["unlabelled"][training : training + VOICES["labelled"]],
        "test": names["test"][: VOICES["test"]],
    }
    numbers = {"test": test, "labelled": validation, "unlabelled": pool}
    how = {"seed": seed, "width": width, "speakers": speakers}
    how["conditions"] = replace(NARROW, snr=SNR)

    def spoken(wanted: Sequence[str]) -> Corpus:
        more = {name: n + n // 4 + 20 for name, n in numbers.items()}
        asked = plan(wanted, **(more if bare else numbers), **how)
        chosen = different(map(shortened, asked), numbers) if bare else asked
        return synthesise(chosen, workers=1)

    corpus = _of(languages, spoken)
    parts = {
        language: {
            split: corpus.select(language=language, split=split) for split in speakers
        }
        for language in languages
    }
    return _assembled(parts, labelled)


def shortened(request: Request) -> Request:
    """The same request, its object a bare noun: "six black cats see dogs now"."""
    meaning = parse(request.text, request.language)

    def said(language: str) -> str:
        pairs = ordered(meaning, language)
        return " ".join(word for slot, word in pairs if slot not in DROPPED)

    return replace(request, text=said(request.language), translation=said(TARGET))


def different(requests: Iterable[Request], numbers: Mapping[str, int]) -> list[Request]:
    """The first requests of every language and split that say something new.

    numbers: how many of each split, those first whose meanings are held out from the
    others. A language that says the same as another chooses the same. Raises ValueError
    where there are too few.
    """
    groups: dict[str, dict[str, list[Request]]] = {}
    for one in requests:
        groups.setdefault(one.language, {}).setdefault(one.split, []).append(one)
    found: list[Request] = []
    for language, splits in groups.items():
        taken: set[str] = set()
        for split, number in numbers.items():
            row: list[Request] = []
            for one in splits.get(split, []):
                if len(row) < number and one.translation not in taken:
                    row.append(one)
                    taken.add(one.translation)
            need(
                len(row) == number,
                f"{number} {split} meanings were asked for in {language}, but only "
                f"{len(row)} are new; ask for fewer, or raise the width.",
            )
            found += row
    return found


def real_world(
    corpora: Sequence[str], labelled: float = 1.0, validation: float = 0.05
) -> World:
    """Recorded speech in several languages, written in characters.

    corpora: "language=corpus", e.g. "de=covost:/data/cv/de:/data/covost_v2.de_en.tsv:
    train+test:de", with a corpus as `lib.speech.recordings.corpus_of` takes it;
    labelled: the share of the training part that has targets; validation: the share of
    it that is set aside before. A language is translated where its utterances have
    translations. Raises ValueError for entries and shares, SpeechError for files.
    """
    pairs = [entry.partition("=") for entry in corpora]
    need(
        len(pairs) > 0 and all(name and where for name, _, where in pairs),
        f"The corpora are {', '.join(corpora) or 'none'}; give entries such as "
        "en=librispeech:/data/LibriSpeech:train-clean-100+test-clean.",
    )
    need(0 < labelled <= 1, f"labelled is {labelled}; give a share above 0, at most 1.")
    parts = {}
    for name, _, where in pairs:
        need(name not in parts, f"Two of the corpora are called {name}.")
        whole = corpus_of(where, labelled=validation)
        said = [normalised(text) for text in whole.column("translation")]
        column = np.array(said, dtype=object)
        whole = replace(whole, columns={**whole.columns, "translation": column})
        splits = ("unlabelled", "labelled", "test")
        parts[name] = {split: whole.select(split=split) for split in splits}
    return _assembled(parts, labelled, "characters")


def world_of(
    speech: str = "spoken",
    languages: Sequence[str] = USUAL,
    corpora: Sequence[str] = (),
    **sizes: float,
) -> World:
    """The world that a trial names.

    speech: "shipped", "spoken" or "real"; languages: of the first two; corpora: of the
    third; sizes: of `spoken_world` or `real_world`. Raises ValueError as these.
    """
    choice("speech", speech, ("shipped", "spoken", "real"))
    if speech == "real":
        return real_world(corpora, **sizes)
    need(not corpora, f'Corpora are named, but speech is {speech!r}; make it "real".')
    if speech == "shipped":
        need(not sizes, "The shipped speech has its own sizes; leave these out.")
        return shipped_world(languages)
    return spoken_world(languages, **sizes)


def _of(languages: Sequence[str], corpus) -> Corpus:
    languages = list(languages)
    need(len(languages) > 0, "No language is named; give at least one.")
    for language in languages:
        choice("A language", language, LANGUAGES)
    need(
        len(set(languages)) == len(languages),
        f"The languages are {', '.join(languages)}; name each once.",
    )
    return corpus(languages)


def _assembled(
    parts: Mapping[str, Mapping[str, Corpus]],
    labelled: float,
    units: str = "words",
) -> World:
    """The world of corpora by language and split; a share or number is labelled."""
    train, pool, validation, test, words = {}, {}, {}, {}, {}
    for language, splits in parts.items():
        texts = [t for corpus in splits.values() for t in corpus.column("text")]
        words[language] = Vocabulary.of(texts, units)
        own = {s: written(c, words[language]) for s, c in splits.items()}
        whole = own["unlabelled"]
        number = labelled if isinstance(labelled, int) else labelled * len(whole)
        train[language] = whole.take(range(max(1, round(number))))
        pool[language], test[language] = whole, own["test"]
        validation[language] = own["labelled"]
    said = {
        language: [
            t for corpus in splits.values() for t in corpus.column("translation")
        ]
        for language, splits in parts.items()
    }
    translated = tuple(n for n in parts if n != TARGET and all(said[n]))
    english = [t for language in translated for t in said[language]]
    vocabulary = Vocabulary.of(english, units)
    found = World(train, pool, validation, test, words, vocabulary, translated)
    if units == "words":
        check_meanings(found)
    return found


def written(corpus: Corpus, vocabulary: Vocabulary) -> Corpus:
    """The same speech with its texts in another vocabulary's symbols as targets.

    Alignments and the words of phones are given up. Raises ValueError for a symbol that
    the vocabulary lacks.
    """
    targets = [vocabulary.encode(text) for text in corpus.column("text")]
    sizes = np.array([len(target) for target in targets], np.int64)
    return replace(
        corpus,
        targets=np.concatenate(targets).astype(np.uint16),
        target_starts=np.cumsum(sizes) - sizes,
        target_lengths=sizes,
        vocabulary=vocabulary,
        alignment=None,
        words=None,
    )


def check_meanings(world: World) -> None:
    """Check that a test or validation meaning is said in no other part (O-24).

    A meaning is its English sentence. Raises ValueError with the sentence.
    """
    said = {
        part: {
            text
            for corpus in getattr(world, part).values()
            for text in corpus.column("translation")
        }
        for part in PARTS
    }
    for part, others in (("test", PARTS[:3]), ("validation", PARTS[:2])):
        for other in others:
            both = sorted(said[part] & said[other])
            need(
                not both,
                f"{both[:1]} is said in {part} and in {other}; hold out meanings, not "
                "recordings.",
            )


# -- batches --------------------------------------------------------------------------


class Examples(NamedTuple):
    """Utterances of one language with both of their targets.

    speech: padded, its targets are the words; english: (batch, words + 1), the
    translation, END behind it, IGNORED where padded; None where there is none.
    """

    speech: Batch
    english: Tensor | None

    def rows(self, chosen: slice) -> Examples:
        """Some of the utterances, padded as before."""
        speech = self.speech
        names = ("features", "lengths", "targets", "target_lengths", "indices")
        part = {name: getattr(speech, name)[chosen] for name in names}
        english = None if self.english is None else self.english[chosen]
        return Examples(replace(speech, **part), english)


class Audio(NamedTuple):
    """Speech alone: features (batch, frames, features), lengths (batch,)."""

    features: Tensor
    lengths: Tensor

    def rows(self, chosen: slice) -> Audio:
        """Some of the utterances, padded as before."""
        return Audio(self.features[chosen], self.lengths[chosen])


Batches = dict[str, Examples | Audio]  # by language, and "ssl"


def with_english(
    world: World, corpus: Corpus, language: str, speech: Batch
) -> Examples:
    """A padded batch of a corpus together with its translations."""
    if language not in world.translated:
        return Examples(speech, None)
    texts = corpus.column("translation")[speech.indices]
    said = [[*world.english.encode(text).tolist(), END] for text in texts]
    longest = max(map(len, said))
    rows = [row + [IGNORED] * (longest - len(row)) for row in said]
    return Examples(speech, torch.tensor(rows, device=speech.features.device))


def audio(
    pools: Sequence[tuple[Corpus, np.ndarray]], device: str | torch.device = "cpu"
) -> Audio:
    """Utterances of several corpora as one padded batch, without their texts."""
    rows = [
        torch.from_numpy(corpus[int(i)].features)
        for corpus, some in pools
        for i in some
    ]
    lengths = torch.tensor([len(row) for row in rows])
    x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return Audio(x.to(device), lengths.to(device))


class Order:
    """Endless batches of one size, from the step alone; what is left over rests.

    lengths: (utterances,) frames; size: utterances of a batch; seed; alike: batches
    hold utterances of like length, which saves padding, but then two halves of a batch
    are not independent. Raises ValueError for a size above the number of utterances.
    """

    def __init__(
        self, lengths: np.ndarray, size: int, seed: int, alike: bool = False
    ) -> None:
        count("The size of a batch", size)
        need(
            size <= len(lengths),
            f"A batch shall hold {size} utterances and there are {len(lengths)}; give "
            "more speech or a smaller batch.",
        )
        self.lengths, self.size, self.seed = np.asarray(lengths), size, seed
        self.alike, self.number = alike, len(lengths) // size
        self._current: tuple[int, np.ndarray] = (-1, np.zeros(0))

    def at(self, step: int) -> np.ndarray:
        """The indices of a step from 0."""
        epoch, place = divmod(step, self.number)
        if self._current[0] != epoch:
            self._current = epoch, self._drawn(epoch)
        return self._current[1][place]

    def _drawn(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths))[: self.number * self.size]
        if not self.alike:
            return order.reshape(self.number, self.size)
        near = self.lengths[order] * rng.uniform(0.9, 1.1, len(order))
        batches = order[np.argsort(near, kind="stable")]
        return rng.permutation(batches.reshape(self.number, self.size))


class Feed:
    """The batches of every step of a training, from (seed, step) alone.

    world; size: utterances of a language, and of its audio in the self-supervised
    batch; seed; device; alike: see `Order`. Raises ValueError as `Order`.
    """

    def __init__(
        self,
        world: World,
        size: int = 8,
        seed: int = 0,
        device: str | torch.device = "cpu",
        alike: bool = False,
    ) -> None:
        self.world, self.device = world, str(device)
        self.train, self.pool = (
            {
                language: Order(c.lengths, size, mixed(seed, place, number), alike)
                for number, (language, c) in enumerate(corpora.items())
            }
            for place, corpora in enumerate((world.train, world.pool))
        )

    def at(self, step: int, names: Sequence[str]) -> Batches:
        """The batches that some objectives need: {language: Examples, "ssl": Audio}."""
        wanted = {name.partition("_")[2] for name in names}
        found: Batches = {}
        for language, corpus in self.world.train.items():
            if language in wanted:
                speech = padded(corpus, self.train[language].at(step), self.device)
                found[language] = with_english(self.world, corpus, language, speech)
        if "ssl" in names:
            some = [(c, self.pool[n].at(step)) for n, c in self.world.pool.items()]
            found["ssl"] = audio(some, self.device)
        return found


def halves(batches: Batches) -> tuple[Batches, Batches]:
    """Two independent batches of half the size: every second utterance of each.

    Raises ValueError for a batch of one utterance.
    """
    for name, batch in batches.items():
        size = len(batch.speech) if isinstance(batch, Examples) else len(batch.lengths)
        need(size > 1, f"The batch of {name} holds one utterance; it has no halves.")
    even, odd = (
        {name: batch.rows(slice(k, None, 2)) for name, batch in batches.items()}
        for k in (0, 1)
    )
    return even, odd
