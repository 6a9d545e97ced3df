"""How much to draft, learnt while decoding: thresholds that adapt, Thompson sampling.

Every rule looks at the past and at its own random numbers only, never at the tokens of
the draft it decides about, so the law is kept. Sources: 2309.08168 (adaptive draft
exit), 2406.03853 (EESD); specification, sections 5.1 and 5.9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lib.kit.checks import count, need
from lib.speculative import (
    Budget,
    Controller,
    Tree,
    Verdict,
    expected_tokens,
)


@dataclass
class AdaptiveThreshold:
    """Stop drafting below a confidence that follows recent acceptance.

    With mean acceptance A <- keep A + (1 - keep) a of the last draft, the threshold
    moves up by `move` if A is below `aim`, else down, smoothed by `smooth`. threshold:
    at first; most: tokens of a draft. Source: 2309.08168 (form and constants as
    recalled, unverified).
    """

    aim: float = 0.7
    threshold: float = 0.6
    most: int = 12
    move: float = 0.05
    keep: float = 0.5
    smooth: float = 0.9
    acceptance: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        for name in ("aim", "threshold", "keep", "smooth"):
            value = getattr(self, name)
            need(0 <= value <= 1, f"{name} is {value}; give 0 to 1.")
        need(self.move > 0, f"move is {self.move}; give a positive step.")
        count("most", self.most)
        self.acceptance = self.aim

    def budget(self) -> Budget:
        """Until the largest probability falls below the threshold."""
        return Budget(self.most, stop=self.threshold, product=False)

    def update(self, tree: Tree, verdict: Verdict, seconds: float) -> None:
        """Follow the acceptance; a round without a draft counts as a success."""
        share = len(verdict.path) / len(tree) if len(tree) else 1.0
        self.acceptance = self.keep * self.acceptance + (1 - self.keep) * share
        up = self.move if self.acceptance < self.aim else -self.move
        wanted = self.smooth * self.threshold + (1 - self.smooth) * (
            self.threshold + up
        )
        self.threshold = min(max(wanted, 0.0), 1.0)


@dataclass
class Thompson:
    """Draft on while a coin with a sampled acceptance says so.

    Before each token an acceptance is drawn from Beta(1 + successes, 1 + failures) and
    a coin with it; counts are those of judged tokens. Length follows from belief alone,
    not from what drafting costs, so it drafts too much where drafting is dear. most:
    tokens; forget: what a count keeps at each round, 1 for all; seed: of its own
    numbers. Source: 2406.03853 (naive form).
    """

    most: int = 12
    forget: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        count("most", self.most)
        need(0 < self.forget <= 1, f"forget is {self.forget}; give above 0, at most 1.")
        self.rng = np.random.default_rng(self.seed)
        self.yes = self.no = 0.0

    def sampled(self) -> float:
        """An acceptance that the counts allow."""
        return float(self.rng.beta(1 + self.yes, 1 + self.no))

    def budget(self) -> Budget:
        """As many tokens as coins fall well."""
        depth = 0
        while depth < self.most and self.rng.random() < self.sampled():
            depth += 1
        return Budget(depth)

    def update(self, tree: Tree, verdict: Verdict, seconds: float) -> None:
        """Count the judged tokens: the accepted ones, and the failure if there was."""
        self.note(len(verdict.path), len(tree))

    def note(self, accepted: int, drafted: int) -> None:
        """Note a draft's outcome; see `update`."""
        self.yes = self.forget * self.yes + accepted
        self.no = self.forget * self.no + (accepted < drafted)


@dataclass
class CostAware(Thompson):
    """Thompson sampling that asks what one more token costs.

    With sampled acceptances a_1, a_2, ... draft a (k + 1)-th token while a_1 .. a_{k+1}
    > rate (c_d + c(k + 2) - c(k + 1)): its expected gain against what its price would
    buy at the present rate, tokens a unit of cost over the rounds so far. draft: c_d;
    cost: c(k), None for 1; together: one sampled acceptance a round, or one a token.
    Source: specification, section 5.9; the rate is that of renewal-reward.
    """

    draft: float = 0.1
    cost: Callable[[int], float] | None = None
    together: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        need(self.draft >= 0, f"draft is {self.draft}; give a cost of 0 or more.")
        self.tokens = self.paid = 0.0

    def price(self, depth: int) -> float:
        """What a round with so many drafted tokens costs, in plain passes."""
        wide = 1.0 if self.cost is None else self.cost(depth + 1)
        return depth * self.draft + wide

    @property
    def rate(self) -> float:
        """Tokens a unit of cost so far; plain decoding's before anything is known."""
        return self.tokens / self.paid if self.paid else 1.0

    def budget(self) -> Budget:
        """As many tokens as pay at a sampled acceptance."""
        depth, gain, a = 0, 1.0, self.sampled()
        while depth < self.most:
            gain *= a if self.together else self.sampled()
            if gain <= self.rate * (self.price(depth + 1) - self.price(depth)):
                break
            depth += 1
        return Budget(depth)

    def note(self, accepted: int, drafted: int) -> None:
        """Note a draft's outcome and its price."""
        super().note(accepted, drafted)
        self.tokens = self.forget * self.tokens + accepted + 1
        self.paid = self.forget * self.paid + self.price(drafted)


# -- regret on streams whose acceptance is known --------------------------------------


@dataclass(frozen=True)
class Regret:
    """What a controller earned on a stream, against the best fixed length.

    lengths: (rounds,) drafted; lost: (rounds,) tokens behind the best fixed length up
    to each round, at equal cost; best: that length, chosen with hindsight; rate,
    best_rate: expected tokens a unit of cost.
    """

    lengths: np.ndarray
    lost: np.ndarray
    best: int
    rate: float
    best_rate: float


def regret(
    controller: Controller,
    acceptances: Sequence[float],
    draft: float,
    cost: Callable[[int], float] | None = None,
    *,
    most: int = 12,
    seed: int = 0,
) -> Regret:
    """Play a controller on rounds of known acceptance; expectations in closed form.

    controller: any with `budget` and `update`; acceptances: (rounds,) chance that a
    drafted token passes, i.i.d. within a round; draft: c_d; cost: c(k), None for 1;
    most: longest fixed length to compare with; seed: of the outcomes that the
    controller sees. What a round earns is E[tau] at its length, not the outcome, so the
    figures have less noise. `lost` counts rate* x cost - E[tau] with the best fixed
    length's rate*: a fixed length of hindsight that cannot follow a drift may be beaten
    (negative). Raises ValueError for acceptances outside 0 to 1.
    """
    a = np.asarray(acceptances, float)
    need(len(a) > 0, "No rounds were given.")
    need(bool(((a >= 0) & (a <= 1)).all()), "Acceptances lie between 0 and 1.")
    lengths = played(controller, a, seed)

    def price(depth: int) -> float:
        return depth * draft + (1.0 if cost is None else cost(depth + 1))

    fixed = [
        np.mean([expected_tokens(x, g) for x in a]) / price(g) for g in range(most + 1)
    ]
    best = int(np.argmax(fixed))
    earned = np.array([expected_tokens(x, g) for x, g in zip(a, lengths)])
    paid = np.array([price(g) for g in lengths])
    lost = np.cumsum(fixed[best] * paid - earned)
    rate = float(earned.sum() / paid.sum())
    return Regret(np.array(lengths), lost, best, rate, float(fixed[best]))


def played(controller: Controller, acceptances: np.ndarray, seed: int) -> list[int]:
    """The lengths that a controller drafts on a stream, told of drawn outcomes."""
    rng, lengths = np.random.default_rng(seed), []
    for chance in acceptances:
        drafted = controller.budget().depth
        u = rng.random(drafted) < chance
        accepted = drafted if u.all() else int(u.argmin())
        outcome = Verdict(list(range(accepted)), 0, [])
        controller.update(Tree([0] * drafted), outcome, 0.0)
        lengths.append(drafted)
    return lengths


def drifting(levels: Sequence[float], length: int) -> np.ndarray:
    """Acceptances that stay at each level for `length` rounds, one after another."""
    count("length", length)
    return np.repeat(np.asarray(levels, float), length)
