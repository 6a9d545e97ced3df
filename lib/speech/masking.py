"""What training draws: generators of one purpose, span masks, what stands in them.

Every draw follows from whole numbers such as (seed, step), so a run that was killed
goes on with the same draws, and one loss more or less leaves the others' alone. Masks
are drawn utterance by utterance: padding changes none of them.
Masks for recognition stand in `batches.spec_augment`.
Source: 2202.01855 (BEST-RQ: p, span, noise).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import torch
from torch import Tensor

from lib.kit.checkpoints import mixed
from lib.kit.checks import count, need
from lib.speech.conformer import valid_frames


def generator(*numbers: int | str) -> torch.Generator:
    """A generator of its own on the CPU, the same for the same numbers and words."""
    seeds = [crc32(n.encode()) if isinstance(n, str) else int(n) for n in numbers]
    return torch.Generator().manual_seed(mixed(*seeds))


@contextmanager
def seeded(*numbers: int | str) -> Iterator[torch.Generator]:
    """Inside `with`, torch's global draws (dropout) and a generator follow numbers.

    Yields the generator. Afterwards the global state is what it was before.
    """
    own = generator(*numbers)
    places = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=places):
        torch.manual_seed(mixed(own.initial_seed(), 1))
        yield own


# -- span masks ---------------------------------------------------------------------


def span_mask(
    lengths: Tensor, p: float, span: int, generator: torch.Generator, T: int = 0
) -> Tensor:
    """Masks of random starts: every frame opens a span with probability p.

    lengths: (batch,) frames; p: of a start; span: frames of a mask, overlaps allowed,
    cut at the end of the utterance; generator: on the CPU, draws sum(lengths) numbers
    whatever the padding; T: frames of the batch, default the longest. Returns
    (batch, T) bool, False on padding. Raises ValueError for p, span or lengths.
    Source: 2202.01855, section 3.1.
    """
    count("span", span)
    need(0 <= p <= 1, f"p is {p}; give the probability that a frame starts a mask.")
    T = T or int(lengths.max())
    valid = valid_frames(lengths.cpu(), T)
    starts = torch.zeros(valid.shape, dtype=torch.bool)
    starts[valid] = torch.rand(int(valid.sum()), generator=generator) < p
    begun = starts.cumsum(1)  # masked: a start among the last `span` frames
    ended = torch.nn.functional.pad(begun, (span, 0))[:, :T]
    return ((begun > ended) & valid).to(lengths.device)


def masked_fraction(p: float, span: int, T: int | None = None) -> float:
    """The expected share of masked frames, of T frames or (None) in the interior.

    1 - (1 - p)^span inside; near the left edge fewer starts can reach a frame:
    (1/T) sum_t 1 - (1 - p)^min(t, span). Raises ValueError for span or T.
    """
    count("span", span)
    if T is None:
        return 1 - (1 - p) ** span
    count("T", T)
    return sum(1 - (1 - p) ** min(t, span) for t in range(1, T + 1)) / T


def unmasked_probability(p: float, T: int) -> float:
    """The probability (1 - p)^T that an utterance of T frames has no mask at all."""
    return (1 - p) ** T


def with_noise(
    x: Tensor, mask: Tensor, generator: torch.Generator, std: float = 0.1
) -> Tensor:
    """Frames with noise N(0, std^2) where the mask is True; x itself is unchanged.

    x: (batch, T, features); mask: (batch, T) bool; generator: on the CPU, draws as
    many numbers as are masked. Raises ValueError for shapes.
    """
    _same(x, mask)
    noise = torch.randn(int(mask.sum()), x.shape[-1], generator=generator) * std
    y = x.clone()
    y[mask] = noise.to(x)
    return y


def with_embedding(x: Tensor, mask: Tensor, embedding: Tensor) -> Tensor:
    """Frames with one learned vector where the mask is True, as in HuBERT.

    x: (batch, T, d); mask: (batch, T) bool; embedding: (d,). Raises ValueError for
    shapes. Source: 2106.07447.
    """
    _same(x, mask)
    return torch.where(mask[..., None], embedding, x)


def _same(x: Tensor, mask: Tensor) -> None:
    need(
        x.shape[:-1] == mask.shape,
        f"The frames have shape {tuple(x.shape)} and the mask {tuple(mask.shape)}; "
        "give one mask entry a frame.",
    )
