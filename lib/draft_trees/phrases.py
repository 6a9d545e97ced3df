"""Drafts from phrases that the target itself has hinted at: Lookahead, Ouroboros.

A pool keeps short runs of tokens by the token before them; what it offers is verified
as branches of a tree. Lookahead fills it from a window of Jacobi iterations that rides
in the same pass, Ouroboros from verified text and discarded drafts. Fixed drafts, so
`match`; they follow from the past, so the law is kept. Sources: 2402.02057, 2402.13720.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lib.draft_trees.shapes import within_budget
from lib.kit.checks import count
from lib.speculative.drafters import Reader
from lib.speculative.harness import Budget, Out, Session, Target, Tree, Verdict


class Phrases:
    """Runs of tokens by the token before them, the latest first.

    each: phrases kept for one token. A pool can be handed from prompt to prompt. Raises
    ValueError. Source: 2402.02057 (n-gram pool).
    """

    def __init__(self, each: int = 16) -> None:
        count("each", each)
        self.each, self.known = each, {}

    def __len__(self) -> int:
        return sum(map(len, self.known.values()))

    def add(self, first: int, phrase: Sequence[int]) -> None:
        """Note that `phrase` may follow a token; the oldest of too many goes."""
        phrase = tuple(phrase)
        if phrase:
            own = self.known.setdefault(first, {})
            own.pop(phrase, None)  # a dictionary keeps the order of arrival
            own[phrase] = True
            if len(own) > self.each:
                del own[next(iter(own))]

    def after(self, token: int, most: int) -> list[tuple[int, ...]]:
        """At most `most` phrases that may follow a token, the latest first."""
        return list(reversed(self.known.get(token, {})))[:most]

    def learn(self, tokens: Sequence[int], length: int, new: int) -> None:
        """Add all runs of `length` behind a token that end in the last `new` tokens."""
        for end in range(max(len(tokens) - new, length) + 1, len(tokens) + 1):
            self.add(tokens[end - length - 1], tokens[end - length : end])


# -- Lookahead ------------------------------------------------------------------------


def window_paths(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """What each column's last token has before it: one path a column.

    rows: (N - 1, W) tokens; entry (r, j) stands r + j + 1 places behind the last
    committed token and sees row 0 up to column j and its own column's earlier rows. So
    the window is a tree: row 0 is its trunk, each column a branch (derived here).
    """
    first = list(rows[0])
    return [first[: j + 1] + [row[j] for row in rows[1:]] for j in range(len(first))]


def window_sees(levels: int, width: int) -> np.ndarray:
    """The window's attention mask by its rule: (levels width, levels width) bool.

    levels: N - 1 rows; width: W columns; entry r W + j is token (r, j). For comparing
    with the tree's own mask. Source: 2402.02057 (layout as recalled, unverified).
    """
    sees = np.zeros((levels, width, levels, width), bool)
    for j in range(width):
        sees[:, j, 0, : j + 1] = True
        for r in range(1, levels):
            sees[r, j, 1 : r + 1, j] = True
    return sees.reshape(levels * width, levels * width)


class Lookahead:
    """A window of Jacobi iterations fills a pool, whose phrases the same pass verifies.

    window: W columns; length: N, tokens of a phrase with the one before it; guesses: G
    phrases verified at most; pool: None for a new one. The tree has at most
    (N - 1)(W + G) nodes and is `depth` deep: give Fixed(drafter.depth). Needs no model.
    hits: rounds in which a phrase was offered, and in which one was accepted. Raises
    ValueError. Source: 2402.02057; that the window is a tree is derived here.
    """

    def __init__(
        self, window: int = 5, length: int = 4, guesses: int = 5, pool=None
    ) -> None:
        count("window", window)
        count("length", length, 2)
        count("guesses", guesses)
        self.window, self.levels, self.guesses = window, length - 1, guesses
        self.pool = Phrases() if pool is None else pool
        self.hits = [0, 0]

    @property
    def depth(self) -> int:
        """Of the deepest node that is ever drafted."""
        return self.window + self.levels - 1

    def start(self, session: Session) -> None:
        """Fill the window with the prompt's own tokens, and learn its phrases."""
        self.session, text = session, session.tokens
        self.pool.learn(text, self.levels, len(text))
        turn = [text[k % len(text)] for k in range(self.levels + self.window)]
        self.rows = [turn[r : r + self.window] for r in range(self.levels)]
        self.seen = len(text)

    def propose(self, budget: Budget) -> Tree:
        """Phrases first, then the window, each common beginning once."""
        self.offered = self.pool.after(self.session.tokens[-1], self.guesses)
        self.paths = window_paths(self.rows)
        return within_budget([*self.offered, *self.paths], budget)

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """One Jacobi step of the window; its columns are phrases."""
        place = places(tree)
        accepted = tuple(tree.tokens[node] for node in verdict.path)
        self.hits[0] += bool(self.offered)
        self.hits[1] += any(accepted[:1] == one[:1] for one in self.offered)
        if all(tuple(path) in place for path in self.paths):  # the budget let it in
            nodes = [place[tuple(path)] for path in self.paths]
            new = [int(out.logits[node + 1].argmax()) for node in nodes]
            columns = zip(*self.rows, new)
            for first, *phrase in columns:
                self.pool.add(first, phrase)
            self.rows = [*self.rows[1:], new]  # one place on, as the text is
        text = self.session.tokens
        self.pool.learn(text, self.levels, len(text) - self.seen)
        self.seen = len(text)


def places(tree: Tree) -> dict[tuple[int, ...], int]:
    """The node of every path of a fixed tree, {tokens: node}; () is -1."""
    paths: dict[int, tuple[int, ...]] = {-1: ()}
    parents = range(-1, len(tree) - 1) if tree.parents is None else tree.parents
    for node, parent in enumerate(parents):
        paths[node] = (*paths[parent], tree.tokens[node])
    return {path: node for node, path in paths.items()}


# -- Ouroboros ------------------------------------------------------------------------


class Ouroboros:
    """A model's likeliest chain, its last token extended by several pooled phrases.

    model: the draft; gamma: tokens of its chain, one pass each; length: of a phrase;
    branches: phrases verified at once; pool: None for a new one, or one that has seen
    other prompts (warm). The pool learns verified text, and of discarded drafts the
    runs that the target agreed with behind the mistake. `passes` counts those of the
    draft. Raises ValueError. Source: 2402.13720 (what is pooled: as recalled,
    unverified).
    """

    def __init__(
        self,
        model: Target,
        gamma: int = 3,
        length: int = 3,
        branches: int = 3,
        pool=None,
    ) -> None:
        count("gamma", gamma, 0)
        count("length", length)
        count("branches", branches)
        self.model, self.gamma, self.length = model, gamma, length
        self.branches, self.passes = branches, 0
        self.pool = Phrases() if pool is None else pool

    @property
    def depth(self) -> int:
        """Of the deepest node that is ever drafted."""
        return self.gamma + self.length

    def start(self, session: Session) -> None:
        """Read the prompt and learn its phrases. Raises ValueError."""
        self.reader, self.session = Reader(self.model, session), session
        self.pool.learn(session.tokens, self.length, len(session.tokens))
        self.seen = len(session.tokens)

    def propose(self, budget: Budget) -> Tree:
        """A chain and its extensions, within depth and nodes."""
        most = min(budget.depth, budget.nodes)
        drafted: list[int] = []
        waiting = self.reader.catch_up()
        while len(drafted) < min(self.gamma, most, self.reader.room):
            drafted.append(int(self.reader.law(waiting).argmax()))
            self.passes += 1
            waiting = drafted[-1:]
        last = drafted[-1] if drafted else self.session.tokens[-1]
        more = self.pool.after(last, self.branches)
        return within_budget(
            [[*drafted, *phrase] for phrase in more] or [drafted], budget
        )

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Learn what was verified, and what was discarded but agreed with."""
        self._discarded(tree, out, verdict)
        text = self.session.tokens
        self.pool.learn(text, self.length, len(text) - self.seen)
        self.seen = len(text)

    def _discarded(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Runs of discarded nodes, each the target's choice behind its parent."""
        parents = range(-1, len(tree) - 1) if tree.parents is None else tree.parents
        choice = out.logits.argmax(-1)
        kept, runs = set(verdict.path), {}
        for node, parent in enumerate(parents):
            if node in kept or parent < 0 or tree.tokens[node] != choice[parent + 1]:
                continue
            first, run = runs.pop(parent, (tree.tokens[parent], ()))
            runs[node] = first, (*run, tree.tokens[node])
        for first, run in runs.values():  # only those that nothing goes on from
            self.pool.add(first, run[: self.length])
