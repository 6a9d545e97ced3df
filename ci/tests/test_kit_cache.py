"""Tests of kit.cache: interruption, damage, company, a closed folder, a full disk."""

import errno
import functools
import gc
import hashlib
import http.server
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib.kit.cache import CacheError, cache_folder, cached, download, shipped

CONTENT = b"0123456789" * 100


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Build:
    """Writes the content and counts how often it was asked to."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content, self.count = content, 0

    def __call__(self, path: Path) -> None:
        self.count += 1
        path.write_bytes(self.content)


def names(cache: Path) -> list[str]:
    """What lies in the cache, without locks."""
    return sorted(p.name for p in cache.rglob("*") if not p.name.endswith(".lock"))


# --- the good case -------------------------------------------------------------------


def test_a_file_is_built_once(cache: Path, capsys: pytest.CaptureFixture):
    build = Build()
    paths = {cached("digits-1.bin", build) for _ in range(3)}
    assert paths == {cache / "digits-1.bin"}
    assert (cache / "digits-1.bin").read_bytes() == CONTENT
    assert build.count == 1
    assert names(cache) == ["digits-1.bin", "digits-1.bin.sha256"]
    assert capsys.readouterr() == ("", "")


def test_a_file_in_a_folder_of_the_cache(cache: Path):
    assert cached("corpus/a.txt", Build()).read_bytes() == CONTENT
    assert (cache / "corpus" / "a.txt").exists()


def test_the_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLLECTION_CACHE", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere"
    monkeypatch.setenv("COLLECTION_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.setenv("COLLECTION_CACHE", "")
    assert cache_folder().parts[-2:] == ("data", "cache")


# --- damage --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: p.write_bytes(CONTENT[:-1] + b"x!"), "damaged"),
        (lambda p: p.write_bytes(CONTENT[:500]), "damaged"),
        (lambda p: p.write_bytes(b""), "damaged"),
        (lambda p: p.with_name("a.bin.sha256").write_text(""), "damaged"),
        (lambda p: p.with_name("a.bin.sha256").unlink(), "half-written"),
    ],
)
def test_a_damaged_file_is_named_and_rebuilt(
    cache: Path, capsys: pytest.CaptureFixture, damage: Any, said: str
):
    build = Build()
    damage(cached("a.bin", build))
    assert cached("a.bin", build).read_bytes() == CONTENT
    assert build.count == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"cache: a.bin is {said} (")
    assert err.endswith("building it again.\n")
    cached("a.bin", build)
    assert build.count == 2


def test_a_lost_file_is_rebuilt_without_a_word(
    cache: Path, capsys: pytest.CaptureFixture
):
    build = Build()
    cached("a.bin", build).unlink()
    cached("a.bin", build)
    assert build.count == 2
    assert capsys.readouterr().err == ""


def test_a_crash_while_building_leaves_nothing(cache: Path):
    def crash(path: Path) -> None:
        path.write_bytes(CONTENT[:300])
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        cached("a.bin", crash)
    assert names(cache) == []
    assert cached("a.bin", Build()).read_bytes() == CONTENT


def test_a_crash_while_rebuilding_does_not_pass_for_whole(cache: Path):
    cached("a.bin", Build()).write_bytes(b"damaged")

    def crash(path: Path) -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        cached("a.bin", crash)
    assert cached("a.bin", build := Build()).read_bytes() == CONTENT
    assert build.count == 1


def test_what_a_killed_process_left_is_swept(cache: Path):
    cache.mkdir()
    (cache / ".0a1b2c3d.a.bin").write_bytes(CONTENT[:300])
    (cache / ".0a1b2c3d.a.bin.sha256").write_text("")
    (cache / ".0a1b2c3d.b.bin").write_bytes(b"another file's")
    cached("a.bin", Build())
    assert names(cache) == [".0a1b2c3d.b.bin", "a.bin", "a.bin.sha256"]


def test_a_build_that_writes_nothing(cache: Path):
    with pytest.raises(CacheError, match=r"building a.bin wrote no file"):
        cached("a.bin", lambda path: None)


def test_a_known_checksum_is_compared(cache: Path):
    cached("a.bin", Build(), sha(CONTENT))
    with pytest.raises(CacheError) as caught:
        cached("b.bin", Build(b"else"), sha(CONTENT))
    assert str(caught.value) == (
        f"b.bin was built with checksum {sha(b'else')[:12]}..., but "
        f"{sha(CONTENT)[:12]}... was expected: its source has changed."
    )
    assert names(cache) == ["a.bin", "a.bin.sha256"]


def test_a_new_known_checksum_rebuilds_an_old_file(cache: Path):
    cached("a.bin", Build(b"old"))
    assert cached("a.bin", Build(), sha(CONTENT)).read_bytes() == CONTENT


def test_a_file_that_a_reader_put_there_counts(cache: Path):
    cache.mkdir()
    (cache / "a.bin").write_bytes(CONTENT)
    cached("a.bin", build := Build(), sha(CONTENT))
    assert build.count == 0


# --- company -------------------------------------------------------------------------


def fill(folder: str, gate: Any, log: str) -> None:
    """What each process does: wait for the others, then ask for the same file."""
    os.environ["COLLECTION_CACHE"] = folder

    def build(path: Path) -> None:
        with open(log, "a") as handle:
            handle.write("built\n")
        time.sleep(0.3)
        path.write_bytes(CONTENT)

    gate.wait()
    assert cached("a.bin", build).read_bytes() == CONTENT


def test_processes_that_want_the_same_file_build_it_once(cache: Path, tmp_path: Path):
    spawn = multiprocessing.get_context("spawn")
    gate, log = spawn.Barrier(3), tmp_path / "log"
    words = (str(cache), gate, str(log))
    crew = [spawn.Process(target=fill, args=words) for _ in range(3)]
    for process in crew:
        process.start()
    for process in crew:
        process.join(60)
    assert [process.exitcode for process in crew] == [0, 0, 0]
    assert log.read_text() == "built\n"
    assert names(cache) == ["a.bin", "a.bin.sha256"]


# --- folders that do not serve -------------------------------------------------------


@pytest.mark.parametrize("below", ["", "cache"])
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("COLLECTION_CACHE", str(tmp_path / "file" / below))
    sentence = (
        r"a.bin could not be put into the cache, because .*file.* cannot be written "
        r"\(.+\). Make it so, or set COLLECTION_CACHE to a folder elsewhere."
    )
    with pytest.raises(CacheError, match=sentence):
        cached("a.bin", build := Build())
    assert build.count == 0


def test_a_closed_folder_serves_what_it_holds(
    cache: Path, monkeypatch: pytest.MonkeyPatch
):
    cached("a.bin", Build())
    (cache / "a.bin.lock").unlink(missing_ok=True)

    def closed(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", closed)
    assert cached("a.bin", Build()).read_bytes() == CONTENT
    with pytest.raises(CacheError, match=r"cannot be written \(Permission denied\)"):
        cached("b.bin", Build())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(cache: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    cached("old.bin", Build())

    def full(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        sentence = "because the disk is full. Free some space, or set COLLECTION_CACHE"
        with pytest.raises(CacheError, match=sentence):
            cached("a.bin", Build())
    assert names(cache) == ["old.bin", "old.bin.sha256"]
    assert cached("a.bin", Build()).read_bytes() == CONTENT


def test_another_error_of_the_system_is_not_hidden(cache: Path):
    def broken(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        cached("a.bin", broken)


# --- downloads -----------------------------------------------------------------------


class Site:
    """A web server on this machine that counts requests."""

    def __init__(self, folder: Path) -> None:
        site = self
        self.requests = 0

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests += 1
                super().do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        serve = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.bin").write_bytes(CONTENT)
    site = Site(tmp_path / "web")
    yield site
    site.server.shutdown()
    site.server.server_close()


def test_a_download_is_fetched_once(
    cache: Path, site: Site, capfd: pytest.CaptureFixture
):
    for _ in range(2):
        path = download(f"{site.url}/a.bin", "mine.bin", sha(CONTENT))
        assert path == cache / "mine.bin"
        assert path.read_bytes() == CONTENT
    assert site.requests == 1
    assert names(cache) == ["mine.bin", "mine.bin.sha256"]
    assert capfd.readouterr() == ("", "")  # a notebook's outputs stay as they are


def test_a_download_with_another_content(cache: Path, site: Site):
    with pytest.raises(CacheError, match=r"mine.bin could not be fetched from .*hash"):
        download(f"{site.url}/a.bin", "mine.bin", sha(b"else"))
    assert names(cache) == []


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # by pooch, on a 404
def test_a_download_that_cannot_be_had(cache: Path, site: Site):
    url = f"{site.url}/none.bin"
    with pytest.raises(CacheError) as caught:
        download(url, "mine.bin", sha(CONTENT))
    text = str(caught.value)
    assert text.startswith(f"mine.bin could not be fetched from {url} (HTTPError: 404")
    assert text.endswith(f"Check the network, or put the file into {cache}.")
    assert names(cache) == []
    del caught
    gc.collect()  # here, where the warning about pooch's connection is ignored
    (cache / "mine.bin").write_bytes(CONTENT)  # what the sentence proposes
    assert download(url, "mine.bin", sha(CONTENT)).read_bytes() == CONTENT


def test_a_server_that_does_not_answer(cache: Path, site: Site):
    with pytest.raises(CacheError, match=r"could not be fetched .*ConnectionError"):
        download("http://127.0.0.1:1/a.bin", "mine.bin", sha(CONTENT))
    assert names(cache) == []


# --- shipped assets ------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    manifest = {name: {"sha256": sha(CONTENT)} for name in ("a.bin", "lost.bin")}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_a_shipped_asset(data: Path):
    assert shipped("a.bin", data) == data / "a.bin"


def test_shipped_assets_that_cannot_be_used(data: Path):
    with pytest.raises(CacheError, match=r"no 'b.bin'; it names a.bin, lost.bin"):
        shipped("b.bin", data)
    with pytest.raises(CacheError, match=r"data/lost.bin is missing: restore it with"):
        shipped("lost.bin", data)
    (data / "a.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(CacheError, match=r"data/a.bin is damaged: restore it with"):
        shipped("a.bin", data)


@pytest.mark.parametrize("text", [None, "{"])
def test_a_manifest_that_cannot_be_read(data: Path, text: str | None):
    (data / "manifest.json").unlink()
    if text is not None:
        (data / "manifest.json").write_text(text)
    with pytest.raises(CacheError, match=r"data/manifest.json cannot be read"):
        shipped("a.bin", data)


def test_an_empty_manifest(data: Path):
    (data / "manifest.json").write_text("{}")
    with pytest.raises(CacheError, match="it names nothing yet"):
        shipped("a.bin", data)
