"""Drafting with the model minus some of its sub-layers, and which to leave out.

The draft runs on the target's own cache: its rows lie behind the committed ones, and
verification overwrites all of them. Sources: 2309.08168 (Draft & Verify), 2404.06954
(unified layer skipping); specification, sections 5.1 and 5.2.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lib.kit.checks import count, need
from lib.language import Sizes, Skip, Transformer
from lib.self_speculative.passes import (
    NOTHING,
    Past,
    drawn,
    everywhere,
    last_row,
    one,
    own_model,
)
from lib.speculative import (
    Budget,
    Controller,
    Out,
    Session,
    Target,
    Tree,
    Verdict,
    Warp,
    decode,
    lossless,
    speedup,
)

if TYPE_CHECKING:
    import pandas as pd


def check_skip(skip: Skip, layers: int) -> None:
    """Raises ValueError for a layer that is missing, or if nothing is left to run."""
    named = skip.attention | skip.mlp
    need(
        all(0 <= number < layers for number in named),
        f"Layers {sorted(named)} are to be skipped; the model has 0 to {layers - 1}.",
    )
    need(
        len(skip.attention) + len(skip.mlp) < 2 * layers,
        "The skip set leaves out every sub-layer; keep at least one, or draft with "
        "the embedding's nearest token, which is no model.",
    )


class SkipDrafter:
    """A chain of the target without some sub-layers, in the target's own cache.

    skip: what is left out, constant within a draft; greedy: the likeliest tokens, a
    fixed draft, in place of drawn ones. Source: 2309.08168.
    """

    def __init__(self, skip: Skip, greedy: bool = False) -> None:
        self.skip, self.greedy = skip, greedy

    def start(self, session: Session) -> None:
        """Raises ValueError for another kind of target, or a set that does not fit."""
        self.session, self.model = session, own_model(session)
        check_skip(self.skip, self.model.sizes.layers)

    def propose(self, budget: Budget) -> Tree:
        """One partial pass a token, its rows behind those of the tokens before."""
        most, behind = min(budget.depth, budget.nodes), itertools.count()
        if most <= 0:
            return NOTHING

        def read(token: int) -> np.ndarray:
            return last_row(
                self.model.extend(
                    self.session.state,
                    one(token, self.model),
                    behind=next(behind),
                    skip=self.skip,
                ).logits
            )

        return drawn(read, self.session, budget, most, self.greedy)

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Nothing to learn: verification has overwritten the draft's rows."""


# -- which sets there are -------------------------------------------------------------


def even(layers: int, kept: int) -> Skip:
    """Skip whole layers so that `kept` evenly spaced ones remain, both ends among them.

    layers: of the model; kept: 1 (the first) to layers. Raises ValueError. Source:
    2404.06954 (the places are ours).
    """
    count("kept", kept)
    need(kept <= layers, f"{kept} layers are to be kept; the model has {layers}.")
    chosen = {round(place) for place in np.linspace(0, layers - 1, kept)}
    return Skip.layers(set(range(layers)) - chosen)


def early(layers: int, exit: int) -> Skip:
    """An early exit as a skip set: only the first `exit` layers run."""
    check_exit(exit, layers)
    return Skip.layers(range(exit, layers))


def check_exit(exit: int, layers: int) -> None:
    """Raises ValueError for an exit that is not inside the model."""
    count("exit", exit)
    need(
        exit < layers,
        f"The exit is behind layer {exit}; the model has {layers}, and a draft must "
        f"leave some out: give 1 to {layers - 1}.",
    )


def kept_share(skip: Skip, sizes: Sizes) -> float:
    """Weights that a draft pass reads, over those of a full pass, the head in both.

    A model of c_d where weights cost and calls do not. skip; sizes: of the model.
    """
    attention, mlp = 4 * sizes.d**2, 3 * sizes.d * sizes.hidden
    head = sizes.vocab * sizes.d
    full = sizes.layers * (attention + mlp) + head
    gone = len(skip.attention) * attention + len(skip.mlp) * mlp
    return (full - gone) / full


# -- how good they are ----------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """How near a draft's laws are to the full model's, over positions of a text.

    overlap: 1 - TV, the chance that a drawn token passes; agreement: share of equal
    likeliest tokens. Both (batch, T).
    """

    overlap: Tensor
    agreement: Tensor


def judged(model: Transformer, x: Tensor, p: Tensor) -> Judged:
    """Compare a stream's laws with the full model's.

    x: (batch, T, d) of a draft; p: (batch, T, V) laws of the full model.
    """
    q = torch.softmax(model.read(x), dim=-1)
    return Judged(torch.minimum(p, q).sum(-1), p.argmax(-1) == q.argmax(-1))


@torch.inference_mode()
def score(model: Transformer, tokens: Tensor, skips: Iterable[Skip]) -> list[Judged]:
    """The law of the first drafted token under each skip set, at every position.

    model; tokens: (batch, T), calibration text; skips. The past comes from the full
    model and the token's own keys from the draft, as in decoding. Raises ValueError for
    a set that does not fit.
    """
    past, x, streams = everywhere(model, tokens)
    p = torch.softmax(model.read(streams[-1]), dim=-1)
    found = []
    for skip in skips:
        check_skip(skip, model.sizes.layers)
        found.append(judged(model, run_without(past, x, skip), p))
    return found


def run_without(past: Past, x: Tensor, skip: Skip) -> Tensor:
    """Rows x (batch, n, d) through all layers but those that are skipped."""
    for number in range(len(past.keys)):
        x = past.run(number, x, number not in skip.attention, number not in skip.mlp)
    return x


@torch.inference_mode()
def score_layer_sets(model: Transformer, tokens: Tensor) -> pd.DataFrame:
    """All 2^L - 2 proper sets of whole layers, on one calibration text.

    Sets that share their first layers share that work: 2^L - 1 layer passes in all.
    model; tokens: (batch, T). Returns a row a set: layers (kept ones, a tuple), kept
    (how many), overlap and agreement (means).
    """
    import pandas as pd

    past, x, streams = everywhere(model, tokens)
    p = torch.softmax(model.read(streams[-1]), dim=-1)
    layers, rows = model.sizes.layers, []

    def walk(number: int, x: Tensor, kept: tuple[int, ...]) -> None:
        if number < layers:
            walk(number + 1, past.run(number, x), (*kept, number))
            walk(number + 1, x, kept)
        elif 0 < len(kept) < layers:
            one = judged(model, x, p)
            means = float(one.overlap.mean()), float(one.agreement.double().mean())
            rows.append((kept, len(kept), *means))

    walk(0, x, ())
    return pd.DataFrame(rows, columns=["layers", "kept", "overlap", "agreement"])


# -- a search over sub-layers ---------------------------------------------------------


def predicted(
    overlap: float,
    skip: Skip,
    sizes: Sizes,
    cost: Callable[[int], float] | None = None,
    most: int = 12,
) -> float:
    """Predicted tokens per target-pass time at the best draft length.

    overlap: mean 1 - TV of the draft; skip; sizes: whose `kept_share` is c_d; cost:
    c(k), None for 1; most: drafted tokens. Source: 2211.17192, theorem 3.8.
    """
    price = kept_share(skip, sizes)
    a = min(max(overlap, 0.0), 1.0)
    return max(speedup(a, gamma, price, cost) for gamma in range(most + 1))


def measured(
    target: Target,
    prompts: Sequence[Sequence[int]],
    most: int,
    controller: Callable[[], Controller],
    warp: Warp | None = None,
) -> Callable[[Skip], float]:
    """An objective for `search`: tokens a second with a set, on these prompts.

    target: a NeuralTarget; prompts: for calibration, not those that are judged later;
    most: new tokens of each; controller: makes a fresh one for each text; warp. The
    seconds are of this machine at this moment. Source: 2309.08168.
    """

    def value(skip: Skip) -> float:
        tokens = seconds = 0.0
        for seed, prompt in enumerate(prompts):
            parts = (target, SkipDrafter(skip), lossless, controller(), prompt, most)
            trace = decode(*parts, warp=warp, seed=seed)[1]
            tokens, seconds = tokens + trace.emitted, seconds + trace.seconds
        return tokens / seconds

    return value


def bits_of(skip: Skip, layers: int) -> np.ndarray:
    """A skip set as (2 layers,) bool: attention of all layers, then their MLPs."""
    flags = [
        number in part
        for part in (skip.attention, skip.mlp)
        for number in range(layers)
    ]
    return np.array(flags)


def skip_of(bits: Sequence[bool]) -> Skip:
    """The skip set of (2 layers,) bool, see `bits_of`."""
    half = np.split(np.asarray(bits, bool), 2)
    return Skip(*(frozenset(np.flatnonzero(part).tolist()) for part in half))


def search(
    objective: Callable[[Skip], float],
    layers: int,
    steps: int,
    *,
    start: Skip | None = None,
    explore: float = 0.25,
    seed: int = 0,
) -> tuple[Skip, list[tuple[Skip, float]]]:
    """Find a skip set over 2 L sub-layers: random sets, and single flips of the best.

    objective: of a set, larger is better, asked once a set; layers: L; steps: sets to
    try; start: the first, None for evenly skipped layers; explore: share of random
    sets. Returns the best set and all that were tried. The paper's search is Bayesian.
    Source: 2309.08168; specification, section 5.1.
    """
    count("steps", steps)
    rng = np.random.default_rng(seed)
    best = bits_of(start or even(layers, (layers + 1) // 2), layers)
    check_skip(skip_of(best), layers)
    tried = {best.tobytes(): (skip_of(best), objective(skip_of(best)))}
    top = tried[best.tobytes()][1]
    for _ in range(20 * steps):  # sets that come twice cost nothing
        if len(tried) >= min(steps, 4**layers - 1):
            break
        bits = best.copy()
        if rng.random() < explore:
            bits = rng.random(2 * layers) < rng.random()
        else:
            bits[rng.integers(2 * layers)] ^= True
        if bits.all() or bits.tobytes() in tried:
            continue
        value = objective(skip_of(bits))
        tried[bits.tobytes()] = (skip_of(bits), value)
        if value > top:
            best, top = bits, value
    return skip_of(best), list(tried.values())
