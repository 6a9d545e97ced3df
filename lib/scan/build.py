"""Compiles the C files of this room at first use, and keeps the result for this user.

A library is named after what it was made from (source, flags, compiler, processor)
and after its own checksum: a change of the first builds another one, damage to the
second is found before it is loaded. It appears under its name only when it is whole,
so two processes may build at the same time. Four environment variables:
LIB_SCAN_KERNEL=0 switches the kernels off, LIB_SCAN_MARCH names an instruction set
(x86-64-v3) in place of this machine's own, LIB_SCAN_CACHE a folder, CC a compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
import uuid
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Not -ffast-math: it would undo the rounding trick of the exponential and lose NaN.
# Not -O3: the vectors are written out, so it takes twice as long and gains nothing.
FLAGS = (
    *("-O2", "-std=gnu11", "-shared", "-fPIC", "-pthread"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
FOLDER = "state-soup-speculation"
_loaded: dict[tuple, ctypes.CDLL | BuildError] = {}
_lock = threading.Lock()


class BuildError(RuntimeError):
    """The kernel cannot be had; the text is one sentence that says why."""


def library(source: str, *defines: str) -> ctypes.CDLL:
    """The compiled library of a C file of this folder, built if there is none yet.

    source: file name; defines: macros, as "NS=16". Raises BuildError (a sentence)
    without a compiler, a folder to write to, or when the compiler rejects the source.
    The answer is remembered for this process. Own design.
    """
    wanted = (source, *defines, *map(os.environ.get, _VARIABLES))
    with _lock:
        if wanted not in _loaded:
            try:
                _loaded[wanted] = _load(source, defines)
            except BuildError as error:
                _loaded[wanted] = error
    found = _loaded[wanted]
    if isinstance(found, BuildError):
        raise BuildError(str(found))
    return found


_VARIABLES = ("LIB_SCAN_KERNEL", "LIB_SCAN_MARCH", "LIB_SCAN_CACHE", "CC", "PATH")


def _load(source: str, defines: tuple[str, ...]) -> ctypes.CDLL:
    if os.environ.get("LIB_SCAN_KERNEL") == "0":
        raise BuildError("The kernels are switched off by LIB_SCAN_KERNEL=0.")
    command = [*compiler(), *FLAGS, _march(), *(f"-D{define}" for define in defines)]
    stem = f"{Path(source).stem}-{_key(command)}"
    for folder in _folders():
        for path in folder.glob(f"{stem}-*.so"):
            if (found := _open(path)) is not None:
                return found
    reasons = []
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = _compile(command, HERE / source, folder, stem)
        except OSError as error:
            reasons.append(f"{folder} ({error.strerror or error})")
            continue
        if (found := _open(path)) is not None:
            return found
        reasons.append(f"{folder} (what was built there does not load)")
    raise BuildError(
        f"No folder can hold the compiled kernel: {'; '.join(reasons)}. Set "
        "LIB_SCAN_CACHE to one that can be written."
    )


# -- what it is made from -----------------------------------------------------------


def compiler() -> list[str]:
    """The command of the C compiler: $CC, or the first of cc, gcc and clang.

    Raises BuildError when there is none.
    """
    asked = shlex.split(os.environ.get("CC", ""))
    names = [asked] if asked else [["cc"], ["gcc"], ["clang"]]
    for name in names:
        if path := shutil.which(name[0]):
            return [path, *name[1:]]
    what = f"CC names {asked[0]!r}, which is not" if asked else "No C compiler is"
    raise BuildError(
        f"{what} on the PATH; install gcc or clang, or set CC to a compiler."
    )


def _march() -> str:
    if asked := os.environ.get("LIB_SCAN_MARCH"):
        return f"-march={asked}"
    arm = platform.machine() in ("arm64", "aarch64")
    return "-mcpu=native" if arm else "-march=native"


@cache
def _version(command: tuple[str, ...]) -> str:
    try:
        run = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{command[0]} does not run ({error}); set CC.") from None
    return run.stdout


@cache
def _processor() -> str:
    """What "native" means here: a cache may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.release()}"
    kept = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return "\n".join(sorted({x for x in lines if x.split("\t")[0].strip() in kept}))


def _key(command: list[str]) -> str:
    digest = hashlib.sha256()
    parts = [*command, _version(tuple(compiler())), platform.machine(), _processor()]
    for part in parts:
        digest.update(part.encode() + b"\0")
    for path in sorted(HERE.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


# -- where it is kept ---------------------------------------------------------------


def _folders() -> list[Path]:
    """Where a library may lie, best first. What others could write to is left out."""
    if asked := os.environ.get("LIB_SCAN_CACHE"):
        return [Path(asked).expanduser()]
    folders = []
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folders.append(Path(home) / FOLDER)
    except RuntimeError:  # no home
        pass
    return [*folders, private_folder()]


@cache
def private_folder() -> Path:
    """A folder for temporary files that is this user's alone."""
    uid = os.getuid() if hasattr(os, "getuid") else 0
    path = Path(tempfile.gettempdir()) / f"{FOLDER}-{uid}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        mine = stat.S_ISDIR(found.st_mode) and found.st_uid == uid
        if mine and not found.st_mode & 0o077:
            return path
        return Path(tempfile.mkdtemp(prefix=f"{FOLDER}-"))
    except OSError:
        return path  # it cannot be written: `library` says so


# -- building and loading -----------------------------------------------------------


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _compile(command: list[str], source: Path, folder: Path, stem: str) -> Path:
    part = folder / f".{uuid.uuid4().hex[:8]}.{stem}.so"
    try:
        part.touch()  # says what is wrong with the folder before the compiler does
        run = subprocess.run(
            [*command, str(source), "-o", str(part)],
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"LC_ALL": "C"},
        )
        if run.returncode:
            raise BuildError(f"{command[0]} failed on {source.name}: {_first(run)}")
        path = folder / f"{stem}-{_checksum(part)}.so"
        os.replace(part, path)
    except subprocess.SubprocessError as error:
        raise BuildError(f"{command[0]} failed on {source.name}: {error}") from None
    finally:
        part.unlink(missing_ok=True)
    return path


def _first(run: subprocess.CompletedProcess) -> str:
    """The first line of the compiler's output that names an error."""
    lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"status {run.returncode}"])[0]


def _open(path: Path) -> ctypes.CDLL | None:
    """The library, or None (and no file) when it is damaged or does not load."""
    try:
        # A cut-off library would end the process with a bus error: look before loading.
        if _checksum(path) == path.stem.rsplit("-", 1)[1]:
            return ctypes.CDLL(str(path))
    except OSError:
        pass
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return None
    return None
