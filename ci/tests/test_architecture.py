"""Who may import whom, and how quickly: DESIGN's rule for the rooms of `lib`."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ci.tools.hashing import imported
from lib.kit.collection import parts
from lib.kit.start import ROOT

SHARED = {"scan", "speech", "language", "codebooks"}
HEAVY = ("triton", "transformers", "datasets", "dask")
SECONDS = 2.0


def _dotted(path: Path) -> str:
    words = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


def _exists(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


FILES = {_dotted(path): path for path in sorted((ROOT / "lib").rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}


def _package(name: str) -> str:
    inside = FILES[name].name == "__init__.py"
    return name if inside else name.rpartition(".")[0]


def imports(name: str) -> set[str]:
    """The modules of lib that a module imports, inside functions too."""
    found = imported(TREES[name], _package(name))
    return {other for other in found if _exists(other) and other != name}


def room(name: str) -> str:
    """The room of lib (kit, scan, hippo, ...) in which a module stands."""
    return name.split(".")[1] if "." in name else ""


def allowed(own: str) -> set[str]:
    """The rooms that a room may import."""
    if own == "kit":
        return {"kit"}
    if own in SHARED:
        return {"kit"} | SHARED
    for part in parts():
        modules = [entry["module"] for entry in part["notebooks"]]
        if own in modules:
            return {"kit", *SHARED, *modules[: modules.index(own)]}
    raise AssertionError(
        f"lib/{own} is neither a shared room nor on notebooks/map.json"
    )


@pytest.mark.parametrize("name", [name for name in FILES if room(name)])
def test_a_module_imports_only_the_rooms_below_it(name):
    rooms = {room(other) for other in imports(name)} - {"", room(name)}
    assert rooms <= allowed(room(name))


@pytest.mark.parametrize("name", FILES)
def test_lib_knows_neither_notebooks_nor_ci(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            tops = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            tops = {node.module.split(".")[0]}
        else:
            continue
        assert not tops & {"ci", "notebooks"}


def _at_the_top(name: str) -> set[str]:
    """What importing a module imports at once: a function's own imports come later."""
    inside = {
        child
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.walk(node)
        if isinstance(child, ast.Import | ast.ImportFrom)
    }
    top = [
        node
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in inside
    ]
    module = ast.Module(body=top, type_ignores=[])
    found = {n for n in imported(module, _package(name)) if _exists(n)}
    # A package that gathers its own modules is not imported by them.
    return {n for n in found if n != name and not name.startswith(f"{n}.")}


def test_there_is_no_cycle():
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for other in sorted(_at_the_top(name)):
                visit(other, (*way, name))
            done.add(name)

    for name in FILES:
        visit(name, ())


TIMED = """
import socket, sys, time

def never(*words, **options):
    raise OSError("an import touched the network")

socket.socket.connect = never
socket.getaddrinfo = never
# Processor time, so that a busy machine does not count, and torch apart: its own 1.5 s
# are the price of a module that computes with it.
if {torch}:
    import torch
began = time.process_time()
import {name}
took = time.process_time() - began
heavy = [word for word in {heavy} if word in sys.modules]
assert not heavy, heavy
print(took)
"""


def _seconds(name: str) -> float:
    torch = "\nimport torch\n" in FILES[name].read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(name=name, heavy=HEAVY, torch=torch)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


# The kit's modules are imported by `lib.kit`, so that one call times them all.
@pytest.mark.parametrize("name", [n for n in FILES if not n.startswith("lib.kit.")])
def test_a_module_isimported_quickly_and_without_network(name):
    took = [_seconds(name)]
    while took[-1] > SECONDS and len(took) < 3:  # a busy machine gets another chance
        time.sleep(1)
        took.append(_seconds(name))
    assert min(took) <= SECONDS
