"""Execute one notebook with papermill, in a process of its own.

`run_point` is what an executor calls (a thread of this machine, or a worker of a
cluster): it starts this file as a script and waits for it. The script writes its
progress and its result as small files, so that anybody can watch and nothing is lost
when it dies. Its standard input is a pipe that nobody writes to: when the runner closes
it, or dies in whatever way, the script stops its kernel and ends.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lib.kit.results import write_json
from lib.kit.start import ROOT, fixed_environment

ANSI = re.compile(r"\x1b\[[0-9;]*m")
GRACE = 5.0  # seconds for a stopped child to save its partial notebook
STOPPED = {"ok": False, "stopped": True, "error": "stopped before the end"}
running: set[subprocess.Popen] = set()  # children of this process, to stop on Ctrl-C
stopping = threading.Event()  # set in the runner and, later, in the child


def run_point(spec: dict[str, Any]) -> dict[str, Any]:
    """Execute one point and return its result.

    spec: notebook (path), name, folder, parameters, profile, hash, key, timeout. The
    result holds ok, seconds, and for a failure the cell, its first line and the error.
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
        )
        running.add(child)
        try:
            if stopping.is_set():  # between the queue and here
                child.stdin.close()
            child.wait()
        finally:
            running.discard(child)
            child.stdin.close()
    result = read_result(folder) or {
        "ok": False,
        "error": f"the process ended with code {child.returncode} before it could say "
        "why (killed, or out of memory?); its words are in log.txt",
    }
    result |= {"seconds": round(time.monotonic() - started, 1), "key": spec["key"]}
    if result["ok"]:
        result["files"] = _sizes(folder)
    write_json(folder / "result.json", result)
    return result


def stop_children() -> None:
    """Ask every child to stop its kernel and end; kill what does not in time."""
    stopping.set()
    children = list(running)
    for child in children:
        with suppress(OSError):
            child.stdin.close()
    deadline = time.monotonic() + GRACE + 3
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.1, deadline - time.monotonic()))
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


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
