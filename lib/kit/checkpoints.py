"""Runs that can be killed: checkpoints, seeds of single steps, losses that are finite.

A training loop that draws each batch from (seed, step) with `mixed`, and calls `resume`
before and `save` within, ends with the same bits whether or not it was interrupted.
Imported by the modules that train, not by the kit itself, which must not need torch.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lib.kit.checks import need


def mixed(*numbers: int) -> int:
    """One seed of several numbers, unlike those of their neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def finite(loss: float, step: int, advice: str = "lower lr or clip harder") -> float:
    """The loss itself. Raises FloatingPointError, with the advice, if it is not finite.

    loss; step: of the optimiser, from 0; advice: what to do, without a full stop.
    """
    need(
        math.isfinite(loss),
        f"The loss is {loss} at step {step}: {advice}.",
        FloatingPointError,
    )
    return loss


def save(
    path: str | Path | None,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    settings: dict,
    history: dict,
) -> None:
    """Write a checkpoint so that a reader sees the old file or the new one.

    path: of the file, None for nothing; settings: what makes the run this run;
    history: lists of which "loss" has one entry for every unit done.
    """
    if path is None:
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        states = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save(states | {"settings": settings, "history": history}, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def resume(
    path: str | Path | None,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    settings: dict,
    history: dict,
) -> int:
    """Load a checkpoint if there is one, in place; return the first unit still to do.

    Arguments as of `save`. Raises ValueError for a file that cannot be read, that
    belongs to other settings, or that holds another model.
    """
    if path is None or not Path(path).exists():
        return 0
    name, place = Path(path).name, next(model.parameters()).device
    try:
        saved = torch.load(path, map_location=place, weights_only=True)
        found = saved["settings"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(
            f"The checkpoint {name} cannot be read ({type(error).__name__}); delete it "
            "to start again."
        ) from None
    other = [key for key in settings if found.get(key) != settings[key]]
    need(
        not other,
        f"The checkpoint {name} belongs to another run: "
        + ", ".join(f"{key} was {found.get(key)}, is {settings[key]}" for key in other)
        + ". Delete it or give another file.",
    )
    try:
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
    except (RuntimeError, ValueError):
        raise ValueError(
            f"The checkpoint {name} holds another model; delete it or name another."
        ) from None
    history.update(saved["history"])
    return len(history["loss"])
