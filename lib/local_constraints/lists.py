"""Which trials the recorded comparison runs: plain settings, made before it starts.

`headroom` asks where mixing on other sources beats random weights at all; `grid` tunes
every arm on a seed of its own; `comparison` lists the starts, the arms from there, and
what both are asked. A key follows from the settings and the code alone, so that all of
it is known ahead. `run` runs a list, and takes from the cache what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

from lib.kit.checks import choice, need
from lib.kit.trials import Trial, key_of, trials
from lib.local_constraints import large
from lib.local_constraints.judging import adapting, judging
from lib.local_constraints.study import pretraining, starting

Settings = list[dict[str, Any]]
# What makes a start, an arm of it, judges both, and adapts them.
OURS = (starting, pretraining, judging, adapting)
ANY_SIZE = (large.pretraining, large.pretraining, None, large.adapting)

SEEDS = (0, 1, 2)  # of pre-training
PAIRS = ((0, 10), (1, 11), (2, 12))  # labelled subset, fine-tuning seed
BUDGET = 432  # gradients of a start, and again of every arm
ALPHA = 0.05  # of the steps of which `judging` asks, the same for all arms
LR = 1e-3  # outer, where none is chosen: the default of `pretraining`
TUNING_SEED = 9  # in no comparison
START, SCRATCH, MIXING = "start", "scratch", "mixing"
PAIRED = "mixing, 2 batches"
Name = tuple[str, int, float, float]  # arm, seed, alpha, lr
NOTHING: dict[str, Name] = {"": (SCRATCH, -1, 0.0, 0.0)}  # no key: random weights
ARMS: dict[str, dict[str, Any]] = {
    MIXING: {"arm": "mixing", "K": 0},
    PAIRED: {"arm": "mixing", "K": 1},  # as many outer steps as K = 1, no constraint
    "first order, K = 1": {"arm": "first_order", "K": 1},
    "first order, K = 2": {"arm": "first_order", "K": 2},
    "Reptile, K = 2": {"arm": "reptile", "K": 2},
}
K1, K2, REPTILE = list(ARMS)[2:]
FEW = (MIXING, K1)  # arms of a second setting
Chosen = Mapping[str, Mapping[str, float]]  # alpha and lr of each arm
# Every arm with four outer rates (three at first: all arms were best at the highest);
# K = 1, on which most was tried, with a smaller alpha too. Mixing takes no own steps:
# its alpha means nothing.
GRID: list[tuple[str, dict[str, float]]] = [
    (arm, {"alpha": 0.02, "lr": lr}) for arm in ARMS for lr in (1e-3, 2e-3, 4e-3, 8e-3)
] + [(K1, {"alpha": 0.01, "lr": 2e-3})]
USUAL: Chosen = {arm: {"alpha": 0.02, "lr": 2e-3} for arm in ARMS}  # untuned
KINDS: dict[str, dict[str, Any]] = {  # of speech, for the headroom
    "languages": {"setting": "languages"},
    "languages + 60 fr": {"setting": "languages", "small": 60},
    "noise": {"setting": "noise"},
    "voices": {"setting": "voices"},
}


@dataclass(frozen=True)
class Lists:
    """Settings of trials, in the order in which they must run.

    starts, arms, judged, adapted: of `functions`, by default `starting`, `pretraining`,
    `judging`, `adapting`; names: what stands behind a source's key: arm, seed, alpha,
    lr. Where there is no function to judge, starts and arms are judged already.
    """

    starts: Settings
    adapted: Settings
    arms: Settings = field(default_factory=list)
    judged: Settings = field(default_factory=list)
    names: dict[str, Name] = field(default_factory=dict)
    functions: tuple[Callable | None, ...] = OURS


@dataclass(frozen=True)
class Done:
    """The finished trials of `Lists`, in its order."""

    starts: list[Trial]
    adapted: list[Trial]
    arms: list[Trial]
    judged: list[Trial]
    names: dict[str, Name]


def few_shot(
    source: str, n: int = 4, pairs: Sequence = PAIRS, **common: Any
) -> Settings:
    """Fine-tunings of one encoder on held-out speech, the same pairs for all.

    source: key of a trial, "" for random weights; n: labelled utterances; pairs:
    (subset, seed); common: setting, and whatever else `adapting` takes.
    """
    asked = {"source": source, "n": n, **common}
    return [asked | {"subset": subset, "seed": seed} for subset, seed in pairs]


def headroom(seed: int = 0, n: int = 4) -> Lists:
    """A start on every kind of speech, fine-tuned, against random weights.

    seed: of pre-training; n: labelled utterances of the held-out source.
    """
    starts = [kind | {"seed": seed} for kind in KINDS.values()]
    keys = [key_of(starting, chosen) for chosen in starts]
    adapted = [
        settings
        for key, chosen in zip(keys, starts)
        for settings in few_shot(key, n, setting=chosen["setting"])
    ]
    for setting in dict.fromkeys(chosen["setting"] for chosen in starts):
        adapted += few_shot("", n, setting=setting)
    names = {key: (kind, seed, 0.0, 0.0) for key, kind in zip(keys, KINDS)}
    return Lists(starts, adapted, names=names | NOTHING)


def grid(setting: str, seed: int = TUNING_SEED, n: int = 4) -> Lists:
    """Every arm with its settings of GRID, on a seed of its own.

    setting; seed: of pre-training; n: labelled utterances. Nothing is judged but the
    fine-tunings.
    """
    start = {"setting": setting, "seed": seed, "gradients": BUDGET}
    key = key_of(starting, start)
    arms, names = [], {}
    for arm, chosen in GRID:
        arms.append(_arm(key, arm, chosen, {"setting": setting}, seed, BUDGET))
        names[key_of(pretraining, arms[-1])] = arm, seed, chosen["alpha"], chosen["lr"]
    adapted = [s for name in names for s in few_shot(name, n, setting=setting)]
    return Lists([start], adapted, arms, names=names)


def best(done: Done) -> dict[str, dict[str, float]]:
    """Of every arm the setting with the lowest mean PER in a finished grid."""
    found: dict[str, tuple[float, dict[str, float]]] = {}
    for key, (arm, _, alpha, lr) in done.names.items():
        rates = [t.result["per"] for t in done.adapted if t.settings["source"] == key]
        per = sum(rates) / len(rates)
        if arm not in found or per < found[arm][0]:
            found[arm] = per, {"alpha": alpha, "lr": lr}
    return {arm: chosen for arm, (_, chosen) in found.items()}


def _arm(
    source: str,
    arm: str,
    chosen: Mapping[str, float],
    common: Mapping[str, Any],
    seed: int,
    gradients: int,
) -> dict[str, Any]:
    """The settings of one arm."""
    asked = {"source": source, "seed": seed, "gradients": gradients, **common}
    return asked | {**ARMS[arm], **chosen}


def comparison(
    setting: str = "",
    *,
    seeds: Sequence[int] = SEEDS,
    chosen: Chosen = USUAL,
    gradients: int = BUDGET,
    n: int = 4,
    pairs: Sequence = PAIRS,
    steps: int = 300,
    corpora: Sequence[str] = (),
    device: str = "auto",
    processes: int = 1,
    **world: Any,
) -> Lists:
    """Every arm from the common start of every seed, and what all of them are asked.

    setting: "languages", "noise" or "voices"; seeds: of pre-training; chosen: the arms,
    names in `ARMS`, with their alpha (and lr), see `best`; gradients: of a start, and
    again of an arm; n, pairs, steps: of the fine-tunings; corpora, device, processes:
    of `large` instead of a setting; world: further settings of a start (utterances,
    small, labels, d ...). Starts and random weights are asked like the arms. Raises
    ValueError for an unknown arm, or where there is no or another setting too.
    """
    for arm in chosen:
        need(arm in ARMS, f"There is no arm {arm}; give some of: {'; '.join(ARMS)}.")
    need(
        bool(setting) != bool(corpora),
        f"The setting is {setting or 'none'} and the corpora are "
        f"{', '.join(corpora) or 'none'}; give one of both.",
    )
    functions = ANY_SIZE if corpora else OURS
    common: dict[str, Any] = {"setting": setting}
    if corpora:
        common = {"corpora": list(corpora), "device": device}
    begin, go_on, judge, adapt = functions
    world = unlike_defaults(begin, world)
    trained = common | ({"processes": processes} if processes > 1 else {})
    starts, arms, names = [], [], {}
    for seed in seeds:
        starts.append(trained | {"seed": seed, "gradients": gradients, **world})
        key = key_of(begin, starts[-1])
        names[key] = START, seed, 0.0, 0.0
        for arm, own in chosen.items():
            arms.append(_arm(key, arm, own, trained, seed, gradients))
            lr = own.get("lr", LR)
            names[key_of(go_on, arms[-1])] = arm, seed, own["alpha"], lr
    tuning = common | unlike_defaults(adapt, {"steps": steps})
    bare = {k: v for k, v in world.items() if k in signature(adapt).parameters}
    few = [s for key in names for s in few_shot(key, n, pairs, **tuning)]
    return Lists(
        starts=starts,
        arms=arms,
        judged=[{"source": key, "alpha": ALPHA} for key in names] if judge else [],
        adapted=few + few_shot("", n, pairs, **tuning, **bare),
        names=names | NOTHING,
        functions=functions,
    )


def unlike_defaults(function: Callable, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not a function's defaults: a key should not tell them.

    Raises ValueError for a setting that the function does not have.
    """
    usual = signature(function).parameters
    for name in given:
        choice(f"A setting of {function.__name__}", name, usual)
    return {n: value for n, value in given.items() if usual[n].default != value}


def run(asked: Lists, workers: int | None = None, bar: bool = True) -> Done:
    """Run the trials of lists in their order.

    asked; workers, bar: of `trials`. Raises RuntimeError where a trial fails.
    """
    how = {"workers": workers, "bar": bar}
    begin, go_on, judge, adapt = asked.functions
    starts = trials(begin, asked.starts, **how)
    arms = trials(go_on, asked.arms, **how)
    judged = [replace(t, settings={"source": t.key}) for t in starts + arms]
    if judge:
        judged = trials(judge, asked.judged, **how)
    adapted = trials(adapt, asked.adapted, **how)
    return Done(starts, adapted, arms, judged, asked.names)
