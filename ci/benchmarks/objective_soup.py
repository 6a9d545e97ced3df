"""The objective soup: what a step costs when the gradients of six losses are compared.

`step` is one step of 42's model (losses of three languages and audio, one update of
every .grad, no optimiser) by how the gradients are compared: in all layers, in one
layer at a time from the output to the input, from two half batches. Its `ratio` is a
method's time over the plain sum's; the target is that looking at the layer next to the
output costs at most a quarter more. `engine` is the same update (UPGrad over all
layers) by us and by TorchJD's engine, `ratio` their time over ours. `memory` is what
one step adds at its peak, activations included.
"""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ci.tools.bench import (
    NOT_INSTALLED,
    BenchmarkError,
    Options,
    Target,
    compare,
    installed,
    peak_memory,
)
from lib.multi_objective import assign
from lib.objective_soup import Balance, Feed, Selection, Sizes, Soup, shipped_world
from lib.objective_soup.model import losses
from lib.objective_soup.recipes import balanced, plain_sum, vs
from lib.objective_soup.training import _two as halved

PEERS = ("torchjd==0.18.0", "qpsolvers==4.13.0", "quadprog==0.1.14")
SUM, OURS = "plain sum", "ours"
SIZES = {"48": Sizes(), "144": Sizes(d=144, blocks=6)}  # 80 thousand and 2 million
QUICK = {"16": Sizes(d=16)}
MIB = 1 << 20
_ISSUE = "issue 8, cost"

TARGETS = [
    *(
        Target("step", {"method": f"only {top}", "d": d}, "ratio", at_most=1.25,
               source=_ISSUE)
        for d, top in (("48", "block 2"), ("144", "block 6"))
    ),
    *(
        Target("engine", {"method": "TorchJD", "d": d}, "ratio", at_least=1.0,
               source="not slower")
        for d in SIZES
    ),
]  # fmt: skip


def variants(soup: Soup, names: tuple[str, ...]) -> dict[str, Balance]:
    """The recipes whose steps are timed, by name; layers from the output down."""
    layers = soup.layers()
    found = {SUM: Balance(plain_sum(names), layers, 99)}
    found["all layers"] = Balance(vs(names), layers, 99)
    found["all layers, halves"] = Balance(vs(names, sample="halves"), layers, 99)
    for place, name in reversed(list(enumerate(layers))):
        balance = Balance(vs(names, selection=Selection(every=999)), layers, 99)
        balance.chosen[:] = torch.arange(len(layers)) == place
        found[f"only {name}"] = balance
    return found


class Step:
    """One step of a variant on a batch: losses, then the update of every .grad."""

    def __init__(self, d: str, sizes: dict[str, Any] | None = None) -> None:
        world = shipped_world()
        self.names = tuple(sorted(world.objectives))
        torch.manual_seed(0)
        self.soup = Soup(world, Sizes(**sizes) if sizes else (SIZES | QUICK)[d])
        self.batches = Feed(world, 8, 0).at(0, self.names)
        self.heads = self.soup.heads()

    def losses(self) -> dict[str, Tensor]:
        """The losses of the batch, the same draws every time."""
        return losses(self.soup, self.batches, self.names, 0)

    def of(self, balance: Balance) -> Callable[[], Tensor]:
        """The call that is timed."""

        def call() -> Tensor:
            samples = [self.losses()]
            if balance.recipe.halved:
                samples = halved(self.soup, self.batches, balance.recipe, 0, 0)
            return balance.update(samples, self.heads, 1)

        return call


def step_table(d: str, options: Options) -> pd.DataFrame:
    """A step of every variant at one size, a row each."""
    options.say(f"step, d = {d}")
    step = Step(d)
    balances = variants(step.soup, step.names)
    calls = {name: step.of(balance) for name, balance in balances.items()}
    calls[SUM]()
    usual = [p.grad.clone() for p in step.soup.parameters() if p.grad is not None]
    for name in ("all layers", "only front end"):  # the first step's weights are ones
        calls[name]()
        found = [p.grad for p in step.soup.parameters() if p.grad is not None]
        off = max(
            float((a - b).norm() / (b.norm() + 1e-9)) for a, b in zip(found, usual)
        )
        if not off < 1e-3:
            raise BenchmarkError(f"{name} differs from the plain sum by {off:.2g}.")
        balances[name].update([step.losses()], step.heads, 1)
    spent = {"min_time": 0.02, "rounds": 2} if options.quick else {"rounds": 9}
    frame = compare(calls, clock=options.clock, reference=SUM, **spent)
    frame.insert(1, "d", d)
    layers = {n: sum(p.numel() for p in g) for n, g in step.soup.layers().items()}
    whole, M = sum(layers.values()), len(step.names)
    seen = {f"only {name}": size for name, size in layers.items()}
    frame["gradients"] = [
        0 if name == SUM else M * seen.get(name, whole) for name in calls
    ]
    return frame


def torchjd_step(step: Step) -> Callable[[], None]:
    """UPGrad over the encoder by TorchJD's engine; heads get the sum's gradient."""
    from torchjd.aggregation import UPGrad
    from torchjd.autojac import backward, jac_to_grad
    from torchjd.linalg import QuadprogProjector

    shared = list(step.soup.encoder.parameters())
    own = [p for name in step.names for p in step.heads[name]]
    sharp = QuadprogProjector(norm_eps=1e-12, reg_eps=1e-9)  # without its ridge
    aggregator = UPGrad(projector=sharp)

    def call() -> None:
        step.soup.zero_grad()
        found = list(step.losses().values())
        backward(found, inputs=shared, retain_graph=True, parallel_chunk_size=1)
        jac_to_grad(shared, aggregator)
        slopes = torch.autograd.grad(sum(found), own, allow_unused=True)
        assign(own, slopes)

    return call


def engine_table(d: str, options: Options) -> pd.DataFrame:
    """The same update by our passes and by TorchJD's engine, a row each."""
    options.say(f"engine, d = {d}")
    step = Step(d)
    balance = Balance(balanced(step.names, "UPGrad"), step.soup.layers(), 99)
    calls: dict[str, Callable | str] = {
        OURS: step.of(balance),
        "TorchJD": NOT_INSTALLED,
    }
    shared, errors = list(step.soup.encoder.parameters()), [0.0, nan]
    if installed("torchjd"):
        calls["TorchJD"] = torchjd_step(step)
        found = []
        for call in calls.values():
            call()
            found.append(torch.cat([p.grad.flatten() for p in shared]))
        unit = [x / x.norm() for x in found]  # ours sums to M, theirs to one
        errors[1] = float((unit[0] - unit[1]).norm())
        if not errors[1] < 1e-2:
            raise BenchmarkError(f"TorchJD's direction is {errors[1]:.2g} from ours.")
    spent = {"min_time": 0.02, "rounds": 2} if options.quick else {"rounds": 9}
    frame = compare(calls, clock=options.clock, reference=OURS, **spent)
    frame.insert(1, "d", d)
    frame["error"] = errors
    return frame


def one_step(d: str, variant: str) -> Callable[[], object]:
    """For `peak_memory`: a step of a variant, warmed up with a small model."""
    small = Step("16", {"d": 16})
    make = {"TorchJD": torchjd_step}.get(variant)
    for step in (small, Step(d)):
        if make is None:
            names = variants(step.soup, step.names)
            call = step.of(names.get(variant) or names["all layers"])
        else:
            call = make(step)
        if step is small:
            call()
    return call


def memory_table(d: str, options: Options) -> pd.DataFrame:
    """What one step adds at its peak, a row a variant."""
    options.say(f"memory, d = {d}")
    top = list(Step(d).soup.layers())[-1]
    wanted = [SUM, "all layers", "all layers, halves", f"only {top}", "only front end"]
    if installed("torchjd"):
        wanted.append("TorchJD")
    rows = []
    for name in wanted:
        asked = {"d": d, "variant": name}
        found = peak_memory("ci.benchmarks.objective_soup:one_step", asked)
        rows.append([name, d, found / MIB])
    frame = pd.DataFrame(rows, columns=["method", "d", "MiB"])
    return frame.assign(ratio=frame.MiB / frame.MiB[0])


def run(options: Options) -> dict[str, pd.DataFrame]:
    """Measure everything: the tables "step", "engine" and "memory".

    options: threads (memory with one only), quick (one small model). Raises
    BenchmarkError where two methods that must agree do not.
    """
    torch.set_num_threads(options.threads)
    sizes = list(QUICK if options.quick else SIZES)
    found = {
        "step": pd.concat([step_table(d, options) for d in sizes], ignore_index=True),
        "engine": pd.concat(
            [engine_table(d, options) for d in sizes], ignore_index=True
        ),
    }
    if options.threads == 1:
        frames = [memory_table(d, options) for d in sizes]
        found["memory"] = pd.concat(frames, ignore_index=True)
    return found
