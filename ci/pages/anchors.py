"""From a claim to the cell that makes it: places in the pages, and links to them.

A reviewer who starts from a number in a table wants the code that made it. The claims
of a cell are found in its source; one whose id is put together at run time has no place
of its own.
"""

from __future__ import annotations

import ast
import copy
import re
from typing import Any

KINDS = ("identity", "theorem", "trend")  # of claims, and what makes them
ID = re.compile(r"C\d+\w*")
SHOWN = re.compile(rf'(<th scope="row"[^>]*>)({ID.pattern})(</th>)')  # in a table


def ids_of(source: str) -> list[str]:
    """The ids of the claims that a code cell makes, in order, each once."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic: such a cell makes no claim
        return []
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if not any(isinstance(f, ast.Attribute) and f.attr in KINDS for f in calls):
        return []
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    found = [text for text in texts if isinstance(text, str) and ID.fullmatch(text)]
    return sorted(set(found), key=lambda name: (len(name), name))


def places(notebook: dict[str, Any]) -> dict[int, list[str]]:
    """By number of a code cell, the claims that are first made there."""
    found: dict[int, list[str]] = {}
    seen: set[str] = set()
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            own = [i for i in ids_of("".join(cell["source"])) if i not in seen]
            seen |= set(own)
            if own:
                found[number] = own
    return found


def anchored(notebook: dict[str, Any]) -> dict[str, Any]:
    """A copy with a place before each cell that makes claims, and links to it.

    The ids in the table of claims lead there.
    """
    made, where = copy.deepcopy(notebook), places(notebook)
    known = {name for names in where.values() for name in names}
    cells = []
    for number, cell in enumerate(made["cells"]):
        if number in where:
            spans = "".join(f'<span id="{name}"></span>' for name in where[number])
            place = {"id": f"claims-of-{number}", "metadata": {}, "source": [spans]}
            cells.append({"cell_type": "markdown", **place})
        for output in cell.get("outputs", []):
            _link(output.get("data", {}), known)
        cells.append(cell)
    made["cells"] = cells
    return made


def _link(data: dict[str, Any], known: set[str]) -> None:
    html = "".join(data.get("text/html", ""))
    if '<table class="claims">' not in html:
        return

    def link(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        return (
            f'{begin}<a href="#{name}">{name}</a>{end}' if name in known else match[0]
        )

    data["text/html"] = SHOWN.sub(link, html)
