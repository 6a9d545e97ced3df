"""What to train on: recall, copying and induction from exact generators, and text.

Every generator returns tokens and targets, both (rows, length) int64, the targets
`IGNORE` where nothing is asked; a model is asked at each position for the target there.
The text is the source code of scikit-learn's linear models, which stands on every
machine that runs this collection. It is pinned by scikit-learn's version in
`environment.yml` (pure Python, so wheels for other systems hold the same bytes) and
changes only when that does, whereas this collection's own files change with every
commit and the standard library's with every patch of Python. It is real program text:
half code, half English.
Sources: 2312.04927 (Zoology: MQAR), 2312.00752 (copying, induction), scikit-learn.
"""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.kit.checks import choice, count, need

IGNORE = -100
BLANK = 0


def _tensors(*arrays: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(x, np.int64)) for x in arrays)


def _distinct(rng, rows: int, low: int, high: int, n: int) -> np.ndarray:
    """n different numbers of [low, high) in each row, in random order, (rows, n)."""
    return low + rng.random((rows, high - low)).argsort(axis=1)[:, :n]


# -- recall -------------------------------------------------------------------------


def mqar(
    rows: int,
    length: int = 64,
    pairs: int = 4,
    vocab: int = 32,
    *,
    seed: int = 0,
    power: float = 0.01,
    filler: str = "random",
) -> tuple[Tensor, Tensor]:
    """Multi-query associative recall: pairs first, then every key is asked for once.

    rows: sequences; length: even, at least 4 * pairs; pairs: keys with their values,
    distinct in a row, keys from 1 to vocab/2 - 1, values from vocab/2 on; seed; power:
    of the gaps between a pair and its question, p(gap) ~ gap^(power - 1); filler: what
    stands where nothing is asked, "random" tokens (as the source) or "blank" (token 0).
    Returns tokens and targets (rows, length): at a question, the key's value.
    Raises ValueError for sizes. Source: 2312.04927 and its authors' code.
    """
    choice("filler", filler, ("random", "blank"))
    _check_mqar(rows, length, pairs, vocab)
    rng = np.random.default_rng(seed)
    keys = _distinct(rng, rows, 1, vocab // 2, pairs)
    values = _distinct(rng, rows, vocab // 2, vocab, pairs)
    places = (length - 2 * pairs) // 2
    weight = np.arange(1, places + 1) ** (power - 1.0)
    # Without replacement, by exponential races: the first `pairs` to finish.
    gaps = (rng.exponential(size=(rows, places)) / weight).argsort(axis=1)[:, :pairs]
    tokens = np.zeros((rows, length), np.int64)
    targets = np.full((rows, length), IGNORE)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    where = 2 * pairs + 2 * gaps
    np.put_along_axis(tokens, where, keys, axis=1)
    np.put_along_axis(targets, where, values, axis=1)
    if filler == "random":
        noise = rng.integers(0, vocab, tokens.shape)
        tokens = np.where(tokens == BLANK, noise, tokens)
    return _tensors(tokens, targets)


def _check_mqar(rows: int, length: int, pairs: int, vocab: int) -> None:
    for name, size in {"rows": rows, "pairs": pairs, "vocab": vocab}.items():
        count(name, size)
    count("length", length, 4)
    need(
        length % 2 == 0 and length >= 4 * pairs,
        f"length is {length}; give an even one of at least 4 * pairs = {4 * pairs}.",
    )
    need(
        pairs < vocab // 2,
        f"pairs is {pairs}; {vocab} tokens have {max(vocab // 2 - 1, 0)} keys, so give "
        "fewer pairs or a larger vocab.",
    )


# -- copying and induction ----------------------------------------------------------


def selective_copying(
    rows: int, length: int = 64, memorize: int = 8, vocab: int = 16, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Copy the tokens that stand among blanks at random places, in their order.

    rows: sequences; length: of the part to read; memorize: tokens to copy, drawn from 2
    to vocab - 1 (0 is the blank, 1 asks for the next). Returns tokens and targets
    (rows, length + memorize); the last `memorize` ask. Raises ValueError for sizes.
    Source: 2312.00752, section 4.1.1 (after 1909.11115's denoising task).
    """
    for name, size in {"rows": rows, "length": length, "memorize": memorize}.items():
        count(name, size)
    count("vocab", vocab, 3)
    need(memorize <= length, f"memorize is {memorize}, more than length {length}.")
    rng = np.random.default_rng(seed)
    said = rng.integers(2, vocab, (rows, memorize))
    where = np.sort(_distinct(rng, rows, 0, length, memorize), axis=1)
    tokens = np.full((rows, length + memorize), BLANK)
    np.put_along_axis(tokens, where, said, axis=1)
    tokens[:, length:] = 1
    targets = np.full(tokens.shape, IGNORE)
    targets[:, length:] = said
    return _tensors(tokens, targets)


def induction_heads(
    rows: int, length: int = 64, vocab: int = 16, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Say what followed the special token when it stood there before.

    rows: sequences; length: at least 3; vocab: its last token is the special one, which
    stands at a random place and at the end. Returns tokens and targets (rows, length);
    only the end asks. Raises ValueError for sizes. Source: 2312.00752, section 4.1.2.
    """
    count("rows", rows)
    count("length", length, 3)
    count("vocab", vocab, 3)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab - 1, (rows, length))
    where = rng.integers(0, length - 2, rows)
    tokens[np.arange(rows), where] = tokens[:, -1] = vocab - 1
    targets = np.full(tokens.shape, IGNORE)
    targets[:, -1] = tokens[np.arange(rows), where + 1]
    return _tensors(tokens, targets)


# -- text ---------------------------------------------------------------------------

TEXT = {  # files of sklearn/linear_model
    "train": ("_coordinate_descent", "_logistic", "_ridge", "_stochastic_gradient"),
    "test": ("_least_angle",),
}


def source_bytes(part: str = "train", most: int | None = None) -> Tensor:
    """Program text as bytes: scikit-learn's linear models, one module after another.

    part: "train" (about 420 kB) or "test" (about 80 kB, another module of the same
    authors); most: only so many bytes. Returns (bytes,) int64, 0 to 255. Raises
    ValueError for a part, or where scikit-learn has no such files.
    Source: scikit-learn (BSD-3-Clause), the installed version: see `text_origin`.
    """
    choice("part", part, tuple(TEXT))
    package = find_spec("sklearn")  # found, not imported
    need(package is not None, "The text is scikit-learn's, which is not installed.")
    folder = Path(package.origin).with_name("linear_model")
    try:
        texts = [folder.joinpath(f"{name}.py").read_bytes() for name in TEXT[part]]
    except FileNotFoundError as error:
        raise ValueError(
            f"{text_origin()} has no {Path(error.filename).name}; install the version "
            "that environment.yml names."
        ) from None
    if most is not None:
        count("most", most)
    text = np.frombuffer(b"".join(texts).replace(b"\r\n", b"\n")[:most], np.uint8)
    return torch.from_numpy(text.astype(np.int64))


def text_origin() -> str:
    """Which text `source_bytes` returns, in words: the package and its version."""
    return f"scikit-learn {metadata.version('scikit-learn')}"


def text_of(tokens: Tensor) -> str:
    """Bytes (length,) as text; what is no UTF-8 is shown as a replacement character."""
    return bytes(tokens.tolist()).decode("utf-8", errors="replace")
