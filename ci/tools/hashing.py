"""Two hashes: of the code behind a result, and of everything a run's output shows.

The code hash covers the notebook's code, the transitive closure of its `lib` imports
with C sources, the shipped data it names, its parameters and the pinned versions of the
packages that this code imports. It is a recorded result's provenance: a package that a
later notebook brings along does not age an hour of earlier training. The run key adds
what else can change the output: all pinned packages, the recorded results that the
notebook displays and the Python it runs on. Comments and blank lines count
in neither, so that improving a comment does not ask for an hour of training.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
from functools import cache
from pathlib import Path
from typing import Any

from ci.tools.notebooks import Notebook, tags
from lib.kit import sources as kit_sources
from lib.kit.sources import files_of
from lib.kit.start import ROOT

PINS = ("environment.yml", "ci/constraints.txt")
PACKAGES = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}  # by import

# Thirty results stand on the same two hundred files: each is read once. The keys are
# texts and the trees that `_parse` keeps, so a changed file is read again.
canonical, imported = cache(kit_sources.canonical), cache(kit_sources.imported)


@cache
def _shipped(tree: ast.AST) -> tuple[set[str], set[str]]:
    """The names that code gives to `shipped` literally, and those it may look up."""
    calls = [
        node.args[0] if node.args else None
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) == "shipped"
    ]
    found = {str(first.value) for first in calls if isinstance(first, ast.Constant)}
    if all(isinstance(first, ast.Constant) for first in calls):
        return found, set()
    constants = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
    return found, {x for x in constants if isinstance(x, str)}


def named_data(tree: ast.AST, manifest: dict[str, Any]) -> set[str]:
    """The shipped files that a module or cell asks for.

    Names given to `shipped` literally; where one is looked up, every name of the
    manifest that stands in the same text.
    """
    found, looked_up = _shipped(tree)
    return found | {x for x in looked_up if x in manifest}


def closure(trees: list[ast.AST], root: Path = ROOT) -> list[Path]:
    """Every file of ours that code imports, directly or not."""
    todo, seen = set().union(*(imported(tree, "") for tree in trees)), set()
    files: set[Path] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if "." in name:
            todo.add(name.rpartition(".")[0])
        for path in files_of(name, root):
            files.add(path)
            if path.suffix == ".py":
                package = (
                    name if path.name == "__init__.py" else name.rpartition(".")[0]
                )
                todo |= imported(_parse(path.read_text(encoding="utf-8")), package)
    return sorted(files)


def sources(trees: list[ast.AST], root: Path = ROOT) -> dict[str, str]:
    """What counts of every file behind code, by its place in the collection."""
    found = {}
    for path in closure(trees, root):
        text = path.read_text(encoding="utf-8")
        text = canonical(text) if path.suffix == ".py" else text
        found[path.relative_to(root).as_posix()] = text
    return found


def sha(*parts: str) -> str:
    """One hash of several texts, whatever stands at their borders."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part.encode())
    return digest.hexdigest()


def _cells(notebook: Notebook, shown: bool = False) -> list[str]:
    """The code that counts: no set-up cell; parameters count by their values.

    What is tagged `recorded` only shows earlier results: it is code behind none, and
    counts for the run key alone (shown).
    """
    skip = {"setup", "parameters"} | (set() if shown else {"recorded"})
    return [c.source for c in notebook.code if not skip & set(tags(c))]


@cache
def _parse(source: str) -> ast.AST:
    try:
        return ast.parse(source)
    except SyntaxError:  # a magic, or a mistake that the run itself will report
        return ast.Module(body=[], type_ignores=[])


@cache
def _tops(tree: ast.AST) -> set[str]:
    """The packages that code imports, by the first word of their names."""
    tops = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            tops |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            tops.add(node.module.partition(".")[0])
    return tops


def pinned(trees: list[ast.AST], root: Path = ROOT) -> list[str]:
    """The lines of ci/constraints.txt for the packages that code imports itself."""
    tops = set().union(*map(_tops, trees))
    names = {PACKAGES.get(top, top).lower().replace("_", "-") for top in tops}
    lines = (root / PINS[1]).read_text(encoding="utf-8").splitlines()
    return sorted(line for line in lines if line.partition("==")[0] in names)


def code_hash(notebook: Notebook, values: dict[str, Any], root: Path = ROOT) -> str:
    """The hash of the code, data, parameters and packages behind a result."""
    cells = _cells(notebook)
    trees = [_parse(source) for source in [*cells, "from lib import kit"]]
    parts = [canonical(source) for source in cells]
    for place, text in sources(trees, root).items():
        if place.endswith(".py"):
            trees.append(_parse(text))
        parts += [place, text]
    manifest = json.loads((root / "data" / "manifest.json").read_text(encoding="utf-8"))
    shipped = {name for tree in trees for name in named_data(tree, manifest)}
    parts += [f"{name} {manifest.get(name)}" for name in sorted(shipped)]
    parts.append(json.dumps(notebook.resolved(values), sort_keys=True, default=str))
    return sha(*parts, *pinned(trees, root))


def run_key(
    notebook: Notebook, values: dict[str, Any], profile: str, root: Path = ROOT
) -> str:
    """The key under which a finished run is found again."""
    own = f"{notebook.name}.{profile}.json"
    cells, behind = _cells(notebook, shown=True), set(_cells(notebook))
    text = "\n".join(cells)
    if "scoreboard(" in text or "results_table(" in text:
        shown = sorted((root / "results").glob("*.json"))
    elif "recorded(" in text:
        shown = sorted((root / "results").glob(f"{notebook.name}.*.json"))
    else:
        shown = []
    if "show_benchmark(" in text:
        shown += sorted((root / "results").glob("bench.*.json"))
    parts = [p.name + p.read_text("utf-8") for p in shown if p.name != own]
    if "collection_map(" in text:
        from lib.kit.collection import collection_map

        parts.append(collection_map())
    parts += [cell for cell in cells if cell not in behind]
    parts += [(root / name).read_text(encoding="utf-8") for name in PINS]
    python = ".".join(platform.python_version_tuple()[:2])
    return sha(code_hash(notebook, values, root), python, platform.machine(), *parts)


def stale(notebook: Notebook, profile: str, recorded_hash: str) -> bool:
    """Whether a recorded result is older than the code that would make it today."""
    values = {} if profile == "default" else notebook.profile(profile)
    return values is None or code_hash(notebook, values) != recorded_hash
