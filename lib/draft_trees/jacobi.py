"""Decoding as a fixed point: guess all tokens, read them at once, guess again.

x_i = argmax p(. | x_<i) for a block of places is a triangular system; plain decoding
solves it by substitution, Jacobi by iterating all places in parallel. Drawn instead of
maximised, the same sweep is speculative sampling with last round's laws as the draft.
Sources: 2305.10427 (Jacobi, Gauss-Seidel), 2410.01699 (speculative Jacobi).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lib.kit.checks import count, need
from lib.speculative.drafters import NOTHING
from lib.speculative.harness import (
    Budget,
    Out,
    Session,
    Target,
    Tree,
    Verdict,
    check_prompt,
)
from lib.speculative.laws import one_hot


class Sweeps(NamedTuple):
    """What the iteration gave.

    tokens: (most,); sweeps: for each block its guesses, from the start to the fixed
    point: lists of lists of tokens.
    """

    tokens: list[int]
    sweeps: list[list[list[int]]]

    @property
    def passes(self) -> int:
        """Passes of the target: every guess but the first of a block took one."""
        return sum(len(block) - 1 for block in self.sweeps)


def jacobi(
    target: Target,
    prompt: Sequence[int],
    most: int,
    block: int | None = None,
    guess: int | None = None,
) -> Sweeps:
    """Greedy text by fixed-point iteration, block after block.

    target; prompt; most: new tokens; block: places that are iterated together, None for
    all (Jacobi; smaller ones are Gauss-Seidel over blocks); guess: the token that all
    places start from, None for the text's last. Right after sweep j are at least the
    first j tokens of a block, so a block of w takes at most w passes; it ends earlier
    when a sweep changes nothing. Raises ValueError. Source: 2305.10427.
    """
    check_prompt(target, prompt, most)
    block = max(most, 1) if block is None else block
    count("block", block)
    if guess is not None:
        count("guess", guess, 0)
        need(guess < target.vocab, f"guess is {guess}; V is {target.vocab}.")
    tokens, sweeps = list(prompt), []
    state = target.start(tokens, most + 1)
    while (left := len(prompt) + most - len(tokens)) > 0:
        width = min(block, left)
        x = [tokens[-1] if guess is None else guess] * width
        own = [x]
        for _ in range(width):
            # The last place is only asked for: nobody in this block reads it.
            logits = target.forward(state, tokens[-1], Tree(x[:-1])).logits
            x, before = one_hot(logits).argmax(-1).tolist(), x
            own.append(x)
            if x == before:
                break
        target.commit(state, range(width - 1))
        tokens += x
        sweeps.append(own)
    return Sweeps(tokens[len(prompt) :], sweeps)


def agreed(sweeps: Sequence[Sequence[int]]) -> list[int]:
    """How many first tokens of each sweep are those of the last one.

    sweeps: of one block. Sweep j agrees in at least j.
    """
    final = list(sweeps[-1])
    same = [np.equal(one, final) for one in sweeps]
    return [len(final) if row.all() else int((~row).argmax()) for row in same]


class SpeculativeJacobi:
    """A window of guesses, each drawn from what the last pass said at its place.

    window: places. The drafter keeps for every place a token and the law that it was
    drawn from. The token rule accepts from the left with min(1, p_new / p_old) and
    resamples at the first rejection; all places behind are drawn anew from the new laws
    (`observe`), places that nothing is known of from the law of the last one. Needs no
    model; at temperature 0 it is Jacobi decoding in a sliding window. Drawn, so
    `siblings` or `token_rule`. Raises ValueError. Source: 2410.01699.
    """

    def __init__(self, window: int) -> None:
        count("window", window)
        self.window = window

    def start(self, session: Session) -> None:
        """No place is known: all begin with the uniform law."""
        self.session = session
        V = session.target.vocab
        self._fill([], np.full(V, 1 / V))

    def _fill(self, laws: Sequence[np.ndarray], rest: np.ndarray) -> None:
        """Draw a token for each place, from its law or from that of the rest."""
        known = list(laws[: self.window])
        self.laws = known + [rest] * (self.window - len(known))
        self.tokens = [self.session.dice.draw(law) for law in self.laws]

    def propose(self, budget: Budget) -> Tree:
        """The window, cut to the budget."""
        most = min(budget.depth, budget.nodes, self.window)
        if most <= 0:
            return NOTHING
        return Tree(self.tokens[:most], q=self.laws[:most], drawn="iid")

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Draw the places behind the committed ones from what the pass said there."""
        laws = self.session.warp(out.logits)
        # Row i is the law of place i; place len(path) is committed now.
        self._fill(laws[len(verdict.path) + 1 :], laws[-1])
