"""The command line: `python -m lib.language train`, `build` and `enter`.

A mistake is one sentence and exit code 1; Ctrl-C ends with 130, and the same command
goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lib.kit import commands
from lib.kit.checks import need
from lib.kit.manifest import DATA

PROGRAM = "python -m lib.language"
LINES = 50  # steps between two lines of progress


def tell(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m lib.language`."""
    from lib.language.training import Recipe
    from lib.language.transformer import Sizes

    p = argparse.ArgumentParser(prog=PROGRAM, description="Small language models.")
    some = p.add_subparsers(dest="command", required=True)
    t = some.add_parser("train", help="train a target, or a draft on its law")
    t.add_argument("--out", required=True, help="the .safetensors file to write")
    t.add_argument(
        "--corpus", default="python", help="python, austen, a path, or hub:NAME"
    )
    t.add_argument("--column", default="text", help="of a hub's data set")
    t.add_argument("--most", type=int, help="documents of a hub's data set")
    t.add_argument(
        "--tokenizer", help="bytes, or a JSON file; else the shipped BPE, V = 1024"
    )
    t.add_argument("--teacher", help="a model file whose law the draft learns")
    t.add_argument("--what", default="", help="a sentence for the card")
    t.add_argument("--device", default="auto", help="auto, cpu, cuda")
    t.add_argument("--threads", type=int, default=1, help="of the processor")
    t.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    t.add_argument("--judge", type=int, default=500, help="steps between judgements")
    for kind, skip in ((Sizes, {"vocab"}), (Recipe, set())):
        for field in fields(kind):
            if field.name not in skip:
                option(t, field.name, field.default)
    t.set_defaults(run=train)
    b = some.add_parser("build", help="make the shipped texts and tokenizer again")
    b.add_argument("--novels", help="Rdata.rdb of the R package janeaustenr 1.0.0")
    b.set_defaults(run=build)
    e = some.add_parser("enter", help="enter data/language in the manifest")
    e.set_defaults(run=enter)
    for q in (b, e):
        q.add_argument("--folder", default=str(DATA), help="holds manifest.json")
    return p


def option(p: argparse.ArgumentParser, name: str, value: Any) -> None:
    """A flag for a field of a recipe, by its default value."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        p.add_argument(flag, action="store_true", help="see Recipe")
        return
    kind = int if value is None else type(value)
    p.add_argument(flag, type=kind, default=value, help=f"(default {value})")


def build(o: argparse.Namespace) -> None:
    """Texts and tokenizer."""
    from lib.language.shipping import build as make

    make(Path(o.folder), None if o.novels is None else Path(o.novels), tell)


def enter(o: argparse.Namespace) -> None:
    """The manifest and the page of cards."""
    from lib.language.shipping import enter_all

    enter_all(Path(o.folder))


def train(o: argparse.Namespace) -> None:
    """A model file with its card, from a corpus; goes on where it was."""
    import torch

    from lib.kit.start import device
    from lib.language import corpora, tokens, training, transformer, weights

    need(o.threads >= 1, f"--threads is {o.threads}; give at least 1.")
    need(o.out.endswith(".safetensors"), f"--out is {o.out}; end it in .safetensors.")
    torch.set_num_threads(o.threads)
    place = device(o.device)
    corpus = corpora.corpus(o.corpus, column=o.column, most=o.most)
    tokenizer = tokens.tokenizer(o.tokenizer)
    recipe = _made(training.Recipe, o)
    sizes = _made(transformer.Sizes, o, vocab=len(tokenizer.table))
    teacher = None
    if o.teacher is not None:
        teacher, card = weights.load_model(o.teacher)
        known = card.get("tokenizer")
        need(
            known in (None, tokens.digest(tokenizer)),
            f"{o.teacher} was trained with another tokenizer; give --tokenizer.",
        )
        teacher = teacher.to(place)
    text = tokens.stream(tokenizer, corpus.texts("train"))
    watch = tokens.stream(tokenizer, corpus.texts("held_out"))
    tell(f"{o.corpus}: {len(text)} tokens to learn from, {len(watch)} held out")
    model = transformer.Transformer(sizes, recipe.seed).to(place)
    tell(f"{model.parameters_total} parameters, {recipe.steps} steps on {place}")
    state = Path(o.out).with_suffix(".checkpoint")
    if state.exists():
        tell(f"going on from {state.name}")
    history = training.train(
        model,
        text,
        recipe,
        teacher=teacher,
        held_out=watch,
        checkpoint=state,
        every=o.every,
        judge=o.judge,
        on_step=line,
    )
    weights.rounded(model)
    by_exit = training.losses(model, watch, min(recipe.length, len(watch) - 1))
    card = _card(o, model, history, by_exit, tokens.digest(tokenizer), corpus.licence)
    weights.save_model(o.out, model.cpu(), card)
    tell(f"wrote {o.out}: held-out loss {by_exit[-1]:.3f} nats a token")


def _made(kind: type, o: argparse.Namespace, **given: Any) -> Any:
    names = [field.name for field in fields(kind) if field.name not in given]
    return kind(**{name: getattr(o, name) for name in names}, **given)


def line(step: int, steps: int, loss: float) -> None:
    """Progress of a training, now and then."""
    if step % LINES == 0 or step == steps:
        tell(f"step {step} of {steps}: loss {loss:.3f}")


def _card(o, model, history: dict, by_exit: list, table: str, licence: str) -> dict:
    """What a model file says of itself."""
    import torch

    from lib.kit.results import processor

    role = "A draft, distilled" if o.teacher else "A language model"
    return {
        "what": o.what or f"{role}, of {model.parameters_total} parameters.",
        "command": f"{PROGRAM} {shlex.join(o.words)}",
        "corpus": o.corpus,
        "corpus_licence": licence,
        "tokenizer": table,
        "parameters": model.parameters_total,
        "steps": len(history["loss"]),
        "cpu_seconds": round(history["cpu"][-1]),
        "held_out_by_exit": [round(loss, 4) for loss in by_exit],
        "learning_curve": [
            [step, round(measured[-1], 4)] for step, measured in history["held_out"]
        ],
        "made_with": f"torch {torch.__version__}, {processor()}",
    }


def main(words: Sequence[str]) -> None:
    """Entry point; a mistake is one sentence and exit code 1, Ctrl-C is 130."""
    o = parser().parse_args(words)
    o.words = list(words)
    run(o)


def run(o: argparse.Namespace) -> None:
    """Do what was asked for, o.run(o). Ends with a sentence and 1, or with 130."""
    commands.run(o, tell, RuntimeError)
