"""The command line: `python -m lib.self_speculative train KIND` and `enter`.

`train` puts a head, an adapter or mask tokens on a frozen model's laws and writes the
file with its card; `enter` lists data/heads in the manifest. A mistake is one sentence
and exit code 1; Ctrl-C ends with 130, and the same command goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lib.kit.checks import need
from lib.kit.manifest import DATA
from lib.language.command import line, option, run, tell

PROGRAM = "python -m lib.self_speculative"
KINDS = ("adapter", "eagle", "masks", "medusa", "recurrent")
RECIPE = ("steps", "batch", "length", "lr", "warmup", "optimiser", "seed")


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m lib.self_speculative`."""
    from lib.language import Recipe

    top = argparse.ArgumentParser(prog=PROGRAM, description="Heads on a frozen model.")
    some = top.add_subparsers(dest="command", required=True)
    p = some.add_parser("train", help="train a head on a model's laws")
    p.add_argument("kind", choices=KINDS, help="what is put on the model")
    p.add_argument("--model", required=True, help="a file of lib.language's train")
    p.add_argument("--out", required=True, help="the .safetensors file to write")
    p.add_argument("--corpus", default="python", help="python, austen, or a path")
    p.add_argument("--tokenizer", help="bytes, or a JSON file; else the shipped BPE")
    p.add_argument("--heads", type=int, help="of medusa; unroll of recurrent; masks")
    p.add_argument("--exit", type=int, help="of an adapter")
    p.add_argument("--skipped", type=int, help="middle layers that masks leave out")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda")
    p.add_argument("--threads", type=int, default=1, help="of the processor")
    p.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    p.add_argument("--bf16", action="store_true", help="see Recipe")
    for field in fields(Recipe):
        if field.name in RECIPE:
            option(p, field.name, field.default)
    p.set_defaults(run=train)
    e = some.add_parser("enter", help="enter data/heads in the manifest")
    e.add_argument("--folder", default=str(DATA), help="holds manifest.json")
    e.set_defaults(run=enter)
    return top


def enter(o: argparse.Namespace) -> None:
    """The manifest and the page of cards."""
    from lib.self_speculative.files import enter_all

    enter_all(Path(o.folder))


def made(o: argparse.Namespace, model: Any) -> Any:
    """A fresh head of the kind that was asked for. Raises ValueError for numbers."""
    from lib.self_speculative.files import KINDS as known

    flags = {"--heads": o.heads, "--exit": o.exit, "--skipped": o.skipped}
    names = {  # of the arguments that the flags give to each kind
        "medusa": {"--heads": "heads"},
        "recurrent": {"--heads": "unroll"},
        "masks": {"--heads": "masks", "--skipped": "skipped"},
        "adapter": {"--exit": "exit"},
    }.get(o.kind, {})
    wrong = [flag for flag, x in flags.items() if x is not None and flag not in names]
    need(
        not wrong,
        f"{', '.join(wrong)} mean nothing to {o.kind}; leave them out.",
    )
    given = {n: flags[flag] for flag, n in names.items() if flags[flag] is not None}
    return known[o.kind](model, **given, seed=o.seed)


def train(o: argparse.Namespace) -> None:
    """A head's file with its card; goes on where it was."""
    import torch

    from lib.kit.start import device
    from lib.language import Recipe, corpora, load_model, rounded, tokens
    from lib.self_speculative import files, training

    need(o.threads >= 1, f"--threads is {o.threads}; give at least 1.")
    need(o.out.endswith(".safetensors"), f"--out is {o.out}; end it in .safetensors.")
    torch.set_num_threads(o.threads)
    model, card = load_model(o.model)
    model = model.to(device(o.device))
    tokenizer, corpus = tokens.tokenizer(o.tokenizer), corpora.corpus(o.corpus)
    table = tokens.digest(tokenizer)
    need(
        card.get("tokenizer") in (None, table),
        f"{o.model} was trained with another tokenizer; give --tokenizer.",
    )
    recipe = Recipe(**{name: getattr(o, name) for name in RECIPE}, bf16=o.bf16)
    head = made(o, model)
    text = tokens.stream(tokenizer, corpus.texts("train"))
    tell(f"{head.parameters_total} parameters, {recipe.steps} steps")
    state = Path(o.out).with_suffix(".checkpoint")
    history = training.train_head(
        head, model, text, recipe, checkpoint=state, every=o.every, on_step=line
    )
    watch = tokens.stream(tokenizer, corpus.texts("held_out"))
    length = min(recipe.length, len(watch) - 1)
    found = training.judge_head(rounded(head), model, watch, length)
    files.save_head(o.out, head.cpu(), _card(o, head, history, found, table))
    tell(f"wrote {o.out}: overlap of the first guess {found['overlap'][0]:.3f}")


def _card(o, head, history: dict, found: Any, table: str) -> dict:
    """What a head's file says of itself."""
    import torch

    from lib.kit.results import processor

    return {
        "what": f"A head of kind {head.kind} on {Path(o.model).name}.",
        "command": f"{PROGRAM} {shlex.join(o.words)}",
        "corpus": o.corpus,
        "tokenizer": table,
        "parameters": head.parameters_total,
        "steps": len(history["loss"]),
        "cpu_seconds": round(history["cpu"][-1]),
        "held_out_overlap": [round(value, 4) for value in found["overlap"]],
        "held_out_agreement": [round(value, 4) for value in found["agreement"]],
        "made_with": f"torch {torch.__version__}, {processor()}",
    }


def main(words: Sequence[str]) -> None:
    """Entry point; a mistake is one sentence and exit code 1, Ctrl-C is 130."""
    o = parser().parse_args(words)
    o.words = list(words)
    run(o)
