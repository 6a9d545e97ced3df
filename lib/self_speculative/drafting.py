"""Drafters that read what verification leaves: heads on the last stream, Kangaroo.

What was committed is heard again with the model's own features before anything is
drafted, so a head's cache never holds a guess: it is that of a fresh reading.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.kit.checks import need
from lib.language import Skip
from lib.self_speculative.exits import ExitTarget, check_same_exit
from lib.self_speculative.heads import Adapter, Drafts, decoder_of
from lib.self_speculative.passes import (
    NOTHING,
    drawn,
    features,
    last_row,
    one,
    own_model,
)
from lib.speculative import Budget, Out, Session, Tree, Verdict
from lib.speculative.targets import rows_of

NO_MLP = Skip(mlp=frozenset({0}))


class Hearing:
    """What has been committed and not yet heard: streams (m, d), in order."""

    def __init__(self, session: Session, first: Tensor) -> None:
        need(
            session.firm is None,
            "This drafter cannot draft inside a `Staged` draft, whose tokens are taken "
            "back without its knowledge; take SkipDrafter or ExitDrafter there.",
        )
        self.waiting = [first]

    def note(self, out: Out, verdict: Verdict) -> None:
        """Keep the streams of the last committed token and of the accepted ones."""
        rows = [0, *(node + 1 for node in verdict.path)]
        self.waiting.append(out.hidden[rows])

    def all(self) -> Tensor:
        """Everything that waits, once."""
        x = torch.cat(self.waiting)
        self.waiting = [x[:0]]
        return x


class HeadDrafter:
    """A chain of a head that reads the full model's last stream.

    head: Medusa, Recurrent, Eagle; greedy: its likeliest tokens, a fixed draft (with
    Medusa: blockwise decoding), in place of drawn ones. Needs NeuralTarget(model,
    hidden=True). The prompt is read once more at the start for its streams. Raises
    ValueError for another target, or a head of another model.
    """

    def __init__(self, head: Drafts, greedy: bool = False) -> None:
        self.head, self.greedy = head, greedy

    def start(self, session: Session) -> None:
        """Read the prompt's streams. Raises ValueError."""
        self.session, self.model = session, own_model(session)
        target = session.target
        need(
            isinstance(self.head, Drafts),
            f"{type(self.head).__name__} is no head on the last stream; an Adapter "
            "drafts with KangarooDrafter, mask tokens with MaskDrafter.",
        )
        self.head.check(self.model.model)
        last = getattr(target, "exit", self.head.exit) == self.head.exit
        need(
            target.hidden and last,
            "A head reads the last stream of every verified token; give "
            "NeuralTarget(model, hidden=True).",
        )
        known = session.tokens[:-1]
        self.state: Any = self.head.begin(self.model, len(known))
        self.hearing = Hearing(session, features(self.model, known))

    @torch.inference_mode()
    def propose(self, budget: Budget) -> Tree:
        """One small step a token, none of the model."""
        most = min(budget.depth, budget.nodes, self.head.most or budget.depth)
        if most <= 0 or len(self.session.tokens) < 2:
            return NOTHING  # a single token has no stream before it
        place, heard = self.model.device, False

        def read(token: int) -> np.ndarray:
            nonlocal heard
            if heard:
                say = torch.tensor([token], device=place)
                return rows_of(self.head.say(self.model, self.state, say))
            heard, x = True, self.hearing.all()
            after = torch.tensor(self.session.tokens[-len(x) :], device=place)
            return rows_of(self.head.hear(self.model, self.state, x, after))

        return drawn(read, self.session, budget, most, self.greedy)

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Keep the verified tokens' streams."""
        self.hearing.note(out, verdict)


class KangarooDrafter:
    """A chain of the target's first layers and an adapter, which has its own cache.

    adapter; greedy: likeliest tokens in place of drawn ones. Needs an `ExitTarget` of
    the adapter's exit, which goes on from the same streams. With `Confidence(0.6, 6,
    product=False)` it stops where the adapter is unsure. Source: 2404.18911.
    """

    def __init__(self, adapter: Adapter, greedy: bool = False) -> None:
        self.adapter, self.greedy = adapter, greedy

    def start(self, session: Session) -> None:
        """Read the prompt's streams at the exit. Raises ValueError."""
        self.session, self.model = session, own_model(session)
        need(
            isinstance(session.target, ExitTarget),
            "Kangaroo's target goes on from the exit; give an ExitTarget.",
        )
        self.adapter.check(self.model.model)
        check_same_exit(self.adapter.exit, session.target)
        known = session.tokens[:-1]
        self.hearing = Hearing(session, features(self.model, known, self.adapter.exit))
        parts = (self.model.model, self.adapter.layer, self.adapter.norm)
        self.own = decoder_of(*parts)
        self.cache = self.own.cache(1, min(len(known) + 64, self.own.max_len))

    @torch.inference_mode()
    def propose(self, budget: Budget) -> Tree:
        """First layers on the target's cache, the adapter on its own."""
        most = min(budget.depth, budget.nodes)
        if most <= 0:
            return NOTHING
        left: list[Tensor] = []

        def read(token: int) -> np.ndarray:
            how = dict(behind=len(left), stop=self.adapter.exit, read=False)
            given = one(token, self.model)
            x = self.model.extend(self.session.state, given, **how).hidden
            left.append(x[0])
            return self._adapted(x, len(left) - 1)

        tree = drawn(read, self.session, budget, most, self.greedy)
        tree.extra = torch.cat(left)
        return tree

    def _adapted(self, x: Tensor, behind: int) -> np.ndarray:
        """The adapter behind what it has heard; the first time it hears the rest."""
        if behind == 0:
            heard = self.hearing.all()
            x = torch.cat([heard[None], x], dim=1)
        how = dict(x=x, behind=behind, skip=NO_MLP, read=False)
        done = self.own.extend(self.cache, None, **how)
        if behind == 0:
            self.cache.rows[0] += x.shape[1] - 1
        return last_row(self.own.read(done.hidden[:, -1:]))

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Keep the verified tokens' streams at the exit."""
        self.hearing.note(out, verdict)
