"""ci.benchmarks.objective_soup: what is timed does the same work."""

import pytest
import torch

from ci.benchmarks import objective_soup as bench
from ci.tools.bench import Options, judge
from lib.kit.results import load
from lib.kit.start import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def step():
    return bench.Step("16")


def encoder_gradient(step, balance):
    step.of(balance)()
    return torch.cat([p.grad.flatten() for p in step.soup.encoder.parameters()])


def test_the_first_step_of_every_variant_is_the_plain_sum(step):
    """Weights are ones before MoDo has moved them, wherever it looks."""
    balances = bench.variants(step.soup, step.names)
    usual = encoder_gradient(step, balances.pop(bench.SUM))
    assert {"all layers", "only block 2", "only front end"} <= set(balances)
    for name, balance in balances.items():
        if not balance.recipe.halved:  # its batches are others
            found = encoder_gradient(step, balance)
            assert float((found - usual).norm() / usual.norm()) < 1e-3, name


def test_halves_are_two_samples(step):
    balance = bench.variants(step.soup, step.names)["all layers, halves"]
    usual = encoder_gradient(step, bench.variants(step.soup, step.names)[bench.SUM])
    found = encoder_gradient(step, balance)
    assert float((found - usual).norm() / usual.norm()) > 1e-2


def test_the_engines_agree():
    pytest.importorskip("torchjd", reason="torchjd is not installed")
    pytest.importorskip("quadprog", reason="quadprog is not installed")
    frame = bench.engine_table("16", Options(threads=1, quick=True))
    assert float(frame.set_index("method").error["TorchJD"]) < 1e-2


def test_every_target_was_measured_when_it_was_recorded():
    recorded = load(ROOT / "results" / "bench.objective_soup.json")
    tables = {n: recorded.table(n) for n in recorded.tables if n != "targets"}
    judged = judge(bench.TARGETS, tables)
    assert "not measured" not in set(judged["verdict"])
