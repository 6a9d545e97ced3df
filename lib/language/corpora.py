"""Texts to learn from and to be judged on: shipped, of a reader's own, or of a hub.

A corpus is a list of documents. Which are held out follows from their names alone, so
that the split is the same everywhere: byte 0 of SHA-256(name) below 16, one in sixteen.
The shipped ones are frozen snapshots, because a library's source differs between its
releases: the standard library of Python 3.11 (PSF licence) and the six novels of Jane
Austen (public domain).
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lib.kit.cache import shipped
from lib.kit.checks import nearest, need
from lib.kit.manifest import DATA

SHIPPED = {
    "python": "language/python.tar.xz",
    "austen": "language/austen.tar.xz",
}
HUB = "hub:"  # before the name of a data set
PARTS = ("train", "held_out", "all")
HELD_OUT = 16  # of 256
MANIFEST, LICENCE = "MANIFEST.json", "LICENSE"
PIECE = 16_000  # characters of a document that a single file is cut into


@dataclass(frozen=True)
class Document:
    """A text with its name inside the corpus, and whether it is held out."""

    name: str
    text: str
    held_out: bool


@dataclass(frozen=True)
class Corpus:
    """Documents in the order of their names.

    name: of the corpus; documents; kind: "python" for source code, else "prose";
    licence: in words.
    """

    name: str
    documents: tuple[Document, ...]
    kind: str = "prose"
    licence: str = ""

    def part(self, part: str = "train") -> tuple[Document, ...]:
        """The documents to train on, the held-out ones, or all.

        part: "train", "held_out" or "all". Raises ValueError for another word.
        """
        need(
            part in PARTS,
            f"The part is {part!r}; choose one of {', '.join(PARTS)}."
            f"{nearest(part, PARTS)}",
        )
        if part == "all":
            return self.documents
        return tuple(d for d in self.documents if d.held_out == (part == "held_out"))

    def texts(self, part: str = "train") -> list[str]:
        """The texts of a part. Raises ValueError for another word."""
        return [document.text for document in self.part(part)]

    def bytes(self, part: str = "train") -> int:
        """Its size as UTF-8. Raises ValueError for another word."""
        return sum(len(text.encode()) for text in self.texts(part))


def is_held_out(name: str) -> bool:
    """Whether the document of that name is held out, one in sixteen.

    name: with "/" between folders. Source: specification, section 3.
    """
    return hashlib.sha256(name.encode()).digest()[0] < HELD_OUT


def made(
    name: str, texts: Mapping[str, str], kind: str = "prose", licence: str = ""
) -> Corpus:
    """A corpus of texts by name, split by the rule of `is_held_out`.

    Where the rule holds out none, or all, the names with the smallest hash are. Raises
    ValueError for fewer than two documents: one alone has no held-out part.
    """
    texts = {key: text for key, text in sorted(texts.items()) if text.strip()}
    need(
        len(texts) > 1,
        f"The corpus {name} has {len(texts)} documents that are not empty; give at "
        "least two, one to train on and one to hold out.",
    )
    held = {key for key in texts if is_held_out(key)}
    if not 0 < len(held) < len(texts):
        order = sorted(texts, key=lambda key: hashlib.sha256(key.encode()).digest())
        held = set(order[: max(1, len(texts) * HELD_OUT // 256)])
    documents = (Document(key, text, key in held) for key, text in texts.items())
    return Corpus(name, tuple(documents), kind, licence)


def corpus(where: str, *, column: str = "text", most: int | None = None) -> Corpus:
    """A corpus by name: shipped, a text file, a folder, or a data set of a hub.

    where: "python", "austen", a path, or "hub:NAME" (or "hub:NAME/CONFIG" with two
    slashes, as the hub writes names); column: of the data set's texts; most: documents
    of the data set. Raises ValueError for what is none of these, CacheError for a
    damaged shipped file.
    """
    if where in SHIPPED:
        return shipped_corpus(where)
    if where.startswith(HUB):
        return hub_corpus(where.removeprefix(HUB), column, most)
    if Path(where).expanduser().exists():
        return corpus_at(where)
    raise ValueError(
        f"There is no corpus, file or folder {where!r}; the shipped corpora are "
        f"{', '.join(SHIPPED)}, and {HUB}NAME is a data set of the hub."
        f"{nearest(where, SHIPPED)}"
    )


# -- shipped -------------------------------------------------------------------------


@lru_cache(maxsize=4)
def shipped_corpus(name: str, folder: Path = DATA) -> Corpus:
    """A shipped corpus, after comparing its checksums.

    name: "python" or "austen"; folder: holds manifest.json. Raises ValueError for
    another name, CacheError for a damaged file.
    """
    need(
        name in SHIPPED,
        f"No corpus {name!r} is shipped, but {', '.join(SHIPPED)}."
        f"{nearest(name, SHIPPED)}",
    )
    return read_archive(shipped(SHIPPED[name], folder), name)


def write_archive(
    path: Path, texts: Mapping[str, str], kind: str, licence: tuple[str, str]
) -> None:
    """Write documents as one .tar.xz file; the same texts give the same bytes.

    texts: by name; kind: of the corpus; licence: its short name and its text. Inside
    stand MANIFEST.json (path, size, SHA-256 of each) and LICENSE.
    """
    files = {name: text.encode() for name, text in sorted(texts.items())}
    listed = [
        {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    ]
    about = {"kind": kind, "licence": licence[0], "files": listed}
    first = {
        MANIFEST: json.dumps(about, indent=1).encode(),
        LICENCE: licence[1].encode(),
    }
    tape = io.BytesIO()
    with tarfile.open(fileobj=tape, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (first | files).items():
            entry = tarfile.TarInfo(name)  # no time, no owner: the bytes repeat
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    path.write_bytes(lzma.compress(tape.getvalue(), preset=6))


def read_archive(path: Path, name: str) -> Corpus:
    """Read what `write_archive` wrote, comparing every file with its checksum.

    Raises ValueError for a file that cannot be read, or whose parts differ.
    """
    try:
        tape = io.BytesIO(lzma.decompress(Path(path).read_bytes()))
        with tarfile.open(fileobj=tape) as archive:
            files = {m.name: archive.extractfile(m).read() for m in archive}
        about = json.loads(files[MANIFEST])
        listed = {entry["path"]: entry["sha256"] for entry in about["files"]}
    except Exception as error:  # lzma, tar and json raise many kinds
        raise ValueError(
            f"{Path(path).name} cannot be read as a corpus ({type(error).__name__}); "
            "restore or build it again."
        ) from None
    texts = {}
    for entry, digest in listed.items():
        data = files.get(entry, b"")
        need(
            hashlib.sha256(data).hexdigest() == digest,
            f"{entry} inside {Path(path).name} differs from its manifest; restore or "
            "build it again.",
        )
        texts[entry] = data.decode()
    return made(name, texts, about["kind"], about["licence"])


# -- a reader's own ------------------------------------------------------------------


def corpus_at(where: str | Path) -> Corpus:
    """A text file, cut at empty lines, or a folder of text files, as a corpus.

    where: path; files that are not UTF-8, or hidden, are left out. Raises ValueError
    where nothing is left.
    """
    path = Path(where).expanduser()
    if path.is_file():
        return made(path.name, pieces(_text_of(path), path.name), _kind([path.name]))
    found = {}
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in inside.parts):
            try:
                found[inside.as_posix()] = _text_of(file)
            except ValueError:
                continue
    return made(path.name, found, _kind(found))


def _text_of(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(
            f"{path.name} cannot be read as UTF-8 text ({type(error).__name__})."
        ) from None
    need("\0" not in text, f"{path.name} holds NUL bytes: it is no text.")
    return text


def _kind(names: Iterable[str]) -> str:
    names = list(names)
    python = sum(name.endswith(".py") for name in names)
    return "python" if 2 * python > len(names) else "prose"


def pieces(text: str, name: str, size: int = PIECE) -> dict[str, str]:
    """A text as documents of about `size` characters, cut at empty lines.

    Returns {"name#0000": ...}; joined, they are the text.
    """
    found, begin = {}, 0
    while begin < len(text):
        cut = text.find("\n\n", begin + size)
        end = len(text) if cut < 0 else cut + 2
        found[f"{name}#{len(found):04d}"] = text[begin:end]
        begin = end
    return found


def hub_corpus(name: str, column: str = "text", most: int | None = None) -> Corpus:
    """The training split of a data set on the hub.

    name: as the hub writes it; column: of its texts; most: rows. Raises ValueError with
    the reason when it cannot be had.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(
            "A data set of the hub needs the package datasets: pip install datasets."
        ) from None
    try:
        rows = load_dataset(name, split="train", streaming=most is not None)
        rows = rows if most is None else rows.take(most)
        texts = {f"{i:07d}": str(row[column]) for i, row in enumerate(rows)}
    except Exception as error:  # network, names and columns raise many kinds
        raise ValueError(
            f"The data set {name!r} with a column {column!r} cannot be had "
            f"({type(error).__name__}: {str(error).splitlines()[0][:120]})."
        ) from None
    return made(f"{HUB}{name}", texts, licence="see its card on the hub")
