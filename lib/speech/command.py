"""The command line: `python -m lib.speech pretrain`, `finetune`, `transcribe`.

Texts go to standard output, everything else to standard error. A mistake is one
sentence and exit code 1; Ctrl-C ends with 130, and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lib.kit import commands, parallel
from lib.kit.checks import choice, need
from lib.speech import recordings as sound
from lib.speech.corpus import Corpus
from lib.speech.espeak import SpeechError
from lib.speech.synthesis import build_shipped
from lib.speech.vocabulary import UNITS

if TYPE_CHECKING:
    from lib.speech.trained import Trained

SHOWN = 5  # reasons that are printed


def tell(text: str) -> None:
    """One line on standard error, above a progress bar if there is one."""
    from tqdm import tqdm

    if speaks():
        tqdm.write(text, file=sys.stderr)


def speaks() -> bool:
    """Whether this process tells: of several that train together, the first."""
    return os.environ.get("RANK", "0") == "0"  # torch is not needed to know


# -- what is asked --------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m lib.speech`."""
    p = argparse.ArgumentParser(
        prog="python -m lib.speech",
        description="From recordings to a recogniser.",
        epilog="A corpus is a folder of audio files, a manifest (one JSON object a "
        'line: {"audio": "a.wav", "text": "words", "language": "en", "speaker": "x", '
        '"split": "test"}, all but audio optional), or a name: '
        + "; ".join(sound.FORMS.values()),
    )
    some = p.add_subparsers(dest="command", required=True)
    common, train = common_options(), training_options()
    _pretrain(some.add_parser("pretrain", parents=[train], help="learn from audio"))
    _finetune(some.add_parser("finetune", parents=[train], help="learn from texts"))
    _transcribe(some.add_parser("transcribe", parents=[common], help="write texts"))
    build = some.add_parser("build", help="make the shipped corpus again")
    build.set_defaults(run=lambda o: build_shipped())
    return p


def common_options() -> argparse.ArgumentParser:
    """What every command on recordings has, as a parent of its parser."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    option(common, "tolerance", sound.OWN_TOLERANCE, "share that may be unusable")
    option(common, "workers", None, "processes that read audio", int)
    common.add_argument("--language", default="", help="where a manifest names none")
    return common


def training_options() -> argparse.ArgumentParser:
    """What every command that trains has, as a parent of its parser."""
    train = argparse.ArgumentParser(add_help=False, parents=[common_options()])
    train.add_argument("--out", required=True, help="the model file to write")
    option(train, "every", 50, "steps between checkpoints")
    option(train, "seed", 0, "of all draws")
    option(train, "processes", 1, "that train together, one a device")
    option(train, "frames", 1000, "of a padded batch (40 ms each)")
    option(train, "stack", None, "2: frames of 40 ms, 1: 20 ms; else chosen", int)
    train.add_argument(  # --d alone would be torchrun's
        *("--channels", "--d"), dest="d", type=int, default=128,
        help="of a new encoder (default 128)",
    )  # fmt: skip
    option(train, "blocks", 3, "blocks of a new encoder")
    option(train, "held-out", 0.1, "share not trained on, if no split is named test")
    return train


def option(p: argparse.ArgumentParser, name: str, value, text: str, kind=None) -> None:
    """An option with its default, which its help names."""
    shown = "" if value is None else f" (default {value})"
    p.add_argument(
        f"--{name}", type=kind or type(value), default=value, help=text + shown
    )


def _pretrain(p: argparse.ArgumentParser) -> None:
    p.add_argument("corpus", help="what to learn from; texts are not needed")
    p.add_argument("--labels", default="best_rq", help="best_rq (default) or kmeans")
    option(p, "codes", 64, "kinds of labels")
    option(p, "steps", 900, "of the optimiser")
    p.set_defaults(run=pretrain)


def _finetune(p: argparse.ArgumentParser) -> None:
    p.add_argument("corpus", help="what to learn from, with texts")
    p.add_argument(
        "--from", dest="start", help="a model file whose encoder to begin with"
    )
    p.add_argument("--test", help="another corpus, for the error rate at the end")
    p.add_argument("--units", default="characters", help=", ".join(UNITS))
    option(p, "steps", 600, "of the optimiser")
    p.set_defaults(run=finetune)


def _transcribe(p: argparse.ArgumentParser) -> None:
    p.add_argument("audio", nargs="+", help="audio files, folders or manifests")
    p.add_argument("--model", required=True, help="what finetune wrote")
    option(p, "beam", 8, "width of the beam, 1 for the quickest")
    p.add_argument("--json", action="store_true", help="one JSON object a line")
    p.set_defaults(run=transcribe)


# -- what is done ---------------------------------------------------------------------


def corpus_at(where: str, o: argparse.Namespace, **options) -> Corpus:
    """The corpus that an argument names, with a line on what it holds."""
    shared = {"tolerance": o.tolerance, "workers": o.workers, "progress": True}
    if where.partition(":")[0] in ("shipped", "spoken"):
        corpus = sound.corpus_of(where, stack=options["stack"], workers=o.workers)
    else:
        listing = sound.listing_of(where)
        corpus = sound.corpus_from(listing, language=o.language, **shared, **options)
    tell(f"{where}: {len(corpus)} recordings, {60 * corpus.hours:.1f} minutes")
    reasons = corpus.info.get("left_out", [])
    if reasons:
        tell(f"{len(reasons)} left out:")
    for reason in reasons[:SHOWN]:
        tell(f"  {reason}")
    if len(reasons) > SHOWN:
        tell(f"  and {len(reasons) - SHOWN} more")
    if note := corpus.info.get("note"):
        tell(str(note))
    return corpus


def pretrain(o: argparse.Namespace) -> None:
    """Audio to an encoder."""
    from lib.speech import recipes

    choice("--labels", o.labels, recipes.LABELS)
    corpus = corpus_at(o.corpus, o, labelled=False, stack=o.stack)
    corpus, watch = sound.held_out(corpus, o.held_out, o.seed)
    running(recipes.pretrained, corpus, o.labels, V=o.codes, watch=watch, options=o)


def labelled_at(o: argparse.Namespace, stack: int | None) -> tuple:
    """The corpus with texts that a command trains on, and what it is watched on.

    o: with corpus, test, units, held_out, seed; stack: of both. Raises ValueError for a
    test corpus in another language.
    """
    from lib.speech import recipes

    corpus = corpus_at(o.corpus, o, units=o.units, stack=stack)
    if not o.test:
        return sound.held_out(corpus, o.held_out, o.seed)
    watch = corpus_at(o.test, o, units=o.units, stack=corpus.stack, labelled=False)
    known = {letter for text in corpus.column("text") for letter in text}
    if warning := recipes.unknown_letters(known, watch):
        tell(warning)
    return corpus, watch


def finetune(o: argparse.Namespace) -> None:
    """Audio with texts to a recogniser, and its error rate."""
    from lib.speech import recipes
    from lib.speech.trained import load

    choice("--units", o.units, UNITS)
    start = load(o.start) if o.start else None
    stack = start.stack if start else o.stack
    need(
        o.stack in (None, stack),
        f"{o.start} reads frames of {20 * (stack or 2)} ms; pre-train with --stack "
        f"{o.stack} for others.",
    )
    corpus, watch = labelled_at(o, stack)
    made = running(recipes.recogniser, corpus, start, watch=watch, options=o)
    if watch is not None and speaks():
        judge(made, watch)


def running(make: Callable, *what, watch, options: argparse.Namespace, **more):
    """Call a training with what all commands share, and say where its result is."""
    from lib.speech.recipes import Run, checkpoint_of

    o, began, there = options, time.monotonic(), Path(options.out).exists()
    if checkpoint_of(o.out).exists():
        tell(f"going on from {checkpoint_of(o.out)}")
    named = ("steps", "frames", "seed", "device", "every")
    shared = {name: getattr(o, name) for name in named}
    how = Run(path=o.out, watch=watch, tell=tell, bar=True, **shared)
    with parallel.session():
        made = make(*what, how, sizes={"d": o.d, "blocks": o.blocks}, **more)
    if there:
        tell(f"{o.out} was finished before; delete it to train again.")
    else:
        tell(f"wrote {o.out} after {time.monotonic() - began:.0f} s")
    return made


def judge(
    made: Trained, corpus: Corpus, heard: Sequence[str] | None = None, name: str = ""
) -> None:
    """Tell the error rates on what has texts."""
    from lib.speech.recipes import error_rates, transcribed

    heard = transcribed(made, corpus) if heard is None else heard
    part = f"{name}: " if name else ""
    for rate, e in error_rates(corpus, heard).items():
        tell(
            f"{part}{rate} {100 * e.rate:.1f} %: {e.substitutions} substituted, "
            f"{e.deletions} deleted, {e.insertions} inserted of {e.symbols}"
        )


def transcribe(o: argparse.Namespace) -> None:
    """Audio to texts on standard output; error rates where the texts are known."""
    from lib.speech import recipes
    from lib.speech.trained import load

    made = load(o.model, "recogniser").to(recipes.device_of(o.device))
    listing = sound.together([sound.listing_of(where) for where in o.audio])
    corpus = sound.corpus_from(
        listing, labelled=False, stack=made.stack, tolerance=1.0, workers=o.workers
    )
    if warning := recipes.unknown_letters(recipes.letters_of(made), corpus):
        tell(warning)
    heard = recipes.transcribed(made, corpus, o.beam, bar=sys.stderr.isatty())
    for name, text, right in zip(corpus.column("id"), heard, corpus.column("text")):
        known = {"reference": right} if right else {}
        row = {"audio": name, "text": text} | known
        print(json.dumps(row, ensure_ascii=False) if o.json else f"{name}\t{text}")
    for reason in corpus.info["left_out"]:
        tell(f"not transcribed: {reason}")
    splits = corpus.column("split")
    for split in sorted(set(splits)):  # what was trained on is not to hide the rest
        chosen = np.flatnonzero(splits == split)
        judge(made, corpus.take(chosen), [heard[i] for i in chosen], split)


def main(words: Sequence[str]) -> None:
    """Entry point; a mistake is one sentence and exit code 1, Ctrl-C is 130."""
    started(parser().parse_args(words))


def started(o: argparse.Namespace) -> None:
    """Do what was asked for, in as many processes; raises SystemExit as `main`."""
    if getattr(o, "processes", 1) == 1:
        commands.run(o, tell, SpeechError)
        return
    several = argparse.Namespace(command=o.command, run=lambda _: _together(o))
    commands.run(several, tell, ModuleNotFoundError, RuntimeError)


def _together(o: argparse.Namespace) -> None:
    from lib.kit.launching import together

    together(_one_of, o, processes=o.processes)


def _one_of(o: argparse.Namespace) -> None:
    """What each of several processes does: who started them tells what was wrong."""
    try:
        commands.run(o, lambda text: None, SpeechError)
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        raise RuntimeError(end.code.removeprefix(f"{o.command}: ")) from None
