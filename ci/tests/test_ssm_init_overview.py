"""The table of all initialisations: what it prints follows from each line of code."""

from __future__ import annotations

import numpy as np
import pytest

from lib.ssm_init import training
from lib.ssm_init.overview import CATALOGUE, catalogue


@pytest.fixture(scope="module")
def table():
    return catalogue(N=64, seed=0).set_index("name")


def test_every_entry_has_a_row_and_known_names(table):
    assert list(table.index) == [entry.name for entry in CATALOGUE]
    assert len(table) == 13
    trained = [name for name in table.trained if name]
    assert set(trained) <= set(training.VARIANTS)


def test_variances_follow_the_laws(table):
    dt, N = 1e-3, 64
    for name in ("S4D-Inv", "S4D-Lin", "DSS"):
        assert table.variance[name] == pytest.approx(N * dt, rel=0.01)
    # S4's Gramian has 1/2 on its diagonal, and a small perturbation keeps that.
    assert table.variance["S4"] == pytest.approx(N * dt / 2, rel=0.01)
    assert table.variance["S4-PTD"] == pytest.approx(N * dt / 2, rel=0.1)
    assert table.variance["LRU"] == pytest.approx(N, rel=1e-6)  # gamma normalises
    harmonic = np.sum(1 / np.arange(1, 33))
    assert table.variance["S4D-Real"] == pytest.approx(harmonic * dt, rel=0.01)
    assert table.variance["Mamba"] == pytest.approx(
        np.sum(1 / np.arange(1, 17)) * dt / 2, rel=0.01
    )


def test_conditions_and_windows(table):
    assert 6 < table.kappa["S4D-Lin"] < np.e**2
    assert table.kappa["S4D-Real"] > 1e40
    assert table.kappa["random"] > 1e13
    assert table.kappa["Mamba"] == pytest.approx(8.54e22, rel=1e-3)
    assert table["memory (steps)"]["Mamba"] == "0.625 to 1e+03"
    assert table["largest Im"]["S4D-Lin"] == pytest.approx(31 * np.pi)
    assert table["largest Im"]["S4D-LegS"] == pytest.approx(64**2 / np.pi, rel=1e-3)


def test_draws_follow_the_seed(table):
    again, other = catalogue(seed=0), catalogue(seed=1)
    assert again.equals(table.reset_index())
    assert (other.kappa != again.kappa).any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"N": 63}, "take 62 or 64"), ({"dt_range": (0, 1)}, "low")],
)
def test_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        catalogue(**arguments)
