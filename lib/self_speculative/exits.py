"""LayerSkip: draft at an early exit, and go on from there to verify.

The first layers draft; the stream that leaves them is kept, and verification runs only
the layers behind the exit on all kept streams at once. Source: 2404.16710, section 4.3;
specification, section 5.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lib.kit.checks import need
from lib.language import Decoder
from lib.self_speculative.passes import (
    NOTHING,
    drawn,
    last_row,
    one,
    own_model,
)
from lib.self_speculative.skipping import check_exit
from lib.speculative import (
    Budget,
    NeuralTarget,
    Out,
    Session,
    Tree,
    Verdict,
    expected_tokens,
)
from lib.speculative.targets import rows_of


class ExitTarget(NeuralTarget):
    """The full model, which goes on from the exit where a draft has left it.

    model; exit: layers that the draft runs. A tree's `extra`, (m, d), holds the streams
    at the exit of the last committed token and of the first drafted ones, whose rows
    the draft has written; what is missing is read here. A pass returns all streams at
    the exit as `hidden`. Raises ValueError for an exit outside of the model.
    """

    def __init__(self, model: Decoder, exit: int) -> None:
        check_exit(exit, model.sizes.layers)
        super().__init__(model, hidden=True)
        self.exit = exit

    def forward(self, state: Any, last: int, tree: Tree) -> Out:
        """Logits after the last token and after every node; streams at the exit."""
        need(tree.chain, "An ExitTarget reads chains; give trees to a NeuralTarget.")
        tokens = [last, *tree.tokens]
        given = 0 if tree.extra is None else len(tree.extra)
        parts = [tree.extra[None]] if given else []
        if given < len(tokens):
            rest = torch.tensor([tokens[given:]], device=self.model.device)
            how = dict(behind=given, stop=self.exit, read=False)
            parts.append(self.model.extend(state, rest, **how).hidden)
        x = torch.cat(parts, dim=1)[:, : len(tokens)]
        done = self.model.extend(state, None, x=x, start=self.exit)
        return Out(rows_of(done.logits[0]), x[0])


class ExitDrafter:
    """A chain of the target's first layers, read by its own head.

    exit: layers that run; greedy: likeliest tokens in place of drawn ones. It hands the
    streams at the exit to an `ExitTarget`; another target reads the draft again. Raises
    ValueError for an exit that is outside, or not the target's.
    """

    def __init__(self, exit: int, greedy: bool = False) -> None:
        self.exit, self.greedy = exit, greedy

    def start(self, session: Session) -> None:
        """Raises ValueError for another kind of target, or another exit."""
        self.session, self.model = session, own_model(session)
        check_exit(self.exit, self.model.sizes.layers)
        check_same_exit(self.exit, session.target)

    def propose(self, budget: Budget) -> Tree:
        """One pass through the first layers a token."""
        most, behind = min(budget.depth, budget.nodes), itertools.count()
        if most <= 0:
            return NOTHING
        left = []

        def read(token: int) -> np.ndarray:
            done = self.model.extend(
                self.session.state,
                one(token, self.model),
                behind=next(behind),
                stop=self.exit,
            )
            left.append(done.hidden[0])
            return last_row(done.logits)

        tree = drawn(read, self.session, budget, most, self.greedy)
        tree.extra = torch.cat(left)
        return tree

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Nothing to learn."""


def check_same_exit(exit: int, target: Any) -> None:
    """Raises ValueError for an `ExitTarget` that goes on from another exit."""
    own = getattr(target, "exit", exit)
    need(
        own == exit,
        f"The draft leaves behind layer {exit}, the target goes on from {own}; give "
        "both the same exit.",
    )


def exit_speedup(
    a: float, gamma: int, share: float, cost: Callable[[int], float] | None = None
) -> float:
    """S = E[tau] / ((gamma + 1) e + (1 - e) c(gamma + 1)), verification from the exit.

    a: chance that a drafted token passes; gamma: drafted tokens; share: e, layers
    before the exit over all; cost: c(k), None for 1. The last drafted token needs its
    first layers too. Source: specification, section 5.3.
    """
    need(0 <= share <= 1, f"The share of layers is {share}; give 0 to 1.")
    wide = 1.0 if cost is None else cost(gamma + 1)
    return expected_tokens(a, gamma) / ((gamma + 1) * share + (1 - share) * wide)


def best_exit(
    acceptances: Sequence[float],
    cost: Callable[[int], float] | None = None,
    most: int = 12,
) -> tuple[int, int, float]:
    """The exit and draft length with the largest `exit_speedup`.

    acceptances: of exits 1, 2, ..., one fewer than there are layers; cost; most: tokens
    tried. Returns (exit, gamma, S); gamma 0 means that no exit pays.
    """
    layers = len(acceptances) + 1
    tried = [
        (exit_speedup(a, gamma, exit / layers, cost), -gamma, exit)
        for exit, a in enumerate(acceptances, start=1)
        for gamma in range(most + 1)
    ]
    best, minus, exit = max(tried)
    return exit, -minus, best
