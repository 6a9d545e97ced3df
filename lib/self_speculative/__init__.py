"""Self-speculative decoding: the draft comes out of the model that judges it.

Leave layers out (`SkipDrafter`, `search`, `SwiftDrafter`, `ClaspDrafter`), leave early
and go on from there (`ExitDrafter`, `ExitTarget`), put something small on the frozen
model (`Adapter`, `Medusa`, `Eagle`, `Recurrent`, `Masks`, trained by `train_head`), and
decide how much to draft (`Thompson`, `CostAware`). All are parts for the loop of
`lib.speculative`, whose rules keep the law. `python -m lib.self_speculative` trains a
head for a model file.
"""

from lib.self_speculative.clasp import (
    Chosen,
    ClaspDrafter,
    StreamTarget,
    best_of_all,
    clasp,
    judge_chosen,
    on_text,
)
from lib.self_speculative.control import (
    AdaptiveThreshold,
    CostAware,
    Regret,
    Thompson,
    drifting,
    regret,
)
from lib.self_speculative.drafting import HeadDrafter, KangarooDrafter
from lib.self_speculative.exits import (
    ExitDrafter,
    ExitTarget,
    best_exit,
    exit_speedup,
)
from lib.self_speculative.files import (
    load_head,
    save_head,
    shipped_head,
)
from lib.self_speculative.heads import Adapter, Eagle, Head, Medusa, Recurrent
from lib.self_speculative.masks import MaskDrafter, Masks, middle
from lib.self_speculative.passes import features
from lib.self_speculative.skipping import (
    Judged,
    SkipDrafter,
    early,
    even,
    kept_share,
    measured,
    predicted,
    score,
    score_layer_sets,
    search,
)
from lib.self_speculative.swift import SwiftDrafter, serve
from lib.self_speculative.training import judge_head, train_head

__all__ = [
    "Adapter",
    "AdaptiveThreshold",
    "Chosen",
    "ClaspDrafter",
    "CostAware",
    "Eagle",
    "ExitDrafter",
    "ExitTarget",
    "Head",
    "HeadDrafter",
    "Judged",
    "KangarooDrafter",
    "MaskDrafter",
    "Masks",
    "Medusa",
    "Recurrent",
    "Regret",
    "SkipDrafter",
    "StreamTarget",
    "SwiftDrafter",
    "Thompson",
    "best_exit",
    "best_of_all",
    "clasp",
    "drifting",
    "early",
    "even",
    "exit_speedup",
    "features",
    "judge_chosen",
    "judge_head",
    "kept_share",
    "load_head",
    "measured",
    "middle",
    "on_text",
    "predicted",
    "regret",
    "save_head",
    "score",
    "score_layer_sets",
    "search",
    "serve",
    "shipped_head",
    "train_head",
]
