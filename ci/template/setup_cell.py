# Set-up: find the collection, or fetch it where there is none (Colab, a single file).
import os, shutil, subprocess, sys
from pathlib import Path

_url = os.environ.get("COLLECTION_URL") or "@URL@"
_places = [Path.cwd(), *Path.cwd().parents, Path.cwd() / "collection"]
_root = next((p for p in _places if (p / "lib" / "kit").is_dir()), None)
if _fetch := _root is None:
    if not _url:
        raise RuntimeError(
            "The collection is not here, and no public address is set. Set "
            'os.environ["COLLECTION_URL"] to its git address and run this cell again.'
        )
    _root, _part = Path.cwd() / "collection", Path.cwd() / "collection.part"
    shutil.rmtree(_part, ignore_errors=True)
    subprocess.run(["git", "clone", "--depth", "1", _url, str(_part)], check=True)
    _part.rename(_root)
sys.path.insert(0, str(_root))
from lib import kit

kit.start(install_missing=_fetch)
