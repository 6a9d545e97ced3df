"""@TITLE@: the thin module behind notebooks/@NAME@.ipynb."""

from __future__ import annotations

import numpy as np


def leaky(u: np.ndarray, a: float) -> np.ndarray:
    """Return the leaky sums x_k = a x_{k-1} + u_k.

    u: (length,) input. a: decay, in [0, 1). Returns (length,). Raises ValueError for
    another decay. Source: an example of the template.
    """
    if not 0 <= a < 1:
        raise ValueError(f"the decay is {a}, but must lie in [0, 1).")
    x = np.zeros_like(u, dtype=float)
    state = 0.0
    for k, value in enumerate(u):
        state = a * state + value
        x[k] = state
    return x
