"""One training on several processes: each has its own batches, all the same gradient.

Data-parallel training for loops that draw a step's batch and noise from its number:
process r of W takes the number k W + r in step k, so that W processes see what one
would see in W steps, and `average` makes one gradient of theirs. Alone, nothing
changes. Started by torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK:

    torchrun --standalone --nproc-per-node 8 -m lib.speech pretrain ... --out model.pt

Imported by the modules that train, not by the kit itself, which must not need torch.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn


@contextmanager
def session() -> Iterator[None]:
    """Inside `with`, the processes that torchrun started know each other.

    With CUDA each gets the device of its LOCAL_RANK. Alone, nothing happens.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def size() -> int:
    """How many processes train together: 1 outside a session."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def first() -> bool:
    """Whether this process writes files and shows progress."""
    return rank() == 0


def part(step: int) -> int:
    """The number of this process's batch and draws in a step, both from 0."""
    return step * size() + rank()


def average(parameters: Iterable[Tensor]) -> None:
    """The mean of all processes' gradients, in place.

    parameters: the same in every process; those without a gradient are left alone, and
    must be the same everywhere too.
    """
    if size() == 1:
        return
    slopes = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([slope.flatten() for slope in slopes])  # one message, not many
    distributed.all_reduce(flat)
    flat /= size()
    for slope, mean in zip(slopes, flat.split([s.numel() for s in slopes])):
        slope.copy_(mean.view_as(slope))


def mean(values: Mapping[str, float], device: torch.device | str = "cpu") -> dict:
    """The mean of all processes' numbers; a nan (not computed) stays one."""
    if size() == 1:
        return dict(values)
    together = torch.tensor(list(values.values()), dtype=torch.float32, device=device)
    distributed.all_reduce(together)
    return dict(zip(values, (together / size()).tolist()))


def share(
    step: int, model: nn.Module, optimiser: torch.optim.Optimizer, history: dict
) -> int:
    """Bring all processes to where the first is; returns its number of steps done.

    step: done here; model, optimiser, history: changed in place.
    """
    if size() == 1:
        return step
    place = next(model.parameters()).device
    sent = io.BytesIO()
    if first():
        states = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save(states | {"history": dict(history), "step": step}, sent)
    box = [sent.getvalue()]
    distributed.broadcast_object_list(box, device=place)
    found = torch.load(io.BytesIO(box[0]), map_location=place, weights_only=True)
    model.load_state_dict(found["model"])
    optimiser.load_state_dict(found["optimiser"])
    history.update(found["history"])
    return found["step"]
