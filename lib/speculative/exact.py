"""Exact laws of what a method emits, on vocabularies small enough to follow all.

The method's own code runs under `dice.enumerated`; nothing is simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lib.speculative.dice import Dice, enumerated
from lib.speculative.harness import (
    Budget,
    Controller,
    Drafter,
    Session,
    Target,
    Tree,
    Verifier,
    check_tree,
    decode,
    said,
)
from lib.speculative.laws import Warp

Law = dict[tuple[int, ...], float]


def string_law(
    target: Target, prompt: Sequence[int], length: int, warp: Warp | None = None
) -> Law:
    """The target's own law of the next `length` tokens: {tokens: probability}.

    target; prompt; warp: None for temperature 1. Strings of probability 0 are left out.
    """
    warp = warp or Warp()
    law: Law = {(): 1.0}
    for _ in range(length):
        longer: Law = {}
        for text, mass in law.items():
            own = next_law(target, [*prompt, *text], warp)
            for token in range(target.vocab):
                if own[token] > 0:
                    longer[(*text, token)] = mass * float(own[token])
        law = longer
    return law


def next_law(target: Target, text: Sequence[int], warp: Warp):
    """The law (V,) of the token after a text, read from the beginning."""
    return warp(target.forward(target.start(text), text[-1], Tree()).logits)[0]


def step_law(
    target: Target,
    drafter: Callable[[], Drafter],
    verifier: Verifier,
    prompt: Sequence[int],
    budget: Budget,
    warp: Warp | None = None,
) -> Law:
    """The law of what one round emits: accepted tokens and one more.

    drafter: makes a fresh one, because all that happens must follow from the dice;
    prompt; budget: of the round; warp. Every tree is checked. Returns {tokens:
    probability}, of lengths 1 to depth + 1.
    """
    warp = warp or Warp()

    def once(dice: Dice) -> tuple[int, ...]:
        state, own = target.start(prompt), drafter()
        own.start(Session(target, state, list(prompt), warp, dice, len(prompt)))
        tree = own.propose(budget)
        check_tree(tree, budget, target.vocab)
        out = target.forward(state, prompt[-1], tree)
        verdict = verifier(tree, warp(out.logits), dice)
        return tuple(said(tree, verdict))

    return enumerated(once)


def completed(
    law: Law,
    target: Target,
    prompt: Sequence[int],
    length: int,
    warp: Warp | None = None,
) -> Law:
    """A round's law, every text continued by the target itself to one length.

    law: of `step_law`. A lossless round gives the target's own `string_law`.
    """
    whole: Law = {}
    for text, mass in law.items():
        rest = string_law(target, [*prompt, *text], length - len(text), warp)
        for more, share in rest.items():
            key = (*text, *more)
            whole[key] = whole.get(key, 0.0) + mass * share
    return whole


def decoded_law(
    target: Target,
    drafter: Callable[[], Drafter],
    verifier: Verifier,
    controller: Callable[[], Controller],
    prompt: Sequence[int],
    most: int,
    warp: Warp | None = None,
) -> Law:
    """The exact law of a whole decoding, over all rounds: {tokens: probability}.

    drafter, controller: make fresh ones; most: tokens, few.
    """

    def once(dice: Dice) -> tuple[int, ...]:
        parts = (target, drafter(), verifier, controller(), prompt, most)
        return tuple(decode(*parts, warp=warp, dice=dice)[0])

    return enumerated(once)


def emitted(law: Law) -> float:
    """The mean number of tokens of a law over texts: E[tau] of `step_law`."""
    return sum(mass * len(text) for text, mass in law.items())


def prefixes(law: Law, length: int) -> Law:
    """The law of the first tokens of longer texts. length: of what is kept."""
    short: Law = {}
    for text, mass in law.items():
        short[text[:length]] = short.get(text[:length], 0.0) + mass
    return short
