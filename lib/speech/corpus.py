"""A corpus of features with texts, speakers and, where known, the time of every phone.

Synthetic and real corpora are the same object, so that what comes after need not know.
All frames lie in one array, one utterance after the other; a selection shares it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lib.kit.checks import count, nearest, need
from lib.speech.features import HOP, MELS, RATE
from lib.speech.vocabulary import Vocabulary

COLUMNS = ("id", "text", "language", "speaker", "split", "translation")
FORMAT = 1  # of the file
STEPS = {16: None, 8: 1 / 24}  # bits of a stored feature, and the step of whole numbers


@dataclass(frozen=True)
class Utterance:
    """One utterance of a corpus.

    features: (frames, 40 * stack) float32; target: (symbols,) int64; alignment:
    (frames,) int64, the phone at each frame's centre and 0 for silence, or None; words:
    (symbols,) the word of `text.split()` that each symbol belongs to, or None.
    """

    id: str
    features: np.ndarray
    target: np.ndarray
    alignment: np.ndarray | None
    words: np.ndarray | None
    text: str
    language: str
    speaker: str
    split: str
    translation: str


@dataclass(frozen=True)
class Corpus:
    """Utterances: their frames, transcripts and, where known, alignment.

    features: (all frames, 40 * stack), perhaps on disk; starts, lengths: (utterances,)
    the first frame of each and how many; targets: (all symbols,); target_starts,
    target_lengths: (utterances,); vocabulary: of the targets; columns: of each of
    COLUMNS one string an utterance; alignment: (all frames,) or None; words: (all
    symbols,) or None; stack: 2 for 40 ms frames, 1 for 20 ms; info: how it was made.
    """

    features: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray
    target_starts: np.ndarray
    target_lengths: np.ndarray
    vocabulary: Vocabulary
    columns: Mapping[str, np.ndarray]
    alignment: np.ndarray | None = None
    words: np.ndarray | None = None
    stack: int = 2
    info: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        need(
            self.features.ndim == 2 and self.features.shape[1] == MELS * self.stack,
            f"The features have shape {self.features.shape}; with stack {self.stack} "
            f"give (frames, {MELS * self.stack}).",
        )
        lists = (self.lengths, self.target_starts, self.target_lengths)
        lists += tuple(self.columns.get(name, ()) for name in COLUMNS)
        need(
            all(len(other) == len(self.starts) for other in lists),
            f"The corpus has {len(self.starts)} utterances, but some of its lists have "
            "other lengths.",
        )

    # -- one utterance ------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Utterance]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Utterance:
        """One utterance. Raises IndexError outside."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"Utterance {index} of {len(self)} does not exist.")
        symbols = self._symbols(index)
        frames = slice(self.starts[index], self.starts[index] + self.lengths[index])
        align, words = self.alignment, self.words
        return Utterance(
            features=np.asarray(self.features[frames], np.float32),
            target=self.targets[symbols].astype(np.int64),
            alignment=None if align is None else align[frames].astype(np.int64),
            words=None if words is None else words[symbols].astype(np.int64),
            **{name: str(self.columns[name][index]) for name in COLUMNS},
        )

    def _symbols(self, index: int) -> slice:
        start = self.target_starts[index]
        return slice(start, start + self.target_lengths[index])

    def column(self, name: str) -> np.ndarray:
        """One string an utterance: (utterances,). Raises ValueError for its name."""
        need(
            name in COLUMNS,
            f"A corpus has no column {name!r}, but {', '.join(COLUMNS)}."
            f"{nearest(name, COLUMNS)}",
        )
        return self.columns[name]

    def all_features(self) -> np.ndarray:
        """The frames of all utterances in order: (frames, 40 * stack) float32."""
        return np.asarray(self.features[self._rows()], np.float32)

    def all_alignments(self) -> np.ndarray:
        """The phones at the same frames: (frames,) int64. Raises ValueError if none."""
        need(
            self.alignment is not None,
            "This corpus has no alignment: only synthetic speech knows its phones' "
            "times.",
        )
        return self.alignment[self._rows()].astype(np.int64)

    def _rows(self) -> np.ndarray | slice:
        return _ranges(self.starts, self.lengths)

    # -- selections ---------------------------------------------------------------

    def take(self, indices: Sequence[int] | np.ndarray) -> Corpus:
        """The utterances with some indices, in that order; frames are shared.

        indices: whole numbers, or one truth value an utterance. Raises IndexError.
        """
        indices = np.asarray(indices)
        if indices.dtype == bool:
            need(len(indices) == len(self), "Give one truth value an utterance.")
            indices = np.flatnonzero(indices)
        indices = indices.astype(np.int64)
        lists = ("starts", "lengths", "target_starts", "target_lengths")
        columns = {name: self.columns[name][indices] for name in COLUMNS}
        return replace(
            self,
            columns=columns,
            **{name: getattr(self, name)[indices] for name in lists},
        )

    def select(
        self, number: int | None = None, **wanted: str | Collection[str]
    ) -> Corpus:
        """The utterances whose columns have some values, in order.

        number: at most so many, from the first; wanted: e.g. language="en",
        split=("unlabelled", "labelled"), speaker=.... Raises ValueError for a column
        that does not exist and where nothing is left, naming the values there are.
        """
        chosen = np.ones(len(self), bool)
        for name, values in wanted.items():
            values = [values] if isinstance(values, str) else list(values)
            here = self.column(name)
            found = chosen & np.isin(here, values)
            need(
                bool(found.any()),
                f"No utterance has {name} {' or '.join(map(repr, values))}; there is "
                f"{', '.join(sorted(set(here[chosen])))[:300] or 'none left'}.",
            )
            chosen = found
        indices = np.flatnonzero(chosen)
        if number is not None:
            count("The number of utterances", number)
            need(
                number <= len(indices),
                f"{number} utterances were asked for, but only {len(indices)} fit.",
            )
        return self.take(indices[:number])

    def labelled(self, number: int, subset: int = 0) -> Corpus:
        """One of several disjoint labelled subsets of one language.

        number: of utterances; subset: from 0. The labelled speakers take turns. Raises
        ValueError for several languages or too few utterances.
        """
        count("The number of labelled utterances", number)
        count("The subset", subset, 0)
        pool = self.select(split="labelled")
        languages = sorted(set(pool.column("language")))
        need(
            len(languages) == 1,
            f"The corpus is labelled in {', '.join(languages)}; select one language.",
        )
        have = len(pool) // number
        need(
            subset < have,
            f"Subset {subset} of {number} labelled utterances was asked for, but there "
            f"are {len(pool)}, so {have} disjoint subsets.",
        )
        return pool.take(np.arange(subset * number, (subset + 1) * number))

    def with_stack(self, stack: int) -> Corpus:
        """The same frames as 20 ms frames of 40 values (stack 1) or as they are.

        The alignment is given up with the change. Raises ValueError from 1 to 2.
        """
        if stack == self.stack:
            return self
        need(stack == 1, f"The stack is {stack}; frames of 20 ms are not put together.")
        return replace(
            self,
            features=np.ascontiguousarray(self.features).reshape(-1, MELS),
            starts=2 * self.starts,
            lengths=2 * self.lengths,
            alignment=None,
            stack=1,
        )

    def with_vocabulary(self, vocabulary: Vocabulary) -> Corpus:
        """The same corpus with another vocabulary's numbers.

        Raises ValueError when it lacks a symbol that these utterances use.
        """
        used = self.used()
        need(
            vocabulary.units == self.vocabulary.units,
            f"The vocabulary is of {vocabulary.units}, the corpus of "
            f"{self.vocabulary.units}.",
        )
        table = np.zeros(len(self.vocabulary), np.uint16)
        table[used] = vocabulary.encode([self.vocabulary.symbols[n - 1] for n in used])
        align = self.alignment
        return replace(
            self,
            targets=table[self.targets],
            alignment=None if align is None else table[align],
            vocabulary=vocabulary,
        )

    def used(self) -> np.ndarray:
        """The numbers of the symbols that the utterances' targets use, sorted."""
        return np.unique(self.targets[_ranges(self.target_starts, self.target_lengths)])

    # -- what it knows of itself --------------------------------------------------

    @property
    def hours(self) -> float:
        """Hours of audio behind the frames."""
        return float(self.lengths.sum()) * 2 * HOP * self.stack / RATE / 3600

    def slack(self) -> np.ndarray:
        """Frames beyond what CTC needs, an utterance: (utterances,); below 0 none fits.

        CTC needs a frame a symbol and one between equal neighbours.
        """
        equal = np.zeros(len(self.targets) + 2, np.int64)
        equal[2:-1] = np.cumsum(self.targets[1:] == self.targets[:-1])
        last = self.target_starts + np.maximum(self.target_lengths, 1)
        repeated = equal[last] - equal[self.target_starts + 1]
        return self.lengths - self.target_lengths - repeated

    def lexicon(self) -> dict[str, list[tuple[str, ...]]]:
        """Every word with its pronunciations, the commonest first.

        Returns e.g. {"deux": [("d", "ø"), ("d", "ø", "z")]}: French binds words.
        Raises ValueError for a corpus whose phones are not known word by word.
        """
        need(
            self.words is not None,
            "This corpus has no phones of words: only synthetic speech has.",
        )
        found: dict[str, Counter] = {}
        for index in range(len(self)):
            symbols, words = self._symbols(index), self.columns["text"][index].split()
            phones = [self.vocabulary.symbols[n - 1] for n in self.targets[symbols]]
            spoken = [[] for _ in words]
            for word, phone in zip(self.words[symbols], phones):
                spoken[word].append(phone)
            for word, heard in zip(words, spoken):
                found.setdefault(word, Counter())[tuple(heard)] += 1
        return {
            word: [heard for heard, _ in sorted(c.items(), key=lambda p: (-p[1], p[0]))]
            for word, c in sorted(found.items())
        }

    def checksum(self) -> str:
        """SHA-256 of frames, transcripts, alignment and columns, in this order."""
        digest = hashlib.sha256()
        ranges = _ranges(self.target_starts, self.target_lengths)
        parts = [self.all_features(), self.lengths, self.targets[ranges]]
        if self.alignment is not None:
            parts.append(self.all_alignments())
        for part in parts:
            digest.update(np.ascontiguousarray(part).tobytes())
        for name in COLUMNS:
            digest.update("\n".join(self.columns[name]).encode())
        return digest.hexdigest()

    # -- files --------------------------------------------------------------------

    def save(self, path: str | Path, bits: int = 16) -> None:
        """Write one compressed .npz file; the same corpus gives the same bytes.

        path: ends in .npz; bits: 16 for float16 features, 8 for whole numbers of steps
        of 1/24 standard deviation (half the size, an error of 0.012). Raises
        ValueError.
        """
        need(bits in STEPS, f"bits is {bits}; give 16 or 8.")
        need(str(path).endswith(".npz"), f"{Path(path).name} does not end in .npz.")
        frames = self.all_features()
        if bits == 8:
            frames = np.clip(np.rint(frames / STEPS[8]), -127, 127).astype(np.int8)
        symbols = _ranges(self.target_starts, self.target_lengths)
        about = {
            "format": FORMAT,
            "stack": self.stack,
            "units": self.vocabulary.units,
            "symbols": self.vocabulary.symbols,
            "columns": {name: self.columns[name].tolist() for name in COLUMNS},
            "info": dict(self.info),
        }
        text = json.dumps(about, ensure_ascii=False, sort_keys=True).encode()
        arrays = {
            "about": np.frombuffer(text, np.uint8),
            "features": frames if bits == 8 else frames.astype(np.float16),
            "lengths": self.lengths.astype(np.int32),
            "targets": self.targets[symbols].astype(np.uint16),
            "target_lengths": self.target_lengths.astype(np.int32),
        }
        if self.alignment is not None:
            arrays["alignment"] = self.all_alignments().astype(np.uint16)
        if self.words is not None:
            arrays["words"] = self.words[symbols].astype(np.uint8)
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Corpus:
        """Read a file that `save` wrote; features become float16.

        Raises ValueError for a file that cannot be read or is of another format.
        """
        try:
            with open(path, "rb") as handle:  # numpy leaves it open on an error
                arrays = dict(np.load(handle, allow_pickle=False))
            about = json.loads(arrays.pop("about").tobytes())
            found = about["format"]
        except Exception as error:  # zip, numpy and json raise many kinds
            raise ValueError(
                f"{Path(path).name} cannot be read as a corpus "
                f"({type(error).__name__}); build or copy it again."
            ) from None
        need(
            found == FORMAT,
            f"{Path(path).name} has format {found}; this code reads {FORMAT}.",
        )
        frames = arrays.pop("features")
        if frames.dtype == np.int8:
            frames = (frames * np.float32(STEPS[8])).astype(np.float16)
        return compact(
            frames,
            columns=about["columns"],
            vocabulary=Vocabulary(tuple(about["symbols"]), about["units"]),
            stack=about["stack"],
            info=about["info"],
            **arrays,
        )


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers starts[0], ..., starts[0] + lengths[0] - 1, starts[1], ..."""
    if not len(starts):
        return np.zeros(0, np.int64)
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(int(np.sum(lengths)))


def compact(
    features: np.ndarray,
    lengths: np.ndarray,
    targets: np.ndarray,
    target_lengths: np.ndarray,
    vocabulary: Vocabulary,
    columns: Mapping[str, Iterable[str]],
    **rest,
) -> Corpus:
    """A corpus whose utterances lie one behind the other, in order.

    Arguments as of `Corpus`; columns that are missing become empty strings.
    """
    lengths = np.asarray(lengths, np.int64)
    target_lengths = np.asarray(target_lengths, np.int64)
    table = {
        name: np.array(list(columns.get(name, [""] * len(lengths))), dtype=object)
        for name in COLUMNS
    }
    return Corpus(
        features=features,
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        targets=targets,
        target_starts=np.cumsum(target_lengths) - target_lengths,
        target_lengths=target_lengths,
        vocabulary=vocabulary,
        columns=table,
        **rest,
    )


def joined(corpora: Sequence[Corpus]) -> Corpus:
    """Several corpora behind one another, in the first one's vocabulary.

    Alignments and words stay when all have them. Raises ValueError for none, other
    stacks, other units, or a symbol that the first vocabulary lacks.
    """
    need(len(corpora) > 0, "No corpora were given to join.")
    first = corpora[0]
    need(
        all(corpus.stack == first.stack for corpus in corpora),
        "The corpora have frames of 20 and of 40 ms; give one kind.",
    )
    same = [corpus.with_vocabulary(first.vocabulary) for corpus in corpora]
    symbols = [_ranges(c.target_starts, c.target_lengths) for c in same]
    has_times = all(corpus.alignment is not None for corpus in same)
    has_words = all(corpus.words is not None for corpus in same)
    return compact(
        np.concatenate([c.features[c._rows()] for c in same]),
        lengths=np.concatenate([c.lengths for c in same]),
        targets=np.concatenate([c.targets[s] for c, s in zip(same, symbols)]),
        target_lengths=np.concatenate([c.target_lengths for c in same]),
        vocabulary=first.vocabulary,
        columns={n: np.concatenate([c.columns[n] for c in same]) for n in COLUMNS},
        alignment=(
            np.concatenate([c.alignment[c._rows()] for c in same])
            if has_times
            else None
        ),
        words=(
            np.concatenate([c.words[s] for c, s in zip(same, symbols)])
            if has_words
            else None
        ),
        stack=first.stack,
        info={"joined": [dict(corpus.info) for corpus in corpora]},
    )


def homophones(lexicon: Mapping[str, Sequence[tuple]]) -> dict[str, str]:
    """Each word with the first word of the lexicon that sounds the same.

    lexicon: of `Corpus.lexicon`. A word error rate cannot tell such words apart (in
    Mandarin 他 and 她): replace both sides by this before counting.
    """
    first: dict[tuple, str] = {}
    return {
        word: first.setdefault(tuple(heard[0]), word) for word, heard in lexicon.items()
    }
