"""The command line: `python -m lib.bl_just train`, and `build` for the shipped models.

Everything goes to standard error. A mistake is one sentence and exit code 1; Ctrl-C
ends with 130, and the same command goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from lib.kit.cache import CacheError
from lib.kit.checks import choice
from lib.speech import recordings as sound
from lib.speech.command import corpus_at, judge, tell
from lib.speech.espeak import SpeechError
from lib.speech.vocabulary import UNITS

PROGRAM = "python -m lib.bl_just"


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m lib.bl_just`."""
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        description="A recogniser by BL-JUST: both levels at once.",
        epilog="Corpora are given as to `python -m lib.speech`, whose transcribe reads "
        "the model file.",
    )
    some = top.add_subparsers(dest="command", required=True)
    p = some.add_parser("train", help="from recordings to a recogniser")
    p.add_argument("corpus", help="recordings with texts")
    p.add_argument("--pool", action="append", default=[], help="more, texts unused")
    p.add_argument("--out", required=True, help="the model file to write")
    p.add_argument("--test", help="another corpus, for the error rate at the end")
    for name, value, words in (
        ("explore", 600, "steps of the lower level alone"),
        ("steps", 600, "CTC gradients, half of them joint"),
        ("gamma", 1.0, "last weight of the lower level"),
        ("labels", "best_rq", "of the lower level: best_rq or kmeans"),
        ("codes", 64, "kinds of labels"),
        ("units", "characters", ", ".join(UNITS)),
        ("held-out", 0.1, "share not trained on, if no split is named test"),
        ("tolerance", sound.OWN_TOLERANCE, "share that may be unusable"),
        ("seed", 0, "of all draws"),
        ("frames", 1000, "of a padded batch (40 ms each)"),
        ("channels", 128, "of the encoder"),
        ("blocks", 3, "of the encoder"),
        ("every", 50, "steps between checkpoints"),
    ):
        words += f" (default {value})"
        p.add_argument(f"--{name}", type=type(value), default=value, help=words)
    p.add_argument(
        "--stack", type=int, help="2: frames of 40 ms, 1: 20 ms; else chosen"
    )
    p.add_argument("--workers", type=int, help="processes that read audio")
    p.add_argument("--language", default="", help="where a manifest names none")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    p.set_defaults(run=train)
    build = some.add_parser("build", help="make the shipped models of data/ again")
    build.set_defaults(run=_build)
    return top


def _build(o: argparse.Namespace) -> None:
    from lib.speech.assets import command

    command("bl_just", ["build"])


def train(o: argparse.Namespace) -> None:
    """Audio, some of it with texts, to a recogniser and its error rate."""
    from lib.bl_just.own import jointly
    from lib.speech.recipes import LABELS, Run, unknown_letters

    choice("--units", o.units, UNITS)
    choice("--labels", o.labels, LABELS)
    corpus = corpus_at(o.corpus, o, units=o.units, stack=o.stack)
    more = [corpus_at(p, o, labelled=False, stack=corpus.stack) for p in o.pool]
    if o.test:
        watch = corpus_at(o.test, o, units=o.units, stack=corpus.stack, labelled=False)
        known = {letter for text in corpus.column("text") for letter in text}
        if warning := unknown_letters(known, watch):
            tell(warning)
    else:
        corpus, watch = sound.held_out(corpus, o.held_out, o.seed)
    began, there = time.monotonic(), Path(o.out).exists()
    named = ("steps", "frames", "seed", "device", "every")
    shared = {name: getattr(o, name) for name in named}
    made = jointly(
        corpus,
        more,
        Run(path=o.out, watch=watch, tell=tell, bar=True, **shared),
        explore=o.explore,
        gamma=o.gamma,
        labels=o.labels,
        V=o.codes,
        sizes={"d": o.channels, "blocks": o.blocks},
    )
    if there:
        tell(f"{o.out} was finished before; delete it to train again.")
    else:
        tell(f"wrote {o.out} after {time.monotonic() - began:.0f} s")
    if watch is not None:
        judge(made, watch)


def main(words: Sequence[str]) -> None:
    """Entry point; a mistake is one sentence and exit code 1, Ctrl-C is 130."""
    o = parser().parse_args(words)
    try:
        o.run(o)
    except (SpeechError, ValueError, CacheError, FloatingPointError, OSError) as error:
        raise SystemExit(f"{o.command}: {error}") from None
    except KeyboardInterrupt:
        tell(f"{o.command}: interrupted; the same command goes on where it was.")
        raise SystemExit(130) from None
