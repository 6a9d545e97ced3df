"""What is accepted of a draft, so that what is emitted has the target's law.

Every verifier is a function of the tree, the target's laws p (n + 1, V), whose row 0
follows the last committed token and row i + 1 follows node i, and dice. `lossless`
picks the plain one for a tree. The last sections change the law, and say so.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lib.kit.checks import need
from lib.speculative.dice import Dice
from lib.speculative.harness import Event, Tree, Verdict
from lib.speculative.laws import residual, without
from lib.speculative.theory import k_seq_rate


def lossless(tree: Tree, p: np.ndarray, dice: Dice) -> Verdict:
    """`match` for a fixed draft, `siblings` (on a chain: the token rule) for a drawn.

    tree; p: (n + 1, V); dice. Returns the verdict.
    """
    return (match if tree.q is None else siblings)(tree, p, dice)


# -- fixed drafts ---------------------------------------------------------------------


def match(tree: Tree, p: np.ndarray, dice: Dice) -> Verdict:
    """Draw from the target, and go on as long as the draft holds what was drawn.

    The law is p whatever was drafted, for chains and trees. It is speculative sampling
    with a draft that is certain: accept x with p(x), else draw from p without x; on a
    one-hot p it is the greedy comparison. Source: derived; 2305.09781 (trees).
    """
    if tree.parents is None:
        return _match_chain(tree, p, dice)
    path: list[int] = []
    events: list[Event] = []
    under, node = tree.children(), -1
    while True:
        law = p[node + 1]
        token = dice.draw(law)
        found = [kid for kid in under[node + 1] if tree.tokens[kid] == token]
        if not found:
            break
        node = found[0]
        path.append(node)
        events.append(Event("accepted", node, token, float(law[token])))
    kids = under[node + 1]
    events += [
        Event("rejected", kid, tree.tokens[kid], float(law[tree.tokens[kid]]))
        for kid in kids
    ]
    events.append(Event(_last(kids), -1, token, float(law[token])))
    return Verdict(path, token, events)


def _match_chain(tree: Tree, p: np.ndarray, dice: Dice) -> Verdict:
    events = []
    for node, drafted in enumerate(tree.tokens):
        law = p[node]
        token = dice.draw(law)
        mass = float(law[drafted])
        if token != drafted:
            events.append(Event("rejected", node, drafted, mass))
            events.append(Event("resampled", -1, token, float(law[token])))
            return Verdict(list(range(node)), token, events)
        events.append(Event("accepted", node, token, mass))
    token = dice.draw(p[-1])
    events.append(Event("bonus", -1, token, float(p[-1][token])))
    return Verdict(list(range(len(tree.tokens))), token, events)


def _last(tested: list[int]) -> str:
    return "resampled" if tested else "bonus"


# -- drawn drafts ---------------------------------------------------------------------


def siblings(tree: Tree, p: np.ndarray, dice: Dice) -> Verdict:
    """Test siblings in drawing order; what one rejects is the next one's target.

    At a node x is accepted with probability min(1, p(x) / q(x)); on rejection p becomes
    (p - q)+, normalised, and the next sibling is tested with the law that it was drawn
    from; after the last, p itself is drawn from. On a chain this is speculative
    sampling. Source: 2211.17192, algorithm 1; 2305.09781; 2402.12374.
    """
    path: list[int] = []
    events: list[Event] = []
    under, node = tree.children(), -1
    while True:
        law, kids, taken = p[node + 1], under[node + 1], -1
        for kid in kids:
            token, q = tree.tokens[kid], tree.q[kid]
            passed = dice.accept(law[token], q[token])
            seen = (kid, token, float(law[token]), float(q[token]), dice.last)
            events.append(Event("accepted" if passed else "rejected", *seen))
            if passed:
                taken = kid
                break
            law = residual(law, q)
        if taken < 0:
            break
        node = taken
        path.append(node)
    token = dice.draw(law)
    events.append(Event(_last(kids), -1, token, float(p[node + 1][token])))
    return Verdict(path, token, events)


def token_rule(tree: Tree, p: np.ndarray, dice: Dice) -> Verdict:
    """Speculative sampling of a chain: accept or resample, token by token.

    Raises ValueError for another tree. Source: 2211.17192, algorithm 1.
    """
    _chain("token_rule", tree)
    return siblings(tree, p, dice)


def block_rule(tree: Tree, p: np.ndarray, dice: Dice) -> Verdict:
    """Accept the longest prefix that passes a test of its own, looking at all.

    w_i = min(1, w_{i-1} p_i(x_i) / q_i(x_i)); R_i = (w_i p_{i+1} - q_{i+1})+ has mass
    s_i; prefix i passes with probability s_i / (s_i + 1 - w_i), the whole draft with
    w_g. Never fewer accepted tokens than the token rule, on average. Raises ValueError
    for what is not a drawn chain. Source: 2403.10444 (block verification).
    """
    _chain("block_rule", tree)
    n, w = len(tree.tokens), 1.0
    best, left = 0, None if n == 0 else np.maximum(p[0] - tree.q[0], 0.0)
    events = []
    for i in range(1, n + 1):
        token, q = tree.tokens[i - 1], tree.q[i - 1]
        w = min(1.0, w * float(p[i - 1][token]) / float(q[token]))
        rest = None if i == n else np.maximum(w * p[i] - tree.q[i], 0.0)
        mass = w if rest is None else float(rest.sum())
        below = 1.0 if rest is None else mass + 1.0 - w
        # 0 / 0: w = 1 and p = q, where every prefix may pass.
        passed = dice.chance(mass / below if below > 0 else 1.0)
        seen = (i - 1, token, float(p[i - 1][token]), float(q[token]), dice.last)
        events.append((passed, seen))
        if passed:
            best, left = i, rest
    law = p[best] if left is None or not left.sum() > 0 else left / left.sum()
    token = dice.draw(law)
    told = [
        Event("accepted" if k < best else "rejected", *seen)
        for k, (_, seen) in enumerate(events)
    ]
    kind = "bonus" if best == n else "resampled"
    told.append(Event(kind, -1, token, float(p[best][token])))
    return Verdict(list(range(best)), token, told)


def k_seq(tree: Tree, p: np.ndarray, dice: Dice) -> Verdict:
    """Candidates drawn independently are tested one by one with a scaled-down p.

    Of k siblings from one q, each passes with probability min(1, p / (rho q)), rho from
    `theory.k_seq_rate`; if none does, the rest of p is drawn from. Raises ValueError
    for siblings that were not drawn independently. Source: 2310.15141 (K-SEQ).
    """
    need(
        tree.drawn == "iid" or len(tree) == 0,
        f"k_seq got siblings drawn {tree.drawn!r}; give siblings drawn independently.",
    )
    path: list[int] = []
    events: list[Event] = []
    under, node = tree.children(), -1
    while True:
        law, kids, taken = p[node + 1], under[node + 1], -1
        if not kids:
            break
        q, k = tree.q[kids[0]], len(kids)
        rho = k_seq_rate(law, q, k)
        for kid in kids:
            token = tree.tokens[kid]
            passed = dice.accept(law[token], rho * q[token])
            seen = (kid, token, float(law[token]), float(q[token]), dice.last)
            events.append(Event("accepted" if passed else "rejected", *seen))
            if passed:
                taken = kid
                break
        if taken < 0:
            taken_mass = np.minimum(q, law / rho)
            beta = float(taken_mass.sum())
            once = (1 - (1 - beta) ** k) / beta if beta > 0 else 0.0
            rest = np.maximum(law - once * taken_mass, 0.0)
            law = rest / rest.sum() if rest.sum() > 0 else law
            break
        node = taken
        path.append(node)
    token = dice.draw(law)
    events.append(Event(_last(kids), -1, token, float(p[node + 1][token])))
    return Verdict(path, token, events)


def _chain(rule: str, tree: Tree) -> None:
    need(
        tree.chain and (tree.q is not None or len(tree) == 0),
        f"{rule} reads a chain with the law of each token; this draft is "
        f"{'fixed' if tree.q is None else 'a tree'}. Take `lossless` for it.",
    )


# -- rules that change the law --------------------------------------------------------


def relaxed(passes: Callable[[np.ndarray, int], bool]) -> Callable[..., Verdict]:
    """A verifier that accepts what a rule calls good enough: the law is not p.

    passes: called with the law after the parent and the drafted token. Where nothing
    passes a token is drawn from p. Source: 1811.03115, section 5; 2401.10774.
    """

    def verify(tree: Tree, p: np.ndarray, dice: Dice) -> Verdict:
        path: list[int] = []
        events: list[Event] = []
        under, node = tree.children(), -1
        while True:
            law, kids, taken = p[node + 1], under[node + 1], -1
            for kid in kids:
                token = tree.tokens[kid]
                good = passes(law, token)
                kind = "accepted" if good else "rejected"
                events.append(Event(kind, kid, token, float(law[token])))
                if good:
                    taken = kid
                    break
            if taken < 0:
                break
            node = taken
            path.append(node)
        token = dice.draw(law)
        events.append(Event(_last(kids), -1, token, float(law[token])))
        return Verdict(path, token, events)

    return verify


def near_best(share: float) -> Callable[[np.ndarray, int], bool]:
    """Good enough: p(x) > share max p. For `relaxed`."""
    return lambda law, token: bool(law[token] > share * law.max())


def among(k: int) -> Callable[[np.ndarray, int], bool]:
    """Good enough: among the k likeliest. For `relaxed`. Source: 1811.03115, 5.1."""
    return lambda law, token: bool((law > law[token]).sum() < k)


def typical(least: float = 0.09, scale: float = 0.3) -> Callable[..., bool]:
    """Good enough: p(x) > min(least, scale exp(-entropy)). For `relaxed`.

    Source: 2401.10774, section 2.3.1, with its constants as recalled (unverified).
    """

    def passes(law: np.ndarray, token: int) -> bool:
        some = law[law > 0]
        entropy = -float((some * np.log(some)).sum())
        return bool(law[token] > min(least, scale * np.exp(-entropy)))

    return passes


def mixed(weight: float) -> Callable[..., Verdict]:
    """The token rule for weight p + (1 - weight) q in place of p.

    Emits that mixture, (1 - weight) TV(p, q) away from p. Source: transformers'
    assistant_ensemble_weight; derived.
    """

    def verify(tree: Tree, p: np.ndarray, dice: Dice) -> Verdict:
        p = np.array(p)
        for node in range(len(tree.tokens)):
            p[node] = weight * p[node] + (1 - weight) * tree.q[node]
        return token_rule(tree, p, dice)

    return verify


# -- wrong on purpose -----------------------------------------------------------------


def resampled_from_p(tree: Tree, p: np.ndarray, dice: Dice) -> Verdict:
    """The token rule with one mistake: after a rejection it draws from p itself.

    For showing that the checks see it; never to be used.
    """
    _chain("resampled_from_p", tree)
    for node, token in enumerate(tree.tokens):
        if not dice.accept(p[node][token], tree.q[node][token]):
            return Verdict(list(range(node)), dice.draw(p[node]), [])
    return Verdict(list(range(len(tree))), dice.draw(p[-1]), [])


def sorted_siblings(tree: Tree, p: np.ndarray, dice: Dice) -> Verdict:
    """`siblings` with one mistake: it looks at their tokens before it orders them.

    For showing that the checks see it; never to be used.
    """
    kids = sorted(range(len(tree)), key=lambda node: tree.tokens[node])
    law = p[0]
    for kid in kids:
        token, q = tree.tokens[kid], tree.q[kid]
        if dice.accept(law[token], q[token]):
            return Verdict([kid], dice.draw(p[kid + 1]), [])
        law = residual(law, q)
    return Verdict([], dice.draw(law), [])


def certain_of_it(tree: Tree, p: np.ndarray, dice: Dice) -> Verdict:
    """Speculative sampling's own view of a fixed chain: the same law as `match`.

    x is accepted with p(x), else p without x is drawn from. Raises ValueError for
    another tree. Source: derived.
    """
    need(
        tree.q is None and tree.chain,
        "certain_of_it reads a fixed chain; take `lossless` for another draft.",
    )
    for node, token in enumerate(tree.tokens):
        if not dice.accept(p[node][token], 1.0):
            law = without(p[node], token)
            return Verdict(list(range(node)), dice.draw(law), [])
    return Verdict(list(range(len(tree))), dice.draw(p[-1]), [])
