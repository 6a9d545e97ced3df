"""SWIFT: look for the best skip set while serving, and notice when the texts change.

Source: 2410.06916; its search is random with a Bayesian step now and then, here swaps
of two sub-layers; starting again after a drop of acceptance is ours. Specification,
section 5.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lib.kit.checks import count, need
from lib.language import Cache, Decoder, Skip
from lib.self_speculative.passes import Past
from lib.self_speculative.skipping import (
    SkipDrafter,
    bits_of,
    run_without,
    skip_of,
)
from lib.speculative import (
    Controller,
    Drafter,
    Out,
    Session,
    Target,
    Trace,
    Tree,
    Verdict,
    Warp,
    decode,
    lossless,
)


def past_of_window(model: Decoder, cache: Cache, window: int) -> Past:
    """The past of the last `window` committed rows, each seeing what is before it.

    It lies in the cache already: to score a set, only the set's own layers run.
    """
    rows = cache.rows[0]
    place = torch.arange(rows - window, rows, device=model.device)
    before = torch.arange(rows, device=model.device) < place[:, None]
    seen = torch.cat([before, torch.eye(window, dtype=torch.bool).to(before)], dim=1)
    keys, values = ([part[:, :, :rows] for part in side] for side in zip(*cache.layers))
    return Past(model.model, keys, values, seen, model.table[rows - window : rows])


@torch.inference_mode()
def agreement(past: Past, x: Tensor, aims: Sequence[int], skip: Skip) -> float:
    """The share of positions where a skip set's likeliest token is the full model's.

    past; x: (1, n, d), embeddings of the tokens; aims: (n,) the full model's likeliest
    tokens; skip.
    """
    found = past.model.read(run_without(past, x, skip)).argmax(-1)[0]
    return float((found.cpu() == torch.tensor(list(aims))).double().mean())


class SwiftDrafter(SkipDrafter):
    """Drafts with a skip set that it improves while it serves.

    *Optimise*: every `every` rounds one candidate (two sub-layers swapped, or a random
    set of the same size) and the present set are judged on the last `window` verified
    tokens, one teacher-forced pass each; the better stays. After `patience` candidates
    without a gain: *accelerate*, until a running mean of acceptance falls `drop` below
    the level reached. skip: the first set; explore: share of random sets; greedy; seed:
    of the candidates, apart from the session's dice. trials: candidates so far;
    optimising. One object serves many texts. Raises ValueError for numbers.
    """

    def __init__(
        self,
        skip: Skip,
        *,
        window: int = 32,
        every: int = 2,
        patience: int = 30,
        drop: float = 0.1,
        explore: float = 0.1,
        greedy: bool = False,
        seed: int = 0,
    ) -> None:
        sizes = {"window": window, "every": every, "patience": patience}
        for name, value in sizes.items():
            count(name, value)
        need(0 < drop <= 1, f"drop is {drop}; give a share of 0 to 1.")
        super().__init__(skip, greedy)
        self.window, self.every, self.patience = window, every, patience
        self.drop, self.explore = drop, explore
        self.rng = np.random.default_rng(seed)
        self.trials = self.rounds = self.vain = 0
        self.level = self.mean = float("nan")
        self.optimising = True

    def start(self, session: Session) -> None:
        """A new text; the set and what is known of it stay."""
        super().start(session)
        self.aims: list[int] = []

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Note the verified tokens; judge a candidate, or watch the acceptance."""
        rows = [0, *(node + 1 for node in verdict.path)]
        self.aims += out.logits[rows].argmax(-1).tolist()
        self.rounds += 1
        if len(tree):
            tested = min(len(verdict.path) + 1, len(tree))
            self._watch(len(verdict.path) / tested)
        enough = len(self.aims) >= self.window
        if self.optimising and enough and self.rounds % self.every == 0:
            self._trial()

    def _watch(self, accepted: float) -> None:
        """A mean over about 30 rounds; optimise again where it has fallen."""
        first = np.isnan(self.mean)
        self.mean = accepted if first else self.mean + (accepted - self.mean) / 30
        if self.optimising:
            return
        self.level = float(np.fmax(self.level, self.mean))
        if self.mean < self.level - self.drop:
            self.optimising, self.vain = True, 0

    def _trial(self) -> None:
        cache = self.session.state
        past = past_of_window(self.model, cache, self.window)
        begin = cache.rows[0] - self.window
        tokens = self.session.tokens[begin : cache.rows[0]]
        x = self.model.embedding[tokens][None]
        aims, other = self.aims[-self.window :], self._candidate()
        gain = agreement(past, x, aims, other) - agreement(past, x, aims, self.skip)
        self.trials += 1
        self.vain = 0 if gain > 0 else self.vain + 1
        if gain > 0:
            self.skip = other
        if self.vain >= self.patience:
            self.optimising, self.level = False, self.mean

    def _candidate(self) -> Skip:
        """Another set of the same size."""
        bits = bits_of(self.skip, self.model.sizes.layers)
        if self.rng.random() < self.explore:
            return skip_of(self.rng.permutation(bits))
        gone, kept = np.flatnonzero(bits), np.flatnonzero(~bits)
        if len(gone):  # else nothing is skipped, and no other set has this size
            bits[[self.rng.choice(gone), self.rng.choice(kept)]] ^= True
        return skip_of(bits)


def serve(
    target: Target,
    drafter: Drafter,
    controller: Callable[[], Controller],
    prompts: Sequence[Sequence[int]],
    most: int,
    *,
    warp: Warp | None = None,
    seed: int = 0,
) -> list[Trace]:
    """Decode a stream of prompts with one drafter, which may learn from text to text.

    target; drafter: kept; controller: makes a fresh one for each text; prompts; most:
    new tokens of each; warp; seed: of the first text, then counted up.
    """
    traces = []
    for number, prompt in enumerate(prompts):
        parts = (target, drafter, lossless, controller(), prompt, most)
        traces.append(decode(*parts, warp=warp, seed=seed + number)[1])
    return traces
