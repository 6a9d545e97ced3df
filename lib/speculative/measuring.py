"""What a method costs and brings, measured beside plain decoding on the same texts.

Methods take turns prompt by prompt, so that a machine that slows down slows all of
them; a ratio is that of one prompt, its median and its spread are over prompts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lib.kit.checks import count, need
from lib.speculative.controllers import Fixed
from lib.speculative.dice import Dice, Random
from lib.speculative.drafters import NoDraft
from lib.speculative.harness import (
    Controller,
    Drafter,
    Target,
    Tree,
    Verifier,
    check_prompt,
    decode,
)
from lib.speculative.laws import Warp
from lib.speculative.verifiers import lossless

if TYPE_CHECKING:
    import pandas as pd

PLAIN = "plain"


@dataclass(frozen=True)
class Method:
    """One row of a table: how its parts are made, and what it adds to the model.

    drafter, controller: make fresh ones; target: another than the common one, where the
    method brings its own; parameters, bytes: extra; loss: "D" equal in distribution,
    "G" in greedy text only, "L" lossy.
    """

    name: str
    drafter: Callable[[], Drafter] = NoDraft
    controller: Callable[[], Controller] = lambda: Fixed(0)
    verifier: Verifier = lossless
    target: Target | None = None
    parameters: int = 0
    bytes: int = 0
    loss: str = "D"


def plain(
    target: Target,
    prompt: Sequence[int],
    most: int,
    *,
    warp: Warp | None = None,
    seed: int = 0,
    dice: Dice | None = None,
    eos: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[int], float]:
    """Token by token with the cache: what everything is compared with.

    The leanest loop there is; the texts are those of `decode` with `NoDraft` and the
    same seed. Returns the new tokens and the seconds of `clock` without reading the
    prompt. Raises ValueError as `decode`.
    """
    check_prompt(target, prompt, most)
    warp, dice, nothing = warp or Warp(), dice or Random(seed), Tree()
    state = target.start(prompt, min(most, target.max_len - len(prompt)) + 64)
    begin, last, new = clock(), prompt[-1], []
    for _ in range(most):
        law = warp(target.forward(state, last, nothing).logits[0])
        last = dice.draw(law)
        target.commit(state, ())
        new.append(last)
        if last == eos:
            break
    return new, clock() - begin


def distinct(tokens: Sequence[int], n: int = 3) -> float:
    """The share of different runs of n tokens: a text that loops has few.

    Returns 1 for a text shorter than n.
    """
    runs = list(zip(*(tokens[k:] for k in range(n))))
    return len(set(runs)) / len(runs) if runs else 1.0


def compared(
    methods: Sequence[Method],
    target: Target,
    prompts: Sequence[Sequence[int]],
    most: int,
    *,
    warp: Warp | None = None,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> pd.DataFrame:
    """Every method on every prompt, in turns, beside plain decoding.

    methods; target; prompts; most: new tokens; warp; seed: of each prompt's dice, the
    same for all methods; on_step: called with what is done and all; clock. Returns a
    row a prompt and method: method, prompt, seconds (a token), ratio (plain's over its
    own), distinct, text, and the figures of `Trace.summary`. Raises ValueError for two
    methods of one name.
    """
    import pandas as pd

    names = [method.name for method in methods]
    need(
        len({*names, PLAIN}) == len(names) + 1,
        f"Methods must have different names, none of them {PLAIN!r}: {names}.",
    )
    rows, done = [], 0
    warp = warp or Warp()
    for number, prompt in enumerate(prompts):
        own = []
        # The order turns, so that no method always runs behind the same neighbour.
        order = [PLAIN, *methods]
        shift = number % len(order)
        for method in order[shift:] + order[:shift]:
            how = {"warp": warp, "seed": seed + number, "clock": clock}
            if method == PLAIN:
                text, seconds = plain(target, prompt, most, **how)
                row = {"method": PLAIN, "tau": 1.0, "seconds": seconds / len(text)}
                row |= {"drafted": 0.0, "target_tokens": 1.0, "acceptance": np.nan}
            else:
                parts = (method.target or target, method.drafter(), method.verifier)
                text, trace = decode(*parts, method.controller(), prompt, most, **how)
                row = {"method": method.name} | trace.summary()
            row |= {"prompt": number, "distinct": distinct(text), "text": tuple(text)}
            own.append(row)
            done += 1
            if on_step is not None:
                on_step(done, len(prompts) * len(order))
        base = next(row["seconds"] for row in own if row["method"] == PLAIN)
        rows += [row | {"ratio": base / row["seconds"]} for row in own]
    return pd.DataFrame(rows)


def differing(runs: pd.DataFrame) -> pd.Series:
    """How many prompts a method's text is not plain decoding's on, by method.

    runs: of `compared`.
    """
    texts = runs.pivot(index="prompt", columns="method", values="text")
    return texts.apply(lambda column: (column != texts[PLAIN]).sum())


def overview(runs: pd.DataFrame, methods: Sequence[Method] = ()) -> pd.DataFrame:
    """One row a method: means, and the median and 10-90 % of the ratio over prompts.

    runs: of `compared`; methods: for what they add to the model. Plain comes first.
    """
    import pandas as pd

    known = {method.name: method for method in methods}
    rows = []
    for name, part in runs.groupby("method", sort=False):
        low, middle, high = np.quantile(part["ratio"], [0.1, 0.5, 0.9])
        own = known.get(str(name))
        rows.append(
            {
                "method": name,
                "tau": len(part) / (1 / part["tau"]).sum(),  # tokens over passes
                "acceptance": part["acceptance"].mean(),
                "drafted": part["drafted"].mean(),
                "target_tokens": part["target_tokens"].mean(),
                "distinct": part["distinct"].mean(),
                "parameters": own.parameters if own else 0,
                "bytes": own.bytes if own else 0,
                "ratio": middle,
                "low": low,
                "high": high,
                "loss": own.loss if own else "",
            }
        )
    table = pd.DataFrame(rows).set_index("method")
    return table.loc[[PLAIN, *(name for name in table.index if name != PLAIN)]]


# -- the machine ----------------------------------------------------------------------


def costs(
    target: Target,
    context: int = 256,
    sizes: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16),
    repeats: int = 30,
) -> dict[int, float]:
    """Median seconds of a pass over k new tokens behind `context` cached ones.

    The sizes take turns. target; context: rows; sizes; repeats: of each. Returns {k:
    seconds}; divide by that of 1 for c(k).
    """
    count("repeats", repeats)
    prompt = [token % target.vocab for token in range(1, context + 2)]
    state = target.start(prompt, max(sizes) + 1)
    trees = {k: Tree(list(range(k - 1))) for k in sizes}
    spent: dict[int, list[float]] = {k: [] for k in sizes}
    for round_ in range(repeats + 3):
        for k, tree in trees.items():
            begin = time.perf_counter()
            target.forward(state, prompt[-1], tree)
            if round_ >= 3:
                spent[k].append(time.perf_counter() - begin)
    return {k: statistics.median(row) for k, row in spent.items()}


def margin(logits: np.ndarray) -> float:
    """The gap between the two largest logits (V,): what rounding must not exceed."""
    first, second = np.partition(np.asarray(logits, np.float64), -2)[-2:][::-1]
    return float(first - second)


def first_difference(
    target: Target, prompt: Sequence[int], one: Sequence[int], other: Sequence[int]
) -> dict[str, Any] | None:
    """Where two greedy texts part, and the target's logit margin there; None if never.

    target: read from the beginning up to that place.
    """
    for place, (a, b) in enumerate(zip(one, other)):
        if a != b:
            text = [*prompt, *one[:place]]
            out = target.forward(target.start(text), text[-1], Tree())
            return {"place": place, "tokens": (a, b), "margin": margin(out.logits[0])}
    return None
