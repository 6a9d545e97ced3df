"""In-context regression: which algorithm attention runs, and where its guess starts.

`sample_prompts` draws prompts; gd, ridge, ols and sherman_morrison solve them;
`linear_attention`, `softmax_attention` and `linear_stack` answer them, hand-written or
trained by `train`. Closed forms stand in `closed_forms`, a small transformer with its
probes in `transformer`, and frozen random heads in `random_features`.
"""

from lib.icl_regression.attention import (
    descent_head,
    descent_stack,
    linear_attention,
    linear_rule,
    linear_stack,
    softmax_attention,
    softmax_tasks,
    stack_rule,
    start_heads,
    start_stack,
    twin_heads,
)
from lib.icl_regression.prompts import (
    Prompts,
    gd,
    gram,
    ilwd,
    ols,
    predict,
    ridge,
    sample_prompts,
    sample_tasks,
    sherman_morrison,
    spd,
    tokens,
)
from lib.icl_regression.training import Divergence, train

__all__ = [
    "Divergence",
    "Prompts",
    "descent_head",
    "descent_stack",
    "gd",
    "gram",
    "ilwd",
    "linear_attention",
    "linear_rule",
    "linear_stack",
    "ols",
    "predict",
    "ridge",
    "sample_prompts",
    "sample_tasks",
    "sherman_morrison",
    "softmax_attention",
    "softmax_tasks",
    "spd",
    "stack_rule",
    "start_heads",
    "start_stack",
    "tokens",
    "train",
    "twin_heads",
]
