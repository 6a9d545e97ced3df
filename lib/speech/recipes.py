"""From recordings to a recogniser: pre-training, fine-tuning, transcription.

`pretrained` learns an encoder from audio alone, `recogniser` puts CTC on it and learns
from texts, `transcribed` writes what it hears, `error_rates` compares. Each takes a
`Corpus` (see `recordings`); a training that was killed goes on from its checkpoint to
the same bits when the same function is called again. `python -m lib.speech` puts these
together for the command line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.codebooks import KMeans, ProjectionQuantizer, RandomProjection, usage
from lib.kit import parallel
from lib.kit.checks import choice, count, need
from lib.speech.batches import Batch, Stream, in_order, padded
from lib.speech.conformer import Conformer, Recogniser, without_dropout
from lib.speech.corpus import Corpus
from lib.speech.ctc import Lexicon
from lib.speech.masking import generator, seeded
from lib.speech.pretraining import Loss, Predictor, Recipe, train
from lib.speech.recognition import (
    FINE_TUNE,
    SCRATCH,
    ErrorRate,
    error_rate,
    fine_tune,
    recognise,
)
from lib.speech.trained import Trained, digest, load
from lib.speech.vocabulary import normalised

LABELS = ("best_rq", "kmeans")
SAMPLE = 100_000  # frames that k-means sees
DECODED = 4000  # frames of a padded batch that is decoded
PIECE = 750  # frames of 40 ms: long recordings are cut into pieces of at most 30 s
LONGEST = 3000  # frames of 40 ms: 2 minutes, of one with a text
LOOKS = 5  # at what is held out, in a run
FOREIGN = 0.1  # the share of letters that a recogniser may not know
UNSPACED = ("\u3040", "\u9fff")  # scripts without blanks have no word error rate


# -- what a run is --------------------------------------------------------------------


def device_of(name: str = "auto") -> torch.device:
    """The torch device: "auto" takes CUDA if there is one, else the CPU.

    Raises ValueError for one that cannot be used.
    """
    from lib.kit.start import device

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return device(name)
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def fingerprint(corpus: Corpus) -> str:
    """A short name of a corpus, by its utterances, texts and first frames."""
    found = hashlib.sha256(repr(corpus.vocabulary).encode())
    for values in (corpus.lengths, corpus.target_lengths):
        found.update(np.asarray(values, np.int64).tobytes())
    for name in ("id", "text"):
        found.update("\n".join(corpus.column(name)).encode())
    found.update(np.ascontiguousarray(corpus.features[corpus.starts]).tobytes())
    return f"{len(corpus)} utterances, {found.hexdigest()[:12]}"


def checkpoint_of(path: str | Path) -> Path:
    """Where the run that will write a model file keeps its checkpoint."""
    return Path(path).with_name(f"{Path(path).name}.checkpoint")


def finished(path: str | Path | None, run: dict[str, Any]) -> Trained | None:
    """The model that a run has written already, None where it has not.

    path: of the model file; run: what makes it this run. Raises ValueError for the
    file of another run, which is not written over.
    """
    if path is None or not Path(path).exists():
        return None
    found = load(path)
    other = [key for key in run if found.run.get(key) != run[key]]
    need(
        not other,
        f"{Path(path).name} is there already, from another run: "
        + ", ".join(f"{k} was {found.run.get(k)}, is {run[k]}" for k in other)
        + ". Give another name, or delete it.",
    )
    return found


@dataclass(frozen=True)
class Run:
    """How a training runs; the same gives the same bits, if interrupted too.

    steps: of the optimiser; frames: of a padded batch; seed: of all draws; device:
    "auto" or a torch device; path: of the model file, whose checkpoint lies beside it
    (None: neither); every: steps between checkpoints; watch: a corpus held out; tell:
    called with a sentence on it a few times; bar: show progress, loss and time left.
    """

    steps: int
    frames: int = 1000
    seed: int = 0
    device: str = "auto"
    path: str | Path | None = None
    every: int = 50
    watch: Corpus | None = None
    tell: Callable[[str], None] | None = None
    bar: bool = False

    def key(self, corpus: Corpus) -> dict[str, Any]:
        """What makes this run this run: of a checkpoint and of a model file."""
        named = {name: getattr(self, name) for name in ("steps", "frames", "seed")}
        return named | {"corpus": fingerprint(corpus)}

    def batches(self, corpus: Corpus) -> Callable[[int], Batch]:
        """The batch of a step, of several processes each its own, on the device."""
        stream = Stream(corpus.lengths, self.frames, self.seed)
        place = str(device_of(self.device))
        return lambda step: padded(corpus, stream.at(parallel.part(step)), place)

    def options(self, key: dict[str, Any], look: Callable[[], str]) -> dict[str, Any]:
        """Arguments of `pretraining.train`; look: says how it stands."""
        every = max(1, self.steps // LOOKS)

        def after(step: int) -> None:
            due = step % every == 0 or step == self.steps
            if self.tell and self.watch is not None and due:
                self.tell(f"step {step}: {look()}")

        first, named = parallel.first(), {"seed": self.seed, "every": self.every}
        path = checkpoint_of(self.path) if self.path and first else None
        named |= {"path": path, "settings": key, "bar": self.bar and first}
        return named | {"after": after if first else None}

    def written(self, made: Trained) -> Trained:
        """The model on the CPU, saved if it has a path; its checkpoint is dropped."""
        made.to("cpu").model.eval()
        if self.path is not None and parallel.first():
            made.save(self.path)
            checkpoint_of(self.path).unlink(missing_ok=True)
        return made


PRETRAIN, FINETUNE = Run(steps=900), Run(steps=600)


def pieces(corpus: Corpus, longest: int = PIECE) -> tuple[Corpus, np.ndarray]:
    """The same frames with long recordings cut, so that attention stays affordable.

    longest: frames of 40 ms that a piece may have. Transcripts and alignments stay
    behind. Returns the pieces, and of each the utterance it is from. Raises ValueError.
    """
    count("longest", longest)
    numbers = -(-corpus.lengths // (longest * (2 // corpus.stack)))
    which = np.repeat(np.arange(len(corpus)), numbers)
    size = -(-corpus.lengths // numbers)[which]
    place = np.arange(len(which)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    cut, none = corpus.take(which), np.zeros(len(which), np.int64)
    cut = replace(
        cut,
        starts=cut.starts + place * size,
        lengths=np.minimum(cut.lengths - place * size, size),
        target_starts=none,
        target_lengths=none,
        alignment=None,
        words=None,
    )
    return cut, which


# -- pre-training ---------------------------------------------------------------------


def quantizer_of(
    corpus: Corpus, labels: str, V: int = 64, seed: int = 0
) -> ProjectionQuantizer:
    """Where the labels come from: a random projection, or k-means of the frames.

    corpus; labels: "best_rq" or "kmeans"; V: codes; seed. Returns a module that maps
    frames (..., features) to codes (...). Raises ValueError for another word, or too
    few frames for V codes.
    """
    choice("labels", labels, LABELS)
    width = corpus.features.shape[1]
    if labels == "best_rq":
        return RandomProjection(width, V=V, seed=seed)
    order = np.random.default_rng(seed).permutation(len(corpus))
    enough = int((np.cumsum(corpus.lengths[order]) < SAMPLE).sum()) + 1
    some = torch.from_numpy(corpus.take(order[:enough]).all_features())
    codes = KMeans(V, seed=seed).fit(some).codes
    # The nearest code in Euclidean distance, as a module, so that a checkpoint has it.
    return ProjectionQuantizer(torch.eye(width), codes, "l2")


def pretrained(
    corpus: Corpus,
    labels: str = "best_rq",
    how: Run = PRETRAIN,
    *,
    V: int = 64,
    sizes: dict[str, Any] | None = None,
) -> Trained:
    """Pre-train an encoder by predicting the labels of masked frames.

    corpus: recordings, transcripts unused; labels, V: see `quantizer_of`; how: it runs;
    sizes: other arguments of `Conformer`. Raises ValueError as `quantizer_of`,
    `finished` and `train` do. Source: 2202.01855, 2106.07447.
    """
    corpus = pieces(corpus)[0]
    sizes = {"features": corpus.features.shape[1]} | (sizes or {})
    key = how.key(corpus) | {"labels": labels, "codes": V, "sizes": sizes}
    if done := finished(how.path, key):
        return done
    with seeded(how.seed, "weights"):
        model = Predictor(Conformer(**sizes), {"labels": V})
    model.add_module("quantizer", quantizer_of(corpus, labels, V, how.seed))
    model.to(device_of(how.device))
    history = train(
        model,
        {"masked": Loss(lambda batch, g: masked_loss(model, batch, g))},
        how.batches(corpus),
        Recipe(steps=how.steps),
        **how.options(key, lambda: watched_loss(model, how.watch, how.frames)),
    )
    return how.written(Trained(model.encoder, sizes, run=key, history=history))


def masked_loss(model: Predictor, batch: Batch, g: torch.Generator) -> torch.Tensor:
    """Cross-entropy of the masked frames' labels, which are those of the clean ones."""
    masked = model(batch.features, batch.lengths, g)
    return model.loss(masked, model.quantizer(batch.features), "labels")


@torch.no_grad()
def watched_loss(model: Predictor, corpus: Corpus, frames: int = 1000) -> str:
    """A sentence on the masked loss of held-out speech, with masks of its own."""
    place, V = next(model.parameters()).device, len(model.quantizer.C)
    losses, codes, sizes = [], [], []
    with without_dropout(model):
        for number, batch in enumerate(in_order(pieces(corpus)[0], frames, str(place))):
            g = generator(number, "watch")
            losses.append(float(masked_loss(model, batch, g)) * len(batch))
            sizes.append(len(batch))
            rows = zip(model.quantizer(batch.features), batch.lengths.tolist())
            codes += [row[:length] for row, length in rows]
    use = usage(torch.cat(codes), V)
    return (
        f"held-out loss {sum(losses) / sum(sizes):.3f}; {use.used} of {V} codes in use "
        f"(perplexity {use.perplexity:.0f})"
    )


# -- fine-tuning ----------------------------------------------------------------------


def recogniser(
    corpus: Corpus,
    start: Trained | None = None,
    how: Run = FINETUNE,
    *,
    sizes: dict[str, Any] | None = None,
) -> Trained:
    """Train a CTC recogniser on recordings with texts.

    corpus: with transcripts; start: a model whose encoder to begin with, by FINE_TUNE;
    None to learn from nothing, by SCRATCH, with an encoder of other `sizes` if given;
    how: it runs. Raises ValueError as `check_texts`, `finished` and `train` do.
    """
    check_texts(corpus, start)
    tuning = FINE_TUNE if start else SCRATCH
    sizes = {"features": corpus.features.shape[1]} | (sizes or {})
    sizes = dict(start.sizes) if start else sizes
    key = how.key(corpus) | {"units": corpus.vocabulary.units, "sizes": sizes}
    key |= {"from": digest(start.encoder) if start else "nothing"}
    if done := finished(how.path, key):
        return done
    with seeded(how.seed, "weights"):
        model = Recogniser(Conformer(**sizes), len(corpus.vocabulary) - 1)
    if start:
        model.encoder.load_state_dict(start.encoder.state_dict())
    made = Trained(model, sizes, corpus.vocabulary, lexicon(corpus), key)
    made.to(device_of(how.device))
    history = fine_tune(
        model,
        how.batches(corpus),
        replace(tuning, recipe=replace(tuning.recipe, steps=how.steps)),
        **how.options(key, lambda: watched_errors(made, how.watch)),
    )
    return how.written(replace(made, history=history))


def check_texts(corpus: Corpus, start: Trained | None = None) -> None:
    """Check that texts fit their frames, and the frames the encoder they are for.

    Raises ValueError for another stack than the encoder's, an empty text, one with too
    few frames, or a recording of over 2 minutes.
    """
    ids, slack, most = (
        corpus.column("id"),
        corpus.slack(),
        LONGEST * (2 // corpus.stack),
    )
    if start is not None:
        need(
            start.stack == corpus.stack,
            f"The encoder reads frames of {20 * start.stack} ms and the corpus has "
            f"{20 * corpus.stack} ms; prepare it with stack={start.stack}.",
        )
    empty, tight = (np.flatnonzero(x) for x in (corpus.target_lengths == 0, slack < 0))
    long = np.flatnonzero(corpus.lengths > most)
    need(not len(empty), f"{len(empty)} texts are empty: {', '.join(ids[empty][:3])}.")
    for i in tight[:1]:
        raise ValueError(
            f"{len(tight)} of {len(corpus)} texts do not fit their frames: {ids[i]} "
            f"has {corpus.lengths[i]} and needs {corpus.lengths[i] - slack[i]}. Leave "
            "them out, take frames of 20 ms (stack 1), or larger units."
        )
    need(
        not len(long),
        f"{len(long)} recordings with texts are longer than 2 minutes: "
        f"{', '.join(ids[long][:3])}. Cut them at pauses.",
    )


def lexicon(corpus: Corpus) -> dict[str, list]:
    """The words of a corpus of phones with their pronunciations; else none."""
    if corpus.vocabulary.units != "phones" or corpus.words is None:
        return {}
    spoken = corpus.lexicon().items()
    return {word: [list(p) for p in many if p] for word, many in spoken if any(many)}


def watched_errors(trained: Trained, corpus: Corpus) -> str:
    """A sentence on the error rates of held-out speech, decoded greedily."""
    found = error_rates(corpus, transcribed(trained, corpus, beam=1))
    return "held-out " + ", ".join(f"{n} {e.rate:.3f}" for n, e in found.items())


# -- transcription --------------------------------------------------------------------


def transcribed(
    trained: Trained, corpus: Corpus, beam: int = 8, bar: bool = False
) -> list[str]:
    """The text that a recogniser hears in every utterance, on the model's device.

    trained: a recogniser; corpus: of its stack; beam: width of the prefix beam, 1 for
    the greedy path; bar: show progress. Recordings of over 30 s are heard in pieces. A
    recogniser of phones gives the nearest words among those it was trained on. Raises
    ValueError for an encoder, another stack, or a beam below 1.
    """
    need(
        trained.vocabulary is not None,
        "This model is an encoder, which writes nothing; make a recogniser of it.",
    )
    need(
        trained.stack == corpus.stack,
        f"The recogniser reads frames of {20 * trained.stack} ms and the corpus has "
        f"{20 * corpus.stack} ms; prepare it with stack={trained.stack}.",
    )
    parts, which = pieces(corpus)
    place = str(next(trained.model.parameters()).device)
    batches = _counted(in_order(parts, DECODED, place), len(parts), bar)
    texts: list[list[str]] = [[] for _ in range(len(corpus))]
    words = Lexicon(trained.words) if trained.words else None
    for index, numbers in zip(which, recognise(trained.model, batches, beam)):
        text = trained.vocabulary.decode(numbers)
        texts[index].append(" ".join(words.decode(text.split())[0]) if words else text)
    if trained.vocabulary.units == "phones" and not words:
        return [" ".join(some) for some in texts]
    return [normalised(" ".join(some)) for some in texts]


def _counted(batches: Iterable[Batch], total: int, bar: bool) -> Iterator[Batch]:
    """The batches, with a progress bar over utterances if asked."""
    from tqdm.auto import tqdm

    with tqdm(total=total, unit="utterance", disable=not bar) as shown:
        for batch in batches:
            yield batch
            shown.update(len(batch))


def error_rates(corpus: Corpus, heard: Sequence[str]) -> dict[str, ErrorRate]:
    """Character and word error rates of what was heard, over utterances with a text.

    corpus: whose texts are right; heard: one text an utterance. Returns {"CER": ...,
    "WER": ...}, without WER for scripts that leave no blanks, nothing where no
    utterance has a text. Raises ValueError for another number of texts.
    """
    need(
        len(heard) == len(corpus),
        f"There are {len(heard)} texts for {len(corpus)} utterances; give one each.",
    )
    pairs = [(normalised(t), h) for t, h in zip(corpus.column("text"), heard)]
    pairs = [(text, said) for text, said in pairs if text]
    if not pairs:
        return {}
    # A blank is a character too, but jiwer takes none for a word.
    letters = [[list(x.replace(" ", "␣")) for x in pair] for pair in pairs]
    found = {"CER": error_rate(*zip(*letters))}
    if not any(UNSPACED[0] <= c <= UNSPACED[1] for text, _ in pairs for c in text):
        found["WER"] = error_rate(*zip(*([x.split() for x in pair] for pair in pairs)))
    return found


def letters_of(trained: Trained) -> set[str]:
    """The letters that a recogniser can write."""
    need(trained.vocabulary is not None, "This model is an encoder, which writes none.")
    return set("".join(trained.words or trained.vocabulary.symbols))


def unknown_letters(known: Iterable[str], corpus: Corpus) -> str:
    """A sentence on letters of the texts that a recogniser cannot write, or nothing.

    known: its letters; corpus: whose texts are looked at. Raises ValueError where over
    a tenth are unknown: the texts are in another language.
    """
    letters = [c for text in corpus.column("text") for c in normalised(text)]
    letters = [c for c in letters if c != " "]
    known = set(known)
    lacking = [c for c in letters if c not in known]
    if not lacking:
        return ""
    share, which = len(lacking) / len(letters), " ".join(sorted(set(lacking))[:10])
    sentence = (
        f"{100 * share:.1f} % of the letters to compare with are unknown to the "
        f"recogniser ({which})"
    )
    need(
        share <= FOREIGN,
        f"{sentence}: it learns another language. Take its encoder (finetune --from) "
        "and fine-tune on texts of this one.",
    )
    return f"{sentence}; they count as errors."
