"""Write a finished run back: outputs into notebooks/, claims and tables into results/.

Only what a reader needs is kept. Timestamps and papermill's notes are dropped, widget
ids are renamed in a fixed order, cell ids stay; so the same run written
twice gives the same bytes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat

from ci.tools.execute import made_here, read_result
from ci.tools.notebooks import Notebook, normalise, public_url, write
from lib.kit.claims import read_claims
from lib.kit.results import write_json
from lib.kit.start import ROOT

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
REFERENCE = re.compile(r"IPY_MODEL_([\w-]+)")  # how one model names another


def clean_outputs(outputs: list[Any]) -> list[Any]:
    """Outputs without volatile metadata; pieces of one stream are joined."""
    clean: list[Any] = []
    for output in outputs:
        output = nbformat.from_dict(json.loads(json.dumps(output)))
        if output.output_type == "stream":
            if clean and clean[-1].get("name") == output.name:
                clean[-1].text += output.text
                continue
        elif "metadata" in output:
            output.metadata.pop("execution", None)
        if output.output_type == "execute_result":
            output.execution_count = None  # set from the cell below
        clean.append(output)
    return clean


def _alt_text(cell: Any) -> str | None:
    """The alt text that a figure helper left beside its picture."""
    for output in cell.get("outputs", []):
        alt = output.get("metadata", {}).get("image/png", {}).get("alt")
        if alt:
            return alt
    return None


def _widget_names(nb: Any, state: dict[str, Any]) -> dict[str, str]:
    """New names in an order that does not depend on the random old ones.

    First what the outputs show, each followed by what it refers to; then the rest
    (links between widgets, say) by content.
    """
    names: dict[str, str] = {}

    def visit(model: str) -> None:
        if model in state and model not in names:
            names[model] = f"w{len(names):04d}"
            for other in REFERENCE.findall(json.dumps(state[model], sort_keys=True)):
                visit(other)

    def content(model: str) -> str:
        text = json.dumps(state[model], sort_keys=True)
        return REFERENCE.sub(lambda hit: names.get(hit[1], ""), text)

    for cell in nb.cells:
        for output in cell.get("outputs", []):
            visit(output.get("data", {}).get(WIDGET_VIEW, {}).get("model_id", ""))
    while left := [model for model in state if model not in names]:
        visit(min(left, key=content))
    return names


def stable_widgets(nb: Any) -> None:
    """Rename widget models to w0000, w0001, ... so that runs agree to the byte."""
    state = nb.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    names = _widget_names(nb, state)
    if not names:
        return
    pattern = re.compile("|".join(map(re.escape, names)))

    def renamed(thing: Any) -> Any:
        text = pattern.sub(lambda hit: names[hit[0]], json.dumps(thing))
        return nbformat.from_dict(json.loads(text))

    nb.metadata["widgets"] = renamed(nb.metadata["widgets"])
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if WIDGET_VIEW in output.get("data", {}):
                output.data[WIDGET_VIEW] = renamed(output.data[WIDGET_VIEW])


def merge(source: Any, executed: Any) -> Any:
    """The source notebook with the outputs, counts and widget state of its execution.

    Cells are matched by id, so that a sentence mended since the run stays mended.
    """
    by_id = {cell.get("id"): cell for cell in executed.cells}
    counts = 0
    for cell in source.cells:
        if cell.cell_type != "code":
            continue
        ran = by_id.get(cell.id)
        if ran is None:
            raise ValueError(
                f"the executed copy lacks cell {cell.id!r}: the notebook was changed "
                "while it ran. Run it again."
            )
        counts += 1
        cell.outputs, cell.execution_count = clean_outputs(ran.outputs), counts
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = counts
        cell.metadata.pop("mystnb", None)
        if alt := _alt_text(cell):
            cell.metadata["mystnb"] = {"image": {"alt": alt}}
    source.metadata.pop("widgets", None)
    if "widgets" in executed.metadata:
        source.metadata["widgets"] = executed.metadata["widgets"]
        stable_widgets(source)
    return source


def record_outputs(notebook: Notebook, executed: Path) -> bool:
    """Write outputs back into the committed notebook; say whether its bytes changed."""
    source = nbformat.read(notebook.path, as_version=4)
    merged = merge(source, nbformat.read(executed, as_version=4))
    return write(normalise(merged, notebook.name, public_url()), notebook.path)


def provenance(
    code: str,
    parameters: dict[str, Any],
    out: Path,
    made: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What is needed to judge a number: code, parameters, versions, processor, date.

    made: of the result, where a worker of another machine or an earlier run made it.
    """
    found = {"hash": code, "parameters": parameters} | (made or made_here())
    gpu = out / "gpu.json"
    if gpu.exists():
        found |= json.loads(gpu.read_text(encoding="utf-8"))
    return found


def collect(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """One finished point as a recorded result."""
    out = folder / "out" / spec["name"]
    tables = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((out / "tables").glob("*.json"))
    }
    claims = out / "claims.json"
    made = (read_result(folder) or {}).get("made")
    return {
        "notebook": spec["name"],
        "profile": spec["profile"],
        "provenance": provenance(spec["hash"], spec["resolved"], out, made),
        "claims": read_claims(claims) if claims.exists() else [],
        "tables": tables,
    }


def record_results(folder: Path, spec: dict[str, Any]) -> bool:
    """Write results/NN_name.<profile>.json unless it already says the same."""
    path = ROOT / "results" / f"{spec['name']}.{spec['profile']}.json"
    fresh = collect(folder, spec)
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        same = all(old.get(key) == fresh[key] for key in ("claims", "tables"))
        if same and old["provenance"].get("hash") == fresh["provenance"]["hash"]:
            return False  # the date of the first run stays
    write_json(path, fresh)
    return True


def record(notebook: Notebook, folder: Path, spec: dict[str, Any]) -> list[str]:
    """Write back what a finished point made; return the names of what changed."""
    changed = []
    executed = folder / f"{notebook.name}.ipynb"
    if spec["profile"] == "default" and record_outputs(notebook, executed):
        changed.append(f"notebooks/{notebook.name}.ipynb")
    if record_results(folder, spec):
        changed.append(f"results/{notebook.name}.{spec['profile']}.json")
    return changed
