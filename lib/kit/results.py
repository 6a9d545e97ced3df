"""Recorded results: small tables with their provenance, written and read back.

A notebook saves tables while it runs; `./ci/run --record` gathers them with the claims
into one file a notebook and profile, `results/NN_name.<profile>.json`, together with
what is needed to judge them: the hash of the code, parameters, versions, processor.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
import uuid
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.kit.start import ROOT, notebook_packages

if TYPE_CHECKING:
    import pandas as pd

RESULTS = ROOT / "results"


def write_json(path: Path, content: Any) -> Path:
    """Write JSON so that a reader sees the old file or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False
    )
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def output_folder(notebook: str) -> Path | None:
    """Where this run of a notebook leaves its claims and tables.

    The runner names a folder (KIT_OUTPUT). A reader's own session uses
    `results/runs/interactive`, or nothing where that cannot be written.
    """
    if asked := os.environ.get("KIT_OUTPUT"):
        folder = Path(asked) / notebook
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder = RESULTS / "runs" / "interactive" / notebook
    trial = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink(missing_ok=True)
    except OSError:
        return None
    return folder


def save_table(notebook: str, name: str, frame: pd.DataFrame) -> None:
    """Save a small table of this run under a name, for the recorded results.

    frame: plain columns (no index is kept), at most 5000 rows; twelve significant
    digits are kept. Raises ValueError for a larger table, a column name that stands
    twice, or a name that is no file name.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(
            f"the table's name {name!r} becomes a file name: use letters, digits, "
            "hyphens and underscores."
        )
    if not frame.columns.is_unique:
        raise ValueError(f"the table {name!r} has two columns of the same name.")
    if len(frame) > 5000:
        raise ValueError(
            f"the table {name!r} has {len(frame)} rows; recorded results hold small "
            "tables (at most 5000 rows): aggregate it first."
        )
    folder = output_folder(notebook)
    if folder is not None:
        columns = [str(column) for column in frame.columns]
        values = [[_cell(x) for x in frame[column].tolist()] for column in frame]
        rows = [list(row) for row in zip(*values)]
        write_json(
            folder / "tables" / f"{name}.json", {"columns": columns, "rows": rows}
        )
    note_gpu(folder)


def _cell(value: Any) -> Any:
    """A table's cell as JSON knows it: nan and missing are null, infinity is a word."""
    import pandas as pd

    if hasattr(value, "item"):  # a number of numpy or torch in an object column
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return float(f"{value:.12g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, bool | int) else str(value)


def _column(values: list[Any]) -> list[Any]:
    """A column as it was: where all else are numbers, the word "inf" is one too."""
    words = ("inf", "-inf")
    numeric = all(
        value in words or not isinstance(value, str) for value in values
    ) and any(isinstance(value, float) or value in words for value in values)
    return [float(v) if numeric and v in words else v for v in values]


def note_gpu(folder: Path | None) -> None:
    """Leave the GPU's model for the provenance; only the kernel knows it."""
    torch = sys.modules.get("torch")
    if folder is not None and torch is not None and torch.cuda.is_available():
        write_json(folder / "gpu.json", {"gpu": torch.cuda.get_device_name()})


def processor() -> str:
    """The processor's model name, without anything that names this machine."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that notebooks import."""
    found = {"python": platform.python_version()}
    for name in notebook_packages():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Recorded:
    """A recorded run: provenance, claims, and tables by name."""

    notebook: str
    profile: str
    provenance: dict[str, Any]
    claims: list[dict[str, Any]]
    tables: dict[str, Any]

    def table(self, name: str) -> pd.DataFrame:
        """One of the saved tables. Raises KeyError with the known names."""
        import pandas as pd

        if name not in self.tables:
            raise KeyError(
                f"{self.notebook}.{self.profile} holds no table {name!r}; it holds "
                f"{', '.join(sorted(self.tables)) or 'none'}."
            )
        saved = self.tables[name]
        columns = (
            zip(*saved["rows"]) if saved["rows"] else [[] for _ in saved["columns"]]
        )
        return pd.DataFrame(
            {
                head: _column(list(values))
                for head, values in zip(saved["columns"], columns, strict=True)
            }
        )


def load(path: Path) -> Recorded:
    """Read a recorded file. Raises ValueError with a sentence when it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Recorded(**{key.name: content[key.name] for key in fields(Recorded)})
        for key in ("hash", "parameters", "processor", "cores", "date"):
            found.provenance[key]
        return found
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"results/{path.name} cannot be read ({type(error).__name__}: {error}): "
            "restore it from version control or record it again with ./ci/run --record."
        ) from None


def recorded(notebook: str, profile: str) -> Recorded | None:
    """The recorded run of a notebook and profile; None where there is none yet."""
    path = RESULTS / f"{notebook}.{profile}.json"
    return load(path) if path.exists() else None


def show_recorded(notebook: str, profile: str = "long") -> Recorded | None:
    """Show where a recorded run comes from and how to repeat it; return it."""
    from lib.kit.claims import say

    number = notebook.split("_")[0]
    chosen = "" if profile == "default" else f" --profile {profile}"
    command = f"./ci/run {number}{chosen} --record"
    found = recorded(notebook, profile)
    if found is None:
        say(
            "No run of the profile *{profile}* has been recorded yet. `{command}` "
            "makes it and shows it here.",
            profile=profile,
            command=command,
        )
        return None
    p = found.provenance
    chosen = ", ".join(f"{k}={v}" for k, v in p["parameters"].items())
    say(
        "Recorded on {date}, profile *{profile}* ({chosen}), on {machine}, code hash "
        "`{hash}`. Repeat it with `{command}`.",
        date=p["date"],
        profile=profile,
        chosen=chosen or "defaults",
        machine=p.get("gpu") or f"{p['processor']}, {p['cores']} cores",
        hash=p["hash"][:12],
        command=command,
    )
    return found


def show_benchmark(name: str) -> Recorded | None:
    """Show where a recorded benchmark comes from and how to repeat it; return it.

    name: of a benchmark, `results/bench.<name>.json`. Returns None where there is none
    yet. Its tables hold times and their ratios to named peers of the same run.
    """
    from lib.kit.claims import say

    command, path = f"./ci/bench {name} --record", RESULTS / f"bench.{name}.json"
    if not path.exists():
        say("Not measured yet: `{command}` does it.", command=command)
        return None
    found = load(path)
    p = found.provenance
    say(
        "Measured on {date} on {machine}, code hash `{hash}`. Repeat it with "
        "`{command}`.",
        date=p["date"],
        machine=p.get("gpu") or f"{p['processor']}, {p['cores']} cores",
        hash=p["hash"][:12],
        command=command,
    )
    return found


def results_table() -> list[Recorded]:
    """Every recorded run, in the order of the notebooks and profiles."""
    return [load(path) for path in sorted(RESULTS.glob("[0-9][0-9]_*.*.json"))]


def tally(claims: list[dict[str, Any]]) -> dict[str, str]:
    """Count a notebook's claims by kind: what holds, and how the trends fell."""

    def held(kind: str) -> str:
        of_kind = [c for c in claims if c["kind"] == kind]
        good = sum(c["verdict"] == "holds" for c in of_kind)
        return f"{good} of {len(of_kind)}" if of_kind else "-"

    trends: dict[str, int] = {}
    for claim in claims:
        if claim["kind"] == "trend":
            verdict = claim["verdict"].split(" (")[0]
            trends[verdict] = trends.get(verdict, 0) + 1
    words = ", ".join(f"{count} {verdict}" for verdict, count in sorted(trends.items()))
    return {
        "identities": held("identity"),
        "theorems": held("theorem"),
        "trends": words or "-",
    }


def scoreboard(leave_out: str = "00_start_here") -> pd.DataFrame:
    """The recorded claims, one row a notebook and profile."""
    import pandas as pd

    rows = [
        {"notebook": run.notebook, "profile": run.profile, **tally(run.claims)}
        for run in results_table()
        if run.notebook != leave_out
    ]
    columns = ["notebook", "profile", "identities", "theorems", "trends"]
    return pd.DataFrame(rows, columns=columns)
