"""The collection as a whole: its notebooks, and what each one says of itself.

Each notebook carries its front matter (title, question, time, papers) in its metadata;
`notebooks/map.json` holds the parts and what is planned. README and 00_start_here are
made from these two, so they cannot disagree with the notebooks.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lib.kit.start import ROOT

if TYPE_CHECKING:
    import pandas as pd

NOTEBOOKS = ROOT / "notebooks"
FIELDS = ("title", "question", "time", "papers")


def front_matter(name: str) -> dict[str, Any] | None:
    """Title, question, time and papers of a notebook; None where it is only planned."""
    path = NOTEBOOKS / f"{name}.ipynb"
    if not path.exists():
        return None
    metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    return {field: metadata.get("collection", {}).get(field) for field in FIELDS}


def parts() -> list[dict[str, Any]]:
    """Parts and their notebooks: name, module, front matter or planned theme."""
    plan = json.loads((NOTEBOOKS / "map.json").read_text(encoding="utf-8"))
    for part in plan:
        for entry in part["notebooks"]:
            entry["front"] = front_matter(entry["name"])
    return plan


def collection_map() -> pd.DataFrame:
    """One row a notebook: part, notebook, question (or planned theme), time, papers."""
    import pandas as pd

    rows = []
    for part in parts():
        for entry in part["notebooks"]:
            front = entry["front"]
            papers = front["papers"] if front else []
            rows.append(
                {
                    "part": f"{part['number']} {part['title']}",
                    "notebook": entry["name"],
                    "question": front["question"] if front else entry["theme"],
                    "time": front["time"] if front else "planned",
                    "papers": ", ".join(papers),
                }
            )
    return pd.DataFrame(rows)
