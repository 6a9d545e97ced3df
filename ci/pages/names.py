"""What a name of `lib` stands for, read from the sources without importing them.

A package passes names on (`lib.scan.selective_scan` is defined in `lib.scan.api`), and
a notebook gives them short ones (`from lib import speculative as sp`). Both are
followed here, so that a mention anywhere leads to where the thing is described.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lib.kit.start import ROOT

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass
class Module:
    """A module of lib: what it defines, and what it has from elsewhere."""

    name: str
    path: Path
    tree: ast.Module
    defined: set[str] = field(default_factory=set)
    classes: set[str] = field(default_factory=set)
    lines: dict[str, int] = field(default_factory=dict)
    passed_on: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def package(self) -> str:
        inside = self.path.name == "__init__.py"
        return self.name if inside else self.name.rpartition(".")[0]

    @property
    def exported(self) -> list[str]:
        """The names in `__all__`; none where there is no such list."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and _stored(node) == {"__all__"}:
                return list(ast.literal_eval(node.value))
        return []


class Names:
    """Every module of lib, and where its names come from."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    @cached_property
    def modules(self) -> dict[str, Module]:
        """The modules that are documented, by dotted name; commands are not."""
        found = {}
        for path in sorted((self.root / "lib").rglob("*.py")):
            words = path.relative_to(self.root).with_suffix("").parts
            words = words[:-1] if words[-1] == "__init__" else words
            if not any(word.startswith("_") for word in words):
                name = ".".join(words)
                found[name] = _read(name, path)
        return found

    @property
    def rooms(self) -> list[str]:
        """The modules and packages directly below lib, each a page of its own."""
        return [name.split(".")[1] for name in self.modules if name.count(".") == 1]

    def members(self, room: str) -> list[Module]:
        """A room's modules, its package first."""
        own = f"lib.{room}"
        return [m for n, m in self.modules.items() if f"{n}.".startswith(f"{own}.")]

    def resolve(self, dotted: str) -> str | None:
        """Where a dotted name below lib is defined; None where it is none of ours.

        Returns the dotted name of a module, of a definition, or of a class's member.
        """
        return self._follow(dotted.split("."), depth=0)

    def _follow(self, words: list[str], depth: int) -> str | None:
        if depth > 9:  # names that are passed on in a circle
            return None
        size = len(words)
        while size and ".".join(words[:size]) not in self.modules:
            size -= 1
        if not size or size == len(words):
            return ".".join(words) if size else None
        module, (name, *rest) = self.modules[".".join(words[:size])], words[size:]
        if name in module.passed_on:
            return self._follow([*module.passed_on[name].split("."), *rest], depth + 1)
        member = ".".join([name, *rest])
        return f"{module.name}.{member}" if member in module.defined else None

    def is_class(self, dotted: str) -> bool:
        """Whether a resolved name is a class."""
        module, _, name = dotted.rpartition(".")
        return module in self.modules and name in self.modules[module].classes

    def in_module(self, name: str, module: str) -> str | None:
        """What a name means in a docstring of a module: its own, then the package's."""
        tops = (module, self.modules[module].package, "lib")
        if name.startswith("lib."):
            return self.resolve(name)
        return next(filter(None, (self.resolve(f"{t}.{name}") for t in tops)), None)


class Scope:
    """The names of a notebook, cell by cell: its imports, and what hides them."""

    def __init__(self, names: Names, module: str = "") -> None:
        self.names = names
        self.bound = {room: f"lib.{room}" for room in names.rooms} | {"lib": "lib"}
        self.own = f"lib.{module}" if module else ""
        self.imports: dict[str, str] = {}

    def read(self, source: str) -> None:
        """Take in the imports and assignments of a cell; a magic is passed over."""
        try:
            tree = ast.parse(source)
        except SyntaxError:
            return
        found = {k: v for k, v in _imports(tree, "") if v.split(".")[0] == "lib"}
        for name in _bound(tree) - set(found):
            self.bound.pop(name, None)  # the notebook's own thing of the same name
        self.bound |= found
        self.imports |= found
        for name, call in _instances(tree):
            made = self.code(call)
            if made and self.names.is_class(made):
                self.bound[name] = self.imports[name] = made

    def code(self, dotted: str) -> str | None:
        """What a dotted name in the code of a cell stands for."""
        return self._look_up(dotted, self.bound)

    def prose(self, text: str) -> str | None:
        """What inline code stands for: a name of ours, alone or called."""
        name = text.removesuffix("()").split("(")[0].strip()
        if not all(word.isidentifier() for word in name.split(".")):
            return None
        rooms = {room: f"lib.{room}" for room in self.names.rooms} | {"lib": "lib"}
        found = self._look_up(name, rooms | self.imports)
        if found is None and self.own and "." not in name:
            found = self.names.resolve(f"{self.own}.{name}")
        # A word that is also the name of a module ("language") is only a word.
        return None if found in self.names.modules and "." not in name else found

    def _look_up(self, dotted: str, bound: Mapping[str, str]) -> str | None:
        first, _, rest = dotted.partition(".")
        if first not in bound:
            return None
        return self.names.resolve(f"{bound[first]}.{rest}".rstrip("."))


def _read(name: str, path: Path) -> Module:
    module = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    top = ast.Module(body=_statements(module.tree.body), type_ignores=[])
    module.passed_on = {
        k: v for k, v in _imports(top, module.package) if v.startswith("lib.")
    }
    for node in module.tree.body:
        if isinstance(node, Definition):
            module.defined.add(node.name)
            module.lines[node.name] = _line(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            module.defined |= _stored(node)
        if isinstance(node, ast.ClassDef):
            module.classes.add(node.name)
            inside = [inner for inner in node.body if isinstance(inner, Definition)]
            module.lines |= {f"{node.name}.{n.name}": _line(n) for n in inside}
            module.defined |= {f"{node.name}.{n.name}" for n in inside}
    return module


def _line(node: Definition) -> int:
    return min([node.lineno, *(d.lineno for d in node.decorator_list)])


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    return [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """Each name that code imports, with the dotted name of what it gets."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                yield alias.asname or top, alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = [*above, node.module] if node.level else [node.module]
            for alias in node.names:
                words = [*filter(None, base), alias.name]
                yield alias.asname or alias.name, ".".join(words)


def _stored(tree: ast.AST) -> set[str]:
    return {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _bound(tree: ast.AST) -> set[str]:
    """Every name that a cell gives a meaning of its own: variables, functions."""
    made = {node.name for node in ast.walk(tree) if isinstance(node, Definition)}
    return made | _stored(tree) | {n.arg for n in ast.walk(tree) if type(n) is ast.arg}


def _instances(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Variables that are made by one call, `claims = kit.Claims(...)`."""
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=func)):
                if isinstance(func, ast.Name | ast.Attribute):
                    yield name, ast.unparse(func)
