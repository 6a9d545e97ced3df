"""Notebooks as the tools see them: selection, parameters, front matter, normal form."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat
import yaml

from lib.kit.checks import nearest
from lib.kit.parameters import (
    Parameter,
    ParameterError,
    read_parameters,
    read_rules,
    validate,
)
from lib.kit.start import ROOT

NOTEBOOKS = ROOT / "notebooks"
PROFILES = ("long", "full")
KERNEL = {
    "display_name": "Python 3 (ipykernel)",
    "language": "python",
    "name": "python3",
}


class UsageError(ValueError):
    """What the caller asked for cannot be done; the text says why and what can."""


def tags(cell: Any) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def tagged(nb: Any, tag: str) -> list[Any]:
    """The cells that carry a tag."""
    return [cell for cell in nb.cells if tag in tags(cell)]


@dataclass(frozen=True)
class Notebook:
    """One notebook file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def module(self) -> str:
        """The module or room of lib behind it, as the map has it."""
        return module_of(self.name)

    @cached_property
    def nb(self) -> Any:
        try:
            return nbformat.read(self.path, as_version=4)
        except Exception as error:
            raise UsageError(
                f"{self.path.name} is not a readable notebook ({error}): restore it "
                "from version control."
            ) from None

    @cached_property
    def front(self) -> dict[str, Any]:
        return dict(self.nb.metadata.get("collection", {}))

    @cached_property
    def parameters(self) -> list[Parameter]:
        cells = tagged(self.nb, "parameters")
        return self._read(read_parameters, cells[0]) if cells else []

    @cached_property
    def rules(self) -> dict[str, Any]:
        for cell in self.nb.cells:
            if cell.cell_type == "code" and "kit.check(" in cell.source:
                return self._read(read_rules, cell) or {}
        return {}

    def _read(self, reader: Callable[[str], Any], cell: Any) -> Any:
        try:
            return reader(cell.source)
        except (ParameterError, SyntaxError) as error:
            raise ParameterError(f"{self.name}, cell {cell.id!r}: {error}") from None

    @cached_property
    def code(self) -> list[Any]:
        return [c for c in self.nb.cells if c.cell_type == "code" and c.source.strip()]

    @property
    def types(self) -> dict[str, str]:
        return {p.name: p.type for p in self.parameters}

    @property
    def seconds(self) -> float:
        """The time the front matter promises, for ordering: longest first."""
        found = re.match(r"([\d.]+)\s*(s|min|h)", str(self.front.get("time", "")))
        scale = {"s": 1, "min": 60, "h": 3600}
        return float(found[1]) * scale[found[2]] if found else 30.0

    def check_values(self, values: dict[str, Any]) -> None:
        """Raise ParameterError when a value does not fit this notebook."""
        validate(values, self.types, self.rules, self.name)

    def resolved(self, values: dict[str, Any]) -> dict[str, Any]:
        """All parameters of a run: defaults, overridden by the given values."""
        return {p.name: p.default for p in self.parameters} | values

    def profile(self, profile: str) -> dict[str, Any] | None:
        """The parameters of a profile, checked; None where this notebook has none."""
        path = NOTEBOOKS / "profiles" / f"{self.name}.{profile}.yaml"
        if not path.exists():
            return None
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            words = " ".join(str(error).split())
            raise ParameterError(f"profiles/{path.name} is not YAML: {words}") from None
        if not isinstance(values, dict):
            raise ParameterError(
                f"profiles/{path.name} must hold one `name: value` a line."
            )
        try:
            self.check_values(values)
        except ParameterError as error:
            raise ParameterError(f"profiles/{path.name}: {error}") from None
        return values


def module_of(name: str) -> str:
    """The module of a notebook: from the map, else the notebook's own name."""
    plan = json.loads((NOTEBOOKS / "map.json").read_text(encoding="utf-8"))
    known = {e["name"]: e["module"] for part in plan for e in part["notebooks"]}
    return known.get(name, name[3:])


def every_notebook() -> list[Notebook]:
    """The collection's notebooks in the order of their numbers."""
    return [Notebook(path) for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))]


def select(words: list[str]) -> list[Notebook]:
    """Notebooks by number (11), part (1), name (11_hippo) or module (hippo).

    No word means all. Raises UsageError that suggests the nearest names.
    """
    known = every_notebook()
    if not words:
        return known
    chosen: list[Notebook] = []
    for word in words:
        stem = Path(word).stem if word.endswith(".ipynb") else word
        found = [
            n
            for n in known
            if stem in (n.name, n.name[:2], n.name[3:], n.module)
            or (len(stem) == 1 and stem.isdigit() and n.name[0] == stem)
        ]
        if not found:
            names = [n.name for n in known] + [n.name[3:] for n in known]
            hint = nearest(stem, names)
            listed = ", ".join(n.name for n in known) or "none yet"
            raise UsageError(
                f"there is no notebook {word!r}.{hint} There are: {listed}."
            )
        chosen += [n for n in found if n not in chosen]
    return chosen


def public_url() -> str:
    """The collection's public address from pyproject.toml; empty until it has one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project.get("project", {}).get("urls", {}).get("Repository", "")


def setup_cell(url: str) -> str:
    """The source of the set-up cell, the same in every notebook."""
    template = ROOT / "ci" / "template" / "setup_cell.py"
    return template.read_text(encoding="utf-8").replace("@URL@", url).rstrip()


def badge_line(name: str, url: str) -> str:
    """The badges under the title; none until the collection has an address."""
    if not url:
        return ""
    plain = url.removesuffix(".git").rstrip("/")
    badges = []
    if found := re.fullmatch(r"https://github\.com/([^/]+/[^/]+)", plain):
        place = f"notebooks/{name}.ipynb"
        badges += [
            "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
            f"(https://colab.research.google.com/github/{found[1]}/blob/main/{place})",
            "[![Open in Binder](https://mybinder.org/badge_logo.svg)]"
            f"(https://mybinder.org/v2/gh/{found[1]}/main?urlpath=lab/tree/{place})",
        ]
    badges.append(f"[Source]({plain}/blob/main/notebooks/{name}.ipynb)")
    return " ".join(badges)


def is_badge_line(line: str) -> bool:
    """Whether a line of the first cell is the generated line of badges."""
    return line.startswith(("[![Open in Colab]", "[Source]("))


def normalise(nb: Any, name: str, url: str) -> Any:
    """Put a notebook into its normal form: set-up cell, badges, metadata, cell ids."""
    return clean(publish(nb, name, url))


def publish(nb: Any, name: str, url: str) -> Any:
    """Write what follows from the public address: set-up cell and badges."""
    for cell in tagged(nb, "setup"):
        cell.source = setup_cell(url)
    title, _, text = nb.cells[0].source.partition("\n")
    text = "\n".join(line for line in text.split("\n") if not is_badge_line(line))
    blocks = [title, badge_line(name, url), text.strip("\n")]
    nb.cells[0].source = "\n\n".join(block for block in blocks if block)
    return nb


def clean(nb: Any) -> Any:
    """Keep only the metadata that readers need; timestamps and notes of tools go."""
    kept = {k: nb.metadata[k] for k in ("collection", "widgets") if k in nb.metadata}
    nb.metadata = nbformat.from_dict(
        kept | {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    nb.nbformat, nb.nbformat_minor = 4, 5
    for k, cell in enumerate(nb.cells):
        cell.setdefault("id", f"cell-{k:03d}")
        allowed = ("tags", "mystnb", "jupyter", "collapsed")
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in allowed if key in cell.metadata}
        )
    return nb


def write(nb: Any, path: Path) -> bool:
    """Write a notebook if its bytes differ; say whether they did."""
    text = nbformat.writes(nb, version=nbformat.NO_CONVERT)
    text = text if text.endswith("\n") else text + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return True
