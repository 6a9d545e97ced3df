"""One machine for all drafting methods: drafter, verifier, controller and the loop.

A round drafts a tree of tokens, lets the target read all of them in one pass, accepts a
path and adds one token more. A chain is a tree with one branch, greedy decoding is
sampling from one-hot laws, and plain decoding drafts nothing. Sources: 2211.17192,
2302.01318 (chains), 2305.09781 (trees); specification, section 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from lib.kit.checks import choice, count, need
from lib.speculative.dice import Dice, Random
from lib.speculative.laws import Warp

DRAWN = ("fixed", "iid", "without")


@dataclass(slots=True)
class Tree:
    """Drafted tokens, parents before children.

    tokens: (n,); parents: (n,) of node i a number in -1 .. i - 1, -1 being the last
    committed token, None for a chain; q: (n, V) the law that each node was drawn from
    given its parent (and, without replacement, its earlier siblings), None for a draft
    that chance had no part in; drawn: how siblings were drawn, "iid", "without"
    (replacement) or "fixed" (no q); extra: what a drafter hands to its own target.
    """

    tokens: Sequence[int] = ()
    parents: Sequence[int] | None = None
    q: Any = None
    drawn: str = "fixed"
    extra: Any = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def chain(self) -> bool:
        """Whether it has one branch."""
        return self.parents is None or all(
            parent == node - 1 for node, parent in enumerate(self.parents)
        )

    def children(self) -> list[list[int]]:
        """The nodes under the last committed token, then under each node, in order."""
        under: list[list[int]] = [[] for _ in range(len(self.tokens) + 1)]
        for node in range(len(self.tokens)):
            parent = node - 1 if self.parents is None else self.parents[node]
            under[parent + 1].append(node)
        return under

    def depths(self) -> list[int]:
        """Distance of each node from the last committed token, from 1."""
        if self.parents is None:
            return list(range(1, len(self.tokens) + 1))
        depth: list[int] = []
        for parent in self.parents:
            depth.append(1 if parent < 0 else depth[parent] + 1)
        return depth


class Event(NamedTuple):
    """One decision: kind is "accepted", "rejected", "resampled" or "bonus".

    node: -1 where none was drafted; p, q: of the token, q is 1 for a fixed draft; u:
    the uniform number of the test.
    """

    kind: str
    node: int
    token: int
    p: float
    q: float = 1.0
    u: float = float("nan")


class Verdict(NamedTuple):
    """What a pass decided: accepted nodes from root to leaf, and one token more."""

    path: list[int]
    token: int
    events: list[Event]


class Out(NamedTuple):
    """What a target's pass gives: a row for the last token and one for each node.

    laws: (n + 1, V) logits; hidden: (n + 1, d) or None.
    """

    logits: np.ndarray
    hidden: Any = None


@dataclass(slots=True, frozen=True)
class Budget:
    """What a drafter may draft: depth, nodes in all, and when to stop.

    stop: a drafter stops before a token if the largest of its law, times the draft's
    probability so far where `product` says so, is below it; 0 never stops.
    """

    depth: int
    nodes: int = 10**9
    stop: float = 0.0
    product: bool = True

    def ends(self, sure: float, law: np.ndarray) -> bool:
        """Whether to draft no further. sure: probability so far; law: (V,) of the next.

        It looks at nothing that is drawn from this law, so the draft stays honest.
        """
        if self.stop <= 0:
            return False
        return (sure if self.product else 1.0) * float(law.max()) < self.stop


class Target(Protocol):
    """A model that can read a draft in one pass. It has no chance in it.

    After `start` and every `commit` the state has read all committed tokens but the
    last. `forward` reads that one and the nodes; `commit` keeps a path of them; `crop`
    forgets what lies behind some rows.
    """

    vocab: int
    max_len: int

    def start(self, prompt: Sequence[int], room: int = 256) -> Any: ...
    def forward(self, state: Any, last: int, tree: Tree) -> Out: ...
    def commit(self, state: Any, path: Sequence[int]) -> None: ...
    def crop(self, state: Any, rows: int) -> None: ...
    def rows(self, state: Any) -> int: ...


@dataclass(slots=True)
class Session:
    """One decoding: what a drafter may look at.

    target, state: of the model that judges; tokens: prompt and all committed ones;
    warp; dice; prompt: its number of tokens; firm: tokens that can never be taken back,
    None for all (inside a draft of a draft they are fewer).
    """

    target: Any
    state: Any
    tokens: list[int]
    warp: Warp
    dice: Dice
    prompt: int
    firm: int | None = None

    @property
    def sure(self) -> int:
        """How many tokens can never be taken back."""
        return len(self.tokens) if self.firm is None else self.firm


class Drafter(Protocol):
    """Proposes what the target may like."""

    def start(self, session: Session) -> None: ...
    def propose(self, budget: Budget) -> Tree: ...
    def observe(self, tree: Tree, out: Out, verdict: Verdict) -> None: ...


class Verifier(Protocol):
    """Decides from the tree and the target's laws p (n + 1, V) what is emitted."""

    def __call__(self, tree: Tree, p: np.ndarray, dice: Dice) -> Verdict: ...


class Controller(Protocol):
    """Decides how much is drafted, and learns from what came of it."""

    def budget(self) -> Budget: ...
    def update(self, tree: Tree, verdict: Verdict, seconds: float) -> None: ...


# -- what happened --------------------------------------------------------------------


class Step(NamedTuple):
    """A round: drafted nodes, their depth, accepted ones, emitted tokens, seconds."""

    drafted: int
    depth: int
    accepted: int
    emitted: int
    draft_s: float = 0.0
    target_s: float = 0.0
    rest_s: float = 0.0


@dataclass(slots=True)
class Trace:
    """What a decoding did: a row a round, and the events if they were kept.

    start_s: seconds of reading the prompt, on both sides; cuts: emitted tokens that
    were cut off at the end.
    """

    steps: list[Step] = field(default_factory=list)
    rounds: list[tuple[Tree, Verdict]] = field(default_factory=list)
    start_s: float = 0.0

    @property
    def passes(self) -> int:
        """Passes of the target."""
        return len(self.steps)

    @property
    def emitted(self) -> int:
        """New tokens."""
        return sum(step.emitted for step in self.steps)

    @property
    def tau(self) -> float:
        """New tokens a pass of the target."""
        return self.emitted / max(self.passes, 1)

    @property
    def tested(self) -> int:
        """Depths at which a drafted token was judged: the accepted and one failure."""
        return sum(min(s.accepted + 1, s.depth) for s in self.steps)

    @property
    def acceptance(self) -> float:
        """Accepted of the judged tokens."""
        accepted = sum(s.accepted for s in self.steps)
        return accepted / self.tested if self.tested else float("nan")

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all rounds, without reading the prompt."""
        return sum(s.draft_s + s.target_s + s.rest_s for s in self.steps)

    def summary(self) -> dict[str, float]:
        """The figures that every method reports, of this decoding."""
        new = max(self.emitted, 1)
        drafted = sum(s.drafted for s in self.steps)
        return {
            "tau": self.tau,
            "acceptance": self.acceptance,
            "drafted": drafted / new,
            "target_tokens": (drafted + self.passes) / new,
            "draft_s": sum(s.draft_s for s in self.steps) / new,
            "target_s": sum(s.target_s for s in self.steps) / new,
            "rest_s": sum(s.rest_s for s in self.steps) / new,
            "seconds": self.seconds / new,
        }


# -- the loop -------------------------------------------------------------------------


def decode(
    target: Target,
    drafter: Drafter,
    verifier: Verifier,
    controller: Controller,
    prompt: Sequence[int],
    most: int,
    *,
    warp: Warp | None = None,
    seed: int = 0,
    dice: Dice | None = None,
    eos: int | None = None,
    keep: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[int], Trace]:
    """Continue a prompt, several tokens a pass where the draft is good.

    target, drafter, verifier, controller: see their protocols; prompt: tokens, at least
    one; most: new tokens; warp: from logits to laws, None for temperature 1; seed: of
    the dice, or dice themselves; eos: the token that ends a text, emitted as its last;
    keep: whether the trace keeps every tree and verdict; clock: of the trace's seconds.
    Returns the new tokens and the trace. Raises ValueError for a prompt, a number, or a
    text beyond the context.
    Source: 2211.17192, algorithm 1; specification, section 1.
    """
    check_prompt(target, prompt, most)
    warp, dice = warp or Warp(), dice or Random(seed)
    now = clock
    begin = now()
    tokens = list(prompt)
    state = target.start(tokens, min(most, target.max_len - len(tokens)) + 64)
    drafter.start(Session(target, state, tokens, warp, dice, len(prompt)))
    trace = Trace(start_s=now() - begin)
    ended = most == 0
    while not ended:
        left = most - (len(tokens) - len(prompt))
        t0 = now()
        budget = within(controller.budget(), left - 1, target.max_len - len(tokens))
        tree = drafter.propose(budget)
        t1 = now()
        out = target.forward(state, tokens[-1], tree)
        t2 = now()
        verdict = verifier(tree, warp(out.logits), dice)
        new, ended = kept(said(tree, verdict), left, eos)
        tokens += new
        target.commit(state, verdict.path)
        drafter.observe(tree, out, verdict)
        n = len(tree.tokens)
        depth = n if tree.parents is None else max(tree.depths(), default=0)
        t3 = now()
        step = Step(n, depth, len(verdict.path), len(new), t1 - t0, t2 - t1, t3 - t2)
        trace.steps.append(step)
        controller.update(tree, verdict, t3 - t0)
        if keep:
            trace.rounds.append((tree, verdict))
    return tokens[len(prompt) :], trace


def said(tree: Tree, verdict: Verdict) -> list[int]:
    """What a round emits: the accepted tokens of the tree, and the one more."""
    return [*(tree.tokens[node] for node in verdict.path), verdict.token]


def kept(new: list[int], left: int, eos: int | None) -> tuple[list[int], bool]:
    """New tokens up to the end token, and whether the text ends with them.

    new: emitted; left: how many the text still wants; eos: the token that ends it.
    """
    if eos is not None and eos in new:
        return new[: new.index(eos) + 1], True
    return new, len(new) >= left


def within(budget: Budget, depth: int, nodes: int) -> Budget:
    """A budget that ends where the text does: a pass always adds one token by itself.

    depth: tokens that may still be drafted; nodes: rows that are left of the context.
    """
    if budget.depth <= depth and budget.nodes <= nodes:
        return budget
    depth, nodes = min(budget.depth, depth), min(budget.nodes, nodes)
    return replace(budget, depth=depth, nodes=nodes)


def check_prompt(target: Target, prompt: Sequence[int], most: int) -> None:
    """Raises ValueError for an empty prompt, or a text beyond the target's context."""
    need(len(prompt) > 0, "The prompt is empty; give at least one token.")
    count("most", most, 0)
    need(
        len(prompt) + most <= target.max_len,
        f"{len(prompt)} tokens of prompt and {most} more are longer than the context "
        f"of {target.max_len}; shorten the prompt, or ask for at most "
        f"{max(target.max_len - len(prompt), 0)}.",
    )


def check_tree(tree: Tree, budget: Budget, vocab: int) -> None:
    """Raises ValueError for a tree that no honest drafter makes.

    Parents must come before children, tokens be known, siblings of a fixed draft
    differ, nodes fit the budget, and q be the law that the tokens were drawn from.
    """
    n = len(tree.tokens)
    choice("drawn", tree.drawn, DRAWN)
    need(
        n <= budget.nodes,
        f"The tree has {n} nodes; the budget allows {budget.nodes}. Draft less.",
    )
    parents = range(-1, n - 1) if tree.parents is None else tree.parents
    need(
        len(parents) == n and all(-1 <= b < a for a, b in enumerate(parents)),
        f"The parents {list(parents)[:8]} are not in order; a parent stands before its "
        "child, and -1 is the last committed token.",
    )
    deepest = max(tree.depths(), default=0)
    need(
        deepest <= max(budget.depth, 0),
        f"The tree is {deepest} deep; the budget allows {budget.depth}.",
    )
    wrong = [token for token in tree.tokens if not 0 <= token < vocab]
    need(
        not wrong,
        f"The draft holds token {wrong[:1]}; the target knows 0 to {vocab - 1}. Do "
        "both have the same tokenizer?",
    )
    need(
        (tree.q is None) == (tree.drawn == "fixed") or n == 0,
        f"A draft drawn {tree.drawn!r} {'has' if tree.q is not None else 'lacks'} q; "
        "give the law of each drawn node, and none for a fixed draft.",
    )
    if tree.q is not None:
        for node, token in enumerate(tree.tokens):
            need(
                len(tree.q[node]) == vocab and tree.q[node][token] > 0,
                f"Node {node} drew token {token}, to which its law gives nothing: q is "
                "not the law that was drawn from.",
            )
    elif tree.parents is not None:
        for row in tree.children():
            kinds = [tree.tokens[node] for node in row]
            need(
                len(set(kinds)) == len(kinds),
                "Siblings of a fixed tree hold the same token; put each token once.",
            )
