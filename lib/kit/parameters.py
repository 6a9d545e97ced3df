"""A notebook's parameters: read from its source, checked before and while it runs.

papermill injects whatever it is given, unknown names and wrong types included. So the
rules stand in the notebook itself, as literals::

    steps: int = 400  # optimiser steps
    init: str = "legs"  # which basis
    ----
    kit.check(steps=(1, None), init=("legs", "lin"))

The notebook executes the call; the runner reads the same call from the source and
refuses a bad value before any kernel starts.
"""

from __future__ import annotations

import ast
import inspect
import io
import math
import tokenize
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from lib.kit.checks import nearest


class ParameterError(ValueError):
    """A parameter with a wrong name, type, range or choice; the text says which."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: ``name: type = default  # help``."""

    name: str
    type: str
    default: Any
    help: str = ""


def _parse(source: str, what: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise ParameterError(
            f"{what} is not Python (line {error.lineno}: {error.msg}): it is read "
            "without IPython, so leave magics and shell lines out."
        ) from None


def read_parameters(source: str) -> list[Parameter]:
    """Read the typed assignments of a parameters cell.

    Raises ParameterError when a line is not ``name: type = literal``.
    """
    tree = _parse(source, "the parameters cell")
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = []
    for node in tree.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            raise ParameterError(
                f"line {node.lineno} of the parameters cell is not a typed assignment: "
                "write `name: type = value  # help`, one a line."
            )
        name = node.target.id
        try:
            default = ast.literal_eval(node.value)
        except (ValueError, TypeError):
            raise ParameterError(
                f"the default of parameter {name!r} is not a literal: write a number, "
                "a string, True, False, None or a list of these."
            ) from None
        kind = ast.unparse(node.annotation)
        found.append(Parameter(name, kind, default, comments.get(node.end_lineno, "")))
    return found


def read_rules(source: str) -> dict[str, Any] | None:
    """Read the literal arguments of ``kit.check(...)``; None where there is no call."""
    for node in ast.walk(_parse(source, "the cell with kit.check(...)")):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "check"
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "kit"
        ):
            try:
                if node.args or any(word.arg is None for word in node.keywords):
                    raise ValueError("only name=literal can be read")
                return {
                    word.arg: ast.literal_eval(word.value) for word in node.keywords
                }
            except (ValueError, TypeError):
                raise ParameterError(
                    "kit.check(...) takes name=literal only, because the runner reads "
                    "its rules without running the notebook."
                ) from None
    return None


def _parts(kind: str) -> list[str]:
    """Split ``int | None`` at its bars, outside brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(kind):
        depth += (char == "[") - (char == "]")
        if char == "|" and depth == 0:
            parts.append(kind[start:i].strip())
            start = i + 1
    return [*parts, kind[start:].strip()]


def _inner(kind: str) -> str | None:
    """The element type of ``list[int]``, ``Any`` for a bare list, None for others."""
    head, _, rest = kind.partition("[")
    if head not in ("list", "tuple"):
        return None
    # list[list[int]] loses one bracket, and tuple[int, ...] all but its first type.
    return rest.removesuffix("]").partition(",")[0].strip() or "Any"


def matches(value: Any, kind: str) -> bool:
    """Whether a value is of an annotated type (an int serves as a float)."""
    for part in _parts(kind):
        element = _inner(part)
        if part == "Any" or (part == "None" and value is None):
            return True
        if element is not None and isinstance(value, list | tuple):
            if all(matches(item, element) for item in value):
                return True
            continue
        if part == "bool" and isinstance(value, bool):
            return True
        if isinstance(value, bool):
            continue
        if part == "int" and isinstance(value, int):
            return True
        if part == "float" and isinstance(value, int | float):
            return True
        if part == "str" and isinstance(value, str):
            return True
    return False


def _is_range(rule: Any) -> bool:
    return (
        isinstance(rule, tuple)
        and len(rule) == 2
        and all(
            x is None or (isinstance(x, int | float) and not isinstance(x, bool))
            for x in rule
        )
    )


def _range_words(low: float | None, high: float | None) -> str:
    if low is None:
        return "a number" if high is None else f"at most {high}"
    return f"at least {low}" if high is None else f"between {low} and {high}"


def _check_rule(name: str, value: Any, rule: Any) -> None:
    if isinstance(value, list | tuple):
        for item in value:
            _check_rule(name, item, rule)
        return
    if value is None:
        return
    if isinstance(rule, str) or not isinstance(rule, Sequence | Set):
        raise ParameterError(
            f"the rule of parameter {name!r} is {rule!r}, but must be a range (low, "
            "high) or a sequence of choices; one choice is written ('a',)."
        )
    if _is_range(rule):
        low, high = rule
        strange = not isinstance(value, int | float) or math.isnan(value)
        below = not strange and low is not None and value < low
        above = not strange and high is not None and value > high
        if strange or below or above:
            raise ParameterError(
                f"parameter {name!r} is {value!r}, but must be "
                f"{_range_words(low, high)}."
            )
    elif value not in rule:
        choices = ", ".join(repr(choice) for choice in rule)
        hint = nearest(value, rule) if isinstance(value, str) else ""
        raise ParameterError(
            f"parameter {name!r} is {value!r}, but must be one of {choices}.{hint}"
        )


def validate(
    values: Mapping[str, Any],
    types: Mapping[str, str],
    rules: Mapping[str, Any],
    where: str = "this notebook",
) -> None:
    """Check values against types and rules; raise ParameterError with one sentence.

    A rule ``(low, high)`` is an inclusive range (None: open); any other sequence is
    the list of choices. For a list parameter the rule holds for each element.
    """
    for name, value in values.items():
        if name not in types:
            raise ParameterError(
                f"{where} has no parameter {name!r}.{nearest(name, types)} It takes: "
                f"{', '.join(types) or 'none'}."
            )
        if not matches(value, types[name]):
            raise ParameterError(
                f"parameter {name!r} is {value!r} ({type(value).__name__}), but must "
                f"be of type {types[name]}."
            )
        if name in rules:
            _check_rule(name, value, rules[name])


def _literal(text: str) -> Any:
    """A Python literal, or the text itself where it is none."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text


def _items(text: str) -> list[str]:
    """The elements of ``[1, 2]``, ``['a', 'b']`` or ``a, b``, each as text again."""
    if isinstance(whole := _literal(text), list | tuple):
        return [item if isinstance(item, str) else repr(item) for item in whole]
    body = text.strip().removeprefix("[").removesuffix("]").strip()
    return [item.strip().strip("'\"") for item in body.split(",")] if body else []


def parse_value(text: str, kind: str, name: str = "value") -> Any:
    """Turn a word of the command line into a value of the annotated type."""
    parts = _parts(kind)
    if "None" in parts and text.strip().lower() in ("none", "null", ""):
        return None
    for part in (p for p in parts if p != "None"):
        element = _inner(part)
        try:
            if element is not None:
                return [parse_value(item, element, name) for item in _items(text)]
            if part == "Any":
                return _literal(text)
            if part == "bool":
                words = {"true": True, "1": True, "yes": True}
                words |= {"false": False, "0": False, "no": False}
                return words[text.strip().lower()]
            if part in ("int", "float"):
                return int(text) if part == "int" else float(text)
            if part == "str":
                return text
        except (ValueError, KeyError):
            continue
    raise ParameterError(
        f"parameter {name!r} was given as {text!r}, but must be of type {kind}."
    )


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | list | tuple | dict)


def _annotations(space: dict[str, Any]) -> dict[str, str]:
    """The annotated names of a notebook and their types, as they were written."""
    found = space.get("__annotations__")
    if found is None and callable(space.get("__annotate__")):  # Python 3.14 (PEP 649)
        found = space["__annotate__"](1)
    types = {}
    for name, kind in (found or {}).items():
        # A generic alias such as list[int] has the bare name of its origin.
        bare = isinstance(kind, type) and not getattr(kind, "__args__", None)
        types[name] = kind.__name__ if bare else str(kind)
    return types


def check(**rules: Any) -> None:
    """Check the calling notebook's parameters against their types and these rules.

    Keyword arguments: a parameter's name and its rule, ``(low, high)`` or a sequence
    of choices. Raises ParameterError with one sentence. Plain values that stand in the
    kernel at the first call, although no line of the parameters cell declares them, are
    refused: that is how a misspelt name passed straight to papermill shows.
    """
    space = inspect.currentframe().f_back.f_globals
    types = _annotations(space)
    if "_parameters_known" not in space:
        # What later cells define or annotate must not count when this runs again.
        space["_parameters_known"] = frozenset(types)
        space["_parameters_strange"] = [
            name
            for name, value in space.items()
            if not name.startswith("_")
            if name not in types and name not in rules and name not in ("In", "Out")
            if _plain(value)
        ]
    known = space["_parameters_known"] | set(rules)
    types = {name: kind for name, kind in types.items() if name in known}
    for name in rules:
        if name not in space:
            raise ParameterError(
                f"kit.check names {name!r}, which is no parameter here."
            )
        types.setdefault(name, "Any")
    names = [*types, *space["_parameters_strange"]]
    validate({name: space[name] for name in names if name in space}, types, rules)
