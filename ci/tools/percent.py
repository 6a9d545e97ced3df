"""Notebooks from plain text: cells between `# %%` lines, as editors know them.

    # %% [markdown] id=title
    # # 11 · HiPPO
    # %% id=setup tags=setup
    ...

Used by the template and handy for writing a notebook in an editor. Only the .ipynb is
kept in the collection.
"""

from __future__ import annotations

import re
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook


def _options(head: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", head))


def from_percent(text: str, front: dict[str, Any]) -> Any:
    """Make a notebook of percent-format text and its front matter."""
    cells = []
    for block in re.split(r"^# %%", text, flags=re.M)[1:]:
        head, _, body = block.partition("\n")
        options = _options(head)
        if "[markdown]" in head:
            lines = [re.sub(r"^# ?", "", line) for line in body.strip().split("\n")]
            cell = new_markdown_cell("\n".join(lines))
        else:
            cell = new_code_cell(body.strip())
        if tags := options.get("tags"):
            cell.metadata["tags"] = tags.split(",")
        cell.id = options.get("id", f"cell-{len(cells):03d}")
        cells.append(cell)
    nb = new_notebook(cells=cells)
    nb.metadata["collection"] = nbformat.from_dict(front)
    return nb
