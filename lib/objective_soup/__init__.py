"""Several objectives on one speech encoder: one level or several?

`world` holds parallel languages and batches, `model` the encoder with a head an
objective, `recipes` says which objectives stand on which level, `balance` takes one
step of a recipe, `training` many, `measuring` decodes and maps conflicts. `study` holds
the trials of the long comparison, `lists` says which of them run, `overview` makes
tables of them; these three are imported from where they stand. "Soup" is only a name:
no weights are averaged.
Sources: 2508.09228 (body second-hand), 2305.20057 (MoDo), 2202.01855 (BEST-RQ).
"""

from lib.objective_soup.balance import Balance, pairs_between
from lib.objective_soup.measuring import (
    bleu,
    conflict_map,
    evaluated,
    kinds_of,
    summary,
    written,
)
from lib.objective_soup.model import (
    CPC,
    BestRQ,
    Decoder,
    Encoded,
    Sizes,
    Soup,
    Symbols,
    load_soup,
    losses,
    save_soup,
    side_by_side,
)
from lib.objective_soup.recipes import (
    METHODS,
    Level,
    PenaltySchedule,
    Recipe,
    Selection,
    balanced,
    by_language,
    plain_sum,
    recipe_of,
    selected,
    single,
    uncertainty,
    vc,
    vm,
    vs,
)
from lib.objective_soup.training import Fit, looked, told, train
from lib.objective_soup.world import (
    Audio,
    Examples,
    Feed,
    Order,
    World,
    audio,
    check_meanings,
    halves,
    real_world,
    shipped_world,
    spoken_world,
    with_english,
    world_of,
)

__all__ = [
    "CPC",
    "METHODS",
    "Audio",
    "Balance",
    "BestRQ",
    "Decoder",
    "Encoded",
    "Examples",
    "Feed",
    "Fit",
    "Level",
    "Order",
    "PenaltySchedule",
    "Recipe",
    "Selection",
    "Sizes",
    "Soup",
    "Symbols",
    "World",
    "audio",
    "balanced",
    "bleu",
    "by_language",
    "check_meanings",
    "conflict_map",
    "evaluated",
    "halves",
    "kinds_of",
    "load_soup",
    "looked",
    "losses",
    "pairs_between",
    "plain_sum",
    "real_world",
    "recipe_of",
    "save_soup",
    "selected",
    "shipped_world",
    "side_by_side",
    "single",
    "spoken_world",
    "summary",
    "told",
    "train",
    "uncertainty",
    "vc",
    "vm",
    "vs",
    "with_english",
    "world_of",
    "written",
]
