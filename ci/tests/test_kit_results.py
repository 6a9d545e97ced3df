"""Tests of kit.results: recorded runs are written whole and read back as they were."""

import json
import os
import platform
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lib.kit import results
from lib.kit.results import (
    Recorded,
    load,
    note_gpu,
    output_folder,
    processor,
    recorded,
    results_table,
    save_table,
    scoreboard,
    show_recorded,
    tally,
    versions,
    write_json,
)

PROVENANCE = {
    "hash": "0123456789abcdef",
    "parameters": {"seed": 0, "N": 64},
    "versions": {"python": "3.11"},
    "processor": "Model 1",
    "cores": 2,
    "date": "2026-01-02",
}


def claim(kind: str, verdict: str) -> dict[str, str]:
    return {"id": "C", "kind": kind, "verdict": verdict}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder of its own, with runs below KIT_OUTPUT."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("KIT_OUTPUT", str(tmp_path / "out"))
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def record(folder: Path, name: str = "11_x", profile: str = "long", **change: Any):
    content = {
        "notebook": name,
        "profile": profile,
        "provenance": PROVENANCE,
        "claims": [],
        "tables": {},
    }
    return write_json(folder / f"{name}.{profile}.json", content | change)


# --- writing -------------------------------------------------------------------------


def test_write_json_is_sorted_readable_and_repeatable(tmp_path: Path):
    path = write_json(tmp_path / "deep" / "a.json", {"b": 1, "a": "π"})
    assert path.read_text(encoding="utf-8") == '{\n "a": "π",\n "b": 1\n}\n'


def test_write_json_keeps_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_json(tmp_path / "a.json", {"old": 1})

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_json(path, {"new": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads(path.read_text()) == {"old": 1}


def test_write_json_refuses_before_touching_the_file(tmp_path: Path):
    path = write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"new": object()})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"new": float("nan")})
    assert json.loads(path.read_text()) == {"old": 1}


def test_output_folder_of_a_run(folder: Path, tmp_path: Path):
    assert output_folder("11_x") == tmp_path / "out" / "11_x"
    assert (tmp_path / "out" / "11_x").is_dir()


def test_output_folder_of_a_reader(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KIT_OUTPUT")
    found = output_folder("11_x")
    assert found == folder / "runs" / "interactive" / "11_x"
    assert list(found.iterdir()) == []


def test_output_folder_that_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("KIT_OUTPUT")
    (folder / "runs").write_text("a file in the way")
    assert output_folder("11_x") is None
    save_table("11_x", "t", pd.DataFrame({"a": [1]}))  # a reader's session goes on


# --- tables --------------------------------------------------------------------------


def round_trip(folder: Path, frame: pd.DataFrame) -> pd.DataFrame:
    save_table("11_x", "t", frame)
    path = folder.parent / "out" / "11_x" / "tables" / "t.json"

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    saved = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    record(folder, tables={"t": saved})
    return recorded("11_x", "long").table("t")


def test_a_table_comes_back_as_it_was(folder: Path):
    frame = pd.DataFrame(
        {
            "basis": ["legs", "π"],
            "N": [4, 64],
            "error": [3.2e-14, 1.5],
            "exact": [1.0, np.nan],
            "bound": [np.inf, -np.inf],
            "good": [True, False],
        }
    )
    pd.testing.assert_frame_equal(round_trip(folder, frame), frame)


def test_a_table_without_rows(folder: Path):
    back = round_trip(folder, pd.DataFrame({"a": [], "b": []}))
    assert list(back.columns) == ["a", "b"]
    assert len(back) == 0


def test_words_that_look_like_numbers_stay_words(folder: Path):
    frame = pd.DataFrame({"name": ["inf", "sup"], "limit": ["1", "2"]})
    pd.testing.assert_frame_equal(round_trip(folder, frame), frame)


def test_odd_cells_and_columns(folder: Path):
    frame = pd.DataFrame({0: [torch.tensor(1.5), None], "when": ["2020", Path("a")]})
    frame.index = [5, 9]
    back = round_trip(folder, frame)
    assert back["0"].tolist()[0] == 1.5
    assert np.isnan(back["0"].tolist()[1])
    assert back["when"].tolist() == ["2020", "a"]
    assert back.index.tolist() == [0, 1]


def test_a_table_keeps_twelve_digits_and_integers_whole(folder: Path):
    back = round_trip(folder, pd.DataFrame({"x": [1 / 3], "n": [2**53 + 1]}))
    assert back["x"][0] == 0.333333333333
    assert back["n"][0] == 2**53 + 1


def test_refused_tables(folder: Path):
    with pytest.raises(ValueError, match=r"'t' has 5001 rows; .* aggregate it first"):
        save_table("11_x", "t", pd.DataFrame({"a": range(5001)}))
    with pytest.raises(ValueError, match=r"name '\.\./t' becomes a file name"):
        save_table("11_x", "../t", pd.DataFrame({"a": [1]}))
    with pytest.raises(ValueError, match="'t' has two columns of the same name"):
        save_table("11_x", "t", pd.DataFrame([[1, 2]], columns=["a", "a"]))
    assert not (folder.parent / "out").exists()


def test_an_unknown_table(folder: Path):
    record(folder, tables={"b": {"columns": [], "rows": []}})
    with pytest.raises(KeyError, match=r"11_x.long holds no table 'a'; it holds b"):
        recorded("11_x", "long").table("a")


# --- reading -------------------------------------------------------------------------


def test_recorded(folder: Path):
    assert recorded("11_x", "long") is None
    record(folder, claims=[claim("trend", "seen")])
    found = recorded("11_x", "long")
    assert found == Recorded(
        "11_x", "long", PROVENANCE, [claim("trend", "seen")], tables={}
    )


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '"a"', '{"notebook": "11_x"}', "\xff\xfe", "null"],
)
def test_a_damaged_record_is_named(folder: Path, text: str):
    (folder / "11_x.long.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"results/11_x.long.json cannot be read \(.*"):
        recorded("11_x", "long")
    with pytest.raises(ValueError, match="restore it from version control or record"):
        load(folder / "11_x.long.json")


def test_a_record_without_its_provenance_is_damaged(folder: Path):
    record(folder, provenance={"hash": "1"})
    with pytest.raises(ValueError, match=r"cannot be read \(KeyError: 'parameters'\)"):
        recorded("11_x", "long")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(
        "IPython.display.display",
        lambda bundle, raw: calls.append(bundle["text/markdown"]),
    )
    return calls


def test_show_recorded_without_a_record(folder: Path, said: list[str]):
    assert show_recorded("11_x") is None
    assert said == [
        "No run of the profile *long* has been recorded yet. `./ci/run 11 --profile "
        "long --record` makes it and shows it here."
    ]


def test_show_recorded(folder: Path, said: list[str]):
    record(folder)
    assert show_recorded("11_x", "long").notebook == "11_x"
    assert said == [
        "Recorded on 2026-01-02, profile *long* (N=64, seed=0), on Model 1, 2 cores, "
        "code hash `0123456789ab`. Repeat it with "
        "`./ci/run 11 --profile long --record`."
    ]


def test_show_recorded_on_a_gpu_and_of_the_defaults(folder: Path, said: list[str]):
    change = {"gpu": "Model X", "parameters": {}}
    record(folder, profile="default", provenance=PROVENANCE | change)
    show_recorded("11_x", "default")
    assert "profile *default* (defaults), on Model X, code hash" in said[0]
    assert said[0].endswith("Repeat it with `./ci/run 11 --record`.")


# --- the scoreboard ------------------------------------------------------------------


def test_tally():
    claims = [
        claim("identity", "holds"),
        claim("identity", "FAILED"),
        claim("theorem", "holds"),
        claim("trend", "seen"),
        claim("trend", "not judged (1 seed)"),
        claim("trend", "not judged (2 seeds)"),
        claim("trend", "opposite"),
    ]
    assert tally(claims) == {
        "identities": "1 of 2",
        "theorems": "1 of 1",
        "trends": "2 not judged, 1 opposite, 1 seen",
    }
    assert tally([]) == {"identities": "-", "theorems": "-", "trends": "-"}


def test_results_table_and_scoreboard(folder: Path):
    record(folder, "12_y", "default", claims=[claim("theorem", "holds")])
    record(folder, "11_x", "long", claims=[claim("trend", "inconclusive")])
    record(folder, "11_x", "default")
    record(folder, "00_start_here", "default")
    (folder / "README.md").write_text("not a result")
    (folder / "11_x.long.json.ab12.part").write_text("left by a crash")
    assert [(run.notebook, run.profile) for run in results_table()] == [
        ("00_start_here", "default"),
        ("11_x", "default"),
        ("11_x", "long"),
        ("12_y", "default"),
    ]
    assert scoreboard().to_dict("records") == [
        {"notebook": "11_x", "profile": "default"} | tally([]),
        {"notebook": "11_x", "profile": "long"}
        | {"identities": "-", "theorems": "-", "trends": "1 inconclusive"},
        {"notebook": "12_y", "profile": "default"}
        | {"identities": "-", "theorems": "1 of 1", "trends": "-"},
    ]


def test_an_empty_scoreboard_has_its_columns(folder: Path):
    columns = ["notebook", "profile", "identities", "theorems", "trends"]
    assert list(scoreboard().columns) == columns
    assert len(scoreboard()) == 0


# --- provenance ----------------------------------------------------------------------


def test_provenance_names_no_machine_and_no_path():
    words = " ".join([processor(), *versions(), *versions().values()])
    assert len(processor()) > 3
    for private in (socket.gethostname(), platform.node(), str(Path.home()), "/"):
        assert private not in words


def test_versions():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__
    assert "jupyterlab" not in found  # a notebook does not import it


def test_processor_where_linux_is_not(monkeypatch: pytest.MonkeyPatch):
    def absent(*_: Any, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert processor() == platform.machine()


def test_note_gpu(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Model X")
    note_gpu(None)
    save_table("11_x", "t", pd.DataFrame({"a": [1]}))
    path = tmp_path / "out" / "11_x" / "gpu.json"
    assert json.loads(path.read_text()) == {"gpu": "Model X"}
