"""Drawing the next token: temperature, top-k, and one stream of draws for all devices.

The draw is an inverse distribution function in float64 of one uniform number a
sequence from a generator on the CPU, so that a seed means the same tokens everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.kit.checks import count, need


def distribution(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None
) -> Tensor:
    """The probabilities that tokens are drawn from.

    logits: (..., vocab); temperature: divides them, 0 puts all on the likeliest (the
    first of equals); top_k: all others get 0. Returns (..., vocab) float64, summing to
    1. Raises ValueError for settings. Source: textbook.
    """
    need(
        temperature >= 0 and temperature < float("inf"),
        f"temperature is {temperature}; give 0 (the likeliest token) or more.",
    )
    logits = logits.double()
    if top_k is not None:
        count("top_k", top_k)
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, best, 1.0)
    return torch.softmax(logits / temperature, dim=-1)


def sample(
    logits: Tensor,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tensor:
    """Draw one token for each row.

    logits: (batch, vocab); generator: on the CPU; temperature, top_k: see
    `distribution`. Returns tokens (batch,). Raises ValueError for settings and for
    logits that are not numbers.
    """
    p = distribution(logits, temperature, top_k)
    need(bool(p.isfinite().all()), "The logits hold NaN or infinity; nothing to draw.")
    u = torch.rand(len(p), 1, generator=generator, dtype=torch.float64).to(p.device)
    below = p.cumsum(dim=-1)
    # u in [0, 1): the first token whose cumulated probability exceeds it; scaling by
    # the total keeps rounding from walking past the last possible one.
    return torch.searchsorted(below, u * below[:, -1:], right=True).squeeze(-1)
