"""Execute one notebook with papermill, in a process of its own.

`run_point` is what an executor calls (a thread of this machine, or a worker of a
cluster): it starts this file as a script and waits for it. The script writes its
progress and its result as small files, so that anybody can watch and nothing is lost
when it dies.
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
running: set[subprocess.Popen] = set()  # children of this process, to stop on Ctrl-C


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
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        running.add(child)
        try:
            child.wait()
        finally:
            running.discard(child)
    result = read_result(folder) or {
        "ok": False,
        "error": f"the process ended with code {child.returncode} before it could say "
        "why (killed, or out of memory?); its words are in log.txt",
    }
    result |= {"seconds": round(time.monotonic() - started, 1), "key": spec["key"]}
    write_json(folder / "result.json", result)
    return result


def stop_children() -> None:
    """Ask every child to stop its kernel and end; kill what does not within 5 s."""
    for child in list(running):
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 5
    for child in list(running):
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.1, deadline - time.monotonic()))
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of a point; None while it has none."""
    with suppress(OSError, json.JSONDecodeError):
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return None


def _watch_parent() -> None:
    """End with the parent: a runner that was killed leaves no kernel behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _engine(folder: Path, total: int) -> str:
    """Register a papermill engine that notes which cell is at work."""
    from papermill.engines import NBClientEngine, papermill_engines

    class Watched(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, manager, kernel_name, **options):
            begin = manager.cell_start
            count = 0

            def cell_start(cell, *args, **words):
                nonlocal count
                if cell.cell_type == "code":
                    count += 1
                    write_json(folder / "progress.json", {"cell": count, "of": total})
                return begin(cell, *args, **words)

            manager.cell_start = cell_start
            return super().execute_managed_notebook(manager, kernel_name, **options)

    papermill_engines.register("watched", Watched)
    return "watched"


def _failure(error: Exception, source: str) -> dict[str, Any]:
    """What went wrong, in the notebook's own terms."""
    if hasattr(error, "ename"):  # papermill's PapermillExecutionError
        first = next((line for line in error.source.splitlines() if line.strip()), "")
        value = ANSI.sub("", str(error.evalue)).strip()
        return {
            "ok": False,
            "cell": error.exec_count,
            "line": first.strip(),
            "error": f"{error.ename}: {value}",
        }
    words = str(error) or "no message"
    if "Kernel died" in words or type(error).__name__ == "DeadKernelError":
        words = "the kernel died (killed, or out of memory?)"
    if type(error).__name__ == "CellTimeoutError":
        words = "a cell took longer than the time allowed: " + words.splitlines()[0]
    progress = {}
    with suppress(OSError, json.JSONDecodeError):
        progress = json.loads(Path(source, "progress.json").read_text(encoding="utf-8"))
    return {"ok": False, "cell": progress.get("cell"), "error": words}


def main(folder: Path) -> int:
    """Execute the notebook that folder/spec.json names."""
    import logging

    _watch_parent()

    def ended(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, ended)
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    import papermill

    name = spec["name"]
    total = spec["cells"] + bool(spec["parameters"])
    try:
        papermill.execute_notebook(
            spec["notebook"],
            str(folder / f"{name}.ipynb"),
            parameters=spec["parameters"],
            engine_name=_engine(folder, total),
            kernel_name="python3",
            cwd=str(ROOT / "notebooks"),
            progress_bar=False,
            request_save_on_cell_execute=True,
            execution_timeout=spec["timeout"],
        )
        result = {"ok": True}
    except KeyboardInterrupt:
        result = {"ok": False, "error": "stopped before the end", "stopped": True}
    except Exception as error:
        result = _failure(error, str(folder))
    write_json(folder / "result.json", result)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
