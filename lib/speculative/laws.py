"""Laws of the next token: temperature, truncation, distance, residual.

A law is a row of float64 that sums to 1. Sources: 2211.17192 (the acceptance test, its
equation 1 and appendix A); 1904.09751 (top-p).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lib.kit.checks import count, need


@dataclass(frozen=True)
class Warp:
    """From logits to the law that is drawn from: temperature, then top-k, then top-p.

    temperature: 0 is the likeliest token, the lowest index of equals; top_k: tokens
    kept, None for all; top_p: the likeliest tokens are kept until their mass reaches
    it, the one that crosses it included. Of equals at a border the lowest indices stay.
    Raises ValueError.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        need(
            self.temperature >= 0 and self.temperature < np.inf,
            f"temperature is {self.temperature}; give 0 (the likeliest token) or more.",
        )
        if self.top_k is not None:
            count("top_k", self.top_k)
        need(0 < self.top_p <= 1, f"top_p is {self.top_p}; give above 0, at most 1.")

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """logits (..., V) -> laws (..., V) float64, a new array.

        Raises FloatingPointError for logits that are NaN or infinitely large.
        """
        if self.temperature == 0:
            return one_hot(logits)
        law = np.array(logits, np.float64)
        if self.temperature != 1:
            law /= self.temperature
        law -= law.max(axis=-1, keepdims=True)
        np.exp(law, out=law)
        law /= law.sum(axis=-1, keepdims=True)
        _whole(law)
        if self.top_k is not None and self.top_k < law.shape[-1]:
            law = _first(law, self.top_k)
        if self.top_p < 1:
            law = _nucleus(law, self.top_p)
        return law


def one_hot(logits: np.ndarray) -> np.ndarray:
    """All mass on the largest entry, the first of equals. logits: (..., V)."""
    logits = np.asarray(logits)
    best = logits.argmax(axis=-1)[..., None]
    _whole(np.take_along_axis(logits, best, -1))
    law = np.zeros(logits.shape)
    np.put_along_axis(law, best, 1.0, -1)
    return law


def _whole(law: np.ndarray) -> None:
    if not np.isfinite(law).all():
        raise FloatingPointError(
            "The model's logits are NaN or infinite; nothing can be drawn from them."
        )


def _first(law: np.ndarray, k: int) -> np.ndarray:
    order = np.argsort(-law, axis=-1, kind="stable")[..., :k]
    kept = np.zeros_like(law)
    np.put_along_axis(kept, order, np.take_along_axis(law, order, -1), -1)
    return kept / kept.sum(axis=-1, keepdims=True)


def _nucleus(law: np.ndarray, mass: float) -> np.ndarray:
    order = np.argsort(-law, axis=-1, kind="stable")
    ordered = np.take_along_axis(law, order, -1)
    before = np.cumsum(ordered, axis=-1) - ordered  # mass of the likelier ones
    ordered[before >= mass] = 0.0
    kept = np.zeros_like(law)
    np.put_along_axis(kept, order, ordered, -1)
    return kept / kept.sum(axis=-1, keepdims=True)


# -- two laws -------------------------------------------------------------------------


def overlap(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """sum_x min(p(x), q(x)) = 1 - TV: the probability that a token of q is accepted.

    p, q: (..., V). Returns (...). Source: 2211.17192, corollary 3.6.
    """
    return np.minimum(p, q).sum(axis=-1)


def distance(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Total variation, half the sum of |p - q|. p, q: (..., V). Returns (...)."""
    return np.abs(np.subtract(p, q)).sum(axis=-1) / 2


def residual(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """(p - q)+ normalised: what is drawn from after a rejection.

    p, q: (V,). Where p = q rounding can still lead here; then p itself is the answer,
    because no rejection has any probability. Source: 2211.17192, algorithm 1.
    """
    left = np.maximum(p - q, 0.0)
    total = left.sum()
    return left / total if total > 0 else np.array(p)


def without(law: np.ndarray, token: int) -> np.ndarray:
    """A law without one token, normalised; the law itself where nothing is left.

    law: (V,); token. It is the residual of a draft that was certain of the token.
    """
    left = np.array(law)
    left[token] = 0.0
    total = left.sum()
    return left / total if total > 0 else np.array(law)
