"""Tokenizers: bytes, and byte-level BPE with a small vocabulary.

Token 0 is `<eos>` in both; a document begins behind it. Two tokenizers are the same if
their tables are: an equal number of tokens says nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lib.kit.cache import shipped
from lib.kit.checks import count, need
from lib.kit.manifest import DATA

EOS, EOS_NAME = 0, "<eos>"
SHIPPED = "language/bpe1024.json"
VOCAB = 1024
ALONE = re.compile(r"([\udc80-\udcff])")  # bytes that are no UTF-8


class Tokenizer(Protocol):
    """What both kinds offer. table: (V,) the bytes of every token, b"" for `<eos>`."""

    name: str
    table: tuple[bytes, ...]

    def encode(self, text: str | bytes) -> list[int]: ...
    def decode(self, tokens: Sequence[int]) -> str: ...


def bytes_of(tokenizer: Tokenizer, tokens: Iterable[int]) -> bytes:
    """The bytes of some tokens. Raises ValueError for a token that is not known."""
    table, tokens = tokenizer.table, [int(token) for token in tokens]
    wrong = [token for token in tokens if not 0 <= token < len(table)]
    need(
        not wrong,
        f"Token {wrong[:1]} is not of {tokenizer.name}, which has 0 to "
        f"{len(table) - 1}.",
    )
    return b"".join(table[token] for token in tokens)


class Bytes:
    """Every byte is a token; NUL, which no text holds, is `<eos>`: V = 256."""

    name = "bytes"
    table = (b"", *(bytes([value]) for value in range(1, 256)))

    def encode(self, text: str | bytes) -> list[int]:
        """Text, or bytes, as tokens. Raises ValueError where it holds NUL."""
        data = text.encode() if isinstance(text, str) else bytes(text)
        need(0 not in data, "The text holds a NUL byte, which stands for <eos> here.")
        return list(data)

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens as text; what is no UTF-8 is shown as a replacement character."""
        return bytes_of(self, tokens).decode("utf-8", errors="replace")


class BPE:
    """Byte-level byte pair encoding.

    text: JSON of the `tokenizers` library, as `train_bpe` makes it; name: for errors.
    Raises ValueError for another file. Source: 1508.07909; GPT-2's byte alphabet.
    """

    def __init__(self, text: str, name: str = "bpe") -> None:
        from tokenizers import Tokenizer as Library

        try:
            self._inner = Library.from_str(text)
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(
                f"{name} cannot be read as a tokenizer ({type(error).__name__}); give "
                "a JSON file of the tokenizers library."
            ) from None
        self._inner.encode_special_tokens = True  # "<eos>" in a text is five letters
        self.name, self._text = name, text
        letters = {letter: value for value, letter in byte_letters().items()}
        size = self._inner.get_vocab_size()
        names = [self._inner.id_to_token(token) for token in range(size)]
        need(
            names[:1] == [EOS_NAME] and set(letters) <= set(names),
            f"{name} is no byte-level tokenizer with {EOS_NAME} = 0.",
        )
        self.table = (b"", *(bytes(letters[c] for c in n) for n in names[1:]))
        self._single = {t[0]: i for i, t in enumerate(self.table) if len(t) == 1}

    def encode(self, text: str | bytes) -> list[int]:
        """Text, or any bytes, as tokens; bytes that are no UTF-8 stand alone."""
        if isinstance(text, str):
            return self._inner.encode(text, add_special_tokens=False).ids
        tokens: list[int] = []
        for run in ALONE.split(bytes(text).decode("utf-8", "surrogateescape")):
            if ALONE.fullmatch(run):
                tokens.append(self._single[ord(run) - 0xDC00])
            elif run:
                tokens += self.encode(run)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens as text; what is no UTF-8 is shown as a replacement character."""
        return bytes_of(self, tokens).decode("utf-8", errors="replace")

    def save(self, path: str | Path) -> None:
        """Write the JSON file that `load_bpe` reads."""
        Path(path).write_text(self._text, encoding="utf-8")


@lru_cache(maxsize=1)
def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte: GPT-2's alphabet."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [value for value in range(256) if value not in plain]
    letters = {value: chr(value) for value in plain}
    return letters | {value: chr(256 + i) for i, value in enumerate(rest)}


def train_bpe(texts: Iterable[str], V: int = VOCAB, name: str = "bpe") -> BPE:
    """Learn a byte-level BPE; the same texts give the same table.

    texts: to learn from; V: tokens, `<eos>` and 256 bytes among them; name. Raises
    ValueError for V. Source: specification, section 3.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, trainers

    count("V", V, 257)
    inner = Library(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=V,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[EOS_NAME],
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return BPE(inner.to_str(), name)


def load_bpe(path: str | Path) -> BPE:
    """Read a tokenizer from its JSON file. Raises ValueError for another file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{Path(path).name} cannot be read as a tokenizer ({type(error).__name__})."
        ) from None
    return BPE(text, Path(path).name)


def shipped_bpe(folder: Path = DATA) -> BPE:
    """The tokenizer of the shipped models, V = 1024, learnt on the Python corpus."""
    return load_bpe(shipped(SHIPPED, folder))


def same(a: Tokenizer, b: Tokenizer) -> None:
    """Check that two tokenizers agree token by token.

    Raises ValueError with the first token that differs: drafting with another table is
    not lossless. Source: specification, trap 13.
    """
    need(
        len(a.table) == len(b.table),
        f"{a.name} has {len(a.table)} tokens and {b.name} {len(b.table)}; draft and "
        "target need the same tokenizer.",
    )
    other = [i for i, (x, y) in enumerate(zip(a.table, b.table)) if x != y]
    need(
        not other,
        f"{a.name} and {b.name} have equally many tokens, but token {other[:1]} "
        "differs; draft and target need the same tokenizer.",
    )


def stream(tokenizer: Tokenizer, texts: Iterable[str]) -> Tensor:
    """Documents as one row of tokens, `<eos>` before each: (tokens,) int64."""
    tokens: list[int] = []
    for text in texts:
        tokens.append(EOS)
        tokens += tokenizer.encode(text)
    return torch.tensor(tokens, dtype=torch.int64)


def digest(tokenizer: Tokenizer) -> str:
    """A short name of a table: equal for tokenizers that are the same."""
    joined = b"".join(len(t).to_bytes(2, "little") + t for t in tokenizer.table)
    return f"{len(tokenizer.table)}-{hashlib.sha256(joined).hexdigest()[:12]}"


def tokenizer(where: str | None = None) -> Tokenizer:
    """A tokenizer by name: "bytes", a JSON file, or None for the shipped BPE.

    Raises ValueError for another file, CacheError where the shipped one is damaged.
    """
    if where is None:
        return shipped_bpe()
    return Bytes() if where == "bytes" else load_bpe(where)
