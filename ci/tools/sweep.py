"""The table of a sweep: one row a point and claim, as Parquet and CSV.

`pandas.read_parquet("results/runs/NAME/sweep.parquet")` reads it back, types included.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ci.tools.record import provenance

if TYPE_CHECKING:
    import pandas as pd

    from ci.tools.run import Point

NUMBERS = ("value", "low", "high", "seconds")
COUNTS = ("cell", "cores")
COLUMNS = (
    *("notebook", "profile", "claim", "kind", "statement", "measured"),
    *("value", "low", "high", "verdict", "ok", "cell", "error", "seconds"),
    *("hash", "key", "date", "processor", "cores", "gpu", "python", "versions"),
    "parameters",
)
FOLDERS = re.compile(r"(?<![\w:/])(?:/[^\s/'\":]+)+/")
SHOWN = 12  # values of one axis in the summary


def sweep_rows(
    point: Point, axes: list[str], claims: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of one point: one a claim, or a single one where it tested none.

    A grid parameter stands under its own name, or under parameter_NAME where that is
    one of COLUMNS; value is a claim's number, low and high are a trend's interval.
    """
    result = point.result
    same = {"notebook": point.notebook.name, "profile": point.profile}
    same |= {column_of(name): _plain(point.values[name]) for name in axes}
    same |= {"ok": bool(result.get("ok")), "cell": result.get("cell")}
    same |= {"error": _unplaced(result.get("error")), "seconds": result.get("seconds")}
    same |= {"key": point.key} | _origin(point)
    return [same | _measured(claim) for claim in claims or [{}]]


def column_of(axis: str) -> str:
    """The column of a grid parameter."""
    return f"parameter_{axis}" if axis in COLUMNS else axis


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _unplaced(error: str | None) -> str | None:
    """An error without the folders of this machine; file names stay."""
    return error and FOLDERS.sub("", error)


def _origin(point: Point) -> dict[str, Any]:
    """Provenance in columns; the many versions as a digest (run.json has them all)."""
    out = point.folder / "out" / point.notebook.name
    values = point.notebook.resolved(point.values)
    found = provenance(point.hash, values, out, point.result.get("made"))
    versions = json.dumps(found["versions"], sort_keys=True)
    names = ("hash", "date", "processor", "cores", "gpu")
    return {name: found.get(name) for name in names} | {
        "python": found["versions"]["python"],
        "versions": hashlib.sha256(versions.encode()).hexdigest()[:12],
        "parameters": json.dumps(found["parameters"], sort_keys=True),
    }


def _measured(claim: dict[str, Any]) -> dict[str, Any]:
    low, high = claim.get("details", {}).get("interval", (None, None))
    row = {name: claim.get(name) for name in ("kind", "statement", "measured")}
    row |= {"claim": claim.get("id"), "verdict": claim.get("verdict")}
    row |= {"value": claim.get("value"), "low": low, "high": high}
    # Of several numbers the text in `measured` shows the first; nan and inf are words.
    return {k: None if isinstance(v, list) else v for k, v in row.items()}


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table whose columns have types, whatever is missing in them."""
    import pandas as pd

    axes = [name for name in dict.fromkeys(k for r in rows for k in r)]
    axes = [name for name in axes if name not in COLUMNS]
    frame = pd.DataFrame(rows, columns=[*COLUMNS[:2], *axes, *COLUMNS[2:]])
    for name in frame.columns:
        if name in NUMBERS:
            frame[name] = frame[name].astype(float)
        elif name in COUNTS:
            frame[name] = frame[name].astype("Int64")
        elif name in COLUMNS and name != "ok":
            frame[name] = frame[name].astype("string")
        elif len({type(value) for value in frame[name]}) > 1:  # over several notebooks
            frame[name] = frame[name].map(str)
    return frame


def write_sweep(folder: Path, rows: list[dict[str, Any]]) -> tuple[list[str], str]:
    """Write sweep.parquet and sweep.csv; the names written, and what stood against it.

    A reader sees an old table or a new one, never a half.
    """
    frame, names, trouble = table(rows), [], ""
    writers = {
        "sweep.parquet": lambda path: frame.to_parquet(path, index=False),
        "sweep.csv": lambda path: frame.to_csv(path, index=False),
    }
    for name, write in writers.items():
        part = folder / f".{name}.part"
        try:
            write(part)
        except ImportError:
            trouble = (
                "sweep.parquet is not written, because the package pyarrow is not "
                "installed (./ci/setup installs it)."
            )
            continue
        os.replace(part, folder / name)
        names.append(name)
    return names, trouble


def summary(rows: list[dict[str, Any]], axes: list[str]) -> Table:
    """How the verdicts fall along each axis."""
    shown = Table(title="Sweep", title_justify="left")
    for name in ("axis", "points", "failed", "verdicts"):
        shown.add_column(name, overflow="fold")
    for column in map(column_of, axes):
        values = list(dict.fromkeys(row[column] for row in rows))
        for value in values[:SHOWN]:
            own = [row for row in rows if row[column] == value]
            shown.add_row(f"{column}={value}", *_counts(own))
        if left := len(values[SHOWN:]):
            shown.add_row(f"... and {left} more values of {column}", "", "", "")
    return shown


def _counts(rows: list[dict[str, Any]]) -> tuple[str, str, str]:
    points = {(row["notebook"], row["key"]): row["ok"] for row in rows}
    verdicts = Counter(row["verdict"].split(" (")[0] for row in rows if row["verdict"])
    words = ", ".join(f"{count} {name}" for name, count in sorted(verdicts.items()))
    failed = sum(not ok for ok in points.values())
    return str(len(points)), str(failed), words or "-"
