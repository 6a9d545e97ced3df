"""How the shipped texts, the tokenizer and the cards were made, and are made again.

The Python corpus is the standard library's source as it is installed, without tests and
what is generated; the novels are read from the data file of the R package janeaustenr
(its texts are Project Gutenberg's, in the public domain).
"""

from __future__ import annotations

import json
import re
import struct
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lib.kit.checks import need
from lib.kit.manifest import DATA, enter
from lib.language import corpora, tokens
from lib.language.weights import load_model
from lib.speech.assets import card_page

FOLDER, PAGE = "language", "README.md"
LEFT_OUT = {
    *("test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data"),
    *("encodings", "ensurepip", "site-packages", "__pycache__"),
}
GENERATED = ("config-", "_sysconfigdata")  # by a build: they hold its paths
HEAD = "# Language models\n\nGenerated from the files; read by `lib.language`."
PSF, PUBLIC = "PSF-2.0", "public domain"
VERSION = (3, 11)
BOOKS = (
    "emma",
    "mansfield_park",
    "northanger_abbey",
    "persuasion",
    "pride_and_prejudice",
    "sense_and_sensibility",
)
CHAPTER = re.compile(r"^(?=chapter [ivxl\d]+\.?$)", re.IGNORECASE | re.MULTILINE)
CLOSING = re.compile(
    r"(?:\n\s*(?:THE END|FINIS|Finis))?\s*(?:\n\s*A NOTE ON THE TEXT\n.*)?\Z", re.S
)
CHARACTERS = b"\0\0\0\x10"  # a vector of strings, as R writes it
AUSTEN = """Jane Austen, the six novels (1811 to 1818). Their copyright has expired.
The texts are Project Gutenberg's, without its header, as they stand in the R package
janeaustenr 1.0.0 by Julia Silge (MIT licence), one file a chapter.
"""


def build(
    folder: Path = DATA,
    novels: Path | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Write both corpora and the tokenizer, and enter all of language/ in the manifest.

    folder: data/, or another that holds manifest.json; novels: Rdata.rdb of the R
    package janeaustenr, None to keep the file that is there; tell: progress. Raises
    ValueError under another Python, or for another file.
    """
    where = folder / FOLDER
    where.mkdir(parents=True, exist_ok=True)
    texts, licence = library_source()
    corpora.write_archive(
        folder / corpora.SHIPPED["python"], texts, "python", (PSF, licence)
    )
    tell(f"{len(texts)} files of Python {sys.version.split()[0]}")
    if novels is not None:
        chapters = novel_chapters(Path(novels).read_bytes())
        corpora.write_archive(
            folder / corpora.SHIPPED["austen"], chapters, "prose", (PUBLIC, AUSTEN)
        )
        tell(f"{len(chapters)} chapters of {len(BOOKS)} novels")
    corpus = corpora.read_archive(folder / corpora.SHIPPED["python"], "python")
    tokens.train_bpe(corpus.texts("train")).save(folder / tokens.SHIPPED)
    enter_all(folder)


def library_source() -> tuple[dict[str, str], str]:
    """The standard library's files by path, and its licence.

    Raises ValueError where this Python is not 3.11. Source: specification, section 3.
    """
    need(
        sys.version_info[:2] == VERSION,
        f"This is Python {sys.version.split()[0]}; the snapshot is of "
        f"{'.'.join(map(str, VERSION))}, and the library differs between releases.",
    )
    root = Path(sysconfig.get_path("stdlib"))
    found = {}
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if LEFT_OUT.isdisjoint(inside.parts[:-1]) and not any(
            part.startswith(GENERATED) for part in inside.parts
        ):
            found[inside.as_posix()] = path.read_bytes().decode()
    return found, (root / "LICENSE.txt").read_text("utf-8")


def novel_chapters(data: bytes) -> dict[str, str]:
    """The chapters of the novels, by "book/chapter_NN.txt".

    data: of Rdata.rdb of janeaustenr: for each novel, in the alphabet's order, four
    bytes of length and a deflated vector of lines. Raises ValueError for another file.
    """
    novels = list(_novels(data))
    need(
        len(novels) == len(BOOKS),
        f"The file holds {len(novels)} texts; janeaustenr's Rdata.rdb has "
        f"{len(BOOKS)}.",
    )
    found = {}
    for book, text in zip(BOOKS, novels):
        for number, chapter in enumerate(CHAPTER.split(text)[1:], 1):
            clean = re.sub(r"\n\s*VOLUME [IVX]+\s*$", "", chapter.rstrip())
            clean = CLOSING.sub("", clean).rstrip()
            found[f"{book}/chapter_{number:02d}.txt"] = clean + "\n"
    return found


def _novels(data: bytes) -> Iterator[str]:
    place = 0
    while place < len(data):
        try:
            deflate = zlib.decompressobj()
            plain = deflate.decompress(data[place + 4 :])
            place = len(data) - len(deflate.unused_data)
            yield _lines(plain)
        except (zlib.error, struct.error, ValueError) as error:
            raise ValueError(
                f"The file is not janeaustenr's Rdata.rdb ({error})."
            ) from None


def _lines(plain: bytes) -> str:
    place = plain.index(CHARACTERS) + 8
    number = struct.unpack_from(">I", plain, place - 4)[0]
    lines = []
    for _ in range(number):
        size = struct.unpack_from(">i", plain, place + 4)[0]
        lines.append(plain[place + 8 : place + 8 + size].decode())
        place += 8 + size
    return "\n".join(lines)


# -- the manifest and the page of cards ---------------------------------------------


def enter_all(folder: Path = DATA) -> None:
    """Enter every file of language/ in the manifest, and list the models' cards.

    folder: holds manifest.json. Raises ValueError for a model that cannot be read.
    """
    where = folder / FOLDER
    cards = {p.name: load_model(p)[1] for p in sorted(where.glob("*.safetensors"))}
    (where / PAGE).write_text(page(cards), encoding="utf-8")
    commands = {name: card.get("command", "") for name, card in cards.items()}
    licences = {"python.tar.xz": PSF, "austen.tar.xz": PUBLIC}
    for path in sorted(where.iterdir()):
        unfinished = path.suffix == ".checkpoint" or path.name.startswith(".")
        if path.name == PAGE or unfinished:
            continue
        name = f"{FOLDER}/{path.name}"
        enter(folder, [name], commands.get(path.name, "python -m lib.language build"))
        if path.name in licences:
            _licence(folder / "manifest.json", name, licences[path.name])


def _licence(manifest: Path, name: str, licence: str) -> None:
    known = json.loads(manifest.read_text("utf-8"))
    known[name]["licence"] = licence
    text = json.dumps(known, indent=2, ensure_ascii=False)
    manifest.write_text(text + "\n", "utf-8")


def page(cards: dict[str, dict[str, Any]]) -> str:
    """The cards of all models as one Markdown page, a section a file."""
    return f"{HEAD}\n\n{card_page(cards)}".rstrip() + "\n"
