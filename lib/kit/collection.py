"""The collection as a whole: its notebooks, and what each one says of itself.

Each notebook carries its front matter (title, question, time, papers) in its metadata;
`notebooks/map.json` holds the parts and what is planned. README and 00_start_here are
made from these two, so they cannot disagree with the notebooks.
"""

from __future__ import annotations

import json
from typing import Any

from lib.kit.start import ROOT

NOTEBOOKS = ROOT / "notebooks"
FIELDS = ("title", "question", "time", "papers")


def front_matter(name: str) -> dict[str, Any] | None:
    """Title, question, time and papers of a notebook; None where it is only planned."""
    path = NOTEBOOKS / f"{name}.ipynb"
    if not path.exists():
        return None
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(
            f"notebooks/{name}.ipynb cannot be read ({type(error).__name__}: {error}): "
            "restore it from version control."
        ) from None
    return {field: metadata.get("collection", {}).get(field) for field in FIELDS}


def parts() -> list[dict[str, Any]]:
    """Parts and their notebooks: name, module, front matter or planned theme."""
    plan = json.loads((NOTEBOOKS / "map.json").read_text(encoding="utf-8"))
    for part in plan:
        for entry in part["notebooks"]:
            entry["front"] = front_matter(entry["name"])
    return plan


def collection_map(folder: str = "") -> str:
    """The map as a Markdown table: notebook, question or planned theme, time, papers.

    folder: what stands before a notebook's name in links ("notebooks/" in the README).
    """
    lines = ["| notebook | question | time | papers |", "|---|---|---|---|"]
    for part in parts():
        lines.append(f"| **{part['number']} {part['title']}** | | | |")
        for entry in part["notebooks"]:
            name, front = entry["name"], entry["front"]
            if front is None:
                lines.append(f"| {name} | *planned:* {entry['theme']} | | |")
                continue
            papers = ", ".join(
                f"[{p}](https://arxiv.org/abs/{p})" for p in front["papers"]
            )
            link = f"[{name}]({folder}{name}.ipynb)"
            cells = (link, front["question"], front["time"], papers)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
