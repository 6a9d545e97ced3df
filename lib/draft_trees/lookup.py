"""Trees from counted text: a datastore (REST), and tri-grams that adapt (ADED).

Drafting takes no pass of any model. Fixed drafts, so `match`; what they hold follows
from the past, so the law is kept. Sources: 2311.08252 (REST), 2407.12021 (ADED).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lib.draft_trees.shapes import best_first
from lib.kit.checks import count, need
from lib.language.ngrams import counted
from lib.speculative.drafters import NOTHING
from lib.speculative.harness import Budget, Out, Session, Tree, Verdict

BITS = 62


class Datastore:
    """Text, counted: what followed every context of 1 to `order` tokens, how often.

    tokens: (n,) text; V: symbols; order: longest context; least: how often a
    continuation must have been seen. Raises ValueError. Source: 2311.08252 (there a
    suffix array; here sorted runs of order + 1 tokens).
    """

    def __init__(
        self, tokens: Sequence[int], V: int, order: int = 5, least: int = 2
    ) -> None:
        count("V", V, 2)
        count("order", order)
        count("least", least)
        self.V, self.order, self.least = V, order, least
        self.bits = (V - 1).bit_length()
        need(
            (order + 1) * self.bits <= BITS,
            f"order {order} over {V} symbols needs {(order + 1) * self.bits} bits; "
            f"give an order of at most {BITS // self.bits - 1}.",
        )
        tokens = np.asarray(tokens, np.int64)
        need(
            len(tokens) > order and tokens.min() >= 0 and tokens.max() < V,
            f"Give more than {order} tokens, all of 0 to {V - 1}, to count in.",
        )
        self.levels = counted(tokens, order, self.bits)[1:]

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(part.nbytes for level in self.levels for part in level)

    def after(self, context: Sequence[int], most: int) -> list[tuple[int, float]]:
        """What followed the longest context that was seen: [(token, share)].

        context: tokens before; most: continuations, the most frequent first, of equals
        the lowest. A share is (count - 0.5) / all.
        """
        for k in range(min(self.order, len(context)), 0, -1):
            runs, counts = self.levels[k - 1]
            code = 0
            for symbol in context[len(context) - k :]:
                code = (code << self.bits) | int(symbol)
            ends = [code << self.bits, (code + 1) << self.bits]
            begin, end = runs.searchsorted(ends)
            own = counts[begin:end]
            best = np.argsort(-own, kind="stable")[:most]
            best = best[own[best] >= self.least]
            if len(best):
                symbols = runs[begin:end][best] & ((1 << self.bits) - 1)
                shares = (own[best] - 0.5) / own.sum()
                return list(zip(symbols.tolist(), shares.tolist()))
        return []


class DatastoreTree:
    """The likeliest paths of a datastore, without a model (REST).

    store; nodes: drafted at most; width: continuations looked at under a node. Raises
    ValueError. Source: 2311.08252; grown by the rule of `best_first`.
    """

    def __init__(self, store: Datastore, nodes: int = 16, width: int = 8) -> None:
        count("nodes", nodes)
        count("width", width)
        self.store, self.nodes, self.width = store, nodes, width

    def start(self, session: Session) -> None:
        """Raises ValueError for another vocabulary."""
        need(
            session.target.vocab == self.store.V,
            f"The datastore counts {self.store.V} tokens; the target knows "
            f"{session.target.vocab}. Count text in the target's tokens.",
        )
        self.tokens = session.tokens

    def propose(self, budget: Budget) -> Tree:
        """The best tree; paths that are less likely than `stop` are left out."""
        if min(budget.nodes, budget.depth) <= 0:
            return NOTHING
        tail = self.tokens[max(len(self.tokens) - self.store.order, 0) :]
        return best_first(
            lambda path: self.store.after([*tail, *path], self.width),
            min(self.nodes, budget.nodes),
            budget.depth,
            budget.stop,
        ).tree

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Nothing to learn."""


class Trigrams:
    """What followed each pair of tokens, learnt while decoding, and how it fared.

    counts: {pair: {token: weight}}; tried: {pair: {token: times drafted}}. Can be
    handed from prompt to prompt. Source: 2407.12021 (tri-gram representation).
    """

    def __init__(self) -> None:
        self.counts: dict[tuple[int, int], dict[int, float]] = {}
        self.tried: dict[tuple[int, int], dict[int, int]] = {}

    def add(self, a: int, b: int, token: int, weight: float = 1.0) -> None:
        """Note that a token followed (a, b)."""
        own = self.counts.setdefault((a, b), {})
        own[token] = own.get(token, 0.0) + weight

    def learn(self, tokens: Sequence[int], new: int) -> None:
        """Note the last `new` tokens of a text."""
        for end in range(max(len(tokens) - new, 2), len(tokens)):
            self.add(*tokens[end - 2 : end + 1])

    def after(
        self, a: int, b: int, most: int, explore: float = 0.0
    ) -> list[tuple[int, float]]:
        """[(token, score)] behind (a, b), the largest first, scores at most 1.

        explore: added to a token's share is explore * share * sqrt(tries of all) /
        (1 + its own), so that what was rarely drafted gets its turn.
        """
        own = self.counts.get((a, b))
        if not own:
            return []
        total, tried = sum(own.values()), self.tried.get((a, b), {})
        bonus = explore * math.sqrt(sum(tried.values()))
        scores = [
            (token, min(1.0, weight / total * (1 + bonus / (1 + tried.get(token, 0)))))
            for token, weight in own.items()
        ]
        return sorted(scores, key=lambda one: (-one[1], one[0]))[:most]

    def drafted(self, a: int, b: int, token: int) -> None:
        """Note that a token was tried behind (a, b)."""
        own = self.tried.setdefault((a, b), {})
        own[token] = own.get(token, 0) + 1


class Adaptive:
    """A tree from tri-grams that every verified token updates (ADED).

    table: None for a new one; nodes: drafted at most; explore: weight of exploration
    against exploitation, 0 for none; width: children looked at under a node; likely:
    how many of the target's own likeliest tokens are learnt at judged places, with
    their probability as weight.
    Raises ValueError. Source: 2407.12021; there the draft comes from a Monte-Carlo tree
    search, here from best-first search with its exploration bonus (simplified).
    """

    def __init__(
        self,
        table: Trigrams | None = None,
        nodes: int = 16,
        explore: float = 0.0,
        width: int = 8,
        likely: int = 0,
    ) -> None:
        need(explore >= 0, f"explore is {explore}; give 0 or more.")
        count("nodes", nodes)
        count("width", width)
        count("likely", likely, 0)
        self.table = Trigrams() if table is None else table
        self.nodes, self.width = nodes, width
        self.explore, self.likely = explore, likely

    def start(self, session: Session) -> None:
        """Learn the prompt."""
        self.session, self.seen = session, len(session.tokens)
        self.table.learn(session.tokens, self.seen)

    def propose(self, budget: Budget) -> Tree:
        """The tree with the best scores along its paths."""
        self.tail = self.session.tokens[-2:]
        if len(self.tail) < 2 or min(budget.nodes, budget.depth) <= 0:
            return NOTHING
        return best_first(
            lambda path: self.table.after(
                *[*self.tail, *path][-2:], self.width, self.explore
            ),
            min(self.nodes, budget.nodes),
            budget.depth,
            budget.stop,
        ).tree

    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None:
        """Learn what was emitted, what was tried, and what the target found likely."""
        text = self.session.tokens
        self.table.learn(text, len(text) - self.seen)
        self.seen = len(text)
        path, under = [*self.tail], tree.children()
        for node in (-1, *verdict.path):
            path += [tree.tokens[node]] if node >= 0 else []
            if len(path) < 2:
                continue
            for kid in under[node + 1]:
                self.table.drafted(*path[-2:], tree.tokens[kid])
            if self.likely:
                law = self.session.warp(out.logits[node + 1])
                for token in np.argsort(-law, kind="stable")[: self.likely]:
                    self.table.add(*path[-2:], int(token), float(law[token]))
