"""Several texts at once: one pass of the target for all, each at its own place.

Every row has its own drafter, dice and length; rows that are done leave the batch. The
texts are those of separate runs. The slowest row decides how many passes are needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from lib.kit.checks import need
from lib.language.decoding import Decoder
from lib.language.trees import chain, padded
from lib.language.trees import tree as layout_of
from lib.speculative.dice import Random
from lib.speculative.harness import (
    Controller,
    Drafter,
    Out,
    Session,
    Step,
    Trace,
    Tree,
    Verdict,
    Verifier,
    check_prompt,
    kept,
    said,
    within,
)
from lib.speculative.laws import Warp
from lib.speculative.targets import NeuralTarget, rows_of


@dataclass
class Row:
    """One text of the batch: where it is and what belongs to it."""

    number: int
    session: Session
    drafter: Drafter
    controller: Controller
    trace: Trace = field(default_factory=Trace)


def decode_batch(
    model: Decoder,
    drafter: Callable[[], Drafter],
    verifier: Verifier,
    controller: Callable[[], Controller],
    prompts: Sequence[Sequence[int]],
    most: int,
    *,
    warp: Warp | None = None,
    seeds: Sequence[int] | None = None,
    eos: int | None = None,
) -> tuple[list[list[int]], list[Trace], int]:
    """Continue several prompts; texts, a trace for each, and passes of the batch.

    model; drafter, controller: make one for each text; verifier; prompts: of any
    lengths; most: new tokens of each; warp; seeds: of each text's dice, None for 0, 1,
    ...; eos. A text is the one that `decode` gives with the same seed, up to the
    rounding of wider passes. Raises ValueError as `decode`, for each prompt.
    """
    need(len(prompts) > 0, "No prompts were given.")
    target, warp = NeuralTarget(model), warp or Warp()
    seeds = range(len(prompts)) if seeds is None else seeds
    need(
        len(seeds) == len(prompts),
        f"{len(seeds)} seeds were given for {len(prompts)} prompts; give one for each.",
    )
    for prompt in prompts:
        check_prompt(target, prompt, most)
    cache = model.start(prompts, min(most + 64, model.max_len))
    rows = []
    for number, (prompt, seed) in enumerate(zip(prompts, seeds)):
        dice = Random(seed)
        session = Session(target, None, list(prompt), warp, dice, len(prompt))
        rows.append(Row(number, session, drafter(), controller()))
        rows[-1].drafter.start(session)
    texts: list[list[int]] = [[] for _ in prompts]
    traces = [row.trace for row in rows]
    passes = 0
    while rows and most > 0:
        begin = time.perf_counter()
        trees = [_drafted(row, most, model.max_len) for row in rows]
        between = time.perf_counter()
        logits = _pass(model, cache, rows, trees)
        passes += 1
        after = time.perf_counter()
        open_rows, stay = [], []
        for place, (row, tree) in enumerate(zip(rows, trees)):
            out = Out(rows_of(logits[place, : len(tree) + 1]))
            ended, verdict = _judged(row, tree, out, verifier, most, eos)
            cache.commit(verdict.path, place)
            # The batch waits for its slowest: every row bears the whole pass.
            spent = (between - begin, after - between, time.perf_counter() - after)
            _note(row, tree, verdict, spent)
            if ended:
                texts[row.number] = row.session.tokens[row.session.prompt :]
            else:
                open_rows.append(row)
                stay.append(place)
        if open_rows and len(stay) < len(rows):
            cache.take(stay)
        rows = open_rows
    return texts, traces, passes


def _drafted(row: Row, most: int, context: int) -> Tree:
    tokens = row.session.tokens
    left = most - (len(tokens) - row.session.prompt)
    budget = within(row.controller.budget(), left - 1, context - len(tokens))
    return row.drafter.propose(budget)


def _pass(model: Decoder, cache, rows: list[Row], trees: list[Tree]) -> torch.Tensor:
    """Logits (batch, n + 1, V) of drafts of any sizes, short ones padded."""
    n = max(map(len, trees)) + 1
    given = [
        [row.session.tokens[-1], *tree.tokens] + [0] * (n - 1 - len(tree))
        for row, tree in zip(rows, trees)
    ]
    layout = None  # a chain sees nothing of the padding behind it
    if not all(tree.chain for tree in trees):
        layout = padded(
            [
                chain(len(tree)) if tree.parents is None else layout_of(tree.parents)
                for tree in trees
            ]
        )
    return model.extend(cache, torch.tensor(given, device=model.device), layout).logits


def _judged(
    row: Row, tree: Tree, out: Out, verifier: Verifier, most: int, eos: int | None
) -> tuple[bool, Verdict]:
    session = row.session
    left = most - (len(session.tokens) - session.prompt)
    verdict = verifier(tree, session.warp(out.logits), session.dice)
    new, ended = kept(said(tree, verdict), left, eos)
    session.tokens += new
    row.drafter.observe(tree, out, verdict)
    row.trace.steps.append(
        Step(len(tree), max(tree.depths(), default=0), len(verdict.path), len(new))
    )
    return ended, verdict


def _note(row: Row, tree: Tree, verdict: Verdict, spent: tuple) -> None:
    names = ("draft_s", "target_s", "rest_s")
    row.trace.steps[-1] = row.trace.steps[-1]._replace(**dict(zip(names, spent)))
    row.controller.update(tree, verdict, sum(spent))
