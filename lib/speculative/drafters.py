"""Where drafts come from: nothing, a small model, counted text, the text itself.

A drafter may look at everything that is committed. What it draws, it draws with the
session's dice, and names the law; what it does not draw is a fixed draft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lib.kit.checks import count, need
from lib.language.ngrams import Table
from lib.speculative.harness import (
    Budget,
    Controller,
    Drafter,
    Out,
    Session,
    Target,
    Tree,
    Verdict,
    Verifier,
    said,
    within,
)
from lib.speculative.laws import Warp, without
from lib.speculative.targets import same_tokens

NOTHING = Tree()


class NoDraft:
    """Drafts nothing: plain decoding, in the same loop."""

    def start(self, session: Session) -> None:
        """Nothing to prepare."""

    def propose(self, budget: Budget) -> Tree:
        """An empty tree."""
        return NOTHING

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Nothing to learn."""


# -- a small model --------------------------------------------------------------------


class Reader:
    """A draft model's state beside a session: what it has read and must forget.

    model; session: whose tokens it follows. Raises ValueError for another vocabulary.
    """

    def __init__(self, model: Target, session: Session) -> None:
        same_tokens(session.target, model)
        self.model, self.session = model, session
        self.state = model.start(session.tokens)
        self.read = list(session.tokens[:-1])  # what has a row, in order
        self.same = 0  # of them, how many can never change

    @property
    def room(self) -> int:
        """Tokens that may be drafted before the model's context ends."""
        return self.model.max_len - len(self.session.tokens)

    def catch_up(self) -> list[int]:
        """Forget what was rejected; the committed tokens that have no row yet.

        They are one, or two after full acceptance: the draft's own last token was
        never read.
        """
        read, tokens = self.read, self.session.tokens
        longest = min(len(read), len(tokens) - 1)
        same = min(self.same, longest)
        while same < longest and read[same] == tokens[same]:
            same += 1
        if same < len(read):
            del read[same:]
            self.model.crop(self.state, same)
        self.same = min(same, self.session.sure)
        return tokens[same:]

    def keep(self, tokens: Sequence[int], path: Sequence[int] = ()) -> None:
        """Commit the last pass: the tokens that now have rows, and its nodes' path."""
        self.model.commit(self.state, path)
        self.read += tokens

    def law(self, waiting: Sequence[int]) -> np.ndarray:
        """Read some tokens and keep them; the logits (V,) after the last."""
        first, *rest = waiting
        out = self.model.forward(self.state, first, Tree(rest))
        self.keep(waiting, range(len(rest)))
        return out.logits[-1]


class ModelDrafter:
    """A chain of a smaller model, one pass a token.

    model: a `Target`; greedy: take its likeliest token, a fixed draft, in place of a
    drawn one; warp: its own, None for the session's. Source: 2211.17192, 2302.01318.
    """

    def __init__(
        self, model: Target, greedy: bool = False, warp: Warp | None = None
    ) -> None:
        self.model, self.greedy, self.own = model, greedy, warp

    def start(self, session: Session) -> None:
        """Read the prompt. Raises ValueError for another vocabulary."""
        self.reader = Reader(self.model, session)
        self.dice, self.warp = session.dice, self.own or session.warp
        self.fixed = self.greedy or self.warp.temperature == 0

    def propose(self, budget: Budget) -> Tree:
        """A chain of at most `depth` tokens, shorter where it is unsure."""
        most = min(budget.depth, budget.nodes, self.reader.room)
        if most <= 0:
            return NOTHING
        tokens: list[int] = []
        laws: list[np.ndarray] = []
        sure, waiting = 1.0, self.reader.catch_up()
        while len(tokens) < most:
            law = self.warp(self.reader.law(waiting))
            if budget.ends(sure, law):
                break
            token = int(law.argmax()) if self.fixed else self.dice.draw(law)
            sure *= float(law[token])
            tokens.append(token)
            laws.append(law)
            waiting = [token]
        return Tree(tokens) if self.fixed else Tree(tokens, q=laws, drawn="iid")

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Nothing to learn: the next draft forgets what was rejected."""


class TreeDrafter:
    """Several drawn children a node, level by level, one pass of the model a level.

    model; widths: children of the last token, then of every node of the first level,
    and so on, so that (4, 1, 1) is four chains of three tokens; repeat: whether
    siblings are drawn independently ("iid") or each without the earlier ones
    ("without"). Source: 2310.15141 (chains), 2402.12374 (without replacement).
    """

    def __init__(
        self, model: Target, widths: Sequence[int], repeat: bool = True
    ) -> None:
        for width in widths:
            count("A width", width)
        self.model, self.widths, self.repeat = model, tuple(widths), repeat

    def start(self, session: Session) -> None:
        """Read the prompt. Raises ValueError for another vocabulary."""
        self.reader, self.session = Reader(self.model, session), session

    def propose(self, budget: Budget) -> Tree:
        """All whole levels that fit depth and nodes."""
        tree = Tree([], [], [], "iid" if self.repeat else "without")
        *before, last = self.reader.catch_up()
        if before:
            self.reader.law(before)
        level = [-1]
        for width in self.widths[: max(min(budget.depth, self.reader.room), 0)]:
            if len(tree) + width * len(level) > budget.nodes:
                break
            logits = self.model.forward(self.reader.state, last, tree).logits
            begin = len(tree)
            for node in level:
                self._children(tree, node, width, self.session.warp(logits[node + 1]))
            level = list(range(begin, len(tree)))
        return tree if len(tree) else NOTHING

    def _children(self, tree: Tree, node: int, width: int, law: np.ndarray) -> None:
        for _ in range(width):
            token = self.session.dice.draw(law)
            tree.tokens.append(token)
            tree.parents.append(node)
            tree.q.append(law)
            if not self.repeat:
                if np.count_nonzero(law) == 1:
                    break  # nothing is left to draw
                law = without(law, token)

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Nothing to learn."""


class Staged:
    """A chain of a model that is itself decoded with drafts.

    model: the draft model; drafter, verifier, controller: of the inner loop, which is
    lossless: a token's law is the draft model's own and is handed on as q. passes: of
    the draft model so far. Source: 2308.04623.
    """

    def __init__(
        self,
        model: Target,
        drafter: Drafter,
        verifier: Verifier,
        controller: Controller,
    ) -> None:
        self.model, self.inner = model, drafter
        self.verifier, self.controller = verifier, controller
        self.passes = 0

    def start(self, session: Session) -> None:
        """Read the prompt, on both stages. Raises ValueError for another vocabulary."""
        self.outer = session
        self.session = replace(
            session, target=self.model, state=None, tokens=list(session.tokens), firm=0
        )
        self.reader = Reader(self.model, self.session)
        self.session.state = self.reader.state
        self.inner.start(self.session)

    def propose(self, budget: Budget) -> Tree:
        """Exactly as many tokens as asked, so their number tells nothing of them."""
        most = min(budget.depth, budget.nodes)
        inner, text = self.session, self.session.tokens
        inner.firm = len(self.outer.tokens)
        text[:] = self.outer.tokens
        most = min(most, self.reader.room)
        if most <= 0:
            return NOTHING
        tokens: list[int] = []
        laws: list[np.ndarray] = []
        *before, _ = self.reader.catch_up()
        if before:
            self.reader.law(before)
        while len(tokens) < most:
            left = most - len(tokens) - 1
            tree = self.inner.propose(within(self.controller.budget(), left, left))
            out = self.model.forward(self.reader.state, text[-1], tree)
            p = inner.warp(out.logits)
            verdict = self.verifier(tree, p, inner.dice)
            path = verdict.path
            new = said(tree, verdict)
            laws += [p[0], *(p[node + 1] for node in path)]
            self.reader.keep([text[-1], *new[:-1]], path)
            tokens += new
            text += new
            self.inner.observe(tree, out, verdict)
            self.passes += 1
        return Tree(tokens, q=laws, drawn="iid")

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Nothing to learn."""


# -- counted text, and the text itself ------------------------------------------------


class TableDrafter:
    """The most frequent continuation in counted text; drafting costs nearly nothing.

    table: of `lib.language`. Source: 2311.08252; specification, section 6.8.
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def start(self, session: Session) -> None:
        """Raises ValueError for another vocabulary."""
        need(
            session.target.vocab == self.table.V,
            f"The table counts {self.table.V} tokens; the target knows "
            f"{session.target.vocab}. Count text in the target's tokens.",
        )
        self.tokens = session.tokens

    def propose(self, budget: Budget) -> Tree:
        """A chain, shorter where the product of confidences falls below `stop`."""
        most = min(budget.depth, budget.nodes)
        return Tree(self.table.draft(self.tokens, max(most, 0), budget.stop)[0])

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Nothing to learn."""


class Blockwise:
    """Proposals for the next 1 .. k tokens, all from the text as it stands.

    heads: tables whose i-th looks i places ahead (`ahead=i`). No proposal knows
    another, so the chain is as good as its places are independent. Source: 1811.03115,
    section 3.
    """

    def __init__(self, *heads: Table) -> None:
        need(len(heads) > 0, "Give at least one head.")
        self.heads = heads

    def start(self, session: Session) -> None:
        """Raises ValueError for another vocabulary."""
        for head in self.heads:
            TableDrafter(head).start(session)
        self.tokens = session.tokens

    def propose(self, budget: Budget) -> Tree:
        """One token a head, up to the first that has nothing to say."""
        drafted = []
        for head in self.heads[: max(min(budget.depth, budget.nodes), 0)]:
            found = head.next(self.tokens)
            if found is None:
                break
            drafted.append(found[0])
        return Tree(drafted)

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Nothing to learn."""


class LookUp:
    """Copies what followed the last tokens when they stood in the text before.

    longest: tokens that are looked for, then fewer; least: the fewest. The latest place
    wins. Source: specification, section 6.8 (prompt look-up decoding).
    """

    def __init__(self, longest: int = 4, least: int = 1) -> None:
        count("least", least)
        count("longest", longest, least)
        self.longest, self.least = longest, least

    def start(self, session: Session) -> None:
        """Note where every run of the prompt ends."""
        self.session, self.tokens = session, session.tokens
        self.ends: dict[tuple[int, ...], int] = {}
        self.known = 0
        self._note()

    def _note(self) -> None:
        """Runs that end before the last firm token, which has no continuation yet."""
        tokens, sure = self.tokens, self.session.sure
        for end in range(self.known + 1, sure):
            for n in range(self.least, min(self.longest, end) + 1):
                self.ends[tuple(tokens[end - n : end])] = end
        self.known = max(sure - 1, self.known)

    def find(self) -> int | None:
        """Where the continuation of the longest known run begins."""
        tokens = self.tokens
        for n in range(min(self.longest, len(tokens)), self.least - 1, -1):
            place = self.ends.get(tuple(tokens[len(tokens) - n :]))
            if place is not None:
                return place
        return None

    def propose(self, budget: Budget) -> Tree:
        """A copied chain; it may run on into what it copies."""
        most, place = min(budget.depth, budget.nodes), self.find()
        if place is None or most <= 0:
            return NOTHING
        text, drafted = self.tokens, []
        for k in range(most):
            at = place + k
            drafted.append(text[at] if at < len(text) else drafted[at - len(text)])
        return Tree(drafted)

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Note what was committed."""
        self._note()


class Either:
    """The first drafter that has something to say. Raises ValueError for none.

    drafters: tried in order; all of them see what happens.
    """

    def __init__(self, *drafters: Drafter) -> None:
        need(len(drafters) > 0, "Give at least one drafter.")
        self.drafters = drafters

    def start(self, session: Session) -> None:
        """Start all."""
        for drafter in self.drafters:
            drafter.start(session)

    def propose(self, budget: Budget) -> Tree:
        """The first draft that is not empty."""
        for drafter in self.drafters:
            tree = drafter.propose(budget)
            if len(tree):
                return tree
        return NOTHING

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Tell all."""
        for drafter in self.drafters:
            drafter.observe(tree, out, verdict)


class Scripted:
    """Drafts what a function says, for exercises and tests.

    draft: called with the tokens so far and the budget, returns a `Tree`.
    """

    def __init__(self, draft: Callable[[list[int], Budget], Tree]) -> None:
        self.draft = draft

    def start(self, session: Session) -> None:
        """Remember the text."""
        self.tokens = session.tokens

    def propose(self, budget: Budget) -> Tree:
        """What the function says."""
        return self.draft(list(self.tokens), budget)

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Nothing to learn."""
