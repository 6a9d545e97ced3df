"""Writes the sources of the site into a folder: notebooks, landing page, API, tables.

Nothing here is written by hand twice: the landing page and the guide are the README,
the parts come from the map, the API pages from the modules of lib.
"""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

from ci.pages import citations, scoreboard
from ci.pages.names import Module, Names
from ci.tools.notebooks import every_notebook
from lib.kit.collection import parts
from lib.kit.start import ROOT

LANDING = ("Two commands", "The notebooks")  # the README's other sections: the guide


def sections(readme: str) -> tuple[str, dict[str, str]]:
    """The README's text before its first section, and its sections by heading."""
    head, *rest = re.split(r"^## ", readme, flags=re.M)
    pairs = (text.partition("\n") for text in rest)
    return head, {name.strip(): f"## {name}\n{text}" for name, _, text in pairs}


def toctree(caption: str, entries: list[str]) -> str:
    """A hidden table of contents; the sidebar shows it under its caption."""
    lines = "\n".join(entries)
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


def local(text: str) -> str:
    """Text of the README without links to files that are no pages of the site."""
    return re.sub(r"\[([^]]+)\]\((?!https?:|#|notebooks/\d)[^)]+\)", r"\1", text)


def landing(readme: str, plan: list[dict[str, Any]]) -> str:
    """The first page: what this is, the commands, the notebooks, and the sidebar."""
    head, found = sections(readme)
    trees = [toctree("The collection", ["guide", "scoreboard", "citation"])]
    for part in plan:
        there = [f"notebooks/{e['name']}" for e in part["notebooks"] if e["front"]]
        if there:
            trees.append(toctree(f"{part['number']} {part['title']}", there))
    trees.append(toctree("The modules of lib", ["api/index"]))
    text = "\n".join(found[name] for name in LANDING if name in found)
    return local(f"{head}\n{text}\n") + "\n".join(trees)


def guide(readme: str) -> str:
    """The README's other sections."""
    _, found = sections(readme)
    rest = [text for name, text in found.items() if name not in LANDING]
    return local("# How to read, open and run it\n\n" + "\n".join(rest))


def api_index(names: Names) -> str:
    """The list of rooms with the first sentence of each."""
    lines = ["The modules of lib", "=" * 18, ""]
    lines += ["One page a module or package; every function leads to its source.", ""]
    for room in names.rooms:
        sentence = first_sentence(names.modules[f"lib.{room}"].tree)
        lines += [f":doc:`{room}`", f"   {sentence}", ""]
    lines += [".. toctree::", "   :hidden:", ""]
    return "\n".join([*lines, *(f"   {room}" for room in names.rooms), ""])


def first_sentence(tree: ast.AST) -> str:
    """The first line of a docstring, as text that is no markup."""
    from ci.pages.docstrings import inline

    text = (ast.get_docstring(tree) or "").split("\n\n")[0]
    return rf"\ {inline(' '.join(text.split()), lambda name: None)}"


def api_page(room: str, names: Names) -> str:
    """The page of a room: its docstring, its exported names, and module by module."""
    package, *modules = names.members(room)
    title = f"lib.{room}"
    lines = [title, "=" * len(title), ""]
    if not modules:
        return "\n".join([*lines, *automodule(package)])
    lines += automodule(package)
    lines += exports(package, names)
    for module in modules:
        heading = module.name.removeprefix(f"{package.name}.")
        lines += [heading, "-" * len(heading), "", *automodule(module)]
    return "\n".join(lines)


def automodule(module: Module) -> list[str]:
    """The directive that documents a module and what it defines itself."""
    return [
        f".. automodule:: {module.name}",
        "   :members:",
        "   :ignore-module-all:",  # what a package passes on stands at its own module
        "",
    ]


def exports(package: Module, names: Names) -> list[str]:
    """What a package passes on from its modules, as a list of links."""
    found = {name: names.resolve(f"{package.name}.{name}") for name in package.exported}
    links = [
        f":py:obj:`{name} <{target}>`"
        for name, target in found.items()
        if target and target.rpartition(".")[0] != package.name
    ]
    return [f"Exported: {', '.join(links)}.", ""] if links else []


def write_pages(folder: Path, pages: dict[str, str]) -> None:
    """Write texts by their place in a folder."""
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def write_sources(folder: Path) -> None:
    """Write every source of the site into an empty folder."""
    names, plan, papers = Names(), parts(), citations.all_papers()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {
        "index.md": landing(readme, plan),
        "guide.md": guide(readme),
        "scoreboard.md": scoreboard.page(citations.titles(papers)),
        "citation.md": citations.page(papers),
        "api/index.rst": api_index(names),
    }
    pages |= {f"api/{room}.rst": api_page(room, names) for room in names.rooms}
    write_pages(folder, pages)
    (folder / "notebooks").mkdir()
    for notebook in every_notebook():
        shutil.copy(notebook.path, folder / "notebooks")
