"""The notebook contract, checked: what every notebook of the collection promises.

Each rule is a function that yields sentences; a notebook keeps the contract when none
of them says anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

from ci.tools.notebooks import (
    NOTEBOOKS,
    PROFILES,
    Notebook,
    UsageError,
    badge_line,
    clean,
    is_badge_line,
    public_url,
    setup_cell,
    tagged,
    tags,
)
from lib.kit.collection import FIELDS, parts
from lib.kit.parameters import ParameterError
from lib.kit.start import ROOT

LARGEST = 2_000_000  # bytes
LONGEST = 40  # lines of a code cell that still fit a screen
WIDEST = 88
TAGS = {
    "setup",
    "parameters",
    "claims",
    "explorer",
    "recorded",
    "hide-input",
    "raises-exception",
    "nbval-ignore-output",
    "nbval-raises-exception",
    "nbval-approx-integers",
}
HEADINGS = ("At full size", "Exercises", "References")
PATHS = re.compile(r"(?<![\w.])(/home/|/root/|/Users/|/tmp/|/private/|[A-Z]:\\\\)")


def _name(notebook: Notebook) -> Iterator[str]:
    known = [entry["name"] for part in parts() for entry in part["notebooks"]]
    if notebook.name not in known:
        yield "it is not on the map: add it to notebooks/map.json."
    for field in FIELDS:
        if notebook.front.get(field) in (None, "", []) and field != "papers":
            yield f"its front matter lacks {field!r} (metadata, key `collection`)."
    first = notebook.nb.cells[0].source.split("\n")[0]
    wanted = f"# {notebook.name[:2]} · {notebook.front.get('title')}"
    if first != wanted:
        yield f"its first line is {first!r}, but the front matter says {wanted!r}."


def _setup(notebook: Notebook) -> Iterator[str]:
    cells = tagged(notebook.nb, "setup")
    if len(cells) != 1 or notebook.code[:1] != cells:
        yield "its first code cell must be the one set-up cell (tag `setup`)."
    elif cells[0].source != setup_cell(public_url()):
        yield (
            "its set-up cell differs from ci/template/setup_cell.py: "
            "`./ci/run --record` writes the right one."
        )


def _badges(notebook: Notebook) -> Iterator[str]:
    lines = notebook.nb.cells[0].source.split("\n")
    found = [line for line in lines if is_badge_line(line)]
    wanted = [line] if (line := badge_line(notebook.name, public_url())) else []
    if found != wanted:
        yield (
            "its badges do not lead to the public address of pyproject.toml: "
            "`./ci/setup --public URL` writes both."
        )


def _parameters(notebook: Notebook) -> Iterator[str]:
    cells = tagged(notebook.nb, "parameters")
    if len(cells) != 1:
        yield f"it has {len(cells)} cells tagged `parameters`, but needs one."
        return
    try:
        listed = notebook.parameters
        if "seed" not in notebook.types:
            yield "its parameters lack `seed`."
        for p in listed:
            if not p.help:
                yield f"parameter {p.name!r} has no help (a comment on its line)."
        place = notebook.code.index(cells[0]) + 1
        if not any("kit.check(" in c.source for c in notebook.code[place : place + 1]):
            yield "the cell after the parameters must call kit.check(...)."
        for name in set(notebook.rules) - set(notebook.types):
            yield f"kit.check names {name!r}, which is no parameter."
        notebook.check_values({p.name: p.default for p in listed})
        for path in (NOTEBOOKS / "profiles").glob(f"{notebook.name}.*"):
            profile = path.name.split(".")[1]
            if profile not in PROFILES or path.suffix != ".yaml":
                yield f"profiles/{path.name}: only {' and '.join(PROFILES)} exist."
            else:
                notebook.profile(profile)
    except ParameterError as error:
        yield str(error)


def _cells(notebook: Notebook) -> Iterator[str]:
    for k, cell in enumerate(notebook.nb.cells):
        for tag in tags(cell):
            if tag not in TAGS and not re.match(r"nbval-[ar]tol=", tag):
                yield f"cell {cell.id!r} has the unknown tag {tag!r}."
        if cell.cell_type != "code" or "setup" in tags(cell):
            continue
        lines = cell.source.split("\n")
        if not cell.source.strip():
            yield f"code cell {k} is empty."
        if len(lines) > LONGEST:
            yield f"code cell {cell.id!r} has {len(lines)} lines; {LONGEST} fit."
        if "recorded" in tags(cell) and "claims." in cell.source:
            yield f"cell {cell.id!r} is tagged recorded, but tests a claim."
        if (widest := max(map(len, lines))) > WIDEST:
            yield f"code cell {cell.id!r} has a line of {widest} columns; {WIDEST} fit."


def _texts(cell: Any) -> Iterator[str]:
    """Source and outputs as text, pictures and sound left out."""
    yield cell.source
    for output in cell.get("outputs", []):
        yield str(output.get("text", ""))
        for kind, data in output.get("data", {}).items():
            if isinstance(data, str) and not kind.startswith("image/"):
                yield re.sub(r"data:[\w/]+;base64,[\w+/=]+", "", data)


def _outputs(notebook: Notebook) -> Iterator[str]:
    counts = [cell.execution_count for cell in notebook.code]
    if counts != list(range(1, len(counts) + 1)):
        yield (
            "its outputs are not those of one complete run (execution counts are not "
            f"1 to {len(counts)}): ./ci/run {notebook.name[:2]} --record."
        )
    for cell in notebook.nb.cells:
        for text in _texts(cell):
            if (hit := PATHS.search(text)) or str(ROOT) in text:
                yield f"cell {cell.id!r} holds an absolute path ({hit and hit[0]}...)."
                break
    for cell in notebook.code:
        allowed = {"raises-exception", "nbval-raises-exception"} & set(tags(cell))
        for output in cell.outputs:
            text = str(output.get("text", ""))
            if output.output_type == "error" and not allowed:
                yield f"cell {cell.id!r} ends in {output.ename}."
            elif output.get("name") == "stderr":
                yield f"cell {cell.id!r} writes to stderr: {text.strip()[:80]!r}."
            elif re.search(r"\b\w*Warning: ", text):
                yield f"cell {cell.id!r} prints a warning: {text.strip()[:80]!r}."


def _figures(notebook: Notebook) -> Iterator[str]:
    for cell in notebook.code:
        pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        if len(pictures) > 1:
            yield f"cell {cell.id!r} shows {len(pictures)} figures; one a cell."
        for output in pictures:
            text = output.data.get("text/plain", "")
            digest = text.startswith(("Figure: ", "Explorer: "))
            if not (digest and output.metadata.get("image/png", {}).get("alt")):
                lacks = "alt text" if digest else "digest"
                yield f"the figure of cell {cell.id!r} has no {lacks}: use kit.show."


def _claims(notebook: Notebook) -> Iterator[str]:
    cells = tagged(notebook.nb, "claims")
    if len(cells) != 1 or ".show()" not in cells[0].source:
        yield "it needs one cell tagged `claims` that shows the table (claims.show())."
        return
    place = notebook.nb.cells.index(cells[0])
    later = r"claims\.(identity|theorem|trend)\("
    for cell in notebook.nb.cells[place + 1 :]:
        if cell.cell_type == "code" and re.search(later, cell.source):
            yield f"cell {cell.id!r} tests a claim after the table was shown."
    promised = re.findall(r"^\| ([A-Z]\d+) \|", notebook.nb.cells[0].source, flags=re.M)
    shown = "".join(o.get("data", {}).get("text/plain", "") for o in cells[0].outputs)
    tested = re.findall(r"^([A-Z]\d+) \[", shown, flags=re.M)
    if sorted(promised) != sorted(tested):
        yield (
            f"its first cell promises the claims {', '.join(promised) or 'none'}, but "
            f"the table shows {', '.join(tested) or 'none'}."
        )


def _headings(notebook: Notebook) -> Iterator[str]:
    text = "\n".join(c.source for c in notebook.nb.cells if c.cell_type == "markdown")
    for heading in HEADINGS:
        if not re.search(rf"^#+ {heading}", text, flags=re.M):
            yield f"it has no section {heading!r}."


def _form(notebook: Notebook) -> Iterator[str]:
    if (size := notebook.path.stat().st_size) > LARGEST:
        yield f"it has {size / 1e6:.1f} MB, and {LARGEST / 1e6:.0f} MB are allowed."
    fresh = nbformat.read(notebook.path, as_version=4)
    text = nbformat.writes(clean(fresh)).rstrip("\n")
    if text != notebook.path.read_text(encoding="utf-8").rstrip("\n"):
        yield (
            "it is not in normal form (timestamps or an editor's metadata): "
            f"./ci/run {notebook.name[:2]} --record."
        )


RULES = (
    _name,
    _setup,
    _badges,
    _parameters,
    _cells,
    _outputs,
    _figures,
    _claims,
    _headings,
    _form,
)


def problems(path: Path) -> list[str]:
    """Everything that the contract has to say about a notebook; empty if it keeps it.

    path: the .ipynb file.
    """
    notebook = Notebook(path)
    try:
        notebook.nb  # noqa: B018 (read once, so that a damaged file is one sentence)
    except UsageError as error:
        return [str(error)]
    return [sentence for rule in RULES for sentence in rule(notebook)]
