"""Execute one notebook with papermill, in a process of its own.

`attempt` is what an executor calls (a thread of this machine, or a worker of a
cluster): it takes over what is finished, or starts this file as a script and waits for
it. The script writes its progress and its result as small files, so that anybody can
watch and nothing is lost when it dies. Its standard input is a pipe that nobody writes
to: when the runner or worker closes it, or dies in whatever way, the script stops its
kernel and ends. All that is needed comes as plain data, so that any worker can do it.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lib.kit.results import processor, versions, write_json
from lib.kit.start import ROOT, fixed_environment

ANSI = re.compile(r"\x1b\[[0-9;]*m")
GRACE = 5.0  # seconds for a stopped child to save its partial notebook
STOPPED = {"ok": False, "stopped": True, "error": "stopped before the end"}
stopped: set[str] = set()  # runs whose points this process must end


def index_of(out: Path, key: str) -> Path:
    """The small file that says where the finished point with this key lies."""
    return out / ".finished" / f"{key[:24]}.json"


def find_finished(out: Path, key: str) -> Path | None:
    """The folder of a finished point with this key, if it is still whole."""
    try:
        entry = json.loads(index_of(out, key).read_text(encoding="utf-8"))
        folder = out / entry["folder"]
    except (OSError, ValueError, KeyError):
        return None
    result = read_result(folder) or {}
    good = result.get("ok") and result.get("key") == key and whole(folder, result)
    return folder if good else None


def attempt(spec: dict[str, Any], tell: Callable[[str, str], None]) -> dict[str, Any]:
    """Run a point, or take it over from an earlier run with the same key.

    spec: of run_point, and label, out (where runs lie), fresh, run (the runner's own
    mark). tell: called with the label and what is happening to it.
    """
    with _locked(spec, tell) as held:
        if held is None:
            return STOPPED | {"seconds": 0}
        if earlier := _earlier(spec):
            return earlier
        tell(spec["label"], "running")
        result = run_point(spec, held)
        if result["ok"]:
            place = Path(spec["folder"]).relative_to(spec["out"]).as_posix()
            write_json(index_of(Path(spec["out"]), spec["key"]), {"folder": place})
        return result


@contextmanager
def _locked(
    spec: dict[str, Any], tell: Callable[[str, str], None]
) -> Iterator[list[int] | None]:
    """Hold the lock of a point's key: its open files, or None if told to stop first.

    The child inherits them. When a worker dies, whoever takes over its point waits
    here until the child has noticed and is gone, so that two never share a folder.
    """
    files: list[int] = []
    path = index_of(Path(spec["out"]), spec["key"]).with_suffix(".lock")
    lock = FileLock(path, on_acquired=files.append)
    told = False
    while not lock.is_locked and spec["run"] not in stopped:
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            if not told:
                tell(spec["label"], "another run is at it")
            told = True
    try:
        yield files if lock.is_locked else None
    finally:
        lock.release()


def _earlier(spec: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a finished point with this key, copied into the point's folder."""
    old = find_finished(Path(spec["out"]), spec["key"])
    if old is None:
        return None
    result = read_result(old) or {}
    # What this very run has finished is never stale: its worker died afterwards.
    own = result.get("run") == spec["run"]
    if spec["fresh"] and not own:
        return None
    folder = Path(spec["folder"])
    if old != folder:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(old, folder)
    return result | {"reused": not own}


def run_point(spec: dict[str, Any], held: list[int] | None = None) -> dict[str, Any]:
    """Execute one point and return its result.

    spec: notebook (path), name, folder, parameters, profile, hash, key, timeout, run.
    held: open files (locks) that the child shall hold as long as it lives. The result
    holds ok, seconds, where and when it was made, and for a failure the cell, its first
    line and the error.
    """
    folder = Path(spec["folder"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / "spec.json", spec)
    environment = os.environ | fixed_environment()
    environment |= {"PYTHONPATH": str(ROOT), "KIT_OUTPUT": str(folder / "out")}
    environment.pop("MPLBACKEND", None)
    started = time.monotonic()
    with (folder / "log.txt").open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "ci.tools.execute", str(folder)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the runner, which closes the pipe
            pass_fds=held or (),
        )
        _wait(child, spec["run"])
    result = read_result(folder) or {
        "ok": False,
        "error": f"the process ended with code {child.returncode} before it could say "
        "why (killed, or out of memory?); its words are in log.txt",
    }
    result |= {"seconds": round(time.monotonic() - started, 1), "key": spec["key"]}
    result |= {"run": spec["run"], "made": made_here()}
    if result["ok"]:
        result["files"] = _sizes(folder)
    write_json(folder / "result.json", result)
    return result


def _wait(child: subprocess.Popen, run: str) -> None:
    """Wait for a child; one whose run is stopped is asked to end, then made to."""
    while run not in stopped:
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.2)
            break
    child.stdin.close()
    try:
        child.wait(GRACE + 3)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def made_here() -> dict[str, Any]:
    """Versions, processor and date: what a result owes to the machine that made it."""
    return {
        "versions": versions(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _sizes(folder: Path) -> dict[str, int]:
    """The files that a finished point must keep, with their sizes."""
    kept = [*folder.glob("*.ipynb"), *(folder / "out").rglob("*")]
    files = sorted(path for path in kept if path.is_file())
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}


def whole(folder: Path, result: dict[str, Any]) -> bool:
    """Whether the files that a finished point left are all there, none truncated."""
    return _sizes(folder) == result.get("files")


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a point; None while it has none."""
    with suppress(OSError, json.JSONDecodeError):
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return None


# --- in the child --------------------------------------------------------------------

kernels: set[int] = set()  # process groups: a kernel and whatever it has started
stopping = threading.Event()  # set when the pipe to whoever started us has closed


def _kill_kernels() -> None:
    for group in kernels:
        with suppress(OSError):
            os.killpg(group, signal.SIGKILL)


def _end_with_the_runner(folder: Path) -> None:
    """Stop when the pipe from the runner closes: it was interrupted, or it died."""

    def watch() -> None:
        os.read(0, 1)  # not sys.stdin: its lock would be held at the exit
        stopping.set()
        _kill_kernels()  # papermill then saves the partial notebook, and main ends
        time.sleep(GRACE)
        with suppress(OSError):
            write_json(folder / "result.json", STOPPED)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _engine(folder: Path, total: int) -> str:
    """Register a papermill engine that notes the kernel, and which cell is at work."""
    from jupyter_client import AsyncKernelManager
    from papermill.engines import NBClientEngine, papermill_engines

    class Kernel(AsyncKernelManager):
        async def _async_launch_kernel(self, *args, **words):
            await super()._async_launch_kernel(*args, **words)
            kernels.add(self.provisioner.pid)  # a kernel leads its own process group
            if stopping.is_set():
                _kill_kernels()

        _launch_kernel = _async_launch_kernel

    class Watched(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, manager, kernel_name, **options):
            begin = manager.cell_start
            count = 0

            def cell_start(cell, *args, **words):
                nonlocal count
                if cell.cell_type == "code":
                    count += 1
                    at = {"cell": count, "of": total, "line": _first_line(cell.source)}
                    write_json(folder / "progress.json", at)
                return begin(cell, *args, **words)

            manager.cell_start = cell_start
            return super().execute_managed_notebook(
                manager, kernel_name, kernel_manager_class=Kernel, **options
            )

    papermill_engines.register("watched", Watched)
    return "watched"


def _first_line(source: str) -> str:
    return next((line.strip() for line in source.splitlines() if line.strip()), "")


def _failure(error: Exception, spec: dict[str, Any]) -> dict[str, Any]:
    """What went wrong, in the notebook's own terms."""
    if hasattr(error, "ename"):  # papermill's PapermillExecutionError
        value = ANSI.sub("", str(error.evalue)).strip()
        return {
            "ok": False,
            "cell": error.exec_count,
            "line": _first_line(error.source),
            "error": f"{error.ename}: {value}" if value else error.ename,
        }
    at = {}
    with suppress(OSError, json.JSONDecodeError):
        at = json.loads(Path(spec["folder"], "progress.json").read_text("utf-8"))
    kind = type(error).__name__
    words = f"{kind}: {error}" if str(error) else kind
    if kind == "DeadKernelError" or "Kernel died" in words:
        words = "the kernel died (killed, or out of memory?)"
    elif kind == "CellTimeoutError":
        words = (
            f"the cell took longer than the {spec['timeout']} s that --timeout gives"
        )
    return {"ok": False, "cell": at.get("cell"), "line": at.get("line"), "error": words}


def main(folder: Path) -> int:
    """Execute the notebook that folder/spec.json names."""
    import logging

    _end_with_the_runner(folder)
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    import papermill

    try:
        papermill.execute_notebook(
            spec["notebook"],
            str(folder / f"{spec['name']}.ipynb"),
            parameters=spec["parameters"],
            engine_name=_engine(folder, spec["cells"] + bool(spec["parameters"])),
            kernel_name="python3",
            cwd=str(ROOT / "notebooks"),
            progress_bar=False,
            request_save_on_cell_execute=True,
            execution_timeout=spec["timeout"],
        )
        result = {"ok": True}
    except Exception as error:
        result = STOPPED if stopping.is_set() else _failure(error, spec)
    finally:
        _kill_kernels()  # also what a kernel left behind: workers, servers
    write_json(folder / "result.json", result)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
