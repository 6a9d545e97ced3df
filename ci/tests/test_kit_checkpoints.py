"""Checkpoints: the same bits after an interruption, and a sentence for a wrong file."""

import os

import pytest
import torch
from torch import nn

from lib.kit.checkpoints import finite, mixed, resume, save
from lib.kit.checks import nearest


def run(steps, path=None, stop=None):
    """A linear map fitted to noise that depends on the step only."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    history = {"loss": []}
    for step in range(resume(path, model, optimiser, {"steps": steps}, history), steps):
        if step == stop:
            return None
        draw = torch.Generator().manual_seed(mixed(7, step))
        loss = (model(torch.randn(8, 3, generator=draw)) - 1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history["loss"].append(finite(loss.item(), step))
        save(path, model, optimiser, {"steps": steps}, history)
    return model.state_dict(), history


def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path):
    path = tmp_path / "deep" / "run.pt"  # the folder is made
    whole, losses = run(6)
    assert run(6, path, stop=4) is None
    states, again = run(6, path)
    assert all(torch.equal(whole[name], states[name]) for name in whole)
    assert losses == again
    assert os.listdir(path.parent) == ["run.pt"]  # no part is left behind


def test_a_finished_run_is_not_run_again(tmp_path):
    _, losses = run(3, tmp_path / "run.pt")
    assert run(3, tmp_path / "run.pt", stop=0)[1] == losses


def test_another_runs_checkpoint_is_named(tmp_path):
    run(3, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"steps was 3, is 5\. Delete it or give"):
        run(5, tmp_path / "run.pt")


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "run.pt").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"run\.pt cannot be read .*delete it"):
        run(3, tmp_path / "run.pt")


def test_another_models_checkpoint_is_named(tmp_path):
    model = nn.Linear(3, 2)
    optimiser = torch.optim.Adam(model.parameters())
    save(tmp_path / "run.pt", model, optimiser, {"steps": 3}, {"loss": []})
    with pytest.raises(ValueError, match=r"run\.pt holds another model"):
        run(3, tmp_path / "run.pt")


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_with_advice(loss):
    with pytest.raises(FloatingPointError, match=f"loss is {loss} at step 3: drink."):
        finite(loss, 3, "drink")
    assert finite(2.5, 3) == 2.5


def test_seeds_of_neighbours_differ_and_repeat():
    seeds = [mixed(a, b) for a in range(20) for b in range(20)]
    assert len(set(seeds)) == 400
    assert seeds[21] == mixed(1, 1)


def test_the_nearest_words_are_offered_and_others_are_not():
    assert nearest("legz", ["legs", "lin"]) == " Did you mean legs?"
    assert nearest("xyz", ["legs", "lin", 3]) == ""
