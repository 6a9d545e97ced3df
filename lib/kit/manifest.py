"""Assets that lie in data/ are named in its manifest, with size and checksum."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lib.kit.cache import checksum
from lib.kit.start import ROOT

DATA = ROOT / "data"
LICENCE = "Apache-2.0"


def enter(folder: Path, names: Sequence[str], source: str) -> None:
    """Write size and checksum of files into the manifest of a data folder.

    folder: holds manifest.json; names: of files in it; source: the command that made
    them. Prints each name with its size. `kit.shipped` reads what stands there.
    """
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    for name in names:
        size = (folder / name).stat().st_size
        manifest[name] = {"sha256": checksum(folder / name), "size": size}
        manifest[name] |= {"source": source, "licence": LICENCE}
        print(f"{name}: {size} bytes")
    text = json.dumps(dict(sorted(manifest.items())), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", "utf-8")
