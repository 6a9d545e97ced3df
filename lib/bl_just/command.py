"""The command line: `python -m lib.bl_just train`, and `build` for the shipped models.

Its corpora, options and model file are those of `python -m lib.speech`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lib.kit.checks import choice
from lib.speech.assets import command as assets
from lib.speech.command import (
    corpus_at,
    judge,
    labelled_at,
    option,
    running,
    started,
    training_options,
)
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
    about = "from recordings to a recogniser"
    p = some.add_parser("train", parents=[training_options()], help=about)
    p.add_argument("corpus", help="recordings with texts")
    p.add_argument("--pool", action="append", default=[], help="more, texts unused")
    p.add_argument("--test", help="another corpus, for the error rate at the end")
    option(p, "units", "characters", ", ".join(UNITS))
    option(p, "explore", 600, "steps of the lower level alone")
    option(p, "steps", 600, "CTC gradients, half of them joint")
    option(p, "gamma", 1.0, "last weight of the lower level")
    option(p, "labels", "best_rq", "of the lower level: best_rq or kmeans")
    option(p, "codes", 64, "kinds of labels")
    p.set_defaults(run=train)
    build = some.add_parser("build", help="make the shipped models of data/ again")
    build.set_defaults(run=lambda o: assets("bl_just", ["build"]))
    return top


def train(o: argparse.Namespace) -> None:
    """Audio, some of it with texts, to a recogniser and its error rate."""
    from lib.bl_just.own import jointly
    from lib.speech.recipes import LABELS

    choice("--units", o.units, UNITS)
    choice("--labels", o.labels, LABELS)
    corpus, watch = labelled_at(o, o.stack)
    pools = [corpus_at(p, o, labelled=False, stack=corpus.stack) for p in o.pool]
    own = {"explore": o.explore, "gamma": o.gamma, "labels": o.labels, "V": o.codes}
    made = running(jointly, corpus, pools, watch=watch, options=o, **own)
    if watch is not None:
        judge(made, watch)


def main(words: Sequence[str]) -> None:
    """Entry point; a mistake is one sentence and exit code 1, Ctrl-C is 130."""
    started(parser().parse_args(words))
