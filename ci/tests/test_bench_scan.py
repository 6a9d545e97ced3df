"""Tests of the benchmark of scans: its methods agree, its targets name what there is.

None of them measures a time.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from ci.benchmarks import _scan_peers as peers
from ci.benchmarks import scan
from ci.tools.bench import BenchmarkError, Options, installed, judge
from lib.kit.results import load
from lib.kit.start import ROOT
from lib.scan import cpu

TINY = (2, 20, 64)  # not a multiple of the blocks; numba's channels come in 64s
RECORDED = ROOT / "results" / "bench.scan.json"
WHY_NOT = cpu.unavailable()


def needs(name: str, method: peers.Method) -> None:
    if name == peers.OURS and WHY_NOT:
        pytest.skip(WHY_NOT)
    if not installed(method.needs):
        pytest.skip(f"{method.needs} is not installed")


@pytest.fixture(scope="module")
def case() -> tuple[peers.Case, list[np.ndarray]]:
    made = peers.case(*TINY, scan.N)
    return made, peers.exact(made)


# Compilers for a shape and packages take long; the benchmark itself checks them.
EAGER = [n for n, m in peers.METHODS.items() if not m.compiles and m.needs == "torch"]


@pytest.mark.parametrize("name", EAGER)
def test_methods_agree_with_float64(name, case):
    method = peers.METHODS[name]
    needs(name, method)
    made, truth = case
    prepared = method.make(made)
    assert len(truth) == 6
    assert scan.agree(name, method, prepared, prepared.both(), truth) < 1e-4
    assert scan.deviation(prepared, prepared.forward(), truth) < 1e-4


@pytest.mark.parametrize(
    "function", [peers._jax_loop, peers._jax_checkpoint, peers._jax_associative]
)
def test_jax_agrees_with_float64(function, case):
    pytest.importorskip("jax")
    made, truth = case
    prepared = peers._jax_scan(function)(made)
    assert scan.deviation(prepared, prepared.both(), truth) < 1e-5


def test_what_torch_compiles_is_right_before_it_is_compiled(case, monkeypatch):
    made, truth = case
    monkeypatch.setattr(peers.torch, "compile", lambda function, **_: function)
    for make in (peers.compiled_block, peers.associative_compiled):
        prepared = make(made)
        assert scan.deviation(prepared, prepared.both(), truth) < 1e-5


@pytest.mark.parametrize(
    "name", [n for n, m in peers.SSD.items() if m.needs == "torch"]
)
def test_mamba_2_agrees_with_float64(name):
    method = peers.SSD[name]
    needs(name, method)
    made = peers.ssd_case(1, 256, 2, 3, 4)
    prepared, truth = method.make(made), scan.exact_ssd(made)
    assert scan.agree(name, method, prepared, prepared.both(), truth) < 1e-5


def test_one_sequence_after_another_is_the_same():
    made = peers.case(3, 7, 5, 4)
    for one, all_ in zip(scan._exact(made), peers.exact(made)):
        np.testing.assert_allclose(one, all_, rtol=1e-12, atol=1e-12)


def test_a_method_that_is_off_stops_with_a_sentence(case):
    made, truth = case
    method = peers.METHODS["lean loop"]
    prepared = method.make(made)
    y, *rest = prepared.both()
    with pytest.raises(BenchmarkError, match=r"lean loop is off by .* nothing of this"):
        scan.agree("lean loop", method, prepared, (y * 1.01, *rest), truth)
    y[0, 0, 0] = math.nan
    with pytest.raises(BenchmarkError, match="lean loop is off by nan"):
        scan.agree("lean loop", method, prepared, (y, *rest), truth)


# --- targets -------------------------------------------------------------------------


def test_targets_name_what_is_measured(monkeypatch):
    monkeypatch.setattr(scan, "installed", lambda module: True)
    known = {scan.label(shape): shape for shape in scan.SHAPES}
    for target in scan.TARGETS:
        row = target.row
        if target.table in scan.TABLES:
            method, shape = peers.METHODS[row["method"]], known[row["shape"]]
            assert scan._skipped(method, shape, target.table == "backward") == ""
            continue
        assert row["pass"] in scan.PASSES
        methods = {
            "ssd": list(peers.SSD),
            "block": [peers.OURS, scan.MIXER],
            "floor": [peers.OURS],
            "memory": scan.MEASURED,
            "first_call": scan.COMPILING,
        }
        assert row["method"] in methods[target.table]
        assert row.get("shape", scan.label(scan.MAIN)) in known
    assert {t.table for t in scan.TARGETS} == {*scan.TABLES, *methods}


def test_every_table_is_there_with_two_threads():
    options = Options(2)
    tables = {
        "floor": scan.floor_table(scan.SHAPES, options),
        "memory": scan.memory_table(options),
        "first_call": scan.first_table(options),
    }
    targets = [t for t in scan.TARGETS if t.table in tables]
    assert set(judge(targets, tables)["verdict"]) == {"not measured"}


@pytest.mark.skipif(not RECORDED.exists(), reason="not recorded yet")
def test_every_target_was_measured_when_it_was_recorded():
    recorded = load(RECORDED)
    tables = {n: recorded.table(n) for n in recorded.tables if n != "targets"}
    judged = judge(scan.TARGETS, tables)
    assert "not measured" not in set(judged["verdict"])


def fake_tables(ratio: float, to_floor: float) -> dict[str, pd.DataFrame]:
    """Every target measured: ratios to peers, and ours over its floor."""
    rows: dict[str, list] = {t.table: [] for t in scan.TARGETS}
    for target in scan.TARGETS:
        least = ratio * target.at_least if target.at_least else target.at_most
        rows[target.table].append(target.row | {target.column: least})
    rows["floor"] = [
        {"method": method, "pass": kind, "shape": scan.label(shape), "ratio": to_floor}
        for method in (scan.OURS, scan.OURS_SSD, scan.OURS_BLOCK)
        for shape in scan.SHAPES
        for kind in scan.PASSES
    ]
    return {name: pd.DataFrame(found) for name, found in rows.items()}


def test_a_target_beyond_the_floor_is_judged_by_what_the_floor_allows():
    to_peers = [t.table in (*scan.TABLES, "ssd", "block") for t in scan.TARGETS]
    for ratio, to_floor, verdict in (
        (1.5, 3.0, "met"),
        (0.6, 3.0, "missed"),
        (0.4, 1.9, "missed"),  # twice as fast is more than the machine can do
        (0.4, 2.1, "missed by more than half"),
    ):
        judged = scan.judged(fake_tables(ratio, to_floor))
        assert set(judged["verdict"][to_peers]) == {verdict}
        allows = judged["floor allows"]
        np.testing.assert_allclose(
            allows[to_peers], to_floor * judged["measured"][to_peers]
        )
        assert allows[[not peer for peer in to_peers]].isna().all()


def test_without_a_floor_only_the_target_counts():
    tables = fake_tables(0.4, 1.0)
    tables["floor"] = tables["floor"][:0]
    judged = scan.judged(tables)
    assert judged["floor allows"].isna().all()
    assert "missed by more than half" in set(judged["verdict"])


def test_the_fewest_products_are_those_of_some_chunk_length():
    b, L, H, P, n = 1, 64, 1, 8, 8

    def forward(Q: int) -> float:  # write, read, decay at the end; half a matrix
        inside = sum(i + 1 for i in range(Q)) * (n + P)
        return L / Q * (Q * 2 * n * P + n * P + inside)

    least = min(forward(Q) for Q in range(1, L + 1))
    found = scan.fewest_products((b, L, H, P, n), False)
    assert 0.9 * least < found <= least  # the diagonal counts as half there
    assert 3 * found < scan.fewest_products((b, L, H, P, n), True) < 4 * found
    heads = scan.fewest_products((b, L, 4, P, n), False)
    assert found < heads < 4 * found  # which share a matrix


def test_the_products_of_a_block_are_its_linear_maps():
    block, *_ = scan._block_case()
    forward, both = scan.block_products(block, 6)
    shapes = [tuple(y.shape) for y in forward()]
    assert shapes == [(6, 512), (6, 40), (6, 256), (6, 128)]
    again, back = both()
    assert len(again) == len(back) == 4
    for (dx, dw), layer in zip(
        back, (block.in_proj, block.x_proj, block.dt_proj, block.out_proj)
    ):
        assert dx.shape == (6, layer.in_features)
        assert dw.shape == layer.weight.shape


def test_what_does_not_run_says_why(monkeypatch):
    monkeypatch.setattr(scan, "installed", lambda module: module != "jax")

    def why(name: str, shape: tuple, backward: bool) -> str:
        return scan._skipped(peers.METHODS[name], shape, backward)

    assert why("JAX scan", scan.SHORT, False) == "not installed"
    for name in scan.SLOW:
        assert "quadratic" in why(name, scan.MAIN, True)
        assert why(name, scan.MAIN, False) == why(name, scan.SHORT, True) == ""
    assert "compile" in why("torch.compile, 16 steps", scan.WIDE, False)
    assert why("heinsen", scan.MAIN, False) == "not run: L > 256"
