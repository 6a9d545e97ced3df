"""Draft trees and drafts without a draft: many guesses for one pass of the target.

Shapes (`best_first`, Sequoia's `best_shape`), models that fill them (`OptTree`,
`ShapeDrafter`), fixed points (`jacobi`, `SpeculativeJacobi`), pools of phrases
(`Lookahead`, `Ouroboros`) and counted text (`DatastoreTree`, `Adaptive`): all are
drafters of `lib.speculative`, so all are verified, and all keep the target's law.
"""

from lib.draft_trees.drafters import OptTree, ShapeDrafter
from lib.draft_trees.jacobi import SpeculativeJacobi, Sweeps, agreed, jacobi
from lib.draft_trees.lookup import Adaptive, Datastore, DatastoreTree, Trigrams
from lib.draft_trees.phrases import (
    Lookahead,
    Ouroboros,
    Phrases,
    places,
    window_paths,
    window_sees,
)
from lib.draft_trees.sequoia import (
    Shape,
    best_shape,
    best_size,
    sibling_shares,
    worth_of,
)
from lib.draft_trees.shapes import (
    Grown,
    accepted_in,
    best_first,
    binary,
    line,
    merged,
    path_values,
    rooted_trees,
    within_budget,
)

__all__ = [
    "Adaptive",
    "Datastore",
    "DatastoreTree",
    "Grown",
    "Lookahead",
    "OptTree",
    "Ouroboros",
    "Phrases",
    "Shape",
    "ShapeDrafter",
    "SpeculativeJacobi",
    "Sweeps",
    "Trigrams",
    "accepted_in",
    "agreed",
    "best_first",
    "best_shape",
    "best_size",
    "binary",
    "jacobi",
    "line",
    "merged",
    "path_values",
    "places",
    "rooted_trees",
    "sibling_shares",
    "window_paths",
    "window_sees",
    "within_budget",
    "worth_of",
]
