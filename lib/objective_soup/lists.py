"""Which trials the recorded comparison runs: plain settings, made before it starts.

`tuning` gives every method the same number of settings on a seed of its own, judged on
validation; `comparison`, `front`, `few_labels` and `conflicts` are what is shown. Each
list has its most telling trials first. No trial imports this file, so lists may change
freely.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lib.kit.checks import choice
from lib.kit.launching import devices
from lib.kit.trials import Trial, trials
from lib.objective_soup.study import conflict, costs, training

Settings = dict[str, Any]

SEEDS, FEW_SEEDS = (0, 1, 2, 3, 4), (0, 1, 2)
TUNING_SEED = 9  # in no comparison
STEPS = 2000  # of the comparison
HALF, QUARTER, FIFTH = STEPS // 2, STEPS // 4, STEPS // 5  # of what surrounds it
RATES = (7e-3, 4e-3, 1e-2)  # the last only where there is no second knob
GAMMAS = (0.01, 0.003)
WEIGHTS = (0.0, 0.3, 1.0, 3.0)  # of ssl, the front of static weights
FEW = {"labelled": 60}  # of 600 utterances in a language


@dataclass(frozen=True)
class Arm:
    """One row of the tables: a method, its options, and what it takes from where.

    method, options: of `training`; tuned: the arm whose tuning it takes, itself where
    empty: controls have the rates of what they control; cost: CPU seconds of a step of
    the plain sum, times this.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tuned: str = ""
    cost: float = 1.0


def _arm(method: str, tuned: str = "", cost: float = 1.0, **options: Any) -> Arm:
    return Arm(method, options, tuned, cost)


STATIC = {"inside": "uniform"}
ARMS: dict[str, Arm] = {  # the most telling first
    "sum": _arm("sum"),
    "VM-UAS": _arm("VM", cost=1.25),
    "VM-UAS static": _arm("VM", "VM-UAS", 1.05, **STATIC),
    "VS": _arm("VS", cost=1.25),
    "VM-USA": _arm("VM", "VM-UAS", 1.25, order="USA"),
    "VC": _arm("VC", cost=1.25),
    "two-stage": _arm("two-stage", cost=1.05),
    "selected layers": _arm("selected", "VM-UAS", 1.4, chosen={"pairs": "asr x st"}),
    "MGDA": _arm("balanced", cost=1.3, by="MGDA"),
    "PCGrad": _arm("balanced", cost=1.3, by="PCGrad"),
    "uncertainty": _arm("uncertainty"),
    "VM-USA static": _arm("VM", "VM-UAS", 1.05, order="USA", **STATIC),
    "two levels, no ssl": _arm("VM", "VM-UAS", 0.85, ssl=False),
    "language-wise": _arm("languages", "VM-UAS", 1.25),
    "frozen": _arm(
        *("selected", "VM-UAS", 1.4),
        chosen={"pairs": "asr x st", "elsewhere": "frozen"},
    ),
    "VC static": _arm("VC", "VC", 1.05, **STATIC),
    "VS, published gamma": _arm("VS", "VS", 1.25, gamma=0.01),
    "CAGrad": _arm("balanced", cost=1.3, by="CAGrad"),
    "UPGrad": _arm("balanced", cost=1.3, by="UPGrad"),
    "VM-UAS, halves": _arm("VM", "VM-UAS", 2.0, sample="halves"),
}
SINGLE = "single-task"
EXTRA = ("CAGrad", "UPGrad")  # only if asked for
CORE = tuple(ARMS)[:11]  # on all seeds
OTHERS = tuple(name for name in ARMS if name not in (*CORE, *EXTRA))
# Trained twice as long: is the curve flat, and does what is seen survive?
TWICE = ("sum", "VM-UAS", "VM-UAS static", "VS")
COSTED = ("speech", "corpora", "languages", "device", "model", "batch")
# At half the steps, on few seeds: what the others are ablations of, and they.
ABLATED = ("sum", "VM-UAS", "VM-USA", "VC", "selected layers", *OTHERS)
PARTS = (
    *("comparison", "ablations", "conflict", "front"),
    *("few labels", "twice", "single", "costs"),
)
SCARCE = ("VM-UAS", "VM-UAS static", "two-stage")  # with few labels
# What each tuned arm chooses among, three settings for all: two learning rates, and at
# the first of them another value of its knob; or three rates where there is none.
KNOBS: dict[str, list[dict[str, Any]]] = {
    "sum": [{"ssl": w} for w in (1.0, 0.3)],
    "VM-UAS": [{"gamma": g} for g in GAMMAS],
    "VS": [{"gamma": g} for g in GAMMAS],
    "VC": [{"gamma": g} for g in GAMMAS],
    "two-stage": [{"first": lr} for lr in (2e-3, 4e-3)],
}
# CPU seconds of a step of the plain sum, and of all else in a trial (imports, speech,
# looks, judging), measured on two cores that two other trials kept busy.
STEP, REST = 0.08, 10.0


def tuned_arms() -> list[str]:
    """The arms with a tuning of their own."""
    return [n for n, arm in ARMS.items() if not arm.tuned and n not in EXTRA]


def untuned(lr: float) -> dict[str, Settings]:
    """In place of `best`, where nothing is tuned: one learning rate for all."""
    return {name: {"lr": lr} for name in tuned_arms()}


def one(
    arm: str,
    seed: int,
    chosen: Mapping[str, Mapping[str, Any]] | None = None,
    **common: Any,
) -> Settings:
    """The settings of one training.

    arm: of ARMS; seed; chosen: of `best`, lr and options of every tuned arm; common:
    what all trainings share (steps, labelled, languages ...). Raises ValueError for an
    arm that does not exist.
    """
    choice("arm", arm, ARMS)
    found, own = ARMS[arm], dict((chosen or {}).get(ARMS[arm].tuned or arm, {}))
    options = {**own.pop("options", {}), **found.options}
    if found.options.get("inside") == "uniform":
        options.pop("gamma", None)  # a control without MoDo
    settings = {"method": found.method, "seed": seed, **common, **own}
    return settings | ({"options": options} if options else {})


def tuning(
    seed: int = TUNING_SEED, steps: int = HALF, **common: Any
) -> dict[str, list[Settings]]:
    """Three settings of every tuned arm, by arm."""
    found: dict[str, list[Settings]] = {}
    for name in tuned_arms():
        some = [{"lr": lr} for lr in RATES]
        if name in KNOBS:
            usual, other = KNOBS[name]
            pairs = ((RATES[0], usual), (RATES[1], usual), (RATES[0], other))
            some = [{"lr": lr, "options": knob} for lr, knob in pairs]
        found[name] = [
            one(name, seed, {name: chosen}, steps=steps, **common) for chosen in some
        ]
    return found


def score(result: Mapping[str, Any]) -> float:
    """What tuning minimises: validation CTC plus cross-entropy, means over languages.

    Losses, because they are steadier than rates of 120 sentences.
    """
    mean = result["validation"]["mean"]
    return mean["ctc"] + mean["ce"]


def best(done: Mapping[str, Sequence[Trial]]) -> dict[str, Settings]:
    """Of every arm the lr and options with the best validation in finished tuning."""
    found = {}
    for name, row in done.items():
        top = min(row, key=lambda trial: score(trial.result)).settings
        own = ARMS[name].options
        options = {k: v for k, v in top.get("options", {}).items() if k not in own}
        found[name] = {"lr": top["lr"]} | ({"options": options} if options else {})
    return found


def comparison(
    chosen: Mapping[str, Settings],
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
    arms: Sequence[str] | None = None,
    **common: Any,
) -> dict[str, list[Settings]]:
    """Every arm on every seed, by arm.

    chosen: of `best`; seeds; steps; arms: of ARMS, None for all but those of EXTRA;
    common: as of `one`.
    """
    usual = [name for name in ARMS if name not in EXTRA]
    return {
        name: [one(name, seed, chosen, steps=steps, **common) for seed in seeds]
        for name in (usual if arms is None else arms)
    }


def front(
    chosen: Mapping[str, Settings],
    seeds: Sequence[int] = SEEDS,
    steps: int = HALF,
    weights: Sequence[float] = WEIGHTS,
    **common: Any,
) -> dict[float, list[Settings]]:
    """The sum with every weight of ssl, at the tuned lr of the sum, by weight."""
    lr = {"lr": chosen["sum"]["lr"]} if "sum" in chosen else {}
    return {
        w: [
            one("sum", s, {"sum": lr | {"options": {"ssl": w}}}, steps=steps, **common)
            for s in seeds
        ]
        for w in weights
    }


def singles(
    chosen: Mapping[str, Settings],
    tasks: Sequence[str] = ("asr_de", "st_de", "asr_fr", "st_fr", "asr_en"),
    seeds: Sequence[int] = SEEDS,
    steps: int = HALF,
    **common: Any,
) -> dict[str, list[Settings]]:
    """Each supervised objective alone, at the tuned lr of the sum, by objective."""
    lr = {"lr": chosen["sum"]["lr"]} if "sum" in chosen else {}
    return {
        task: [
            {
                "method": "single",
                "seed": seed,
                "steps": steps,
                "options": {"task": task},
            }
            | common
            | lr
            for seed in seeds
        ]
        for task in tasks
    }


def few_labels(
    chosen: Mapping[str, Settings],
    seeds: Sequence[int] = FEW_SEEDS,
    steps: int = QUARTER,
    weights: Sequence[float] = (0.0, 1.0, 3.0),
    **common: Any,
) -> dict[str, list[Settings]]:
    """60 labelled utterances a language of 600 heard ones: fewer arms, by name.

    The sum stands there with every weight of `weights`, as "sum, ssl 3".
    """
    common = FEW | common
    sweep = front(chosen, seeds, steps, weights, **common)
    return {f"sum, ssl {w:g}": row for w, row in sweep.items()} | comparison(
        chosen, seeds, steps, SCARCE, **common
    )


def conflicts(
    seeds: Sequence[int] = FEW_SEEDS, steps: int = FIFTH, **common: Any
) -> dict[int, list[Settings]]:
    """Conflict along the training of the sum with ssl weight 0.1, by d = 16 and 48."""
    marks = [0, steps // 8, steps // 2, steps]
    return {
        d: [
            {"seed": s, "steps": steps, "marks": marks, "model": {"d": d}, **common}
            | {"options": {"ssl": 0.1}}
            for s in seeds
        ]
        for d in (16, 48)
    }


def seconds(settings: Settings) -> float:
    """The CPU seconds that a training is expected to take, from STEP and REST."""
    given = settings.get("options", {})
    fitting = [
        arm
        for arm in ARMS.values()
        if arm.method == settings["method"]
        and dict(arm.options).items() <= given.items()
    ]
    arm = max(fitting, key=lambda a: len(a.options), default=Arm(settings["method"]))
    cost = {"single": 0.25}.get(settings["method"], arm.cost)
    if given.get("ssl") == 0 and settings["method"] == "sum":
        cost = 0.65  # no audio batch
    return REST + cost * STEP * settings.get("steps", HALF)


def in_turn(lists: Mapping[Any, Sequence[Settings]]) -> list[Settings]:
    """The settings of named lists seed by seed, so that all grow together."""
    longest = max((len(row) for row in lists.values()), default=0)
    return [row[k] for k in range(longest) for row in lists.values() if k < len(row)]


def run(
    lists: Mapping[Any, Sequence[Settings]],
    function=training,
    workers: int | None = None,
    bar: bool = True,
) -> dict[Any, list[Trial]]:
    """Run named lists of settings, seed by seed; the finished trials under their names.

    function: `training`, `conflict` or `costs`; workers, bar: of `trials`. Raises
    RuntimeError where a trial fails.
    """
    asked = in_turn(lists)
    done = dict(
        zip(map(_key, asked), trials(function, asked, workers=workers, bar=bar))
    )
    return {name: [done[_key(s)] for s in row] for name, row in lists.items()}


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def everything(
    seeds: Sequence[int] = SEEDS,
    few: Sequence[int] = FEW_SEEDS,
    steps: int = STEPS,
    parts: Sequence[str] = (),
    chosen: Mapping[str, Settings] | None = None,
    workers: int | None = None,
    bar: bool = True,
    processes: int = 1,
    **common: Any,
) -> dict[str, dict[Any, list[Trial]]]:
    """The whole recorded comparison, in the order of what it tells.

    seeds: of the comparison, which is of CORE, and of TWICE; few: of all other parts
    (twice as many for conflict: what one half suggests is tested on the other); steps:
    of the comparison. TWICE has twice as many; tuning, ablations, front and single
    tasks half of them, few labels a quarter, conflict maps a fifth. parts: of PARTS,
    all if empty; chosen: rates and options of tuned arms, None to tune; workers, bar:
    of `trials`; processes: of each training, 0 for one a GPU, and then one trial at a
    time if there are several; common: what all trainings share. Returns {part: named
    lists of finished trials}. Raises ValueError for a part, RuntimeError where a trial
    fails.
    """
    for part in parts:
        choice("A part of the comparison", part, PARTS)
    wanted = parts or PARTS
    if (several := devices(processes, common.get("device", "cpu"))) > 1:
        common["processes"], workers = several, workers or 1
    how = {"workers": workers, "bar": bar}
    done: dict[str, dict[Any, list[Trial]]] = {}
    whole, half = common | {"steps": steps}, common | {"steps": max(steps // 2, 1)}
    quarter, fifth = (common | {"steps": max(steps // n, 1)} for n in (4, 5))
    if chosen is None:
        done["tuning"] = run(tuning(**half), **how)
        chosen = best(done["tuning"])
    if "comparison" in wanted:
        run(comparison(chosen, few, arms=CORE, **whole), **how)  # what tells most first
        done["comparison"] = run(comparison(chosen, seeds, arms=CORE, **whole), **how)
    if "twice" in wanted:
        twice = common | {"steps": 2 * steps}
        done["twice"] = run(comparison(chosen, seeds, arms=TWICE, **twice), **how)
    if "conflict" in wanted:
        more = [*few, *(seed + max(few) + 1 for seed in range(len(few)))]
        alone = {k: v for k, v in fifth.items() if k != "processes"}
        done["conflict"] = run(conflicts(more, **alone), conflict, **how)
    if "ablations" in wanted:
        done["ablations"] = run(comparison(chosen, few, arms=ABLATED, **half), **how)
    if "front" in wanted:
        done["front"] = run(front(chosen, few, **half), **how)
    if "few labels" in wanted:
        done["few labels"] = run(few_labels(chosen, few, **quarter), **how)
    if "single" in wanted:
        done["single"] = run(singles(chosen, seeds=few, **half), **how)
    if "costs" in wanted:
        asked = common | common.get("fit", {})  # a step has a batch and no more of it
        asked = {k: v for k, v in asked.items() if k in COSTED}
        done["costs"] = run({"costs": [asked]}, costs, **how)
    return done
