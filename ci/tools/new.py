"""./ci/new NN_name: start a notebook, its module and its test from the template."""

from __future__ import annotations

import json
import re
import sys

from ci.tools.notebooks import NOTEBOOKS, module_of, normalise, public_url, write
from ci.tools.percent import from_percent
from lib.kit.start import ROOT


def files(name: str) -> dict[str, str]:
    """Template and target of everything that a new notebook consists of."""
    module = module_of(name)
    return {
        "notebook.py": f"notebooks/{name}.ipynb",
        "module.py": f"lib/{module}.py",
        "test_module.py": f"ci/tests/test_{module}.py",
    }


def _add_to_map(name: str) -> None:
    path = NOTEBOOKS / "map.json"
    plan = json.loads(path.read_text(encoding="utf-8"))
    if any(entry["name"] == name for part in plan for entry in part["notebooks"]):
        return
    part = next((part for part in plan if part["number"] == name[0]), None)
    if part is None:
        known = ", ".join(part["number"] for part in plan)
        raise SystemExit(
            f"new: notebooks/map.json has no part {name[0]}; there are {known}."
        )
    taken = {entry["name"][:2]: entry["name"] for entry in part["notebooks"]}
    if name[:2] in taken:
        free = [f"{name[0]}{k}" for k in range(1, 10) if f"{name[0]}{k}" not in taken]
        raise SystemExit(
            f"new: the number {name[:2]} belongs to {taken[name[:2]]}; free in this "
            f"part: {', '.join(free) or 'none'}."
        )
    entry = {"name": name, "module": name[3:], "theme": "new"}
    part["notebooks"].append(entry)
    part["notebooks"].sort(key=lambda entry: entry["name"])
    path.write_text(json.dumps(plan, indent=1, ensure_ascii=False) + "\n", "utf-8")


def start(name: str) -> list[str]:
    """Write the new files; raise SystemExit with a sentence where that cannot be."""
    if not re.fullmatch(r"\d\d_[a-z][a-z0-9_]*", name):
        raise SystemExit(
            f"new: {name!r} is not NN_name: two digits (part, place), an underscore "
            "and a name of small letters, digits and underscores, as 15_my_method is."
        )
    targets = files(name)
    # An existing module or test is kept: several notebooks may share a room.
    if (ROOT / targets["notebook.py"]).exists():
        raise SystemExit(
            f"new: {targets['notebook.py']} exists already; nothing changed."
        )
    title = name[3:].replace("_", " ").capitalize()
    words = {
        "@NAME@": name,
        "@NUMBER@": name[:2],
        "@MODULE@": module_of(name),
        "@TITLE@": title,
        "@TIME@": "2 s",
    }
    _add_to_map(name)
    written = []
    for template, target in targets.items():
        path = ROOT / target
        if path.exists():
            continue
        text = (ROOT / "ci" / "template" / template).read_text(encoding="utf-8")
        for mark, word in words.items():
            text = text.replace(mark, word)
        if target.endswith(".ipynb"):
            question = "One sentence: what will the reader know at the end?"
            front = {"title": title, "question": question, "time": "2 s", "papers": []}
            write(normalise(from_percent(text, front), name, public_url()), path)
        else:
            path.write_text(text, encoding="utf-8")
        written.append(target)
    return written


def main(words: list[str]) -> int:
    """Entry point."""
    if len(words) != 1 or words[0].startswith("-"):
        print("usage: ./ci/new NN_name, for example ./ci/new 15_my_method")
        return 0 if words in (["-h"], ["--help"]) else 2
    for target in start(words[0]):
        print(f"wrote {target}")
    number = words[0][:2]
    print(f"next: ./ci/lab to write it, ./ci/run {number} --record, ./ci/test {number}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
