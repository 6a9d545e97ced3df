"""The recipes: which objectives stand on which level, and what each level counts.

A `Recipe` is levels with coefficients, and the rule that shares a level's weight among
its objectives. Weights of ones are the plain sum of losses: a level of n objectives
with coefficient c has weights c n lam, lam on the simplex. The functions below make the
recipes of 2508.09228 (its equations were read in the authors' code and second-hand, not
in its body) and their controls; `METHODS` finds them by name.

    VS        theta <- theta - a J'(lam)                          lam over all
    VC        theta <- theta - a (J_sup'(lam) + eta_2 g_ssl)      lam over supervised
    VM-UAS    theta <- theta - a (J_asr'(lam) + eta_1 J_st'(mu) + eta g_ssl)
    VM-USA    the same, asr and st exchanged;  eta = eta_1 eta_2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from lib.kit.checks import choice, count, need
from lib.multi_objective.aggregators import AGGREGATORS
from lib.multi_objective.gradients import ELSEWHERE

EPOCHS = 200  # virtual ones in a training, whatever its steps
UNIFORM, MODO, UNCERTAINTY = "uniform", "MoDo", "uncertainty"
INSIDE = (UNIFORM, MODO, UNCERTAINTY, *AGGREGATORS)
SAMPLES = ("lagged", "halves")
SCALINGS = ("none", "init", "l2", "loss", "loss+")
ORDERS = ("UAS", "USA")
PAIRS = ("all", "asr x st", "supervised x ssl")
GROWN = ("eta_1", "eta_2", "eta")


# -- the schedule ---------------------------------------------------------------------


@dataclass(frozen=True)
class PenaltySchedule:
    """eta_1 and eta_2 grow a little every virtual epoch, up to a cap.

    first: of eta_1 and eta_2; growth: a virtual epoch, 0.02 or 0.002 as published; cap:
    of both, so that their product eta may pass it. A true penalty grows without bound:
    this is a curriculum of weights. Raises ValueError for negative numbers.
    Source: 2508.09228 (authors' code), a virtual epoch being 1/200 of the training.
    """

    growth: float = 0.02
    first: tuple[float, float] = (0.1, 0.0)
    cap: float = 1.5

    def __post_init__(self) -> None:
        need(
            self.growth >= 0 and min(*self.first, self.cap) >= 0,
            f"growth is {self.growth}, first {self.first} and cap {self.cap}; give "
            "numbers that are not negative.",
        )

    def at(self, step: int, steps: int) -> dict[str, float]:
        """eta_1, eta_2 and their product eta in a step from 0 of so many."""
        epoch = EPOCHS * step // steps
        eta_1, eta_2 = (
            min(self.cap, max(first, 0) + self.growth * epoch) for first in self.first
        )
        return {"eta_1": eta_1, "eta_2": eta_2, "eta": eta_1 * eta_2}


# -- what a recipe is -----------------------------------------------------------------


class Level(NamedTuple):
    """Objectives of one level and its coefficient: a number, or one of GROWN."""

    names: tuple[str, ...]
    coefficient: float | str = 1.0


@dataclass(frozen=True)
class Selection:
    """Which layers decide on the weights; all are updated with them.

    granularity: of a layer, see `Soup.layers`; pairs: whose cosines count; threshold: a
    layer below it is selected; least: so many of the lowest are taken in any case;
    every: steps between two looks at all layers; memory: of the mean cosine from look
    to look; unbiased: cosines between two halves of the batch, corrected for noise;
    elsewhere: the other layers get the "weighted" sum, a "uniform" one, or are
    "frozen". Raises ValueError. Source: 2508.09228 (second-hand); the form is ours.
    """

    granularity: str = "block"
    pairs: str = "all"
    threshold: float = 0.0
    least: int = 1
    every: int = 20
    memory: float = 0.9
    unbiased: bool = False
    elsewhere: str = "weighted"

    def __post_init__(self) -> None:
        choice("pairs", self.pairs, PAIRS)
        choice("elsewhere", self.elsewhere, ELSEWHERE)
        count("least", self.least)
        count("every", self.every)
        need(
            0 <= self.memory < 1,
            f"memory is {self.memory}; give a share from 0 to below 1.",
        )


@dataclass(frozen=True)
class Recipe:
    """Levels, and how each shares its weight among its objectives.

    levels; inside: "uniform" (static weights), "MoDo", "uncertainty", or a name of
    `lib.multi_objective.AGGREGATORS`; over: one simplex for each "level" or one for
    "all" but a level of ssl alone; sample: of MoDo, "halves" of a batch (published) or
    "lagged", this batch against the last (own variant, one Jacobian a step); gamma,
    rho: of MoDo; schedule: of the penalties; scaling: of the gradients before they are
    compared, "init" divides by the first loss, others as `scales`; selection: None
    compares all layers. Raises ValueError for words, and where gradients are to be
    balanced but no level holds two objectives.
    """

    levels: tuple[Level, ...]
    inside: str = UNIFORM
    over: str = "level"
    sample: str = "lagged"
    gamma: float = 0.01
    rho: float = 0.001
    schedule: PenaltySchedule = field(default_factory=PenaltySchedule)
    scaling: str = "none"
    selection: Selection | None = None

    def __post_init__(self) -> None:
        choice("inside", self.inside, INSIDE)
        choice("over", self.over, ("level", "all"))
        choice("sample", self.sample, SAMPLES)
        choice("scaling", self.scaling, SCALINGS)
        for level in self.levels:
            if isinstance(level.coefficient, str):
                choice("A coefficient", level.coefficient, GROWN)
        names = [name for level in self.levels for name in level.names]
        need(len(names) > 0, "The recipe holds no objective; give at least one.")
        twice = sorted({name for name in names if names.count(name) > 1})
        need(not twice, f"{', '.join(twice)} stands in the recipe twice.")
        need(
            self.static or any(len(names) > 1 for names in self.groups()),
            f"{self.inside} balances two objectives or more, and no level has them "
            f"(objectives: {', '.join(names)}); add one, or train it alone with "
            f'inside="{UNIFORM}".',
        )
        need(
            not (self.static and self.selection),
            f"Layers are selected to compare gradients, and {self.inside} weights "
            "compare none; leave the selection out.",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All objectives, sorted: the order of rows, weights and histories."""
        return tuple(sorted(n for level in self.levels for n in level.names))

    @property
    def static(self) -> bool:
        """Whether no gradients are compared."""
        return self.inside in (UNIFORM, UNCERTAINTY)

    @property
    def halved(self) -> bool:
        """Whether every step needs two half batches."""
        return self.inside == MODO and self.sample == "halves"

    def groups(self) -> list[tuple[str, ...]]:
        """The objectives that share a simplex; ssl alone is a group of its own."""
        if self.over == "level":
            return [level.names for level in self.levels]
        alone = [level.names for level in self.levels if level.names == ("ssl",)]
        rest = [n for lev in self.levels if lev.names != ("ssl",) for n in lev.names]
        return [tuple(rest), *alone]

    def coefficients(self, step: int, steps: int) -> dict[str, float]:
        """What every objective's level counts in a step from 0 of so many."""
        etas = self.schedule.at(step, steps)
        return {
            name: float(etas.get(level.coefficient, level.coefficient))
            for level in self.levels
            for name in level.names
        }


# -- the recipes ----------------------------------------------------------------------


def tasks(names: Sequence[str], task: str) -> tuple[str, ...]:
    """The objectives of one task, "asr", "st" or "ssl". Raises ValueError for none."""
    found = tuple(n for n in names if n.partition("_")[0] == task)
    need(
        len(found) > 0,
        f"There is no {task} objective among {', '.join(names) or 'none'}; give "
        "languages that have it.",
    )
    return found


def supervised(names: Sequence[str]) -> tuple[str, ...]:
    """All objectives but ssl. Raises ValueError for none."""
    found = tuple(n for n in names if n != "ssl")
    need(len(found) > 0, "There is no supervised objective; give languages.")
    return found


def plain_sum(names: Sequence[str], ssl: float = 1.0, **how: Any) -> Recipe:
    """The sum of all losses, the self-supervised one with weight `ssl`; 0 leaves it.

    The swept sum is this with several weights: the front of static weights.
    """
    need(ssl >= 0, f"The weight of ssl is {ssl}; give 0 or more.")
    levels = [Level(supervised(names))]
    if ssl:
        levels.append(Level(tasks(names, "ssl"), ssl))
    return Recipe(tuple(levels), **how)


def single(names: Sequence[str], task: str, **how: Any) -> Recipe:
    """One objective alone, e.g. "asr_de". Raises ValueError where it is not there."""
    choice("The single objective", task, names)
    return Recipe((Level((task,)),), **how)


def uncertainty(names: Sequence[str], **how: Any) -> Recipe:
    """Weights exp(-s) with learned s, minimising sum exp(-s) loss + s / 2.

    Source: 1705.07115, its form for classification.
    """
    return Recipe((Level(tuple(names)),), UNCERTAINTY, **how)


def balanced(names: Sequence[str], by: str, **how: Any) -> Recipe:
    """All on one level, weights by an aggregator: "MGDA", "PCGrad", "CAGrad" ..."""
    choice("The aggregator", by, AGGREGATORS)
    return Recipe((Level(tuple(names)),), by, **how)


def vs(names: Sequence[str], **how: Any) -> Recipe:
    """VS: one level, flat MoDo. Source: 2508.09228 (code)."""
    return Recipe((Level(tuple(names)),), **({"inside": MODO} | how))


def vc(names: Sequence[str], product: bool = False, **how: Any) -> Recipe:
    """VC: MoDo over the supervised objectives, ssl as a penalty.

    product: the penalty is eta_1 eta_2, as in VM, in place of eta_2.
    Source: 2508.09228 (code).
    """
    eta = "eta" if product else "eta_2"
    levels = (Level(supervised(names)), Level(tasks(names, "ssl"), eta))
    return Recipe(levels, **({"inside": MODO} | how))


def vm(
    names: Sequence[str], order: str = "UAS", ssl: bool = True, **how: Any
) -> Recipe:
    """VM: recognition, translation and ssl on three levels, MoDo inside the first two.

    order: "UAS", where recognition has coefficient 1 and translation eta_1 (as in the
    authors' code), or "USA", the other way; ssl: False leaves its level out, which are
    two levels. Source: 2508.09228 (code; which level is the lowest is ambiguous).
    """
    choice("order", order, ORDERS)
    first, second = tasks(names, "asr"), tasks(names, "st")
    if order == "USA":
        first, second = second, first
    levels = [Level(first), Level(second, "eta_1")]
    if ssl:
        levels.append(Level(tasks(names, "ssl"), "eta"))
    return Recipe(tuple(levels), **({"inside": MODO} | how))


def by_language(names: Sequence[str], first: str = "en", **how: Any) -> Recipe:
    """The ablation of VM whose levels are languages in place of tasks.

    first: the language with coefficient 1; every other one is a level with eta_1, and
    ssl has eta. Raises ValueError for a language that is not there. The published
    ablation (second-hand) does not say its coefficients.
    """
    languages = dict.fromkeys(n.partition("_")[2] for n in supervised(names))
    choice("The first language", first, languages)
    levels = [
        Level(
            tuple(n for n in names if n.partition("_")[2] == language),
            1.0 if language == first else "eta_1",
        )
        for language in languages
    ]
    levels.append(Level(tasks(names, "ssl"), "eta"))
    return Recipe(tuple(levels), **({"inside": MODO} | how))


def selected(
    names: Sequence[str], chosen: Selection | None = None, **how: Any
) -> Recipe:
    """VM whose weights come from the conflicting layers only; all layers move.

    Source: 2508.09228 (second-hand).
    """
    return replace(vm(names, **how), selection=chosen or Selection())


METHODS: dict[str, Callable[..., Recipe]] = {
    "single": single,
    "sum": plain_sum,
    "uncertainty": uncertainty,
    "balanced": balanced,
    "VS": vs,
    "VC": vc,
    "VM": vm,
    "languages": by_language,
    "selected": selected,
}


def recipe_of(method: str, names: Sequence[str], **options: Any) -> Recipe:
    """A recipe by name with plain options, as trials ask for it.

    method: a key of METHODS; names: of the objectives there are; options: of the
    function and of `Recipe`; `growth` is the schedule's, and those of `Selection`
    stand in a mapping `chosen`. Raises ValueError for a word or an option.
    """
    choice("method", method, METHODS)
    if "growth" in options:
        options["schedule"] = PenaltySchedule(options.pop("growth"))
    if "chosen" in options:
        options["chosen"] = Selection(**options["chosen"])
    try:
        return METHODS[method](names, **options)
    except TypeError as error:
        raise ValueError(
            f"{method} does not take these options ({error}); it takes its own and "
            f"those of a recipe: {', '.join(Recipe.__dataclass_fields__)}."
        ) from None
