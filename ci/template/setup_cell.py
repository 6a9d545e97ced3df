# Set-up: find the collection, or fetch it where there is none (Colab, a single file).
import os, shutil, subprocess, sys
from pathlib import Path

_url = os.environ.get("COLLECTION_URL") or "@URL@"
_own = Path.cwd() / "collection"
_places = [Path.cwd(), *Path.cwd().parents, _own]
_root = next((p for p in _places if (p / "lib" / "kit").is_dir()), None)
if _root is None:
    if not _url:
        raise RuntimeError(
            "The collection is not here, and no public address is set. Set "
            'os.environ["COLLECTION_URL"] to its git address and run this cell again.'
        )
    _root, _part = _own, Path.cwd() / "collection.part"
    shutil.rmtree(_part, ignore_errors=True)
    if subprocess.run(["git", "clone", "--depth", "1", _url, str(_part)]).returncode:
        raise RuntimeError(f"git could not clone {_url}: check address and network.")
    _part.rename(_root)
sys.path.insert(0, str(_root))
from lib import kit

kit.start(install_missing=_root == _own)
