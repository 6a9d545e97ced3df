"""What several tests share: a copy of the collection, and a notebook's display."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ci.tools.notebooks import normalise, write
from ci.tools.percent import from_percent
from ci.tools.publish import BEGIN, END
from lib.kit.start import ROOT

SMALL = """
# %% [markdown] id=title
# # {number} · {title}
# %% id=setup tags=setup
# %% id=parameters tags=parameters
seed: int = 0  # seed of every random draw
steps: int = 4  # how many
rate: float = 0.5  # how fast
init: str = "legs"  # which one
sizes: list[int] = [1, 2]  # how large
# %% id=check
kit.check(seed=(0, None), steps=(1, 9), rate=(0.0, 1.0), init=("legs", "lin"))
claims = kit.Claims("{name}")
# %% id=claim
claims.identity("C1", "Nothing is nothing", residual=0.0, tol=1e-9, source="us")
# %% id=own
{code}
# %% id=claims tags=claims
claims.show()
"""


class Box:
    """A copy of the collection in a folder of its own, with the real environment."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notebooks = root / "notebooks"
        self.runs = root / "results" / "runs"
        for name in ("lib", "ci"):
            skip = shutil.ignore_patterns("__pycache__", "*.part")
            shutil.copytree(ROOT / name, root / name, ignore=skip)
        for name in ("environment.yml", "pyproject.toml", ".gitignore"):
            shutil.copy(ROOT / name, root / name)
        for name in ("notebooks/profiles", "results", "data"):
            (root / name).mkdir(parents=True)
        for name in ("notebooks/map.json", "data/manifest.json"):
            shutil.copy(ROOT / name, root / name)
        (root / "README.md").write_text(f"# Copy\n\n{BEGIN}\n{END}\n")
        (root / ".venv").symlink_to(ROOT / ".venv")

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(self.root)}

    def add(self, name: str, code: str = "pass") -> Path:
        """Write a small notebook that runs `code`."""
        text = SMALL.format(
            number=name[:2], name=name, title=name[3:], code=textwrap.dedent(code)
        )
        front = {"title": name[3:], "question": "Why?", "time": "2 s", "papers": []}
        path = self.notebooks / f"{name}.ipynb"
        write(normalise(from_percent(text, front), name, ""), path)
        return path

    def command(self, *words: str, **options) -> subprocess.CompletedProcess:
        """Run a command in the copy and wait for it."""
        options = {"cwd": self.root, "env": self.environment} | options
        return subprocess.run(
            words, capture_output=True, text=True, timeout=120, **options
        )

    def run(self, *words: str) -> subprocess.CompletedProcess:
        """`./ci/run` in the copy, without the wrapper's set-up."""
        return self.command(sys.executable, "-m", "ci.tools.run", *words)

    def start(self, *words: str) -> subprocess.Popen:
        """`./ci/run` in the copy, not waited for."""
        return subprocess.Popen(
            [sys.executable, "-m", "ci.tools.run", *words],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A background job ignores Ctrl-C, and hands that on to its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def result(self, run: str, label: str) -> dict:
        return json.loads((self.runs / run / "run.json").read_text("utf-8"))[label]

    def processes(self, word: str = "python") -> list[int]:
        """What runs for this copy, kernels included, with a word in its command."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
                here = os.readlink(entry / "cwd")
            except OSError:
                continue
            if here.startswith(str(self.root)) and word in words:
                found.append(int(entry.name))
        return found


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A copy of the collection without notebooks, shared by one file's tests."""
    made = Box(tmp_path_factory.mktemp("collection"))
    yield made
    assert made.processes() == []


def wait_for(happened: Callable[[], object], seconds: float = 40) -> None:
    """Wait until something is so; fail when it does not come about."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "this did not come about in time"
        time.sleep(0.05)


def edit_distance(a: Sequence, b: Sequence) -> int:
    """Insertions, deletions and substitutions between two sequences: an oracle."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, old = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(row[-1] + 1, old[j] + 1, old[j - 1] + (x != y)))
    return row[-1]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One torch thread for the tests of a module."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of a test's own."""
    monkeypatch.setenv("COLLECTION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict, dict]]:
    """What a notebook would display: bundles with their metadata."""
    calls: list[tuple[dict, dict]] = []
    monkeypatch.setattr(
        "IPython.display.display",
        lambda bundle, raw, metadata=None: calls.append((bundle, metadata or {})),
    )
    return calls


def speak_into(folder: Path, number: int, rates: Sequence[int] = (16_000,)) -> list:
    """Spoken English recordings, wav/00.wav and so on, of these rates in turn.

    Returns rows of a manifest: audio, text, language, speaker.
    """
    import soundfile

    from lib.speech.features import resample
    from lib.speech.synthesis import plan, spoken_audio

    asked, rows = plan("en", unlabelled=number, labelled=0, test=0), []
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    for i, (request, audio) in enumerate(zip(asked, spoken_audio(asked))):
        name, rate = f"wav/{i:02d}.wav", rates[i % len(rates)]
        soundfile.write(folder / name, resample(audio, 16_000, rate), rate)
        row = {"audio": name, "text": request.text, "language": "en"}
        rows.append(row | {"speaker": request.speaker})
    return rows
