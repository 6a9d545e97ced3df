"""In-context learning of a one-layer Mamba with outliers, against linear attention.

`PatternWorld` and `sample_prompts` draw prompts, `train_sgd` trains the arms of ARMS,
`errors` tests them. The closed forms stand in theory, what is measured of a trained
model in measure, the real multi-layer block in deep, the table of statements in
overview; they are imported where they are used. Source: 2510.00399.
"""

from lib.mamba_icl.measure import draw_test, error_rate, errors
from lib.mamba_icl.model import ARMS, gates, initial, scores
from lib.mamba_icl.training import (
    ETA,
    Divergence,
    Trained,
    hinge,
    steps_to,
    train_sgd,
    tune,
)
from lib.mamba_icl.world import (
    PatternWorld,
    Prompts,
    all_tasks,
    generator,
    sample_prompts,
)

__all__ = [
    "ARMS",
    "ETA",
    "Divergence",
    "PatternWorld",
    "Prompts",
    "Trained",
    "all_tasks",
    "draw_test",
    "error_rate",
    "errors",
    "gates",
    "generator",
    "hinge",
    "initial",
    "sample_prompts",
    "scores",
    "steps_to",
    "train_sgd",
    "tune",
]
