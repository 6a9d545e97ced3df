"""A data cache that survives interruption, damage and company, and shipped assets.

A file appears under its name only when it is whole, beside its checksum. A damaged or
half-written file is detected, named and built again. Two processes that want the same
file build it once.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from lib.kit.start import ROOT

FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)

_verified: dict[tuple[str, int, int], str] = {}  # hashed in this process already


class CacheError(RuntimeError):
    """The cache cannot be used; the text says why and what to do."""


def cache_folder() -> Path:
    """data/cache, or the folder that COLLECTION_CACHE names."""
    asked = os.environ.get("COLLECTION_CACHE")
    return Path(asked).expanduser() if asked else ROOT / "data" / "cache"


def checksum(path: Path) -> str:
    """SHA-256 of a file, remembered for this process while size and time stay."""
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _verified:
        digest = hashlib.sha256()
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
        _verified[key] = digest.hexdigest()
    return _verified[key]


def _tell(text: str) -> None:
    # stderr, and only when something went wrong: outputs stay as they are otherwise.
    print(f"cache: {text}", file=sys.stderr)


def _seal(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _fault(path: Path, sha256: str | None) -> str | None:
    """None for a whole file, "absent", or what is wrong with it.

    A file whose checksum is known in advance needs no seal: a reader may put it there.
    """
    try:
        found = checksum(path)
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    try:
        expected = sha256 or _seal(path).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return "half-written (it has no checksum)"
    return None if found == expected else "damaged (its checksum differs)"


def cached(name: str, build: Callable[[Path], None], sha256: str | None = None) -> Path:
    """Return the path of a cached file, building it if it is absent or damaged.

    name: file name inside the cache; put everything that the content depends on into
    it (a version, a seed). build: writes the file to the path it is given. sha256: the
    expected checksum where it is known in advance. Raises CacheError when the folder
    cannot be written, the disk is full, or the built file has another checksum.
    """
    from filelock import FileLock

    path = cache_folder() / name
    try:
        # A whole file needs no lock, so a folder that is only readable serves too.
        if _fault(path, sha256) is None:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock")):
            fault = _fault(path, sha256)  # another process may have built it meanwhile
            if fault not in (None, "absent"):
                _tell(f"{path.name} is {fault}; building it again.")
            if fault is not None:
                _build(path, build, sha256)
    except OSError as error:
        if error.errno in FULL:
            reason = "the disk is full. Free some space"
        elif error.errno in CLOSED:
            reason = f"{path.parent} cannot be written ({error.strerror}). Make it so"
        else:
            raise
        raise CacheError(
            f"{name} could not be put into the cache, because {reason}, or set "
            "COLLECTION_CACHE to a folder elsewhere."
        ) from error
    return path


def _build(path: Path, build: Callable[[Path], None], sha256: str | None) -> None:
    for left in path.parent.glob(f".{'?' * 8}.{glob.escape(path.name)}*"):
        left.unlink(missing_ok=True)  # by a process that was killed: we hold the lock
    part = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        build(part)
        if not part.exists():
            raise CacheError(
                f"building {path.name} wrote no file at the path it was given."
            )
        found = checksum(part)
        if sha256 and found != sha256:
            raise CacheError(
                f"{path.name} was built with checksum {found[:12]}..., but "
                f"{sha256[:12]}... was expected: its source has changed."
            )
        _seal(part).write_text(found + "\n", encoding="utf-8")
        # Cut off between these two, the file has no seal or does not fit the old one.
        os.replace(part, path)
        os.replace(_seal(part), _seal(path))
    finally:
        part.unlink(missing_ok=True)
        _seal(part).unlink(missing_ok=True)


def download(url: str, name: str, sha256: str) -> Path:
    """Return a file of the web from the cache, fetched once and verified.

    Raises CacheError with the address when it cannot be had.
    """

    def fetch(path: Path) -> None:
        import pooch

        pooch.get_logger().setLevel("WARNING")  # else it reports on stderr
        try:
            pooch.retrieve(
                url, known_hash=f"sha256:{sha256}", path=path.parent, fname=path.name
            )
        except Exception as error:  # requests, urllib and hash errors alike
            raise CacheError(
                f"{name} could not be fetched from {url} ({type(error).__name__}: "
                f"{error}). Check the network, or put the file into {cache_folder()}."
            ) from error

    return cached(name, fetch, sha256)


def shipped(name: str, folder: Path = ROOT / "data") -> Path:
    """Return the path of an asset that lies in data/, after comparing its checksum.

    Raises CacheError when the manifest does not name it or the file differs from it.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CacheError(
            f"data/manifest.json cannot be read ({error}): restore it with `git "
            "checkout data`."
        ) from None
    if name not in manifest:
        raise CacheError(
            f"data/manifest.json names no {name!r}; it names "
            f"{', '.join(sorted(manifest)) or 'nothing yet'}."
        )
    path = folder / name
    if not path.exists() or checksum(path) != manifest[name]["sha256"]:
        state = "damaged" if path.exists() else "missing"
        raise CacheError(
            f"data/{name} is {state}: restore it with `git checkout data`."
        )
    return path
