"""One training on several processes: each has its own batches, all the same gradient.

Data-parallel training for loops that draw a step's batch and noise from its number:
process r of W takes the number k W + r in step k, so that W processes see what one
would see in W steps, and `average` makes one gradient of theirs. Alone, nothing
changes. `accelerate` lets the processes find each other and carries what they tell each
other; `lib.kit.launching` starts them, or torchrun does:

    torchrun --standalone --nproc-per-node 8 -m lib.speech pretrain ... --out model.pt

Imported by the modules that train, not by the kit itself, which must not need torch.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor, distributed, nn

from lib.kit.checks import need


@contextmanager
def session() -> Iterator[None]:
    """Inside `with`, the processes that were started together know each other.

    With CUDA each gets the device of its LOCAL_RANK. Alone, or inside another session,
    nothing happens. Raises ModuleNotFoundError without accelerate, ValueError for more
    processes than devices.
    """
    if size() > 1 or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    state = carrier().PartialState
    cuda, place = torch.cuda.is_available(), int(os.environ.get("LOCAL_RANK", 0))
    need(
        not cuda or place < torch.cuda.device_count(),
        f"There are {torch.cuda.device_count()} GPUs for more processes; start one for "
        "each.",
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, without a word
    state(cpu=not cuda)
    try:
        yield
    finally:
        distributed.destroy_process_group()
        state._reset_state()  # for another session of this process


def carrier() -> ModuleType:
    """The package accelerate. Raises ModuleNotFoundError with what to do without it."""
    try:
        import accelerate
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed; several processes need it: install the "
            "hub group (./ci/setup --extra hub, or pip install accelerate)."
        ) from None
    return accelerate


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


def named(seed: int) -> int | str:
    """A seed as checkpoints know it: several processes make a run of their own."""
    return seed if size() == 1 else f"{seed} with {size()} processes"


def same(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The means of all processes' tensors, in one message; alone, the tensors.

    tensors: of one type and device, of the same shapes everywhere.
    """
    tensors = list(tensors)
    if size() == 1 or not tensors:
        return tensors
    from accelerate.utils import reduce

    need(
        tensors[0].is_cuda or distributed.get_backend() != "nccl",
        "Where there are GPUs, several processes train on them; hide the GPUs "
        "(CUDA_VISIBLE_DEVICES=) to train on the CPU.",
    )
    mean = reduce(torch.cat([t.detach().flatten() for t in tensors]), "mean")
    parts = mean.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors)]


@torch.no_grad()
def settle(tensors: Iterable[Tensor]) -> None:
    """Put the means of all processes' tensors into them; see `same`."""
    tensors = list(tensors)
    for own, mean in zip(tensors, same(tensors)):
        if own is not mean:
            own.copy_(mean)


def gathered(rows: Tensor) -> Tensor:
    """All processes' rows, (n, ...) with an n of each one's own, one behind another."""
    if size() == 1:
        return rows
    from accelerate.utils import gather, pad_across_processes

    numbers = gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    parts = gather(pad_across_processes(rows.contiguous())).split(max(numbers))
    return torch.cat([part[:n] for part, n in zip(parts, numbers)])


def lead(tensors: Iterable[Tensor]) -> None:
    """Put the first process's tensors into those of the others."""
    if size() == 1:
        return
    from accelerate.utils import broadcast

    for own in tensors:
        own.data.copy_(broadcast(own.detach().clone()))


def average(parameters: Iterable[Tensor]) -> None:
    """The mean of all processes' gradients, in place.

    parameters: the same in every process; those without a gradient are left alone, and
    must be the same everywhere too.
    """
    settle(p.grad for p in parameters if p.grad is not None)


@contextmanager
def averaging(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside `with`, every gradient of these is the mean of all processes' at once.

    For loops that take several gradients a step and compare them: a hook on each
    parameter, one message each. Alone, nothing happens.
    """
    hooks = []
    if size() > 1:
        for p in parameters:
            hooks.append(p.register_hook(lambda slope: same([slope])[0]))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def mean(values: Mapping[str, float], device: torch.device | str = "cpu") -> dict:
    """The mean of all processes' numbers; a nan (not computed) stays one."""
    if size() == 1:
        return dict(values)
    own = torch.tensor(list(values.values()), dtype=torch.float32, device=device)
    return dict(zip(values, same([own])[0].tolist()))


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
    from accelerate.utils import broadcast_object_list

    (told,) = broadcast_object_list([sent.getvalue()])
    found = torch.load(io.BytesIO(told), map_location=place, weights_only=True)
    model.load_state_dict(found["model"])
    optimiser.load_state_dict(found["optimiser"])
    history.update(found["history"])
    return found["step"]
